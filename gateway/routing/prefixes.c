#include "gateway/routing/prefixes.h"

#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "cluster/events_reader.h"

#include <stdlib.h>
#include <string.h>

enum { ENTRY_BYTES = 22 }; /* of the map: kv_holdings_bytes */

_Static_assert(
    (int)KVIST_KEY_BYTES == (int)KV_HOLDINGS_KEY_BYTES && sizeof(kvist_key_t) == KVIST_KEY_BYTES,
    "keys lie side by side");

typedef struct source source_t;
struct source {
    source_t *next;
    kv_prefixes_t *prefixes;
    kv_peer_t *peer;
    kv_events_reader_t reader;
    int naming;
};

struct kv_prefixes {
    kv_holdings_t *holdings;
    kv_namings_t namings;
    source_t *sources;
    kv_metric_t *received, *gaps, *entries;
};

kv_prefixes_t *kv_prefixes_create(uint64_t map_bytes)
{
    kv_prefixes_t *prefixes = kv_allocate(sizeof *prefixes);
    uint64_t capacity = map_bytes / ENTRY_BYTES;
    prefixes->holdings = kv_holdings_create(
        capacity < KV_HOLDINGS_CAPACITY_MAX ? (size_t)capacity : KV_HOLDINGS_CAPACITY_MAX);
    prefixes->received = kv_metric_counter(
        "kvist_gateway_events_received_total", "", "KV events of nodes and stores taken");
    prefixes->gaps = kv_metric_counter("kvist_gateway_events_gaps_total", "",
        "times that a node's KV events had a hole, and were asked for anew");
    prefixes->entries = kv_metric_gauge(
        "kvist_gateway_known_blocks", "", "blocks known to be held by nodes, each node's counted");
    return prefixes;
}

void kv_prefixes_destroy(kv_prefixes_t *prefixes)
{
    if (prefixes == NULL) {
        return;
    }
    while (prefixes->sources != NULL) {
        source_t *next = prefixes->sources->next;
        free(prefixes->sources);
        prefixes->sources = next;
    }
    kv_holdings_destroy(prefixes->holdings);
    free(prefixes);
}

static source_t *find_source(const kv_prefixes_t *prefixes, const kv_peer_t *peer)
{
    source_t *source = prefixes->sources;
    while (source != NULL && source->peer != peer) {
        source = source->next;
    }
    return source;
}

static void show(const kv_prefixes_t *prefixes)
{
    kv_metric_set(prefixes->entries, (double)kv_holdings_count(prefixes->holdings));
}

/* ---- following ---- */

static void subscribe(source_t *source)
{
    Kvist__Events__Subscribe message;
    kv_events_reader_subscribe(&source->reader, &message);
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_SUBSCRIBE;
    envelope.subscribe = &message;
    if (kv_peer_send(source->peer, &envelope) == KV_BUSY) {
        kv_peer_close(source->peer, KV_BUSY, "does not take messages");
    }
}

static void cleared(void *context)
{
    const source_t *source = context;
    kv_holdings_forget(source->prefixes->holdings, kv_peer_id(source->peer));
}

static void changed(void *context, const kv_event_t *event)
{
    const source_t *source = context;
    kv_holdings_t *holdings = source->prefixes->holdings;
    uint64_t holder = kv_peer_id(source->peer);
    if (event->group > 0) {
        return; /* who has a block's first group has it all, but for what windows let go */
    }
    if (event->stored) {
        kv_holdings_stored(holdings, holder, event->keys, event->key_count, event->tier);
    } else {
        kv_holdings_removed(holdings, holder, event->keys, event->key_count, event->tier);
    }
}

static void take_events(
    kv_prefixes_t *prefixes, source_t *source, const Kvist__Events__Batch *batch)
{
    const kv_events_sink_t sink = {source, cleared, changed};
    kv_error_t error;
    size_t count;
    kv_status_t status = kv_events_reader_take(&source->reader, batch, &sink, &count, &error);
    kv_metric_add(prefixes->received, (double)count);
    if (status == KV_MISSING) {
        kv_metric_add(prefixes->gaps, 1);
        kv_log_info("gateway", "events of %s: %s, subscribed again", kv_peer_name(source->peer),
            error.text);
        subscribe(source);
    } else if (status != KV_OK) {
        kv_peer_close(source->peer, status, error.text);
    }
    show(prefixes);
}

/* ---- namings ---- */

static bool same_naming(const kv_naming_t *one, const kv_naming_t *other)
{
    kvist_key_t left = kv_naming_name_space(one, NULL, 0);
    kvist_key_t right = kv_naming_name_space(other, NULL, 0);
    return memcmp(&left, &right, sizeof left) == 0;
}

int kv_prefixes_add_naming(kv_prefixes_t *prefixes, const kv_naming_t *naming)
{
    kv_namings_t *namings = &prefixes->namings;
    uint32_t number = 0;
    while (number < namings->count && !same_naming(&namings->items[number], naming)) {
        number++;
    }
    if (number == KV_NAMINGS_MAX) {
        return KV_NAMING_NONE;
    }
    if (number == namings->count) {
        namings->items[namings->count++] = *naming;
    }
    return (int)number;
}

