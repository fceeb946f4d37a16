/* The quota at run time: more is used, less is given back, and nothing that somebody needs goes. */
#include "harness.h"

enum { BLOCKS = 6, MANY = 60 }; /* 60 contexts take six segments of 256 KiB */

static uint32_t count_files(const bench_t *bench)
{
    uint32_t count = 0;
    for (uint32_t number = 0; number < 40; number++) {
        char path[KV_SEGMENT_PATH_BYTES];
        kv_segment_path(bench->folder, number, path, sizeof path);
        count += access(path, F_OK) == 0;
    }
    return count;
}

static kv_status_t set_segments(bench_t *bench, uint32_t count)
{
    kv_error_t error;
    bench->params.disk_bytes = count * bench->params.segment_bytes;
    return kvist_store_set_disk_bytes(bench->store, bench->params.disk_bytes, &error);
}

/* Until there are so many files, and longer: it must stay so. */
static void wait_for_files(bench_t *bench, uint32_t count)
{
    uint64_t end_ns = patience_ns();
    while (count_files(bench) > count) {
        bench_wait(bench, end_ns);
    }
    for (int turn = 0; turn < 5; turn++) {
        bench_turn(bench);
    }
    assert_true(count_files(bench) <= count);
}

static void open_filled(bench_t *bench, const char *name, uint32_t segments)
{
    bench_init(bench, name, 16);
    bench_with_disk(bench, segments);
    bench_open(bench);
    for (uint32_t context = 0; context < MANY; context++) {
        request_context(bench, context, BLOCKS);
        assert_int_equal(flush(bench), KV_OK);
    }
}

static uint32_t count_whole(bench_t *bench, uint32_t first)
{
    uint32_t whole = 0;
    for (uint32_t context = first; context < MANY; context++) {
        whole += found_blocks(bench, context, BLOCKS) == BLOCKS;
    }
    return whole;
}

static void a_smaller_quota_gives_back_the_oldest(void **state)
{
    (void)state;
    bench_t bench;
    open_filled(&bench, "smaller", 20);
    assert_int_equal(count_whole(&bench, 0), MANY);
    uint32_t before = count_files(&bench);
    assert_true(before >= 12);
    assert_int_equal(set_segments(&bench, 4), KV_OK);
    wait_for_files(&bench, 4);
    check_accounts(&bench);
    kvist_stats_t stats = bench_stats(&bench);
    assert_int_equal(stats.tiers[KVIST_TIER_DISK].capacity_bytes, bench.params.disk_bytes);
    assert_true(stats.tiers[KVIST_TIER_DISK].used_bytes <= bench.params.disk_bytes);
    uint32_t whole = count_whole(&bench, 0), newest = count_whole(&bench, MANY - 8);
    assert_true(whole < MANY);
    assert_int_equal(newest, 8); /* the newest are there */
    bench_close(&bench);
    bench_open(&bench); /* with the smaller quota */
    assert_int_equal(count_whole(&bench, 0), whole);
    for (uint32_t context = 0; context < MANY; context++) { /* it goes on, within its bounds */
        request_context(&bench, context, BLOCKS);
    }
    assert_int_equal(flush(&bench), KV_OK);
    assert_true(count_files(&bench) <= 4);
    bench_end(&bench);
}

static void a_larger_quota_is_used_at_once(void **state)
{
    (void)state;
    bench_t bench;
    open_filled(&bench, "larger", 3);
    assert_true(count_whole(&bench, 0) < MANY / 2);
    assert_int_equal(set_segments(&bench, 20), KV_OK);
    for (uint32_t context = 0; context < MANY; context++) {
        request_context(&bench, context, BLOCKS);
        assert_int_equal(flush(&bench), KV_OK);
    }
    assert_int_equal(count_whole(&bench, 0), MANY);
    check_accounts(&bench);
    bench_end(&bench);
}

