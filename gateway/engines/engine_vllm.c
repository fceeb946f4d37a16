/* vLLM servers as nodes: a Generate becomes POST /v1/completions, its stream becomes Tokens and
 * Finished.
 *
 *   generate --> (call) --line--> Tokens ... --[DONE]--> Finished
 *                  |  ^                          an error, no success: Finished with its status
 *                  |  broke off, or no such answer: lost
 *      cancel: the connection is closed, which ends the work there; where the usage is wanted, the
 *      server is waited for a moment: it was told of the stop strings, and is about to end
 *
 * What a server cannot do is refused: its cache always reads and keeps. bypass is a salt that is
 * used once, so that nothing is read and nobody finds what stays. */
#include "gateway/engines/vllm_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/kvist.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum {
    TICK_MS = 100,
    BLOCK_TOKENS = 16,     /* vLLM's, where nobody says otherwise: what is kept is a guess anyway */
    USAGE_LIMIT_MS = 1500, /* within what the gateway waits for it */
    ID_BYTES = 80,
    SALT_BYTES = 2 * KVIST_KEY_BYTES + 1,
};

struct kv_vllm_call {
    kv_vllm_call_t *next;
    kv_vllm_node_t *node;
    kv_http_call_t *http; /* NULL: nothing was sent, and refusal says why */
    char id[ID_BYTES];
    kv_error_t refusal;
    uint32_t prompt_tokens, continued_tokens, generated_tokens;
    size_t promise_count;
    kv_vllm_finish_t finish;
    bool has_usage, has_cached;
    uint32_t cached_tokens;
    bool stopping;     /* its tokens are not wanted any more, its usage is */
    bool whole;        /* [DONE] came */
    bool told;         /* Finished was said: only the connection's turn is waited for */
    uint64_t limit_ns; /* stopping, told: for what is waited for */
};

/* ---- the end of a call ---- */

static void end_call(kv_vllm_call_t *call)
{
    kv_vllm_engine_t *engine = call->node->engine;
    kv_vllm_call_t **at = &engine->calls;
    while (*at != call) {
        at = &(*at)->next;
    }
    *at = call->next;
    if (call->http != NULL) {
        kv_http_cancel(call->http);
    }
    free(call);
}

static uint64_t usage_limit_ns(void)
{
    return kv_clock_now_ns() + (uint64_t)USAGE_LIMIT_MS * KV_NS_PER_MS;
}

/* Nothing more is to be told of it. A whole answer's last bytes are let come: the connection serves
 * the next one. */
static void retire_call(kv_vllm_call_t *call)
{
    if (call->http != NULL && call->whole) {
        call->told = true;
        call->limit_ns = usage_limit_ns();
    } else {
        end_call(call);
    }
}

void kv_vllm_drop_calls(kv_vllm_node_t *node)
{
    for (kv_vllm_call_t *call = node->engine->calls, *next; call != NULL; call = next) {
        next = call->next;
        if (call->node == node) {
            end_call(call);
        }
    }
}

static kv_vllm_call_t *find_call(const kv_vllm_node_t *node, const char *id)
{
    for (kv_vllm_call_t *call = node->engine->calls; call != NULL; call = call->next) {
        if (call->node == node && !call->told && strcmp(call->id, id) == 0) {
            return call;
        }
    }
    return NULL;
}

/* A server keeps what it likes for as long as it likes. The array is the caller's to release. */
static void refuse_promises(const kv_vllm_call_t *call, Kvist__Wire__Usage *usage)
{
    static Kvist__Wire__Granted refused;
    kvist__wire__granted__init(&refused);
    refused.why_not = (char *)"vLLM promises nothing of what it caches";
    usage->n_granted = call->promise_count;
    usage->granted = kv_allocate_array(call->promise_count + 1, sizeof(Kvist__Wire__Granted *));
    for (size_t i = 0; i < call->promise_count; i++) {
        usage->granted[i] = &refused;
    }
}

/* Ends the call with what it came to. Where its cached tokens are not known, none are told: for an
 * answer that goes on here they count what was generated elsewhere, too. */
