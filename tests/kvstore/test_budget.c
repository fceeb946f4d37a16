/* The write budget: what is spent, who is let in, what comes back, what a restart knows. The clock
 * is virtual. */
#include "timed.h"

enum { BLOCKS = 6, RECORD_BYTES = 8 << 10, A_DAY_S = 24 * 3600 };

/* A budget of so many records; 256 blocks fit in host memory unless said otherwise. */
static void budget_init(timed_t *timed, const char *name, uint32_t records)
{
    timed_init(timed, name, 16);
    timed->bench.params.write_bytes_per_day = (uint64_t)records * RECORD_BYTES;
    bench_with_host(&timed->bench, 256);
    bench_with_disk(&timed->bench, 16);
}

static void store_contexts(bench_t *bench, uint32_t first, uint32_t count)
{
    for (uint32_t context = first; context < first + count; context++) {
        request_context(bench, context, BLOCKS);
        assert_int_equal(flush(bench), KV_OK);
    }
}

static uint32_t on_disk(const bench_t *bench, uint32_t context)
{
    uint32_t count = 0;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        kvist_key_t key = block_key(bench, context, block);
        kvist_object_t object;
        count +=
            kvist_store_show(bench->store, &key, &object) == KV_OK && object.tiers[KVIST_TIER_DISK];
    }
    return count;
}

static uint32_t whole_on_disk(const bench_t *bench, uint32_t first, uint32_t count)
{
    uint32_t whole = 0;
    for (uint32_t context = first; context < first + count; context++) {
        uint32_t blocks = on_disk(bench, context);
        assert_true(blocks == 0 || blocks == BLOCKS); /* a chain, or nothing of it */
        whole += blocks == BLOCKS;
    }
    return whole;
}

static void new_chains_stop_at_a_quarter(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    budget_init(&timed, "quarter", 40);
    bench_open(bench);
    assert_int_equal(bench_stats(bench).write_left_bytes, 40 * RECORD_BYTES);
    store_contexts(bench, 0, 8);
    assert_int_equal(whole_on_disk(bench, 0, 5), 5);
    assert_int_equal(whole_on_disk(bench, 5, 3), 0);
    kvist_stats_t stats = bench_stats(bench);
    assert_int_equal(stats.not_admitted_objects, 3 * BLOCKS);
    assert_int_equal(stats.unsaved_objects, 3 * BLOCKS);
    assert_true(stats.segment_written_bytes >= 5ull * BLOCKS * RECORD_BYTES);
    assert_int_equal(
        stats.write_left_bytes + stats.segment_written_bytes, stats.write_budget_bytes);
    for (uint32_t context = 0; context < 8; context++) {
        assert_int_equal(found_blocks(bench, context, BLOCKS), BLOCKS);
    }
    check_accounts(bench);
    bench_end(bench);
}

static void what_is_asked_for_again_goes_first(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    budget_init(&timed, "again", 40);
    bench_open(bench);
    store_contexts(bench, 0, 7);
    assert_int_equal(whole_on_disk(bench, 5, 2), 0);
    store_contexts(bench, 6, 1); /* the same again */
    store_contexts(bench, 7, 1); /* a new one */
    assert_int_equal(on_disk(bench, 6), BLOCKS);
    assert_int_equal(on_disk(bench, 5) + on_disk(bench, 7), 0);
    /* What is left is less than a chain: the front of one goes, without a hole, and that is all. */
    store_contexts(bench, 5, 1);
    uint32_t front = on_disk(bench, 5);
    assert_in_range(front, 1, BLOCKS - 1);
    kvist_key_t last = block_key(bench, 5, front - 1);
    kvist_object_t object;
    assert_int_equal(kvist_store_show(bench->store, &last, &object), KV_OK);
    assert_true(object.tiers[KVIST_TIER_DISK]);
    assert_true(bench_stats(bench).write_left_bytes < RECORD_BYTES);
    store_contexts(bench, 7, 1);
    assert_int_equal(on_disk(bench, 7), 0);
    check_accounts(bench);
    bench_end(bench);
}

