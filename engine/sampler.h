/* The sampler: one token from a row of logits.
 *
 * Random numbers come from a counter-based generator keyed by (seed, position): the draw for a
 * position does not depend on what was drawn before, so a stream that is continued on another node
 * is the same stream.
 * Threads: the function is pure but for its scratch memory; one scratch for each thread. */
#ifndef KV_ENGINE_SAMPLER_H
#define KV_ENGINE_SAMPLER_H

#include "base/status.h"

#include <stdint.h>

typedef struct {
    float temperature; /* 0: greedy; at most 100 */
    uint32_t top_k;    /* 0: no limit */
    float top_p;       /* above 0, at most 1 */
    uint64_t seed;
} kv_sampling_t;

/* KV_INVALID with the field and its bound. */
kv_status_t kv_sampling_validate(const kv_sampling_t *sampling, kv_error_t *error);

typedef struct kv_sampler kv_sampler_t;

kv_sampler_t *kv_sampler_create(uint32_t vocabulary_count);
void kv_sampler_destroy(kv_sampler_t *sampler);

/* The token for the sequence's position (the number of tokens before it). Greedy ties go to the
 * lower id; logits that are not finite are never chosen unless all are (then it is token 0 with
 * logprob -infinity). Temperature comes first, then top-k, then top-p. logprob_out: natural
 * logarithm of the chosen token's probability in the unmodified distribution, or NULL. */
uint32_t kv_sampler_draw(kv_sampler_t *sampler, const kv_sampling_t *sampling, uint64_t position,
    const float *logits, float *logprob_out);

/* The likeliest tokens of a row, best first, of equals the lower id; at most count, fewer where
 * fewer logits are finite. */
enum { KV_SAMPLER_TOPS_MAX = 20 };

typedef struct {
    uint32_t count;
    uint32_t tokens[KV_SAMPLER_TOPS_MAX];
    float logprobs[KV_SAMPLER_TOPS_MAX]; /* in the unmodified distribution */
} kv_sampler_tops_t;

void kv_sampler_tops(
    kv_sampler_t *sampler, const float *logits, uint32_t count, kv_sampler_tops_t *tops_out);

#endif
