#include "gateway/access/access.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/keeping/session_doors.h"
#include "gateway/request.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

_Static_assert((int)KV_API_INTERACTIVE == (int)KVIST_PRIORITY_INTERACTIVE &&
                   (int)KV_API_BATCH == (int)KVIST_PRIORITY_BATCH &&
                   (int)KV_API_BACKGROUND == (int)KVIST_PRIORITY_BACKGROUND,
    "one list of classes");
_Static_assert((int)KV_TENANT_SALT_BYTES <= (int)KV_API_SALT_BYTES_MAX, "a salt fits");

/* ---- open and close ---- */

kv_status_t kv_access_open(kv_gateway_t *gateway, kv_error_t *error)
{
    static const char *const LABELS[KVIST_PRIORITY_COUNT] = {
        "priority=\"interactive\"", "priority=\"batch\"", "priority=\"background\""};
    kv_access_t *access = &gateway->access;
    const kv_figures_params_t figures = {
        .label_values_max = gateway->options->gateway.label_values_max,
        .slo_ttft_ns = gateway->options->gateway.slo_ttft_ns,
        .slo_tpot_ns = gateway->options->gateway.slo_tpot_ns};
    access->figures = kv_figures_create(&figures);
    for (int i = 0; i < KVIST_PRIORITY_COUNT; i++) {
        access->waiting_metrics[i] = kv_metric_gauge("kvist_gateway_requests_waiting", LABELS[i],
            "requests that wait for a place at a node");
    }
    return kv_tenants_open(gateway->options->gateway.tenants_file, &access->tenants, error);
}

void kv_access_close(kv_access_t *access)
{
    kv_tenants_close(access->tenants);
    kv_figures_destroy(access->figures);
}

static void tell_quota(void *context, const kv_tenant_t *tenant)
{
    kv_peer_t *peer = context;
    Kvist__Wire__Quota quota = KVIST__WIRE__QUOTA__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    quota.tenant = (char *)tenant->name;
    quota.host_bytes = tenant->host_bytes;
    quota.disk_bytes = tenant->disk_bytes;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_QUOTA;
    envelope.quota = &quota;
    if (tenant->has_quota && kv_peer_send(peer, &envelope) != KV_OK) {
        kv_log_warn("gateway", "decode node %s was not told the quota of %s", kv_peer_name(peer),
            tenant->name);
    }
}

void kv_access_tell_quotas(kv_gateway_t *gateway, const kv_node_t *node)
{
    if (node->peer != NULL && kv_peer_version(node->peer) >= 3) {
        kv_tenants_visit(gateway->access.tenants, tell_quota, node->peer);
    }
}

void kv_access_reload(kv_gateway_t *gateway)
{
    kv_error_t error;
    if (kv_tenants_reload(gateway->access.tenants, &error) != KV_OK) {
        kv_log_error("gateway", "%s; the tenants of before stay in force", error.text);
        return;
    }
    for (size_t i = 0; i < gateway->node_count; i++) {
        kv_access_tell_quotas(gateway, gateway->nodes[i]->node);
    }
}

static void publish_waiting(const kv_access_t *access)
{
    for (int i = 0; i < KVIST_PRIORITY_COUNT; i++) {
        kv_metric_set(access->waiting_metrics[i], access->admission.waiting_counts[i]);
    }
}

/* ---- who it is ---- */

/* The key, in the way of whichever API; NULL: none was given. */
static const char *key_of(const kv_call_t *call)
{
    static const char BEARER[] = "Bearer ";
    const char *value = kv_call_header(call, "authorization");
    if (value != NULL && strncasecmp(value, BEARER, sizeof BEARER - 1) == 0) {
        return value + sizeof BEARER - 1;
    }
    value = kv_call_header(call, "x-api-key");
    value = value != NULL ? value : kv_call_header(call, "x-goog-api-key");
    return value != NULL ? value : kv_call_query(call, "key");
}

kv_tenant_t *kv_access_find(
    kv_gateway_t *gateway, const kv_route_t *route, const kv_call_t *call, kv_api_error_t *error)
{
    kv_access_t *access = &gateway->access;
    const char *key = key_of(call);
    kv_tenant_t *tenant = kv_tenants_find(access->tenants, key);
    if (tenant == NULL && !route->is_open) {
        kv_figures_refused(access->figures, NULL, "key");
        kv_api_fail(error, 401, "", "invalid_api_key",
            key == NULL || key[0] == '\0'
                ? "an API key is needed: as Authorization: Bearer KEY, x-api-key, x-goog-api-key "
                  "or ?key="
                : "the API key is wrong, or is in force no longer");
    }
    return tenant;
}

