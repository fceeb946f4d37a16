/* What a node remembers of its requests: the latest, by id and by number, within its bound. */
#include "holder/outcomes.h"

#include "testing/testing.h"

#include <stdio.h>
#include <string.h>

enum { BLOCK_TOKENS = 16, PROMPT = 50 };

static void add(kv_outcomes_t *outcomes, uint32_t number, kvist_miss_t miss, uint32_t block)
{
    uint32_t prompt[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++) {
        prompt[i] = 1000 * number + i;
    }
    kv_outcome_t outcome = {
        .prompt_tokens = PROMPT,
        .match = {.block_count = number, .miss = miss, .detail.block = block},
        .miss = miss,
    };
    snprintf(outcome.id, sizeof outcome.id, "request-%u", number);
    kv_outcomes_add(outcomes, &outcome, prompt, BLOCK_TOKENS);
}

static const kv_outcome_t *find(const kv_outcomes_t *outcomes, uint32_t number)
{
    char id[KV_OUTCOME_ID_BYTES];
    snprintf(id, sizeof id, "request-%u", number);
    return kv_outcomes_find(outcomes, id);
}

static void the_latest_are_found(void **state)
{
    (void)state;
    kv_outcomes_t outcomes = {0};
    assert_null(find(&outcomes, 1));
    assert_null(kv_outcomes_id(&outcomes, 1));
    for (uint32_t number = 1; number <= KV_OUTCOMES_MAX + 10; number++) {
        add(&outcomes, number, KVIST_MISS_NEW, 1);
    }
    assert_null(find(&outcomes, 10));
    const kv_outcome_t *oldest = find(&outcomes, 11);
    assert_int_equal(oldest->match.block_count, 11);
    assert_int_equal(oldest->token_count, BLOCK_TOKENS);
    assert_int_equal(oldest->tokens[0], 11000 + BLOCK_TOKENS);
    assert_string_equal(
        kv_outcomes_id(&outcomes, kv_outcome_request("request-500")), "request-500");
    assert_null(kv_outcomes_id(&outcomes, kv_outcome_request("request-10")));
    assert_null(kv_outcomes_id(&outcomes, 0)); /* nobody's */
    add(&outcomes, 500, KVIST_MISS_DAMAGED, 0);
    assert_int_equal(find(&outcomes, 500)->miss, KVIST_MISS_DAMAGED); /* the later one */
    kv_outcomes_clear(&outcomes);
    assert_null(find(&outcomes, 500));
}

/* The block where the match ended may not be whole, or there is none. */
static void tokens_are_those_of_a_whole_block(void **state)
{
    (void)state;
    static const struct {
        kvist_miss_t miss;
        uint32_t block, token_count;
    } CASES[] = {
        {KVIST_MISS_NONE, 0, 0},
        {KVIST_MISS_SHORT, 0, 0},
        {KVIST_MISS_NEW, 2, BLOCK_TOKENS},
        {KVIST_MISS_NEW, 3, 0}, /* two tokens of it */
        {KVIST_MISS_EVICTED, UINT32_MAX, 0},
    };
    kv_outcomes_t outcomes = {0};
    for (uint32_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        add(&outcomes, i, CASES[i].miss, CASES[i].block);
        const kv_outcome_t *outcome = find(&outcomes, i);
        assert_int_equal(outcome->token_count, CASES[i].token_count);
        assert_int_equal(outcome->tokens != NULL, CASES[i].token_count > 0);
    }
    kv_outcomes_clear(&outcomes);
}

static void reasons_have_one_text(void **state)
{
    (void)state;
    const kvist_miss_detail_t disk = {.tier = KVIST_TIER_DISK}, dropped = {.dropped = true};
    assert_string_equal(kv_outcome_miss_text(KVIST_MISS_EVICTED, &disk), "evicted:disk");
    assert_string_equal(kv_outcome_miss_text(KVIST_MISS_EVICTED, &dropped), "evicted");
    assert_string_equal(kv_outcome_miss_text(KVIST_MISS_DIVERGED, &disk), "diverged");
    assert_string_equal(kv_outcome_miss_told(KVIST_MISS_DIVERGED, &disk), "new");
    assert_string_equal(kv_outcome_miss_told(KVIST_MISS_EVICTED, &disk), "evicted:disk");
    assert_int_equal(kv_outcome_miss_named("evicted:disk"), KVIST_MISS_EVICTED);
    for (int miss = 0; miss < KVIST_MISS_COUNT; miss++) {
        assert_int_equal(kv_outcome_miss_named(kvist_miss_name((kvist_miss_t)miss)), miss);
    }
    assert_int_equal(kv_outcome_miss_named("evict"), KVIST_MISS_FAILED); /* a peer says anything */
    assert_int_equal(kv_outcome_miss_named(""), KVIST_MISS_FAILED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_latest_are_found),
        cmocka_unit_test(tokens_are_those_of_a_whole_block),
        cmocka_unit_test(reasons_have_one_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
