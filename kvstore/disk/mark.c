/* Markers: a record that is no object's place any more says so itself, so that no scan and no
 * rebuilt index brings back what was dropped.
 *
 *   queued --(the index has its note, durably)--> written --> synced --> note deleted
 *
 * Rules:
 *  1. A record whose header is whole and of its segment's life is the place of an object, or a mark
 *     for it is noted in the index. Whoever takes an object from its place queues a mark, but for
 *     reclaiming, where the segment's next generation does as much for all records at once, and for
 *     an opening that could not read every segment: the parent that it misses may be there again.
 *  2. The note is written with the change that makes the record placeless, before the marker: a
 *     crash between them leaves work for the next start, never an entry that points at a marker.
 *  3. A marker is written only while its record's generation is the segment's, and keeps the
 *     segment from being reclaimed meanwhile. A record to be erased keeps it from the start, since
 *     its bytes must be overwritten in this life, and until the first try ended: what waits for the
 *     segment must not wait for a place that cannot be written. So its note is written at once.
 *     Nothing is written to a place that waits for its marker: after a restart records go on behind
 *     the last of them.
 *  4. Marks are carried out in the order in which they were queued, in batches of which one is
 *     under way. One that fails is queued again behind the others and counted. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/disk/budget.h"
#include "kvstore/index/entry.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MARKS_MIN = 64, BATCH_MARKS_MAX = 32 };

typedef struct {
    kv_note_entry_t note;
    uint64_t sync_number; /* of the index write that makes the note durable */
    bool holds;           /* the segment, while it waits */
} mark_t;

typedef struct {
    kv_ring_request_t request;
    kvist_store_t *store;
    mark_t mark;
    int errno_value;
} step_t;

struct kv_marks {
    mark_t *items; /* a ring of capacity */
    uint32_t capacity, first, count;
    uint64_t queued_total, ended_total, failed_total;
    int staging; /* -1: no batch is under way */
    step_t steps[BATCH_MARKS_MAX];
    uint32_t step_count, out; /* out: at the ring */
    bool syncing;
};

/* ---- the queue ---- */

static kv_marks_t *marks_of(kvist_store_t *store)
{
    if (store->disk->marks == NULL) {
        store->disk->marks = kv_allocate(sizeof(kv_marks_t));
        store->disk->marks->staging = -1;
    }
    return store->disk->marks;
}

static void push(kv_marks_t *marks, const mark_t *mark)
{
    if (marks->count == marks->capacity) {
        uint32_t capacity = marks->capacity > 0 ? 2 * marks->capacity : MARKS_MIN;
        mark_t *items = kv_allocate_array(capacity, sizeof *items);
        for (uint32_t i = 0; i < marks->count; i++) {
            items[i] = marks->items[(marks->first + i) % marks->capacity];
        }
        free(marks->items);
        marks->items = items;
        marks->capacity = capacity;
        marks->first = 0;
    }
    marks->items[(marks->first + marks->count++) % marks->capacity] = *mark;
    marks->queued_total++;
}

static bool holds(const kv_segment_t *segment)
{
    return segment->state == KV_SEGMENT_OPEN || segment->state == KV_SEGMENT_FULL;
}

void kv_mark_queue(kvist_store_t *store, uint16_t segment_number, uint32_t offset_pages,
    uint32_t length_pages, bool erase)
{
    kv_disk_t *disk = store->disk;
    kv_segment_t *segment = &disk->segments.items[segment_number];
    if (!holds(segment) || disk->spare_records) {
        return;
    }
    mark_t mark = {
        .note = {segment->generation, offset_pages, length_pages, segment_number, erase},
        .sync_number = disk->syncs_begun + 1,
        .holds = erase,
    };
    if (erase) {
        kv_segments_hold(&disk->segments, segment_number);
    }
    disk->sync_index = disk->sync_index || erase;
    kv_note_entry_put(&disk->filling, &mark.note);
    push(marks_of(store), &mark);
}

bool kv_mark_restore(kvist_store_t *store, const kv_note_entry_t *note)
{
    kv_segments_t *segments = &store->disk->segments;
    uint64_t end = ((uint64_t)note->offset_pages + note->length_pages) * KV_PAGE_BYTES;
    if (note->offset_pages == 0 || note->length_pages == 0 || note->segment >= segments->count ||
        !holds(&segments->items[note->segment]) || end > segments->segment_bytes ||
        segments->items[note->segment].generation != note->generation) {
        return false;
    }
    if (note->erase) {
        kv_segments_hold(segments, note->segment);
    }
    push(marks_of(store), &(mark_t){.note = *note, .holds = note->erase});
    return true;
}