static void finish_call(
    kv_vllm_call_t *call, Kvist__Wire__FinishReason reason, kv_status_t status, const char *text)
{
    const kv_nodes_callbacks_t *callbacks = &call->node->engine->base.callbacks;
    kv_vllm_node_t *node = call->node;
    char id[ID_BYTES];
    Kvist__Wire__CachedTokens cached = KVIST__WIRE__CACHED_TOKENS__INIT;
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    Kvist__Wire__Finished finished = KVIST__WIRE__FINISHED__INIT;
    cached.device = call->cached_tokens;
    usage.prompt_tokens = call->prompt_tokens;
    usage.generated_tokens = call->generated_tokens;
    usage.prefilled_by = node->address;
    usage.cached = call->has_cached && call->continued_tokens == 0 ? &cached : NULL;
    finished.request_id = id;
    finished.reason = reason;
    finished.status = status;
    finished.error = (char *)text;
    finished.usage = call->has_usage ? &usage : NULL;
    refuse_promises(call, &usage);
    snprintf(id, sizeof id, "%s", call->id);
    retire_call(call);
    callbacks->finished(callbacks->context, &node->base, &finished);
    free(usage.granted);
}

static void lose_call(kv_vllm_call_t *call, const char *reason)
{
    const kv_nodes_callbacks_t *callbacks = &call->node->engine->base.callbacks;
    kv_vllm_node_t *node = call->node;
    char id[ID_BYTES], text[KV_VLLM_REASON_BYTES];
    snprintf(id, sizeof id, "%s", call->id);
    snprintf(text, sizeof text, "%s", reason);
    end_call(call);
    kv_vllm_suspect(node);
    callbacks->lost(callbacks->context, &node->base, id, text);
}

/* The stream is whole. */
static void conclude(kv_vllm_call_t *call)
{
    switch (call->finish) {
    case KV_VLLM_END_TOKEN:
        finish_call(call, KVIST__WIRE__FINISH_REASON__FINISH_STOP, KV_OK, "");
        break;
    case KV_VLLM_LENGTH:
        finish_call(call, KVIST__WIRE__FINISH_REASON__FINISH_LENGTH, KV_OK, "");
        break;
    case KV_VLLM_STOP_STRING:
        if (call->stopping) {
            finish_call(call, KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED, KV_OK, "");
        } else { /* what it took for one is none in the gateway's text: the answer goes on */
            finish_call(call, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, KV_CANCELLED,
                "it ended at a stop string that is not in the text");
        }
        break;
    case KV_VLLM_GAVE_UP:
        finish_call(call, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, KV_CANCELLED, "it aborted");
        break;
    default:
        lose_call(call, "its answer ended without a finish_reason");
    }
}

/* ---- what comes ---- */

/* Alternatives of an event's tokens, as the wire has them. */
typedef struct {
    Kvist__Wire__TopLogprobs *messages, **pointers;
    uint32_t *tokens;
    float *logprobs;
} tops_t;

static void free_tops(tops_t *tops)
{
    if (tops != NULL) {
        free(tops->messages);
        free(tops->pointers);
        free(tops->tokens);
        free(tops->logprobs);
        free(tops);
    }
}

/* NULL where there are none. */
static tops_t *copy_tops(const kv_vllm_event_t *event)
{
    if (event->tops == NULL) {
        return NULL;
    }
    tops_t *tops = kv_allocate(sizeof *tops);
    size_t count = event->token_count, capacity = event->top_capacity;
    tops->messages = kv_allocate_array(count, sizeof *tops->messages);
    tops->pointers = kv_allocate_array(count, sizeof *tops->pointers);
    tops->tokens = kv_allocate_array(count * capacity, sizeof *tops->tokens);
    tops->logprobs = kv_allocate_array(count * capacity, sizeof *tops->logprobs);
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < event->top_counts[i]; k++) {
            tops->tokens[i * capacity + k] = event->tops[i * capacity + k].token;
            tops->logprobs[i * capacity + k] = event->tops[i * capacity + k].logprob;
        }
        kvist__wire__top_logprobs__init(&tops->messages[i]);
        tops->messages[i].tokens = &tops->tokens[i * capacity];
        tops->messages[i].logprobs = &tops->logprobs[i * capacity];
        tops->messages[i].n_tokens = tops->messages[i].n_logprobs = event->top_counts[i];
        tops->pointers[i] = &tops->messages[i];
    }
    return tops;
}

