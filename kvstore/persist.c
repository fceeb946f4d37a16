/* Writing behind: objects become records on disk, in runs, durable in groups.
 *
 *   queued -> encoding (worker) -> placed, writing (ring) -> written -> synced -> indexed: durable
 *
 * Rules:
 *  1. Data, then fdatasync, then the index entry; only then is an object said to be on disk.
 *  2. Batches are synced and indexed in the order of their places in the segment, so that the
 *     index' mark of a segment ("all records below are known to me") is true.
 *  3. A batch that fails leaves its place unused for the rest of the segment's life; its objects
 *     are queued again. Failures in a row take the disk tier offline: reading goes on. */
#include "kvstore/store_internal.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/checksum.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/entry.h"
#include "kvstore/terms.h"

#include <stdlib.h>

enum { QUEUE_MIN = 256 };

typedef struct {
    uint32_t object;
    const char *host_bytes;         /* or NULL: */
    const char *device_bytes;       /* in device memory */
    const uint64_t *host_checksums; /* of its units: what changed there is not written */
    bool damaged;
    const uint32_t *tokens;
    kv_record_t record;
    size_t offset; /* in the run */
} item_t;

typedef enum { ENCODING, WRITING, WRITTEN, SYNCING, INDEXING, FAILED } stage_t;

struct kv_write_batch {
    kv_task_t task;
    kv_ring_request_t request, sync;
    kvist_store_t *store;
    stage_t stage;
    item_t *items;
    uint32_t count;
    uint64_t queue_first; /* number of its first queue entry */
    int staging;          /* -1: given back */
    size_t bytes;
    uint32_t segment; /* KV_SEGMENT_NONE: no place yet */
    uint64_t offset;
    kv_status_t status;
    kv_write_batch_t *next;         /* under way, or encoding: in order */
    kv_write_batch_t *next_indexed; /* made durable by the same index batch */
};

bool kv_persist_usable(const kvist_store_t *store)
{
    return store->disk != NULL && !store->disk->offline && !store->disk->stuck;
}

/* ---- the queue ---- */

void kv_persist_queue(kvist_store_t *store, uint32_t number)
{
    kv_disk_t *disk = store->disk;
    kv_object_t *object = kv_table_at(store->table, number);
    if ((object->flags & (KV_OBJECT_QUEUED | KV_OBJECT_WRITING | KV_OBJECT_DEAD)) != 0 ||
        kv_object_on_disk(object)) {
        return;
    }
    if (disk->queue_count == disk->queue_capacity) {
        uint32_t capacity = disk->queue_capacity > 0 ? 2 * disk->queue_capacity : QUEUE_MIN;
        uint32_t *queue = kv_allocate_array(capacity, sizeof *queue);
        for (uint32_t i = 0; i < disk->queue_count; i++) {
            queue[i] = disk->queue[(disk->queue_first + i) % disk->queue_capacity];
        }
        free(disk->queue);
        disk->queue = queue;
        disk->queue_capacity = capacity;
        disk->queue_first = 0;
    }
    disk->queue[(disk->queue_first + disk->queue_count++) % disk->queue_capacity] = number;
    disk->queued_total++;
    object->flags |= KV_OBJECT_QUEUED;
    kv_store_kick(store);
}

static uint32_t pop_queue(kv_disk_t *disk)
{
    uint32_t number = disk->queue[disk->queue_first];
    disk->queue_first = (disk->queue_first + 1) % disk->queue_capacity;
    disk->queue_count--;
    return number;
}

static void drain_queue(kvist_store_t *store)
{
    while (store->disk->queue_count > 0) {
        uint32_t number = pop_queue(store->disk);
        kv_table_at(store->table, number)->flags &= ~KV_OBJECT_QUEUED;
        kv_object_settle(store, number);
    }
}

void kv_persist_failed(kvist_store_t *store, uint32_t object_count, const char *reason)
{
    kv_disk_t *disk = store->disk;
    store->stats.failed_writes += object_count > 0 ? object_count : 1;
    if (++disk->write_failures == KV_WRITE_FAILURES_MAX && !disk->offline) {
        disk->offline = true;
        kv_log_error("store",
            "disk tier offline after %d failures in a row: %s; what is stored can be read, nothing "
            "more is stored until the node restarts",
            KV_WRITE_FAILURES_MAX, reason);
    } else if (!disk->offline) {
        kv_log_warn("store", "write failed: %s", reason);
    }
}

/* ---- encoding ---- */

