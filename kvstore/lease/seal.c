/* Sealing: a block that is complete becomes an object, and can be found from then on. */
#include "kvstore/lease/lease_internal.h"

#include "base/check.h"
#include "base/memory.h"
#include "kvstore/disk/budget.h"
#include "kvstore/embedded.h"
#include "kvstore/terms.h"

#include <stdlib.h>
#include <string.h>

/* ---- objects, from wherever their bytes come ---- */

int kv_seal_family(const kvist_lease_t *lease, uint32_t group, const char *arithmetic)
{
    kv_record_t like = lease->like;
    like.group = (uint8_t)group;
    strncpy(like.arithmetic, arithmetic != NULL ? arithmetic : "", sizeof like.arithmetic - 1);
    return kv_family_number(lease->store, &like);
}

uint32_t kv_seal_new(kvist_lease_t *lease, const kvist_key_t *key, uint32_t parent,
    uint32_t position, uint32_t family)
{
    kvist_store_t *store = lease->store;
    if (position >= KVIST_CHAIN_BLOCKS_MAX) {
        return KV_OBJECT_NONE;
    }
    uint32_t number = kv_table_insert(store->table, key, parent);
    if (number == KV_OBJECT_NONE) {
        return KV_OBJECT_NONE;
    }
    kv_object_t *object = kv_table_at(store->table, number);
    object->position = position;
    object->family = (uint16_t)family;
    object->used_s = kv_store_now_s(store);
    object->expires_s = lease->like.expires_s;
    object->pin_until_s = lease->like.pin_until_s;
    if (position == 0) {
        kv_why_note_root(store, key);
    }
    kv_sweep_note(store, object->expires_s, object->pin_until_s);
    store->stats.unsaved_objects++;
    kv_budget_object_new(store, object);
    kv_terms_inherit(store, number);
    return number;
}

kvist_key_t kv_lease_key(const kvist_lease_t *lease, uint32_t block)
{
    return block < lease->held_count ? kv_table_at(lease->store->table, lease->objects[block])->key
                                     : lease->stored_keys[block - lease->held_count];
}

bool kv_lease_gone(const kvist_lease_t *lease, uint32_t block)
{
    const kv_object_t *object = kv_table_at(lease->store->table, lease->objects[block]);
    if ((object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) != KV_OBJECT_USED) {
        return true;
    }
    /* The number of a block that is not held may be another's by now. */
    kvist_key_t key = kv_lease_key(lease, block);
    return !kv_key_equal(&object->key, &key);
}

void kv_seal_append(kvist_lease_t *lease, const kvist_key_t *key, uint32_t number)
{
    lease->last_key = *key;
    lease->objects[lease->sealed_count++] = number;
    kv_match_announce(lease);
}

void kv_seal_queue(kvist_store_t *store, uint32_t number)
{
    if (store->persist == KVIST_PERSIST_EAGER && kv_persist_usable(store)) {
        kv_persist_queue(store, number);
    }
}

/* ---- from the lease's private device slots ---- */

/* The lease's private slot becomes the object's on the device. */
static void adopt_slot(kvist_store_t *store, uint32_t number, uint32_t slot, const uint32_t *words)
{
    memcpy(kv_pool_words(&store->device_pool, slot), words, store->block_words * sizeof *words);
    kv_object_enter_device(store, number, slot);
}

/* Another sequence stored the same block before. If it is on the device, this one's slot stays
 * private; else the slot becomes the object's, which keeps the device's chains whole. Bytes made by
 * other kernels replace the copies below. */
