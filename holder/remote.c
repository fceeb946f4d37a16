#include "holder/remote.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "cluster/events_log.h"
#include "cluster/events_reader.h"
#include "cluster/holdings.h"

#include <stdlib.h>
#include <string.h>

enum {
    PUMP_MS = 20,               /* changes are gathered for so long */
    PUMP_BLOCKED_MS = 100,      /* where nobody who waits can take anything */
    BATCHES_AT_ONCE = 4,        /* to one peer; of a snapshot one */
    QUEUED_BYTES_MAX = 1 << 20, /* of a peer's frames: beyond it events wait */
    HELD_OBJECTS_AT_ONCE = 1024,
    ENTRY_BYTES = 22, /* of the map: kv_holdings_bytes */
};

_Static_assert((int)KVIST_TIER_DEVICE == KVIST__EVENTS__TIER__TIER_DEVICE &&
                   (int)KVIST_TIER_HOST == KVIST__EVENTS__TIER__TIER_HOST &&
                   (int)KVIST_TIER_DISK == KVIST__EVENTS__TIER__TIER_DISK,
    "tiers have the same numbers");
_Static_assert((int)KVIST_CHANGE_BLOCKS_MAX <= (int)KV_EVENT_KEYS_MAX, "a change is one event");
_Static_assert(
    (int)KVIST_KEY_BYTES == (int)KV_HOLDINGS_KEY_BYTES && sizeof(kvist_key_t) == KVIST_KEY_BYTES,
    "keys lie side by side");

typedef struct follower follower_t;
struct follower {
    follower_t *next;
    kv_remote_t *remote;
    kv_peer_t *peer;
    bool follows; /* this node follows it */
    kv_events_reader_t reader;
    bool subscribed; /* it follows this node */
    kv_events_place_t place;
};

struct kv_remote {
    kv_holder_t *holder;
    kv_events_log_t *log;
    kv_holdings_t *holdings; /* NULL: other nodes are not asked */
    kv_timer_t *pump;
    bool pumping;
    follower_t *followers; /* peers that are up */
    struct {
        kv_metric_t *sent, *received, *gaps, *snapshots_sent, *snapshots_received, *holders,
            *entries;
    } metrics;
};

/* ---- what the own store holds ---- */

static kv_event_t event_of(const kvist_change_t *change)
{
    return (kv_event_t){
        .tier = (Kvist__Events__Tier)change->tier,
        .stored = change->stored,
        .group = change->group,
        .key_count = change->block_count,
        .keys = change->keys->bytes,
        .first_block = change->first_block,
        .name_space = change->name_space.bytes,
        .parent = change->stored && change->group == 0 ? change->parent.bytes : NULL,
    };
}

static void keep_pumping(kv_remote_t *remote, uint64_t delay_ms)
{
    if (!remote->pumping) {
        remote->pumping = true;
        kv_timer_start(remote->pump, delay_ms, 0);
    }
}

static bool anybody_follows(const kv_remote_t *remote)
{
    const follower_t *follower = remote->followers;
    while (follower != NULL && !follower->subscribed) {
        follower = follower->next;
    }
    return follower != NULL;
}

static void store_changed(void *context, const kvist_change_t *change)
{
    kv_remote_t *remote = context;
    kv_event_t event = event_of(change);
    kv_events_log_add(remote->log, &event);
    if (anybody_follows(remote)) {
        keep_pumping(remote, PUMP_MS);
    }
}

typedef struct {
    kv_event_visit_t visit;
    void *context;
} visitor_t;

static void visit_held(void *context, const kvist_change_t *change)
{
    const visitor_t *visitor = context;
    kv_event_t event = event_of(change);
    visitor->visit(visitor->context, &event);
}

static bool held(void *context, uint32_t *cursor, kv_event_visit_t visit, void *visit_context)
{
    const kv_remote_t *remote = context;
    visitor_t visitor = {visit, visit_context};
    return kvist_store_held(
        remote->holder->store, cursor, HELD_OBJECTS_AT_ONCE, visit_held, &visitor);
}

/* ---- telling those who follow ---- */

/* One batch, as far as there is one. */
static bool send_batch(kv_remote_t *remote, follower_t *follower)
{
    const Kvist__Events__Batch *batch = kv_events_log_take(remote->log, &follower->place);
    if (batch == NULL) {
        return false;
    }
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_EVENTS;
    envelope.events = (Kvist__Events__Batch *)(uintptr_t)batch;
    kv_holder_send(follower->peer, &envelope);
    kv_metric_add(remote->metrics.sent, (double)batch->n_events);
    bool begins = batch->part == KVIST__EVENTS__PART__PART_FIRST ||
                  batch->part == KVIST__EVENTS__PART__PART_ONLY;
    kv_metric_add(remote->metrics.snapshots_sent, begins);
    return true;
}

