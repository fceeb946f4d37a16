#include "decode/request.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "decode/choose.h"
#include "runtime/message.h"
#include "transport/pd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static void forget_deadlines(kv_decode_request_t *request)
{
    request->deadline_ns = request->progress_deadline_ns = UINT64_MAX;
    request->landing_deadline_ns = UINT64_MAX;
}

static uint32_t block_tokens(const kv_decode_request_t *request)
{
    return request->core->info->shape.block_tokens;
}

static uint32_t blocks_for(const kv_decode_request_t *request, uint32_t token_count)
{
    return (token_count + block_tokens(request) - 1) / block_tokens(request);
}

/* ---- answers ---- */

static void send_finished(kv_peer_t *gateway, char *request_id, Kvist__Wire__FinishReason reason,
    kv_status_t status, const char *error, Kvist__Wire__Usage *usage)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Finished finished = KVIST__WIRE__FINISHED__INIT;
    finished.request_id = request_id;
    finished.reason = reason;
    finished.status = (uint32_t)status;
    finished.error = (char *)error;
    finished.usage = usage;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_FINISHED;
    envelope.finished = &finished;
    kv_holder_send(gateway, &envelope);
}

void kv_decode_refuse(
    kv_peer_t *gateway, const Kvist__Wire__Generate *message, kv_status_t status, const char *text)
{
    send_finished(
        gateway, message->request_id, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, status, text, NULL);
}

/* tops: its alternatives, perhaps none. */
static void send_token(
    kv_decode_request_t *request, uint32_t token, float logprob, kv_sampler_tops_t *tops)
{
    bool first = request->usage.generated_tokens++ == 0;
    if (first) { /* the prompt's KV is here */
        kv_promises_ask(&request->promises, request->core, &request->name_space, request->tokens,
            request->prompt_count);
        kv_promises_tell(&request->promises, &request->usage);
        request->usage.ttft_ns = kv_clock_now_ns() - request->arrived_ns;
    }
    request->tokens[request->token_count++] = token;
    if (request->gateway == NULL) {
        return;
    }
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Tokens tokens = KVIST__WIRE__TOKENS__INIT;
    tokens.request_id = request->request_id;
    tokens.n_tokens = 1;
    tokens.tokens = &token;
    tokens.n_logprobs = 1;
    tokens.logprobs = &logprob;
    Kvist__Wire__TopLogprobs message = kv_message_tops(tops), *messages[] = {&message};
    if (request->top_logprobs > 0) {
        tokens.n_tops = 1;
        tokens.tops = messages;
    }
    bool reads_usage = kv_peer_version(request->gateway) >= 2;
    tokens.usage = first && reads_usage ? &request->usage : NULL;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_TOKENS;
    envelope.tokens = &tokens;
    kv_holder_send(request->gateway, &envelope);
}

static void release(kv_decode_request_t *request)
{
    if (request->lease != NULL) {
        kvist_lease_release(request->lease);
        request->lease = NULL;
    }
}

/* For whoever asks why: what a prefill node said, or what this node's store did. */
static void note_outcome(kv_decode_request_t *request, kv_status_t status)
{
    const Kvist__Wire__CachedTokens *cached = &request->cached;
    kvist_miss_t miss = request->match.miss;
    if (request->answered) {
        miss = kv_outcome_miss_named(request->miss);
    } else if (!request->matched ||
               (status == KV_CANCELLED && request->usage.generated_tokens == 0)) {
        miss = status == KV_CANCELLED ? KVIST_MISS_CANCELLED : KVIST_MISS_FAILED;
        request->usage.miss = (char *)kvist_miss_name(miss);
    }
    kv_outcome_t outcome = {
        .status = status,
        .ended_unix_ns = kv_clock_real()->unix_ns(kv_clock_real()),
        .name_space = request->name_space,
        .prompt_tokens = request->prompt_count,
        .cached_tokens = {cached->device, cached->host, cached->disk, cached->remote},
        .match = request->match,
        .miss = miss,
    };
    snprintf(outcome.id, sizeof outcome.id, "%s", request->client_id);
    if (request->answered) {
        snprintf(outcome.prefilled_by, sizeof outcome.prefilled_by, "%s", request->prefilled_by);
        snprintf(outcome.said, sizeof outcome.said, "%s", request->miss);
    }
    kv_outcomes_add(
        &request->core->holder.outcomes, &outcome, request->tokens, block_tokens(request));
}

