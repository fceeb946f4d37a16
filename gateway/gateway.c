#include "gateway/gateway_internal.h"

#include "audit/ledger.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/anthropic/anthropic.h"
#include "gateway/description.h"
#include "gateway/figures/audits.h"
#include "gateway/gemini/gemini.h"
#include "gateway/json.h"
#include "gateway/keeping/keeping.h"
#include "gateway/keeping/session_doors.h"
#include "gateway/openai/openai.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { PARSE_THREADS = 2, SWEEP_MS = 10000 };

/* ---- answers ---- */

static const char JSON_TYPE[] = "application/json";

void kv_gateway_add_header(kv_http_head_t *head, const char *name, const char *value)
{
    KV_CHECK(head->header_count < KV_HTTP_HEADERS_MAX);
    kv_http_header_t *header = &head->headers[head->header_count++];
    header->name = name;
    snprintf(header->value, sizeof header->value, "%s", value);
}

void kv_gateway_count_answer(const char *route, unsigned code)
{
    char labels[64];
    snprintf(labels, sizeof labels, "route=\"%s\",code=\"%u\"", route, code);
    kv_metric_add(kv_metric_counter("kvist_gateway_requests_total", labels,
                      "HTTP requests by route and status code; 499: the client went away"),
        1);
}

void kv_gateway_refuse(kv_exchange_t *exchange, const kv_route_t *route, const char *id,
    const kv_tenant_t *tenant, const kv_api_error_t *error)
{
    kv_http_head_t head = {.code = error->http_code, .content_type = JSON_TYPE};
    if (error->http_code == 429 || error->http_code == 503) {
        char seconds[16];
        snprintf(
            seconds, sizeof seconds, "%u", error->retry_after_s > 0 ? error->retry_after_s : 1);
        kv_gateway_add_header(&head, "Retry-After", seconds);
    } else if (error->http_code == 405) {
        kv_gateway_add_header(&head, "Allow", route->methods);
    } else if (error->http_code == 401) {
        kv_gateway_add_header(&head, "WWW-Authenticate", "Bearer");
    }
    if (tenant != NULL) {
        kv_access_add_headers(tenant, &head);
    }
    if (id != NULL) {
        kv_gateway_add_header(&head, route->dialect->request_id_header, id);
    }
    size_t bytes;
    char *body = route->dialect->error(error, id, false, &bytes);
    kv_exchange_reply(exchange, &head, body, bytes);
    kv_gateway_count_answer(route->name, error->http_code);
}

void kv_gateway_reply_error(
    kv_exchange_t *exchange, const kv_route_t *route, const char *id, const kv_api_error_t *error)
{
    kv_gateway_refuse(exchange, route, id, NULL, error);
}

void kv_gateway_reply(kv_exchange_t *exchange, const char *route, unsigned code,
    const char *content_type, char *body, size_t bytes)
{
    kv_http_head_t head = {.code = code, .content_type = content_type};
    kv_exchange_reply(exchange, &head, body, bytes);
    kv_gateway_count_answer(route, code);
}

/* ---- nodes ---- */

static void on_node_up(void *context, kv_node_t *up)
{
    kv_gateway_t *gateway = context;
    if (gateway->node_count == KV_GATEWAY_NODES_MAX) {
        kv_log_warn("gateway", "node %s at %s is one more than %d: not used", up->name, up->address,
            KV_GATEWAY_NODES_MAX);
        return;
    }
    kv_decode_node_t *node = kv_allocate(sizeof *node);
    node->node = up;
    up->context = node;
    gateway->nodes[gateway->node_count++] = node;
    kv_metric_set(gateway->nodes_metric, (double)gateway->node_count);
    kv_log_info("gateway", "decode node %s up address %s", up->name, up->address);
    kv_access_tell_quotas(gateway, up);
    kv_access_admit(gateway);
}

