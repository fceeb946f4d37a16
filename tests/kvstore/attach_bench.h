/* What the tests of attached stores share: a service with its clients, and contexts in the caller's
 * memory. */
#ifndef KV_TESTS_KVSTORE_ATTACH_BENCH_H
#define KV_TESTS_KVSTORE_ATTACH_BENCH_H

#include "kvstore/attach/attached_internal.h"
#include "service_bench.h"

enum { BLOCKS = 12 };

/* ---- a service and its clients ---- */

typedef struct {
    bench_t host; /* the service's parameters */
    served_t served;
} service_t;

static inline void begin_service_limited(service_t *service, const char *name, uint32_t host_slots,
    uint32_t segments, kv_service_limits_t limits)
{
    bench_init(&service->host, name, 1);
    bench_with_host(&service->host, host_slots);
    if (segments > 0) {
        bench_with_disk(&service->host, segments);
    }
    served_init(&service->served, &service->host.params);
    service->served.params.limits = limits;
    served_start(&service->served);
}

static inline void begin_service(
    service_t *service, const char *name, uint32_t host_slots, uint32_t segments)
{
    begin_service_limited(service, name, host_slots, segments, (kv_service_limits_t){0});
}

/* Nothing of any client is left. */
static inline void end_service(service_t *service)
{
    served_pause(&service->served);
    kv_service_stats_t stats = {.clients = 1};
    uint64_t end_ns = patience_ns();
    while (stats.clients + stats.mapped > 0 && kv_clock_now_ns() < end_ns) {
        struct pollfd ready = {.fd = kv_service_fd(service->served.service), .events = POLLIN};
        poll(&ready, 1, 20);
        kv_service_poll(service->served.service);
        kv_service_stats(service->served.service, &stats);
    }
    assert_int_equal(stats.clients + stats.leases + stats.mapped, 0);
    assert_int_equal(stats.staging_bytes, 0);
    served_end(&service->served);
    bench_end(&service->host);
}

static inline void open_client(
    bench_t *bench, const service_t *service, const char *name, uint32_t device_slots)
{
    bench_init(bench, name, device_slots > 0 ? device_slots : 1);
    bench->params.attach = service->served.path;
    bench->params.origin = name;
    if (device_slots == 0) {
        bench->params.device = NULL;
        bench->params.device_slot_count = 0;
    }
    bench_open(bench);
}

/* ---- through the caller's memory ---- */

typedef struct {
    bool ended;
    kv_status_t status;
    uint32_t block_count;
    kvist_miss_t miss;
} transfer_t;

static inline void note_loaded(void *context, kvist_lease_t *lease, kv_status_t status,
    uint32_t block_count, kvist_miss_t miss)
{
    (void)lease;
    *(transfer_t *)context = (transfer_t){true, status, block_count, miss};
}

static inline void note_stored(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    (void)lease;
    *(transfer_t *)context = (transfer_t){true, status, block_count, KVIST_MISS_NONE};
}

static inline void wait_transfer(bench_t *bench, const transfer_t *transfer)
{
    uint64_t end_ns = patience_ns();
    while (!transfer->ended) {
        bench_wait(bench, end_ns);
    }
}

typedef struct {
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_key_t extras[BLOCKS]; /* zeros: none */
    kvist_key_t keys[BLOCKS];
    char bytes[BLOCKS * 2048];
} context_t;

/* Keys and bytes, from tokens and extra keys. */
static inline void fill_context(const bench_t *bench, context_t *context)
{
    kvist_keys(&bench->name_space, context->tokens, context->extras, BLOCKS * BLOCK_TOKENS,
        BLOCK_TOKENS, context->keys);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        fill_block(&context->keys[block], context->bytes + (size_t)block * 2048, 2048);
    }
}

