/* Leases of an attached store as a scheduler of requests uses them: one to store through for a
 * request's whole life, thousands at once, look-ups that are not counted, and a service that ends
 * while all of them are at work. */
#include "attach_bench.h"

enum { STORE_S = 20 };

static kvist_lease_t *lease_to_store(bench_t *bench)
{
    kvist_lease_t *lease;
    kvist_match_t match;
    const kvist_query_t query = {
        .name_space = bench->name_space, .mode = KVIST_MODE_WRITE, .uncounted = true};
    assert_int_equal(kvist_match(bench->store, &query, &lease, &match), KV_OK);
    assert_int_equal(match.block_count, 0);
    return lease;
}

/* The context's next blocks, out of that memory. */
static void begin_store(kvist_lease_t *lease, const context_t *context, uint32_t first,
    uint32_t end, void *bytes, transfer_t *stored)
{
    kvist_piece_t piece = {bytes, (size_t)(end - first) * 2048};
    const kvist_put_t put = {.first_block = first,
        .block_count = end - first,
        .tokens = context->tokens + (size_t)first * BLOCK_TOKENS,
        .extras = context->extras + first,
        .deadline_ns = kv_clock_now_ns() + (uint64_t)STORE_S * KV_NS_PER_S};
    *stored = (transfer_t){0};
    assert_int_equal(kvist_lease_store(lease, &put, &piece, 1, note_stored, stored), KV_OK);
}

static kv_status_t store_more(
    bench_t *bench, kvist_lease_t *lease, context_t *context, uint32_t first, uint32_t end)
{
    transfer_t stored;
    begin_store(lease, context, first, end, context->bytes + (size_t)first * 2048, &stored);
    wait_transfer(bench, &stored);
    assert_int_equal(stored.block_count, stored.status == KV_OK ? end - first : 0);
    return stored.status;
}

/* Contexts that begin alike, and have extra keys. */
static void make_branch(const bench_t *bench, uint32_t number, uint32_t shared, context_t *context)
{
    make_tokens(number, shared * BLOCK_TOKENS, context->tokens, BLOCKS * BLOCK_TOKENS);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        context->extras[block] = kv_identity_digest(&block, sizeof block);
    }
    fill_context(bench, context);
}

static void one_lease_stores_for_a_whole_request(void **state)
{
    (void)state;
    service_t service;
    bench_t one, two;
    context_t context;
    begin_service(&service, "request", 64, 0);
    open_client(&one, &service, "one", 0);
    open_client(&two, &service, "two", 0);
    make_branch(&one, 1, 0, &context);
    kvist_lease_t *lease = lease_to_store(&one);
    static const uint32_t ENDS[] = {3, 4, 4, 5, 9, BLOCKS};
    for (uint32_t i = 0, first = 0; i < sizeof ENDS / sizeof *ENDS; first = ENDS[i++]) {
        assert_int_equal(store_more(&one, lease, &context, first, ENDS[i]), KV_OK);
        assert_int_equal(kvist_lease_sealed_count(lease), ENDS[i]);
        check_context(&two, &context, ENDS[i]); /* at once */
    }
    kvist_lease_release(lease);
    bench_end(&one);
    bench_end(&two);
    end_service(&service);
}

