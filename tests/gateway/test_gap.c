/* The gap: every prompt token is exactly one thing, and the reasons are the right ones. */
#include "testing/testing.h"

#include "gateway/figures/gap.h"

#include <string.h>

static kv_partition_t split(uint32_t prompt, uint32_t host, const char *said, kv_seen_t seen)
{
    const uint32_t hit[KV_PARTITION_TIERS] = {0, host, 0, 0};
    kv_partition_t parts;
    kv_partition_make(prompt, hit, said, &seen, &parts);
    return parts;
}

static uint64_t sum_of(const kv_partition_t *parts)
{
    return kv_partition_hit(parts) + kv_partition_gap(parts) + parts->diverged + parts->fresh +
           parts->tail;
}

static void a_prompt_is_split(void **state)
{
    (void)state;
    /* 100 tokens in blocks of 16: 96 can be had, 32 were, 64 had been seen. */
    kv_seen_t seen = {.block_tokens = 16, .seen_tokens = 64, .kept_tokens = 64};
    kv_partition_t parts = split(100, 32, "evicted:disk", seen);
    assert_int_equal(parts.hit[1], 32);
    assert_int_equal(parts.gap[KV_GAP_EVICTED_DISK], 32);
    assert_int_equal(parts.fresh, 32);
    assert_int_equal(parts.tail, 4);
    assert_int_equal(sum_of(&parts), 100);
    assert_true(kv_partition_rate(&parts) == 0.32 && kv_partition_ideal(&parts) == 0.64);

    /* What the audit found is a part of what is new, and no more than that. */
    seen.diverged_tokens = 20;
    parts = split(100, 32, "evicted:disk", seen);
    assert_int_equal(parts.diverged, 20);
    assert_int_equal(parts.fresh, 12);
    seen.diverged_tokens = 50;
    parts = split(100, 32, "evicted:disk", seen);
    assert_int_equal(parts.diverged, 32);
    assert_int_equal(parts.fresh, 0);
    assert_int_equal(parts.gap[KV_GAP_EVICTED_DISK], 32);
}

static void what_no_cache_keeps_is_short(void **state)
{
    (void)state;
    kv_seen_t seen = {.block_tokens = 16, .seen_tokens = 96};
    /* Of a prompt of whole blocks the last token is computed, and so its block. */
    kv_partition_t parts = split(96, 80, "short", seen);
    assert_int_equal(parts.tail, 16);
    assert_int_equal(kv_partition_gap(&parts), 0);
    assert_int_equal(sum_of(&parts), 96);
    assert_int_equal(split(1, 0, "short", seen).tail, 1);
    assert_int_equal(split(16, 0, "new", (kv_seen_t){.block_tokens = 16}).tail, 16);
    assert_int_equal(sum_of(&(kv_partition_t){0}), 0);
    parts = split(0, 0, "", seen);
    assert_int_equal(sum_of(&parts), 0);
    assert_true(kv_partition_rate(&parts) == 0 && kv_partition_ideal(&parts) == 0);
}

static void a_node_may_know_more(void **state)
{
    (void)state;
    /* After a restart the gateway has seen nothing. */
    kv_partition_t parts = split(100, 80, "new", (kv_seen_t){.block_tokens = 16});
    assert_int_equal(kv_partition_gap(&parts), 0);
    assert_int_equal(parts.fresh, 16);
    assert_true(kv_partition_ideal(&parts) == kv_partition_rate(&parts));
    /* It may keep parts of blocks. */
    parts = split(100, 99, "", (kv_seen_t){.block_tokens = 16, .seen_tokens = 64});
    assert_int_equal(parts.tail, 1);
    assert_int_equal(sum_of(&parts), 100);
    /* And what is more than the prompt says nothing. */
    kv_seen_t seen = {.block_tokens = 16, .seen_tokens = 64, .kept_tokens = 64};
    parts = split(100, 101, "evicted:disk", seen);
    assert_int_equal(kv_partition_hit(&parts), 0);
    assert_int_equal(parts.gap[KV_GAP_UNTOLD], 64);
    assert_int_equal(sum_of(&parts), 100);
}

static kv_gap_t why(const char *said, kv_seen_t seen)
{
    seen.block_tokens = 16;
    seen.seen_tokens = 64;
    kv_partition_t parts = split(100, 32, said, seen);
    int reason = 0;
    while (reason < KV_GAP_COUNT && parts.gap[reason] == 0) {
        reason++;
    }
    assert_true(reason < KV_GAP_COUNT);
    assert_int_equal(parts.gap[reason], 32);
    return (kv_gap_t)reason;
}

