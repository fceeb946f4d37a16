#include "runtime/rates.h"

#include "base/clock.h"

static void observe(double *rate, double amount, uint64_t duration_ns)
{
    double now = amount * (double)KV_NS_PER_S / (double)(duration_ns > 0 ? duration_ns : 1);
    *rate = *rate > 0 ? *rate * 0.75 + now * 0.25 : now;
}

void kv_rates_fetched(kv_rates_t *rates, uint64_t bytes, uint64_t duration_ns)
{
    if (bytes > 0 || rates->fetched_bytes_per_s > 0) {
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