static char *staging_bytes(const kv_disk_t *disk, int staging)
{
    return (char *)disk->staging_region.base + (size_t)staging * disk->staging_bytes;
}

static void encode_batch(kv_task_t *task)
{
    kv_write_batch_t *batch = (kv_write_batch_t *)task;
    kvist_store_t *store = batch->store;
    char *at = staging_bytes(store->disk, batch->staging);
    char *scratch = store->codec != KVIST_CODEC_NONE ? kv_allocate(store->object_bytes_max) : NULL;
    batch->bytes = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        item_t *item = &batch->items[i];
        const kv_layout_t *layout = &store->groups[item->record.group].layout;
        const char *object = item->host_bytes;
        item->offset = batch->bytes;
        item->damaged =
            object != NULL && !kv_layout_units_agree(layout, object, item->host_checksums);
        if (item->damaged) {
            continue;
        }
        if (object == NULL) {
            char *to = scratch != NULL ? scratch : at + kv_record_header_bytes(layout);
            store->device->ops->copy_out(
                store->device, to, item->device_bytes, layout->object_bytes);
            object = to;
        }
        kv_record_write(layout, &item->record, item->tokens, object, at);
        batch->bytes += item->record.stored_bytes;
        at += item->record.stored_bytes;
    }
    free(scratch);
    kv_store_finish(task);
}

/* Bytes that changed in host memory since they came there: as with a damaged record, that copy
 * goes, and without another one the object. */
static void forget_host_copy(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    object->flags &= ~KV_OBJECT_WRITING;
    if ((object->flags & KV_OBJECT_DEAD) != 0) {
        kv_object_settle(store, number);
        return;
    }
    kv_object_forget_copy(store, number, KVIST_TIER_HOST);
    if ((object->flags & KV_OBJECT_DEAD) == 0) {
        kv_persist_queue(store, number); /* from the device */
    }
}

static void batch_encoded(kv_task_t *task)
{
    kv_write_batch_t *batch = (kv_write_batch_t *)task;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        if (batch->items[i].damaged) {
            forget_host_copy(batch->store, batch->items[i].object);
        } else {
            batch->items[kept++] = batch->items[i];
        }
    }
    batch->count = kept;
    batch->stage = WRITING; /* as soon as it has a place */
}

static void fill_item(kvist_store_t *store, uint32_t number, item_t *item)
{
    kv_object_t *object = kv_table_at(store->table, number);
    *item = (item_t){.object = number};
    if (kv_object_on_device(store, object)) {
        item->device_bytes = kv_store_device_bytes(store, object->device_slot);
        item->tokens = kv_pool_tokens(&store->device_pool, object->device_slot);
    } else {
        const kv_store_group_t *group = kv_object_group(store, object);
        item->host_bytes = kv_group_host_bytes(group, object->host_slot);
        item->host_checksums = kv_pool_checksums(&group->host_pool, object->host_slot);
        item->tokens = kv_pool_tokens(&group->host_pool, object->host_slot);
    }
    kv_record_t *record = &item->record;
    kv_object_describe(store, object, record);
    record->created_unix_ns = store->clock->unix_ns(store->clock);
    record->codec = store->codec;
}

/* true: the object is to be written and can be. */
static bool needs_writing(const kvist_store_t *store, const kv_object_t *object)
{
    return (object->flags & KV_OBJECT_DEAD) == 0 && !kv_object_on_disk(object) &&
           (kv_object_on_device(store, object) || kv_object_on_host(object));
}

static void start_batch(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    uint32_t count_max = (uint32_t)(disk->staging_bytes / store->record_bytes_max);
    kv_write_batch_t *batch = kv_allocate(sizeof *batch);
    batch->store = store;
    batch->items = kv_allocate_array(count_max, sizeof *batch->items);
    batch->queue_first = disk->queued_total - disk->queue_count + 1;
    batch->segment = KV_SEGMENT_NONE;
    batch->staging = -1;
    while (disk->queue_count > 0 && batch->count < count_max) {
        uint32_t number = pop_queue(disk);
        kv_object_t *object = kv_table_at(store->table, number);
        object->flags &= ~KV_OBJECT_QUEUED;
        if (needs_writing(store, object)) {
            object->flags |= KV_OBJECT_WRITING;
            fill_item(store, number, &batch->items[batch->count++]);
        } else {
            kv_object_settle(store, number);
        }
    }
    if (batch->count == 0) {
        free(batch->items);
        free(batch);
        return;
    }
    batch->staging = disk->staging_free[--disk->staging_free_count];
    batch->stage = ENCODING;
    batch->task = (kv_task_t){.work = encode_batch, .done = batch_encoded, .store = store};
    kv_write_batch_t **link = &disk->first_encoding;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = batch;
    kv_store_submit(store, &batch->task);
}