/* For kvist sim: a request that looked for its prompt, and ended here. */
static void record(const kv_decode_request_t *request)
{
    bool looked = request->mode == KVIST_MODE_READWRITE || request->mode == KVIST_MODE_READ;
    if (!request->matched || !looked) {
        return;
    }
    const kv_clock_t *clock = kv_clock_real();
    uint64_t life_ns = clock->monotonic_ns(clock) - request->arrived_ns;
    kv_recorded_t recorded = {
        .arrived_unix_ms = (clock->unix_ns(clock) - life_ns) / KV_NS_PER_MS,
        .name_space = request->name_space,
        .tokens = request->tokens,
        .prompt_count = request->prompt_count,
        .answer_count = request->token_count - request->prompt_count,
    };
    kv_recorder_add(request->core->recorder, &recorded);
}

static void say_finished(kv_decode_request_t *request)
{
    kv_promises_tell(&request->promises, &request->usage);
    if (request->gateway != NULL) {
        send_finished(request->gateway, request->request_id, request->reason, request->status,
            request->error, &request->usage);
    }
}

/* The one end of every request. */
static void finish(
    kv_decode_request_t *request, Kvist__Wire__FinishReason reason, kv_status_t status)
{
    KV_CHECK(!request->finished);
    request->finished = true;
    release(request);
    if (status == KV_CANCELLED && request->cancel_reason != NULL) {
        reason = KVIST__WIRE__FINISH_REASON__FINISH_ERROR;
        snprintf(request->error, sizeof request->error, "%s", request->cancel_reason);
    }
    note_outcome(request, status);
    if (reason != KVIST__WIRE__FINISH_REASON__FINISH_ERROR) {
        record(request);
        kv_core_count(&request->usage);
    } else if (request->error[0] == '\0') {
        snprintf(request->error, sizeof request->error, "%s", kv_status_name(status));
    }
    request->reason = reason;
    request->status = status;
    request->ending = request->promises.open_count > 0;
    if (!request->ending) {
        say_finished(request);
    }
}

/* The last outcome of what was to be promised has come. */
static void promises_known(void *context)
{
    kv_decode_request_t *request = context;
    if (request->ending) {
        request->ending = false;
        say_finished(request);
    }
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
        finish(request, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, status);
        return;
    }
    request->computing = true;
}

/* The first block_count blocks that the prefill node streamed become objects here too, made by whom
 * it said. */
static void seal_streamed(kv_decode_request_t *request, uint32_t first_block, uint32_t block_count)
{
    for (uint32_t i = 0; i < block_count; i++) {
        kv_core_seal(request->core, request->lease, request->tokens,
            (first_block + i + 1) * block_tokens(request), request->streamed_arithmetic[i]);
    }
}

/* The prompt's KV is here and the first token is known; a request that was begun elsewhere had it
 * long ago. */
static void begin_generating(kv_decode_request_t *request)
{
    seal_streamed(request, request->machine.held_blocks, request->streamed_count);
    if (request->token_count > request->prompt_count) {
        submit(request, request->prompt_count);
        return;
    }
    send_token(request, request->first_token, request->first_logprob, &request->first_tops);
    if (request->first_token == request->core->info->end_token && !request->ignore_end) {
        finish(request, KVIST__WIRE__FINISH_REASON__FINISH_STOP, KV_OK);
    } else if (request->max_tokens == 1) {
        finish(request, KVIST__WIRE__FINISH_REASON__FINISH_LENGTH, KV_OK);
    } else {
        submit(request, request->prompt_count);
    }
}

/* ---- actions ---- */

