#include "tools/kvist/bench/serve/workloads.h"

#include "base/memory.h"

#include <stdlib.h>

enum {
    SAID_TOKENS_LEAST = 16,
    ANSWER_TOKENS_LEAST = 8,
    MEANS_MAX = 8,             /* an exponential draw is no more than so many means */
    INSTRUCTIONS_DIVISOR = 10, /* batch: of the document's length */
    WARMING_ANSWER_TOKENS = 1,
};

/* What seeds are made for. */
enum { SEED_KIND = 1, SEED_SESSION, SEED_TURN, SEED_SHARED, SEED_REST, SEED_BLOCK };

const char *const KV_WORKLOAD_NAMES[KV_WORKLOAD_COUNT] = {
    "agents", "sweep", "tree", "batch", "trace"};

kv_workload_t kv_workload_defaults(kv_workload_kind_t kind)
{
    kv_workload_t workload = {.kind = kind,
        .prompt_tokens = 1500,
        .answer_tokens = 100,
        .turn_tokens = 200,
        .sessions = 32,
        .requests = 64,
        .kinds = 4,
        .turns = 8,
        .pause_ms = 4000,
        .branches = 4,
        .depth = 3,
        .beam = 2,
        .questions = 8,
        .scale_percent = 100};
    switch (kind) {
    case KV_WORKLOAD_SWEEP:
        workload.prompt_tokens = 7680;
        workload.answer_tokens = 16;
        break;
    case KV_WORKLOAD_TREE:
        workload.sessions = 8;
        workload.turn_tokens = 40;
        workload.answer_tokens = 60;
        break;
    case KV_WORKLOAD_BATCH:
        workload.sessions = 16;
        workload.prompt_tokens = 3000;
        workload.turn_tokens = 40;
        workload.answer_tokens = 40;
        break;
    case KV_WORKLOAD_TRACE:
        workload.requests = 0;
        workload.answer_tokens = UINT32_MAX;
        break;
    default:
        break;
    }
    return workload;
}

typedef struct {
    const kv_workload_t *workload;
    kv_script_t *script;
    uint64_t random;
} maker_t;

static uint64_t seed_of(const maker_t *maker, uint64_t kind, uint64_t number)
{
    return kv_seed_mix(maker->workload->seed, kind, number);
}

/* Exponential around the mean, within [least or the mean, MEANS_MAX means]. */
static uint32_t draw_tokens(maker_t *maker, uint32_t mean, uint32_t least)
{
    double drawn = kv_draw_exponential(&maker->random, mean);
    double most = (double)mean * MEANS_MAX;
    uint32_t tokens = (uint32_t)(drawn < most ? drawn : most);
    least = least < mean ? least : mean;
    return tokens > least ? tokens : least;
}

static bool fits(const maker_t *maker, uint64_t prompt_tokens, uint32_t answer_tokens)
{
    return prompt_tokens + answer_tokens <= maker->workload->context_tokens;
}

static kv_status_t refuse(const maker_t *maker, uint64_t needed, kv_error_t *error)
{
    return kv_fail(error, KV_INVALID,
        "%s: the longest prompt and its answer have up to %llu tokens, but the endpoint's context "
        "has %u; make --prompt-tokens, --turn-tokens or --answer-tokens smaller",
        KV_WORKLOAD_NAMES[maker->workload->kind], (unsigned long long)needed,
        maker->workload->context_tokens);
}

/* ---- agents ---- */

/* Until it has had its turns, or would not fit the context any more. */
static void add_session(maker_t *maker, uint32_t session, uint64_t kind_seed, uint32_t kind_tokens)
{
    const kv_workload_t *workload = maker->workload;
    uint32_t least = workload->turns - workload->turns / 2;
    uint32_t turns = kv_draw_between(&maker->random, least, workload->turns + workload->turns / 2);
    uint32_t number = KV_SCRIPT_NONE;
    for (uint32_t turn = 0; turn < turns; turn++) {
        uint32_t said = draw_tokens(maker, workload->turn_tokens, SAID_TOKENS_LEAST);
        uint32_t answer = draw_tokens(maker, workload->answer_tokens, ANSWER_TOKENS_LEAST);
        double pause_ms = kv_draw_exponential(&maker->random, (double)workload->pause_ms);
        const kv_script_request_t *last =
            number != KV_SCRIPT_NONE ? &maker->script->requests[number] : NULL;
        uint64_t before = last != NULL ? last->prompt_tokens + last->answer_tokens : kind_tokens;
        if (last != NULL && !fits(maker, before + said, answer)) {
            return;
        }
        if (last == NULL) { /* the first one is made to fit */
            said = said < workload->turn_tokens ? said : workload->turn_tokens;
            answer = answer < workload->answer_tokens ? answer : workload->answer_tokens;
        }
        number =
            kv_script_add(maker->script, number, answer, last != NULL ? (uint64_t)pause_ms : 0);
        if (turn == 0) {
            kv_script_add_part(maker->script, kind_seed, kind_tokens);
        }
        kv_script_add_part(
            maker->script, seed_of(maker, SEED_TURN, (uint64_t)session << 32 | turn), said);
    }
}

