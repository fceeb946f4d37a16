/* A store that is attached to its host's: found, loaded, stored and kept as an embedded one does,
 * with what other clients stored too. */
#include "attach_bench.h"

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

int main(void)
{
    static bool yes = true, no = false;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_one_client_stores_another_finds),
        cmocka_unit_test(a_selection_is_loaded_alone),
        cmocka_unit_test(what_left_host_memory_comes_from_disk),
        cmocka_unit_test_prestate(an_engine_finds_what_another_computed, &no),
        cmocka_unit_test_prestate(an_engine_finds_what_another_computed, &yes),
        cmocka_unit_test(closing_writes_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
