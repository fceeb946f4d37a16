#include "kvstore/index/take.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/terms.h"

#include <stdlib.h>
#include <string.h>

void kv_take_init(kvist_store_t *store, kv_taking_t *taking_out)
{
    *taking_out = (kv_taking_t){.store = store};
    kv_names_init(&taking_out->dropped, KVIST_KEY_BYTES, UINT32_MAX);
}

void kv_take_release(kv_taking_t *taking)
{
    kv_names_destroy(&taking->dropped);
    free(taking->later);
}

void kv_take_note_dropped(kv_taking_t *taking, const kvist_key_t *key)
{
    kv_names_number(&taking->dropped, key->bytes);
}

/* ---- one entry ---- */

typedef enum {
    TAKEN,     /* this is the object's place now */
    PUT_OFF,   /* the object is being written: later */
    PLACELESS, /* the record is no object's */
    STALE,     /* there is no such record */
    REFUSED,   /* not of this store's layout, or there is no memory */
} outcome_t;

/* What the object descends from: the previous block, or its own block on the spine. */
static kvist_key_t parent_object_key(const kv_record_t *record)
{
    return record->group > 0 ? kv_identity_group_key(&record->key, record->group) : record->parent;
}

static bool has_parent(const kv_record_t *record)
{
    return record->position > 0 || record->group > 0;
}

static uint32_t parent_position(uint32_t position, uint32_t group)
{
    return position - (group > 0 ? 0 : 1);
}

static bool place_is_good(const kv_segments_t *segments, const kv_entry_t *entry)
{
    if (entry->segment >= segments->count) {
        return false;
    }
    const kv_segment_t *segment = &segments->items[entry->segment];
    return (segment->state == KV_SEGMENT_FULL || segment->state == KV_SEGMENT_OPEN) &&
           segment->generation == entry->record.generation &&
           entry->offset >= KV_SEGMENT_HEADER_BYTES &&
           entry->offset + entry->record.stored_bytes <= segments->segment_bytes;
}

static bool was_dropped(const kv_taking_t *taking, const kv_record_t *record)
{
    if (taking->dropped.count == 0) {
        return false;
    }
    kvist_key_t parent = parent_object_key(record);
    return kv_names_find(&taking->dropped, record->key.bytes) != KV_NAMES_FULL ||
           (has_parent(record) && kv_names_find(&taking->dropped, parent.bytes) != KV_NAMES_FULL);
}

void kv_take_drop_children(kvist_store_t *store, uint32_t number)
{
    uint32_t child;
    while ((child = kv_table_at(store->table, number)->first_child) != KV_OBJECT_NONE) {
        kv_object_drop(store, child, KV_GONE_FROM_DISK);
    }
}

/* What waited for this one, which will not come. */
static void drop_waiting(kv_taking_t *taking, const kvist_key_t *key)
{
    uint32_t number = kv_table_expect(taking->store->table, key);
    if (number != KV_OBJECT_NONE) {
        kv_take_drop_children(taking->store, number);
        kv_table_forget_absent(taking->store->table, number);
    }
}

static void enter_disk(kvist_store_t *store, uint32_t number, const kv_entry_t *entry)
{
    kv_object_enter_disk(store, number, entry->segment, (uint32_t)(entry->offset / KV_PAGE_BYTES),
        (uint16_t)(entry->record.stored_bytes / KV_PAGE_BYTES), entry->record.sealed);
}

/* The object that the new one descends from, perhaps absent yet. KV_OBJECT_NONE: it cannot. */
static uint32_t find_parent(kvist_store_t *store, const kv_record_t *record)
{
    kvist_key_t key = parent_object_key(record);
    uint32_t number = kv_table_expect(store->table, &key);
    if (number == KV_OBJECT_NONE) {
        return KV_OBJECT_NONE;
    }
    kv_object_t *parent = kv_table_at(store->table, number);
    uint32_t position = parent_position(record->position, record->group);
    if ((parent->flags & KV_OBJECT_ABSENT) != 0) {
        if (parent->first_child == KV_OBJECT_NONE) {
            parent->position = position;
        }
    } else if (kv_object_family(store, parent)->group > 0) {
        return KV_OBJECT_NONE;
    }
    return parent->position == position ? number : KV_OBJECT_NONE;
}

