/* HTTP as a client: of Kvist's own endpoint (the command), of etcd (the nodes) and of vLLM servers
 * (the gateway). The seam to libcurl: only http_client.c includes it.
 *
 * Two ways. kv_http_request waits on the caller's thread; kv_http_start runs on a libuv loop, any
 * number of calls at once. No proxy is used, no redirection followed, no other scheme than http and
 * https spoken. A server's certificate is checked.
 *
 * Owns: connections, copies of all parameters.
 * Borrows: the loop, which must outlive the client.
 * Threads: kv_http_request on any, after kv_http_setup; a client on its loop's alone. Callbacks run
 * from the loop, never before kv_http_start returns.
 * Errors: KV_PEER_LOST when the connection fails or breaks or the limit passes; KV_CANCELLED when
 * the sink asked to end; KV_INVALID for an answer above its bound. An HTTP code that is no success
 * is an answer, not an error. */
#ifndef KV_NODE_HTTP_CLIENT_H
#define KV_NODE_HTTP_CLIENT_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- on the caller's thread ---- */

void kv_http_setup(void);

/* Gets the answer's bytes as they arrive, on the caller's thread; false ends the request. */
typedef bool (*kv_http_sink_t)(void *context, const char *bytes, size_t count);

/* Who asks, and whose certificates it trusts. */
typedef struct {
    const char *key;     /* sent as "Authorization: Bearer"; NULL: none. Without line breaks */
    const char *ca_file; /* NULL: the system's */
} kv_http_credentials_t;

/* body: JSON to POST, or NULL for GET. credentials: NULL: none. */
kv_status_t kv_http_request(const char *url, const kv_http_credentials_t *credentials,
    const char *body, uint64_t limit_ms, kv_http_sink_t sink, void *context, long *code_out,
    kv_error_t *error);

/* The same with the whole answer as a terminated text (at most 1 MiB); release with free(). */
kv_status_t kv_http_fetch(const char *url, const kv_http_credentials_t *credentials,
    const char *body, uint64_t limit_ms, char **text_out, long *code_out, kv_error_t *error);

/* ---- on a loop ---- */

typedef struct uv_loop_s uv_loop_t;
typedef struct kv_http_client kv_http_client_t;

/* One call, until its ended() or kv_http_cancel. */
typedef struct kv_http_call kv_http_call_t;

typedef struct {
    const char *url;
    const char *body;        /* JSON to POST; NULL: GET */
    const char *ca_file;     /* certificates that are trusted; NULL: the system's */
    const char *key;         /* as in kv_http_credentials_t */
    uint64_t limit_ms;       /* of the whole call; 0: none */
    uint64_t connect_ms_max; /* until there is a connection; 0: 2 s */
    size_t answer_bytes_max; /* of the answer, or of one line of it */
    void *context;
    /* For an answer without end: each line as it comes, without its end ("\n"). NULL: the answer is
     * gathered for ended; so is always one whose code is no success (2xx). */
    void (*line)(void *context, const char *text, size_t bytes);
    /* Last of all. text: what was gathered, terminated; with another status than KV_OK the reason,
     * and code is 0. */
    void (*ended)(void *context, kv_status_t status, long code, const char *text, size_t bytes);
} kv_http_call_params_t;

kv_status_t kv_http_client_create(
    uv_loop_t *loop, kv_http_client_t **client_out, kv_error_t *error);

/* Ends all calls without a callback; not from one. Its handles end in later turns of the loop. */
void kv_http_client_destroy(kv_http_client_t *client);

kv_status_t kv_http_start(kv_http_client_t *client, const kv_http_call_params_t *params,
    kv_http_call_t **call_out, kv_error_t *error);

/* Without a callback. Also from a callback, of another call or from line() of the same. */
void kv_http_cancel(kv_http_call_t *call);

#endif
