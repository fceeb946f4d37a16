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

/* ---- forecast ---- */

static void without_experience_forecast_is_lru(void **state)
{
    (void)state;
    fixture_t fixture;
    kv_virtual_clock_t clock;
    kv_virtual_clock_init(&clock, KV_NS_PER_S);
    begin(&fixture, KVIST_POLICY_FORECAST, 3);
    fixture.pool.clock = &clock.clock;
    uint32_t first = come(&fixture, 0, 9);
    kv_virtual_clock_advance(&clock, KV_NS_PER_S);
    come(&fixture, 1, 5);
    kv_virtual_clock_advance(&clock, KV_NS_PER_S);
    come(&fixture, 2, 1);
    use(&fixture, first);
    assert_int_equal(evict(&fixture), 1);
    assert_int_equal(evict(&fixture), 2);
    assert_int_equal(evict(&fixture), 0);
    kv_pool_destroy(&fixture.pool);
}

enum { OBJECTS_BACK = 8, BACK_AFTER_S = 80, FOREVER_S = 12000 };

/* One object a second; what comes back does so after BACK_AFTER_S, longer than any stays that is
 * kept by its last use. Of those that come back in the second half of the time, the percentage that
 * were there. Hinted: it is said to come back then, true or not. */
static uint32_t run_forecast(bool coming_are_hinted, bool others_are_hinted)
{
    fixture_t fixture;
    kv_virtual_clock_t clock;
    uint32_t slots[OBJECTS_BACK] = {0}, found = 0;
    kv_virtual_clock_init(&clock, KV_NS_PER_S);
    begin(&fixture, KVIST_POLICY_FORECAST, 32);
    fixture.pool.clock = &clock.clock;
    for (uint32_t second = 0; second < FOREVER_S; second++) {
        bool comes_back = second % (BACK_AFTER_S / OBJECTS_BACK) == 0;
        uint32_t which = second / (BACK_AFTER_S / OBJECTS_BACK) % OBJECTS_BACK;
        uint32_t now_s = (uint32_t)(clock.unix_ns / KV_NS_PER_S);
        kv_virtual_clock_advance(&clock, KV_NS_PER_S);
        uint32_t object = comes_back ? which : OBJECTS_BACK + second;
        bool there = comes_back && second >= BACK_AFTER_S &&
                     fixture.pool.slots[slots[which]].state == KV_SLOT_OBJECT &&
                     fixture.pool.slots[slots[which]].object == which;
        if (there) {
            use(&fixture, slots[which]);
            found += second >= FOREVER_S / 2;
            continue;
        }
        if (fixture.pool.free_count == 0) {
            evict(&fixture);
        }
        uint32_t slot = kv_pool_take(&fixture.pool);
        const kv_slot_of_t of = {.key_hash = object * 2654435761u, .position = 1};
        kv_pool_set_object(&fixture.pool, slot, object, &of);
        if (comes_back ? coming_are_hinted : others_are_hinted) {
            kv_pool_expect(&fixture.pool, slot, now_s + 1 + BACK_AFTER_S, now_s);
        }
        kv_pool_release(&fixture.pool, slot, KVIST_PRIORITY_INTERACTIVE);
        if (comes_back) {
            slots[which] = slot;
        }
    }
    kv_pool_destroy(&fixture.pool);
    return found * 100 / (FOREVER_S / 2 / (BACK_AFTER_S / OBJECTS_BACK));
}

static void what_comes_back_is_kept(void **state)
{
    (void)state;
    assert_true(run_forecast(false, false) >= 90);
}

/* All that never comes back is said to come back, and nothing else: it is found out. */
static void false_hints_push_nothing_out(void **state)
{
    (void)state;
    assert_true(run_forecast(false, true) >= 90);
}

static void a_true_hint_is_believed(void **state)
{
    (void)state;
    assert_true(run_forecast(true, false) >= 90);
}

static void ghosts_are_the_last_ones(void **state)
{
    (void)state;
    kv_ghosts_t ghosts;
    kv_ghosts_init(&ghosts, 1000);
    uint32_t note;
    assert_false(kv_ghosts_take(&ghosts, 1, &note));
    for (uint32_t i = 0; i < 5000; i++) {
        kv_ghosts_add(&ghosts, i * 2654435761u, i % 6);
    }
    uint32_t there = 0;
    for (uint32_t i = 0; i < 5000; i++) {
        bool taken = kv_ghosts_take(&ghosts, i * 2654435761u, &note);
        assert_true(!taken || i >= 4000);
        there += taken;
        assert_true(!taken || note == i % 6);
        assert_false(taken && kv_ghosts_take(&ghosts, i * 2654435761u, &note));
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
        bool learns = policy == KVIST_POLICY_FORECAST; /* from as many in every pool */
        size_t bytes_max = SLOTS_MAX * (learns ? 160 : 96) + (learns ? 512 << 10 : 0);
        assert_true(kv_pool_order_bytes(&fixture.pool) <= bytes_max);
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
        cmocka_unit_test(without_experience_forecast_is_lru),
        cmocka_unit_test(what_comes_back_is_kept),
        cmocka_unit_test(false_hints_push_nothing_out),
        cmocka_unit_test(a_true_hint_is_believed),
        cmocka_unit_test(ghosts_are_the_last_ones),
        cmocka_unit_test(a_pool_counts_what_its_order_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