static outcome_t take_new(
    kvist_store_t *store, const kv_entry_t *entry, int family, uint32_t wanted)
{
    const kv_record_t *record = &entry->record;
    uint32_t parent = has_parent(record) ? find_parent(store, record) : KV_OBJECT_NONE;
    if (has_parent(record) && parent == KV_OBJECT_NONE) {
        return PLACELESS; /* it contradicts what is known */
    }
    uint32_t number = kv_table_insert_at(store->table, &record->key, wanted);
    if (number == KV_OBJECT_NONE) {
        return REFUSED;
    }
    kv_object_t *object = kv_table_at(store->table, number);
    object->position = record->position;
    object->family = (uint16_t)family;
    object->used_s = (uint32_t)(record->used_unix_ns / KV_NS_PER_S);
    object->expires_s = record->expires_s;
    object->pin_until_s = record->pin_until_s;
    store->stats.unsaved_objects++;
    kv_sweep_note(store, record->expires_s, record->pin_until_s);
    object->flags |= entry->renewed ? KV_OBJECT_RENEWED : 0;
    if (parent != KV_OBJECT_NONE) {
        kv_table_adopt(store->table, parent, number);
    }
    enter_disk(store, number, entry);
    if (object->first_child != KV_OBJECT_NONE) { /* they waited for it, at this position? */
        const kv_object_t *child = kv_table_at(store->table, object->first_child);
        uint32_t group = kv_object_family(store, child)->group;
        if (record->group > 0 || parent_position(child->position, group) != record->position) {
            kv_take_drop_children(store, number);
        }
    }
    return TAKEN;
}

/* The table has the key: of two records the younger is the object's place. */
static outcome_t take_known(
    kv_taking_t *taking, uint32_t number, const kv_entry_t *entry, int family)
{
    kvist_store_t *store = taking->store;
    kv_object_t *object = kv_table_at(store->table, number);
    if (kv_object_on_disk(object)) {
        uint64_t generation = store->disk->segments.items[object->segment].generation;
        uint64_t offset = (uint64_t)object->offset_pages * KV_PAGE_BYTES;
        if (generation == entry->record.generation && offset == entry->offset) {
            return TAKEN;
        }
        if (generation > entry->record.generation ||
            (generation == entry->record.generation && offset > entry->offset)) {
            return PLACELESS;
        }
        kv_object_leave_disk(store, number);
        enter_disk(store, number, entry);
        kv_entry_put(&store->disk->filling, entry);
        return TAKEN;
    }
    if (object->family != family) { /* bytes made otherwise replace it */
        kv_entry_delete(&store->disk->filling, &object->key);
        return PLACELESS;
    }
    enter_disk(store, number, entry);
    object->flags |= entry->renewed ? KV_OBJECT_RENEWED : 0;
    kv_terms_settle(store, number, &entry->record);
    return TAKEN;
}

static void put_off(kv_taking_t *taking, const kv_entry_t *entry)
{
    if (taking->later_count == taking->later_capacity) {
        taking->later_capacity = taking->later_capacity > 0 ? 2 * taking->later_capacity : 16;
        taking->later = kv_reallocate(taking->later, taking->later_capacity, sizeof *taking->later);
    }
    taking->later[taking->later_count++] = *entry;
}

static outcome_t take(kv_taking_t *taking, const kv_entry_t *entry, uint32_t wanted)
{
    kvist_store_t *store = taking->store;
    const kv_record_t *record = &entry->record;
    if (!place_is_good(&store->disk->segments, entry)) {
        return STALE;
    }
    int family = kv_family_number(store, record);
    if (family == KV_NAMES_FULL || record->group >= store->group_count) {
        return REFUSED;
    }
    uint32_t number = kv_table_find(store->table, &record->key);
    if (number == KV_OBJECT_NONE) {
        return was_dropped(taking, record) ? PLACELESS : take_new(store, entry, family, wanted);
    }
    if ((kv_table_at(store->table, number)->flags & KV_OBJECT_WRITING) != 0) {
        put_off(taking, entry);
        return PUT_OFF;
    }
    return take_known(taking, number, entry, family);
}

/* The record stays nobody's: so that nothing takes it for an object's again. */
static void discard(kv_taking_t *taking, const kv_entry_t *entry, outcome_t outcome)
{
    kvist_store_t *store = taking->store;
    const kvist_key_t *key = &entry->record.key;
    taking->discarded++;
    if (outcome == PLACELESS && !kv_mark_pending(store, entry->segment, entry->offset)) {
        kv_mark_queue(store, entry->segment, (uint32_t)(entry->offset / KV_PAGE_BYTES),
            (uint32_t)(entry->record.stored_bytes / KV_PAGE_BYTES), false);
    }
    if (outcome != REFUSED && kv_table_find(store->table, key) == KV_OBJECT_NONE) {
        kv_entry_delete(&store->disk->filling, key);
        if (entry->renewed) {
            kv_terms_entry_delete(&store->disk->filling, key);
        }
        if (outcome == PLACELESS) {
            kv_take_note_dropped(taking, key);
            drop_waiting(taking, key);
        }
    }
}

