#include "gateway/page/page.h"

#include "base/clock.h"
#include "base/memory.h"
#include "gateway/openai/openai.h"
#include "gateway/page/page_internal.h"
#include "gateway/query.h"
#include "gateway/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_DEFAULT = 50, OFFSET_MAX = KV_TOLD_NODES_MAX * KV_TOLD_CONTEXTS_MAX };

void kv_page_open(kv_page_t *page)
{
    *page = (kv_page_t){
        .history = kv_history_create(), .recents = kv_recents_create(), .told = kv_told_create()};
}

void kv_page_close(kv_page_t *page)
{
    kv_history_destroy(page->history);
    kv_recents_destroy(page->recents);
    kv_told_destroy(page->told);
}

/* ---- requests end ---- */

static void put(char text_out[KV_RECENT_TEXT_BYTES], const char *text)
{
    snprintf(text_out, KV_RECENT_TEXT_BYTES, "%s", text != NULL ? text : "");
}

static void name(const kv_request_t *request, kv_recent_t *recent)
{
    put(recent->id, request->id);
    put(recent->tenant, request->pass.tenant->name);
    kv_label_clean(request->api.labels.agent, recent->agent);
    recent->route = request->route->name;
    put(recent->node, request->choice_count > 0 ? request->choices[0].node_name : "");
}

static void add(const kv_request_t *request, const kv_usage_t *usage, kv_recent_t *recent)
{
    uint64_t now_ns = kv_clock_now_ns(), last_ns = request->first_token_ns;
    uint64_t first_ns = request->first_token_ns != 0 ? request->first_token_ns : now_ns;
    uint64_t begun_ns = request->admitted_ns != 0 ? request->admitted_ns : first_ns;
    recent->ended_unix_ms = kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_MS;
    recent->arrived_unix_ms = recent->ended_unix_ms - (now_ns - request->arrived_ns) / KV_NS_PER_MS;
    for (size_t i = 0; i < request->choice_count; i++) {
        const kv_generation_t *choice = &request->choices[i];
        uint64_t tpot_ns = kv_generation_tpot_ns(choice);
        recent->generated_tokens += choice->token_count;
        recent->tpot_ns = tpot_ns > recent->tpot_ns ? tpot_ns : recent->tpot_ns;
        last_ns = choice->last_token_ns > last_ns ? choice->last_token_ns : last_ns;
    }
    kv_recent_times_t times = {.queue_ns = begun_ns - request->arrived_ns,
        .first_token_ns = first_ns - request->arrived_ns,
        .decode_ns = request->first_token_ns != 0 ? last_ns - first_ns : 0};
    if (usage != NULL && usage->node != NULL) {
        times.match_ns = usage->node->match_ns;
        times.load_ns = usage->node->load_ns;
        times.compute_ns = usage->node->compute_ns;
        put(recent->said, usage->node->miss);
        put(recent->prefilled_by, usage->node->prefilled_by);
    }
    kv_recent_span(&times, recent->spans_ns);
    name(request, recent);
    kv_recents_add(request->gateway->page.recents, recent);
}

void kv_page_count(const kv_request_t *request, const kv_usage_t *usage)
{
    kv_recent_t recent = {.code = 200, .parts = request->parts};
    add(request, usage, &recent);
    kv_history_add(request->gateway->page.history, recent.ended_unix_ms / 1000, &request->parts);
}

void kv_page_failed(const kv_request_t *request, unsigned code)
{
    kv_recent_t recent = {.code = code};
    if (request->counted) {
        return;
    }
    for (size_t i = 0; request->choices != NULL && i < request->api.prompt_count; i++) {
        recent.parts.prompt += request->api.prompts[i].token_count;
    }
    add(request, NULL, &recent);
}

/* ---- the page ---- */

static void serve_asset(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    (void)gateway;
    const kv_asset_t *asset = kv_asset_find(call->path);
    size_t bytes = (size_t)(asset->end - asset->begin);
    kv_http_head_t head = {.code = 200, .content_type = asset->content_type};
    kv_gateway_add_header(&head, "Cache-Control", "no-cache");
    kv_gateway_add_header(&head, "X-Content-Type-Options", "nosniff");
    kv_gateway_add_header(&head, "Referrer-Policy", "no-referrer");
    kv_gateway_add_header(&head, "Content-Security-Policy",
        "default-src 'none';script-src 'self';style-src 'self';connect-src 'self';img-src 'self';"
        "base-uri 'none';form-action 'none';frame-ancestors 'none'");
    char *body = kv_allocate(bytes);
    memcpy(body, asset->begin, bytes);
    kv_exchange_reply(exchange, &head, body, bytes);
    kv_gateway_count_answer("page", 200);
}

/* ---- what is asked ---- */

static const char *text_of(const kv_call_t *call, const char *field)
{
    const char *text = kv_call_query(call, field);
    return text != NULL ? text : "";
}

static void reply(kv_exchange_t *exchange, const char *route, json_t *body)
{
    size_t bytes;
    char *text = kv_json_dump(body, &bytes);
    kv_gateway_reply(exchange, route, 200, "application/json", text, bytes);
}

/* ---- /v1/overview ---- */