/* false: the peer's connection is too full. */
static bool tell(kv_remote_t *remote, follower_t *follower)
{
    for (int i = 0; i < BATCHES_AT_ONCE; i++) {
        if (kv_peer_queued_bytes(follower->peer) > QUEUED_BYTES_MAX) {
            return false;
        }
        if (!send_batch(remote, follower) || follower->place.snapshot) {
            break;
        }
    }
    return true;
}

static void pump(void *context)
{
    kv_remote_t *remote = context;
    bool more = false, told = false;
    remote->pumping = false;
    for (follower_t *follower = remote->followers; follower != NULL; follower = follower->next) {
        if (follower->subscribed && kv_events_log_has(remote->log, &follower->place)) {
            told |= tell(remote, follower);
            more |= kv_events_log_has(remote->log, &follower->place);
        }
    }
    if (more) {
        keep_pumping(remote, told ? PUMP_MS : PUMP_BLOCKED_MS);
    }
}

static void take_subscription(
    kv_remote_t *remote, follower_t *follower, const Kvist__Events__Subscribe *message)
{
    kv_error_t error;
    kv_status_t status = kv_events_log_subscribe(remote->log, message, &follower->place, &error);
    if (status != KV_OK) {
        kv_peer_close(follower->peer, status, error.text);
        return;
    }
    follower->subscribed = true;
    keep_pumping(remote, PUMP_MS);
}

/* ---- following the others ---- */

static void show_map(kv_remote_t *remote)
{
    uint32_t holders = 0;
    for (const follower_t *at = remote->followers; at != NULL; at = at->next) {
        holders += at->follows && at->reader.next_sequence > 0;
    }
    kv_metric_set(remote->metrics.holders, holders);
    kv_metric_set(remote->metrics.entries, (double)kv_holdings_count(remote->holdings));
}

static void subscribe(follower_t *follower)
{
    Kvist__Events__Subscribe message;
    kv_events_reader_subscribe(&follower->reader, &message);
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_SUBSCRIBE;
    envelope.subscribe = &message;
    kv_holder_send(follower->peer, &envelope);
}

static void holder_cleared(void *context)
{
    const follower_t *follower = context;
    kv_holdings_forget(follower->remote->holdings, kv_peer_id(follower->peer));
    kv_metric_add(follower->remote->metrics.snapshots_received, 1);
}

static void holder_changed(void *context, const kv_event_t *event)
{
    const follower_t *follower = context;
    if (event->group > 0) {
        return; /* who has a block's first group has it all, but for what windows let go */
    }
    void (*change)(kv_holdings_t * holdings, uint64_t holder, const uint8_t *keys, size_t count,
        Kvist__Events__Tier tier) = event->stored ? kv_holdings_stored : kv_holdings_removed;
    change(follower->remote->holdings, kv_peer_id(follower->peer), event->keys, event->key_count,
        event->tier);
}

static void take_events(
    kv_remote_t *remote, follower_t *follower, const Kvist__Events__Batch *batch)
{
    if (!follower->follows) {
        return; /* nobody asked */
    }
    const kv_events_sink_t sink = {follower, holder_cleared, holder_changed};
    kv_error_t error;
    size_t count;
    kv_status_t status = kv_events_reader_take(&follower->reader, batch, &sink, &count, &error);
    kv_metric_add(remote->metrics.received, (double)count);
    if (status == KV_MISSING) {
        kv_metric_add(remote->metrics.gaps, 1);
        kv_log_info("holder", "events of peer %s: %s, subscribed again",
            kv_peer_name(follower->peer), error.text);
        subscribe(follower);
    } else if (status != KV_OK) {
        kv_peer_close(follower->peer, status, error.text);
    }
    show_map(remote);
}

/* ---- peers ---- */

static follower_t *find_follower(const kv_remote_t *remote, uint64_t peer_id)
{
    follower_t *follower = remote->followers;
    while (follower != NULL && kv_peer_id(follower->peer) != peer_id) {
        follower = follower->next;
    }
    return follower;
}

void kv_remote_peer_up(kv_remote_t *remote, kv_peer_t *peer)
{
    if (kv_peer_version(peer) < 2) {
        return;
    }
    follower_t *follower = kv_allocate(sizeof *follower);
    follower->remote = remote;
    follower->peer = peer;
    follower->next = remote->followers;
    remote->followers = follower;
    kv_link_params_t params;
    if (remote->holdings != NULL && kv_peer_link_params(peer, &params)) {
        follower->follows = true;
        subscribe(follower);
    }
}