/* ---- writing ---- */

static void give_staging(kv_write_batch_t *batch)
{
    kv_disk_t *disk = batch->store->disk;
    disk->staging_free[disk->staging_free_count++] = batch->staging;
    batch->staging = -1;
}

/* The segment of a failed batch takes nothing more: what follows the hole could not be found by a
 * scan. */
static void abandon_segment(kv_disk_t *disk, uint32_t number)
{
    if (disk->open_segment == number) {
        disk->segments.items[number].state = KV_SEGMENT_FULL;
        disk->open_segment = KV_SEGMENT_NONE;
    }
}

static void fail_batch(kv_write_batch_t *batch, kv_status_t status, const char *reason)
{
    batch->stage = FAILED;
    batch->status = status;
    abandon_segment(batch->store->disk, batch->segment);
    kv_persist_failed(batch->store, batch->count, reason);
}

/* What one failed sync was to cover: nobody knows what of it reached the disk. One failure. */
static void fail_syncing(kvist_store_t *store, kv_status_t status, const char *reason)
{
    uint32_t object_count = 0;
    for (kv_write_batch_t *batch = store->disk->first_batch; batch != NULL; batch = batch->next) {
        if (batch->stage == SYNCING) {
            batch->stage = FAILED;
            batch->status = status;
            abandon_segment(store->disk, batch->segment);
            object_count += batch->count;
        }
    }
    kv_persist_failed(store, object_count, reason);
}

static void write_done(kv_ring_request_t *request, int errno_value)
{
    kv_write_batch_t *batch =
        (kv_write_batch_t *)((char *)request - offsetof(kv_write_batch_t, request));
    give_staging(batch);
    if (errno_value != 0) {
        fail_batch(batch, kv_status_from_errno(errno_value), strerror(errno_value));
    } else {
        batch->stage = WRITTEN;
    }
}

static void write_batch(kv_write_batch_t *batch)
{
    kv_disk_t *disk = batch->store->disk;
    char *bytes = staging_bytes(disk, batch->staging);
    uint64_t generation = disk->segments.items[batch->segment].generation;
    for (uint32_t i = 0; i < batch->count; i++) {
        kv_record_sign(bytes + batch->items[i].offset, generation);
        batch->items[i].record.generation = generation;
    }
    batch->request = (kv_ring_request_t){
        .kind = KV_RING_WRITE,
        .buffer = bytes,
        .bytes = batch->bytes,
        .offset = batch->offset,
        .done = write_done,
    };
    kv_error_t error;
    kv_status_t status =
        kv_segments_file(&disk->segments, batch->segment, &batch->request.file, &error);
    if (status != KV_OK) {
        give_staging(batch);
        fail_batch(batch, status, error.text);
        return;
    }
    kv_ring_submit(disk->ring, &batch->request);
}

static void end_batch(kv_write_batch_t *batch, bool durable)
{
    kvist_store_t *store = batch->store;
    kv_disk_t *disk = store->disk;
    if (batch->segment != KV_SEGMENT_NONE) {
        disk->segments.items[batch->segment].in_use--;
    }
    for (uint32_t i = 0; i < batch->count; i++) {
        const item_t *item = &batch->items[i];
        kv_object_t *object = kv_table_at(store->table, item->object);
        object->flags &= ~KV_OBJECT_WRITING;
        bool dead = (object->flags & KV_OBJECT_DEAD) != 0;
        if ((dead || !durable) && batch->segment != KV_SEGMENT_NONE) {
            /* Whatever of the record is there is nobody's; of failed writes nobody else knows. */
            disk->sync_index = disk->sync_index || !durable;
            kv_mark_queue(store, (uint16_t)batch->segment,
                (uint32_t)((batch->offset + item->offset) / KV_PAGE_BYTES),
                (uint32_t)(item->record.stored_bytes / KV_PAGE_BYTES),
                (object->flags & KV_OBJECT_ERASE) != 0);
        }
        if (dead) {
            kv_object_settle(store, item->object);
        } else if (durable) {
            kv_object_enter_disk(store, item->object, (uint16_t)batch->segment,
                (uint32_t)((batch->offset + item->offset) / KV_PAGE_BYTES),
                (uint16_t)(item->record.stored_bytes / KV_PAGE_BYTES));
            kv_terms_settle(store, item->object, &item->record);
            store->stats.tiers[KVIST_TIER_DISK].written_bytes += item->record.stored_bytes;
        } else if (kv_persist_usable(store)) {
            kv_persist_queue(store, item->object);
        }
    }
    if (durable) {
        disk->write_failures = 0;
    }
    for (kv_flush_t *flush = durable ? NULL : disk->first_flush; flush != NULL;
         flush = flush->next) {
        if (batch->queue_first <= flush->target && batch->status != KV_OK) {
            flush->status = batch->status;
        }
    }
    free(batch->items);
    free(batch);
}

