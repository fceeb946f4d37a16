/* CUDA's functions but for streams and events: the device, memory, copies, launches. */
#include "base/check.h"
#include "base/memory.h"
#include "kernels/simt/api.h"
#include "kernels/simt/block_internal.h"
#include "kernels/simt/calls.h"
#include "kernels/simt/control.h"
#include "kernels/simt/memory.h"
#include "kernels/simt/stream.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION = 13000, PROCESSORS = 4, FUNCTIONS_MAX = 256 };

/* Kernels that were given more dynamic shared memory than every kernel has. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    const void *function;
    size_t shared_bytes_max;
} functions[FUNCTIONS_MAX];

static size_t shared_bytes_of(const void *function)
{
    size_t bytes = KV_SIMT_SHARED_BYTES_PLAIN;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < FUNCTIONS_MAX && functions[i].function != NULL; i++) {
        if (functions[i].function == function) {
            bytes = functions[i].shared_bytes_max;
        }
    }
    pthread_mutex_unlock(&lock);
    return bytes;
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute_t attribute, int value)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess || attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
        return refused;
    }
    if (value < 0 || value > KV_SIMT_SHARED_BYTES_MAX) {
        return kv_simt_answer(cudaErrorInvalidValue);
    }
    cudaError_t error = cudaErrorMemoryAllocation;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < FUNCTIONS_MAX && error != cudaSuccess; i++) {
        if (functions[i].function == NULL || functions[i].function == function) {
            functions[i].function = function;
            functions[i].shared_bytes_max = (size_t)value;
            error = cudaSuccess;
        }
    }
    pthread_mutex_unlock(&lock);
    return kv_simt_answer(error);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes_out, const void *function)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess || function == NULL) {
        return refused != cudaSuccess ? refused : kv_simt_answer(cudaErrorInvalidDeviceFunction);
    }
    *attributes_out = (struct cudaFuncAttributes){.maxThreadsPerBlock = KV_SIMT_THREADS_MAX};
    return cudaSuccess;
}

/* The device. */

cudaError_t cudaRuntimeGetVersion(int *version_out)
{
    *version_out = VERSION;
    return kv_simt_call(__func__);
}

cudaError_t cudaDriverGetVersion(int *version_out)
{
    *version_out = VERSION;
    return kv_simt_call(__func__);
}

cudaError_t cudaGetDeviceCount(int *count_out)
{
    *count_out = 1;
    return kv_simt_call(__func__);
}

cudaError_t cudaSetDevice(int device)
{
    cudaError_t refused = kv_simt_call(__func__);
    return refused == cudaSuccess && device != 0 ? kv_simt_answer(cudaErrorInvalidDevice) : refused;
}

cudaError_t cudaGetDevice(int *device_out)
{
    *device_out = 0;
    return kv_simt_call(__func__);
}

int kv_simt_chip(void)
{
    const char *chip = getenv("KVIST_SIMT_CHIP");
    const long number = chip != NULL ? strtol(chip, NULL, 10) : 0;
    return number > 0 && number < 1000 ? (int)number : 90;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties_out, int device)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess || device != 0) {
        return refused != cudaSuccess ? refused : kv_simt_answer(cudaErrorInvalidDevice);
    }
    *properties_out = (struct cudaDeviceProp){
        .name = "simt",
        .totalGlobalMem = kv_simt_memory_bound(),
        .sharedMemPerBlock = KV_SIMT_SHARED_BYTES_PLAIN,
        .sharedMemPerBlockOptin = KV_SIMT_SHARED_BYTES_MAX,
        .major = kv_simt_chip() / 10,
        .minor = kv_simt_chip() % 10,
        .multiProcessorCount = PROCESSORS,
        .warpSize = KV_SIMT_WARP_LANES,
        .maxThreadsPerBlock = KV_SIMT_THREADS_MAX,
        .asyncEngineCount = 2,
    };
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value_out, cudaDeviceAttr_t attribute, int device)
{
    struct cudaDeviceProp properties;
    cudaError_t error = kv_simt_call(__func__);
    if (error == cudaSuccess) {
        error = cudaGetDeviceProperties(&properties, device);
    }
    if (error != cudaSuccess) {
        return error;
    }
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value_out = properties.maxThreadsPerBlock;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value_out = (int)properties.sharedMemPerBlock;
        return cudaSuccess;
    case cudaDevAttrWarpSize:
        *value_out = properties.warpSize;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *value_out = properties.multiProcessorCount;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value_out = properties.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value_out = properties.minor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value_out = (int)properties.sharedMemPerBlockOptin;
        return cudaSuccess;
    }
    return kv_simt_answer(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least_out, int *greatest_out)
{
    *least_out = 0;
    *greatest_out = -5;
    return kv_simt_call(__func__);
}

