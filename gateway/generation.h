/* A generation: the life of one choice of a request's answer, at one decode node after the other
 * (drawing at the head of generation.c). request.c has the client's side.
 *
 * Owns: its tokens, its text, its detokenizer.
 * Borrows: the request, the node that has it.
 * Threads: the reactor's. */
#ifndef KV_GATEWAY_GENERATION_H
#define KV_GATEWAY_GENERATION_H

#include "engine/detokenizer.h"
#include "gateway/figures/gap.h"
#include "gateway/gateway_internal.h"
#include "gateway/logprobs.h"
#include "gateway/tool_calls.h"
#include "kvstore/kvist.h"

enum { KV_ATTEMPTS_MAX = 4, KV_REQUEST_ID_BYTES = 64 };

typedef enum {
    GENERATION_HELD, /* waits for the first token of the prompt's first choice */
    GENERATION_SEEKING,
    GENERATION_WAITING,
    GENERATION_RUNNING,
    GENERATION_STOPPING,
    GENERATION_DONE,
} kv_generation_state_t;

struct kv_generation {
    kv_request_t *request;
    uint32_t index;
    const kv_api_prompt_t *prompt;
    uint64_t seed;
    kv_generation_state_t state;
    uint64_t sequence; /* of the attempt in work */
    uint64_t begun_ns, first_token_ns, last_token_ns, stopping_ns;

    kv_decode_node_t *node;
    char node_name[64];                    /* of the last one that had it; "": none */
    uint64_t bring_tokens, waiting_tokens; /* at the node (route.h): at first, and still */
    uint32_t taken_tokens;                 /* that it had to take in */
    int naming;                            /* of the blocks there, KV_NAMING_NONE: not known */
    kv_seen_t seen; /* of the prompt, when it was first sent; of its first choice */
    bool warm;
    uint64_t tried[KV_ATTEMPTS_MAX]; /* ids of nodes, in this round */
    unsigned tried_count, sent_count;
    unsigned failed_count;     /* attempts that ended with a lost or failing node */
    bool displaced;            /* a node had taken it, or another choice, and did not finish it */
    bool continued;            /* sent again with a part of its answer */
    uint64_t seek_deadline_ns; /* 0: a node was up when it last looked */
    kv_api_error_t error;      /* of the last attempt */

    uint32_t *tokens; /* the prompt, then what was generated; only once something was */
    uint32_t token_count, token_capacity; /* generated */
    kv_detokenizer_t *detokenizer;
    char *text; /* of a stream: what was not told yet; otherwise all */
    size_t text_bytes, text_capacity;
    bool told;               /* a stream: an event of it was sent */
    kv_tool_parser_t *tools; /* NULL: the request has none */
    size_t told_calls;       /* a stream: so many were sent */
    kv_logprobs_t *logprobs; /* NULL: not asked for */
    size_t told_logprobs;
    uint32_t told_tokens; /* where the request returns them */
    uint32_t scratch[KV_DIALECT_SCRATCH];

    uint64_t promise_node;     /* kv_peer_id: whom the promises were asked of (keeping.h) */
    kvist_key_t *promise_keys; /* [promise_key_count] of the prompt; NULL: nothing was asked for */
    size_t promise_key_count;
    bool promises_noted;

    Kvist__Wire__Usage *first_usage; /* the first attempt's, as it was with its first token */
    Kvist__Wire__Usage *usage;       /* once it is done: what it cost */
    kv_finish_t finish;
};

/* ---- generation.c ---- */

/* false: the request has ended. */
bool kv_generation_open(
    kv_generation_t *choice, kv_request_t *request, uint32_t index, kv_api_error_t *error);
void kv_generation_clear(kv_generation_t *choice);

/* A held one begins. May end the request. */
void kv_generation_begin(kv_generation_t *choice);

/* What a node said about it. May end the request. */
void kv_generation_take_tokens(kv_generation_t *choice, const Kvist__Wire__Tokens *tokens);
void kv_generation_take_finished(kv_generation_t *choice, const Kvist__Wire__Finished *finished);
void kv_generation_node_lost(kv_generation_t *choice);

/* Time per token after the first, the mean so far; 0 of fewer than two. */
uint64_t kv_generation_tpot_ns(const kv_generation_t *choice);

/* Calls of tools in it so far. */
size_t kv_generation_call_count(const kv_generation_t *choice);

/* At each tick. May end the request. */
void kv_generation_check(kv_generation_t *choice, uint64_t now_ns);

/* ---- attempt.c: which node has it, and how it gets there ---- */

/* Sends it, with what was generated so far, to the best node. Without one it waits or the request
 * ends: what no node has taken yet is refused where every node is busy. */
void kv_generation_route(kv_generation_t *choice);

/* At each tick: one that has no node looks again; one at a node that drains goes on elsewhere,
 * where another node is up. */
void kv_generation_seek(kv_generation_t *choice);

void kv_generation_cancel_at_node(kv_generation_t *choice, bool wants_usage);

/* The choice that a message is about, if it is still of this attempt. */
kv_generation_t *kv_generation_find(
    const kv_gateway_t *gateway, const kv_node_t *node, const char *wire_id);

#endif
