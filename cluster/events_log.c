/* Two rings: events of one size, and the keys that they speak of.
 *
 *   events:  | oldest ... next_sequence - 1 |        number n is at n % event_max
 *   keys:    | of those, each event's in one piece | places count up for ever; at place % key_max
 *
 * An event leaves when its place in either ring is taken.
 *
 * A place in the sequence:
 *
 *   subscribe --known--> following --fell behind--> snapshot (begins)
 *       |                    ^                          | Cleared, part by part; events between
 *       +--unknown--> snapshot --the last part----------+ them: always before the next part */
#include "cluster/events_log.h"

#include "base/check.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { KEY_BYTES = KV_EVENT_KEY_BYTES, EVENT_BYTES_ABOUT = 48 /* encoded, without its bytes */ };

typedef struct {
    uint64_t key_place;
    uint32_t key_count, group, first_block;
    uint8_t tier;
    bool stored, has_parent;
    uint8_t name_space[KEY_BYTES], parent[KEY_BYTES];
} logged_t;

/* A batch in the making: the message and all that it points to. */
typedef struct {
    Kvist__Events__Batch message;
    Kvist__Events__Event *events; /* [event_max] */
    Kvist__Events__Event **pointers;
    union {
        Kvist__Events__Stored stored;
        Kvist__Events__Removed removed;
        Kvist__Events__Cleared cleared;
    } * bodies;
    uint8_t *bytes; /* keys, namespaces, parents; moved when it grows: offsets until the end */
    size_t event_max, byte_count, byte_max, size_about;
} batch_t;

struct kv_events_log {
    char node[64];
    uint8_t instance[KV_EVENT_INSTANCE_BYTES];
    kv_events_held_t held;
    void *held_context;
    logged_t *events;
    uint8_t *keys;
    uint64_t event_max, key_max; /* of the rings */
    uint64_t oldest, next_sequence, next_key;
    uint64_t snapshot_count;
    batch_t batch;
};

kv_events_log_t *kv_events_log_create(const kv_events_log_params_t *params)
{
    KV_CHECK(params->log_bytes >= KV_EVENTS_LOG_BYTES_MIN);
    kv_events_log_t *log = kv_allocate(sizeof *log);
    snprintf(log->node, sizeof log->node, "%s", params->node);
    KV_CHECK(getrandom(log->instance, sizeof log->instance, 0) == sizeof log->instance);
    log->held = params->held;
    log->held_context = params->held_context;
    log->event_max = params->log_bytes / 2 / sizeof *log->events;
    log->key_max = params->log_bytes / 2 / KEY_BYTES;
    log->events = kv_allocate_array(log->event_max, sizeof *log->events);
    log->keys = kv_allocate_array(log->key_max, KEY_BYTES);
    log->oldest = log->next_sequence = 1;
    return log;
}

void kv_events_log_destroy(kv_events_log_t *log)
{
    if (log == NULL) {
        return;
    }
    free(log->batch.events);
    free(log->batch.pointers);
    free(log->batch.bodies);
    free(log->batch.bytes);
    free(log->events);
    free(log->keys);
    free(log);
}

const uint8_t *kv_events_log_instance(const kv_events_log_t *log)
{
    return log->instance;
}

uint64_t kv_events_log_next_sequence(const kv_events_log_t *log)
{
    return log->next_sequence;
}

uint64_t kv_events_log_snapshot_count(const kv_events_log_t *log)
{
    return log->snapshot_count;
}

/* ---- adding ---- */

static logged_t *logged_at(const kv_events_log_t *log, uint64_t sequence)
{
    return &log->events[sequence % log->event_max];
}

/* Room for so many keys in one piece; events whose keys lie there leave. */
static uint64_t take_keys(kv_events_log_t *log, uint32_t count)
{
    uint64_t to_end = log->key_max - log->next_key % log->key_max;
    uint64_t place = log->next_key + (count > to_end ? to_end : 0);
    log->next_key = place + count;
    while (log->oldest < log->next_sequence &&
           logged_at(log, log->oldest)->key_place + log->key_max < log->next_key) {
        log->oldest++;
    }
    return place;
}

