/* What gateways ask nodes for people to look at (Ask, Told: proto/wire.proto): the answers of the
 * admin socket to what only reads. A node also asks its own peers on a gateway's behalf: gateways
 * have no connection to prefill nodes.
 *
 * Owns: who waits for which peer's answer.
 * Borrows: the admin server, peers while they are up.
 * Threads: the reactor's.
 * Errors: each Ask of a gateway is answered by one Told, whose reply says why where there is no
 * answer; an answer that the gateway's connection has no room for is dropped.
 * Limits: KV_ASKED_MAX questions that peers were asked and have not answered. */
#ifndef KV_HOLDER_ASKED_H
#define KV_HOLDER_ASKED_H

#include "node/admin.h"
#include "transport/peers.h"

#include <stdbool.h>

enum { KV_ASKED_MAX = 64 };

typedef struct {
    kv_peer_t *asker; /* NULL: free */
    kv_peer_t *node;
    uint64_t id, asker_id; /* of the Ask to the node; of the asker's own */
} kv_relay_t;

/* Zero-initialise. */
typedef struct {
    kv_relay_t relays[KV_ASKED_MAX];
    uint64_t last_id;
} kv_asked_t;

/* false: the message is neither Ask nor Told. admin: NULL where the node has none now. */
bool kv_asked_message(kv_asked_t *asked, kv_admin_t *admin, kv_peers_t *peers, kv_peer_t *peer,
    const Kvist__Wire__Envelope *message);

/* Before the handle is gone. */
void kv_asked_peer_down(kv_asked_t *asked, const kv_peer_t *peer);

#endif
