/* A store that is attached to its host's: found, loaded, stored and kept as an embedded one does,
 * with what other clients stored too. */
#include "attach_bench.h"

#include "kvstore/service/service_internal.h"

static void what_one_client_stores_another_finds(void **state)
{
    (void)state;
    service_t service;
    bench_t one, two;
    context_t context;
    begin_service(&service, "shared", 64, 0);
    open_client(&one, &service, "one", 0);
    open_client(&two, &service, "two", 0);
    make_context(&one, 1, &context);
    assert_int_equal(store_context(&one, &context, 8), 0);
    kvist_match_t match = check_context(&two, &context, 8);
    assert_int_equal(match.tier_blocks[KVIST_TIER_HOST], 8);
    assert_int_equal(match.miss, KVIST_MISS_NONE);
    assert_int_equal(store_context(&two, &context, BLOCKS), 8);
    check_context(&one, &context, BLOCKS);
    kvist_lease_t *lease = match_blocks(&one, &context, BLOCKS, &match);
    assert_string_equal(kvist_lease_arithmetic(lease, 11), "test/plain");
    kvist_run_t run;
    assert_int_equal(kvist_lease_runs(lease, &run, 1), 1);
    assert_int_equal(run.block_count, BLOCKS);
    assert_int_equal(run.tier, KVIST_TIER_HOST);
    kvist_lease_release(lease);
    bench_end(&one);
    bench_end(&two);
    end_service(&service);
}

static void a_selection_is_loaded_alone(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    context_t context;
    kvist_match_t match;
    char back[2 * 1024];
    begin_service(&service, "selection", 64, 0);
    open_client(&one, &service, "one", 0);
    make_context(&one, 1, &context);
    store_context(&one, &context, 4);
    kvist_lease_t *lease = match_blocks(&one, &context, 4, &match);
    transfer_t loaded = load_blocks(&one, lease,
        (kvist_selection_t){.first_block = 1, .block_count = 2, .first_layer = 1, .layer_count = 1},
        back, sizeof back);
    assert_int_equal(loaded.block_count, 2);
    assert_memory_equal(back, context.bytes + 2048 + 1024, 1024);
    assert_memory_equal(back + 1024, context.bytes + 2 * 2048 + 1024, 1024);
    kvist_lease_release(lease);
    bench_end(&one);
    end_service(&service);
}

static void what_left_host_memory_comes_from_disk(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    context_t contexts[4];
    begin_service(&service, "disk", 2 * BLOCKS, 8);
    open_client(&one, &service, "one", 0);
    for (uint32_t i = 0; i < 4; i++) {
        make_context(&one, i + 1, &contexts[i]);
        store_context(&one, &contexts[i], BLOCKS);
        assert_int_equal(flush(&one), KV_OK);
    }
    kvist_match_t match = check_context(&one, &contexts[0], BLOCKS);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DISK], BLOCKS);
    for (uint32_t i = 0; i < 4; i++) {
        check_context(&one, &contexts[i], BLOCKS);
    }
    bench_end(&one);
    end_service(&service);
}

/* ---- device slots ---- */

static void an_engine_finds_what_another_computed(void **state)
{
    service_t service;
    bench_t one, two;
    begin_service(&service, "engines", 64, 0);
    open_client(&one, &service, "one", 16);
    open_client(&two, &service, "two", 16);
    one.ops.host = two.ops.host = *(const bool *)*state;
    kvist_match_t match = request_context(&one, 1, 8);
    assert_int_equal(match.block_count, 0);
    match = request_context(&one, 1, 8);
    assert_int_equal(match.block_count, 8);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DEVICE], 8);
    wait_written(&one);
    match = request_context(&two, 1, 12); /* which compares the bytes */
    assert_int_equal(match.block_count, 8);
    assert_int_equal(match.tier_blocks[KVIST_TIER_HOST], 8);
    match = request_context(&two, 1, 12);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DEVICE], 12);
    wait_written(&two);
    match = request_context(&one, 1, 12);
    assert_int_equal(match.block_count, 12);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DEVICE], 8);
    assert_int_equal(match.tier_blocks[KVIST_TIER_HOST], 4);
    bench_end(&one);
    bench_end(&two);
    end_service(&service);
}

/* ---- what another client is storing ---- */

/* One client has offered four blocks; another one begins to store them too. */
typedef struct {
    service_t service;
    raw_t raw;
    bench_t bench;
    context_t context;
    uint64_t checksums[4];
    kvist_lease_t *lease;
    transfer_t stored;
} race_t;

static bool is_waiting_for_another(service_t *service)
{
    served_pause(&service->served);
    bool is = service->served.service->domains[0].waiting != NULL;
    served_resume(&service->served);
    return is;
}

