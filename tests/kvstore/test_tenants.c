/* Tenants and their quotas: each gives up what is its own, and nobody else's. */
#include "harness.h"
#include "kvstore/tenants.h"

enum { BLOCKS_MAX = 8, CONTEXTS = 24, TENANTS = 4, HOST_SLOTS = 200 };
#define NOW_S 1800000000ull

static const char *const NAMES[TENANTS] = {"ann", "ben", "cleo", "dan"};

typedef struct {
    bool ended;
    kv_status_t status;
    uint32_t block_count;
} stored_t;

static void note_stored(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    (void)lease;
    *(stored_t *)context = (stored_t){true, status, block_count};
}

static void with_disk(bench_t *bench, uint32_t segments)
{
    bench_with_disk(bench, segments);
    bench->seams.threadless = false; /* the disk takes its time */
}

static void memory_alone(bench_t *bench, uint32_t slots)
{
    bench->params.device = NULL;
    bench->params.device_slot_count = 0;
    bench_with_host(bench, slots);
    bench->seams.threadless = true;
}

static kvist_lease_t *match_for(bench_t *bench, const kvist_terms_t *terms, uint32_t context,
    uint32_t blocks, kvist_match_t *match)
{
    uint32_t tokens[BLOCKS_MAX * BLOCK_TOKENS];
    kvist_lease_t *lease;
    make_tokens(context, 0, tokens, BLOCKS_MAX * BLOCK_TOKENS);
    kvist_query_t query = {.name_space = bench->name_space,
        .tokens = tokens,
        .token_count = (size_t)blocks * BLOCK_TOKENS,
        .terms = *terms};
    assert_int_equal(kvist_match(bench->store, &query, &lease, match), KV_OK);
    return lease;
}

typedef struct {
    uint32_t found;
    stored_t stored;
} asked_t;

/* A context is asked for, and what is missing is stored, from the caller's memory. */
static asked_t ask_under(
    bench_t *bench, const kvist_terms_t *terms, uint32_t context, uint32_t blocks)
{
    static char bytes[BLOCKS_MAX * 2048];
    kvist_match_t match;
    kvist_lease_t *lease = match_for(bench, terms, context, blocks, &match);
    asked_t asked = {.found = match.block_count};
    kvist_piece_t piece = {bytes, (blocks - match.block_count) * block_bytes(bench)};
    kvist_put_t put = {.first_block = match.block_count, .block_count = blocks - match.block_count};
    if (bench->params.directory != NULL) { /* what makes room is on its way */
        put.deadline_ns = kv_clock_now_ns() + 20ull * KV_NS_PER_S;
    }
    assert_int_equal(kvist_lease_store(lease, &put, &piece, 1, note_stored, &asked.stored), KV_OK);
    uint64_t end_ns = patience_ns();
    while (!asked.stored.ended) {
        bench_wait(bench, end_ns);
    }
    kvist_lease_release(lease);
    return asked;
}

static asked_t ask(bench_t *bench, uint32_t tenant, uint32_t context, uint32_t blocks)
{
    kvist_terms_t terms = {.tenant = NAMES[tenant]};
    return ask_under(bench, &terms, context, blocks);
}

static uint32_t found_for(bench_t *bench, uint32_t context, uint32_t blocks)
{
    kvist_match_t match;
    kvist_terms_t terms = {0};
    kvist_lease_release(match_for(bench, &terms, context, blocks, &match));
    return match.block_count;
}

typedef struct {
    const char *name;
    kvist_tenant_t told;
} look_up_t;

static void visit_tenant(void *context, const kvist_tenant_t *tenant)
{
    look_up_t *look_up = context;
    if (strcmp(tenant->quota.tenant, look_up->name) == 0) {
        look_up->told = *tenant;
    }
}

static kvist_tenant_t told_of(const bench_t *bench, const char *name)
{
    look_up_t look_up = {.name = name};
    kvist_store_tenants(bench->store, visit_tenant, &look_up);
    return look_up.told;
}