static void on_node_down(void *context, kv_node_t *down, kv_status_t status, const char *reason)
{
    kv_gateway_t *gateway = context;
    kv_decode_node_t *node = down->context;
    if (node == NULL) {
        return;
    }
    kv_log_warn("gateway", "decode node %s down requests %u: %s: %s", down->name, node->outstanding,
        kv_status_name(status), reason);
    for (size_t i = 0; i < gateway->node_count; i++) {
        if (gateway->nodes[i] == node) {
            gateway->nodes[i] = gateway->nodes[--gateway->node_count];
            break;
        }
    }
    kv_metric_set(gateway->nodes_metric, (double)gateway->node_count);
    kv_promise_table_forget_node(gateway->promises, down->id);
    kv_sessions_forget_node(gateway->sessions, down->id);
    kv_request_node_lost(gateway, node);
    if (down->peer == NULL) {
        kv_prefixes_forget(gateway->prefixes, down->id);
    }
    down->context = NULL;
    free(node);
}

static void on_tokens(void *context, kv_node_t *node, const Kvist__Wire__Tokens *tokens)
{
    kv_request_tokens(context, node, tokens);
}

static void on_finished(void *context, kv_node_t *node, const Kvist__Wire__Finished *finished)
{
    kv_request_finished(context, node, finished);
}

static void on_lost(void *context, kv_node_t *node, const char *wire_id, const char *reason)
{
    kv_log_warn("gateway", "%s lost at %s: %s", wire_id, node->name, reason);
    kv_request_lost(context, node, wire_id);
}

static void on_peer_up(void *context, kv_peer_t *peer)
{
    kv_gateway_t *gateway = context;
    kv_prefixes_peer_up(gateway->prefixes, peer);
    kv_told_peer_up(gateway->page.told, peer);
}

static void on_peer_down(void *context, kv_peer_t *peer)
{
    kv_gateway_t *gateway = context;
    kv_told_peer_down(gateway->page.told, peer);
    kv_prefixes_peer_down(gateway->prefixes, peer);
}

static void on_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_CONTEXT_DONE) {
        kv_session_done(context, message->context_done);
        return;
    }
    kv_gateway_t *gateway = context;
    if (!kv_told_message(gateway->page.told, peer, message, kv_clock_now_ns()) &&
        !kv_prefixes_message(gateway->prefixes, peer, message)) {
        kv_log_debug(
            "gateway", "message %d of %s ignored", (int)message->body_case, kv_peer_name(peer));
    }
}

/* ---- exchanges come in ---- */

static void on_parsed(void *context)
{
    kv_gateway_t *gateway = context;
    kv_request_t *request;
    while (kv_queue_pop(gateway->parsed, &request) == KV_OK) {
        kv_request_returned(request);
    }
}

static void serve_health(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    (void)call;
    bool good = gateway->node_count > 0 && !gateway->draining;
    const char *status = good ? "ok" : gateway->draining ? "draining" : "no decode node is up";
    const char *why = kv_nodes_why_none(gateway->engine);
    json_t *answer =
        json_pack("{s:s,s:I}", "status", status, "decode_nodes", (json_int_t)gateway->node_count);
    size_t bytes;
    if (why[0] != '\0') {
        json_object_set_new(answer, "unused", kv_json_text_or_null(why, strlen(why)));
    }
    char *body = kv_json_dump(answer, &bytes);
    kv_gateway_reply(exchange, "healthz", good ? 200 : 503, JSON_TYPE, body, bytes);
}

static void serve_metrics(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    (void)call;
    size_t bytes, page_bytes;
    kv_contents_sweep(gateway->limits.contents);
    kv_keeping_publish(gateway);
    char *body = kv_metrics_render(&bytes), *text = NULL;
    FILE *page = open_memstream(&text, &page_bytes);
    KV_CHECK(page != NULL);
    fwrite(body, 1, bytes, page);
    free(body);
    kv_figures_render(gateway->access.figures, page);
    fclose(page);
    kv_gateway_reply(
        exchange, "metrics", 200, "text/plain; version=0.0.4; charset=utf-8", text, page_bytes);
}

static void serve_description(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    (void)call;
    (void)gateway;
    size_t bytes;
    const char *text = kv_description(&bytes);
    char *body = kv_allocate(bytes);
    memcpy(body, text, bytes);
    kv_gateway_reply(exchange, "description", 200, JSON_TYPE, body, bytes);
}

