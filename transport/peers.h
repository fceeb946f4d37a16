/* Peers: the authenticated control connections of a node.
 *
 * A connection is an ordinary TCP socket on the node's reactor loop that carries frames
 * (proto/frame.h) of kvist.wire Envelopes. Both sides prove that they hold the cluster key before
 * anything else is read (handshake.h, docs/formats.md); then both send heartbeats. A peer that says
 * nothing for KV_PEER_SILENCE_MS is lost, even where its socket still looks alive (a stopped
 * process); a reset or an end of stream is noticed at once. An address that this side connects to
 * is tried for ever, until kv_peers_disconnect: a peer that returns is up again within 2 s.
 *
 * Two nodes that open to each other keep one connection, the first that is up; where both come at
 * once, the one that the smaller name opened. The other side's address sleeps meanwhile. A node
 * that is told of its own address leaves it alone, and one that finds a role that it has no use for
 * looks again every 5 s; neither is logged above debug (targets.c).
 *
 * Owns: its sockets, timers and queued frames.
 * Borrows: the loop, which must outlive it.
 * Threads: everything on the loop's thread; callbacks run from the loop, never before a call of
 * this header returns (kv_peer_close included: its down() comes later, from the loop).
 * Errors: KV_INVALID for addresses and parameters, KV_BUSY for a full send queue, KV_IO where the
 * listener cannot be opened. Whoever does not pass the handshake is closed, logged with the reason
 * and counted (kvist_peers_refused_total).
 * Limits: KV_PEERS_MAX connections; of those that were accepted, KV_PEERS_PENDING_MAX may be in
 * their handshake: one more ends the oldest of them;
 * KV_PEER_QUEUE_BYTES_MAX of queued frames a peer. */
#ifndef KV_TRANSPORT_PEERS_H
#define KV_TRANSPORT_PEERS_H

#include "base/status.h"
#include "proto/wire.pb-c.h"
#include "transport/mover.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

enum {
    KV_WIRE_VERSION = 3,     /* the newest that this program speaks */
    KV_WIRE_VERSION_MIN = 1, /* the oldest */
    KV_PEERS_MAX = 256,
    KV_PEERS_PENDING_MAX = 64,
    KV_PEER_QUEUE_BYTES_MAX = 64 << 20,
    KV_PEER_HEARTBEAT_MS = 500,
    KV_PEER_SILENCE_MS = 2500,
    KV_PEER_HANDSHAKE_MS = 2000,
    KV_CLUSTER_KEY_BYTES_MIN = 16,
    KV_DIGEST_BYTES = 32,
};

typedef struct kv_peers kv_peers_t;

/* One authenticated connection: made at up(), gone when down() returns. A peer that comes back is a
 * new kv_peer_t. */
typedef struct kv_peer kv_peer_t;

typedef struct {
    void *context;
    /* The handshake succeeded. */
    void (*up)(void *context, kv_peer_t *peer);
    /* Exactly once for each up(). The handle may be used inside (name, link), and not after;
     * sending into it answers KV_PEER_LOST. reason is a sentence for a person. */
    void (*down)(void *context, kv_peer_t *peer, kv_status_t status, const char *reason);
    /* A message, but for handshake and heartbeats. Valid during the call. */
    void (*message)(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message);
} kv_peers_callbacks_t;

typedef struct {
    uv_loop_t *loop;
    const char *name;         /* of this node, unique in the cluster; 1 to 63 bytes; copied */
    Kvist__Wire__Role role;   /* of this node */
    const char *listen_host;  /* an IPv4 or IPv6 address; NULL: this node only connects */
    uint16_t listen_port;     /* 0: any; see kv_peers_port */
    const void *cluster_key;  /* copied, wiped at the end */
    size_t cluster_key_bytes; /* at least KV_CLUSTER_KEY_BYTES_MIN */
    uint16_t data_port;       /* kv_mover_port(), or 0: this node moves no KV */
    const uint8_t *model;     /* [KV_DIGEST_BYTES], or NULL: any (a gateway) */
    const uint8_t *layout;    /* [KV_DIGEST_BYTES], or NULL: any */
    const char *layout_text;  /* the same in words, printable, at most 127 bytes; copied; or NULL */
    uint32_t useful_roles;    /* bits 1 << role of the nodes that this side opens to; 0: all */
    kv_peers_callbacks_t callbacks;
} kv_peers_params_t;