void kv_remote_peer_down(kv_remote_t *remote, kv_peer_t *peer)
{
    follower_t **link = &remote->followers;
    while (*link != NULL && (*link)->peer != peer) {
        link = &(*link)->next;
    }
    follower_t *follower = *link;
    if (follower == NULL) {
        return;
    }
    *link = follower->next;
    if (follower->follows) {
        kv_holdings_forget(remote->holdings, kv_peer_id(peer));
        show_map(remote);
    }
    free(follower);
}

bool kv_remote_message(kv_remote_t *remote, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    bool subscribes = message->body_case == KVIST__WIRE__ENVELOPE__BODY_SUBSCRIBE;
    if (!subscribes && message->body_case != KVIST__WIRE__ENVELOPE__BODY_EVENTS) {
        return false;
    }
    follower_t *follower = find_follower(remote, kv_peer_id(peer));
    if (follower == NULL) {
        return true; /* of a version that has none */
    }
    if (subscribes) {
        take_subscription(remote, follower, message->subscribe);
    } else {
        take_events(remote, follower, message->events);
    }
    return true;
}

/* ---- whom to ask ---- */

static bool is_among(uint64_t id, const uint64_t *ids, size_t count)
{
    size_t i = 0;
    while (i < count && ids[i] != id) {
        i++;
    }
    return i < count;
}

static uint32_t load_of(const kv_peer_t *peer)
{
    return kv_peer_queued_requests(peer) + kv_peer_running_requests(peer);
}

static bool as_good(const kv_holding_t *left, const kv_holding_t *right)
{
    return left->block_count == right->block_count &&
           memcmp(left->tier_blocks, right->tier_blocks, sizeof left->tier_blocks) == 0;
}

/* What that one holds, this node's own match has found. */
static bool is_own_store(const kv_holder_t *holder, const kv_peer_t *peer)
{
    const char *own = kvist_store_attached_to(holder->store);
    return own != NULL && strcmp(own, kv_peer_name(peer)) == 0;
}

bool kv_remote_find(kv_holder_t *holder, const kvist_key_t *keys, uint32_t key_count,
    const uint64_t *excluded_peers, size_t excluded_count, kv_peer_t **peer_out,
    uint32_t *block_count_out)
{
    const kv_remote_t *remote = holder->remote;
    if (remote->holdings == NULL || key_count == 0) {
        return false;
    }
    kv_holding_t found[KV_HOLDERS_MAX]; /* the best first */
    size_t count =
        kv_holdings_find(remote->holdings, keys->bytes, key_count, found, KV_HOLDERS_MAX);
    const kv_holding_t *best = NULL;
    kv_peer_t *best_peer = NULL;
    for (size_t i = 0; i < count && (best == NULL || as_good(best, &found[i])); i++) {
        const follower_t *follower = find_follower(remote, found[i].holder);
        if (follower == NULL || is_among(found[i].holder, excluded_peers, excluded_count) ||
            kv_peer_draining(follower->peer) || !kv_holder_link_up(follower->peer) ||
            is_own_store(holder, follower->peer)) {
            continue;
        }
        if (best == NULL || load_of(follower->peer) < load_of(best_peer)) {
            best = &found[i];
            best_peer = follower->peer;
        }
    }
    if (best == NULL) {
        return false;
    }
    *peer_out = best_peer;
    *block_count_out = best->block_count;
    return true;
}

bool kv_remote_holder(const kv_holder_t *holder, const kvist_key_t *keys, uint32_t key_count,
    const char **name_out, uint32_t *block_count_out)
{
    const kv_remote_t *remote = holder->remote;
    if (remote->holdings == NULL || key_count == 0) {
        return false;
    }
    kv_holding_t found[KV_HOLDERS_MAX]; /* the best first */
    size_t count =
        kv_holdings_find(remote->holdings, keys->bytes, key_count, found, KV_HOLDERS_MAX);
    for (size_t i = 0; i < count; i++) {
        const follower_t *follower = find_follower(remote, found[i].holder);
        if (follower != NULL && !is_own_store(holder, follower->peer)) {
            *name_out = kv_peer_name(follower->peer);
            *block_count_out = found[i].block_count;
            return true;
        }
    }
    return false;
}

/* ---- the admin socket ---- */

