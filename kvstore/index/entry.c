#include "kvstore/index/entry.h"

#include "base/bytes.h"

enum {
    VERSION = 2,
    SEGMENT_NAME_BYTES = 3,
    SEGMENT_VALUE_BYTES = 16,
    NOTE_NAME_BYTES = 7,
    NOTE_VALUE_BYTES = 13,
    TERMS_VALUE_BYTES = 12,
    BUDGET_VALUE_BYTES = 16,
};

/* Offsets in an object's value. */
enum {
    AT_VERSION = 0,
    AT_CODEC = 1,
    AT_SEGMENT = 2,
    AT_OFFSET_PAGES = 4,
    AT_GENERATION = 8,
    AT_LENGTH_PAGES = 16,
    AT_POSITION = 20,
    AT_CREATED = 24,
    AT_USED = 32,
    AT_PARENT = 40,
    AT_NAMESPACE = 72,
    AT_ORIGIN = 104,
    AT_ARITHMETIC = 136,
    VALUE_BYTES_1 = 184, /* version 1 ends here */
    AT_EXPIRES = 184,
    AT_PIN = 188,
    AT_PRIORITY = 192,
    AT_GROUP = 193,
    AT_SEALED = 194,
    AT_TENANT = 200,
    VALUE_BYTES = 232,
};

static void key_name(char kind, const kvist_key_t *key, uint8_t *name_out)
{
    name_out[0] = (uint8_t)kind;
    memcpy(name_out + 1, key->bytes, KVIST_KEY_BYTES);
}

void kv_entry_name(const kvist_key_t *key, uint8_t *name_out)
{
    key_name('o', key, name_out);
}

void kv_entry_put(kv_index_batch_t *batch, const kv_entry_t *entry)
{
    const kv_record_t *record = &entry->record;
    uint8_t name[KV_ENTRY_NAME_BYTES], value[VALUE_BYTES] = {0};
    kv_entry_name(&record->key, name);
    value[AT_VERSION] = VERSION;
    value[AT_CODEC] = (uint8_t)record->codec;
    kv_put_u16(value + AT_SEGMENT, entry->segment);
    kv_put_u32(value + AT_OFFSET_PAGES, (uint32_t)(entry->offset / KV_PAGE_BYTES));
    kv_put_u64(value + AT_GENERATION, record->generation);
    kv_put_u32(value + AT_LENGTH_PAGES, (uint32_t)(record->stored_bytes / KV_PAGE_BYTES));
    kv_put_u32(value + AT_POSITION, record->position);
    kv_put_u64(value + AT_CREATED, record->created_unix_ns);
    kv_put_u64(value + AT_USED, record->used_unix_ns);
    memcpy(value + AT_PARENT, record->parent.bytes, KVIST_KEY_BYTES);
    memcpy(value + AT_NAMESPACE, record->name_space.bytes, KVIST_KEY_BYTES);
    memcpy(value + AT_ORIGIN, record->origin, KV_ORIGIN_BYTES);
    memcpy(value + AT_ARITHMETIC, record->arithmetic, KV_ARITHMETIC_BYTES);
    kv_put_u32(value + AT_EXPIRES, record->expires_s);
    kv_put_u32(value + AT_PIN, record->pin_until_s);
    value[AT_PRIORITY] = record->priority;
    value[AT_GROUP] = record->group;
    value[AT_SEALED] = record->sealed;
    memcpy(value + AT_TENANT, record->tenant, KV_TENANT_BYTES);
    kv_index_batch_put(batch, name, sizeof name, value, sizeof value);
}

void kv_entry_delete(kv_index_batch_t *batch, const kvist_key_t *key)
{
    uint8_t name[KV_ENTRY_NAME_BYTES];
    kv_entry_name(key, name);
    kv_index_batch_delete(batch, name, sizeof name);
}

bool kv_entry_is_object(const uint8_t *key, size_t key_bytes)
{
    return key_bytes == KV_ENTRY_NAME_BYTES && key[0] == 'o';
}

bool kv_entry_place(
    const uint8_t *value, size_t value_bytes, uint16_t *segment_out, uint32_t *offset_pages_out)
{
    if (value_bytes < VALUE_BYTES_1) {
        return false;
    }
    *segment_out = kv_get_u16(value + AT_SEGMENT);
    *offset_pages_out = kv_get_u32(value + AT_OFFSET_PAGES);
    return true;
}

