#include "decode/request_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "runtime/message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t blocks_for(const kv_decode_request_t *request, uint32_t token_count)
{
    return (token_count + kv_decode_block_tokens(request) - 1) / kv_decode_block_tokens(request);
}

/* ---- generating ---- */

/* Hands the sequence to compute: the prompt from the first block that is not here, or all tokens
 * after the prompt. */
static void submit(kv_decode_request_t *request, uint32_t computed_count)
{
    kv_compute_sequence_t sequence = {
        .id = request->id,
        .tokens = request->tokens,
        .token_count = request->token_count,
        .computed_count = computed_count,
        .slots = kvist_lease_slots(request->lease),
        .generate_max = request->max_tokens - request->usage.generated_tokens,
        .generated_count = request->token_count - request->prompt_count,
        .ignore_end = request->ignore_end,
        .top_logprobs = request->top_logprobs,
        .sampling = request->sampling,
    };
    kv_error_t error;
    request->compute_started_ns = kv_clock_now_ns();
    kv_status_t status = kv_compute_submit(request->core->compute, &sequence, &error);
    if (status != KV_OK) {
        snprintf(request->error, sizeof request->error, "%s", error.text);
        kv_decode_finish(request, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, status);
        return;
    }
    request->computing = true;
}

/* The prompt's KV is here and the first token is known; a request that was begun elsewhere had it
 * long ago. */
static void begin_generating(kv_decode_request_t *request)
{
    kv_decode_seal_streamed(request, request->machine.held_blocks, request->streamed_count);
    if (request->token_count > request->prompt_count) {
        submit(request, request->prompt_count);
        return;
    }
    kv_decode_send_token(
        request, request->first_token, request->first_logprob, &request->first_tops);
    if (request->first_token == request->core->info->end_token && !request->ignore_end) {
        kv_decode_finish(request, KVIST__WIRE__FINISH_REASON__FINISH_STOP, KV_OK);
    } else if (request->max_tokens == 1) {
        kv_decode_finish(request, KVIST__WIRE__FINISH_REASON__FINISH_LENGTH, KV_OK);
    } else {
        submit(request, request->prompt_count);
    }
}

/* ---- actions ---- */

static void prepared(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    kv_decode_request_t *request = context;
    (void)lease;
    request->preparing = false;
    if (request->finished) {
        return; /* given up while the store was at it */
    }
    if (status != KV_OK) {
        snprintf(request->error, sizeof request->error,
            "no room for %u tokens in device memory within the time limit (decode.reserve_limit)",
            request->token_count + request->max_tokens);
        kv_decode_post(request,
            (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_RESERVE_FAILED, .status = status});
        return;
    }
    request->matched = true;
    request->match = *match;
    kv_core_usage_from_match(request->core, match, &request->usage);
    request->usage.load_ns = kv_clock_now_ns() - request->arrived_ns - request->usage.match_ns;
    uint32_t held = match->block_count;
    kv_decode_post(request,
        (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_RESERVED,
            .held_blocks = held,
            .block_count = blocks_for(request, request->prompt_count) - held,
            .whole_blocks = (request->prompt_count - 1) / kv_decode_block_tokens(request) - held});
}

static void do_reserve(kv_decode_request_t *request)
{
    kvist_query_t query = {
        .name_space = request->name_space,
        .tokens = request->tokens,
        .token_count =
            request->prompt_count - 1, /* the last one is computed: its logits are wanted */
        .mode = request->mode,
        .terms = request->promises.terms,
        .request = kv_outcome_request(request->client_id),
    };
    kvist_match_t match;
    kv_status_t status = kvist_match(request->core->holder.store, &query, &request->lease, &match);
    request->usage.match_ns = kv_clock_now_ns() - request->arrived_ns;
    if (status == KV_OK) {
        uint64_t deadline_ns =
            request->arrived_ns + request->core->holder.options->decode.reserve_limit_ns;
        uint32_t slot_count = blocks_for(request, request->token_count + request->max_tokens - 1);
        status = kvist_lease_prepare(request->lease, slot_count, deadline_ns, prepared, request);
        request->preparing = status == KV_OK;
        if (status == KV_INVALID) {
            snprintf(request->error, sizeof request->error,
                "%u tokens and %u to generate need %u blocks, device memory holds %u "
                "(store.device_bytes)",
                request->token_count, request->max_tokens, slot_count,
                request->core->info->slot_count);
        }
    }
    if (status != KV_OK) {
        kv_decode_post(request,
            (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_RESERVE_FAILED, .status = status});
    }
}

