/* A client's request, on the reactor's thread. The HTTP thread and the parse threads see it only
 * while it is theirs (an exchange that comes in; a job that runs).
 *
 *   (exchange) --> parsed on a parse thread --> its choices run --> all done --> (answered)
 *                       | wrong                  | one cannot go on     | commits
 *                       v                        v                      v
 *                   (answered)               (answered, or an error   on a parse thread
 *                                             in the stream)          --> (answered)
 *
 * A choice that fails ends the request: an answer is whole or none. */
#include "gateway/request.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/figures/audits.h"
#include "gateway/figures/seen.h"
#include "gateway/keeping/keeping.h"
#include "gateway/keeping/session_doors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { TICK_MS = 100 };

/* ---- the end of a request ---- */

static void release_request(kv_request_t *request)
{
    kv_gateway_t *gateway = request->gateway;
    kv_access_leave(request);
    for (size_t i = 0; i < request->choice_count; i++) {
        kv_generation_clear(&request->choices[i]);
    }
    free(request->choices);
    kv_exchange_release(request->exchange);
    for (size_t i = 0; request->keys != NULL && i < request->api.prompt_count; i++) {
        kv_prompt_keys_clear(&request->keys[i]);
    }
    free(request->keys);
    kv_audits_forget(request);
    if (request->parsed) {
        if (request->route->dialect->release != NULL) {
            request->route->dialect->release(request->api.own);
        }
        kv_api_request_clear(&request->api);
    }
    gateway->slots[request->slot] = NULL;
    gateway->active_count--;
    gateway->free_slots[gateway->options->gateway.queue_max - gateway->active_count - 1] =
        request->slot;
    free(request);
    kv_metric_set(gateway->running_metric, gateway->active_count);
    kv_nodes_set_load(gateway->engine, gateway->active_count);
    if (gateway->active_count > 0) {
        kv_access_admit(gateway);
        return;
    }
    if (gateway->stopping) {
        gateway->stopped(gateway->stopped_context);
    } else if (gateway->draining) {
        kv_reactor_begin_stop(gateway->reactor);
    }
}

static void cancel_choices(kv_request_t *request)
{
    for (size_t i = 0; i < request->choice_count; i++) {
        kv_generation_cancel_at_node(&request->choices[i], false);
    }
}

void kv_request_fail(kv_request_t *request, const kv_api_error_t *error)
{
    kv_log_info(
        "gateway", "request %s failed code %u: %s", request->id, error->http_code, error->message);
    kv_page_failed(request, error->http_code);
    cancel_choices(request);
    if (!request->began) {
        kv_gateway_refuse(
            request->exchange, request->route, request->id, request->pass.tenant, error);
    } else {
        size_t bytes;
        char *event = request->route->dialect->error(error, request->id, true, &bytes);
        bool sent = kv_exchange_write(request->exchange, event, bytes) == KV_OK;
        free(event);
        kv_exchange_end(request->exchange, sent);
        kv_gateway_count_answer(request->route->name, error->http_code);
    }
    release_request(request);
}

/* The client is gone, or too slow: nobody to answer. */
static void abandon_request(kv_request_t *request, kv_metric_t *why)
{
    kv_log_info("gateway", "request %s cancelled: the client %s", request->id,
        why == request->gateway->slow_metric ? "reads too slowly" : "went away");
    kv_metric_add(why, 1);
    kv_gateway_count_answer(request->route->name, 499);
    kv_page_failed(request, 499);
    cancel_choices(request);
    if (request->began) {
        kv_exchange_end(request->exchange, false);
    }
    release_request(request);
}

/* ---- answers ---- */

/* A prompt with several answers counts once: as its first answer's node told it. */
static kv_usage_t usage_of(const kv_request_t *request)
{
    kv_usage_t usage = {0};
    for (size_t i = 0; i < request->choice_count; i++) {
        const kv_generation_t *choice = &request->choices[i];
        const Kvist__Wire__Usage *told =
            choice->usage != NULL ? choice->usage : choice->first_usage;
        usage.generated_tokens += choice->token_count;
        if (i % request->api.choice_count != 0) {
            continue;
        }
        usage.prompt_tokens += (uint32_t)choice->prompt->token_count;
        if (told != NULL && told->cached != NULL) {
            usage.cached_tokens[KV_TIER_DEVICE] += told->cached->device;
            usage.cached_tokens[KV_TIER_HOST] += told->cached->host;
            usage.cached_tokens[KV_TIER_DISK] += told->cached->disk;
            usage.cached_tokens[KV_TIER_REMOTE] += told->cached->remote;
        }
        usage.node = i == 0 ? told : usage.node;
    }
    kv_keeping_grants(request, usage.node, &usage);
    return usage;
}

