/* 64 elements at a time, with AVX-512 F, BW, VBMI and VBMI2: masks are the planes of bits, and
 * compress and expand take values out of a stream and put them back. */
#include "kvstore/codec/bf16_kernel.h"

#include <immintrin.h>

enum { VECTORS_MAX = KV_BF16_ROOM / KV_BF16_VECTOR };

/* Which bytes of two vectors are the low ones of their elements; + 1: the high ones. */
static __m512i even_bytes(void)
{
    uint8_t places[KV_BF16_VECTOR];
    for (int i = 0; i < KV_BF16_VECTOR; i++) {
        places[i] = (uint8_t)(2 * i);
    }
    return _mm512_loadu_si512(places);
}

static void take_apart(
    const uint8_t *from, uint32_t elements, uint8_t *exponents_out, uint8_t *low_out)
{
    const __m512i even = even_bytes(), odd = _mm512_add_epi8(even, _mm512_set1_epi8(1));
    for (uint32_t i = 0; i < elements; i += KV_BF16_VECTOR) {
        __m512i left = _mm512_loadu_si512(from + (size_t)2 * i);
        __m512i right = _mm512_loadu_si512(from + (size_t)2 * i + 64);
        left = _mm512_shldi_epi16(left, left, 1);
        right = _mm512_shldi_epi16(right, right, 1);
        _mm512_storeu_si512(low_out + i, _mm512_permutex2var_epi8(left, even, right));
        _mm512_storeu_si512(exponents_out + i, _mm512_permutex2var_epi8(left, odd, right));
    }
}

static void put_together(
    const uint8_t *exponents, const uint8_t *low, uint32_t elements, uint8_t *to)
{
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); /* unpack works by quarters */
    for (uint32_t i = 0; i < elements; i += KV_BF16_VECTOR) {
        __m512i highs = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(exponents + i));
        __m512i lows = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(low + i));
        __m512i left = _mm512_unpacklo_epi8(lows, highs);
        __m512i right = _mm512_unpackhi_epi8(lows, highs);
        _mm512_storeu_si512(to + (size_t)2 * i, _mm512_shrdi_epi16(left, left, 1));
        _mm512_storeu_si512(to + (size_t)2 * i + 64, _mm512_shrdi_epi16(right, right, 1));
    }
}

static uint32_t encode_step(const uint8_t *values, uint32_t count, const uint8_t *step_values,
    uint8_t *planes_out, uint8_t *rest_out)
{
    const __m512i zero = _mm512_set1_epi8((char)step_values[0]);
    const __m512i one = _mm512_set1_epi8((char)step_values[1]);
    const __m512i two = _mm512_set1_epi8((char)step_values[2]);
    uint64_t high[VECTORS_MAX];
    uint32_t rest = 0;
    for (uint32_t i = 0; i < count; i += KV_BF16_VECTOR) {
        __m512i vector = _mm512_loadu_si512(values + i);
        __mmask64 valid = kv_bf16_valid(count - i);
        __mmask64 ones = _mm512_cmpeq_epi8_mask(vector, one);
        __mmask64 twos = _mm512_cmpeq_epi8_mask(vector, two);
        __mmask64 others = ~(_mm512_cmpeq_epi8_mask(vector, zero) | ones | twos) & valid;
        uint64_t low = (ones | others) & valid;
        memcpy(planes_out + i / 8, &low, sizeof low);
        high[i / KV_BF16_VECTOR] = (twos | others) & valid;
        _mm512_storeu_si512(rest_out + rest, _mm512_maskz_compress_epi8(others, vector));
        rest += (uint32_t)__builtin_popcountll(others);
    }
    memcpy(planes_out + kv_bf16_plane_bytes(count), high, kv_bf16_plane_bytes(count));
    return rest;
}

static void decode_step(const uint8_t *planes, uint32_t count, const uint8_t *step_values,
    const uint8_t *rest, uint8_t *values_out)
{
    const uint8_t *low = planes, *high = low + kv_bf16_plane_bytes(count);
    const __m512i zero = _mm512_set1_epi8((char)step_values[0]);
    const __m512i one = _mm512_set1_epi8((char)step_values[1]);
    const __m512i two = _mm512_set1_epi8((char)step_values[2]);
    for (uint32_t i = 0; i < count; i += KV_BF16_VECTOR) {
        uint64_t valid = kv_bf16_valid(count - i);
        uint64_t lows = kv_bf16_u64(low + i / 8), highs = kv_bf16_u64(high + i / 8);
        __mmask64 others = lows & highs & valid;
        __m512i vector = _mm512_mask_mov_epi8(zero, lows, one);
        vector = _mm512_mask_mov_epi8(vector, highs, two);
        vector = _mm512_mask_expand_epi8(vector, others, _mm512_loadu_si512(rest));
        _mm512_storeu_si512(values_out + i, vector);
        rest += __builtin_popcountll(others);
    }
}

static uint8_t *encode_nibbles(
    const uint8_t *values, uint32_t count, uint8_t base, uint8_t *nibbles_out)
{
    const __m512i full = _mm512_set1_epi8(KV_BF16_NIBBLE_VALUES);
    uint8_t others_of[KV_BF16_ROOM];
    uint32_t rest = 0;
    for (uint32_t i = 0; i < count; i += KV_BF16_VECTOR) {
        __mmask64 valid = kv_bf16_valid(count - i);
        __m512i vector = _mm512_loadu_si512(values + i);
        __m512i nibbles = _mm512_sub_epi8(vector, _mm512_set1_epi8((char)base));
        nibbles = _mm512_maskz_min_epu8(valid, nibbles, full);
        __mmask64 others = _mm512_cmpeq_epu8_mask(nibbles, full);
        nibbles = _mm512_or_si512(nibbles, _mm512_srli_epi16(nibbles, 4));
        _mm256_storeu_si256((void *)(nibbles_out + i / 2), _mm512_cvtepi16_epi8(nibbles));
        _mm512_storeu_si512(others_of + rest, _mm512_maskz_compress_epi8(others, vector));
        rest += (uint32_t)__builtin_popcountll(others);
    }
    uint8_t *end = nibbles_out + (count + 1) / 2;
    memcpy(end, others_of, rest);
    return end + rest;
}

static void decode_nibbles(
    const uint8_t *nibbles, uint32_t count, uint8_t base, const uint8_t *rest, uint8_t *values_out)
{
    const __m512i full = _mm512_set1_epi8(KV_BF16_NIBBLE_VALUES);
    for (uint32_t i = 0; i < count; i += KV_BF16_VECTOR) {
        __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(nibbles + i / 2)));
        __m512i apart = _mm512_or_si512(pairs, _mm512_slli_epi16(pairs, 4));
        apart = _mm512_and_si512(apart, full);
        __mmask64 others = _mm512_cmpeq_epu8_mask(apart, full) & kv_bf16_valid(count - i);
        __m512i vector = _mm512_add_epi8(apart, _mm512_set1_epi8((char)base));
        vector = _mm512_mask_expand_epi8(vector, others, _mm512_loadu_si512(rest));
        _mm512_storeu_si512(values_out + i, vector);
        rest += __builtin_popcountll(others);
    }
}

static const kv_bf16_steps_t steps = {
    take_apart, put_together, encode_step, decode_step, encode_nibbles, decode_nibbles};

KV_BF16_KERNEL(kv_bf16_avx512);