/* The call may be gone afterwards. */
static void pass_tokens(kv_vllm_call_t *call, const kv_vllm_event_t *event)
{
    const kv_nodes_callbacks_t *callbacks = &call->node->engine->base.callbacks;
    Kvist__Wire__Tokens tokens = KVIST__WIRE__TOKENS__INIT;
    call->finish = event->finish;
    call->generated_tokens += (uint32_t)event->token_count;
    if (event->token_count == 0 || call->stopping) {
        return;
    }
    tokens.request_id = call->id;
    tokens.tokens = event->tokens;
    tokens.n_tokens = event->token_count;
    tokens.logprobs = event->logprobs;
    tokens.n_logprobs = event->logprobs != NULL ? event->token_count : 0;
    tops_t *tops = copy_tops(event);
    tokens.tops = tops != NULL ? tops->pointers : NULL;
    tokens.n_tops = tops != NULL ? event->token_count : 0;
    callbacks->tokens(callbacks->context, &call->node->base, &tokens);
    free_tops(tops);
}

static void take_usage(kv_vllm_call_t *call, const kv_vllm_event_t *event)
{
    kv_vllm_node_t *node = call->node;
    call->has_usage = true;
    call->has_cached = event->has_cached;
    call->cached_tokens = event->cached_tokens;
    if (!event->has_cached && !node->warned) {
        node->warned = true;
        kv_log_warn("gateway",
            "vllm node %s does not say how many tokens were cached: start it with "
            "--enable-prompt-tokens-details",
            node->address);
    }
}

/* An error that the server found. The request's own fault is told to the client; once tokens came
 * it cannot be that. */
static void fail_call(kv_vllm_call_t *call, long code, const char *said)
{
    bool own_fault = (code == 400 || code == 413 || code == 422) && call->generated_tokens == 0;
    char text[KV_VLLM_REASON_BYTES];
    snprintf(text, sizeof text, "HTTP %ld: %s", code, said);
    kv_status_t status = own_fault ? KV_INVALID : code == 429 || code == 503 ? KV_BUSY : KV_FATAL;
    if (status == KV_FATAL) {
        kv_vllm_suspect(call->node);
    }
    finish_call(call, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, status, text);
}

static void on_line(void *context, const char *line, size_t bytes)
{
    kv_vllm_call_t *call = context;
    kv_vllm_event_t event;
    kv_error_t error;
    if (call->told) {
        return;
    }
    if (kv_vllm_read_line(line, bytes, &event, &error) != KV_OK) {
        lose_call(call, error.text);
        return;
    }
    switch (event.kind) {
    case KV_VLLM_TOKENS:
        pass_tokens(call, &event);
        break;
    case KV_VLLM_USAGE:
        take_usage(call, &event);
        break;
    case KV_VLLM_ERROR:
        fail_call(call, (long)event.error_code, event.error_text);
        break;
    case KV_VLLM_DONE:
        call->whole = true;
        conclude(call);
        break;
    case KV_VLLM_NOTHING:
        break;
    }
    kv_vllm_event_clear(&event);
}

static void on_ended(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    kv_vllm_call_t *call = context;
    char said[KV_VLLM_TEXT_BYTES];
    call->http = NULL;
    if (call->told) {
        end_call(call);
    } else if (status != KV_OK) {
        lose_call(call, text);
    } else if (code != 200) {
        kv_vllm_read_error(text, bytes, said);
        fail_call(call, code, said);
    } else {
        lose_call(call, "its answer ended without [DONE]");
    }
}

/* ---- generate and cancel ---- */

/* A seed for the rest of an answer: with the same one the rest would be drawn as its start was. */
static uint64_t seed_after(uint64_t seed, uint32_t generated_count)
{
    uint64_t mixed = seed + generated_count * UINT64_C(0x9e3779b97f4a7c15);
    mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
    return generated_count == 0 ? seed : mixed ^ (mixed >> 31);
}

/* The tenant's salt in what vLLM takes as one (at most 128 characters); false: it has none. */
static bool write_salt(const Kvist__Wire__Generate *generate, char salt_out[SALT_BYTES])
{
    static const kvist_layout_t NO_LAYOUT;
    kvist_key_t digest;
    if (generate->cache_mode == KVIST__WIRE__CACHE_MODE__CACHE_BYPASS) {
        KV_CHECK(getrandom(digest.bytes, sizeof digest.bytes, 0) == sizeof digest.bytes);
    } else if (generate->salt.len > 0) {
        digest = kvist_namespace(&(kvist_namespace_params_t){.layout = &NO_LAYOUT,
            .salt = generate->salt.data,
            .salt_bytes = generate->salt.len,
            .adapter = ""});
    } else {
        return false;
    }
    for (size_t i = 0; i < sizeof digest.bytes; i++) {
        snprintf(salt_out + 2 * i, 3, "%02x", digest.bytes[i]);
    }
    return true;
}