static const kv_route_t OWN_ROUTES[] = {
    {.path = "/healthz",
        .methods = "GET, HEAD",
        .name = "healthz",
        .dialect = &kv_openai,
        .serve = serve_health,
        .is_open = true},
    {.path = "/metrics",
        .methods = "GET, HEAD",
        .name = "metrics",
        .dialect = &kv_openai,
        .serve = serve_metrics,
        .is_open = true},
    {.path = "/openapi.json",
        .methods = "GET, HEAD",
        .name = "description",
        .dialect = &kv_openai,
        .serve = serve_description,
        .is_open = true},
};
static const kv_route_table_t OWN = {OWN_ROUTES, sizeof OWN_ROUTES / sizeof OWN_ROUTES[0]};

/* Every API that is spoken here; the first route that a call fits has it. */
static const kv_route_table_t *const TABLES[] = {&OWN, &kv_page_routes, &kv_audit_routes,
    &kv_session_routes, &kv_anthropic_routes, &kv_gemini_routes, &kv_openai_routes};

/* What no route wants. */
static const kv_route_t NOWHERE = {.name = "other", .dialect = &kv_openai, .methods = ""};

static bool has_method(const kv_route_t *route, const char *method)
{
    size_t bytes = strlen(method);
    for (const char *at = route->methods; (at = strstr(at, method)) != NULL; at += bytes) {
        bool begins = at == route->methods || at[-1] == ' ';
        if (begins && (at[bytes] == ',' || at[bytes] == '\0')) {
            return true;
        }
    }
    return false;
}

/* Whether the route is the path's, and what the path has in the place of its "*". */
static bool has_path(const kv_route_t *route, const char *path, const char **rest_out)
{
    size_t bytes = strlen(route->path);
    if (route->path[bytes - 1] != '*') {
        *rest_out = "";
        return strcmp(route->path, path) == 0;
    }
    *rest_out = path + bytes - 1;
    return strncmp(route->path, path, bytes - 1) == 0;
}

/* The call's route, and the call as that sees it. Where only the method is wrong it is the path's
 * first route. */
static const kv_route_t *find_route(kv_call_t *call)
{
    const kv_route_t *found = NULL;
    for (size_t i = 0; i < sizeof TABLES / sizeof TABLES[0]; i++) {
        for (size_t k = 0; k < TABLES[i]->count; k++) {
            const kv_route_t *route = &TABLES[i]->routes[k];
            const char *rest;
            if (!has_path(route, call->path, &rest) ||
                (route->wants != NULL && !route->wants(call))) {
                continue;
            }
            bool fits = has_method(route, call->method);
            if (fits || found == NULL) {
                found = route;
                call->rest = rest;
                call->variant = route->variant;
            }
            if (fits) {
                return found;
            }
        }
    }
    return found != NULL ? found : &NOWHERE;
}

/* What is wrong with the exchange before its body is looked at; false: nothing is. */
static bool refuse_exchange(const kv_gateway_t *gateway, kv_exchange_t *exchange,
    const kv_route_t *route, const kv_call_t *call, kv_api_error_t *error)
{
    if (route == &NOWHERE) {
        kv_api_fail(error, 404, "", "not_found", "%.200s: no such path", call->path);
    } else if (kv_exchange_ambiguous(exchange)) {
        kv_api_fail(error, 400, "", NULL,
            "the request has more than one Content-Length, or one beside Transfer-Encoding: send "
            "one of them");
    } else if (kv_exchange_too_large(exchange)) {
        kv_api_fail(error, 413, "", "body_too_large", "the body is larger than %" PRIu64 " bytes",
            gateway->options->gateway.body_bytes_max);
    } else if (kv_exchange_crowded(exchange)) {
        kv_api_fail(error, 503, "", "overloaded", "too many large bodies at once");
    } else if (!has_method(route, call->method)) {
        kv_api_fail(
            error, 405, "", NULL, "%.32s: this path takes %s", call->method, route->methods);
    } else if (gateway->stopping) {
        kv_api_fail(error, 503, "", "stopping", "the gateway is stopping");
    } else if (gateway->draining && route->serve == NULL) {
        kv_api_fail(error, 503, "", "draining", "the gateway is draining: ask another one");
    } else {
        return false;
    }
    return true;
}

