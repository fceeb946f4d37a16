/* Eight weights a thread. The kernels are bound by what they write: 2 or 4 bytes of each weight.
 *
 * Tolerance against kernels/cpu/dequantise.c: none, equal to the bit in f32; in bf16 the same
 * number rounded to nearest; a NaN stays one. */
#include "kernels/cuda/weights.h"

#include "kernels/cuda/expand.h"

enum { THREADS = 256, GROUP = EXPAND_GROUP };

static __device__ __forceinline__ void store8(
    void *to, size_t group, const float *value, kv_element_t element)
{
    if (element == KV_ELEMENT_BF16) {
        ((uint4 *)to)[group] =
            make_uint4(cuda_bf16_pair(value[0], value[1]), cuda_bf16_pair(value[2], value[3]),
                cuda_bf16_pair(value[4], value[5]), cuda_bf16_pair(value[6], value[7]));
        return;
    }
    ((float4 *)to)[2 * group] = make_float4(value[0], value[1], value[2], value[3]);
    ((float4 *)to)[2 * group + 1] = make_float4(value[4], value[5], value[6], value[7]);
}

static __global__ void __launch_bounds__(THREADS)
    dequantise_kernel(const cuda_dequantise_t dequantise)
{
    const size_t group = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (group < dequantise.count / GROUP) {
        float value[GROUP];
        expand_group(dequantise.type, (const uint8_t *)dequantise.from, group, value);
        store8(dequantise.to, group, value, dequantise.to_element);
    }
}

kv_status_t cuda_dequantise(
    cuda_stream_t *stream, const cuda_dequantise_t *dequantise, kv_error_t *error)
{
    if (dequantise->count == 0) {
        return KV_OK;
    }
    return cuda_launched("dequantise",
        KV_LAUNCH(dequantise_kernel, dim3(cuda_blocks(dequantise->count, THREADS * GROUP)),
            dim3(THREADS), 0, cuda_stream_of(stream), *dequantise),
        error);
}

/* One block is up to THREADS x GROUP columns of one row. */
static __global__ void __launch_bounds__(THREADS)
    embed_kernel(const cuda_embed_t embed, size_t row_bytes)
{
    const uint32_t group = blockIdx.y * THREADS + threadIdx.x;
    if (group < embed.columns / GROUP) {
        float value[GROUP];
        expand_group(embed.type,
            (const uint8_t *)embed.matrix + embed.tokens[blockIdx.x] * row_bytes, group, value);
        store8(embed.out + (size_t)(embed.rows.first + blockIdx.x) * embed.columns, group, value,
            KV_ELEMENT_F32);
    }
}

kv_status_t cuda_embed(cuda_stream_t *stream, const cuda_embed_t *embed, kv_error_t *error)
{
    if (embed->rows.count == 0) {
        return KV_OK;
    }
    const size_t row_bytes = (size_t)embed->columns / kv_weight_block_elements(embed->type) *
                             kv_weight_block_bytes(embed->type);
    return cuda_launched("embed",
        KV_LAUNCH(embed_kernel,
            dim3(embed->rows.count, cuda_blocks(embed->columns, THREADS * GROUP)), dim3(THREADS), 0,
            cuda_stream_of(stream), *embed, row_bytes),
        error);
}