static void fall_back(kv_decode_request_t *request, kv_status_t why)
{
    if (why != KV_OK) {
        kv_log_warn("decode", "request %s: no prefill node's KV came (%s): computing it here",
            request->request_id, kv_status_name(why));
    }
    uint32_t held = kvist_lease_sealed_count(request->lease);
    request->cached.remote += request->kept_found * kv_decode_block_tokens(request);
    request->usage.decode_kv_reused = kv_core_has_decode_blocks(request->lease, held);
    snprintf(request->prefilled_by, sizeof request->prefilled_by, "%s",
        request->core->holder.options->node.name);
    submit(request, held * kv_decode_block_tokens(request));
}

/* false: the rest of the actions is void. */
static bool carry_out(kv_decode_request_t *request, const kv_pd_decode_action_t *action)
{
    switch (action->kind) {
    case KV_PD_DECODE_DO_RESERVE:
        do_reserve(request);
        break;
    case KV_PD_DECODE_DO_CHOOSE:
        kv_decode_do_choose(request);
        break;
    case KV_PD_DECODE_DO_EXPECT:
        return kv_decode_do_expect(request, action);
    case KV_PD_DECODE_DO_SEND_PREFILL:
        kv_decode_do_send_prefill(request);
        break;
    case KV_PD_DECODE_DO_SEND_CANCEL:
        kv_decode_do_send_cancel(request);
        break;
    case KV_PD_DECODE_DO_REVOKE:
        kv_mover_revoke(request->core->holder.mover, action->transfer_id);
        break;
    case KV_PD_DECODE_DO_KEEP:
        kv_decode_do_keep(request, action);
        break;
    case KV_PD_DECODE_DO_READY:
        begin_generating(request);
        break;
    case KV_PD_DECODE_DO_FALL_BACK:
        fall_back(request, action->status);
        break;
    case KV_PD_DECODE_DO_RELEASE:
        kv_decode_release(request);
        break;
    case KV_PD_DECODE_DO_FAIL:
        kv_decode_finish(request, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, action->status);
        break;
    case KV_PD_DECODE_DO_CANCELLED:
        kv_decode_finish(request, KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED, KV_CANCELLED);
        break;
    }
    return true;
}

void kv_decode_post(kv_decode_request_t *request, kv_pd_decode_event_t event)
{
    KV_CHECK(request->event_count < EVENTS_MAX);
    request->events[request->event_count++] = event;
    if (request->stepping) {
        return; /* the loop below is running */
    }
    request->stepping = true;
    while (request->event_count > 0) {
        kv_pd_decode_event_t next = request->events[0];
        memmove(request->events, request->events + 1,
            --request->event_count * sizeof request->events[0]);
        kv_pd_decode_actions_t actions;
        kv_pd_decode_step(&request->machine, &next, &actions);
        for (uint32_t i = 0; i < actions.count && carry_out(request, &actions.items[i]); i++) {
        }
    }
    request->stepping = false;
}

/* ---- life ---- */