static void it_comes_back_evenly(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    budget_init(&timed, "evenly", 40);
    bench_open(bench);
    store_contexts(bench, 0, 8);
    uint64_t left = bench_stats(bench).write_left_bytes;
    for (int second = 0; second < 3600; second++) { /* small steps lose nothing */
        pass_s(&timed, 1);
        kvist_store_poll(bench->store);
    }
    assert_in_range(bench_stats(bench).write_left_bytes - left, 40 * RECORD_BYTES / 24 - 2,
        40 * RECORD_BYTES / 24);
    pass_s(&timed, 10 * A_DAY_S);
    assert_int_equal(bench_stats(bench).write_left_bytes, 40 * RECORD_BYTES); /* a day's at most */
    assert_int_equal(flush(bench), KV_OK); /* who was refused is judged again */
    assert_int_equal(whole_on_disk(bench, 0, 8), 8);
    assert_int_equal(bench_stats(bench).unsaved_objects, 0);
    bench_end(bench);
}

static void a_restart_keeps_it(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    budget_init(&timed, "restart", 40);
    bench_open(bench);
    store_contexts(bench, 0, 8);
    uint64_t left = bench_stats(bench).write_left_bytes;
    assert_true(left < 10 * RECORD_BYTES);
    bench_close(bench);
    bench_open(bench);
    assert_true(bench_stats(bench).write_left_bytes <= left);
    assert_in_range(bench_stats(bench).write_left_bytes, left - KV_SEGMENT_HEADER_BYTES, left);
    for (uint32_t context = 0; context < 8; context++) {
        assert_int_equal(found_blocks(bench, context, BLOCKS), context < 5 ? BLOCKS : 0);
    }
    store_contexts(bench, 8, 1);
    assert_int_equal(on_disk(bench, 8), 0);
    bench_close(bench);
    pass_s(&timed, A_DAY_S / 2); /* it comes back while nobody is there */
    bench_open(bench);
    assert_true(bench_stats(bench).write_left_bytes >= left + 19 * RECORD_BYTES);
    bench_close(bench);
    bench->params.write_bytes_per_day = 0;
    bench_open(bench);
    store_contexts(bench, 9, 20);
    assert_int_equal(whole_on_disk(bench, 9, 20), 20);
    assert_int_equal(bench_stats(bench).write_budget_bytes, 0);
    bench_end(bench);
}

static void what_is_pinned_is_always_admitted(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    budget_init(&timed, "pinned", 8);
    bench_open(bench);
    store_contexts(bench, 0, 4);
    assert_int_equal(on_disk(bench, 3), 0);
    kvist_key_t key = block_key(bench, 3, BLOCKS - 1);
    kvist_terms_t terms = {
        .pin_until_unix_ns = timed.clock.unix_ns + (uint64_t)A_DAY_S * KV_NS_PER_S};
    assert_int_equal(kvist_store_keep(bench->store, &key, &terms), KV_OK);
    assert_int_equal(flush(bench), KV_OK);
    assert_int_equal(on_disk(bench, 3), BLOCKS);
    assert_int_equal(bench_stats(bench).write_left_bytes, 0); /* overdrawn */
    pass_s(&timed, 60);
    assert_int_equal(bench_stats(bench).write_left_bytes, 0);
    store_contexts(bench, 2, 1);
    assert_true(on_disk(bench, 2) < BLOCKS);
    check_accounts(bench);
    bench_end(bench);
}

static bool is_stored(const bench_t *bench, uint32_t context)
{
    kvist_key_t key = block_key(bench, context, 0);
    kvist_object_t object;
    return kvist_store_show(bench->store, &key, &object) == KV_OK;
}

static kvist_miss_t why(bench_t *bench, uint32_t context)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_release(match_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS, &match));
    return match.miss;
}

