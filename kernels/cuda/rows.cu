/* The norm: one block a row; each thread sums its columns' squares in their order, a warp's lanes
 * are added by exchange, the warps in their order. The block's size is fixed, so a row's sum has
 * one order. The row is read twice, the second time from the cache. Bytes: 4 + 4 columns in (the
 * weights come from the cache), 2 or 4 out.
 * The gate: four columns a thread. Bytes: 8 in, 2 or 4 out, for each column.
 *
 * Tolerance against kernels/cpu/plain.c: 1e-5 of 1 + |value|; in bf16 one unit of the last place
 * (0.01). The sum's order and the exponential differ. */
#include "kernels/cuda/rows.h"

#include "kernels/cuda/launch.h"

enum { THREADS = 256, WARPS = THREADS / CUDA_WARP };

/* The sum over the block, the same in every thread. */
static __device__ float block_sum(float own, float *sums)
{
    for (int step = CUDA_WARP / 2; step > 0; step /= 2) {
        own += __shfl_xor_sync(CUDA_ALL_LANES, own, step);
    }
    if (threadIdx.x % CUDA_WARP == 0) {
        sums[threadIdx.x / CUDA_WARP] = own;
    }
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < WARPS; warp++) {
        sum += sums[warp];
    }
    return sum;
}

static __device__ __forceinline__ char *row_at(
    void *out, size_t row, uint32_t columns, kv_element_t element)
{
    return (char *)out + row * columns * (element == KV_ELEMENT_BF16 ? 2 : 4);
}

static __global__ void __launch_bounds__(THREADS) norm_kernel(const cuda_norm_t norm)
{
    __shared__ float sums[WARPS];
    const size_t row = norm.rows.first + blockIdx.x;
    const float4 *x = (const float4 *)(norm.x + row * norm.columns),
                 *weight = (const float4 *)norm.weight;
    const uint32_t count = norm.columns / 4;
    float own = 0;
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
        const float4 v = x[i];
        own += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
    }
    const float mean = block_sum(own, sums) / (float)norm.columns,
                factor = 1.0f / sqrtf(mean + norm.epsilon);
    char *out = row_at(norm.out, row, norm.columns, norm.out_element);
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
        const float4 v = x[i], w = weight[i];
        cuda_store4(out, i,
            make_float4(
                v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w),
            norm.out_element);
    }
}

kv_status_t cuda_norm(cuda_stream_t *stream, const cuda_norm_t *norm, kv_error_t *error)
{
    if (norm->rows.count == 0) {
        return KV_OK;
    }
    return cuda_launched("norm",
        KV_LAUNCH(
            norm_kernel, dim3(norm->rows.count), dim3(THREADS), 0, cuda_stream_of(stream), *norm),
        error);
}

kv_status_t cuda_rows_built(kv_error_t *error)
{
    cudaFuncAttributes attributes;
    const cudaError_t code = cudaFuncGetAttributes(&attributes, norm_kernel);
    if (code == cudaSuccess) {
        return KV_OK;
    }
    (void)cudaGetLastError();
    return kv_fail(error, KV_MISSING, "%s (%d)", cudaGetErrorString(code), (int)code);
}

static __device__ __forceinline__ float gated(float in, float up)
{
    return in / (1.0f + expf(-in)) * up;
}

static __global__ void __launch_bounds__(THREADS) gate_kernel(const cuda_gate_t gate)
{
    const uint32_t quarter = gate.columns / 4;
    const size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)gate.rows.count * quarter) {
        return;
    }
    const size_t row = gate.rows.first + at / quarter;
    const uint32_t i = (uint32_t)(at % quarter);
    const float4 *in = (const float4 *)(gate.in + row * 2 * gate.columns);
    const float4 a = in[i], b = in[quarter + i];
    cuda_store4(row_at(gate.out, row, gate.columns, gate.out_element), i,
        make_float4(gated(a.x, b.x), gated(a.y, b.y), gated(a.z, b.z), gated(a.w, b.w)),
        gate.out_element);
}

kv_status_t cuda_gate(cuda_stream_t *stream, const cuda_gate_t *gate, kv_error_t *error)
{
    if (gate->rows.count == 0) {
        return KV_OK;
    }
    const size_t count = (size_t)gate->rows.count * (gate->columns / 4);
    return cuda_launched("gate",
        KV_LAUNCH(gate_kernel, dim3(cuda_blocks(count, THREADS)), dim3(THREADS), 0,
            cuda_stream_of(stream), *gate),
        error);
}
