/* The events reader: follows the events of one node's store.
 *
 * It holds no map and does no I/O: batches go in, what they change comes out in order, through the
 * caller's two functions. What was there already is passed over; a hole in the numbers, or batches
 * of another instance, ask for a new subscription, and what still comes of the old one is passed
 * over until one fits.
 *
 *           FIRST                 LAST
 *   (none) -------> in snapshot -------> whole --events--> whole
 *      |  \____________ONLY________________^  |
 *      |                |                     | gap, other instance
 *      +<-- (asks anew) +<--------------------+ (asks from where it is; whole still)
 *
 * Threads: as its caller.
 * Errors: a batch is taken as a whole or not at all: KV_INVALID names the field and its bound,
 * KV_MISSING: subscribe again (kv_events_reader_subscribe). */
#ifndef KV_CLUSTER_EVENTS_READER_H
#define KV_CLUSTER_EVENTS_READER_H

#include "base/status.h"
#include "cluster/events.h"

enum { KV_EVENTS_BATCH_EVENTS_MAX = 1 << 16 };

/* Zero-initialise. */
typedef struct {
    uint8_t instance[KV_EVENT_INSTANCE_BYTES];
    uint64_t next_sequence; /* 0: none yet */
    bool in_snapshot, whole;
    bool asked; /* a subscription was sent, and nothing of it has come */
} kv_events_reader_t;

typedef struct {
    void *context;
    void (*cleared)(void *context); /* forget all that this node told */
    kv_event_visit_t event;
} kv_events_sink_t;

/* What to send: from where the reader is, or for everything. The message points into the reader. */
void kv_events_reader_subscribe(kv_events_reader_t *reader, Kvist__Events__Subscribe *message_out);

/* *count_out: events that were taken, 0 for what was passed over. Events and tiers that this
 * version does not know have their numbers and change nothing. */
kv_status_t kv_events_reader_take(kv_events_reader_t *reader, const Kvist__Events__Batch *batch,
    const kv_events_sink_t *sink, size_t *count_out, kv_error_t *error);

#endif