static char *write_body(const kv_vllm_node_t *node, const kv_node_work_t *work)
{
    const Kvist__Wire__Generate *generate = work->generate;
    const Kvist__Wire__Sampling *sampling = generate->sampling;
    char salt[SALT_BYTES];
    const kv_vllm_ask_t ask = {.model = node->model,
        .request_id = generate->request_id,
        .tokens = generate->tokens,
        .token_count = generate->n_tokens,
        .max_tokens = generate->max_tokens,
        .temperature = sampling->temperature,
        .top_p = sampling->top_p,
        .top_k = sampling->top_k,
        .seed = seed_after(sampling->seed, generate->generated_count),
        .has_seed = sampling->temperature > 0,
        .ignore_end = generate->ignore_end,
        .logprob_count = work->wants_logprobs ? (int32_t)sampling->top_logprobs : -1,
        .cache_salt = write_salt(generate, salt) ? salt : NULL,
        .priority = (int32_t)generate->priority, /* theirs are ordered as ours: lower goes first */
        .stops = work->stops,
        .stop_count = work->stop_count};
    return kv_vllm_write_ask(&ask);
}

/* What a server would do otherwise than it was asked. */
static kv_status_t check_work(const Kvist__Wire__Generate *generate, kv_error_t *error)
{
    bool read = generate->cache_mode == KVIST__WIRE__CACHE_MODE__CACHE_READ;
    if (read || generate->cache_mode == KVIST__WIRE__CACHE_MODE__CACHE_WRITE) {
        return kv_fail(error, KV_REFUSED,
            "cache_mode %s: vLLM always reads and keeps: only readwrite and bypass are served in "
            "front of it",
            read ? "read" : "write");
    }
    return KV_OK;
}

static kv_status_t generate(kv_node_t *base, const kv_node_work_t *work)
{
    kv_vllm_node_t *node = (kv_vllm_node_t *)base;
    kv_vllm_engine_t *engine = node->engine;
    const Kvist__Wire__Generate *generate = work->generate;
    kv_error_t error;
    if (!node->up) {
        return KV_PEER_LOST;
    }
    kv_vllm_call_t *call = kv_allocate(sizeof *call);
    *call = (kv_vllm_call_t){.next = engine->calls,
        .node = node,
        .prompt_tokens = (uint32_t)(generate->n_tokens - generate->generated_count),
        .continued_tokens = generate->generated_count,
        .promise_count = generate->n_promises};
    snprintf(call->id, sizeof call->id, "%s", generate->request_id);
    engine->calls = call;
    if (check_work(generate, &call->refusal) != KV_OK) {
        return KV_OK; /* told at the next tick */
    }
    char url[KV_VLLM_URL_BYTES], *body = write_body(node, work);
    snprintf(url, sizeof url, "http://%s/v1/completions", node->address);
    const kv_http_call_params_t params = {.url = url,
        .body = body,
        .answer_bytes_max = KV_VLLM_LINE_BYTES_MAX,
        .context = call,
        .line = on_line,
        .ended = on_ended};
    kv_status_t status = kv_http_start(engine->http, &params, &call->http, &error);
    free(body);
    if (status != KV_OK) {
        call->http = NULL;
        end_call(call);
        return KV_BUSY;
    }
    return KV_OK;
}

static void cancel(kv_node_t *base, const char *request_id, bool wants_usage)
{
    kv_vllm_call_t *call = find_call((const kv_vllm_node_t *)base, request_id);
    if (call == NULL) {
        return;
    }
    if (wants_usage) {
        call->stopping = true;
        call->limit_ns = usage_limit_ns();
    } else {
        end_call(call);
    }
}

/* ---- the rest of the table ---- */