/* ---- carrying them out ---- */

static void end_step(step_t *step)
{
    kvist_store_t *store = step->store;
    kv_marks_t *marks = store->disk->marks;
    kv_segments_t *segments = &store->disk->segments;
    kv_segments_release(segments, step->mark.note.segment);
    marks->ended_total++;
    if (step->errno_value == 0) {
        kv_note_entry_delete(&store->disk->filling, &step->mark.note);
        return;
    }
    marks->failed_total++;
    store->stats.failed_writes++;
    kv_log_warn("store", "a dropped record could not be marked: %s segment %u offset %ju",
        strerror(step->errno_value), step->mark.note.segment,
        (uintmax_t)step->mark.note.offset_pages * KV_PAGE_BYTES);
    step->mark.sync_number = store->disk->syncs_begun + 1; /* tried again, not at once */
    step->mark.holds = false;
    push(marks, &step->mark);
}

static void end_batch(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    kv_marks_t *marks = disk->marks;
    for (uint32_t i = 0; i < marks->step_count; i++) {
        end_step(&marks->steps[i]);
    }
    marks->step_count = 0;
    marks->syncing = false;
    disk->staging_free[disk->staging_free_count++] = marks->staging;
    marks->staging = -1;
    kv_store_kick(store);
}

static void start_syncs(kvist_store_t *store);

static void step_done(kv_ring_request_t *request, int errno_value)
{
    step_t *step = (step_t *)((char *)request - offsetof(step_t, request));
    kvist_store_t *store = step->store;
    kv_marks_t *marks = store->disk->marks;
    step->errno_value = errno_value;
    if (errno_value != 0 &&
        marks->syncing) { /* nobody knows what of the segment's marks is there */
        for (uint32_t i = 0; i < marks->step_count; i++) {
            if (marks->steps[i].mark.note.segment == step->mark.note.segment) {
                marks->steps[i].errno_value = errno_value;
            }
        }
    }
    if (--marks->out == 0) {
        if (marks->syncing) {
            end_batch(store);
        } else {
            start_syncs(store);
        }
    }
}

static void submit(step_t *step, kv_ring_kind_t kind)
{
    kv_disk_t *disk = step->store->disk;
    kv_error_t error;
    int file;
    step->request.kind = kind;
    step->request.done = step_done;
    if (kv_segments_file(&disk->segments, step->mark.note.segment, &file, &error) != KV_OK) {
        kv_log_warn("store", "%s", error.text);
        step_done(&step->request, EIO);
        return;
    }
    step->request.file = file;
    kv_ring_submit(disk->ring, &step->request);
}

/* One for each segment that was written to. */
static void start_syncs(kvist_store_t *store)
{
    kv_marks_t *marks = store->disk->marks;
    marks->syncing = true;
    marks->out = 1; /* none may end the batch before all are started */
    for (uint32_t i = 0; i < marks->step_count; i++) {
        bool first = marks->steps[i].errno_value == 0;
        for (uint32_t j = 0; j < i && first; j++) {
            first = marks->steps[j].mark.note.segment != marks->steps[i].mark.note.segment ||
                    marks->steps[j].errno_value != 0;
        }
        if (first) {
            marks->out++;
            submit(&marks->steps[i], KV_RING_SYNC);
        }
    }
    if (--marks->out == 0) {
        end_batch(store);
    }
}

static void pop(kv_marks_t *marks)
{
    marks->first = (marks->first + 1) % marks->capacity;
    marks->count--;
}

/* The next mark that may be written now, or NULL. Those of a segment that has begun another life
 * meanwhile are done by that. */
static const mark_t *next(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    kv_marks_t *marks = disk->marks;
    while (marks->count > 0 && marks->items[marks->first].sync_number <= disk->syncs_done) {
        const mark_t *mark = &marks->items[marks->first];
        const kv_segment_t *segment = &disk->segments.items[mark->note.segment];
        if (holds(segment) && segment->generation == mark->note.generation) {
            return mark;
        }
        KV_CHECK(!mark->holds);
        marks->ended_total++;
        kv_note_entry_delete(&disk->filling, &mark->note);
        pop(marks);
    }
    return NULL;
}

