#include "kvstore/disk/read.h"

#include "base/check.h"
#include "base/checksum.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/store_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    PARTS_MAX = 4,
    PART_BYTES_MIN = 256 << 10,
    MEMORY_BATCH_BYTES = 1 << 20,
    DISK_BATCH_BYTES = 256 << 10, /* at least: */
    DISK_BATCHES = 4, /* of one load, so that the first are proved while the next are read */
    OWN_BYTES_MAX = 64 << 10, /* of a batch from disk that the owner proves: more are for workers,
                                 so that the ring is served meanwhile */
};

/* A batch that is read alone is read in parts at once: the disk does several as fast as one. */
typedef struct {
    kv_ring_request_t request; /* first */
    kv_read_batch_t *batch;
} part_t;

struct kv_read_batch {
    kv_task_t task;
    part_t parts[PARTS_MAX];
    uint32_t parts_out;
    int errno_value; /* of a part that failed; 0: none */
    const char *at;  /* the bytes read */
    kvist_store_t *store;
    kv_read_t **reads;
    uint32_t count;
    int staging; /* -1: none yet */
    uint64_t started_ns;
    kv_read_batch_t *next;
};

static const kv_layout_t *layout_of(const kvist_store_t *store, const kv_read_t *read)
{
    return &store->groups[read->expected.group].layout;
}

/* ---- the end of a read ---- */

/* The copy that was read, if it is still there: nobody may have held the object. */
static bool is_there(const kv_object_t *object, const kv_read_t *read)
{
    if ((object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) != KV_OBJECT_USED ||
        !kv_key_equal(&object->key, &read->expected.key)) {
        return false;
    }
    return read->tier == KVIST_TIER_HOST
               ? object->host_slot == read->slot
               : object->segment == read->segment && object->offset_pages == read->offset_pages;
}

/* The bytes in one tier proved wrong. true: another copy is left. */
static bool forget_copy(kvist_store_t *store, kv_read_t *read)
{
    const kv_object_t *object = kv_table_at(store->table, read->object);
    if (is_there(object, read)) {
        read->forgotten_count = read->keyless
                                    ? kv_object_forget_keyless(store, read->object)
                                    : kv_object_forget_copy(store, read->object, read->tier);
    }
    return (object->flags & (KV_OBJECT_DEAD | KV_OBJECT_BUSY)) == 0;
}

bool kv_read_is_current(const kvist_store_t *store, const kv_read_t *read)
{
    return read->tier != KVIST_TIER_HOST ||
           kv_table_at(store->table, read->object)->host_slot == read->slot;
}

void kv_read_end(kvist_store_t *store, kv_read_t *read)
{
    bool try_again = false;
    if (read->status == KV_OK && !kv_read_is_current(store, read)) {
        read->status = KV_IO;
    }
    store->stats.device_unpacked_objects += read->unpacked_there;
    if (read->status == KV_OK) {
        store->stats.tiers[read->tier].read_bytes += layout_of(store, read)->object_bytes;
    } else if (read->status == KV_CORRUPT) {
        try_again = forget_copy(store, read);
    } else {
        store->stats.failed_reads++;
    }
    read->ended(read, try_again);
}

static size_t bytes_of(const kv_read_batch_t *batch)
{
    return batch->count * layout_of(batch->store, batch->reads[0])->object_bytes;
}

/* The buffer, and with it the hold on the segment. */
static void give_staging(kv_read_batch_t *batch)
{
    kv_disk_t *disk = batch->store->disk;
    if (batch->staging >= 0) {
        kv_segments_release(&disk->segments, batch->reads[0]->segment);
        disk->staging_free[disk->staging_free_count++] = batch->staging;
        batch->staging = -1;
    }
}

/* What loading costs now, for estimates: a sixteenth of the newest value. */
void kv_read_note_rate(kvist_store_t *store, kvist_tier_t tier, uint64_t started_ns, size_t bytes)
{
    uint64_t ns = store->clock->monotonic_ns(store->clock) - started_ns;
    double *rate = &store->load_ns_per_byte[tier];
    *rate += ((double)ns / (double)bytes - *rate) / 16;
}

static void end_batch(kv_read_batch_t *batch)
{
    kvist_store_t *store = batch->store;
    give_staging(batch);
    kv_read_note_rate(store, batch->reads[0]->tier, batch->started_ns, bytes_of(batch));
    for (uint32_t i = 0; i < batch->count; i++) {
        kv_read_end(store, batch->reads[i]);
    }
    free(batch->reads);
    free(batch);
}

static void batch_done(kv_task_t *task)
{
    end_batch((kv_read_batch_t *)task);
}

/* ---- from memory ---- */

