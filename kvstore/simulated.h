/* A store to replay requests through (`kvist sim`): the real one, whose matching, leasing, sealing,
 * spilling and evicting are what serves; with blocks of one token and a few bytes, without threads,
 * with its disk tier in memory, on a clock that the caller turns. The same calls give the same
 * answers, every time.
 *
 * Owns: everything in it. Borrows: the clock, for its life.
 * Threads: one.
 * Errors: KV_INVALID names the field and its bound.
 * Limits: nothing that it stores outlives it. */
#ifndef KV_KVSTORE_SIMULATED_H
#define KV_KVSTORE_SIMULATED_H

#include "kvstore/kvist.h"

enum { KV_SIMULATED_SEGMENT_BLOCKS_MIN = 2 };

/* Sizes are in blocks; 0: there is no such tier. */
typedef struct {
    uint32_t device_blocks, host_blocks, disk_blocks;
    uint32_t segment_blocks; /* records of a segment; of the disk tier at least two segments */
    kvist_persist_t persist;
    kvist_policy_t policy;
    const kv_clock_t *clock;
} kv_simulated_params_t;

typedef struct {
    kvist_store_t *store;
    kvist_layout_t layout; /* one token a block */
    uint64_t object_bytes; /* of a block in memory, */
    uint64_t record_bytes; /* and on disk: what the store's figures count in */
    struct kv_simulated_parts *parts;
} kv_simulated_t;

kv_status_t kv_simulated_open(
    const kv_simulated_params_t *params, kv_simulated_t *simulated_out, kv_error_t *error);
void kv_simulated_close(kv_simulated_t *simulated);

#endif