/* What is told of each tenant is what a look through the table finds. */
static void check_tenants(const bench_t *bench)
{
    const kvist_store_t *store = bench->store;
    for (uint32_t i = 0; i < TENANTS; i++) {
        uint64_t bytes[KVIST_TIER_COUNT] = {0};
        for (uint32_t number = 0; number < kv_table_bound(store->table); number++) {
            const kv_object_t *object = kv_table_at(store->table, number);
            if ((object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) != KV_OBJECT_USED ||
                strcmp(kv_names_at(&store->tenants, kv_object_family(store, object)->tenant),
                    NAMES[i]) != 0) {
                continue;
            }
            bytes[KVIST_TIER_DEVICE] += kv_object_on_device(store, object) * block_bytes(bench);
            bytes[KVIST_TIER_HOST] += kv_object_on_host(object) * block_bytes(bench);
            bytes[KVIST_TIER_DISK] +=
                kv_object_on_disk(object) ? (uint64_t)object->length_pages * KV_PAGE_BYTES : 0;
        }
        kvist_tenant_t told = told_of(bench, NAMES[i]);
        assert_memory_equal(told.bytes, bytes, sizeof bytes);
    }
}

/* ---- host memory ---- */

/* Three tenants with quotas in one store, beside each the store that it would have alone, of its
 * quota's size: whatever the others do, it finds the same. */
static void a_quota_is_like_a_memory_of_ones_own(void **state)
{
    (void)state;
    static const uint32_t QUOTAS[] = {20, 45, 64};
    uint64_t seed = kv_test_seed(), random = seed;
    print_message("seed %ju (KVIST_SEED replays it)\n", (uintmax_t)seed);
    bench_t shared, alone[3];
    bench_init(&shared, "shared", 0);
    memory_alone(&shared, HOST_SLOTS);
    kvist_quota_t quotas[3];
    for (uint32_t i = 0; i < 3; i++) {
        quotas[i] =
            (kvist_quota_t){.tenant = NAMES[i], .host_bytes = QUOTAS[i] * block_bytes(&shared)};
        bench_init(&alone[i], "alone", 0);
        memory_alone(&alone[i], QUOTAS[i]);
        bench_open(&alone[i]);
    }
    shared.params.quotas = quotas;
    shared.params.quota_count = 3;
    bench_open(&shared);
    uint32_t hits = 0;
    for (uint32_t step = 0; step < (kv_test_long() ? 20000u : 2000u); step++) {
        uint32_t tenant = kv_test_random(&random) % 3;
        uint32_t context = 1000 * tenant + kv_test_random(&random) % CONTEXTS;
        uint32_t blocks = 1 + kv_test_random(&random) % BLOCKS_MAX;
        asked_t here = ask(&shared, tenant, context, blocks);
        asked_t there = ask(&alone[tenant], tenant, context, blocks);
        assert_int_equal(here.found, there.found);
        assert_int_equal(here.stored.status, there.stored.status);
        assert_int_equal(here.stored.block_count, there.stored.block_count);
        assert_true(
            told_of(&shared, NAMES[tenant]).bytes[KVIST_TIER_HOST] <= quotas[tenant].host_bytes);
        hits += here.found;
        if (step % 50 == 0) {
            check_tenants(&shared);
            check_accounts(&shared);
        }
    }
    assert_true(hits > 1000);
    bench_end(&shared);
    for (uint32_t i = 0; i < 3; i++) {
        bench_end(&alone[i]);
    }
}

static void a_lowered_quota_takes_only_its_own(void **state)
{
    (void)state;
    bench_t bench;
    kv_error_t error;
    bench_init(&bench, "lowered", 0);
    memory_alone(&bench, HOST_SLOTS);
    bench_open(&bench);
    for (uint32_t i = 0; i < 10; i++) {
        ask(&bench, 0, i, BLOCKS_MAX);
        ask(&bench, 1, 100 + i, BLOCKS_MAX);
    }
    kvist_quota_t quota = {.tenant = "ann", .host_bytes = 20 * block_bytes(&bench)};
    assert_int_equal(kvist_store_set_quota(bench.store, &quota, &error), KV_OK);
    kvist_store_poll(bench.store);
    assert_int_equal(told_of(&bench, "ann").bytes[KVIST_TIER_HOST], 20 * block_bytes(&bench));
    for (uint32_t i = 0; i < 10; i++) {
        assert_int_equal(found_for(&bench, i, BLOCKS_MAX), i < 7 ? 0 : i == 7 ? 4 : BLOCKS_MAX);
        assert_int_equal(found_for(&bench, 100 + i, BLOCKS_MAX), BLOCKS_MAX);
    }
    quota.host_bytes = 0; /* none any more */
    assert_int_equal(kvist_store_set_quota(bench.store, &quota, &error), KV_OK);
    for (uint32_t i = 0; i < 7; i++) {
        ask(&bench, 0, i, BLOCKS_MAX);
    }
    assert_int_equal(told_of(&bench, "ann").bytes[KVIST_TIER_HOST], 76 * block_bytes(&bench));
    check_tenants(&bench);
    bench_end(&bench);
}