bool kv_access_may_see(const kv_access_t *access, const kv_call_t *call, const char *tenant)
{
    return !kv_tenants_named(access->tenants) || call->is_operator ||
           (call->tenant != NULL && strcmp(call->tenant, tenant) == 0);
}

/* ---- it arrives ---- */

static bool too_fast(kv_gateway_t *gateway, const kv_tenant_t *tenant, const char *what,
    uint64_t limit, uint64_t wait_ns, kv_api_error_t *error)
{
    kv_figures_refused(gateway->access.figures, tenant->name, what);
    kv_api_fail(error, 429, "", "rate_limit_exceeded",
        "tenant %s: more than %" PRIu64 " %s a minute: try again in %" PRIu64 " s", tenant->name,
        limit, what, kv_retry_after_s(wait_ns));
    error->retry_after_s = (uint32_t)kv_retry_after_s(wait_ns);
    return false;
}

static bool no_room(
    kv_gateway_t *gateway, const char *tenant, kvist_priority_t priority, kv_api_error_t *error)
{
    uint32_t queue_max = gateway->options->gateway.queue_max;
    kv_figures_refused(gateway->access.figures, tenant, "queue");
    kv_api_fail(
        error, 429, "", "overloaded", "%u requests are in work, the most at once", queue_max);
    error->retry_after_s =
        (uint32_t)kv_retry_after_s(kv_admission_wait_ns(&gateway->access.admission, priority));
    return false;
}

/* What is known of the class before the body is read. */
static kvist_priority_t class_of_call(const kv_tenant_t *tenant, const kv_call_t *call)
{
    kv_api_priority_t priority;
    const char *text = kv_call_header(call, "x-kvist-priority");
    bool said = text != NULL && kv_api_priority(text, &priority);
    return said && (int)priority > (int)tenant->priority_best ? (kvist_priority_t)priority
                                                              : tenant->priority_best;
}

/* Where the gateway is full: somebody who waits and should come later than the newcomer goes. */
static bool make_room(
    kv_gateway_t *gateway, const kv_tenant_t *tenant, const kv_call_t *call, kv_api_error_t *error)
{
    if (gateway->active_count < gateway->options->gateway.queue_max) {
        return true;
    }
    kvist_priority_t priority = class_of_call(tenant, call);
    kv_ticket_t *ticket =
        kv_admission_displace(&gateway->access.admission, &tenant->share, priority);
    if (ticket == NULL) {
        return no_room(gateway, tenant->name, priority, error);
    }
    kv_request_t *request = ticket->owner;
    kv_api_error_t why;
    no_room(gateway, request->pass.tenant->name, ticket->priority, &why);
    kv_request_fail(request, &why);
    return true;
}

bool kv_access_arrive(
    kv_gateway_t *gateway, kv_tenant_t *tenant, const kv_call_t *call, kv_api_error_t *error)
{
    uint64_t wait_ns = 0;
    if (!kv_bucket_take(&tenant->requests, 1, kv_clock_now_ns(), &wait_ns)) {
        return too_fast(gateway, tenant, "requests", tenant->requests.per_minute, wait_ns, error);
    }
    if (!make_room(gateway, tenant, call, error)) {
        kv_bucket_give_back(&tenant->requests, 1);
        return false;
    }
    return true;
}

/* ---- it was parsed ---- */

static bool may_use(const kv_tenant_t *tenant, uint32_t mode)
{
    return (tenant->cache_modes >> mode & 1) != 0;
}

/* As asked for. Where nothing was: background work leaves the cache alone, but for that of an open
 * session, whose context is to be there again; and who may not use what is usual uses the first
 * that it may. */
static bool settle_mode(
    const kv_tenant_t *tenant, kv_api_request_t *api, bool in_session, kv_api_error_t *error)
{
    static const char *const NAMES[] = {"readwrite", "read", "write", "bypass"};
    if (api->has_cache_mode && !may_use(tenant, api->cache_mode)) {
        return kv_api_fail(error, 403, "cache_mode", "not_allowed",
            "cache_mode: tenant %s may not use %s", tenant->name, NAMES[api->cache_mode]);
    }
    if (api->has_cache_mode) {
        return true;
    }
    if (api->priority == KV_API_BACKGROUND && !in_session && may_use(tenant, KVIST_MODE_BYPASS)) {
        api->cache_mode = KVIST_MODE_BYPASS;
    }
    for (uint32_t mode = 0; !may_use(tenant, api->cache_mode); mode++) {
        api->cache_mode = mode;
    }
    return true;
}

