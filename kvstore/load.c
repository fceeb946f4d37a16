/* Promotion: blocks on their way from host memory or disk into device slots.
 *
 *   planned --host--> copying (worker) ---------------------------------> ended
 *      \----disk----> waiting for a buffer -> reading (ring) -> verifying (worker) -> ended
 *
 * A load fills one slot for one object; leases that want the same object wait for the same load. A
 * batch moves many loads as one job: neighbours in host order, or one contiguous range of a
 * segment. Every byte is verified between its tier and the device. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { HOST_BATCH_BYTES = 2 << 20 };

typedef struct waiting_lease {
    kvist_lease_t *lease;
    struct waiting_lease *next;
} waiting_lease_t;

struct kv_load {
    uint32_t object, slot;
    kvist_tier_t tier; /* where from */
    uint32_t host_slot;
    uint16_t segment, length_pages;
    uint32_t offset_pages;
    kv_record_t expected; /* of a record: what it must say */
    kv_status_t status;   /* KV_OK, KV_CORRUPT, KV_IO */
    waiting_lease_t *waiting;
};

typedef struct load_batch {
    kv_task_t task;
    kv_ring_request_t request;
    kvist_store_t *store;
    kv_load_t **loads;
    uint32_t count;
    int staging; /* -1: none yet */
    struct load_batch *next;
} load_batch_t;

static load_batch_t *batch_of_request(kv_ring_request_t *request)
{
    return (load_batch_t *)((char *)request - offsetof(load_batch_t, request));
}

/* ---- the end of a load ---- */

/* The bytes in one tier proved wrong: that copy goes; without another copy the object goes. true:
 * another copy is left. */
static bool forget_copy(kvist_store_t *store, const kv_load_t *load)
{
    kv_object_t *object = kv_table_at(store->table, load->object);
    if ((object->flags & KV_OBJECT_DEAD) != 0) {
        return false;
    }
    if (load->tier == KVIST_TIER_HOST && object->host_slot == load->host_slot) {
        if ((object->flags & KV_OBJECT_BUSY) == 0) {
            kv_object_leave_host(store, load->object);
        }
    } else if (load->tier == KVIST_TIER_DISK && object->segment == load->segment &&
               object->offset_pages == load->offset_pages) {
        kv_object_leave_disk(store, load->object);
    }
    if (kv_object_on_device(store, object) || kv_object_on_host(object) ||
        kv_object_on_disk(object)) {
        return (object->flags & KV_OBJECT_BUSY) == 0;
    }
    kv_log_warn("store", "stored block damaged: dropped with its descendants tier %s position %u",
        kvist_tier_name(load->tier), (uint32_t)object->position);
    kv_object_drop(store, load->object);
    return false;
}

static void end_load(kvist_store_t *store, kv_load_t *load)
{
    kv_object_t *object = kv_table_at(store->table, load->object);
    kvist_tier_stats_t *tier = &store->stats.tiers[load->tier];
    bool wanted = object->device_slot == load->slot, try_again = false;
    store->loads[load->slot] = NULL;
    if (load->status == KV_OK && wanted && (object->flags & KV_OBJECT_DEAD) == 0) {
        kv_pool_set_object(&store->device_pool, load->slot, load->object);
        tier->read_bytes += store->groups[0].layout.object_bytes;
    } else {
        kv_pool_give(&store->device_pool, load->slot);
        if (wanted) {
            object->device_slot = KV_SLOT_NONE;
        }
    }
    if (load->status == KV_CORRUPT) {
        store->stats.damaged_objects++;
        if (store->disk != NULL) {
            store->disk->sync_index = true;
        }
        try_again = forget_copy(store, load);
    } else if (load->status != KV_OK) {
        store->stats.failed_reads++;
    }
    kv_object_settle(store, load->object);
    for (waiting_lease_t *waiting = load->waiting; waiting != NULL;) {
        waiting_lease_t *next = waiting->next;
        kv_lease_load_ended(waiting->lease, try_again);
        free(waiting);
        waiting = next;
    }
    free(load);
}

/* The buffer, and with it the hold on the segment. */
static void give_staging(load_batch_t *batch)
{
    kv_disk_t *disk = batch->store->disk;
    if (batch->staging >= 0) {
        disk->segments.items[batch->loads[0]->segment].in_use--;
        disk->staging_free[disk->staging_free_count++] = batch->staging;
        batch->staging = -1;
    }
}

static void end_batch(load_batch_t *batch)
{
    kvist_store_t *store = batch->store;
    give_staging(batch);
    for (uint32_t i = 0; i < batch->count; i++) {
        end_load(store, batch->loads[i]);
    }
    free(batch->loads);
    free(batch);
}

static void batch_done(kv_task_t *task)
{
    end_batch((load_batch_t *)task);
}