/* What is stored already is not even looked at. */
static void stored_blocks_are_not_copied(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    context_t first, second;
    enum { SHARED = 7 };
    begin_service(&service, "present", 64, 0);
    open_client(&one, &service, "one", 0);
    make_branch(&one, 1, 0, &first);
    make_branch(&one, 0, 0, &second);
    memcpy(second.tokens, first.tokens, SHARED * BLOCK_TOKENS * sizeof *first.tokens);
    fill_context(&one, &second);
    store_context(&one, &first, BLOCKS);
    char *nothing = mmap(NULL, SHARED * 2048, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(nothing != MAP_FAILED);
    kvist_lease_t *lease = lease_to_store(&one);
    transfer_t stored;
    begin_store(lease, &second, 0, SHARED, nothing, &stored);
    wait_transfer(&one, &stored);
    assert_int_equal(stored.status, KV_OK);
    assert_int_equal(stored.block_count, SHARED);
    assert_int_equal(store_more(&one, lease, &second, SHARED, BLOCKS), KV_OK);
    kvist_lease_release(lease);
    check_context(&one, &second, BLOCKS);
    munmap(nothing, SHARED * 2048);
    bench_end(&one);
    end_service(&service);
}

static void drop_context(bench_t *bench, const context_t *context)
{
    outcome_t outcome = {0};
    assert_int_equal(
        kvist_store_drop(bench->store, &context->keys[0], false, note_dropped, &outcome), KV_OK);
    wait_for(bench, &outcome);
    assert_int_equal(outcome.status, KV_OK);
}

/* What the lease stored is not held: where it is gone, that is said, again and again, and a new
 * lease begins anew. */
static void a_parent_that_went_is_missing(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    context_t context, other;
    begin_service(&service, "evicted", BLOCKS, 0);
    open_client(&one, &service, "one", 0);
    make_branch(&one, 1, 0, &context);
    kvist_lease_t *lease = lease_to_store(&one);
    assert_int_equal(store_more(&one, lease, &context, 0, 4), KV_OK);
    make_context(&one, 2, &other);
    store_context(&one, &other, BLOCKS); /* pushes it out; there is no disk */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(store_more(&one, lease, &context, 4, 6), KV_NO_SPACE);
        assert_int_equal(kvist_lease_sealed_count(lease), 4);
    }
    kvist_lease_release(lease);
    lease = lease_to_store(&one);
    assert_int_equal(store_more(&one, lease, &context, 0, 6), KV_OK);
    check_context(&one, &context, 6);
    drop_context(&one, &context);
    assert_int_equal(store_more(&one, lease, &context, 6, 7), KV_NO_SPACE);
    kvist_lease_release(lease);
    bench_end(&one);
    end_service(&service);
    begin_service(&service, "dropped", 2 * BLOCKS, 16);
    open_client(&one, &service, "one", 0);
    lease = lease_to_store(&one);
    assert_int_equal(store_more(&one, lease, &context, 0, 4), KV_OK);
    drop_context(&one, &context);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(store_more(&one, lease, &context, 4, 6), KV_MISSING);
    }
    kvist_lease_release(lease);
    bench_end(&one);
    end_service(&service);
}

static void release_cancels_stores(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    context_t context;
    transfer_t stored[4];
    begin_service(&service, "cancelled", 64, 0);
    open_client(&one, &service, "one", 0);
    make_branch(&one, 1, 0, &context);
    kvist_lease_t *lease = lease_to_store(&one);
    served_pause(&service.served);
    for (uint32_t i = 0; i < 4; i++) { /* the service has heard of none when the lease goes */
        begin_store(lease, &context, 3 * i, 3 * i + 3, context.bytes + i * 3 * 2048, &stored[i]);
    }
    kvist_lease_release(lease);
    kvist_store_poll(one.store);
    assert_false(stored[0].ended); /* its memory is still borrowed */
    served_resume(&service.served);
    for (uint32_t i = 0; i < 4; i++) {
        wait_transfer(&one, &stored[i]);
        assert_int_equal(stored[i].status, KV_CANCELLED);
        assert_int_equal(stored[i].block_count, 0);
    }
    store_context(&one, &context, BLOCKS);
    check_context(&one, &context, BLOCKS);
    bench_end(&one);
    end_service(&service);
}

/* More at once than one connection may ask. */
static void thousands_of_leases_store_at_once(void **state)
{
    (void)state;
    enum { COUNT = 3000 };
    service_t service;
    bench_t one;
    begin_service(&service, "thousands", COUNT + 64, 0);
    open_client(&one, &service, "one", 0);
    context_t *contexts = calloc(COUNT, sizeof *contexts);
    transfer_t *stored = calloc(COUNT, sizeof *stored);
    kvist_lease_t **leases = calloc(COUNT, sizeof *leases);
    for (uint32_t i = 0; i < COUNT; i++) {
        make_branch(&one, i + 1, 0, &contexts[i]);
        leases[i] = lease_to_store(&one);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        begin_store(leases[i], &contexts[i], 0, 1, contexts[i].bytes, &stored[i]);
    }
    /* Who looks something up meanwhile has its answer. */
    kvist_match_t match;
    kvist_lease_release(match_blocks(&one, &contexts[0], 1, &match));
    assert_true(match.block_count == 1 || match.miss != KVIST_MISS_FAILED);
    for (uint32_t i = 0; i < COUNT; i++) {
        wait_transfer(&one, &stored[i]);
        assert_int_equal(stored[i].status, KV_OK);
        assert_int_equal(stored[i].block_count, 1);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        kvist_lease_release(leases[i]);
        check_context(&one, &contexts[i], 1);
    }
    free(contexts);
    free(stored);
    free(leases);
    bench_end(&one);
    end_service(&service);
}