static void reasons_are_the_nodes(void **state)
{
    (void)state;
    const kv_seen_t kept = {.kept_tokens = 64};
    for (int reason = 0; reason < KV_GAP_FORGOTTEN; reason++) {
        assert_int_equal(why(kv_gap_name((kv_gap_t)reason), kept), reason);
    }
    assert_int_equal(why("namespace:salt", kept), KV_GAP_NAMESPACE);
    assert_int_equal(why("evicted:tape", kept), KV_GAP_OTHER);
    assert_int_equal(why("none", kept), KV_GAP_OTHER);
    assert_int_equal(why("newish", kept), KV_GAP_OTHER);
    assert_string_equal(kv_gap_name(KV_GAP_COUNT), "other");
}

static void where_the_node_knows_none(void **state)
{
    (void)state;
    const kv_seen_t kept = {.kept_tokens = 64};
    assert_int_equal(why("new", kept), KV_GAP_FORGOTTEN);
    assert_int_equal(why("diverged@48", kept), KV_GAP_FORGOTTEN);
    assert_int_equal(why("", kept), KV_GAP_UNTOLD);
    assert_int_equal(why(NULL, kept), KV_GAP_UNTOLD);
    /* Seen in requests that kept nothing; in part kept counts from where the hit ends. */
    assert_int_equal(why("new", (kv_seen_t){0}), KV_GAP_BYPASSED);
    assert_int_equal(why("new", (kv_seen_t){.kept_tokens = 32}), KV_GAP_BYPASSED);
    assert_int_equal(why("new", (kv_seen_t){.kept_tokens = 48}), KV_GAP_FORGOTTEN);
    /* Held by another node; the chosen one may have been thought to have some of it. */
    assert_int_equal(why("", (kv_seen_t){.held_tokens = 64}), KV_GAP_ELSEWHERE);
    assert_int_equal(
        why("", (kv_seen_t){.held_tokens = 64, .at_node_tokens = 32}), KV_GAP_ELSEWHERE);
    assert_int_equal(why("", (kv_seen_t){.held_tokens = 64, .at_node_tokens = 48}), KV_GAP_UNTOLD);
    /* On its way. */
    kv_seen_t coming = {.kept_tokens = 64, .held_tokens = 64, .coming_tokens = 48};
    assert_int_equal(why("new", coming), KV_GAP_PENDING);
    assert_int_equal(why("cheaper", coming), KV_GAP_CHEAPER);
}

static void whatever_is_known_the_parts_add_up(void **state)
{
    (void)state;
    static const char *const SAID[] = {"", "new", "short", "none", "evicted:host", "diverged@3",
        "elsewhere", "what", "namespace:model", NULL};
    uint64_t random = 17;
    kv_partition_t total = {0};
    uint64_t prompts = 0;
    for (int i = 0; i < 100000; i++) {
        uint32_t prompt = (uint32_t)(kv_test_random(&random) % 400);
        uint32_t hit[KV_PARTITION_TIERS];
        for (int tier = 0; tier < KV_PARTITION_TIERS; tier++) {
            hit[tier] = (uint32_t)(kv_test_random(&random) % 120);
        }
        const kv_seen_t seen = {.block_tokens = (uint32_t)(kv_test_random(&random) % 40),
            .seen_tokens = (uint32_t)(kv_test_random(&random) % 500),
            .kept_tokens = (uint32_t)(kv_test_random(&random) % 500),
            .coming_tokens = (uint32_t)(kv_test_random(&random) % 100),
            .held_tokens = (uint32_t)(kv_test_random(&random) % 500),
            .at_node_tokens = (uint32_t)(kv_test_random(&random) % 500),
            .diverged_tokens = (uint32_t)(kv_test_random(&random) % 300)};
        kv_partition_t parts;
        kv_partition_make(prompt, hit, SAID[kv_test_random(&random) % 10], &seen, &parts);
        assert_int_equal(sum_of(&parts), prompt);
        assert_int_equal(parts.prompt, prompt);
        kv_partition_add(&total, &parts);
        prompts += prompt;
    }
    assert_int_equal(total.prompt, prompts);
    assert_int_equal(sum_of(&total), prompts);
    assert_true(kv_partition_rate(&total) <= kv_partition_ideal(&total));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_is_split),
        cmocka_unit_test(what_no_cache_keeps_is_short),
        cmocka_unit_test(a_node_may_know_more),
        cmocka_unit_test(reasons_are_the_nodes),
        cmocka_unit_test(where_the_node_knows_none),
        cmocka_unit_test(whatever_is_known_the_parts_add_up),
    };
    return cmocka_run_group_tests_name("gap", tests, NULL, NULL);
}
