/* Why something is not found: each reason by a run that makes it so, with by whom and when; and the
 * history's bounds. The clock is virtual. */
#include "timed.h"

#include "kvstore/history.h"

enum { BLOCKS = 6 };

/* Tokens of context 1 up to `shared`, then of their own. */
static void fork_tokens(uint32_t context, uint32_t shared, uint32_t *tokens)
{
    make_tokens(1, 0, tokens, (size_t)BLOCKS * BLOCK_TOKENS);
    for (uint32_t i = shared; i < BLOCKS * BLOCK_TOKENS; i++) {
        tokens[i] = 50000 + context; /* no token of a context */
    }
}

/* A request that stores all of its blocks. */
static void store_tokens(bench_t *bench, const uint32_t *tokens, const kvist_query_t *like)
{
    kvist_query_t query = *like;
    query.name_space = bench->name_space;
    query.tokens = tokens;
    query.token_count = (size_t)BLOCKS * BLOCK_TOKENS;
    kvist_match_t match;
    kvist_lease_t *lease;
    assert_int_equal(kvist_match(bench->store, &query, &lease, &match), KV_OK);
    assert_int_equal(prepare(bench, lease, BLOCKS).status, KV_OK);
    for (uint32_t block = kvist_lease_sealed_count(lease); block < BLOCKS; block++) {
        assert_int_equal(
            kvist_lease_seal(lease, tokens + (size_t)block * BLOCK_TOKENS, NULL, "test/plain"),
            KV_OK);
    }
    kvist_lease_release(lease);
}

static void store_context(bench_t *bench, uint32_t context, const kvist_query_t *like)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    store_tokens(bench, tokens, like);
}

static kvist_match_t match_of(bench_t *bench, const uint32_t *tokens, size_t count)
{
    kvist_match_t match;
    kvist_query_t query = {.name_space = bench->name_space,
        .tokens = tokens,
        .token_count = count,
        .mode = KVIST_MODE_READ};
    kvist_lease_t *lease;
    assert_int_equal(kvist_match(bench->store, &query, &lease, &match), KV_OK);
    kvist_lease_release(lease);
    return match;
}

static kvist_why_t why_tokens(bench_t *bench, const uint32_t *tokens, size_t count)
{
    kvist_why_query_t query = {.name_space = bench->name_space,
        .tokens = tokens,
        .token_count = count,
        .all_name_spaces = true};
    kvist_why_t why;
    assert_int_equal(kvist_why(bench->store, &query, &why), KV_OK);
    return why;
}

/* The match and kvist_why agree. */
static kvist_match_t why_context(bench_t *bench, uint32_t context)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_why_t why = why_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_match_t match = match_of(bench, tokens, BLOCKS * BLOCK_TOKENS);
    assert_int_equal(why.match.block_count, match.block_count);
    assert_int_equal(why.match.miss, match.miss);
    assert_int_equal(why.match.detail.block, match.detail.block);
    return match;
}

static void check_maker(const kvist_miss_detail_t *detail, const kvist_query_t *maker)
{
    assert_true(detail->maker_known);
    assert_string_equal(detail->tenant, maker->terms.tenant);
    assert_string_equal(detail->origin, "test-node");
    assert_int_equal(detail->priority, maker->terms.priority);
    assert_int_equal(detail->request, maker->request);
}

static const kvist_query_t LIGHT = {.terms.priority = KVIST_PRIORITY_BATCH};
static const kvist_query_t HEAVY = {
    .terms = {.tenant = "heavy", .priority = KVIST_PRIORITY_BATCH}, .request = 77};

/* ---- what went ---- */

static void what_made_room_is_named(void **state)
{
    (void)state;
    for (int tier = KVIST_TIER_DEVICE; tier <= KVIST_TIER_HOST; tier++) {
        timed_t timed;
        bench_t *bench = &timed.bench;
        timed_init(&timed, "room", 2 * BLOCKS);
        bench_with_host(bench, tier == KVIST_TIER_HOST ? 2 * BLOCKS : 0);
        bench_open(bench);
        store_context(bench, 1, &LIGHT);
        uint64_t gone_ns = pass_s(&timed, 100);
        for (uint32_t context = 2; context < 8; context++) {
            store_context(bench, context, &HEAVY);
        }
        pass_s(&timed, 100);
        kvist_match_t match = why_context(bench, 1);
        assert_int_equal(match.miss, KVIST_MISS_EVICTED);
        assert_int_equal(match.block_count, 0);
        assert_int_equal(match.detail.tier, tier);
        assert_false(match.detail.dropped);
        assert_int_equal(match.detail.when_unix_ns, gone_ns);
        check_maker(&match.detail, &HEAVY);
        bench_end(bench);
    }
}

