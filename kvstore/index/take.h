/* Taking into the table what was read from the index, or from a record: one entry at a time, by the
 * rules of fill.h.
 *
 * Owns: the keys that were dropped since the opening, and entries that are put off.
 * Threads: the store's. */
#ifndef KV_KVSTORE_INDEX_TAKE_H
#define KV_KVSTORE_INDEX_TAKE_H

#include "kvstore/store_internal.h"

typedef struct {
    kvist_store_t *store;
    bool any_terms;     /* the index has terms of objects */
    kv_names_t dropped; /* keys, since the opening */
    kv_entry_t *later;  /* of objects that were just being written */
    uint32_t later_count, later_capacity;
    uint64_t discarded; /* entries and objects that did not stay */
} kv_taking_t;

void kv_take_init(kvist_store_t *store, kv_taking_t *taking_out);
void kv_take_release(kv_taking_t *taking);

/* From the index, its terms included; under the wanted number, if that is free. */
void kv_take_entry(kv_taking_t *taking, const kv_entry_t *entry, uint32_t wanted);

/* From a record that the index does not know: it learns it. */
void kv_take_record(kv_taking_t *taking, const kv_entry_t *entry);

/* Entries of objects that were being written when they were met. false: some still are. */
bool kv_take_later(kv_taking_t *taking);

/* Takes what the index has of these keys, KV_FILL_LOOK_UP_MAX at most, parents first. */
void kv_take_look_up(kv_taking_t *taking, const kvist_key_t *keys, uint32_t count);

/* Gives an entry the terms that changed since its record was written. */
void kv_take_renew(kv_entry_t *entry, const kv_terms_entry_t *terms);

void kv_take_note_dropped(kv_taking_t *taking, const kvist_key_t *key);
void kv_take_drop_children(kvist_store_t *store, uint32_t number);

#endif
