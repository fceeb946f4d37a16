/* Terms by key, and their end: kvist_store_keep and _promise, the bound on pins, and the sweep that
 * drops what has expired and nobody asks for.
 *
 * Rules:
 *  1. What a call gives holds for the block and for those of its ancestors that serve no other
 *     context. An ancestor that others share only gains: it keeps its own expiry or pin where that
 *     is later.
 *  2. A promise is not broken by a limit: an expiry before the pin of a descendant is refused.
 *  3. The sweep looks at a bounded part of the table each second, only while any block has an
 *     expiry or a pin. It makes room and counts what is pinned; that nothing expired is served is
 *     the match's doing. */
#include "kvstore/store_internal.h"

#include "kvstore/embedded.h"
#include "kvstore/tenants.h"
#include "kvstore/terms.h"

enum { SWEEP_OBJECTS = 1 << 16, SWEEP_MS = 1000, PIN_SHARE_TENTHS = 9, FREE_SEGMENTS = 2 };

/* ---- the bound on pins ---- */

/* Of the last tier that there is. */
static uint64_t last_tier_bytes(const kvist_store_t *store)
{
    kvist_stats_t stats;
    kv_embedded_store_stats(store, &stats);
    for (int tier = KVIST_TIER_DISK; tier >= KVIST_TIER_DEVICE; tier--) {
        if (stats.tiers[tier].capacity_bytes > 0) {
            return stats.tiers[tier].capacity_bytes;
        }
    }
    return 0;
}

/* What the object takes, or will, in the last tier. */
static uint64_t kept_bytes(const kvist_store_t *store, const kv_object_t *object)
{
    const kv_layout_t *layout = &store->groups[kv_object_family(store, object)->group].layout;
    if (kv_object_on_disk(object)) {
        return (uint64_t)object->length_pages * KV_PAGE_BYTES;
    }
    return store->disk != NULL ? kv_record_bytes_max(layout) : layout->object_bytes;
}

static bool is_live(const kv_object_t *object)
{
    return (object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) == KV_OBJECT_USED;
}

static void count_pinned(kvist_store_t *store)
{
    uint32_t now_s = kv_store_now_s(store);
    store->stats.pinned_bytes = 0;
    kv_pins_clear(store, KV_PINS_KNOWN);
    for (uint32_t number = 0; number < kv_table_bound(store->table); number++) {
        const kv_object_t *object = kv_table_at(store->table, number);
        if (is_live(object) && object->pin_until_s > now_s) {
            store->stats.pinned_bytes += kept_bytes(store, object);
            kv_pins_add(store, object, KV_PINS_KNOWN, kept_bytes(store, object));
        }
    }
}

/* A tenth of a small disk is less than writing needs: a segment to fill, and one to empty. */
static uint64_t segments_kept_free(const kvist_store_t *store)
{
    return store->disk != NULL ? FREE_SEGMENTS * store->disk->segments.segment_bytes : 0;
}

uint64_t kv_keep_disk_bytes_min(kvist_store_t *store)
{
    count_pinned(store);
    uint64_t share = (store->stats.pinned_bytes + PIN_SHARE_TENTHS - 1) / PIN_SHARE_TENTHS * 10;
    uint64_t whole = store->stats.pinned_bytes + segments_kept_free(store);
    return store->stats.pinned_bytes > 0 && whole > share ? whole : share;
}

/* ---- keep ---- */

/* What is to hold for one block of the chain, and what was asked for. */
typedef struct {
    uint32_t expires_s, pin_until_s;
} times_t;

static uint32_t later_expiry(uint32_t left, uint32_t right)
{
    return left == 0 || right == 0 ? 0 : left > right ? left : right;
}

