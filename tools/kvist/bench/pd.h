/* What the files of `kvist bench pd` share.
 *
 *   pd.c        options, clusters, the order of things; time to first token, idle nodes
 *   pd_pace.c   the pace of running decodes while long prompts arrive
 *
 * Prompts are token ids drawn from a seed, so that none is stored anywhere; every request bypasses
 * the cache all the same. */
#ifndef KV_TOOLS_BENCH_PD_H
#define KV_TOOLS_BENCH_PD_H

#include "tools/kvist/bench/measure.h"
#include "tools/kvist/cluster.h"
#include "tools/kvist/completion.h"

enum { KV_BENCH_PD_LIMIT_MS = 600000 };

typedef struct {
    kv_report_t report;
    FILE *notes;          /* where lines that are no measures go */
    const char *model_id; /* as requests name it */
    uint64_t prompt_tokens, window_ms;
    const char *series, *figure; /* files to write; NULL: none */
} kv_bench_pd_t;

/* A way to use the cores. */
typedef struct {
    const char *name;
    const char *endpoint;
    const char *prefill_role; /* "prefill" or "decode": who computes prompts */
} kv_bench_pd_layout_t;

/* Sends a prompt that only this seed gives. KV_FATAL: another role than the layout's computed it,
 * so that a figure would say nothing. answer_out: clear it in any case. */
kv_status_t kv_bench_pd_ask(const kv_bench_pd_t *bench, const kv_bench_pd_layout_t *layout,
    uint64_t seed, uint64_t prompt_tokens, uint32_t answer_tokens, kv_answer_t *answer_out,
    kv_error_t *error);

typedef struct {
    kv_bench_pd_layout_t layout;
    double target; /* of the 99th percentile beside prefills, against idle; NAN: none */
} kv_pace_layout_t;

kv_status_t kv_bench_pd_pace(const kv_bench_pd_t *bench, kv_report_t *report,
    const kv_pace_layout_t *layouts, uint32_t layout_count, kv_error_t *error);

#endif
