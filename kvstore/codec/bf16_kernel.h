/* The bf16 codec's inner form, and what each instruction set does with one chunk of it.
 *
 * A bf16 is a sign, 8 bits of exponent, 7 of mantissa. Sign and mantissa of KV are as good as
 * random; of exponents a unit has a dozen, and three of them make up two thirds. Rotated left by
 * one bit, the high byte of an element is its exponent and the low byte all the rest. The low bytes
 * are stored as they are, exponents on a ladder: a step says with two bits which of its three
 * exponents it is, or that it is one for the next step, where only those stand. So the frequent
 * ones take 2 bits, the next three 4, those near them 8, and any other 16. That is within a tenth
 * of a bit of what an ideal code for each chunk would take, and every step is a compare, a blend
 * and an expand of whole vectors.
 *
 *   a chunk of `elements` (a multiple of 64, at most 1024):
 *   | 3 exponents | 3 exponents | u8 base | step 1 | step 2 | step 3 | step 4 | low bytes |
 *
 *   step 1    all codes' low bits, then all high bits, the first one lowest; 0 to 2: that exponent
 *             of the first three, 3: it stands in step 2
 *   step 2    the same for as many as have code 3 in step 1, with the second three; each half is
 *             filled up to a byte; 3: it stands in step 3
 *   step 3    4 bits each, the first one in the lower half: 0 to 14: base + that, 15: it stands in
 *             step 4; filled up to a byte
 *   step 4    a byte each: the exponent
 *   low bytes as many as elements: bits 1 to 7 are the mantissa, bit 0 the sign
 *
 * What is filled up is zeros, and not looked at. The low bytes stand last, so that reading a whole
 * vector anywhere in a step stays within the chunk.
 *
 * Every instruction set makes the same bytes. */
#ifndef KV_KVSTORE_CODEC_BF16_KERNEL_H
#define KV_KVSTORE_CODEC_BF16_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    KV_BF16_VECTOR = 64,      /* elements that are worked on at once */
    KV_BF16_CHUNK_MAX = 1024, /* elements */
    KV_BF16_STEP_VALUES = 3,
    KV_BF16_NIBBLE_VALUES = 15,
    KV_BF16_HEAD_BYTES = 2 * KV_BF16_STEP_VALUES + 1,
    /* Of exponents on their way between two steps: a whole vector may be written at the end. */
    KV_BF16_ROOM = KV_BF16_CHUNK_MAX + KV_BF16_VECTOR,
    /* Where every exponent goes through all steps; and a vector beyond the end. */
    KV_BF16_ENCODED_ROOM = KV_BF16_HEAD_BYTES + KV_BF16_CHUNK_MAX / 4 + KV_BF16_CHUNK_MAX / 4 +
                           KV_BF16_CHUNK_MAX / 2 + KV_BF16_CHUNK_MAX + KV_BF16_CHUNK_MAX +
                           KV_BF16_VECTOR,
};

typedef struct {
    /* Encodes a chunk; encoded_out has KV_BF16_ENCODED_ROOM bytes. Returns its length. */
    size_t (*encode)(const uint8_t *from, uint32_t elements, uint8_t *encoded_out);

    /* Decodes the chunk at the start of `bytes` encoded bytes. Returns its length; 0: it would be
     * longer than `bytes`. Nothing beyond them is read. */
    size_t (*decode)(const uint8_t *encoded, size_t bytes, uint32_t elements, uint8_t *to);
} kv_bf16_kernel_t;

extern const kv_bf16_kernel_t kv_bf16_plain, kv_bf16_avx2, kv_bf16_avx512;

/* The exponents of a chunk's steps: its head. */
typedef struct {
    uint8_t first[KV_BF16_STEP_VALUES], second[KV_BF16_STEP_VALUES], base;
} kv_bf16_values_t;

_Static_assert(sizeof(kv_bf16_values_t) == KV_BF16_HEAD_BYTES, "the head is stored as it is");

/* Where the parts of an encoded chunk begin, and how many exponents stand in each step. */
typedef struct {
    uint32_t second_count, third_count, fourth_count;
    size_t second_at, third_at, fourth_at, low_at, end;
} kv_bf16_places_t;

static inline size_t kv_bf16_plane_bytes(uint32_t count)
{
    return (count + 7) / 8;
}

static inline uint64_t kv_bf16_u64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Bits of the last u64 of a plane that are codes. */
static inline uint64_t kv_bf16_valid(uint32_t count)
{
    return count >= 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1;
}

static inline uint32_t kv_bf16_count_escapes(
    const uint8_t *low, const uint8_t *high, uint32_t count)
{
    uint32_t escapes = 0;
    for (uint32_t at = 0; at < count; at += 64) {
        uint64_t both = kv_bf16_u64(low + at / 8) & kv_bf16_u64(high + at / 8);
        escapes += (uint32_t)__builtin_popcountll(both & kv_bf16_valid(count - at));
    }
    return escapes;
}

