#include "kvstore/disk/record.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/checksum.h"
#include "kvstore/codec/codec.h"
#include "kvstore/identity.h"

/* "KVISTREC" */
#define RECORD_MAGIC 0x434552545349564bull

/* Tokens and checksums are read and written in place. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "records are little-endian");

enum { RECORD_VERSION = 2, RECORD_VERSION_MIN = 1 };

/* "KVISTDRP" */
#define MARKER_MAGIC 0x505244545349564bull
enum { MARKER_VERSION = 1 };

/* Offsets in the header. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_HEADER_BYTES = 12,
    AT_GENERATION = 16,
    AT_STORED_BYTES = 24,
    AT_PAYLOAD_BYTES = 32,
    AT_OBJECT_BYTES = 40,
    AT_CODEC = 48,
    AT_POSITION = 52,
    AT_TOKEN_COUNT = 56,
    AT_UNIT_COUNT = 60,
    AT_NAMESPACE = 64,
    AT_KEY = 96,
    AT_PARENT = 128,
    AT_LAYOUT = 160,
    AT_CREATED = 192,
    AT_USED = 200,
    AT_OBJECT_CHECKSUM = 208,
    AT_ORIGIN = 216,
    AT_ARITHMETIC = 248,
    AT_EXPIRES = 296,
    AT_PIN = 300,
    AT_PRIORITY = 304,
    AT_GROUP = 305,
    AT_TENANT = 320,    /* version 1 has no tenant, zeros from 296 on, and its tokens here */
    AT_TOKENS = 352,    /* u32 each; then unit checksums, u64 each; then unit lengths, u32 each */
    CHECKSUM_BYTES = 8, /* at the header's end */
};

/* Offsets in a marker; magic, version, generation and stored_bytes lie as in a record. */
enum { AT_MARKER_CHECKSUM = 32 };

/* More than any layout needs: bounds what a damaged header may claim. */
#define HEADER_BYTES_MAX (1u << 20)

static size_t tokens_at(uint32_t version)
{
    return version == 1 ? AT_TENANT : AT_TOKENS;
}

static size_t checksums_at(const kv_layout_t *layout, uint32_t version)
{
    return kv_round_up(tokens_at(version) + (size_t)4 * layout->block_tokens, 8);
}

static size_t header_bytes_of(const kv_layout_t *layout, uint32_t version)
{
    size_t used = checksums_at(layout, version) + (size_t)12 * layout->unit_count + CHECKSUM_BYTES;
    return kv_round_up(used, KV_PAGE_BYTES);
}

size_t kv_record_header_bytes(const kv_layout_t *layout)
{
    return header_bytes_of(layout, RECORD_VERSION);
}

size_t kv_record_bytes_max(const kv_layout_t *layout)
{
    return kv_record_header_bytes(layout) + kv_round_up(layout->object_bytes, KV_PAGE_BYTES);
}

/* Encodes all units; returns the payload's length, or 0 where that saves no page. */
static size_t encode_units(const kv_layout_t *layout, kvist_codec_t codec, const char *object,
    char *payload, char *lengths)
{
    size_t used = 0;
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        size_t bytes, offset = kv_layout_unit(layout, i, &bytes);
        size_t got = kv_codec_encode(
            codec, object + offset, bytes, kv_layout_element_bytes(layout, i), payload + used);
        kv_put_u32(lengths + (size_t)4 * i, (uint32_t)got);
        used += got;
    }
    bool saves =
        kv_round_up(used, KV_PAGE_BYTES) < kv_round_up(layout->object_bytes, KV_PAGE_BYTES);
    return saves ? used : 0;
}

/* Copies the object's units and gives their checksums, in one pass. */
static void copy_units(
    const kv_layout_t *layout, const char *object, char *payload, uint64_t *checksums_out)
{
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        size_t bytes, offset = kv_layout_unit(layout, i, &bytes);
        checksums_out[i] = kv_checksum_copy(payload + offset, object + offset, bytes);
    }
    kv_checksum_copy_fence();
}

static void put_plain_lengths(const kv_layout_t *layout, char *lengths)
{
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        size_t bytes;
        kv_layout_unit(layout, i, &bytes);
        kv_put_u32(lengths + (size_t)4 * i, (uint32_t)bytes);
    }
}