static kv_answer_t answer_of(const kv_request_t *request)
{
    return (kv_answer_t){.request = &request->api,
        .variant = request->call.variant,
        .id = request->id,
        .model = request->gateway->limits.model,
        .created_unix_s = request->created_unix_s,
        .usage = usage_of(request)};
}

/* What a renderer sees of a choice, and what that points to. */
typedef struct {
    kv_choice_t choice;
    kv_tool_call_t *calls;
    char (*call_ids)[KV_REQUEST_ID_BYTES];
    kv_token_logprob_t *logprobs;
} view_t;

/* Its calls from the first one that was not told. */
static void view_calls(const kv_generation_t *choice, view_t *view)
{
    size_t count = kv_generation_call_count(choice), first = choice->told_calls, all;
    if (count == first) {
        return;
    }
    const kv_request_t *request = choice->request;
    const char *digits = request->id + strlen(request->route->id_prefix);
    const kv_parsed_call_t *parsed = kv_tool_parser_calls(choice->tools, &all);
    view->calls = kv_allocate_array(count - first, sizeof *view->calls);
    view->call_ids = kv_allocate_array(count - first, sizeof *view->call_ids);
    for (size_t i = 0; i < count - first; i++) {
        snprintf(view->call_ids[i], KV_REQUEST_ID_BYTES, "%.40s%02x%02zx", digits, choice->index,
            first + i);
        view->calls[i] = (kv_tool_call_t){.index = (uint32_t)(first + i),
            .id = view->call_ids[i],
            .name = parsed[first + i].name,
            .arguments = parsed[first + i].arguments};
    }
    view->choice.tool_calls = view->calls;
    view->choice.tool_call_count = count - first;
}

static view_t view_of(kv_generation_t *choice)
{
    const char *stop = choice->finish == KV_FINISH_STOP_STRING
                           ? kv_detokenizer_stopped_by(choice->detokenizer)
                           : NULL;
    view_t view = {.choice = {.index = choice->index,
                       .first = !choice->told,
                       .text = choice->text != NULL ? choice->text : "",
                       .text_bytes = choice->text_bytes,
                       .finish = choice->finish,
                       .stop_string = stop,
                       .token_count = choice->token_count,
                       .scratch = choice->scratch}};
    view_calls(choice, &view);
    view.choice.logprobs = view.logprobs =
        kv_logprobs_view(choice->logprobs, choice->told_logprobs);
    view.choice.logprob_count = kv_logprobs_count(choice->logprobs) - choice->told_logprobs;
    view.choice.told_count = choice->token_count - choice->told_tokens;
    if (view.choice.told_count > 0) {
        view.choice.tokens = choice->tokens + choice->prompt->token_count + choice->told_tokens;
    }
    return view;
}

static void clear_view(view_t *view)
{
    free(view->calls);
    free(view->call_ids);
    free(view->logprobs);
}

/* An answer with all of its choices. */
typedef struct {
    kv_answer_t answer;
    kv_choice_t *choices;
    view_t *views;
} all_t;

static void view_all(kv_request_t *request, all_t *all_out)
{
    size_t count = request->choice_count;
    *all_out = (all_t){.answer = answer_of(request),
        .choices = kv_allocate_array(count, sizeof *all_out->choices),
        .views = kv_allocate_array(count, sizeof *all_out->views)};
    for (size_t i = 0; i < count; i++) {
        all_out->views[i] = view_of(&request->choices[i]);
        all_out->choices[i] = all_out->views[i].choice;
    }
    all_out->answer.choices = all_out->choices;
    all_out->answer.choice_count = count;
}

static void clear_all(all_t *all)
{
    for (size_t i = 0; i < all->answer.choice_count; i++) {
        clear_view(&all->views[i]);
    }
    free(all->views);
    free(all->choices);
}

