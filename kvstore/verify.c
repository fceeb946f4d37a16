/* Reading everything, to find damage before somebody needs the bytes.
 *
 *   host memory, some slots at a time -> disk, segment by segment, some records at a time -> done
 *
 * One portion is under way at a time, and none is begun while reads wait for a buffer: requests go
 * first. What is damaged is forgotten as a load forgets it. What was written after the beginning
 * was verified on its way and may not be read again. */
#include "kvstore/store_internal.h"

#include "base/memory.h"
#include "kvstore/disk/read.h"
#include "kvstore/embedded.h"

#include <stdlib.h>
#include <string.h>

enum { HOST_PORTION_BYTES = 1 << 20, PROGRESS_MS = 100 };

typedef struct {
    kv_read_t read; /* first */
    kv_verify_t *verify;
} check_t;

typedef struct {
    uint32_t object, slot;
    bool damaged;
} host_check_t;

struct kv_verify {
    kv_task_t task; /* of a portion of host memory */
    kvist_store_t *store;
    kvist_verify_t state;
    void (*progress)(void *context, const kvist_verify_t *state);
    void (*done)(void *context, kv_status_t status, const kvist_verify_t *state);
    void *context;
    uint64_t told_ns;
    bool cancelled, over;
    uint32_t under_way; /* checks of the portion */

    uint32_t group, slot; /* where host memory goes on */
    host_check_t *host;
    uint32_t host_count;

    uint32_t segment;  /* where the disk goes on */
    uint32_t *objects; /* of that segment, in the order of their places */
    uint32_t object_count, object_next;
    check_t *checks; /* [object_count] */
};

/* ---- host memory ---- */

static void check_host(kv_task_t *task)
{
    kv_verify_t *verify = (kv_verify_t *)((char *)task - offsetof(kv_verify_t, task));
    const kv_store_group_t *group = &verify->store->groups[verify->group];
    for (uint32_t i = 0; i < verify->host_count; i++) {
        host_check_t *check = &verify->host[i];
        check->damaged =
            !kv_layout_units_agree(&group->layout, kv_group_host_bytes(group, check->slot),
                kv_pool_checksums(&group->host_pool, check->slot));
    }
    kv_store_finish(task);
}

static void host_checked(kv_task_t *task)
{
    kv_verify_t *verify = (kv_verify_t *)((char *)task - offsetof(kv_verify_t, task));
    kvist_store_t *store = verify->store;
    size_t bytes = store->groups[verify->group].layout.object_bytes;
    for (uint32_t i = 0; i < verify->host_count; i++) {
        const host_check_t *check = &verify->host[i];
        kv_table_at(store->table, check->object)->flags &= ~KV_OBJECT_CHECKING;
        verify->state.object_count++;
        verify->state.bytes += bytes;
    }
    for (uint32_t i = 0; i < verify->host_count; i++) {
        const host_check_t *check = &verify->host[i];
        if (check->damaged) {
            verify->state.damaged_objects +=
                kv_object_forget_copy(store, check->object, KVIST_TIER_HOST);
        }
        kv_object_settle(store, check->object);
    }
    verify->under_way = 0;
    kv_store_kick(store);
}

/* The next slots whose objects nothing else has to do with; those that are being written or moved
 * are verified by that. false: there are no more. */
static bool start_host(kv_verify_t *verify)
{
    kvist_store_t *store = verify->store;
    verify->host_count = 0;
    for (; verify->group < store->group_count; verify->group++, verify->slot = 0) {
        const kv_store_group_t *group = &store->groups[verify->group];
        size_t bytes = group->layout.object_bytes;
        uint32_t count_max = (uint32_t)(HOST_PORTION_BYTES / bytes) + 1;
        verify->host = kv_reallocate(verify->host, count_max, sizeof *verify->host);
        for (; verify->slot < group->host_pool.slot_count && verify->host_count < count_max;
             verify->slot++) {
            const kv_slot_t *slot = &group->host_pool.slots[verify->slot];
            kv_object_t *object =
                slot->state == KV_SLOT_OBJECT ? kv_table_at(store->table, slot->object) : NULL;
            if (object == NULL || (object->flags & (KV_OBJECT_BUSY | KV_OBJECT_DEAD)) != 0) {
                continue;
            }
            object->flags |= KV_OBJECT_CHECKING;
            verify->host[verify->host_count++] = (host_check_t){slot->object, verify->slot, false};
        }
        if (verify->host_count > 0) {
            verify->under_way = 1;
            verify->task = (kv_task_t){.work = check_host, .done = host_checked, .store = store};
            kv_store_submit(store, &verify->task);
            return true;
        }
    }
    return false;
}

/* ---- disk ---- */

static kv_status_t check_record(kv_read_t *read, const kv_read_bytes_t *bytes)
{
    (void)read;
    return kv_layout_units_agree(bytes->layout, bytes->object, bytes->checksums) ? KV_OK
                                                                                 : KV_CORRUPT;
}

static void record_checked(kv_read_t *read, bool try_again)
{
    (void)try_again;
    kv_verify_t *verify = ((check_t *)read)->verify;
    verify->state.object_count++;
    verify->state.bytes += (uint64_t)read->length_pages * KV_PAGE_BYTES;
    if (read->status == KV_CORRUPT) {
        verify->state.damaged_objects += read->forgotten_count;
    } else if (read->status != KV_OK) {
        verify->state.failed_objects++;
    }
    if (--verify->under_way == 0) {
        kv_store_kick(verify->store);
    }
}