bool kv_record_write(const kv_layout_t *layout, kv_record_t *record, const uint32_t *tokens,
    const void *object, const uint64_t *expected, void *at)
{
    size_t header_bytes = kv_record_header_bytes(layout);
    uint32_t token_count = layout->block_tokens, unit_count = layout->unit_count;
    char *header = at, *payload = header + header_bytes;
    char *checksums = header + checksums_at(layout, RECORD_VERSION);
    char *lengths = checksums + (size_t)8 * unit_count;
    memset(header, 0, header_bytes);

    uint64_t *unit_checksums = (uint64_t *)(void *)checksums; /* 8-aligned: at is page-aligned */
    bool plain = record->codec == KVIST_CODEC_NONE, in_place = (const char *)object == payload;
    if (plain && !in_place) {
        copy_units(layout, object, payload, unit_checksums);
    } else {
        kv_layout_unit_checksums(layout, object, unit_checksums);
    }
    if (expected != NULL && memcmp(unit_checksums, expected, (size_t)8 * unit_count) != 0) {
        return false;
    }
    uint64_t object_checksum = kv_layout_object_checksum(layout, &record->key, unit_checksums);

    size_t payload_bytes = layout->object_bytes;
    if (!plain) {
        KV_CHECK(!in_place);
        payload_bytes = encode_units(layout, record->codec, object, payload, lengths);
        if (payload_bytes == 0) {
            record->codec = KVIST_CODEC_NONE;
            payload_bytes = layout->object_bytes;
            memcpy(payload, object, payload_bytes);
        }
    }
    if (record->codec == KVIST_CODEC_NONE) {
        put_plain_lengths(layout, lengths);
    }
    size_t padded = kv_round_up(payload_bytes, KV_PAGE_BYTES);
    memset(payload + payload_bytes, 0, padded - payload_bytes);
    record->stored_bytes = header_bytes + padded;

    kv_put_u64(header + AT_MAGIC, RECORD_MAGIC);
    kv_put_u32(header + AT_VERSION, RECORD_VERSION);
    kv_put_u32(header + AT_HEADER_BYTES, (uint32_t)header_bytes);
    kv_put_u64(header + AT_STORED_BYTES, record->stored_bytes);
    kv_put_u64(header + AT_PAYLOAD_BYTES, payload_bytes);
    kv_put_u64(header + AT_OBJECT_BYTES, layout->object_bytes);
    kv_put_u32(header + AT_CODEC, (uint32_t)record->codec);
    kv_put_u32(header + AT_POSITION, record->position);
    kv_put_u32(header + AT_TOKEN_COUNT, token_count);
    kv_put_u32(header + AT_UNIT_COUNT, unit_count);
    memcpy(header + AT_NAMESPACE, record->name_space.bytes, KVIST_KEY_BYTES);
    memcpy(header + AT_KEY, record->key.bytes, KVIST_KEY_BYTES);
    memcpy(header + AT_PARENT, record->parent.bytes, KVIST_KEY_BYTES);
    memcpy(header + AT_LAYOUT, layout->digest.bytes, KVIST_KEY_BYTES);
    kv_put_u64(header + AT_CREATED, record->created_unix_ns);
    kv_put_u64(header + AT_USED, record->used_unix_ns);
    kv_put_u64(header + AT_OBJECT_CHECKSUM, object_checksum);
    memcpy(header + AT_ORIGIN, record->origin, KV_ORIGIN_BYTES);
    memcpy(header + AT_ARITHMETIC, record->arithmetic, KV_ARITHMETIC_BYTES);
    kv_put_u32(header + AT_EXPIRES, record->expires_s);
    kv_put_u32(header + AT_PIN, record->pin_until_s);
    header[AT_PRIORITY] = (char)record->priority;
    header[AT_GROUP] = (char)record->group;
    memcpy(header + AT_TENANT, record->tenant, KV_TENANT_BYTES);
    memcpy(header + AT_TOKENS, tokens, (size_t)4 * token_count);
    return true;
}

void kv_record_sign(void *at, uint64_t generation)
{
    char *header = at;
    size_t covered = kv_get_u32(header + AT_HEADER_BYTES) - (size_t)CHECKSUM_BYTES;
    kv_put_u64(header + AT_GENERATION, generation);
    kv_put_u64(header + covered, kv_checksum(header, covered));
}

/* Versions 1 and 2 tell each other apart; what version 1 did not have is none. */
static bool version_known(uint32_t version)
{
    return version >= RECORD_VERSION_MIN && version <= RECORD_VERSION;
}

static bool text_ended(const char *header, uint32_t version)
{
    return header[AT_ORIGIN + KV_ORIGIN_BYTES - 1] == '\0' &&
           header[AT_ARITHMETIC + KV_ARITHMETIC_BYTES - 1] == '\0' &&
           (version == 1 || header[AT_TENANT + KV_TENANT_BYTES - 1] == '\0');
}