static kv_status_t place_of(const kv_remote_t *remote, const Kvist__Admin__EventsRequest *request,
    kv_events_place_t *place_out, kv_error_t *error)
{
    Kvist__Events__Subscribe from = KVIST__EVENTS__SUBSCRIBE__INIT;
    uint8_t *instance = (uint8_t *)(uintptr_t)kv_events_log_instance(remote->log);
    if (request->from != NULL) {
        from = *request->from;
    }
    if (from.next_sequence > 0 && from.instance.len == 0) {
        from.instance = (ProtobufCBinaryData){KV_EVENT_INSTANCE_BYTES, instance};
    }
    kv_status_t status = kv_events_log_subscribe(remote->log, &from, place_out, error);
    if (status == KV_OK && !place_out->snapshot && request->snapshot_cursor > 0) {
        place_out->snapshot = place_out->begun = true;
        place_out->held_cursor = request->snapshot_cursor - 1;
    }
    return status;
}

void kv_remote_admin_events(
    void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    kv_remote_t *remote = ((kv_holder_t *)context)->remote;
    kv_events_place_t place;
    kv_error_t error;
    kv_status_t status =
        remote != NULL
            ? place_of(remote, request->events, &place, &error)
            : kv_fail(&error, KV_MISSING, "the node has not joined its peers: it tells no events");
    if (status != KV_OK) {
        kv_admin_fail(call, status, error.text);
        return;
    }
    Kvist__Admin__Events events = KVIST__ADMIN__EVENTS__INIT;
    events.batch = (Kvist__Events__Batch *)(uintptr_t)kv_events_log_take(remote->log, &place);
    events.instance = (ProtobufCBinaryData){
        KV_EVENT_INSTANCE_BYTES, (uint8_t *)(uintptr_t)kv_events_log_instance(remote->log)};
    events.next_sequence = place.next_sequence;
    events.snapshot_cursor = place.snapshot ? place.held_cursor + 1 : 0;
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    reply.body_case = KVIST__ADMIN__REPLY__BODY_EVENTS;
    reply.events = &events;
    kv_admin_reply(call, &reply);
}

/* ---- life ---- */

static void open_metrics(kv_remote_t *remote)
{
    static const char SNAPSHOTS[] = "kvist_events_snapshots_total";
    static const char SNAPSHOTS_HELP[] = "times that all that a store holds was told, by direction";
    remote->metrics.sent =
        kv_metric_counter("kvist_events_sent_total", "", "KV events sent to peers");
    remote->metrics.received =
        kv_metric_counter("kvist_events_received_total", "", "KV events of peers taken");
    remote->metrics.gaps = kv_metric_counter(
        "kvist_events_gaps_total", "", "times that a peer's KV events had a hole");
    remote->metrics.snapshots_sent =
        kv_metric_counter(SNAPSHOTS, "direction=\"sent\"", SNAPSHOTS_HELP);
    remote->metrics.snapshots_received =
        kv_metric_counter(SNAPSHOTS, "direction=\"received\"", SNAPSHOTS_HELP);
    remote->metrics.holders =
        kv_metric_gauge("kvist_remote_holders", "", "peers whose KV events are followed");
    remote->metrics.entries = kv_metric_gauge(
        "kvist_remote_entries", "", "blocks known to be held by peers, each peer's counted");
}

kv_remote_t *kv_remote_create(kv_holder_t *holder)
{
    const kv_options_t *options = holder->options;
    kv_remote_t *remote = kv_allocate(sizeof *remote);
    remote->holder = holder;
    kv_events_log_params_t params = {
        .node = options->node.name,
        .log_bytes = options->store.events_bytes,
        .held = held,
        .held_context = remote,
    };
    remote->log = kv_events_log_create(&params);
    if (options->store.remote) {
        uint64_t capacity = options->store.remote_bytes / ENTRY_BYTES;
        remote->holdings = kv_holdings_create(
            capacity < KV_HOLDINGS_CAPACITY_MAX ? capacity : KV_HOLDINGS_CAPACITY_MAX);
    }
    remote->pump = kv_timer_create(holder->reactor, pump, remote);
    open_metrics(remote);
    kvist_store_listen(holder->store, store_changed, remote);
    return remote;
}

void kv_remote_destroy(kv_remote_t *remote)
{
    if (remote == NULL) {
        return;
    }
    kvist_store_listen(remote->holder->store, NULL, NULL);
    while (remote->followers != NULL) {
        follower_t *next = remote->followers->next;
        free(remote->followers);
        remote->followers = next;
    }
    kv_timer_destroy(remote->pump);
    kv_holdings_destroy(remote->holdings);
    kv_events_log_destroy(remote->log);
    free(remote);
}
