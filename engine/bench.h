/* `kvist bench engine`: how fast the engine computes on this machine. */
#ifndef KV_ENGINE_BENCH_H
#define KV_ENGINE_BENCH_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct {
    const char *model_path;
    uint32_t thread_count;
    bool f32;
    bool json;            /* one JSON object a line instead of a table */
    uint32_t repetitions; /* 1 to 100; the median and the extremes are reported */
} kv_engine_bench_params_t;

/* Measures the model's load, cold prefill of 512, 2,048 and 6,000 tokens (those that fit the
 * context) in chunks of 512, and decode at 512 and 2,048 tokens of context with 1 and 4 rows.
 * Rows: {"what", "tokens", "rows", "tokens_per_second", "low", "high", "arithmetic"}. */
kv_status_t kv_engine_bench(FILE *out, const kv_engine_bench_params_t *params, kv_error_t *error);

#endif
