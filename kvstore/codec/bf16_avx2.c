/* 32 elements at a time, with AVX2, BMI2 and POPCNT. Masks become vectors of bytes by a shuffle and
 * a compare; values are taken out of a stream and put back eight at a time, by a table. */
#include "kvstore/codec/bf16_kernel.h"

#include <immintrin.h>

enum { HALF = KV_BF16_VECTOR / 2, VECTORS_MAX = KV_BF16_ROOM / KV_BF16_VECTOR };

static inline __m256i load(const uint8_t *at)
{
    return _mm256_loadu_si256((const void *)at);
}

static inline void store(uint8_t *at, __m256i vector)
{
    _mm256_storeu_si256((void *)at, vector);
}

static inline uint64_t equal(const __m256i *vector, uint8_t value)
{
    __m256i wanted = _mm256_set1_epi8((char)value);
    uint32_t left = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(vector[0], wanted));
    uint32_t right = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(vector[1], wanted));
    return left | (uint64_t)right << 32;
}

/* The bytes of 64 values that the mask names, one after the other; eight may be written beyond. */
static inline uint32_t compress(const uint8_t *values, uint64_t mask, uint8_t *out)
{
    uint32_t taken = 0;
    for (int i = 0; i < KV_BF16_VECTOR; i += 8, mask >>= 8) {
        uint64_t bytes = _pdep_u64(mask & 255, 0x0101010101010101) * 255;
        uint64_t packed = _pext_u64(kv_bf16_u64(values + i), bytes);
        memcpy(out + taken, &packed, sizeof packed);
        taken += (uint32_t)__builtin_popcountll(mask & 255);
    }
    return taken;
}

/* The inverse: values under the mask are replaced by the next of rest, which is read up to eight
 * bytes beyond. */
static inline uint32_t expand(const uint8_t *rest, uint64_t mask, uint8_t *values)
{
    uint32_t taken = 0;
    for (int i = 0; i < KV_BF16_VECTOR; i += 8, mask >>= 8) {
        uint64_t bytes = _pdep_u64(mask & 255, 0x0101010101010101) * 255;
        uint64_t spread = _pdep_u64(kv_bf16_u64(rest + taken), bytes);
        spread |= kv_bf16_u64(values + i) & ~bytes;
        memcpy(values + i, &spread, sizeof spread);
        taken += (uint32_t)__builtin_popcountll(mask & 255);
    }
    return taken;
}

static uint32_t encode_step(const uint8_t *values, uint32_t count, const uint8_t *step_values,
    uint8_t *planes_out, uint8_t *rest_out)
{
    uint64_t high[VECTORS_MAX];
    uint32_t rest = 0;
    for (uint32_t i = 0; i < count; i += KV_BF16_VECTOR) {
        const __m256i vector[2] = {load(values + i), load(values + i + HALF)};
        uint64_t valid = kv_bf16_valid(count - i);
        uint64_t ones = equal(vector, step_values[1]), twos = equal(vector, step_values[2]);
        uint64_t others = ~(equal(vector, step_values[0]) | ones | twos) & valid;
        uint64_t low = (ones | others) & valid;
        memcpy(planes_out + i / 8, &low, sizeof low);
        high[i / KV_BF16_VECTOR] = (twos | others) & valid;
        rest += compress(values + i, others, rest_out + rest);
    }
    memcpy(planes_out + kv_bf16_plane_bytes(count), high, kv_bf16_plane_bytes(count));
    return rest;
}

enum { LANES = 0 | 2 << 2 | 1 << 4 | 3 << 6 }; /* pack and unpack work by halves of a vector */

static void take_apart(
    const uint8_t *from, uint32_t elements, uint8_t *exponents_out, uint8_t *low_out)
{
    const __m256i low_byte = _mm256_set1_epi16(255);
    for (uint32_t i = 0; i < elements; i += HALF) {
        __m256i highs[2], lows[2];
        for (uint32_t j = 0; j < 2; j++) {
            __m256i word = load(from + (size_t)2 * i + HALF * j);
            highs[j] = _mm256_and_si256(_mm256_srli_epi16(word, 7), low_byte);
            lows[j] = _mm256_or_si256(_mm256_slli_epi16(word, 1), _mm256_srli_epi16(word, 15));
            lows[j] = _mm256_and_si256(lows[j], low_byte);
        }
        __m256i packed = _mm256_packus_epi16(highs[0], highs[1]);
        store(exponents_out + i, _mm256_permute4x64_epi64(packed, LANES));
        packed = _mm256_packus_epi16(lows[0], lows[1]);
        store(low_out + i, _mm256_permute4x64_epi64(packed, LANES));
    }
}

static void put_together(
    const uint8_t *exponents, const uint8_t *low, uint32_t elements, uint8_t *to)
{
    for (uint32_t i = 0; i < elements; i += HALF) {
        __m256i highs = _mm256_permute4x64_epi64(load(exponents + i), LANES);
        __m256i lows = _mm256_permute4x64_epi64(load(low + i), LANES);
        for (uint32_t j = 0; j < 2; j++) {
            __m256i word =
                j == 0 ? _mm256_unpacklo_epi8(lows, highs) : _mm256_unpackhi_epi8(lows, highs);
            word = _mm256_or_si256(_mm256_srli_epi16(word, 1), _mm256_slli_epi16(word, 15));
            store(to + (size_t)2 * i + HALF * j, word);
        }
    }
}

/* A byte of ones for each bit of the mask. */
static inline __m256i bytes_of(uint32_t mask)
{
    const __m256i place = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
        2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32((int)mask), place);
    return _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
}

static void decode_step(const uint8_t *planes, uint32_t count, const uint8_t *step_values,
    const uint8_t *rest, uint8_t *values_out)
{
    const uint8_t *low = planes, *high = low + kv_bf16_plane_bytes(count);
    __m256i values[KV_BF16_STEP_VALUES];
    for (int i = 0; i < KV_BF16_STEP_VALUES; i++) {
        values[i] = _mm256_set1_epi8((char)step_values[i]);
    }
    for (uint32_t i = 0; i < count; i += KV_BF16_VECTOR) {
        uint64_t valid = kv_bf16_valid(count - i);
        uint64_t ones = kv_bf16_u64(low + i / 8) & valid, twos = kv_bf16_u64(high + i / 8) & valid;
        for (int half = 0; half < 2; half++) {
            __m256i vector =
                _mm256_blendv_epi8(values[0], values[1], bytes_of((uint32_t)(ones >> 32 * half)));
            vector = _mm256_blendv_epi8(vector, values[2], bytes_of((uint32_t)(twos >> 32 * half)));
            store(values_out + i + HALF * half, vector);
        }
        rest += expand(rest, ones & twos, values_out + i);
    }
}

static const kv_bf16_steps_t steps = {take_apart, put_together, encode_step, decode_step,
    kv_bf16_encode_nibbles, kv_bf16_decode_nibbles};

KV_BF16_KERNEL(kv_bf16_avx2);
