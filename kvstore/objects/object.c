/* Where an object is, who holds it, and how it goes. */
#include "kvstore/store_internal.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/disk/budget.h"
#include "kvstore/index/entry.h"
#include "kvstore/tenants.h"

#include <stdlib.h>
#include <string.h>

bool kv_object_on_device(const kvist_store_t *store, const kv_object_t *object)
{
    return object->device_slot != KV_SLOT_NONE &&
           store->device_pool.slots[object->device_slot].state == KV_SLOT_OBJECT;
}

const uint32_t *kv_object_words(const kvist_store_t *store, const kv_object_t *object)
{
    if (kv_object_on_device(store, object)) {
        return kv_pool_words(&store->device_pool, object->device_slot);
    }
    return kv_object_on_host(object) ? kv_pool_words(&store->groups[0].host_pool, object->host_slot)
                                     : NULL;
}

kvist_tier_t kv_object_tier(const kvist_store_t *store, const kv_object_t *object)
{
    if (kv_object_on_device(store, object)) {
        return KVIST_TIER_DEVICE;
    }
    return kv_object_on_host(object) ? KVIST_TIER_HOST : KVIST_TIER_DISK;
}

static bool is_dead(const kv_object_t *object)
{
    return (object->flags & KV_OBJECT_DEAD) != 0;
}

/* ---- in the pools of device and host ----
 *
 * A pool counts, for each of its slots, the objects in it that go on from that slot's object and
 * are not on their way out: those are why it must stay. Objects of groups other than the first have
 * pools of their own, in which nothing goes on from anything. */

static kv_pool_t *pool_of(kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier)
{
    return tier == KVIST_TIER_DEVICE ? &store->device_pool
                                     : &kv_object_group(store, object)->host_pool;
}

/* The object's slot in the tier's pool; KV_SLOT_NONE: it is not there. */
static uint32_t slot_of(const kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier)
{
    if (tier == KVIST_TIER_HOST) {
        return object->host_slot;
    }
    return kv_object_on_device(store, object) ? object->device_slot : KV_SLOT_NONE;
}

static bool of_first_group(const kvist_store_t *store, const kv_object_t *object)
{
    return store->group_count == 1 || kv_object_family(store, object)->group == 0;
}

/* The slot of what the object goes on from, in the same pool. */
static uint32_t parent_slot(
    const kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier)
{
    if (object->parent == KV_OBJECT_NONE || !of_first_group(store, object)) {
        return KV_SLOT_NONE;
    }
    return slot_of(store, kv_table_at(store->table, object->parent), tier);
}

uint32_t kv_object_parent_slot(const kvist_store_t *store, uint32_t number, kvist_tier_t tier)
{
    return parent_slot(store, kv_table_at(store->table, number), tier);
}

static void count_child(kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier)
{
    uint32_t parent = parent_slot(store, object, tier);
    if (parent != KV_SLOT_NONE) {
        kv_pool_add_child(pool_of(store, object, tier), parent);
    }
}

static void uncount_child(kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier)
{
    kv_pool_t *pool = pool_of(store, object, tier);
    uint32_t slot = slot_of(store, object, tier), parent = parent_slot(store, object, tier);
    if (parent != KV_SLOT_NONE && (pool->slots[slot].flags & KV_SLOT_GOING) == 0) {
        kv_pool_remove_child(pool, parent);
    }
}

/* What came before it. */
static void count_children(kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier)
{
    kv_pool_t *pool = pool_of(store, object, tier);
    uint32_t slot = slot_of(store, object, tier);
    for (uint32_t at = object->first_child; at != KV_OBJECT_NONE;) {
        const kv_object_t *child = kv_table_at(store->table, at);
        uint32_t of_child =
            of_first_group(store, child) ? slot_of(store, child, tier) : KV_SLOT_NONE;
        if (of_child != KV_SLOT_NONE && (pool->slots[of_child].flags & KV_SLOT_GOING) == 0) {
            kv_pool_add_child(pool, slot);
        }
        at = child->next_sibling;
    }
}

static void enter_pool(kvist_store_t *store, uint32_t number, kvist_tier_t tier, uint32_t slot)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    const kv_family_t *family = kv_object_family(store, object);
    const kv_slot_of_t of = {
        .key_hash = kv_get_u32(object->key.bytes),
        .position = object->position,
        .priority = (kvist_priority_t)family->priority,
        .tenant = family->tenant,
    };
    kv_pool_set_object(pool_of(store, object, tier), slot, number, &of);
}

static void entered(kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier)
{
    if (!is_dead(object)) {
        count_child(store, object, tier);
        if (of_first_group(store, object)) {
            count_children(store, object, tier);
        }
        kv_changes_note(store, object, tier, true);
    }
}