/* What a request was looked up for before is not counted again, here and at the service. */
static void a_second_look_up_is_not_counted(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    context_t context;
    begin_service(&service, "counted", 64, 0);
    open_client(&one, &service, "one", 4 * BLOCKS);
    make_branch(&one, 1, 0, &context);
    kvist_query_t query = {.name_space = one.name_space,
        .tokens = context.tokens,
        .extras = context.extras,
        .token_count = 4 * BLOCK_TOKENS,
        .mode = KVIST_MODE_READ};
    for (int round = 0; round < 3; round++) {
        kvist_lease_t *lease;
        kvist_match_t match;
        query.uncounted = round > 0;
        assert_int_equal(kvist_match(one.store, &query, &lease, &match), KV_OK);
        assert_int_equal(match.miss, KVIST_MISS_NEW);
        kvist_lease_release(lease);
        assert_int_equal(bench_stats(&one).miss_count[KVIST_MISS_NEW], 1);
    }
    kvist_lease_release(lease_to_store(&one));
    assert_int_equal(bench_stats(&one).miss_count[KVIST_MISS_BYPASSED], 0);
    served_pause(&service.served);
    kvist_stats_t stats;
    kvist_store_stats(kv_service_store(service.served.service, 0), &stats);
    assert_int_equal(stats.miss_count[KVIST_MISS_NEW], 1);
    assert_int_equal(stats.miss_count[KVIST_MISS_BYPASSED], 0);
    served_resume(&service.served);
    bench_end(&one);
    end_service(&service);
}

/* Stores and loads, from host memory and from disk, when the service ends, or stops and does not
 * come back: every callback runs, and what it says is so. */
static void end_under_way(bool stops)
{
    enum { COUNT = 64 };
    service_t service;
    bench_t one;
    context_t *contexts = calloc(COUNT, sizeof *contexts);
    kvist_lease_t *storing[COUNT], *loading[COUNT];
    transfer_t stored[COUNT], loaded[COUNT];
    static char back[COUNT][BLOCKS * 2048];
    begin_service(&service, stops ? "stops" : "ends", COUNT * BLOCKS / 2, 64);
    open_client(&one, &service, "one", 0);
    for (uint32_t i = 0; i < COUNT; i++) { /* half of them are on disk alone in the end */
        make_branch(&one, i + 1, 0, &contexts[i]);
        store_context(&one, &contexts[i], BLOCKS);
    }
    assert_int_equal(flush(&one), KV_OK);
    for (uint32_t i = 0; i < COUNT; i++) {
        kvist_match_t match;
        loading[i] = match_blocks(&one, &contexts[i], BLOCKS, &match);
        assert_int_equal(match.block_count, BLOCKS);
        storing[i] = lease_to_store(&one);
        make_branch(&one, 1000 + i, 0, &contexts[i]);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        loaded[i] = (transfer_t){0};
        const kvist_selection_t selection = {.block_count = BLOCKS};
        kvist_piece_t piece = {back[i], sizeof back[i]};
        assert_int_equal(
            kvist_lease_load(loading[i], &selection, &piece, 1, note_loaded, &loaded[i]), KV_OK);
        begin_store(storing[i], &contexts[i], 0, BLOCKS, contexts[i].bytes, &stored[i]);
        if (i == COUNT / 2) {
            kvist_store_poll(one.store);
        }
    }
    served_pause(&service.served);
    if (stops) {
        kv_attached_of(one.store)->bounds.lost_ms = 300;
    } else {
        kv_service_close(service.served.service);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        wait_transfer(&one, &loaded[i]);
        wait_transfer(&one, &stored[i]);
        assert_true(stored[i].status == KV_OK || stored[i].status == KV_PEER_LOST);
        assert_true(stored[i].status != KV_OK || stored[i].block_count == BLOCKS);
        assert_int_equal(loaded[i].status, KV_OK);
        assert_true(loaded[i].block_count == BLOCKS || loaded[i].miss == KVIST_MISS_FAILED);
        make_branch(&one, i + 1, 0, &contexts[i]);
        assert_memory_equal(back[i], contexts[i].bytes, (size_t)loaded[i].block_count * 2048);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        kvist_lease_release(storing[i]);
        kvist_lease_release(loading[i]);
    }
    bench_end(&one);
    if (stops) {
        served_resume(&service.served);
        end_service(&service);
    } else {
        bench_end(&service.host);
    }
    free(contexts);
}

static void every_callback_runs_when_the_service_ends(void **state)
{
    (void)state;
    end_under_way(false);
}

static void and_when_it_stops(void **state)
{
    (void)state;
    end_under_way(true);
}

