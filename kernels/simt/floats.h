/* CUDA's 16- and 8-bit floats: __nv_bfloat16, __half, their pairs, FP8 storage; part of simt.h.
 *
 * The types are plain data. Arithmetic on them goes by way of float; a product or sum of two is
 * rounded once, as the device's own instructions do.
 *
 * Threads: free of state. */
#ifndef KV_KERNELS_SIMT_FLOATS_H
#define KV_KERNELS_SIMT_FLOATS_H

#ifdef __cplusplus

#include "kernels/simt/numbers.h"

struct __nv_bfloat16 {
    uint16_t bits;

    __nv_bfloat16() = default;
    __nv_bfloat16(float value) : bits(kv_bf16_of_float(value))
    {
    }
    operator float() const
    {
        return kv_bf16_to_float(bits);
    }
};

struct __half {
    uint16_t bits;

    __half() = default;
    __half(float value) : bits(kv_half_of_float(value))
    {
    }
    operator float() const
    {
        return kv_half_to_float(bits);
    }
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

struct alignas(4) __half2 {
    __half x, y;
};

typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
typedef __half half;
typedef __half2 half2;

#define KV_SIMT_FLOAT16(type, type2, word, to_float)                                               \
    static inline type __float2##word(float value)                                                 \
    {                                                                                              \
        return type(value);                                                                        \
    }                                                                                              \
    static inline type __float2##word##_rn(float value)                                            \
    {                                                                                              \
        return type(value);                                                                        \
    }                                                                                              \
    static inline type __ushort_as_##word(unsigned short bits)                                     \
    {                                                                                              \
        type value;                                                                                \
        value.bits = bits;                                                                         \
        return value;                                                                              \
    }                                                                                              \
    static inline unsigned short __##word##_as_ushort(type value)                                  \
    {                                                                                              \
        return value.bits;                                                                         \
    }                                                                                              \
    static inline float to_float(type value)                                                       \
    {                                                                                              \
        return (float)value;                                                                       \
    }

KV_SIMT_FLOAT16(__nv_bfloat16, __nv_bfloat162, bfloat16, __bfloat162float)
KV_SIMT_FLOAT16(__half, __half2, half, __half2float)
#undef KV_SIMT_FLOAT16

static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y)
{
    return {__nv_bfloat16(x), __nv_bfloat16(y)};
}

static inline __nv_bfloat162 __float22bfloat162_rn(float2 pair)
{
    return __floats2bfloat162_rn(pair.x, pair.y);
}

static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y)
{
    return {x, y};
}

static inline float2 __bfloat1622float2(__nv_bfloat162 pair)
{
    return {(float)pair.x, (float)pair.y};
}

static inline float __low2float(__nv_bfloat162 pair)
{
    return (float)pair.x;
}

static inline float __high2float(__nv_bfloat162 pair)
{
    return (float)pair.y;
}

static inline __half2 __floats2half2_rn(float x, float y)
{
    return {__half(x), __half(y)};
}

static inline __half2 __float22half2_rn(float2 pair)
{
    return __floats2half2_rn(pair.x, pair.y);
}

static inline __half2 __halves2half2(__half x, __half y)
{
    return {x, y};
}

static inline float2 __half22float2(__half2 pair)
{
    return {(float)pair.x, (float)pair.y};
}

static inline float __low2float(__half2 pair)
{
    return (float)pair.x;
}

static inline float __high2float(__half2 pair)
{
    return (float)pair.y;
}

/* FP8 by its storage: what the conversion functions take and give. */
typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;
typedef enum { __NV_E4M3, __NV_E5M2 } __nv_fp8_interpretation_t;
typedef enum { __NV_NOSAT, __NV_SATFINITE } __nv_saturation_t;

struct __half_raw {
    unsigned short x;
};

struct __nv_fp8_e4m3 {
    __nv_fp8_storage_t __x;

    explicit operator float() const
    {
        return kv_e4m3_to_float(__x);
    }
};

static inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(
    float value, __nv_saturation_t saturate, __nv_fp8_interpretation_t format)
{
    uint32_t magnitude = kv_float_bits(value) & 0x7fffffffu;
    uint8_t sign = (uint8_t)(kv_float_bits(value) >> 24 & 0x80u);
    if (format == __NV_E4M3) {
        /* 464 lies between the largest and the next that the format would have: ties to even. */
        bool over = saturate == __NV_NOSAT && magnitude > 0x43e80000u;
        return over ? (uint8_t)(sign | 0x7f) : kv_e4m3_of_float(value);
    }
    bool over = saturate == __NV_NOSAT && magnitude >= 0x47700000u && magnitude <= 0x7f800000u;
    return over ? (uint8_t)(sign | 0x7c) : kv_e5m2_of_float(value);
}

static inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(
    float2 pair, __nv_saturation_t saturate, __nv_fp8_interpretation_t format)
{
    return (__nv_fp8x2_storage_t)(__nv_cvt_float_to_fp8(pair.x, saturate, format) |
                                  __nv_cvt_float_to_fp8(pair.y, saturate, format) << 8);
}

static inline __half_raw __nv_cvt_fp8_to_halfraw(
    __nv_fp8_storage_t bits, __nv_fp8_interpretation_t format)
{
    float value = format == __NV_E4M3 ? kv_e4m3_to_float(bits) : kv_e5m2_to_float(bits);
    return {kv_half_of_float(value)};
}

#endif

#endif
