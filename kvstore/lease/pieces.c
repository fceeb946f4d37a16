#include "kvstore/lease/pieces.h"

#include "base/checksum.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

bool kv_pieces_init(kv_pieces_t *pieces, const kvist_piece_t *items, size_t count, size_t bytes)
{
    size_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        if ((items[i].base == NULL && items[i].bytes > 0) || items[i].bytes > bytes - sum) {
            return false;
        }
        sum += items[i].bytes;
    }
    if (sum != bytes) {
        return false;
    }
    *pieces = (kv_pieces_t){
        .items = kv_allocate_array(count + 1, sizeof *pieces->items),
        .starts = kv_allocate_array(count + 1, sizeof *pieces->starts),
        .bytes = bytes,
    };
    for (size_t i = 0, at = 0; i < count; i++) {
        if (items[i].bytes > 0) {
            pieces->items[pieces->count] = items[i];
            pieces->starts[pieces->count++] = at;
            at += items[i].bytes;
        }
    }
    return true;
}

void kv_pieces_release(kv_pieces_t *pieces)
{
    free(pieces->items);
    free(pieces->starts);
    *pieces = (kv_pieces_t){0};
}

kv_cursor_t kv_pieces_at(const kv_pieces_t *pieces, size_t offset)
{
    size_t low = 0, high = pieces->count;
    while (low + 1 < high) { /* the last piece that starts at or before the offset */
        size_t middle = (low + high) / 2;
        if (pieces->starts[middle] <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return (kv_cursor_t){pieces, low, offset - pieces->starts[low]};
}

/* The memory at the cursor, and how much of the next `bytes` lies there together. */
static char *memory_at(kv_cursor_t *cursor, size_t bytes, size_t *together_out)
{
    const kvist_piece_t *piece = &cursor->pieces->items[cursor->piece];
    if (cursor->offset == piece->bytes) {
        piece = &cursor->pieces->items[++cursor->piece];
        cursor->offset = 0;
    }
    char *memory = (char *)piece->base + cursor->offset;
    size_t left = piece->bytes - cursor->offset;
    *together_out = left < bytes ? left : bytes;
    cursor->offset += *together_out;
    return memory;
}

/* Across the ends of pieces the copy and the checksum are two passes. */
static void copy_apart(
    kv_cursor_t *cursor, char *here, size_t bytes, bool write, char *memory, size_t together)
{
    for (;;) {
        if (write) {
            memcpy(memory, here, together);
        } else {
            memcpy(here, memory, together);
        }
        here += together;
        bytes -= together;
        if (bytes == 0) {
            return;
        }
        memory = memory_at(cursor, bytes, &together);
    }
}

uint64_t kv_cursor_write(kv_cursor_t *cursor, const void *from, size_t bytes)
{
    size_t together;
    char *memory = memory_at(cursor, bytes, &together);
    if (together == bytes) {
        return kv_checksum_copy(memory, from, bytes);
    }
    copy_apart(cursor, (char *)from, bytes, true, memory, together);
    return kv_checksum(from, bytes);
}

void kv_cursor_copy(kv_cursor_t *cursor, const void *from, size_t bytes)
{
    size_t together;
    char *memory = memory_at(cursor, bytes, &together);
    copy_apart(cursor, (char *)from, bytes, true, memory, together);
}

uint64_t kv_cursor_read(kv_cursor_t *cursor, void *to, size_t bytes)
{
    size_t together;
    char *memory = memory_at(cursor, bytes, &together);
    if (together == bytes) {
        return kv_checksum_copy(to, memory, bytes);
    }
    copy_apart(cursor, to, bytes, false, memory, together);
    return kv_checksum(to, bytes);
}

uint64_t kv_cursor_read_shared(kv_cursor_t *cursor, void *to, size_t bytes)
{
    size_t together;
    char *memory = memory_at(cursor, bytes, &together);
    copy_apart(cursor, to, bytes, false, memory, together);
    return kv_checksum(to, bytes);
}
