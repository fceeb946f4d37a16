/* Sampling.
 *
 * 1. The candidates are the tokens with a finite logit. Temperature divides the logits first, then
 *    top-k keeps the k likeliest, then top-p the fewest of those whose share reaches p, at least
 *    one.
 * 2. The likeliest come from a heap over all candidates (higher logit first, then lower id), from
 *    which only as many are taken as are kept: nothing sorts the vocabulary.
 * 3. One uniform number for each (seed, position) picks among the kept. */
#include "engine/sampler.h"

#include "base/memory.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

typedef struct {
    float logit;
    uint32_t token;
} candidate_t;

struct kv_sampler {
    uint32_t vocabulary_count;
    candidate_t *heap; /* [vocabulary_count] */
    candidate_t *kept; /* [vocabulary_count] */
};

kv_status_t kv_sampling_validate(const kv_sampling_t *sampling, kv_error_t *error)
{
    if (!(sampling->temperature >= 0 && sampling->temperature <= 100)) {
        return kv_fail(
            error, KV_INVALID, "temperature is %g, not 0 to 100", (double)sampling->temperature);
    }
    if (!(sampling->top_p > 0 && sampling->top_p <= 1)) {
        return kv_fail(
            error, KV_INVALID, "top_p is %g, not above 0 and at most 1", (double)sampling->top_p);
    }
    return KV_OK;
}

kv_sampler_t *kv_sampler_create(uint32_t vocabulary_count)
{
    kv_sampler_t *sampler = kv_allocate(sizeof *sampler);
    sampler->vocabulary_count = vocabulary_count;
    sampler->heap = kv_allocate_array(vocabulary_count, sizeof *sampler->heap);
    sampler->kept = kv_allocate_array(vocabulary_count, sizeof *sampler->kept);
    return sampler;
}

void kv_sampler_destroy(kv_sampler_t *sampler)
{
    if (sampler != NULL) {
        free(sampler->heap);
        free(sampler->kept);
        free(sampler);
    }
}

/* The finalizer of splitmix64: a bijection in which each input bit moves half of the output's. */
static uint64_t mix(uint64_t value)
{
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

/* Uniform in [0, 1), a function of (seed, position) alone. */
static double uniform(uint64_t seed, uint64_t position)
{
    uint64_t stream = mix(seed + 0x9e3779b97f4a7c15u);
    uint64_t bits = mix(stream + (position + 1) * 0x9e3779b97f4a7c15u);
    return (double)(bits >> 11) * 0x1p-53;
}

static bool likelier(candidate_t left, candidate_t right)
{
    return left.logit > right.logit || (left.logit == right.logit && left.token < right.token);
}

static void sink(candidate_t *heap, uint32_t count, uint32_t at)
{
    candidate_t moved = heap[at];
    for (uint32_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && likelier(heap[child + 1], heap[child])) {
            child++;
        }
        if (!likelier(heap[child], moved)) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

static candidate_t pop(candidate_t *heap, uint32_t *count)
{
    candidate_t top = heap[0];
    heap[0] = heap[--*count];
    if (*count > 0) {
        sink(heap, *count, 0);
    }
    return top;
}

/* The finite logits, in the order of ids; *best_out is the likeliest's index. */
static uint32_t gather(kv_sampler_t *sampler, const float *logits, uint32_t *best_out)
{
    uint32_t count = 0, best = 0;
    for (uint32_t i = 0; i < sampler->vocabulary_count; i++) {
        if (isfinite(logits[i])) {
            sampler->heap[count] = (candidate_t){logits[i], i};
            best = logits[i] > sampler->heap[best].logit ? count : best;
            count++;
        }
    }
    *best_out = best;
    return count;
}

static double weight(candidate_t candidate, float best_logit, float temperature)
{
    return (double)expf((candidate.logit - best_logit) / temperature);
}

static double weigh(
    const candidate_t *candidates, uint32_t count, float best_logit, float temperature)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += weight(candidates[i], best_logit, temperature);
    }
    return sum;
}

