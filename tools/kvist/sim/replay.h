/* A trace through a real store (kvstore/simulated.h), request by request: match, lease, load, seal,
 * evict, spill as when serving. The store's clock follows the trace; between two requests it stands
 * still: copies and I/O take no time, and a request is over before the next one begins.
 *
 * What is stored are prompts: traces do not say what was generated.
 *
 * Owns: nothing; borrows the trace during a call.
 * Threads: one. Errors: KV_INVALID where a tier cannot hold the longest request. */
#ifndef KV_TOOLS_SIM_REPLAY_H
#define KV_TOOLS_SIM_REPLAY_H

#include "kvstore/simulated.h"
#include "tools/kvist/sim/trace.h"

typedef struct {
    kvist_policy_t policy;
    uint32_t device_blocks, host_blocks, disk_blocks, segment_blocks;
    kvist_persist_t persist;
    /* For each request when its context is expected to be used next, in ms after it; 0: nobody
     * knows. NULL: nobody ever knows. */
    const uint64_t *expected_ms;
    /* Now and then, with how many requests were served; may be NULL. */
    void (*progress)(void *context, uint32_t request_count);
    void *context;
} kv_replay_t;

/* Of the requests from the one on from which they are counted. In blocks. */
typedef struct {
    uint64_t hit_blocks[KVIST_TIER_COUNT];
    uint64_t written_blocks[KVIST_TIER_COUNT], evicted_blocks[KVIST_TIER_COUNT];
    uint64_t disk_moved_blocks; /* out of segments that were reclaimed */
} kv_replay_totals_t;

/* hits_out: [trace->request_count] blocks of each request that were found and loaded. */
kv_status_t kv_replay_run(const kv_trace_t *trace, const kv_replay_t *replay, uint32_t counted_from,
    uint32_t *hits_out, kv_replay_totals_t *totals_out, kv_error_t *error);

/* ---- the same, request by request: of several stores each gets some ---- */

typedef struct kv_replayer kv_replayer_t;

/* Borrows trace and replay until it is closed. */
kv_status_t kv_replayer_open(const kv_trace_t *trace, const kv_replay_t *replay,
    kv_replayer_t **replayer_out, kv_error_t *error);
void kv_replayer_close(kv_replayer_t *replayer); /* NULL: nothing */

/* Numbers must not go down: the clock follows them. */
kv_status_t kv_replayer_serve(
    kv_replayer_t *replayer, uint32_t number, uint32_t *hits_out, kv_error_t *error);

kvist_store_t *kv_replayer_store(const kv_replayer_t *replayer);
kvist_key_t kv_replayer_name_space(const kv_replayer_t *replayer);

#endif
