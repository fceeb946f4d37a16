/* A load of agents, made from a seed: the same parameters make the same trace on every machine.
 *
 * So many agents work at once. Each runs session after session; a session begins with the prompt of
 * one of a few agent kinds (system message and tools, which all sessions of the kind share), and
 * adds turn by turn what a tool or a user said, and the answer. Between turns a tool runs, or
 * somebody thinks; the times are exponentially distributed. The answers are part of the next
 * prompt.
 *
 * Owns: nothing; the trace is the caller's (kv_trace_release).
 * Threads: any. */
#ifndef KV_TOOLS_SIM_AGENTS_H
#define KV_TOOLS_SIM_AGENTS_H

#include "tools/kvist/sim/trace.h"

typedef struct {
    uint64_t seed;
    uint32_t agent_count, request_count; /* both at least 1 */
} kv_agents_params_t;

enum {
    KV_AGENTS_BLOCK_TOKENS = 16,
    KV_AGENTS_KINDS = 8, /* of prompts of 1,000 to 4,000 tokens */
};

void kv_agents_make(const kv_agents_params_t *params, kv_trace_t *trace_out);

#endif