kv_pass_t kv_access_pass(const kv_gateway_t *gateway, kv_tenant_t *tenant)
{
    kv_pass_t pass = {.tenant = tenant, .has_salt = kv_tenants_named(gateway->access.tenants)};
    memcpy(pass.salt, tenant->salt, sizeof pass.salt);
    return pass;
}

bool kv_access_take_salt(const kv_pass_t *pass, kv_api_request_t *api, kv_api_error_t *error)
{
    if (!pass->has_salt) {
        return true;
    }
    if (api->salt_bytes > 0) {
        return KV_API_REFUSE(error, "kvist.salt",
            "kvist.salt: this server gives each API key's tenant a salt of its own: leave it out");
    }
    memcpy(api->salt, pass->salt, sizeof pass->salt);
    api->salt_bytes = sizeof pass->salt;
    return true;
}

/* Tokens that it asks for: those of its prompts, and all that it may generate. */
static uint64_t cost_of(const kv_api_request_t *api)
{
    uint64_t tokens = (uint64_t)api->max_tokens * api->prompt_count * api->choice_count;
    for (size_t i = 0; i < api->prompt_count; i++) {
        tokens += api->prompts[i].token_count;
    }
    return tokens;
}

static bool take_tokens(kv_request_t *request, uint64_t cost, kv_api_error_t *error)
{
    kv_tenant_t *tenant = request->pass.tenant;
    uint64_t wait_ns = 0, limit = tenant->tokens.per_minute;
    if (kv_bucket_take(&tenant->tokens, cost, kv_clock_now_ns(), &wait_ns)) {
        request->pass.taken_tokens = cost;
        return true;
    }
    if (wait_ns == UINT64_MAX) {
        kv_figures_refused(request->gateway->access.figures, tenant->name, "tokens");
        return KV_API_REFUSE(error, "max_tokens",
            "max_tokens: prompt and answer would be %" PRIu64 " tokens, more than the %" PRIu64
            " a minute of tenant %s: ask for fewer",
            cost, limit, tenant->name);
    }
    return too_fast(request->gateway, tenant, "tokens", limit, wait_ns, error);
}

/* A request of an open session is of the less important class of the two, and its agent's where it
 * names none. Whether there is one. */
static bool take_session(kv_request_t *request)
{
    const kv_session_t *session = kv_session_of_request(request);
    kv_api_request_t *api = &request->api;
    if (session == NULL) {
        return false;
    }
    if (session->priority > (uint32_t)api->priority) {
        api->priority = (kv_api_priority_t)session->priority;
    }
    if (api->labels.agent[0] == '\0') {
        snprintf(api->labels.agent, sizeof api->labels.agent, "%s", session->agent);
    }
    return true;
}

bool kv_access_begin(kv_request_t *request, kv_api_error_t *error)
{
    kv_gateway_t *gateway = request->gateway;
    kv_tenant_t *tenant = request->pass.tenant;
    kv_api_request_t *api = &request->api;
    if ((int)api->priority < (int)tenant->priority_best) {
        api->priority = (kv_api_priority_t)tenant->priority_best;
    }
    bool in_session = take_session(request);
    uint64_t cost = cost_of(api);
    if (!settle_mode(tenant, api, in_session, error) || !take_tokens(request, cost, error)) {
        return false;
    }
    kv_admission_enter(&gateway->access.admission, &request->pass.ticket, &tenant->share,
        (kvist_priority_t)api->priority, cost, request);
    return true;
}

/* ---- it waits ---- */

/* Places at the nodes that take something. While there is none, everybody goes on to where a
 * request waits for a node to come up. */
static uint32_t count_places(const kv_gateway_t *gateway)
{
    uint64_t count = 0;
    for (size_t i = 0; i < gateway->node_count; i++) {
        count += kv_node_look(gateway->nodes[i]->node).draining
                     ? 0
                     : gateway->options->gateway.node_requests;
    }
    return count == 0 || count > UINT32_MAX ? UINT32_MAX : (uint32_t)count;
}

void kv_access_admit(kv_gateway_t *gateway)
{
    kv_access_t *access = &gateway->access;
    kv_ticket_t *ticket;
    if (access->admitting || gateway->stopping) {
        return; /* the one further up goes on */
    }
    access->admitting = true;
    while ((ticket = kv_admission_next(
                &access->admission, count_places(gateway), kv_clock_now_ns())) != NULL) {
        kv_request_admitted(ticket->owner);
    }
    access->admitting = false;
    publish_waiting(access);
}

