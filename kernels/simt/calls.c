#include "kernels/simt/calls.h"

#include "kernels/simt/block_internal.h"
#include "kernels/simt/control.h"
#include "kernels/simt/control_socket.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name; /* a constant of this program */
    uint64_t count;
} call_t;

typedef struct {
    char name[48];
    uint64_t at; /* the count that fails; 0: free */
    cudaError_t error;
} failure_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static call_t calls[KV_SIMT_CALLS_MAX];
static failure_t failures[KV_SIMT_FAILURES_MAX];
static cudaError_t broken;
static uint32_t delay_us_max;
static uint64_t delay_state;
static bool environment_read;
static _Thread_local cudaError_t last_error;

static call_t *call_of(const char *name)
{
    for (size_t i = 0; i < KV_SIMT_CALLS_MAX; i++) {
        if (calls[i].name == NULL) {
            calls[i].name = name;
        }
        if (strcmp(calls[i].name, name) == 0) {
            return &calls[i];
        }
    }
    return NULL;
}

static bool plan(const char *name, uint64_t nth, int error)
{
    uint64_t so_far = 0;
    for (size_t i = 0; i < KV_SIMT_CALLS_MAX && calls[i].name != NULL; i++) {
        so_far = strcmp(calls[i].name, name) == 0 ? calls[i].count : so_far;
    }
    for (size_t i = 0; i < KV_SIMT_FAILURES_MAX; i++) {
        if (failures[i].at == 0) {
            snprintf(failures[i].name, sizeof failures[i].name, "%s", name);
            failures[i].at = so_far + nth;
            failures[i].error = (cudaError_t)error;
            return true;
        }
    }
    return false;
}

/* "name:nth:error, ..."; what does not read like that is a finding. */
static void read_failures(const char *text)
{
    while (*text != '\0') {
        char name[48];
        unsigned long long nth;
        int error, length = 0;
        if (sscanf(text, " %47[^:]:%llu:%d%n", name, &nth, &error, &length) != 3 || nth == 0 ||
            !plan(name, nth, error)) {
            kv_simt_find(KV_SIMT_MISUSE, "KVIST_SIMT_FAIL: cannot use \"%s\"", text);
            return;
        }
        text += length;
        text += *text == ',';
    }
}

static void read_environment(void)
{
    if (environment_read) {
        return;
    }
    environment_read = true;
    const char *fail = getenv("KVIST_SIMT_FAIL"), *delay = getenv("KVIST_SIMT_DELAY"),
               *seed = getenv("KVIST_SIMT_SEED"), *control = getenv("KVIST_SIMT_CONTROL");
    if (control != NULL) {
        kv_simt_control_socket_open(control);
    }
    if (fail != NULL) {
        read_failures(fail);
    }
    if (delay != NULL) {
        delay_us_max = (uint32_t)strtoul(delay, NULL, 10);
    }
    if (seed != NULL) {
        delay_state = strtoull(seed, NULL, 10);
        kv_simt_set_order(delay_state);
    }
}

/* Counts; the failure that was planned for this call, or success. */
static cudaError_t count(const char *name)
{
    call_t *call = call_of(name);
    if (call == NULL) {
        return cudaSuccess;
    }
    call->count++;
    for (size_t i = 0; i < KV_SIMT_FAILURES_MAX; i++) {
        if (failures[i].at == call->count && strcmp(failures[i].name, name) == 0) {
            failures[i].at = 0;
            return failures[i].error;
        }
    }
    return cudaSuccess;
}

cudaError_t kv_simt_call(const char *name)
{
    pthread_mutex_lock(&lock);
    read_environment();
    cudaError_t planned = count(name);
    cudaError_t error = broken != cudaSuccess ? broken : planned;
    pthread_mutex_unlock(&lock);
    return error == cudaSuccess ? cudaSuccess : kv_simt_answer(error);
}

cudaError_t kv_simt_operation(const char *name)
{
    pthread_mutex_lock(&lock);
    cudaError_t planned = count(name);
    if (broken == cudaSuccess) {
        broken = planned;
    }
    cudaError_t error = broken;
    pthread_mutex_unlock(&lock);
    return error;
}