cudaError_t cudaDeviceSynchronize(void)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    kv_simt_streams_finish();
    return kv_simt_answer(kv_simt_broken());
}

cudaError_t cudaMemGetInfo(size_t *free_out, size_t *total_out)
{
    cudaError_t refused = kv_simt_call(__func__);
    *total_out = kv_simt_memory_bound();
    *free_out = *total_out - kv_simt_memory_used();
    return refused;
}

/* Memory. */

cudaError_t cudaMalloc(void **memory_out, size_t bytes)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    void *memory = bytes == 0 ? NULL : kv_simt_memory_allocate(bytes);
    if (memory == NULL && bytes > 0) {
        return kv_simt_answer(cudaErrorMemoryAllocation);
    }
    *memory_out = memory;
    return cudaSuccess;
}

/* Freeing waits for the device, as CUDA's does. What is given back is given back even if the call
 * answers with an error: on a GPU such an error is an earlier operation's. So it is below. */
cudaError_t cudaFree(void *memory)
{
    cudaError_t error = kv_simt_call(__func__);
    if (memory == NULL) {
        return error;
    }
    kv_simt_streams_finish();
    return kv_simt_memory_release(memory) ? error : kv_simt_answer(cudaErrorInvalidValue);
}

static cudaError_t allocate_host(void **memory_out, size_t bytes)
{
    void *memory = NULL;
    if (bytes == 0) {
        *memory_out = NULL;
        return cudaSuccess;
    }
    if (posix_memalign(&memory, 4096, bytes) != 0) {
        return kv_simt_answer(cudaErrorMemoryAllocation);
    }
    KV_CHECK(kv_simt_memory_pin(memory, bytes, true));
    *memory_out = memory;
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **memory_out, size_t bytes)
{
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused : allocate_host(memory_out, bytes);
}

cudaError_t cudaHostAlloc(void **memory_out, size_t bytes, unsigned int flags)
{
    (void)flags;
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused : allocate_host(memory_out, bytes);
}

cudaError_t cudaFreeHost(void *memory)
{
    cudaError_t error = kv_simt_call(__func__);
    if (memory == NULL) {
        return error;
    }
    kv_simt_streams_finish();
    if (!kv_simt_memory_unpin(memory)) {
        return kv_simt_answer(cudaErrorInvalidValue);
    }
    free(memory);
    return error;
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned int flags)
{
    (void)flags;
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    if (memory == NULL || bytes == 0 || kv_simt_memory_is_device(memory)) {
        return kv_simt_answer(cudaErrorInvalidValue);
    }
    bool pinned = kv_simt_memory_pin(memory, bytes, false);
    return pinned ? cudaSuccess : kv_simt_answer(cudaErrorHostMemoryAlreadyRegistered);
}

