/* A caller's scatter list, walked by a worker: the bytes of a selection, wherever they lie.
 *
 * Owns: a copy of the list, not the memory that it names.
 * Threads: the store's makes and releases it; workers read it. */
#ifndef KV_KVSTORE_LEASE_PIECES_H
#define KV_KVSTORE_LEASE_PIECES_H

#include "kvstore/kvist.h"

typedef struct {
    kvist_piece_t *items;
    size_t *starts; /* [count]: the offset of each one's first byte */
    size_t count, bytes;
} kv_pieces_t;

/* false: a piece has no memory, or they are not `bytes` in all; nothing is to be released then. */
bool kv_pieces_init(kv_pieces_t *pieces, const kvist_piece_t *items, size_t count, size_t bytes);
void kv_pieces_release(kv_pieces_t *pieces);

/* A place in the list. */
typedef struct {
    const kv_pieces_t *pieces;
    size_t piece, offset;
} kv_cursor_t;

kv_cursor_t kv_pieces_at(const kv_pieces_t *pieces, size_t offset);

/* Copies `bytes` bytes to, or from, where the cursor stands, moves it on, and gives their checksum
 * (base/checksum.h). kv_checksum_copy_fence is the caller's. */
uint64_t kv_cursor_write(kv_cursor_t *cursor, const void *from, size_t bytes);
void kv_cursor_copy(kv_cursor_t *cursor, const void *from, size_t bytes); /* without checksum */
uint64_t kv_cursor_read(kv_cursor_t *cursor, void *to, size_t bytes);

/* As kv_cursor_read where somebody may write to the pieces meanwhile: the checksum is the copy's.
 */
uint64_t kv_cursor_read_shared(kv_cursor_t *cursor, void *to, size_t bytes);

#endif
