#include "kvstore/terms.h"

#include "kvstore/store_internal.h"

uint32_t kv_terms_expiry_s(uint64_t unix_ns)
{
    uint64_t seconds = unix_ns / KV_NS_PER_S;
    if (unix_ns > 0 && seconds == 0) {
        return 1;
    }
    return seconds < UINT32_MAX ? (uint32_t)seconds : UINT32_MAX;
}

uint32_t kv_terms_pin_s(uint64_t unix_ns)
{
    uint64_t seconds = unix_ns / KV_NS_PER_S + (unix_ns % KV_NS_PER_S > 0);
    return seconds < UINT32_MAX ? (uint32_t)seconds : UINT32_MAX;
}

/* ---- into the index ---- */

static void put_entry(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    kv_sweep_note(store, object->expires_s, object->pin_until_s);
    if (!kv_object_on_disk(object)) {
        return; /* its record will say them */
    }
    object->flags |= KV_OBJECT_RENEWED;
    kv_terms_entry_put(
        &store->disk->filling, &(kv_terms_entry_t){object->key, object->expires_s,
                                   object->pin_until_s, kv_object_family(store, object)->priority});
    kv_store_kick(store);
}

void kv_terms_settle(kvist_store_t *store, uint32_t number, const kv_record_t *written)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    if (object->expires_s != written->expires_s || object->pin_until_s != written->pin_until_s ||
        kv_object_family(store, object)->priority != written->priority) {
        put_entry(store, number);
    }
}

/* ---- changes ---- */

/* Into the priority's family; where there can be no more families it stays in its own. true: it
 * changed. */
static bool set_priority(kvist_store_t *store, kv_object_t *object, uint8_t priority)
{
    kv_family_t family = *kv_object_family(store, object);
    family.priority = priority;
    int number = kv_names_number(&store->families, &family);
    if (number == KV_NAMES_FULL || number == object->family) {
        return false;
    }
    if (kv_object_on_disk(object)) {
        uint64_t bytes = (uint64_t)object->length_pages * KV_PAGE_BYTES;
        store->disk->class_bytes[kv_object_family(store, object)->priority] -= bytes;
        store->disk->class_bytes[priority] += bytes;
    }
    object->family = (uint16_t)number;
    return true;
}

/* Raises one object to what a descendant has. true: something changed. */
static bool raise(kvist_store_t *store, uint32_t number, uint32_t pin_until_s, uint8_t priority)
{
    kv_object_t *object = kv_table_at(store->table, number);
    bool changed = false;
    if (object->pin_until_s < pin_until_s) {
        object->pin_until_s = pin_until_s;
        changed = true;
    }
    if (kv_object_family(store, object)->priority > priority &&
        set_priority(store, object, priority)) {
        changed = true;
        if (object->reference_count == 0) {
            kv_object_list(store, number);
        }
    }
    if (changed) {
        put_entry(store, number);
    }
    return changed;
}

void kv_terms_inherit(kvist_store_t *store, uint32_t number)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    uint8_t priority = kv_object_family(store, object)->priority;
    uint32_t at = object->parent;
    /* Above one that is good enough all are. */
    while (at != KV_OBJECT_NONE && raise(store, at, object->pin_until_s, priority)) {
        at = kv_table_at(store->table, at)->parent;
    }
}

void kv_terms_renew(kvist_store_t *store, uint32_t number, const kv_record_t *like)
{
    kv_object_t *object = kv_table_at(store->table, number);
    bool later =
        object->expires_s != 0 && (like->expires_s == 0 || like->expires_s > object->expires_s);
    bool longer = like->pin_until_s > object->pin_until_s;
    if (later) {
        object->expires_s = like->expires_s;
    }
    if (longer) {
        object->pin_until_s = like->pin_until_s;
    }
    if (later || longer) {
        put_entry(store, number);
        kv_terms_inherit(store, number);
    }
}

void kv_terms_set(kvist_store_t *store, uint32_t number, uint32_t expires_s, uint32_t pin_until_s)
{
    kv_object_t *object = kv_table_at(store->table, number);
    if (object->expires_s != expires_s || object->pin_until_s != pin_until_s) {
        object->expires_s = expires_s;
        object->pin_until_s = pin_until_s;
        kv_object_end_promise(store, number);
        put_entry(store, number);
    }
}
