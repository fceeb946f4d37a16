/* A vector of floats, as wide as the including file is compiled for: 16 lanes with AVX-512, 8 with
 * AVX2. */
#ifndef KV_KERNELS_CPU_SIMD_H
#define KV_KERNELS_CPU_SIMD_H

#include "kernels/cpu/kernels.h"

#include <immintrin.h>
#include <stdint.h>

#if defined(__AVX512F__)

enum { LANES = 16 };
typedef __m512 vector_t;

static inline vector_t v_load(const float *at)
{
    return _mm512_loadu_ps(at);
}

static inline void v_store(float *at, vector_t a)
{
    _mm512_storeu_ps(at, a);
}

static inline vector_t v_all(float a)
{
    return _mm512_set1_ps(a);
}

static inline vector_t v_add(vector_t a, vector_t b)
{
    return _mm512_add_ps(a, b);
}

static inline vector_t v_subtract(vector_t a, vector_t b)
{
    return _mm512_sub_ps(a, b);
}

static inline vector_t v_multiply(vector_t a, vector_t b)
{
    return _mm512_mul_ps(a, b);
}

static inline vector_t v_divide(vector_t a, vector_t b)
{
    return _mm512_div_ps(a, b);
}

static inline vector_t v_max(vector_t a, vector_t b)
{
    return _mm512_max_ps(a, b);
}

static inline vector_t v_min(vector_t a, vector_t b)
{
    return _mm512_min_ps(a, b);
}

/* a x b + c */
static inline vector_t v_fma(vector_t a, vector_t b, vector_t c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline float v_sum(vector_t a)
{
    return _mm512_reduce_add_ps(a);
}

static inline float v_peak(vector_t a)
{
    return _mm512_reduce_max_ps(a);
}

static inline vector_t v_round(vector_t a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* 2^a for whole numbers a from -126 to 127. */
static inline vector_t v_power_of_two(vector_t a)
{
    __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}

/* value where a >= bound, else 0. */
static inline vector_t v_where_at_least(vector_t a, vector_t bound, vector_t value)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, bound, _CMP_GE_OQ), value);
}

static inline vector_t v_load_bf16(const uint16_t *at)
{
    __m256i halves = _mm256_loadu_si256((const __m256i *)at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline void v_store_bf16(uint16_t *at, vector_t a)
{
    __m512i bits = _mm512_castps_si512(a), high = _mm512_srli_epi32(bits, 16),
            odd = _mm512_and_si512(high, _mm512_set1_epi32(1)),
            rounded = _mm512_srli_epi32(
                _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i *)at, _mm512_cvtepi32_epi16(rounded));
}

static inline vector_t v_load_int8(const int8_t *at)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at)));
}

/* The 32 weights scale x quant + offset of 16 bytes of nibbles, low ones first. */
static inline void v_load_nibbles(
    const uint8_t *at, float scale, float offset, vector_t to[CPU_BLOCK / LANES])
{
    const __m512 counted = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 all = _mm512_fmadd_ps(counted, _mm512_set1_ps(scale), _mm512_set1_ps(offset));
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at));
    to[0] = _mm512_permutexvar_ps(bytes, all); /* looks at the lowest four bits only */
    to[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), all);
}

/* Pairs (e, o) with rotation pairs (cosine, sine): (e c - o s, o c + e s). */
static inline vector_t v_rotate(vector_t pairs, vector_t rotation)
{
    vector_t cosine = _mm512_moveldup_ps(rotation), sine = _mm512_movehdup_ps(rotation),
             swapped = _mm512_permute_ps(pairs, 0xb1);
    return _mm512_fmaddsub_ps(pairs, cosine, _mm512_mul_ps(swapped, sine));
}

#else

enum { LANES = 8 };
typedef __m256 vector_t;

static inline vector_t v_load(const float *at)
{
    return _mm256_loadu_ps(at);
}

static inline void v_store(float *at, vector_t a)
{
    _mm256_storeu_ps(at, a);
}

static inline vector_t v_all(float a)
{
    return _mm256_set1_ps(a);
}