static kv_status_t check_naming(
    const Kvist__Wire__Naming *message, kv_naming_t *naming_out, kv_error_t *error)
{
    const kv_block_shape_t shape = {.layer_count = message->layer_count,
        .kv_head_count = message->kv_head_count,
        .head_dim = message->head_dim,
        .block_tokens = message->block_tokens,
        .element_bytes = message->element_bytes};
    if (message->model.len != KVIST_KEY_BYTES || message->name_space.len != KVIST_KEY_BYTES) {
        return kv_fail(error, KV_INVALID, "naming: model has %zu bytes, name_space %zu, not %d",
            message->model.len, message->name_space.len, KVIST_KEY_BYTES);
    }
    if (shape.layer_count == 0 || shape.layer_count > KVIST_LAYERS_MAX ||
        (shape.element_bytes != 2 && shape.element_bytes != 4)) {
        return kv_fail(error, KV_INVALID,
            "naming: layer_count is %u (1 to %d), element_bytes %u (2 or 4)", shape.layer_count,
            KVIST_LAYERS_MAX, shape.element_bytes);
    }
    kvist_layout_t layout = kvist_layout_plain(&shape);
    kv_error_t reason;
    if (kvist_layout_check(&layout, &reason) != KV_OK) {
        return kv_fail(error, KV_INVALID, "naming: %s", reason.text);
    }
    naming_out->shape = shape;
    memcpy(naming_out->model.bytes, message->model.data, KVIST_KEY_BYTES);
    return KV_OK;
}

static void take_naming(
    kv_prefixes_t *prefixes, source_t *source, const Kvist__Wire__Naming *message)
{
    kv_naming_t naming;
    kv_error_t error;
    kv_status_t status = check_naming(message, &naming, &error);
    if (status != KV_OK) {
        kv_peer_close(source->peer, status, error.text);
        return;
    }
    kvist_key_t name_space = kv_naming_name_space(&naming, NULL, 0);
    if (memcmp(&name_space, message->name_space.data, KVIST_KEY_BYTES) != 0) {
        kv_log_warn("gateway",
            "%s names its blocks in a way that is not known here: requests are not routed by what "
            "it holds",
            kv_peer_name(source->peer));
        return;
    }
    source->naming = kv_prefixes_add_naming(prefixes, &naming);
    if (source->naming == KV_NAMING_NONE) {
        kv_log_warn("gateway",
            "%s has one kind of blocks more than %d: requests are not routed by what it holds",
            kv_peer_name(source->peer), KV_NAMINGS_MAX);
    }
}

int kv_prefixes_naming_of(const kv_prefixes_t *prefixes, const kv_peer_t *peer)
{
    const source_t *source = find_source(prefixes, peer);
    return source != NULL ? source->naming : KV_NAMING_NONE;
}

const kv_namings_t *kv_prefixes_namings(const kv_prefixes_t *prefixes)
{
    return &prefixes->namings;
}

/* ---- peers ---- */

void kv_prefixes_peer_up(kv_prefixes_t *prefixes, kv_peer_t *peer)
{
    if (kv_peer_version(peer) < 2) {
        return; /* it has no events */
    }
    source_t *source = kv_allocate(sizeof *source);
    source->prefixes = prefixes;
    source->peer = peer;
    source->naming = KV_NAMING_NONE;
    source->next = prefixes->sources;
    prefixes->sources = source;
    subscribe(source);
}

void kv_prefixes_peer_down(kv_prefixes_t *prefixes, kv_peer_t *peer)
{
    source_t **link = &prefixes->sources;
    while (*link != NULL && (*link)->peer != peer) {
        link = &(*link)->next;
    }
    source_t *source = *link;
    if (source != NULL) {
        *link = source->next;
        free(source);
        kv_prefixes_forget(prefixes, kv_peer_id(peer));
    }
}

bool kv_prefixes_message(
    kv_prefixes_t *prefixes, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    bool named = message->body_case == KVIST__WIRE__ENVELOPE__BODY_NAMING;
    if (!named && message->body_case != KVIST__WIRE__ENVELOPE__BODY_EVENTS) {
        return false;
    }
    source_t *source = find_source(prefixes, peer);
    if (source == NULL) {
        return true; /* nobody asked */
    }
    if (named) {
        take_naming(prefixes, source, message->naming);
    } else {
        take_events(prefixes, source, message->events);
    }
    return true;
}

/* ---- what was sent ---- */

void kv_prefixes_sent(
    kv_prefixes_t *prefixes, uint64_t holder, const kv_prompt_keys_t *keys, int naming)
{
    if (naming >= 0 && (uint32_t)naming < keys->naming_count && keys->of[naming].block_count > 0) {
        kv_holdings_stored(prefixes->holdings, holder, keys->of[naming].keys->bytes,
            keys->of[naming].block_count, KVIST__EVENTS__TIER__TIER_DEVICE);
        show(prefixes);
    }
}

void kv_prefixes_forget(kv_prefixes_t *prefixes, uint64_t holder)
{
    kv_holdings_forget(prefixes->holdings, holder);
    show(prefixes);
}

/* ---- asking ---- */

/* The store of that name, or 0. */
static uint64_t holder_of_store(const kv_prefixes_t *prefixes, const char *name)
{
    for (const source_t *at = prefixes->sources; name[0] != '\0' && at != NULL; at = at->next) {
        if (kv_peer_role(at->peer) == KVIST__WIRE__ROLE__ROLE_STORE &&
            strcmp(kv_peer_name(at->peer), name) == 0) {
            return kv_peer_id(at->peer);
        }
    }
    return 0;
}

kv_holding_t kv_prefixes_run(const kv_prefixes_t *prefixes, uint64_t holder,
    const char *attached_to, const kv_prompt_keys_t *keys, int naming)
{
    if (naming < 0 || (uint32_t)naming >= keys->naming_count || keys->of[naming].block_count == 0) {
        return (kv_holding_t){.holder = holder};
    }
    const uint64_t holders[2] = {holder, holder_of_store(prefixes, attached_to)};
    return kv_holdings_run(prefixes->holdings, holders, holders[1] != 0 ? 2 : 1,
        keys->of[naming].keys->bytes, keys->of[naming].block_count);
}

size_t kv_prefixes_entry_count(const kv_prefixes_t *prefixes)
{
    return kv_holdings_count(prefixes->holdings);
}
