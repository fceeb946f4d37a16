#include "prefill/request_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- answers ---- */

void kv_prefill_refuse(
    kv_peer_t *peer, const Kvist__Wire__Prefill *message, kv_status_t status, const char *text)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Prefilled prefilled = KVIST__WIRE__PREFILLED__INIT;
    prefilled.request_id = message->request_id;
    prefilled.transfer_id = message->transfer_id;
    prefilled.status = (uint32_t)status;
    prefilled.error = (char *)text;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PREFILLED;
    envelope.prefilled = &prefilled;
    kv_holder_send(peer, &envelope);
}

static void send_prefilled(kv_prefill_request_t *request, kv_status_t status)
{
    if (request->peer == NULL) {
        return;
    }
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Prefilled prefilled = KVIST__WIRE__PREFILLED__INIT;
    prefilled.request_id = request->request_id;
    prefilled.transfer_id = request->machine.transfer_id;
    request->status = status;
    prefilled.status = (uint32_t)status;
    prefilled.error = request->error[0] != '\0' ? request->error : (char *)kv_status_name(status);
    char **arithmetic = NULL;
    Kvist__Wire__TopLogprobs first_tops = kv_message_tops(&request->first_tops);
    if (status == KV_OK) {
        uint32_t sealed = kvist_lease_sealed_count(request->lease);
        uint32_t held = request->machine.decode_held;
        prefilled.first_token = request->first_token;
        prefilled.first_logprob = request->first_logprob;
        prefilled.first_tops = request->top_logprobs > 0 ? &first_tops : NULL;
        prefilled.usage = &request->usage;
        arithmetic = kv_allocate_array(sealed, sizeof *arithmetic);
        for (uint32_t block = held; block < sealed; block++) {
            arithmetic[prefilled.n_block_arithmetic++] =
                (char *)kvist_lease_arithmetic(request->lease, block);
        }
        prefilled.block_arithmetic = arithmetic;
        kv_core_count(&request->usage);
    }
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PREFILLED;
    envelope.prefilled = &prefilled;
    kv_holder_send(request->peer, &envelope);
    free(arithmetic);
}

/* ---- actions ---- */

static void prepared(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    kv_prefill_request_t *request = context;
    (void)lease;
    request->preparing = false;
    if (request->released) {
        return; /* given up while the store was at it */
    }
    if (status != KV_OK) {
        kv_prefill_post(request,
            (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_MATCH_FAILED, .status = status});
        return;
    }
    request->usage.load_ns = kv_clock_now_ns() - request->arrived_ns - request->usage.match_ns;
    request->matched = true;
    request->match = *match;
    request->miss = match->miss;
    kv_core_usage_from_match(request->core, match, &request->usage);
    bool reads = request->mode == KVIST_MODE_READWRITE || request->mode == KVIST_MODE_READ;
    uint32_t whole = (request->token_count - 1) / kv_prefill_block_tokens(request);
    kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_MATCHED,
                                 .held_blocks = match->block_count,
                                 .whole_blocks = reads ? whole : match->block_count});
}

static void layers_came(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t layer_count);

static void do_match(kv_prefill_request_t *request)
{
    kvist_query_t query = {
        .name_space = request->name_space,
        .tokens = request->tokens,
        .token_count =
            request->token_count - 1, /* the last one is computed: its logits are wanted */
        .mode = request->mode,
        .terms = request->promises.terms,
        .request = kv_outcome_request(request->client_id),
    };
    kvist_match_t match;
    kv_status_t status = kvist_match(request->core->holder.store, &query, &request->lease, &match);
    request->usage.match_ns = kv_clock_now_ns() - request->arrived_ns;
    if (status == KV_OK) {
        status = kvist_lease_prepare_layers(request->lease, kv_prefill_prompt_blocks(request),
            request->deadline_ns, prepared, layers_came, request);
        request->preparing = status == KV_OK;
    }
    if (status != KV_OK) {
        kv_prefill_post(request,
            (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_MATCH_FAILED, .status = status});
    }
}