static void what_is_leased_or_pinned_is_not_given_up(void **state)
{
    (void)state;
    bench_t bench;
    kv_virtual_clock_t clock;
    kv_virtual_clock_init(&clock, NOW_S * KV_NS_PER_S);
    bench_init(&bench, "pinned", 0);
    memory_alone(&bench, HOST_SLOTS);
    kvist_quota_t quota = {.tenant = "ann", .host_bytes = 10 * block_bytes(&bench)};
    bench.params.quotas = &quota;
    bench.params.quota_count = 1;
    bench.params.clock = &clock.clock;
    bench_open(&bench);
    ask(&bench, 0, 1, BLOCKS_MAX);
    kvist_match_t match;
    kvist_terms_t nobody = {0};
    kvist_lease_t *lease = match_for(&bench, &nobody, 1, BLOCKS_MAX, &match);
    asked_t asked = ask(&bench, 0, 2, BLOCKS_MAX); /* 8 of 10 are held: two find room */
    assert_int_equal(asked.stored.status, KV_NO_SPACE);
    assert_true(asked.stored.block_count <= 2);
    kvist_lease_release(lease);
    assert_int_equal(ask(&bench, 0, 2, BLOCKS_MAX).stored.status, KV_OK);

    kvist_key_t key = block_key(&bench, 2, BLOCKS_MAX - 1);
    kvist_terms_t pin = {.pin_until_unix_ns = clock.unix_ns + 100ull * KV_NS_PER_S};
    assert_int_equal(kvist_store_keep(bench.store, &key, &pin), KV_OK);
    ask(&bench, 0, 3, 2);
    key = block_key(&bench, 3, 1);
    assert_int_equal(kvist_store_keep(bench.store, &key, &pin), KV_OK); /* 10 of 10 */
    assert_int_equal(told_of(&bench, "ann").pinned_bytes, quota.host_bytes);
    assert_int_equal(ask(&bench, 0, 4, 1).stored.status, KV_NO_SPACE);
    ask(&bench, 1, 5, BLOCKS_MAX);
    key = block_key(&bench, 5, BLOCKS_MAX - 1);
    assert_int_equal(kvist_store_keep(bench.store, &key, &pin), KV_OK); /* another's */
    kv_virtual_clock_advance(&clock, 100ull * KV_NS_PER_S);
    assert_int_equal(ask(&bench, 0, 4, 1).stored.status, KV_OK);
    check_tenants(&bench);
    check_accounts(&bench);
    bench_end(&bench);
}