static bool lies_in(const kvist_store_t *store, uint32_t number, uint32_t segment)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    return (object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) == KV_OBJECT_USED &&
           object->segment == segment;
}

static void list_segment(kv_verify_t *verify, uint32_t segment)
{
    free(verify->objects);
    verify->objects = kv_reclaim_list(verify->store, segment, &verify->object_count);
    verify->checks =
        kv_reallocate(verify->checks, verify->object_count + 1, sizeof *verify->checks);
    verify->object_next = 0;
}

/* Records for one buffer, those that still lie there. */
static bool start_portion(kv_verify_t *verify)
{
    kvist_store_t *store = verify->store;
    size_t room = store->disk->staging_bytes;
    kv_read_t **reads =
        kv_allocate_array(verify->object_count - verify->object_next + 1, sizeof *reads);
    uint32_t count = 0;
    for (; verify->object_next < verify->object_count; verify->object_next++) {
        uint32_t number = verify->objects[verify->object_next];
        if (!lies_in(store, number, verify->segment)) {
            continue;
        }
        size_t bytes = (size_t)kv_table_at(store->table, number)->length_pages * KV_PAGE_BYTES;
        if (count > 0 && bytes > room) {
            break;
        }
        room -= bytes < room ? bytes : room;
        check_t *check = &verify->checks[count];
        *check =
            (check_t){.read = {.move = check_record, .ended = record_checked}, .verify = verify};
        kv_read_plan_record(store, number, &check->read);
        reads[count++] = &check->read;
    }
    verify->under_way = count + 1; /* some may end before all are started */
    kv_reads_start(store, reads, count);
    free(reads);
    verify->under_way--;
    return count > 0;
}

static bool start_disk(kv_verify_t *verify)
{
    kvist_store_t *store = verify->store;
    while (store->disk != NULL && verify->segment < store->disk->segments.count) {
        if (verify->object_next < verify->object_count && start_portion(verify)) {
            return true;
        }
        verify->segment++;
        verify->object_next = verify->object_count = 0;
        if (verify->segment < store->disk->segments.count) {
            list_segment(verify, verify->segment);
        }
    }
    return false;
}

/* ---- the course ---- */

static void count_all(kv_verify_t *verify)
{
    kvist_store_t *store = verify->store;
    for (uint32_t i = 0; i < store->group_count; i++) {
        uint64_t count = store->groups[i].host_pool.object_count;
        verify->state.object_total += count;
        verify->state.bytes_total += count * store->groups[i].layout.object_bytes;
    }
    const kvist_tier_stats_t *disk = &store->stats.tiers[KVIST_TIER_DISK];
    verify->state.object_total += disk->object_count;
    verify->state.bytes_total += disk->used_bytes;
}

kv_status_t kv_embedded_store_verify(kvist_store_t *store,
    void (*progress)(void *context, const kvist_verify_t *state),
    void (*done)(void *context, kv_status_t status, const kvist_verify_t *state), void *context)
{
    if (store->verify != NULL) {
        return KV_BUSY;
    }
    kv_verify_t *verify = kv_allocate(sizeof *verify);
    *verify = (kv_verify_t){
        .store = store,
        .progress = progress,
        .done = done,
        .context = context,
        .told_ns = store->clock->monotonic_ns(store->clock),
    };
    count_all(verify);
    if (store->disk != NULL) {
        list_segment(verify, 0);
    }
    store->verify = verify;
    kv_store_kick(store);
    return KV_OK;
}

static bool reads_wait(const kv_disk_t *disk)
{
    return disk != NULL &&
           (disk->first_read != NULL || disk->staging_free_count <= KV_STAGING_FOR_READS);
}

void kv_verify_advance(kvist_store_t *store)
{
    kv_verify_t *verify = store->verify;
    if (verify == NULL || verify->under_way > 0 || verify->over) {
        return;
    }
    if (!verify->cancelled && (reads_wait(store->disk) || kv_fill_busy(store))) {
        return; /* the end of those comes here again */
    }
    verify->over = verify->cancelled || (!start_host(verify) && !start_disk(verify));
    if (verify->over) {
        kv_store_kick(store);
    }
}

void kv_verify_cancel(kvist_store_t *store)
{
    if (store->verify != NULL) {
        store->verify->cancelled = true;
        kv_store_kick(store);
    }
}

void kv_verify_run_callbacks(kvist_store_t *store)
{
    kv_verify_t *verify = store->verify;
    if (verify == NULL) {
        return;
    }
    if (!verify->over) {
        uint64_t now_ns = store->clock->monotonic_ns(store->clock);
        if (verify->progress != NULL && now_ns - verify->told_ns >= PROGRESS_MS * KV_NS_PER_MS) {
            verify->told_ns = now_ns;
            kvist_verify_t state = verify->state;
            verify->progress(verify->context, &state);
        }
        return;
    }
    store->verify = NULL;
    verify->done(verify->context, verify->cancelled ? KV_CANCELLED : KV_OK, &verify->state);
    free(verify->host);
    free(verify->objects);
    free(verify->checks);
    free(verify);
}
