/* The HTTP server: libmicrohttpd on a thread of its own, behind *exchanges* (one request and its
 * answer).
 *
 *   HTTP thread: reads a request whole, puts its exchange into the queue, and suspends the
 *   connection; the reactor answers whole (kv_exchange_reply) or piece by piece (begin, write...,
 *   end), which resumes it.
 *
 * Owns: the listener, the thread, connections, bodies.
 * Borrows: the queue.
 * Threads: an exchange taken from the queue belongs to the taker until kv_exchange_release; its
 * calls may come from one thread at a time.
 * Errors: open names the address. write answers KV_BUSY where the client reads too slowly and
 * KV_CANCELLED where it is gone.
 * Limits: body_bytes_max a body (413 beyond it), 64 MiB or 16 bodies of all requests together (503;
 * those of up to 64 KiB are not counted), connections_max, stream_buffer_bytes of answer that waits
 * for its reader, connection_limit_ns without movement, twice that for a request's head, and for
 * its body. */
#ifndef KV_GATEWAY_HTTP_H
#define KV_GATEWAY_HTTP_H

#include "base/queue.h"
#include "base/status.h"
#include "gateway/http/call.h"
#include "gateway/http/tls.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_http kv_http_t;
typedef struct kv_exchange kv_exchange_t;

typedef struct {
    const char *host;
    uint16_t port; /* 0: any */
    size_t body_bytes_max;
    size_t stream_buffer_bytes;
    uint32_t connections_max;
    uint64_t connection_limit_ns;
    kv_queue_t *queue;   /* of kv_exchange_t * */
    const kv_tls_t *tls; /* needed by open alone; one without texts: plain HTTP */
} kv_http_params_t;

kv_status_t kv_http_open(const kv_http_params_t *params, kv_http_t **http_out, kv_error_t *error);

/* Breaks off what was not answered and ends the thread. Every exchange must have been released or
 * still be in the queue (they are released here). */
void kv_http_close(kv_http_t *http);
uint16_t kv_http_port(const kv_http_t *http);

/* Another certificate for connections that come from now on; those that are there go on as they
 * began. KV_BUSY: connections of many earlier certificates are still open. */
kv_status_t kv_http_renew(kv_http_t *http, const kv_tls_t *tls, kv_error_t *error);

/* Ends connections whose request's head takes too long; to be called now and then. */
void kv_http_sweep(kv_http_t *http);

/* What was asked, as long as the exchange is held. */
const kv_call_t *kv_exchange_call(const kv_exchange_t *exchange);

/* The body was larger than the bound and was thrown away. */
bool kv_exchange_too_large(const kv_exchange_t *exchange);

/* The bodies of all requests together were over their bound: this one was thrown away. */
bool kv_exchange_crowded(const kv_exchange_t *exchange);

/* The head says more than once how long the body is: it is to be refused. Its connection ends with
 * the answer. */
bool kv_exchange_ambiguous(const kv_exchange_t *exchange);

/* Nobody waits for the answer any more. */
bool kv_exchange_gone(kv_exchange_t *exchange);

enum { KV_HTTP_HEADERS_MAX = 16 };

typedef struct {
    const char *name;
    char value[160];
} kv_http_header_t;

/* The answer without its body; the content type is a literal. */
typedef struct {
    unsigned code;
    const char *content_type;
    kv_http_header_t headers[KV_HTTP_HEADERS_MAX];
    size_t header_count;
} kv_http_head_t;

/* Answers whole; takes the body (free()). */
void kv_exchange_reply(
    kv_exchange_t *exchange, const kv_http_head_t *head, char *body, size_t bytes);

/* Answers in pieces. A stream that is not ended whole is broken off, so that the client can tell.
 */
void kv_exchange_begin(kv_exchange_t *exchange, const kv_http_head_t *head);
kv_status_t kv_exchange_write(kv_exchange_t *exchange, const char *bytes, size_t count);
void kv_exchange_end(kv_exchange_t *exchange, bool whole);

/* Gives the exchange back; without an answer the connection is closed. */
void kv_exchange_release(kv_exchange_t *exchange);

#endif
