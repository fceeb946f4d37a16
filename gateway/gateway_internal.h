/* What the gateway's parts share: gateway.c (routes, nodes, admin, open and close), requests
 * (request.c) and their choices (generation.c, attempt.c). */
#ifndef KV_GATEWAY_INTERNAL_H
#define KV_GATEWAY_INTERNAL_H

#include "base/metrics.h"
#include "base/queue.h"
#include "base/worker.h"
#include "gateway/access/access.h"
#include "gateway/dialect.h"
#include "gateway/engines/engine.h"
#include "gateway/figures/ghost.h"
#include "gateway/gateway.h"
#include "gateway/http/http.h"
#include "gateway/keeping/promises.h"
#include "gateway/keeping/sessions.h"
#include "gateway/page/page.h"
#include "gateway/routing/branches.h"
#include "gateway/routing/decisions.h"
#include "gateway/routing/prefixes.h"
#include "node/admin.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { KV_GATEWAY_NODES_MAX = 2 * KV_OPTION_LIST_MAX };

typedef struct kv_request kv_request_t;
typedef struct kv_generation kv_generation_t;

typedef struct {
    kv_node_t *node;
    uint32_t outstanding; /* choices of this gateway's requests there */
    /* Of those (route.h): tokens to compute before they begin; how many came for what it holds. */
    uint64_t waiting_tokens;
    double taken_tokens; /* that it had to take in, lately */
    uint32_t warm;
} kv_decode_node_t;

struct kv_gateway {
    kv_reactor_t *reactor;
    const kv_options_t *options;
    const kv_tokenizer_t *tokenizer;
    char model_name[256];
    kv_api_limits_t limits;
    uint64_t boot_id, started_ns, started_unix_s, sequence;

    kv_queue_t *incoming, *parsed; /* of kv_exchange_t *; of kv_request_t * */
    kv_watch_t *incoming_watch, *parsed_watch;
    kv_workers_t *workers;
    kv_http_t *http;
    kv_nodes_t *engine; /* behind the nodes */
    kv_admin_t *admin;
    kv_timer_t *timer, *sweep_timer;

    kv_promise_table_t *promises;
    kv_access_t access;
    kv_page_t page;
    kv_sessions_t *sessions;
    kv_timer_t *session_timer; /* runs while a suspended one waits for its time */
    kv_decode_node_t *nodes[KV_GATEWAY_NODES_MAX];
    size_t node_count;
    kv_prefixes_t *prefixes;
    int sent_naming; /* of prompts sent to nodes that do not tell what they hold */
    kv_branches_t *branches;
    kv_ghost_t *ghost;
    struct kv_ledger *ledger; /* of the audit; NULL: it is off */
    kv_decisions_t *decisions;
    double answer_tokens; /* of an answer, lately */
    kv_request_t **slots;
    uint32_t *free_slots;
    uint32_t active_count;
    bool ticking, draining, stopping;
    atomic_bool cleaning; /* a job removes files of contents: one at a time beside the requests' */
    void (*stopped)(void *context);
    void *stopped_context;

    uint64_t request_count;
    kv_metric_t *running_metric, *nodes_metric, *ttft_metric, *tpot_metric, *queue_metric;
    kv_metric_t *retries_metric, *continued_metric, *gone_metric, *slow_metric;
};

/* ---- gateway.c: answers that any exchange may get, each counted by route and code ---- */

void kv_gateway_add_header(kv_http_head_t *head, const char *name, const char *value);
void kv_gateway_count_answer(const char *route, unsigned code);

/* Takes the body (free()). */
void kv_gateway_reply(kv_exchange_t *exchange, const char *route, unsigned code,
    const char *content_type, char *body, size_t bytes);

/* In the shape of the route's API. id: of the request, or NULL. */
void kv_gateway_reply_error(
    kv_exchange_t *exchange, const kv_route_t *route, const char *id, const kv_api_error_t *error);

/* The same with what the tenant has left of its rates. */
void kv_gateway_refuse(kv_exchange_t *exchange, const kv_route_t *route, const char *id,
    const kv_tenant_t *tenant, const kv_api_error_t *error);

/* ---- request.c ---- */

/* Takes the exchange and the hold on the tenant: a request begins, or is refused where there are
 * too many. */
void kv_request_start(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_route_t *route,
    const kv_call_t *call, kv_tenant_t *tenant);

/* A parse thread hands it back. */
void kv_request_returned(kv_request_t *request);

/* A node said something; what belongs to no choice here is dropped. */
void kv_request_tokens(
    kv_gateway_t *gateway, const kv_node_t *node, const Kvist__Wire__Tokens *tokens);
void kv_request_finished(
    kv_gateway_t *gateway, const kv_node_t *node, const Kvist__Wire__Finished *finished);
void kv_request_lost(kv_gateway_t *gateway, const kv_node_t *node, const char *wire_id);

/* The node is gone from the gateway's list: what it had goes elsewhere or ends. */
void kv_request_node_lost(kv_gateway_t *gateway, kv_decode_node_t *node);

/* Clients that went away, and time limits. */
void kv_request_check(kv_request_t *request, uint64_t now_ns);

/* Ends every request that no parse thread has; those end when they come back. */
void kv_request_stop_all(kv_gateway_t *gateway);

#endif
