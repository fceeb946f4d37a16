#include "tools/kvist/sim/agents.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    KIND_TOKENS_MIN = 1000,
    KIND_TOKENS_MAX = 4000,
    TURNS_MIN = 4,
    TURNS_MAX = 20,
    SAID_TOKENS_MIN = 30,
    SAID_TOKENS_MEAN = 250, /* beyond the least: exponential, */
    SAID_TOKENS_MAX = 2000, /* and no more than this */
    ANSWER_TOKENS_MIN = 20,
    ANSWER_TOKENS_MEAN = 120,
    ANSWER_TOKENS_MAX = 600,
    PAUSE_MS_MEAN = 8000,    /* between an answer and the next turn */
    SESSION_MS_MEAN = 15000, /* between sessions */
    ANSWER_TOKEN_MS = 20,    /* an answer's time */
    PROMPT_TOKENS_PER_MS = 10,
};

/* One at work. */
typedef struct {
    uint64_t at_ms; /* its next request */
    uint32_t kind, turns_left;
    uint32_t context_tokens; /* what the next request holds, */
    uint32_t *blocks;        /* in whole blocks: their numbers in the trace */
    uint32_t block_count, block_capacity;
} agent_t;

typedef struct {
    uint64_t random;
    kv_trace_t *trace;
    size_t asked_capacity, block_capacity;
    uint32_t kind_tokens[KV_AGENTS_KINDS];
    uint32_t *kind_blocks[KV_AGENTS_KINDS];
} maker_t;

static double draw(maker_t *maker) /* [0, 1) */
{
    maker->random = maker->random * 6364136223846793005 + 1442695040888963407;
    uint64_t bits = (maker->random ^ maker->random >> 33) * 0xff51afd7ed558ccd;
    return (double)(bits >> 11) / 9007199254740992.0;
}

static uint32_t draw_between(maker_t *maker, uint32_t least, uint32_t most)
{
    return least + (uint32_t)(draw(maker) * (double)(most - least + 1));
}

static uint32_t draw_exponential(maker_t *maker, uint32_t mean)
{
    return (uint32_t)(-log(1.0 - draw(maker)) * mean);
}

static uint32_t draw_tokens(maker_t *maker, uint32_t least, uint32_t mean, uint32_t most)
{
    uint32_t tokens = least + draw_exponential(maker, mean);
    return tokens < most ? tokens : most;
}

/* A block that nobody has asked for, after the parent. */
static uint32_t new_block(maker_t *maker, uint32_t parent)
{
    kv_trace_t *trace = maker->trace;
    if (trace->block_count == maker->block_capacity) {
        maker->block_capacity = 2 * maker->block_capacity + 1024;
        trace->parents =
            kv_reallocate(trace->parents, maker->block_capacity, sizeof *trace->parents);
    }
    trace->parents[trace->block_count] = parent;
    return trace->block_count++;
}

static void push_block(agent_t *agent, uint32_t block)
{
    if (agent->block_count == agent->block_capacity) {
        agent->block_capacity = 2 * agent->block_capacity + 64;
        agent->blocks = kv_reallocate(agent->blocks, agent->block_capacity, sizeof *agent->blocks);
    }
    agent->blocks[agent->block_count++] = block;
}

/* The context grows: what was not a whole block was nobody else's. */
static void grow(maker_t *maker, agent_t *agent, uint32_t tokens)
{
    agent->context_tokens += tokens;
    while (agent->block_count < agent->context_tokens / KV_AGENTS_BLOCK_TOKENS) {
        uint32_t parent =
            agent->block_count > 0 ? agent->blocks[agent->block_count - 1] : KV_TRACE_NONE;
        push_block(agent, new_block(maker, parent));
    }
}

static void make_kinds(maker_t *maker)
{
    for (int kind = 0; kind < KV_AGENTS_KINDS; kind++) {
        agent_t whole = {0};
        maker->kind_tokens[kind] = draw_between(maker, KIND_TOKENS_MIN, KIND_TOKENS_MAX);
        grow(maker, &whole, maker->kind_tokens[kind]);
        maker->kind_blocks[kind] = whole.blocks;
    }
}

