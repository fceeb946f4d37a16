#include "prefill/request.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "holder/remote.h"
#include "runtime/message.h"
#include "transport/pd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static uint32_t block_tokens(const kv_prefill_request_t *request)
{
    return request->core->info->shape.block_tokens;
}

/* Blocks that hold the prompt, the last perhaps in part. */
static uint32_t prompt_blocks(const kv_prefill_request_t *request)
{
    return (request->token_count + block_tokens(request) - 1) / block_tokens(request);
}

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

static void post(kv_prefill_request_t *request, kv_pd_prefill_event_t event);

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
        post(request,
            (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_MATCH_FAILED, .status = status});
        return;
    }
    request->usage.load_ns = kv_clock_now_ns() - request->arrived_ns - request->usage.match_ns;
    request->matched = true;
    request->match = *match;
    request->miss = match->miss;
    kv_core_usage_from_match(request->core, match, &request->usage);
    bool reads = request->mode == KVIST_MODE_READWRITE || request->mode == KVIST_MODE_READ;
    uint32_t whole = (request->token_count - 1) / block_tokens(request);
    post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_MATCHED,
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
        status = kvist_lease_prepare_layers(request->lease, prompt_blocks(request),
            request->deadline_ns, prepared, layers_came, request);
        request->preparing = status == KV_OK;
    }
    if (status != KV_OK) {
        post(request,
            (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_MATCH_FAILED, .status = status});
    }
}

static bool was_asked(const kv_prefill_request_t *request, const kv_peer_t *peer)
{
    for (uint32_t i = 0; i < request->asked_count; i++) {
        if (request->asked[i] == kv_peer_id(peer)) {
            return true;
        }
    }
    return false;
}

/* Who is thought to have most of blocks first_block .. + block_count. The decode node has said what
 * it holds; of the others their events tell. NULL: nobody. */
static kv_peer_t *find_source(kv_prefill_request_t *request, uint32_t first_block,
    uint32_t block_count, uint32_t *block_count_out)
{
    kv_peer_t *source = NULL;
    uint32_t held = request->machine.decode_held, count = 0;
    if (request->peer != NULL && held > first_block && !was_asked(request, request->peer)) {
        source = request->peer;
        count = held - first_block;
    }
    if (request->keys == NULL) {
        request->keys = kv_allocate_array(prompt_blocks(request), sizeof *request->keys);
        kvist_keys(&request->name_space, request->tokens, NULL, request->token_count,
            block_tokens(request), request->keys);
    }
    kv_peer_t *other;
    uint32_t other_count;
    if (kv_remote_find(&request->core->holder, request->keys + first_block, block_count,
            request->asked, request->asked_count, &other, &other_count) &&
        other_count > count) {
        source = other;
        count = other_count;
    }
    *block_count_out = count < block_count ? count : block_count;
    return source;
}

/* Why the rest is computed, or will be unless what is under way brings it. */
static void set_miss(kv_prefill_request_t *request, kvist_miss_t miss)
{
    request->miss = miss;
    request->usage.miss = (char *)kv_outcome_miss_told(miss, &request->match.detail);
}

static void set_holder(kv_prefill_request_t *request, const char *name, uint32_t block_count)
{
    snprintf(request->holder, sizeof request->holder, "%s", name);
    request->holder_blocks = block_count;
}

/* Nobody is asked (any more). source: who could have been. */
static void note_no_source(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action,
    const kv_peer_t *source, uint32_t block_count)
{
    const char *name;
    if (source != NULL) {
        set_miss(request, KVIST_MISS_CHEAPER);
        set_holder(request, kv_peer_name(source), block_count);
    } else if (request->asked_count == 0 && request->keys != NULL &&
               kv_remote_holder(&request->core->holder, request->keys + action->first_block,
                   action->block_count, &name, &block_count)) {
        set_miss(request, KVIST_MISS_ELSEWHERE);
        set_holder(request, name, block_count);
    }
}

static void do_find_source(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
{
    uint64_t now_ns = kv_clock_now_ns();
    uint32_t count = 0;
    if (request->fetches_end_ns == 0) {
        request->fetches_end_ns = now_ns + kv_rates_fetch_limit_ns(&request->core->rates,
                                               action->block_count * block_tokens(request));
    }
    kv_peer_t *source = NULL;
    if (now_ns < request->fetches_end_ns) {
        source = find_source(request, action->first_block, action->block_count, &count);
    }
    if (source == NULL || !kv_rates_fetch_pays(&request->core->rates, count, block_tokens(request),
                              kv_block_bytes(&request->core->info->shape))) {
        note_no_source(request, action, source, count);
        post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_SOURCE});
        return;
    }
    if (kvist_lease_is_loading(request->lease)) {
        request->find_waits = true; /* nothing can be sealed before */
        request->find = *action;
        return;
    }
    KV_CHECK(request->asked_count < KV_PD_FETCHES_MAX);
    request->asked[request->asked_count++] = kv_peer_id(source);
    request->source = source;
    request->asked_blocks = count;
    request->fetch_begun_ns = now_ns;
    set_miss(request, KVIST_MISS_FAILED);
    set_holder(request, kv_peer_name(source), count);
    post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_SOURCE,
                      .block_count = count,
                      .transfer_id = kv_mover_transfer_id(request->core->holder.mover)});
}

