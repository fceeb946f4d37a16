#include "decode/request_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "decode/choose.h"

#include <stdio.h>
#include <stdlib.h>

void kv_decode_seal_streamed(
    kv_decode_request_t *request, uint32_t first_block, uint32_t block_count)
{
    for (uint32_t i = 0; i < block_count; i++) {
        kv_core_seal(request->core, request->lease, request->tokens,
            (first_block + i + 1) * kv_decode_block_tokens(request),
            request->streamed_arithmetic[i]);
    }
}

void kv_decode_forget_streamed(kv_decode_request_t *request)
{
    kv_core_free_arithmetic(request->streamed_arithmetic, request->streamed_count);
    request->streamed_arithmetic = NULL;
    request->streamed_count = request->found_count = 0;
}

/* ---- what it is asked ---- */

void kv_decode_do_choose(kv_decode_request_t *request)
{
    const kv_pd_decode_t *machine = &request->machine;
    if (request->tried_count > 0) {
        kv_log_warn("decode", "request %s: the KV of a prefill node did not come (%s)",
            request->request_id, kv_status_name(machine->reason));
        kv_metric_add(kv_metric_counter("kvist_prefills_failed_total", "",
                          "prompts that a prefill node was asked for in vain"),
            1);
    }
    kv_decode_forget_streamed(request);
    kv_decode_forget_deadlines(request);
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
    kv_decode_post(request, event);
}

bool kv_decode_do_expect(kv_decode_request_t *request, const kv_pd_decode_action_t *action)
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
        kv_decode_post(request,
            (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_EXPECT_FAILED, .status = status});
    }
    return status == KV_OK;
}

void kv_decode_do_keep(kv_decode_request_t *request, const kv_pd_decode_action_t *action)
{
    KV_CHECK(action->block_count <= request->streamed_count);
    kv_decode_seal_streamed(request, action->first_block, action->block_count);
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

void kv_decode_do_send_prefill(kv_decode_request_t *request)
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

void kv_decode_do_send_cancel(kv_decode_request_t *request)
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

/* ---- what it says ---- */

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
        uint32_t computed = request->kept_computed * kv_decode_block_tokens(request);
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
    return request->prompt_count / kv_decode_block_tokens(request) - request->machine.held_blocks;
}

void kv_decode_take_prefilling(
    kv_decode_request_t *request, const Kvist__Wire__Prefilling *prefilling)
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
    kv_decode_post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_PREFILLING,
                                .transfer_id = prefilling->transfer_id});
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

void kv_decode_take_prefilled(kv_decode_request_t *request, const Kvist__Wire__Prefilled *prefilled)
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
            kv_decode_forget_streamed(request);
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
    kv_decode_post(request, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_PREFILLED,
                                .transfer_id = prefilled->transfer_id,
                                .status = status});
    expect_landing(request);
}
