/* Workloads: scripts of what applications ask.
 *
 *   agents  sessions of turns: each extends the one before and its answer by what a tool or a user
 *           said, after a pause. Sessions of one kind share a system prompt
 *   sweep   prompts of one length whose first part, the same for all, is a given share; one that
 *           goes before warms the cache
 *   tree    search: each answer is extended by several tries, and some of those by further ones
 *   batch   documents with several questions to each, after instructions that all share
 *   trace   prompts, answers and times of a recorded trace (sim/trace.h)
 *
 * The same parameters make the same script on every machine. Lengths are drawn: an agent kind's
 * prompt is half to one and a half of prompt_tokens, what is said in a turn, an agent's answers and
 * pauses are exponentially distributed around their mean.
 *
 * Owns: nothing; the script is the caller's (kv_script_release).
 * Threads: any.
 * Errors: KV_INVALID where a prompt and its answer do not fit the context, with what to change. */
#ifndef KV_TOOLS_SERVE_WORKLOADS_H
#define KV_TOOLS_SERVE_WORKLOADS_H

#include "base/status.h"
#include "tools/kvist/bench/serve/script.h"
#include "tools/kvist/sim/trace.h"

typedef enum {
    KV_WORKLOAD_AGENTS,
    KV_WORKLOAD_SWEEP,
    KV_WORKLOAD_TREE,
    KV_WORKLOAD_BATCH,
    KV_WORKLOAD_TRACE,
    KV_WORKLOAD_COUNT
} kv_workload_kind_t;

extern const char *const KV_WORKLOAD_NAMES[KV_WORKLOAD_COUNT];

/* All but the trace at least 1, if nothing else is said. */
typedef struct {
    kv_workload_kind_t kind;
    uint64_t seed;
    uint32_t context_tokens; /* that a prompt and its answer may have */
    uint32_t prompt_tokens, answer_tokens;
    uint32_t turn_tokens;     /* agents, tree: what extends an answer; batch: a question */
    uint32_t sessions;        /* agents: sessions; tree: trees; batch: documents */
    uint32_t requests;        /* sweep; trace: at most so many (0: all) */
    uint32_t kinds, turns;    /* agents; turns are half to one and a half of it */
    uint64_t pause_ms;        /* agents; 0: none */
    uint32_t shared_percent;  /* sweep: 0 to 100 */
    uint32_t branches, depth; /* tree: tries of an answer, and how many follow each other */
    uint32_t beam;            /* tree: tries of a level that are extended */
    uint32_t questions;       /* batch: of each document */
    bool shuffled;            /* batch: in any order, not document by document */
    const kv_trace_t *trace;  /* trace: borrowed */
    uint32_t scale_percent;   /* trace: of all lengths */
} kv_workload_t;

/* What each kind has where nothing else is said. */
kv_workload_t kv_workload_defaults(kv_workload_kind_t kind);

kv_status_t kv_workload_make(
    const kv_workload_t *workload, kv_script_t *script_out, kv_error_t *error);

#endif
