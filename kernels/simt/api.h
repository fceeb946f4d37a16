/* The functions of CUDA's runtime that Kvist calls, under CUDA's names and numbers, for a process
 * without a GPU: one device, whose memory is this process's and whose kernels run on its CPU.
 *
 * Streams are threads: what is enqueued to one runs in order, later, and beside the others; an
 * operation may be delayed on purpose. An asynchronous copy from or to host memory that is not
 * registered completes before the call returns, as on a GPU. An error in a kernel, and an injected
 * failure of an operation under way, stays for all later calls until kv_simt_reset. The default
 * stream is one more stream: it waits for no other, and none for it.
 *
 * Owns: streams, events, device memory until they are given back.
 * Borrows: pinned host memory that a copy names, until the copy is done.
 * Threads: any.
 * Errors: CUDA's; what CUDA leaves undefined is a finding (finding.h) as well. */
#ifndef KV_KERNELS_SIMT_API_H
#define KV_KERNELS_SIMT_API_H

#include "kernels/simt/block.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidMemcpyDirection = 21,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorECCUncorrectable = 214,
    cudaErrorNvlinkUncorrectable = 220,
    cudaErrorContained = 226,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorLaunchTimeout = 702,
    cudaErrorAssert = 710,
    cudaErrorHostMemoryAlreadyRegistered = 712,
    cudaErrorHostMemoryNotRegistered = 713,
    cudaErrorHardwareStackError = 714,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorInvalidAddressSpace = 717,
    cudaErrorInvalidPc = 718,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
    cudaErrorUnknown = 999,
} cudaError_t;

typedef enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4,
} cudaMemcpyKind_t;

typedef enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
} cudaDeviceAttr_t;

typedef enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
} cudaFuncAttribute_t;

typedef enum cudaMemoryType {
    cudaMemoryTypeUnregistered = 0,
    cudaMemoryTypeHost = 1,
    cudaMemoryTypeDevice = 2,
} cudaMemoryType_t;

enum {
    cudaStreamDefault = 0,
    cudaStreamNonBlocking = 1,
    cudaEventDefault = 0,
    cudaEventBlockingSync = 1,
    cudaEventDisableTiming = 2,
    cudaEventRecordDefault = 0,
    cudaEventWaitDefault = 0,
    cudaHostAllocDefault = 0,
    cudaHostAllocPortable = 1,
    cudaHostAllocMapped = 2,
    cudaHostRegisterDefault = 0,
    cudaHostRegisterPortable = 1,
    cudaHostRegisterMapped = 2,
};

typedef struct kv_simt_stream *cudaStream_t;
typedef struct kv_simt_event *cudaEvent_t;
typedef void (*cudaHostFn_t)(void *argument);

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    size_t sharedMemPerBlock, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount, warpSize, maxThreadsPerBlock;
    int asyncEngineCount, pciBusID, pciDeviceID, pciDomainID;
};

struct cudaFuncAttributes {
    size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion;
};

struct cudaPointerAttributes {
    cudaMemoryType_t type;
    int device;
    void *devicePointer, *hostPointer;
};

const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);

cudaError_t cudaRuntimeGetVersion(int *version_out);
cudaError_t cudaDriverGetVersion(int *version_out);
cudaError_t cudaGetDeviceCount(int *count_out);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device_out);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties_out, int device);
cudaError_t cudaDeviceGetAttribute(int *value_out, cudaDeviceAttr_t attribute, int device);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least_out, int *greatest_out);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaMemGetInfo(size_t *free_out, size_t *total_out);

cudaError_t cudaMalloc(void **memory_out, size_t bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaMallocHost(void **memory_out, size_t bytes);
cudaError_t cudaHostAlloc(void **memory_out, size_t bytes, unsigned int flags);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned int flags);
cudaError_t cudaHostUnregister(void *memory);
cudaError_t cudaPointerGetAttributes(
    struct cudaPointerAttributes *attributes_out, const void *address);

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind_t kind);
cudaError_t cudaMemcpyAsync(
    void *to, const void *from, size_t bytes, cudaMemcpyKind_t kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
    size_t width, size_t height, cudaMemcpyKind_t kind, cudaStream_t stream);
cudaError_t cudaMemset(void *memory, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream);

cudaError_t cudaStreamCreate(cudaStream_t *stream_out);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream_out, unsigned int flags);
cudaError_t cudaStreamCreateWithPriority(
    cudaStream_t *stream_out, unsigned int flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument);

cudaError_t cudaEventCreate(cudaEvent_t *event_out);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event_out, unsigned int flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *elapsed_ms_out, cudaEvent_t begin, cudaEvent_t end);

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute_t attribute, int value);
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes_out, const void *function);

/* KV_LAUNCH. The launch and its body are copied. */
cudaError_t kv_simt_enqueue(const kv_simt_launch_t *launch, cudaStream_t stream);

/* Enqueues a call that may fail as a kernel does: for stand-ins of libraries. */
typedef int kv_simt_work_t(void *argument);
cudaError_t kv_simt_enqueue_work(
    kv_simt_work_t *work, const void *argument, size_t bytes, cudaStream_t stream);

#ifdef __cplusplus
}

/* CUDA's own conveniences for typed pointers. */
template <typename element_t>
static inline cudaError_t cudaMalloc(element_t **memory_out, size_t bytes)
{
    return cudaMalloc(reinterpret_cast<void **>(memory_out), bytes);
}

template <typename element_t>
static inline cudaError_t cudaMallocHost(element_t **memory_out, size_t bytes)
{
    return cudaMallocHost(reinterpret_cast<void **>(memory_out), bytes);
}

template <typename element_t>
static inline cudaError_t cudaHostAlloc(element_t **memory_out, size_t bytes, unsigned int flags)
{
    return cudaHostAlloc(reinterpret_cast<void **>(memory_out), bytes, flags);
}

template <typename... parameters_t>
static inline cudaError_t cudaFuncSetAttribute(
    void (*function)(parameters_t...), cudaFuncAttribute_t attribute, int value)
{
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(function), attribute, value);
}

template <typename... parameters_t>
static inline cudaError_t cudaFuncGetAttributes(
    struct cudaFuncAttributes *attributes_out, void (*function)(parameters_t...))
{
    return cudaFuncGetAttributes(attributes_out, reinterpret_cast<const void *>(function));
}
#endif

#endif
