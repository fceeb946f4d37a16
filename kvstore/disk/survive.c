/* Survivors of a segment that is being emptied: read, verified, and written again as they are.
 *
 *   reading (ring) -> verifying (worker) -> a batch as any: placed, written, synced, indexed
 *
 * A record is moved as it stands on disk, encoded; only what changes in an object's life (last use,
 * expiry, pin) and its generation are entered anew. Neighbours are read as one range. */
#include "kvstore/disk/persist_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { RANGES_MAX = 16 }; /* of one batch: they wait in the ring before what users want */

typedef struct kv_survivors kv_survivors_t;

/* Neighbouring records, read at once. */
typedef struct {
    kv_ring_request_t request;
    kv_survivors_t *survivors;
    uint32_t first, count; /* items of the batch */
} range_t;

struct kv_survivors {
    kv_task_t task;
    kv_write_batch_t *batch;
    range_t ranges[RANGES_MAX];
    uint32_t range_count, ranges_out;
    void *scratch;
    uint32_t *words;
};

/* ---- verified ---- */

static void verify(kv_task_t *task)
{
    kv_survivors_t *survivors = (kv_survivors_t *)task;
    kv_write_batch_t *batch = survivors->batch;
    kvist_store_t *store = batch->store;
    char *from = kv_staging_bytes(store->disk, batch->staging), *to = from;
    for (uint32_t i = 0; i < batch->count; i++) {
        kv_write_item_t *item = &batch->items[i];
        kv_record_t *record = &item->record;
        size_t bytes = record->stored_bytes;
        const kv_layout_t *layout = &store->groups[record->group].layout;
        const void *object;
        const kv_record_reader_t reader = {store->disk->keys, survivors->scratch};
        item->damaged = !item->unread && kv_record_verify(layout, &reader, record, from, bytes,
                                             &object, survivors->words) != KV_OK;
        if (!item->damaged && !item->unread) {
            memmove(to, from, bytes);
            kv_record_renew(to, record);
            item->offset = (size_t)(to - kv_staging_bytes(store->disk, batch->staging));
            to += bytes;
        }
        from += bytes;
    }
    batch->bytes = (size_t)(to - kv_staging_bytes(store->disk, batch->staging));
    kv_store_finish(task);
}

static void forget_damaged(kvist_store_t *store, uint32_t number, uint32_t segment)
{
    kv_object_t *object = kv_table_at(store->table, number);
    object->flags &= ~KV_OBJECT_WRITING;
    object->disk_flags &= ~KV_DISK_STAYS;
    if ((object->flags & KV_OBJECT_DEAD) != 0) {
        kv_object_settle(store, number);
    } else if (object->segment == segment) {
        kv_object_forget_copy(store, number, KVIST_TIER_DISK);
    }
}

static void let_go(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    object->flags &= ~KV_OBJECT_WRITING;
    object->disk_flags &= ~KV_DISK_STAYS;
    kv_object_settle(store, number);
}

static void verified(kv_task_t *task)
{
    kv_survivors_t *survivors = (kv_survivors_t *)task;
    kv_write_batch_t *batch = survivors->batch;
    kvist_store_t *store = batch->store;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        const kv_write_item_t *item = &batch->items[i];
        if (item->damaged) {
            forget_damaged(store, item->object, batch->moved_from);
        } else if (item->unread) {
            let_go(store, item->object);
        } else {
            batch->items[kept++] = *item;
        }
    }
    batch->count = kept;
    free(survivors->scratch);
    free(survivors->words);
    free(survivors);
    kv_persist_write_moved(batch);
}

/* ---- read ---- */

static void all_read(kv_survivors_t *survivors)
{
    kvist_store_t *store = survivors->batch->store;
    survivors->task = (kv_task_t){.work = verify, .done = verified, .store = store};
    survivors->scratch = kv_allocate(store->scratch_bytes_max);
    survivors->words = kv_allocate_array(store->block_words, sizeof(uint32_t));
    kv_store_submit(store, &survivors->task);
}

static void range_read(kv_ring_request_t *request, int errno_value)
{
    range_t *range = (range_t *)((char *)request - offsetof(range_t, request));
    kv_survivors_t *survivors = range->survivors;
    kv_write_batch_t *batch = survivors->batch;
    kvist_store_t *store = batch->store;
    if (errno_value != 0) {
        uint32_t volume = store->disk->segments.items[batch->moved_from].volume;
        kv_log_warn("store", "read failed: %s segment %u offset %ju bytes %zu",
            strerror(errno_value), batch->moved_from, (uintmax_t)request->offset, request->bytes);
        store->disk->lanes[volume].victim.failures++;
        store->stats.failed_reads += range->count;
        for (uint32_t i = range->first; i < range->first + range->count; i++) {
            batch->items[i].unread = true;
        }
    }
    if (--survivors->ranges_out == 0) {
        all_read(survivors);
    }
}

