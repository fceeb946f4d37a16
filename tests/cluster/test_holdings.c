/* Who holds what, against a plain list that does the same slowly; and what a search costs. */
#include "cluster/holdings.h"

#include "base/clock.h"
#include "testing/testing.h"

#include <stdlib.h>
#include <string.h>

enum { KEY_BYTES = KV_HOLDINGS_KEY_BYTES, MODEL_MAX = 512, FOUND_MAX = 32, RUN_MAX = 12 };

/* ---- keys ---- */

/* Block `block` of context `context`: any bytes, as SHA-256 has them. */
static void make_key(uint32_t context, uint32_t block, uint8_t *key_out)
{
    uint64_t state = ((uint64_t)context << 32) + block;
    for (int i = 0; i < KEY_BYTES; i += 8) {
        uint64_t bits = kv_test_random(&state);
        memcpy(key_out + i, &bits, 8);
    }
}

static void make_keys(uint32_t context, uint32_t first, uint32_t count, uint8_t *keys_out)
{
    for (uint32_t i = 0; i < count; i++) {
        make_key(context, first + i, keys_out + (size_t)i * KEY_BYTES);
    }
}

/* ---- the model: oldest first ---- */

typedef struct {
    uint64_t holder;
    uint8_t key[KEY_BYTES];
    unsigned tiers;
} item_t;

typedef struct {
    item_t items[MODEL_MAX];
    size_t count, capacity;
} model_t;

static size_t model_find(const model_t *model, uint64_t holder, const uint8_t *key)
{
    for (size_t i = 0; i < model->count; i++) {
        if (model->items[i].holder == holder && memcmp(model->items[i].key, key, KEY_BYTES) == 0) {
            return i;
        }
    }
    return MODEL_MAX;
}

static void model_take(model_t *model, size_t at)
{
    memmove(
        &model->items[at], &model->items[at + 1], (model->count - at - 1) * sizeof model->items[0]);
    model->count--;
}

static void model_stored(model_t *model, uint64_t holder, const uint8_t *key, unsigned tier)
{
    size_t at = model_find(model, holder, key);
    item_t item = {.holder = holder, .tiers = 0};
    memcpy(item.key, key, KEY_BYTES);
    if (at < MODEL_MAX) {
        item = model->items[at];
        model_take(model, at);
    } else if (model->count == model->capacity) {
        model_take(model, 0);
    }
    item.tiers |= 1U << tier;
    model->items[model->count++] = item;
}

static void model_removed(model_t *model, uint64_t holder, const uint8_t *key, unsigned tier)
{
    size_t at = model_find(model, holder, key);
    if (at < MODEL_MAX) {
        model->items[at].tiers &= ~(1U << tier);
        if (model->items[at].tiers == 0) {
            model_take(model, at);
        }
    }
}

static void model_forget(model_t *model, uint64_t holder)
{
    for (size_t i = model->count; i-- > 0;) {
        if (model->items[i].holder == holder) {
            model_take(model, i);
        }
    }
}

static kv_holding_t model_measure(
    const model_t *model, uint64_t holder, const uint8_t *keys, uint32_t count)
{
    kv_holding_t holding = {.holder = holder};
    for (uint32_t i = 0; i < count; i++) {
        size_t at = model_find(model, holder, keys + (size_t)i * KEY_BYTES);
        if (at == MODEL_MAX) {
            break;
        }
        holding.block_count++;
        holding.tier_blocks[__builtin_ctz(model->items[at].tiers)]++;
    }
    return holding;
}

/* ---- both ---- */

enum { CONTEXTS = 6, BLOCKS = 24, HOLDERS = 5 };