/* Queues blocks first .. last - 1, the same byte range of each; those that the decode node holds
 * are left out. */
static void stream(kv_prefill_request_t *request, uint32_t first, uint32_t last,
    size_t offset_bytes, size_t range_bytes)
{
    uint32_t held = request->machine.decode_held;
    first = first > held ? first : held;
    if (first >= last || request->peer == NULL) {
        return;
    }
    kv_range_t range = kv_range_alike(offset_bytes, range_bytes);
    kv_piece_t piece = {
        .transfer_id = request->machine.transfer_id,
        .tag = request->id,
        .first_block = first - held,
        .block_count = last - first,
        .ranges = &range,
        .range_count = 1,
        .slots = kvist_lease_slots(request->lease) + first,
    };
    if (kv_holder_send_piece(&request->core->holder, request->peer, &piece)) {
        request->usage.streamed_bytes += (uint64_t)piece.block_count * range_bytes;
        kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_PIECE_QUEUED});
    }
}

/* Who made what was found, and who makes the rest: so that what lands whole serves even if this
 * node dies on the way. */
static void do_send_prefilling(kv_prefill_request_t *request)
{
    if (request->peer == NULL || kv_peer_version(request->peer) < 2) {
        return;
    }
    uint32_t held = request->machine.decode_held, found = request->machine.held_blocks;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Prefilling prefilling = KVIST__WIRE__PREFILLING__INIT;
    char **arithmetic = kv_allocate_array(found, sizeof *arithmetic);
    for (uint32_t block = held; block < found; block++) {
        arithmetic[prefilling.n_block_arithmetic++] =
            (char *)kvist_lease_arithmetic(request->lease, block);
    }
    prefilling.request_id = request->request_id;
    prefilling.transfer_id = request->machine.transfer_id;
    prefilling.block_arithmetic = arithmetic;
    prefilling.computed_arithmetic = (char *)request->core->info->prefill_arithmetic;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PREFILLING;
    envelope.prefilling = &prefilling;
    kv_holder_send(request->peer, &envelope);
    free(arithmetic);
}

/* Found blocks, as far as they are there and did not leave yet. */
static void stream_found(kv_prefill_request_t *request)
{
    const size_t layer_bytes = kv_block_layer_bytes(&request->core->info->shape);
    const uint32_t first = request->layers_streamed, end = request->layers_there;
    if (first < end && request->machine.state == KV_PD_PREFILL_COMPUTING) {
        request->layers_streamed = end;
        stream(request, 0, request->machine.held_blocks, first * layer_bytes,
            (end - first) * layer_bytes);
    }
}

static void layers_came(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t layer_count)
{
    kv_prefill_request_t *request = context;
    request->layers_status = status;
    if (status == KV_OK) {
        request->layers_there = layer_count;
        request->usage.load_ns = kv_clock_now_ns() - request->arrived_ns - request->usage.match_ns;
    } else {
        snprintf(request->error, sizeof request->error,
            "a layer of the %u blocks that were found could not be loaded (%s)",
            request->match.block_count, kv_status_name(status));
    }
    if (request->layered) {
        stream_found(request);
        kv_compute_layers(request->core->compute, request->id, status, request->layers_there);
    }
    if (request->find_waits && status != KV_OK) {
        request->find_waits = false;
        kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_SOURCE});
    } else if (request->find_waits && !kvist_lease_is_loading(lease)) {
        request->find_waits = false;
        kv_prefill_do_find_source(request, &request->find);
    }
}

/* What was found leaves for the decode node, all of it or as its layers come. false: one did not.
 */
static bool begin_found(kv_prefill_request_t *request)
{
    if (!kvist_lease_is_loading(request->lease)) {
        request->layers_there = request->core->info->shape.layer_count;
    }
    request->layered = kvist_lease_is_loading(request->lease);
    if (request->layers_status != KV_OK) {
        kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_COMPUTED,
                                     .status = request->layers_status});
        return false;
    }
    if (request->layered) {
        kv_metric_add(kv_metric_counter("kvist_prefills_overlapped_total", "",
                          "prompts computed while layers of what was stored still came"),
            1);
    }
    stream_found(request);
    return true;
}

