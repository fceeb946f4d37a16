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
#include "kvstore/disk/persist_internal.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/checksum.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/disk/budget.h"
#include "kvstore/embedded.h"
#include "kvstore/index/entry.h"
#include "kvstore/tenants.h"
#include "kvstore/terms.h"

#include <stdlib.h>

enum {
    QUEUE_MIN = 256,
    PASSING_SHARE = 64, /* of the disk */
    DEAD_SHARE = 8,
    NEED_STEP_S = 3600,
    NEED_STEPS = 24,
};
#define SYNC_BYTES ((uint64_t)16 << 20)

bool kv_persist_usable(const kvist_store_t *store)
{
    return store->disk != NULL && !store->disk->offline && !store->disk->stuck;
}

/* ---- the queue ---- */

static void push_queue(kv_disk_t *disk, uint32_t number)
{
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
}

/* What better classes need of the disk: the most that they had lately, as it fades within days.
 * What they lose to worse ones is theirs still. */
static uint64_t needed_by_better(kvist_store_t *store, int priority)
{
    kv_disk_t *disk = store->disk;
    kv_class_need_t *need = &disk->needs[priority];
    uint32_t now_s = kv_store_now_s(store);
    uint64_t bytes = 0;
    for (int i = 0; i < priority; i++) {
        bytes += disk->class_bytes[i];
    }
    if (now_s - need->since_s >= NEED_STEP_S) {
        need->bytes -= need->bytes / NEED_STEPS;
        need->since_s = now_s;
    }
    need->bytes = need->bytes > bytes ? need->bytes : bytes;
    return need->bytes;
}

/* Whether there is room for an object of its class beside what better ones need: whatever is
 * written makes the oldest segments go, whosever they are. A few records it always may, to pass
 * through. */
static bool class_admits(kvist_store_t *store, const kv_object_t *object)
{
    const kv_disk_t *disk = store->disk;
    int priority = kv_object_family(store, object)->priority;
    if (priority == KVIST_PRIORITY_INTERACTIVE || object->pin_until_s > kv_store_now_s(store)) {
        return true;
    }
    uint64_t capacity = 0, own = store->record_bytes_max;
    for (uint32_t i = 0; i < disk->segments.volume_count; i++) {
        capacity += disk->segments.volumes[i]->segments_max * disk->segments.segment_bytes;
    }
    for (int i = priority; i < KVIST_PRIORITY_COUNT; i++) {
        own += disk->class_bytes[i];
    }
    uint64_t needed = needed_by_better(store, priority), passing = capacity / PASSING_SHARE;
    if (needed > capacity / 2) {
        capacity -= capacity / DEAD_SHARE; /* records that are nobody's, in segments in use */
    }
    uint64_t room = capacity > needed ? capacity - needed : 0;
    return own <= (room > passing ? room : passing);
}

