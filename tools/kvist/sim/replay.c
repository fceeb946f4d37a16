#include "tools/kvist/sim/replay.h"

#include "base/check.h"
#include "base/memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    TURNS_MAX = 100000, /* of the store, for one request: then it is stuck */
    TURNS_BEHIND = 8,   /* after each request, for what is written behind */
    PROGRESS_REQUESTS = 256,
};
#define START_UNIX_NS (UINT64_C(1700000000) * KV_NS_PER_S)
#define PATIENCE_NS (UINT64_C(3600) * KV_NS_PER_S)

struct kv_replayer {
    const kv_trace_t *trace;
    const kv_replay_t *replay;
    kv_virtual_clock_t clock;
    uint64_t now_ms; /* of the trace */
    kv_simulated_t simulated;
    kvist_key_t name_space;
    char *bytes; /* [longest request] what is stored and loaded: nobody looks at it */
    kv_error_t *error;
};
typedef kv_replayer_t run_t;

typedef struct {
    bool ended;
    kv_status_t status;
    kvist_match_t match;
    uint32_t block_count;
} answer_t;

static void prepared(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    (void)lease;
    *(answer_t *)context =
        (answer_t){true, status, *match, status == KV_OK ? match->block_count : 0};
}

static void loaded(void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count,
    kvist_miss_t miss)
{
    (void)lease;
    (void)miss;
    *(answer_t *)context = (answer_t){.ended = true, .status = status, .block_count = block_count};
}

static void stored(void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    (void)lease;
    *(answer_t *)context = (answer_t){.ended = true, .status = status, .block_count = block_count};
}

static kv_status_t wait_for(const run_t *run, const answer_t *answer)
{
    for (int turn = 0; !answer->ended && turn < TURNS_MAX; turn++) {
        kvist_store_poll(run->simulated.store);
    }
    return answer->ended ? KV_OK
                         : kv_fail(run->error, KV_FATAL, "the store answers a request no more");
}

/* ---- one request ---- */

static uint64_t deadline_ns(const run_t *run)
{
    return run->clock.monotonic_ns + PATIENCE_NS;
}

/* As an engine whose block tables point into the store's device tier. */
static kv_status_t serve_device(run_t *run, kvist_lease_t *lease, const uint32_t *blocks,
    uint32_t block_count, uint32_t *hits_out)
{
    answer_t answer = {0};
    kv_status_t status =
        kvist_lease_prepare(lease, block_count, deadline_ns(run), prepared, &answer);
    if (status != KV_OK) {
        return kv_fail(
            run->error, status, "a request of %u blocks cannot be prepared", block_count);
    }
    status = wait_for(run, &answer);
    if (status == KV_OK && answer.status != KV_OK) {
        status =
            kv_fail(run->error, answer.status, "a request of %u blocks found no room", block_count);
    }
    for (uint32_t i = answer.block_count; status == KV_OK && i < block_count; i++) {
        status = kvist_lease_seal(lease, blocks + i, NULL, "simulated");
        KV_CHECK(status == KV_OK);
    }
    *hits_out = answer.block_count;
    return status;
}

/* As an engine that keeps blocks in memory of its own. */
static kv_status_t serve_host(
    run_t *run, kvist_lease_t *lease, uint32_t found, uint32_t block_count, uint32_t *hits_out)
{
    answer_t answer = {.ended = found == 0};
    uint64_t bytes = run->simulated.object_bytes;
    if (found > 0) {
        const kvist_selection_t selection = {.block_count = found};
        const kvist_piece_t piece = {run->bytes, found * bytes};
        kv_status_t status = kvist_lease_load(lease, &selection, &piece, 1, loaded, &answer);
        KV_CHECK(status == KV_OK);
    }
    kv_status_t status = wait_for(run, &answer);
    *hits_out = answer.block_count;
    if (status != KV_OK || answer.block_count < found || found == block_count) {
        return status;
    }
    const kvist_put_t put = {.first_block = found,
        .block_count = block_count - found,
        .arithmetic = "simulated",
        .deadline_ns = deadline_ns(run)};
    const kvist_piece_t piece = {run->bytes, put.block_count * bytes};
    answer = (answer_t){0};
    status = kvist_lease_store(lease, &put, &piece, 1, stored, &answer);
    KV_CHECK(status == KV_OK);
    return wait_for(run, &answer); /* what found no room is not stored */
}

static kv_status_t serve(run_t *run, uint32_t number, uint32_t *hits_out)
{
    const kv_trace_request_t *request = &run->trace->requests[number];
    const uint32_t *blocks = run->trace->blocks + request->first_block;
    kvist_lease_t *lease;
    kvist_match_t match;
    kvist_query_t query = {
        .name_space = run->name_space,
        .tokens = blocks,
        .token_count = request->block_count,
        .mode = KVIST_MODE_READWRITE,
        .terms = {.priority = request->priority},
    };
    if (run->replay->expected_ms != NULL && run->replay->expected_ms[number] > 0) {
        query.terms.expected_next_use_unix_ns =
            run->clock.unix_ns + run->replay->expected_ms[number] * KV_NS_PER_MS;
    }
    kv_status_t status = kvist_match(run->simulated.store, &query, &lease, &match);
    if (status != KV_OK) {
        return kv_fail(run->error, status, "request %u is refused", number);
    }
    status = run->replay->device_blocks > 0
                 ? serve_device(run, lease, blocks, request->block_count, hits_out)
                 : serve_host(run, lease, match.block_count, request->block_count, hits_out);
    kvist_lease_release(lease);
    for (int turn = 0; turn < TURNS_BEHIND; turn++) {
        kvist_store_poll(run->simulated.store);
    }
    return status;
}

