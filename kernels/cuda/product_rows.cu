/* A block is four outputs for up to four rows: its threads take groups of eight columns in turn,
 * widen the four weight rows' groups once and multiply them with each row's. Then 8 threads add up
 * a sum of all threads' parts, 16 each in their order, and each other's by exchange. That order is
 * the same for four rows and for one, so rows do not know of each other.
 *
 * Bytes: the weights once for each four rows; the activations come from the caches, once for each
 * four outputs. Operations: 2 for each weight and row, in f32.
 *
 * Tolerance against kernels/cpu/plain.c: 1e-4 of 1 + |value| (the order of sums; a compact form of
 * Q4_0 there fuses its offset). */
#include "kernels/cuda/product_rows.h"

#include "kernels/cuda/expand.h"

enum {
    THREADS = 128,
    OUTPUTS = 4,
    ROWS_AT_ONCE = 4,
    ADDERS = 8, /* threads that add up one sum */
    PARTS = THREADS / ADDERS,
};

template <int ROWS>
static __device__ __forceinline__ void multiply_group(const cuda_product_rows_t &product,
    const float *in, uint32_t group, const float weights[EXPAND_GROUP], float sums[ROWS])
{
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const float4 *from =
            (const float4 *)(in + (size_t)row * product.columns) + 2 * (size_t)group;
        const float4 a = from[0], b = from[1];
        const float x[EXPAND_GROUP] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < EXPAND_GROUP; i++) {
            sums[row] = fmaf(weights[i], x[i], sums[row]);
        }
    }
}

/* parts[sum][thread], padded so that the adders of a warp meet different banks. */
static __device__ __forceinline__ uint32_t part_at(uint32_t sum, uint32_t thread)
{
    return sum * (THREADS + ADDERS) + thread + thread / PARTS;
}

template <kv_weight_type_t TYPE, int ROWS>
static __global__ void __launch_bounds__(THREADS)
    product_rows_kernel(const cuda_product_rows_t product, size_t row_bytes)
{
    __shared__ float parts[OUTPUTS * ROWS * (THREADS + ADDERS)];
    const uint32_t first = blockIdx.x * OUTPUTS, groups = product.columns / EXPAND_GROUP;
    const float *in = product.in + (size_t)product.rows.first * product.columns;
    float sums[OUTPUTS][ROWS] = {};
    for (uint32_t group = threadIdx.x; group < groups; group += THREADS) {
#pragma unroll
        for (uint32_t output = 0; output < OUTPUTS; output++) {
            if (first + output < product.weight_rows) {
                float weights[EXPAND_GROUP];
                expand_group(TYPE, (const uint8_t *)product.weights + (first + output) * row_bytes,
                    group, weights);
                multiply_group<ROWS>(product, in, group, weights, sums[output]);
            }
        }
    }
#pragma unroll
    for (int sum = 0; sum < OUTPUTS * ROWS; sum++) {
        parts[part_at(sum, threadIdx.x)] = sums[sum / ROWS][sum % ROWS];
    }
    __syncthreads();
    /* 16 sums at once; with one row only the first warp has any. */
    const uint32_t sum = threadIdx.x / ADDERS, adder = threadIdx.x % ADDERS;
    if (sum / (CUDA_WARP / ADDERS) * (CUDA_WARP / ADDERS) >= OUTPUTS * ROWS) {
        return;
    }
    float own = 0;
    for (uint32_t part = 0; part < PARTS; part++) {
        own += parts[part_at(sum, adder * PARTS + part)];
    }
    for (int step = ADDERS / 2; step > 0; step /= 2) {
        own += __shfl_xor_sync(CUDA_ALL_LANES, own, step);
    }
    const uint32_t output = first + sum / ROWS, row = product.rows.first + sum % ROWS;
    if (adder == 0 && output < product.weight_rows) {
        float *out = product.out + (size_t)row * product.out_stride + product.out_first + output;
        *out = product.accumulate ? *out + own : own;
    }
}

template <kv_weight_type_t TYPE>
static cudaError_t launch(cudaStream_t stream, const cuda_product_rows_t *product)
{
    const size_t row_bytes =
        (size_t)product->columns / kv_weight_block_elements(TYPE) * kv_weight_block_bytes(TYPE);
    const dim3 blocks(cuda_blocks(product->weight_rows, OUTPUTS)), threads(THREADS);
    cuda_product_rows_t some = *product;
    cudaError_t code = cudaSuccess;
    while (some.rows.count > 0 && code == cudaSuccess) {
        const uint32_t rows = some.rows.count >= ROWS_AT_ONCE ? (uint32_t)ROWS_AT_ONCE : 1;
        code = rows > 1 ? KV_LAUNCH((product_rows_kernel<TYPE, ROWS_AT_ONCE>), blocks, threads, 0,
                              stream, some, row_bytes)
                        : KV_LAUNCH((product_rows_kernel<TYPE, 1>), blocks, threads, 0, stream,
                              some, row_bytes);
        some.rows.first += rows;
        some.rows.count -= rows;
    }
    return code;
}

static cudaError_t launch_type(cudaStream_t stream, const cuda_product_rows_t *product)
{
    switch (product->type) {
    case KV_WEIGHT_F32:
        return launch<KV_WEIGHT_F32>(stream, product);
    case KV_WEIGHT_F16:
        return launch<KV_WEIGHT_F16>(stream, product);
    case KV_WEIGHT_Q4_0:
        return launch<KV_WEIGHT_Q4_0>(stream, product);
    case KV_WEIGHT_Q4_1:
        return launch<KV_WEIGHT_Q4_1>(stream, product);
    case KV_WEIGHT_Q8_0:
        return launch<KV_WEIGHT_Q8_0>(stream, product);
    case KV_WEIGHT_Q4_K:
        return launch<KV_WEIGHT_Q4_K>(stream, product);
    case KV_WEIGHT_Q6_K:
        return launch<KV_WEIGHT_Q6_K>(stream, product);
    case KV_WEIGHT_BF16:
        return launch<KV_WEIGHT_BF16>(stream, product);
    }
    return cudaErrorInvalidValue;
}

kv_status_t cuda_product_rows(
    cuda_stream_t *stream, const cuda_product_rows_t *product, kv_error_t *error)
{
    if (product->rows.count == 0 || product->weight_rows == 0) {
        return KV_OK;
    }
    return cuda_launched("product_rows", launch_type(cuda_stream_of(stream), product), error);
}
