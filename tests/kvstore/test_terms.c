/* Until when blocks are kept: limits to the second, promises that hold, both across restarts. The
 * clock is virtual. */
#include "timed.h"

enum { BLOCKS = 6 };

static kv_status_t keep(
    timed_t *timed, uint32_t context, uint32_t block, uint64_t expires_ns, uint64_t pin_ns)
{
    kvist_key_t key = block_key(&timed->bench, context, block);
    kvist_terms_t terms = {.expires_unix_ns = expires_ns, .pin_until_unix_ns = pin_ns};
    return kvist_store_keep(timed->bench.store, &key, &terms);
}

static kvist_object_t shown(timed_t *timed, uint32_t context, uint32_t block)
{
    kvist_key_t key = block_key(&timed->bench, context, block);
    kvist_object_t object;
    assert_int_equal(kvist_store_show(timed->bench.store, &key, &object), KV_OK);
    return object;
}

static kvist_match_t look(timed_t *timed, uint32_t context)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_release(match_tokens(&timed->bench, tokens, BLOCKS * BLOCK_TOKENS, &match));
    return match;
}

static void lose_index(const bench_t *bench)
{
    char command[600];
    snprintf(command, sizeof command, "rm -r '%s/index'", bench->folder);
    assert_int_equal(system(command), 0);
}

/* ---- expiry ---- */

static void an_expired_block_is_a_miss_to_the_second(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "expiry", 16);
    bench_with_disk(&timed.bench, 8);
    bench_open(&timed.bench);
    request_context(&timed.bench, 1, BLOCKS);
    request_context(&timed.bench, 2, BLOCKS);
    assert_int_equal(keep(&timed, 1, BLOCKS - 1, from_now_ns(&timed, 60), 0), KV_OK);
    pass_s(&timed, 59);
    kv_virtual_clock_advance(&timed.clock, KV_NS_PER_S - 1);
    assert_int_equal(look(&timed, 1).block_count, BLOCKS);
    kv_virtual_clock_advance(&timed.clock, 1);
    kvist_match_t match = look(&timed, 1);
    assert_int_equal(match.block_count, 0);
    assert_int_equal(match.miss, KVIST_MISS_EXPIRED);
    assert_int_equal(look(&timed, 1).miss, KVIST_MISS_EXPIRED); /* it was dropped, and is known */
    assert_int_equal(look(&timed, 2).block_count, BLOCKS);
    assert_int_equal(flush(&timed.bench), KV_OK);
    for (int lost = 0; lost < 2; lost++) {
        bench_close(&timed.bench);
        if (lost) {
            lose_index(&timed.bench);
        }
        bench_open(&timed.bench);
        assert_int_equal(look(&timed, 1).block_count, 0);
        assert_int_equal(look(&timed, 2).block_count, BLOCKS);
    }
    bench_end(&timed.bench);
}

static void a_limit_is_rounded_down_and_survives_restarts(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "limit", 16);
    bench_with_disk(&timed.bench, 8);
    bench_open(&timed.bench);
    request_context(&timed.bench, 1, BLOCKS);
    assert_int_equal(flush(&timed.bench), KV_OK); /* its record says nothing of a limit */
    assert_int_equal(keep(&timed, 1, 3, from_now_ns(&timed, 60) + KV_NS_PER_S - 1, 0), KV_OK);
    assert_int_equal(shown(&timed, 1, 3).expires_unix_ns, from_now_ns(&timed, 60));
    assert_int_equal(shown(&timed, 1, 4).expires_unix_ns, 0); /* after the block */
    assert_int_equal(flush(&timed.bench), KV_OK);
    bench_close(&timed.bench);
    bench_open(&timed.bench);
    assert_int_equal(shown(&timed, 1, 0).expires_unix_ns, from_now_ns(&timed, 60));
    pass_s(&timed, 60);
    bench_close(&timed.bench);
    bench_open(&timed.bench); /* expired while nobody was there */
    assert_int_equal(look(&timed, 1).block_count, 0);
    bench_end(&timed.bench);
}

static void a_limit_can_be_moved_and_taken_away(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "moved", 16);
    bench_with_disk(&timed.bench, 8);
    bench_open(&timed.bench);
    request_context(&timed.bench, 1, BLOCKS);
    assert_int_equal(keep(&timed, 1, BLOCKS - 1, from_now_ns(&timed, 60), 0), KV_OK);
    assert_int_equal(keep(&timed, 1, BLOCKS - 1, from_now_ns(&timed, 30), 0), KV_OK);
    assert_int_equal(shown(&timed, 1, 0).expires_unix_ns, from_now_ns(&timed, 30));
    assert_int_equal(keep(&timed, 1, BLOCKS - 1, 0, 0), KV_OK);
    pass_s(&timed, 100);
    assert_int_equal(look(&timed, 1).block_count, BLOCKS);
    assert_int_equal(keep(&timed, 3, 0, 0, 0), KV_MISSING);
    bench_end(&timed.bench);
}

