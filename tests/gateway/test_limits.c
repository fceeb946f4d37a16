/* Rates on a clock that the test turns. */
#include "testing/testing.h"

#include "base/clock.h"
#include "gateway/access/limits.h"

#define SECOND ((uint64_t)KV_NS_PER_S)

static const uint64_t BEGIN_NS = 5000 * SECOND;

static void test_a_minutes_worth_at_once(void **state)
{
    (void)state;
    /* 7 does not divide a minute: none of them may get lost in rounding. */
    for (uint64_t limit = 1; limit <= 1000; limit += limit < 20 ? 1 : 97) {
        kv_bucket_t bucket = {0};
        uint64_t wait_ns = 0;
        kv_bucket_set(&bucket, limit);
        for (uint64_t i = 0; i < limit; i++) {
            assert_int_equal(kv_bucket_left(&bucket, BEGIN_NS), limit - i);
            assert_true(kv_bucket_take(&bucket, 1, BEGIN_NS, &wait_ns));
        }
        assert_false(kv_bucket_take(&bucket, 1, BEGIN_NS, &wait_ns));
        assert_int_equal(kv_bucket_left(&bucket, BEGIN_NS), 0);
        /* What it says is true, and no later than that. */
        assert_false(kv_bucket_take(&bucket, 1, BEGIN_NS + wait_ns - 1, &wait_ns));
        assert_int_equal(wait_ns, 1);
    }
}

static void test_the_wait_is_true(void **state)
{
    (void)state;
    uint64_t seed = kv_test_seed(), now_ns = BEGIN_NS;
    kv_bucket_t bucket = {0};
    kv_bucket_set(&bucket, 600);
    for (int i = 0; i < 2000; i++) {
        uint64_t wait_ns = 0, count = kv_test_random(&seed) % 200;
        if (!kv_bucket_take(&bucket, count, now_ns, &wait_ns)) {
            kv_bucket_t copy = bucket;
            uint64_t unused;
            assert_false(kv_bucket_take(&copy, count, now_ns + wait_ns - 1, &unused));
            assert_true(kv_bucket_take(&copy, count, now_ns + wait_ns, &unused));
            uint64_t seconds = kv_retry_after_s(wait_ns);
            assert_true(seconds * SECOND >= wait_ns && (seconds - 1) * SECOND < wait_ns);
        }
        now_ns += kv_test_random(&seed) % (20 * SECOND);
    }
}

/* Whatever is asked and when: in no stretch of time more than the limit for it, and what the bucket
 * held. */
static void test_never_more_than_the_limit(void **state)
{
    (void)state;
    uint64_t seed = kv_test_seed(), now_ns = BEGIN_NS, taken = 0;
    kv_bucket_t bucket = {0};
    kv_bucket_set(&bucket, 1000);
    for (int i = 0; i < 20000; i++) {
        uint64_t wait_ns, count = 1 + kv_test_random(&seed) % 50;
        taken += kv_bucket_take(&bucket, count, now_ns, &wait_ns) ? count : 0;
        assert_true(taken <= 1001 + (now_ns - BEGIN_NS) / (60 * SECOND / 1000));
        now_ns += kv_test_random(&seed) % (SECOND / 2);
    }
    assert_true(taken > (now_ns - BEGIN_NS) / (60 * SECOND / 1000) * 9 / 10);
}

static void test_more_than_a_minutes_worth_is_never_granted(void **state)
{
    (void)state;
    kv_bucket_t bucket = {0};
    uint64_t wait_ns = 0;
    kv_bucket_set(&bucket, 10);
    assert_false(kv_bucket_take(&bucket, 11, BEGIN_NS, &wait_ns));
    assert_true(wait_ns == UINT64_MAX);
    assert_int_equal(kv_bucket_left(&bucket, BEGIN_NS), 10);
    kv_bucket_set(&bucket, KV_LIMIT_MAX);
    assert_true(kv_bucket_take(&bucket, KV_LIMIT_MAX - 1, BEGIN_NS, &wait_ns));
    assert_int_equal(kv_bucket_left(&bucket, BEGIN_NS), 1);
}

static void test_given_back(void **state)
{
    (void)state;
    kv_bucket_t bucket = {0};
    uint64_t wait_ns;
    kv_bucket_set(&bucket, 60);
    assert_true(kv_bucket_take(&bucket, 60, BEGIN_NS, &wait_ns));
    kv_bucket_give_back(&bucket, 20);
    assert_int_equal(kv_bucket_left(&bucket, BEGIN_NS), 20);
    assert_int_equal(kv_bucket_fill_ns(&bucket, BEGIN_NS), 40 * SECOND);
    /* Long after it is full nothing is above full. */
    kv_bucket_give_back(&bucket, 60);
    assert_int_equal(kv_bucket_left(&bucket, BEGIN_NS + 500 * SECOND), 60);
    assert_int_equal(kv_bucket_fill_ns(&bucket, BEGIN_NS + 500 * SECOND), 0);
}

static void test_another_limit(void **state)
{
    (void)state;
    kv_bucket_t bucket = {0};
    uint64_t wait_ns;
    assert_true(kv_bucket_take(&bucket, UINT64_MAX, BEGIN_NS, &wait_ns)); /* no bound */
    kv_bucket_set(&bucket, 100);
    assert_true(kv_bucket_take(&bucket, 50, BEGIN_NS, &wait_ns));
    kv_bucket_set(&bucket, 10);
    assert_int_equal(kv_bucket_left(&bucket, BEGIN_NS), 5);
    kv_bucket_set(&bucket, 0);
    assert_true(kv_bucket_take(&bucket, 1000, BEGIN_NS, &wait_ns));
}

static void test_reset_texts(void **state)
{
    (void)state;
    static const struct {
        uint64_t ns;
        const char *text;
    } CASES[] = {{0, "0s"}, {1, "1ms"}, {12 * KV_NS_PER_MS, "12ms"}, {SECOND, "1s"},
        {SECOND + 1, "2s"}, {59 * SECOND, "59s"}, {59 * SECOND + 5 * KV_NS_PER_MS, "1m0s"},
        {60 * SECOND, "1m0s"}, {372 * SECOND, "6m12s"}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        char text[KV_RESET_TEXT_BYTES];
        kv_reset_text(CASES[i].ns, text);
        assert_string_equal(text, CASES[i].text);
    }
    assert_int_equal(kv_retry_after_s(0), 1);
    assert_int_equal(kv_retry_after_s(SECOND), 1);
    assert_int_equal(kv_retry_after_s(SECOND + 1), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_minutes_worth_at_once),
        cmocka_unit_test(test_the_wait_is_true),
        cmocka_unit_test(test_never_more_than_the_limit),
        cmocka_unit_test(test_more_than_a_minutes_worth_is_never_granted),
        cmocka_unit_test(test_given_back),
        cmocka_unit_test(test_another_limit),
        cmocka_unit_test(test_reset_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
