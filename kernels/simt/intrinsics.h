/* CUDA's arithmetic on bits, integers and floats; part of simt.h.
 *
 * Threads: free of state. */
#ifndef KV_KERNELS_SIMT_INTRINSICS_H
#define KV_KERNELS_SIMT_INTRINSICS_H

#ifdef __cplusplus

#include "kernels/simt/numbers.h"

#include <math.h>

static inline unsigned int __float_as_uint(float value)
{
    return kv_float_bits(value);
}

static inline int __float_as_int(float value)
{
    return (int)kv_float_bits(value);
}

static inline float __uint_as_float(unsigned int bits)
{
    return kv_float_of_bits(bits);
}

static inline float __int_as_float(int bits)
{
    return kv_float_of_bits((unsigned int)bits);
}

#define KV_SIMT_LEAST_MOST(type)                                                                   \
    static inline type min(type a, type b)                                                         \
    {                                                                                              \
        return b < a ? b : a;                                                                      \
    }                                                                                              \
    static inline type max(type a, type b)                                                         \
    {                                                                                              \
        return a < b ? b : a;                                                                      \
    }

KV_SIMT_LEAST_MOST(int)
KV_SIMT_LEAST_MOST(unsigned int)
KV_SIMT_LEAST_MOST(long)
KV_SIMT_LEAST_MOST(unsigned long)
KV_SIMT_LEAST_MOST(long long)
KV_SIMT_LEAST_MOST(unsigned long long)
#undef KV_SIMT_LEAST_MOST

static inline float min(float a, float b)
{
    return fminf(a, b);
}

static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

/* Float functions that round once each: these sources are compiled without contraction. */
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}

static inline float __fsub_rn(float a, float b)
{
    return a - b;
}

static inline float __fmul_rn(float a, float b)
{
    return a * b;
}

static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}

static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}

static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}

static inline float __frcp_rn(float a)
{
    return 1.0f / a;
}

static inline float __fdividef(float a, float b)
{
    return a / b;
}

/* The C library declares these names for its own use. */
#define __expf(a) expf(a)
#define __logf(a) logf(a)
#define __log2f(a) log2f(a)
#define __powf(a, b) powf(a, b)
#define __sinf(a) sinf(a)
#define __cosf(a) cosf(a)

static inline float rsqrtf(float a)
{
    return 1.0f / sqrtf(a);
}

static inline float __frsqrt_rn(float a)
{
    return rsqrtf(a);
}

static inline float __saturatef(float a)
{
    return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; /* not-a-number gives 0 */
}

static inline int __float2int_rn(float a)
{
    return (int)rintf(a);
}

static inline int __float2int_rz(float a)
{
    return (int)a;
}

static inline float __int2float_rn(int a)
{
    return (float)a;
}

static inline float __uint2float_rn(unsigned int a)
{
    return (float)a;
}

/* Integers and bits. */
static inline int __popc(unsigned int a)
{
    return __builtin_popcount(a);
}

static inline int __popcll(unsigned long long a)
{
    return __builtin_popcountll(a);
}

static inline int __clz(int a)
{
    return a == 0 ? 32 : __builtin_clz((unsigned int)a);
}

static inline int __clzll(long long a)
{
    return a == 0 ? 64 : __builtin_clzll((unsigned long long)a);
}

static inline int __ffs(int a)
{
    return __builtin_ffs(a);
}

static inline int __ffsll(long long a)
{
    return __builtin_ffsll(a);
}

static inline unsigned int __brev(unsigned int a)
{
    a = (a >> 1 & 0x55555555u) | (a & 0x55555555u) << 1;
    a = (a >> 2 & 0x33333333u) | (a & 0x33333333u) << 2;
    a = (a >> 4 & 0x0f0f0f0fu) | (a & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(a);
}

static inline unsigned int __byte_perm(unsigned int low, unsigned int high, unsigned int selector)
{
    uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned int out = 0;
    for (unsigned int i = 0; i < 4; i++) {
        unsigned int choice = selector >> (4 * i) & 15u;
        unsigned int byte = (unsigned int)(bytes >> (8 * (choice & 7u))) & 255u;
        if ((choice & 8u) != 0) {
            byte = (byte & 128u) != 0 ? 255u : 0u;
        }
        out |= byte << (8 * i);
    }
    return out;
}

static inline unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int shift)
{
    return (unsigned int)(((uint64_t)high << 32 | low) << (shift & 31u) >> 32);
}

static inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift)
{
    return (unsigned int)(((uint64_t)high << 32 | low) >> (shift & 31u));
}

static inline unsigned int __umulhi(unsigned int a, unsigned int b)
{
    return (unsigned int)((uint64_t)a * b >> 32);
}

static inline int __mulhi(int a, int b)
{
    return (int)((int64_t)a * b >> 32);
}

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

static inline int __dp4a(int a, int b, int sum)
{
    for (int i = 0; i < 4; i++) {
        sum += (int8_t)(uint8_t)((unsigned int)a >> (8 * i)) *
               (int8_t)(uint8_t)((unsigned int)b >> (8 * i));
    }
    return sum;
}

/* Loads and stores with a hint for the caches. */
template <typename value_t> static inline value_t __ldg(const value_t *address)
{
    return *address;
}

template <typename value_t> static inline value_t __ldcs(const value_t *address)
{
    return *address;
}

template <typename value_t> static inline value_t __ldcg(const value_t *address)
{
    return *address;
}

template <typename value_t> static inline void __stcs(value_t *address, value_t value)
{
    *address = value;
}

template <typename value_t> static inline void __stcg(value_t *address, value_t value)
{
    *address = value;
}

static inline void __nanosleep(unsigned int duration_ns)
{
    (void)duration_ns;
}

#endif

#endif
