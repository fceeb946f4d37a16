/* The gateway: HTTP APIs in front of decode nodes or vLLM servers.
 *
 * Owns: the HTTP server, the connections to decode nodes, every request in work, parse threads.
 * Borrows: options, tokenizer and reactor, for its life.
 * Threads: the reactor's.
 * Errors: open names the option that is wrong; a request's failures are answers in its API's shape.
 * Limits: gateway.queue_max requests at once, then 429. */
#ifndef KV_GATEWAY_GATEWAY_H
#define KV_GATEWAY_GATEWAY_H

#include "base/status.h"
#include "engine/tokenizer.h"
#include "node/options.h"
#include "node/reactor.h"

#include <stdint.h>

typedef struct kv_gateway kv_gateway_t;

kv_status_t kv_gateway_open(kv_reactor_t *reactor, const kv_options_t *options,
    const kv_tokenizer_t *tokenizer, kv_gateway_t **gateway_out, kv_error_t *error);

/* Reads the tenants' file and the certificate again. What is wrong is logged, and what was in force
 * stays. */
void kv_gateway_reload(kv_gateway_t *gateway);

/* Refuses what comes with 503 and lets what runs finish; then, or when nothing does,
 * kv_reactor_begin_stop. /healthz says 503 too, so that load balancers send nothing more. */
void kv_gateway_begin_drain(kv_gateway_t *gateway);

/* Refuses what comes, ends what runs with 503, then calls stopped() from the loop. */
void kv_gateway_begin_stop(kv_gateway_t *gateway, void (*stopped)(void *context), void *context);

/* After stopped(). Its handles end in later turns of the loop. */
void kv_gateway_close(kv_gateway_t *gateway);

uint16_t kv_gateway_http_port(const kv_gateway_t *gateway);

#endif