/* Whether other blocks than the one on the chain go on from it. */
static bool is_fork(const kvist_store_t *store, const kv_object_t *object, uint32_t on_chain)
{
    for (uint32_t at = object->first_child; at != KV_OBJECT_NONE;) {
        const kv_object_t *child = kv_table_at(store->table, at);
        if (at != on_chain && kv_object_family(store, child)->group == 0) {
            return true;
        }
        at = child->next_sibling;
    }
    return false;
}

/* The latest pin of the blocks that go on from the object. */
static uint32_t children_pin(const kvist_store_t *store, const kv_object_t *object)
{
    uint32_t latest = 0;
    for (uint32_t at = object->first_child; at != KV_OBJECT_NONE;) {
        const kv_object_t *child = kv_table_at(store->table, at);
        if (kv_object_family(store, child)->group == 0 && child->pin_until_s > latest) {
            latest = child->pin_until_s;
        }
        at = child->next_sibling;
    }
    return latest;
}

/* Rule 1 for a block that others share. */
static times_t at_least(const kv_object_t *object, times_t asked)
{
    return (times_t){
        .expires_s = later_expiry(object->expires_s, asked.expires_s),
        .pin_until_s =
            object->pin_until_s > asked.pin_until_s ? object->pin_until_s : asked.pin_until_s,
    };
}

/* A block and its objects of other groups. */
static void set_times(kvist_store_t *store, uint32_t number, times_t times)
{
    kv_terms_set(store, number, times.expires_s, times.pin_until_s);
    uint32_t at = kv_table_at(store->table, number)->first_child;
    while (at != KV_OBJECT_NONE) {
        const kv_object_t *child = kv_table_at(store->table, at);
        uint32_t next = child->next_sibling;
        if (kv_object_family(store, child)->group > 0) {
            kv_terms_set(store, at, times.expires_s, times.pin_until_s);
        }
        at = next;
    }
}

/* Bytes of the chain that get a pin and have none now; also of each tenant, as asked for. */
static uint64_t newly_pinned(kvist_store_t *store, uint32_t number, times_t asked, uint32_t now_s)
{
    uint64_t bytes = 0;
    kv_pins_clear(store, KV_PINS_ASKED);
    for (uint32_t at = number; at != KV_OBJECT_NONE && asked.pin_until_s > now_s;) {
        const kv_object_t *object = kv_table_at(store->table, at);
        if (object->pin_until_s <= now_s) {
            bytes += kept_bytes(store, object);
            kv_pins_add(store, object, KV_PINS_ASKED, kept_bytes(store, object));
        }
        at = object->parent;
    }
    return bytes;
}

/* Whether there is room for that much more. What is known of the present pins may be too much: some
 * have passed since it was counted. */
static bool pins_fit(kvist_store_t *store, uint64_t more_bytes)
{
    uint64_t tier = last_tier_bytes(store), bound = tier / 10 * PIN_SHARE_TENTHS;
    uint64_t whole = tier > segments_kept_free(store) ? tier - segments_kept_free(store) : 0;
    bound = whole < bound ? whole : bound;
    if (store->stats.pinned_bytes + more_bytes > bound || !kv_pins_fit(store)) {
        count_pinned(store);
    }
    return store->stats.pinned_bytes + more_bytes <= bound && kv_pins_fit(store);
}

static bool times_are_good(
    const kvist_store_t *store, uint32_t number, times_t *asked, uint32_t now_s)
{
    uint32_t below = children_pin(store, kv_table_at(store->table, number));
    bool in_past = asked->pin_until_s != 0 && asked->pin_until_s <= now_s;
    if (below > now_s && below > asked->pin_until_s) {
        asked->pin_until_s = below; /* what goes on from it is pinned still */
    }
    return !in_past && (asked->expires_s == 0 || asked->pin_until_s <= asked->expires_s);
}

