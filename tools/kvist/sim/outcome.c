#include "tools/kvist/sim/outcome.h"

#include "base/memory.h"

#include <stdlib.h>

typedef struct {
    int64_t gained, asked; /* blocks */
} slice_t;

kv_outcome_t kv_outcome_of(const kv_trace_t *trace, kv_window_t window, const uint32_t *hits)
{
    kv_outcome_t outcome = {0};
    for (uint32_t i = window.first; i < window.first + window.count; i++) {
        const kv_trace_request_t *request = &trace->requests[i];
        outcome.asked_blocks += request->block_count;
        outcome.hit_blocks += hits[i];
        for (uint32_t block = 0; block < request->block_count; block++) {
            uint32_t tokens = kv_trace_tokens(trace, request, block);
            outcome.asked_tokens += tokens;
            outcome.hit_tokens += block < hits[i] ? tokens : 0;
        }
    }
    return outcome;
}

static slice_t slice_of(const kv_trace_t *trace, uint32_t first, uint32_t end, const uint32_t *hits,
    const uint32_t *base)
{
    slice_t slice = {0};
    for (uint32_t i = first; i < end; i++) {
        slice.gained += (int64_t)hits[i] - base[i];
        slice.asked += trace->requests[i].block_count;
    }
    return slice;
}

/* Always the same row of numbers (splitmix64). */
static uint64_t draw(uint64_t *state)
{
    uint64_t value = *state += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
    return value ^ value >> 31;
}

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

kv_spread_t kv_outcome_spread(
    const kv_trace_t *trace, kv_window_t window, const uint32_t *hits, const uint32_t *base)
{
    uint32_t count = (window.count + KV_OUTCOME_SLICE_REQUESTS - 1) / KV_OUTCOME_SLICE_REQUESTS;
    slice_t *slices = kv_allocate_array(count + 1, sizeof *slices);
    double *differences = kv_allocate_array(KV_OUTCOME_DRAWS, sizeof *differences);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t first = window.first + i * KV_OUTCOME_SLICE_REQUESTS;
        uint32_t end = first + KV_OUTCOME_SLICE_REQUESTS;
        uint32_t last = window.first + window.count;
        slices[i] = slice_of(trace, first, end < last ? end : last, hits, base);
    }
    uint64_t state = 1;
    for (uint32_t i = 0; i < KV_OUTCOME_DRAWS; i++) {
        slice_t sum = {0};
        for (uint32_t j = 0; j < count; j++) {
            const slice_t *drawn = &slices[draw(&state) % count];
            sum.gained += drawn->gained;
            sum.asked += drawn->asked;
        }
        differences[i] = sum.asked > 0 ? (double)sum.gained / (double)sum.asked : 0;
    }
    qsort(differences, KV_OUTCOME_DRAWS, sizeof *differences, by_size);
    kv_spread_t spread = {differences[KV_OUTCOME_DRAWS / 40],
        differences[KV_OUTCOME_DRAWS - 1 - KV_OUTCOME_DRAWS / 40]};
    free(slices);
    free(differences);
    return spread;
}
