/* The page that people look at (GET /), and the doors that it reads: /v1/overview, /v1/requests and
 * /v1/contexts. Hit rate first, with the ideal and why it was missed; then tiers, requests and what
 * is stored.
 *
 * Page, style and script are part of the program and ask for nothing from elsewhere. Figures are of
 * what the caller may see (kv_access_may_see): of all tenants over a week, or of its own among the
 * latest requests. Nodes are of no tenant, and are shown to who may see all.
 *
 * Owns: history, latest requests, what nodes told.
 * Borrows: the gateway.
 * Threads: the reactor's.
 * Errors: a wrong query is refused with 400, naming field and bound.
 * Limits: KV_PAGE_ROWS_MAX rows an answer; KV_TOLD_CONTEXTS_MAX contexts of each node. */
#ifndef KV_GATEWAY_PAGE_H
#define KV_GATEWAY_PAGE_H

#include "gateway/dialect.h"
#include "gateway/figures/history.h"
#include "gateway/figures/recent.h"
#include "gateway/page/told.h"

enum { KV_PAGE_ROWS_MAX = 500 };

typedef struct kv_request kv_request_t;

typedef struct {
    kv_history_t *history;
    kv_recents_t *recents;
    kv_told_t *told;
} kv_page_t;

extern const kv_route_table_t kv_page_routes;

void kv_page_open(kv_page_t *page);
void kv_page_close(kv_page_t *page);

/* A request ends: complete, with its partition; or with an error's code, which says nothing of one
 * that was counted. */
void kv_page_count(const kv_request_t *request, const kv_usage_t *usage);
void kv_page_failed(const kv_request_t *request, unsigned code);

#endif
