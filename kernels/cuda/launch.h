/* What the launchers share: the stream's real type, the status of a launch, and the numbers that
 * every kernel writes.
 *
 * Errors: KV_FATAL for a launch that the runtime refused; its sticky code is cleared by that. What
 * goes wrong inside a kernel shows when the stream is waited for. */
#ifndef KV_KERNELS_CUDA_LAUNCH_H
#define KV_KERNELS_CUDA_LAUNCH_H

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/stream.h"
#include "kernels/device.h"

enum { CUDA_WARP = 32 };

#define CUDA_ALL_LANES 0xffffffffu

static inline cudaStream_t cuda_stream_of(cuda_stream_t *stream)
{
    return (cudaStream_t)stream;
}

/* What KV_LAUNCH gave, as a status. */
static inline kv_status_t cuda_launched(const char *kernel, cudaError_t code, kv_error_t *error)
{
    if (code == cudaSuccess) {
        return KV_OK;
    }
    (void)cudaGetLastError(); /* or the next launch is taken for it */
    return kv_fail(
        error, KV_FATAL, "the kernel %s did not start: %s", kernel, cudaGetErrorString(code));
}

/* Blocks of per_block that hold count. */
static inline uint32_t cuda_blocks(size_t count, uint32_t per_block)
{
    return (uint32_t)((count + per_block - 1) / per_block);
}

/* Two bf16, the first in the low half; to nearest, ties to even; a NaN becomes 0x7fff. */
static __device__ __forceinline__ uint32_t cuda_bf16_pair(float low, float high)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&pair;
}

static __device__ __forceinline__ float cuda_bf16_low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

static __device__ __forceinline__ float cuda_bf16_high(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

/* Writes elements 4 at .. 4 at + 3 of a row in either type. */
static __device__ __forceinline__ void cuda_store4(
    void *row, size_t at, float4 value, kv_element_t element)
{
    if (element == KV_ELEMENT_BF16) {
        ((uint2 *)row)[at] =
            make_uint2(cuda_bf16_pair(value.x, value.y), cuda_bf16_pair(value.z, value.w));
    } else {
        ((float4 *)row)[at] = value;
    }
}

#endif