static inline void make_context(const bench_t *bench, uint32_t number, context_t *context)
{
    assert_int_equal(block_bytes(bench), 2048);
    make_tokens(number, 0, context->tokens, BLOCKS * BLOCK_TOKENS);
    memset(context->extras, 0, sizeof context->extras);
    fill_context(bench, context);
}

static inline kvist_lease_t *match_blocks(
    bench_t *bench, const context_t *context, uint32_t blocks, kvist_match_t *match)
{
    kvist_lease_t *lease;
    kvist_query_t query = {.name_space = bench->name_space,
        .tokens = context->tokens,
        .extras = context->extras,
        .token_count = (size_t)blocks * BLOCK_TOKENS,
        .mode = KVIST_MODE_READWRITE,
        .terms.tenant = bench->tenant};
    assert_int_equal(kvist_match(bench->store, &query, &lease, match), KV_OK);
    return lease;
}

static inline transfer_t store_rest(
    bench_t *bench, kvist_lease_t *lease, const context_t *context, uint32_t first, uint32_t end)
{
    transfer_t stored = {0};
    kvist_piece_t piece = {
        (char *)context->bytes + (size_t)first * 2048, (size_t)(end - first) * 2048};
    kvist_put_t put = {.first_block = first,
        .block_count = end - first,
        .tokens = context->tokens + (size_t)first * BLOCK_TOKENS,
        .extras = context->extras + first,
        .arithmetic = "test/plain",
        .deadline_ns = kv_clock_now_ns() + 20ull * KV_NS_PER_S};
    assert_int_equal(kvist_lease_store(lease, &put, &piece, 1, note_stored, &stored), KV_OK);
    assert_false(stored.ended);
    wait_transfer(bench, &stored);
    return stored;
}

/* Stores what is missing; answers how many blocks were found. */
static inline uint32_t store_context(bench_t *bench, const context_t *context, uint32_t blocks)
{
    kvist_match_t match;
    kvist_lease_t *lease = match_blocks(bench, context, blocks, &match);
    transfer_t stored = store_rest(bench, lease, context, match.block_count, blocks);
    assert_int_equal(stored.status, KV_OK);
    assert_int_equal(stored.block_count, blocks - match.block_count);
    assert_int_equal(kvist_lease_sealed_count(lease), blocks);
    kvist_lease_release(lease);
    return match.block_count;
}

static inline transfer_t load_blocks(
    bench_t *bench, kvist_lease_t *lease, kvist_selection_t selection, void *bytes, size_t count)
{
    transfer_t loaded = {0};
    size_t half = count / 3; /* two pieces that cut a unit */
    kvist_piece_t pieces[2] = {{bytes, half}, {(char *)bytes + half, count - half}};
    assert_int_equal(kvist_lease_load(lease, &selection, pieces, 2, note_loaded, &loaded), KV_OK);
    assert_false(loaded.ended);
    wait_transfer(bench, &loaded);
    return loaded;
}

/* Finds, loads and compares the whole context. */
static inline kvist_match_t check_context(bench_t *bench, const context_t *context, uint32_t blocks)
{
    kvist_match_t match;
    kvist_lease_t *lease = match_blocks(bench, context, blocks, &match);
    assert_int_equal(match.block_count, blocks);
    char back[BLOCKS * 2048];
    transfer_t loaded = load_blocks(
        bench, lease, (kvist_selection_t){.block_count = blocks}, back, (size_t)blocks * 2048);
    assert_int_equal(loaded.status, KV_OK);
    assert_int_equal(loaded.block_count, blocks);
    assert_int_equal(loaded.miss, KVIST_MISS_NONE);
    assert_memory_equal(back, context->bytes, (size_t)blocks * 2048);
    kvist_lease_release(lease);
    return match;
}

/* ---- device slots ---- */

static inline void wait_written(bench_t *bench)
{
    uint64_t end_ns = patience_ns();
    while (kv_through_before(kv_attached_of(bench->store), UINT64_MAX)) {
        bench_wait(bench, end_ns);
    }
}

#endif