/* Halves of bytes that are 15. */
static inline uint32_t kv_bf16_count_full(const uint8_t *nibbles, uint32_t count)
{
    uint32_t full = 0;
    for (uint32_t at = 0; at < count; at += 16) {
        uint64_t bits = kv_bf16_u64(nibbles + at / 2);
        bits &= bits >> 1;
        bits &= bits >> 2 & 0x1111111111111111;
        full += (uint32_t)__builtin_popcountll(bits & kv_bf16_valid(4 * (count - at)));
    }
    return full;
}

/* Finds the places. false: the chunk would end beyond `bytes`. */
static inline bool kv_bf16_places(
    const uint8_t *encoded, size_t bytes, uint32_t elements, kv_bf16_places_t *places_out)
{
    kv_bf16_places_t places = {.second_at = KV_BF16_HEAD_BYTES + (size_t)elements / 4};
    if (places.second_at + elements > bytes) {
        return false;
    }
    const uint8_t *first = encoded + KV_BF16_HEAD_BYTES;
    places.second_count = kv_bf16_count_escapes(first, first + elements / 8, elements);
    size_t plane_bytes = kv_bf16_plane_bytes(places.second_count);
    places.third_at = places.second_at + 2 * plane_bytes;
    if (places.third_at + elements > bytes) {
        return false;
    }
    places.third_count = kv_bf16_count_escapes(
        encoded + places.second_at, encoded + places.second_at + plane_bytes, places.second_count);
    places.fourth_at = places.third_at + (places.third_count + 1) / 2;
    if (places.fourth_at + elements > bytes) {
        return false;
    }
    places.fourth_count = kv_bf16_count_full(encoded + places.third_at, places.third_count);
    places.low_at = places.fourth_at + places.fourth_count;
    places.end = places.low_at + elements;
    *places_out = places;
    return places.end <= bytes;
}

/* The most frequent one of those left, which then is not left any more. */
static inline uint8_t kv_bf16_take_most(uint16_t *keys)
{
    uint16_t most = 0;
    for (int i = 0; i < 256; i++) {
        most = keys[i] > most ? keys[i] : most;
    }
    keys[most & 255] = 0;
    return (uint8_t)most;
}

/* Chooses the exponents from a fifth of the elements, eight neighbours at a time: a wrong choice
 * costs some bits only. Every place of a row is among them, since the distance is an odd multiple
 * of eight and rows are none. */
static inline void kv_bf16_choose(
    const uint8_t *exponents, uint32_t elements, kv_bf16_values_t *values_out)
{
    uint8_t counts[4][256] = {0}; /* four, so that equal neighbours do not wait for each other */
    uint16_t keys[256];
    uint32_t distance = 8 * ((elements + 254) / 255 | 1);
    for (uint32_t at = 0; at < elements; at += distance) {
        uint64_t eight = kv_bf16_u64(exponents + at);
        for (int i = 0; i < 8; i++) {
            counts[i % 4][eight >> 8 * i & 255]++;
        }
    }
    for (int i = 0; i < 256; i++) {
        uint32_t count = (uint32_t)counts[0][i] + counts[1][i] + counts[2][i] + counts[3][i];
        keys[i] = (uint16_t)(count << 8 | (uint32_t)i);
    }
    enum { BELOW = 10 }; /* small values reach farther down than large ones up */
    for (int i = 0; i < KV_BF16_STEP_VALUES; i++) {
        values_out->first[i] = kv_bf16_take_most(keys);
    }
    for (int i = 0; i < KV_BF16_STEP_VALUES; i++) {
        values_out->second[i] = kv_bf16_take_most(keys);
    }
    uint8_t most = values_out->first[0];
    values_out->base = most > BELOW ? (uint8_t)(most - BELOW) : 0;
}

/* What an instruction set does with a stream of exponents; the rest is the same for all. Where it
 * says room, that many bytes beyond the end may be written, or read. */
typedef struct {
    /* Elements to their exponents and low bytes, and back. */
    void (*take_apart)(
        const uint8_t *from, uint32_t elements, uint8_t *exponents_out, uint8_t *low_out);
    void (*put_together)(
        const uint8_t *exponents, const uint8_t *low, uint32_t elements, uint8_t *to);

    /* Steps 1 and 2: values (room to read) to codes (room) and what goes on (room). Returns how
     * many those are. */
    uint32_t (*encode_step)(const uint8_t *values, uint32_t count, const uint8_t *step_values,
        uint8_t *planes_out, uint8_t *rest_out);
    void (*decode_step)(const uint8_t *planes, uint32_t count, const uint8_t *step_values,
        const uint8_t *rest, uint8_t *values_out);

    /* Step 3, and step 4 right after it (room). Returns the end. */
    uint8_t *(*encode_nibbles)(
        const uint8_t *values, uint32_t count, uint8_t base, uint8_t *nibbles_out);
    void (*decode_nibbles)(const uint8_t *nibbles, uint32_t count, uint8_t base,
        const uint8_t *rest, uint8_t *values_out);
} kv_bf16_steps_t;

