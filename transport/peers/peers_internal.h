/* What the two files of peers share: peers.c (connections: bytes, handshake, heartbeats) and
 * targets.c (which connections this side opens, and which of two between the same nodes stays). */
#ifndef KV_TRANSPORT_PEERS_INTERNAL_H
#define KV_TRANSPORT_PEERS_INTERNAL_H

#include "base/address.h"
#include "proto/frame.h"
#include "transport/peers.h"
#include "transport/peers/handshake.h"

enum {
    KV_PEER_READ_BYTES = 256 << 10,
    KV_PEER_REASON_BYTES = 320,
    KV_PEER_CONNECT_MS = 1000, /* with the longest pause below: within 2 s of a peer's return */
    KV_TARGET_PAUSE_MS_MIN = 100,
    KV_TARGET_PAUSE_MS_MAX = 500,
    KV_TARGET_LOOK_MS = 30000,
    KV_TARGET_USELESS_MS = 5000, /* this node itself, or a role that it has no use for */
};

typedef enum {
    PEER_CONNECTING,
    PEER_HANDSHAKE,
    PEER_HELD, /* accepted, proved, and unanswered while this side's own attempt may succeed */
    PEER_UP,
    PEER_CLOSING,
} kv_peer_state_t;

/* An address that this side opens: at most one connection at a time, the next after a pause. While
 * the node that was found there is up, by whichever connection, it sleeps. */
typedef struct kv_target kv_target_t;
struct kv_target {
    kv_target_t *next;
    struct sockaddr_storage address;
    char text[KV_ADDRESS_TEXT_BYTES];
    char name[KV_PEER_NAME_BYTES]; /* of the node that was there; empty: not known */
    uint32_t wanted; /* connects less disconnects; at 0 it goes, with its connection */
    kv_peer_t *connection;
    uint64_t retry_at_ns, look_at_ns; /* look: while it sleeps */
    uint32_t pause_ms;
    bool useless;                           /* what was there last time */
    char last_reason[KV_PEER_REASON_BYTES]; /* logged already; the same again is not news */
};

typedef struct kv_outgoing kv_outgoing_t;

struct kv_peer {
    kv_peer_t *next;
    kv_peers_t *peers;
    kv_target_t *target; /* NULL: accepted */
    uv_tcp_t socket;
    uv_connect_t connect;
    kv_peer_state_t state;
    kv_handshake_t *handshake; /* until up */
    kv_peer_facts_t facts;
    char host[KV_ADDRESS_TEXT_BYTES], address[KV_ADDRESS_TEXT_BYTES];
    kv_frame_reader_t reader;
    uint64_t id, deadline_ns, up_ns, heard_ns, heartbeat_at_ns;
    uint64_t sequence, peer_sequence;
    uint32_t queued_requests, running_requests;
    bool draining;
    char attached_to[KV_PEER_NAME_BYTES];
    size_t queued_bytes;
    bool corked; /* frames wait in line: the Proof goes first */
    kv_outgoing_t *line, **line_tail;
    uint8_t *held_proof; /* our answer, while HELD */
    size_t held_proof_bytes;
    bool owes_down;
    bool quiet; /* its end is no news: the two nodes have, or need, no such connection */
    kv_status_t end_status;
    char end_reason[KV_PEER_REASON_BYTES];
    void *context;
};

struct kv_peers {
    kv_peers_params_t params;
    kv_identity_t identity;
    char name[KV_PEER_NAME_BYTES];
    uint8_t *key;
    uint8_t model[KV_DIGEST_BYTES], layout[KV_DIGEST_BYTES];
    char layout_text[KV_LAYOUT_TEXT_BYTES];
    uv_tcp_t listener;
    uv_timer_t timer;
    uint32_t handles; /* open libuv handles: the last one to close frees this */
    bool destroyed;
    bool refusal_logged; /* in this tick */
    uint16_t port;
    kv_peer_t *peers;
    kv_target_t *targets;
    uint32_t count;
    uint32_t stranger_count; /* accepted, and not proved themselves */
    uint64_t next_id, last_tick_ns;
    uint32_t queued_requests, running_requests;
    bool draining;
    char attached_to[KV_PEER_NAME_BYTES];
    uint8_t read_buffer[KV_PEER_READ_BYTES]; /* one read at a time, consumed before the next */
};

/* ---- peers.c ---- */

/* Opens the target's next connection. */
void kv_peer_open(kv_peers_t *peers, kv_target_t *target);

/* Ends a connection that is not up, without a word to anybody above debug. */
void kv_peer_end_quietly(kv_peer_t *peer, const char *reason);

/* ---- targets.c ---- */

void kv_targets_clear(kv_peers_t *peers);
void kv_targets_tick(kv_peers_t *peers, uint64_t now_ns);

/* A connection of the target ends. quiet: none is wanted there now. */
void kv_target_ended(kv_target_t *target, bool quiet);

/* This Hello is one that this process sent: both ends of the connection were closed. */
bool kv_targets_met_self(kv_peer_t *peer, const uint8_t *hello, size_t hello_bytes);

/* An opener has the other side's Hello: false where it goes no further, and was closed. */
bool kv_targets_want(kv_peer_t *peer);

/* Whether a proved, accepted connection is to be held: this side's own may still win. */
bool kv_targets_must_wait(const kv_peer_t *peer);

/* It is up: others to the same node end. */
void kv_targets_came_up(kv_peer_t *peer);

/* A proved connection of a name that is up: whether it was sent before the other side knew that,
 * and is not of a second node of that name. */
bool kv_targets_crossed(const kv_peer_t *peer, const kv_peer_t *older);

/* Whether it is no news that the other side ended a connection that is not up. */
bool kv_targets_expect_end(const kv_peer_t *peer);

#endif
