/* Hints as an agent framework would give them, made from what the trace says of the future, and
 * made worse: some are missing, all are off, some are false.
 *
 * A request's context comes back where a later request holds all of its whole blocks. Of those that
 * do, a share gets no hint; the others' times are multiplied by e to the power of a normally
 * distributed number (a log-normal error). False hints are given to requests whose context never
 * comes back, with times that are drawn from those of the others.
 *
 * Owns: nothing. Threads: any; the same parameters make the same hints. */
#ifndef KV_TOOLS_SIM_HINTS_H
#define KV_TOOLS_SIM_HINTS_H

#include "tools/kvist/sim/trace.h"

typedef struct {
    uint64_t seed;
    double missing_share; /* of the contexts that come back */
    double error_sigma;   /* of the time's natural logarithm */
    double false_share;   /* of the hints that are given */
} kv_hints_params_t;

typedef struct {
    uint32_t true_count, false_count, coming_count; /* coming: contexts that come back */
} kv_hints_counts_t;

/* expected_ms_out: [trace->request_count] ms after the request; 0: no hint. */
kv_hints_counts_t kv_hints_make(
    const kv_trace_t *trace, const kv_hints_params_t *params, uint64_t *expected_ms_out);

#endif