void kv_take_entry(kv_taking_t *taking, const kv_entry_t *entry, uint32_t wanted)
{
    outcome_t outcome = take(taking, entry, wanted);
    bool away = outcome == STALE && kv_disks_away(taking->store->disk, entry->segment);
    if (outcome != TAKEN && outcome != PUT_OFF && !away) {
        discard(taking, entry, outcome);
    }
}

void kv_take_renew(kv_entry_t *entry, const kv_terms_entry_t *terms)
{
    entry->renewed = true;
    entry->record.expires_s = terms->expires_s;
    entry->record.pin_until_s = terms->pin_until_s;
    entry->record.priority = terms->priority;
}

static void visit_terms_of(
    void *context, const uint8_t *name, size_t name_bytes, const uint8_t *value, size_t value_bytes)
{
    kv_terms_entry_t terms;
    if (kv_terms_entry_read(name, name_bytes, value, value_bytes, &terms)) {
        kv_take_renew(context, &terms);
    }
}

/* What changed since the record was written. */
static void look_up_terms(kv_taking_t *taking, kv_entry_t *entry)
{
    kv_index_t *index = taking->store->disk->index;
    uint8_t name[KV_ENTRY_NAME_BYTES];
    kv_error_t error;
    kv_terms_entry_name(&entry->record.key, name);
    if (taking->any_terms &&
        index->ops->get(index, name, sizeof name, 1, visit_terms_of, entry, &error) != KV_OK) {
        kv_log_warn("store", "%s: a block's terms are those of its record", error.text);
    }
}

void kv_take_record(kv_taking_t *taking, const kv_entry_t *entry)
{
    kvist_store_t *store = taking->store;
    if (kv_mark_pending(store, entry->segment, entry->offset)) {
        return;
    }
    kv_entry_t renewed = *entry;
    look_up_terms(taking, &renewed);
    outcome_t outcome = take(taking, &renewed, KV_OBJECT_NONE);
    if (outcome == TAKEN) {
        kv_entry_put(&store->disk->filling, &renewed);
    } else if (outcome == PLACELESS) {
        discard(taking, &renewed, outcome);
    }
}

bool kv_take_later(kv_taking_t *taking)
{
    uint32_t count = taking->later_count;
    taking->later_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        kv_entry_t entry = taking->later[i];
        outcome_t outcome = take(taking, &entry, KV_OBJECT_NONE);
        if (outcome == TAKEN) {
            kv_entry_put(&taking->store->disk->filling, &entry);
        } else if (outcome != PUT_OFF) {
            discard(taking, &entry, outcome);
        }
    }
    return taking->later_count == 0;
}

/* ---- looking up what is not there yet ---- */

typedef struct {
    kv_taking_t *taking;
    kv_entry_t entry; /* taken when its terms, which follow it, are known */
    bool there;
} looked_up_t;

static void take_looked_up(looked_up_t *found)
{
    if (found->there) {
        take(found->taking, &found->entry, KV_OBJECT_NONE); /* what is refused here comes again */
        found->there = false;
    }
}

static void visit_looked_up(
    void *context, const uint8_t *name, size_t name_bytes, const uint8_t *value, size_t value_bytes)
{
    looked_up_t *found = context;
    kv_terms_entry_t terms;
    if (kv_entry_is_object(name, name_bytes)) {
        take_looked_up(found);
        found->there = kv_entry_read(name, value, value_bytes, &found->entry) == KV_OK;
    } else if (found->there && kv_terms_entry_read(name, name_bytes, value, value_bytes, &terms) &&
               kv_key_equal(&terms.key, &found->entry.record.key)) {
        kv_take_renew(&found->entry, &terms);
    }
}

void kv_take_look_up(kv_taking_t *taking, const kvist_key_t *keys, uint32_t count)
{
    kvist_store_t *store = taking->store;
    uint8_t names[2 * KV_FILL_LOOK_UP_MAX * KV_ENTRY_NAME_BYTES], *end = names;
    KV_CHECK(count <= KV_FILL_LOOK_UP_MAX);
    for (uint32_t i = 0; i < count; i++) {
        if (kv_table_find(store->table, &keys[i]) != KV_OBJECT_NONE) {
            continue;
        }
        kv_entry_name(&keys[i], end);
        end += KV_ENTRY_NAME_BYTES;
        if (taking->any_terms) {
            kv_terms_entry_name(&keys[i], end);
            end += KV_ENTRY_NAME_BYTES;
        }
    }
    kv_index_t *index = store->disk->index;
    kv_error_t error;
    looked_up_t found = {.taking = taking};
    kv_status_t status = index->ops->get(index, names, KV_ENTRY_NAME_BYTES,
        (size_t)(end - names) / KV_ENTRY_NAME_BYTES, visit_looked_up, &found, &error);
    take_looked_up(&found);
    if (status != KV_OK) {
        kv_log_warn("store", "%s: a match may find less than there is", error.text);
    }
}
