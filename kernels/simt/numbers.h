/* 16- and 8-bit floats as integers: what CUDA's conversions give, bit for bit.
 *
 * bf16 is the upper half of a float; half is IEEE binary16; e4m3 (no infinity, 448 the largest) and
 * e5m2 are the two 8-bit formats of OCP's FP8. To nearest, ties to even; 8-bit formats saturate.
 * NaN becomes 0x7fff in the 16-bit formats and 0x7f in the 8-bit ones, as on the device.
 *
 * Threads: free of state. */
#ifndef KV_KERNELS_SIMT_NUMBERS_H
#define KV_KERNELS_SIMT_NUMBERS_H

#include <stdint.h>
#include <string.h>

static inline uint32_t kv_float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float kv_float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float kv_bf16_to_float(uint16_t bits)
{
    return kv_float_of_bits((uint32_t)bits << 16);
}

static inline uint16_t kv_bf16_of_float(float value)
{
    uint32_t bits = kv_float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0x7fff;
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float kv_half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u;
    uint32_t fraction = half & 0x3ffu;
    if (exponent == 31) {
        return kv_float_of_bits(sign | 0x7f800000u | fraction << 13);
    }
    if (exponent == 0) {
        float small = (float)fraction * 0x1p-24f;
        return sign != 0 ? -small : small;
    }
    return kv_float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

/* Magnitude bits of a float rounded to fraction_bits below the exponent, which is biased by bias;
 * may be past the format's largest. */
static inline uint32_t kv_small_float_bits(uint32_t magnitude, uint32_t fraction_bits, int bias)
{
    int exponent = (int)(magnitude >> 23) - 127 + bias;
    uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
    uint32_t drop = 23 - fraction_bits;
    if (exponent < 1) {
        drop += (uint32_t)(1 - exponent);
        exponent = 1;
    }
    if (drop > 25) {
        return 0;
    }
    uint32_t kept = fraction >> drop, rest = fraction & ((1u << drop) - 1), half = 1u << (drop - 1);
    kept += rest > half || (rest == half && (kept & 1) != 0);
    return ((uint32_t)(exponent - 1) << fraction_bits) + kept;
}

static inline uint16_t kv_half_of_float(float value)
{
    uint32_t bits = kv_float_bits(value), magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0x7fff;
    }
    uint32_t half = magnitude >= 0x47800000u ? 0x7c00u : kv_small_float_bits(magnitude, 10, 15);
    return (uint16_t)((bits >> 16 & 0x8000u) | half);
}

static inline float kv_e4m3_to_float(uint8_t bits)
{
    uint32_t exponent = bits >> 3 & 15u, fraction = bits & 7u;
    float value;
    if (exponent == 15 && fraction == 7) {
        return kv_float_of_bits(0x7fffffffu);
    }
    if (exponent == 0) {
        value = (float)fraction * 0x1p-9f;
    } else {
        value = kv_float_of_bits((exponent + 120) << 23 | fraction << 20);
    }
    return (bits & 0x80u) != 0 ? -value : value;
}

static inline uint8_t kv_e4m3_of_float(float value)
{
    uint32_t bits = kv_float_bits(value), magnitude = bits & 0x7fffffffu, sign = bits >> 24 & 0x80u;
    if (magnitude > 0x7f800000u) {
        return 0x7f;
    }
    uint32_t small =
        magnitude >= 0x43e00000u ? 0x7eu : kv_small_float_bits(magnitude, 3, 7); /* 448 */
    return (uint8_t)(sign | (small > 0x7eu ? 0x7eu : small));
}

static inline float kv_e5m2_to_float(uint8_t bits)
{
    return kv_half_to_float((uint16_t)(bits << 8));
}

static inline uint8_t kv_e5m2_of_float(float value)
{
    uint32_t bits = kv_float_bits(value), magnitude = bits & 0x7fffffffu, sign = bits >> 24 & 0x80u;
    if (magnitude > 0x7f800000u) {
        return 0x7f;
    }
    uint32_t small =
        magnitude >= 0x47600000u ? 0x7bu : kv_small_float_bits(magnitude, 2, 15); /* 57344 */
    return (uint8_t)(sign | (small > 0x7bu ? 0x7bu : small));
}

#endif
