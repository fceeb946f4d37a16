/* The living requests of a node, and how what happens finds the one that it is for.
 *
 * A role (prefill, decode) makes requests and gives their functions; the node hands every message,
 * event and tick to the request that says it is its own, and destroys those that are done.
 *
 * Owns: the requests, once added.
 * Threads: the reactor's.
 * Limits: KV_REQUESTS_MAX living requests. */
#ifndef KV_HOLDER_REQUESTS_H
#define KV_HOLDER_REQUESTS_H

#include "kvstore/kvist.h"
#include "proto/wire.pb-c.h"
#include "transport/mover.h"
#include "transport/peers.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_REQUESTS_MAX = 1024 };

struct kv_compute_event; /* runtime/compute.h: of nodes that compute */

/* What a request is about. */
typedef struct {
    kvist_key_t name_space;
    const uint32_t *tokens; /* [token_count]: the prompt's; the request's own */
    uint32_t token_count;
} kv_request_context_t;

/* message, moved and computed say whether it was for this request. NULL: of what never concerns it;
 * never so is_from, peer_down, stop, is_done and destroy. */
typedef struct {
    bool (*is_from)(const void *request, const kv_peer_t *peer); /* who asked for it */
    bool (*message)(void *request, kv_peer_t *peer, const Kvist__Wire__Envelope *message);
    bool (*moved)(void *request, const kv_mover_event_t *event); /* but for LINK_UP and LINK_DOWN */
    bool (*computed)(void *request, const struct kv_compute_event *event);
    /* Whether it is the request of that id and this peer works on it. */
    bool (*context)(const void *request, const kv_peer_t *peer, const char *request_id,
        kv_request_context_t *context_out);
    void (*peer_down)(void *request, kv_peer_t *peer); /* the handle is gone afterwards */
    void (*tick)(void *request, uint64_t now_ns);      /* deadlines */
    void (*stop)(void *request);                       /* the node stops: end soon */
    bool (*is_running)(const void *request);           /* false: it waits for something */
    bool (*is_done)(const void *request);              /* nothing of it is left anywhere */
    void (*destroy)(void *request);
} kv_request_ops_t;

/* Zero-initialise but for ops. */
typedef struct {
    const kv_request_ops_t *ops;
    void *items[KV_REQUESTS_MAX];
    const kv_request_ops_t *item_ops[KV_REQUESTS_MAX];
    uint32_t count;
} kv_requests_t;

/* The list has room: the role asked kv_requests_t.count before. add_as: one of another kind. */
void kv_requests_add(kv_requests_t *requests, void *request);
void kv_requests_add_as(kv_requests_t *requests, const kv_request_ops_t *ops, void *request);
void kv_requests_message(
    kv_requests_t *requests, kv_peer_t *peer, const Kvist__Wire__Envelope *message);
/* false: it was for none of them. */
bool kv_requests_moved(kv_requests_t *requests, const kv_mover_event_t *event);
bool kv_requests_context(const kv_requests_t *requests, const kv_peer_t *peer,
    const char *request_id, kv_request_context_t *context_out);
void kv_requests_computed(kv_requests_t *requests, const struct kv_compute_event *event);
void kv_requests_peer_down(kv_requests_t *requests, kv_peer_t *peer);
void kv_requests_tick(kv_requests_t *requests, uint64_t now_ns);
void kv_requests_stop(kv_requests_t *requests);
uint32_t kv_requests_from(const kv_requests_t *requests, const kv_peer_t *peer);
uint32_t kv_requests_running(const kv_requests_t *requests);

#endif
