/* Keys of blocks that went not long ago, by a short hash of each: the last `capacity` of them, as
 * far as a bucket has room, each with a small number beside it. A key that is not there may,
 * rarely, seem to be.
 *
 * Owns: 8 bytes a place, once the first one comes.
 * Threads: the store's. */
#ifndef KV_KVSTORE_POLICY_GHOSTS_H
#define KV_KVSTORE_POLICY_GHOSTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_GHOST_NOTE_MAX = 7 };

typedef struct {
    uint32_t hash;   /* the note in place of its last bits */
    uint32_t number; /* which one it was, of all that ever came; 0: none is here */
} kv_ghost_t;

typedef struct {
    kv_ghost_t *places;
    uint32_t bucket_count, capacity, newest;
} kv_ghosts_t;

void kv_ghosts_init(kv_ghosts_t *ghosts, uint32_t capacity);
void kv_ghosts_destroy(kv_ghosts_t *ghosts);
void kv_ghosts_add(kv_ghosts_t *ghosts, uint32_t hash, uint32_t note);

/* Whether it is there; then it is not any more, and *note_out is its note. */
bool kv_ghosts_take(kv_ghosts_t *ghosts, uint32_t hash, uint32_t *note_out);
size_t kv_ghosts_bytes(const kv_ghosts_t *ghosts);

#endif