/* Gives encoded batches their places, in order. */
static void place_batches(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    while (disk->first_encoding != NULL && disk->first_encoding->stage == WRITING) {
        kv_write_batch_t *batch = disk->first_encoding;
        if (batch->count == 0) {
            disk->first_encoding = batch->next;
            give_staging(batch);
            end_batch(batch, false);
            continue;
        }
        kv_status_t status =
            kv_reclaim_reserve(store, batch->bytes, &batch->segment, &batch->offset);
        if (status == KV_BUSY) {
            return;
        }
        disk->first_encoding = batch->next;
        batch->next = NULL;
        if (disk->last_batch != NULL) {
            disk->last_batch->next = batch;
        } else {
            disk->first_batch = batch;
        }
        disk->last_batch = batch;
        if (status == KV_OK) {
            write_batch(batch);
        } else {
            /* Offline, or every segment is held: not a failure of the disk. */
            give_staging(batch);
            batch->stage = FAILED;
            batch->status = status;
        }
    }
}

static kv_write_batch_t *pop_batch(kv_disk_t *disk)
{
    kv_write_batch_t *batch = disk->first_batch;
    disk->first_batch = batch->next;
    if (disk->first_batch == NULL) {
        disk->last_batch = NULL;
    }
    return batch;
}

/* ---- the index ---- */

void kv_persist_put_segment(kvist_store_t *store, uint32_t number)
{
    const kv_segment_t *segment = &store->disk->segments.items[number];
    kv_segment_entry_put(&store->disk->filling,
        &(kv_segment_entry_t){(uint16_t)number, segment->generation, segment->indexed_bytes});
}

typedef struct {
    kv_task_t task;
    kv_index_batch_t changes;
    kv_write_batch_t *batches; /* become durable */
    kv_flush_t *flushes;       /* become done */
    bool sync;
    uint64_t sync_number;
    kv_status_t status;
    kv_error_t error;
} index_write_t;

static void write_index(void *argument)
{
    index_write_t *write = argument;
    kv_index_t *index = write->task.store->disk->index;
    write->status = index->ops->write(index, &write->changes, write->sync, &write->error);
    kv_store_finish(&write->task);
}

static void finish_flush(kvist_store_t *store, kv_flush_t *flush, kv_status_t status)
{
    if (flush->status == KV_OK) {
        flush->status = status;
    }
    kv_flush_t **link = &store->first_flushed;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    flush->next = NULL;
    *link = flush;
    kv_store_kick(store);
}

static void index_written(kv_task_t *task)
{
    index_write_t *write = (index_write_t *)task;
    kvist_store_t *store = task->store;
    kv_disk_t *disk = store->disk;
    disk->indexing = false;
    bool good = write->status == KV_OK;
    if (good && write->sync) {
        disk->syncs_done = write->sync_number;
    }
    if (!good) {
        /* The database must not be written again after an error: it may stop the process. */
        disk->index_failed = true;
        disk->write_failures = KV_WRITE_FAILURES_MAX - 1;
        kv_persist_failed(store, 0, write->error.text);
    }
    while (write->batches != NULL) {
        kv_write_batch_t *batch = write->batches;
        write->batches = batch->next_indexed;
        batch->status = write->status;
        end_batch(batch, good);
    }
    while (write->flushes != NULL) {
        kv_flush_t *flush = write->flushes;
        write->flushes = flush->next;
        finish_flush(store, flush, write->status);
    }
    kv_index_batch_release(&write->changes);
    free(write);
}