static kv_status_t move_from_host(const kvist_store_t *store, kv_read_t *read)
{
    const kv_store_group_t *group = &store->groups[read->expected.group];
    const kv_read_bytes_t bytes = {
        .layout = &group->layout,
        .object = kv_group_host_bytes(group, read->slot),
        .checksums = kv_pool_checksums(&group->host_pool, read->slot),
        .words = kv_pool_words(&group->host_pool, read->slot),
    };
    return read->move(read, &bytes);
}

static kv_status_t move_from_device(const kvist_store_t *store, kv_read_t *read, void *scratch)
{
    const kv_layout_t *layout = &store->groups[0].layout;
    kv_status_t status = kv_device_slot_out_proved(store, read->slot, scratch);
    if (status != KV_OK) {
        return status;
    }
    const kv_read_bytes_t bytes = {
        .layout = layout,
        .object = scratch,
        .words = kv_pool_words(&store->device_pool, read->slot),
    };
    return read->move(read, &bytes);
}

static void move_from_memory(kv_task_t *task)
{
    kv_read_batch_t *batch = (kv_read_batch_t *)task;
    const kvist_store_t *store = batch->store;
    bool device = batch->reads[0]->tier == KVIST_TIER_DEVICE;
    void *scratch = device ? kv_allocate(store->object_bytes_max) : NULL;
    for (uint32_t i = 0; i < batch->count; i++) {
        kv_read_t *read = batch->reads[i];
        read->status =
            device ? move_from_device(store, read, scratch) : move_from_host(store, read);
    }
    free(scratch);
    kv_checksum_copy_fence();
    kv_store_finish(task);
}

static kv_read_batch_t *make_batch(kvist_store_t *store, kv_read_t **reads, uint32_t count)
{
    kv_read_batch_t *batch = kv_allocate(sizeof *batch);
    batch->store = store;
    batch->reads = kv_allocate_array(count, sizeof *batch->reads);
    memcpy(batch->reads, reads, count * sizeof *reads);
    batch->count = count;
    batch->staging = -1;
    return batch;
}

static void start_batch(kvist_store_t *store, kv_read_batch_t *batch)
{
    batch->started_ns = store->clock->monotonic_ns(store->clock);
    if (batch->reads[0]->tier != KVIST_TIER_DISK) {
        batch->task = (kv_task_t){.work = move_from_memory, .done = batch_done, .store = store};
        kv_store_submit_sized(store, &batch->task, bytes_of(batch));
        return;
    }
    kv_disk_t *disk = store->disk;
    if (disk->last_read != NULL) {
        disk->last_read->next = batch;
    } else {
        disk->first_read = batch;
    }
    disk->last_read = batch;
}

/* ---- from disk ---- */

/* Packed as it is, where the device has the codec and the object goes there. */
static bool move_packed(const kvist_store_t *store, kv_read_t *read, const kv_record_view_t *view)
{
    kv_read_packed_t packed = {
        .layout = layout_of(store, read), .checksums = view->checksums, .words = view->words};
    return read->move_packed != NULL && kv_device_packs(store, view->record.codec) &&
           kv_record_packed(packed.layout, view, &packed.payload, &packed.lengths) == KV_OK &&
           read->move_packed(read, &packed) == KV_OK;
}

static kv_status_t move_opened(
    const kvist_store_t *store, kv_read_t *read, const kv_record_view_t *view)
{
    const kv_layout_t *layout = layout_of(store, read);
    const void *object;
    read->unpacked_there = move_packed(store, read, view);
    if (read->unpacked_there) {
        return KV_OK;
    }
    if (kv_record_object(layout, view, &object) != KV_OK) {
        return KV_CORRUPT;
    }
    const kv_read_bytes_t of_object = {layout, object, view->checksums, view->words};
    return read->move(read, &of_object);
}

static kv_status_t move_record(
    const kvist_store_t *store, kv_read_t *read, const void *at, void *scratch)
{
    const kv_record_reader_t reader = {store->disk->keys, scratch};
    size_t bytes = (size_t)read->length_pages * KV_PAGE_BYTES;
    kv_record_view_t view;
    kv_status_t status =
        kv_record_open(layout_of(store, read), &reader, &read->expected, at, bytes, &view);
    if (status == KV_OK) {
        status = view.record.stored_bytes == bytes ? move_opened(store, read, &view) : KV_CORRUPT;
        kv_record_close(&view);
    }
    return status;
}

