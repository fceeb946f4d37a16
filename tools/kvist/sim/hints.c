#include "tools/kvist/sim/hints.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

#define NEVER UINT64_MAX
static const double FULL_TURN = 6.283185307179586;

/* splitmix64: above 0, at most 1. */
static double draw(uint64_t *state)
{
    uint64_t value = *state += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
    value ^= value >> 31;
    return (double)((value >> 11) + 1) / (double)(UINT64_C(1) << 53);
}

/* Box and Muller's. */
static double draw_normal(uint64_t *state)
{
    double radius = sqrt(-2 * log(draw(state)));
    return radius * cos(FULL_TURN * draw(state));
}

/* In ms after each request; NEVER. */
static uint64_t *find_returns(const kv_trace_t *trace)
{
    uint64_t *returns = kv_allocate_array(trace->request_count, sizeof *returns);
    uint64_t *next_ms = kv_allocate_array(trace->block_count + 1, sizeof *next_ms);
    for (uint32_t i = 0; i < trace->block_count; i++) {
        next_ms[i] = NEVER;
    }
    for (uint32_t i = trace->request_count; i-- > 0;) {
        const kv_trace_request_t *request = &trace->requests[i];
        const uint32_t *blocks = trace->blocks + request->first_block;
        uint32_t whole = request->input_tokens / trace->block_tokens;
        uint64_t at_ms = whole > 0 ? next_ms[blocks[whole - 1]] : NEVER;
        returns[i] = at_ms != NEVER ? at_ms - request->at_ms : NEVER;
        for (uint32_t j = 0; j < request->block_count; j++) {
            next_ms[blocks[j]] = request->at_ms;
        }
    }
    free(next_ms);
    return returns;
}

static uint64_t disturb(uint64_t after_ms, double sigma, uint64_t *state)
{
    double wrong_ms = (double)after_ms * exp(sigma * draw_normal(state));
    return wrong_ms >= 1 ? (uint64_t)llround(wrong_ms) : 1;
}

kv_hints_counts_t kv_hints_make(
    const kv_trace_t *trace, const kv_hints_params_t *params, uint64_t *expected_ms_out)
{
    kv_hints_counts_t counts = {0};
    uint64_t state = params->seed, *returns = find_returns(trace);
    uint32_t *coming = kv_allocate_array(trace->request_count, sizeof *coming);
    uint32_t *gone = kv_allocate_array(trace->request_count, sizeof *gone), gone_count = 0;
    for (uint32_t i = 0; i < trace->request_count; i++) {
        expected_ms_out[i] = 0;
        if (returns[i] == NEVER) {
            gone[gone_count++] = i;
            continue;
        }
        coming[counts.coming_count++] = i;
        if (draw(&state) > params->missing_share) {
            expected_ms_out[i] = disturb(returns[i], params->error_sigma, &state);
            counts.true_count++;
        }
    }
    double wanted = counts.true_count * params->false_share / (1 - params->false_share);
    while (gone_count > 0 && counts.coming_count > 0 && counts.false_count + 0.5 < wanted) {
        uint32_t which = (uint32_t)(draw(&state) * gone_count) % gone_count;
        uint32_t like = (uint32_t)(draw(&state) * counts.coming_count) % counts.coming_count;
        expected_ms_out[gone[which]] = disturb(returns[coming[like]], params->error_sigma, &state);
        gone[which] = gone[--gone_count];
        counts.false_count++;
    }
    free(returns);
    free(coming);
    free(gone);
    return counts;
}
