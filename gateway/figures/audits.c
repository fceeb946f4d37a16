#include "gateway/figures/audits.h"

#include "audit/ledger.h"
#include "audit/tokens.h"
#include "base/checksum.h"
#include "base/clock.h"
#include "gateway/gateway_internal.h"
#include "gateway/json.h"
#include "gateway/openai/openai.h"
#include "gateway/query.h"
#include "gateway/request.h"

#include <stdio.h>
#include <string.h>

/* ---- requests ---- */

/* Who may share KV: the tenant and its salt. */
static uint64_t scope_of(const kv_request_t *request, const char *tenant)
{
    const kv_api_request_t *api = &request->api;
    return kv_checksum_seeded(api->salt, api->salt_bytes, kv_checksum(tenant, strlen(tenant)));
}

void kv_audits_look(kv_request_t *request)
{
    const kv_gateway_t *gateway = request->gateway;
    const kv_api_request_t *api = &request->api;
    if (gateway->ledger == NULL || api->count_only || api->prompt_count == 0 ||
        !kv_api_reads(api) || !kv_api_writes(api)) {
        return;
    }
    const char *tenant = request->call.tenant != NULL ? request->call.tenant : "";
    kv_audit_prompt_t prompt;
    kv_audit_prompt_of_tokens(
        gateway->tokenizer, api->prompts[0].tokens, api->prompts[0].token_count, &prompt);
    const kv_ledger_names_t names = {.scope = scope_of(request, tenant),
        .tenant = tenant,
        .session = api->session,
        .template_name = api->labels.template_name,
        .id = request->id};
    request->audited = kv_ledger_look(gateway->ledger, &names, &prompt);
}

uint32_t kv_audits_diverged_tokens(const kv_request_t *request)
{
    const kv_audit_finding_t *finding = kv_ledger_finding(request->audited);
    return finding != NULL ? finding->cost : 0;
}

static void count_kind(const kv_audit_finding_t *finding, uint64_t tokens)
{
    char labels[64];
    snprintf(labels, sizeof labels, "kind=\"%s\"", kv_audit_kind_name(finding->kind));
    kv_metric_add(kv_metric_counter("kvist_gateway_audit_findings_total", labels,
                      "prompts that parted early from their predecessors, by kind of difference"),
        1);
    kv_metric_add(kv_metric_counter("kvist_gateway_audit_tokens_total", labels,
                      "prompt tokens that were computed again for that"),
        tokens);
}

void kv_audits_keep(kv_request_t *request, const kv_usage_t *usage)
{
    if (request->audited == NULL) {
        return;
    }
    const kv_audit_finding_t *finding = kv_ledger_finding(request->audited);
    /* What was hit in spite of it was not computed again. */
    uint64_t computed = request->api.prompts[0].token_count, cached = kv_usage_cached_tokens(usage);
    computed -= cached < computed ? cached : computed;
    bool priced = usage->node != NULL && computed > 0 && request->api.prompt_count == 1;
    double ns_per_token = priced ? (double)usage->node->compute_ns / (double)computed : 0.0;
    uint64_t unix_ms = kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_MS;
    if (finding != NULL && computed > 0) {
        count_kind(finding, finding->cost < computed ? finding->cost : computed);
    }
    kv_ledger_keep(request->gateway->ledger, request->audited, computed, ns_per_token, unix_ms);
    request->audited = NULL;
}

void kv_audits_forget(kv_request_t *request)
{
    kv_ledger_forget(request->gateway->ledger, request->audited);
    request->audited = NULL;
}

/* ---- /v1/audit ---- */

typedef struct {
    const kv_gateway_t *gateway;
    const kv_call_t *call;
} asker_t;

static bool may_see(void *context, const char *tenant)
{
    const asker_t *asker = context;
    return kv_access_may_see(&asker->gateway->access, asker->call, tenant);
}

static void serve_audit(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    static const kv_route_t ROUTE = {.name = "audit", .dialect = &kv_openai};
    asker_t asker = {gateway, call};
    uint64_t limit = KV_LEDGER_FINDINGS_MAX;
    kv_api_error_t error;
    if (!kv_query_number(call, "limit", 1, KV_LEDGER_FINDINGS_MAX, &limit, &error)) {
        kv_gateway_reply_error(exchange, &ROUTE, NULL, &error);
        return;
    }
    bool on = gateway->ledger != NULL;
    json_t *rows =
        on ? kv_ledger_rows(gateway->ledger, (uint32_t)limit, may_see, &asker) : json_array();
    json_t *answer = json_pack("{s:s,s:b,s:o}", "object", "list", "enabled", on, "data", rows);
    if (on && may_see(&asker, "*")) {
        kv_ledger_totals_t totals = kv_ledger_totals(gateway->ledger);
        json_object_set_new(answer, "totals",
            json_pack("{s:I,s:I,s:I,s:I}", "prompts", (json_int_t)totals.prompts, "compared",
                (json_int_t)totals.compared, "findings", (json_int_t)totals.findings, "cost",
                (json_int_t)totals.cost));
    }
    size_t bytes;
    char *body = kv_json_dump(answer, &bytes);
    kv_gateway_reply(exchange, "audit", 200, "application/json", body, bytes);
}

static const kv_route_t ROUTES[] = {
    {.path = "/v1/audit",
        .methods = "GET, HEAD",
        .name = "audit",
        .dialect = &kv_openai,
        .serve = serve_audit},
};

const kv_route_table_t kv_audit_routes = {ROUTES, sizeof ROUTES / sizeof ROUTES[0]};
