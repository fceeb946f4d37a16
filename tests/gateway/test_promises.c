/* The table of promises, with a virtual clock. */
#include "gateway/keeping/promises.h"
#include "testing/testing.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK_TOKENS = 16, TOKENS = 100, ENTRIES_MAX = 100 };
#define TTL_NS (300ull * KV_NS_PER_S)
#define HOUR_NS (3600ull * KV_NS_PER_S)

typedef struct {
    kv_virtual_clock_t clock;
    kv_promise_table_t *table;
    uint32_t tokens[TOKENS];
    kvist_key_t *keys;
    size_t key_count;
} world_t;

static int begin(void **state)
{
    world_t *world = calloc(1, sizeof *world);
    kv_virtual_clock_init(&world->clock, 1800000000ull * KV_NS_PER_S);
    kv_promise_table_params_t params = {
        .clock = &world->clock.clock, .block_tokens = BLOCK_TOKENS, .entry_count_max = ENTRIES_MAX};
    world->table = kv_promise_table_create(&params);
    for (uint32_t i = 0; i < TOKENS; i++) {
        world->tokens[i] = 7 * i;
    }
    world->keys =
        kv_promise_keys(world->table, "salt", 4, world->tokens, TOKENS, &world->key_count);
    assert_int_equal(world->key_count, TOKENS / BLOCK_TOKENS);
    *state = world;
    return 0;
}

static int end(void **state)
{
    world_t *world = *state;
    kv_promise_table_destroy(world->table);
    free(world->keys);
    free(world);
    return 0;
}

/* A node grants so many blocks of the prompt; the time runs from now. */
static void grant(world_t *world, uint64_t node, uint32_t blocks, uint64_t ttl_ns, uint64_t owner)
{
    kv_promise_entry_t entry = {.node = node,
        .token_count = blocks * BLOCK_TOKENS,
        .ttl_ns = ttl_ns,
        .until_unix_ms = (world->clock.unix_ns + ttl_ns) / KV_NS_PER_MS,
        .owner = owner};
    kv_promise_table_note(world->table, world->keys, world->key_count, &entry);
}

static size_t reads(world_t *world, uint64_t node, size_t key_count, kv_promise_entry_t *entries)
{
    return kv_promise_table_read(world->table, node, world->keys, key_count, entries, 4);
}

static void pass_s(world_t *world, uint64_t seconds)
{
    kv_virtual_clock_advance(&world->clock, seconds * KV_NS_PER_S);
}

static void a_read_at_4_59_renews_and_none_by_5_01_ends_it(void **state)
{
    world_t *world = *state;
    kv_promise_entry_t entries[4];
    grant(world, 1, 4, TTL_NS, 0);
    pass_s(world, 299);
    assert_int_equal(reads(world, 1, world->key_count, entries), 1);
    assert_int_equal(entries[0].token_count, 4 * BLOCK_TOKENS);
    assert_true(entries[0].ttl_ns == TTL_NS);
    grant(world, 1, 4, 0, 0); /* the node's answer to the renewal, from which the ttl is known */
    kv_promise_entry_t renewed = entries[0];
    renewed.until_unix_ms = (world->clock.unix_ns + renewed.ttl_ns) / KV_NS_PER_MS;
    kv_promise_table_note(world->table, world->keys, world->key_count, &renewed);
    pass_s(world, 299);
    assert_int_equal(reads(world, 1, world->key_count, entries), 1);
    pass_s(world, 2); /* 5:01 after the last read */
    assert_int_equal(reads(world, 1, world->key_count, entries), 0);
}

static void only_what_is_read_is_renewed(void **state)
{
    world_t *world = *state;
    kv_promise_entry_t entries[4];
    grant(world, 1, 2, HOUR_NS, 0);
    grant(world, 1, 3, TTL_NS / 2, 0);
    grant(world, 1, 4, TTL_NS, 0);
    assert_int_equal(reads(world, 1, 1, entries), 0); /* a shorter prompt */
    assert_int_equal(reads(world, 2, 6, entries), 0); /* another node */
    assert_int_equal(reads(world, 1, 3, entries), 2);
    /* Of what a longer one covers for as long nothing is said. */
    assert_int_equal(reads(world, 1, 6, entries), 2);
    assert_int_equal(entries[0].token_count, 4 * BLOCK_TOKENS);
    assert_int_equal(entries[1].token_count, 2 * BLOCK_TOKENS);
    size_t count;
    world->tokens[0]++;
    kvist_key_t *other = kv_promise_keys(world->table, "salt", 4, world->tokens, TOKENS, &count);
    assert_int_equal(kv_promise_table_read(world->table, 1, other, count, entries, 4), 0);
    free(other);
    world->tokens[0]--;
    other = kv_promise_keys(world->table, "tlas", 4, world->tokens, TOKENS, &count);
    assert_int_equal(kv_promise_table_read(world->table, 1, other, count, entries, 4), 0);
    free(other);
}

