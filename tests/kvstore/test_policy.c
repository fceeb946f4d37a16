/* The policies, each through a pool of its own: what goes first, and why. */
#include "kvstore/objects/pool.h"
#include "kvstore/policy/ghosts.h"
#include "testing/testing.h"

enum { SLOTS_MAX = 64 };

typedef struct {
    kv_pool_t pool;
    uint32_t tokens[SLOTS_MAX];
} fixture_t;

static void begin(fixture_t *fixture, kvist_policy_t policy, uint32_t slot_count)
{
    kv_pool_init(&fixture->pool, slot_count, 1, 0, fixture->tokens, NULL, kv_policy_at(policy));
    kv_pool_extend(&fixture->pool, slot_count);
    *fixture->pool.costs = (kv_policy_costs_t){.bytes = 1000, .block_ns = 1000, .distance_ns = 100};
}

/* An object that nothing goes on from comes to a free slot and is let go. */
static uint32_t come(fixture_t *fixture, uint32_t object, uint32_t position)
{
    uint32_t slot = kv_pool_take(&fixture->pool);
    const kv_slot_of_t of = {.key_hash = object * 2654435761u, .position = position};
    assert_int_not_equal(slot, KV_SLOT_NONE);
    kv_pool_set_object(&fixture->pool, slot, object, &of);
    kv_pool_release(&fixture->pool, slot, KVIST_PRIORITY_INTERACTIVE);
    return slot;
}

static void use(fixture_t *fixture, uint32_t slot)
{
    kv_pool_hold(&fixture->pool, slot);
    kv_pool_release(&fixture->pool, slot, KVIST_PRIORITY_INTERACTIVE);
}

/* What goes for want of room; its object. */
static uint32_t evict(fixture_t *fixture)
{
    kv_pool_walk_t walk = kv_pool_walk(&fixture->pool, KV_TENANT_ANY, KVIST_PRIORITY_INTERACTIVE);
    uint32_t slot = kv_pool_step(&walk);
    assert_int_not_equal(slot, KV_SLOT_NONE);
    uint32_t object = fixture->pool.slots[slot].object;
    fixture->pool.slots[slot].flags |= KV_SLOT_VICTIM;
    kv_pool_give(&fixture->pool, slot);
    return object;
}

static void the_least_recently_used_goes_first(void **state)
{
    (void)state;
    fixture_t fixture;
    begin(&fixture, KVIST_POLICY_LRU, 3);
    uint32_t first = come(&fixture, 0, 9);
    come(&fixture, 1, 5);
    come(&fixture, 2, 1);
    use(&fixture, first);
    assert_int_equal(evict(&fixture), 1);
    assert_int_equal(evict(&fixture), 2);
    assert_int_equal(evict(&fixture), 0);
    kv_pool_destroy(&fixture.pool);
}

static void the_least_worth_goes_first_and_what_stays_ages(void **state)
{
    (void)state;
    fixture_t fixture;
    begin(&fixture, KVIST_POLICY_GDSF, 4);
    come(&fixture, 0, 30); /* 4.0 */
    come(&fixture, 1, 0);  /* 1.0 */
    uint32_t used = come(&fixture, 2, 0);
    use(&fixture, used);  /* 2.0 */
    come(&fixture, 3, 0); /* 1.0, but younger */
    assert_int_equal(evict(&fixture), 1);
    assert_int_equal(evict(&fixture), 3);
    come(&fixture, 4, 5); /* 1.0 + 1.5: one that comes now is worth more than it was before */
    come(&fixture, 5, 0); /* 1.0 + 1.0 */
    assert_int_equal(evict(&fixture), 2);
    assert_int_equal(evict(&fixture), 5);
    assert_int_equal(evict(&fixture), 4);
    assert_int_equal(evict(&fixture), 0);
    kv_pool_destroy(&fixture.pool);
}

