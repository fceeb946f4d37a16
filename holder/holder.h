/* A holder: a node that holds KV among its peers, whatever else it does. What an engine node
 * (runtime/core.h) and a node without an engine have in common.
 *
 *   reactor, admin socket                               from kv_holder_begin, kv_holder_serve on
 *   store -> remote tier -> mover -> peers, discovery   from kv_holder_join on
 *
 * It opens a data link beside each peer that moves KV, tells and hears KV events, serves Fetch,
 * answers the admin socket, drains, and stops in order. Its owner gives what it does beside that:
 * requests of its own role, which take part in messages, moved pieces, ticks and the stop.
 *
 * Owns: reactor, mover, peers, discovery, remote tier, admin socket, fetches that it serves.
 * Borrows: options, the store, the arena and the device of what it joins with, until
 * kv_holder_leave; the owner's requests.
 * Threads: the reactor's; callbacks run there.
 * Errors: opening names what failed; afterwards kv_holder_run returns at an orderly stop. */
#ifndef KV_HOLDER_HOLDER_H
#define KV_HOLDER_HOLDER_H

#include "base/status.h"
#include "holder/outcomes.h"
#include "holder/requests.h"
#include "kvstore/kvist.h"
#include "node/admin.h"
#include "node/options.h"
#include "node/reactor.h"
#include "transport/mover.h"
#include "transport/peers.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct kv_bounce kv_bounce_t;             /* holder/bounce.h */
typedef struct kv_remote kv_remote_t;             /* holder/remote.h */
typedef struct kv_holder_state kv_holder_state_t; /* holder.c */

enum { KV_HOLDER_TICK_MS = 20 };

/* The last one that was asked for on the admin socket. */
typedef struct {
    const kvist_store_t *store;
    bool running;
    kv_status_t status; /* when it ended */
    kvist_verify_t state;
    uint64_t begun_ns, ended_ns; /* monotonic; begun 0: there was none */
} kv_verification_t;

/* What it does beside holding. Every function may be NULL. */
typedef struct {
    void *context;
    /* A message that is neither about events nor about a fetch. Returns what it became, which joins
     * the requests; NULL: nothing, and the requests are asked whose it is. id: for piece tags and
     * compute sequences; never reused. */
    void *(*accept)(
        void *context, uint64_t id, kv_peer_t *peer, const Kvist__Wire__Envelope *message);
    /* A peer has come up. */
    void (*greet)(void *context, kv_peer_t *peer);
    /* Adds to what is said already; what it points to is read until describe is called again. */
    void (*describe)(void *context, Kvist__Admin__Status *status);
    /* Of several stores the one of that name; NULL: there is none of it, or it is not open. */
    kvist_store_t *(*store_named)(void *context, const char *name);
    /* The namespace of a tenant's salt. */
    kvist_key_t (*name_space)(const void *context, const void *salt, size_t salt_bytes);
} kv_holder_owner_t;

/* How its store is shared: in which slots blocks are moved, and who may speak to it about that. */
typedef struct {
    bool polls; /* the holder polls the store */
    /* slot_count blocks that the mover reads and writes: the store's device tier; or bounce blocks,
     * out of which what it holds is sent, and the first three are 0. */
    kv_device_t *device;
    void *arena;
    uint32_t slot_count;
    kv_bounce_t *bounce;
    size_t block_bytes, unit_bytes; /* of a block; of its smallest part that is moved alone */
    size_t layer_bytes;             /* of one layer of a block in the device tier */
    uint32_t block_tokens;
    uint32_t context_tokens_max; /* of a context that is asked for */
    uint32_t vocabulary_count;   /* token ids are below it; 0: any are good */
    const uint8_t *model;        /* [KV_DIGEST_BYTES] or NULL: any */
    const uint8_t *layout;       /* [KV_DIGEST_BYTES] */
    const char *layout_text;
} kv_holding_params_t;

typedef struct {
    const kv_options_t *options;
    kv_reactor_t *reactor;
    Kvist__Wire__Role role;
    const kv_string_list_t *connect; /* the role's own list of peers, or NULL */
    kv_holder_owner_t owner;
    kv_requests_t requests; /* the living ones of the role; ops is its owner's to set */
    kvist_store_t *store;   /* its owner's to set; NULL: there is none yet */
    /* From kv_holder_join to kv_holder_leave; NULL and 0 else. */
    kv_bounce_t *bounce; /* NULL: blocks are sent out of the store's device tier */
    uint32_t slot_count, block_tokens, context_tokens_max, vocabulary_count;
    size_t block_bytes, layer_bytes;
    kv_mover_t *mover;
    kv_peers_t *peers;
    kv_remote_t *remote;
    bool draining; /* no new requests */
    bool stopping; /* none at all */
    kv_verification_t verification;
    kv_outcomes_t outcomes; /* of requests that have ended */
    kv_holder_state_t *state;
} kv_holder_t;

/* The reactor. options, role, connect, owner and requests.ops are set before; kv_holder_end also
 * after a failure. */
kv_status_t kv_holder_begin(kv_holder_t *holder, kv_error_t *error);
void kv_holder_end(kv_holder_t *holder);

/* Shares the store: hears its peers, and lets them hear it. kv_holder_leave, before the store is
 * closed and also after a failure, ends that and the admin socket; it may be called where nothing
 * was joined. */
kv_status_t kv_holder_join(
    kv_holder_t *holder, const kv_holding_params_t *params, kv_error_t *error);
void kv_holder_leave(kv_holder_t *holder);

/* The admin socket; before joining or after. */
kv_status_t kv_holder_serve(kv_holder_t *holder, kv_error_t *error);

/* Until the orderly stop. */
void kv_holder_run(kv_holder_t *holder);

/* A store's tiers as the admin socket shows them: KVIST_TIER_REMOTE of them. */
void kv_holder_fill_tiers(
    const kvist_stats_t *stats, Kvist__Admin__Tier *tiers_out, Kvist__Admin__Tier **pointers_out);

/* There is something to look after: ticks until all requests and fetches have ended. */
void kv_holder_keep_ticking(kv_holder_t *holder);

/* ---- for requests ---- */

/* For piece tags and compute sequences; never reused. */
uint64_t kv_holder_new_id(kv_holder_t *holder);

/* The data link beside the peer's control connection. */
kv_link_t kv_holder_link(const kv_peer_t *peer);

bool kv_holder_link_up(const kv_peer_t *peer);

/* Sends; a peer that cannot take it (its queue is full) is closed: its messages are never lost one
 * by one. */
void kv_holder_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message);

/* As kv_holder_send, for a piece of a transfer. False: the connection is being closed; no SENT will
 * follow. */
bool kv_holder_send_piece(kv_holder_t *holder, kv_peer_t *peer, const kv_piece_t *piece);

#endif