void kv_object_enter_device(kvist_store_t *store, uint32_t number, uint32_t slot)
{
    kv_object_t *object = kv_table_at(store->table, number);
    enter_pool(store, number, KVIST_TIER_DEVICE, slot);
    object->device_slot = slot;
    entered(store, object, KVIST_TIER_DEVICE);
}

void kv_object_enter_host(kvist_store_t *store, uint32_t number, uint32_t slot)
{
    kv_object_t *object = kv_table_at(store->table, number);
    enter_pool(store, number, KVIST_TIER_HOST, slot);
    object->host_slot = slot;
    entered(store, object, KVIST_TIER_HOST);
}

void kv_object_set_going(kvist_store_t *store, uint32_t number, kvist_tier_t tier)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    uncount_child(store, object, tier);
    pool_of(store, object, tier)->slots[slot_of(store, object, tier)].flags |= KV_SLOT_GOING;
}

static void hold_in(kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier)
{
    uint32_t slot = slot_of(store, object, tier);
    if (slot == KV_SLOT_NONE) {
        return;
    }
    kv_pool_t *pool = pool_of(store, object, tier);
    kv_pool_hold(pool, slot);
    if ((pool->slots[slot].flags & KV_SLOT_GOING) != 0) { /* it stays */
        pool->slots[slot].flags &= (uint8_t)~KV_SLOT_GOING;
        count_child(store, object, tier);
    }
}

void kv_object_hold(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    if (object->reference_count++ == 0) {
        hold_in(store, object, KVIST_TIER_DEVICE);
        hold_in(store, object, KVIST_TIER_HOST);
    }
}

void kv_object_release(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    KV_CHECK(object->reference_count > 0);
    if (--object->reference_count > 0) {
        return;
    }
    if (store->disk != NULL) {
        kv_reclaim_unblock(store);
    }
    if (is_dead(object)) {
        kv_object_settle(store, number);
        return;
    }
    object->used_s = kv_store_now_s(store);
    kv_object_list(store, number);
}

void kv_object_list(kvist_store_t *store, uint32_t number)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    kvist_priority_t priority = (kvist_priority_t)kv_object_family(store, object)->priority;
    if (kv_object_on_device(store, object)) {
        kv_pool_release(&store->device_pool, object->device_slot, priority);
    }
    if (kv_object_on_host(object)) {
        kv_pool_release(&kv_object_group(store, object)->host_pool, object->host_slot, priority);
    }
}

void kv_object_expect(kvist_store_t *store, uint32_t number, uint32_t expected_s)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    uint32_t now_s = kv_store_now_s(store);
    if (kv_object_on_device(store, object)) {
        kv_pool_expect(&store->device_pool, object->device_slot, expected_s, now_s);
    }
    if (kv_object_on_host(object)) {
        kv_pool_expect(
            &kv_object_group(store, object)->host_pool, object->host_slot, expected_s, now_s);
    }
}

void kv_object_end_promise(kvist_store_t *store, uint32_t number)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    for (kvist_tier_t tier = KVIST_TIER_DEVICE; tier <= KVIST_TIER_HOST; tier++) {
        uint32_t slot = slot_of(store, object, tier);
        if (slot != KV_SLOT_NONE) {
            kv_pool_end_promise(pool_of(store, object, tier), slot);
        }
    }
}

void kv_object_note_victim(kvist_store_t *store, uint32_t number, kvist_tier_t tier)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    pool_of(store, object, tier)->slots[slot_of(store, object, tier)].flags |= KV_SLOT_VICTIM;
    store->stats.tiers[tier].evicted_objects++;
}

void kv_object_leave_device(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    KV_CHECK(kv_object_on_device(store, object) && (object->flags & KV_OBJECT_BUSY) == 0);
    if (!is_dead(object)) { /* else that was told when it was dropped */
        kv_changes_note(store, object, KVIST_TIER_DEVICE, false);
        uncount_child(store, object, KVIST_TIER_DEVICE);
    }
    kv_pool_give(&store->device_pool, object->device_slot);
    object->device_slot = KV_SLOT_NONE;
}

void kv_object_leave_host(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    KV_CHECK(kv_object_on_host(object));
    if (!is_dead(object)) {
        kv_changes_note(store, object, KVIST_TIER_HOST, false);
        uncount_child(store, object, KVIST_TIER_HOST);
    }
    kv_pool_give(&kv_object_group(store, object)->host_pool, object->host_slot);
    object->host_slot = KV_SLOT_NONE;
}