static void add_answer_headers(const kv_request_t *request, kv_http_head_t *head)
{
    kv_usage_t usage = usage_of(request);
    kv_keeping_headers(request, &usage, head);
    kv_gateway_add_header(head, request->route->dialect->request_id_header, request->id);
    kv_access_add_headers(request->pass.tenant, head);
}

/* ---- a stream; false: the request has ended ---- */

static bool write_event(kv_request_t *request, char *event, size_t bytes)
{
    kv_status_t status = kv_exchange_write(request->exchange, event, bytes);
    free(event);
    if (status != KV_OK) {
        abandon_request(request,
            status == KV_BUSY ? request->gateway->slow_metric : request->gateway->gone_metric);
        return false;
    }
    return true;
}

static bool begin_stream(kv_request_t *request)
{
    if (request->began) {
        return true;
    }
    const kv_dialect_t *dialect = request->route->dialect;
    const char *type = request->api.stream_content_type;
    kv_http_head_t head = {.code = 200, .content_type = type != NULL ? type : "text/event-stream"};
    kv_gateway_add_header(&head, "Cache-Control", "no-cache");
    add_answer_headers(request, &head);
    kv_exchange_begin(request->exchange, &head);
    request->began = true;
    if (dialect->begin == NULL) {
        return true;
    }
    size_t bytes;
    kv_answer_t answer = answer_of(request);
    char *event = dialect->begin(&answer, &bytes);
    return write_event(request, event, bytes);
}

/* What is new in a choice, or its finish. */
static bool send_choice(kv_generation_t *choice)
{
    kv_request_t *request = choice->request;
    if (!begin_stream(request)) {
        return false;
    }
    size_t calls = kv_generation_call_count(choice);
    size_t logprobs = kv_logprobs_count(choice->logprobs);
    bool is_new = choice->text_bytes > 0 || calls > choice->told_calls ||
                  logprobs > choice->told_logprobs || choice->finish != KV_FINISH_NONE ||
                  (request->api.returns_tokens && choice->token_count > choice->told_tokens);
    if (choice->told && !is_new) {
        return true;
    }
    size_t bytes;
    kv_answer_t answer = answer_of(request);
    view_t view = view_of(choice);
    char *event = request->route->dialect->event(&answer, &view.choice, &bytes);
    clear_view(&view);
    choice->told = true;
    choice->text_bytes = 0;
    choice->told_calls = calls;
    choice->told_logprobs = logprobs;
    choice->told_tokens = choice->token_count;
    return write_event(request, event, bytes);
}

static bool end_stream(kv_request_t *request)
{
    size_t bytes;
    all_t all;
    view_all(request, &all);
    char *event = request->route->dialect->end(&all.answer, &bytes);
    clear_all(&all);
    if (!write_event(request, event, bytes)) {
        return false;
    }
    kv_exchange_end(request->exchange, true);
    return true;
}

/* ---- the whole answer ---- */

static void reply_answer(kv_request_t *request, const kv_answer_t *answer)
{
    kv_http_head_t head = {.code = 200, .content_type = "application/json"};
    add_answer_headers(request, &head);
    size_t bytes;
    char *body = request->route->dialect->whole(answer, &bytes);
    kv_exchange_reply(request->exchange, &head, body, bytes);
}

static void end_request(kv_request_t *request, const kv_usage_t *usage)
{
    kv_gateway_count_answer(request->route->name, 200);
    kv_log_info("gateway",
        "request %s done prompt_tokens %u cached_tokens %u tokens %u ttft_ms %.1f", request->id,
        usage->prompt_tokens, kv_usage_cached_tokens(usage), usage->generated_tokens,
        request->first_token_ns == 0
            ? 0.0
            : (double)(request->first_token_ns - request->arrived_ns) / KV_NS_PER_MS);
    release_request(request);
}

static void submit(kv_request_t *request, void (*run)(void *request))
{
    request->on_thread = true;
    KV_CHECK(kv_workers_submit(request->gateway->workers, (kv_job_t){run, request}) == KV_OK);
}

/* On a parse thread; as parse_request. */
static void commit_request(void *argument)
{
    kv_request_t *request = argument;
    request->committed = request->route->dialect->commit(&request->api, &request->error);
    KV_CHECK(kv_queue_push(request->gateway->parsed, &request) == KV_OK);
}

