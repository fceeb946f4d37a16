/* The admin socket: a Unix socket on which a node answers `kvist` (proto/admin.proto).
 *
 * Owns: the socket and its file (mode 0600), the connections.
 * Borrows: the reactor, the handlers.
 * Threads: the reactor's.
 * Errors: open is KV_BUSY, with pid and path, where a living process has the socket; one that a
 * dead process left is replaced. KV_REFUSED for a folder of another user, or one in which everybody
 * may write. A broken frame or an unknown request is answered and closes the
 * connection.
 * Limits: KV_ADMIN_CONNECTIONS_MAX connections, one request at a time on each. */
#ifndef KV_NODE_ADMIN_H
#define KV_NODE_ADMIN_H

#include "base/status.h"
#include "node/reactor.h"
#include "proto/admin.pb-c.h"

#include <stdint.h>

enum { KV_ADMIN_CONNECTIONS_MAX = 32 };

typedef struct kv_admin kv_admin_t;

/* A request that waits for its answer. It is the handler's until kv_admin_reply or kv_admin_fail,
 * each exactly once, at once or later, even if the client has gone meanwhile. */
typedef struct kv_admin_call kv_admin_call_t;

typedef void (*kv_admin_handler_t)(
    void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call);

/* The request is of the kind that the handler is named for; it is the caller's. A NULL handler is
 * answered with "not served by this node". Metrics, stop (kv_reactor_begin_stop) and drain
 * (kv_reactor_begin_drain) are answered by the server itself. */
typedef struct {
    kv_admin_handler_t status, list, flush, show, drop, pin, verify, quota, events, why, explain;
} kv_admin_handlers_t;

kv_status_t kv_admin_open(kv_reactor_t *reactor, const char *path,
    const kv_admin_handlers_t *handlers, void *context, kv_admin_t **admin_out, kv_error_t *error);

/* The same request from elsewhere than the socket: told is called once, now or later, with the
 * reply, which is valid during the call. */
void kv_admin_answer(kv_admin_t *admin, const Kvist__Admin__Request *request,
    void (*told)(void *context, const Kvist__Admin__Reply *reply), void *context);

/* Removes the socket. Calls without an answer may still be answered later; nobody hears it. */
void kv_admin_close(kv_admin_t *admin);

/* The reply is packed before the call returns; the caller keeps its message. */
void kv_admin_reply(kv_admin_call_t *call, const Kvist__Admin__Reply *reply);
void kv_admin_reply_status(kv_admin_call_t *call, Kvist__Admin__Status *status);
void kv_admin_reply_list(kv_admin_call_t *call, Kvist__Admin__List *list);
void kv_admin_reply_done(kv_admin_call_t *call);
void kv_admin_fail(kv_admin_call_t *call, kv_status_t status, const char *text);

#endif