/* The oldest queue entry that is not settled yet; queued_total + 1: none. */
static uint64_t oldest_unsettled(const kv_disk_t *disk)
{
    uint64_t oldest = disk->queued_total - disk->queue_count + 1;
    const kv_write_batch_t *lists[] = {disk->first_encoding, disk->first_batch, disk->filling_for};
    for (size_t i = 0; i < 3; i++) {
        for (const kv_write_batch_t *batch = lists[i]; batch != NULL;
             batch = i == 2 ? batch->next_indexed : batch->next) {
            oldest = batch->queue_first < oldest ? batch->queue_first : oldest;
        }
    }
    return oldest;
}

/* Flushes whose objects are all on disk (or in this batch of changes), in order. */
static kv_flush_t *take_flushes(kv_disk_t *disk)
{
    /* The batches that wait for this very index write count as settled. */
    kv_write_batch_t *with_this_write = disk->filling_for;
    disk->filling_for = NULL;
    uint64_t oldest = oldest_unsettled(disk);
    disk->filling_for = with_this_write;
    kv_flush_t *taken = NULL, **end = &taken;
    while (disk->first_flush != NULL && disk->first_flush->target < oldest) {
        *end = disk->first_flush;
        disk->first_flush = disk->first_flush->next;
        end = &(*end)->next;
    }
    *end = NULL;
    return taken;
}

/* What waits for an index that takes nothing more. */
static void give_up_index(kvist_store_t *store, kv_flush_t *flushes)
{
    kv_disk_t *disk = store->disk;
    kv_index_batch_clear(&disk->filling);
    while (disk->filling_for != NULL) {
        kv_write_batch_t *batch = disk->filling_for;
        disk->filling_for = batch->next_indexed;
        batch->status = KV_IO;
        end_batch(batch, false);
    }
    while (flushes != NULL) {
        kv_flush_t *flush = flushes;
        flushes = flush->next;
        finish_flush(store, flush, KV_IO);
    }
}

static void advance_index(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    if (disk->indexing) {
        return;
    }
    kv_flush_t *flushes = take_flushes(disk);
    if (disk->index_failed) {
        give_up_index(store, flushes);
        return;
    }
    if (disk->filling.count == 0 && flushes == NULL) {
        return;
    }
    if (flushes != NULL) {
        kv_flush_entry_put(&disk->filling, store->clock->unix_ns(store->clock));
    }
    index_write_t *write = kv_allocate(sizeof *write);
    *write = (index_write_t){
        .task = {.done = index_written, .store = store},
        .changes = disk->filling,
        .batches = disk->filling_for,
        .flushes = flushes,
        .sync = flushes != NULL || disk->sync_index,
    };
    if (write->sync) {
        write->sync_number = ++disk->syncs_begun;
    }
    disk->filling = (kv_index_batch_t){0};
    disk->filling_for = NULL;
    disk->indexing = true;
    disk->sync_index = false;
    KV_CHECK(kv_workers_submit(disk->index_writer, (kv_job_t){write_index, write}) == KV_OK);
}

/* ---- syncing ---- */

static void index_batch(kv_write_batch_t *batch)
{
    kvist_store_t *store = batch->store;
    kv_disk_t *disk = store->disk;
    kv_segment_t *segment = &disk->segments.items[batch->segment];
    for (uint32_t i = 0; i < batch->count; i++) {
        const item_t *item = &batch->items[i];
        if ((kv_table_at(store->table, item->object)->flags & KV_OBJECT_DEAD) == 0) {
            kv_entry_put(&disk->filling, &(kv_entry_t){item->record, (uint16_t)batch->segment,
                                             batch->offset + item->offset, false});
        }
    }
    segment->indexed_bytes = batch->offset + batch->bytes;
    kv_persist_put_segment(store, batch->segment);
    batch->stage = INDEXING;
    batch->next_indexed = disk->filling_for;
    disk->filling_for = batch;
}

/* What the finished sync covered goes on to the index; what failed is ended; in order. */
static void collect_synced(kv_disk_t *disk)
{
    while (disk->first_batch != NULL) {
        kv_write_batch_t *batch = disk->first_batch;
        if (batch->stage == FAILED) {
            end_batch(pop_batch(disk), false);
        } else if (batch->stage == SYNCING && !disk->syncing) {
            index_batch(pop_batch(disk));
        } else {
            return;
        }
    }
}

static void sync_done(kv_ring_request_t *request, int errno_value)
{
    kv_write_batch_t *leader =
        (kv_write_batch_t *)((char *)request - offsetof(kv_write_batch_t, sync));
    leader->store->disk->syncing = false;
    leader->store->stats.barriers++;
    if (errno_value != 0) {
        fail_syncing(leader->store, kv_status_from_errno(errno_value), strerror(errno_value));
    }
}

