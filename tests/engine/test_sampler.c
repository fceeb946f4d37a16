#include "engine/sampler.h"
#include "testing/testing.h"

#include <math.h>
#include <string.h>

enum { COUNT = 8 };

static const float LOGITS[COUNT] = {1, 3, 2, 0, -1, 3, -4, 2.5f};

static uint32_t draw(kv_sampling_t sampling, uint64_t position, const float *logits)
{
    kv_sampler_t *sampler = kv_sampler_create(COUNT);
    uint32_t token = kv_sampler_draw(sampler, &sampling, position, logits, NULL);
    kv_sampler_destroy(sampler);
    return token;
}

static void wrong_settings_are_named(void **state)
{
    (void)state;
    static const struct {
        kv_sampling_t sampling;
        const char *word;
    } CASES[] = {
        {{-0.1f, 0, 1, 0}, "temperature"},
        {{100.5f, 0, 1, 0}, "temperature"},
        {{NAN, 0, 1, 0}, "temperature"},
        {{1, 0, 0, 0}, "top_p"},
        {{1, 0, 1.01f, 0}, "top_p"},
        {{1, 0, NAN, 0}, "top_p"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        kv_error_t error = {0};
        assert_int_equal(kv_sampling_validate(&CASES[i].sampling, &error), KV_INVALID);
        assert_non_null(strstr(error.text, CASES[i].word));
    }
    kv_sampling_t greedy = {0, 0, 1, 0}, wild = {100, UINT32_MAX, 1e-6f, UINT64_MAX};
    assert_int_equal(kv_sampling_validate(&greedy, NULL), KV_OK);
    assert_int_equal(kv_sampling_validate(&wild, NULL), KV_OK);
}

static void greedy_takes_the_best_and_of_equals_the_lower(void **state)
{
    (void)state;
    kv_sampling_t greedy = {0, 0, 1, 42};
    assert_int_equal(draw(greedy, 0, LOGITS), 1);
    static const float EQUAL[COUNT] = {-2, -2, -2, -2, -2, -2, -2, -2};
    assert_int_equal(draw(greedy, 9, EQUAL), 0);
}

static void what_is_not_finite_is_never_drawn(void **state)
{
    (void)state;
    static const float BROKEN[COUNT] = {NAN, INFINITY, -3, -INFINITY, NAN, -3.5f, NAN, INFINITY};
    float all[COUNT], logprob = 0;
    for (uint64_t position = 0; position < 200; position++) {
        uint32_t token = draw((kv_sampling_t){50, 0, 1, 1}, position, BROKEN);
        assert_true(token == 2 || token == 5);
        assert_true(draw((kv_sampling_t){50, 3, 0.9f, 1}, position, BROKEN) % 3 == 2);
    }
    assert_int_equal(draw((kv_sampling_t){0, 0, 1, 1}, 0, BROKEN), 2);
    for (int i = 0; i < COUNT; i++) {
        all[i] = NAN;
    }
    kv_sampler_t *sampler = kv_sampler_create(COUNT);
    kv_sampling_t warm = {1, 2, 0.5f, 1};
    assert_int_equal(kv_sampler_draw(sampler, &warm, 0, all, &logprob), 0);
    assert_true(isinf(logprob) && logprob < 0);
    kv_sampler_destroy(sampler);
}

static void extreme_logits_and_temperatures_are_survived(void **state)
{
    (void)state;
    static const float FAR[COUNT] = {-3e38f, 3e38f, 0, 1, 2, 3, 4, 5};
    static const float TEMPERATURES[] = {1e-45f, 1e-30f, 1e-6f, 1, 100};
    for (size_t i = 0; i < sizeof TEMPERATURES / sizeof TEMPERATURES[0]; i++) {
        assert_int_equal(draw((kv_sampling_t){TEMPERATURES[i], 0, 1, 3}, i, FAR), 1);
        assert_int_equal(draw((kv_sampling_t){TEMPERATURES[i], 5, 0.99f, 3}, i, FAR), 1);
    }
}

/* The share of each token over many positions, against the probabilities by definition. */
static void assert_distribution(kv_sampling_t sampling, const bool kept[COUNT])
{
    enum { DRAWS = 40000 };
    kv_sampler_t *sampler = kv_sampler_create(COUNT);
    int drawn[COUNT] = {0};
    double total = 0;
    for (uint64_t position = 0; position < DRAWS; position++) {
        drawn[kv_sampler_draw(sampler, &sampling, position, LOGITS, NULL)]++;
    }
    for (int i = 0; i < COUNT; i++) {
        total += kept[i] ? exp((double)LOGITS[i] / (double)sampling.temperature) : 0;
    }
    for (int i = 0; i < COUNT; i++) {
        double wanted = kept[i] ? exp((double)LOGITS[i] / (double)sampling.temperature) / total : 0;
        double deviation = sqrt(wanted * (1 - wanted) / DRAWS);
        double share = (double)drawn[i] / DRAWS;
        if (fabs(share - wanted) > 5 * deviation) {
            fail_msg("token %d: drawn %g, wanted %g", i, share, wanted);
        }
    }
    kv_sampler_destroy(sampler);
}

/* In the order of LOGITS: 1 and 5 (3), 7 (2.5), 2 (2), 0 (1), 3, 4, 6. */
static void shares_are_the_probabilities(void **state)
{
    (void)state;
    static const bool ALL[COUNT] = {1, 1, 1, 1, 1, 1, 1, 1}, FIRST[COUNT] = {0, 1},
                      THREE[COUNT] = {0, 1, 0, 0, 0, 1, 0, 1}, TWO[COUNT] = {0, 1, 0, 0, 0, 1};
    assert_distribution((kv_sampling_t){1, 0, 1, 1}, ALL);
    assert_distribution((kv_sampling_t){2.5f, 0, 1, 2}, ALL);
    assert_distribution((kv_sampling_t){0.5f, 0, 1, 3}, ALL);
    assert_distribution((kv_sampling_t){1, COUNT, 1, 4}, ALL);
    assert_distribution((kv_sampling_t){1, UINT32_MAX, 1, 5}, ALL);
    assert_distribution((kv_sampling_t){1, 1, 1, 6}, FIRST);
    assert_distribution((kv_sampling_t){1, 2, 1, 7}, TWO);
    assert_distribution((kv_sampling_t){1, 3, 1, 8}, THREE);
    /* Of all, 1 and 5 have 0.314 each, 7 has 0.190, 2 has 0.115. */
    assert_distribution((kv_sampling_t){1, 0, 1e-6f, 9}, FIRST);
    assert_distribution((kv_sampling_t){1, 0, 0.31f, 10}, FIRST);
    assert_distribution((kv_sampling_t){1, 0, 0.6f, 11}, TWO);
    assert_distribution((kv_sampling_t){1, 0, 0.7f, 12}, THREE);
    /* Of the first three they have 0.384, 0.384, 0.233: top-p is a share of what top-k leaves. */
    assert_distribution((kv_sampling_t){1, 3, 0.7f, 13}, TWO);
    assert_distribution((kv_sampling_t){1, 3, 0.8f, 14}, THREE);
    /* Temperature comes first: at 0.25 the first two have 0.46 each of all. */
    assert_distribution((kv_sampling_t){0.25f, 0, 0.7f, 15}, TWO);
}

static void a_position_draws_the_same_whatever_came_before(void **state)
{
    (void)state;
    kv_sampling_t sampling = {1.5f, 0, 1, 77};
    uint32_t first[256], other_seed = 0;
    kv_sampler_t *sampler = kv_sampler_create(COUNT);
    for (uint64_t position = 0; position < 256; position++) {
        first[position] = kv_sampler_draw(sampler, &sampling, position, LOGITS, NULL);
    }
    for (uint64_t position = 256; position-- > 0;) {
        assert_int_equal(draw(sampling, position, LOGITS), first[position]);
        sampling.seed = 78;
        other_seed += draw(sampling, position, LOGITS) != first[position];
        sampling.seed = 77;
    }
    assert_true(other_seed > 128);
    kv_sampler_destroy(sampler);
}

static void logprobs_are_of_the_unmodified_distribution(void **state)
{
    (void)state;
    double total = 0;
    for (int i = 0; i < COUNT; i++) {
        total += exp((double)LOGITS[i]);
    }
    kv_sampler_t *sampler = kv_sampler_create(COUNT);
    for (uint64_t position = 0; position < 50; position++) {
        kv_sampling_t sampling = {position % 2 ? 3.0f : 0, position % 3 ? 0 : 4, 0.95f, 5};
        float logprob = 0;
        uint32_t token = kv_sampler_draw(sampler, &sampling, position, LOGITS, &logprob);
        assert_true(fabs((double)logprob - ((double)LOGITS[token] - log(total))) < 1e-5);
    }
    kv_sampler_destroy(sampler);
}

static void tops_are_the_likeliest_with_their_logprobs(void **state)
{
    (void)state;
    double total = 0;
    for (int i = 0; i < COUNT; i++) {
        total += exp((double)LOGITS[i]);
    }
    kv_sampler_t *sampler = kv_sampler_create(COUNT);
    kv_sampler_tops_t tops;
    for (uint32_t wanted = 0; wanted <= COUNT + 2; wanted++) {
        kv_sampler_tops(sampler, LOGITS, wanted, &tops);
        assert_int_equal(tops.count, wanted < COUNT ? wanted : COUNT);
        for (uint32_t i = 0; i < tops.count; i++) {
            uint32_t before = 0, token = tops.tokens[i];
            for (uint32_t k = 0; k < COUNT; k++) {
                before += LOGITS[k] > LOGITS[token] || (LOGITS[k] == LOGITS[token] && k < token);
            }
            assert_int_equal(before, i);
            double logprob = (double)LOGITS[token] - log(total);
            assert_true(fabs((double)tops.logprobs[i] - logprob) < 1e-5);
        }
    }
    float broken[COUNT];
    for (int i = 0; i < COUNT; i++) {
        broken[i] = i == 3 ? 1 : NAN;
    }
    kv_sampler_tops(sampler, broken, 5, &tops);
    assert_int_equal(tops.count, 1);
    assert_int_equal(tops.tokens[0], 3);
    assert_true(fabs((double)tops.logprobs[0]) < 1e-6);
    broken[3] = NAN;
    kv_sampler_tops(sampler, broken, 5, &tops);
    assert_int_equal(tops.count, 0);
    kv_sampler_destroy(sampler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_settings_are_named),
        cmocka_unit_test(greedy_takes_the_best_and_of_equals_the_lower),
        cmocka_unit_test(what_is_not_finite_is_never_drawn),
        cmocka_unit_test(extreme_logits_and_temperatures_are_survived),
        cmocka_unit_test(shares_are_the_probabilities),
        cmocka_unit_test(a_position_draws_the_same_whatever_came_before),
        cmocka_unit_test(logprobs_are_of_the_unmodified_distribution),
        cmocka_unit_test(tops_are_the_likeliest_with_their_logprobs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
