#include "gateway/keeping/keeping.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/keeping/session_doors.h"
#include "gateway/request.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t now_unix_ms(void)
{
    return kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_MS;
}

/* ---- what is asked for ---- */

/* What the request itself asks for: of its first answer's prompt. */
typedef struct {
    uint32_t token_count;
    uint64_t ttl_ns;
    bool limit;
    uint64_t owner; /* a session's number; 0: nobody's in particular */
} ask_t;

enum { ASKS_MAX = KV_API_BREAKPOINTS_MAX + 1 };

static size_t own_asks(const kv_generation_t *choice, ask_t asks_out[ASKS_MAX])
{
    const kv_api_request_t *api = &choice->request->api;
    size_t count = 0;
    for (size_t i = 0; choice->index == 0 && i < api->breakpoint_count; i++) {
        const kv_api_breakpoint_t *at = &api->breakpoints[i];
        if (at->token_count > 0) {
            asks_out[count++] = (ask_t){at->token_count, at->ttl_ns, at->limit, 0};
        }
    }
    const kv_session_t *session = kv_session_of_request(choice->request);
    if (choice->index == 0 && session != NULL && session->ttl_ns > 0) {
        asks_out[count++] =
            (ask_t){(uint32_t)choice->prompt->token_count, session->ttl_ns, false, session->number};
    }
    return count;
}

/* Who asks for a pin says how soon it means to be back: the shortest of them. 0: nobody does. */
static uint64_t next_use_unix_ms(const ask_t *asks, size_t count)
{
    uint64_t least_ns = UINT64_MAX;
    for (size_t i = 0; i < count; i++) {
        if (!asks[i].limit && asks[i].ttl_ns < least_ns) {
            least_ns = asks[i].ttl_ns;
        }
    }
    return least_ns < UINT64_MAX ? now_unix_ms() + least_ns / KV_NS_PER_MS : 0;
}

static void add(kv_keeping_t *keeping, Kvist__Wire__Generate *generate, const ask_t *ask)
{
    if (generate->n_promises == KV_KEEPING_MAX) {
        return;
    }
    Kvist__Wire__Promise *promise = &keeping->items[generate->n_promises];
    uint64_t until_ms = now_unix_ms() + ask->ttl_ns / KV_NS_PER_MS;
    kvist__wire__promise__init(promise);
    promise->token_count = ask->token_count;
    *(ask->limit ? &promise->expires_unix_ms : &promise->pin_until_unix_ms) = until_ms;
    keeping->list[generate->n_promises++] = promise;
}

/* Promises of earlier requests that the prompt reads, unless this one asks for as much itself. */
static void add_renewals(kv_generation_t *choice, uint64_t node, kv_keeping_t *keeping,
    Kvist__Wire__Generate *generate, const ask_t *asks, size_t ask_count)
{
    kv_promise_entry_t entries[KV_KEEPING_MAX];
    size_t count = kv_promise_table_read(choice->request->gateway->promises, node,
        choice->promise_keys, choice->promise_key_count, entries, KV_KEEPING_MAX);
    for (size_t i = 0; i < count; i++) {
        const ask_t renewal = {entries[i].token_count, entries[i].ttl_ns, false, 0};
        bool covered = false;
        for (size_t k = 0; k < ask_count; k++) {
            covered |= !asks[k].limit && asks[k].token_count >= renewal.token_count &&
                       asks[k].ttl_ns >= renewal.ttl_ns;
        }
        if (!covered) {
            add(keeping, generate, &renewal);
        }
    }
}

static void work_out_keys(kv_generation_t *choice)
{
    const kv_request_t *request = choice->request;
    if (choice->promise_keys == NULL) {
        choice->promise_keys =
            kv_promise_keys(request->gateway->promises, request->api.salt, request->api.salt_bytes,
                choice->prompt->tokens, choice->prompt->token_count, &choice->promise_key_count);
    }
}