static void pins_beyond_a_quota_are_refused(void **state)
{
    (void)state;
    for (int disk = 0; disk < 2; disk++) {
        bench_t bench;
        bench_init(&bench, "pins", 0);
        memory_alone(&bench, HOST_SLOTS);
        size_t bytes = disk != 0 ? 2 * (size_t)KV_PAGE_BYTES : block_bytes(&bench);
        kvist_quota_t quota = {.tenant = "ann", .host_bytes = 12 * block_bytes(&bench)};
        if (disk != 0) {
            with_disk(&bench, 8);
            quota.host_bytes = 0;
            quota.disk_bytes = 12 * bytes;
        }
        bench.params.quotas = &quota;
        bench.params.quota_count = 1;
        bench_open(&bench);
        kvist_terms_t pin = {.pin_until_unix_ns = bench.store->clock->unix_ns(bench.store->clock) +
                                                  60ull * KV_NS_PER_S};
        kvist_key_t first = block_key(&bench, 1, BLOCKS_MAX - 1), second = block_key(&bench, 2, 3);
        kvist_key_t third = block_key(&bench, 3, 0);
        ask(&bench, 0, 1, BLOCKS_MAX);
        assert_int_equal(kvist_store_keep(bench.store, &first, &pin), KV_OK);
        ask(&bench, 0, 2, 4);
        assert_int_equal(kvist_store_keep(bench.store, &second, &pin), KV_OK);
        ask(&bench, 1, 3, 1);
        assert_int_equal(kvist_store_keep(bench.store, &third, &pin), KV_OK); /* another's */
        kvist_terms_t none = {0};
        assert_int_equal(kvist_store_keep(bench.store, &second, &none), KV_OK);
        kvist_key_t shorter = block_key(&bench, 2, 0);
        assert_int_equal(kvist_store_keep(bench.store, &shorter, &pin), KV_OK);
        assert_int_equal(kvist_store_keep(bench.store, &second, &pin), KV_OK);
        kvist_key_t own = block_key(&bench, 4, 0);
        quota.host_bytes += disk == 0 ? block_bytes(&bench) : 0; /* room for it, and no more pins */
        quota.disk_bytes += disk == 0 ? 0 : bytes;
        kv_error_t error;
        assert_int_equal(kvist_store_set_quota(bench.store, &quota, &error), KV_OK);
        ask(&bench, 0, 4, 1);
        quota.host_bytes -= disk == 0 ? block_bytes(&bench) : 0;
        quota.disk_bytes -= disk == 0 ? 0 : bytes;
        assert_int_equal(kvist_store_set_quota(bench.store, &quota, &error), KV_OK);
        assert_int_equal(kvist_store_keep(bench.store, &own, &pin), KV_NO_SPACE);
        bench_end(&bench);
    }
}

/* ---- disk ---- */

static void settle(bench_t *bench)
{
    flush(bench);
    for (int turn = 0; turn < 20; turn++) {
        kvist_store_poll(bench->store);
    }
}

/* Two tenants are bounded, two are not; what those stored is found to the end, across restarts. */
static void on_disk_each_gives_up_its_own(void **state)
{
    (void)state;
    uint64_t seed = kv_test_seed(), random = seed;
    print_message("seed %ju (KVIST_SEED replays it)\n", (uintmax_t)seed);
    bench_t bench;
    bench_init(&bench, "disk", 0);
    memory_alone(&bench, 40);
    with_disk(&bench, 60);
    const size_t record = 2 * (size_t)KV_PAGE_BYTES;
    kvist_quota_t quotas[2] = {{.tenant = NAMES[0], .disk_bytes = 30 * record},
        {.tenant = NAMES[1], .host_bytes = 10 * 2048, .disk_bytes = 70 * record}};
    bench.params.quotas = quotas;
    bench.params.quota_count = 2;
    bench_open(&bench);
    uint32_t stored[TENANTS * CONTEXTS] = {0};
    for (uint32_t step = 0; step < (kv_test_long() ? 3000u : 400u); step++) {
        uint32_t tenant = kv_test_random(&random) % TENANTS;
        uint32_t which = kv_test_random(&random) % CONTEXTS;
        uint32_t blocks = 1 + kv_test_random(&random) % BLOCKS_MAX;
        uint32_t context = 1000 * tenant + which, *before = &stored[tenant * CONTEXTS + which];
        asked_t asked = ask(&bench, tenant, context, blocks);
        assert_int_equal(asked.stored.status, KV_OK);
        if (tenant >= 2) {
            assert_true(asked.found >= (*before < blocks ? *before : blocks));
        }
        *before = *before > blocks ? *before : blocks;
        if (step % 40 == 39) {
            settle(&bench);
            for (uint32_t i = 0; i < 2; i++) {
                assert_true(
                    told_of(&bench, NAMES[i]).bytes[KVIST_TIER_DISK] <= quotas[i].disk_bytes);
            }
            check_tenants(&bench);
            check_accounts(&bench);
        }
        if (step % 160 == 159) {
            bench_close(&bench);
            bench_open(&bench);
            check_tenants(&bench);
        }
    }
    /* What a bounded tenant used last is there. */
    ask(&bench, 0, 1, BLOCKS_MAX);
    settle(&bench);
    assert_int_equal(found_for(&bench, 1, BLOCKS_MAX), BLOCKS_MAX);
    assert_true(told_of(&bench, "ann").bytes[KVIST_TIER_DISK] > 20 * record);
    bench_end(&bench);
}