bool kv_simt_happens(const char *name)
{
    pthread_mutex_lock(&lock);
    cudaError_t planned = count(name);
    pthread_mutex_unlock(&lock);
    return planned != cudaSuccess;
}

cudaError_t kv_simt_answer(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady) {
        last_error = error;
    }
    return error;
}

void kv_simt_break(cudaError_t error)
{
    pthread_mutex_lock(&lock);
    broken = broken == cudaSuccess ? error : broken;
    pthread_mutex_unlock(&lock);
}

cudaError_t kv_simt_broken(void)
{
    pthread_mutex_lock(&lock);
    cudaError_t error = broken;
    pthread_mutex_unlock(&lock);
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    cudaError_t sticky = kv_simt_broken();
    return sticky != cudaSuccess ? sticky : last_error;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return error;
}

uint32_t kv_simt_next_delay_us(void)
{
    pthread_mutex_lock(&lock);
    uint32_t delay_us = 0;
    if (delay_us_max > 0) {
        delay_state = delay_state * 6364136223846793005ull + 1442695040888963407ull;
        delay_us = (uint32_t)(delay_state >> 33) % (delay_us_max + 1);
    }
    pthread_mutex_unlock(&lock);
    return delay_us;
}

void kv_simt_set_delay(uint32_t us_max, uint64_t seed)
{
    pthread_mutex_lock(&lock);
    read_environment();
    delay_us_max = us_max;
    delay_state = seed;
    pthread_mutex_unlock(&lock);
}

bool kv_simt_fail(const char *name, uint64_t nth, int error)
{
    pthread_mutex_lock(&lock);
    read_environment();
    bool planned = plan(name, nth, error);
    pthread_mutex_unlock(&lock);
    return planned;
}

void kv_simt_fail_none(void)
{
    pthread_mutex_lock(&lock);
    memset(failures, 0, sizeof failures);
    pthread_mutex_unlock(&lock);
}

size_t kv_simt_failures_waiting(void)
{
    pthread_mutex_lock(&lock);
    size_t waiting = 0;
    for (size_t i = 0; i < KV_SIMT_FAILURES_MAX; i++) {
        waiting += failures[i].at != 0;
    }
    pthread_mutex_unlock(&lock);
    return waiting;
}

uint64_t kv_simt_call_count(const char *name)
{
    pthread_mutex_lock(&lock);
    uint64_t found = 0;
    for (size_t i = 0; i < KV_SIMT_CALLS_MAX && calls[i].name != NULL; i++) {
        found = strcmp(calls[i].name, name) == 0 ? calls[i].count : found;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

const char *kv_simt_call_name(size_t index)
{
    pthread_mutex_lock(&lock);
    const char *name = index < KV_SIMT_CALLS_MAX ? calls[index].name : NULL;
    pthread_mutex_unlock(&lock);
    return name;
}

void kv_simt_calls_reset(void)
{
    pthread_mutex_lock(&lock);
    memset(calls, 0, sizeof calls);
    memset(failures, 0, sizeof failures);
    broken = cudaSuccess;
    pthread_mutex_unlock(&lock);
    last_error = cudaSuccess;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
        "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
        "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
        "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
        "no kernel image is available for execution on the device"},
    {cudaErrorECCUncorrectable, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
    {cudaErrorNvlinkUncorrectable, "cudaErrorNvlinkUncorrectable",
        "uncorrectable NVLink error detected during the execution"},
    {cudaErrorContained, "cudaErrorContained", "contained error encountered"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
        "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
        "too many resources requested for launch"},
    {cudaErrorLaunchTimeout, "cudaErrorLaunchTimeout", "the launch timed out"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorHardwareStackError, "cudaErrorHardwareStackError", "hardware stack error"},
    {cudaErrorIllegalInstruction, "cudaErrorIllegalInstruction", "illegal instruction"},
    {cudaErrorInvalidAddressSpace, "cudaErrorInvalidAddressSpace", "invalid address space"},
    {cudaErrorInvalidPc, "cudaErrorInvalidPc", "invalid program counter"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
        "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
        "pointer does not correspond to a registered memory region"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

const char *cudaGetErrorName(cudaError_t error)
{
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        if (errors[i].error == error) {
            return errors[i].name;
        }
    }
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        if (errors[i].error == error) {
            return errors[i].text;
        }
    }
    return "unrecognized error code";
}
