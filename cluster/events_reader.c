#include "cluster/events_reader.h"

#include <string.h>

enum { NODE_BYTES_MAX = 63 };

void kv_events_reader_subscribe(kv_events_reader_t *reader, Kvist__Events__Subscribe *message_out)
{
    kvist__events__subscribe__init(message_out);
    reader->asked = true;
    if (reader->whole) {
        message_out->instance = (ProtobufCBinaryData){KV_EVENT_INSTANCE_BYTES, reader->instance};
        message_out->next_sequence = reader->next_sequence;
    }
}

/* ---- what a peer sent is checked before anything is made of it ---- */

static kv_status_t check_keys(size_t bytes, uint32_t group, kv_error_t *error)
{
    if (bytes == 0 || bytes % KV_EVENT_KEY_BYTES != 0 ||
        bytes / KV_EVENT_KEY_BYTES > KV_EVENT_KEYS_MAX) {
        return kv_fail(error, KV_INVALID, "keys has %zu bytes: 1 to %d times %d", bytes,
            KV_EVENT_KEYS_MAX, KV_EVENT_KEY_BYTES);
    }
    if (group >= KV_EVENT_GROUPS_MAX) {
        return kv_fail(error, KV_INVALID, "group is %u: less than %d", group, KV_EVENT_GROUPS_MAX);
    }
    return KV_OK;
}

static kv_status_t check_stored(const Kvist__Events__Stored *stored, kv_error_t *error)
{
    kv_status_t status = check_keys(stored->keys.len, stored->group, error);
    if (status != KV_OK) {
        return status;
    }
    if (stored->name_space.len != KV_EVENT_KEY_BYTES) {
        return kv_fail(error, KV_INVALID, "name_space has %zu bytes, not %d",
            stored->name_space.len, KV_EVENT_KEY_BYTES);
    }
    size_t parent_bytes = stored->group == 0 ? KV_EVENT_KEY_BYTES : 0;
    if (stored->parent.len != parent_bytes) {
        return kv_fail(error, KV_INVALID, "parent has %zu bytes, not %zu (group %u)",
            stored->parent.len, parent_bytes, stored->group);
    }
    if (stored->first_block + stored->keys.len / KV_EVENT_KEY_BYTES > KV_EVENT_POSITION_MAX) {
        return kv_fail(error, KV_INVALID, "first_block is %u with %zu keys: at most %d blocks",
            stored->first_block, stored->keys.len / KV_EVENT_KEY_BYTES, KV_EVENT_POSITION_MAX);
    }
    return KV_OK;
}

static bool is_part(const Kvist__Events__Batch *batch)
{
    return batch->part != KVIST__EVENTS__PART__PART_NONE;
}

static bool begins(const Kvist__Events__Batch *batch)
{
    return batch->part == KVIST__EVENTS__PART__PART_FIRST ||
           batch->part == KVIST__EVENTS__PART__PART_ONLY;
}

static kv_status_t check_event(const Kvist__Events__Batch *batch, size_t at, kv_error_t *error)
{
    const Kvist__Events__Event *event = batch->events[at];
    bool cleared = event->body_case == KVIST__EVENTS__EVENT__BODY_CLEARED;
    if (cleared != (begins(batch) && at == 0)) {
        return kv_fail(error, KV_INVALID,
            cleared ? "cleared: only a snapshot begins with it"
                    : "a snapshot begins without cleared");
    }
    switch (event->body_case) {
    case KVIST__EVENTS__EVENT__BODY_STORED:
        return check_stored(event->stored, error);
    case KVIST__EVENTS__EVENT__BODY_REMOVED:
        if (is_part(batch)) {
            return kv_fail(error, KV_INVALID, "removed: not in a snapshot");
        }
        return check_keys(event->removed->keys.len, event->removed->group, error);
    default:
        return KV_OK;
    }
}

static kv_status_t check(const Kvist__Events__Batch *batch, kv_error_t *error)
{
    if (batch->instance.len != KV_EVENT_INSTANCE_BYTES) {
        return kv_fail(error, KV_INVALID, "events.instance has %zu bytes, not %d",
            batch->instance.len, KV_EVENT_INSTANCE_BYTES);
    }
    if (batch->first_sequence == 0 || batch->first_sequence > INT64_MAX) {
        return kv_fail(error, KV_INVALID, "events.first_sequence is %ju: 1 to 2^63 - 1",
            (uintmax_t)batch->first_sequence);
    }
    if ((unsigned)batch->part > KVIST__EVENTS__PART__PART_ONLY) {
        return kv_fail(error, KV_INVALID, "events.part is %d: 0 to 4", (int)batch->part);
    }
    bool needed = begins(batch) || !is_part(batch);
    if (batch->n_events > KV_EVENTS_BATCH_EVENTS_MAX || (batch->n_events == 0 && needed)) {
        return kv_fail(error, KV_INVALID, "events.events has %zu: %d to %d", batch->n_events,
            needed, KV_EVENTS_BATCH_EVENTS_MAX);
    }
    if (strlen(batch->node) > NODE_BYTES_MAX) {
        return kv_fail(error, KV_INVALID, "events.node has more than %d bytes", NODE_BYTES_MAX);
    }
    for (size_t i = 0; i < batch->n_events; i++) {
        kv_error_t reason;
        if (check_event(batch, i, &reason) != KV_OK) {
            return kv_fail(error, KV_INVALID, "events.events[%zu].%s", i, reason.text);
        }
    }
    return KV_OK;
}

