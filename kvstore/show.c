/* One stored block: found by the beginning of its key, and described. */
#include "kvstore/store_internal.h"

#include "base/bytes.h"
#include "base/memory.h"
#include "kvstore/embedded.h"
#include "kvstore/identity.h"

#include <stdlib.h>
#include <string.h>

enum { DIGITS_MIN = 8, DIGITS_MAX = 2 * KVIST_KEY_BYTES };

/* ---- find ---- */

/* The digits as bytes, the last one in the upper half of its byte; false: they are none. */
static bool decode_digits(const char *digits, size_t count, kvist_key_t *key_out)
{
    char padded[DIGITS_MAX + 1];
    memset(padded, '0', DIGITS_MAX);
    padded[DIGITS_MAX] = '\0';
    memcpy(padded, digits, count);
    return kv_hex_decode(padded, key_out->bytes, KVIST_KEY_BYTES) == KV_OK;
}

static bool begins_with(const kvist_key_t *key, const kvist_key_t *beginning, size_t digit_count)
{
    size_t whole = digit_count / 2;
    return memcmp(key->bytes, beginning->bytes, whole) == 0 &&
           (digit_count % 2 == 0 || (key->bytes[whole] & 0xf0) == beginning->bytes[whole]);
}

static bool is_block(const kvist_store_t *store, const kv_object_t *object)
{
    return (object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) == KV_OBJECT_USED &&
           kv_object_family(store, object)->group == 0;
}

kv_status_t kv_embedded_store_find(
    const kvist_store_t *store, const char *digits, kvist_key_t *key_out, kv_error_t *error)
{
    size_t count = strlen(digits);
    kvist_key_t beginning;
    if (count < DIGITS_MIN || count > DIGITS_MAX || !decode_digits(digits, count, &beginning)) {
        return kv_fail(error, KV_INVALID,
            "the key is '%.80s': it must be %d to %d hexadecimal digits, as kvist ls shows them",
            digits, DIGITS_MIN, DIGITS_MAX);
    }
    const kv_object_t *found = NULL;
    uint32_t bound = count < DIGITS_MAX ? kv_table_bound(store->table) : 0;
    for (uint32_t number = 0; number < bound; number++) {
        const kv_object_t *object = kv_table_at(store->table, number);
        if (!is_block(store, object) || !begins_with(&object->key, &beginning, count)) {
            continue;
        }
        if (found != NULL) {
            return kv_fail(error, KV_INVALID,
                "more than one key begins with %s: give more of its digits", digits);
        }
        found = object;
    }
    if (count == DIGITS_MAX) {
        uint32_t number = kv_table_find(store->table, &beginning);
        found = number != KV_OBJECT_NONE ? kv_table_at(store->table, number) : NULL;
    }
    if (kv_fill_busy(store) && (found == NULL || count < DIGITS_MAX)) {
        return kv_fail(error, KV_BUSY,
            "the store has not read its whole index yet: ask again, or give all of the key");
    }
    if (found == NULL) {
        return kv_fail(error, KV_MISSING, "no stored block's key begins with %s", digits);
    }
    *key_out = found->key;
    return KV_OK;
}

/* ---- show ---- */

static void count_children(
    const kvist_store_t *store, const kv_object_t *object, kvist_object_t *out)
{
    out->groups = 1;
    for (uint32_t at = object->first_child; at != KV_OBJECT_NONE;) {
        const kv_object_t *child = kv_table_at(store->table, at);
        uint32_t group = kv_object_family(store, child)->group;
        out->children += group == 0;
        out->groups |= 1u << group;
        at = child->next_sibling;
    }
    for (uint32_t group = 0; group < store->group_count; group++) {
        out->bytes += (out->groups >> group & 1) * store->groups[group].layout.object_bytes;
    }
}

void *kv_show_header(const kvist_store_t *store, const kv_object_t *object, size_t *bytes_out)
{
    kv_disk_t *disk = store->disk;
    kv_files_t *files = disk->files;
    char path[KV_SEGMENT_PATH_BYTES];
    kv_segments_path(&disk->segments, object->segment, path);
    int fd = files->ops->open(files, path, KV_FILES_READ);
    if (fd < 0) {
        return NULL;
    }
    size_t bytes = kv_record_header_bytes_max(&store->groups[0].layout);
    size_t record_bytes = (size_t)object->length_pages * KV_PAGE_BYTES;
    bytes = bytes < record_bytes ? bytes : record_bytes;
    void *header = kv_allocate(bytes);
    bool read = files->ops->read(files, fd, header, bytes,
                    (uint64_t)object->offset_pages * KV_PAGE_BYTES) == (int64_t)bytes;
    files->ops->close(files, fd);
    if (!read) {
        free(header);
        return NULL;
    }
    *bytes_out = bytes;
    return header;
}

/* When it was made stands in its record alone; 0 where that cannot be read now. */
static uint64_t read_created(const kvist_store_t *store, const kv_object_t *object)
{
    size_t bytes;
    kv_record_t record;
    void *header = kv_show_header(store, object, &bytes);
    bool read = header != NULL && kv_record_read(header, bytes, &record) == KV_OK &&
                kv_key_equal(&record.key, &object->key);
    free(header);
    return read ? record.created_unix_ns : 0;
}

kv_status_t kv_embedded_store_show(
    const kvist_store_t *store, const kvist_key_t *key, kvist_object_t *object_out)
{
    uint32_t number = kv_table_find(store->table, key);
    if (number == KV_OBJECT_NONE || !is_block(store, kv_table_at(store->table, number))) {
        return KV_MISSING;
    }
    const kv_object_t *object = kv_table_at(store->table, number);
    kv_record_t record;
    kv_object_describe(store, object, &record);
    kvist_object_t out = {
        .key = *key,
        .parent = record.parent,
        .name_space = record.name_space,
        .position = record.position,
        .token_count = ((uint64_t)record.position + 1) * store->block_tokens,
        .used_unix_ns = record.used_unix_ns,
        .expires_unix_ns = (uint64_t)record.expires_s * KV_NS_PER_S,
        .pin_until_unix_ns = (uint64_t)record.pin_until_s * KV_NS_PER_S,
        .priority = (kvist_priority_t)record.priority,
        .leases = object->reference_count,
    };
    memcpy(out.origin, record.origin, sizeof out.origin);
    memcpy(out.tenant, record.tenant, sizeof out.tenant);
    memcpy(out.arithmetic, record.arithmetic, sizeof out.arithmetic);
    count_children(store, object, &out);
    out.tiers[KVIST_TIER_DEVICE] = kv_object_on_device(store, object);
    out.tiers[KVIST_TIER_HOST] = kv_object_on_host(object);
    out.tiers[KVIST_TIER_DISK] = kv_object_on_disk(object);
    if (out.tiers[KVIST_TIER_DISK]) {
        out.segment = object->segment;
        out.segment_offset = (uint64_t)object->offset_pages * KV_PAGE_BYTES;
        out.stored_bytes = (uint64_t)object->length_pages * KV_PAGE_BYTES;
        out.created_unix_ns = read_created(store, object);
    }
    *object_out = out;
    return KV_OK;
}