static kv_status_t make_agents(maker_t *maker, kv_error_t *error)
{
    const kv_workload_t *workload = maker->workload;
    uint32_t half = workload->prompt_tokens / 2;
    uint32_t *kind_tokens = kv_allocate_array(workload->kinds, sizeof *kind_tokens);
    uint64_t longest = (uint64_t)workload->prompt_tokens + half + workload->turn_tokens;
    if (!fits(maker, longest, workload->answer_tokens)) {
        free(kind_tokens);
        return refuse(maker, longest + workload->answer_tokens, error);
    }
    for (uint32_t i = 0; i < workload->kinds; i++) {
        kind_tokens[i] = kv_draw_between(
            &maker->random, workload->prompt_tokens - half, workload->prompt_tokens + half);
    }
    for (uint32_t i = 0; i < workload->sessions; i++) {
        uint32_t kind = kv_draw_between(&maker->random, 0, workload->kinds - 1);
        add_session(maker, i, seed_of(maker, SEED_KIND, kind), kind_tokens[kind]);
    }
    free(kind_tokens);
    return KV_OK;
}

/* ---- sweep ---- */

static kv_status_t make_sweep(maker_t *maker, kv_error_t *error)
{
    const kv_workload_t *workload = maker->workload;
    if (!fits(maker, workload->prompt_tokens, workload->answer_tokens)) {
        return refuse(maker, (uint64_t)workload->prompt_tokens + workload->answer_tokens, error);
    }
    uint32_t shared =
        (uint32_t)((uint64_t)workload->prompt_tokens * workload->shared_percent / 100);
    uint32_t warming = shared > 0;
    for (uint32_t i = 0; i < workload->requests + warming; i++) {
        kv_script_add(maker->script, KV_SCRIPT_NONE,
            i < warming ? WARMING_ANSWER_TOKENS : workload->answer_tokens, 0);
        kv_script_add_part(maker->script, seed_of(maker, SEED_SHARED, 0), shared);
        kv_script_add_part(
            maker->script, seed_of(maker, SEED_REST, i), workload->prompt_tokens - shared);
    }
    maker->script->warming_count = warming;
    return KV_OK;
}

/* ---- tree ---- */

/* Extends `from` by all its tries; the numbers of these go to tries_out. */
static void add_tries(maker_t *maker, uint32_t from, uint32_t *tries_out)
{
    const kv_workload_t *workload = maker->workload;
    for (uint32_t i = 0; i < workload->branches; i++) {
        tries_out[i] = kv_script_add(maker->script, from, workload->answer_tokens, 0);
        kv_script_add_part(
            maker->script, seed_of(maker, SEED_TURN, tries_out[i]), workload->turn_tokens);
    }
}

/* Moves `count` of them, drawn, to the front. */
static void choose(maker_t *maker, uint32_t *numbers, uint32_t total, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t other = kv_draw_between(&maker->random, i, total - 1);
        uint32_t kept = numbers[i];
        numbers[i] = numbers[other];
        numbers[other] = kept;
    }
}

static void add_tree(maker_t *maker, uint32_t number, uint32_t *level, uint32_t *tries)
{
    const kv_workload_t *workload = maker->workload;
    uint32_t count = 1;
    level[0] = kv_script_add(maker->script, KV_SCRIPT_NONE, workload->answer_tokens, 0);
    kv_script_add_part(maker->script, seed_of(maker, SEED_SHARED, 0), workload->prompt_tokens / 2);
    kv_script_add_part(maker->script, seed_of(maker, SEED_SESSION, number),
        workload->prompt_tokens - workload->prompt_tokens / 2);
    for (uint32_t depth = 0; depth < workload->depth; depth++) {
        for (uint32_t i = 0; i < count; i++) {
            add_tries(maker, level[i], tries + (size_t)i * workload->branches);
        }
        uint32_t total = count * workload->branches;
        count = total < workload->beam ? total : workload->beam;
        choose(maker, tries, total, count);
        for (uint32_t i = 0; i < count; i++) {
            level[i] = tries[i];
        }
    }
}

static kv_status_t make_tree(maker_t *maker, kv_error_t *error)
{
    const kv_workload_t *workload = maker->workload;
    uint64_t step = (uint64_t)workload->turn_tokens + workload->answer_tokens;
    uint64_t longest = workload->prompt_tokens + workload->depth * step + workload->answer_tokens;
    if (longest > workload->context_tokens) {
        return refuse(maker, longest, error);
    }
    uint32_t *level = kv_allocate_array((size_t)workload->beam + 1, sizeof *level);
    uint32_t *tries =
        kv_allocate_array(((size_t)workload->beam + 1) * workload->branches, sizeof *tries);
    for (uint32_t i = 0; i < workload->sessions; i++) {
        add_tree(maker, i, level, tries);
    }
    free(level);
    free(tries);
    return KV_OK;
}

/* ---- batch ---- */