static void check_find(
    const kv_holdings_t *holdings, const model_t *model, const uint64_t *holders, uint64_t *random)
{
    uint8_t keys[BLOCKS * KEY_BYTES];
    kv_holding_t found[FOUND_MAX];
    uint32_t first = kv_test_random(random) % BLOCKS;
    uint32_t count = BLOCKS - first;
    make_keys(kv_test_random(random) % CONTEXTS, first, count, keys);
    size_t found_count = kv_holdings_find(holdings, keys, count, found, FOUND_MAX);
    size_t expected_count = 0;
    for (int i = 0; i < HOLDERS; i++) {
        kv_holding_t expected = model_measure(model, holders[i], keys, count);
        expected_count += expected.block_count > 0;
        for (size_t at = 0; at < found_count; at++) {
            if (found[at].holder == holders[i]) {
                assert_memory_equal(&found[at], &expected, sizeof expected);
                expected.block_count = 0;
            }
        }
        assert_int_equal(expected.block_count, 0); /* it was among them */
    }
    assert_int_equal(found_count, expected_count);
    for (size_t at = 1; at < found_count; at++) {
        assert_true(found[at - 1].block_count >= found[at].block_count);
        if (found[at - 1].block_count == found[at].block_count) {
            assert_true(found[at - 1].tier_blocks[0] >= found[at].tier_blocks[0]);
        }
    }
    kv_holding_t best[2];
    size_t best_count = kv_holdings_find(holdings, keys, count, best, 2);
    assert_int_equal(best_count, found_count < 2 ? found_count : 2);
    assert_memory_equal(best, found, best_count * sizeof *best);
}

static void step(kv_holdings_t *holdings, model_t *model, uint64_t *holders, uint64_t *next_holder,
    uint64_t *random)
{
    uint8_t keys[RUN_MAX * KEY_BYTES];
    uint32_t count = 1 + kv_test_random(random) % RUN_MAX;
    make_keys(kv_test_random(random) % CONTEXTS, kv_test_random(random) % (BLOCKS - RUN_MAX + 1),
        count, keys);
    uint64_t *holder = &holders[kv_test_random(random) % HOLDERS];
    unsigned tier = kv_test_random(random) % 3, choice = kv_test_random(random) % 100;
    if (choice < 55) {
        kv_holdings_stored(holdings, *holder, keys, count, (Kvist__Events__Tier)tier);
        for (uint32_t i = 0; i < count; i++) {
            model_stored(model, *holder, keys + (size_t)i * KEY_BYTES, tier);
        }
    } else if (choice < 95) {
        kv_holdings_removed(holdings, *holder, keys, count, (Kvist__Events__Tier)tier);
        for (uint32_t i = 0; i < count; i++) {
            model_removed(model, *holder, keys + (size_t)i * KEY_BYTES, tier);
        }
    } else if (choice < 98) {
        kv_holdings_forget(holdings, *holder);
        model_forget(model, *holder);
        *holder = kv_test_random(random) % 2 == 0 ? *holder : (*next_holder)++;
    }
}

static void the_map_does_what_a_plain_list_does(void **state)
{
    (void)state;
    static const size_t CAPACITIES[] = {1, 2, 7, 40, 200, MODEL_MAX - 1};
    uint64_t seed = kv_test_seed();
    print_message("seed %ju (KVIST_SEED replays it)\n", (uintmax_t)seed);
    for (size_t i = 0; i < sizeof CAPACITIES / sizeof CAPACITIES[0]; i++) {
        uint64_t random = seed + i, next_holder = HOLDERS + 1;
        uint64_t holders[HOLDERS] = {1, 2, 3, 4, 5};
        static model_t model;
        memset(&model, 0, sizeof model);
        model.capacity = CAPACITIES[i];
        kv_holdings_t *holdings = kv_holdings_create(CAPACITIES[i]);
        for (int at = 0; at < (kv_test_long() ? 200000 : 20000); at++) {
            step(holdings, &model, holders, &next_holder, &random);
            assert_int_equal(kv_holdings_count(holdings), model.count);
            check_find(holdings, &model, holders, &random);
        }
        kv_holdings_destroy(holdings);
    }
}

