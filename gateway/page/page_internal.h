/* What the page's parts share: doors (page.c), the overview (overview.c), stored contexts
 * (contexts.c), and the files that the program holds (assets.c). */
#ifndef KV_GATEWAY_PAGE_INTERNAL_H
#define KV_GATEWAY_PAGE_INTERNAL_H

#include "gateway/gateway_internal.h"
#include "gateway/json.h"
#include "gateway/page/page.h"

/* Whether the caller may see what all tenants have together, and the nodes. */
static inline bool kv_page_sees_all(const kv_gateway_t *gateway, const kv_call_t *call)
{
    return kv_access_may_see(&gateway->access, call, "*");
}

/* ---- assets.c ---- */

typedef struct {
    const char *path, *content_type;
    const char *begin, *end;
} kv_asset_t;

/* NULL: none of that path. */
const kv_asset_t *kv_asset_find(const char *path);

/* ---- overview.c ---- */

/* What became of prompt tokens: hit by tier, the gap by reason (those that are not 0), the rest. */
json_t *kv_page_parts(const kv_partition_t *parts);

json_t *kv_page_overview(kv_gateway_t *gateway, const kv_call_t *call, kv_history_span_t span);

/* ---- contexts.c ---- */

typedef enum { KV_SORT_USED, KV_SORT_TOKENS, KV_SORT_TIER, KV_SORT_TENANT } kv_contexts_sort_t;

typedef struct {
    uint32_t limit, offset;
    kv_contexts_sort_t sort;
    const char *tier, *tenant, *node; /* "": any */
} kv_contexts_query_t;

json_t *kv_page_contexts(
    kv_gateway_t *gateway, const kv_call_t *call, const kv_contexts_query_t *query);

#endif
