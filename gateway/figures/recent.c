#include "gateway/figures/recent.h"

#include "base/memory.h"

#include <stdlib.h>

struct kv_recents {
    uint64_t count; /* ever: number n is at n % KV_RECENT_MAX */
    kv_recent_t ring[KV_RECENT_MAX];
};

/* At most what is left, of which it is taken. */
static uint64_t take(uint64_t *left_ns, uint64_t wanted_ns)
{
    uint64_t taken_ns = wanted_ns < *left_ns ? wanted_ns : *left_ns;
    *left_ns -= taken_ns;
    return taken_ns;
}

void kv_recent_span(const kv_recent_times_t *times, uint64_t spans_out[KV_SPAN_COUNT])
{
    uint64_t left_ns = times->first_token_ns;
    spans_out[KV_SPAN_QUEUE] = take(&left_ns, times->queue_ns);
    spans_out[KV_SPAN_MATCH] = take(&left_ns, times->match_ns);
    spans_out[KV_SPAN_LOAD] = take(&left_ns, times->load_ns);
    spans_out[KV_SPAN_COMPUTE] = take(&left_ns, times->compute_ns);
    spans_out[KV_SPAN_TRANSFER] = left_ns;
    spans_out[KV_SPAN_DECODE] = times->decode_ns;
}

kv_recents_t *kv_recents_create(void)
{
    return kv_allocate(sizeof(kv_recents_t));
}

void kv_recents_destroy(kv_recents_t *recents)
{
    free(recents);
}

void kv_recents_add(kv_recents_t *recents, const kv_recent_t *request)
{
    uint64_t number = ++recents->count;
    kv_recent_t *kept = &recents->ring[number % KV_RECENT_MAX];
    *kept = *request;
    kept->number = number;
}

void kv_recents_visit(const kv_recents_t *recents,
    bool (*visit)(void *context, const kv_recent_t *request), void *context)
{
    uint64_t first = recents->count > KV_RECENT_MAX ? recents->count - KV_RECENT_MAX : 0;
    for (uint64_t number = recents->count; number > first; number--) {
        if (!visit(context, &recents->ring[number % KV_RECENT_MAX])) {
            return;
        }
    }
}

const char *kv_span_name(kv_span_t span)
{
    static const char *const NAMES[KV_SPAN_COUNT] = {
        "queue", "match", "load", "compute", "transfer", "decode"};
    return NAMES[span];
}
