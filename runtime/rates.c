#include "runtime/rates.h"

#include "base/clock.h"

/* A refusal says nothing of the wire. */
static const uint64_t REFUSED_NS = 100 * KV_NS_PER_MS;

static const double FETCH_SHORTEST_NS = 5e9, FETCH_LONGEST_NS = 60e9;
static const double SILENCE_NS = 15e9, PATIENCE = 6;

static void observe(double *rate, double amount, uint64_t duration_ns)
{
    double now = amount * (double)KV_NS_PER_S / (double)(duration_ns > 0 ? duration_ns : 1);
    *rate = *rate > 0 ? *rate * 0.75 + now * 0.25 : now;
}

void kv_rates_fetched(kv_rates_t *rates, uint64_t bytes, uint64_t duration_ns)
{
    bool refused = bytes == 0 && duration_ns < REFUSED_NS;
    if (!refused && (bytes > 0 || rates->fetched_bytes_per_s > 0)) {
        observe(&rates->fetched_bytes_per_s, (double)bytes, duration_ns);
    }
}

void kv_rates_computed(kv_rates_t *rates, uint32_t token_count, uint64_t duration_ns)
{
    if (token_count > 0) {
        observe(&rates->computed_tokens_per_s, (double)token_count, duration_ns);
    }
}

bool kv_rates_fetch_pays(
    kv_rates_t *rates, uint32_t block_count, uint32_t block_tokens, uint64_t block_bytes)
{
    if (block_count < KV_FETCH_BLOCKS_MIN) {
        return false;
    }
    double fetch_s = 0, compute_s = 0; /* of one block */
    if (rates->fetched_bytes_per_s > 0 && rates->computed_tokens_per_s > 0) {
        fetch_s = (double)block_bytes / rates->fetched_bytes_per_s;
        compute_s = block_tokens / rates->computed_tokens_per_s;
    }
    if (fetch_s > compute_s && ++rates->skipped < KV_FETCH_SKIPPED_MAX) {
        return false;
    }
    rates->skipped = 0;
    return true;
}

uint64_t kv_rates_fetch_limit_ns(const kv_rates_t *rates, uint32_t token_count)
{
    double limit_ns = FETCH_SHORTEST_NS;
    if (rates->computed_tokens_per_s > 0) {
        double compute_ns = token_count / rates->computed_tokens_per_s * (double)KV_NS_PER_S;
        limit_ns = compute_ns > limit_ns ? compute_ns : limit_ns;
    }
    return (uint64_t)(limit_ns < FETCH_LONGEST_NS ? limit_ns : FETCH_LONGEST_NS);
}

void kv_rates_prefilled(kv_rates_t *rates, uint32_t token_count, uint64_t duration_ns)
{
    if (token_count > 0 && duration_ns > 0) {
        double now_ns = (double)duration_ns;
        rates->prefill_ns =
            rates->prefill_ns > 0 ? rates->prefill_ns * 0.75 + now_ns * 0.25 : now_ns;
        observe(&rates->prefilled_tokens_per_s, (double)token_count, duration_ns);
    }
}

uint64_t kv_rates_prefill_limit_ns(
    const kv_rates_t *rates, uint32_t ahead_count, uint32_t token_count)
{
    if (rates->prefilled_tokens_per_s <= 0) {
        return UINT64_MAX;
    }
    double own_ns = token_count / rates->prefilled_tokens_per_s * (double)KV_NS_PER_S;
    double limit_ns = SILENCE_NS + PATIENCE * (ahead_count * rates->prefill_ns + own_ns);
    return limit_ns < 1e18 ? (uint64_t)limit_ns : UINT64_MAX;
}