static void meet_object(
    kvist_store_t *store, uint32_t number, uint32_t family, uint32_t slot, const uint32_t *words)
{
    kv_object_t *object = kv_table_at(store->table, number);
    const kv_family_t *mine =
        (const kv_family_t *)(const void *)kv_names_at(&store->families, family);
    if (object->device_slot != KV_SLOT_NONE) {
        return;
    }
    bool same = kv_object_family(store, object)->arithmetic == mine->arithmetic;
    if (!same && (object->flags & KV_OBJECT_BUSY) != 0) {
        return;
    }
    if (!same) {
        if (kv_object_on_host(object)) {
            kv_object_leave_host(store, number);
        }
        if (kv_object_on_disk(object)) {
            kv_object_leave_disk(store, number);
        }
        object->family = (uint16_t)family;
    }
    adopt_slot(store, number, slot, words);
}

/* The object for the next block, or KV_OBJECT_NONE where it cannot be stored. */
static uint32_t seal_object(
    kvist_lease_t *lease, const kvist_key_t *key, const uint32_t *words, const char *arithmetic)
{
    kvist_store_t *store = lease->store;
    uint32_t block = lease->sealed_count, slot = lease->slots[block];
    uint32_t parent = block > 0 ? lease->objects[block - 1] : KV_OBJECT_NONE;
    if (block > 0 && (parent == KV_OBJECT_NONE || kv_lease_gone(lease, block - 1))) {
        return KV_OBJECT_NONE; /* without its parent it could never be found */
    }
    int family = kv_seal_family(lease, 0, arithmetic);
    if (family == KV_NAMES_FULL) {
        return KV_OBJECT_NONE;
    }
    uint32_t number = kv_match_live(store, key);
    if (number != KV_OBJECT_NONE) {
        if (!kv_match_words(store, kv_table_at(store->table, number), words)) {
            return KV_OBJECT_NONE;
        }
        meet_object(store, number, (uint32_t)family, slot, words);
        kv_terms_renew(store, number, &lease->like);
        kv_table_at(store->table, number)->disk_flags |= KV_DISK_ASKED;
        return number;
    }
    number = kv_seal_new(lease, key, parent, block, (uint32_t)family);
    if (number != KV_OBJECT_NONE) {
        store->stats.tiers[KVIST_TIER_DEVICE].written_bytes += store->groups[0].layout.object_bytes;
        adopt_slot(store, number, slot, words);
    }
    return number;
}

kv_status_t kv_seal_words(kvist_lease_t *lease, const uint32_t *words, const char *arithmetic)
{
    if (lease->state != KV_LEASE_READY || kv_embedded_lease_is_loading(lease) ||
        lease->sealed_count >= lease->slot_count ||
        (arithmetic != NULL && strlen(arithmetic) >= KV_ARITHMETIC_BYTES)) {
        return KV_INVALID;
    }
    kvist_key_t key = kv_identity_block_key(&lease->last_key, words, lease->store->block_tokens);
    uint32_t number = lease->storing ? seal_object(lease, &key, words, arithmetic) : KV_OBJECT_NONE;
    if (number != KV_OBJECT_NONE) {
        kv_object_hold(lease->store, number);
        kv_seal_queue(lease->store, number);
    }
    lease->held_count++;
    kv_seal_append(lease, &key, number);
    return KV_OK;
}

kv_status_t kv_embedded_lease_seal(
    kvist_lease_t *lease, const uint32_t *tokens, const kvist_key_t *extra, const char *arithmetic)
{
    const kvist_store_t *store = lease->store;
    uint32_t *words = kv_allocate_array(store->block_words, sizeof *words);
    kv_identity_words(tokens, extra, 1, store->block_tokens, words);
    kv_status_t status = kv_seal_words(lease, words, arithmetic);
    free(words);
    return status;
}

void kv_seal_found(kvist_lease_t *lease, const uint32_t *words, const char *arithmetic,
    kvist_priority_t priority, uint32_t expires_s)
{
    const kv_record_t like = lease->like;
    const bool storing = lease->storing;
    lease->storing = true;
    lease->like.priority = (uint8_t)priority;
    lease->like.expires_s = expires_s;
    lease->like.pin_until_s = 0; /* the promise is the other store's */
    KV_CHECK(kv_seal_words(lease, words, arithmetic) == KV_OK);
    lease->like = like;
    lease->storing = storing;
}
