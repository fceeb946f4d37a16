/* The body of the checksum, compiled once for each instruction set: a file that includes this one
 * and expands KV_CHECKSUM_KERNEL with its compiler options makes one table of functions.
 *
 * The fused copy goes through a range in pieces that stay in the first-level cache: it asks memory
 * for the next piece, hashes this one, and stores it past the caches. Short ranges follow each
 * other as a rule (the units of a block), so the last piece asks for what comes after the range;
 * asking for an address that is not there does nothing. */
#ifndef KV_BASE_CHECKSUM_KERNEL_H
#define KV_BASE_CHECKSUM_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    KV_CHECKSUM_PIECE_BYTES = 4096,
    KV_CHECKSUM_LINE_BYTES = 64,
    KV_CHECKSUM_STREAM_BYTES_MIN = 512, /* below, a plain copy costs less */
};

typedef struct {
    uint64_t (*sum)(const void *bytes, size_t count);
    uint64_t (*sum_seeded)(const void *bytes, size_t count, uint64_t seed);
    uint64_t (*copy)(void *to, const void *from, size_t bytes, uint64_t seed);
    uint64_t (*copy_near)(void *to, const void *from, size_t bytes, uint64_t seed);
} kv_checksum_kernel_t;

extern const kv_checksum_kernel_t kv_checksum_plain, kv_checksum_avx2, kv_checksum_avx512;

static inline void kv_checksum_prefetch(const char *from, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += KV_CHECKSUM_LINE_BYTES) {
        __builtin_prefetch(from + at);
    }
}

/* One line: the destination is aligned to it. */
static inline void kv_checksum_store_line(char *to, const char *from)
{
#if defined(__AVX512F__)
    _mm512_stream_si512((void *)to, _mm512_loadu_si512(from));
#elif defined(__AVX2__)
    __m256i low = _mm256_loadu_si256((const void *)from);
    __m256i high = _mm256_loadu_si256((const void *)(from + 32));
    _mm256_stream_si256((void *)to, low);
    _mm256_stream_si256((void *)(to + 32), high);
#elif defined(__SSE2__)
    for (size_t at = 0; at < KV_CHECKSUM_LINE_BYTES; at += sizeof(__m128i)) {
        _mm_stream_si128((void *)(to + at), _mm_loadu_si128((const void *)(from + at)));
    }
#else
    memcpy(to, from, KV_CHECKSUM_LINE_BYTES);
#endif
}

static inline void kv_checksum_store(char *to, const char *from, size_t bytes)
{
    if (bytes < KV_CHECKSUM_STREAM_BYTES_MIN) {
        memcpy(to, from, bytes);
        return;
    }
    size_t head = -(uintptr_t)to % KV_CHECKSUM_LINE_BYTES;
    memcpy(to, from, head);
    size_t at = head;
    for (; at + KV_CHECKSUM_LINE_BYTES <= bytes; at += KV_CHECKSUM_LINE_BYTES) {
        kv_checksum_store_line(to + at, from + at);
    }
    memcpy(to + at, from + at, bytes - at);
}

/* near: the copy stays in the caches, for who reads it next. */
static inline uint64_t kv_checksum_copy_long(
    char *to, const char *from, size_t bytes, uint64_t seed, bool near)
{
    XXH3_state_t state;
    state.seed = 0; /* the reset looks at what was there before */
    state.extSecret = NULL;
    XXH3_64bits_reset_withSeed(&state, seed);
    for (size_t at = 0; at < bytes; at += KV_CHECKSUM_PIECE_BYTES) {
        size_t left = bytes - at;
        size_t piece = left < KV_CHECKSUM_PIECE_BYTES ? left : KV_CHECKSUM_PIECE_BYTES;
        kv_checksum_prefetch(from + at + piece, piece);
        XXH3_64bits_update(&state, from + at, piece);
        if (near) {
            memcpy(to + at, from + at, piece);
        } else {
            kv_checksum_store(to + at, from + at, piece);
        }
    }
    return XXH3_64bits_digest(&state);
}

static inline uint64_t kv_checksum_copy_short(
    char *to, const char *from, size_t bytes, uint64_t seed, bool near)
{
    kv_checksum_prefetch(from + bytes, bytes);
    uint64_t sum = XXH3_64bits_withSeed(from, bytes, seed);
    if (near) {
        memcpy(to, from, bytes);
    } else {
        kv_checksum_store(to, from, bytes);
    }
    return sum;
}

static inline uint64_t kv_checksum_copy_any(
    char *to, const char *from, size_t bytes, uint64_t seed, bool near)
{
    return bytes <= KV_CHECKSUM_PIECE_BYTES ? kv_checksum_copy_short(to, from, bytes, seed, near)
                                            : kv_checksum_copy_long(to, from, bytes, seed, near);
}

#define KV_CHECKSUM_KERNEL(name)                                                                   \
    static uint64_t sum(const void *bytes, size_t count)                                           \
    {                                                                                              \
        return XXH3_64bits(bytes, count);                                                          \
    }                                                                                              \
    static uint64_t sum_seeded(const void *bytes, size_t count, uint64_t seed)                     \
    {                                                                                              \
        return XXH3_64bits_withSeed(bytes, count, seed);                                           \
    }                                                                                              \
    static uint64_t copy(void *to, const void *from, size_t bytes, uint64_t seed)                  \
    {                                                                                              \
        return kv_checksum_copy_any(to, from, bytes, seed, false);                                 \
    }                                                                                              \
    static uint64_t copy_near(void *to, const void *from, size_t bytes, uint64_t seed)             \
    {                                                                                              \
        return kv_checksum_copy_any(to, from, bytes, seed, true);                                  \
    }                                                                                              \
    const kv_checksum_kernel_t name = {sum, sum_seeded, copy, copy_near}

#endif