/* The segments of the disk go round; the last writer is named. */
static void what_dies_with_its_segment_is_known(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    timed_init(&timed, "segment", 4 * BLOCKS);
    bench_with_disk(bench, 4);
    bench_open(bench);
    store_context(bench, 1, &LIGHT);
    uint64_t gone_ns = pass_s(&timed, 100);
    for (uint32_t context = 2; context < 40; context++) {
        store_context(bench, context, &HEAVY);
        assert_int_equal(flush(bench), KV_OK);
    }
    kvist_match_t match = why_context(bench, 1);
    assert_int_equal(match.miss, KVIST_MISS_EVICTED);
    assert_int_equal(match.detail.tier, KVIST_TIER_DISK);
    assert_int_equal(match.detail.when_unix_ns, gone_ns);
    assert_string_equal(match.detail.tenant, "heavy");
    bench_end(bench);
}

static void what_was_dropped_or_expired_is_known(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    timed_init(&timed, "dropped", 4 * BLOCKS);
    bench_with_disk(bench, 8);
    bench_open(bench);
    store_context(bench, 1, &(kvist_query_t){0});
    store_context(bench, 2, &(kvist_query_t){.terms.expires_unix_ns = (NOW_S + 50) * KV_NS_PER_S});
    assert_int_equal(drop(bench, 1, 3, false).status, KV_OK);
    kvist_match_t match = why_context(bench, 1);
    assert_int_equal(match.block_count, 3);
    assert_int_equal(match.miss, KVIST_MISS_EVICTED);
    assert_true(match.detail.dropped);
    assert_false(match.detail.maker_known);
    assert_int_equal(match.detail.block, 3);
    assert_int_equal(match.detail.when_unix_ns, NOW_S * KV_NS_PER_S);
    uint64_t gone_ns = pass_s(&timed, 60);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(2, 0, tokens, BLOCKS * BLOCK_TOKENS);
    assert_int_equal(
        why_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS).match.miss, KVIST_MISS_EXPIRED);
    assert_int_equal(match_of(bench, tokens, BLOCKS * BLOCK_TOKENS).miss, KVIST_MISS_EXPIRED);
    pass_s(&timed, 60);
    match = why_context(bench, 2); /* gone by now, and known */
    assert_int_equal(match.miss, KVIST_MISS_EXPIRED);
    assert_int_equal(match.detail.when_unix_ns, gone_ns);
    bench_end(bench);
}

static void damage_is_known_after_it_was_found(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    timed_init(&timed, "damage", 2 * BLOCKS);
    bench_with_disk(bench, 8);
    bench_open(bench);
    store_context(bench, 1, &(kvist_query_t){0});
    assert_int_equal(flush(bench), KV_OK);
    bench_close(bench);
    bench_open(bench);
    damage_record(bench, 1, 2, KV_PAGE_BYTES + 100);
    pass_s(&timed, 10);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_match_t match;
    kvist_lease_t *lease = match_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    assert_int_equal(match.block_count, BLOCKS);
    outcome_t outcome = prepare(bench, lease, BLOCKS);
    assert_int_equal(outcome.match.miss, KVIST_MISS_DAMAGED);
    assert_int_equal(outcome.match.detail.block, 2);
    assert_int_equal(outcome.match.detail.when_unix_ns, timed.clock.unix_ns);
    kvist_lease_release(lease);
    uint64_t gone_ns = timed.clock.unix_ns;
    pass_s(&timed, 10);
    match = why_context(bench, 1);
    assert_int_equal(match.block_count, 2);
    assert_int_equal(match.miss, KVIST_MISS_DAMAGED);
    assert_int_equal(match.detail.when_unix_ns, gone_ns);
    bench_end(bench);
}