static void what_holds_now_is_summed(void **state)
{
    world_t *world = *state;
    assert_int_equal(kv_promise_table_sums(world->table).promise_count, 0);
    grant(world, 1, 2, HOUR_NS, 0);
    grant(world, 1, 4, TTL_NS, 0);
    grant(world, 2, 2, TTL_NS, 0);
    kv_promise_sums_t sums = kv_promise_table_sums(world->table);
    assert_int_equal(sums.promise_count, 3);
    assert_int_equal(sums.token_count, 8 * BLOCK_TOKENS);
    pass_s(world, 301);
    sums = kv_promise_table_sums(world->table);
    assert_int_equal(sums.promise_count, 1);
    assert_int_equal(sums.token_count, 2 * BLOCK_TOKENS);
    kv_promise_table_forget_node(world->table, 1);
    assert_int_equal(kv_promise_table_sums(world->table).token_count, 0);
}

static void the_longer_of_two_promises_holds(void **state)
{
    world_t *world = *state;
    kv_promise_entry_t entries[4];
    grant(world, 1, 4, HOUR_NS, 0);
    grant(world, 1, 4, TTL_NS, 0);
    pass_s(world, 3599);
    assert_int_equal(reads(world, 1, 6, entries), 1);
    assert_true(entries[0].ttl_ns == HOUR_NS);
    pass_s(world, 1);
    grant(world, 1, 4, TTL_NS, 0); /* over: a new one */
    assert_int_equal(reads(world, 1, 6, entries), 1);
    assert_true(entries[0].ttl_ns == TTL_NS);
}

static void a_nodes_promises_go_with_it(void **state)
{
    world_t *world = *state;
    kv_promise_entry_t entries[4];
    grant(world, 1, 2, TTL_NS, 0);
    grant(world, 2, 5, TTL_NS, 0);
    assert_int_equal(reads(world, 2, 6, entries), 1);
    assert_int_equal(entries[0].token_count, 5 * BLOCK_TOKENS);
    kv_promise_table_forget_node(world->table, 2);
    assert_int_equal(reads(world, 2, 6, entries), 0);
    assert_int_equal(reads(world, 1, 6, entries), 1);
    assert_int_equal(entries[0].token_count, 2 * BLOCK_TOKENS);
}

static void an_owner_lets_go_of_its_own_alone(void **state)
{
    world_t *world = *state;
    kv_promise_entry_t entries[4];
    grant(world, 1, 2, HOUR_NS, 7);
    grant(world, 1, 2, TTL_NS, 0); /* somebody else asked for it too */
    grant(world, 1, 4, TTL_NS, 7);
    kv_promise_table_let_go(world->table, 7);
    assert_int_equal(reads(world, 1, 6, entries), 1);
    assert_int_equal(entries[0].token_count, 2 * BLOCK_TOKENS);
}

static void a_full_table_forgets_what_ends_first(void **state)
{
    world_t *world = *state;
    kv_promise_entry_t entries[4];
    grant(world, 1, 4, TTL_NS, 0);
    for (uint64_t node = 2; node < 2 + ENTRIES_MAX; node++) {
        grant(world, node, 4, HOUR_NS, 0);
    }
    assert_int_equal(reads(world, 1, 6, entries), 0);
    for (uint64_t node = 2; node < 2 + ENTRIES_MAX; node++) {
        assert_int_equal(reads(world, node, 6, entries), 1);
    }
    pass_s(world, 3601);
    grant(world, 1, 4, TTL_NS, 0); /* all others have ended */
    assert_int_equal(reads(world, 1, 6, entries), 1);
    for (uint64_t node = 2; node < 2 + ENTRIES_MAX; node++) {
        assert_int_equal(reads(world, node, 6, entries), 0);
    }
}

/* Nodes whose blocks are not this gateway's keep their promises by themselves. */
static void what_is_no_whole_block_is_not_noted(void **state)
{
    world_t *world = *state;
    kv_promise_entry_t entry = {
        .node = 1, .token_count = BLOCK_TOKENS + 1, .ttl_ns = TTL_NS, .until_unix_ms = UINT64_MAX};
    kv_promise_table_note(world->table, world->keys, world->key_count, &entry);
    entry.token_count = 64 * BLOCK_TOKENS;
    kv_promise_table_note(world->table, world->keys, world->key_count, &entry);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_read_at_4_59_renews_and_none_by_5_01_ends_it, begin, end),
        cmocka_unit_test_setup_teardown(only_what_is_read_is_renewed, begin, end),
        cmocka_unit_test_setup_teardown(what_holds_now_is_summed, begin, end),
        cmocka_unit_test_setup_teardown(the_longer_of_two_promises_holds, begin, end),
        cmocka_unit_test_setup_teardown(a_nodes_promises_go_with_it, begin, end),
        cmocka_unit_test_setup_teardown(an_owner_lets_go_of_its_own_alone, begin, end),
        cmocka_unit_test_setup_teardown(a_full_table_forgets_what_ends_first, begin, end),
        cmocka_unit_test_setup_teardown(what_is_no_whole_block_is_not_noted, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
