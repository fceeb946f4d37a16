/* What a phase of `kvist bench serve` found, as JSON: the one form that the table, the report and
 * comparisons are made from. docs/benchmarks.md, "The form of bench serve", has its fields.
 *
 * Owns: nothing; the JSON is the caller's.
 * Threads: any. */
#ifndef KV_TOOLS_SERVE_OUTCOME_H
#define KV_TOOLS_SERVE_OUTCOME_H

#include "tools/kvist/bench/serve/drive.h"

#include <jansson.h>

/* Targets of a request; 0: none. */
typedef struct {
    double ttft_ms, tpot_ms, e2e_ms;
} kv_slo_t;

/* "ttft=2s,tpot=80ms,e2e=30s": any of them; s or ms. */
kv_status_t kv_slo_parse(const char *text, kv_slo_t *slo_out, kv_error_t *error);

/* {"requests", "seconds", "tokens", "hit_rate", "ideal_hit_rate", ..., "ttft_ms", ...} */
json_t *kv_outcome_pack(const kv_script_t *script, kv_drive_result_t *result, const kv_slo_t *slo);

/* The quantile of sorted values by rank; 0 where there are none. */
double kv_quantile_of(const double *sorted, size_t count, double quantile);

#endif