/* What is found again later is no miss; when it goes again, the latest reason counts. */
static void what_came_back_goes_for_its_latest_reason(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    timed_init(&timed, "again", 2 * BLOCKS);
    bench_open(bench);
    store_context(bench, 1, &LIGHT);
    assert_int_equal(drop(bench, 1, 0, false).status, KV_OK);
    assert_true(why_context(bench, 1).detail.dropped);
    store_context(bench, 1, &LIGHT);
    assert_int_equal(why_context(bench, 1).miss, KVIST_MISS_NONE);
    pass_s(&timed, 5);
    store_context(bench, 2, &HEAVY);
    store_context(bench, 3, &HEAVY);
    kvist_match_t match = why_context(bench, 1);
    assert_int_equal(match.miss, KVIST_MISS_EVICTED);
    assert_false(match.detail.dropped);
    check_maker(&match.detail, &HEAVY);
    bench_end(bench);
}

/* ---- what never was ---- */

static void new_says_since_when_that_is_known(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    timed_init(&timed, "new", 2 * BLOCKS);
    bench_with_disk(bench, 8);
    bench->params.history_bytes = 40ull * 8; /* eight blocks */
    bench_open(bench);
    uint64_t opened_ns = timed.clock.unix_ns;
    pass_s(&timed, 10);
    kvist_match_t match = why_context(bench, 1);
    assert_int_equal(match.miss, KVIST_MISS_NEW);
    assert_int_equal(match.detail.when_unix_ns, opened_ns);
    store_context(bench, 1, &(kvist_query_t){0});
    store_context(bench, 2, &(kvist_query_t){0});
    assert_int_equal(drop(bench, 1, 0, false).status, KV_OK);
    uint64_t second_ns = pass_s(&timed, 10);
    assert_int_equal(drop(bench, 2, 0, false).status, KV_OK);
    assert_int_equal(bench_stats(bench).history_entries, 8);
    assert_int_equal(bench_stats(bench).history_forgotten, 2 * BLOCKS - 8);
    match = why_context(bench, 3); /* two blocks of context 1 are remembered, its leaves not */
    assert_int_equal(match.detail.when_unix_ns, second_ns - 10ull * KV_NS_PER_S);
    assert_int_equal(why_context(bench, 2).miss, KVIST_MISS_EVICTED);
    bench_close(bench);
    opened_ns = pass_s(&timed, 10);
    bench_open(bench);
    pass_s(&timed, 10);
    match = why_context(bench, 2); /* a restart forgets, and says so */
    assert_int_equal(match.miss, KVIST_MISS_NEW);
    assert_int_equal(match.detail.when_unix_ns, opened_ns);
    bench_end(bench);
}

static void short_and_bypassed_say_no_more(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    timed_init(&timed, "short", 2 * BLOCKS);
    bench_open(bench);
    store_context(bench, 1, &(kvist_query_t){0});
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_why_t why = why_tokens(bench, tokens, 2 * BLOCK_TOKENS + 3);
    assert_int_equal(why.match.miss, KVIST_MISS_SHORT);
    assert_int_equal(why.match.block_count, 2);
    kvist_query_t query = {.name_space = bench->name_space,
        .tokens = tokens,
        .token_count = BLOCKS * BLOCK_TOKENS,
        .mode = KVIST_MODE_BYPASS};
    kvist_lease_t *lease;
    kvist_match_t match;
    assert_int_equal(kvist_match(bench->store, &query, &lease, &match), KV_OK);
    assert_int_equal(match.miss, KVIST_MISS_BYPASSED);
    kvist_lease_release(lease);
    bench_end(bench);
}

static void what_is_being_stored_is_pending(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    timed_init(&timed, "pending", 2 * BLOCKS);
    bench_open(bench);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_t *lease = match_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    assert_int_equal(why_context(bench, 1).miss, KVIST_MISS_PENDING);
    kvist_lease_release(lease);
    assert_int_equal(why_context(bench, 1).miss, KVIST_MISS_NEW);
    /* Two leases of one request, as nodes that share a store take them. */
    kvist_query_t query = {.name_space = bench->name_space,
        .tokens = tokens,
        .token_count = BLOCKS * BLOCK_TOKENS,
        .request = 5};
    kvist_lease_t *other;
    assert_int_equal(kvist_match(bench->store, &query, &lease, &match), KV_OK);
    assert_int_equal(kvist_match(bench->store, &query, &other, &match), KV_OK);
    assert_int_equal(match.miss, KVIST_MISS_NEW);
    kvist_lease_release(other);
    query.request = 6;
    assert_int_equal(kvist_match(bench->store, &query, &other, &match), KV_OK);
    assert_int_equal(match.miss, KVIST_MISS_PENDING);
    kvist_lease_release(other);
    kvist_lease_release(lease);
    bench_end(bench);
}