static void serve_exchange(kv_gateway_t *gateway, kv_exchange_t *exchange)
{
    kv_call_t call = *kv_exchange_call(exchange);
    const kv_route_t *route = find_route(&call);
    kv_tenant_t *tenant = NULL;
    kv_api_error_t error;
    if (refuse_exchange(gateway, exchange, route, &call, &error) ||
        ((tenant = kv_access_find(gateway, route, &call, &error)) == NULL && !route->is_open)) {
        kv_gateway_reply_error(exchange, route, NULL, &error);
        kv_exchange_release(exchange);
        return;
    }
    call.tenant = tenant != NULL ? tenant->name : NULL;
    call.is_operator = tenant != NULL && tenant->is_operator;
    if (route->serve == NULL) {
        kv_request_start(gateway, exchange, route, &call, tenant);
        return;
    }
    route->serve(gateway, exchange, &call);
    kv_tenant_release(tenant);
    kv_exchange_release(exchange);
}

static void on_incoming(void *context)
{
    kv_gateway_t *gateway = context;
    kv_exchange_t *exchange;
    while (kv_queue_pop(gateway->incoming, &exchange) == KV_OK) {
        serve_exchange(gateway, exchange);
    }
}

static void on_tick(void *context)
{
    kv_gateway_t *gateway = context;
    uint64_t now_ns = kv_clock_now_ns();
    for (uint32_t i = 0; i < gateway->options->gateway.queue_max; i++) {
        if (gateway->slots[i] != NULL) {
            kv_request_check(gateway->slots[i], now_ns);
        }
    }
    kv_access_admit(gateway); /* a node may drain no longer */
    if (gateway->active_count == 0) {
        gateway->ticking = false;
        kv_timer_stop(gateway->timer);
    }
}

/* ---- admin ---- */

static void on_status(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    (void)request;
    kv_gateway_t *gateway = context;
    Kvist__Admin__Status status = KVIST__ADMIN__STATUS__INIT;
    Kvist__Admin__Peer peers[KV_GATEWAY_NODES_MAX], *pointers[KV_GATEWAY_NODES_MAX];
    char address[320];
    for (size_t i = 0; i < gateway->node_count; i++) {
        const kv_node_t *node = gateway->nodes[i]->node;
        kvist__admin__peer__init(&peers[i]);
        peers[i].name = (char *)node->name;
        peers[i].role = (char *)"decode";
        peers[i].address = (char *)node->address;
        peers[i].up = true;
        peers[i].draining = kv_node_look(node).draining;
        pointers[i] = &peers[i];
    }
    snprintf(address, sizeof address, "%s:%u", gateway->options->gateway.http_host,
        kv_http_port(gateway->http));
    status.name = gateway->options->node.name;
    status.role = (char *)"gateway";
    status.version = (char *)KVIST_VERSION;
    status.pid = (uint64_t)getpid();
    status.uptime_ns = kv_clock_now_ns() - gateway->started_ns;
    status.model = (char *)gateway->limits.model;
    status.peers = pointers;
    status.n_peers = gateway->node_count;
    const kv_totals_t *totals = kv_figures_totals(gateway->access.figures);
    status.prompt_tokens = totals->parts.prompt;
    status.cached_tokens = kv_partition_hit(&totals->parts);
    status.gap_tokens = kv_partition_gap(&totals->parts);
    status.generated_tokens = totals->generated_tokens;
    status.requests = gateway->request_count;
    status.running_requests = gateway->active_count;
    status.http_address = address;
    status.draining = gateway->draining;
    kv_admin_reply_status(call, &status);
}

static void on_explain(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    const kv_gateway_t *gateway = context;
    kv_decisions_explain(gateway->decisions, request->explain->request_id, call);
}

static const kv_admin_handlers_t ADMIN_HANDLERS = {.status = on_status, .explain = on_explain};

/* ---- open and close ---- */

static void on_session_time(void *context)
{
    kv_session_tick(context);
}