static void what_is_cheap_to_load_is_worth_no_more_than_that(void **state)
{
    (void)state;
    double rate = 1.1; /* counts as 1 */
    const kv_policy_costs_t costs = {
        .bytes = 2000, .block_ns = 1000, .distance_ns = 100, .reload_ns_per_byte = &rate};
    assert_true(kv_policy_cost_ns(&costs, 3) == 1300);
    assert_true(kv_policy_cost_ns(&costs, 30) == 2000);
    rate = 1.9;
    assert_true(kv_policy_cost_ns(&costs, 30) == 2000);
    rate = 2.1;
    assert_true(kv_policy_cost_ns(&costs, 30) == 4000);
}

static void a_scan_passes_what_is_used(void **state)
{
    (void)state;
    fixture_t fixture;
    begin(&fixture, KVIST_POLICY_S3_FIFO, 20);
    uint32_t slots[10];
    for (uint32_t i = 0; i < 10; i++) {
        slots[i] = come(&fixture, i, 0);
        use(&fixture, slots[i]);
        use(&fixture, slots[i]);
    }
    for (uint32_t i = 0; i < 200; i++) { /* each comes once */
        if (fixture.pool.free_count == 0) {
            assert_true(evict(&fixture) >= 1000);
        }
        come(&fixture, 1000 + i, 0);
    }
    for (uint32_t i = 0; i < 10; i++) {
        assert_int_equal(fixture.pool.slots[slots[i]].object, i);
    }
    kv_pool_destroy(&fixture.pool);
}

static void what_comes_back_soon_is_not_new(void **state)
{
    (void)state;
    fixture_t fixture;
    begin(&fixture, KVIST_POLICY_S3_FIFO, 4);
    for (uint32_t i = 0; i < 4; i++) {
        come(&fixture, i, 0);
    }
    assert_int_equal(evict(&fixture), 0);
    come(&fixture, 0, 0); /* into the main queue: the others are older there, and go first */
    for (uint32_t i = 1; i < 4; i++) {
        assert_int_equal(evict(&fixture), i);
        come(&fixture, 10 + i, 0);
    }
    for (uint32_t i = 1; i < 4; i++) {
        assert_int_equal(evict(&fixture), 10 + i);
    }
    assert_int_equal(evict(&fixture), 0);
    kv_pool_destroy(&fixture.pool);
}

static void ghosts_are_the_last_ones(void **state)
{
    (void)state;
    kv_ghosts_t ghosts;
    kv_ghosts_init(&ghosts, 1000);
    assert_false(kv_ghosts_take(&ghosts, 1));
    for (uint32_t i = 0; i < 5000; i++) {
        kv_ghosts_add(&ghosts, i * 2654435761u);
    }
    uint32_t there = 0;
    for (uint32_t i = 0; i < 5000; i++) {
        bool taken = kv_ghosts_take(&ghosts, i * 2654435761u);
        assert_true(!taken || i >= 4000);
        there += taken;
        assert_false(taken && kv_ghosts_take(&ghosts, i * 2654435761u));
    }
    assert_true(there > 850);
    assert_true(kv_ghosts_bytes(&ghosts) <= 1000 * 16);
    kv_ghosts_destroy(&ghosts);
}

static void a_pool_counts_what_its_order_takes(void **state)
{
    (void)state;
    for (int policy = 0; policy < KVIST_POLICY_COUNT; policy++) {
        fixture_t fixture;
        begin(&fixture, (kvist_policy_t)policy, SLOTS_MAX);
        for (uint32_t i = 0; i < 10 * SLOTS_MAX; i++) {
            if (fixture.pool.free_count == 0) {
                evict(&fixture);
            }
            come(&fixture, i, i);
        }
        assert_true(kv_pool_order_bytes(&fixture.pool) / SLOTS_MAX <= 96);
        kv_pool_destroy(&fixture.pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_recently_used_goes_first),
        cmocka_unit_test(the_least_worth_goes_first_and_what_stays_ages),
        cmocka_unit_test(what_is_cheap_to_load_is_worth_no_more_than_that),
        cmocka_unit_test(a_scan_passes_what_is_used),
        cmocka_unit_test(what_comes_back_soon_is_not_new),
        cmocka_unit_test(ghosts_are_the_last_ones),
        cmocka_unit_test(a_pool_counts_what_its_order_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
