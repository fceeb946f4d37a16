#include "holder/outcomes.h"

#include "base/checksum.h"
#include "base/memory.h"
#include "base/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- texts ---- */

const char *kv_outcome_miss_text(kvist_miss_t miss, const kvist_miss_detail_t *detail)
{
    static const char *const EVICTED[KVIST_TIER_COUNT] = {
        "evicted:device", "evicted:host", "evicted:disk", "evicted:remote"};
    bool from_tier = miss == KVIST_MISS_EVICTED && !detail->dropped;
    return from_tier && (unsigned)detail->tier < KVIST_TIER_COUNT ? EVICTED[detail->tier]
                                                                  : kvist_miss_name(miss);
}

const char *kv_outcome_miss_told(kvist_miss_t miss, const kvist_miss_detail_t *detail)
{
    return kv_outcome_miss_text(miss == KVIST_MISS_DIVERGED ? KVIST_MISS_NEW : miss, detail);
}

kvist_miss_t kv_outcome_miss_named(const char *text)
{
    size_t bytes = strcspn(text, ":");
    for (int miss = 0; miss < KVIST_MISS_COUNT; miss++) {
        const char *name = kvist_miss_name((kvist_miss_t)miss);
        if (strlen(name) == bytes && memcmp(name, text, bytes) == 0) {
            return (kvist_miss_t)miss;
        }
    }
    return KVIST_MISS_FAILED;
}

/* ---- the ring ---- */

uint64_t kv_outcome_request(const char *id)
{
    return kv_checksum(id, strlen(id));
}

static void count(kvist_miss_t miss)
{
    char labels[64];
    snprintf(labels, sizeof labels, "reason=\"%s\"", kvist_miss_name(miss));
    kv_metric_add(kv_metric_counter("kvist_misses_total", labels,
                      "requests that ended, by why no more of their prompts was cached"),
        1);
}

void kv_outcomes_add(kv_outcomes_t *outcomes, const kv_outcome_t *outcome, const uint32_t *prompt,
    uint32_t block_tokens)
{
    if (outcomes->items == NULL) {
        outcomes->items = kv_allocate_array(KV_OUTCOMES_MAX, sizeof *outcomes->items);
    }
    kv_outcome_t *entry = &outcomes->items[outcomes->next];
    free(entry->tokens);
    *entry = *outcome;
    entry->tokens = NULL;
    entry->token_count = 0;
    size_t first = (size_t)outcome->match.detail.block * block_tokens;
    bool ended = outcome->match.miss != KVIST_MISS_NONE && outcome->match.miss != KVIST_MISS_SHORT;
    if (ended && first + block_tokens <= outcome->prompt_tokens) {
        entry->tokens = kv_allocate_array(block_tokens, sizeof *entry->tokens);
        entry->token_count = block_tokens;
        memcpy(entry->tokens, prompt + first, block_tokens * sizeof *entry->tokens);
    }
    outcomes->next = (outcomes->next + 1) % KV_OUTCOMES_MAX;
    outcomes->count += outcomes->count < KV_OUTCOMES_MAX;
    count(outcome->miss);
}

void kv_outcomes_clear(kv_outcomes_t *outcomes)
{
    for (uint32_t i = 0; i < outcomes->count; i++) {
        free(outcomes->items[i].tokens);
    }
    free(outcomes->items);
    *outcomes = (kv_outcomes_t){0};
}

/* The latest but `back`. */
static const kv_outcome_t *at(const kv_outcomes_t *outcomes, uint32_t back)
{
    return &outcomes->items[(outcomes->next + KV_OUTCOMES_MAX - 1 - back) % KV_OUTCOMES_MAX];
}

const kv_outcome_t *kv_outcomes_find(const kv_outcomes_t *outcomes, const char *id)
{
    for (uint32_t back = 0; back < outcomes->count; back++) {
        if (strcmp(at(outcomes, back)->id, id) == 0) {
            return at(outcomes, back);
        }
    }
    return NULL;
}

const char *kv_outcomes_id(const kv_outcomes_t *outcomes, uint64_t request)
{
    for (uint32_t back = 0; request != 0 && back < outcomes->count; back++) {
        if (kv_outcome_request(at(outcomes, back)->id) == request) {
            return at(outcomes, back)->id;
        }
    }
    return NULL;
}