/* ---- what parted from another context ---- */

static void check_parting(const kvist_match_t *match, uint32_t token, const kvist_key_t *other)
{
    assert_int_equal(match->miss, KVIST_MISS_DIVERGED);
    assert_true(match->detail.token_known);
    assert_int_equal(match->detail.token, token);
    assert_memory_equal(&match->detail.other, other, sizeof *other);
}

static void the_first_token_that_differs_is_told(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    timed_init(&timed, "parting", 8 * BLOCKS);
    bench_open(bench);
    store_context(bench, 1, &(kvist_query_t){0});
    static const uint32_t SHARED[] = {1, 15, 16, 17, 31, 40, 5 * BLOCK_TOKENS + 15};
    for (size_t i = 0; i < sizeof SHARED / sizeof *SHARED; i++) {
        uint32_t tokens[BLOCKS * BLOCK_TOKENS];
        fork_tokens((uint32_t)i, SHARED[i], tokens);
        kvist_match_t match = match_of(bench, tokens, BLOCKS * BLOCK_TOKENS);
        kvist_key_t other = block_key(bench, 1, SHARED[i] / BLOCK_TOKENS);
        check_parting(&match, SHARED[i], &other);
        match = why_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS).match;
        check_parting(&match, SHARED[i], &other);
        uint32_t stored[BLOCK_TOKENS], first = SHARED[i] / BLOCK_TOKENS * BLOCK_TOKENS;
        make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
        assert_int_equal(kvist_store_tokens(bench->store, &other, stored, NULL), KV_OK);
        assert_memory_equal(stored, tokens + first, sizeof stored);
    }
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    fork_tokens(9, 0, tokens); /* shares nothing with anything */
    assert_int_equal(match_of(bench, tokens, BLOCKS * BLOCK_TOKENS).miss, KVIST_MISS_NEW);
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    uint32_t longer[(BLOCKS + 1) * BLOCK_TOKENS] = {0};
    memcpy(longer, tokens, sizeof tokens); /* goes on where the stored one ends */
    kvist_why_t why = why_tokens(bench, longer, (BLOCKS + 1) * BLOCK_TOKENS);
    assert_int_equal(why.match.miss, KVIST_MISS_NEW);
    assert_int_equal(why.match.block_count, BLOCKS);
    bench_end(bench);
}

/* Of many that go on from the same block the nearest is told, wherever it is. */
static void the_nearest_of_many_is_found(void **state)
{
    (void)state;
    enum { FORKS = 40, PARTING = 2 * BLOCK_TOKENS };
    for (int on_disk = 0; on_disk < 2; on_disk++) {
        timed_t timed;
        bench_t *bench = &timed.bench;
        timed_init(&timed, "nearest", on_disk ? 2 * BLOCKS : FORKS * BLOCKS);
        bench_with_disk(bench, 16);
        bench_open(bench);
        store_context(bench, 1, &(kvist_query_t){0}); /* the nearest, and the first */
        uint32_t tokens[BLOCKS * BLOCK_TOKENS];
        uint32_t forks = on_disk ? 30 : FORKS; /* as many records as are read */
        for (uint32_t fork = 0; fork < forks; fork++) {
            fork_tokens(fork, PARTING + fork % 10, tokens);
            store_tokens(bench, tokens, &(kvist_query_t){0});
        }
        assert_int_equal(flush(bench), KV_OK);
        fork_tokens(FORKS + 1, PARTING + 12, tokens);
        kvist_match_t match = match_of(bench, tokens, BLOCKS * BLOCK_TOKENS);
        assert_int_equal(match.miss, KVIST_MISS_DIVERGED);
        assert_false(match.detail.token_known); /* it looks at a few */
        kvist_stats_t before = bench_stats(bench);
        match = why_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS).match;
        kvist_key_t other = block_key(bench, 1, 2);
        check_parting(&match, PARTING + 12, &other);
        kvist_stats_t after = bench_stats(bench);
        assert_memory_equal(&before, &after, sizeof before); /* looking leaves no trace */
        bench_end(bench);
    }
}

