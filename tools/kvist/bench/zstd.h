/* zstd, to hold Kvist's own codecs against: one context for both ways.
 *
 * Owns: its context. Threads: one.
 * Errors: decoding answers false for bytes that are damaged. */
#ifndef KV_TOOLS_BENCH_ZSTD_H
#define KV_TOOLS_BENCH_ZSTD_H

#include <stdbool.h>
#include <stddef.h>

typedef struct kv_zstd kv_zstd_t;

kv_zstd_t *kv_zstd_create(void);
void kv_zstd_destroy(kv_zstd_t *zstd);

/* Returns the length; 0: it takes more than room. */
size_t kv_zstd_encode(
    kv_zstd_t *zstd, int level, const void *from, size_t bytes, void *encoded_out, size_t room);
bool kv_zstd_decode(
    kv_zstd_t *zstd, const void *encoded, size_t encoded_bytes, void *out, size_t bytes);

#endif
