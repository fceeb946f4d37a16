/* The memory of one layer group's part of the host tier: slots, and beside them the checksums of
 * their units and the words of their blocks (identity.h), in one region:
 *
 *   0             slots      [slot_count][object_bytes]
 *   checksums_at  checksums  [slot_count][unit_count] of 8 bytes
 *   words_at      words      [slot_count][block_words] of 4 bytes
 *   total_bytes   the end; a whole number of huge pages
 *
 * Private: anonymous memory of this process, there once it is touched. Shared: a memfd that nobody
 * can resize, and that nobody but this process, which mapped it first, can ever write (its seals
 * say so, whatever descriptor somebody has); other processes get a descriptor to read it by.
 *
 * Nobody touches shared memory before it was made ready, a range of slots at a time: where memory
 * is short that fails, while a touch would end the process.
 *
 * Owns: the region and the descriptor.
 * Threads: any; ranges may be made ready by one thread while others use what is ready. What lies in
 * it is its users' affair.
 * Errors: KV_NO_SPACE, KV_INVALID. kv_arena_map checks what another process handed over.
 * Limits: a seal on future writing needs Linux 5.1, making shared memory ready 5.14; huge pages of
 * shared memory 6.1, else they are small ones. */
#ifndef KV_KVSTORE_OBJECTS_ARENA_H
#define KV_KVSTORE_OBJECTS_ARENA_H

#include "base/memory.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Where everything lies: the same in every process for the same numbers. */
typedef struct {
    uint32_t slot_count, unit_count, block_words;
    uint64_t object_bytes;
    uint64_t checksums_at, words_at, total_bytes;
} kv_arena_plan_t;

typedef struct {
    kv_arena_plan_t plan;
    kv_region_t region; /* base NULL: no slots */
    int fd;             /* for reading only; -1: private, or mapped from another process */
} kv_arena_t;

/* The last three of the plan, from the others. KV_INVALID: no slots, or more than there are
 * addresses for. */
kv_status_t kv_arena_plan(kv_arena_plan_t *plan, kv_error_t *error);

kv_status_t kv_arena_open(
    const kv_arena_plan_t *plan, bool shared, kv_arena_t *arena_out, kv_error_t *error);

/* Another process' shared arena, for reading. fd: borrowed for the call. KV_REFUSED: it has another
 * size, or lacks the seals that make reading it safe. */
kv_status_t kv_arena_map(
    const kv_arena_plan_t *plan, int fd, kv_arena_t *arena_out, kv_error_t *error);

void kv_arena_close(kv_arena_t *arena); /* also one that is all zero */

/* Who makes memory ready: a table, so that a test can have too little of it. */
typedef struct {
    /* Whole huge pages of a shared region: there from now on, as huge pages where that is possible.
     */
    kv_status_t (*populate)(void *base, size_t bytes, kv_error_t *error);
    /* Into memory for good; false: not permitted. */
    bool (*lock)(void *base, size_t bytes);
} kv_arena_memory_t;

extern const kv_arena_memory_t KV_ARENA_MACHINE;

/* Makes slots of a shared arena ready, with all that stands beside them. *locked, where it is true:
 * and locks them, or becomes false. KV_CANCELLED: *stop became true. KV_NO_SPACE: there is no
 * memory, or hardly more than that for everybody else; what became ready stays so. */
kv_status_t kv_arena_make_ready(const kv_arena_t *arena, const kv_arena_memory_t *memory,
    uint32_t first_slot, uint32_t slot_count, const atomic_bool *stop, bool *locked,
    kv_error_t *error);

static inline char *kv_arena_slot(const kv_arena_t *arena, uint32_t slot)
{
    return (char *)arena->region.base + slot * arena->plan.object_bytes;
}

static inline uint64_t *kv_arena_checksums(const kv_arena_t *arena)
{
    return (uint64_t *)(void *)((char *)arena->region.base + arena->plan.checksums_at);
}

static inline uint32_t *kv_arena_words(const kv_arena_t *arena)
{
    return (uint32_t *)(void *)((char *)arena->region.base + arena->plan.words_at);
}

#endif