/* Contexts that begin alike and are on disk only. */
static void beginnings_are_read_from_disk(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    timed_init(&timed, "beginning", 2 * BLOCKS);
    bench_with_disk(bench, 8);
    bench_open(bench);
    store_context(bench, 1, &(kvist_query_t){0});
    assert_int_equal(flush(bench), KV_OK);
    bench_close(bench);
    bench_open(bench);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    fork_tokens(1, 7, tokens);
    assert_int_equal(match_of(bench, tokens, BLOCKS * BLOCK_TOKENS).miss, KVIST_MISS_NEW);
    kvist_match_t match = why_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS).match;
    kvist_key_t other = block_key(bench, 1, 0);
    check_parting(&match, 7, &other);
    bench_end(bench);
}

/* ---- what another namespace has ---- */

static void another_namespace_is_told_with_what_differs(void **state)
{
    (void)state;
    static const char *const FIELDS[] = {"salt", "model", "dtype", "adapter", "model,salt"};
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++) {
        timed_t timed;
        bench_t *bench = &timed.bench;
        timed_init(&timed, "namespace", 2 * BLOCKS);
        bench_open(bench);
        kvist_namespace_params_t own = {.layout = &bench->layout, .salt = "", .adapter = ""};
        store_context(bench, 1, &(kvist_query_t){0});
        kvist_key_t stored = bench->name_space;
        kvist_namespace_params_t other = own;
        if (strstr(FIELDS[i], "salt") != NULL) {
            other.salt = "another";
            other.salt_bytes = 7;
        }
        other.model.bytes[0] = strstr(FIELDS[i], "model") != NULL;
        other.dtype = strcmp(FIELDS[i], "dtype") == 0 ? KVIST_DTYPE_F32 : KVIST_DTYPE_BF16;
        other.adapter = strcmp(FIELDS[i], "adapter") == 0 ? "a" : "";
        bench->name_space = kvist_namespace(&other);
        uint32_t tokens[BLOCKS * BLOCK_TOKENS];
        make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
        for (int described = 0; described < 2; described++) {
            kvist_why_t why = why_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS);
            assert_int_equal(why.match.miss, KVIST_MISS_NAMESPACE);
            assert_int_equal(why.match.block_count, 0);
            assert_int_equal(why.other_block_count, BLOCKS);
            assert_memory_equal(&why.other_name_space, &stored, sizeof stored);
            assert_string_equal(why.fields, described ? FIELDS[i] : "unknown");
            kvist_store_describe(bench->store, &own);
            kvist_store_describe(bench->store, &other);
        }
        /* A request is told nothing of that. */
        assert_int_equal(match_of(bench, tokens, BLOCKS * BLOCK_TOKENS).miss, KVIST_MISS_NEW);
        kvist_why_query_t query = {
            .name_space = bench->name_space, .tokens = tokens, .token_count = sizeof tokens / 4};
        kvist_why_t why;
        assert_int_equal(kvist_why(bench->store, &query, &why), KV_OK);
        assert_int_equal(why.match.miss, KVIST_MISS_NEW);
        bench_end(bench);
    }
}

/* More namespaces than are kept; the latest are. */
static void descriptions_have_a_bound(void **state)
{
    (void)state;
    timed_t timed;
    bench_t *bench = &timed.bench;
    timed_init(&timed, "described", 2 * BLOCKS);
    bench_open(bench);
    store_context(bench, 1, &(kvist_query_t){0});
    kvist_namespace_params_t params = {.layout = &bench->layout, .salt = "", .adapter = ""};
    for (uint32_t salt = 0; salt < 3 * KVIST_NAMESPACES_MAX; salt++) {
        params.salt = &salt;
        params.salt_bytes = sizeof salt;
        kvist_store_describe(bench->store, &params);
        bench->name_space = kvist_namespace(&params);
    }
    params.salt_bytes = 0;
    kvist_store_describe(bench->store, &params);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    assert_string_equal(why_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS).fields, "salt");
    bench_end(bench);
}