static kv_status_t make_batch(maker_t *maker, kv_error_t *error)
{
    const kv_workload_t *workload = maker->workload;
    uint32_t instructions = workload->prompt_tokens / INSTRUCTIONS_DIVISOR;
    uint64_t longest = (uint64_t)workload->prompt_tokens + workload->turn_tokens;
    if (!fits(maker, longest, workload->answer_tokens)) {
        return refuse(maker, longest + workload->answer_tokens, error);
    }
    uint32_t count = workload->sessions * workload->questions;
    uint32_t *order = kv_allocate_array(count, sizeof *order);
    for (uint32_t i = 0; i < count; i++) {
        order[i] = i;
    }
    choose(maker, order, count, workload->shuffled ? count : 0);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t document = order[i] / workload->questions;
        kv_script_add(maker->script, KV_SCRIPT_NONE, workload->answer_tokens, 0);
        kv_script_add_part(maker->script, seed_of(maker, SEED_SHARED, 0), instructions);
        kv_script_add_part(maker->script, seed_of(maker, SEED_SESSION, document),
            workload->prompt_tokens - instructions);
        kv_script_add_part(
            maker->script, seed_of(maker, SEED_TURN, order[i]), workload->turn_tokens);
    }
    free(order);
    return KV_OK;
}

/* ---- trace ---- */

static uint32_t scaled(const maker_t *maker, uint32_t tokens)
{
    uint32_t result = (uint32_t)((uint64_t)tokens * maker->workload->scale_percent / 100);
    return result > 0 ? result : 1;
}

/* A prompt that is too long loses its end: what it shares with others lies at its beginning. */
static void add_recorded(maker_t *maker, uint32_t number, uint64_t start_ms)
{
    const kv_trace_t *trace = maker->workload->trace;
    const kv_trace_request_t *from = &trace->requests[number];
    uint32_t answer = scaled(maker, from->output_tokens), context = maker->workload->context_tokens;
    answer = answer < maker->workload->answer_tokens ? answer : maker->workload->answer_tokens;
    answer = answer < context / 2 ? answer : context / 2;
    uint32_t room = context - answer;
    kv_script_add(maker->script, KV_SCRIPT_NONE, answer, from->at_ms - start_ms);
    uint32_t parts = (from->input_tokens + trace->block_tokens - 1) / trace->block_tokens;
    for (uint32_t i = 0; i < parts || i == 0; i++) { /* none at all becomes one token */
        uint32_t tokens = scaled(maker, kv_trace_tokens(trace, from, i));
        uint64_t seed = i < from->block_count
                            ? seed_of(maker, SEED_BLOCK, trace->blocks[from->first_block + i])
                            : seed_of(maker, SEED_REST, number);
        kv_script_add_part(maker->script, seed, tokens < room ? tokens : room);
        if (tokens > room) {
            maker->script->cut_count++;
            return;
        }
        room -= tokens;
    }
}

static void make_trace(maker_t *maker)
{
    const kv_trace_t *trace = maker->workload->trace;
    uint32_t most = maker->workload->requests, count = trace->request_count;
    count = most > 0 && most < count ? most : count;
    for (uint32_t i = 0; i < count; i++) {
        add_recorded(maker, i, trace->requests[0].at_ms);
    }
    maker->script->has_times = true;
}

/* How many requests it has at most. */
static uint64_t count_most(const kv_workload_t *workload)
{
    uint64_t sessions = workload->sessions, branches = workload->branches;
    switch (workload->kind) {
    case KV_WORKLOAD_AGENTS:
        return sessions * (workload->turns + workload->turns / 2);
    case KV_WORKLOAD_SWEEP:
        return (uint64_t)workload->requests + 1;
    case KV_WORKLOAD_TREE:
        return sessions * (1 + branches + (workload->depth - 1) * branches * workload->beam);
    case KV_WORKLOAD_BATCH:
        return sessions * workload->questions;
    default:
        return workload->trace->request_count;
    }
}

kv_status_t kv_workload_make(
    const kv_workload_t *workload, kv_script_t *script_out, kv_error_t *error)
{
    kv_script_t script = {0};
    maker_t maker = {.workload = workload, .script = &script, .random = workload->seed};
    kv_status_t status = KV_OK;
    if (count_most(workload) > KV_SCRIPT_REQUESTS_MAX) {
        return kv_fail(error, KV_INVALID,
            "%s: that would be %llu requests; at most %d are possible",
            KV_WORKLOAD_NAMES[workload->kind], (unsigned long long)count_most(workload),
            KV_SCRIPT_REQUESTS_MAX);
    }
    switch (workload->kind) {
    case KV_WORKLOAD_AGENTS:
        status = make_agents(&maker, error);
        break;
    case KV_WORKLOAD_SWEEP:
        status = make_sweep(&maker, error);
        break;
    case KV_WORKLOAD_TREE:
        status = make_tree(&maker, error);
        break;
    case KV_WORKLOAD_BATCH:
        status = make_batch(&maker, error);
        break;
    default:
        make_trace(&maker);
    }
    if (status != KV_OK) {
        kv_script_release(&script);
        return status;
    }
    *script_out = script;
    return KV_OK;
}
