/* /v1/contexts: what nodes have stored, as they last said. */
#include "gateway/page/page_internal.h"

#include "base/clock.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

/* A node walks all that it stores to answer. */
static const uint64_t LIST_AGE_NS = (uint64_t)5 * KV_NS_PER_S;

typedef struct {
    const Kvist__Admin__Context *context;
    const char *node;
} row_t;

/* From the fastest. */
static int speed_of(const char *tier)
{
    static const char *const TIERS[] = {"device", "host", "disk"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(TIERS[i], tier) == 0) {
            return i;
        }
    }
    return 3;
}

/* ---- order: what is equal goes by use, the latest first, then by key ---- */

static int by_use(const void *left, const void *right)
{
    const Kvist__Admin__Context *a = ((const row_t *)left)->context;
    const Kvist__Admin__Context *b = ((const row_t *)right)->context;
    if (a->used_unix_ns != b->used_unix_ns) {
        return a->used_unix_ns > b->used_unix_ns ? -1 : 1;
    }
    return strcmp(a->key, b->key);
}

static int by_tokens(const void *left, const void *right)
{
    uint64_t a = ((const row_t *)left)->context->token_count;
    uint64_t b = ((const row_t *)right)->context->token_count;
    return a != b ? (a > b ? -1 : 1) : by_use(left, right);
}

static int by_tier(const void *left, const void *right)
{
    int a = speed_of(((const row_t *)left)->context->tier);
    int b = speed_of(((const row_t *)right)->context->tier);
    return a != b ? a - b : by_use(left, right);
}

static int by_tenant(const void *left, const void *right)
{
    int order =
        strcmp(((const row_t *)left)->context->tenant, ((const row_t *)right)->context->tenant);
    return order != 0 ? order : by_use(left, right);
}

typedef int (*order_t)(const void *left, const void *right);

/* ---- the first ones of many: a heap whose head is the last of them ---- */

typedef struct {
    row_t *rows; /* [most] */
    size_t count, most;
    order_t order;
} first_t;

static void sink(first_t *first)
{
    row_t *rows = first->rows;
    for (size_t at = 0, child; (child = 2 * at + 1) < first->count; at = child) {
        if (child + 1 < first->count && first->order(&rows[child], &rows[child + 1]) < 0) {
            child++;
        }
        if (first->order(&rows[at], &rows[child]) >= 0) {
            return;
        }
        const row_t row = rows[at];
        rows[at] = rows[child];
        rows[child] = row;
    }
}

static void offer(first_t *first, const row_t *row)
{
    if (first->count == first->most) {
        if (first->order(row, &first->rows[0]) < 0) {
            first->rows[0] = *row;
            sink(first);
        }
        return;
    }
    size_t at = first->count++;
    first->rows[at] = *row;
    for (size_t parent; at > 0; at = parent) {
        parent = (at - 1) / 2;
        if (first->order(&first->rows[parent], &first->rows[at]) >= 0) {
            return;
        }
        const row_t kept = first->rows[parent];
        first->rows[parent] = first->rows[at];
        first->rows[at] = kept;
    }
}

/* ---- rows ---- */

static bool is_wanted(const char *wanted, const char *is)
{
    return wanted[0] == '\0' || strcmp(wanted, is) == 0;
}

typedef struct {
    first_t first;
    size_t total; /* that were chosen */
    struct {
        uint64_t contexts, tokens;
    } by_tier[4]; /* of what the caller may see */
    size_t node_count, told_count;
    uint64_t oldest_ns; /* when the oldest answer came */
} listing_t;

static void take_node(listing_t *listing, const kv_gateway_t *gateway, const kv_call_t *call,
    const kv_contexts_query_t *query, const kv_told_node_t *node)
{
    const Kvist__Admin__List *list = kv_told_list(node);
    listing->node_count++;
    if (list == NULL) {
        return;
    }
    uint64_t told_ns = node->told_ns[KV_TOLD_LIST];
    listing->oldest_ns = told_ns < listing->oldest_ns ? told_ns : listing->oldest_ns;
    listing->told_count++;
    for (size_t i = 0; i < list->n_contexts; i++) {
        const Kvist__Admin__Context *context = list->contexts[i];
        if (!kv_access_may_see(&gateway->access, call, context->tenant)) {
            continue;
        }
        int speed = speed_of(context->tier);
        listing->by_tier[speed].contexts++;
        listing->by_tier[speed].tokens += context->token_count;
        if (is_wanted(query->tier, context->tier) && is_wanted(query->tenant, context->tenant) &&
            is_wanted(query->node, node->name)) {
            const row_t row = {context, node->name};
            listing->total++;
            offer(&listing->first, &row);
        }
    }
}

