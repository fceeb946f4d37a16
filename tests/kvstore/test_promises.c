/* What a gateway promises, against a real store with a virtual clock: a pin that each read renews,
 * a limit that nothing moves, what is refused; and contexts that are spilled on request. */
#include "timed.h"

enum { BLOCKS = 6, TTL_S = 300 };

static kvist_promise_t promise(
    timed_t *timed, uint32_t context, uint32_t block, uint64_t expires_ns, uint64_t pin_ns)
{
    kvist_key_t key = block_key(&timed->bench, context, block);
    kvist_terms_t terms = {.expires_unix_ns = expires_ns, .pin_until_unix_ns = pin_ns};
    kvist_promise_t promise;
    assert_true(kvist_store_promise(timed->bench.store, &key, &terms, NULL, NULL, &promise));
    return promise;
}

/* A request that has a breakpoint at the context's end, as a node serves it: whatever is missing is
 * computed, then the promise is asked for. Answers how much was found. */
static uint32_t read_with_ttl(timed_t *timed, uint32_t context)
{
    uint32_t found = request_context(&timed->bench, context, BLOCKS).block_count;
    uint64_t until_ns = from_now_ns(timed, TTL_S);
    kvist_promise_t held = promise(timed, context, BLOCKS - 1, 0, until_ns);
    assert_int_equal(held.status, KV_OK);
    assert_true(held.pin_until_unix_ns >= until_ns);
    return found;
}

/* More than memory holds, and there is nothing below. */
static void press(timed_t *timed, uint32_t first_context)
{
    for (uint32_t context = first_context; context < first_context + 10; context++) {
        request_context(&timed->bench, context, BLOCKS);
    }
}

/* ---- pins, as Anthropic's cache_control has them ---- */

static void a_read_at_4_59_renews_for_another_5_minutes(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "renewed", 16);
    bench_open(&timed.bench);
    assert_int_equal(read_with_ttl(&timed, 1), 0);
    press(&timed, 10);
    pass_s(&timed, TTL_S - 1);
    assert_int_equal(read_with_ttl(&timed, 1), BLOCKS);
    pass_s(&timed, TTL_S - 1); /* 9:58 after the first, 4:59 after the last */
    press(&timed, 30);
    assert_int_equal(found_blocks(&timed.bench, 1, BLOCKS), BLOCKS);
    check_accounts(&timed.bench);
    bench_end(&timed.bench);
}

static void without_a_read_by_5_01_the_pin_lets_go(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "let-go", 16);
    bench_open(&timed.bench);
    read_with_ttl(&timed, 1);
    pass_s(&timed, TTL_S - 1);
    read_with_ttl(&timed, 1);
    pass_s(&timed, TTL_S + 1);
    assert_int_equal(found_blocks(&timed.bench, 1, BLOCKS), BLOCKS); /* nobody wanted the room */
    press(&timed, 10);
    assert_true(found_blocks(&timed.bench, 1, BLOCKS) < BLOCKS);
    kvist_store_poll(timed.bench.store);
    assert_int_equal(bench_stats(&timed.bench).pinned_bytes, 0);
    bench_end(&timed.bench);
}

static void a_shorter_promise_takes_nothing_from_a_longer_one(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "longer", 16);
    bench_open(&timed.bench);
    request_context(&timed.bench, 1, BLOCKS);
    uint64_t hour_ns = from_now_ns(&timed, 3600);
    assert_int_equal(promise(&timed, 1, BLOCKS - 1, 0, hour_ns).pin_until_unix_ns, hour_ns);
    kvist_promise_t held = promise(&timed, 1, BLOCKS - 1, 0, from_now_ns(&timed, TTL_S));
    assert_int_equal(held.status, KV_OK);
    assert_int_equal(held.pin_until_unix_ns, hour_ns);
    held = promise(&timed, 1, 2, 0, from_now_ns(&timed, TTL_S)); /* what goes on from it has it */
    assert_int_equal(held.pin_until_unix_ns, hour_ns);
    /* Nor does what goes on from it. */
    request_context(&timed.bench, 2, BLOCKS);
    assert_int_equal(promise(&timed, 2, 1, 0, hour_ns).status, KV_OK);
    assert_int_equal(promise(&timed, 2, BLOCKS - 1, 0, from_now_ns(&timed, TTL_S)).status, KV_OK);
    assert_int_equal(promise(&timed, 2, 1, 0, 0).pin_until_unix_ns, hour_ns);
    assert_int_equal(
        promise(&timed, 2, BLOCKS - 1, from_now_ns(&timed, TTL_S), 0).status, KV_OK); /* a limit */
    assert_int_equal(promise(&timed, 2, 1, 0, 0).expires_unix_ns, 0);
    pass_s(&timed, 3600); /* over: what comes then is a promise of its own */
    held = promise(&timed, 1, BLOCKS - 1, 0, from_now_ns(&timed, TTL_S));
    assert_int_equal(held.pin_until_unix_ns, from_now_ns(&timed, TTL_S));
    bench_end(&timed.bench);
}