static void register_metrics(kv_gateway_t *gateway)
{
    gateway->ttft_metric = kv_metric_histogram(
        "kvist_gateway_ttft_seconds", "", "arrival of a request to its first token");
    gateway->tpot_metric = kv_metric_histogram(
        "kvist_gateway_tpot_seconds", "", "time per token after the first, mean of each answer");
    gateway->queue_metric = kv_metric_histogram("kvist_gateway_queue_seconds", "",
        "arrival of a request to when its turn came to go to a node");
    gateway->running_metric =
        kv_metric_gauge("kvist_gateway_requests_running", "", "requests in work");
    gateway->nodes_metric = kv_metric_gauge("kvist_gateway_decode_nodes", "", "decode nodes up");
    gateway->retries_metric = kv_metric_counter("kvist_gateway_retries_total", "",
        "requests given to another node after one was lost, busy or draining");
    gateway->continued_metric = kv_metric_counter("kvist_gateway_continued_total", "",
        "of those, requests of whose text a part was there: it goes on at the other node");
    gateway->gone_metric = kv_metric_counter("kvist_gateway_cancelled_total", "why=\"gone\"",
        "requests cancelled because the client went away or reads too slowly");
    gateway->slow_metric = kv_metric_counter("kvist_gateway_cancelled_total", "why=\"slow\"", "");
}

static kv_status_t open_engine(kv_gateway_t *gateway, kv_error_t *error)
{
    const kv_nodes_params_t params = {.reactor = gateway->reactor,
        .options = gateway->options,
        .tokenizer = gateway->tokenizer,
        .model = gateway->model_name,
        .callbacks = {.context = gateway,
            .up = on_node_up,
            .down = on_node_down,
            .tokens = on_tokens,
            .finished = on_finished,
            .lost = on_lost,
            .peer_up = on_peer_up,
            .peer_down = on_peer_down,
            .message = on_message}};
    kv_status_t status = kv_nodes_open(&params, &gateway->engine, error);
    gateway->sent_naming = KV_NAMING_NONE;
    if (status == KV_OK && gateway->engine->block_tokens > 0) {
        const kv_naming_t naming = {.shape = {.layer_count = 1,
                                        .kv_head_count = 1,
                                        .head_dim = 64,
                                        .element_bytes = 2,
                                        .block_tokens = gateway->engine->block_tokens}};
        gateway->sent_naming = kv_prefixes_add_naming(gateway->prefixes, &naming);
        gateway->limits.promises_nothing =
            "the nodes are vLLM servers, which keep no KV on request";
    }
    return status;
}

static void clean_contents(void *context)
{
    kv_gateway_t *gateway = context;
    kv_contents_clean(gateway->limits.contents);
    atomic_store(&gateway->cleaning, false);
}

/* What is expired goes also where nobody asks; its files on a thread that may wait for the disk. */
static void on_sweep(void *context)
{
    kv_gateway_t *gateway = context;
    if (kv_contents_sweep(gateway->limits.contents) && !atomic_exchange(&gateway->cleaning, true)) {
        KV_CHECK(kv_workers_submit(gateway->workers, (kv_job_t){clean_contents, gateway}) == KV_OK);
    }
    kv_session_tick(gateway);
    kv_http_sweep(gateway->http);
}

static kv_status_t open_contents(kv_gateway_t *gateway, kv_error_t *error)
{
    const kv_options_t *options = gateway->options;
    const kv_contents_params_t params = {.clock = kv_clock_real(),
        .directory = options->gateway.contents_directory,
        .count_max = options->gateway.contents_max,
        .bytes_max = options->gateway.contents_bytes};
    kv_status_t status = kv_contents_open(&params, &gateway->limits.contents, error);
    if (status == KV_OK) {
        gateway->sweep_timer = kv_timer_create(gateway->reactor, on_sweep, gateway);
        kv_timer_start(gateway->sweep_timer, SWEEP_MS, SWEEP_MS);
    }
    return status;
}

static kv_status_t open_http(kv_gateway_t *gateway, kv_error_t *error)
{
    const kv_options_t *options = gateway->options;
    kv_tls_t tls;
    kv_status_t status =
        kv_tls_read(options->gateway.tls_certificate, options->gateway.tls_key, &tls, error);
    if (status != KV_OK) {
        return status;
    }
    const kv_http_params_t params = {.host = options->gateway.http_host,
        .port = (uint16_t)options->gateway.http_port,
        .body_bytes_max = options->gateway.body_bytes_max,
        .stream_buffer_bytes = options->gateway.stream_buffer_bytes,
        .connections_max = options->gateway.connections_max,
        .connection_limit_ns = options->gateway.connection_limit_ns,
        .queue = gateway->incoming,
        .tls = &tls};
    status = kv_http_open(&params, &gateway->http, error);
    kv_tls_clear(&tls);
    return status;
}

