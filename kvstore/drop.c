/* Dropping for good: a block, or all of a tenant's, and their descendants leave the table at once,
 * memory and disk as soon as nothing under way needs their bytes; the callback runs when no restart
 * can bring them back.
 *
 *   waiting --(the table knows all that is on disk)-->
 *   settling --(no write, move or erasure of theirs is under way)--> indexing
 *     --(their entries are gone from the index, durably)--> marking
 *     --(their records say that they are dropped, durably)--> callback
 *
 * While a segment is being reclaimed its old header may still be on disk, and with it records that
 * were forgotten without a mark: the callback waits for that too.
 *
 * A tenant's blocks are found a portion at a time (searching). Its key is destroyed last
 * (destroying): no restart finds entries of the index without it. */
#include "kvstore/store_internal.h"

#include "base/log.h"
#include "base/memory.h"
#include "kvstore/embedded.h"

#include <stdlib.h>
#include <string.h>

enum { LOOK_AT_ONCE = 65536 }; /* of the table, for a tenant's blocks */

typedef enum { WAITING, SEARCHING, SETTLING, INDEXING, MARKING, DESTROYING, ENDED } stage_t;

struct kv_drop {
    kv_task_t task; /* first: destroying */
    stage_t stage;
    kvist_key_t key; /* waiting: what it is about, unless it is a tenant */
    bool erase, of_tenant;
    char tenant[KV_TENANT_BYTES];
    uint32_t looked_to;  /* searching */
    uint32_t *unsettled; /* dead numbers, until nothing under way has to do with their bytes */
    uint32_t unsettled_count, unsettled_capacity;
    uint64_t object_count;
    uint64_t sync_number, mark_number, failures_before;
    kv_status_t status;
    kvist_dropped_t done;
    void *context;
    kv_drop_t *next;
};

/* ---- erasing memory ---- */

typedef struct {
    kv_task_t task;
    uint32_t object, device_slot, host_slot;
    kv_store_group_t *group;
} erasure_t;

static void overwrite(kv_task_t *task)
{
    erasure_t *erasure = (erasure_t *)task;
    kvist_store_t *store = task->store;
    size_t bytes = erasure->group->layout.object_bytes;
    size_t word_bytes = store->block_words * sizeof(uint32_t);
    if (erasure->host_slot != KV_SLOT_NONE) {
        memset(kv_group_host_bytes(erasure->group, erasure->host_slot), 0, bytes);
        memset(kv_pool_words(&erasure->group->host_pool, erasure->host_slot), 0, word_bytes);
    }
    if (erasure->device_slot != KV_SLOT_NONE) {
        char *zeros = kv_allocate(bytes);
        /* On a device that failed nobody reads the slot again, nor writes it. */
        (void)kv_device_slot_in(store, erasure->device_slot, zeros, NULL);
        memset(kv_pool_words(&store->device_pool, erasure->device_slot), 0, word_bytes);
        free(zeros);
    }
    kv_store_finish(task);
}

static void overwritten(kv_task_t *task)
{
    erasure_t *erasure = (erasure_t *)task;
    kv_table_at(task->store->table, erasure->object)->flags &= ~KV_OBJECT_MOVING;
    kv_object_settle(task->store, erasure->object);
    free(erasure);
}

void kv_drop_erase_memory(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    object->flags &= ~KV_OBJECT_ERASE;
    object->flags |= KV_OBJECT_MOVING; /* keeps the slots until they are overwritten */
    erasure_t *erasure = kv_allocate(sizeof *erasure);
    *erasure = (erasure_t){
        .task = {.work = overwrite, .done = overwritten, .store = store},
        .object = number,
        .device_slot = object->device_slot,
        .host_slot = object->host_slot,
        .group = kv_object_group(store, object),
    };
    kv_store_submit(store, &erasure->task);
}

/* ---- the call ---- */

/* The next object of the subtree in preorder; KV_OBJECT_NONE at its end. */
static uint32_t next_in_subtree(const kvist_store_t *store, uint32_t root, uint32_t at)
{
    const kv_object_t *object = kv_table_at(store->table, at);
    if (object->first_child != KV_OBJECT_NONE) {
        return object->first_child;
    }
    while (at != root) {
        object = kv_table_at(store->table, at);
        if (object->next_sibling != KV_OBJECT_NONE) {
            return object->next_sibling;
        }
        at = object->parent;
    }
    return KV_OBJECT_NONE;
}

static bool any_held(const kvist_store_t *store, uint32_t root)
{
    for (uint32_t at = root; at != KV_OBJECT_NONE; at = next_in_subtree(store, root, at)) {
        if (kv_table_at(store->table, at)->reference_count > 0) {
            return true;
        }
    }
    return false;
}

static bool is_unsettled(const kv_object_t *object)
{
    return (object->flags & (KV_OBJECT_BUSY | KV_OBJECT_ERASE)) != 0;
}

