#include "kernels/cuda/device_internal.h"

/* Whether CUDA keeps giving an error: after one of a kernel or of the hardware every call answers
 * with it, whatever is asked. */
static bool stays(const cuda_device_t *cuda)
{
    if (cuda->compute == nullptr) {
        return false; /* nothing ran yet */
    }
    const cudaError_t code = cudaStreamQuery(cuda->compute);
    (void)cudaGetLastError();
    return code != cudaSuccess && code != cudaErrorNotReady;
}

static kv_status_t status_of(cudaError_t code)
{
    switch (code) {
    case cudaSuccess:
        return KV_OK;
    case cudaErrorNotReady:
        return KV_BUSY;
    case cudaErrorMemoryAllocation:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorLaunchOutOfResources:
        return KV_NO_SPACE;
    default:
        return KV_FATAL;
    }
}

static void lose(cuda_device_t *cuda, const char *call, cudaError_t code)
{
    cuda_health_t *health = &cuda->health;
    pthread_mutex_lock(&health->lock);
    if (!health->lost) {
        kv_fail(&health->cause, KV_FATAL,
            "%s of gpu %d failed: %s (%d); the gpu is lost to this process: restart it", call,
            cuda->ordinal, cudaGetErrorString(code), (int)code);
        health->lost = true;
    }
    pthread_mutex_unlock(&health->lock);
}

kv_status_t cuda_health(kv_device_t *device, kv_error_t *error)
{
    cuda_health_t *health = &cuda_of(device)->health;
    pthread_mutex_lock(&health->lock);
    const bool lost = health->lost;
    if (lost && error != nullptr) {
        *error = health->cause;
    }
    pthread_mutex_unlock(&health->lock);
    return lost ? KV_FATAL : KV_OK;
}

kv_status_t cuda_check(cuda_device_t *cuda, cudaError_t code, const char *call, kv_error_t *error)
{
    if (code == cudaSuccess) {
        return KV_OK;
    }
    (void)cudaGetLastError(); /* else the next launch that is checked would be blamed */
    if (stays(cuda)) {
        lose(cuda, call, code);
        return cuda_health(&cuda->device, error);
    }
    return kv_fail(error, status_of(code), "%s of gpu %d failed: %s (%d)", call, cuda->ordinal,
        cudaGetErrorString(code), (int)code);
}

kv_status_t cuda_enter(cuda_device_t *cuda, kv_error_t *error)
{
    kv_status_t status = cuda_health(&cuda->device, error);
    return status != KV_OK ? status
                           : cuda_check(cuda, cudaSetDevice(cuda->ordinal), "cudaSetDevice", error);
}
