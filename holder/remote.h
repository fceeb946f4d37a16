/* The remote tier of a node: what its store tells the other nodes, and what they told it.
 *
 *   own store --changes--> events log --Batch--> peers that subscribed
 *   peers' Batch --> a reader each --> holdings --> kv_remote_find: whom to ask for blocks
 *
 * Every peer of version 2 that moves KV is subscribed to when it comes up and forgotten when it
 * goes down; whoever subscribes, a gateway too, is told. Batches wait while a peer's connection has
 * much to send already; a peer that falls behind is told everything anew, at a bounded rate.
 *
 * Owns: the log, the map, what it knows of each peer.
 * Borrows: the holder (its store, options, reactor, peers).
 * Threads: the reactor's.
 * Errors: a peer that sends what is malformed is closed, with the field.
 * Limits: store.events_bytes, store.remote_bytes. */
#ifndef KV_HOLDER_REMOTE_H
#define KV_HOLDER_REMOTE_H

#include "holder/holder.h"
#include "node/admin.h"

/* Listens to the holder's store from now on. */
kv_remote_t *kv_remote_create(kv_holder_t *holder);
void kv_remote_destroy(kv_remote_t *remote); /* before the store is closed */

void kv_remote_peer_up(kv_remote_t *remote, kv_peer_t *peer);
void kv_remote_peer_down(kv_remote_t *remote, kv_peer_t *peer);

/* false: the message is not about events. */
bool kv_remote_message(kv_remote_t *remote, kv_peer_t *peer, const Kvist__Wire__Envelope *message);

/* Which peer to fetch blocks from. keys: of a context's next blocks, the first one missing here.
 * The peer that holds the longest part of them from its start, of those the one that has more in
 * faster tiers, of those the one with fewer requests; it is up with its data link, of the same
 * model and layout, not draining, and not the kvist-store that this node's store is attached to.
 * excluded_peers: kv_peer_id, [excluded_count]. false: nobody is known to hold keys[0]. The answer
 * is worth asking for, not true. */
bool kv_remote_find(kv_holder_t *holder, const kvist_key_t *keys, uint32_t key_count,
    const uint64_t *excluded_peers, size_t excluded_count, kv_peer_t **peer_out,
    uint32_t *block_count_out);

/* The peer that is thought to hold most of them, whether or not it could be asked now, but for the
 * kvist-store that this node's store is attached to; *name_out is the peer's, until it goes. false:
 * nobody does. */
bool kv_remote_holder(const kv_holder_t *holder, const kvist_key_t *keys, uint32_t key_count,
    const char **name_out, uint32_t *block_count_out);

/* The admin socket's question for events. context: the holder. */
void kv_remote_admin_events(
    void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call);
#endif
