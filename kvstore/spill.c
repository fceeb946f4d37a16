/* Spilling a context on request: its blocks go to the disk, then leave memory, leaf first.
 *
 * A spill remembers a key and no numbers: each poll walks its chain anew, so that whatever else
 * happens to the blocks meanwhile (a lease takes them, they are dropped) needs nobody to tell it.
 * It has ended when a walk finds nothing that is still on its way to the disk. */
#include "kvstore/store_internal.h"

#include "base/memory.h"
#include "kvstore/embedded.h"

#include <stdlib.h>

struct kv_spill {
    kvist_key_t key;
    bool missing, refused, ended; /* as the last walk found */
    uint64_t object_count, bytes;
    kvist_spilled_t done;
    void *context;
    kv_spill_t *next;
};

/* What one walk met. */
typedef struct {
    bool coming;  /* something is on its way to the disk */
    bool refused; /* something is in memory alone, and the disk does not take it */
} walk_t;

static bool in_memory(const kvist_store_t *store, const kv_object_t *object)
{
    return kv_object_on_device(store, object) || kv_object_on_host(object);
}

/* Asks for the object's record, where there is none. */
static void bring_down(kvist_store_t *store, uint32_t number, walk_t *walk)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    if (kv_object_on_disk(object)) {
        return;
    }
    if (kv_persist_usable(store) && kv_persist_queue(store, number)) {
        walk->coming = true;
    } else {
        walk->refused = true;
    }
}

static bool may_leave(const kv_pool_t *pool, uint32_t slot)
{
    return pool->slots[slot].children == 0;
}

/* Out of whatever memory has it, where nobody holds it and nothing there goes on from it. */
static void leave_memory(kvist_store_t *store, kv_spill_t *spill, uint32_t number, walk_t *walk)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    if (!in_memory(store, object) || !kv_object_on_disk(object) || object->reference_count > 0) {
        return;
    }
    if ((object->flags & KV_OBJECT_BUSY) != 0) {
        walk->coming = true;
        return;
    }
    const kv_store_group_t *group = kv_object_group(store, object);
    if (kv_object_on_device(store, object) && may_leave(&store->device_pool, object->device_slot)) {
        kv_object_leave_device(store, number);
        spill->bytes += group->layout.object_bytes;
    }
    if (kv_object_on_host(object) && may_leave(&group->host_pool, object->host_slot)) {
        kv_object_leave_host(store, number);
        spill->bytes += group->layout.object_bytes;
    }
    spill->object_count += !in_memory(store, object);
}

/* A block's objects of the other groups, which only host memory has. */
static void walk_groups(kvist_store_t *store, kv_spill_t *spill, uint32_t block, walk_t *walk)
{
    uint32_t at = kv_table_at(store->table, block)->first_child;
    while (at != KV_OBJECT_NONE) {
        uint32_t next = kv_table_at(store->table, at)->next_sibling;
        if (kv_object_family(store, kv_table_at(store->table, at))->group > 0) {
            bring_down(store, at, walk);
            leave_memory(store, spill, at, walk);
        }
        at = next;
    }
}

static void walk_chain(kvist_store_t *store, kv_spill_t *spill)
{
    walk_t walk = {0};
    uint32_t number = kv_fill_find(store, &spill->key);
    spill->missing = number == KV_OBJECT_NONE;
    for (uint32_t at = number; at != KV_OBJECT_NONE;) {
        uint32_t parent = kv_table_at(store->table, at)->parent;
        bring_down(store, at, &walk);
        walk_groups(store, spill, at, &walk);
        leave_memory(store, spill, at, &walk);
        at = parent;
    }
    spill->ended = !walk.coming;
    spill->refused = walk.refused;
}

void kv_embedded_store_spill(
    kvist_store_t *store, const kvist_key_t *key, kvist_spilled_t done, void *context)
{
    kv_spill_t *spill = kv_allocate(sizeof *spill), **link = &store->first_spill;
    *spill = (kv_spill_t){.key = *key, .done = done, .context = context};
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = spill;
    kv_store_kick(store);
}

void kv_spill_advance(kvist_store_t *store)
{
    for (kv_spill_t *spill = store->first_spill; spill != NULL; spill = spill->next) {
        if (!spill->ended) {
            walk_chain(store, spill);
        }
    }
}

void kv_spill_run_callbacks(kvist_store_t *store)
{
    for (kv_spill_t **link = &store->first_spill; *link != NULL;) {
        kv_spill_t *spill = *link;
        if (!spill->ended) {
            link = &spill->next;
            continue;
        }
        *link = spill->next;
        bool nothing = spill->missing && spill->object_count == 0;
        spill->done(spill->context,
            nothing          ? KV_MISSING
            : spill->refused ? KV_NO_SPACE
                             : KV_OK,
            spill->object_count, spill->bytes);
        free(spill);
    }
}