static void do_compute(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
{
    const kv_block_shape_t *shape = &request->core->info->shape;
    request->usage.decode_kv_reused =
        kv_core_has_decode_blocks(request->lease, action->first_block);
    if (!begin_found(request)) {
        return;
    }
    kv_compute_sequence_t sequence = {
        .id = request->id,
        .tokens = request->tokens,
        .token_count = request->token_count,
        .computed_count = action->first_block * shape->block_tokens,
        .slots = kvist_lease_slots(request->lease),
        .generate_max = 1,
        .report_layers = true,
        .layers_come = request->layered,
        .top_logprobs = request->top_logprobs,
        .sampling = request->sampling,
    };
    kv_error_t error;
    request->compute_started_ns = kv_clock_now_ns();
    kv_status_t status = kv_compute_submit(request->core->compute, &sequence, &error);
    if (status != KV_OK) {
        snprintf(request->error, sizeof request->error, "%s", error.text);
        kv_prefill_post(
            request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_COMPUTED, .status = status});
    } else if (request->layered) {
        kv_compute_layers(request->core->compute, request->id, KV_OK, request->layers_there);
    }
}

/* For whoever asks why. */
static void note_outcome(const kv_prefill_request_t *request)
{
    const Kvist__Wire__CachedTokens *cached = &request->cached;
    kv_outcome_t outcome = {
        .status = request->status,
        .ended_unix_ns = kv_clock_real()->unix_ns(kv_clock_real()),
        .name_space = request->name_space,
        .prompt_tokens = request->token_count,
        .cached_tokens = {cached->device, cached->host, cached->disk, cached->remote},
        .match = request->match,
        .miss = request->matched                  ? request->miss
                : request->status == KV_CANCELLED ? KVIST_MISS_CANCELLED
                                                  : KVIST_MISS_FAILED,
        .holder_blocks = request->holder_blocks,
    };
    snprintf(outcome.id, sizeof outcome.id, "%s", request->client_id);
    snprintf(outcome.holder, sizeof outcome.holder, "%s", request->holder);
    kv_outcomes_add(&request->core->holder.outcomes, &outcome, request->tokens,
        kv_prefill_block_tokens(request));
}

