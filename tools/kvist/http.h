/* HTTP, as a client of Kvist's own endpoint. The seam to libcurl: only http.c includes it.
 *
 * Threads: any number of requests at once, each on its caller's thread; call kv_http_setup first.
 * Errors: KV_PEER_LOST when the connection fails or breaks or the limit passes; KV_CANCELLED when
 * the sink asked to end. An HTTP code that is no success is an answer, not an error. */
#ifndef KV_TOOLS_HTTP_H
#define KV_TOOLS_HTTP_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void kv_http_setup(void);

/* Gets the answer's bytes as they arrive, on the caller's thread; false ends the request. */
typedef bool (*kv_http_sink_t)(void *context, const char *bytes, size_t count);

/* body: JSON to POST, or NULL for GET. */
kv_status_t kv_http_request(const char *url, const char *body, uint64_t limit_ms,
    kv_http_sink_t sink, void *context, long *code_out, kv_error_t *error);

/* The same with the whole answer as a terminated text (at most 1 MiB); release with free(). */
kv_status_t kv_http_fetch(const char *url, const char *body, uint64_t limit_ms, char **text_out,
    long *code_out, kv_error_t *error);

#endif
