/* quantise: one block a row; each thread finds the largest of its groups of eight, a warp's lanes
 * exchange theirs, then the warps; the second reading is from the cache. A maximum has no order, so
 * a row's numbers have one way to be. Bytes: 2 or 4 in and 1 out for each column.
 * rescale: four columns a thread. Bytes: 4 in, 4 out, 4 more in to accumulate, for each column.
 *
 * Tolerance against plain C (tests/kernels/cuda/test_quantise.c): none, equal to the bit. */
#include "kernels/cuda/quantise.h"

#include "kernels/cuda/launch.h"

enum { THREADS = 256, WARPS = THREADS / CUDA_WARP, GROUP = 8, VECTOR = 4 };

#define E4M3_LARGEST 448.0f
/* A row of less than this is as good as one of zeros: its scale stays a normal number. */
#define LARGEST_MIN 1e-30f

static __device__ __forceinline__ void load_group(
    const void *row, uint32_t group, kv_element_t element, float value[GROUP])
{
    if (element == KV_ELEMENT_BF16) {
        const uint4 v = ((const uint4 *)row)[group];
        const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            value[2 * i] = cuda_bf16_low(pairs[i]);
            value[2 * i + 1] = cuda_bf16_high(pairs[i]);
        }
        return;
    }
    const float4 a = ((const float4 *)row)[2 * group], b = ((const float4 *)row)[2 * group + 1];
    const float wide[GROUP] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        value[i] = wide[i];
    }
}

/* The largest over the block, the same in every thread. */
static __device__ float block_largest(float own, float *largest)
{
    for (int step = CUDA_WARP / 2; step > 0; step /= 2) {
        own = fmaxf(own, __shfl_xor_sync(CUDA_ALL_LANES, own, step));
    }
    if (threadIdx.x % CUDA_WARP == 0) {
        largest[threadIdx.x / CUDA_WARP] = own;
    }
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++) {
        own = fmaxf(own, largest[warp]);
    }
    return own;
}

static __device__ __forceinline__ uint32_t e4m3_pair(float low, float high)
{
    return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

static __global__ void __launch_bounds__(THREADS) quantise_kernel(const cuda_quantise_t quantise)
{
    __shared__ float largest[WARPS];
    const uint32_t row = blockIdx.x, groups = quantise.columns / GROUP;
    const bool given = row < quantise.rows.count;
    const size_t row_bytes =
        (size_t)quantise.columns * (quantise.from_element == KV_ELEMENT_BF16 ? 2 : 4);
    const char *from = (const char *)quantise.from + (quantise.rows.first + row) * row_bytes;
    uint2 *to = (uint2 *)(quantise.to + (size_t)row * quantise.columns);
    float own = LARGEST_MIN, value[GROUP] = {};
    for (uint32_t group = threadIdx.x; given && group < groups; group += THREADS) {
        load_group(from, group, quantise.from_element, value);
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            own = fmaxf(own, fabsf(value[i]));
        }
    }
    own = block_largest(own, largest);
    const float factor = E4M3_LARGEST / own;
    for (uint32_t group = threadIdx.x; group < groups; group += THREADS) {
        if (given) {
            load_group(from, group, quantise.from_element, value);
        }
        uint32_t pairs[GROUP / 2];
#pragma unroll
        for (int i = 0; i < GROUP / 2; i++) {
            pairs[i] = e4m3_pair(value[2 * i] * factor, value[2 * i + 1] * factor);
        }
        to[group] = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
    }
    if (threadIdx.x == 0) {
        quantise.scales[row] = own / E4M3_LARGEST;
    }
}

kv_status_t cuda_quantise(cuda_stream_t *stream, const cuda_quantise_t *quantise, kv_error_t *error)
{
    if (quantise->to_rows == 0) {
        return KV_OK;
    }
    return cuda_launched("quantise",
        KV_LAUNCH(quantise_kernel, dim3(quantise->to_rows), dim3(THREADS), 0,
            cuda_stream_of(stream), *quantise),
        error);
}

static __global__ void __launch_bounds__(THREADS) rescale_kernel(const cuda_rescale_t rescale)
{
    const uint32_t quarter = rescale.columns / VECTOR;
    const size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)rescale.rows * quarter) {
        return;
    }
    const float scale = rescale.row_scales[at / quarter];
    const float4 sum = ((const float4 *)rescale.from)[at],
                 scales = ((const float4 *)rescale.column_scales)[at % quarter];
    float4 value = make_float4(__fmul_rn(__fmul_rn(sum.x, scale), scales.x),
        __fmul_rn(__fmul_rn(sum.y, scale), scales.y), __fmul_rn(__fmul_rn(sum.z, scale), scales.z),
        __fmul_rn(__fmul_rn(sum.w, scale), scales.w));
    float4 *out = (float4 *)rescale.out + at;
    if (rescale.accumulate) {
        const float4 before = *out;
        value = make_float4(__fadd_rn(before.x, value.x), __fadd_rn(before.y, value.y),
            __fadd_rn(before.z, value.z), __fadd_rn(before.w, value.w));
    }
    *out = value;
}

kv_status_t cuda_rescale(cuda_stream_t *stream, const cuda_rescale_t *rescale, kv_error_t *error)
{
    const size_t count = (size_t)rescale->rows * (rescale->columns / VECTOR);
    if (count == 0) {
        return KV_OK;
    }
    return cuda_launched("rescale",
        KV_LAUNCH(rescale_kernel, dim3(cuda_blocks(count, THREADS)), dim3(THREADS), 0,
            cuda_stream_of(stream), *rescale),
        error);
}