static size_t bytes_of(const mark_t *mark)
{
    return mark->note.erase ? (size_t)mark->note.length_pages * KV_PAGE_BYTES : KV_PAGE_BYTES;
}

/* Takes the mark into the batch: the marker, and where the record is to be erased zeros over the
 * rest of it. */
static void add_step(kvist_store_t *store, const mark_t *mark, char *at)
{
    kv_marks_t *marks = store->disk->marks;
    step_t *step = &marks->steps[marks->step_count++];
    *step = (step_t){.store = store, .mark = *mark};
    step->request.buffer = at;
    step->request.bytes = bytes_of(mark);
    step->request.offset = (uint64_t)mark->note.offset_pages * KV_PAGE_BYTES;
    memset(at, 0, step->request.bytes);
    kv_record_write_marker(
        at, mark->note.generation, (uint64_t)mark->note.length_pages * KV_PAGE_BYTES);
    if (!mark->holds) { /* else it is held already */
        kv_segments_hold(&store->disk->segments, mark->note.segment);
    }
    kv_budget_spend(store, step->request.bytes);
    pop(marks);
}

static void start_batch(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    kv_marks_t *marks = disk->marks;
    marks->staging = disk->staging_free[--disk->staging_free_count];
    char *at = (char *)disk->staging_region.base + (size_t)marks->staging * disk->staging_bytes;
    char *end = at + disk->staging_bytes;
    const mark_t *mark;
    while (marks->step_count < BATCH_MARKS_MAX && (mark = next(store)) != NULL &&
           bytes_of(mark) <= (size_t)(end - at)) {
        size_t bytes = bytes_of(mark);
        add_step(store, mark, at);
        at += bytes;
    }
    marks->out = marks->step_count + 1; /* none may end the batch before all are started */
    for (uint32_t i = 0; i < marks->step_count; i++) {
        submit(&marks->steps[i], KV_RING_WRITE);
    }
    if (--marks->out == 0) {
        start_syncs(store);
    }
}

static bool ready(const kv_disk_t *disk)
{
    const kv_marks_t *marks = disk->marks;
    return marks != NULL && marks->count > 0 &&
           marks->items[marks->first].sync_number <= disk->syncs_done;
}

void kv_mark_advance(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    /* A buffer of the reads will do: those of the writes may wait for a place that a mark holds. */
    while (ready(disk) && disk->marks->staging < 0 && disk->staging_free_count > 0) {
        start_batch(store);
    }
}

/* ---- what others see ---- */

uint64_t kv_mark_last(const kvist_store_t *store)
{
    return store->disk->marks != NULL ? store->disk->marks->queued_total : 0;
}

bool kv_mark_ended(const kvist_store_t *store, uint64_t number)
{
    return number == 0 || store->disk->marks->ended_total >= number;
}

uint64_t kv_mark_failures(const kvist_store_t *store)
{
    return store->disk->marks != NULL ? store->disk->marks->failed_total : 0;
}

bool kv_mark_idle(const kvist_store_t *store)
{
    const kv_disk_t *disk = store->disk;
    return disk->marks == NULL || (disk->marks->staging < 0 && !ready(disk));
}

bool kv_mark_pending(const kvist_store_t *store, uint32_t segment, uint64_t offset)
{
    const kv_marks_t *marks = store->disk->marks;
    for (uint32_t i = 0; marks != NULL && i < marks->count; i++) {
        const mark_t *mark = &marks->items[(marks->first + i) % marks->capacity];
        if (mark->note.segment == segment && mark->note.offset_pages == offset / KV_PAGE_BYTES) {
            return true;
        }
    }
    return false;
}

uint64_t kv_mark_end(const kvist_store_t *store, uint32_t segment)
{
    const kv_marks_t *marks = store->disk->marks;
    uint64_t end = 0;
    for (uint32_t i = 0; marks != NULL && i < marks->count; i++) {
        const kv_note_entry_t *note = &marks->items[(marks->first + i) % marks->capacity].note;
        uint64_t of_note = ((uint64_t)note->offset_pages + note->length_pages) * KV_PAGE_BYTES;
        if (note->segment == segment && of_note > end) {
            end = of_note;
        }
    }
    return end;
}

void kv_mark_close(kvist_store_t *store)
{
    if (store->disk->marks != NULL) {
        free(store->disk->marks->items);
        free(store->disk->marks);
    }
}
