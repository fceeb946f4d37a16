/* A client's request: its exchange, its dialect and its choices (generation.h), from the call to
 * the end of the answer.
 *
 * Owns: the exchange, the neutral request, the choices.
 * Threads: the reactor's, but for the parse job, which has the request to itself. */
#ifndef KV_GATEWAY_REQUEST_H
#define KV_GATEWAY_REQUEST_H

#include "gateway/gateway_internal.h"
#include "gateway/generation.h"

struct kv_request {
    kv_gateway_t *gateway;
    kv_exchange_t *exchange;
    const kv_route_t *route;
    kv_call_t call;
    uint32_t slot;
    char id[KV_REQUEST_ID_BYTES];
    uint64_t created_unix_s, arrived_ns, admitted_ns, first_token_ns;

    kv_pass_t pass;
    kv_api_request_t api;
    bool on_thread;                   /* a parse thread has it */
    bool parsed;                      /* api is valid; otherwise error is */
    bool committing;                  /* or it did commit; */
    bool committed;                   /* otherwise error is why not */
    kv_namings_t namings;             /* as they were when it came; */
    kv_prompt_keys_t *keys;           /* [api.prompt_count], in each of them */
    struct kv_ledger_prompt *audited; /* the first prompt; NULL: it is not looked at */
    kv_api_error_t error;

    kv_generation_t *choices; /* choice k of prompt p at p * api.choice_count + k; NULL: parsing */
    size_t choice_count, done_count;
    kv_partition_t parts; /* of its prompts, once it is complete */
    bool counted;         /* as complete: whether the answer arrives is another matter */
    bool began;           /* a stream's head was sent */
};

/* Its turn has come: its choices begin. May end the request. */
void kv_request_admitted(kv_request_t *request);

/* Ends the request with this error: as an HTTP answer, or inside a stream that has begun. */
void kv_request_fail(kv_request_t *request, const kv_api_error_t *error);

/* A choice has more text, or its first token. false: the request has ended. */
bool kv_request_text(kv_generation_t *choice);

/* A choice is complete: its finish is set, and all of its text was told. */
void kv_request_choice_done(kv_generation_t *choice);

#endif