/* false: refused, and nothing that was to follow makes sense any more. */
static bool do_expect(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
{
    kv_error_t error;
    kv_status_t status = kv_fail(&error, KV_PEER_LOST, "the source is gone");
    if (request->source != NULL) {
        kv_expectation_t expectation = {
            .transfer_id = action->transfer_id,
            .block_count = action->block_count,
            .slots = kvist_lease_slots(request->lease) + action->first_block,
        };
        status = kv_mover_expect(
            request->core->holder.mover, kv_holder_link(request->source), &expectation, &error);
    }
    if (status != KV_OK) {
        kv_log_warn("prefill", "request %s cannot fetch: %s", request->request_id, error.text);
        post(request,
            (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_FETCH_REFUSED, .status = status});
    }
    return status == KV_OK;
}

static void do_send_fetch(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
{
    if (request->source == NULL) {
        return; /* SOURCE_DOWN is on its way */
    }
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Fetch fetch = KVIST__WIRE__FETCH__INIT;
    fetch.request_id = request->request_id;
    fetch.transfer_id = action->transfer_id;
    fetch.first_block = action->first_block;
    fetch.block_count = action->block_count;
    if (kv_peer_version(request->source) >= 2) {
        fetch.name_space = (ProtobufCBinaryData){KVIST_KEY_BYTES, request->name_space.bytes};
        fetch.n_tokens =
            (size_t)(action->first_block + action->block_count) * block_tokens(request);
        fetch.tokens = request->tokens;
    }
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_FETCH;
    envelope.fetch = &fetch;
    kv_holder_send(request->source, &envelope);
}

static void do_send_unfetch(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
{
    if (request->source == NULL || kv_peer_version(request->source) < 2) {
        return;
    }
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Unfetch unfetch = KVIST__WIRE__UNFETCH__INIT;
    unfetch.transfer_id = action->transfer_id;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_UNFETCH;
    envelope.unfetch = &unfetch;
    kv_holder_send(request->source, &envelope);
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
        post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_PIECE_QUEUED});
    }
}

static void forget_fetched(kv_prefill_request_t *request)
{
    kv_core_free_arithmetic(request->fetched_arithmetic, request->fetched_count);
    request->fetched_arithmetic = NULL;
    request->fetched_count = 0;
}

static void count_fetch(uint32_t block_count, uint32_t asked_count, uint64_t bytes)
{
    const char *outcome = block_count == 0            ? "outcome=\"none\""
                          : block_count < asked_count ? "outcome=\"part\""
                                                      : "outcome=\"whole\"";
    kv_metric_add(kv_metric_counter("kvist_fetches_total", outcome,
                      "fetches of blocks from other nodes, by how much came"),
        1);
    kv_metric_add(
        kv_metric_counter("kvist_fetched_bytes_total", "", "KV that those brought"), (double)bytes);
}

/* What a fetch brought becomes objects here too, made by whom the source said. */
static void do_seal(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
{
    KV_CHECK(action->block_count <= request->fetched_count);
    uint64_t bytes = (uint64_t)action->block_count * kv_block_bytes(&request->core->info->shape);
    uint64_t now_ns = kv_clock_now_ns();
    for (uint32_t i = 0; i < action->block_count; i++) {
        kv_core_seal(request->core, request->lease, request->tokens,
            (action->first_block + i + 1) * block_tokens(request), request->fetched_arithmetic[i]);
    }
    kv_rates_fetched(&request->core->rates, bytes, now_ns - request->fetch_begun_ns);
    count_fetch(action->block_count, request->asked_blocks, bytes);
    forget_fetched(request);
    request->source = NULL;
    if (action->block_count == request->asked_blocks) {
        set_miss(request, request->match.miss);
    }
    if (action->block_count > 0) {
        request->usage.cached->remote += action->block_count * block_tokens(request);
        request->usage.loaded_bytes += bytes;
        request->usage.load_ns = now_ns - request->arrived_ns - request->usage.match_ns;
        if (action->first_block + action->block_count == request->machine.whole_blocks) {
            set_miss(request, KVIST_MISS_NONE);
        }
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
        post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_SOURCE});
    } else if (request->find_waits && !kvist_lease_is_loading(lease)) {
        request->find_waits = false;
        do_find_source(request, &request->find);
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
        post(request, (kv_pd_prefill_event_t){
                          .kind = KV_PD_PREFILL_EV_COMPUTED, .status = request->layers_status});
        return false;
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
        post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_COMPUTED, .status = status});
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
    kv_outcomes_add(
        &request->core->holder.outcomes, &outcome, request->tokens, block_tokens(request));
}

