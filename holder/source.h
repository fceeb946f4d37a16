/* Serving a Fetch: this node sends blocks of a context that it holds to the node that asked.
 *
 * The order of things is the machine's (transport/pd.h: kv_pd_source_t); this file carries its
 * actions out and feeds it what happens. A lease makes exact what the asker only thought: the
 * longest stored prefix of just those tokens, brought to device slots, the blocks that were asked
 * for sent from there; of a holder without a device tier, through bounce blocks (courier.h).
 *
 * Owns: the lease.
 * Borrows: the holder, and the peer until peer_down.
 * Threads: the reactor's.
 * Errors: a message that is out of bounds, or one too many, is answered with Fetched and its
 * status, and makes no source.
 * Limits: KV_SOURCES_MAX at once, KV_SOURCES_PEER_MAX of one peer; blocks that are not in device
 * memory for half of its slots, all sources together; 1 s to bring them there, 60 s in all. The
 * blocks before those asked for are brought there too: device memory holds no block without its
 * parents. Bounce blocks have bounds of their own. */
#ifndef KV_HOLDER_SOURCE_H
#define KV_HOLDER_SOURCE_H

#include "holder/holder.h"

enum { KV_SOURCES_MAX = 32, KV_SOURCES_PEER_MAX = 8 };

typedef struct kv_source kv_source_t;

/* id: the node's, for piece tags; never reused. context: of the request that the message is about,
 * where it names no tokens itself; NULL: this node has no such request. NULL: it was refused. */
kv_source_t *kv_source_create(kv_holder_t *holder, uint64_t id, kv_peer_t *peer,
    const Kvist__Wire__Fetch *message, const kv_request_context_t *context,
    const kv_requests_t *sources);

/* Its life from then on (holder/requests.h). */
extern const kv_request_ops_t KV_SOURCE_OPS;

#endif