void kv_events_log_add(kv_events_log_t *log, const kv_event_t *event)
{
    KV_CHECK(event->key_count >= 1 && event->key_count <= KV_EVENT_KEYS_MAX);
    if (log->next_sequence - log->oldest == log->event_max) {
        log->oldest++;
    }
    logged_t *logged = logged_at(log, log->next_sequence);
    *logged = (logged_t){
        .key_place = take_keys(log, event->key_count),
        .key_count = event->key_count,
        .group = event->group,
        .first_block = event->first_block,
        .tier = (uint8_t)event->tier,
        .stored = event->stored,
        .has_parent = event->stored && event->parent != NULL,
    };
    if (event->stored) {
        memcpy(logged->name_space, event->name_space, KEY_BYTES);
    }
    if (logged->has_parent) {
        memcpy(logged->parent, event->parent, KEY_BYTES);
    }
    memcpy(log->keys + logged->key_place % log->key_max * KEY_BYTES, event->keys,
        (size_t)event->key_count * KEY_BYTES);
    log->next_sequence++;
}

/* ---- a batch ---- */

static void begin_batch(kv_events_log_t *log, Kvist__Events__Part part, uint64_t first_sequence)
{
    batch_t *batch = &log->batch;
    kvist__events__batch__init(&batch->message);
    batch->message.instance = (ProtobufCBinaryData){KV_EVENT_INSTANCE_BYTES, log->instance};
    batch->message.node = log->node;
    batch->message.first_sequence = first_sequence;
    batch->message.part = part;
    batch->byte_count = batch->size_about = 0;
}

static size_t next_event(batch_t *batch)
{
    if (batch->message.n_events == batch->event_max) {
        batch->event_max = 2 * batch->event_max + 16;
        size_t count = batch->event_max;
        batch->events = kv_reallocate(batch->events, count, sizeof *batch->events);
        batch->pointers = kv_reallocate(batch->pointers, count, sizeof(Kvist__Events__Event *));
        batch->bodies = kv_reallocate(batch->bodies, count, sizeof *batch->bodies);
    }
    kvist__events__event__init(&batch->events[batch->message.n_events]);
    batch->size_about += EVENT_BYTES_ABOUT;
    return batch->message.n_events++;
}

/* Until end_batch the data are an offset. */
static ProtobufCBinaryData append_bytes(batch_t *batch, const uint8_t *bytes, size_t count)
{
    if (batch->byte_count + count > batch->byte_max) {
        batch->byte_max = 2 * (batch->byte_count + count);
        batch->bytes = kv_reallocate(batch->bytes, batch->byte_max, 1);
    }
    uintptr_t offset = batch->byte_count;
    memcpy(batch->bytes + offset, bytes, count);
    batch->byte_count += count;
    batch->size_about += count;
    return (ProtobufCBinaryData){count, (uint8_t *)offset};
}

static void append_cleared(batch_t *batch)
{
    size_t at = next_event(batch);
    kvist__events__cleared__init(&batch->bodies[at].cleared);
    batch->events[at].body_case = KVIST__EVENTS__EVENT__BODY_CLEARED;
}

static void append_event(void *context, const kv_event_t *event)
{
    batch_t *batch = context;
    size_t at = next_event(batch), key_bytes = (size_t)event->key_count * KEY_BYTES;
    if (!event->stored) {
        Kvist__Events__Removed *removed = &batch->bodies[at].removed;
        kvist__events__removed__init(removed);
        removed->tier = event->tier;
        removed->group = event->group;
        removed->keys = append_bytes(batch, event->keys, key_bytes);
        batch->events[at].body_case = KVIST__EVENTS__EVENT__BODY_REMOVED;
        return;
    }
    Kvist__Events__Stored *stored = &batch->bodies[at].stored;
    kvist__events__stored__init(stored);
    stored->tier = event->tier;
    stored->group = event->group;
    stored->first_block = event->first_block;
    stored->keys = append_bytes(batch, event->keys, key_bytes);
    stored->name_space = append_bytes(batch, event->name_space, KEY_BYTES);
    if (event->parent != NULL) {
        stored->parent = append_bytes(batch, event->parent, KEY_BYTES);
    }
    batch->events[at].body_case = KVIST__EVENTS__EVENT__BODY_STORED;
}

static void settle_bytes(const batch_t *batch, ProtobufCBinaryData *data)
{
    data->data = data->len > 0 ? batch->bytes + (uintptr_t)data->data : NULL;
}

/* Nothing moves any more: offsets become pointers. */
static const Kvist__Events__Batch *end_batch(batch_t *batch)
{
    for (size_t i = 0; i < batch->message.n_events; i++) {
        Kvist__Events__Event *event = &batch->events[i];
        batch->pointers[i] = event;
        if (event->body_case == KVIST__EVENTS__EVENT__BODY_STORED) {
            event->stored = &batch->bodies[i].stored;
            settle_bytes(batch, &event->stored->keys);
            settle_bytes(batch, &event->stored->name_space);
            settle_bytes(batch, &event->stored->parent);
        } else if (event->body_case == KVIST__EVENTS__EVENT__BODY_REMOVED) {
            event->removed = &batch->bodies[i].removed;
            settle_bytes(batch, &event->removed->keys);
        } else {
            event->cleared = &batch->bodies[i].cleared;
        }
    }
    batch->message.events = batch->pointers;
    return &batch->message;
}