static void begin_session(maker_t *maker, agent_t *agent)
{
    agent->kind = draw_between(maker, 0, KV_AGENTS_KINDS - 1);
    agent->turns_left = draw_between(maker, TURNS_MIN, TURNS_MAX);
    agent->block_count = 0;
    agent->context_tokens = maker->kind_tokens[agent->kind];
    for (uint32_t i = 0; i < agent->context_tokens / KV_AGENTS_BLOCK_TOKENS; i++) {
        push_block(agent, maker->kind_blocks[agent->kind][i]);
    }
    grow(maker, agent, draw_tokens(maker, SAID_TOKENS_MIN, SAID_TOKENS_MEAN, SAID_TOKENS_MAX));
}

static void ask(maker_t *maker, const agent_t *agent, uint32_t answer_tokens)
{
    kv_trace_t *trace = maker->trace;
    uint32_t count = agent->block_count;
    if (trace->asked_count + count > maker->asked_capacity) {
        maker->asked_capacity = 2 * (trace->asked_count + count);
        trace->blocks = kv_reallocate(trace->blocks, maker->asked_capacity, sizeof *trace->blocks);
    }
    memcpy(trace->blocks + trace->asked_count, agent->blocks, count * sizeof *trace->blocks);
    trace->requests[trace->request_count++] = (kv_trace_request_t){.at_ms = agent->at_ms,
        .input_tokens = agent->context_tokens,
        .output_tokens = answer_tokens,
        .first_block = trace->asked_count,
        .block_count = count};
    trace->asked_count += count;
    trace->longest_blocks = count > trace->longest_blocks ? count : trace->longest_blocks;
}

/* A request, and when the agent's next one comes. */
static void take_turn(maker_t *maker, agent_t *agent)
{
    uint32_t answer_tokens =
        draw_tokens(maker, ANSWER_TOKENS_MIN, ANSWER_TOKENS_MEAN, ANSWER_TOKENS_MAX);
    ask(maker, agent, answer_tokens);
    agent->at_ms +=
        (uint64_t)answer_tokens * ANSWER_TOKEN_MS + agent->context_tokens / PROMPT_TOKENS_PER_MS;
    if (--agent->turns_left == 0) {
        agent->at_ms += draw_exponential(maker, SESSION_MS_MEAN);
        begin_session(maker, agent);
        return;
    }
    agent->at_ms += draw_exponential(maker, PAUSE_MS_MEAN);
    grow(maker, agent, answer_tokens);
    grow(maker, agent, draw_tokens(maker, SAID_TOKENS_MIN, SAID_TOKENS_MEAN, SAID_TOKENS_MAX));
}

void kv_agents_make(const kv_agents_params_t *params, kv_trace_t *trace_out)
{
    *trace_out = (kv_trace_t){.block_tokens = KV_AGENTS_BLOCK_TOKENS};
    trace_out->requests = kv_allocate_array(params->request_count, sizeof *trace_out->requests);
    maker_t maker = {.random = params->seed, .trace = trace_out};
    make_kinds(&maker);
    agent_t *agents = kv_allocate_array(params->agent_count, sizeof *agents);
    for (uint32_t i = 0; i < params->agent_count; i++) {
        agents[i].at_ms = draw_exponential(&maker, SESSION_MS_MEAN);
        begin_session(&maker, &agents[i]);
    }
    while (trace_out->request_count < params->request_count) {
        agent_t *next = &agents[0];
        for (uint32_t i = 1; i < params->agent_count; i++) {
            next = agents[i].at_ms < next->at_ms ? &agents[i] : next;
        }
        take_turn(&maker, next);
    }
    for (uint32_t i = 0; i < params->agent_count; i++) {
        free(agents[i].blocks);
    }
    for (int kind = 0; kind < KV_AGENTS_KINDS; kind++) {
        free(maker.kind_blocks[kind]);
    }
    free(agents);
}