/* The block that terms are for; KV_OBJECT_NONE with the status: there is none, or not yet. */
static uint32_t find_kept(kvist_store_t *store, const kvist_key_t *key, kv_status_t *status_out)
{
    uint32_t number = kv_fill_find(store, key), now_s = kv_store_now_s(store);
    *status_out = KV_OK;
    if (number == KV_OBJECT_NONE || kv_object_expired(kv_table_at(store->table, number), now_s) ||
        kv_object_family(store, kv_table_at(store->table, number))->group > 0) {
        *status_out = KV_MISSING;
    } else if (kv_fill_busy(store)) {
        *status_out = KV_BUSY; /* what it shares with other contexts is not all known */
    }
    return *status_out == KV_OK ? number : KV_OBJECT_NONE;
}

/* Room for the pins that the chain gets; false: there is none. */
static bool take_pins(kvist_store_t *store, uint32_t number, times_t asked, uint32_t now_s)
{
    uint64_t more_bytes = newly_pinned(store, number, asked, now_s);
    if (more_bytes > 0 && !pins_fit(store, more_bytes)) {
        return false;
    }
    store->stats.pinned_bytes += more_bytes;
    kv_pins_give(store);
    return true;
}

typedef times_t (*times_rule_t)(const kv_object_t *object, times_t asked, bool shared);

/* The block and its ancestors get what the rule says of each. */
static void set_chain(kvist_store_t *store, uint32_t number, times_t asked, times_rule_t rule)
{
    bool shared = false;
    for (uint32_t at = number, below = KV_OBJECT_NONE; at != KV_OBJECT_NONE;) {
        const kv_object_t *object = kv_table_at(store->table, at);
        shared = shared || (below != KV_OBJECT_NONE && is_fork(store, object, below));
        set_times(store, at, rule(object, asked, shared));
        below = at;
        at = object->parent;
    }
}

static times_t as_asked(const kv_object_t *object, times_t asked, bool shared)
{
    return shared ? at_least(object, asked) : asked;
}

static times_t asked_times(const kvist_terms_t *terms)
{
    return (times_t){
        .expires_s = kv_terms_expiry_s(terms->expires_unix_ns),
        .pin_until_s = kv_terms_pin_s(terms->pin_until_unix_ns),
    };
}

kv_status_t kv_embedded_store_keep(
    kvist_store_t *store, const kvist_key_t *key, const kvist_terms_t *terms)
{
    kv_status_t status;
    uint32_t number = find_kept(store, key, &status), now_s = kv_store_now_s(store);
    times_t asked = asked_times(terms);
    if (status != KV_OK) {
        return status;
    }
    if (!times_are_good(store, number, &asked, now_s)) {
        return KV_INVALID;
    }
    if (!take_pins(store, number, asked, now_s)) {
        return KV_NO_SPACE;
    }
    set_chain(store, number, asked, as_asked);
    return KV_OK;
}

/* ---- promises: no block on the chain loses what it was promised before ---- */

/* A limit is not set where a longer pin holds; one that nobody asks about stays. */
static times_t at_least_promised(const kv_object_t *object, times_t asked, bool shared)
{
    times_t times = {object->expires_s, asked.pin_until_s};
    if (object->pin_until_s > times.pin_until_s) {
        times.pin_until_s = object->pin_until_s;
    }
    if (asked.expires_s != 0 && times.pin_until_s <= asked.expires_s) {
        times.expires_s =
            shared ? later_expiry(object->expires_s, asked.expires_s) : asked.expires_s;
    }
    return times;
}

/* The first limit that ends a block of the chain; 0: none. */
static uint32_t first_limit(const kvist_store_t *store, uint32_t number)
{
    uint32_t first = 0;
    for (uint32_t at = number; at != KV_OBJECT_NONE;) {
        const kv_object_t *object = kv_table_at(store->table, at);
        if (object->expires_s != 0 && (first == 0 || object->expires_s < first)) {
            first = object->expires_s;
        }
        at = object->parent;
    }
    return first;
}