/* Both are made part of each instruction set's file. */
#define KV_BF16_INLINE static inline __attribute__((always_inline))

KV_BF16_INLINE size_t kv_bf16_encode(
    const kv_bf16_steps_t *steps, const uint8_t *from, uint32_t elements, uint8_t *encoded_out)
{
    kv_bf16_values_t values;
    uint8_t low[KV_BF16_CHUNK_MAX], first[KV_BF16_CHUNK_MAX];
    uint8_t second[KV_BF16_ROOM], third[KV_BF16_ROOM];
    steps->take_apart(from, elements, first, low);
    kv_bf16_choose(first, elements, &values);
    memcpy(encoded_out, &values, KV_BF16_HEAD_BYTES);
    uint8_t *at = encoded_out + KV_BF16_HEAD_BYTES;
    uint32_t second_count = steps->encode_step(first, elements, values.first, at, second);
    at += 2 * kv_bf16_plane_bytes(elements);
    uint32_t third_count = steps->encode_step(second, second_count, values.second, at, third);
    at += 2 * kv_bf16_plane_bytes(second_count);
    at = steps->encode_nibbles(third, third_count, values.base, at);
    memcpy(at, low, elements);
    return (size_t)(at + elements - encoded_out);
}

KV_BF16_INLINE size_t kv_bf16_decode(const kv_bf16_steps_t *steps, const uint8_t *encoded,
    size_t bytes, uint32_t elements, uint8_t *to)
{
    kv_bf16_places_t places;
    kv_bf16_values_t values;
    uint8_t first[KV_BF16_CHUNK_MAX], second[KV_BF16_ROOM], third[KV_BF16_ROOM];
    if (!kv_bf16_places(encoded, bytes, elements, &places)) {
        return 0;
    }
    memcpy(&values, encoded, KV_BF16_HEAD_BYTES);
    steps->decode_nibbles(encoded + places.third_at, places.third_count, values.base,
        encoded + places.fourth_at, third);
    /* What a step reads beyond the last one it does not take. */
    memset(third + places.third_count, 0, KV_BF16_VECTOR);
    steps->decode_step(
        encoded + places.second_at, places.second_count, values.second, third, second);
    memset(second + places.second_count, 0, KV_BF16_VECTOR);
    steps->decode_step(encoded + KV_BF16_HEAD_BYTES, elements, values.first, second, first);
    steps->put_together(first, encoded + places.low_at, elements, to);
    return places.end;
}

/* The kernel of an instruction set whose `steps` are defined above. */
#define KV_BF16_KERNEL(name)                                                                       \
    static size_t encode(const uint8_t *from, uint32_t elements, uint8_t *encoded_out)             \
    {                                                                                              \
        return kv_bf16_encode(&steps, from, elements, encoded_out);                                \
    }                                                                                              \
    static size_t decode(const uint8_t *encoded, size_t bytes, uint32_t elements, uint8_t *to)     \
    {                                                                                              \
        return kv_bf16_decode(&steps, encoded, bytes, elements, to);                               \
    }                                                                                              \
    const kv_bf16_kernel_t name = {encode, decode}

/* Step 3 and 4, one value at a time. */
static inline uint8_t *kv_bf16_encode_nibbles(
    const uint8_t *values, uint32_t count, uint8_t base, uint8_t *nibbles_out)
{
    uint8_t *rest = nibbles_out + (count + 1) / 2;
    memset(nibbles_out, 0, (count + 1) / 2);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t nibble = (uint8_t)(values[i] - base);
        nibble = nibble < KV_BF16_NIBBLE_VALUES ? nibble : KV_BF16_NIBBLE_VALUES;
        *rest = values[i];
        rest += nibble == KV_BF16_NIBBLE_VALUES;
        nibbles_out[i / 2] |= (uint8_t)(nibble << i % 2 * 4);
    }
    return rest;
}

static inline void kv_bf16_decode_nibbles(
    const uint8_t *nibbles, uint32_t count, uint8_t base, const uint8_t *rest, uint8_t *values_out)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t nibble = nibbles[i / 2] >> i % 2 * 4 & 15;
        bool full = nibble == KV_BF16_NIBBLE_VALUES;
        values_out[i] = full ? *rest : (uint8_t)(base + nibble);
        rest += full;
    }
}

#endif