/* Nobody asks for it, and yet it goes. */
static void the_sweep_drops_what_expired(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "sweep", 32);
    bench_with_disk(&timed.bench, 8);
    bench_open(&timed.bench);
    request_context(&timed.bench, 1, BLOCKS);
    request_context(&timed.bench, 2, BLOCKS);
    assert_int_equal(flush(&timed.bench), KV_OK);
    assert_int_equal(kv_sweep_due(timed.bench.store), UINT64_MAX); /* nothing to look for */
    assert_int_equal(keep(&timed, 1, BLOCKS - 1, from_now_ns(&timed, 60), 0), KV_OK);
    for (uint32_t second = 0; second < 59; second++) {
        pass_s(&timed, 1);
        kvist_store_poll(timed.bench.store);
        assert_int_equal(kv_table_count(timed.bench.store->table), 2 * BLOCKS);
    }
    pass_s(&timed, 1);
    kvist_store_poll(timed.bench.store);
    assert_int_equal(kv_table_count(timed.bench.store->table), BLOCKS);
    check_accounts(&timed.bench);
    pass_s(&timed, 1);
    kvist_store_poll(timed.bench.store);
    assert_int_equal(kv_sweep_due(timed.bench.store), UINT64_MAX);
    bench_end(&timed.bench);
}

/* What a lease holds when it expires stays its own to the end; nobody else finds it. */
static void a_lease_outlives_the_limit(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "outlives", 16);
    bench_open(&timed.bench);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_t *lease = serve(&timed.bench, tokens, BLOCKS, &match);
    assert_int_equal(keep(&timed, 1, BLOCKS - 1, from_now_ns(&timed, 5), 0), KV_OK);
    pass_s(&timed, 5);
    kvist_store_poll(timed.bench.store);
    assert_int_equal(look(&timed, 1).block_count, 0);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        kvist_key_t key = block_key(&timed.bench, 1, block);
        check_block(&timed.bench, &key, kvist_lease_slots(lease)[block]);
    }
    kvist_lease_release(lease);
    check_accounts(&timed.bench);
    bench_end(&timed.bench);
}

/* ---- pins ---- */

static void a_pin_holds_against_every_pressure_and_then_ends(void **state)
{
    (void)state;
    for (uint32_t host_slots = 0; host_slots < 16; host_slots += 15) {
        timed_t timed;
        timed_init(&timed, "pressure", 16);
        bench_with_host(&timed.bench, host_slots);
        bench_open(&timed.bench);
        request_context(&timed.bench, 1, BLOCKS);
        assert_int_equal(keep(&timed, 1, BLOCKS - 1, 0, from_now_ns(&timed, 100)), KV_OK);
        for (uint32_t context = 2; context < 40; context++) {
            request_context(&timed.bench, context, BLOCKS);
            pass_s(&timed, 1);
        }
        assert_int_equal(look(&timed, 1).block_count, BLOCKS);
        assert_int_equal(
            bench_stats(&timed.bench).pinned_bytes, BLOCKS * block_bytes(&timed.bench));
        /* A read revives nothing: from its end on it is like any other. */
        pass_s(&timed, 62);
        for (uint32_t context = 40; context < 50; context++) {
            request_context(&timed.bench, context, BLOCKS);
        }
        assert_true(look(&timed, 1).block_count < BLOCKS);
        pass_s(&timed, 1);
        kvist_store_poll(timed.bench.store);
        assert_int_equal(bench_stats(&timed.bench).pinned_bytes, 0);
        check_accounts(&timed.bench);
        bench_end(&timed.bench);
    }
}

static void a_pin_survives_a_restart(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "restart", 16);
    bench_with_disk(&timed.bench, 8);
    bench_open(&timed.bench);
    request_context(&timed.bench, 1, BLOCKS);
    assert_int_equal(flush(&timed.bench), KV_OK);
    uint64_t until_ns = from_now_ns(&timed, 100);
    assert_int_equal(keep(&timed, 1, 2, 0, until_ns - 1), KV_OK); /* rounded up */
    assert_int_equal(flush(&timed.bench), KV_OK);
    bench_close(&timed.bench);
    bench_open(&timed.bench);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        assert_int_equal(shown(&timed, 1, block).pin_until_unix_ns, block <= 2 ? until_ns : 0);
    }
    pass_s(&timed, 1);
    kvist_store_poll(timed.bench.store);
    assert_int_equal(bench_stats(&timed.bench).pinned_bytes, 3 * 2 * KV_PAGE_BYTES);
    bench_end(&timed.bench);
}

