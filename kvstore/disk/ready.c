/* Segments made ready ahead of the writer: the next one has its generation before the open one is
 * full, and new files are filled in idle time, so that records do not go into blocks that were
 * never written.
 *
 *   absent --(room in the quota)--> ready            idle: ready, then spares, are filled;
 *   spare ------------------------> ready                  then another spare is made
 *   emptied (reclaim.c) ----------> ready
 *
 * Rules:
 *  1. Nothing is made before somebody wrote.
 *  2. Filling goes on only while nothing else is to be read, written or encoded, one write at a
 *     time: what a user asks for waits for one such write at most.
 *  3. The writer does not wait for a segment to be filled: what is not, is used as it is. It waits
 *     for the one write that may be under way there.
 *  4. Under a write budget nothing is filled: every byte would be written twice.
 *  5. Bytes that fill are no record: none of them has a header's magic at its start. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/disk/budget.h"

#include <stdlib.h>
#include <string.h>

enum { SPARES_MAX = 4 };

typedef struct {
    kv_task_t task;
    kv_segment_begin_t begin;
    bool existed;
    kv_status_t status;
    kv_error_t error;
} begin_t;

static void begin_segment(kv_task_t *task)
{
    begin_t *begin = (begin_t *)task;
    begin->status = kv_segment_begin(&task->store->disk->segments, &begin->begin, &begin->error);
    kv_store_finish(task);
}

/* No room for another file: the volume works with the segments that it has. */
static void shrink_quota(kvist_store_t *store, const begin_t *begin)
{
    kv_volume_t *volume = store->disk->segments.volumes[begin->begin.volume];
    if (begin->status == KV_NO_SPACE && volume->present_count >= 2) {
        kv_log_warn("store", "%s: working with the %u segments there are", begin->error.text,
            volume->present_count);
        volume->segments_max = volume->present_count;
        store->stats.failed_writes++;
    } else {
        kv_persist_failed(store, begin->begin.volume, 0, begin->error.text);
    }
}

static void begin_failed(kvist_store_t *store, const begin_t *begin)
{
    kv_segments_t *segments = &store->disk->segments;
    uint32_t number = begin->begin.number;
    if (begin->existed) {
        kv_segments_add_spare(segments, number);
        kv_persist_failed(store, begin->begin.volume, 0, begin->error.text);
        return;
    }
    segments->items[number].state = KV_SEGMENT_ABSENT;
    segments->volumes[begin->begin.volume]->present_count--;
    if (number < segments->first_absent) {
        segments->first_absent = number;
    }
    shrink_quota(store, begin);
}

static void begin_done(kv_task_t *task)
{
    begin_t *begin = (begin_t *)task;
    kvist_store_t *store = task->store;
    kv_segments_t *segments = &store->disk->segments;
    uint32_t number = begin->begin.number;
    kv_segment_t *segment = &segments->items[number];
    store->disk->lanes[begin->begin.volume].beginning = false;
    if (begin->status != KV_OK) {
        begin_failed(store, begin);
    } else if (begin->begin.generation == 0) {
        kv_segments_add_spare(segments, number);
    } else {
        segment->generation = begin->begin.generation;
        segment->append_bytes = segment->indexed_bytes = KV_SEGMENT_HEADER_BYTES;
        segment->state = KV_SEGMENT_READY;
        segments->volumes[begin->begin.volume]->ready = number;
        /* The index learns that this life begins empty: a scan starts at its front. */
        kv_persist_put_segment(store, number);
    }
    free(begin);
}

static void start_begin(
    kvist_store_t *store, uint32_t volume, uint32_t number, uint64_t generation, bool existed)
{
    kv_disk_t *disk = store->disk;
    begin_t *begin = kv_allocate(sizeof *begin);
    *begin = (begin_t){
        .task = {.work = begin_segment, .done = begin_done, .store = store},
        .begin = {.number = number,
            .volume = volume,
            .generation = generation,
            .filled = disk->segments.items[number].filled},
        .existed = existed,
    };
    disk->segments.items[number].state = KV_SEGMENT_BEGINNING;
    disk->lanes[volume].beginning = true;
    kv_budget_spend(store, KV_SEGMENT_HEADER_BYTES);
    kv_store_submit(store, &begin->task);
}

static uint64_t next_generation(kvist_store_t *store)
{
    return kv_segments_next_generation(&store->disk->segments, store->clock->unix_ns(store->clock));
}

void kv_ready_begin(kvist_store_t *store, uint32_t volume, uint32_t number)
{
    store->disk->segments.items[number].filled = true; /* by the records of its last life */
    start_begin(store, volume, number, next_generation(store), true);
}

/* Another file, where the quota has room for it. */
static bool make_file(kvist_store_t *store, uint32_t volume, uint64_t generation)
{
    kv_segments_t *segments = &store->disk->segments;
    kv_volume_t *at = segments->volumes[volume];
    uint32_t number = at->present_count < at->segments_max ? kv_segments_absent(segments, volume)
                                                           : KV_SEGMENT_NONE;
    if (number == KV_SEGMENT_NONE) {
        at->segments_max =
            at->present_count < at->segments_max ? at->present_count : at->segments_max;
        return false;
    }
    segments->items[number].volume = (uint8_t)volume;
    segments->items[number].filled = false;
    at->present_count++;
    start_begin(store, volume, number, generation, false);
    return true;
}