/* As configured, or the file's name without its folder and ".gguf". */
static void name_model(kv_gateway_t *gateway)
{
    const kv_options_t *options = gateway->options;
    const char *name = options->gateway.model_name, *slash = strrchr(options->model.path, '/');
    if (name[0] == '\0') {
        name = slash != NULL ? slash + 1 : options->model.path;
    }
    snprintf(gateway->model_name, sizeof gateway->model_name, "%s", name);
    char *end = strrchr(gateway->model_name, '.');
    if (name != options->gateway.model_name && end != NULL && strcmp(end, ".gguf") == 0) {
        *end = '\0';
    }
}

static void set_up(kv_gateway_t *gateway)
{
    const kv_options_t *options = gateway->options;
    uint32_t queue_max = options->gateway.queue_max;
    name_model(gateway);
    gateway->limits = (kv_api_limits_t){.model = gateway->model_name,
        .vocabulary_count = kv_tokenizer_vocabulary_count(gateway->tokenizer),
        .context_tokens_max = kv_tokenizer_context_tokens_max(gateway->tokenizer),
        .default_max_tokens = options->gateway.default_max_tokens,
        .block_tokens = options->model.block_tokens};
    KV_CHECK(getrandom(&gateway->boot_id, sizeof gateway->boot_id, 0) ==
             (ssize_t)sizeof gateway->boot_id);
    gateway->started_ns = kv_clock_now_ns();
    gateway->started_unix_s = kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_S;
    gateway->slots = kv_allocate_array(queue_max, sizeof(kv_request_t *));
    gateway->free_slots = kv_allocate_array(queue_max, sizeof *gateway->free_slots);
    for (uint32_t i = 0; i < queue_max; i++) {
        gateway->free_slots[i] = i;
    }
    register_metrics(gateway);
    gateway->prefixes = kv_prefixes_create(options->gateway.prefix_bytes);
    gateway->branches = kv_branches_create();
    gateway->ghost = kv_ghost_create(options->gateway.ghost_bytes);
    if (options->gateway.audit_bytes > 0) {
        gateway->ledger = kv_ledger_create(options->gateway.audit_bytes);
    }
    kv_page_open(&gateway->page);
    gateway->decisions = kv_decisions_create();
    const kv_promise_table_params_t promises = {
        .block_tokens = options->model.block_tokens, .entry_count_max = KV_PROMISE_ENTRIES_MAX};
    gateway->promises = kv_promise_table_create(&promises);
    const kv_sessions_params_t sessions = {.count_max = KV_SESSIONS_MAX,
        .token_count_max = KV_SESSION_TOKENS_MAX,
        .tenant_count_max = KV_SESSIONS_MAX / KV_SESSION_TENANT_PART,
        .tenant_token_count_max = KV_SESSION_TOKENS_MAX / KV_SESSION_TENANT_PART};
    gateway->sessions = kv_sessions_create(&sessions);
    gateway->session_timer = kv_timer_create(gateway->reactor, on_session_time, gateway);
    gateway->incoming =
        kv_queue_create(options->gateway.connections_max + 1, sizeof(kv_exchange_t *));
    gateway->parsed = kv_queue_create(queue_max, sizeof(kv_request_t *));
    gateway->workers = kv_workers_create("parse", PARSE_THREADS, queue_max + 1);
    gateway->incoming_watch =
        kv_reactor_attach(gateway->reactor, kv_queue_fd(gateway->incoming), on_incoming, gateway);
    gateway->parsed_watch =
        kv_reactor_attach(gateway->reactor, kv_queue_fd(gateway->parsed), on_parsed, gateway);
    gateway->timer = kv_timer_create(gateway->reactor, on_tick, gateway);
}