static void look(const kv_node_t *base, kv_node_state_t *state_out)
{
    const kv_vllm_node_t *node = (const kv_vllm_node_t *)base;
    *state_out = (kv_node_state_t){.queued_requests = (uint32_t)node->waiting,
        .running_requests = (uint32_t)node->running,
        .continues = true,
        .tells_tops = true,
        .attached_to = ""};
}

static void set_load(kv_nodes_t *base, uint32_t running_requests)
{
    (void)base; /* a server does not ask */
    (void)running_requests;
}

static const char *why_none(kv_nodes_t *base)
{
    kv_vllm_engine_t *engine = (kv_vllm_engine_t *)base;
    engine->why_none[0] = '\0';
    for (size_t i = 0; i < engine->node_count; i++) {
        const kv_vllm_node_t *node = &engine->nodes[i];
        if (!node->up && node->reason[0] != '\0') {
            snprintf(engine->why_none, sizeof engine->why_none, "vllm node %s: %.400s",
                node->address, node->reason);
            break;
        }
    }
    return engine->why_none;
}

/* One call that was refused, or for whose end nobody waits any longer; false: there is none. */
static bool end_one(kv_vllm_engine_t *engine, uint64_t now_ns)
{
    for (kv_vllm_call_t *call = engine->calls; call != NULL; call = call->next) {
        if (call->refusal.status != KV_OK) {
            char text[KV_ERROR_TEXT_BYTES];
            snprintf(text, sizeof text, "%s", call->refusal.text);
            finish_call(call, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, call->refusal.status, text);
            return true;
        }
        if (call->told && now_ns >= call->limit_ns) {
            end_call(call);
            return true;
        }
        if (call->stopping && now_ns >= call->limit_ns) {
            finish_call(call, KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED, KV_OK, "");
            return true;
        }
    }
    return false;
}

static void on_tick(void *context)
{
    kv_vllm_engine_t *engine = context;
    uint64_t now_ns = kv_clock_now_ns();
    while (end_one(engine, now_ns)) {
    }
    for (size_t i = 0; i < engine->node_count; i++) {
        kv_vllm_check_node(&engine->nodes[i], now_ns);
    }
}

/* ---- open and close ---- */

static void close_engine(kv_nodes_t *base)
{
    kv_vllm_engine_t *engine = (kv_vllm_engine_t *)base;
    while (engine->calls != NULL) {
        end_call(engine->calls);
    }
    if (engine->timer != NULL) {
        kv_timer_destroy(engine->timer);
    }
    kv_http_client_destroy(engine->http);
    free(engine->probe_text);
    free(engine->probe_tokens);
    free(engine->nodes);
    free(engine);
}

static const kv_nodes_table_t TABLE = {.generate = generate,
    .cancel = cancel,
    .look = look,
    .set_load = set_load,
    .why_none = why_none,
    .close = close_engine};

static void make_nodes(kv_vllm_engine_t *engine)
{
    const kv_string_list_t *addresses = &engine->params.options->gateway.vllm_nodes;
    engine->nodes = kv_allocate_array(addresses->count, sizeof *engine->nodes);
    engine->node_count = addresses->count;
    for (size_t i = 0; i < addresses->count; i++) {
        kv_vllm_node_t *node = &engine->nodes[i];
        node->engine = engine;
        snprintf(node->address, sizeof node->address, "%s", addresses->items[i]);
        node->base =
            (kv_node_t){.nodes = &engine->base, .name = node->address, .address = node->address};
        node->pause_ns = KV_VLLM_PAUSE_MIN_NS;
    }
}

kv_status_t kv_nodes_open_vllm(
    const kv_nodes_params_t *params, kv_nodes_t **nodes_out, kv_error_t *error)
{
    kv_vllm_engine_t *engine = kv_allocate(sizeof *engine);
    engine->base =
        (kv_nodes_t){.table = &TABLE, .callbacks = params->callbacks, .block_tokens = BLOCK_TOKENS};
    engine->params = *params;
    make_nodes(engine);
    kv_status_t status = kv_vllm_prepare_probe(engine, error);
    if (status == KV_OK) {
        status = kv_http_client_create(kv_reactor_loop(params->reactor), &engine->http, error);
    }
    if (status != KV_OK) {
        close_engine(&engine->base);
        return status;
    }
    engine->timer = kv_timer_create(params->reactor, on_tick, engine);
    kv_timer_start(engine->timer, 1, TICK_MS);
    *nodes_out = &engine->base;
    return KV_OK;
}