static void post(kv_decode_request_t *request, kv_pd_decode_event_t event);

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
        post(request,
            (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_RESERVE_FAILED, .status = status});
        return;
    }
    request->matched = true;
    request->match = *match;
    kv_core_usage_from_match(request->core, match, &request->usage);
    request->usage.load_ns = kv_clock_now_ns() - request->arrived_ns - request->usage.match_ns;
    uint32_t held = match->block_count;
    post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_RESERVED,
                      .held_blocks = held,
                      .block_count = blocks_for(request, request->prompt_count) - held,
                      .whole_blocks = (request->prompt_count - 1) / block_tokens(request) - held});
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
        post(request,
            (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_RESERVE_FAILED, .status = status});
    }
}

static void forget_streamed(kv_decode_request_t *request)
{
    kv_core_free_arithmetic(request->streamed_arithmetic, request->streamed_count);
    request->streamed_arithmetic = NULL;
    request->streamed_count = request->found_count = 0;
}

static void do_choose(kv_decode_request_t *request)
{
    const kv_pd_decode_t *machine = &request->machine;
    if (request->tried_count > 0) {
        kv_log_warn("decode", "request %s: the KV of a prefill node did not come (%s)",
            request->request_id, kv_status_name(machine->reason));
        kv_metric_add(kv_metric_counter("kvist_prefills_failed_total", "",
                          "prompts that a prefill node was asked for in vain"),
            1);
    }
    forget_streamed(request);
    forget_deadlines(request);
    kv_decode_choice_t choice = {
        .tried = request->tried,
        .tried_count = request->tried_count,
        .name_space = &request->name_space,
        .tokens = request->tokens,
        .token_count = request->prompt_count,
        .held_blocks = machine->held_blocks,
    };
    request->prefill = kv_decode_choose(request->core, &choice, &request->ahead);
    kv_pd_decode_event_t event = {.kind = KV_PD_DECODE_EV_CHOSEN};
    if (request->prefill != NULL) {
        request->tried[request->tried_count++] = kv_peer_id(request->prefill);
        event.peer_up = true;
        event.transfer_id = kv_mover_transfer_id(request->core->holder.mover);
    }
    post(request, event);
}

/* false: refused, and nothing that was to follow makes sense any more. */
static bool do_expect(kv_decode_request_t *request, const kv_pd_decode_action_t *action)
{
    kv_error_t error;
    kv_status_t status = KV_PEER_LOST;
    if (request->prefill != NULL) {
        kv_expectation_t expectation = {
            .transfer_id = action->transfer_id,
            .block_count = action->block_count,
            .slots = kvist_lease_slots(request->lease) + action->first_block,
        };
        status = kv_mover_expect(
            request->core->holder.mover, kv_holder_link(request->prefill), &expectation, &error);
    }
    if (status != KV_OK) {
        post(request,
            (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_EXPECT_FAILED, .status = status});
    }
    return status == KV_OK;
}

/* What landed before a prefill node was lost is this node's own from now on. */
static void do_keep(kv_decode_request_t *request, const kv_pd_decode_action_t *action)
{
    KV_CHECK(action->block_count <= request->streamed_count);
    seal_streamed(request, action->first_block, action->block_count);
    uint32_t found =
        request->found_count < action->block_count ? request->found_count : action->block_count;
    request->kept_found += found;
    request->kept_computed += action->block_count - found;
    kv_metric_add(kv_metric_counter("kvist_kept_blocks_total", "",
                      "blocks that had landed whole when a prefill node was lost"),
        action->block_count);
    kv_log_info("decode", "request %s: %u blocks had landed whole", request->request_id,
        action->block_count);
}

/* The prefill node has so long to say something, from now on. */
static void expect_progress(kv_decode_request_t *request)
{
    uint64_t limit_ns =
        kv_rates_prefill_limit_ns(&request->core->rates, request->ahead, request->prompt_count);
    uint64_t now_ns = kv_clock_now_ns();
    request->progress_deadline_ns = limit_ns < UINT64_MAX - now_ns ? now_ns + limit_ns : UINT64_MAX;
}