/* ---- taking ---- */

static void tell(const Kvist__Events__Event *from, const kv_events_sink_t *sink)
{
    kv_event_t event = {0};
    size_t key_bytes;
    if (from->body_case == KVIST__EVENTS__EVENT__BODY_STORED) {
        const Kvist__Events__Stored *stored = from->stored;
        event = (kv_event_t){.tier = stored->tier,
            .stored = true,
            .group = stored->group,
            .keys = stored->keys.data,
            .first_block = stored->first_block,
            .name_space = stored->name_space.data,
            .parent = stored->group == 0 ? stored->parent.data : NULL};
        key_bytes = stored->keys.len;
    } else if (from->body_case == KVIST__EVENTS__EVENT__BODY_REMOVED) {
        const Kvist__Events__Removed *removed = from->removed;
        event = (kv_event_t){
            .tier = removed->tier, .group = removed->group, .keys = removed->keys.data};
        key_bytes = removed->keys.len;
    } else {
        return; /* of a newer version */
    }
    event.key_count = (uint32_t)(key_bytes / KV_EVENT_KEY_BYTES);
    if ((unsigned)event.tier <= KVIST__EVENTS__TIER__TIER_DISK) {
        sink->event(sink->context, &event);
    }
}

static void tell_from(const Kvist__Events__Batch *batch, size_t first, const kv_events_sink_t *sink)
{
    for (size_t i = first; i < batch->n_events; i++) {
        tell(batch->events[i], sink);
    }
}

static kv_status_t miss(kv_events_reader_t *reader, kv_error_t *error, const char *what)
{
    if (reader->asked) {
        return KV_OK; /* of the old subscription */
    }
    reader->in_snapshot = false;
    return kv_fail(error, KV_MISSING, "%s", what);
}

static void begin_snapshot(kv_events_reader_t *reader, const Kvist__Events__Batch *batch)
{
    memcpy(reader->instance, batch->instance.data, KV_EVENT_INSTANCE_BYTES);
    reader->next_sequence = batch->first_sequence;
    reader->whole = batch->part == KVIST__EVENTS__PART__PART_ONLY;
    reader->in_snapshot = !reader->whole;
    reader->asked = false;
}

/* Of the sequence that the reader follows. */
static kv_status_t take_part(kv_events_reader_t *reader, const Kvist__Events__Batch *batch,
    const kv_events_sink_t *sink, size_t *count_out, kv_error_t *error)
{
    if (!reader->in_snapshot || batch->first_sequence != reader->next_sequence) {
        return miss(reader, error, "a part of another snapshot");
    }
    tell_from(batch, 0, sink);
    *count_out = batch->n_events;
    if (batch->part == KVIST__EVENTS__PART__PART_LAST) {
        reader->in_snapshot = false;
        reader->whole = true;
    }
    return KV_OK;
}

static kv_status_t take_events(kv_events_reader_t *reader, const Kvist__Events__Batch *batch,
    const kv_events_sink_t *sink, size_t *count_out, kv_error_t *error)
{
    uint64_t end = batch->first_sequence + batch->n_events;
    if (end <= reader->next_sequence) {
        return KV_OK;
    }
    if (batch->first_sequence > reader->next_sequence) {
        return miss(reader, error, "numbers are missing");
    }
    size_t known = (size_t)(reader->next_sequence - batch->first_sequence);
    tell_from(batch, known, sink);
    *count_out = batch->n_events - known;
    reader->next_sequence = end;
    reader->asked = false;
    return KV_OK;
}

kv_status_t kv_events_reader_take(kv_events_reader_t *reader, const Kvist__Events__Batch *batch,
    const kv_events_sink_t *sink, size_t *count_out, kv_error_t *error)
{
    *count_out = 0;
    kv_status_t status = check(batch, error);
    if (status != KV_OK) {
        return status;
    }
    if (begins(batch)) {
        begin_snapshot(reader, batch);
        sink->cleared(sink->context);
        tell_from(batch, 1, sink);
        *count_out = batch->n_events;
        return KV_OK;
    }
    bool same = (reader->whole || reader->in_snapshot) &&
                memcmp(reader->instance, batch->instance.data, KV_EVENT_INSTANCE_BYTES) == 0;
    if (!same) {
        return miss(reader, error, "events of another instance");
    }
    return is_part(batch) ? take_part(reader, batch, sink, count_out, error)
                          : take_events(reader, batch, sink, count_out, error);
}