static void begin_commit(kv_request_t *request)
{
    request->committing = true;
    submit(request, commit_request);
}

static void end_commit(kv_request_t *request)
{
    if (!request->committed) {
        kv_request_fail(request, &request->error);
        return;
    }
    all_t all;
    kv_keeping_limit(request);
    view_all(request, &all);
    reply_answer(request, &all.answer);
    kv_usage_t usage = all.answer.usage;
    clear_all(&all);
    end_request(request, &usage);
}

static void reply_whole(kv_request_t *request)
{
    const kv_dialect_t *dialect = request->route->dialect;
    kv_api_error_t error;
    all_t all;
    view_all(request, &all);
    bool settled = dialect->settle == NULL || dialect->settle(&all.answer, &error);
    if (settled && !request->api.commits) {
        reply_answer(request, &all.answer);
    }
    kv_usage_t usage = all.answer.usage;
    clear_all(&all);
    if (!settled) {
        kv_request_fail(request, &error);
    } else if (request->api.commits) {
        begin_commit(request);
    } else {
        end_request(request, &usage);
    }
}

/* A request that only asks how many tokens its prompts have. */
static void reply_count(kv_request_t *request)
{
    kv_answer_t answer = answer_of(request);
    for (size_t i = 0; i < request->api.prompt_count; i++) {
        answer.usage.prompt_tokens += (uint32_t)request->api.prompts[i].token_count;
    }
    reply_answer(request, &answer);
    kv_gateway_count_answer(request->route->name, 200);
    release_request(request);
}

static void observe_tpot(const kv_request_t *request)
{
    for (size_t i = 0; i < request->choice_count; i++) {
        if (request->choices[i].token_count > 1) {
            kv_metric_observe(request->gateway->tpot_metric,
                (double)kv_generation_tpot_ns(&request->choices[i]) / KV_NS_PER_S);
        }
    }
}

static void complete_request(kv_request_t *request)
{
    kv_usage_t usage = usage_of(request);
    kv_seen_settle(request, &request->parts);
    observe_tpot(request);
    kv_access_count(request, &usage);
    kv_page_count(request, &usage);
    request->counted = true;
    kv_audits_keep(request, &usage);
    if (!request->api.stream) {
        reply_whole(request);
    } else if (end_stream(request)) {
        end_request(request, &usage);
    }
}

/* ---- what choices tell ---- */

/* The others of the choice's prompt, if it is the one that they wait for. Whether the request is
 * still there. */
static bool begin_held(const kv_generation_t *first)
{
    kv_request_t *request = first->request;
    const kv_gateway_t *gateway = request->gateway;
    uint32_t slot = request->slot, count = request->api.choice_count;
    if (first->index % count != 0) {
        return true;
    }
    for (uint32_t i = first->index + 1; i < first->index + count; i++) {
        if (request->choices[i].state == GENERATION_HELD) {
            kv_generation_begin(&request->choices[i]);
            if (gateway->slots[slot] != request) {
                return false;
            }
        }
    }
    return true;
}

bool kv_request_text(kv_generation_t *choice)
{
    kv_request_t *request = choice->request;
    kv_keeping_note(choice);
    if (request->first_token_ns == 0) {
        request->first_token_ns = choice->first_token_ns;
        kv_metric_observe(request->gateway->ttft_metric,
            (double)(request->first_token_ns - request->arrived_ns) / KV_NS_PER_S);
        kv_access_started(request);
    }
    if (request->api.stream && !send_choice(choice)) {
        return false;
    }
    return begin_held(choice);
}

void kv_request_choice_done(kv_generation_t *choice)
{
    kv_request_t *request = choice->request;
    kv_keeping_note(choice);
    kv_session_served(choice);
    if ((request->api.stream && !send_choice(choice)) || !begin_held(choice)) {
        return;
    }
    if (++request->done_count == request->choice_count) {
        complete_request(request);
    }
}

/* ---- messages of nodes ---- */

void kv_request_tokens(
    kv_gateway_t *gateway, const kv_node_t *node, const Kvist__Wire__Tokens *tokens)
{
    kv_generation_t *choice = kv_generation_find(gateway, node, tokens->request_id);
    if (choice != NULL) {
        kv_generation_take_tokens(choice, tokens);
    }
}

