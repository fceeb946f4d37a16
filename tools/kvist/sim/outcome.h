/* What a replay came to: rates, and how sure a difference between two of them is.
 *
 * Hit rate: of the blocks that prompts asked for, those that were found, from the first on without
 * a gap; and the same in tokens.
 *
 * Spread: requests that follow each other are alike (conversations, bursts), so the trace is cut
 * into slices, and slices are drawn again and again, with replacement, the same ones for both
 * replays (a paired block bootstrap): the middle 95 % of the differences that come of it.
 *
 * Owns: nothing. Threads: any. */
#ifndef KV_TOOLS_SIM_OUTCOME_H
#define KV_TOOLS_SIM_OUTCOME_H

#include "tools/kvist/sim/trace.h"

enum { KV_OUTCOME_SLICE_REQUESTS = 100, KV_OUTCOME_DRAWS = 2000 };

/* Requests from `first` on, `count` of them. */
typedef struct {
    uint32_t first, count;
} kv_window_t;

typedef struct {
    uint64_t asked_blocks, hit_blocks, asked_tokens, hit_tokens;
} kv_outcome_t;

typedef struct {
    double low, high;
} kv_spread_t;

kv_outcome_t kv_outcome_of(const kv_trace_t *trace, kv_window_t window, const uint32_t *hits);

/* Of the hit rate in blocks, hits less base. */
kv_spread_t kv_outcome_spread(
    const kv_trace_t *trace, kv_window_t window, const uint32_t *hits, const uint32_t *base);

static inline double kv_outcome_rate(const kv_outcome_t *outcome)
{
    return outcome->asked_blocks > 0 ? (double)outcome->hit_blocks / (double)outcome->asked_blocks
                                     : 0;
}

#endif