static void do_send_prefill(kv_decode_request_t *request)
{
    if (request->prefill == NULL) {
        return; /* PEER_DOWN is on its way */
    }
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Prefill prefill = KVIST__WIRE__PREFILL__INIT;
    Kvist__Wire__Sampling sampling = KVIST__WIRE__SAMPLING__INIT;
    sampling.temperature = request->sampling.temperature;
    sampling.top_k = request->sampling.top_k;
    sampling.top_p = request->sampling.top_p;
    sampling.seed = request->sampling.seed;
    sampling.top_logprobs = request->top_logprobs;
    prefill.request_id = request->request_id;
    prefill.client_id = request->client_id;
    prefill.transfer_id = request->machine.transfer_id;
    prefill.n_tokens = request->prompt_count;
    prefill.tokens = request->tokens;
    prefill.held_blocks = request->machine.held_blocks;
    prefill.sampling = &sampling;
    prefill.salt = (ProtobufCBinaryData){request->salt_bytes, request->salt};
    prefill.name_space = (ProtobufCBinaryData){KVIST_KEY_BYTES, request->name_space.bytes};
    prefill.cache_mode = (Kvist__Wire__CacheMode)request->mode;
    const kvist_terms_t *terms = &request->promises.terms;
    prefill.priority = (Kvist__Wire__Priority)terms->priority;
    prefill.tenant = request->promises.tenant;
    prefill.expected_next_use_unix_ms = terms->expected_next_use_unix_ns / KV_NS_PER_MS;
    prefill.n_promises = request->promises.count;
    prefill.promises = request->promises.asked_list;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PREFILL;
    envelope.prefill = &prefill;
    request->deadline_ns =
        kv_clock_now_ns() + request->core->holder.options->decode.transfer_limit_ns;
    expect_progress(request);
    kv_holder_send(request->prefill, &envelope);
}

static void do_send_cancel(kv_decode_request_t *request)
{
    if (request->prefill == NULL) {
        return;
    }
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Cancel cancel = KVIST__WIRE__CANCEL__INIT;
    cancel.request_id = request->request_id;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &cancel;
    kv_holder_send(request->prefill, &envelope);
}

static void fall_back(kv_decode_request_t *request, kv_status_t why)
{
    if (why != KV_OK) {
        kv_log_warn("decode", "request %s: no prefill node's KV came (%s): computing it here",
            request->request_id, kv_status_name(why));
    }
    uint32_t held = kvist_lease_sealed_count(request->lease);
    request->cached.remote += request->kept_found * block_tokens(request);
    request->usage.decode_kv_reused = kv_core_has_decode_blocks(request->lease, held);
    snprintf(request->prefilled_by, sizeof request->prefilled_by, "%s",
        request->core->holder.options->node.name);
    submit(request, held * block_tokens(request));
}

/* false: the rest of the actions is void. */
static bool carry_out(kv_decode_request_t *request, const kv_pd_decode_action_t *action)
{
    switch (action->kind) {
    case KV_PD_DECODE_DO_RESERVE:
        do_reserve(request);
        break;
    case KV_PD_DECODE_DO_CHOOSE:
        do_choose(request);
        break;
    case KV_PD_DECODE_DO_EXPECT:
        return do_expect(request, action);
    case KV_PD_DECODE_DO_SEND_PREFILL:
        do_send_prefill(request);
        break;
    case KV_PD_DECODE_DO_SEND_CANCEL:
        do_send_cancel(request);
        break;
    case KV_PD_DECODE_DO_REVOKE:
        kv_mover_revoke(request->core->holder.mover, action->transfer_id);
        break;
    case KV_PD_DECODE_DO_KEEP:
        do_keep(request, action);
        break;
    case KV_PD_DECODE_DO_READY:
        begin_generating(request);
        break;
    case KV_PD_DECODE_DO_FALL_BACK:
        fall_back(request, action->status);
        break;
    case KV_PD_DECODE_DO_RELEASE:
        release(request);
        break;
    case KV_PD_DECODE_DO_FAIL:
        finish(request, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, action->status);
        break;
    case KV_PD_DECODE_DO_CANCELLED:
        finish(request, KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED, KV_CANCELLED);
        break;
    }
    return true;
}

