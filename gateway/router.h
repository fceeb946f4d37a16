/* The router: which decode node a request goes to. One pure function, so that what it knows can
 * grow without the request's life knowing it.
 *
 * Threads: any. */
#ifndef KV_GATEWAY_ROUTER_H
#define KV_GATEWAY_ROUTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t outstanding; /* requests that this gateway has there */
    uint32_t reported;    /* queued and running, as its last heartbeat said */
    bool unfit;           /* it takes nothing new, or not this request */
    bool tried;           /* it has refused or lost this request */
} kv_router_node_t;

/* The least loaded node that takes requests and was not tried, the first of equals; -1: there is
 * none. A heartbeat is up to half a second old: what was sent meanwhile counts at least. */
int kv_router_choose(const kv_router_node_t *nodes, size_t count);

#endif
