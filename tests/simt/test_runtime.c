/* The stand-in's runtime: order within and between streams, what is pinned and what is not, errors
 * that stay, and every call failing once with nothing lost. */
#include "kernels/simt/api.h"
#include "kernels/simt/control.h"
#include "kernels/simt/finding.h"
#include "tests/simt/samples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { COUNT = 384, BLOCKS = 3, SEEDS = 6, DELAY_US = 300, LONG_DELAY_US = 20000 };

static int begin(void **state)
{
    (void)state;
    kv_simt_reset();
    kv_simt_findings_clear();
    kv_simt_set_order(0);
    kv_simt_set_delay(0, 0);
    return 0;
}

static int end(void **state)
{
    (void)state;
    kv_simt_reset();
    return 0;
}

static void nothing_is_held(void)
{
    kv_simt_held_t held;
    kv_simt_held(&held);
    assert_int_equal(held.device_bytes, 0);
    assert_int_equal(held.pinned_ranges, 0);
    assert_int_equal(held.streams, 0);
    assert_int_equal(held.events, 0);
}

/* A copy in on one stream, a sum on another, a copy out on the first: what a device does for each
 * layer. Everything that it takes it gives back. */
typedef struct {
    cudaStream_t copies, kernels;
    cudaEvent_t in, summed;
    float *host, *device; /* [COUNT values][BLOCKS sums] */
    float *pageable;      /* [COUNT], registered while it is used */
} work_t;

static cudaError_t take(work_t *work)
{
    const size_t bytes = (COUNT + BLOCKS) * sizeof(float);
    cudaError_t error = cudaSetDevice(0);
    if (error == cudaSuccess) {
        error = cudaStreamCreateWithFlags(&work->copies, cudaStreamNonBlocking);
    }
    if (error == cudaSuccess) {
        error = cudaStreamCreateWithFlags(&work->kernels, cudaStreamNonBlocking);
    }
    if (error == cudaSuccess) {
        error = cudaEventCreateWithFlags(&work->in, cudaEventDisableTiming);
    }
    if (error == cudaSuccess) {
        error = cudaEventCreateWithFlags(&work->summed, cudaEventDisableTiming);
    }
    if (error == cudaSuccess) {
        error = cudaHostAlloc((void **)&work->host, bytes, cudaHostAllocDefault);
    }
    if (error == cudaSuccess) {
        error = cudaMalloc((void **)&work->device, bytes);
    }
    if (error == cudaSuccess) {
        error = cudaHostRegister(work->pageable, COUNT * sizeof(float), cudaHostRegisterDefault);
    }
    return error;
}

static cudaError_t enqueue(const work_t *work)
{
    float *sums = work->device + COUNT;
    cudaError_t error = cudaMemsetAsync(sums, 0, BLOCKS * sizeof *sums, work->copies);
    if (error == cudaSuccess) {
        error = cudaMemcpyAsync(work->device, work->pageable, COUNT * sizeof(float),
            cudaMemcpyHostToDevice, work->copies);
    }
    if (error == cudaSuccess) {
        error = cudaEventRecord(work->in, work->copies);
    }
    if (error == cudaSuccess) {
        error = cudaStreamWaitEvent(work->kernels, work->in, 0);
    }
    if (error == cudaSuccess) {
        error =
            (cudaError_t)sample_sum(work->kernels, work->device, COUNT, sums, NULL, MISTAKE_NONE);
    }
    if (error == cudaSuccess) {
        error = cudaEventRecord(work->summed, work->kernels);
    }
    if (error == cudaSuccess) {
        error = cudaStreamWaitEvent(work->copies, work->summed, 0);
    }
    if (error == cudaSuccess) {
        error = cudaMemcpyAsync(
            work->host, sums, BLOCKS * sizeof *sums, cudaMemcpyDeviceToHost, work->copies);
    }
    return error;
}

/* The first error of the two. */
static cudaError_t first_of(cudaError_t first, cudaError_t second)
{
    return first != cudaSuccess ? first : second;
}

static cudaError_t give_back(const work_t *work, bool registered)
{
    cudaError_t error = cudaSuccess;
    if (work->copies != NULL) {
        error = first_of(error, cudaStreamDestroy(work->copies));
    }
    if (work->kernels != NULL) {
        error = first_of(error, cudaStreamDestroy(work->kernels));
    }
    if (work->in != NULL) {
        error = first_of(error, cudaEventDestroy(work->in));
    }
    if (work->summed != NULL) {
        error = first_of(error, cudaEventDestroy(work->summed));
    }
    error = first_of(error, cudaFree(work->device));
    error = first_of(error, cudaFreeHost(work->host));
    if (registered) {
        error = first_of(error, cudaHostUnregister(work->pageable));
    }
    return error;
}

