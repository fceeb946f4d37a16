#include "engine/bench.h"

#include "base/clock.h"
#include "base/memory.h"
#include "engine/engine.h"
#include "kernels/plugin.h"

#include <stdlib.h>

enum {
    BLOCK_TOKENS = 16,
    CHUNK_TOKENS = 512,
    ROWS_MAX = 4,
    STEPS = 32, /* decode steps of one repetition */
};

typedef struct {
    const kv_engine_bench_params_t *params;
    void (*visit)(void *context, const kv_engine_bench_row_t *row);
    void *context;
    kv_engine_t *engine;
    const kv_engine_info_t *info;
    uint32_t *tokens; /* [context_tokens_max] */
    uint32_t *slots;
    float *logits;
} bench_t;

static void report(const bench_t *bench, const char *what, uint32_t tokens, uint32_t rows,
    double *rates, const char *arithmetic)
{
    const kv_engine_bench_row_t row = {.what = what,
        .unit = "tokens/s",
        .tokens = tokens,
        .rows = rows,
        .arithmetic = arithmetic,
        .samples = rates,
        .sample_count = bench->params->repetitions};
    bench->visit(bench->context, &row);
}

static double seconds_since(uint64_t start_ns)
{
    return (double)(kv_clock_now_ns() - start_ns) / KV_NS_PER_S;
}

static kv_status_t prefill(const bench_t *bench, uint32_t count, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (uint32_t at = 0; at < count && status == KV_OK; at += CHUNK_TOKENS) {
        const uint32_t left = count - at;
        const kv_engine_chunk_t chunk = {
            .tokens = bench->tokens + at,
            .token_count = left < CHUNK_TOKENS ? left : CHUNK_TOKENS,
            .position = at,
            .slots = bench->slots,
        };
        status = kv_engine_prefill(
            bench->engine, &chunk, left <= CHUNK_TOKENS ? bench->logits : NULL, error);
    }
    return status;
}

static kv_status_t bench_prefill(const bench_t *bench, uint32_t tokens, kv_error_t *error)
{
    double rates[KV_ENGINE_BENCH_REPETITIONS_MAX];
    for (uint32_t at = 0; at < bench->params->repetitions; at++) {
        const uint64_t start_ns = kv_clock_now_ns();
        kv_status_t status = prefill(bench, tokens, error);
        if (status != KV_OK) {
            return status;
        }
        rates[at] = tokens / seconds_since(start_ns);
    }
    report(bench, "prefill", tokens, 1, rates, bench->info->prefill_arithmetic);
    return KV_OK;
}

/* All rows read the same context: each has its own copy of nothing but the arithmetic. */
static kv_status_t bench_decode(
    const bench_t *bench, uint32_t context, uint32_t row_count, kv_error_t *error)
{
    double rates[KV_ENGINE_BENCH_REPETITIONS_MAX];
    kv_status_t status = prefill(bench, context, error);
    for (uint32_t at = 0; at < bench->params->repetitions && status == KV_OK; at++) {
        const uint64_t start_ns = kv_clock_now_ns();
        for (uint32_t step = 0; step < STEPS && status == KV_OK; step++) {
            kv_engine_row_t rows[ROWS_MAX];
            for (uint32_t row = 0; row < row_count; row++) {
                /* Positions of their own, so that no two rows write one place. */
                const uint32_t position = context + step * row_count + row;
                rows[row] = (kv_engine_row_t){bench->tokens[position], position, bench->slots};
            }
            status = kv_engine_decode(bench->engine, rows, row_count, bench->logits, error);
        }
        rates[at] = STEPS * row_count / seconds_since(start_ns);
    }
    if (status == KV_OK) {
        report(bench, "decode", context, row_count, rates, bench->info->decode_arithmetic);
    }
    return status;
}

static kv_status_t run(const bench_t *bench, kv_error_t *error)
{
    static const uint32_t prompts[] = {512, 2048, 6000}, contexts[] = {512, 2048};
    const uint32_t context_max = bench->info->context_tokens_max;
    kv_status_t status = prefill(bench, 64 < context_max ? 64 : context_max, error);
    for (size_t at = 0; at < sizeof prompts / sizeof *prompts && status == KV_OK; at++) {
        if (prompts[at] <= context_max) {
            status = bench_prefill(bench, prompts[at], error);
        }
    }
    for (size_t at = 0; at < sizeof contexts / sizeof *contexts && status == KV_OK; at++) {
        if (contexts[at] + STEPS * ROWS_MAX <= context_max) {
            status = bench_decode(bench, contexts[at], 1, error);
            if (status == KV_OK) {
                status = bench_decode(bench, contexts[at], ROWS_MAX, error);
            }
        }
    }
    return status;
}

static kv_status_t run_on(bench_t *bench, kv_device_t *device, kv_error_t *error)
{
    const kv_engine_params_t params = {
        .model_path = bench->params->model_path,
        .f32 = bench->params->f32,
        .fp8 = bench->params->fp8,
        .block_tokens = BLOCK_TOKENS,
        .chunk_tokens_max = CHUNK_TOKENS,
        .batch_rows_max = ROWS_MAX,
    };
    const uint64_t start_ns = kv_clock_now_ns();
    kv_status_t status = kv_engine_open(device, &params, &bench->engine, error);
    if (status != KV_OK) {
        return status;
    }
    bench->info = kv_engine_info(bench->engine);
    double load_s = seconds_since(start_ns);
    bench->visit(bench->context,
        &(kv_engine_bench_row_t){
            .what = "load", .unit = "s", .arithmetic = "", .samples = &load_s, .sample_count = 1});
    const uint32_t context_max = bench->info->context_tokens_max;
    bench->slots = kv_allocate_array(bench->info->slot_count, sizeof *bench->slots);
    for (uint32_t slot = 0; slot < bench->info->slot_count; slot++) {
        bench->slots[slot] = slot;
    }
    bench->tokens = kv_allocate_array(context_max, sizeof *bench->tokens);
    for (uint32_t at = 0; at < context_max; at++) {
        bench->tokens[at] = (uint32_t)(at * 7919ull % bench->info->vocabulary_count);
    }
    bench->logits =
        kv_allocate_array((size_t)ROWS_MAX * bench->info->vocabulary_count, sizeof(float));
    status = run(bench, error);
    free(bench->slots);
    free(bench->tokens);
    free(bench->logits);
    kv_engine_close(bench->engine);
    return status;
}

kv_status_t kv_engine_bench(const kv_engine_bench_params_t *params,
    void (*visit)(void *context, const kv_engine_bench_row_t *row), void *context,
    kv_error_t *error)
{
    if (params->repetitions < 1 || params->repetitions > KV_ENGINE_BENCH_REPETITIONS_MAX) {
        return kv_fail(error, KV_INVALID, "repetitions are %u; 1 to %d are possible",
            params->repetitions, KV_ENGINE_BENCH_REPETITIONS_MAX);
    }
    kv_device_t *device;
    kv_status_t status = kv_device_open(params->device, params->thread_count, &device, NULL, error);
    if (status != KV_OK) {
        return status;
    }
    bench_t bench = {.params = params, .visit = visit, .context = context};
    status = run_on(&bench, device, error);
    kv_device_close(device);
    return status;
}
