/* A request on the decode node as its three files see it.
 *
 *   request.c     its life: reserving, the machine's actions, generating
 *   prefilling.c  the prompt's KV as a prefill node makes it: who is asked, for what, what it says
 *   answer.c      what the gateway is told, and what is noted of it at its end
 *
 * Owns, Borrows, Threads, Errors: request.h. */
#ifndef KV_DECODE_REQUEST_INTERNAL_H
#define KV_DECODE_REQUEST_INTERNAL_H

#include "decode/request.h"
#include "runtime/message.h"
#include "transport/pd.h"

/* Events that an action causes wait until the actions before them were carried out. */
enum { EVENTS_MAX = 16 };

struct kv_decode_request {
    kv_core_t *core;
    uint64_t id;
    kv_peer_t *gateway, *prefill;       /* NULL once gone; prefill: the one chosen last */
    uint64_t tried[KV_PD_ATTEMPTS_MAX]; /* kv_peer_id of the prefill nodes that were chosen */
    uint32_t tried_count;
    char *request_id, *client_id;
    uint32_t *tokens; /* prompt, then what was generated, perhaps elsewhere; room for max_tokens */
    uint32_t prompt_count, token_count, max_tokens; /* max_tokens: to generate here */
    bool ignore_end;
    kv_sampling_t sampling;
    uint32_t top_logprobs;
    uint8_t *salt;
    size_t salt_bytes;
    kvist_key_t name_space;
    kvist_mode_t mode;
    kv_promises_t promises;
    /* Of this attempt: when it ends at the latest, and when without a sign of progress. */
    uint64_t deadline_ns, progress_deadline_ns;
    uint64_t landing_deadline_ns; /* of what the peer has sent, all of it */
    uint32_t ahead;               /* requests that the prefill node had already */

    kvist_lease_t *lease;
    char **streamed_arithmetic; /* of the whole blocks that this attempt streams; NULL: not known */
    uint32_t streamed_count;
    uint32_t found_count;               /* of those: the leading ones that the prefill node found */
    uint32_t kept_found, kept_computed; /* blocks kept of attempts that failed */
    uint32_t first_token; /* drawn by the prefill node; held back until all of its KV has landed */
    float first_logprob;
    kv_sampler_tops_t first_tops;

    kv_pd_decode_t machine;
    kv_pd_decode_event_t events[EVENTS_MAX];
    uint32_t event_count;
    bool stepping;
    bool preparing;                   /* the store will call prepared() */
    bool computing;                   /* submitted to compute, not ended */
    bool finished;                    /* over; Finished was sent, or nobody wants it, or: */
    bool ending;                      /* it is sent when what was promised is known */
    Kvist__Wire__FinishReason reason; /* ending: to be said */
    kv_status_t status;

    const char *cancel_reason; /* of a cancel that is an error */
    char error[KV_ERROR_TEXT_BYTES];
    Kvist__Wire__Usage usage;
    Kvist__Wire__CachedTokens cached;
    char miss[KV_OUTCOME_SAID_BYTES], prefilled_by[KV_OUTCOME_NAME_BYTES];
    bool matched, answered; /* by a prefill node */
    kvist_match_t match;
    uint64_t arrived_ns, compute_started_ns;
};

static inline uint32_t kv_decode_block_tokens(const kv_decode_request_t *request)
{
    return request->core->info->shape.block_tokens;
}

static inline void kv_decode_forget_deadlines(kv_decode_request_t *request)
{
    request->deadline_ns = request->progress_deadline_ns = UINT64_MAX;
    request->landing_deadline_ns = UINT64_MAX;
}

/* Hands the machine an event; its actions are carried out before the outermost call returns. */
void kv_decode_post(kv_decode_request_t *request, kv_pd_decode_event_t event);

/* ---- prefilling.c ---- */

/* The first block_count blocks that the prefill node streamed become objects here too, made by whom
 * it said. */
void kv_decode_seal_streamed(
    kv_decode_request_t *request, uint32_t first_block, uint32_t block_count);
void kv_decode_forget_streamed(kv_decode_request_t *request);

void kv_decode_do_choose(kv_decode_request_t *request);
/* false: refused, and nothing that was to follow makes sense any more. */
bool kv_decode_do_expect(kv_decode_request_t *request, const kv_pd_decode_action_t *action);
/* What landed before a prefill node was lost is this node's own from now on. */
void kv_decode_do_keep(kv_decode_request_t *request, const kv_pd_decode_action_t *action);
void kv_decode_do_send_prefill(kv_decode_request_t *request);
void kv_decode_do_send_cancel(kv_decode_request_t *request);

/* The prefill node's messages; what is out of bounds or comes too late is not used. */
void kv_decode_take_prefilling(
    kv_decode_request_t *request, const Kvist__Wire__Prefilling *prefilling);
void kv_decode_take_prefilled(
    kv_decode_request_t *request, const Kvist__Wire__Prefilled *prefilled);

/* ---- answer.c ---- */

/* tops: its alternatives, perhaps none. */
void kv_decode_send_token(
    kv_decode_request_t *request, uint32_t token, float logprob, kv_sampler_tops_t *tops);
void kv_decode_release(kv_decode_request_t *request);
/* The one end of every request. */
void kv_decode_finish(
    kv_decode_request_t *request, Kvist__Wire__FinishReason reason, kv_status_t status);
/* context: the request. The last outcome of what was to be promised has come. */
void kv_decode_promises_known(void *context);

#endif
