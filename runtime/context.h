/* What a gateway asks of a context's stored KV between two requests of a session: to spill it, to
 * bring it back, to end what it was promised.
 *
 * Owns: copies of the message's fields, the lease while it is brought back.
 * Borrows: the core, and the peer until peer_down.
 * Threads: the reactor's.
 * Errors: each Context is answered by one ContextDone, whatever happens. */
#ifndef KV_DECODE_CONTEXT_H
#define KV_DECODE_CONTEXT_H

#include "runtime/core.h"

/* It is among the node's requests until it is answered. */
void kv_decode_context_accept(
    kv_core_t *core, kv_peer_t *peer, const Kvist__Wire__Context *message);

#endif