/* ---- from host memory ---- */

static void copy_from_host(kv_task_t *task)
{
    load_batch_t *batch = (load_batch_t *)task;
    kvist_store_t *store = batch->store;
    const kv_store_group_t *group = &store->groups[0];
    for (uint32_t i = 0; i < batch->count; i++) {
        kv_load_t *load = batch->loads[i];
        const char *from = kv_group_host_bytes(group, load->host_slot);
        if (!kv_layout_units_agree(
                &group->layout, from, kv_pool_checksums(&group->host_pool, load->host_slot))) {
            load->status = KV_CORRUPT;
            continue;
        }
        store->device->ops->copy_in(store->device, kv_store_device_bytes(store, load->slot), from,
            group->layout.object_bytes);
        memcpy(kv_pool_tokens(&store->device_pool, load->slot),
            kv_pool_tokens(&group->host_pool, load->host_slot),
            store->block_tokens * sizeof(uint32_t));
        load->status = KV_OK;
    }
    kv_store_finish(task);
}

static load_batch_t *make_batch(kvist_store_t *store, kv_load_t **loads, uint32_t count)
{
    load_batch_t *batch = kv_allocate(sizeof *batch);
    batch->store = store;
    batch->loads = kv_allocate_array(count, sizeof *batch->loads);
    memcpy(batch->loads, loads, count * sizeof *loads);
    batch->count = count;
    batch->staging = -1;
    return batch;
}