static void read_fields(const char *header, uint32_t version, kv_record_t *record)
{
    *record = (kv_record_t){
        .generation = kv_get_u64(header + AT_GENERATION),
        .position = kv_get_u32(header + AT_POSITION),
        .created_unix_ns = kv_get_u64(header + AT_CREATED),
        .used_unix_ns = kv_get_u64(header + AT_USED),
        .codec = (kvist_codec_t)kv_get_u32(header + AT_CODEC),
        .stored_bytes = kv_get_u64(header + AT_STORED_BYTES),
    };
    memcpy(record->name_space.bytes, header + AT_NAMESPACE, KVIST_KEY_BYTES);
    memcpy(record->key.bytes, header + AT_KEY, KVIST_KEY_BYTES);
    memcpy(record->parent.bytes, header + AT_PARENT, KVIST_KEY_BYTES);
    memcpy(record->origin, header + AT_ORIGIN, KV_ORIGIN_BYTES);
    memcpy(record->arithmetic, header + AT_ARITHMETIC, KV_ARITHMETIC_BYTES);
    if (version > 1) {
        record->expires_s = kv_get_u32(header + AT_EXPIRES);
        record->pin_until_s = kv_get_u32(header + AT_PIN);
        record->priority = (uint8_t)header[AT_PRIORITY];
        record->group = (uint8_t)header[AT_GROUP];
        memcpy(record->tenant, header + AT_TENANT, KV_TENANT_BYTES);
    }
}

void kv_record_renew(void *at, kv_record_t *record)
{
    char *header = at;
    kv_put_u64(header + AT_USED, record->used_unix_ns);
    if (kv_get_u32(header + AT_VERSION) >= 2) {
        kv_put_u32(header + AT_EXPIRES, record->expires_s);
        kv_put_u32(header + AT_PIN, record->pin_until_s);
    }
    record->created_unix_ns = kv_get_u64(header + AT_CREATED);
    record->codec = (kvist_codec_t)kv_get_u32(header + AT_CODEC);
}

kv_status_t kv_record_read(const void *at, size_t bytes, kv_record_t *record_out)
{
    const char *header = at;
    if (bytes < KV_PAGE_BYTES || kv_get_u64(header + AT_MAGIC) != RECORD_MAGIC) {
        return KV_MISSING;
    }
    uint32_t version = kv_get_u32(header + AT_VERSION);
    size_t header_bytes = kv_get_u32(header + AT_HEADER_BYTES);
    if (!version_known(version) || header_bytes < KV_PAGE_BYTES ||
        header_bytes > HEADER_BYTES_MAX || header_bytes % KV_PAGE_BYTES != 0 ||
        header_bytes > bytes) {
        return KV_CORRUPT;
    }
    size_t covered = header_bytes - CHECKSUM_BYTES;
    if (kv_get_u64(header + covered) != kv_checksum(header, covered)) {
        return KV_CORRUPT;
    }
    uint64_t payload_bytes = kv_get_u64(header + AT_PAYLOAD_BYTES);
    kv_record_t record;
    read_fields(header, version, &record);
    if (payload_bytes > KV_LAYOUT_OBJECT_BYTES_MAX ||
        record.stored_bytes != header_bytes + kv_round_up(payload_bytes, KV_PAGE_BYTES) ||
        (unsigned)record.codec >= KVIST_CODEC_COUNT || record.position >= KVIST_CHAIN_BLOCKS_MAX ||
        record.priority >= KVIST_PRIORITY_COUNT || record.group >= KVIST_GROUPS_MAX ||
        !text_ended(header, version)) {
        return KV_CORRUPT;
    }
    *record_out = record;
    return KV_OK;
}

void kv_record_write_marker(void *page, uint64_t generation, uint64_t stored_bytes)
{
    char *marker = page;
    memset(marker, 0, KV_PAGE_BYTES);
    kv_put_u64(marker + AT_MAGIC, MARKER_MAGIC);
    kv_put_u32(marker + AT_VERSION, MARKER_VERSION);
    kv_put_u64(marker + AT_GENERATION, generation);
    kv_put_u64(marker + AT_STORED_BYTES, stored_bytes);
    kv_put_u64(marker + AT_MARKER_CHECKSUM, kv_checksum(marker, AT_MARKER_CHECKSUM));
}

kv_status_t kv_record_read_marker(const void *page, uint64_t generation, uint64_t *stored_bytes_out)
{
    const char *marker = page;
    if (kv_get_u64(marker + AT_MAGIC) != MARKER_MAGIC ||
        kv_get_u64(marker + AT_GENERATION) != generation) {
        return KV_MISSING;
    }
    uint64_t stored_bytes = kv_get_u64(marker + AT_STORED_BYTES);
    if (kv_get_u32(marker + AT_VERSION) != MARKER_VERSION ||
        kv_get_u64(marker + AT_MARKER_CHECKSUM) != kv_checksum(marker, AT_MARKER_CHECKSUM) ||
        stored_bytes < KV_PAGE_BYTES || stored_bytes % KV_PAGE_BYTES != 0) {
        return KV_CORRUPT;
    }
    *stored_bytes_out = stored_bytes;
    return KV_OK;
}

