#include "gateway/access/limits.h"

#include "base/clock.h"

#include <inttypes.h>
#include <stdio.h>

#define MINUTE_NS (60 * (uint64_t)KV_NS_PER_S)

/* Rounded down, or a limit of 7 would grant 6 at once. In two steps: count x a minute would not fit
 * in 64 bits, a rest below KV_LIMIT_MAX does (6e18). */
static uint64_t cost_ns(const kv_bucket_t *bucket, uint64_t count)
{
    uint64_t whole = count / bucket->per_minute, rest = count % bucket->per_minute;
    return whole * MINUTE_NS + rest * MINUTE_NS / bucket->per_minute;
}

uint64_t kv_bucket_fill_ns(const kv_bucket_t *bucket, uint64_t now_ns)
{
    return bucket->per_minute == 0 || bucket->full_ns <= now_ns ? 0 : bucket->full_ns - now_ns;
}

void kv_bucket_set(kv_bucket_t *bucket, uint64_t per_minute)
{
    if (bucket->per_minute == 0) {
        bucket->full_ns = 0;
    }
    bucket->per_minute = per_minute;
}

bool kv_bucket_take(kv_bucket_t *bucket, uint64_t count, uint64_t now_ns, uint64_t *wait_ns_out)
{
    if (bucket->per_minute == 0) {
        return true;
    }
    if (count > bucket->per_minute) {
        *wait_ns_out = UINT64_MAX;
        return false;
    }
    uint64_t after_ns = kv_bucket_fill_ns(bucket, now_ns) + cost_ns(bucket, count);
    if (after_ns > MINUTE_NS) {
        *wait_ns_out = after_ns - MINUTE_NS;
        return false;
    }
    bucket->full_ns = now_ns + after_ns;
    return true;
}

void kv_bucket_give_back(kv_bucket_t *bucket, uint64_t count)
{
    if (bucket->per_minute > 0 && count > 0) {
        uint64_t back_ns = cost_ns(bucket, count > bucket->per_minute ? bucket->per_minute : count);
        bucket->full_ns -= back_ns < bucket->full_ns ? back_ns : bucket->full_ns;
    }
}

uint64_t kv_bucket_left(const kv_bucket_t *bucket, uint64_t now_ns)
{
    uint64_t fill_ns = kv_bucket_fill_ns(bucket, now_ns);
    if (fill_ns >= MINUTE_NS) {
        return 0;
    }
    return bucket->per_minute * (MINUTE_NS - fill_ns) / MINUTE_NS;
}

uint64_t kv_retry_after_s(uint64_t wait_ns)
{
    uint64_t seconds = wait_ns / KV_NS_PER_S + (wait_ns % KV_NS_PER_S != 0);
    return seconds == 0 ? 1 : seconds;
}

void kv_reset_text(uint64_t duration_ns, char text_out[KV_RESET_TEXT_BYTES])
{
    uint64_t ms = (duration_ns + KV_NS_PER_MS - 1) / KV_NS_PER_MS;
    uint64_t seconds = (ms + 999) / 1000; /* rounded up: the time is never promised too soon */
    if (ms > 0 && ms < 1000) {
        snprintf(text_out, KV_RESET_TEXT_BYTES, "%" PRIu64 "ms", ms);
    } else if (seconds < 60) {
        snprintf(text_out, KV_RESET_TEXT_BYTES, "%" PRIu64 "s", seconds);
    } else {
        snprintf(
            text_out, KV_RESET_TEXT_BYTES, "%" PRIu64 "m%" PRIu64 "s", seconds / 60, seconds % 60);
    }
}