/* ---- lists of a segment's objects ----
 *
 * A list has one direction. Leaving from its front is done at once; from elsewhere an object only
 * counts as left (its offset_pages then says which segment's list it is on), and its number is not
 * free. When a quarter of a list has left, all of those are taken out together. */

enum { LEFT_COUNT_MIN = 16 };

static bool has_left(const kv_object_t *object, uint32_t segment)
{
    return object->segment != segment;
}

static void sweep_list(kvist_store_t *store, uint32_t number)
{
    kv_segment_t *segment = &store->disk->segments.items[number];
    for (uint32_t *link = &segment->first_object; *link != KV_OBJECT_NONE;) {
        uint32_t at = *link;
        kv_object_t *object = kv_table_at(store->table, at);
        if (!has_left(object, number)) {
            link = &object->segment_next;
            continue;
        }
        *link = object->segment_next;
        object->segment_next = KV_OBJECT_NONE;
        object->disk_flags &= ~KV_DISK_LISTED;
        segment->listed_count--;
        segment->left_count--;
        kv_object_settle(store, at);
    }
}

void kv_object_enter_list(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    kv_segment_t *segment = &store->disk->segments.items[object->segment];
    object->segment_next = segment->first_object;
    object->disk_flags |= KV_DISK_LISTED;
    segment->first_object = number;
    segment->listed_count++;
}

/* The object's place is still known; it is forgotten after this. */
static void leave_list(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    uint32_t place = object->segment;
    object->segment = KV_SEGMENT_NONE;
    if ((object->disk_flags & KV_DISK_LISTED) == 0) {
        return; /* its segment is being emptied */
    }
    kv_segment_t *segment = &store->disk->segments.items[place];
    segment->left_count++;
    object->offset_pages = place;
    if (segment->first_object == number) {
        segment->first_object = object->segment_next;
        object->segment_next = KV_OBJECT_NONE;
        object->disk_flags &= ~KV_DISK_LISTED;
        segment->listed_count--;
        segment->left_count--;
    } else if (segment->left_count > LEFT_COUNT_MIN + segment->listed_count / 4) {
        sweep_list(store, place);
    }
}

void kv_object_clear_list(kvist_store_t *store, uint32_t number)
{
    kv_segment_t *segment = &store->disk->segments.items[number];
    sweep_list(store, number);
    while (segment->first_object != KV_OBJECT_NONE) {
        kv_object_t *object = kv_table_at(store->table, segment->first_object);
        segment->first_object = object->segment_next;
        object->segment_next = KV_OBJECT_NONE;
        object->disk_flags &= ~KV_DISK_LISTED;
    }
    segment->listed_count = 0;
}

/* ---- on disk ---- */

static bool on_disk_or_coming(const kv_object_t *object)
{
    return kv_object_on_disk(object) ||
           (object->flags & (KV_OBJECT_QUEUED | KV_OBJECT_WRITING)) != 0;
}

bool kv_object_has_child_on_disk(const kvist_store_t *store, const kv_object_t *object)
{
    uint32_t child = object->first_child;
    while (child != KV_OBJECT_NONE && !on_disk_or_coming(kv_table_at(store->table, child))) {
        child = kv_table_at(store->table, child)->next_sibling;
    }
    return child != KV_OBJECT_NONE;
}

static uint64_t *class_bytes(const kvist_store_t *store, const kv_object_t *object)
{
    return &store->disk->class_bytes[kv_object_family(store, object)->priority];
}

void kv_object_leave_disk(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    kv_changes_note(store, object, KVIST_TIER_DISK, false);
    kv_entry_delete(&store->disk->filling, &object->key);
    /* What the key is destroyed of needs no overwriting. */
    bool unreadable =
        (object->disk_flags & KV_DISK_SEALED) != 0 && (object->disk_flags & KV_DISK_KEYLESS) != 0;
    kv_mark_queue(store, object->segment, object->offset_pages, object->length_pages,
        (object->flags & KV_OBJECT_ERASE) != 0 && !unreadable);
    if ((object->flags & KV_OBJECT_RENEWED) != 0) {
        kv_terms_entry_delete(&store->disk->filling, &object->key);
        object->flags &= ~KV_OBJECT_RENEWED;
    }
    if ((object->disk_flags & KV_DISK_STAYS) != 0) {
        kv_reclaim_erase(store, number);
    }
    leave_list(store, number);
    kvist_tier_stats_t *stats = &store->stats.tiers[KVIST_TIER_DISK];
    stats->used_bytes -= (uint64_t)object->length_pages * KV_PAGE_BYTES;
    stats->object_count--;
    *class_bytes(store, object) -= (uint64_t)object->length_pages * KV_PAGE_BYTES;
    kv_tenants_note_disk(store, object, false);
    if ((object->disk_flags & KV_DISK_SEALED) != 0) {
        store->stats.encrypted_objects--;
    }
    object->disk_flags &= ~(KV_DISK_ADMITTED | KV_DISK_SEALED);
    store->stats.unsaved_objects++;
}

