/* A run of `kvist bench serve`: its phases, one after the other, each a load (so many at once, or
 * so many a second) and for a sweep a share; and what came of it, as JSON.
 *
 * Owns: nothing; the JSON is the caller's. Borrows: the settings, with the trace that they name.
 * Threads: one.
 * Errors: the endpoint's (asked.h) and the workload's (workloads.h); what requests met is in the
 * JSON. */
#ifndef KV_TOOLS_SERVE_PHASES_H
#define KV_TOOLS_SERVE_PHASES_H

#include "tools/kvist/bench/serve/asked.h"
#include "tools/kvist/bench/serve/outcome.h"
#include "tools/kvist/bench/serve/workloads.h"

enum { KV_SERVE_NUMBERS_MAX = 16 };

typedef struct {
    double values[KV_SERVE_NUMBERS_MAX];
    size_t count;
} kv_serve_numbers_t;

typedef struct {
    const char *name;       /* of the run */
    const char *trace_path; /* NULL: none */
    kv_asked_params_t asked;
    kv_workload_t workload;                /* without a share; context_tokens 0: the endpoint's */
    kv_serve_numbers_t concurrency, rates; /* one of them, or none: the trace's own times */
    kv_serve_numbers_t shares;             /* of a sweep */
    double stretch;
    kv_slo_t slo;
    uint64_t duration_ms; /* 0: no limit */
    uint32_t block_tokens;
} kv_serve_settings_t;

/* Progress goes to standard error. */
kv_status_t kv_serve_run(const kv_serve_settings_t *settings, json_t **run_out, kv_error_t *error);

#endif
