/* The same things in another order: keys of JSON objects, tools, lines of a list.
 *
 * Threads: any; pure. Errors: none: what is no JSON is text.
 * Limits: values of at most KV_AUDIT_JSON_BYTES_MAX, lists of at most KV_AUDIT_ITEMS_MAX. */
#ifndef KV_AUDIT_ORDER_H
#define KV_AUDIT_ORDER_H

#include <stdint.h>

enum { KV_AUDIT_JSON_BYTES_MAX = 256 << 10, KV_AUDIT_ITEMS_MAX = 1024 };

typedef enum {
    KV_ORDER_OTHER, /* the difference is not one of order */
    KV_ORDER_KEYS,  /* one JSON value, its keys (or plain lists in it) in another order */
    KV_ORDER_TOOLS, /* the same JSON objects that have a name, in another order */
    KV_ORDER_ITEMS, /* the same lines, or items between commas, in another order */
} kv_order_t;

typedef struct {
    kv_order_t order;
    uint32_t was_end, is_end; /* of what was reordered */
} kv_reordering_t;

/* Two texts that part at `at`; before it, from `from` on, they are equal. */
kv_reordering_t kv_reordering_at(const char *was, uint32_t was_bytes, const char *is,
    uint32_t is_bytes, uint32_t from, uint32_t at);

#endif