static void begin_race(race_t *race, const char *name)
{
    kvist_match_t match;
    memset(race, 0, sizeof *race);
    begin_service_limited(&race->service, name, 64, 0, (kv_service_limits_t){.still_ms = 60000});
    open_client(&race->bench, &race->service, "second", 0);
    make_context(&race->bench, 1, &race->context);
    raw_begin(&race->raw, race->service.served.path, &race->bench.layout);
    raw_match(&race->raw, &race->bench, 0, 1, 4, race->context.tokens);
    raw_expect_matched(&race->raw, 0, 0);
    raw_fill(&race->raw, &race->bench, race->context.tokens, 4, race->checksums);
    raw_put(&race->raw, 1, 0, 0, 4, NULL);
    raw_expect_done(&race->raw, 1, KV_MISSING, 0);

    race->lease = match_blocks(&race->bench, &race->context, 4, &match);
    assert_int_equal(match.miss, KVIST_MISS_PENDING);
    kvist_piece_t piece = {race->context.bytes, (size_t)4 * 2048};
    kvist_put_t put = {.block_count = 4, .deadline_ns = kv_clock_now_ns() + 60ull * KV_NS_PER_S};
    assert_int_equal(
        kvist_lease_store(race->lease, &put, &piece, 1, note_stored, &race->stored), KV_OK);
    uint64_t end_ns = patience_ns();
    while (!is_waiting_for_another(&race->service)) {
        assert_true(kv_clock_now_ns() < end_ns);
        bench_turn(&race->bench);
    }
    assert_false(race->stored.ended);
}

/* All is stored, and so many bytes of it were taken out of staging memory. */
static void end_race(race_t *race, uint64_t staged_bytes)
{
    wait_transfer(&race->bench, &race->stored);
    assert_int_equal(race->stored.status, KV_OK);
    assert_int_equal(race->stored.block_count, 4);
    kvist_lease_release(race->lease);
    check_context(&race->bench, &race->context, 4);
    bench_end(&race->bench);
    served_pause(&race->service.served);
    kv_service_stats_t stats;
    kv_service_stats(race->service.served.service, &stats);
    assert_int_equal(stats.staged_bytes, staged_bytes);
    served_resume(&race->service.served);
    end_service(&race->service);
}

static void what_another_client_is_storing_is_not_copied(void **state)
{
    (void)state;
    race_t race;
    begin_race(&race, "pending");
    raw_put(&race.raw, 2, 0, 0, 4, race.checksums);
    raw_expect_done(&race.raw, 2, KV_OK, 4);
    raw_end(&race.raw);
    end_race(&race, 4 * 2048);
}

static void what_another_client_gave_up_is_copied(void **state)
{
    (void)state;
    race_t race;
    begin_race(&race, "given-up");
    raw_put(&race.raw, 2, 0, 0, 1, race.checksums);
    raw_expect_done(&race.raw, 2, KV_OK, 1);
    raw_end(&race.raw);
    end_race(&race, 4 * 2048); /* one block of the first client's, three of the second's */
}

static void closing_writes_through(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    begin_service(&service, "closing", 64, 0);
    open_client(&one, &service, "one", 16);
    request_context(&one, 1, 12);
    bench_end(&one);
    open_client(&one, &service, "again", 16);
    kvist_match_t match = request_context(&one, 1, 12);
    assert_int_equal(match.tier_blocks[KVIST_TIER_HOST], 12);
    bench_end(&one);
    end_service(&service);
}

static void note_device_bytes(void *context, const kvist_tenant_t *tenant)
{
    *(uint64_t *)context += tenant->bytes[KVIST_TIER_DEVICE] + tenant->bytes[KVIST_TIER_HOST];
}

static void quotas_are_the_services(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    kv_error_t error;
    uint64_t bytes = 0;
    begin_service(&service, "quotas", 64, 0);
    open_client(&one, &service, "one", 16);
    request_context(&one, 1, 12);
    kvist_quota_t quota = {.tenant = "ann", .host_bytes = 1 << 20};
    assert_int_equal(kvist_store_set_quota(one.store, &quota, &error), KV_REFUSED);
    assert_non_null(strstr(error.text, "store.tenants"));
    kvist_store_tenants(one.store, note_device_bytes, &bytes);
    assert_int_equal(bytes, 12 * block_bytes(&one)); /* what is the client's own */
    bench_end(&one);
    end_service(&service);
}

int main(void)
{
    static bool yes = true, no = false;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_one_client_stores_another_finds),
        cmocka_unit_test(a_selection_is_loaded_alone),
        cmocka_unit_test(what_left_host_memory_comes_from_disk),
        cmocka_unit_test_prestate(an_engine_finds_what_another_computed, &no),
        cmocka_unit_test_prestate(an_engine_finds_what_another_computed, &yes),
        cmocka_unit_test(what_another_client_is_storing_is_not_copied),
        cmocka_unit_test(what_another_client_gave_up_is_copied),
        cmocka_unit_test(closing_writes_through),
        cmocka_unit_test(quotas_are_the_services),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