kv_status_t kv_gateway_open(kv_reactor_t *reactor, const kv_options_t *options,
    const kv_tokenizer_t *tokenizer, kv_gateway_t **gateway_out, kv_error_t *error)
{
    kv_gateway_t *gateway = kv_allocate(sizeof *gateway);
    *gateway = (kv_gateway_t){.reactor = reactor, .options = options, .tokenizer = tokenizer};
    set_up(gateway);
    kv_status_t status = kv_access_open(gateway, error);
    if (status == KV_OK) {
        status = kv_admin_open(
            reactor, options->node.admin, &ADMIN_HANDLERS, gateway, &gateway->admin, error);
    }
    if (status == KV_OK) {
        status = open_engine(gateway, error);
    }
    if (status == KV_OK) {
        status = open_contents(gateway, error);
    }
    if (status == KV_OK) {
        status = open_http(gateway, error);
    }
    if (status != KV_OK) {
        kv_gateway_close(gateway);
        return status;
    }
    kv_log_info("gateway", "listening %s %s:%u model %s",
        options->gateway.tls_certificate[0] != '\0' ? "https" : "http", options->gateway.http_host,
        kv_http_port(gateway->http), gateway->limits.model);
    *gateway_out = gateway;
    return KV_OK;
}

void kv_gateway_reload(kv_gateway_t *gateway)
{
    const kv_options_t *options = gateway->options;
    kv_tls_t tls;
    kv_error_t error;
    kv_access_reload(gateway);
    kv_status_t status =
        kv_tls_read(options->gateway.tls_certificate, options->gateway.tls_key, &tls, &error);
    if (status == KV_OK && tls.certificate != NULL) {
        status = kv_http_renew(gateway->http, &tls, &error);
        if (status == KV_OK) {
            kv_log_info("gateway", "certificate %s read again", options->gateway.tls_certificate);
        }
        kv_tls_clear(&tls);
    }
    if (status != KV_OK) {
        kv_log_error("gateway", "%s; the certificate of before stays in force", error.text);
    }
}

void kv_gateway_begin_drain(kv_gateway_t *gateway)
{
    kv_log_info("gateway",
        "draining: refuses what comes, finishes %u requests, within %" PRIu64 " ms",
        gateway->active_count, gateway->options->node.drain_limit_ns / KV_NS_PER_MS);
    gateway->draining = true;
    if (gateway->active_count == 0) {
        kv_reactor_begin_stop(gateway->reactor);
    }
}

void kv_gateway_begin_stop(kv_gateway_t *gateway, void (*stopped)(void *context), void *context)
{
    gateway->stopping = true;
    gateway->stopped = stopped;
    gateway->stopped_context = context;
    if (gateway->active_count == 0) {
        stopped(context);
        return;
    }
    kv_request_stop_all(gateway);
}

void kv_gateway_close(kv_gateway_t *gateway)
{
    if (gateway == NULL) {
        return;
    }
    KV_CHECK(gateway->active_count == 0);
    kv_http_close(gateway->http);
    kv_nodes_close(gateway->engine);
    kv_admin_close(gateway->admin);
    kv_workers_destroy(gateway->workers);
    kv_watch_detach(gateway->incoming_watch);
    kv_watch_detach(gateway->parsed_watch);
    kv_timer_destroy(gateway->timer);
    kv_timer_destroy(gateway->sweep_timer);
    kv_contents_close(gateway->limits.contents);
    kv_promise_table_destroy(gateway->promises);
    kv_timer_destroy(gateway->session_timer);
    kv_sessions_destroy(gateway->sessions);
    kv_queue_destroy(gateway->incoming);
    kv_queue_destroy(gateway->parsed);
    for (size_t i = 0; i < gateway->node_count; i++) {
        free(gateway->nodes[i]);
    }
    kv_prefixes_destroy(gateway->prefixes);
    kv_branches_destroy(gateway->branches);
    kv_ghost_destroy(gateway->ghost);
    kv_ledger_destroy(gateway->ledger);
    kv_page_close(&gateway->page);
    kv_decisions_destroy(gateway->decisions);
    kv_access_close(&gateway->access);
    free(gateway->slots);
    free(gateway->free_slots);
    free(gateway);
}

uint16_t kv_gateway_http_port(const kv_gateway_t *gateway)
{
    return kv_http_port(gateway->http);
}
