/* One prompt on the prefill node: match, fetch what only the decode node has, compute the rest,
 * stream, answer.
 *
 * The order of things is the machine's (transport/pd.h); this file carries its actions out and
 * feeds it what happens.
 *
 * Owns: copies of the message's fields, the lease, the running computation.
 * Borrows: the core, and the peer until peer_down.
 * Threads: the reactor's.
 * Errors: a message that is out of bounds is answered with Prefilled and its status, and makes no
 * request. */
#ifndef KV_PREFILL_REQUEST_H
#define KV_PREFILL_REQUEST_H

#include "runtime/promises.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct kv_prefill_request kv_prefill_request_t;

static inline kv_kept_fields_t kv_prefill_kept_fields(const Kvist__Wire__Prefill *message)
{
    return (kv_kept_fields_t){message->priority, message->tenant,
        message->expected_next_use_unix_ms, message->n_promises, message->promises};
}

/* id: the node's, for compute sequences and piece tags; never reused. */
kv_prefill_request_t *kv_prefill_request_create(
    kv_core_t *core, uint64_t id, kv_peer_t *peer, const Kvist__Wire__Prefill *message);

/* Its life from then on (holder/requests.h). */
extern const kv_request_ops_t KV_PREFILL_REQUEST_OPS;

/* Answers a message that makes no request. */
void kv_prefill_refuse(
    kv_peer_t *peer, const Kvist__Wire__Prefill *message, kv_status_t status, const char *text);

#endif
