#include "tools/kvist/bench/serve/script.h"

#include "base/check.h"
#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

void kv_script_release(kv_script_t *script)
{
    free(script->requests);
    free(script->parts);
    free(script->roots);
    *script = (kv_script_t){0};
}

static void add_root(kv_script_t *script, uint32_t number)
{
    if (script->root_count == script->root_capacity) {
        script->root_capacity = script->root_capacity * 2 + 64;
        script->roots = kv_reallocate(script->roots, script->root_capacity, sizeof *script->roots);
    }
    script->requests[number].session = script->root_count;
    script->roots[script->root_count++] = number;
}

uint32_t kv_script_add(
    kv_script_t *script, uint32_t parent, uint32_t answer_tokens, uint64_t delay_ms)
{
    KV_CHECK(script->request_count < KV_SCRIPT_REQUESTS_MAX);
    if (script->request_count == script->request_capacity) {
        script->request_capacity = script->request_capacity * 2 + 256;
        script->requests =
            kv_reallocate(script->requests, script->request_capacity, sizeof *script->requests);
    }
    uint32_t number = script->request_count++;
    kv_script_request_t *request = &script->requests[number];
    *request = (kv_script_request_t){.parent = parent,
        .first_child = KV_SCRIPT_NONE,
        .next_sibling = KV_SCRIPT_NONE,
        .first_part = script->part_count,
        .answer_tokens = answer_tokens,
        .delay_ms = delay_ms};
    if (parent == KV_SCRIPT_NONE) {
        add_root(script, number);
        return number;
    }
    kv_script_request_t *from = &script->requests[parent];
    request->session = from->session;
    request->prompt_tokens = from->prompt_tokens + from->answer_tokens;
    request->next_sibling = from->first_child;
    from->first_child = number;
    return number;
}

void kv_script_add_part(kv_script_t *script, uint64_t seed, uint32_t count)
{
    kv_script_request_t *request = &script->requests[script->request_count - 1];
    if (count == 0) {
        return;
    }
    if (script->part_count == script->part_capacity) {
        script->part_capacity = script->part_capacity * 2 + 256;
        script->parts = kv_reallocate(script->parts, script->part_capacity, sizeof *script->parts);
    }
    script->parts[script->part_count++] = (kv_script_part_t){seed, count};
    request->part_count++;
    request->prompt_tokens += count;
}

uint32_t kv_script_own_count(const kv_script_t *script, const kv_script_request_t *request)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < request->part_count; i++) {
        count += script->parts[request->first_part + i].count;
    }
    return count;
}

void kv_symbols_draw(
    uint64_t seed, uint32_t count, uint32_t lowest, uint32_t range, uint32_t *symbols_out)
{
    uint64_t state = seed;
    for (uint32_t i = 0; i < count; i++) {
        symbols_out[i] = lowest + (uint32_t)((kv_draw_bits(&state) >> 32) * range >> 32);
    }
}

void kv_script_draw(const kv_script_t *script, const kv_script_request_t *request, uint32_t lowest,
    uint32_t range, uint32_t *symbols_out)
{
    for (uint32_t i = 0; i < request->part_count; i++) {
        const kv_script_part_t *part = &script->parts[request->first_part + i];
        kv_symbols_draw(part->seed, part->count, lowest, range, symbols_out);
        symbols_out += part->count;
    }
}

/* ---- drawing ---- */

uint64_t kv_draw_bits(uint64_t *state)
{
    uint64_t bits = *state += UINT64_C(0x9e3779b97f4a7c15);
    bits = (bits ^ bits >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ bits >> 27) * UINT64_C(0x94d049bb133111eb);
    return bits ^ bits >> 31;
}

uint64_t kv_seed_mix(uint64_t seed, uint64_t kind, uint64_t number)
{
    uint64_t state = seed;
    state = kv_draw_bits(&state) + kind;
    state = kv_draw_bits(&state) + number;
    return kv_draw_bits(&state);
}

double kv_draw_share(uint64_t *state)
{
    return (double)(kv_draw_bits(state) >> 11) / 9007199254740992.0;
}

uint32_t kv_draw_between(uint64_t *state, uint32_t least, uint32_t most)
{
    return least + (uint32_t)(kv_draw_share(state) * ((double)most - least + 1));
}

double kv_draw_exponential(uint64_t *state, double mean)
{
    return -log(1.0 - kv_draw_share(state)) * mean;
}