void kv_request_finished(
    kv_gateway_t *gateway, const kv_node_t *node, const Kvist__Wire__Finished *finished)
{
    kv_generation_t *choice = kv_generation_find(gateway, node, finished->request_id);
    if (choice != NULL) {
        kv_generation_take_finished(choice, finished);
    }
}

void kv_request_lost(kv_gateway_t *gateway, const kv_node_t *node, const char *wire_id)
{
    kv_generation_t *choice = kv_generation_find(gateway, node, wire_id);
    if (choice != NULL) {
        kv_generation_node_lost(choice);
    }
}

void kv_request_node_lost(kv_gateway_t *gateway, kv_decode_node_t *node)
{
    for (uint32_t i = 0; node->outstanding > 0 && i < gateway->options->gateway.queue_max; i++) {
        kv_request_t *request = gateway->slots[i];
        for (size_t k = 0;
             request != NULL && gateway->slots[i] == request && k < request->choice_count; k++) {
            if (request->choices[k].node == node) {
                kv_generation_node_lost(&request->choices[k]);
            }
        }
    }
    KV_CHECK(node->outstanding == 0);
}

/* ---- requests come in ---- */

/* Hashing takes its time: not on the reactor. */
static void make_keys(kv_request_t *request)
{
    const kv_api_request_t *api = &request->api;
    request->keys = kv_allocate_array(api->prompt_count, sizeof *request->keys);
    for (size_t i = 0; i < api->prompt_count; i++) {
        const kv_api_prompt_t *prompt = &api->prompts[i];
        kv_prompt_keys_make(&request->namings, api->salt, api->salt_bytes, prompt->tokens,
            prompt->token_count, &request->keys[i]);
    }
}

/* On a parse thread; the request is its own until it is in the queue. */
static void parse_request(void *argument)
{
    kv_request_t *request = argument;
    kv_gateway_t *gateway = request->gateway;
    const kv_dialect_t *dialect = request->route->dialect;
    kv_api_request_t *api = &request->api;
    request->parsed = dialect->parse(&request->call, &gateway->limits, api, &request->error);
    if (request->parsed &&
        (!kv_api_take_headers(&request->call, api, &request->error) ||
            !kv_access_take_salt(&request->pass, api, &request->error) ||
            !kv_api_tokenize(api, gateway->tokenizer, &gateway->limits, &request->error))) {
        if (dialect->release != NULL) {
            dialect->release(api->own);
        }
        kv_api_request_clear(api);
        request->parsed = false;
    }
    if (request->parsed) {
        make_keys(request);
        kv_audits_look(request);
    }
    KV_CHECK(kv_queue_push(gateway->parsed, &request) == KV_OK);
}

/* false: the request has ended. */
static bool open_choices(kv_request_t *request)
{
    kv_api_error_t error;
    size_t count = request->api.prompt_count * request->api.choice_count;
    if (!request->api.has_seed) {
        KV_CHECK(getrandom(&request->api.seed, sizeof request->api.seed, 0) ==
                 (ssize_t)sizeof request->api.seed);
    }
    request->choices = kv_allocate_array(count, sizeof *request->choices);
    for (size_t i = 0; i < count; i++) {
        request->choice_count = i + 1;
        if (!kv_generation_open(&request->choices[i], request, (uint32_t)i, &error)) {
            kv_request_fail(request, &error);
            return false;
        }
    }
    return true;
}

void kv_request_admitted(kv_request_t *request)
{
    const kv_gateway_t *gateway = request->gateway;
    uint32_t slot = request->slot;
    request->admitted_ns = kv_clock_now_ns();
    kv_metric_observe(
        gateway->queue_metric, (double)(request->admitted_ns - request->arrived_ns) / KV_NS_PER_S);
    for (size_t i = 0; gateway->slots[slot] == request && i < request->choice_count;
         i += request->api.choice_count) {
        kv_generation_begin(&request->choices[i]);
    }
}