kv_status_t kv_entry_read(
    const uint8_t *key, const uint8_t *value, size_t value_bytes, kv_entry_t *entry_out)
{
    bool old = value_bytes == VALUE_BYTES_1 && value[AT_VERSION] == 1;
    if (!old && (value_bytes != VALUE_BYTES || value[AT_VERSION] != VERSION)) {
        return KV_CORRUPT;
    }
    kv_entry_t entry = {
        .segment = kv_get_u16(value + AT_SEGMENT),
        .offset = (uint64_t)kv_get_u32(value + AT_OFFSET_PAGES) * KV_PAGE_BYTES,
    };
    kv_record_t *record = &entry.record;
    record->codec = (kvist_codec_t)value[AT_CODEC];
    record->generation = kv_get_u64(value + AT_GENERATION);
    record->stored_bytes = (uint64_t)kv_get_u32(value + AT_LENGTH_PAGES) * KV_PAGE_BYTES;
    record->position = kv_get_u32(value + AT_POSITION);
    record->created_unix_ns = kv_get_u64(value + AT_CREATED);
    record->used_unix_ns = kv_get_u64(value + AT_USED);
    memcpy(record->key.bytes, key + 1, KVIST_KEY_BYTES);
    memcpy(record->parent.bytes, value + AT_PARENT, KVIST_KEY_BYTES);
    memcpy(record->name_space.bytes, value + AT_NAMESPACE, KVIST_KEY_BYTES);
    memcpy(record->origin, value + AT_ORIGIN, KV_ORIGIN_BYTES - 1);
    memcpy(record->arithmetic, value + AT_ARITHMETIC, KV_ARITHMETIC_BYTES - 1);
    if (!old) {
        record->expires_s = kv_get_u32(value + AT_EXPIRES);
        record->pin_until_s = kv_get_u32(value + AT_PIN);
        record->priority = value[AT_PRIORITY];
        record->group = value[AT_GROUP];
        record->sealed = value[AT_SEALED] != 0;
        memcpy(record->tenant, value + AT_TENANT, KV_TENANT_BYTES - 1);
    }
    if (record->position >= KVIST_CHAIN_BLOCKS_MAX || record->stored_bytes == 0 ||
        record->stored_bytes > (uint64_t)UINT16_MAX * KV_PAGE_BYTES ||
        record->priority >= KVIST_PRIORITY_COUNT || record->group >= KVIST_GROUPS_MAX) {
        return KV_CORRUPT;
    }
    *entry_out = entry;
    return KV_OK;
}

void kv_terms_entry_name(const kvist_key_t *key, uint8_t *name_out)
{
    key_name('t', key, name_out);
}

void kv_terms_entry_put(kv_index_batch_t *batch, const kv_terms_entry_t *entry)
{
    uint8_t name[KV_ENTRY_NAME_BYTES], value[TERMS_VALUE_BYTES] = {0};
    key_name('t', &entry->key, name);
    kv_put_u32(value, entry->expires_s);
    kv_put_u32(value + 4, entry->pin_until_s);
    value[8] = entry->priority;
    kv_index_batch_put(batch, name, sizeof name, value, sizeof value);
}

void kv_terms_entry_delete(kv_index_batch_t *batch, const kvist_key_t *key)
{
    uint8_t name[KV_ENTRY_NAME_BYTES];
    key_name('t', key, name);
    kv_index_batch_delete(batch, name, sizeof name);
}

bool kv_terms_entry_read(const uint8_t *key, size_t key_bytes, const uint8_t *value,
    size_t value_bytes, kv_terms_entry_t *entry_out)
{
    if (key_bytes != KV_ENTRY_NAME_BYTES || key[0] != 't' || value_bytes != TERMS_VALUE_BYTES ||
        value[8] >= KVIST_PRIORITY_COUNT) {
        return false;
    }
    memcpy(entry_out->key.bytes, key + 1, KVIST_KEY_BYTES);
    entry_out->expires_s = kv_get_u32(value);
    entry_out->pin_until_s = kv_get_u32(value + 4);
    entry_out->priority = value[8];
    return true;
}

void kv_segment_entry_put(kv_index_batch_t *batch, const kv_segment_entry_t *entry)
{
    uint8_t name[SEGMENT_NAME_BYTES] = {'s'}, value[SEGMENT_VALUE_BYTES];
    kv_put_u16(name + 1, entry->number);
    kv_put_u64(value, entry->generation);
    kv_put_u64(value + 8, entry->indexed_bytes);
    kv_index_batch_put(batch, name, sizeof name, value, sizeof value);
}