void kv_keeping_ask(
    kv_generation_t *choice, uint64_t node, kv_keeping_t *keeping, Kvist__Wire__Generate *generate)
{
    const kv_request_t *request = choice->request;
    ask_t asks[ASKS_MAX];
    size_t ask_count = own_asks(choice, asks);
    bool first_of_prompt = choice->index % request->api.choice_count == 0;
    generate->priority = (Kvist__Wire__Priority)request->api.priority;
    generate->tenant = (char *)(request->call.tenant != NULL ? request->call.tenant : "");
    generate->promises = keeping->list;
    generate->expected_next_use_unix_ms = next_use_unix_ms(asks, ask_count);
    choice->promise_node = node;
    for (size_t i = 0; i < ask_count; i++) {
        add(keeping, generate, &asks[i]);
    }
    if (first_of_prompt &&
        (ask_count > 0 || !kv_promise_table_is_empty(request->gateway->promises))) {
        work_out_keys(choice);
        add_renewals(choice, node, keeping, generate, asks, ask_count);
    }
}

/* ---- what was granted ---- */

static const Kvist__Wire__Usage *told_by_node(const kv_generation_t *choice)
{
    return choice->usage != NULL ? choice->usage : choice->first_usage;
}

static void count_outcome(const Kvist__Wire__Granted *granted_or_not)
{
    bool granted = granted_or_not->token_count > 0;
    kv_metric_add(kv_metric_counter("kvist_gateway_promised_tokens_total", "",
                      "tokens of the cache promises that nodes granted, renewals included"),
        granted_or_not->token_count);
    kv_metric_add(kv_metric_counter("kvist_gateway_promises_total",
                      granted ? "outcome=\"granted\"" : "outcome=\"refused\"",
                      "cache promises asked of nodes, renewals included, by what became of them"),
        1);
}

void kv_keeping_note(kv_generation_t *choice)
{
    const Kvist__Wire__Usage *told = told_by_node(choice);
    ask_t asks[ASKS_MAX];
    if (choice->promises_noted || told == NULL || told->n_granted == 0 ||
        choice->promise_keys == NULL) {
        return;
    }
    choice->promises_noted = true;
    size_t ask_count = own_asks(choice, asks);
    for (size_t i = 0; i < told->n_granted; i++) {
        const Kvist__Wire__Granted *granted = told->granted[i];
        count_outcome(granted);
        if (granted->token_count == 0 || granted->pin_until_unix_ms == 0) {
            continue;
        }
        const kv_promise_entry_t entry = {
            .node = choice->promise_node,
            .token_count = granted->token_count,
            .ttl_ns = i < ask_count && !asks[i].limit ? asks[i].ttl_ns : 0,
            .until_unix_ms = granted->pin_until_unix_ms,
            .owner = i < ask_count ? asks[i].owner : KV_PROMISE_OWNER_AS_IT_IS,
        };
        kv_promise_table_note(choice->request->gateway->promises, choice->promise_keys,
            choice->promise_key_count, &entry);
    }
}

void kv_keeping_publish(const kv_gateway_t *gateway)
{
    kv_promise_sums_t sums = kv_promise_table_sums(gateway->promises);
    kv_metric_set(kv_metric_gauge("kvist_gateway_pins", "", "pins that hold now at nodes"),
        (double)sums.promise_count);
    kv_metric_set(kv_metric_gauge("kvist_gateway_pinned_tokens", "",
                      "tokens of the pins that hold now; of each pin, where one covers another"),
        (double)sums.token_count);
}

void kv_keeping_clear(kv_generation_t *choice)
{
    free(choice->promise_keys);
    choice->promise_keys = NULL;
}

/* ---- what nodes are told between requests ---- */

kv_status_t kv_keeping_send_context(kv_gateway_t *gateway, kv_peer_t *peer, const void *salt,
    size_t salt_bytes, const uint32_t *tokens, size_t token_count, Kvist__Wire__Context *context)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    context->id = ++gateway->sequence;
    context->salt = (ProtobufCBinaryData){salt_bytes, (uint8_t *)salt};
    context->n_tokens = token_count;
    context->tokens = (uint32_t *)tokens;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CONTEXT;
    envelope.context = context;
    return kv_peer_send(peer, &envelope);
}