static void holders_have_a_bound_and_come_and_go(void **state)
{
    (void)state;
    uint8_t keys[4 * KEY_BYTES];
    kv_holding_t found[KV_HOLDERS_MAX + 1];
    kv_holdings_t *holdings = kv_holdings_create(100000);
    make_keys(1, 0, 4, keys);
    for (uint64_t holder = 1; holder <= KV_HOLDERS_MAX + 10; holder++) {
        kv_holdings_stored(holdings, holder, keys, 4, KVIST__EVENTS__TIER__TIER_DISK);
    }
    assert_int_equal(
        kv_holdings_find(holdings, keys, 4, found, KV_HOLDERS_MAX + 1), KV_HOLDERS_MAX);
    for (uint64_t holder = 1; holder <= KV_HOLDERS_MAX + 10; holder++) {
        kv_holdings_forget(holdings, holder);
    }
    assert_int_equal(kv_holdings_count(holdings), 0);
    assert_int_equal(kv_holdings_find(holdings, keys, 4, found, KV_HOLDERS_MAX + 1), 0);
    for (uint64_t holder = 1000; holder < 6000; holder++) { /* as peers that restart for ever */
        kv_holdings_stored(holdings, holder, keys, 4, KVIST__EVENTS__TIER__TIER_HOST);
        assert_int_equal(kv_holdings_find(holdings, keys, 4, found, 8), 1);
        assert_int_equal(found[0].holder, holder);
        assert_int_equal(found[0].tier_blocks[1], 4);
        kv_holdings_forget(holdings, holder);
    }
    kv_holdings_destroy(holdings);
}

/* 512 keys among 4 holders that have a quarter of a million each. */
static void a_search_is_timed(void **state)
{
    (void)state;
    enum { ENTRIES = 1 << 20, FOUR = 4, ASKED = 512, CONTEXT_COUNT = ENTRIES / FOUR / ASKED };
    kv_holdings_t *holdings = kv_holdings_create(ENTRIES);
    uint8_t *keys = malloc((size_t)ASKED * KEY_BYTES);
    uint64_t stored_ns = kv_clock_now_ns(), random = kv_test_seed();
    for (uint32_t context = 0; context < CONTEXT_COUNT; context++) {
        make_keys(context, 0, ASKED, keys);
        for (uint64_t holder = 1; holder <= FOUR; holder++) {
            kv_holdings_stored(holdings, holder, keys, ASKED, KVIST__EVENTS__TIER__TIER_HOST);
        }
    }
    stored_ns = kv_clock_now_ns() - stored_ns;
    assert_int_equal(kv_holdings_count(holdings), ENTRIES);
    uint64_t spent_ns = 0, rounds = 200;
    for (uint64_t i = 0; i < rounds; i++) {
        kv_holding_t found[FOUR];
        make_keys(kv_test_random(&random) % CONTEXT_COUNT, 0, ASKED, keys);
        uint64_t begun_ns = kv_clock_now_ns();
        assert_int_equal(kv_holdings_find(holdings, keys, ASKED, found, FOUR), FOUR);
        spent_ns += kv_clock_now_ns() - begun_ns;
        assert_int_equal(found[FOUR - 1].block_count, ASKED);
    }
    uint64_t forget_ns = kv_clock_now_ns();
    kv_holdings_forget(holdings, 2);
    forget_ns = kv_clock_now_ns() - forget_ns;
    print_message("%d entries, %.1f bytes each: find of %d keys among %d holders %.0f us, stored "
                  "%.0f ns a key, a holder forgotten in %.1f us\n",
        ENTRIES, (double)kv_holdings_bytes(ENTRIES) / ENTRIES, ASKED, FOUR,
        (double)spent_ns / 1000 / (double)rounds, (double)stored_ns / ENTRIES,
        (double)forget_ns / 1000);
    assert_true(kv_holdings_bytes(ENTRIES) <= (size_t)24 * ENTRIES);
    free(keys);
    kv_holdings_destroy(holdings);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_map_does_what_a_plain_list_does),
        cmocka_unit_test(holders_have_a_bound_and_come_and_go),
        cmocka_unit_test(a_search_is_timed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
