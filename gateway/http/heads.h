/* Connections whose next request's head (and, before it, TLS's handshake) is waited for, so that
 * none of them holds a place for long with a byte now and then. libmicrohttpd ends only those that
 * send nothing at all.
 *
 * Owns: what it knows of each connection.
 * Borrows: sockets, from open to close.
 * Threads: any; a mutex guards all of it, and nothing blocks under it.
 * Errors: none.
 * Limits: limit_ns from a connection's beginning, or from the end of its last request, to a whole
 * head. */
#ifndef KV_GATEWAY_HEADS_H
#define KV_GATEWAY_HEADS_H

#include <stddef.h>
#include <stdint.h>

typedef struct kv_heads kv_heads_t;
typedef struct kv_head_wait kv_head_wait_t; /* a connection */

kv_heads_t *kv_heads_create(uint64_t limit_ns);
void kv_heads_destroy(kv_heads_t *heads); /* every connection has been closed */

/* A connection begins: its first head is waited for. It must be closed before its socket is. */
kv_head_wait_t *kv_heads_open(kv_heads_t *heads, int socket, uint64_t now_ns);
void kv_heads_close(kv_heads_t *heads, kv_head_wait_t *connection);

/* A whole head is there; its request is over, and the next head is waited for. */
void kv_heads_arrived(kv_heads_t *heads, kv_head_wait_t *connection);
void kv_heads_await(kv_heads_t *heads, kv_head_wait_t *connection, uint64_t now_ns);

/* Shuts the sockets of those down that have waited for longer than the limit; how many. */
size_t kv_heads_sweep(kv_heads_t *heads, uint64_t now_ns);

#endif