bool kv_persist_queue(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    if ((object->flags & (KV_OBJECT_QUEUED | KV_OBJECT_WRITING | KV_OBJECT_DEAD)) != 0 ||
        kv_object_on_disk(object)) {
        return true;
    }
    /* What goes on from it would be lost with it. */
    if (!kv_object_has_child_on_disk(store, object) &&
        (!kv_tenants_admits(store, object) || !class_admits(store, object))) {
        return false;
    }
    if (!kv_budget_admits(store, number)) {
        return false;
    }
    push_queue(store->disk, number);
    object->flags |= KV_OBJECT_QUEUED;
    kv_store_kick(store);
    return true;
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

/* One failure of a volume; several in a row take it offline. */
void kv_persist_failed(
    kvist_store_t *store, uint32_t volume, uint32_t object_count, const char *reason)
{
    kv_disk_t *disk = store->disk;
    kv_lane_t *lane = &disk->lanes[volume];
    const char *folder = disk->segments.volumes[volume]->folder;
    store->stats.failed_writes += object_count > 0 ? object_count : 1;
    if (lane->offline) {
        return;
    }
    if (++lane->write_failures < KV_WRITE_FAILURES_MAX) {
        kv_log_warn("store", "write failed: %s folder %s", reason, folder);
        return;
    }
    lane->offline = true;
    kv_log_error("store",
        "disk offline after %d failures in a row: %s; what is stored in %s can be read, nothing "
        "more is stored there until the node restarts",
        KV_WRITE_FAILURES_MAX, reason, folder);
    for (uint32_t i = 0; i < disk->segments.volume_count; i++) {
        if (!disk->lanes[i].offline) {
            return;
        }
    }
    disk->offline = true;
}

/* ---- encoding ---- */

/* A key for the item's record alone. */
static kv_status_t take_key(
    kv_keyring_t *keys, const kv_write_item_t *item, kv_record_key_t *key_out, kv_error_t *error)
{
    kv_status_t status =
        kv_keyring_take(keys, item->record.tenant, &key_out->id, &key_out->secret, error);
    if (status == KV_OK && kv_random(key_out->record_id, KV_RECORD_ID_BYTES) != KV_OK) {
        status = kv_fail(error, KV_IO, "no random bytes are to be had");
    }
    return status;
}

/* An item's record by the device's codec, straight into its place. false: by the host's, which is
 * not asked to try again what saves nothing. */
static bool encode_on_device(
    const kvist_store_t *store, kv_write_item_t *item, const kv_record_key_t *key, char *at)
{
    if (item->host_bytes != NULL || !kv_device_packs(store, item->record.codec)) {
        return false;
    }
    const kv_layout_t *layout = &store->groups[0].layout;
    uint32_t *lengths = kv_allocate_array(layout->unit_count, sizeof *lengths);
    uint64_t *checksums = kv_allocate_array(layout->unit_count, sizeof *checksums);
    kv_record_packed_t packed = {.lengths = lengths, .checksums = checksums};
    char *payload = at + kv_record_header_bytes(layout, item->words, key != NULL);
    if (kv_device_slot_pack(store, item->device_slot, payload, lengths, checksums,
            &packed.payload_bytes) == KV_OK) {
        if (kv_record_packed_saves(layout, packed.payload_bytes)) {
            kv_record_write_packed(layout, &item->record, item->words, &packed, key, at);
            item->packed_on_device = true;
        } else {
            item->record.codec = KVIST_CODEC_NONE;
        }
    }
    free(lengths);
    free(checksums);
    return item->packed_on_device;
}

/* An item's record by this processor. scratch: [object_bytes_max], or NULL without a codec. */
static void encode_here(kv_write_batch_t *batch, kv_write_item_t *item, const kv_record_key_t *key,
    char *scratch, char *at)
{
    const kvist_store_t *store = batch->store;
    const kv_layout_t *layout = &store->groups[item->record.group].layout;
    const char *object = item->host_bytes;
    if (object == NULL) {
        char *to = scratch != NULL ? scratch
                                   : at + kv_record_header_bytes(layout, item->words, key != NULL);
        object = to;
        if (kv_device_slot_out_proved(store, item->device_slot, to) != KV_OK) {
            batch->status = kv_fail(&batch->error, KV_IO, "the device cannot be read");
            return;
        }
    }
    item->damaged =
        !kv_record_write(layout, &item->record, item->words, object, item->host_checksums, key, at);
}

static void encode_item(kv_write_batch_t *batch, kv_write_item_t *item, char *scratch, char *at)
{
    kvist_store_t *store = batch->store;
    const kv_layout_t *layout = &store->groups[item->record.group].layout;
    kv_keyring_t *keys = store->disk->keys;
    kv_record_key_t key;
    if (keys != NULL) {
        batch->status = take_key(keys, item, &key, &batch->error);
    }
    if (batch->status == KV_OK && kv_identity_has_extra(item->words, layout->block_tokens)) {
        batch->status = kv_directory_note_extras(store->disk, &batch->error);
    }
    const kv_record_key_t *with = keys != NULL ? &key : NULL;
    if (batch->status == KV_OK && !encode_on_device(store, item, with, at)) {
        encode_here(batch, item, with, scratch, at);
    }
    kv_wipe(&key, sizeof key);
}

static void encode_batch(kv_task_t *task)
{
    kv_write_batch_t *batch = (kv_write_batch_t *)task;
    kvist_store_t *store = batch->store;
    char *at = kv_staging_bytes(store->disk, batch->staging);
    char *scratch = store->codec != KVIST_CODEC_NONE ? kv_allocate(store->object_bytes_max) : NULL;
    batch->bytes = 0;
    for (uint32_t i = 0; i < batch->count && batch->status == KV_OK; i++) {
        kv_write_item_t *item = &batch->items[i];
        item->offset = batch->bytes;
        encode_item(batch, item, scratch, at);
        if (!item->damaged && batch->status == KV_OK) {
            batch->bytes += item->record.stored_bytes;
            at += item->record.stored_bytes;
        }
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
        batch->store->stats.device_packed_objects += batch->items[i].packed_on_device;
        if (batch->items[i].damaged) {
            forget_host_copy(batch->store, batch->items[i].object);
        } else {
            batch->items[kept++] = batch->items[i];
        }
    }
    batch->count = kept;
    batch->stage = KV_WRITE_WRITING; /* as soon as it has a place */
}

static void fill_item(kvist_store_t *store, uint32_t number, kv_write_item_t *item)
{
    kv_object_t *object = kv_table_at(store->table, number);
    *item = (kv_write_item_t){.object = number};
    if (kv_object_on_device(store, object)) {
        item->device_slot = object->device_slot;
        item->words = kv_pool_words(&store->device_pool, object->device_slot);
    } else {
        const kv_store_group_t *group = kv_object_group(store, object);
        item->host_bytes = kv_group_host_bytes(group, object->host_slot);
        item->host_checksums = kv_pool_checksums(&group->host_pool, object->host_slot);
        item->words = kv_pool_words(&group->host_pool, object->host_slot);
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

kv_write_batch_t *kv_persist_make_batch(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    kv_write_batch_t *batch = kv_allocate(sizeof *batch);
    batch->store = store;
    batch->items =
        kv_allocate_array(disk->staging_bytes / (2 * (size_t)KV_PAGE_BYTES), sizeof *batch->items);
    batch->queue_first = UINT64_MAX;
    batch->segment = batch->moved_from = KV_SEGMENT_NONE;
    batch->staging = disk->staging_free[--disk->staging_free_count];
    return batch;
}

static void start_batch(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    uint32_t count_max = (uint32_t)(disk->staging_bytes / store->record_bytes_max);
    kv_write_batch_t *batch = kv_persist_make_batch(store);
    batch->queue_first = disk->queued_total - disk->queue_count + 1;
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
        kv_persist_give_staging(batch);
        free(batch->items);
        free(batch);
        return;
    }
    batch->stage = KV_WRITE_ENCODING;
    batch->task = (kv_task_t){.work = encode_batch, .done = batch_encoded, .store = store};
    kv_write_batch_t **link = &disk->first_encoding;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = batch;
    kv_store_submit(store, &batch->task);
}

/* ---- writing ---- */

void kv_persist_give_staging(kv_write_batch_t *batch)
{
    kv_disk_t *disk = batch->store->disk;
    disk->staging_free[disk->staging_free_count++] = batch->staging;
    batch->staging = -1;
}

static uint32_t volume_of(const kv_write_batch_t *batch)
{
    return batch->store->disk->segments.items[batch->segment].volume;
}

static kv_lane_t *lane_of(const kv_write_batch_t *batch)
{
    return &batch->store->disk->lanes[volume_of(batch)];
}

/* The segment of a failed batch takes nothing more: what follows the hole could not be found by a
 * scan. */
static void abandon_segment(kv_disk_t *disk, uint32_t number)
{
    kv_volume_t *volume = disk->segments.volumes[disk->segments.items[number].volume];
    if (volume->open == number) {
        kv_segments_enter_full(&disk->segments, number);
        volume->open = KV_SEGMENT_NONE;
    }
}

static void fail_batch(kv_write_batch_t *batch, kv_status_t status, const char *reason)
{
    batch->stage = KV_WRITE_FAILED;
    batch->status = status;
    abandon_segment(batch->store->disk, batch->segment);
    kv_persist_failed(batch->store, volume_of(batch), batch->count, reason);
}

/* What one failed sync was to cover: nobody knows what of it reached the disk. One failure. */
static void fail_syncing(
    kvist_store_t *store, uint32_t volume, kv_status_t status, const char *reason)
{
    uint32_t object_count = 0;
    kv_write_batch_t *batch = store->disk->lanes[volume].first_batch;
    for (; batch != NULL; batch = batch->next) {
        if (batch->stage == KV_WRITE_SYNCING) {
            batch->stage = KV_WRITE_FAILED;
            batch->status = status;
            abandon_segment(store->disk, batch->segment);
            object_count += batch->count;
        }
    }
    kv_persist_failed(store, volume, object_count, reason);
}

static void write_done(kv_ring_request_t *request, int errno_value)
{
    kv_write_batch_t *batch =
        (kv_write_batch_t *)((char *)request - offsetof(kv_write_batch_t, request));
    lane_of(batch)->writing_bytes -= batch->bytes;
    kv_persist_give_staging(batch);
    if (errno_value != 0) {
        fail_batch(batch, kv_status_from_errno(errno_value), strerror(errno_value));
    } else {
        batch->stage = KV_WRITE_WRITTEN;
    }
}

static void write_batch(kv_write_batch_t *batch)
{
    kv_disk_t *disk = batch->store->disk;
    char *bytes = kv_staging_bytes(disk, batch->staging);
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
        kv_persist_give_staging(batch);
        fail_batch(batch, status, error.text);
        return;
    }
    lane_of(batch)->writing_bytes += batch->bytes;
    kv_budget_spend(batch->store, batch->bytes);
    kv_ring_submit(disk->ring, &batch->request);
}

/* Whatever of the item's record is there is nobody's. */
static void disown(const kv_write_batch_t *batch, const kv_write_item_t *item, bool erase)
{
    if (batch->segment != KV_SEGMENT_NONE) {
        kv_mark_queue(batch->store, (uint16_t)batch->segment,
            (uint32_t)((batch->offset + item->offset) / KV_PAGE_BYTES),
            (uint32_t)(item->record.stored_bytes / KV_PAGE_BYTES), erase);
    }
}

/* A survivor: its entry says the new place, unless it lost its old one in the meantime. */
static void end_moved(kv_write_batch_t *batch, const kv_write_item_t *item, bool durable)
{
    kvist_store_t *store = batch->store;
    kv_object_t *object = kv_table_at(store->table, item->object);
    if (!durable || object->segment != batch->moved_from) {
        disown(batch, item, false);
        if (durable) {
            kv_entry_delete(&store->disk->filling, &item->record.key);
        }
        return;
    }
    /* Should its old segment's life not end soon, the old record must not be taken for it. */
    kv_mark_queue(
        store, (uint16_t)batch->moved_from, object->offset_pages, object->length_pages, false);
    kv_object_move_disk(store, item->object, (uint16_t)batch->segment,
        (uint32_t)((batch->offset + item->offset) / KV_PAGE_BYTES),
        (uint16_t)(item->record.stored_bytes / KV_PAGE_BYTES));
    kv_terms_settle(store, item->object, &item->record);
    store->stats.moved_objects++;
    store->disk->lanes[volume_of(batch)].victim.moved = true;
    store->stats.tiers[KVIST_TIER_DISK].written_bytes += item->record.stored_bytes;
}

static void end_item(kv_write_batch_t *batch, const kv_write_item_t *item, bool durable)
{
    kvist_store_t *store = batch->store;
    kv_object_t *object = kv_table_at(store->table, item->object);
    object->flags &= ~KV_OBJECT_WRITING;
    if ((object->flags & KV_OBJECT_DEAD) != 0) {
        disown(batch, item, (object->flags & KV_OBJECT_ERASE) != 0);
        kv_object_settle(store, item->object);
    } else if (kv_write_batch_is_moved(batch)) {
        end_moved(batch, item, durable);
    } else if (durable) {
        kv_object_enter_disk(store, item->object, (uint16_t)batch->segment,
            (uint32_t)((batch->offset + item->offset) / KV_PAGE_BYTES),
            (uint16_t)(item->record.stored_bytes / KV_PAGE_BYTES), item->record.sealed);
        kv_terms_settle(store, item->object, &item->record);
        store->stats.tiers[KVIST_TIER_DISK].written_bytes += item->record.stored_bytes;
    } else {
        disown(batch, item, false);
        if (kv_persist_usable(store)) {
            kv_persist_queue(store, item->object);
        }
    }
}

void kv_persist_end_batch(kv_write_batch_t *batch, bool durable)
{
    kv_disk_t *disk = batch->store->disk;
    if (!durable && batch->segment != KV_SEGMENT_NONE && batch->count > 0) {
        disk->sync_index = true; /* of failed writes nobody else knows */
    }
    for (uint32_t i = 0; i < batch->count; i++) {
        end_item(batch, &batch->items[i], durable);
    }
    if (durable) {
        lane_of(batch)->write_failures = 0;
    }
    if (batch->segment != KV_SEGMENT_NONE) {
        kv_segments_release(&disk->segments, batch->segment);
    }
    if (kv_write_batch_is_moved(batch)) {
        kv_segments_release(&disk->segments, batch->moved_from);
        disk->lanes[disk->segments.items[batch->moved_from].volume].victim.moves_out--;
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

static void append_batch(kv_write_batch_t *batch)
{
    kv_lane_t *lane = lane_of(batch);
    batch->next = NULL;
    if (lane->last_batch != NULL) {
        lane->last_batch->next = batch;
    } else {
        lane->first_batch = batch;
    }
    lane->last_batch = batch;
}

/* Without a key nothing is written, wherever it would go. */
static void fail_unkeyed(kv_write_batch_t *batch)
{
    kvist_store_t *store = batch->store;
    for (uint32_t i = 0; i < store->disk->segments.volume_count; i++) {
        kv_persist_failed(store, i, i == 0 ? batch->count : 0, batch->error.text);
    }
    kv_persist_give_staging(batch);
    kv_persist_end_batch(batch, false);
}

/* Gives encoded batches their places, in order. */
static void place_batches(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    while (disk->first_encoding != NULL && disk->first_encoding->stage == KV_WRITE_WRITING) {
        kv_write_batch_t *batch = disk->first_encoding;
        if (batch->status != KV_OK) {
            disk->first_encoding = batch->next;
            fail_unkeyed(batch);
            continue;
        }
        kv_status_t status = KV_MISSING; /* nothing of it is left to be written */
        if (batch->count > 0) {
            kv_why_make_room_on_disk(store, batch->items[0].object);
            status = kv_reclaim_reserve(store, batch->bytes, &batch->segment, &batch->offset);
        }
        if (status == KV_BUSY) {
            return;
        }
        disk->first_encoding = batch->next;
        if (status == KV_OK) {
            append_batch(batch);
            write_batch(batch);
        } else {
            /* Offline, or every segment is held: not a failure of the disk. */
            kv_persist_give_staging(batch);
            batch->status = batch->count > 0 ? status : KV_OK;
            kv_persist_end_batch(batch, false);
        }
    }
}

void kv_persist_write_moved(kv_write_batch_t *batch)
{
    uint32_t volume = batch->store->disk->segments.items[batch->moved_from].volume;
    batch->status = KV_MISSING;
    if (batch->count > 0) {
        batch->status = kv_reclaim_reserve_moved(
            batch->store, volume, batch->bytes, &batch->segment, &batch->offset);
    }
    if (batch->status == KV_OK) {
        append_batch(batch);
        write_batch(batch);
    } else {
        kv_persist_give_staging(batch);
        kv_persist_end_batch(batch, false);
    }
}

static kv_write_batch_t *pop_batch(kv_lane_t *lane)
{
    kv_write_batch_t *batch = lane->first_batch;
    lane->first_batch = batch->next;
    if (lane->first_batch == NULL) {
        lane->last_batch = NULL;
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
        disk->index_failed = disk->offline = true;
        store->stats.failed_writes++;
        kv_log_error("store",
            "disk tier offline: %s; what is stored can be read, nothing more is stored until the "
            "node restarts",
            write->error.text);
    }
    while (write->batches != NULL) {
        kv_write_batch_t *batch = write->batches;
        write->batches = batch->next_indexed;
        batch->status = write->status;
        kv_persist_end_batch(batch, good);
    }
    while (write->flushes != NULL) {
        kv_flush_t *flush = write->flushes;
        write->flushes = flush->next;
        finish_flush(store, flush, write->status);
    }
    kv_index_batch_release(&write->changes);
    free(write);
}

static uint64_t older(uint64_t oldest, const kv_write_batch_t *batch)
{
    for (; batch != NULL; batch = batch->next) {
        oldest = batch->queue_first < oldest ? batch->queue_first : oldest;
    }
    return oldest;
}

/* The oldest queue entry that is neither settled nor in the changes that wait for the index;
 * queued_total + 1: none. */
static uint64_t oldest_unsettled(const kv_disk_t *disk)
{
    uint64_t oldest = disk->queued_total - disk->queue_count + 1;
    oldest = older(oldest, disk->first_encoding);
    for (uint32_t i = 0; i < disk->segments.volume_count; i++) {
        oldest = older(oldest, disk->lanes[i].first_batch);
    }
    return oldest;
}

/* Flushes whose objects are all on disk (or in this batch of changes), in order. */
static kv_flush_t *take_flushes(kv_disk_t *disk)
{
    uint64_t oldest = oldest_unsettled(disk);
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
        kv_persist_end_batch(batch, false);
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
    kv_budget_note(store);
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
        const kv_write_item_t *item = &batch->items[i];
        const kv_object_t *object = kv_table_at(store->table, item->object);
        if ((object->flags & KV_OBJECT_DEAD) != 0) {
            continue;
        }
        kv_entry_put(&disk->filling, &(kv_entry_t){.record = item->record,
                                         .segment = (uint16_t)batch->segment,
                                         .offset = batch->offset + item->offset});
        if (kv_write_batch_is_moved(batch) && object->segment == batch->moved_from) {
            /* Should its old segment's life not end soon: that record is no place any more. */
            kv_mark_queue(store, (uint16_t)batch->moved_from, object->offset_pages,
                object->length_pages, false);
        }
    }
    segment->indexed_bytes = batch->offset + batch->bytes;
    kv_persist_put_segment(store, batch->segment);
    batch->stage = KV_WRITE_INDEXING;
    batch->next_indexed = disk->filling_for;
    disk->filling_for = batch;
}

/* What the finished sync covered goes on to the index; what failed is ended; in order. */
static void collect_synced(kv_lane_t *lane)
{
    while (lane->first_batch != NULL) {
        kv_write_batch_t *batch = lane->first_batch;
        if (batch->stage == KV_WRITE_FAILED) {
            kv_persist_end_batch(pop_batch(lane), false);
        } else if (batch->stage == KV_WRITE_SYNCING && !lane->syncing) {
            index_batch(pop_batch(lane));
        } else {
            return;
        }
    }
}

static void sync_done(kv_ring_request_t *request, int errno_value)
{
    kv_write_batch_t *leader =
        (kv_write_batch_t *)((char *)request - offsetof(kv_write_batch_t, sync));
    lane_of(leader)->syncing = false;
    leader->store->stats.barriers++;
    if (errno_value != 0) {
        fail_syncing(leader->store, volume_of(leader), kv_status_from_errno(errno_value),
            strerror(errno_value));
    }
}

/* A barrier costs the disk much more than a write: one is made for a large group, or for what there
 * is when nothing more is coming. */
static bool worth_a_sync(const kvist_store_t *store, const kv_lane_t *lane)
{
    const kv_write_batch_t *batch = lane->first_batch;
    uint32_t segment = batch->segment;
    uint64_t bytes = 0;
    for (; batch != NULL && batch->stage == KV_WRITE_WRITTEN && batch->segment == segment;
         batch = batch->next) {
        bytes += batch->bytes;
    }
    /* One that is encoded and still there waits for room, perhaps for what this sync brings. */
    const kv_write_batch_t *encoding = store->disk->first_encoding;
    bool more_comes = batch != NULL ? batch->segment == segment && batch->stage != KV_WRITE_FAILED
                                    : encoding != NULL && encoding->stage == KV_WRITE_ENCODING;
    return bytes >= SYNC_BYTES || !more_comes;
}

/* One sync for all leading batches that are written and lie in one segment. */
static void advance_sync(kvist_store_t *store, uint32_t volume)
{
    kv_disk_t *disk = store->disk;
    kv_lane_t *lane = &disk->lanes[volume];
    collect_synced(lane);
    kv_write_batch_t *leader = lane->first_batch;
    if (lane->syncing || leader == NULL || leader->stage != KV_WRITE_WRITTEN ||
        !worth_a_sync(store, lane)) {
        return;
    }
    for (kv_write_batch_t *batch = leader;
         batch != NULL && batch->stage == KV_WRITE_WRITTEN && batch->segment == leader->segment;
         batch = batch->next) {
        batch->stage = KV_WRITE_SYNCING;
    }
    leader->sync = (kv_ring_request_t){.kind = KV_RING_SYNC, .done = sync_done};
    kv_error_t error;
    kv_status_t status =
        kv_segments_file(&disk->segments, leader->segment, &leader->sync.file, &error);
    if (status != KV_OK) {
        fail_syncing(store, volume, status, error.text);
        kv_store_kick(store);
        return;
    }
    lane->syncing = true;
    kv_ring_submit(disk->ring, &leader->sync);
}

/* ---- together ---- */

void kv_persist_advance(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    if (!kv_persist_usable(store)) {
        drain_queue(store);
    }
    while (disk->queue_count > 0 && disk->staging_free_count > KV_STAGING_FOR_READS) {
        start_batch(store);
    }
    place_batches(store);
    kv_reclaim_advance(store);
    kv_mark_advance(store); /* of segments that live on */
    for (uint32_t i = 0; i < disk->segments.volume_count; i++) {
        advance_sync(store, i);
    }
    advance_index(store);
}

bool kv_persist_idle(const kvist_store_t *store)
{
    const kv_disk_t *disk = store->disk;
    for (uint32_t i = 0; i < disk->segments.volume_count; i++) {
        if (disk->lanes[i].first_batch != NULL) {
            return false;
        }
    }
    return disk->queue_count == 0 && disk->first_encoding == NULL && disk->filling.count == 0 &&
           !disk->indexing && disk->first_flush == NULL && kv_reclaim_idle(store) &&
           kv_mark_idle(store);
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
    while (count > 0 && kv_persist_queue(store, path[count - 1])) {
        count--; /* behind one that is not admitted none is */
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

void kv_embedded_store_flush(
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