static void move_records(kv_task_t *task)
{
    kv_read_batch_t *batch = (kv_read_batch_t *)task;
    const kvist_store_t *store = batch->store;
    const char *at = batch->at;
    void *scratch = kv_allocate(store->scratch_bytes_max);
    for (uint32_t i = 0; i < batch->count; i++) {
        kv_read_t *read = batch->reads[i];
        read->status = move_record(store, read, at, scratch);
        read->keyless = read->status == KV_MISSING;
        read->status = read->keyless ? KV_CORRUPT : read->status;
        at += (size_t)read->length_pages * KV_PAGE_BYTES;
    }
    free(scratch);
    kv_checksum_copy_fence();
    kv_store_finish(task);
}

static void fail_batch(kv_read_batch_t *batch, kv_status_t status)
{
    for (uint32_t i = 0; i < batch->count; i++) {
        batch->reads[i]->status = status;
    }
    end_batch(batch);
}

/* One bad place must not cost its neighbours: each record of the range is read alone. */
static void read_apart(kv_read_batch_t *batch)
{
    kvist_store_t *store = batch->store;
    give_staging(batch);
    for (uint32_t i = 0; i < batch->count; i++) {
        start_batch(store, make_batch(store, &batch->reads[i], 1));
    }
    free(batch->reads);
    free(batch);
}

/* Nothing else is read now, or is to be. */
static bool disk_is_idle(const kv_disk_t *disk)
{
    return disk->reads_out == 0 && disk->first_read == NULL;
}

static void all_read(kv_read_batch_t *batch)
{
    kv_disk_t *disk = batch->store->disk;
    int errno_value = batch->errno_value;
    if (errno_value != 0 && batch->count > 1) {
        read_apart(batch);
        return;
    }
    if (errno_value != 0) {
        /* A file that ends too early has lost bytes for good; other errors may pass. */
        fail_batch(batch, errno_value == ENODATA ? KV_CORRUPT : KV_IO);
        return;
    }
    batch->task = (kv_task_t){.work = move_records, .done = batch_done, .store = batch->store};
    if (bytes_of(batch) <= OWN_BYTES_MAX || disk_is_idle(disk)) {
        kv_store_submit_sized(batch->store, &batch->task, bytes_of(batch));
    } else {
        kv_store_submit(batch->store, &batch->task);
    }
}

static void read_done(kv_ring_request_t *request, int errno_value)
{
    kv_read_batch_t *batch = ((part_t *)request)->batch;
    if (errno_value != 0) {
        kv_log_warn("store", "read failed: %s segment %u offset %ju bytes %zu",
            strerror(errno_value), batch->reads[0]->segment, (uintmax_t)request->offset,
            request->bytes);
        batch->errno_value = errno_value;
    }
    if (--batch->parts_out == 0) {
        batch->store->disk->reads_out--;
        all_read(batch);
    }
}

static void submit_parts(kv_read_batch_t *batch, int file, char *buffer, size_t bytes)
{
    kv_disk_t *disk = batch->store->disk;
    size_t count = disk_is_idle(disk) ? bytes / PART_BYTES_MIN : 1;
    count = count < 1 ? 1 : count > PARTS_MAX ? PARTS_MAX : count;
    size_t part_bytes = (bytes / count + KV_PAGE_BYTES - 1) / KV_PAGE_BYTES * KV_PAGE_BYTES;
    uint64_t offset = (uint64_t)batch->reads[0]->offset_pages * KV_PAGE_BYTES;
    disk->reads_out++;
    batch->at = buffer;
    batch->errno_value = 0;
    batch->parts_out = (uint32_t)((bytes + part_bytes - 1) / part_bytes);
    for (uint32_t i = 0; i < batch->parts_out; i++) {
        size_t from = i * part_bytes, left = bytes - from;
        batch->parts[i] = (part_t){
            .request = {.kind = KV_RING_READ,
                .file = file,
                .buffer = buffer + from,
                .bytes = left < part_bytes ? left : part_bytes,
                .offset = offset + from,
                .done = read_done},
            .batch = batch,
        };
    }
    /* None ends before all are submitted: done() runs only inside kv_ring_poll. */
    for (uint32_t i = 0, parts = batch->parts_out; i < parts; i++) {
        kv_ring_submit(disk->ring, &batch->parts[i].request);
    }
}

static void start_read(kv_read_batch_t *batch)
{
    kvist_store_t *store = batch->store;
    kv_disk_t *disk = store->disk;
    const kv_read_t *first = batch->reads[0];
    size_t bytes = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        bytes += (size_t)batch->reads[i]->length_pages * KV_PAGE_BYTES;
    }
    KV_CHECK(bytes <= disk->staging_bytes);
    batch->staging = disk->staging_free[--disk->staging_free_count];
    kv_segments_hold(&disk->segments, first->segment);
    int file;
    kv_error_t error;
    kv_status_t status = kv_segments_file(&disk->segments, first->segment, &file, &error);
    if (status != KV_OK) {
        kv_log_warn("store", "read failed: %s", error.text);
        fail_batch(batch, status == KV_MISSING ? KV_CORRUPT : KV_IO);
        return;
    }
    submit_parts(batch, file,
        (char *)disk->staging_region.base + (size_t)batch->staging * disk->staging_bytes, bytes);
}