/* What left the disk for a quota does not come back by a restart, nor by an index made anew. */
static void what_was_given_up_stays_away(void **state)
{
    (void)state;
    for (int lost = 0; lost < 2; lost++) {
        bench_t bench;
        kv_error_t error;
        bench_init(&bench, "away", 0);
        memory_alone(&bench, 16);
        with_disk(&bench, 8);
        const size_t record = 2 * (size_t)KV_PAGE_BYTES;
        bench_open(&bench);
        for (uint32_t i = 0; i < 6; i++) {
            ask(&bench, 0, i, BLOCKS_MAX);
        }
        ask(&bench, 1, 100, BLOCKS_MAX);
        settle(&bench);
        assert_int_equal(told_of(&bench, "ann").bytes[KVIST_TIER_DISK], 6 * BLOCKS_MAX * record);
        kvist_quota_t quota = {.tenant = "ann", .disk_bytes = 20 * record};
        assert_int_equal(kvist_store_set_quota(bench.store, &quota, &error), KV_OK);
        settle(&bench);
        assert_int_equal(told_of(&bench, "ann").bytes[KVIST_TIER_DISK], 20 * record);
        bench_close(&bench);
        if (lost != 0) {
            char command[600];
            snprintf(command, sizeof command, "rm -r '%s/index'", bench.folder);
            assert_int_equal(system(command), 0);
        }
        bench_open(&bench);
        assert_true(told_of(&bench, "ann").bytes[KVIST_TIER_DISK] <= 20 * record);
        assert_int_equal(found_for(&bench, 100, BLOCKS_MAX), BLOCKS_MAX);
        uint32_t found = 0;
        for (uint32_t i = 0; i < 6; i++) {
            found += found_for(&bench, i, BLOCKS_MAX);
        }
        assert_int_equal(found, 20);
        check_tenants(&bench);
        bench_end(&bench);
    }
}

static void a_tier_that_there_is_not_has_no_quota_to_keep(void **state)
{
    (void)state;
    bench_t bench;
    kv_error_t error;
    bench_init(&bench, "none", 8);
    bench_open(&bench);
    kvist_quota_t quota = {.tenant = "ann", .host_bytes = 1 << 20, .disk_bytes = 1 << 20};
    assert_int_equal(kvist_store_set_quota(bench.store, &quota, &error), KV_OK);
    kvist_store_poll(bench.store);
    request_context(&bench, 1, BLOCKS_MAX);
    assert_int_equal(told_of(&bench, "ann").quota.host_bytes, 1 << 20);
    check_accounts(&bench);
    bench_end(&bench);
}

static void bad_quotas_are_refused(void **state)
{
    (void)state;
    static const char *const BAD[] = {
        NULL, "", "a b", "a\"b", "a=b", "a:b", "12345678901234567890123456789012"};
    bench_t bench;
    kv_error_t error;
    bench_init(&bench, "bad", 0);
    memory_alone(&bench, HOST_SLOTS);
    bench_open(&bench);
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        kvist_quota_t quota = {.tenant = BAD[i], .host_bytes = 1 << 20};
        assert_int_equal(kvist_store_set_quota(bench.store, &quota, &error), KV_INVALID);
        assert_non_null(strstr(error.text, "tenant"));
    }
    kvist_quota_t quota = {.tenant = "ann", .host_bytes = block_bytes(&bench) - 1};
    assert_int_equal(kvist_store_set_quota(bench.store, &quota, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "host_bytes"));
    quota = (kvist_quota_t){.tenant = "ann", .disk_bytes = 1};
    assert_int_equal(kvist_store_set_quota(bench.store, &quota, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "disk_bytes"));
    bench_close(&bench);
    bench.params.quotas = &quota;
    bench.params.quota_count = 1;
    kvist_store_t *store;
    assert_int_equal(kvist_store_open(&bench.params, &store, &error), KV_INVALID);
    bench_end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_quota_is_like_a_memory_of_ones_own),
        cmocka_unit_test(a_lowered_quota_takes_only_its_own),
        cmocka_unit_test(what_is_leased_or_pinned_is_not_given_up),
        cmocka_unit_test(pins_beyond_a_quota_are_refused),
        cmocka_unit_test(on_disk_each_gives_up_its_own),
        cmocka_unit_test(what_was_given_up_stays_away),
        cmocka_unit_test(a_tier_that_there_is_not_has_no_quota_to_keep),
        cmocka_unit_test(bad_quotas_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
