/* Eight weights a thread: in every format eight consecutive elements from a multiple of eight on
 * share a scale and lie in eight consecutive bytes (Q6_K: and the high bits in eight others). The
 * kernels are bound by the bytes that they write; blocks of 18, 34 and 210 bytes are read by
 * 16-bit loads, which the cache serves.
 *
 * Tolerance against kernels/cpu/dequantise.c: none, equal to the bit in f32 (products and sums are
 * rounded apart, not fused); in bf16 the same number rounded to nearest; a NaN stays one. */
#include "kernels/cuda/weights.h"

#include "kernels/cuda/launch.h"

enum { THREADS = 256, GROUP = 8 };

static __device__ __forceinline__ float half_at(const uint8_t *at)
{
    return __half2float(__ushort_as_half(*(const uint16_t *)at));
}

/* Eight bytes from an even address on, the first in the low bits. */
static __device__ __forceinline__ uint2 bytes_at(const uint8_t *from)
{
    const uint16_t *halves = (const uint16_t *)from;
    return make_uint2(halves[0] | (uint32_t)halves[1] << 16, halves[2] | (uint32_t)halves[3] << 16);
}

static __device__ __forceinline__ uint32_t byte_of(uint2 bytes, int i)
{
    return (i < 4 ? bytes.x >> 8 * i : bytes.y >> 8 * (i - 4)) & 255u;
}

static __device__ __forceinline__ void q8_0(const uint8_t *from, size_t group, float *to)
{
    const uint8_t *block = from + group / 4 * 34;
    const float d = half_at(block);
    const uint2 bytes = bytes_at(block + 2 + group % 4 * GROUP);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        to[i] = d * (float)(int8_t)byte_of(bytes, i);
    }
}

/* Elements 0 to 15 are low nibbles, 16 to 31 the high ones of the same bytes. */
static __device__ __forceinline__ void q4_0(const uint8_t *from, size_t group, float *to)
{
    const uint8_t *block = from + group / 4 * 18;
    const int part = (int)(group % 4);
    const float d = half_at(block);
    const uint2 bytes = bytes_at(block + 2 + part % 2 * GROUP);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        to[i] = d * (float)((int)(byte_of(bytes, i) >> part / 2 * 4 & 15) - 8);
    }
}

static __device__ __forceinline__ void q4_1(const uint8_t *from, size_t group, float *to)
{
    const uint8_t *block = from + group / 4 * 20;
    const int part = (int)(group % 4);
    const float d = half_at(block), m = half_at(block + 2);
    const uint2 bytes = bytes_at(block + 4 + part % 2 * GROUP);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        const float quant = (float)(byte_of(bytes, i) >> part / 2 * 4 & 15);
        to[i] = __fadd_rn(__fmul_rn(d, quant), m);
    }
}

/* Sub-blocks 2 i and 2 i + 1 share 32 bytes. Of the 6-bit scales and minima the first four lie in
 * bytes 0 to 3 and 4 to 7; the others have low nibbles in 8 to 11 and their high bits above those
 * of the first. */
static __device__ __forceinline__ void q4_k(const uint8_t *from, size_t group, float *to)
{
    const uint8_t *block = from + group / 32 * 144, *packed = block + 4;
    const int part = (int)(group % 32), sub = part / 4;
    uint32_t scale_bits, minimum_bits;
    if (sub < 4) {
        scale_bits = packed[sub] & 63u;
        minimum_bits = packed[sub + 4] & 63u;
    } else {
        scale_bits = (packed[sub + 4] & 15u) | (uint32_t)(packed[sub - 4] >> 6) << 4;
        minimum_bits = (uint32_t)(packed[sub + 4] >> 4) | (uint32_t)(packed[sub] >> 6) << 4;
    }
    const float scale = half_at(block) * (float)scale_bits,
                minimum = half_at(block + 2) * (float)minimum_bits;
    const uint2 bytes = bytes_at(block + 16 + sub / 2 * 32 + part % 4 * GROUP);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        const float quant = (float)(byte_of(bytes, i) >> sub % 2 * 4 & 15);
        to[i] = __fsub_rn(__fmul_rn(scale, quant), minimum);
    }
}

/* Each half of 128 elements: four runs of 32 share 64 bytes of low nibbles and 32 of high pairs. */
static __device__ __forceinline__ void q6_k(const uint8_t *from, size_t group, float *to)
{
    const uint8_t *block = from + group / 32 * 210;
    const int part = (int)(group % 32), half = part / 16, run = part % 16 / 4,
              column = part % 4 * GROUP;
    const float scale = half_at(block + 208) * (float)(int8_t)block[192 + part / 2];
    const uint2 low = bytes_at(block + half * 64 + run % 2 * 32 + column),
                high = bytes_at(block + 128 + half * 32 + column);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        const uint32_t nibble = byte_of(low, i) >> run / 2 * 4 & 15,
                       pair = byte_of(high, i) >> run * 2 & 3;
        to[i] = scale * (float)((int)(nibble | pair << 4) - 32);
    }
}

static __device__ __forceinline__ void f32(const uint8_t *from, size_t group, float *to)
{
    const float4 a = ((const float4 *)from)[2 * group], b = ((const float4 *)from)[2 * group + 1];
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
    to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

static __device__ __forceinline__ void f16(const uint8_t *from, size_t group, float *to)
{
    const uint4 v = ((const uint4 *)from)[group];
    const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __half2float(__ushort_as_half((uint16_t)(pairs[i] & 0xffffu)));
        to[2 * i + 1] = __half2float(__ushort_as_half((uint16_t)(pairs[i] >> 16)));
    }
}

static __device__ __forceinline__ void bf16(const uint8_t *from, size_t group, float *to)
{
    const uint4 v = ((const uint4 *)from)[group];
    const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = cuda_bf16_low(pairs[i]);
        to[2 * i + 1] = cuda_bf16_high(pairs[i]);
    }
}

/* The group-th eight elements. The type is the launch's: the branch is the same in every thread. */
static __device__ __forceinline__ void expand(
    kv_weight_type_t type, const uint8_t *from, size_t group, float *to)
{
    switch (type) {
    case KV_WEIGHT_F32:
        f32(from, group, to);
        break;
    case KV_WEIGHT_F16:
        f16(from, group, to);
        break;
    case KV_WEIGHT_Q4_0:
        q4_0(from, group, to);
        break;
    case KV_WEIGHT_Q4_1:
        q4_1(from, group, to);
        break;
    case KV_WEIGHT_Q8_0:
        q8_0(from, group, to);
        break;
    case KV_WEIGHT_Q4_K:
        q4_k(from, group, to);
        break;
    case KV_WEIGHT_Q6_K:
        q6_k(from, group, to);
        break;
    case KV_WEIGHT_BF16:
        bf16(from, group, to);
        break;
    }
}

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
        expand(dequantise.type, (const uint8_t *)dequantise.from, group, value);
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
        expand(embed.type, (const uint8_t *)embed.matrix + embed.tokens[blockIdx.x] * row_bytes,
            group, value);
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