/* Moves what top-k and top-p leave from the heap to kept, likeliest first. */
static uint32_t keep(
    kv_sampler_t *sampler, const kv_sampling_t *sampling, uint32_t count, float best_logit)
{
    candidate_t *heap = sampler->heap, *kept = sampler->kept;
    uint32_t limit = sampling->top_k > 0 && sampling->top_k < count ? sampling->top_k : count;
    double total = limit == count ? weigh(heap, count, best_logit, sampling->temperature) : 0;
    uint32_t kept_count = 0;
    for (uint32_t i = count / 2; i-- > 0;) {
        sink(heap, count, i);
    }
    if (limit < count) {
        /* Top-p's share is of what top-k leaves: take all of it, then cut. */
        for (uint32_t left = count; kept_count < limit;) {
            kept[kept_count++] = pop(heap, &left);
        }
        total = weigh(kept, kept_count, best_logit, sampling->temperature);
    }
    double share = 0, wanted = (double)sampling->top_p * total;
    for (uint32_t i = 0, left = count; i < limit; i++) {
        if (limit == count) {
            kept[kept_count++] = pop(heap, &left);
        }
        share += weight(kept[i], best_logit, sampling->temperature);
        if (share >= wanted && sampling->top_p < 1) {
            return i + 1;
        }
    }
    return limit;
}

static uint32_t pick(const candidate_t *candidates, uint32_t count, double uniform_number,
    float best_logit, float temperature)
{
    double target = uniform_number * weigh(candidates, count, best_logit, temperature);
    double sum = 0;
    uint32_t last = candidates[0].token;
    for (uint32_t i = 0; i < count; i++) {
        double share = weight(candidates[i], best_logit, temperature);
        sum += share;
        last = share > 0 ? candidates[i].token : last;
        if (sum > target) {
            break;
        }
    }
    return last; /* rounding may leave the target at the very end: the last that has a chance */
}

uint32_t kv_sampler_draw(kv_sampler_t *sampler, const kv_sampling_t *sampling, uint64_t position,
    const float *logits, float *logprob_out)
{
    uint32_t best;
    uint32_t count = gather(sampler, logits, &best);
    if (count == 0) {
        if (logprob_out != NULL) {
            *logprob_out = -INFINITY;
        }
        return 0;
    }
    candidate_t likeliest = sampler->heap[best];
    uint32_t token = likeliest.token;
    double total = logprob_out != NULL ? weigh(sampler->heap, count, likeliest.logit, 1) : 0;
    if (sampling->temperature > 0) {
        bool all = sampling->top_p >= 1 && (sampling->top_k == 0 || sampling->top_k >= count);
        uint32_t kept_count = all ? count : keep(sampler, sampling, count, likeliest.logit);
        token = pick(all ? sampler->heap : sampler->kept, kept_count,
            uniform(sampling->seed, position), likeliest.logit, sampling->temperature);
    }
    if (logprob_out != NULL) {
        *logprob_out = (float)((double)logits[token] - (double)likeliest.logit - log(total));
    }
    return token;
}

void kv_sampler_tops(
    kv_sampler_t *sampler, const float *logits, uint32_t count, kv_sampler_tops_t *tops_out)
{
    uint32_t best, kept = 0;
    uint32_t finite = gather(sampler, logits, &best);
    candidate_t tops[KV_SAMPLER_TOPS_MAX + 1];
    count = count < KV_SAMPLER_TOPS_MAX ? count : KV_SAMPLER_TOPS_MAX;
    *tops_out = (kv_sampler_tops_t){0};
    for (uint32_t i = 0; count > 0 && i < finite; i++) {
        if (kept == count && !likelier(sampler->heap[i], tops[kept - 1])) {
            continue;
        }
        uint32_t at = kept < count ? kept++ : kept - 1;
        for (; at > 0 && likelier(sampler->heap[i], tops[at - 1]); at--) {
            tops[at] = tops[at - 1];
        }
        tops[at] = sampler->heap[i];
    }
    if (kept == 0) {
        return;
    }
    double best_logit = (double)tops[0].logit;
    double log_total = log(weigh(sampler->heap, finite, tops[0].logit, 1));
    for (uint32_t i = 0; i < kept; i++) {
        tops_out->tokens[i] = tops[i].token;
        tops_out->logprobs[i] = (float)((double)tops[i].logit - best_logit - log_total);
    }
    tops_out->count = kept;
}
