#include "gateway/figures/gap.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static const char *const NAMES[KV_GAP_COUNT] = {"evicted:device", "evicted:host", "evicted:disk",
    "evicted", "expired", "elsewhere", "pending", "bypassed", "not-admitted", "cheaper", "damaged",
    "failed", "cancelled", "namespace", "forgotten", "untold", "other"};

static uint64_t least(uint64_t one, uint64_t other)
{
    return one < other ? one : other;
}

static uint64_t most(uint64_t one, uint64_t other)
{
    return one > other ? one : other;
}

/* ---- the reason ---- */

/* Whether the word is said, alone or with what it is about ("diverged@17", "namespace:salt"). */
static bool says(const char *said, const char *word)
{
    size_t bytes = strlen(word);
    return strncmp(said, word, bytes) == 0 && strchr("@:", said[bytes]) != NULL;
}

/* Where the node does not know why: the first token that was not hit says more. */
static kv_gap_t reason_known_here(uint64_t hit, const kv_seen_t *seen, kv_gap_t otherwise)
{
    if (seen->coming_tokens > hit) {
        return KV_GAP_PENDING;
    }
    if (seen->kept_tokens <= hit && seen->held_tokens <= hit) {
        return KV_GAP_BYPASSED;
    }
    return seen->held_tokens > hit && seen->at_node_tokens <= hit ? KV_GAP_ELSEWHERE : otherwise;
}

static kv_gap_t reason_of(const char *said, uint64_t hit, const kv_seen_t *seen)
{
    if (said == NULL || said[0] == '\0') {
        return reason_known_here(hit, seen, KV_GAP_UNTOLD);
    }
    if (says(said, "new") || says(said, "diverged")) {
        return reason_known_here(hit, seen, KV_GAP_FORGOTTEN);
    }
    for (int i = 0; i < KV_GAP_FORGOTTEN; i++) {
        if (strcmp(said, NAMES[i]) == 0) {
            return (kv_gap_t)i;
        }
    }
    return says(said, NAMES[KV_GAP_NAMESPACE]) ? KV_GAP_NAMESPACE : KV_GAP_OTHER;
}

/* ---- the parts ---- */

void kv_partition_make(uint32_t prompt_tokens, const uint32_t hit[KV_PARTITION_TIERS],
    const char *said, const kv_seen_t *seen, kv_partition_t *partition_out)
{
    kv_partition_t parts = {.prompt = prompt_tokens};
    for (int tier = 0; tier < KV_PARTITION_TIERS; tier++) {
        parts.hit[tier] = hit[tier];
    }
    if (kv_partition_hit(&parts) > prompt_tokens) {
        memset(parts.hit, 0, sizeof parts.hit);
        said = NULL;
    }
    uint64_t got = kv_partition_hit(&parts), whole = prompt_tokens;
    if (seen->block_tokens > 0 && prompt_tokens > 0) {
        whole = (prompt_tokens - 1) / seen->block_tokens * seen->block_tokens;
    }
    uint64_t ideal = most(got, least(seen->seen_tokens, whole));
    if (ideal > got) {
        parts.gap[reason_of(said, got, seen)] = ideal - got;
    }
    parts.tail = prompt_tokens - most(whole, ideal);
    uint64_t rest = prompt_tokens - ideal - parts.tail;
    parts.diverged = least(seen->diverged_tokens, rest);
    parts.fresh = rest - parts.diverged;
    *partition_out = parts;
}

void kv_partition_add(kv_partition_t *total, const kv_partition_t *part)
{
    total->prompt += part->prompt;
    for (int tier = 0; tier < KV_PARTITION_TIERS; tier++) {
        total->hit[tier] += part->hit[tier];
    }
    for (int reason = 0; reason < KV_GAP_COUNT; reason++) {
        total->gap[reason] += part->gap[reason];
    }
    total->diverged += part->diverged;
    total->fresh += part->fresh;
    total->tail += part->tail;
}

uint64_t kv_partition_hit(const kv_partition_t *partition)
{
    uint64_t sum = 0;
    for (int tier = 0; tier < KV_PARTITION_TIERS; tier++) {
        sum += partition->hit[tier];
    }
    return sum;
}

uint64_t kv_partition_gap(const kv_partition_t *partition)
{
    uint64_t sum = 0;
    for (int reason = 0; reason < KV_GAP_COUNT; reason++) {
        sum += partition->gap[reason];
    }
    return sum;
}

double kv_partition_rate(const kv_partition_t *partition)
{
    return partition->prompt == 0 ? 0
                                  : (double)kv_partition_hit(partition) / (double)partition->prompt;
}

double kv_partition_ideal(const kv_partition_t *partition)
{
    uint64_t ideal = kv_partition_hit(partition) + kv_partition_gap(partition);
    return partition->prompt == 0 ? 0 : (double)ideal / (double)partition->prompt;
}

const char *kv_gap_name(kv_gap_t reason)
{
    return (unsigned)reason < KV_GAP_COUNT ? NAMES[reason] : NAMES[KV_GAP_OTHER];
}