/* Another engine's pages: one large opaque unit a layer, each in a place of its own. */
static void large_pages_lie_anywhere(void **state)
{
    (void)state;
    enum { LAYERS = 30, PAGE = 98304, PAGES = 6, UNUSED = 2 };
    service_t service;
    bench_t one;
    kvist_layout_t layout = {.block_tokens = BLOCK_TOKENS, .group_count = 1};
    layout.groups[0] = (kvist_group_t){.kind = KVIST_GROUP_FULL,
        .layers = {(1ull << LAYERS) - 1},
        .part_count = 1,
        .parts = {{KVIST_PART_OPAQUE, 1, PAGE, 1}}};
    bench_init(&service.host, "pages", 1);
    service.host.layout = layout;
    bench_with_host(&service.host, PAGES);
    bench_with_disk(&service.host, 4);
    service.host.params.segment_bytes = 64 << 20;
    service.host.params.disk_bytes = 128 << 20;
    served_init(&service.served, &service.host.params);
    served_start(&service.served);
    bench_init(&one, "engine", 1);
    one.layout = layout;
    one.params.attach = service.served.path;
    one.params.device = NULL;
    one.params.device_slot_count = 0;
    bench_open(&one);

    /* memory[layer][page]; block b of a context lies in page PAGES + UNUSED - 1 - b. */
    const size_t stride = (size_t)(PAGES + UNUSED) * PAGE;
    uint8_t *memory = malloc(LAYERS * stride);
    kvist_piece_t pieces[PAGES * LAYERS];
    for (uint32_t i = 0; i < PAGES * LAYERS; i++) {
        uint32_t page = PAGES + UNUSED - 1 - i / LAYERS;
        pieces[i] = (kvist_piece_t){memory + i % LAYERS * stride + (size_t)page * PAGE, PAGE};
    }
    uint32_t tokens[PAGES * BLOCK_TOKENS];
    for (uint32_t context = 0; context < 3; context++) { /* each pushes the one before it out */
        make_tokens(context, 0, tokens, PAGES * BLOCK_TOKENS);
        for (uint32_t i = 0; i < PAGES * LAYERS; i++) {
            memset(pieces[i].base, (int)(context * 181 + i), PAGE);
        }
        kvist_match_t match;
        kvist_lease_t *lease = match_tokens(&one, tokens, PAGES * BLOCK_TOKENS, &match);
        transfer_t stored = {0};
        const kvist_put_t put = {.block_count = PAGES, .deadline_ns = UINT64_MAX};
        assert_int_equal(
            kvist_lease_store(lease, &put, pieces, PAGES * LAYERS, note_stored, &stored), KV_OK);
        wait_transfer(&one, &stored);
        assert_int_equal(stored.status, KV_OK);
        kvist_lease_release(lease);
        assert_int_equal(flush(&one), KV_OK);
    }
    for (uint32_t context = 0; context < 3; context++) {
        make_tokens(context, 0, tokens, PAGES * BLOCK_TOKENS);
        memset(memory, 0xee, LAYERS * stride);
        kvist_match_t match;
        kvist_lease_t *lease = match_tokens(&one, tokens, PAGES * BLOCK_TOKENS, &match);
        assert_int_equal(match.block_count, PAGES);
        assert_int_equal(
            match.tier_blocks[context == 2 ? KVIST_TIER_HOST : KVIST_TIER_DISK], PAGES);
        transfer_t loaded = {0};
        const kvist_selection_t selection = {.block_count = PAGES};
        assert_int_equal(
            kvist_lease_load(lease, &selection, pieces, PAGES * LAYERS, note_loaded, &loaded),
            KV_OK);
        wait_transfer(&one, &loaded);
        assert_int_equal(loaded.block_count, PAGES);
        for (uint32_t i = 0; i < LAYERS * (PAGES + UNUSED); i++) {
            uint32_t layer = i / (PAGES + UNUSED), page = i % (PAGES + UNUSED);
            uint32_t piece = (PAGES + UNUSED - 1 - page) * LAYERS + layer;
            uint8_t expected = page < UNUSED ? 0xee : (uint8_t)(context * 181 + piece);
            const uint8_t *at = memory + layer * stride + (size_t)page * PAGE;
            assert_true(at[0] == expected && memcmp(at, at + 1, PAGE - 1) == 0);
        }
        kvist_lease_release(lease);
    }
    free(memory);
    bench_end(&one);
    end_service(&service);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_lease_stores_for_a_whole_request),
        cmocka_unit_test(stored_blocks_are_not_copied),
        cmocka_unit_test(a_parent_that_went_is_missing),
        cmocka_unit_test(release_cancels_stores),
        cmocka_unit_test(thousands_of_leases_store_at_once),
        cmocka_unit_test(a_second_look_up_is_not_counted),
        cmocka_unit_test(large_pages_lie_anywhere),
        cmocka_unit_test(every_callback_runs_when_the_service_ends),
        cmocka_unit_test(and_when_it_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