bool kv_access_waits(kv_request_t *request, uint64_t now_ns, kv_api_error_t *error)
{
    kv_gateway_t *gateway = request->gateway;
    const kv_ticket_t *ticket = &request->pass.ticket;
    uint64_t limit_ns = gateway->options->gateway.queue_wait_ns;
    if (ticket->state != KV_TICKET_WAITING || now_ns - request->arrived_ns <= limit_ns) {
        return true;
    }
    kv_figures_refused(gateway->access.figures, request->pass.tenant->name, "queue");
    kv_api_fail(error, 429, "", "overloaded", "waited %" PRIu64 " ms for a place at a node",
        limit_ns / KV_NS_PER_MS);
    error->retry_after_s = (uint32_t)kv_retry_after_s(
        kv_admission_wait_ns(&gateway->access.admission, ticket->priority));
    return false;
}

void kv_access_started(kv_request_t *request)
{
    kv_admission_started(&request->gateway->access.admission, &request->pass.ticket);
    kv_access_admit(request->gateway);
}

/* ---- it ends ---- */

void kv_access_count(kv_request_t *request, const kv_usage_t *usage)
{
    const kv_api_labels_t *said = &request->api.labels;
    const char *texts[KV_BY_COUNT] = {[KV_BY_ROUTE] = request->route->name,
        [KV_BY_MODEL] = request->gateway->limits.model,
        [KV_BY_TENANT] = request->pass.tenant->name,
        [KV_BY_AGENT] = said->agent,
        [KV_BY_TEMPLATE] = said->template_name,
        [KV_BY_TOOL_MODE] = said->tool_mode,
        [KV_BY_STEP] = said->step,
        [KV_BY_RELEASE] = said->release};
    char labels[KV_BY_COUNT][KV_LABEL_BYTES_MAX + 1];
    kv_figure_t answer = {.parts = request->parts,
        .generated_tokens = usage->generated_tokens,
        .ttft_ns = (request->first_token_ns != 0 ? request->first_token_ns : kv_clock_now_ns()) -
                   request->arrived_ns};
    for (int i = 0; i < KV_BY_COUNT; i++) {
        kv_label_clean(texts[i], labels[i]);
        answer.labels[i] = labels[i];
    }
    if (usage->node != NULL) {
        answer.miss = usage->node->miss;
        answer.compute_ns = usage->node->compute_ns;
    }
    for (size_t i = 0; i < request->choice_count; i++) {
        const kv_generation_t *choice = &request->choices[i];
        uint64_t tpot_ns = kv_generation_tpot_ns(choice);
        answer.decode_ns += choice->last_token_ns - choice->first_token_ns;
        answer.tpot_ns = tpot_ns > answer.tpot_ns ? tpot_ns : answer.tpot_ns;
    }
    kv_figures_count(request->gateway->access.figures, &answer);
}

void kv_access_leave(kv_request_t *request)
{
    kv_pass_t *pass = &request->pass;
    uint64_t used = 0;
    if (pass->ticket.state > KV_TICKET_WAITING) {
        for (size_t i = 0; i < request->choice_count; i++) {
            used += request->choices[i].token_count;
        }
        for (size_t i = 0; i < request->api.prompt_count; i++) {
            used += request->api.prompts[i].token_count;
        }
    }
    if (pass->taken_tokens > used) {
        kv_bucket_give_back(&pass->tenant->tokens, pass->taken_tokens - used);
    }
    kv_admission_leave(&request->gateway->access.admission, &pass->ticket);
    kv_tenant_release(pass->tenant);
    pass->tenant = NULL;
}

static void add_rate(kv_http_head_t *head, const kv_bucket_t *bucket, const char *const names[3])
{
    char text[KV_RESET_TEXT_BYTES];
    uint64_t now_ns = kv_clock_now_ns();
    if (bucket->per_minute == 0) {
        return;
    }
    snprintf(text, sizeof text, "%" PRIu64, bucket->per_minute);
    kv_gateway_add_header(head, names[0], text);
    snprintf(text, sizeof text, "%" PRIu64, kv_bucket_left(bucket, now_ns));
    kv_gateway_add_header(head, names[1], text);
    kv_reset_text(kv_bucket_fill_ns(bucket, now_ns), text);
    kv_gateway_add_header(head, names[2], text);
}

void kv_access_add_headers(const kv_tenant_t *tenant, kv_http_head_t *head)
{
    static const char *const REQUESTS[3] = {"x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"};
    static const char *const TOKENS[3] = {
        "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"};
    add_rate(head, &tenant->requests, REQUESTS);
    add_rate(head, &tenant->tokens, TOKENS);
}
