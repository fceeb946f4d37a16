/* UCX and nothing of Kvist: what `kvist bench wire` measures the mover against. Two processes, one
 * UCX worker and one endpoint each, move runs between an arena on either side and sleep when there
 * is nothing to do. No checksum, no header but a run's number, no protection against a late sender
 * or a dead peer: not for use.
 *
 * A run is the same byte range of a list of slots; both sides are told the same runs. An operation
 * moves it as one message.
 *
 * Owns: context, worker, endpoint; the memory of KV_BARE_GET.
 * Borrows: the arena (but for KV_BARE_GET) and the descriptor, until close; the runs during a call.
 * Threads: one.
 * Errors: UCX's, named; the other side's end is one. */
#ifndef KV_TRANSPORT_UCX_BARE_H
#define KV_TRANSPORT_UCX_BARE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    KV_BARE_EAGER,      /* an active message, copied into the slots by its callback */
    KV_BARE_RENDEZVOUS, /* an active message, received straight into the slots */
    KV_BARE_GET,        /* read by the receiver out of memory that UCX allocated on both sides: the
                           sender's slots do not lie in such, so this is no operation to choose, but
                           shows what the wire can do */
    KV_BARE_OPERATIONS,
} kv_bare_operation_t;

extern const char *const KV_BARE_NAMES[KV_BARE_OPERATIONS];

typedef struct {
    kv_bare_operation_t operation;
    bool shm; /* else TCP over the loopback interface */
    bool sends;
    void *arena;
    size_t arena_bytes;
    int fd; /* a stream to the other side, for addresses and for taking turns */
} kv_bare_params_t;

typedef struct {
    const uint32_t *slots;
    uint32_t block_count;
    size_t slot_bytes, offset_bytes, range_bytes;
} kv_bare_run_t;

typedef struct {
    uint32_t run_count;
    uint32_t depth; /* runs in flight, by the sender's completions */
    bool turns;     /* a run is sent when the one before has landed; depth is 1 */
    void (*run_at)(void *context, uint32_t index, kv_bare_run_t *run_out); /* until the next call */
    void *context;
    uint64_t *times_ns; /* [run_count] when each was begun (sender) or had landed (receiver) */
} kv_bare_batch_t;

typedef struct kv_bare kv_bare_t;

/* Both sides at once. */
kv_status_t kv_bare_open(const kv_bare_params_t *params, kv_bare_t **bare_out, kv_error_t *error);
void kv_bare_close(kv_bare_t *bare);

/* Where runs land: the arena, or KV_BARE_GET's own memory. */
uint8_t *kv_bare_arena(const kv_bare_t *bare);

/* Both sides with the same batch: returns when all has been sent, or has landed. */
kv_status_t kv_bare_move(kv_bare_t *bare, const kv_bare_batch_t *batch, kv_error_t *error);

#endif