void kv_reads_advance(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    while (disk != NULL && disk->first_read != NULL && disk->staging_free_count > 0) {
        kv_read_batch_t *batch = disk->first_read;
        disk->first_read = batch->next;
        if (disk->first_read == NULL) {
            disk->last_read = NULL;
        }
        start_read(batch);
    }
}

/* ---- planning ---- */

static void plan_record(const kvist_store_t *store, const kv_object_t *object, kv_read_t *read)
{
    KV_CHECK(kv_object_on_disk(object));
    read->tier = KVIST_TIER_DISK;
    read->segment = object->segment;
    read->offset_pages = object->offset_pages;
    read->length_pages = object->length_pages;
    read->expected.generation = store->disk->segments.items[object->segment].generation;
}

void kv_read_plan(kvist_store_t *store, uint32_t number, kv_read_t *read)
{
    kv_object_t *object = kv_table_at(store->table, number);
    read->object = number;
    read->status = KV_IO;
    kv_object_describe(store, object, &read->expected);
    if (kv_object_on_host(object)) {
        read->tier = KVIST_TIER_HOST;
        read->slot = object->host_slot;
    } else if (kv_object_on_device(store, object)) {
        read->tier = KVIST_TIER_DEVICE;
        read->slot = object->device_slot;
    } else {
        plan_record(store, object, read);
    }
}

void kv_read_plan_record(kvist_store_t *store, uint32_t number, kv_read_t *read)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    read->object = number;
    read->status = KV_IO;
    kv_object_describe(store, object, &read->expected);
    plan_record(store, object, read);
}

static int by_place(const void *left, const void *right)
{
    const kv_read_t *a = *(kv_read_t *const *)left, *b = *(kv_read_t *const *)right;
    if (a->tier != b->tier) {
        return a->tier < b->tier ? -1 : 1;
    }
    if (a->tier != KVIST_TIER_DISK) {
        return a->slot < b->slot ? -1 : a->slot > b->slot;
    }
    if (a->segment != b->segment) {
        return a->segment < b->segment ? -1 : 1;
    }
    return a->offset_pages < b->offset_pages ? -1 : a->offset_pages > b->offset_pages;
}

static size_t disk_batch_bytes(const kvist_store_t *store, kv_read_t *const *reads, uint32_t count)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        bool disk = reads[i]->tier == KVIST_TIER_DISK;
        bytes += disk ? (size_t)reads[i]->length_pages * KV_PAGE_BYTES : 0;
    }
    bytes /= DISK_BATCHES;
    bytes = bytes > DISK_BATCH_BYTES ? bytes : DISK_BATCH_BYTES;
    return store->disk == NULL || bytes < store->disk->staging_bytes ? bytes
                                                                     : store->disk->staging_bytes;
}

/* How many reads from the first on make one batch. */
static uint32_t batch_length(
    const kvist_store_t *store, kv_read_t *const *reads, uint32_t count, size_t disk_limit)
{
    size_t bytes = 0;
    uint32_t length = 0;
    bool disk = reads[0]->tier == KVIST_TIER_DISK;
    size_t limit = disk ? disk_limit : (size_t)MEMORY_BATCH_BYTES;
    for (; length < count && reads[length]->tier == reads[0]->tier; length++) {
        const kv_read_t *read = reads[length];
        size_t more = disk ? (size_t)read->length_pages * KV_PAGE_BYTES
                           : layout_of(store, read)->object_bytes;
        if (length > 0 && bytes + more > limit) {
            break;
        }
        if (length > 0 && disk &&
            (read->segment != reads[0]->segment ||
                read->offset_pages !=
                    reads[length - 1]->offset_pages + reads[length - 1]->length_pages)) {
            break;
        }
        bytes += more;
    }
    return length;
}

void kv_reads_start(kvist_store_t *store, kv_read_t **reads, uint32_t count)
{
    size_t disk_limit = disk_batch_bytes(store, reads, count);
    qsort(reads, count, sizeof *reads, by_place);
    for (uint32_t at = 0; at < count;) {
        uint32_t length = batch_length(store, reads + at, count - at, disk_limit);
        start_batch(store, make_batch(store, reads + at, length));
        at += length;
    }
    kv_reads_advance(store);
}