/* ---- all of them ---- */

static kv_status_t check(const kv_trace_t *trace, const kv_replay_t *replay, kv_error_t *error)
{
    if (replay->device_blocks > 0 && replay->device_blocks < trace->longest_blocks) {
        return kv_fail(error, KV_INVALID,
            "a device tier of %u blocks cannot hold the longest request, which has %u",
            replay->device_blocks, trace->longest_blocks);
    }
    return KV_OK;
}

static kv_replay_totals_t totals_of(const kv_simulated_t *simulated)
{
    kvist_stats_t stats;
    kv_replay_totals_t totals = {0};
    kvist_store_stats(simulated->store, &stats);
    for (int tier = 0; tier < KVIST_TIER_COUNT; tier++) {
        uint64_t bytes =
            tier == KVIST_TIER_DISK ? simulated->record_bytes : simulated->object_bytes;
        totals.hit_blocks[tier] = stats.tiers[tier].hit_blocks;
        totals.written_blocks[tier] = stats.tiers[tier].written_bytes / bytes;
        totals.evicted_blocks[tier] = stats.tiers[tier].evicted_objects;
    }
    totals.disk_moved_blocks = stats.moved_objects;
    return totals;
}

static void subtract(kv_replay_totals_t *totals, const kv_replay_totals_t *before)
{
    for (int tier = 0; tier < KVIST_TIER_COUNT; tier++) {
        totals->hit_blocks[tier] -= before->hit_blocks[tier];
        totals->written_blocks[tier] -= before->written_blocks[tier];
        totals->evicted_blocks[tier] -= before->evicted_blocks[tier];
    }
    totals->disk_moved_blocks -= before->disk_moved_blocks;
}

kv_status_t kv_replayer_open(const kv_trace_t *trace, const kv_replay_t *replay,
    kv_replayer_t **replayer_out, kv_error_t *error)
{
    kv_status_t status = check(trace, replay, error);
    if (status != KV_OK) {
        return status;
    }
    run_t *run = kv_allocate(sizeof *run);
    *run = (run_t){.trace = trace, .replay = replay, .now_ms = trace->requests[0].at_ms};
    kv_virtual_clock_init(&run->clock, START_UNIX_NS);
    const kv_simulated_params_t params = {
        .device_blocks = replay->device_blocks,
        .host_blocks = replay->host_blocks,
        .disk_blocks = replay->disk_blocks,
        .segment_blocks = replay->segment_blocks,
        .persist = replay->persist,
        .policy = replay->policy,
        .clock = &run->clock.clock,
    };
    status = kv_simulated_open(&params, &run->simulated, error);
    if (status != KV_OK) {
        free(run);
        return status;
    }
    const kvist_namespace_params_t identity = {
        .layout = &run->simulated.layout, .salt = "", .adapter = ""};
    run->name_space = kvist_namespace(&identity);
    run->bytes = kv_allocate_array(trace->longest_blocks + 1, run->simulated.object_bytes);
    *replayer_out = run;
    return KV_OK;
}

void kv_replayer_close(kv_replayer_t *replayer)
{
    if (replayer != NULL) {
        kv_simulated_close(&replayer->simulated);
        free(replayer->bytes);
        free(replayer);
    }
}

kv_status_t kv_replayer_serve(
    kv_replayer_t *replayer, uint32_t number, uint32_t *hits_out, kv_error_t *error)
{
    uint64_t at_ms = replayer->trace->requests[number].at_ms;
    kv_virtual_clock_advance(&replayer->clock, (at_ms - replayer->now_ms) * KV_NS_PER_MS);
    replayer->now_ms = at_ms;
    replayer->error = error;
    return serve(replayer, number, hits_out);
}

kvist_store_t *kv_replayer_store(const kv_replayer_t *replayer)
{
    return replayer->simulated.store;
}

kvist_key_t kv_replayer_name_space(const kv_replayer_t *replayer)
{
    return replayer->name_space;
}

kv_status_t kv_replay_run(const kv_trace_t *trace, const kv_replay_t *replay, uint32_t counted_from,
    uint32_t *hits_out, kv_replay_totals_t *totals_out, kv_error_t *error)
{
    kv_replayer_t *replayer;
    kv_status_t status = kv_replayer_open(trace, replay, &replayer, error);
    if (status != KV_OK) {
        return status;
    }
    kv_replay_totals_t before = {0};
    for (uint32_t i = 0; status == KV_OK && i < trace->request_count; i++) {
        if (i == counted_from) {
            before = totals_of(&replayer->simulated);
        }
        if (i % PROGRESS_REQUESTS == 0 && replay->progress != NULL) {
            replay->progress(replay->context, i);
        }
        status = kv_replayer_serve(replayer, i, &hits_out[i], error);
    }
    *totals_out = totals_of(&replayer->simulated);
    subtract(totals_out, &before);
    kv_replayer_close(replayer);
    return status;
}