void kv_object_enter_disk(kvist_store_t *store, uint32_t number, uint16_t segment,
    uint32_t offset_pages, uint16_t length_pages, bool sealed)
{
    kv_object_t *object = kv_table_at(store->table, number);
    KV_CHECK(!kv_object_on_disk(object));
    if ((object->disk_flags & KV_DISK_LISTED) != 0) {
        sweep_list(store, object->offset_pages);
    }
    object->segment = segment;
    object->offset_pages = offset_pages;
    object->length_pages = length_pages;
    object->disk_flags &= ~KV_DISK_ASKED;
    if (sealed) {
        object->disk_flags |= KV_DISK_SEALED;
        store->stats.encrypted_objects++;
    }
    kv_object_enter_list(store, number);
    kvist_tier_stats_t *stats = &store->stats.tiers[KVIST_TIER_DISK];
    stats->used_bytes += (uint64_t)length_pages * KV_PAGE_BYTES;
    stats->object_count++;
    *class_bytes(store, object) += (uint64_t)length_pages * KV_PAGE_BYTES;
    kv_tenants_note_disk(store, object, true);
    kv_budget_settle(store, object);
    object->disk_flags |= KV_DISK_ADMITTED;
    object->disk_flags &= ~(KV_DISK_REFUSED | KV_DISK_GIVEN_UP);
    store->stats.unsaved_objects--;
    kv_changes_note(store, object, KVIST_TIER_DISK, true);
}

void kv_object_move_disk(kvist_store_t *store, uint32_t number, uint16_t segment,
    uint32_t offset_pages, uint16_t length_pages)
{
    kv_object_t *object = kv_table_at(store->table, number);
    KV_CHECK(kv_object_on_disk(object) && (object->disk_flags & KV_DISK_LISTED) == 0);
    object->segment = segment;
    object->offset_pages = offset_pages;
    object->length_pages = length_pages;
    object->disk_flags &= ~KV_DISK_ASKED; /* KV_DISK_STAYS: until the old segment's life ends */
    kv_object_enter_list(store, number);
}

void kv_object_settle(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    if (!is_dead(object) || object->reference_count > 0 || (object->flags & KV_OBJECT_BUSY) != 0) {
        return;
    }
    if (object->device_slot != KV_SLOT_NONE && !kv_object_on_device(store, object)) {
        return; /* being loaded; the load's end comes here again */
    }
    if ((object->flags & KV_OBJECT_ERASE) != 0) {
        kv_drop_erase_memory(store, number);
        return;
    }
    if ((object->flags & KV_OBJECT_QUEUED) != 0) {
        return;
    }
    if (object->device_slot != KV_SLOT_NONE) {
        kv_object_leave_device(store, number);
    }
    if (kv_object_on_host(object)) {
        kv_object_leave_host(store, number);
    }
    if ((object->disk_flags & KV_DISK_LISTED) == 0) {
        kv_table_free(store->table, number);
    }
}

/* One object without children. */
static void drop_leaf(kvist_store_t *store, uint32_t number, kv_gone_t gone)
{
    kv_object_t *object = kv_table_at(store->table, number);
    kv_why_gone(store, object, gone);
    if (kv_object_on_disk(object)) {
        kv_object_leave_disk(store, number);
    } else if ((object->flags & KV_OBJECT_WRITING) != 0) {
        /* One may be on its way to the index. */
        kv_entry_delete(&store->disk->filling, &object->key);
    }
    kv_budget_settle(store, object);
    kv_budget_object_gone(store, object);
    store->stats.unsaved_objects--; /* it was unsaved, or has just become so */
    if (kv_object_on_device(store, object)) {
        kv_changes_note(store, object, KVIST_TIER_DEVICE, false);
        uncount_child(store, object, KVIST_TIER_DEVICE);
        kv_pool_unlist(&store->device_pool, object->device_slot);
    }
    if (kv_object_on_host(object)) {
        kv_changes_note(store, object, KVIST_TIER_HOST, false);
        uncount_child(store, object, KVIST_TIER_HOST);
        kv_pool_unlist(&kv_object_group(store, object)->host_pool, object->host_slot);
    }
    kv_fill_note_dropped(store, &object->key);
    kv_table_unlink(store->table, number);
    kv_object_settle(store, number);
}