bool kv_segment_entry_read(const uint8_t *key, size_t key_bytes, const uint8_t *value,
    size_t value_bytes, kv_segment_entry_t *entry_out)
{
    if (key_bytes != SEGMENT_NAME_BYTES || key[0] != 's' || value_bytes != SEGMENT_VALUE_BYTES) {
        return false;
    }
    *entry_out =
        (kv_segment_entry_t){kv_get_u16(key + 1), kv_get_u64(value), kv_get_u64(value + 8)};
    return true;
}

static void note_name(const kv_note_entry_t *entry, uint8_t *name_out)
{
    name_out[0] = 'x';
    kv_put_u16(name_out + 1, entry->segment);
    kv_put_u32(name_out + 3, entry->offset_pages);
}

void kv_note_entry_put(kv_index_batch_t *batch, const kv_note_entry_t *entry)
{
    uint8_t name[NOTE_NAME_BYTES], value[NOTE_VALUE_BYTES];
    note_name(entry, name);
    kv_put_u64(value, entry->generation);
    kv_put_u32(value + 8, entry->length_pages);
    value[12] = entry->erase;
    kv_index_batch_put(batch, name, sizeof name, value, sizeof value);
}

void kv_note_entry_delete(kv_index_batch_t *batch, const kv_note_entry_t *entry)
{
    uint8_t name[NOTE_NAME_BYTES];
    note_name(entry, name);
    kv_index_batch_delete(batch, name, sizeof name);
}

bool kv_note_entry_read(const uint8_t *key, size_t key_bytes, const uint8_t *value,
    size_t value_bytes, kv_note_entry_t *entry_out)
{
    if (key_bytes != NOTE_NAME_BYTES || key[0] != 'x' || value_bytes != NOTE_VALUE_BYTES) {
        return false;
    }
    *entry_out = (kv_note_entry_t){
        .generation = kv_get_u64(value),
        .offset_pages = kv_get_u32(key + 3),
        .length_pages = kv_get_u32(value + 8),
        .segment = kv_get_u16(key + 1),
        .erase = value[12] != 0,
    };
    return true;
}

static void put_time(kv_index_batch_t *batch, uint8_t kind, uint64_t unix_ns)
{
    uint8_t name[] = {'m', kind}, value[8];
    kv_put_u64(value, unix_ns);
    kv_index_batch_put(batch, name, sizeof name, value, sizeof value);
}

void kv_drop_entry_put(kv_index_batch_t *batch, uint64_t unix_ns)
{
    put_time(batch, 'd', unix_ns);
}

void kv_flush_entry_put(kv_index_batch_t *batch, uint64_t unix_ns)
{
    put_time(batch, 'f', unix_ns);
}

static const uint8_t COMPLETE_NAME[] = {'m', 'c'};

void kv_complete_entry_put(kv_index_batch_t *batch)
{
    kv_index_batch_put(batch, COMPLETE_NAME, sizeof COMPLETE_NAME, NULL, 0);
}

void kv_complete_entry_delete(kv_index_batch_t *batch)
{
    kv_index_batch_delete(batch, COMPLETE_NAME, sizeof COMPLETE_NAME);
}

bool kv_complete_entry_is(const uint8_t *key, size_t key_bytes)
{
    return key_bytes == sizeof COMPLETE_NAME && memcmp(key, COMPLETE_NAME, key_bytes) == 0;
}

static const uint8_t BUDGET_NAME[] = {'m', 'b'};

void kv_budget_entry_put(kv_index_batch_t *batch, const kv_budget_entry_t *entry)
{
    uint8_t value[BUDGET_VALUE_BYTES];
    kv_put_u64(value, (uint64_t)entry->left_bytes);
    kv_put_u64(value + 8, entry->unix_ns);
    kv_index_batch_put(batch, BUDGET_NAME, sizeof BUDGET_NAME, value, sizeof value);
}

bool kv_budget_entry_read(const uint8_t *key, size_t key_bytes, const uint8_t *value,
    size_t value_bytes, kv_budget_entry_t *entry_out)
{
    if (key_bytes != sizeof BUDGET_NAME || memcmp(key, BUDGET_NAME, key_bytes) != 0 ||
        value_bytes != BUDGET_VALUE_BYTES) {
        return false;
    }
    *entry_out = (kv_budget_entry_t){(int64_t)kv_get_u64(value), kv_get_u64(value + 8)};
    return true;
}