/* false: the rest of the actions is void. */
static bool carry_out(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
{
    switch (action->kind) {
    case KV_PD_PREFILL_DO_MATCH:
        do_match(request);
        break;
    case KV_PD_PREFILL_DO_FIND_SOURCE:
        kv_prefill_do_find_source(request, action);
        break;
    case KV_PD_PREFILL_DO_EXPECT:
        return kv_prefill_do_expect(request, action);
    case KV_PD_PREFILL_DO_SEND_FETCH:
        kv_prefill_do_send_fetch(request, action);
        break;
    case KV_PD_PREFILL_DO_SHORTEN:
        kv_mover_shorten(request->core->holder.mover, action->transfer_id, action->block_count);
        break;
    case KV_PD_PREFILL_DO_SEND_UNFETCH:
        kv_prefill_do_send_unfetch(request, action);
        break;
    case KV_PD_PREFILL_DO_REVOKE:
        kv_mover_revoke(request->core->holder.mover, action->transfer_id);
        break;
    case KV_PD_PREFILL_DO_SEAL:
        kv_prefill_do_seal(request, action);
        break;
    case KV_PD_PREFILL_DO_SEND_PREFILLING:
        do_send_prefilling(request);
        break;
    case KV_PD_PREFILL_DO_COMPUTE:
        do_compute(request, action);
        break;
    case KV_PD_PREFILL_DO_STOP:
        kv_compute_cancel(request->core->compute, request->id);
        break;
    case KV_PD_PREFILL_DO_CANCEL_PIECES:
        if (request->peer != NULL) {
            kv_mover_cancel(
                request->core->holder.mover, kv_holder_link(request->peer), action->transfer_id);
        }
        break;
    case KV_PD_PREFILL_DO_SEND_PREFILLED:
        send_prefilled(request, action->status);
        break;
    case KV_PD_PREFILL_DO_RELEASE:
        if (request->lease != NULL) {
            kvist_lease_release(request->lease);
            request->lease = NULL;
        }
        note_outcome(request);
        request->released = true;
        break;
    }
    return true;
}

void kv_prefill_post(kv_prefill_request_t *request, kv_pd_prefill_event_t event)
{
    KV_CHECK(request->event_count < EVENTS_MAX);
    request->events[request->event_count++] = event;
    if (request->stepping) {
        return; /* the loop below is running */
    }
    request->stepping = true;
    while (request->event_count > 0) {
        kv_pd_prefill_event_t next = request->events[0];
        memmove(request->events, request->events + 1,
            --request->event_count * sizeof request->events[0]);
        kv_pd_prefill_actions_t actions;
        kv_pd_prefill_step(&request->machine, &next, &actions);
        for (uint32_t i = 0; i < actions.count && carry_out(request, &actions.items[i]); i++) {
        }
    }
    request->stepping = false;
}

/* ---- life ---- */

kv_prefill_request_t *kv_prefill_request_create(
    kv_core_t *core, uint64_t id, kv_peer_t *peer, const Kvist__Wire__Prefill *message)
{
    kv_prefill_request_t *request = kv_allocate(sizeof *request);
    request->core = core;
    request->id = id;
    request->peer = peer;
    request->request_id = kv_duplicate_string(message->request_id);
    request->client_id =
        kv_duplicate_string(kv_message_client_id(message->client_id, message->request_id));
    request->status = KV_CANCELLED;
    request->token_count = (uint32_t)message->n_tokens;
    request->tokens = kv_allocate_array(message->n_tokens, sizeof *request->tokens);
    memcpy(request->tokens, message->tokens, message->n_tokens * sizeof *request->tokens);
    request->sampling = kv_message_sampling(message->sampling);
    request->top_logprobs = kv_message_top_logprobs(message->sampling);
    memcpy(request->name_space.bytes, message->name_space.data, KVIST_KEY_BYTES);
    request->mode = (kvist_mode_t)message->cache_mode;
    const kv_kept_fields_t kept = kv_prefill_kept_fields(message);
    kv_promises_take(&request->promises, &kept, true);
    request->arrived_ns = kv_clock_now_ns();
    request->deadline_ns = request->arrived_ns + core->holder.options->prefill.request_limit_ns;
    kvist__wire__usage__init(&request->usage);
    kvist__wire__cached_tokens__init(&request->cached);
    request->usage.cached = &request->cached;
    request->usage.prompt_tokens = request->token_count;
    request->usage.prefilled_by = core->holder.options->node.name;
    kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_START,
                                 .transfer_id = message->transfer_id,
                                 .held_blocks = message->held_blocks});
    return request;
}

static bool is_done(const void *context)
{
    const kv_prefill_request_t *request = context;
    return request->released && !request->preparing && request->promises.open_count == 0;
}

static void destroy(void *context)
{
    kv_prefill_request_t *request = context;
    kv_prefill_forget_fetched(request);
    free(request->request_id);
    free(request->client_id);
    free(request->tokens);
    free(request->keys);
    free(request);
}

static bool is_running(const void *context)
{
    const kv_prefill_request_t *request = context;
    return request->machine.state == KV_PD_PREFILL_COMPUTING;
}

/* ---- what happens to it ---- */

static void stop(void *context)
{
    kv_prefill_post(context, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_CANCEL});
}

static bool is_from(const void *context, const kv_peer_t *peer)
{
    return ((const kv_prefill_request_t *)context)->peer == peer;
}

static bool receive(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kv_prefill_request_t *request = context;
    if (peer == request->peer && message->body_case == KVIST__WIRE__ENVELOPE__BODY_CANCEL &&
        strcmp(message->cancel->request_id, request->request_id) == 0) {
        stop(request);
        return true;
    }
    if (peer != request->source) {
        return false;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_PREFILLING &&
        message->prefilling->transfer_id == request->machine.fetch_id) {
        kv_prefill_take_begins(request, message->prefilling);
        return true;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_FETCHED &&
        message->fetched->transfer_id == request->machine.fetch_id) {
        kv_prefill_take_fetched(request, message->fetched);
        return true;
    }
    return false;
}