/* One sync for all leading batches that are written and lie in one segment. */
static void advance_sync(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    collect_synced(disk);
    kv_write_batch_t *leader = disk->first_batch;
    if (disk->syncing || leader == NULL || leader->stage != WRITTEN) {
        return;
    }
    for (kv_write_batch_t *batch = leader;
         batch != NULL && batch->stage == WRITTEN && batch->segment == leader->segment;
         batch = batch->next) {
        batch->stage = SYNCING;
    }
    leader->sync = (kv_ring_request_t){.kind = KV_RING_SYNC, .done = sync_done};
    kv_error_t error;
    kv_status_t status =
        kv_segments_file(&disk->segments, leader->segment, &leader->sync.file, &error);
    if (status != KV_OK) {
        fail_syncing(store, status, error.text);
        kv_store_kick(store);
        return;
    }
    disk->syncing = true;
    kv_ring_submit(disk->ring, &leader->sync);
}

/* ---- together ---- */

void kv_persist_advance(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    if (!kv_persist_usable(store)) {
        drain_queue(store);
    }
    kv_mark_advance(store);
    while (disk->queue_count > 0 && disk->staging_free_count > KV_STAGING_FOR_READS) {
        start_batch(store);
    }
    place_batches(store);
    advance_sync(store);
    advance_index(store);
}

bool kv_persist_idle(const kvist_store_t *store)
{
    const kv_disk_t *disk = store->disk;
    return disk->queue_count == 0 && disk->first_encoding == NULL && disk->first_batch == NULL &&
           disk->filling.count == 0 && !disk->indexing && disk->first_flush == NULL &&
           !disk->preparing && kv_mark_idle(store);
}

/* ---- flush ---- */

static bool unsaved(const kv_object_t *object)
{
    return !kv_object_on_disk(object) &&
           (object->flags & (KV_OBJECT_QUEUED | KV_OBJECT_WRITING | KV_OBJECT_DEAD)) == 0;
}

/* Queues the unsaved part of the chain that ends here, root first. */
static void queue_chain(kvist_store_t *store, uint32_t number, uint32_t *path)
{
    uint32_t count = 0;
    for (uint32_t at = number; at != KV_OBJECT_NONE && unsaved(kv_table_at(store->table, at));
         at = kv_table_at(store->table, at)->parent) {
        path[count++] = at;
    }
    while (count > 0) {
        kv_persist_queue(store, path[--count]);
    }
}

static bool has_unsaved_child(const kvist_store_t *store, const kv_object_t *object)
{
    for (uint32_t child = object->first_child; child != KV_OBJECT_NONE;
         child = kv_table_at(store->table, child)->next_sibling) {
        if (unsaved(kv_table_at(store->table, child))) {
            return true;
        }
    }
    return false;
}

static void queue_pool(kvist_store_t *store, const kv_pool_t *pool, uint32_t *path)
{
    for (uint32_t slot = 0; slot < pool->slot_count; slot++) {
        if (pool->slots[slot].state == KV_SLOT_OBJECT) {
            uint32_t number = pool->slots[slot].object;
            const kv_object_t *object = kv_table_at(store->table, number);
            if (unsaved(object) && !has_unsaved_child(store, object)) {
                queue_chain(store, number, path);
            }
        }
    }
}

void kvist_store_flush(
    kvist_store_t *store, void (*done)(void *context, kv_status_t status), void *context)
{
    kv_flush_t *flush = kv_allocate(sizeof *flush);
    *flush = (kv_flush_t){.done = done, .context = context};
    if (!kv_persist_usable(store)) {
        bool nothing = store->stats.unsaved_objects == 0;
        finish_flush(store, flush,
            nothing               ? KV_OK
            : store->disk == NULL ? KV_MISSING
                                  : KV_NO_SPACE);
        return;
    }
    uint32_t path_max = store->device_pool.slot_count;
    for (uint32_t i = 0; i < store->group_count; i++) {
        path_max += store->groups[i].host_pool.slot_count;
    }
    uint32_t *path = kv_allocate_array(path_max, sizeof *path);
    queue_pool(store, &store->device_pool, path);
    for (uint32_t i = 0; i < store->group_count; i++) {
        queue_pool(store, &store->groups[i].host_pool, path);
    }
    free(path);
    flush->target = store->disk->queued_total;
    kv_flush_t **link = &store->disk->first_flush;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = flush;
    kv_store_advance(store);
}