static void note_unsettled(kv_drop_t *drop, uint32_t number)
{
    if (drop->unsettled_count == drop->unsettled_capacity) {
        drop->unsettled_capacity = drop->unsettled_capacity > 0 ? 2 * drop->unsettled_capacity : 64;
        drop->unsettled =
            kv_reallocate(drop->unsettled, drop->unsettled_capacity, sizeof *drop->unsettled);
    }
    drop->unsettled[drop->unsettled_count++] = number;
}

static bool is_of_tenant(const kvist_store_t *store, const kv_object_t *object, const char *tenant)
{
    const char *own = kv_names_at(&store->tenants, kv_object_family(store, object)->tenant);
    return memcmp(own, tenant, KV_TENANT_BYTES) == 0;
}

/* Counts the subtree, remembers what is under way in it, and says what is to be erased. */
static void survey(kvist_store_t *store, kv_drop_t *drop, uint32_t root)
{
    for (uint32_t at = root; at != KV_OBJECT_NONE; at = next_in_subtree(store, root, at)) {
        kv_object_t *object = kv_table_at(store->table, at);
        bool keyless = drop->of_tenant && is_of_tenant(store, object, drop->tenant);
        drop->object_count++;
        object->disk_flags &= ~KV_DISK_REFUSED; /* that is not why it will be gone */
        object->disk_flags |= keyless ? KV_DISK_KEYLESS : 0;
        if (drop->erase || keyless) {
            object->flags |= KV_OBJECT_ERASE;
        }
        if (is_unsettled(object)) {
            note_unsettled(drop, at);
        }
    }
}

static void begin(kvist_store_t *store, kv_drop_t *drop)
{
    drop->stage = SETTLING;
    uint32_t root = kv_table_find(store->table, &drop->key);
    if (root == KV_OBJECT_NONE) {
        return; /* it went while the drop waited */
    }
    survey(store, drop, root);
    kv_object_drop(store, root, KV_GONE_DROPPED);
}

static bool search_is_over(kvist_store_t *store, kv_drop_t *drop)
{
    uint32_t bound = kv_table_bound(store->table), end = bound;
    if (bound - drop->looked_to > LOOK_AT_ONCE) {
        end = drop->looked_to + LOOK_AT_ONCE;
    }
    for (; drop->looked_to < end; drop->looked_to++) {
        const kv_object_t *object = kv_table_at(store->table, drop->looked_to);
        if ((object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) == KV_OBJECT_USED &&
            is_of_tenant(store, object, drop->tenant)) {
            survey(store, drop, drop->looked_to);
            kv_object_drop(store, drop->looked_to, KV_GONE_DROPPED);
        }
    }
    if (end < bound) {
        kv_store_kick(store);
    }
    return end == bound;
}

/* From here on the tenant's blocks get a new key. */
static void begin_search(kvist_store_t *store, kv_drop_t *drop)
{
    drop->stage = SEARCHING;
    if (store->disk != NULL && store->disk->keys != NULL) {
        kv_keyring_retire(store->disk->keys, drop->tenant);
    }
}

/* false: what descends from the block is not all known, or what is to be erased is held. */
static bool has_begun(kvist_store_t *store, kv_drop_t *drop)
{
    if (drop->stage == WAITING && drop->of_tenant && !kv_fill_busy(store)) {
        begin_search(store, drop);
    } else if (drop->stage == WAITING && !kv_fill_busy(store)) {
        uint32_t root = kv_table_find(store->table, &drop->key);
        if (root == KV_OBJECT_NONE || !drop->erase || !any_held(store, root)) {
            begin(store, drop);
        }
    }
    if (drop->stage == SEARCHING && search_is_over(store, drop)) {
        drop->stage = SETTLING;
    }
    return drop->stage > SEARCHING;
}

static void start_drop(kvist_store_t *store, kv_drop_t *drop)
{
    if (store->disk != NULL) {
        drop->failures_before = kv_mark_failures(store);
    }
    kv_drop_t **link = &store->first_drop;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = drop;
    kv_store_kick(store);
}

kv_status_t kv_embedded_store_drop_tenant(
    kvist_store_t *store, const char *tenant, kvist_dropped_t done, void *context)
{
    if (strlen(tenant) >= KV_TENANT_BYTES) {
        return KV_INVALID;
    }
    if (store->disk != NULL && store->disk->missing != 0) {
        return KV_BUSY; /* what lies there could come back */
    }
    kv_drop_t *drop = kv_allocate(sizeof *drop);
    *drop = (kv_drop_t){.of_tenant = true, .done = done, .context = context};
    memcpy(drop->tenant, tenant, strlen(tenant));
    bool known = kv_names_find(&store->tenants, drop->tenant) != KV_NAMES_FULL;
    if (store->disk != NULL && store->disk->keys != NULL) {
        known = known || kv_keyring_has(store->disk->keys, tenant);
    }
    if (!known && !kv_fill_busy(store)) {
        free(drop);
        return KV_MISSING;
    }
    start_drop(store, drop);
    has_begun(store, drop);
    return KV_OK;
}