/* ---- what comes next at a place ---- */

kv_status_t kv_events_log_subscribe(const kv_events_log_t *log,
    const Kvist__Events__Subscribe *message, kv_events_place_t *place_out, kv_error_t *error)
{
    size_t bytes = message->instance.len;
    if (bytes != 0 && bytes != KV_EVENT_INSTANCE_BYTES) {
        return kv_fail(error, KV_INVALID, "subscribe.instance has %zu bytes: 0 or %d", bytes,
            KV_EVENT_INSTANCE_BYTES);
    }
    if ((bytes == 0) != (message->next_sequence == 0)) {
        return kv_fail(error, KV_INVALID,
            "subscribe.next_sequence is %ju: at least 1 with an instance, 0 without",
            (uintmax_t)message->next_sequence);
    }
    bool known = bytes > 0 && memcmp(message->instance.data, log->instance, bytes) == 0 &&
                 message->next_sequence >= log->oldest &&
                 message->next_sequence <= log->next_sequence;
    *place_out = (kv_events_place_t){
        .next_sequence = known ? message->next_sequence : 0, .snapshot = !known};
    return KV_OK;
}

static bool fell_behind(const kv_events_log_t *log, const kv_events_place_t *place)
{
    return (!place->snapshot || place->begun) && place->next_sequence < log->oldest;
}

bool kv_events_log_has(const kv_events_log_t *log, const kv_events_place_t *place)
{
    return place->snapshot || place->next_sequence < log->next_sequence;
}

static const Kvist__Events__Batch *take_part(kv_events_log_t *log, kv_events_place_t *place)
{
    begin_batch(log, KVIST__EVENTS__PART__PART_NEXT, 0);
    bool first = !place->begun;
    if (first) {
        append_cleared(&log->batch);
        log->snapshot_count++;
        place->begun = true;
        place->held_cursor = 0;
    }
    bool more = true;
    while (more && log->batch.size_about < KV_EVENTS_BATCH_BYTES / 2) {
        size_t before = log->batch.message.n_events;
        more = log->held(log->held_context, &place->held_cursor, append_event, &log->batch);
        if (log->batch.message.n_events == before) {
            break; /* nothing was held there: the next call goes on */
        }
    }
    if (first) { /* what was told before the part is in it */
        place->next_sequence = log->next_sequence;
    }
    place->snapshot = more;
    log->batch.message.first_sequence = place->next_sequence;
    log->batch.message.part =
        first  ? more ? KVIST__EVENTS__PART__PART_FIRST : KVIST__EVENTS__PART__PART_ONLY
        : more ? KVIST__EVENTS__PART__PART_NEXT
               : KVIST__EVENTS__PART__PART_LAST;
    return end_batch(&log->batch);
}

static const Kvist__Events__Batch *take_events(kv_events_log_t *log, kv_events_place_t *place)
{
    begin_batch(log, KVIST__EVENTS__PART__PART_NONE, place->next_sequence);
    while (place->next_sequence < log->next_sequence &&
           log->batch.size_about < KV_EVENTS_BATCH_BYTES) {
        const logged_t *logged = logged_at(log, place->next_sequence++);
        append_event(
            &log->batch, &(kv_event_t){
                             .tier = (Kvist__Events__Tier)logged->tier,
                             .stored = logged->stored,
                             .group = logged->group,
                             .key_count = logged->key_count,
                             .keys = log->keys + logged->key_place % log->key_max * KEY_BYTES,
                             .first_block = logged->first_block,
                             .name_space = logged->name_space,
                             .parent = logged->has_parent ? logged->parent : NULL,
                         });
    }
    return end_batch(&log->batch);
}

const Kvist__Events__Batch *kv_events_log_take(kv_events_log_t *log, kv_events_place_t *place)
{
    if (fell_behind(log, place)) {
        *place = (kv_events_place_t){.snapshot = true};
    }
    if (place->snapshot && !place->begun) {
        return take_part(log, place);
    }
    if (place->next_sequence < log->next_sequence) {
        return take_events(log, place);
    }
    return place->snapshot ? take_part(log, place) : NULL;
}