/* Memory is too small for what the disk does not take. */
static void what_is_gone_says_why(void **state)
{
    (void)state;
    for (int persist = KVIST_PERSIST_EAGER; persist <= KVIST_PERSIST_SPILL; persist++) {
        timed_t timed;
        bench_t *bench = &timed.bench;
        budget_init(&timed, "gone", 48);
        bench_with_host(bench, 12);
        bench->params.persist = (kvist_persist_t)persist;
        bench_open(bench);
        for (uint32_t context = 0; context < 20; context++) {
            request_context(bench, context, BLOCKS); /* nobody waits for the disk: none hangs */
        }
        assert_int_equal(flush(bench), KV_OK);
        uint32_t gone = 0; /* looked for without asking, which would count */
        while (gone < 20 && is_stored(bench, gone)) {
            gone++;
        }
        assert_true(gone < 20);
        assert_int_equal(why(bench, gone), KVIST_MISS_NOT_ADMITTED);
        assert_int_equal(why(bench, 99), KVIST_MISS_NEW);
        assert_true(bench_stats(bench).miss_count[KVIST_MISS_NOT_ADMITTED] > 0);
        check_accounts(bench);
        /* Little comes back: not enough for a new chain, enough for one that was here before. */
        while (bench_stats(bench).write_left_bytes < (BLOCKS + 1) * RECORD_BYTES) {
            pass_s(&timed, 60);
        }
        assert_true(bench_stats(bench).write_left_bytes < 12 * RECORD_BYTES);
        request_context(bench, gone, BLOCKS);
        assert_int_equal(flush(bench), KV_OK);
        assert_int_equal(on_disk(bench, gone), BLOCKS);
        check_accounts(bench);
        bench_end(bench);
    }
}

/* Whatever comes, nobody waits in vain and the promises of room are kept or taken back. */
static void a_small_budget_holds_nobody_up(void **state)
{
    (void)state;
    uint64_t random = kv_test_seed();
    for (int persist = KVIST_PERSIST_EAGER; persist <= KVIST_PERSIST_SPILL; persist++) {
        timed_t timed;
        bench_t *bench = &timed.bench;
        budget_init(&timed, "small", 64);
        bench_with_host(bench, 24);
        bench_with_disk(bench, 3);
        bench->params.persist = (kvist_persist_t)persist;
        bench_open(bench);
        for (uint32_t round = 0; round < 300; round++) {
            uint32_t context = (uint32_t)(kv_test_random(&random) % 30);
            request_context(bench, context, 1 + (uint32_t)(kv_test_random(&random) % BLOCKS));
            pass_s(&timed, kv_test_random(&random) % 2000);
            uint64_t dice = kv_test_random(&random) % 40;
            if (dice == 0) {
                bench_close(bench);
                bench_open(bench);
            } else if (dice < 4) {
                assert_int_equal(flush(bench), KV_OK);
                check_accounts(bench);
            } else if (dice < 8) {
                outcome_t outcome = drop(bench, context, 0, dice == 5);
                assert_true(outcome.status == KV_OK || outcome.status == KV_MISSING);
            }
        }
        for (int day = 0; day < 5; day++) {
            pass_s(&timed, A_DAY_S);
            assert_int_equal(flush(bench), KV_OK);
        }
        assert_int_equal(bench_stats(bench).unsaved_objects, 0);
        pass_s(&timed, A_DAY_S);
        store_contexts(bench, 100, 4); /* no room is promised to the dead */
        assert_int_equal(whole_on_disk(bench, 100, 4), 4);
        check_accounts(bench);
        bench_end(bench);
    }
}

static void bounds_are_named(void **state)
{
    (void)state;
    timed_t timed;
    budget_init(&timed, "bounds", 7);
    kvist_store_t *store;
    kv_error_t error;
    assert_int_equal(kvist_store_open(&timed.bench.params, &store, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "write_bytes_per_day is 57344"));
    assert_non_null(strstr(error.text, "8 records"));
    timed.bench.params.write_bytes_per_day = UINT64_MAX;
    assert_int_equal(kvist_store_open(&timed.bench.params, &store, &error), KV_INVALID);
    bench_end(&timed.bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(new_chains_stop_at_a_quarter),
        cmocka_unit_test(what_is_asked_for_again_goes_first),
        cmocka_unit_test(it_comes_back_evenly),
        cmocka_unit_test(a_restart_keeps_it),
        cmocka_unit_test(what_is_pinned_is_always_admitted),
        cmocka_unit_test(what_is_gone_says_why),
        cmocka_unit_test(a_small_budget_holds_nobody_up),
        cmocka_unit_test(bounds_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