kv_decode_request_t *kv_decode_request_create(
    kv_core_t *core, uint64_t id, kv_peer_t *gateway, const Kvist__Wire__Generate *message)
{
    kv_decode_request_t *request = kv_allocate(sizeof *request);
    request->core = core;
    request->id = id;
    request->gateway = gateway;
    request->request_id = kv_duplicate_string(message->request_id);
    request->client_id =
        kv_duplicate_string(kv_message_client_id(message->client_id, message->request_id));
    request->token_count = (uint32_t)message->n_tokens;
    request->prompt_count = request->token_count - message->generated_count;
    request->max_tokens = message->max_tokens;
    request->tokens =
        kv_allocate_array(message->n_tokens + message->max_tokens, sizeof *request->tokens);
    memcpy(request->tokens, message->tokens, message->n_tokens * sizeof *request->tokens);
    request->ignore_end = message->ignore_end;
    request->sampling = kv_message_sampling(message->sampling);
    request->top_logprobs = kv_message_top_logprobs(message->sampling);
    request->salt_bytes = message->salt.len;
    request->salt = kv_allocate(message->salt.len);
    if (message->salt.len > 0) {
        memcpy(request->salt, message->salt.data, message->salt.len);
    }
    request->name_space = kv_core_namespace(core, request->salt, request->salt_bytes);
    request->mode = (kvist_mode_t)message->cache_mode;
    const kv_kept_fields_t kept = kv_decode_kept_fields(message);
    kv_promises_take(&request->promises, &kept, false);
    request->promises.known = kv_decode_promises_known;
    request->promises.context = request;
    request->arrived_ns = kv_clock_now_ns();
    kv_decode_forget_deadlines(request);
    kvist__wire__usage__init(&request->usage);
    kvist__wire__cached_tokens__init(&request->cached);
    request->usage.cached = &request->cached;
    request->usage.prompt_tokens = request->prompt_count;
    request->usage.prefilled_by = request->prefilled_by;
    kv_decode_post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_START});
    return request;
}

static bool is_done(const void *context)
{
    const kv_decode_request_t *request = context;
    return request->finished && !request->preparing && !request->computing &&
           request->promises.open_count == 0 && request->machine.state == KV_PD_DECODE_DONE;
}

static void destroy(void *context)
{
    kv_decode_request_t *request = context;
    kv_decode_forget_streamed(request);
    free(request->request_id);
    free(request->client_id);
    free(request->tokens);
    free(request->salt);
    free(request);
}

static bool is_running(const void *context)
{
    const kv_decode_request_t *request = context;
    return request->computing;
}

/* ---- what happens to it ---- */

static void cancel(kv_decode_request_t *request, const char *why)
{
    if (request->finished) {
        return; /* what was promised is still to be known */
    }
    request->cancel_reason = why;
    if (request->computing) {
        kv_compute_cancel(request->core->compute, request->id);
    } else {
        kv_decode_post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_CANCEL});
    }
}

static bool is_from(const void *context, const kv_peer_t *peer)
{
    return ((const kv_decode_request_t *)context)->gateway == peer;
}

static bool receive(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kv_decode_request_t *request = context;
    if (peer == request->gateway && message->body_case == KVIST__WIRE__ENVELOPE__BODY_CANCEL &&
        strcmp(message->cancel->request_id, request->request_id) == 0) {
        cancel(request, NULL);
        return true;
    }
    if (peer != request->prefill) {
        return false;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_PREFILLING &&
        strcmp(message->prefilling->request_id, request->request_id) == 0) {
        kv_decode_take_prefilling(request, message->prefilling);
        return true;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_PREFILLED &&
        strcmp(message->prefilled->request_id, request->request_id) == 0) {
        kv_decode_take_prefilled(request, message->prefilled);
        return true;
    }
    return false;
}

bool kv_decode_request_waits_for(const void *context, const kv_peer_t *prefill)
{
    const kv_decode_request_t *request = context;
    return request->prefill == prefill && request->machine.state == KV_PD_DECODE_STREAMING &&
           !request->machine.prefilled;
}