static json_t *text(const char *value)
{
    return kv_json_text_or_null(value, strlen(value));
}

static json_t *ms_or_null(uint64_t unix_ns)
{
    return unix_ns != 0 ? json_integer((json_int_t)(unix_ns / KV_NS_PER_MS)) : json_null();
}

static json_t *describe(const row_t *row, bool sees_all)
{
    const Kvist__Admin__Context *context = row->context;
    return json_pack("{s:o,s:o,s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:o}", "key", text(context->key), "node",
        sees_all ? text(row->node) : json_null(), "tokens", (json_int_t)context->token_count,
        "bytes", (json_int_t)context->bytes, "tier", text(context->tier), "used_ms",
        ms_or_null(context->used_unix_ns), "expires_ms", ms_or_null(context->expires_unix_ns),
        "pinned_until_ms", ms_or_null(context->pin_until_unix_ns), "priority",
        text(context->priority), "tenant", text(context->tenant));
}

static json_t *by_tier_of(const listing_t *listing)
{
    static const char *const TIERS[] = {"device", "host", "disk", "other"};
    json_t *body = json_object();
    for (int i = 0; i < 4; i++) {
        if (listing->by_tier[i].contexts > 0) {
            json_object_set_new(body, TIERS[i],
                json_pack("{s:I,s:I}", "contexts", (json_int_t)listing->by_tier[i].contexts,
                    "tokens", (json_int_t)listing->by_tier[i].tokens));
        }
    }
    return body;
}

json_t *kv_page_contexts(
    kv_gateway_t *gateway, const kv_call_t *call, const kv_contexts_query_t *query)
{
    static const order_t ORDERS[] = {
        [KV_SORT_USED] = by_use,
        [KV_SORT_TOKENS] = by_tokens,
        [KV_SORT_TIER] = by_tier,
        [KV_SORT_TENANT] = by_tenant,
    };
    uint64_t now_ns = kv_clock_now_ns();
    kv_told_t *told = gateway->page.told;
    kv_told_look(told, KV_TOLD_STATUS, LIST_AGE_NS, now_ns); /* which names prefill nodes */
    kv_told_look(told, KV_TOLD_LIST, LIST_AGE_NS, now_ns);
    size_t count, most = (size_t)query->offset + query->limit;
    const kv_told_node_t *nodes = kv_told_nodes(told, &count);
    most = most < count * KV_TOLD_CONTEXTS_MAX ? most : count * KV_TOLD_CONTEXTS_MAX;
    listing_t listing = {
        .oldest_ns = now_ns, .first = {.most = most, .order = ORDERS[query->sort]}};
    first_t *first = &listing.first;
    first->rows = kv_allocate_array(most + 1, sizeof *first->rows);
    for (size_t i = 0; i < count; i++) {
        if (kv_told_store_of(told, &nodes[i]) == NULL) {
            take_node(&listing, gateway, call, query, &nodes[i]);
        }
    }
    qsort(first->rows, first->count, sizeof *first->rows, first->order);
    json_t *rows = json_array();
    bool sees_all = kv_page_sees_all(gateway, call);
    for (size_t i = query->offset; i < first->count; i++) {
        json_array_append_new(rows, describe(&first->rows[i], sees_all));
    }
    free(first->rows);
    return json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:o,s:o}", "object", "list", "total",
        (json_int_t)listing.total, "offset", (json_int_t)query->offset, "nodes",
        (json_int_t)listing.node_count, "nodes_told", (json_int_t)listing.told_count, "told_ms_ago",
        (json_int_t)((now_ns - listing.oldest_ns) / KV_NS_PER_MS), "tiers", by_tier_of(&listing),
        "data", rows);
}