/* ---- filling ---- */

static bool quiet(const kvist_store_t *store)
{
    const kv_disk_t *disk = store->disk;
    return disk->staging_free_count == KV_STAGING_COUNT && disk->queue_count == 0 &&
           disk->first_read == NULL && store->first_task == NULL && store->tasks_out == 0;
}

static void fill_done(kv_ring_request_t *request, int errno_value);

static void fill_next(kvist_store_t *store, uint32_t volume)
{
    kv_disk_t *disk = store->disk;
    kv_lane_t *lane = &disk->lanes[volume];
    uint64_t left = disk->segments.segment_bytes - lane->filled_bytes;
    lane->fill = (kv_ring_request_t){
        .kind = KV_RING_WRITE,
        .buffer = disk->fill_bytes,
        .bytes = left < KV_FILL_BYTES ? left : KV_FILL_BYTES,
        .offset = lane->filled_bytes,
        .done = fill_done,
    };
    kv_error_t error;
    if (kv_segments_file(&disk->segments, lane->filling, &lane->fill.file, &error) != KV_OK) {
        lane->filling = KV_SEGMENT_NONE;
        return;
    }
    lane->fill_out = true;
    kv_segments_hold(&disk->segments, lane->filling);
    kv_ring_submit(disk->ring, &lane->fill);
}

/* A spare says in its header that it is filled; one that is ready gets it in its next life. */
static void filled(kvist_store_t *store, uint32_t volume, uint32_t number)
{
    kv_segments_t *segments = &store->disk->segments;
    segments->items[number].filled = true;
    if (segments->items[number].state == KV_SEGMENT_SPARE &&
        !store->disk->lanes[volume].beginning) {
        kv_segments_leave_spare(segments, number);
        start_begin(store, volume, number, 0, true);
    }
}

static void fill_done(kv_ring_request_t *request, int errno_value)
{
    kv_lane_t *lane = (kv_lane_t *)((char *)request - offsetof(kv_lane_t, fill));
    kvist_store_t *store = lane->store;
    kv_disk_t *disk = store->disk;
    uint32_t volume = (uint32_t)(lane - disk->lanes), number = lane->filling;
    lane->fill_out = false;
    kv_segments_release(&disk->segments, number);
    lane->filled_bytes += request->bytes;
    if (errno_value != 0) {
        lane->filling = KV_SEGMENT_NONE;
        lane->unfillable = true; /* a saving, not a need */
        kv_log_warn("store", "segment not filled: %s", strerror(errno_value));
    } else if (lane->filled_bytes == disk->segments.segment_bytes) {
        lane->filling = KV_SEGMENT_NONE;
        filled(store, volume, number);
    }
}

static uint32_t next_to_fill(const kv_segments_t *segments, uint32_t volume, uint32_t *spares_out)
{
    const kv_volume_t *at = segments->volumes[volume];
    *spares_out = 0;
    if (at->ready != KV_SEGMENT_NONE && !segments->items[at->ready].filled) {
        return at->ready;
    }
    uint32_t spare = at->first_spare;
    while (spare != KV_SEGMENT_NONE && segments->items[spare].filled) {
        ++*spares_out;
        spare = segments->items[spare].next;
    }
    return spare;
}

static void advance_filling(kvist_store_t *store, uint32_t volume)
{
    kv_disk_t *disk = store->disk;
    kv_lane_t *lane = &disk->lanes[volume];
    if (lane->fill_out || lane->unfillable || disk->closing || disk->budget != NULL ||
        !quiet(store)) {
        return;
    }
    if (lane->filling == KV_SEGMENT_NONE) {
        uint32_t spares;
        lane->filling = next_to_fill(&disk->segments, volume, &spares);
        lane->filled_bytes = KV_SEGMENT_HEADER_BYTES;
        if (lane->filling == KV_SEGMENT_NONE && spares < SPARES_MAX && !lane->beginning) {
            make_file(store, volume, 0);
        }
    }
    if (lane->filling != KV_SEGMENT_NONE) {
        fill_next(store, volume);
    }
}

/* ---- ahead of the writer ---- */

void kv_ready_advance(kvist_store_t *store, uint32_t volume)
{
    kv_disk_t *disk = store->disk;
    kv_lane_t *lane = &disk->lanes[volume];
    const kv_volume_t *at = disk->segments.volumes[volume];
    if (!lane->wanted) {
        return;
    }
    if (at->ready == KV_SEGMENT_NONE && !lane->beginning && !disk->closing &&
        lane->victim.segment == KV_SEGMENT_NONE) {
        uint32_t spare = kv_segments_take_spare(&disk->segments, volume);
        if (spare != KV_SEGMENT_NONE) {
            start_begin(store, volume, spare, next_generation(store), true);
        } else {
            make_file(store, volume, next_generation(store));
        }
    }
    advance_filling(store, volume);
}
