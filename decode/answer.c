#include "decode/request_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "runtime/message.h"

#include <stdio.h>

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

void kv_decode_send_token(
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

void kv_decode_release(kv_decode_request_t *request)
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
    kv_outcomes_add(&request->core->holder.outcomes, &outcome, request->tokens,
        kv_decode_block_tokens(request));
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

void kv_decode_finish(
    kv_decode_request_t *request, Kvist__Wire__FinishReason reason, kv_status_t status)
{
    KV_CHECK(!request->finished);
    request->finished = true;
    kv_decode_release(request);
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

void kv_decode_promises_known(void *context)
{
    kv_decode_request_t *request = context;
    if (request->ending) {
        request->ending = false;
        say_finished(request);
    }
}