/* Pressure on a store whose last tier is memory: what is not pinned goes. */
static void press(timed_t *timed, uint32_t first_context)
{
    for (uint32_t context = first_context; context < first_context + 10; context++) {
        request_context(&timed->bench, context, BLOCKS);
    }
}

/* A match that renews, with a pin that ends when it says. */
static void renew(timed_t *timed, uint32_t context, uint64_t pin_ns)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_lease_t *lease;
    kvist_match_t match;
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_query_t query = {.name_space = timed->bench.name_space,
        .tokens = tokens,
        .token_count = BLOCKS * BLOCK_TOKENS,
        .terms.pin_until_unix_ns = pin_ns,
        .renew = true};
    assert_int_equal(kvist_match(timed->bench.store, &query, &lease, &match), KV_OK);
    assert_int_equal(match.block_count, BLOCKS);
    kvist_lease_release(lease);
}

static void an_ended_pin_is_not_revived_by_earlier_times(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "revived", 16);
    bench_open(&timed.bench);
    request_context(&timed.bench, 1, BLOCKS);
    uint64_t first_ns = from_now_ns(&timed, 50), end_ns = from_now_ns(&timed, 100);
    assert_int_equal(keep(&timed, 1, BLOCKS - 1, 0, end_ns), KV_OK);
    press(&timed, 2); /* it comes to be out of the way of evictions */
    pass_s(&timed, 99);
    press(&timed, 20);
    assert_int_equal(look(&timed, 1).block_count, BLOCKS);
    pass_s(&timed, 1);
    renew(&timed, 1, first_ns);
    renew(&timed, 1, end_ns);
    assert_int_equal(shown(&timed, 1, 0).pin_until_unix_ns, end_ns); /* which is over */
    press(&timed, 40);
    assert_true(look(&timed, 1).block_count < BLOCKS);
    check_accounts(&timed.bench);
    bench_end(&timed.bench);
}

static void a_pin_that_is_taken_away_holds_nothing_back(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "away", 16);
    bench_open(&timed.bench);
    request_context(&timed.bench, 1, BLOCKS);
    assert_int_equal(keep(&timed, 1, BLOCKS - 1, 0, from_now_ns(&timed, 100)), KV_OK);
    press(&timed, 2);
    assert_int_equal(keep(&timed, 1, BLOCKS - 1, 0, 0), KV_OK);
    check_accounts(&timed.bench);
    press(&timed, 20);
    assert_true(look(&timed, 1).block_count < BLOCKS);
    bench_end(&timed.bench);
}

/* On disk: what is pinned survives its segment, what was pinned does not. */
static void an_ended_pin_is_not_revived_by_a_restart(void **state)
{
    (void)state;
    for (int lost = 0; lost < 2; lost++) {
        timed_t timed;
        timed_init(&timed, "ended", 16);
        bench_with_disk(&timed.bench, 4);
        bench_open(&timed.bench);
        request_context(&timed.bench, 1, BLOCKS);
        request_context(&timed.bench, 2, BLOCKS);
        assert_int_equal(keep(&timed, 1, BLOCKS - 1, 0, from_now_ns(&timed, 100)), KV_OK);
        assert_int_equal(keep(&timed, 2, BLOCKS - 1, 0, from_now_ns(&timed, 200)), KV_OK);
        assert_int_equal(flush(&timed.bench), KV_OK);
        pass_s(&timed, 100);
        bench_close(&timed.bench);
        if (lost) {
            lose_index(&timed.bench);
        }
        bench_open(&timed.bench);
        pass_s(&timed, 1);
        kvist_store_poll(timed.bench.store);
        assert_int_equal(
            bench_stats(&timed.bench).pinned_bytes, BLOCKS * 2 * (uint64_t)KV_PAGE_BYTES);
        for (uint32_t context = 3; context < 43; context++) { /* more than the disk holds */
            request_context(&timed.bench, context, BLOCKS);
            assert_int_equal(flush(&timed.bench), KV_OK);
        }
        assert_int_equal(look(&timed, 1).block_count, 0);
        assert_int_equal(look(&timed, 2).block_count, BLOCKS);
        check_accounts(&timed.bench);
        bench_end(&timed.bench);
    }
}

