/* Room on disk: the open segment, then a new one while the quota allows, then the oldest again. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"

#include <stdlib.h>

typedef struct {
    kv_task_t task;
    uint32_t number;
    uint64_t generation;
    kv_status_t status;
    kv_error_t error;
} prepare_t;

static void prepare_segment(kv_task_t *task)
{
    prepare_t *prepare = (prepare_t *)task;
    const kv_segments_t *segments = &task->store->disk->segments;
    prepare->status =
        kv_segment_prepare(segments, prepare->number, prepare->generation, &prepare->error);
    kv_store_finish(task);
}

/* No room for another file: the disk tier works with the segments that it has. */
static void shrink_quota(kvist_store_t *store, const prepare_t *prepare)
{
    kv_segments_t *segments = &store->disk->segments;
    if (prepare->status == KV_NO_SPACE && segments->present_count >= 2 &&
        segments->present_count < segments->count_max) {
        kv_log_warn("store", "%s: working with the %u segments there are", prepare->error.text,
            segments->present_count);
        store->disk->segments_max = segments->present_count;
        store->stats.failed_writes++;
    } else {
        kv_persist_failed(store, 0, prepare->error.text);
    }
}

static void prepare_done(kv_task_t *task)
{
    prepare_t *prepare = (prepare_t *)task;
    kvist_store_t *store = task->store;
    kv_disk_t *disk = store->disk;
    kv_segment_t *segment = &disk->segments.items[prepare->number];
    disk->preparing = false;
    if (prepare->status == KV_OK) {
        segment->generation = prepare->generation;
        segment->append_bytes = segment->indexed_bytes = KV_SEGMENT_HEADER_BYTES;
        segment->state = KV_SEGMENT_OPEN;
        disk->open_segment = prepare->number;
        disk->segments.present_count++;
        /* The index learns that this life begins empty: a scan starts at its front. */
        kv_persist_put_segment(store, prepare->number);
    } else {
        segment->state = KV_SEGMENT_ABSENT;
        shrink_quota(store, prepare);
    }
    free(prepare);
}

static void start_prepare(kvist_store_t *store, uint32_t number)
{
    kv_disk_t *disk = store->disk;
    prepare_t *prepare = kv_allocate(sizeof *prepare);
    *prepare = (prepare_t){
        .task = {.work = prepare_segment, .done = prepare_done, .store = store},
        .number = number,
        .generation =
            kv_segments_next_generation(&disk->segments, store->clock->unix_ns(store->clock)),
    };
    disk->segments.items[number].state = KV_SEGMENT_PREPARING;
    disk->preparing = true;
    kv_store_submit(store, &prepare->task);
}

/* Nothing of it is being read or written, and no lease counts on a block that only it has. */
static bool reclaimable(kvist_store_t *store, const kv_segment_t *segment)
{
    if (segment->state != KV_SEGMENT_FULL || segment->in_use > 0) {
        return false;
    }
    for (uint32_t number = segment->first_object; number != KV_OBJECT_NONE;) {
        const kv_object_t *object = kv_table_at(store->table, number);
        if (object->reference_count > 0 && !kv_object_on_host(object) &&
            !kv_object_on_device(store, object)) {
            return false;
        }
        number = object->segment_next;
    }
    return true;
}

/* The segment's records are gone: objects that another tier has stay there, the others go, with
 * their descendants, so that no chain has a hole. Of those that stay, what others descend from (or
 * everything, when all is written behind) is written again, as far as half a segment goes: each
 * reclaim then wins at least the other half. */
static void forget_records(kvist_store_t *store, kv_segment_t *segment)
{
    segment->state = KV_SEGMENT_PREPARING; /* its records need no marks: they all end with it */
    kvist_tier_stats_t *stats = &store->stats.tiers[KVIST_TIER_DISK];
    uint64_t again_bytes = store->disk->segments.segment_bytes / 2;
    while (segment->first_object != KV_OBJECT_NONE) {
        uint32_t number = segment->first_object;
        kv_object_t *object = kv_table_at(store->table, number);
        uint64_t bytes = (uint64_t)object->length_pages * KV_PAGE_BYTES;
        stats->evicted_objects++;
        if (!kv_object_on_device(store, object) && !kv_object_on_host(object)) {
            kv_object_drop(store, number);
            continue;
        }
        kv_object_leave_disk(store, number);
        bool wanted =
            store->persist == KVIST_PERSIST_EAGER || object->first_child != KV_OBJECT_NONE;
        if (wanted && bytes <= again_bytes) {
            again_bytes -= bytes;
            kv_persist_queue(store, number);
        }
    }
}

static uint32_t oldest_reclaimable(kvist_store_t *store)
{
    const kv_segments_t *segments = &store->disk->segments;
    uint32_t oldest = KV_SEGMENT_NONE;
    for (uint32_t i = 0; i < segments->count_max; i++) {
        const kv_segment_t *segment = &segments->items[i];
        if (segment->state == KV_SEGMENT_FULL &&
            (oldest == KV_SEGMENT_NONE ||
                segment->generation < segments->items[oldest].generation) &&
            reclaimable(store, segment)) {
            oldest = i;
        }
    }
    return oldest;
}

static bool any_in_use(const kv_segments_t *segments)
{
    for (uint32_t i = 0; i < segments->count_max; i++) {
        if (segments->items[i].in_use > 0) {
            return true;
        }
    }
    return false;
}

static kv_status_t next_segment(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    kv_segments_t *segments = &disk->segments;
    for (uint32_t i = 0; i < segments->count_max && segments->present_count < disk->segments_max;
         i++) {
        if (segments->items[i].state == KV_SEGMENT_ABSENT) {
            start_prepare(store, i);
            return KV_BUSY;
        }
    }
    uint32_t oldest = oldest_reclaimable(store);
    if (oldest == KV_SEGMENT_NONE) {
        disk->stuck = !any_in_use(segments);
        return disk->stuck ? KV_NO_SPACE : KV_BUSY;
    }
    forget_records(store, &segments->items[oldest]);
    segments->present_count--;
    start_prepare(store, oldest);
    return KV_BUSY;
}

kv_status_t kv_reclaim_reserve(
    kvist_store_t *store, size_t bytes, uint32_t *segment_out, uint64_t *offset_out)
{
    kv_disk_t *disk = store->disk;
    if (disk->offline) {
        return KV_NO_SPACE;
    }
    if (disk->preparing) {
        return KV_BUSY;
    }
    if (disk->open_segment != KV_SEGMENT_NONE) {
        kv_segment_t *segment = &disk->segments.items[disk->open_segment];
        if (segment->append_bytes + bytes <= disk->segments.segment_bytes) {
            *segment_out = disk->open_segment;
            *offset_out = segment->append_bytes;
            segment->append_bytes += bytes;
            segment->in_use++;
            return KV_OK;
        }
        segment->state = KV_SEGMENT_FULL;
        disk->open_segment = KV_SEGMENT_NONE;
    }
    return next_segment(store);
}