/* false: the rest of the actions is void. */
static bool carry_out(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
{
    switch (action->kind) {
    case KV_PD_PREFILL_DO_MATCH:
        do_match(request);
        break;
    case KV_PD_PREFILL_DO_FIND_SOURCE:
        do_find_source(request, action);
        break;
    case KV_PD_PREFILL_DO_EXPECT:
        return do_expect(request, action);
    case KV_PD_PREFILL_DO_SEND_FETCH:
        do_send_fetch(request, action);
        break;
    case KV_PD_PREFILL_DO_SHORTEN:
        kv_mover_shorten(request->core->holder.mover, action->transfer_id, action->block_count);
        break;
    case KV_PD_PREFILL_DO_SEND_UNFETCH:
        do_send_unfetch(request, action);
        break;
    case KV_PD_PREFILL_DO_REVOKE:
        kv_mover_revoke(request->core->holder.mover, action->transfer_id);
        break;
    case KV_PD_PREFILL_DO_SEAL:
        do_seal(request, action);
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

static void post(kv_prefill_request_t *request, kv_pd_prefill_event_t event)
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
    post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_START,
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
    forget_fetched(request);
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
    post(context, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_CANCEL});
}

/* Who made the blocks that the source sends: the first ones of those asked for. false: it is not
 * what a source says. */
static bool take_makers(kv_prefill_request_t *request, char *const *ids, size_t count)
{
    if (request->fetched_arithmetic != NULL) { /* said already: it may send fewer, never more */
        return count <= request->fetched_count;
    }
    uint32_t wanted = request->machine.fetch_count;
    char **copy = count <= wanted ? kv_core_copy_arithmetic(ids, count, (uint32_t)count) : NULL;
    if (copy == NULL) {
        kv_log_warn("prefill",
            "request %s: %zu arithmetic ids came for a fetch of %u blocks, or too long ones: not "
            "used",
            request->request_id, count, wanted);
        return false;
    }
    request->fetched_arithmetic = copy;
    request->fetched_count = (uint32_t)count;
    return true;
}

static bool fetches_now(const kv_prefill_request_t *request, uint64_t transfer_id)
{
    return request->machine.state == KV_PD_PREFILL_FETCHING && !request->machine.revoking &&
           request->machine.fetch_id == transfer_id;
}

static void take_begins(kv_prefill_request_t *request, const Kvist__Wire__Prefilling *begins)
{
    if (fetches_now(request, begins->transfer_id) &&
        take_makers(request, begins->block_arithmetic, begins->n_block_arithmetic)) {
        post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_FETCH_BEGINS,
                          .transfer_id = begins->transfer_id,
                          .block_count = (uint32_t)begins->n_block_arithmetic});
    }
}

static void take_fetched(kv_prefill_request_t *request, const Kvist__Wire__Fetched *fetched)
{
    if (!fetches_now(request, fetched->transfer_id)) {
        return;
    }
    kv_status_t status = (kv_status_t)fetched->status;
    if (status == KV_OK &&
        !take_makers(request, fetched->block_arithmetic, fetched->n_block_arithmetic)) {
        status = KV_INVALID;
    }
    post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_FETCHED,
                      .transfer_id = fetched->transfer_id,
                      .status = status,
                      .block_count = (uint32_t)fetched->n_block_arithmetic});
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
        take_begins(request, message->prefilling);
        return true;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_FETCHED &&
        message->fetched->transfer_id == request->machine.fetch_id) {
        take_fetched(request, message->fetched);
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
    post(request, step);
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
            uint32_t computed_first = request->machine.held_blocks * block_tokens(request);
            kv_rates_computed(&request->core->rates, request->token_count - computed_first,
                request->usage.compute_ns);
        }
        if (event->status != KV_OK && event->status != KV_CANCELLED) {
            snprintf(request->error, sizeof request->error, "%s", event->error);
        }
        post(request,
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
        post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_SOURCE_DOWN});
    }
    if (request->peer == peer) {
        post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_PEER_DOWN});
        request->peer = NULL;
    }
}

static void tick(void *context, uint64_t now_ns)
{
    kv_prefill_request_t *request = context;
    if (request->machine.state == KV_PD_PREFILL_FETCHING && now_ns > request->fetches_end_ns) {
        post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_TIMEOUT});
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