static void start_batch(kvist_store_t *store, load_batch_t *batch)
{
    if (batch->loads[0]->tier == KVIST_TIER_HOST) {
        batch->task = (kv_task_t){.work = copy_from_host, .done = batch_done, .store = store};
        kv_store_submit(store, &batch->task);
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

static void verify_records(kv_task_t *task)
{
    load_batch_t *batch = (load_batch_t *)task;
    kvist_store_t *store = batch->store;
    const char *at = batch->request.buffer;
    const kv_layout_t *layout = &store->groups[0].layout;
    void *scratch = kv_allocate(layout->object_bytes);
    for (uint32_t i = 0; i < batch->count; i++) {
        kv_load_t *load = batch->loads[i];
        size_t bytes = (size_t)load->length_pages * KV_PAGE_BYTES;
        const void *object;
        load->status = kv_record_verify(layout, &load->expected, at, bytes, scratch, &object,
            kv_pool_tokens(&store->device_pool, load->slot));
        if (load->status == KV_OK) {
            store->device->ops->copy_in(store->device, kv_store_device_bytes(store, load->slot),
                object, layout->object_bytes);
        }
        at += bytes;
    }
    free(scratch);
    kv_store_finish(task);
}

static void fail_batch(load_batch_t *batch, kv_status_t status)
{
    for (uint32_t i = 0; i < batch->count; i++) {
        batch->loads[i]->status = status;
    }
    end_batch(batch);
}

/* One bad place must not cost its neighbours: each record of the range is read alone. */
static void read_apart(load_batch_t *batch)
{
    kvist_store_t *store = batch->store;
    give_staging(batch);
    for (uint32_t i = 0; i < batch->count; i++) {
        start_batch(store, make_batch(store, &batch->loads[i], 1));
    }
    free(batch->loads);
    free(batch);
}

static void read_done(kv_ring_request_t *request, int errno_value)
{
    load_batch_t *batch = batch_of_request(request);
    if (errno_value != 0 && batch->count > 1) {
        read_apart(batch);
        return;
    }
    if (errno_value != 0) {
        kv_log_warn("store", "read failed: %s segment %u offset %ju bytes %zu",
            strerror(errno_value), batch->loads[0]->segment, (uintmax_t)request->offset,
            request->bytes);
        /* A file that ends too early has lost bytes for good; other errors may pass. */
        fail_batch(batch, errno_value == ENODATA ? KV_CORRUPT : KV_IO);
        return;
    }
    batch->task = (kv_task_t){.work = verify_records, .done = batch_done, .store = batch->store};
    kv_store_submit(batch->store, &batch->task);
}

static void start_read(load_batch_t *batch)
{
    kvist_store_t *store = batch->store;
    kv_disk_t *disk = store->disk;
    const kv_load_t *first = batch->loads[0];
    size_t bytes = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        bytes += (size_t)batch->loads[i]->length_pages * KV_PAGE_BYTES;
    }
    KV_CHECK(bytes <= disk->staging_bytes);
    batch->staging = disk->staging_free[--disk->staging_free_count];
    disk->segments.items[first->segment].in_use++;
    batch->request = (kv_ring_request_t){
        .kind = KV_RING_READ,
        .buffer = (char *)disk->staging_region.base + (size_t)batch->staging * disk->staging_bytes,
        .bytes = bytes,
        .offset = (uint64_t)first->offset_pages * KV_PAGE_BYTES,
        .done = read_done,
    };
    kv_error_t error;
    kv_status_t status =
        kv_segments_file(&disk->segments, first->segment, &batch->request.file, &error);
    if (status != KV_OK) {
        kv_log_warn("store", "read failed: %s", error.text);
        fail_batch(batch, status == KV_MISSING ? KV_CORRUPT : KV_IO);
        return;
    }
    kv_ring_submit(disk->ring, &batch->request);
}

void kv_load_release_waiting(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    while (disk != NULL && disk->first_read != NULL && disk->staging_free_count > 0) {
        load_batch_t *batch = disk->first_read;
        disk->first_read = batch->next;
        if (disk->first_read == NULL) {
            disk->last_read = NULL;
        }
        start_read(batch);
    }
}

/* ---- planning ---- */

static void wait_for(kv_load_t *load, kvist_lease_t *lease)
{
    waiting_lease_t *waiting = kv_allocate(sizeof *waiting);
    *waiting = (waiting_lease_t){lease, load->waiting};
    load->waiting = waiting;
    kv_lease_load_started(lease);
}

static kv_load_t *plan_load(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    kv_load_t *load = kv_allocate(sizeof *load);
    load->object = number;
    load->slot = kv_pool_take(&store->device_pool);
    KV_CHECK(load->slot != KV_SLOT_NONE);
    kv_pool_set_loading(&store->device_pool, load->slot, number);
    object->device_slot = load->slot;
    store->loads[load->slot] = load;
    load->status = KV_IO;
    if (kv_object_on_host(object)) {
        load->tier = KVIST_TIER_HOST;
        load->host_slot = object->host_slot;
        return load;
    }
    KV_CHECK(kv_object_on_disk(object));
    load->tier = KVIST_TIER_DISK;
    load->segment = object->segment;
    load->offset_pages = object->offset_pages;
    load->length_pages = object->length_pages;
    kv_object_describe(store, object, &load->expected);
    load->expected.generation = store->disk->segments.items[object->segment].generation;
    return load;
}

static int by_place(const void *left, const void *right)
{
    const kv_load_t *a = *(kv_load_t *const *)left, *b = *(kv_load_t *const *)right;
    if (a->tier != b->tier) {
        return a->tier < b->tier ? -1 : 1;
    }
    if (a->tier == KVIST_TIER_HOST) {
        return a->host_slot < b->host_slot ? -1 : a->host_slot > b->host_slot;
    }
    if (a->segment != b->segment) {
        return a->segment < b->segment ? -1 : 1;
    }
    return a->offset_pages < b->offset_pages ? -1 : a->offset_pages > b->offset_pages;
}

/* How many loads from the first on make one batch. */
static uint32_t batch_length(kvist_store_t *store, kv_load_t *const *loads, uint32_t count)
{
    size_t bytes = 0;
    uint32_t length = 0;
    for (; length < count && loads[length]->tier == loads[0]->tier; length++) {
        const kv_load_t *load = loads[length];
        bool disk = load->tier == KVIST_TIER_DISK;
        size_t limit = disk ? store->disk->staging_bytes : (size_t)HOST_BATCH_BYTES;
        size_t more = disk ? (size_t)load->length_pages * KV_PAGE_BYTES
                           : store->groups[0].layout.object_bytes;
        if (length > 0 && bytes + more > limit) {
            break;
        }
        if (length > 0 && disk &&
            (load->segment != loads[0]->segment ||
                load->offset_pages !=
                    loads[length - 1]->offset_pages + loads[length - 1]->length_pages)) {
            break;
        }
        bytes += more;
    }
    return length;
}

void kv_load_start(kvist_store_t *store, kvist_lease_t *lease)
{
    uint32_t found = kv_lease_found_count(lease), count = 0;
    kv_load_t **loads = kv_allocate_array(found + 1, sizeof(kv_load_t *));
    for (uint32_t block = 0; block < found; block++) {
        uint32_t number = kv_lease_object(lease, block);
        kv_object_t *object = kv_table_at(store->table, number);
        if (kv_object_on_device(store, object)) {
            continue;
        }
        kv_load_t *load = object->device_slot != KV_SLOT_NONE ? store->loads[object->device_slot]
                                                              : plan_load(store, number);
        if (load->waiting == NULL) {
            loads[count++] = load;
        }
        wait_for(load, lease);
    }
    qsort(loads, count, sizeof(kv_load_t *), by_place);
    for (uint32_t at = 0; at < count;) {
        uint32_t length = batch_length(store, loads + at, count - at);
        start_batch(store, make_batch(store, loads + at, length));
        at += length;
    }
    free(loads);
    kv_load_release_waiting(store);
}