static void post(kv_decode_request_t *request, kv_pd_decode_event_t event)
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
    request->promises.known = promises_known;
    request->promises.context = request;
    request->arrived_ns = kv_clock_now_ns();
    forget_deadlines(request);
    kvist__wire__usage__init(&request->usage);
    kvist__wire__cached_tokens__init(&request->cached);
    request->usage.cached = &request->cached;
    request->usage.prompt_tokens = request->prompt_count;
    request->usage.prefilled_by = request->prefilled_by;
    post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_START});
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
    forget_streamed(request);
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

/* The prefill node's figures become the request's: it is the one that knows what was recomputed. */
static void take_usage(kv_decode_request_t *request, const Kvist__Wire__Usage *from)
{
    Kvist__Wire__Usage *usage = &request->usage;
    if (from->cached != NULL) {
        request->cached.device = from->cached->device;
        request->cached.host = from->cached->host;
        request->cached.disk = from->cached->disk;
        /* What another prefill node computed for this request is not cached because this one
         * fetched it. */
        uint32_t computed = request->kept_computed * block_tokens(request);
        uint32_t remote = from->cached->remote;
        request->cached.remote = remote > computed ? remote - computed : 0;
    }
    snprintf(request->miss, sizeof request->miss, "%s", from->miss);
    snprintf(request->prefilled_by, sizeof request->prefilled_by, "%s", from->prefilled_by);
    usage->miss = request->miss;
    request->answered = true;
    usage->loaded_bytes += from->loaded_bytes;
    usage->streamed_bytes = from->streamed_bytes;
    usage->match_ns = from->match_ns;
    usage->load_ns = from->load_ns;
    usage->compute_ns = from->compute_ns;
    usage->decode_kv_reused = from->decode_kv_reused;
    uint32_t cached = kv_core_cached_tokens(from);
    if (cached < request->prompt_count) {
        kv_rates_prefilled(&request->core->rates, request->prompt_count - cached, from->compute_ns);
    }
}

/* Whole blocks of the prompt that this attempt streams. */
static uint32_t streamed_whole(const kv_decode_request_t *request)
{
    return request->prompt_count / block_tokens(request) - request->machine.held_blocks;
}

static void take_prefilling(kv_decode_request_t *request, const Kvist__Wire__Prefilling *prefilling)
{
    const kv_pd_decode_t *machine = &request->machine;
    bool waits = machine->state == KV_PD_DECODE_STREAMING || machine->state == KV_PD_DECODE_ENDING;
    if (!waits || prefilling->transfer_id != machine->transfer_id ||
        request->streamed_arithmetic != NULL) {
        return;
    }
    uint32_t whole = streamed_whole(request);
    size_t found = prefilling->n_block_arithmetic;
    if (found > whole) {
        kv_log_warn("decode",
            "request %s: prefilling has %zu arithmetic ids for %u blocks: not used",
            request->request_id, found, whole);
        return;
    }
    char **ids = kv_allocate_array(whole, sizeof *ids);
    for (uint32_t i = 0; i < whole; i++) {
        ids[i] = i < found ? prefilling->block_arithmetic[i] : prefilling->computed_arithmetic;
    }
    request->streamed_arithmetic = kv_core_copy_arithmetic(ids, whole, whole);
    free(ids);
    if (request->streamed_arithmetic == NULL) {
        kv_log_warn("decode",
            "request %s: prefilling has an arithmetic id that is too long or not "
            "printable: not used",
            request->request_id);
        return;
    }
    request->streamed_count = whole;
    request->found_count = (uint32_t)found;
    expect_progress(request);
    post(request, (kv_pd_decode_event_t){
                      .kind = KV_PD_DECODE_EV_PREFILLING, .transfer_id = prefilling->transfer_id});
}

/* All of it was handed to the wire, says the peer. Where it does not come all the same, its data
 * link leads nowhere, whatever its heartbeats say: links and connections are made anew. */
