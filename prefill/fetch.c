/* What a request lacks, from another node that has it: who is asked, for what, what it says. */
#include "prefill/request_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "holder/remote.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- who is asked ---- */

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
        request->keys = kv_allocate_array(kv_prefill_prompt_blocks(request), sizeof *request->keys);
        kvist_keys(&request->name_space, request->tokens, NULL, request->token_count,
            kv_prefill_block_tokens(request), request->keys);
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

void kv_prefill_do_find_source(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
{
    uint64_t now_ns = kv_clock_now_ns();
    uint32_t count = 0;
    if (request->fetches_end_ns == 0) {
        request->fetches_end_ns =
            now_ns + kv_rates_fetch_limit_ns(&request->core->rates,
                         action->block_count * kv_prefill_block_tokens(request));
    }
    kv_peer_t *source = NULL;
    if (now_ns < request->fetches_end_ns) {
        source = find_source(request, action->first_block, action->block_count, &count);
    }
    if (source == NULL ||
        !kv_rates_fetch_pays(&request->core->rates, count, kv_prefill_block_tokens(request),
            kv_block_bytes(&request->core->info->shape))) {
        note_no_source(request, action, source, count);
        kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_SOURCE});
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
    kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_SOURCE,
                                 .block_count = count,
                                 .transfer_id = kv_mover_transfer_id(request->core->holder.mover)});
}

bool kv_prefill_do_expect(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
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
        kv_prefill_post(request,
            (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_FETCH_REFUSED, .status = status});
    }
    return status == KV_OK;
}

void kv_prefill_do_send_fetch(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
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
            (size_t)(action->first_block + action->block_count) * kv_prefill_block_tokens(request);
        fetch.tokens = request->tokens;
    }
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_FETCH;
    envelope.fetch = &fetch;
    kv_holder_send(request->source, &envelope);
}

void kv_prefill_do_send_unfetch(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
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

/* ---- what came ---- */

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

void kv_prefill_take_begins(kv_prefill_request_t *request, const Kvist__Wire__Prefilling *begins)
{
    if (fetches_now(request, begins->transfer_id) &&
        take_makers(request, begins->block_arithmetic, begins->n_block_arithmetic)) {
        kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_FETCH_BEGINS,
                                     .transfer_id = begins->transfer_id,
                                     .block_count = (uint32_t)begins->n_block_arithmetic});
    }
}

void kv_prefill_take_fetched(kv_prefill_request_t *request, const Kvist__Wire__Fetched *fetched)
{
    if (!fetches_now(request, fetched->transfer_id)) {
        return;
    }
    kv_status_t status = (kv_status_t)fetched->status;
    if (status == KV_OK &&
        !take_makers(request, fetched->block_arithmetic, fetched->n_block_arithmetic)) {
        status = KV_INVALID;
    }
    kv_prefill_post(request, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_FETCHED,
                                 .transfer_id = fetched->transfer_id,
                                 .status = status,
                                 .block_count = (uint32_t)fetched->n_block_arithmetic});
}

void kv_prefill_forget_fetched(kv_prefill_request_t *request)
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

void kv_prefill_do_seal(kv_prefill_request_t *request, const kv_pd_prefill_action_t *action)
{
    KV_CHECK(action->block_count <= request->fetched_count);
    uint64_t bytes = (uint64_t)action->block_count * kv_block_bytes(&request->core->info->shape);
    uint64_t now_ns = kv_clock_now_ns();
    for (uint32_t i = 0; i < action->block_count; i++) {
        kv_core_seal(request->core, request->lease, request->tokens,
            (action->first_block + i + 1) * kv_prefill_block_tokens(request),
            request->fetched_arithmetic[i]);
    }
    kv_rates_fetched(&request->core->rates, bytes, now_ns - request->fetch_begun_ns);
    count_fetch(action->block_count, request->asked_blocks, bytes);
    kv_prefill_forget_fetched(request);
    request->source = NULL;
    if (action->block_count == request->asked_blocks) {
        set_miss(request, request->match.miss);
    }
    if (action->block_count > 0) {
        request->usage.cached->remote += action->block_count * kv_prefill_block_tokens(request);
        request->usage.loaded_bytes += bytes;
        request->usage.load_ns = now_ns - request->arrived_ns - request->usage.match_ns;
        if (action->first_block + action->block_count == request->machine.whole_blocks) {
            set_miss(request, KVIST_MISS_NONE);
        }
    }
}
