#include "holder/source.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "holder/courier.h"
#include "holder/message.h"
#include "transport/pd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* To bring blocks up: slots are first come first served, so that a longer wait would hold up this
 * node's own requests. */
static const uint64_t PREPARE_LIMIT_NS = 1ull * KV_NS_PER_S;
static const uint64_t LIMIT_NS = 60ull * KV_NS_PER_S;

enum { EVENTS_MAX = 8 };

struct kv_source {
    kv_holder_t *holder;
    uint64_t id;
    kv_peer_t *peer; /* NULL once it is gone */
    char *request_id;
    uint64_t deadline_ns;

    kvist_lease_t *lease;
    uint32_t matched_blocks; /* where nothing has to be prepared */
    uint32_t raised_blocks;  /* that the lease brings to device memory */
    kv_courier_t *courier;   /* of a holder with bounce blocks, from the first piece on */
    /* Out of the device tier: what is there leaves while later layers still come. */
    uint32_t layers_there, layers_sent, pieces_out;
    kv_status_t sent_status; /* the first that went wrong */
    bool sent;               /* the machine knows that all pieces had their end */

    kv_pd_source_t machine;
    kv_pd_source_event_t events[EVENTS_MAX];
    uint32_t event_count;
    bool stepping;
    bool preparing; /* the store will call prepared() */
    bool released;  /* the machine's outcome */

    /* What to match; until the machine asks for it. */
    kvist_key_t name_space;
    uint32_t *tokens;
    uint32_t token_count;
    const kv_requests_t *sources;
};

/* ---- answers ---- */

static void answer(kv_peer_t *peer, char *request_id, uint64_t transfer_id, kv_status_t status,
    const char *text, char **arithmetic, uint32_t count)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Fetched fetched = KVIST__WIRE__FETCHED__INIT;
    fetched.request_id = request_id;
    fetched.transfer_id = transfer_id;
    fetched.status = (uint32_t)status;
    fetched.error = (char *)text;
    fetched.n_block_arithmetic = count;
    fetched.block_arithmetic = arithmetic;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_FETCHED;
    envelope.fetched = &fetched;
    kv_holder_send(peer, &envelope);
    char label[64];
    snprintf(label, sizeof label, "status=\"%s\"", kv_status_name(status));
    kv_metric_add(
        kv_metric_counter("kvist_fetches_served_total", label, "answers to fetches of other nodes"),
        1);
}

/* Who made the action's blocks; the strings are the store's. Release with free(). */
static char **arithmetic_of(const kv_source_t *source, const kv_pd_source_action_t *action)
{
    char **ids = kv_allocate_array(action->block_count, sizeof *ids);
    for (uint32_t i = 0; i < action->block_count; i++) {
        ids[i] = (char *)kvist_lease_arithmetic(source->lease, action->first_block + i);
    }
    return ids;
}

/* ---- actions ---- */

static void post(kv_source_t *source, kv_pd_source_event_t event);

static void prepared(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    kv_source_t *source = context;
    (void)lease;
    source->preparing = false;
    if (source->released) {
        return; /* given up while the store was at it */
    }
    if (status == KV_OK) {
        post(source, (kv_pd_source_event_t){
                         .kind = KV_PD_SOURCE_EV_MATCHED, .held_blocks = match->block_count});
    } else {
        post(
            source, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_MATCH_FAILED, .status = status});
    }
}

static void send_layers(kv_source_t *source);

static void layers_came(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t layer_count)
{
    kv_source_t *source = context;
    (void)lease;
    source->layers_there = status == KV_OK ? layer_count : source->layers_there;
    source->sent_status = source->sent_status == KV_OK ? status : source->sent_status;
    if (source->machine.state == KV_PD_SOURCE_SENDING) {
        send_layers(source);
    }
}

/* Blocks that all sources together bring to device memory. */
static uint32_t raised_by_all(const kv_requests_t *sources)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < sources->count; i++) {
        count += ((const kv_source_t *)sources->items[i])->raised_blocks;
    }
    return count;
}

static kv_status_t match(kv_source_t *source)
{
    kvist_query_t query = {
        .name_space = source->name_space,
        .tokens = source->tokens,
        .token_count = source->token_count,
        .mode = KVIST_MODE_READ,
    };
    kvist_match_t found;
    kv_status_t status = kvist_match(source->holder->store, &query, &source->lease, &found);
    if (status != KV_OK) {
        return status;
    }
    if (found.block_count <= source->machine.first_block) {
        return KV_MISSING;
    }
    if (source->holder->bounce != NULL) {
        source->matched_blocks = found.block_count;
        return KV_OK;
    }
    uint32_t raised = found.block_count - found.tier_blocks[KVIST_TIER_DEVICE];
    if (raised_by_all(source->sources) + raised > source->holder->slot_count / 2) {
        return KV_BUSY;
    }
    source->raised_blocks = raised;
    status = kvist_lease_prepare_layers(source->lease, found.block_count,
        kv_clock_now_ns() + PREPARE_LIMIT_NS, prepared, layers_came, source);
    source->preparing = status == KV_OK;
    return status;
}

