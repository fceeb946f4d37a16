/* The gap: what became of each prompt token of an answer, beside what an ideal cache had made of
 * it. An ideal cache is one of unbounded size that forgets nothing and waits for nobody.
 *
 *   prompt:  | hit, by tier | gap, by reason | diverged | new | short |
 *            '--- what an ideal cache has ---'
 *
 *   hit rate = hit / prompt;  ideal = (hit + gap) / prompt
 *
 * Every token is exactly one of these, so the parts add up to the prompt, and the gap's parts to
 * ideal - real, in integers:
 *   hit       was not recomputed
 *   gap       was recomputed though the same prefix had been seen in the same namespace
 *   diverged  was not seen before, and would have been had the prompt not parted from its
 *             predecessor where the audit found that it did
 *   new       was not seen before
 *   short     the tail that no cache keeps: less than a block, or the prompt's last token, of which
 *             the first answer token is made, and the rest of its block
 *
 * Where the gateway knows less than the node (a restart, a bound) what was hit counts as seen.
 *
 * Pure. Threads: any. Errors: a node that says what cannot be says nothing. */
#ifndef KV_GATEWAY_GAP_H
#define KV_GATEWAY_GAP_H

#include <stdint.h>

enum { KV_PARTITION_TIERS = 4 }; /* device, host, disk, remote */

/* Why tokens that had been seen were recomputed: the node's one word (docs/ARCHITECTURE.md, "Miss
 * reasons"), or, where it has none that says why, what the gateway knows:
 *   pending    another request was at work on them when this one was sent
 *   bypassed   they came only in requests that kept nothing
 *   elsewhere  another node holds them, the one that was chosen does not
 *   forgotten  the node says `new` or `diverged`: it does not know that it ever had them
 *   untold     the node gives no reasons (vLLM)
 *   other      the node says something that is not on the list, or that nothing was missing */
typedef enum {
    KV_GAP_EVICTED_DEVICE,
    KV_GAP_EVICTED_HOST,
    KV_GAP_EVICTED_DISK,
    KV_GAP_DROPPED, /* `evicted` of no tier: on request */
    KV_GAP_EXPIRED,
    KV_GAP_ELSEWHERE,
    KV_GAP_PENDING,
    KV_GAP_BYPASSED,
    KV_GAP_NOT_ADMITTED,
    KV_GAP_CHEAPER,
    KV_GAP_DAMAGED,
    KV_GAP_FAILED,
    KV_GAP_CANCELLED,
    KV_GAP_NAMESPACE,
    KV_GAP_FORGOTTEN,
    KV_GAP_UNTOLD,
    KV_GAP_OTHER,
    KV_GAP_COUNT,
} kv_gap_t;

/* In tokens: of one answer, or of many together. */
typedef struct {
    uint64_t prompt;
    uint64_t hit[KV_PARTITION_TIERS];
    uint64_t gap[KV_GAP_COUNT];
    uint64_t diverged, fresh, tail; /* diverged, new, short */
} kv_partition_t;

/* What is known of a prompt beside what its node says, all in leading tokens. */
typedef struct {
    uint32_t block_tokens;    /* what is kept is whole blocks of so many; 0: not known */
    uint32_t seen_tokens;     /* seen before, whoever has them */
    uint32_t kept_tokens;     /* of those, in requests that were to be kept */
    uint32_t coming_tokens;   /* of another request that was in work then */
    uint32_t held_tokens;     /* held by some node, as far as was heard */
    uint32_t at_node_tokens;  /* of those, by the node that was chosen */
    uint32_t diverged_tokens; /* any tokens: the audit's finding */
} kv_seen_t;

/* One prompt. hit: by tier; said: the node's reason, "" or NULL where it gives none. */
void kv_partition_make(uint32_t prompt_tokens, const uint32_t hit[KV_PARTITION_TIERS],
    const char *said, const kv_seen_t *seen, kv_partition_t *partition_out);

void kv_partition_add(kv_partition_t *total, const kv_partition_t *part);

/* Sums: of all tiers; of all reasons. */
uint64_t kv_partition_hit(const kv_partition_t *partition);
uint64_t kv_partition_gap(const kv_partition_t *partition);

/* 0 to 1; 0 of no tokens. */
double kv_partition_rate(const kv_partition_t *partition);
double kv_partition_ideal(const kv_partition_t *partition);

/* As in metrics: "evicted:disk". */
const char *kv_gap_name(kv_gap_t reason);

#endif