static void read_ranges(kv_survivors_t *survivors, int file)
{
    kv_write_batch_t *batch = survivors->batch;
    kv_disk_t *disk = batch->store->disk;
    char *to = kv_staging_bytes(disk, batch->staging);
    survivors->ranges_out = survivors->range_count;
    for (uint32_t i = 0; i < survivors->range_count; i++) {
        range_t *range = &survivors->ranges[i];
        const kv_object_t *first =
            kv_table_at(batch->store->table, batch->items[range->first].object);
        range->request.kind = KV_RING_READ;
        range->request.file = file;
        range->request.buffer = to;
        range->request.offset = (uint64_t)first->offset_pages * KV_PAGE_BYTES;
        range->request.done = range_read;
        to += range->request.bytes;
    }
    for (uint32_t i = 0; i < survivors->range_count; i++) {
        kv_ring_submit(disk->ring, &survivors->ranges[i].request);
    }
}

/* ---- chosen ---- */

static void add_item(kv_survivors_t *survivors, uint32_t number)
{
    kv_write_batch_t *batch = survivors->batch;
    kvist_store_t *store = batch->store;
    kv_object_t *object = kv_table_at(store->table, number);
    kv_write_item_t *item = &batch->items[batch->count++];
    *item = (kv_write_item_t){.object = number};
    kv_object_describe(store, object, &item->record);
    item->record.generation = store->disk->segments.items[batch->moved_from].generation;
    item->record.stored_bytes = (uint64_t)object->length_pages * KV_PAGE_BYTES;
    object->flags |= KV_OBJECT_WRITING;
    batch->bytes += item->record.stored_bytes;
}

/* Whether the object begins where the last range ends; it then joins it. */
static bool joins(const kv_survivors_t *survivors, const kv_object_t *object)
{
    if (survivors->range_count == 0) {
        return false;
    }
    const range_t *last = &survivors->ranges[survivors->range_count - 1];
    return last->request.offset + last->request.bytes ==
           (uint64_t)object->offset_pages * KV_PAGE_BYTES;
}

/* Takes the victim's next survivors, as many as a buffer holds. */
static void gather(kv_survivors_t *survivors, kv_victim_t *victim)
{
    kv_write_batch_t *batch = survivors->batch;
    kvist_store_t *store = batch->store;
    for (; victim->next < victim->count; victim->next++) {
        uint32_t number = victim->objects[victim->next].object;
        kv_object_t *object = kv_table_at(store->table, number);
        uint64_t bytes = (uint64_t)object->length_pages * KV_PAGE_BYTES;
        if (object->segment != victim->segment || (object->disk_flags & KV_DISK_STAYS) == 0) {
            continue;
        }
        if (batch->bytes + bytes > store->disk->staging_bytes) {
            return;
        }
        if (joins(survivors, object)) {
            survivors->ranges[survivors->range_count - 1].request.bytes += bytes;
            survivors->ranges[survivors->range_count - 1].count++;
        } else if (survivors->range_count < RANGES_MAX) {
            survivors->ranges[survivors->range_count++] = (range_t){
                .request = {.bytes = bytes,
                    .offset = (uint64_t)object->offset_pages * KV_PAGE_BYTES},
                .survivors = survivors,
                .first = batch->count,
                .count = 1,
            };
        } else {
            return;
        }
        add_item(survivors, number);
    }
}

bool kv_survive_start(kvist_store_t *store, uint32_t volume)
{
    kv_disk_t *disk = store->disk;
    kv_victim_t *victim = &disk->lanes[volume].victim;
    if (disk->staging_free_count < 2) {
        return false; /* the last one is for reads */
    }
    kv_survivors_t *survivors = kv_allocate(sizeof *survivors);
    survivors->batch = kv_persist_make_batch(store);
    survivors->batch->moved_from = victim->segment;
    victim->moves_out++;
    kv_segments_hold(&disk->segments, victim->segment);
    gather(survivors, victim);
    int file;
    kv_error_t error;
    kv_status_t status = kv_segments_file(&disk->segments, victim->segment, &file, &error);
    if (status == KV_OK && survivors->range_count > 0) {
        read_ranges(survivors, file);
        return true;
    }
    if (status != KV_OK) {
        kv_log_warn("store", "read failed: %s", error.text);
        victim->failures++;
    }
    for (uint32_t i = 0; i < survivors->batch->count; i++) {
        survivors->batch->items[i].unread = true;
    }
    all_read(survivors);
    return true;
}
