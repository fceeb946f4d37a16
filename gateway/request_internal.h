/* What the two halves of a request's life share: request.c (states, text, messages, time) and
 * attempt.c (which node has it, and how it gets there). */
#ifndef KV_GATEWAY_REQUEST_INTERNAL_H
#define KV_GATEWAY_REQUEST_INTERNAL_H

#include "engine/detokenizer.h"
#include "gateway/gateway_internal.h"

enum { KV_REQUEST_ATTEMPTS_MAX = 4, KV_REQUEST_ID_BYTES = 64 };

typedef enum {
    REQUEST_PARSING,
    REQUEST_SEEKING,
    REQUEST_WAITING,
    REQUEST_RUNNING,
    REQUEST_STOPPING,
} request_state_t;

struct kv_request {
    kv_gateway_t *gateway;
    kv_exchange_t *exchange;
    request_state_t state;
    uint32_t slot;
    uint64_t sequence; /* of the attempt in work */
    char id[KV_REQUEST_ID_BYTES];
    const char *route;
    uint64_t created_unix_s, arrived_ns, first_token_ns, last_token_ns, stopping_ns;

    kv_api_kind_t kind;
    kv_api_request_t api;
    bool parsed;          /* api is valid; otherwise error is */
    kv_api_error_t error; /* of the last attempt */

    kv_decode_node_t *node;
    uint64_t tried[KV_REQUEST_ATTEMPTS_MAX]; /* ids of peers, in this round */
    unsigned tried_count, sent_count;
    unsigned failed_count;     /* attempts that ended with a lost or failing node */
    bool displaced;            /* a node had taken it, and did not finish it */
    bool continued;            /* sent again with a part of its answer */
    uint64_t seek_deadline_ns; /* 0: a node was up when it last looked */
    kv_detokenizer_t *detokenizer;
    uint32_t token_count;      /* generated; they follow the prompt in api.tokens */
    uint32_t token_capacity;   /* generated ones for which that has room */
    Kvist__Wire__Usage *usage; /* the first attempt's, as it was with its first token; or NULL */
    bool began;                /* a stream's head and first event were sent */
    char *text;                /* of an answer that is sent whole */
    size_t text_bytes, text_capacity;
};

/* ---- request.c ---- */

/* Ends the request with this error: as an HTTP answer, or inside a stream that has begun. */
void kv_request_fail(kv_request_t *request, const kv_api_error_t *error);

/* ---- attempt.c ---- */

/* Sends the request, with what was generated so far, to the best node. Without one it waits or
 * ends: a request that no node has taken yet is refused where every node is busy. */
void kv_request_route(kv_request_t *request);

/* At each tick: one that has no node looks again; one at a node that drains goes on elsewhere,
 * where another node is up. */
void kv_request_seek(kv_request_t *request);

/* The node has it no longer. */
void kv_request_leave_node(kv_request_t *request);
void kv_request_cancel_at_node(kv_request_t *request);

/* The request that a message is about, if it is still of this attempt. */
kv_request_t *kv_request_find(
    const kv_gateway_t *gateway, const kv_peer_t *peer, const char *wire_id);

/* Keeps a token that came. */
void kv_request_keep_token(kv_request_t *request, uint32_t token);

#endif
