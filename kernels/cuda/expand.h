/* Eight weights of a file's block as floats: in every format eight consecutive elements from a
 * multiple of eight on share a scale and lie in eight consecutive bytes (Q6_K: and the high bits in
 * eight others). Blocks of 18, 34 and 210 bytes are read by 16-bit loads, which the cache serves.
 *
 * Equal to the bit to kernels/cpu/dequantise.c: products and sums are rounded apart, not fused; a
 * NaN stays one. */
#ifndef KV_KERNELS_CUDA_EXPAND_H
#define KV_KERNELS_CUDA_EXPAND_H

#include "kernels/cuda/launch.h"

enum { EXPAND_GROUP = 8 };

static __device__ __forceinline__ float expand_half_at(const uint8_t *at)
{
    return __half2float(__ushort_as_half(*(const uint16_t *)at));
}

/* Eight bytes from an even address on, the first in the low bits. */
static __device__ __forceinline__ uint2 expand_bytes_at(const uint8_t *from)
{
    const uint16_t *halves = (const uint16_t *)from;
    return make_uint2(halves[0] | (uint32_t)halves[1] << 16, halves[2] | (uint32_t)halves[3] << 16);
}

static __device__ __forceinline__ uint32_t expand_byte_of(uint2 bytes, int i)
{
    return (i < 4 ? bytes.x >> 8 * i : bytes.y >> 8 * (i - 4)) & 255u;
}

static __device__ __forceinline__ void expand_q8_0(const uint8_t *from, size_t group, float *to)
{
    const uint8_t *block = from + group / 4 * 34;
    const float d = expand_half_at(block);
    const uint2 bytes = expand_bytes_at(block + 2 + group % 4 * EXPAND_GROUP);
#pragma unroll
    for (int i = 0; i < EXPAND_GROUP; i++) {
        to[i] = d * (float)(int8_t)expand_byte_of(bytes, i);
    }
}

/* Elements 0 to 15 are low nibbles, 16 to 31 the high ones of the same bytes. */
static __device__ __forceinline__ void expand_q4_0(const uint8_t *from, size_t group, float *to)
{
    const uint8_t *block = from + group / 4 * 18;
    const int part = (int)(group % 4);
    const float d = expand_half_at(block);
    const uint2 bytes = expand_bytes_at(block + 2 + part % 2 * EXPAND_GROUP);
#pragma unroll
    for (int i = 0; i < EXPAND_GROUP; i++) {
        to[i] = d * (float)((int)(expand_byte_of(bytes, i) >> part / 2 * 4 & 15) - 8);
    }
}

static __device__ __forceinline__ void expand_q4_1(const uint8_t *from, size_t group, float *to)
{
    const uint8_t *block = from + group / 4 * 20;
    const int part = (int)(group % 4);
    const float d = expand_half_at(block), m = expand_half_at(block + 2);
    const uint2 bytes = expand_bytes_at(block + 4 + part % 2 * EXPAND_GROUP);
#pragma unroll
    for (int i = 0; i < EXPAND_GROUP; i++) {
        const float quant = (float)(expand_byte_of(bytes, i) >> part / 2 * 4 & 15);
        to[i] = __fadd_rn(__fmul_rn(d, quant), m);
    }
}

/* Sub-blocks 2 i and 2 i + 1 share 32 bytes. Of the 6-bit scales and minima the first four lie in
 * bytes 0 to 3 and 4 to 7; the others have low nibbles in 8 to 11 and their high bits above those
 * of the first. */
static __device__ __forceinline__ void expand_q4_k(const uint8_t *from, size_t group, float *to)
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
    const float scale = expand_half_at(block) * (float)scale_bits,
                minimum = expand_half_at(block + 2) * (float)minimum_bits;
    const uint2 bytes = expand_bytes_at(block + 16 + sub / 2 * 32 + part % 4 * EXPAND_GROUP);
#pragma unroll
    for (int i = 0; i < EXPAND_GROUP; i++) {
        const float quant = (float)(expand_byte_of(bytes, i) >> sub % 2 * 4 & 15);
        to[i] = __fsub_rn(__fmul_rn(scale, quant), minimum);
    }
}

/* Each half of 128 elements: four runs of 32 share 64 bytes of low nibbles and 32 of high pairs. */
static __device__ __forceinline__ void expand_q6_k(const uint8_t *from, size_t group, float *to)
{
    const uint8_t *block = from + group / 32 * 210;
    const int part = (int)(group % 32), half = part / 16, run = part % 16 / 4,
              column = part % 4 * EXPAND_GROUP;
    const float scale = expand_half_at(block + 208) * (float)(int8_t)block[192 + part / 2];
    const uint2 low = expand_bytes_at(block + half * 64 + run % 2 * 32 + column),
                high = expand_bytes_at(block + 128 + half * 32 + column);
#pragma unroll
    for (int i = 0; i < EXPAND_GROUP; i++) {
        const uint32_t nibble = expand_byte_of(low, i) >> run / 2 * 4 & 15,
                       pair = expand_byte_of(high, i) >> run * 2 & 3;
        to[i] = scale * (float)((int)(nibble | pair << 4) - 32);
    }
}

static __device__ __forceinline__ void expand_f32(const uint8_t *from, size_t group, float *to)
{
    const float4 a = ((const float4 *)from)[2 * group], b = ((const float4 *)from)[2 * group + 1];
    const float wide[EXPAND_GROUP] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < EXPAND_GROUP; i++) {
        to[i] = wide[i];
    }
}

static __device__ __forceinline__ void expand_f16(const uint8_t *from, size_t group, float *to)
{
    const uint4 v = ((const uint4 *)from)[group];
    const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __half2float(__ushort_as_half((uint16_t)(pairs[i] & 0xffffu)));
        to[2 * i + 1] = __half2float(__ushort_as_half((uint16_t)(pairs[i] >> 16)));
    }
}

static __device__ __forceinline__ void expand_bf16(const uint8_t *from, size_t group, float *to)
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
static __device__ __forceinline__ void expand_group(
    kv_weight_type_t type, const uint8_t *from, size_t group, float *to)
{
    switch (type) {
    case KV_WEIGHT_F32:
        expand_f32(from, group, to);
        break;
    case KV_WEIGHT_F16:
        expand_f16(from, group, to);
        break;
    case KV_WEIGHT_Q4_0:
        expand_q4_0(from, group, to);
        break;
    case KV_WEIGHT_Q4_1:
        expand_q4_1(from, group, to);
        break;
    case KV_WEIGHT_Q8_0:
        expand_q8_0(from, group, to);
        break;
    case KV_WEIGHT_Q4_K:
        expand_q4_k(from, group, to);
        break;
    case KV_WEIGHT_Q6_K:
        expand_q6_k(from, group, to);
        break;
    case KV_WEIGHT_BF16:
        expand_bf16(from, group, to);
        break;
    }
}

#endif