/* Up to a breakpoint of the request's prompt. */
static void limit_at(const kv_request_t *request, kv_peer_t *peer, uint32_t token_count)
{
    const kv_api_request_t *api = &request->api;
    Kvist__Wire__Context context = KVIST__WIRE__CONTEXT__INIT;
    Kvist__Wire__Promise promise = KVIST__WIRE__PROMISE__INIT, *list[] = {&promise};
    promise.token_count = token_count;
    promise.expires_unix_ms = api->limit_unix_ms;
    context.action = KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMISE;
    context.promises = list;
    context.n_promises = 1;
    if (kv_keeping_send_context(request->gateway, peer, api->salt, api->salt_bytes,
            api->prompts[0].tokens, token_count, &context) != KV_OK) {
        kv_log_warn("gateway", "node %s was not told of a limit: its copy ends when it was to",
            kv_peer_name(peer));
    }
}

void kv_keeping_limit(const kv_request_t *request)
{
    const kv_gateway_t *gateway = request->gateway;
    const kv_api_request_t *api = &request->api;
    for (size_t i = 0; api->limit_unix_ms > 0 && i < gateway->node_count; i++) {
        kv_peer_t *peer = gateway->nodes[i]->node->peer;
        bool speaks = peer != NULL && kv_peer_version(peer) >= KV_CONTEXT_VERSION;
        for (size_t k = 0; speaks && k < api->breakpoint_count; k++) {
            if (api->breakpoints[k].token_count > 0) {
                limit_at(request, peer, api->breakpoints[k].token_count);
            }
        }
    }
}

/* ---- what the client is told ---- */

static kv_grant_t grant_of(const Kvist__Wire__Granted *granted, uint32_t cached_tokens)
{
    bool limited = granted->pin_until_unix_ms == 0;
    return (kv_grant_t){
        .token_count = granted->token_count,
        .created_tokens =
            granted->token_count > cached_tokens ? granted->token_count - cached_tokens : 0,
        .until_unix_ms = limited ? granted->expires_unix_ms : granted->pin_until_unix_ms,
        .why_not = granted->why_not[0] != '\0' ? granted->why_not : NULL,
    };
}

void kv_keeping_grants(
    const kv_request_t *request, const Kvist__Wire__Usage *told, kv_usage_t *usage)
{
    uint32_t cached = kv_usage_cached_tokens(usage);
    size_t next = 0;
    for (size_t i = 0; i < request->api.breakpoint_count; i++) {
        kv_grant_t *grant = &usage->grants[i];
        if (request->api.breakpoints[i].token_count == 0) {
            grant->why_not = "there is nothing before it";
        } else if (told == NULL || next >= told->n_granted) {
            grant->why_not = "the node has not said";
        } else {
            *grant = grant_of(told->granted[next++], cached);
        }
    }
}

uint64_t kv_keeping_least_ttl_s(const kv_usage_t *usage, size_t count, uint64_t now_ms)
{
    uint64_t least_ms = UINT64_MAX;
    for (size_t i = 0; i < count; i++) {
        const kv_grant_t *grant = &usage->grants[i];
        bool holds = grant->why_not == NULL && grant->until_unix_ms > now_ms;
        uint64_t left_ms = holds ? grant->until_unix_ms - now_ms : 0;
        least_ms = left_ms < least_ms ? left_ms : least_ms;
    }
    return count > 0 ? least_ms / 1000 : 0;
}

const char *kv_keeping_slowest_tier(const kv_usage_t *usage)
{
    static const char *const NAMES[KV_TIERS] = {"device", "host", "disk", "remote"};
    const char *name = "none";
    for (int i = 0; i < KV_TIERS; i++) {
        name = usage->cached_tokens[i] > 0 ? NAMES[i] : name;
    }
    return name;
}

void kv_keeping_headers(const kv_request_t *request, const kv_usage_t *usage, kv_http_head_t *head)
{
    char number[24];
    snprintf(number, sizeof number, "%u", kv_usage_cached_tokens(usage));
    kv_gateway_add_header(head, "x-kvist-hit-tokens", number);
    kv_gateway_add_header(head, "x-kvist-tier", kv_keeping_slowest_tier(usage));
    bool told = usage->node != NULL && usage->node->n_granted > 0;
    if (request->api.breakpoint_count > 0 && told) {
        snprintf(number, sizeof number, "%" PRIu64,
            kv_keeping_least_ttl_s(usage, request->api.breakpoint_count, now_unix_ms()));
        kv_gateway_add_header(head, "x-kvist-cache-ttl", number);
    }
}