/* Where the operator wants it: what a prompt says, as far as a line holds it. */
static void log_prompts(const kv_request_t *request)
{
    const kv_gateway_t *gateway = request->gateway;
    for (size_t i = 0; gateway->options->gateway.log_prompts && i < request->api.prompt_count;
         i++) {
        const kv_api_prompt_t *prompt = &request->api.prompts[i];
        char text[KV_LOG_LINE_BYTES];
        size_t bytes = 0, piece_bytes;
        const char *piece;
        for (size_t k = 0; k < prompt->token_count; k++) {
            if (kv_tokenizer_piece(
                    gateway->tokenizer, prompt->tokens[k], true, &piece, &piece_bytes) != KV_OK ||
                bytes + piece_bytes >= sizeof text) {
                break;
            }
            memcpy(text + bytes, piece, piece_bytes);
            bytes += piece_bytes;
        }
        text[bytes] = '\0';
        kv_log_info("gateway", "request %s prompt %zu: %s", request->id, i, text);
    }
}

void kv_request_returned(kv_request_t *request)
{
    request->on_thread = false;
    if (request->committing) {
        end_commit(request);
    } else if (request->gateway->stopping) {
        kv_api_fail(&request->error, 503, "", "stopping", "the gateway is stopping");
        kv_request_fail(request, &request->error);
    } else if (!request->parsed) {
        kv_request_fail(request, &request->error);
    } else if (request->api.count_only) {
        reply_count(request);
    } else if (request->api.commit_only) {
        begin_commit(request);
    } else if (open_choices(request)) {
        log_prompts(request);
        if (kv_access_begin(request, &request->error)) {
            kv_access_admit(request->gateway);
        } else {
            kv_request_fail(request, &request->error);
        }
    }
}

void kv_request_start(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_route_t *route,
    const kv_call_t *call, kv_tenant_t *tenant)
{
    kv_api_error_t error;
    uint32_t queue_max = gateway->options->gateway.queue_max;
    if (!kv_access_arrive(gateway, tenant, call, &error)) {
        kv_gateway_refuse(exchange, route, NULL, tenant, &error);
        kv_tenant_release(tenant);
        kv_exchange_release(exchange);
        return;
    }
    kv_request_t *request = kv_allocate(sizeof *request);
    *request = (kv_request_t){.gateway = gateway,
        .exchange = exchange,
        .route = route,
        .call = *call,
        .namings = *kv_prefixes_namings(gateway->prefixes),
        .pass = kv_access_pass(gateway, tenant),
        .slot = gateway->free_slots[queue_max - gateway->active_count - 1],
        .arrived_ns = kv_clock_now_ns()};
    request->created_unix_s = kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_S;
    gateway->slots[request->slot] = request;
    gateway->active_count++;
    gateway->request_count++;
    snprintf(request->id, sizeof request->id, "%s%016" PRIx64 "%08" PRIx64, route->id_prefix,
        gateway->boot_id, gateway->request_count);
    kv_metric_set(gateway->running_metric, gateway->active_count);
    kv_nodes_set_load(gateway->engine, gateway->active_count);
    if (!gateway->ticking) {
        gateway->ticking = true;
        kv_timer_start(gateway->timer, TICK_MS, TICK_MS);
    }
    submit(request, parse_request);
}

/* ---- time ---- */

void kv_request_check(kv_request_t *request, uint64_t now_ns)
{
    const kv_gateway_t *gateway = request->gateway;
    uint64_t limit_ns = gateway->options->gateway.request_limit_ns;
    uint32_t slot = request->slot;
    if (request->on_thread) {
        return;
    }
    if (kv_exchange_gone(request->exchange)) {
        abandon_request(request, gateway->gone_metric);
        return;
    }
    kv_api_error_t error;
    if (now_ns - request->arrived_ns > limit_ns) {
        kv_api_fail(&error, 504, "", "timeout", "the request took longer than %" PRIu64 " ms",
            limit_ns / KV_NS_PER_MS);
        kv_request_fail(request, &error);
        return;
    }
    if (!kv_access_waits(request, now_ns, &error)) {
        kv_request_fail(request, &error);
        return;
    }
    for (size_t i = 0; gateway->slots[slot] == request && i < request->choice_count; i++) {
        kv_generation_check(&request->choices[i], now_ns);
    }
}

void kv_request_stop_all(kv_gateway_t *gateway)
{
    kv_api_error_t error;
    kv_api_fail(&error, 503, "", "stopping", "the gateway is stopping");
    for (uint32_t i = 0; i < gateway->options->gateway.queue_max; i++) {
        kv_request_t *request = gateway->slots[i];
        if (request != NULL && !request->on_thread) {
            kv_request_fail(request, &error);
        }
    }
}
