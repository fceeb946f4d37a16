/* A record: one object on disk, self-describing: its header holds all that is needed to rebuild its
 * index entry and to prove that the bytes are the ones that were stored.
 *
 *   0                     header_bytes                                          stored_bytes
 *   | header, tokens, unit checksums, unit lengths | units, encoded | zeros to 4 KiB |
 *
 * Rules:
 *  1. A record starts at a multiple of 4 KiB and is one. Header and decoded bytes are under
 *     checksums; the padding is zero and is checked to be.
 *  2. The header's checksum covers the whole header. It holds the segment's generation: a record of
 *     an earlier life of its place is never taken for a present one.
 *  3. Each unit's checksum is over its decoded bytes; the object's checksum is over the units' and
 *     is bound to key and layout.
 *  4. key = SHA-256 of parent and tokens: a header that contradicts itself is damaged.
 *
 * The byte layout is in docs/formats.md.
 * Threads: any; free of state. */
#ifndef KV_KVSTORE_RECORD_H
#define KV_KVSTORE_RECORD_H

#include "kvstore/layout.h"

enum {
    KV_PAGE_BYTES = 4096,
    KV_ORIGIN_BYTES = 32,
    KV_ARITHMETIC_BYTES = 48,
};

/* What a header says, but for tokens and checksums. */
typedef struct {
    kvist_key_t name_space, key, parent;
    uint64_t generation;
    uint32_t position; /* number of the block in its context */
    uint64_t created_unix_ns, used_unix_ns;
    char origin[KV_ORIGIN_BYTES], arithmetic[KV_ARITHMETIC_BYTES]; /* ended and padded with zeros */
    kvist_codec_t codec;
    uint64_t stored_bytes; /* header, payload and padding */
} kv_record_t;

size_t kv_record_header_bytes(const kv_layout_t *layout);

/* The most bytes that a record of this layout takes. */
size_t kv_record_bytes_max(const kv_layout_t *layout);

/* Writes a record to `at` (kv_record_bytes_max bytes, any of which may change). object: the block's
 * bytes, [object_bytes]; may be at + kv_record_header_bytes(), where they stay if codec is none.
 * record->codec is a wish: codec none is used where encoding saves no page. Fills
 * record->stored_bytes and codec. The record is not valid before kv_record_sign. */
void kv_record_write(const kv_layout_t *layout, kv_record_t *record, const uint32_t *tokens,
    const void *object, void *at);

/* Enters the generation and the header's checksum: the last step, when the place is known. */
void kv_record_sign(void *at, uint64_t generation);

/* Reads a header out of `bytes` bytes. KV_MISSING: no record starts here; KV_CORRUPT: one did, and
 * it is damaged. Records of other layouts are read too: *same_layout_out tells. */
kv_status_t kv_record_read(const kv_layout_t *layout, const void *at, size_t bytes,
    kv_record_t *record_out, bool *same_layout_out);

/* Proves that the `bytes` bytes at `at` are the record that was expected (its generation,
 * name_space, key, parent, position) and gives its object and tokens. scratch: [object_bytes], used
 * by codecs. *object_out points into `at` or is scratch. KV_CORRUPT: anything differs. */
kv_status_t kv_record_verify(const kv_layout_t *layout, const kv_record_t *expected, const void *at,
    size_t bytes, void *scratch, const void **object_out, uint32_t *tokens_out);

#endif
