/* Entries of the index: what is known of an object without reading its record, as bytes.
 *
 *   o, key      an object and the place of its record
 *   s, number   a segment's life, and up to where its records have reached the index
 *   x, place    a record that is no object's place any more, and is to be marked
 *   t, key      terms of an object that changed since its record was written
 *   m, f        when the last flush was
 *   m, d        when the last drop was
 *   m, c        the index knows every record
 *   m, b        what is left of the write budget
 *
 * The byte layout is in docs/formats.md.
 * Threads: any; free of state. */
#ifndef KV_KVSTORE_INDEX_ENTRY_H
#define KV_KVSTORE_INDEX_ENTRY_H

#include "kvstore/disk/record.h"
#include "kvstore/index/index.h"

typedef struct {
    kv_record_t record;
    uint16_t segment;
    uint64_t offset; /* in the segment */
    bool renewed;    /* the record's terms are those of an entry of their own */
} kv_entry_t;

enum { KV_ENTRY_NAME_BYTES = 1 + KVIST_KEY_BYTES };
void kv_entry_name(const kvist_key_t *key, uint8_t *name_out); /* the object's key in the index */

void kv_entry_put(kv_index_batch_t *batch, const kv_entry_t *entry);
void kv_entry_delete(kv_index_batch_t *batch, const kvist_key_t *key);

/* Whether the index' key is an object's; its entry may then be read. */
bool kv_entry_is_object(const uint8_t *key, size_t key_bytes);

/* KV_CORRUPT: no entry that this program or the one before it wrote. */
kv_status_t kv_entry_read(
    const uint8_t *key, const uint8_t *value, size_t value_bytes, kv_entry_t *entry_out);

/* The place alone; false: no entry. */
bool kv_entry_place(
    const uint8_t *value, size_t value_bytes, uint16_t *segment_out, uint32_t *offset_pages_out);

typedef struct {
    kvist_key_t key;
    uint32_t expires_s, pin_until_s;
    uint8_t priority;
} kv_terms_entry_t;

void kv_terms_entry_put(kv_index_batch_t *batch, const kv_terms_entry_t *entry);
void kv_terms_entry_name(const kvist_key_t *key, uint8_t *name_out);
void kv_terms_entry_delete(kv_index_batch_t *batch, const kvist_key_t *key);

/* false: the key is not of terms, or the value is none. */
bool kv_terms_entry_read(const uint8_t *key, size_t key_bytes, const uint8_t *value,
    size_t value_bytes, kv_terms_entry_t *entry_out);

typedef struct {
    uint16_t number;
    uint64_t generation;
    uint64_t indexed_bytes; /* records below it have reached the index, or were dropped from it */
} kv_segment_entry_t;

void kv_segment_entry_put(kv_index_batch_t *batch, const kv_segment_entry_t *entry);

/* false: the key is not a segment's, or the value is none. */
bool kv_segment_entry_read(const uint8_t *key, size_t key_bytes, const uint8_t *value,
    size_t value_bytes, kv_segment_entry_t *entry_out);

typedef struct {
    uint64_t generation; /* of the segment's life */
    uint32_t offset_pages, length_pages;
    uint16_t segment;
    bool erase; /* its bytes are to be overwritten too */
} kv_note_entry_t;

void kv_note_entry_put(kv_index_batch_t *batch, const kv_note_entry_t *entry);
void kv_note_entry_delete(kv_index_batch_t *batch, const kv_note_entry_t *entry);

/* false: the key is not a note's, or the value is none. */
bool kv_note_entry_read(const uint8_t *key, size_t key_bytes, const uint8_t *value,
    size_t value_bytes, kv_note_entry_t *entry_out);

void kv_drop_entry_put(kv_index_batch_t *batch, uint64_t unix_ns);
/* The mark of an index that knows every record. */
void kv_complete_entry_put(kv_index_batch_t *batch);
void kv_complete_entry_delete(kv_index_batch_t *batch);
bool kv_complete_entry_is(const uint8_t *key, size_t key_bytes);

typedef struct {
    int64_t left_bytes; /* less than 0: overdrawn */
    uint64_t unix_ns;   /* when that was so */
} kv_budget_entry_t;

void kv_budget_entry_put(kv_index_batch_t *batch, const kv_budget_entry_t *entry);

/* false: the key is not the budget's, or the value is none. */
bool kv_budget_entry_read(const uint8_t *key, size_t key_bytes, const uint8_t *value,
    size_t value_bytes, kv_budget_entry_t *entry_out);

void kv_flush_entry_put(kv_index_batch_t *batch, uint64_t unix_ns);

#endif