/* ---- limits, as Gemini's cachedContents have them ---- */

static void a_limit_ends_at_its_time_whatever_was_read(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "limit", 32);
    bench_with_disk(&timed.bench, 8);
    bench_open(&timed.bench);
    request_context(&timed.bench, 1, BLOCKS);
    uint64_t end_ns = from_now_ns(&timed, 60);
    assert_int_equal(promise(&timed, 1, BLOCKS - 1, end_ns, 0).expires_unix_ns, end_ns);
    for (uint32_t second = 0; second < 60; second++) {
        assert_int_equal(request_context(&timed.bench, 1, BLOCKS).block_count, BLOCKS);
        pass_s(&timed, 1);
        kvist_promise_t held = promise(&timed, 1, BLOCKS - 1, 0, 0); /* asks for nothing */
        assert_int_equal(held.status, second < 59 ? KV_OK : KV_MISSING);
        assert_int_equal(held.expires_unix_ns, second < 59 ? end_ns : 0);
    }
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_release(match_tokens(&timed.bench, tokens, BLOCKS * BLOCK_TOKENS, &match));
    assert_int_equal(match.block_count, 0);
    assert_int_equal(match.miss, KVIST_MISS_EXPIRED);
    bench_end(&timed.bench);
}

static void what_cannot_be_promised_is_said(void **state)
{
    (void)state;
    timed_t timed;
    timed_init(&timed, "refused", 20);
    bench_open(&timed.bench);
    uint64_t soon_ns = from_now_ns(&timed, 10), later_ns = from_now_ns(&timed, 20);
    assert_int_equal(promise(&timed, 1, 0, 0, soon_ns).status, KV_MISSING);
    for (uint32_t context = 1; context <= 3; context++) {
        request_context(&timed.bench, context, BLOCKS);
        assert_int_equal(promise(&timed, context, BLOCKS - 1, 0, later_ns).status, KV_OK);
    }
    uint32_t tokens[2 * BLOCK_TOKENS];
    make_tokens(9, 0, tokens, BLOCK_TOKENS);
    request(&timed.bench, tokens, 1); /* 19 of 20 slots would be pinned */
    kvist_promise_t held = promise(&timed, 9, 0, 0, later_ns);
    assert_int_equal(held.status, KV_NO_SPACE);
    assert_int_equal(held.pin_until_unix_ns, 0);
    assert_int_equal(promise(&timed, 1, 0, soon_ns, 0).status, KV_INVALID); /* it is promised */
    assert_int_equal(promise(&timed, 9, 0, soon_ns, 0).status, KV_OK);
    assert_int_equal(promise(&timed, 9, 0, 0, later_ns).status, KV_INVALID); /* beyond its limit */
    make_tokens(9, 0, tokens, 2 * BLOCK_TOKENS);
    request(&timed.bench, tokens, 2);
    assert_int_equal(promise(&timed, 9, 1, 0, later_ns).status, KV_INVALID); /* or an ancestor's */
    bench_end(&timed.bench);
}

/* ---- spilled on request ---- */

typedef struct {
    bool ended;
    kv_status_t status;
    uint64_t object_count, bytes;
} spilled_t;

static void note_spilled(void *context, kv_status_t status, uint64_t object_count, uint64_t bytes)
{
    *(spilled_t *)context = (spilled_t){true, status, object_count, bytes};
}

static spilled_t spill(bench_t *bench, const kvist_key_t *key)
{
    spilled_t spilled = {0};
    kvist_store_spill(bench->store, key, note_spilled, &spilled);
    assert_false(spilled.ended); /* never before the call returns */
    uint64_t end_ns = patience_ns();
    while (!spilled.ended) {
        bench_wait(bench, end_ns);
    }
    return spilled;
}

/* Blocks of the context in each tier, the fastest that has them. */
static kvist_match_t look(bench_t *bench, const uint32_t *tokens, uint32_t blocks)
{
    kvist_match_t match;
    kvist_lease_release(match_tokens(bench, tokens, (size_t)blocks * BLOCK_TOKENS, &match));
    return match;
}