static bool moved(void *context, const kv_mover_event_t *event)
{
    kv_prefill_request_t *request = context;
    kv_pd_prefill_event_t step = {.status = event->status,
        .transfer_id = event->transfer_id,
        .landed_blocks = event->landed_blocks};
    if (event->kind == KV_MOVED_SENT) {
        if (event->tag != request->id) {
            return false;
        }
        step.kind = KV_PD_PREFILL_EV_PIECE_SENT;
    } else if (event->transfer_id != request->machine.fetch_id) {
        return false;
    } else {
        step.kind = event->kind == KV_MOVED_LANDED   ? KV_PD_PREFILL_EV_LANDED
                    : event->kind == KV_MOVED_FAILED ? KV_PD_PREFILL_EV_RECEIVE_FAILED
                                                     : KV_PD_PREFILL_EV_REVOKED;
    }
    kv_prefill_post(request, step);
    return true;
}

static bool computed(void *context, const kv_compute_event_t *event)
{
    kv_prefill_request_t *request = context;
    if (event->id != request->id) {
        return false;
    }
    const kv_block_shape_t *shape = &request->core->info->shape;
    uint32_t end = event->first + event->count;
    switch (event->type) {
    case KV_COMPUTE_LAYER:
        if (request->machine.state == KV_PD_PREFILL_COMPUTING) {
            stream(request, event->first / shape->block_tokens,
                (end + shape->block_tokens - 1) / shape->block_tokens,
                event->layer * kv_block_layer_bytes(shape), kv_block_layer_bytes(shape));
        }
        break;
    case KV_COMPUTE_CHUNK:
        kv_core_seal(request->core, request->lease, request->tokens, end,
            request->core->info->prefill_arithmetic);
        break;
    case KV_COMPUTE_TOKEN:
        request->first_token = event->token;
        request->first_logprob = event->logprob;
        request->first_tops = event->tops;
        break;
    case KV_COMPUTE_ENDED:
        request->usage.compute_ns = event->at_ns - request->compute_started_ns;
        request->usage.generated_tokens = event->status == KV_OK;
        if (event->status == KV_OK) {
            kv_promises_ask(&request->promises, request->core, &request->name_space,
                request->tokens, request->token_count);
            uint32_t computed_first =
                request->machine.held_blocks * kv_prefill_block_tokens(request);
            kv_rates_computed(&request->core->rates, request->token_count - computed_first,
                request->usage.compute_ns);
        }
        if (event->status != KV_OK && event->status != KV_CANCELLED) {
            snprintf(request->error, sizeof request->error, "%s", event->error);
        }
        kv_prefill_post(request,
            (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_COMPUTED, .status = event->status});
        break;
    }
    return true;
}

static void peer_down(void *context, kv_peer_t *peer)
{
    kv_prefill_request_t *request = context;
    if (request->source == peer) {
        request->source = NULL;
        kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_SOURCE_DOWN});
    }
    if (request->peer == peer) {
        kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_PEER_DOWN});
        request->peer = NULL;
    }
}

static void tick(void *context, uint64_t now_ns)
{
    kv_prefill_request_t *request = context;
    if (request->machine.state == KV_PD_PREFILL_FETCHING && now_ns > request->fetches_end_ns) {
        kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_TIMEOUT});
    }
    if (now_ns > request->deadline_ns) {
        request->deadline_ns = UINT64_MAX;
        snprintf(request->error, sizeof request->error, "the prefill took longer than its limit");
        stop(request);
    }
}

const kv_request_ops_t KV_PREFILL_REQUEST_OPS = {
    .is_from = is_from,
    .message = receive,
    .moved = moved,
    .computed = computed,
    .peer_down = peer_down,
    .tick = tick,
    .stop = stop,
    .is_running = is_running,
    .is_done = is_done,
    .destroy = destroy,
};