cudaError_t cudaHostUnregister(void *memory)
{
    cudaError_t error = kv_simt_call(__func__);
    bool found = kv_simt_memory_unpin(memory);
    return found ? error : kv_simt_answer(cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaPointerGetAttributes(
    struct cudaPointerAttributes *attributes_out, const void *address)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    bool device = kv_simt_memory_is_device(address) && kv_simt_memory_covers(address, 1);
    bool host = !device && kv_simt_memory_is_pinned(address, 1);
    *attributes_out = (struct cudaPointerAttributes){
        .type = device ? cudaMemoryTypeDevice
                : host ? cudaMemoryTypeHost
                       : cudaMemoryTypeUnregistered,
        .device = device || host ? 0 : -2,
        .devicePointer = device || host ? (void *)(uintptr_t)address : NULL,
        .hostPointer = host ? (void *)(uintptr_t)address : NULL,
    };
    return cudaSuccess;
}

/* Copies. */

static size_t span(size_t pitch, size_t width, size_t height)
{
    return height == 0 ? 0 : pitch * (height - 1) + width;
}

/* Is each side where the kind says, and within one allocation or registration? */
static cudaError_t check_copy(const kv_simt_moved_t *moved, cudaMemcpyKind_t kind)
{
    bool to = kv_simt_memory_is_device(moved->to), from = kv_simt_memory_is_device(moved->from);
    bool to_said = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_said = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if ((unsigned)kind > cudaMemcpyDefault) {
        return cudaErrorInvalidMemcpyDirection;
    }
    if (kind != cudaMemcpyDefault && (to != to_said || from != from_said)) {
        return cudaErrorInvalidValue;
    }
    size_t to_bytes = span(moved->to_pitch, moved->width, moved->height);
    size_t from_bytes = span(moved->from_pitch, moved->width, moved->height);
    if ((to ? !kv_simt_memory_covers(moved->to, to_bytes)
            : kv_simt_memory_is_cut(moved->to, to_bytes)) ||
        (from ? !kv_simt_memory_covers(moved->from, from_bytes)
              : kv_simt_memory_is_cut(moved->from, from_bytes)) ||
        (moved->height > 1 &&
            (moved->to_pitch < moved->width || moved->from_pitch < moved->width))) {
        return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

/* Enqueues a copy; waits for it where a side is pageable, or when asked to. */
static cudaError_t enqueue_copy(
    kv_simt_moved_t moved, cudaMemcpyKind_t kind, cudaStream_t stream, bool wait)
{
    if (moved.width == 0 || moved.height == 0) {
        return cudaSuccess;
    }
    cudaError_t error = check_copy(&moved, kind);
    if (error != cudaSuccess) {
        return kv_simt_answer(error);
    }
    bool host_to = !kv_simt_memory_is_device(moved.to);
    bool host_from = !kv_simt_memory_is_device(moved.from);
    moved.host_to = host_to && kv_simt_memory_is_pinned(
                                   moved.to, span(moved.to_pitch, moved.width, moved.height));
    moved.host_from = host_from && kv_simt_memory_is_pinned(moved.from,
                                       span(moved.from_pitch, moved.width, moved.height));
    wait = wait || moved.host_to != host_to || moved.host_from != host_from;
    kv_simt_operation_t *operation = kv_simt_operation_create(KV_SIMT_RUN_COPY, 0);
    operation->of.copy = moved;
    error = kv_simt_stream_enqueue(stream, operation);
    if (error != cudaSuccess || !wait) {
        return error;
    }
    error = kv_simt_stream_finish(stream);
    return error != cudaSuccess ? error : kv_simt_answer(kv_simt_broken());
}

static kv_simt_moved_t one_row(void *to, const void *from, size_t bytes)
{
    return (kv_simt_moved_t){
        .to = to,
        .from = from,
        .to_pitch = bytes,
        .from_pitch = bytes,
        .width = bytes,
        .height = 1,
    };
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind_t kind)
{
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused
                                  : enqueue_copy(one_row(to, from, bytes), kind, NULL, true);
}

cudaError_t cudaMemcpyAsync(
    void *to, const void *from, size_t bytes, cudaMemcpyKind_t kind, cudaStream_t stream)
{
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused
                                  : enqueue_copy(one_row(to, from, bytes), kind, stream, false);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
    size_t width, size_t height, cudaMemcpyKind_t kind, cudaStream_t stream)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    kv_simt_moved_t moved = {
        .to = to,
        .from = from,
        .to_pitch = to_pitch,
        .from_pitch = from_pitch,
        .width = width,
        .height = height,
    };
    return enqueue_copy(moved, kind, stream, false);
}

static cudaError_t enqueue_set(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    if (bytes == 0) {
        return cudaSuccess;
    }
    if (!kv_simt_memory_is_device(memory) || !kv_simt_memory_covers(memory, bytes)) {
        return kv_simt_answer(cudaErrorInvalidValue);
    }
    kv_simt_operation_t *operation = kv_simt_operation_create(KV_SIMT_RUN_SET, 0);
    operation->of.set.memory = memory;
    operation->of.set.bytes = bytes;
    operation->of.set.value = value;
    return kv_simt_stream_enqueue(stream, operation);
}

cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    cudaError_t error = kv_simt_call(__func__);
    if (error == cudaSuccess) {
        error = enqueue_set(memory, value, bytes, NULL);
    }
    if (error == cudaSuccess) {
        error = kv_simt_stream_finish(NULL);
    }
    return error != cudaSuccess ? error : kv_simt_answer(kv_simt_broken());
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused : enqueue_set(memory, value, bytes, stream);
}

/* Launches and other work. */

static cudaError_t check_launch(const kv_simt_launch_t *launch)
{
    uint64_t threads = (uint64_t)launch->block.x * launch->block.y * launch->block.z;
    uint64_t blocks = (uint64_t)launch->grid.x * launch->grid.y * launch->grid.z;
    if (threads == 0 || threads > KV_SIMT_THREADS_MAX || launch->block.z > 64 || blocks == 0 ||
        launch->grid.x > INT32_MAX || launch->grid.y > 65535 || launch->grid.z > 65535) {
        return cudaErrorInvalidConfiguration;
    }
    return launch->shared_bytes > shared_bytes_of(launch->function) ? cudaErrorInvalidValue
                                                                    : cudaSuccess;
}

cudaError_t kv_simt_enqueue(const kv_simt_launch_t *launch, cudaStream_t stream)
{
    cudaError_t refused = kv_simt_call("launch");
    if (refused != cudaSuccess) {
        return refused;
    }
    cudaError_t error = check_launch(launch);
    if (error != cudaSuccess) {
        return kv_simt_answer(error);
    }
    kv_simt_operation_t *operation =
        kv_simt_operation_create(KV_SIMT_RUN_LAUNCH, launch->body_bytes);
    operation->of.launch = *launch;
    memcpy(operation->body, launch->body, launch->body_bytes);
    return kv_simt_stream_enqueue(stream, operation);
}

cudaError_t kv_simt_enqueue_work(
    kv_simt_work_t *work, const void *argument, size_t bytes, cudaStream_t stream)
{
    kv_simt_operation_t *operation = kv_simt_operation_create(KV_SIMT_RUN_WORK, bytes);
    operation->of.work = work;
    memcpy(operation->body, argument, bytes);
    return kv_simt_stream_enqueue(stream, operation);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    kv_simt_operation_t *operation = kv_simt_operation_create(KV_SIMT_RUN_HOST, 0);
    operation->of.host.function = function;
    operation->of.host.argument = argument;
    return kv_simt_stream_enqueue(stream, operation);
}

/* What tests ask. */

void kv_simt_held(kv_simt_held_t *held_out)
{
    held_out->device_bytes = kv_simt_memory_used();
    held_out->pinned_ranges = kv_simt_memory_pinned_count();
    kv_simt_streams_count(&held_out->streams, &held_out->events);
}

void kv_simt_reset(void)
{
    kv_simt_streams_reset();
    kv_simt_memory_release_all();
    kv_simt_calls_reset();
    pthread_mutex_lock(&lock);
    memset(functions, 0, sizeof functions);
    pthread_mutex_unlock(&lock);
}