bool kv_record_fits(const kv_layout_t *layout, const void *at)
{
    const char *header = at;
    return memcmp(header + AT_LAYOUT, layout->digest.bytes, KVIST_KEY_BYTES) == 0 &&
           kv_get_u32(header + AT_TOKEN_COUNT) == layout->block_tokens &&
           kv_get_u32(header + AT_UNIT_COUNT) == layout->unit_count &&
           kv_get_u64(header + AT_OBJECT_BYTES) == layout->object_bytes &&
           kv_get_u32(header + AT_HEADER_BYTES) ==
               header_bytes_of(layout, kv_get_u32(header + AT_VERSION));
}

static bool all_zero(const char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != 0) {
            return false;
        }
    }
    return true;
}

static bool as_expected(const kv_record_t *found, const kv_record_t *expected)
{
    return found->generation == expected->generation && found->position == expected->position &&
           found->group == expected->group &&
           kv_key_equal(&found->name_space, &expected->name_space) &&
           kv_key_equal(&found->key, &expected->key) &&
           kv_key_equal(&found->parent, &expected->parent);
}

kv_status_t kv_record_open(const kv_layout_t *layout, const kv_record_t *expected, const void *at,
    size_t bytes, kv_record_view_t *view_out)
{
    const char *header = at;
    kv_record_view_t view;
    if (kv_record_read(at, bytes, &view.record) != KV_OK || !kv_record_fits(layout, at) ||
        !as_expected(&view.record, expected)) {
        return KV_CORRUPT;
    }
    uint32_t version = kv_get_u32(header + AT_VERSION);
    view.tokens = (const uint32_t *)(const void *)(header + tokens_at(version)); /* 4-aligned */
    kvist_key_t key = kv_identity_block_key(&view.record.parent, view.tokens, layout->block_tokens);
    key = kv_identity_group_key(&key, view.record.group);
    if (!kv_key_equal(&key, &view.record.key)) {
        return KV_CORRUPT;
    }
    const char *checksums = header + checksums_at(layout, version);
    view.checksums = (const uint64_t *)(const void *)checksums; /* 8-aligned: so is the page */
    view.lengths = checksums + (size_t)8 * layout->unit_count;
    view.payload = header + header_bytes_of(layout, version);
    view.payload_bytes = kv_get_u64(header + AT_PAYLOAD_BYTES);
    size_t used = (size_t)(view.payload - header) + view.payload_bytes;
    if (kv_layout_object_checksum(layout, &key, view.checksums) !=
            kv_get_u64(header + AT_OBJECT_CHECKSUM) ||
        (view.record.codec == KVIST_CODEC_NONE && view.payload_bytes != layout->object_bytes) ||
        (bytes >= view.record.stored_bytes &&
            !all_zero(header + used, view.record.stored_bytes - used))) {
        return KV_CORRUPT;
    }
    *view_out = view;
    return KV_OK;
}

kv_status_t kv_record_object(
    const kv_layout_t *layout, const kv_record_view_t *view, void *scratch, const void **object_out)
{
    if (view->record.codec == KVIST_CODEC_NONE) {
        *object_out = view->payload;
        return KV_OK;
    }
    uint64_t used = 0;
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        size_t bytes, offset = kv_layout_unit(layout, i, &bytes);
        uint32_t length = kv_get_u32(view->lengths + (size_t)4 * i);
        if (length > view->payload_bytes - used) {
            return KV_CORRUPT;
        }
        kv_status_t status = kv_codec_decode(
            view->record.codec, view->payload + used, length, (char *)scratch + offset, bytes);
        if (status != KV_OK) {
            return status;
        }
        used += length;
    }
    *object_out = scratch;
    return used == view->payload_bytes ? KV_OK : KV_CORRUPT;
}

kv_status_t kv_record_verify(const kv_layout_t *layout, const kv_record_t *expected, const void *at,
    size_t bytes, void *scratch, const void **object_out, uint32_t *tokens_out)
{
    kv_record_view_t view;
    kv_status_t status = kv_record_open(layout, expected, at, bytes, &view);
    if (status != KV_OK || view.record.stored_bytes != bytes) {
        return KV_CORRUPT;
    }
    const void *object;
    status = kv_record_object(layout, &view, scratch, &object);
    if (status != KV_OK || !kv_layout_units_agree(layout, object, view.checksums)) {
        return KV_CORRUPT;
    }
    memcpy(tokens_out, view.tokens, layout->block_tokens * sizeof *tokens_out);
    *object_out = object;
    return KV_OK;
}