kv_status_t kv_embedded_store_drop(
    kvist_store_t *store, const kvist_key_t *key, bool erase, kvist_dropped_t done, void *context)
{
    uint32_t root = kv_fill_find(store, key);
    if (root == KV_OBJECT_NONE) {
        return KV_MISSING;
    }
    if (store->disk != NULL && store->disk->missing != 0) {
        return KV_BUSY; /* what lies there could come back */
    }
    if (erase && any_held(store, root)) {
        return KV_BUSY;
    }
    kv_drop_t *drop = kv_allocate(sizeof *drop);
    *drop = (kv_drop_t){.key = *key, .erase = erase, .done = done, .context = context};
    if (!kv_fill_busy(store)) {
        begin(store, drop);
    }
    start_drop(store, drop);
    return KV_OK;
}

/* ---- going on ---- */

static bool settled(kvist_store_t *store, kv_drop_t *drop)
{
    while (drop->unsettled_count > 0) {
        const kv_object_t *object =
            kv_table_at(store->table, drop->unsettled[drop->unsettled_count - 1]);
        /* A number that has another life by now may be waited for too: that ends as well. */
        if ((object->flags & KV_OBJECT_DEAD) != 0 && is_unsettled(object)) {
            return false;
        }
        drop->unsettled_count--;
    }
    return true;
}

/* An entry of its own makes sure that there is something to be written. */
static void ask_for_sync(kvist_store_t *store, kv_drop_t *drop)
{
    kv_disk_t *disk = store->disk;
    kv_drop_entry_put(&disk->filling, store->clock->unix_ns(store->clock));
    disk->sync_index = true;
    drop->sync_number = disk->syncs_begun + 1;
    drop->mark_number = kv_mark_last(store);
    drop->stage = INDEXING;
    kv_store_kick(store);
}

static bool on_disk_done(kvist_store_t *store, kv_drop_t *drop)
{
    kv_disk_t *disk = store->disk;
    if (drop->stage == SETTLING) {
        ask_for_sync(store, drop);
    }
    if (drop->stage == INDEXING) {
        if (disk->index_failed) {
            drop->status = KV_IO;
            return true;
        }
        if (disk->syncs_done < drop->sync_number) {
            return false;
        }
        drop->stage = MARKING;
    }
    if (!kv_mark_ended(store, drop->mark_number) || kv_reclaim_between_lives(store)) {
        return false;
    }
    drop->status = kv_mark_failures(store) > drop->failures_before ? KV_IO : KV_OK;
    return true;
}

static void destroy_key(kv_task_t *task)
{
    kv_drop_t *drop = (kv_drop_t *)task;
    kv_error_t error;
    if (kv_keyring_destroy_retired(task->store->disk->keys, &error) != KV_OK) {
        kv_log_error("store", "a tenant's key could not be destroyed: %s", error.text);
        drop->status = KV_IO;
    }
    kv_store_finish(task);
}

static void key_destroyed(kv_task_t *task)
{
    ((kv_drop_t *)task)->stage = ENDED;
    kv_store_kick(task->store);
}

/* Last of all the key. */
static bool key_is_gone(kvist_store_t *store, kv_drop_t *drop)
{
    if (!drop->of_tenant || store->disk == NULL || store->disk->keys == NULL) {
        return true;
    }
    if (drop->stage < DESTROYING) {
        drop->stage = DESTROYING;
        drop->task = (kv_task_t){.work = destroy_key, .done = key_destroyed, .store = store};
        kv_store_submit(store, &drop->task);
    }
    return drop->stage == ENDED;
}

void kv_drop_advance(kvist_store_t *store)
{
    for (kv_drop_t **link = &store->first_drop; *link != NULL;) {
        kv_drop_t *drop = *link;
        if (!has_begun(store, drop) || !settled(store, drop) ||
            (drop->stage < DESTROYING && store->disk != NULL && !on_disk_done(store, drop)) ||
            !key_is_gone(store, drop)) {
            link = &drop->next;
            continue;
        }
        *link = drop->next;
        kv_drop_t **end = &store->first_dropped;
        while (*end != NULL) {
            end = &(*end)->next;
        }
        drop->next = NULL;
        *end = drop;
        kv_store_kick(store);
    }
}

void kv_drop_run_callbacks(kvist_store_t *store)
{
    while (store->first_dropped != NULL) {
        kv_drop_t *drop = store->first_dropped;
        store->first_dropped = drop->next;
        drop->done(drop->context, drop->status, drop->object_count);
        free(drop->unsettled);
        free(drop);
    }
}
