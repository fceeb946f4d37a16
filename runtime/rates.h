/* What pays, and how long it may take, from the rates that this node has seen.
 *
 * Fetch or compute, the one rule: a fetch of n blocks pays where n is at least
 * KV_FETCH_BLOCKS_MIN and the blocks' bytes at the rate of the latest fetches (asking, the source's
 * own loading and verification included) come before their tokens at the rate of the latest prompts
 * (waiting for the compute thread included: a busy one makes fetching the better choice). Rates are
 * moving averages, a new observation counting a quarter; a fetch that failed or was late counts
 * with what it brought (one that was refused at once does not). What was not seen yet is assumed to
 * pay; after KV_FETCH_SKIPPED_MAX refusals in a row one is tried all the same, so that a wire that
 * was slow for a while is used again.
 *
 * All fetches of a prompt together may take as long as computing what they are for would take, at
 * least 5 s and at most 60: what has landed by then is kept, and the rest is computed.
 *
 * How long a prefill node may be silent: 15 s, and six times what the requests ahead and this
 * prompt should take it, at the average of the latest prompts. A node that needs longer is given
 * up.
 *
 * Threads: as its caller.
 * Errors: none. */
#ifndef KV_RUNTIME_RATES_H
#define KV_RUNTIME_RATES_H

#include <stdbool.h>
#include <stdint.h>

enum { KV_FETCH_BLOCKS_MIN = 2, KV_FETCH_SKIPPED_MAX = 16 };

/* Zero-initialise to begin; 0: not seen yet. */
typedef struct {
    double fetched_bytes_per_s, computed_tokens_per_s;
    double prefill_ns, prefilled_tokens_per_s; /* of a prompt, by other nodes */
    uint32_t skipped;                          /* fetches that did not pay, since the last one */
} kv_rates_t;

void kv_rates_fetched(kv_rates_t *rates, uint64_t bytes, uint64_t duration_ns);
void kv_rates_computed(kv_rates_t *rates, uint32_t token_count, uint64_t duration_ns);

/* Of so many blocks; counts a refusal. */
bool kv_rates_fetch_pays(
    kv_rates_t *rates, uint32_t block_count, uint32_t block_tokens, uint64_t block_bytes);

/* For the fetches of so many tokens. */
uint64_t kv_rates_fetch_limit_ns(const kv_rates_t *rates, uint32_t token_count);

/* What a prefill node said of a prompt: tokens that it computed, and how long that took it. */
void kv_rates_prefilled(kv_rates_t *rates, uint32_t token_count, uint64_t duration_ns);

/* UINT64_MAX: nothing was seen yet. */
uint64_t kv_rates_prefill_limit_ns(
    const kv_rates_t *rates, uint32_t ahead_count, uint32_t token_count);

#endif