void kv_object_drop(kvist_store_t *store, uint32_t number, kv_gone_t gone)
{
    if (is_dead(kv_table_at(store->table, number))) {
        return;
    }
    /* Down to a leaf, drop it, go on from its parent: no list, no recursion. */
    uint32_t at = number;
    for (;;) {
        kv_object_t *object = kv_table_at(store->table, at);
        if (object->first_child != KV_OBJECT_NONE) {
            at = object->first_child;
            continue;
        }
        uint32_t parent = object->parent;
        drop_leaf(store, at, gone);
        if (at == number) {
            return;
        }
        at = parent;
    }
}

static bool in_any_tier(const kvist_store_t *store, const kv_object_t *object)
{
    return kv_object_on_device(store, object) || kv_object_on_host(object) ||
           kv_object_on_disk(object);
}

static uint32_t forget_copy(
    kvist_store_t *store, uint32_t number, kvist_tier_t tier, const char *what)
{
    kv_object_t *object = kv_table_at(store->table, number);
    if (store->disk != NULL) {
        store->disk->sync_index = true;
    }
    if (tier == KVIST_TIER_DISK) {
        kv_object_leave_disk(store, number);
    } else if ((object->flags & KV_OBJECT_BUSY) == 0) {
        kv_object_leave_host(store, number);
    }
    if (in_any_tier(store, object)) {
        return 1;
    }
    kv_log_warn("store", "%s: dropped with its descendants tier %s position %u", what,
        kvist_tier_name(tier), (uint32_t)object->position);
    uint32_t count = kv_table_count(store->table);
    kv_object_drop(store, number, KV_GONE_DAMAGED);
    return count - kv_table_count(store->table);
}

uint32_t kv_object_forget_copy(kvist_store_t *store, uint32_t number, kvist_tier_t tier)
{
    if (is_dead(kv_table_at(store->table, number))) {
        return 0;
    }
    store->stats.damaged_objects++;
    return forget_copy(store, number, tier, "stored block damaged");
}

uint32_t kv_object_forget_keyless(kvist_store_t *store, uint32_t number)
{
    if (is_dead(kv_table_at(store->table, number))) {
        return 0;
    }
    store->stats.keyless_objects++;
    return forget_copy(store, number, KVIST_TIER_DISK, "stored block's key is gone");
}

const kvist_key_t *kv_object_parent_key(const kvist_store_t *store, const kv_object_t *object)
{
    const kv_family_t *family = kv_object_family(store, object);
    if (family->group > 0) {
        object = kv_table_at(store->table, object->parent);
    }
    if (object->parent != KV_OBJECT_NONE) {
        return &kv_table_at(store->table, object->parent)->key;
    }
    return (const kvist_key_t *)(const void *)kv_names_at(&store->namespaces, family->name_space);
}

void kv_object_describe(const kvist_store_t *store, const kv_object_t *object, kv_record_t *record)
{
    const kv_family_t *family = kv_object_family(store, object);
    *record = (kv_record_t){
        .key = object->key,
        .parent = *kv_object_parent_key(store, object),
        .position = object->position,
        .used_unix_ns = (uint64_t)object->used_s * KV_NS_PER_S,
        .expires_s = object->expires_s,
        .pin_until_s = object->pin_until_s,
        .priority = family->priority,
        .group = family->group,
    };
    memcpy(record->name_space.bytes, kv_names_at(&store->namespaces, family->name_space),
        KVIST_KEY_BYTES);
    memcpy(record->origin, kv_names_at(&store->origins, family->origin), KV_ORIGIN_BYTES);
    memcpy(record->arithmetic, kv_names_at(&store->arithmetics, family->arithmetic),
        KV_ARITHMETIC_BYTES);
    memcpy(record->tenant, kv_names_at(&store->tenants, family->tenant), KV_TENANT_BYTES);
}

int kv_family_number(kvist_store_t *store, const kv_record_t *like)
{
    int name_space = kv_names_number(&store->namespaces, like->name_space.bytes);
    int tenant = kv_names_number(&store->tenants, like->tenant);
    int arithmetic = kv_names_number(&store->arithmetics, like->arithmetic);
    int origin = kv_names_number(&store->origins, like->origin);
    if (name_space == KV_NAMES_FULL || tenant == KV_NAMES_FULL || arithmetic == KV_NAMES_FULL ||
        origin == KV_NAMES_FULL) {
        return KV_NAMES_FULL;
    }
    kv_family_t family = {(uint16_t)name_space, (uint16_t)tenant, (uint8_t)arithmetic,
        (uint8_t)origin, like->priority, like->group};
    return kv_names_number(&store->families, &family);
}