static void do_match(kv_source_t *source)
{
    kv_status_t status = match(source);
    free(source->tokens); /* the lease has its own */
    source->tokens = NULL;
    if (status != KV_OK) {
        post(
            source, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_MATCH_FAILED, .status = status});
    } else if (source->matched_blocks > 0) {
        post(source, (kv_pd_source_event_t){
                         .kind = KV_PD_SOURCE_EV_MATCHED, .held_blocks = source->matched_blocks});
    }
}

static void do_send_begins(kv_source_t *source, const kv_pd_source_action_t *action)
{
    if (source->peer == NULL || kv_peer_version(source->peer) < 2) {
        return;
    }
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Prefilling begins = KVIST__WIRE__PREFILLING__INIT;
    char **arithmetic = arithmetic_of(source, action);
    begins.request_id = source->request_id;
    begins.transfer_id = action->transfer_id;
    begins.n_block_arithmetic = action->block_count;
    begins.block_arithmetic = arithmetic;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PREFILLING;
    envelope.prefilling = &begins;
    kv_holder_send(source->peer, &envelope);
    free(arithmetic);
}

static void couriered(void *context, kv_status_t status, uint32_t sent_count)
{
    kv_source_t *source = context;
    uint32_t asked = source->machine.block_count;
    post(source, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_SENT,
                     .status = status,
                     .unsent_blocks = sent_count < asked ? asked - sent_count : 0});
}

static void send_by_courier(kv_source_t *source, const kv_pd_source_action_t *action)
{
    kv_courier_params_t params = {
        .lease = source->lease,
        .peer = source->peer,
        .transfer_id = action->transfer_id,
        .first_block = action->first_block,
        .block_count = action->block_count,
        .done = couriered,
        .context = source,
    };
    source->courier = kv_courier_create(source->holder, &params);
    kv_courier_go_on(source->courier);
}

/* Layers of all blocks that are there and did not leave yet. */
static void send_piece(kv_source_t *source)
{
    const size_t layer_bytes = source->holder->layer_bytes;
    const uint32_t first = source->layers_sent, end = source->layers_there;
    kv_range_t range = kv_range_alike(first * layer_bytes, (end - first) * layer_bytes);
    kv_piece_t piece = {
        .transfer_id = source->machine.transfer_id,
        .tag = source->id,
        .first_block = 0,
        .block_count = source->machine.block_count,
        .ranges = &range,
        .range_count = 1,
        .slots = kvist_lease_slots(source->lease) + source->machine.first_block,
    };
    source->layers_sent = end;
    if (source->peer != NULL && kv_holder_send_piece(source->holder, source->peer, &piece)) {
        source->pieces_out++;
    } else if (source->sent_status == KV_OK) {
        source->sent_status = KV_PEER_LOST;
    }
}

/* Sends what can be sent; tells the machine, once, when nothing is out and nothing will be. */
static void send_layers(kv_source_t *source)
{
    const uint32_t layer_count =
        (uint32_t)(source->holder->block_bytes / source->holder->layer_bytes);
    const bool sending = source->machine.state == KV_PD_SOURCE_SENDING;
    if (sending && source->sent_status == KV_OK && source->layers_sent < source->layers_there) {
        send_piece(source);
    }
    const bool more = sending && source->sent_status == KV_OK && source->layers_sent < layer_count;
    if (source->pieces_out == 0 && !more && !source->sent) {
        source->sent = true;
        post(source,
            (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_SENT, .status = source->sent_status});
    }
}

static void do_send_pieces(kv_source_t *source, const kv_pd_source_action_t *action)
{
    if (source->holder->bounce != NULL) {
        send_by_courier(source, action);
        return;
    }
    if (!kvist_lease_is_loading(source->lease)) {
        source->layers_there =
            (uint32_t)(source->holder->block_bytes / source->holder->layer_bytes);
    }
    send_layers(source);
}

static void do_cancel_pieces(kv_source_t *source, const kv_pd_source_action_t *action)
{
    if (source->courier != NULL) {
        kv_courier_cancel(source->courier);
        kv_courier_go_on(source->courier);
        return;
    }
    if (source->peer != NULL) {
        kv_mover_cancel(source->holder->mover, kv_holder_link(source->peer), action->transfer_id);
    }
    send_layers(source); /* nothing may be out: then that was it */
}

