/* The events log: what a node's store tells of its tiers, numbered, for whoever follows it.
 *
 * It keeps the last events, as many as its memory holds. A subscriber is a place in the sequence,
 * which its owner keeps; the log answers what comes next there. A place that the log has left
 * behind, or that is another instance's, begins anew: with a snapshot, made part by part from what
 * the store holds at that moment, and the numbered events between the parts. So a subscriber that
 * is slow costs no memory and holds up nobody.
 *
 * Owns: the kept events.
 * Borrows: the source of what is held, for its life.
 * Threads: as its caller.
 * Errors: a subscription that is out of bounds is KV_INVALID and names the field.
 * Limits: log_bytes; a batch holds about KV_EVENTS_BATCH_BYTES. */
#ifndef KV_CLUSTER_EVENTS_LOG_H
#define KV_CLUSTER_EVENTS_LOG_H

#include "base/status.h"
#include "cluster/events.h"

enum { KV_EVENTS_LOG_BYTES_MIN = 64 << 10, KV_EVENTS_BATCH_BYTES = 128 << 10 };

/* Visits a part of what is held now, as kvist_store_held: begins at *cursor = 0; false: that was
 * the end. What it visits is newer than all that was added to the log before the call returns. */
typedef bool (*kv_events_held_t)(
    void *context, uint32_t *cursor, kv_event_visit_t visit, void *visit_context);

typedef struct {
    const char *node; /* its name; copied */
    size_t log_bytes; /* at least KV_EVENTS_LOG_BYTES_MIN; half for events, half for their keys */
    kv_events_held_t held;
    void *held_context;
} kv_events_log_params_t;

typedef struct kv_events_log kv_events_log_t;

kv_events_log_t *kv_events_log_create(const kv_events_log_params_t *params);
void kv_events_log_destroy(kv_events_log_t *log);

/* Appends an event (a copy). */
void kv_events_log_add(kv_events_log_t *log, const kv_event_t *event);

/* [KV_EVENT_INSTANCE_BYTES] */
const uint8_t *kv_events_log_instance(const kv_events_log_t *log);
uint64_t kv_events_log_next_sequence(const kv_events_log_t *log);

/* Where one subscriber is. */
typedef struct {
    uint64_t next_sequence;
    bool snapshot; /* under way, or to begin */
    bool begun;
    uint32_t held_cursor;
} kv_events_place_t;

kv_status_t kv_events_log_subscribe(const kv_events_log_t *log,
    const Kvist__Events__Subscribe *message, kv_events_place_t *place_out, kv_error_t *error);

/* The next batch for this place, which is moved on; NULL: nothing is new. Valid until the next call
 * with this log. */
const Kvist__Events__Batch *kv_events_log_take(kv_events_log_t *log, kv_events_place_t *place);

/* Whether kv_events_log_take would answer something. */
bool kv_events_log_has(const kv_events_log_t *log, const kv_events_place_t *place);

/* Snapshots that were begun. */
uint64_t kv_events_log_snapshot_count(const kv_events_log_t *log);

#endif