static void expect_landing(kv_decode_request_t *request)
{
    const kv_pd_decode_t *machine = &request->machine;
    if (machine->state == KV_PD_DECODE_STREAMING && machine->prefilled && !machine->landed) {
        request->progress_deadline_ns = UINT64_MAX;
        request->landing_deadline_ns =
            kv_clock_now_ns() + (uint64_t)KV_MOVER_STALL_MS * KV_NS_PER_MS;
    }
}

/* What a peer says of the first token's alternatives, as far as it is what was asked for. */
static void take_first_tops(kv_decode_request_t *request, const Kvist__Wire__TopLogprobs *told)
{
    kv_sampler_tops_t *tops = &request->first_tops;
    tops->count = 0;
    if (told == NULL || told->n_logprobs != told->n_tokens) {
        return;
    }
    for (size_t i = 0; i < told->n_tokens && tops->count < request->top_logprobs; i++) {
        tops->tokens[tops->count] = told->tokens[i];
        tops->logprobs[tops->count++] = told->logprobs[i];
    }
}

static void take_prefilled(kv_decode_request_t *request, const Kvist__Wire__Prefilled *prefilled)
{
    kv_status_t status = (kv_status_t)prefilled->status;
    if (request->machine.state != KV_PD_DECODE_STREAMING || request->machine.prefilled ||
        prefilled->transfer_id != request->machine.transfer_id) {
        return;
    }
    uint32_t whole = streamed_whole(request);
    if (status == KV_OK && (prefilled->usage == NULL ||
                               prefilled->first_token >= request->core->info->vocabulary_count)) {
        kv_log_warn("decode", "request %s: prefilled has no usage, or token %u of %u: not used",
            request->request_id, prefilled->first_token, request->core->info->vocabulary_count);
        status = KV_INVALID;
    }
    if (status == KV_OK) {
        char **arithmetic = kv_core_copy_arithmetic(
            prefilled->block_arithmetic, prefilled->n_block_arithmetic, whole);
        if (arithmetic == NULL) {
            kv_log_warn("decode",
                "request %s: prefilled has %zu arithmetic ids for %u blocks, or too long ones: not "
                "used",
                request->request_id, prefilled->n_block_arithmetic, whole);
            status = KV_INVALID;
        } else {
            uint32_t found = request->found_count;
            forget_streamed(request);
            request->streamed_arithmetic = arithmetic;
            request->streamed_count = whole;
            request->found_count = found;
        }
    }
    if (status == KV_OK) {
        take_usage(request, prefilled->usage);
        request->first_token = prefilled->first_token;
        request->first_logprob = prefilled->first_logprob;
        take_first_tops(request, prefilled->first_tops);
    }
    post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_PREFILLED,
                      .transfer_id = prefilled->transfer_id,
                      .status = status});
    expect_landing(request);
}

static void cancel(kv_decode_request_t *request, const char *why)
{
    if (request->finished) {
        return; /* what was promised is still to be known */
    }
    request->cancel_reason = why;
    if (request->computing) {
        kv_compute_cancel(request->core->compute, request->id);
    } else {
        post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_CANCEL});
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
        take_prefilling(request, message->prefilling);
        return true;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_PREFILLED &&
        strcmp(message->prefilled->request_id, request->request_id) == 0) {
        take_prefilled(request, message->prefilled);
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
    post(request, step);
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
        send_token(request, event->token, event->logprob, &tops);
        break;
    case KV_COMPUTE_ENDED:
        request->computing = false;
        if (event->status == KV_OK) {
            finish(request,
                event->end_token ? KVIST__WIRE__FINISH_REASON__FINISH_STOP
                                 : KVIST__WIRE__FINISH_REASON__FINISH_LENGTH,
                KV_OK);
        } else if (event->status == KV_CANCELLED) {
            finish(request, KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED, KV_CANCELLED);
        } else {
            finish(request, KVIST__WIRE__FINISH_REASON__FINISH_ERROR, event->status);
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
        post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_PEER_DOWN});
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
        forget_deadlines(request);
        post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_TIMEOUT});
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
