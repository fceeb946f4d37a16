/* Weights of a file to floats, exactly as the formats define them.
 *
 * Formats (32 or 256 elements a block, scales f16): Q8_0 d q; Q4_0 d (q - 8); Q4_1 d q + m, the low
 * nibbles first; Q4_K d s q - dmin m in eight sub-blocks of 32 with 6-bit s and m; Q6_K d s (q -
 * 32) in sixteen sub-blocks of 16. */
#ifndef KV_KERNELS_CPU_DEQUANTISE_H
#define KV_KERNELS_CPU_DEQUANTISE_H

#include "kernels/cpu/kernels.h"

#include <string.h>

/* count: a multiple of the type's block. */
void cpu_dequantise(kv_weight_type_t type, const void *from, size_t count, float *to);

/* The form that holds the type's numbers exactly, or bf16, which may round them. */
cpu_rows_format_t cpu_compact_format(kv_weight_type_t type);

/* Weights in their file's type to rows in that form (not for bf16). count: a multiple of the
 * type's block. */
void cpu_compact(kv_weight_type_t type, const void *from, size_t count, void *to);

/* Rows in any form to floats. count: a multiple of 32. */
void cpu_expand(cpu_rows_format_t format, const void *from, size_t count, float *to);

static inline float cpu_float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t cpu_bits_from_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float cpu_float_from_bf16(uint16_t half)
{
    return cpu_float_from_bits((uint32_t)half << 16);
}

/* Rounds to nearest, ties to even, as the instructions do; a NaN stays one. */
static inline uint16_t cpu_bf16_from_float(float value)
{
    uint32_t bits = cpu_bits_from_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float cpu_float_from_f16(uint16_t half);

#endif
