/* What nodes hold of prompts: by the KV events of Kvist's nodes (and of the kvist-stores that they
 * are attached to), by what was sent there for engines that tell nothing.
 *
 *   peer up --> Subscribe --> Batch --> a reader each --> holdings <-- kv_prefixes_sent
 *   Naming (wire.proto) --> namings --> keys of prompts --> kv_prefixes_run, for each node
 *
 * The map is late, forgets and may be wrong; whoever relies on it asks in vain at worst.
 *
 * Owns: the map, the readers. Borrows: peers, while they are up.
 * Threads: the reactor's.
 * Errors: a peer that sends what is malformed is closed, with the field.
 * Limits: gateway.prefix_bytes; KV_NAMINGS_MAX kinds of nodes; KV_HOLDERS_MAX nodes. */
#ifndef KV_GATEWAY_PREFIXES_H
#define KV_GATEWAY_PREFIXES_H

#include "cluster/holdings.h"
#include "gateway/routing/prompt_keys.h"
#include "transport/peers.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct kv_prefixes kv_prefixes_t;

kv_prefixes_t *kv_prefixes_create(uint64_t map_bytes);
void kv_prefixes_destroy(kv_prefixes_t *prefixes);

/* ---- Kvist's nodes and stores ---- */

void kv_prefixes_peer_up(kv_prefixes_t *prefixes, kv_peer_t *peer);
void kv_prefixes_peer_down(kv_prefixes_t *prefixes, kv_peer_t *peer);

/* false: the message is not about what is held. */
bool kv_prefixes_message(
    kv_prefixes_t *prefixes, kv_peer_t *peer, const Kvist__Wire__Envelope *message);

/* How the peer names blocks; KV_NAMING_NONE: it has not said. */
int kv_prefixes_naming_of(const kv_prefixes_t *prefixes, const kv_peer_t *peer);

/* ---- other engines' nodes; holder: any number that is no peer's id ---- */

/* The number of a naming, new or known; KV_NAMING_NONE: there are too many. */
int kv_prefixes_add_naming(kv_prefixes_t *prefixes, const kv_naming_t *naming);

/* These blocks were sent there: it is thought to hold them. */
void kv_prefixes_sent(
    kv_prefixes_t *prefixes, uint64_t holder, const kv_prompt_keys_t *keys, int naming);
void kv_prefixes_forget(kv_prefixes_t *prefixes, uint64_t holder);

/* ---- asking ---- */

const kv_namings_t *kv_prefixes_namings(const kv_prefixes_t *prefixes);

/* What the node has of the prompt, with the store that it is attached to (its name, or ""). */
kv_holding_t kv_prefixes_run(const kv_prefixes_t *prefixes, uint64_t holder,
    const char *attached_to, const kv_prompt_keys_t *keys, int naming);

/* For metrics. */
size_t kv_prefixes_entry_count(const kv_prefixes_t *prefixes);

#endif