static kv_status_t promise(kvist_store_t *store, uint32_t number, times_t asked)
{
    uint32_t now_s = kv_store_now_s(store);
    const kv_object_t *object = kv_table_at(store->table, number);
    if (object->pin_until_s > now_s && object->pin_until_s > asked.pin_until_s) {
        asked.pin_until_s = object->pin_until_s;
    }
    uint32_t limit = asked.expires_s != 0 ? asked.expires_s : first_limit(store, number);
    if (!times_are_good(store, number, &asked, now_s) ||
        (limit != 0 && asked.pin_until_s > limit)) {
        return KV_INVALID;
    }
    if (!take_pins(store, number, asked, now_s)) {
        return KV_NO_SPACE;
    }
    set_chain(store, number, asked, at_least_promised);
    return KV_OK;
}

bool kv_embedded_store_promise(kvist_store_t *store, const kvist_key_t *key,
    const kvist_terms_t *terms, kvist_promised_t done, void *context, kvist_promise_t *promise_out)
{
    (void)done;
    (void)context;
    *promise_out = (kvist_promise_t){0};
    uint32_t number = find_kept(store, key, &promise_out->status);
    if (promise_out->status != KV_OK) {
        return true;
    }
    promise_out->status = promise(store, number, asked_times(terms));
    if (promise_out->status == KV_OK) {
        const kv_object_t *object = kv_table_at(store->table, number);
        promise_out->expires_unix_ns = (uint64_t)object->expires_s * KV_NS_PER_S;
        promise_out->pin_until_unix_ns = (uint64_t)object->pin_until_s * KV_NS_PER_S;
    }
    return true;
}

/* ---- the sweep ---- */

void kv_sweep_note(kvist_store_t *store, uint32_t expires_s, uint32_t pin_until_s)
{
    if (expires_s == 0 && pin_until_s == 0) {
        return;
    }
    store->sweep.noted = true;
    if (store->sweep.due_ns == 0) {
        store->sweep.due_ns =
            store->clock->monotonic_ns(store->clock) + (uint64_t)SWEEP_MS * KV_NS_PER_MS;
    }
}

static void look_at(kvist_store_t *store, uint32_t number, uint32_t now_s)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    if (!is_live(object)) {
        return;
    }
    if (kv_object_expired(object, now_s)) {
        kv_object_drop(store, number, KV_GONE_EXPIRED);
        return;
    }
    if (object->pin_until_s > now_s) {
        store->sweep.pinned_bytes += kept_bytes(store, object);
        kv_pins_add(store, object, KV_PINS_SWEPT, kept_bytes(store, object));
    }
    store->sweep.noted |= object->expires_s != 0 || object->pin_until_s > now_s;
}

void kv_sweep_advance(kvist_store_t *store)
{
    kv_sweep_t *sweep = &store->sweep;
    uint64_t now_ns = store->clock->monotonic_ns(store->clock);
    if (sweep->due_ns == 0 || now_ns < sweep->due_ns) {
        return;
    }
    if (sweep->next == 0) { /* a pass begins */
        sweep->noted = false;
        sweep->pinned_bytes = 0;
        kv_pins_clear(store, KV_PINS_SWEPT);
    }
    uint32_t now_s = kv_store_now_s(store), bound = kv_table_bound(store->table);
    uint32_t end = bound - sweep->next < SWEEP_OBJECTS ? bound : sweep->next + SWEEP_OBJECTS;
    while (sweep->next < end) {
        look_at(store, sweep->next++, now_s);
    }
    sweep->due_ns = now_ns + (uint64_t)SWEEP_MS * KV_NS_PER_MS;
    if (sweep->next == bound) {
        sweep->next = 0;
        store->stats.pinned_bytes = sweep->pinned_bytes;
        kv_pins_end_sweep(store);
        sweep->due_ns = sweep->noted ? sweep->due_ns : 0;
    }
}

uint64_t kv_sweep_due(const kvist_store_t *store)
{
    return store->sweep.due_ns > 0 ? store->sweep.due_ns : UINT64_MAX;
}