static void a_spilled_context_is_on_disk_alone_and_comes_back(void **state)
{
    (void)state;
    for (uint32_t host_slots = 0; host_slots <= 8; host_slots += 8) {
        bench_t bench;
        uint32_t tokens[BLOCKS * BLOCK_TOKENS];
        bench_init(&bench, "spilled", 16);
        bench_with_host(&bench, host_slots);
        bench_with_disk(&bench, 8);
        bench_open(&bench);
        make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
        request(&bench, tokens, BLOCKS);
        request_context(&bench, 2, BLOCKS);
        kvist_key_t key = block_key(&bench, 1, BLOCKS - 1);
        spilled_t spilled = spill(&bench, &key);
        assert_int_equal(spilled.status, KV_OK);
        assert_int_equal(spilled.object_count, BLOCKS);
        assert_true(spilled.bytes >= BLOCKS * block_bytes(&bench));
        kvist_match_t match = look(&bench, tokens, BLOCKS);
        assert_int_equal(match.tier_blocks[KVIST_TIER_DISK], BLOCKS);
        assert_int_equal(found_blocks(&bench, 2, BLOCKS), BLOCKS); /* as it was */
        check_accounts(&bench);
        match = request(&bench, tokens, BLOCKS); /* proves the bytes */
        assert_int_equal(match.block_count, BLOCKS);
        assert_int_equal(look(&bench, tokens, BLOCKS).tier_blocks[KVIST_TIER_DEVICE], BLOCKS);
        assert_int_equal(spill(&bench, &key).object_count, BLOCKS); /* and again */
        check_accounts(&bench);
        bench_end(&bench);
    }
}

/* Tree search: three blocks in common, two branches. */
static void a_common_prefix_leaves_with_the_last_branch(void **state)
{
    (void)state;
    bench_t bench;
    uint32_t tokens[2][BLOCKS * BLOCK_TOKENS];
    kvist_key_t keys[2][BLOCKS];
    bench_init(&bench, "branches", 32);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    for (uint32_t branch = 0; branch < 2; branch++) {
        make_tokens(branch + 1, 0, tokens[branch], BLOCKS * BLOCK_TOKENS);
        make_tokens(0, 0, tokens[branch], 3 * BLOCK_TOKENS);
        bench_keys(&bench, tokens[branch], BLOCKS * BLOCK_TOKENS, keys[branch]);
        kvist_match_t match = request(&bench, tokens[branch], BLOCKS);
        assert_int_equal(match.block_count, branch * 3); /* one copy */
    }
    assert_int_equal(spill(&bench, &keys[0][BLOCKS - 1]).object_count, 3);
    kvist_match_t match = look(&bench, tokens[0], BLOCKS);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DEVICE], 3);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DISK], 3);
    assert_int_equal(look(&bench, tokens[1], BLOCKS).tier_blocks[KVIST_TIER_DEVICE], BLOCKS);
    assert_int_equal(spill(&bench, &keys[1][BLOCKS - 1]).object_count, BLOCKS);
    assert_int_equal(look(&bench, tokens[0], BLOCKS).tier_blocks[KVIST_TIER_DISK], BLOCKS);
    check_accounts(&bench);
    bench_end(&bench);
}

static void what_is_held_or_has_no_disk_stays(void **state)
{
    (void)state;
    bench_t bench;
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    for (int disk = 0; disk < 2; disk++) {
        bench_init(&bench, "stays", 16);
        if (disk) {
            bench_with_disk(&bench, 8);
        }
        bench_open(&bench);
        make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
        kvist_lease_t *lease = serve(&bench, tokens, BLOCKS, &match);
        kvist_key_t key = block_key(&bench, 1, BLOCKS - 1), other = block_key(&bench, 9, 0);
        spilled_t spilled = spill(&bench, &key);
        assert_int_equal(spilled.status, disk ? KV_OK : KV_NO_SPACE);
        assert_int_equal(spilled.object_count, 0);
        kvist_lease_release(lease);
        assert_int_equal(look(&bench, tokens, BLOCKS).tier_blocks[KVIST_TIER_DEVICE], BLOCKS);
        assert_int_equal(spill(&bench, &key).object_count, disk ? BLOCKS : 0);
        assert_int_equal(spill(&bench, &other).status, KV_MISSING);
        check_accounts(&bench);
        bench_end(&bench);
    }
}

/* Closing waits for it. */
static void a_store_that_closes_ends_its_spills(void **state)
{
    (void)state;
    bench_t bench;
    spilled_t spilled = {0};
    bench_init(&bench, "closes", 16);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    request_context(&bench, 1, BLOCKS);
    kvist_key_t key = block_key(&bench, 1, BLOCKS - 1);
    kvist_store_spill(bench.store, &key, note_spilled, &spilled);
    bench_close(&bench);
    assert_true(spilled.ended);
    bench_end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_read_at_4_59_renews_for_another_5_minutes),
        cmocka_unit_test(without_a_read_by_5_01_the_pin_lets_go),
        cmocka_unit_test(a_shorter_promise_takes_nothing_from_a_longer_one),
        cmocka_unit_test(a_limit_ends_at_its_time_whatever_was_read),
        cmocka_unit_test(what_cannot_be_promised_is_said),
        cmocka_unit_test(a_spilled_context_is_on_disk_alone_and_comes_back),
        cmocka_unit_test(a_common_prefix_leaves_with_the_last_branch),
        cmocka_unit_test(what_is_held_or_has_no_disk_stays),
        cmocka_unit_test(a_store_that_closes_ends_its_spills),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