static void do_send_fetched(kv_source_t *source, const kv_pd_source_action_t *action)
{
    if (source->peer == NULL) {
        return;
    }
    char **arithmetic = NULL;
    uint32_t count = 0;
    if (action->status == KV_OK) {
        arithmetic = arithmetic_of(source, action);
        count = action->block_count;
    }
    answer(source->peer, source->request_id, action->transfer_id, action->status,
        kv_status_name(action->status), arithmetic, count);
    free(arithmetic);
}

static void carry_out(kv_source_t *source, const kv_pd_source_action_t *action)
{
    switch (action->kind) {
    case KV_PD_SOURCE_DO_MATCH:
        do_match(source);
        break;
    case KV_PD_SOURCE_DO_SEND_BEGINS:
        do_send_begins(source, action);
        break;
    case KV_PD_SOURCE_DO_SEND_PIECES:
        do_send_pieces(source, action);
        break;
    case KV_PD_SOURCE_DO_CANCEL_PIECES:
        do_cancel_pieces(source, action);
        break;
    case KV_PD_SOURCE_DO_SEND_FETCHED:
        do_send_fetched(source, action);
        break;
    case KV_PD_SOURCE_DO_RELEASE:
        if (source->lease != NULL) {
            kvist_lease_release(source->lease);
            source->lease = NULL;
        }
        source->raised_blocks = 0;
        source->released = true;
        break;
    }
}

static void post(kv_source_t *source, kv_pd_source_event_t event)
{
    KV_CHECK(source->event_count < EVENTS_MAX);
    source->events[source->event_count++] = event;
    if (source->stepping) {
        return; /* the loop below is running */
    }
    source->stepping = true;
    while (source->event_count > 0) {
        kv_pd_source_event_t next = source->events[0];
        memmove(
            source->events, source->events + 1, --source->event_count * sizeof source->events[0]);
        kv_pd_source_actions_t actions;
        kv_pd_source_step(&source->machine, &next, &actions);
        for (uint32_t i = 0; i < actions.count; i++) {
            carry_out(source, &actions.items[i]);
        }
    }
    source->stepping = false;
}

/* ---- life ---- */

static bool is_from(const void *context, const kv_peer_t *peer)
{
    return ((const kv_source_t *)context)->peer == peer;
}

static kv_status_t check_room(const kv_holder_t *holder, const kv_peer_t *peer,
    const Kvist__Wire__Fetch *message, const kv_requests_t *sources, kv_error_t *error)
{
    if (holder->stopping) {
        return kv_fail(error, KV_BUSY, "the node is stopping");
    }
    if (sources->count >= KV_SOURCES_MAX) {
        return kv_fail(error, KV_BUSY, "%u fetches are served already", sources->count);
    }
    if (kv_requests_from(sources, peer) >= KV_SOURCES_PEER_MAX) {
        return kv_fail(
            error, KV_BUSY, "%d fetches of this peer are served already", KV_SOURCES_PEER_MAX);
    }
    for (uint32_t i = 0; i < sources->count; i++) {
        const kv_source_t *other = sources->items[i];
        if (other->peer == peer && other->machine.transfer_id == message->transfer_id) {
            return kv_fail(error, KV_INVALID, "transfer_id is of a fetch that is served already");
        }
    }
    return KV_OK;
}

/* The context that the blocks belong to: the message's own, else that of the request. */
static kv_status_t find_context(const kv_holder_t *holder, const Kvist__Wire__Fetch *message,
    const kv_request_context_t *context, kv_request_context_t *context_out, kv_error_t *error)
{
    if (message->n_tokens == 0) {
        if (context == NULL) {
            return kv_fail(error, KV_INVALID, "tokens are missing, and request_id is none here");
        }
        *context_out = *context;
        return KV_OK;
    }
    if (message->name_space.len != KVIST_KEY_BYTES) {
        return kv_fail(error, KV_INVALID, "name_space has %zu bytes (%d)", message->name_space.len,
            KVIST_KEY_BYTES);
    }
    memcpy(context_out->name_space.bytes, message->name_space.data, KVIST_KEY_BYTES);
    context_out->tokens = message->tokens;
    if (message->n_tokens > holder->context_tokens_max) {
        return kv_fail(error, KV_INVALID, "tokens: %zu of them (at most %u)", message->n_tokens,
            holder->context_tokens_max);
    }
    context_out->token_count = (uint32_t)message->n_tokens;
    return kv_message_check_tokens(
        message->tokens, message->n_tokens, holder->vocabulary_count, error);
}