/* ---- the history itself ---- */

/* Against a list of all that happened: random keys that go, and go again. */
static void the_history_keeps_the_latest_within_its_bytes(void **state)
{
    (void)state;
    enum { CAPACITY = 100, KEYS = 160, ROUNDS = 20000 };
    kv_history_t *history = kv_history_create(KV_HISTORY_ENTRY_BYTES * CAPACITY + 39, 5);
    uint64_t random = kv_test_seed();
    uint32_t last_round[KEYS] = {0}; /* 0: never */
    kvist_key_t keys[KEYS];
    for (uint32_t i = 0; i < KEYS; i++) {
        keys[i] = kv_identity_digest(&i, sizeof i);
        if (i % 4 == 3) { /* crowds: the same home for several */
            memcpy(keys[i].bytes, keys[i - 1].bytes, KVIST_KEY_BYTES - 2);
        }
    }
    assert_int_equal(kv_history_since(history), 5);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        uint32_t at = (uint32_t)(kv_test_random(&random) % KEYS);
        kv_gone_t gone = (kv_gone_t)(round % KV_GONE_DAMAGED);
        const kv_maker_t maker = {.request = round, .tenant = (uint16_t)at};
        kv_history_note(history, &keys[at], gone, &maker, 1000 + round);
        last_round[at] = round;
        uint32_t known = round < CAPACITY ? round : CAPACITY;
        assert_int_equal(kv_history_count(history), known);
        assert_int_equal(kv_history_forgotten(history), round - known);
        for (uint32_t i = 0; i < KEYS; i++) {
            const kv_history_entry_t *entry = kv_history_find(history, &keys[i]);
            bool expected = last_round[i] > 0 && last_round[i] + CAPACITY > round;
            assert_int_equal(entry != NULL, expected);
            if (expected) {
                assert_int_equal(entry->gone_s, 1000 + last_round[i]);
                assert_int_equal(entry->request, last_round[i]);
                assert_int_equal(entry->gone, last_round[i] % KV_GONE_DAMAGED);
            }
        }
        assert_int_equal(
            kv_history_since(history), round <= CAPACITY ? 5 : 1000 + round - CAPACITY + 1);
    }
    kv_history_destroy(history);
}

/* The same run tells the same, to the last field. */
static void a_run_without_threads_is_repeated_exactly(void **state)
{
    (void)state;
    kvist_match_t seen[2][12];
    memset(seen, 0, sizeof seen);
    for (int run = 0; run < 2; run++) {
        timed_t timed;
        bench_t *bench = &timed.bench;
        timed_init(&timed, run == 0 ? "first" : "second", 3 * BLOCKS);
        bench->seams.threadless = true;
        bench_with_host(bench, 4 * BLOCKS);
        bench_open(bench);
        for (uint32_t context = 0; context < 12; context++) {
            store_context(bench, context, context % 2 ? &HEAVY : &(kvist_query_t){0});
            pass_s(&timed, 1);
        }
        for (uint32_t context = 0; context < 12; context++) {
            seen[run][context] = why_context(bench, context);
        }
        bench_end(bench);
    }
    assert_memory_equal(seen[0], seen[1], sizeof seen[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_made_room_is_named),
        cmocka_unit_test(what_dies_with_its_segment_is_known),
        cmocka_unit_test(what_was_dropped_or_expired_is_known),
        cmocka_unit_test(damage_is_known_after_it_was_found),
        cmocka_unit_test(what_came_back_goes_for_its_latest_reason),
        cmocka_unit_test(new_says_since_when_that_is_known),
        cmocka_unit_test(short_and_bypassed_say_no_more),
        cmocka_unit_test(what_is_being_stored_is_pending),
        cmocka_unit_test(the_first_token_that_differs_is_told),
        cmocka_unit_test(the_nearest_of_many_is_found),
        cmocka_unit_test(beginnings_are_read_from_disk),
        cmocka_unit_test(another_namespace_is_told_with_what_differs),
        cmocka_unit_test(descriptions_have_a_bound),
        cmocka_unit_test(the_history_keeps_the_latest_within_its_bytes),
        cmocka_unit_test(a_run_without_threads_is_repeated_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
