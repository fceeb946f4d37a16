/* One request on the decode node: reserve, let a prefill node compute the prompt (or do it here),
 * generate, answer.
 *
 *   reserving, streaming       --> generating          --> finished
 *   (the machine of transport/pd.h)  (runtime/compute.h)
 *
 * Owns: copies of the message's fields, the lease, the running computation.
 * Borrows: the core, and both peers until peer_down.
 * Threads: the reactor's.
 * Errors: whatever goes wrong ends in exactly one Finished that says so; a lost prefill node is
 * made good by another one, or by computing here, from the blocks on that had landed whole. */
#ifndef KV_DECODE_REQUEST_H
#define KV_DECODE_REQUEST_H

#include "runtime/promises.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct kv_decode_request kv_decode_request_t;

static inline kv_kept_fields_t kv_decode_kept_fields(const Kvist__Wire__Generate *message)
{
    return (kv_kept_fields_t){message->priority, message->tenant,
        message->expected_next_use_unix_ms, message->n_promises, message->promises};
}

/* id: the node's, for compute sequences and piece tags; never reused. gateway: who asked. */
kv_decode_request_t *kv_decode_request_create(
    kv_core_t *core, uint64_t id, kv_peer_t *gateway, const Kvist__Wire__Generate *message);

/* Its life from then on (holder/requests.h). */
extern const kv_request_ops_t KV_DECODE_REQUEST_OPS;

/* Whether the request was sent to that prefill node, whose answer has not come. */
bool kv_decode_request_waits_for(const void *request, const kv_peer_t *prefill);

/* Answers a message that makes no request. */
void kv_decode_refuse(
    kv_peer_t *gateway, const Kvist__Wire__Generate *message, kv_status_t status, const char *text);

#endif
