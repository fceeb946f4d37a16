/* A request on the prefill node as its two files see it.
 *
 *   request.c  its life: matching, the machine's actions, computing, streaming, the answer
 *   fetch.c    what it lacks, from another node
 *
 * Owns, Borrows, Threads, Errors: request.h. */
#ifndef KV_PREFILL_REQUEST_INTERNAL_H
#define KV_PREFILL_REQUEST_INTERNAL_H

#include "prefill/request.h"
#include "runtime/message.h"
#include "transport/pd.h"

/* Events that an action causes wait until the actions before them were carried out. */
enum { EVENTS_MAX = 16 };

struct kv_prefill_request {
    kv_core_t *core;
    uint64_t id;
    kv_peer_t *peer; /* NULL once it is gone */
    char *request_id, *client_id;
    uint32_t *tokens;
    uint32_t token_count;
    kv_sampling_t sampling;
    uint32_t top_logprobs;
    kvist_key_t name_space;
    kvist_mode_t mode;
    kv_promises_t promises; /* limits */
    uint64_t deadline_ns;

    kvist_lease_t *lease;
    /* What was found may come layer by layer, while it is computed with and streamed. */
    uint32_t layers_there, layers_streamed;
    kv_status_t layers_status;
    bool layered;    /* compute was given it so */
    bool find_waits; /* a source is asked when all of it is there: */
    kv_pd_prefill_action_t find;

    kv_peer_t *source;                 /* of the fetch that runs; NULL: none, or it is gone */
    uint64_t asked[KV_PD_FETCHES_MAX]; /* kv_peer_id of the sources so far */
    uint32_t asked_count;
    uint32_t asked_blocks;     /* of the last one */
    kvist_key_t *keys;         /* of the prompt's whole blocks; NULL: not needed so far */
    char **fetched_arithmetic; /* [fetched_count]: of the blocks that the source sends; NULL: it did
                                  not say */
    uint32_t fetched_count;
    uint64_t fetches_end_ns, fetch_begun_ns; /* 0: none was begun */

    kv_pd_prefill_t machine;
    kv_pd_prefill_event_t events[EVENTS_MAX];
    uint32_t event_count;
    bool stepping;
    bool preparing; /* the store will call prepared() */
    bool released;  /* the machine's outcome */

    kv_status_t status; /* that it was answered with; cancelled: nobody was there to hear it */
    bool matched;
    kvist_match_t match;
    kvist_miss_t miss;                  /* why no more was had: the match's, or a source's */
    char holder[KV_OUTCOME_NAME_BYTES]; /* who holds more, and how many blocks; "": nobody */
    uint32_t holder_blocks;

    char error[KV_ERROR_TEXT_BYTES];
    uint32_t first_token;
    float first_logprob;
    kv_sampler_tops_t first_tops;
    Kvist__Wire__Usage usage;
    Kvist__Wire__CachedTokens cached;
    uint64_t arrived_ns, compute_started_ns;
};

static inline uint32_t kv_prefill_block_tokens(const kv_prefill_request_t *request)
{
    return request->core->info->shape.block_tokens;
}

/* Blocks that hold the prompt, the last perhaps in part. */
static inline uint32_t kv_prefill_prompt_blocks(const kv_prefill_request_t *request)
{
    return (request->token_count + kv_prefill_block_tokens(request) - 1) /
           kv_prefill_block_tokens(request);
}

/* Hands the machine an event; its actions are carried out before the outermost call returns. */
void kv_prefill_post(kv_prefill_request_t *request, kv_pd_prefill_event_t event);

/* ---- fetch.c ---- */

/* Of the machine's actions, those of a fetch. */
void kv_prefill_do_find_source(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action);
/* false: refused, and nothing that was to follow makes sense any more. */
bool kv_prefill_do_expect(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action);
void kv_prefill_do_send_fetch(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action);
void kv_prefill_do_send_unfetch(
    kv_prefill_request_t *request, const kv_pd_prefill_action_t *action);
/* What a fetch brought becomes objects here too, made by whom the source said. */
void kv_prefill_do_seal(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action);
void kv_prefill_forget_fetched(kv_prefill_request_t *request);

/* The source's messages; what is out of bounds or comes too late is not used. */
void kv_prefill_take_begins(kv_prefill_request_t *request, const Kvist__Wire__Prefilling *begins);
void kv_prefill_take_fetched(kv_prefill_request_t *request, const Kvist__Wire__Fetched *fetched);

#endif
