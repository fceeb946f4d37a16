/* Rates: what a tenant may ask for in a minute, as buckets that fill again all the time.
 *
 * A bucket holds a minute's worth and is full at first. What is taken comes back evenly; so a
 * refusal knows when the same would be granted, if nothing else is taken meanwhile.
 * A bucket is one number: the time at which it will be full again. Taking moves that time on by
 * count / limit minutes, and is granted while it stays within a minute from now.
 *
 * Pure; times are a caller's monotonic clock. Threads: one at a time. */
#ifndef KV_GATEWAY_LIMITS_H
#define KV_GATEWAY_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_LIMIT_MAX = 100000000 }; /* of either, a minute */

typedef struct {
    uint64_t per_minute; /* 0: no bound */
    uint64_t full_ns;    /* when it is full again */
} kv_bucket_t;

/* Another limit from now on: the part that was taken stays taken. */
void kv_bucket_set(kv_bucket_t *bucket, uint64_t per_minute);

/* true: taken. false: nothing was; *wait_ns_out says how long until it would be, UINT64_MAX: never,
 * since it is more than a minute's worth. */
bool kv_bucket_take(kv_bucket_t *bucket, uint64_t count, uint64_t now_ns, uint64_t *wait_ns_out);

/* What was taken and not used. */
void kv_bucket_give_back(kv_bucket_t *bucket, uint64_t count);

/* What would be granted now, in whole ones; and how long until it is full. */
uint64_t kv_bucket_left(const kv_bucket_t *bucket, uint64_t now_ns);
uint64_t kv_bucket_fill_ns(const kv_bucket_t *bucket, uint64_t now_ns);

/* Whole seconds for Retry-After, never too few and at least 1. */
uint64_t kv_retry_after_s(uint64_t wait_ns);

enum { KV_RESET_TEXT_BYTES = 32 };

/* A duration as OpenAI writes it in x-ratelimit-reset-*: "12ms", "1s", "6m0s". */
void kv_reset_text(uint64_t duration_ns, char text_out[KV_RESET_TEXT_BYTES]);

#endif