/* A prefill node of version 1 asks for blocks of the request that it works on. */
static bool context_of(const void *context, const kv_peer_t *peer, const char *request_id,
    kv_request_context_t *context_out)
{
    const kv_decode_request_t *request = context;
    if (peer != request->prefill || strcmp(request_id, request->request_id) != 0) {
        return false;
    }
    *context_out =
        (kv_request_context_t){request->name_space, request->tokens, request->prompt_count};
    return true;
}

static bool moved(void *context, const kv_mover_event_t *event)
{
    kv_decode_request_t *request = context;
    kv_pd_decode_event_t step = {.status = event->status,
        .transfer_id = event->transfer_id,
        .landed_blocks = event->landed_blocks};
    if (event->kind == KV_MOVED_SENT || event->transfer_id != request->machine.transfer_id) {
        return false;
    }
    step.kind = event->kind == KV_MOVED_LANDED   ? KV_PD_DECODE_EV_LANDED
                : event->kind == KV_MOVED_FAILED ? KV_PD_DECODE_EV_RECEIVE_FAILED
                                                 : KV_PD_DECODE_EV_REVOKED;
    kv_decode_post(request, step);
    return true;
}

static bool computed(void *context, const kv_compute_event_t *event)
{
    kv_decode_request_t *request = context;
    if (event->id != request->id) {
        return false;
    }
    const kv_engine_info_t *info = request->core->info;
    switch (event->type) {
    case KV_COMPUTE_LAYER:
        break; /* not asked for */
    case KV_COMPUTE_CHUNK:
        request->usage.compute_ns = event->at_ns - request->compute_started_ns;
        kv_core_seal(request->core, request->lease, request->tokens, event->first + event->count,
            info->prefill_arithmetic);
        break;
    case KV_COMPUTE_TOKEN:
        /* The new token's own KV is not computed yet; everything before it is. */
        kv_core_seal(request->core, request->lease, request->tokens, request->token_count,
            info->decode_arithmetic);
        kv_sampler_tops_t tops = event->tops;
        kv_decode_send_token(request, event->token, event->logprob, &tops);
        break;
    case KV_COMPUTE_ENDED:
        request->computing = false;
        if (event->status == KV_OK) {
            kv_decode_finish(request,
                event->end_token ? KVIST__WIRE__FINISH_REASON__FINISH_STOP
                                 : KVIST__WIRE__FINISH_REASON__FINISH_LENGTH,
                KV_OK);
        } else if (event->status == KV_CANCELLED) {
            kv_decode_finish(request, KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED, KV_CANCELLED);
        } else {
            snprintf(request->error, sizeof request->error, "%s", event->error);
            kv_decode_finish(request, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, event->status);
        }
        break;
    }
    return true;
}

static void peer_down(void *context, kv_peer_t *peer)
{
    kv_decode_request_t *request = context;
    if (peer == request->gateway) {
        request->gateway = NULL;
        cancel(request, NULL);
    } else if (peer == request->prefill) {
        request->prefill = NULL; /* before the event, which may choose another one */
        kv_decode_post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_PEER_DOWN});
    }
}

static void tick(void *context, uint64_t now_ns)
{
    kv_decode_request_t *request = context;
    if (now_ns > request->landing_deadline_ns) {
        request->landing_deadline_ns = UINT64_MAX;
        if (request->machine.state == KV_PD_DECODE_STREAMING && request->prefill != NULL) {
            kv_peer_close(request->prefill, KV_PEER_LOST, "what it has sent does not come");
        }
    }
    if (now_ns > request->deadline_ns || now_ns > request->progress_deadline_ns) {
        kv_decode_forget_deadlines(request);
        kv_decode_post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_TIMEOUT});
    }
}

static void stop(void *context)
{
    cancel(context, "the decode node is stopping");
}

const kv_request_ops_t KV_DECODE_REQUEST_OPS = {
    .is_from = is_from,
    .message = receive,
    .moved = moved,
    .computed = computed,
    .context = context_of,
    .peer_down = peer_down,
    .tick = tick,
    .stop = stop,
    .is_running = is_running,
    .is_done = is_done,
    .destroy = destroy,
};
