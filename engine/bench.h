/* `kvist bench engine`: how fast the engine computes on this machine. */
#ifndef KV_ENGINE_BENCH_H
#define KV_ENGINE_BENCH_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_ENGINE_BENCH_REPETITIONS_MAX = 99 };

typedef struct {
    const char *model_path;
    const char *device;    /* "cpu", "cuda:0" (kernels/plugin.h) */
    uint32_t thread_count; /* of the cpu */
    bool f32, fp8;         /* of kv_engine_params_t */
    uint32_t repetitions;  /* 1 to KV_ENGINE_BENCH_REPETITIONS_MAX */
} kv_engine_bench_params_t;

/* What was measured: a row of the table. */
typedef struct {
    const char *what, *unit; /* "load" in s; "prefill", "decode" in tokens/s */
    uint32_t tokens, rows;   /* of the context; 0 for load */
    const char *arithmetic;  /* which kernels; "" for load */
    double *samples;         /* [sample_count], the receiver may sort them */
    uint32_t sample_count;
} kv_engine_bench_row_t;

/* Measures the model's load, cold prefill of 512, 2,048 and 6,000 tokens (those that fit the
 * context) in chunks of 512, and decode at 512 and 2,048 tokens of context with 1 and 4 rows; visit
 * gets each row when it is there. */
kv_status_t kv_engine_bench(const kv_engine_bench_params_t *params,
    void (*visit)(void *context, const kv_engine_bench_row_t *row), void *context,
    kv_error_t *error);

#endif