/* The whole; right_out: the sums are right. */
static cudaError_t run_all(bool *right_out)
{
    static float values[COUNT];
    float expected[BLOCKS] = {0};
    for (int i = 0; i < COUNT; i++) {
        values[i] = (float)(i % 13);
        expected[i / 128] += values[i];
    }
    work_t work = {.pageable = values};
    cudaError_t taken = take(&work), error = taken;
    if (error == cudaSuccess) {
        error = enqueue(&work);
    }
    if (taken == cudaSuccess) {
        error = first_of(error, cudaStreamSynchronize(work.kernels));
        error = first_of(error, cudaStreamSynchronize(work.copies));
    }
    *right_out = error == cudaSuccess && memcmp(work.host, expected, sizeof expected) == 0;
    return first_of(error, give_back(&work, taken == cudaSuccess));
}

static void streams_keep_their_order(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        bool right = false;
        kv_simt_set_delay(DELAY_US, seed);
        assert_int_equal(run_all(&right), cudaSuccess);
        assert_true(right);
        nothing_is_held();
    }
    assert_int_equal(kv_simt_finding_count(KV_SIMT_FINDING_KINDS), 0);
}

/* Every call of the run fails once, by name and number. */
static void every_call_fails_once(void **state)
{
    (void)state;
    bool right;
    char names[KV_SIMT_CALLS_MAX][48];
    uint64_t counts[KV_SIMT_CALLS_MAX];
    size_t name_count = 0;
    assert_int_equal(run_all(&right), cudaSuccess);
    for (const char *name; (name = kv_simt_call_name(name_count)) != NULL; name_count++) {
        assert_true(strlen(name) < sizeof names[0]);
        memcpy(names[name_count], name, strlen(name) + 1);
        counts[name_count] = kv_simt_call_count(name);
    }
    assert_true(name_count > 15);
    for (size_t i = 0; i < name_count; i++) {
        if (strcmp(names[i], "damage") == 0) {
            continue; /* which no call tells */
        }
        for (uint64_t nth = 1; nth <= counts[i]; nth++) {
            kv_simt_reset();
            assert_true(kv_simt_fail(names[i], nth, cudaErrorLaunchFailure));
            cudaError_t error = run_all(&right);
            if (error != cudaErrorLaunchFailure) {
                print_message("%s, call %llu: %s\n", names[i], (unsigned long long)nth,
                    cudaGetErrorName(error));
            }
            assert_int_equal(error, cudaErrorLaunchFailure);
            nothing_is_held();
        }
    }
    kv_simt_reset();
    assert_int_equal(run_all(&right), cudaSuccess);
    assert_true(right);
}

static void copies_of_pinned_memory_are_later(void **state)
{
    (void)state;
    cudaStream_t stream;
    cudaEvent_t event;
    int *host, *device, pageable = 7;
    assert_int_equal(cudaStreamCreate(&stream), cudaSuccess);
    assert_int_equal(cudaEventCreate(&event), cudaSuccess);
    assert_int_equal(cudaMallocHost((void **)&host, sizeof *host), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&device, sizeof *device), cudaSuccess);
    *host = 5;
    kv_simt_set_delay(LONG_DELAY_US, 3);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(cudaMemcpyAsync(device, host, 4, cudaMemcpyDefault, stream), cudaSuccess);
    }
    assert_int_equal(cudaEventRecord(event, stream), cudaSuccess);
    assert_int_equal(cudaStreamQuery(stream), cudaErrorNotReady);
    assert_int_equal(cudaEventQuery(event), cudaErrorNotReady);
    assert_int_equal(cudaEventSynchronize(event), cudaSuccess);
    assert_int_equal(cudaEventQuery(event), cudaSuccess);
    kv_simt_set_delay(DELAY_US, 3);
    assert_int_equal(
        cudaMemcpyAsync(&pageable, device, 4, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    assert_int_equal(pageable, 5);
    assert_int_equal(cudaPeekAtLastError(), cudaSuccess);
}

static void memory_unregistered_too_early_is_found(void **state)
{
    (void)state;
    static int host[64];
    void *device;
    cudaStream_t stream;
    assert_int_equal(cudaStreamCreate(&stream), cudaSuccess);
    assert_int_equal(cudaMalloc(&device, sizeof host), cudaSuccess);
    assert_int_equal(cudaHostRegister(host, sizeof host, 0), cudaSuccess);
    kv_simt_set_delay(LONG_DELAY_US, 1);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(
            cudaMemcpyAsync(device, host, sizeof host, cudaMemcpyDefault, stream), cudaSuccess);
    }
    assert_int_equal(cudaHostUnregister(host), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_true(kv_simt_finding_count(KV_SIMT_MISUSE) > 0);
}

static void a_bad_kernel_breaks_the_device(void **state)
{
    (void)state;
    float *values, *sums;
    assert_int_equal(cudaMalloc((void **)&values, 128 * sizeof *values), cudaSuccess);
    assert_int_equal(cudaMemset(values, 0, 128 * sizeof *values), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&sums, sizeof *sums), cudaSuccess);
    assert_int_equal(sample_sum(NULL, values, 128, sums, NULL, MISTAKE_WRITE_PAST), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    assert_int_equal(cudaGetLastError(), cudaErrorIllegalAddress);
    assert_int_equal(cudaGetLastError(), cudaErrorIllegalAddress);
    void *more = NULL;
    assert_int_equal(cudaMalloc(&more, 1), cudaErrorIllegalAddress);
    assert_int_equal(cudaFree(values), cudaErrorIllegalAddress);
    assert_int_equal(cudaFree(sums), cudaErrorIllegalAddress);
    nothing_is_held();
    kv_simt_reset();
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaMalloc(&more, 1), cudaSuccess);
}