static kv_status_t check(const kv_holder_t *holder, const Kvist__Wire__Fetch *message,
    const kv_request_context_t *context, kv_request_context_t *context_out, kv_error_t *error)
{
    if (!kv_text_is_plain(message->request_id, '!', KV_MESSAGE_ID_BYTES_MAX)) {
        return kv_fail(error, KV_INVALID, "request_id is not 1 to %d printable characters",
            KV_MESSAGE_ID_BYTES_MAX);
    }
    if (message->transfer_id == 0) {
        return kv_fail(error, KV_INVALID, "transfer_id is 0 (at least 1)");
    }
    kv_status_t status = find_context(holder, message, context, context_out, error);
    if (status != KV_OK) {
        return status;
    }
    uint32_t whole = context_out->token_count / holder->block_tokens;
    if (message->block_count == 0 || message->first_block >= whole ||
        message->block_count > whole - message->first_block) {
        return kv_fail(error, KV_INVALID,
            "block_count is %u from first_block %u on, the context has %u whole ones",
            message->block_count, message->first_block, whole);
    }
    return KV_OK;
}

kv_source_t *kv_source_create(kv_holder_t *holder, uint64_t id, kv_peer_t *peer,
    const Kvist__Wire__Fetch *message, const kv_request_context_t *context,
    const kv_requests_t *sources)
{
    kv_error_t error;
    kv_request_context_t asked = {0};
    kv_status_t status = kv_holder_link(peer) == 0
                             ? kv_fail(&error, KV_REFUSED, "this peer moves no KV")
                             : check(holder, message, context, &asked, &error);
    if (status == KV_OK) {
        status = check_room(holder, peer, message, sources, &error);
    }
    if (status != KV_OK) {
        /* Busy is an ordinary answer, and the metric counts it. */
        KV_LOG_AT(status == KV_BUSY ? KV_LOG_DEBUG : KV_LOG_WARN, "holder",
            "a fetch of peer %s is refused: %s", kv_peer_name(peer), error.text);
        answer(peer, message->request_id, message->transfer_id, status, error.text, NULL, 0);
        return NULL;
    }
    kv_source_t *source = kv_allocate(sizeof *source);
    source->holder = holder;
    source->id = id;
    source->peer = peer;
    source->request_id = kv_duplicate_string(message->request_id);
    source->deadline_ns = kv_clock_now_ns() + LIMIT_NS;
    source->name_space = asked.name_space;
    source->token_count = (message->first_block + message->block_count) * holder->block_tokens;
    source->tokens = kv_allocate_array(source->token_count, sizeof *source->tokens);
    memcpy(source->tokens, asked.tokens, source->token_count * sizeof *source->tokens);
    source->sources = sources;
    post(source, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_START,
                     .transfer_id = message->transfer_id,
                     .first_block = message->first_block,
                     .block_count = message->block_count});
    return source;
}

static bool is_done(const void *context)
{
    const kv_source_t *source = context;
    return source->released && !source->preparing;
}

static void destroy(void *context)
{
    kv_source_t *source = context;
    kv_courier_destroy(source->courier);
    free(source->request_id);
    free(source->tokens);
    free(source);
}

static bool is_running(const void *context)
{
    (void)context;
    return true;
}

/* ---- what happens to it ---- */

static bool receive(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kv_source_t *source = context;
    if (peer != source->peer || message->body_case != KVIST__WIRE__ENVELOPE__BODY_UNFETCH ||
        message->unfetch->transfer_id != source->machine.transfer_id) {
        return false;
    }
    post(source, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_UNFETCH});
    return true;
}

static bool moved(void *context, const kv_mover_event_t *event)
{
    kv_source_t *source = context;
    if (source->courier != NULL) {
        return kv_courier_moved(source->courier, event);
    }
    if (event->kind != KV_MOVED_SENT || event->tag != source->id) {
        return false;
    }
    source->pieces_out--;
    source->sent_status = source->sent_status == KV_OK ? event->status : source->sent_status;
    send_layers(source);
    return true;
}

static void peer_down(void *context, kv_peer_t *peer)
{
    kv_source_t *source = context;
    if (source->peer == peer) {
        post(source, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_PEER_DOWN});
        source->peer = NULL;
        if (source->courier != NULL) {
            kv_courier_peer_down(source->courier);
        }
    }
}

static void tick(void *context, uint64_t now_ns)
{
    kv_source_t *source = context;
    if (now_ns > source->deadline_ns) {
        source->deadline_ns = UINT64_MAX;
        post(source, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_TIMEOUT});
    }
    if (source->courier != NULL) {
        kv_courier_go_on(source->courier); /* others may have given blocks back */
    }
}

static void stop(void *context)
{
    post(context, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_STOP});
}

const kv_request_ops_t KV_SOURCE_OPS = {
    .is_from = is_from,
    .message = receive,
    .moved = moved,
    .peer_down = peer_down,
    .tick = tick,
    .stop = stop,
    .is_running = is_running,
    .is_done = is_done,
    .destroy = destroy,
};
