/* Who asks, what it may, and when its request begins: keys, rates, classes, the queue for places at
 * nodes, and the figures of who got what.
 *
 *   call --find--> tenant --arrive--> (parsed) --begin--> waits --admit--> its choices run
 *            401            429                 400, 403, 429     429
 *
 * Owns: the tenants, the queue, the figures.
 * Threads: the reactor's.
 * Errors: a kv_api_error_t in neutral words; no key and no salt is ever part of one. */
#ifndef KV_GATEWAY_ACCESS_H
#define KV_GATEWAY_ACCESS_H

#include "base/metrics.h"
#include "gateway/access/tenants.h"
#include "gateway/dialect.h"
#include "gateway/engines/engine.h"
#include "gateway/figures/figures.h"
#include "gateway/http/http.h"

typedef struct kv_request kv_request_t;

typedef struct {
    kv_tenants_t *tenants;
    kv_admission_t admission;
    kv_figures_t *figures;
    kv_metric_t *waiting_metrics[KVIST_PRIORITY_COUNT];
    bool admitting;
} kv_access_t;

/* What a request holds of it. */
typedef struct {
    kv_tenant_t *tenant; /* held; the reactor's */
    kv_ticket_t ticket;
    /* The tenant's at the call's arrival, for the parse thread. */
    bool has_salt;
    uint8_t salt[KV_TENANT_SALT_BYTES];
    uint64_t taken_tokens; /* of its rate */
} kv_pass_t;

kv_status_t kv_access_open(kv_gateway_t *gateway, kv_error_t *error);
void kv_access_close(kv_access_t *access);

/* Reads the tenants' file again; what is wrong is logged, and all stays as it was. */
void kv_access_reload(kv_gateway_t *gateway);

/* Tells a node the tenants' quotas. */
void kv_access_tell_quotas(kv_gateway_t *gateway, const kv_node_t *node);

/* Whose key the call came with, held for the caller; NULL: *error says why not, and it is counted.
 * A route that is open asks for none. */
kv_tenant_t *kv_access_find(
    kv_gateway_t *gateway, const kv_route_t *route, const kv_call_t *call, kv_api_error_t *error);

/* Whether the caller may be shown what the tenant ("": the nameless one) asked for and has stored.
 * Without tenants everybody may, as with /metrics; with tenants each sees its own, and an operator
 * all. Of what several tenants have made together only an operator is shown anything: "*". */
bool kv_access_may_see(const kv_access_t *access, const kv_call_t *call, const char *tenant);

/* A request arrives: its tenant's rate of requests, and room for it, for which another request may
 * be ended that waits and comes later. */
bool kv_access_arrive(
    kv_gateway_t *gateway, kv_tenant_t *tenant, const kv_call_t *call, kv_api_error_t *error);

/* What the request holds, the hold on the tenant included. */
kv_pass_t kv_access_pass(const kv_gateway_t *gateway, kv_tenant_t *tenant);

/* The tenant's salt, in the place of none: a client gives one only where tenants have none. On a
 * parse thread. */
bool kv_access_take_salt(const kv_pass_t *pass, kv_api_request_t *api, kv_api_error_t *error);

/* It was parsed: its class and cache mode become those that its tenant may have, and its session
 * says; its rate of tokens; then it waits for a place. kv_access_admit follows. */
bool kv_access_begin(kv_request_t *request, kv_api_error_t *error);

/* Requests that wait begin, while there are places at nodes. */
void kv_access_admit(kv_gateway_t *gateway);

/* At each tick, of a request that waits: false and the error once it waited too long. */
bool kv_access_waits(kv_request_t *request, uint64_t now_ns, kv_api_error_t *error);

/* Its first token came. */
void kv_access_started(kv_request_t *request);

/* Its answer is complete. */
void kv_access_count(kv_request_t *request, const kv_usage_t *usage);

/* It ends, whatever became of it: its place is free, what it took of the rate and did not use is
 * given back. generated_tokens: what it got. */
void kv_access_leave(kv_request_t *request);

/* Adds what the tenant has left of its rates, as OpenAI words it. */
void kv_access_add_headers(const kv_tenant_t *tenant, kv_http_head_t *head);

#endif