static void what_a_lease_holds_stays(void **state)
{
    (void)state;
    bench_t bench;
    open_filled(&bench, "leased", 20);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(0, 0, tokens, BLOCKS * BLOCK_TOKENS); /* in the oldest segment alone */
    kvist_lease_t *lease = match_tokens(&bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    assert_int_equal(match.block_count, BLOCKS);
    assert_int_equal(set_segments(&bench, 3), KV_OK);
    wait_for_files(&bench, 4);
    assert_int_equal(prepare(&bench, lease, BLOCKS).match.block_count, BLOCKS);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        kvist_key_t key = block_key(&bench, 0, block);
        check_block(&bench, &key, kvist_lease_slots(lease)[block]);
    }
    kvist_lease_release(lease);
    wait_for_files(&bench, 3);
    check_accounts(&bench);
    bench_end(&bench);
}

/* Up and down while contexts come and go. */
static void the_quota_may_change_at_any_time(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "changing", 16);
    bench_with_disk(&bench, 12);
    bench_open(&bench);
    uint64_t random = kv_test_seed();
    for (uint32_t round = 0; round < 300; round++) {
        request_context(&bench, (uint32_t)(kv_test_random(&random) % MANY), BLOCKS);
        if (kv_test_random(&random) % 4 == 0) {
            assert_int_equal(
                set_segments(&bench, 2 + (uint32_t)(kv_test_random(&random) % 14)), KV_OK);
        }
        if (kv_test_random(&random) % 50 == 0) {
            bench_close(&bench);
            bench_open(&bench);
        }
        kvist_store_poll(bench.store);
    }
    assert_int_equal(set_segments(&bench, 2), KV_OK);
    wait_for_files(&bench, 2);
    check_accounts(&bench);
    assert_int_equal(bench_stats(&bench).damaged_objects, 0);
    assert_int_equal(bench_stats(&bench).failed_writes, 0);
    bench_end(&bench);
}

static void bounds_are_named(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "bounds", 16);
    bench_open(&bench);
    kv_error_t error;
    assert_int_equal(kvist_store_set_disk_bytes(bench.store, 1 << 30, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "no disk tier"));
    bench_end(&bench);
    bench_init(&bench, "bounds", 16);
    bench_with_disk(&bench, 4);
    bench_open(&bench);
    assert_int_equal(kvist_store_set_disk_bytes(bench.store, 256 << 10, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "1 segments of 262144 bytes: they must be 2 to "));
    assert_int_equal(kvist_store_set_disk_bytes(bench.store, UINT64_MAX / 2, &error), KV_INVALID);
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_DISK].capacity_bytes, 4 * (256 << 10));
    bench_end(&bench);
}

static void a_quota_below_the_pins_is_refused(void **state)
{
    (void)state;
    bench_t bench;
    kvist_key_t keys[BLOCKS];
    kv_error_t error;
    open_filled(&bench, "pins", 8);
    kvist_terms_t forever = {.pin_until_unix_ns = UINT64_MAX};
    uint32_t pinned = 0;
    for (uint32_t context = 0; context < MANY; context++) {
        uint32_t tokens[BLOCKS * BLOCK_TOKENS];
        make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
        kvist_keys(&bench.name_space, tokens, NULL, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS, keys);
        pinned += kvist_store_keep(bench.store, &keys[BLOCKS - 1], &forever) == KV_OK;
    }
    assert_true(pinned > 0 && pinned < MANY); /* as many as may be */
    uint64_t segment_bytes = bench.params.segment_bytes;
    assert_int_equal(
        kvist_store_set_disk_bytes(bench.store, 2 * segment_bytes, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "pinned"));
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_DISK].capacity_bytes, 8 * segment_bytes);
    assert_int_equal(kvist_store_set_disk_bytes(bench.store, 9 * segment_bytes, &error), KV_OK);
    bench_end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_smaller_quota_gives_back_the_oldest),
        cmocka_unit_test(a_larger_quota_is_used_at_once),
        cmocka_unit_test(what_a_lease_holds_stays),
        cmocka_unit_test(the_quota_may_change_at_any_time),
        cmocka_unit_test(bounds_are_named),
        cmocka_unit_test(a_quota_below_the_pins_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
