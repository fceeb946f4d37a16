/* Fetch or compute, and for how long to be patient: the rules of rates.h. */
#include "base/clock.h"
#include "runtime/rates.h"
#include "testing/testing.h"

enum { TOKENS = 16, BYTES = 1000 };

static bool pays(kv_rates_t *rates)
{
    return kv_rates_fetch_pays(rates, 10, TOKENS, BYTES);
}

static void what_was_not_seen_pays(void **state)
{
    (void)state;
    kv_rates_t rates = {0};
    assert_true(pays(&rates));
    kv_rates_computed(&rates, 160, KV_NS_PER_S); /* 10 blocks a second; no fetch was seen */
    assert_true(pays(&rates));
    assert_false(kv_rates_fetch_pays(&rates, KV_FETCH_BLOCKS_MIN - 1, TOKENS, BYTES));
}

static void the_faster_one_is_chosen(void **state)
{
    (void)state;
    kv_rates_t rates = {0};
    kv_rates_computed(&rates, 160, KV_NS_PER_S);
    kv_rates_fetched(&rates, 11 * BYTES, KV_NS_PER_S);
    assert_true(pays(&rates));
    kv_rates_fetched(&rates, BYTES, KV_NS_PER_S); /* 8.5 on average now */
    assert_false(pays(&rates));
    kv_rates_computed(&rates, 16, KV_NS_PER_S); /* 7.75: the engine is busy */
    assert_true(pays(&rates));
}

static void a_slow_wire_is_tried_again(void **state)
{
    (void)state;
    kv_rates_t rates = {0};
    kv_rates_computed(&rates, 160, KV_NS_PER_S);
    kv_rates_fetched(&rates, BYTES, KV_NS_PER_S);
    for (int round = 0; round < 2; round++) {
        for (int i = 1; i < KV_FETCH_SKIPPED_MAX; i++) {
            assert_false(pays(&rates));
        }
        assert_true(pays(&rates));
    }
}

static void what_brought_nothing_counts_where_it_took_time(void **state)
{
    (void)state;
    kv_rates_t rates = {0};
    kv_rates_fetched(&rates, 0, 5ull * KV_NS_PER_S); /* no rate to lower yet */
    assert_true(rates.fetched_bytes_per_s == 0);
    kv_rates_fetched(&rates, 100 * BYTES, KV_NS_PER_S);
    double before = rates.fetched_bytes_per_s;
    kv_rates_fetched(&rates, 0, KV_NS_PER_MS); /* refused */
    assert_true(rates.fetched_bytes_per_s == before);
    kv_rates_fetched(&rates, 0, 5ull * KV_NS_PER_S); /* timed out */
    assert_true(rates.fetched_bytes_per_s == before * 0.75);
}

static void a_fetch_may_take_as_long_as_computing(void **state)
{
    (void)state;
    kv_rates_t rates = {0};
    assert_true(kv_rates_fetch_limit_ns(&rates, 100000) == 5ull * KV_NS_PER_S);
    kv_rates_computed(&rates, 100, KV_NS_PER_S);
    assert_true(kv_rates_fetch_limit_ns(&rates, 100) == 5ull * KV_NS_PER_S);
    assert_true(kv_rates_fetch_limit_ns(&rates, 2000) == 20ull * KV_NS_PER_S);
    assert_true(kv_rates_fetch_limit_ns(&rates, 100000) == 60ull * KV_NS_PER_S);
}

static void patience_grows_with_the_queue(void **state)
{
    (void)state;
    kv_rates_t rates = {0};
    assert_true(kv_rates_prefill_limit_ns(&rates, 5, 1000) == UINT64_MAX);
    kv_rates_prefilled(&rates, 0, KV_NS_PER_S); /* all was cached */
    assert_true(kv_rates_prefill_limit_ns(&rates, 5, 1000) == UINT64_MAX);
    kv_rates_prefilled(&rates, 1000, 2ull * KV_NS_PER_S);
    assert_true(kv_rates_prefill_limit_ns(&rates, 0, 500) == 21ull * KV_NS_PER_S);
    assert_true(kv_rates_prefill_limit_ns(&rates, 3, 500) == 57ull * KV_NS_PER_S);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_not_seen_pays),
        cmocka_unit_test(the_faster_one_is_chosen),
        cmocka_unit_test(a_slow_wire_is_tried_again),
        cmocka_unit_test(what_brought_nothing_counts_where_it_took_time),
        cmocka_unit_test(a_fetch_may_take_as_long_as_computing),
        cmocka_unit_test(patience_grows_with_the_queue),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