static void terms_that_contradict_themselves_are_refused(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "refused", 16);
    bench_open(&timed.bench);
    request_context(&timed.bench, 1, BLOCKS);
    uint64_t soon = from_now_ns(&timed, 10), later = from_now_ns(&timed, 20);
    assert_int_equal(keep(&timed, 1, 0, 0, from_now_ns(&timed, 0)), KV_INVALID);
    assert_int_equal(keep(&timed, 1, 0, soon, later), KV_INVALID);
    assert_int_equal(keep(&timed, 1, 3, 0, later), KV_OK);
    assert_int_equal(keep(&timed, 1, 1, soon, 0), KV_INVALID); /* a promise further down */
    assert_int_equal(keep(&timed, 1, 1, later, 0), KV_OK);
    assert_int_equal(shown(&timed, 1, 1).pin_until_unix_ns, later); /* its descendant needs it */
    assert_int_equal(keep(&timed, 1, 9, 0, soon), KV_MISSING);
    bench_end(&timed.bench);
}

static void too_many_pins_are_refused(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "bound", 20);
    bench_open(&timed.bench);
    for (uint32_t context = 0; context < 3; context++) {
        request_context(&timed.bench, context, BLOCKS);
        assert_int_equal(keep(&timed, context, BLOCKS - 1, 0, from_now_ns(&timed, 50)), KV_OK);
    }
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(9, 0, tokens, BLOCKS * BLOCK_TOKENS);
    request(&timed.bench, tokens, 1); /* 19 of 20 slots would be pinned */
    assert_int_equal(keep(&timed, 9, 0, 0, from_now_ns(&timed, 50)), KV_NO_SPACE);
    assert_int_equal(shown(&timed, 9, 0).pin_until_unix_ns, 0);
    assert_int_equal(keep(&timed, 0, BLOCKS - 1, 0, from_now_ns(&timed, 90)), KV_OK); /* no more */
    assert_int_equal(keep(&timed, 1, BLOCKS - 1, 0, 0), KV_OK);
    assert_int_equal(keep(&timed, 9, 0, 0, from_now_ns(&timed, 50)), KV_OK);
    bench_end(&timed.bench);
}

/* ---- shared blocks ---- */

static void shared_blocks_keep_what_others_need(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "shared", 32);
    bench_open(&timed.bench);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_key_t mine[BLOCKS], theirs[BLOCKS];
    for (uint32_t context = 1; context < 3; context++) { /* three blocks in common */
        make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
        make_tokens(0, 0, tokens, 3 * BLOCK_TOKENS);
        request(&timed.bench, tokens, BLOCKS);
        kvist_keys(&timed.bench.name_space, tokens, NULL, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS,
            context == 1 ? mine : theirs);
    }
    kvist_store_t *store = timed.bench.store;
    uint64_t soon = from_now_ns(&timed, 10), later = from_now_ns(&timed, 20);
    kvist_terms_t terms = {.pin_until_unix_ns = later};
    assert_int_equal(kvist_store_keep(store, &theirs[BLOCKS - 1], &terms), KV_OK);
    terms = (kvist_terms_t){.expires_unix_ns = soon, .pin_until_unix_ns = soon};
    assert_int_equal(kvist_store_keep(store, &mine[BLOCKS - 1], &terms), KV_OK);
    kvist_object_t object;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        assert_int_equal(kvist_store_show(store, &mine[block], &object), KV_OK);
        assert_int_equal(object.expires_unix_ns, block < 3 ? 0 : soon);
        assert_int_equal(object.pin_until_unix_ns, block < 3 ? later : soon);
        assert_int_equal(kvist_store_show(store, &theirs[block], &object), KV_OK);
        assert_int_equal(object.expires_unix_ns, 0);
        assert_int_equal(object.pin_until_unix_ns, later);
    }
    bench_end(&timed.bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_expired_block_is_a_miss_to_the_second),
        cmocka_unit_test(a_limit_is_rounded_down_and_survives_restarts),
        cmocka_unit_test(a_limit_can_be_moved_and_taken_away),
        cmocka_unit_test(the_sweep_drops_what_expired),
        cmocka_unit_test(a_lease_outlives_the_limit),
        cmocka_unit_test(a_pin_holds_against_every_pressure_and_then_ends),
        cmocka_unit_test(a_pin_survives_a_restart),
        cmocka_unit_test(an_ended_pin_is_not_revived_by_earlier_times),
        cmocka_unit_test(a_pin_that_is_taken_away_holds_nothing_back),
        cmocka_unit_test(an_ended_pin_is_not_revived_by_a_restart),
        cmocka_unit_test(terms_that_contradict_themselves_are_refused),
        cmocka_unit_test(too_many_pins_are_refused),
        cmocka_unit_test(shared_blocks_keep_what_others_need),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