static void what_makes_no_sense_is_refused(void **state)
{
    (void)state;
    char host[64] = {0};
    void *device, *other;
    assert_int_equal(cudaMalloc(&device, 64), cudaSuccess);
    assert_int_equal(cudaMalloc(&other, 0), cudaSuccess);
    assert_null(other);
    assert_int_equal(cudaMemcpy(device, host, 65, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(device, host, 64, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaMemset(device, 0, 65), cudaErrorInvalidValue);
    assert_int_equal(cudaFree((char *)device + 1), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(device), cudaSuccess);
    assert_int_equal(cudaFree(device), cudaErrorInvalidValue);
    assert_int_equal(cudaHostUnregister(host), cudaErrorHostMemoryNotRegistered);
    assert_int_equal(cudaHostRegister(host, 32, 0), cudaSuccess);
    assert_int_equal(cudaHostRegister(host + 16, 32, 0), cudaErrorHostMemoryAlreadyRegistered);
    assert_int_equal(cudaHostRegister(host + 32, 16, 0), cudaSuccess);
    assert_int_equal(cudaMalloc(&other, 64), cudaSuccess);
    assert_int_equal(cudaMemcpy(other, host, 48, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(
        cudaMemcpy(other, host + 40, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(other, host + 48, 16, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(cudaHostUnregister(host + 32), cudaSuccess);
    assert_int_equal(cudaHostUnregister(host), cudaSuccess);
    assert_int_equal(cudaSetDevice(1), cudaErrorInvalidDevice);
    assert_int_equal(sample_vote(NULL, 1025, 0, NULL), cudaErrorInvalidConfiguration);
    assert_int_equal(sample_vote(NULL, 0, 0, NULL), cudaErrorInvalidConfiguration);
    assert_int_equal(cudaFuncSetAttribute((const void *)host,
                         cudaFuncAttributeMaxDynamicSharedMemorySize, KV_SIMT_SHARED_BYTES_MAX + 1),
        cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
}

static void device_memory_has_an_end(void **state)
{
    (void)state;
    void *memory;
    size_t free_bytes, total_bytes;
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    assert_int_equal(free_bytes, total_bytes);
    assert_int_equal(cudaMalloc(&memory, total_bytes + 1), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaMalloc(&memory, 1 << 20), cudaSuccess);
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    assert_int_equal(free_bytes, total_bytes - (1 << 20));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(streams_keep_their_order, begin, end),
        cmocka_unit_test_setup_teardown(every_call_fails_once, begin, end),
        cmocka_unit_test_setup_teardown(copies_of_pinned_memory_are_later, begin, end),
        cmocka_unit_test_setup_teardown(memory_unregistered_too_early_is_found, begin, end),
        cmocka_unit_test_setup_teardown(a_bad_kernel_breaks_the_device, begin, end),
        cmocka_unit_test_setup_teardown(what_makes_no_sense_is_refused, begin, end),
        cmocka_unit_test_setup_teardown(device_memory_has_an_end, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