enum { OVERVIEW, REQUESTS, CONTEXTS, ROUTE_COUNT = CONTEXTS + 5 };
static const kv_route_t ROUTES[ROUTE_COUNT];

static void serve_overview(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    static const char *const SPANS[] = {"hour", "week", NULL};
    int span = KV_HISTORY_HOUR;
    kv_api_error_t error;
    if (!kv_query_choice(call, "span", SPANS, &span, &error)) {
        kv_gateway_reply_error(exchange, &ROUTES[OVERVIEW], NULL, &error);
        return;
    }
    reply(exchange, "overview", kv_page_overview(gateway, call, (kv_history_span_t)span));
}

/* ---- /v1/requests ---- */

typedef struct {
    const kv_gateway_t *gateway;
    const kv_call_t *call;
    uint64_t limit, after;
    json_t *rows;
} requests_t;

static json_t *text(const char *value)
{
    return kv_json_text_or_null(value, strlen(value));
}

static bool take_request(void *context, const kv_recent_t *request)
{
    requests_t *asked = context;
    if (request->number <= asked->after || json_array_size(asked->rows) >= asked->limit) {
        return false;
    }
    if (!kv_access_may_see(&asked->gateway->access, asked->call, request->tenant)) {
        return true;
    }
    json_t *spans = json_object();
    for (int i = 0; i < KV_SPAN_COUNT; i++) {
        json_object_set_new(spans, kv_span_name((kv_span_t)i),
            json_real((double)(request->spans_ns[i] / 1000) / 1000));
    }
    json_t *row = json_pack("{s:I,s:o,s:s,s:I,s:i,s:o,s:o,s:o,s:o,s:o,s:o,s:I,s:o}", "number",
        (json_int_t)request->number, "id", text(request->id), "route", request->route, "arrived_ms",
        (json_int_t)request->arrived_unix_ms, "code", (int)request->code, "tenant",
        text(request->tenant), "agent", text(request->agent), "node", text(request->node),
        "prefilled_by", text(request->prefilled_by), "reason", text(request->said), "tokens",
        kv_page_parts(&request->parts), "generated", (json_int_t)request->generated_tokens, "ms",
        spans);
    json_array_append_new(asked->rows, row);
    return true;
}

static void serve_requests(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    requests_t asked = {.gateway = gateway, .call = call, .limit = ROWS_DEFAULT};
    kv_api_error_t error;
    if (!kv_query_number(call, "limit", 1, KV_PAGE_ROWS_MAX, &asked.limit, &error) ||
        !kv_query_number(call, "after", 0, INT64_MAX, &asked.after, &error)) {
        kv_gateway_reply_error(exchange, &ROUTES[REQUESTS], NULL, &error);
        return;
    }
    asked.rows = json_array();
    kv_recents_visit(gateway->page.recents, take_request, &asked);
    reply(exchange, "requests", json_pack("{s:s,s:o}", "object", "list", "data", asked.rows));
}

/* ---- /v1/contexts ---- */

static void serve_contexts(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    static const char *const SORTS[] = {"used", "tokens", "tier", "tenant", NULL};
    static const char *const TIERS[] = {"device", "host", "disk", NULL};
    uint64_t limit = ROWS_DEFAULT, offset = 0;
    int sort = KV_SORT_USED, tier = -1;
    kv_api_error_t error;
    if (!kv_query_number(call, "limit", 1, KV_PAGE_ROWS_MAX, &limit, &error) ||
        !kv_query_number(call, "offset", 0, OFFSET_MAX, &offset, &error) ||
        !kv_query_choice(call, "sort", SORTS, &sort, &error) ||
        !kv_query_choice(call, "tier", TIERS, &tier, &error)) {
        kv_gateway_reply_error(exchange, &ROUTES[CONTEXTS], NULL, &error);
        return;
    }
    const kv_contexts_query_t query = {.limit = (uint32_t)limit,
        .offset = (uint32_t)offset,
        .sort = (kv_contexts_sort_t)sort,
        .tier = tier >= 0 ? TIERS[tier] : "",
        .tenant = text_of(call, "tenant"),
        .node = text_of(call, "node")};
    reply(exchange, "contexts", kv_page_contexts(gateway, call, &query));
}

/* ---- routes ---- */

#define DATA(place, route_path, route_name, function)                                              \
    [place] = {.path = (route_path),                                                               \
        .methods = "GET, HEAD",                                                                    \
        .name = (route_name),                                                                      \
        .dialect = &kv_openai,                                                                     \
        .serve = (function)}
#define PAGE(route_path)                                                                           \
    {                                                                                              \
        .path = (route_path), .methods = "GET, HEAD", .name = "page", .dialect = &kv_openai,       \
        .serve = serve_asset, .is_open = true                                                      \
    }

static const kv_route_t ROUTES[ROUTE_COUNT] = {
    DATA(OVERVIEW, "/v1/overview", "overview", serve_overview),
    DATA(REQUESTS, "/v1/requests", "requests", serve_requests),
    DATA(CONTEXTS, "/v1/contexts", "contexts", serve_contexts),
    PAGE("/"),
    PAGE("/page.css"),
    PAGE("/page.js"),
    PAGE("/icon.svg"),
};

const kv_route_table_t kv_page_routes = {ROUTES, ROUTE_COUNT};
