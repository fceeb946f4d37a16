/* What a gateway asks of a context's stored KV between two requests: to spill it, to bring it back,
 * to end what it was promised, or to promise it more. A prefill node is asked by decode nodes,
 * which pass on what holds for its copies too.
 *
 * Owns: copies of the message's fields, the lease while it is brought back.
 * Borrows: the core, and the peer until peer_down.
 * Threads: the reactor's.
 * Errors: each Context is answered by one ContextDone, whatever happens. */
#ifndef KV_RUNTIME_CONTEXT_H
#define KV_RUNTIME_CONTEXT_H

#include "runtime/core.h"

/* It is among the node's requests until it is answered. */
void kv_context_accept(kv_core_t *core, kv_peer_t *peer, const Kvist__Wire__Context *message);

#endif