/* After a failure, too, the loop has to turn once more (kv_peers_destroy). */
kv_status_t kv_peers_create(
    const kv_peers_params_t *params, kv_peers_t **peers_out, kv_error_t *error);

/* Closes everything; no callback runs any more, down() included. The handles end in later turns of
 * the loop: run it until it is empty (uv_run(loop, UV_RUN_DEFAULT)) before closing it. */
void kv_peers_destroy(kv_peers_t *peers);

/* The port that was bound; 0 without a listener. */
uint16_t kv_peers_port(const kv_peers_t *peers);

/* Opens and keeps open a connection to the node at "host:port" or "[host]:port" (numeric addresses,
 * or "localhost"). KV_INVALID names what is wrong with the text. The same address again is counted,
 * and wants as many disconnects. */
kv_status_t kv_peers_connect(kv_peers_t *peers, const char *address, kv_error_t *error);

/* Takes one connect back. A connection that is up stays until it ends, and is not opened again. */
void kv_peers_disconnect(kv_peers_t *peers, const char *address);

/* Calls visit for every peer that is up. */
void kv_peers_visit(
    kv_peers_t *peers, void (*visit)(void *context, kv_peer_t *peer), void *context);

/* The peer of that name that is up, or NULL. */
kv_peer_t *kv_peers_find(kv_peers_t *peers, const char *name);

/* Packs the message and queues its frame. KV_BUSY at the queue's bound, KV_PEER_LOST once the
 * connection ended: nothing was queued. */
kv_status_t kv_peer_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message);

/* Ends the connection; down() follows with this status. One that this side wants is opened again.
 */
void kv_peer_close(kv_peer_t *peer, kv_status_t status, const char *reason);

/* Frames of this peer that wait for its socket: whoever can wait looks here before it sends. */
size_t kv_peer_queued_bytes(const kv_peer_t *peer);

const char *kv_peer_name(const kv_peer_t *peer);
Kvist__Wire__Role kv_peer_role(const kv_peer_t *peer);
const char *kv_peer_address(const kv_peer_t *peer); /* of the control socket's other end */
uint64_t kv_peer_id(const kv_peer_t *peer);         /* never reused in this process */

/* The version that both sides speak: what wire.proto marks [2] or [3] goes to no older one. */
uint32_t kv_peer_version(const kv_peer_t *peer);

/* What the peer's last heartbeat said. draining: it takes nothing new. */
uint32_t kv_peer_queued_requests(const kv_peer_t *peer);
uint32_t kv_peer_running_requests(const kv_peer_t *peer);
bool kv_peer_draining(const kv_peer_t *peer);

/* Name of the kvist-store that has its host and disk tiers; "" for none. */
const char *kv_peer_attached_to(const kv_peer_t *peer);

/* What this node's heartbeats say from now on; draining is told to all peers at once. */
void kv_peers_set_load(kv_peers_t *peers, uint32_t queued_requests, uint32_t running_requests);
void kv_peers_set_draining(kv_peers_t *peers, bool draining);
void kv_peers_set_attached_to(kv_peers_t *peers, const char *name); /* "": none */

/* What kv_mover_link_open needs to move KV to and from this peer; the strings belong to the peer.
 * false: one of the two sides moves no KV. */
bool kv_peer_link_params(const kv_peer_t *peer, kv_link_params_t *params_out);

/* A place for the caller's own pointer. */
void kv_peer_set_context(kv_peer_t *peer, void *context);
void *kv_peer_context(const kv_peer_t *peer);

#endif