static inline vector_t v_add(vector_t a, vector_t b)
{
    return _mm256_add_ps(a, b);
}

static inline vector_t v_subtract(vector_t a, vector_t b)
{
    return _mm256_sub_ps(a, b);
}

static inline vector_t v_multiply(vector_t a, vector_t b)
{
    return _mm256_mul_ps(a, b);
}

static inline vector_t v_divide(vector_t a, vector_t b)
{
    return _mm256_div_ps(a, b);
}

static inline vector_t v_max(vector_t a, vector_t b)
{
    return _mm256_max_ps(a, b);
}

static inline vector_t v_min(vector_t a, vector_t b)
{
    return _mm256_min_ps(a, b);
}

static inline vector_t v_fma(vector_t a, vector_t b, vector_t c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline float v_sum(vector_t a)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static inline float v_peak(vector_t a)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static inline vector_t v_round(vector_t a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vector_t v_power_of_two(vector_t a)
{
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

static inline vector_t v_where_at_least(vector_t a, vector_t bound, vector_t value)
{
    return _mm256_and_ps(_mm256_cmp_ps(a, bound, _CMP_GE_OQ), value);
}

static inline vector_t v_load_bf16(const uint16_t *at)
{
    __m128i halves = _mm_loadu_si128((const __m128i *)at);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

static inline void v_store_bf16(uint16_t *at, vector_t a)
{
    __m256i bits = _mm256_castps_si256(a), high = _mm256_srli_epi32(bits, 16),
            odd = _mm256_and_si256(high, _mm256_set1_epi32(1)),
            rounded = _mm256_srli_epi32(
                _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16),
            nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)),
            quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    rounded = _mm256_blendv_epi8(rounded, quiet, nan);
    _mm_storeu_si128((__m128i *)at,
        _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
}

static inline vector_t v_load_int8(const int8_t *at)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}

static inline void v_load_nibbles(
    const uint8_t *at, float scale, float offset, vector_t to[CPU_BLOCK / LANES])
{
    const __m256 scales = _mm256_set1_ps(scale), offsets = _mm256_set1_ps(offset);
    const __m128i bytes = _mm_loadu_si128((const __m128i *)at), low = _mm_set1_epi8(15),
                  quants[2] = {
                      _mm_and_si128(bytes, low), _mm_and_si128(_mm_srli_epi16(bytes, 4), low)};
    for (int i = 0; i < 4; i++) {
        __m128i eight = i % 2 == 0 ? quants[i / 2] : _mm_srli_si128(quants[i / 2], 8);
        to[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight)), scales, offsets);
    }
}

static inline vector_t v_rotate(vector_t pairs, vector_t rotation)
{
    vector_t cosine = _mm256_moveldup_ps(rotation), sine = _mm256_movehdup_ps(rotation),
             swapped = _mm256_permute_ps(pairs, 0xb1);
    return _mm256_fmaddsub_ps(pairs, cosine, _mm256_mul_ps(swapped, sine));
}

#endif

/* e^a with about 1 ulp of f32; 0 below -87 (and for -infinity), clamped above 88. e^a = 2^n e^r
 * with |r| <= ln(2) / 2, e^r by its Taylor series of degree 6. */
static inline vector_t v_exponential(vector_t a)
{
    const vector_t lowest = v_all(-87.0f);
    vector_t clamped = v_max(v_min(a, v_all(88.0f)), lowest),
             n = v_round(v_multiply(clamped, v_all(1.44269504f))),
             r = v_fma(n, v_all(-0.693145752f), clamped);
    r = v_fma(n, v_all(-1.42860677e-6f), r); /* ln(2) in two parts */
    vector_t series = v_fma(r, v_all(1.0f / 720), v_all(1.0f / 120));
    series = v_fma(series, r, v_all(1.0f / 24));
    series = v_fma(series, r, v_all(1.0f / 6));
    series = v_fma(series, r, v_all(0.5f));
    series = v_fma(series, r, v_all(1.0f));
    series = v_fma(series, r, v_all(1.0f));
    return v_where_at_least(a, lowest, v_multiply(series, v_power_of_two(n)));
}

#endif
