/* What the tiers hold, as it changes, told in runs.
 *
 * Each tier has one run in the making: blocks that follow one another in a chain, or blocks that
 * went, whichever. What does not go on from it ends it, so that a tier's changes are told in the
 * order in which they happened; between tiers the order means nothing. All runs end with the poll,
 * before a part of what is held is told, and when they are full: nothing here grows.
 *
 * Told is what is true of objects that live. A dropped object is told as gone from its tiers when
 * it is dropped, though its slots may be held for longer. */
#include "kvstore/store_internal.h"

#include "base/memory.h"
#include "kvstore/embedded.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    kvist_change_t change; /* block_count 0: nothing is in the making */
    uint16_t name_space;   /* its number */
    kvist_key_t keys[KVIST_CHANGE_BLOCKS_MAX];
} run_t;

/* Who is told, and the runs in the making. */
struct kv_changes {
    kvist_changed_t changed;
    void *context;
    run_t tiers[KVIST_TIER_REMOTE];
};

static void end_run(kv_changes_t *changes, run_t *run)
{
    if (run->change.block_count > 0) {
        run->change.keys = run->keys;
        changes->changed(changes->context, &run->change);
        run->change.block_count = 0;
    }
}

static void end_runs(kv_changes_t *changes)
{
    for (int tier = 0; tier < KVIST_TIER_REMOTE; tier++) {
        end_run(changes, &changes->tiers[tier]);
    }
}

/* The previous block's object, or the first of a context has KV_OBJECT_NONE. */
static uint32_t previous_block(
    const kvist_store_t *store, const kv_object_t *object, uint32_t group)
{
    if (group == 0) {
        return object->parent;
    }
    return object->parent != KV_OBJECT_NONE ? kv_table_at(store->table, object->parent)->parent
                                            : KV_OBJECT_NONE;
}

static bool goes_on(const kvist_store_t *store, const run_t *run, const kv_object_t *object,
    const kv_family_t *family, bool stored)
{
    const kvist_change_t *change = &run->change;
    if (change->block_count == 0 || change->block_count == KVIST_CHANGE_BLOCKS_MAX ||
        change->stored != stored || change->group != family->group) {
        return false;
    }
    if (!stored) {
        return true;
    }
    uint32_t previous = previous_block(store, object, family->group);
    return run->name_space == family->name_space &&
           object->position == change->first_block + change->block_count &&
           previous != KV_OBJECT_NONE &&
           kv_key_equal(
               &kv_table_at(store->table, previous)->key, &run->keys[change->block_count - 1]);
}

static void begin_run(const kvist_store_t *store, run_t *run, const kv_object_t *object,
    const kv_family_t *family, kvist_tier_t tier, bool stored)
{
    run->change = (kvist_change_t){.tier = tier, .stored = stored, .group = family->group};
    run->name_space = family->name_space;
    if (!stored) {
        return;
    }
    run->change.first_block = object->position;
    memcpy(run->change.name_space.bytes, kv_names_at(&store->namespaces, family->name_space),
        KVIST_KEY_BYTES);
    if (family->group == 0) {
        run->change.parent = *kv_object_parent_key(store, object);
    }
}

static void add(kv_changes_t *changes, const kvist_store_t *store, const kv_object_t *object,
    kvist_tier_t tier, bool stored)
{
    run_t *run = &changes->tiers[tier];
    const kv_family_t *family = kv_object_family(store, object);
    if (!goes_on(store, run, object, family, stored)) {
        end_run(changes, run);
        begin_run(store, run, object, family, tier, stored);
    }
    run->keys[run->change.block_count++] = kv_identity_group_key(&object->key, family->group);
}

void kv_changes_add(kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier, bool stored)
{
    add(store->changes, store, object, tier, stored);
    if (!store->polling) {
        kv_store_kick(store); /* a poll tells it */
    }
}

void kv_changes_tell(kvist_store_t *store)
{
    end_runs(store->changes);
}

void kv_changes_close(kvist_store_t *store)
{
    free(store->changes);
    store->changes = NULL;
}

void kv_embedded_store_listen(kvist_store_t *store, kvist_changed_t changed, void *context)
{
    kv_changes_close(store);
    if (changed != NULL) {
        store->changes = kv_allocate(sizeof *store->changes);
        store->changes->changed = changed;
        store->changes->context = context;
    }
}

static void tell_held(kv_changes_t *changes, const kvist_store_t *store, const kv_object_t *object)
{
    if (kv_object_on_device(store, object)) {
        add(changes, store, object, KVIST_TIER_DEVICE, true);
    }
    if (kv_object_on_host(object)) {
        add(changes, store, object, KVIST_TIER_HOST, true);
    }
    if (kv_object_on_disk(object)) {
        add(changes, store, object, KVIST_TIER_DISK, true);
    }
}

bool kv_embedded_store_held(kvist_store_t *store, uint32_t *cursor, uint32_t object_count_max,
    kvist_changed_t visit, void *context)
{
    if (store->changes != NULL) {
        kv_changes_tell(store);
    }
    kv_changes_t *changes = kv_allocate(sizeof *changes);
    changes->changed = visit;
    changes->context = context;
    uint32_t bound = kv_table_bound(store->table), left = object_count_max;
    for (; *cursor < bound && left > 0; ++*cursor, left--) {
        const kv_object_t *object = kv_table_at(store->table, *cursor);
        if ((object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) == KV_OBJECT_USED) {
            tell_held(changes, store, object);
        }
    }
    end_runs(changes);
    free(changes);
    return *cursor < bound;
}
