#include "kvstore/record.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/checksum.h"
#include "kvstore/codec.h"
#include "kvstore/identity.h"

/* "KVISTREC" */
#define RECORD_MAGIC 0x434552545349564bull
enum { RECORD_VERSION = 1 };

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
    AT_TOKENS = 320,    /* u32 each; then unit checksums, u64 each; then unit lengths, u32 each */
    CHECKSUM_BYTES = 8, /* at the header's end */
};

/* More than any layout needs: bounds what a damaged header may claim. */
#define HEADER_BYTES_MAX (1u << 20)

static size_t checksums_at(uint32_t token_count)
{
    return kv_round_up(AT_TOKENS + (size_t)4 * token_count, 8);
}

static size_t header_bytes_for(uint32_t token_count, uint32_t unit_count)
{
    size_t used = checksums_at(token_count) + (size_t)12 * unit_count + CHECKSUM_BYTES;
    return kv_round_up(used, KV_PAGE_BYTES);
}

size_t kv_record_header_bytes(const kv_layout_t *layout)
{
    return header_bytes_for(layout->shape.block_tokens, layout->unit_count);
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
        size_t got = kv_codec_encode(
            codec, object + i * layout->unit_bytes, layout->unit_bytes, payload + used);
        kv_put_u32(lengths + (size_t)4 * i, (uint32_t)got);
        used += got;
    }
    bool saves =
        kv_round_up(used, KV_PAGE_BYTES) < kv_round_up(layout->object_bytes, KV_PAGE_BYTES);
    return saves ? used : 0;
}

void kv_record_write(const kv_layout_t *layout, kv_record_t *record, const uint32_t *tokens,
    const void *object, void *at)
{
    size_t header_bytes = kv_record_header_bytes(layout);
    uint32_t token_count = layout->shape.block_tokens, unit_count = layout->unit_count;
    char *header = at, *payload = header + header_bytes;
    char *checksums = header + checksums_at(token_count);
    char *lengths = checksums + (size_t)8 * unit_count;
    memset(header, 0, header_bytes);

    uint64_t *unit_checksums = (uint64_t *)(void *)checksums; /* 8-aligned: at is page-aligned */
    kv_layout_unit_checksums(layout, object, unit_checksums);
    uint64_t object_checksum = kv_layout_object_checksum(layout, &record->key, unit_checksums);

    size_t payload_bytes = 0;
    if (record->codec != KVIST_CODEC_NONE) {
        KV_CHECK((const char *)object != payload);
        payload_bytes = encode_units(layout, record->codec, object, payload, lengths);
    }
    if (payload_bytes == 0) {
        record->codec = KVIST_CODEC_NONE;
        payload_bytes = layout->object_bytes;
        if ((const char *)object != payload) {
            memcpy(payload, object, payload_bytes);
        }
        for (uint32_t i = 0; i < unit_count; i++) {
            kv_put_u32(lengths + (size_t)4 * i, (uint32_t)layout->unit_bytes);
        }
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
    for (uint32_t i = 0; i < token_count; i++) {
        kv_put_u32(header + AT_TOKENS + (size_t)4 * i, tokens[i]);
    }
    for (uint32_t i = 0; i < unit_count; i++) {
        kv_put_u64(checksums + (size_t)8 * i, unit_checksums[i]); /* to little-endian, in place */
    }
}

void kv_record_sign(void *at, uint64_t generation)
{
    char *header = at;
    size_t covered = kv_get_u32(header + AT_HEADER_BYTES) - (size_t)CHECKSUM_BYTES;
    kv_put_u64(header + AT_GENERATION, generation);
    kv_put_u64(header + covered, kv_checksum(header, covered));
}

kv_status_t kv_record_read(const kv_layout_t *layout, const void *at, size_t bytes,
    kv_record_t *record_out, bool *same_layout_out)
{
    const char *header = at;
    if (bytes < KV_PAGE_BYTES || kv_get_u64(header + AT_MAGIC) != RECORD_MAGIC) {
        return KV_MISSING;
    }
    size_t header_bytes = kv_get_u32(header + AT_HEADER_BYTES);
    if (kv_get_u32(header + AT_VERSION) != RECORD_VERSION || header_bytes < KV_PAGE_BYTES ||
        header_bytes > HEADER_BYTES_MAX || header_bytes % KV_PAGE_BYTES != 0 ||
        header_bytes > bytes) {
        return KV_CORRUPT;
    }
    size_t covered = header_bytes - CHECKSUM_BYTES;
    if (kv_get_u64(header + covered) != kv_checksum(header, covered)) {
        return KV_CORRUPT;
    }
    uint64_t stored_bytes = kv_get_u64(header + AT_STORED_BYTES);
    uint64_t payload_bytes = kv_get_u64(header + AT_PAYLOAD_BYTES);
    uint32_t codec = kv_get_u32(header + AT_CODEC);
    if (payload_bytes > KV_LAYOUT_OBJECT_BYTES_MAX ||
        stored_bytes != header_bytes + kv_round_up(payload_bytes, KV_PAGE_BYTES) ||
        codec > KVIST_CODEC_LZ4 || kv_get_u32(header + AT_POSITION) >= KVIST_CHAIN_BLOCKS_MAX ||
        header[AT_ORIGIN + KV_ORIGIN_BYTES - 1] != '\0' ||
        header[AT_ARITHMETIC + KV_ARITHMETIC_BYTES - 1] != '\0') {
        return KV_CORRUPT;
    }
    record_out->generation = kv_get_u64(header + AT_GENERATION);
    record_out->position = kv_get_u32(header + AT_POSITION);
    record_out->created_unix_ns = kv_get_u64(header + AT_CREATED);
    record_out->used_unix_ns = kv_get_u64(header + AT_USED);
    record_out->codec = (kvist_codec_t)codec;
    record_out->stored_bytes = stored_bytes;
    memcpy(record_out->name_space.bytes, header + AT_NAMESPACE, KVIST_KEY_BYTES);
    memcpy(record_out->key.bytes, header + AT_KEY, KVIST_KEY_BYTES);
    memcpy(record_out->parent.bytes, header + AT_PARENT, KVIST_KEY_BYTES);
    memcpy(record_out->origin, header + AT_ORIGIN, KV_ORIGIN_BYTES);
    memcpy(record_out->arithmetic, header + AT_ARITHMETIC, KV_ARITHMETIC_BYTES);
    *same_layout_out = memcmp(header + AT_LAYOUT, layout->digest.bytes, KVIST_KEY_BYTES) == 0 &&
                       kv_get_u32(header + AT_TOKEN_COUNT) == layout->shape.block_tokens &&
                       kv_get_u32(header + AT_UNIT_COUNT) == layout->unit_count &&
                       kv_get_u64(header + AT_OBJECT_BYTES) == layout->object_bytes &&
                       header_bytes == kv_record_header_bytes(layout);
    return KV_OK;
}

/* The object's bytes out of the payload: in place, or unit by unit into scratch. */
static kv_status_t decode_units(const kv_layout_t *layout, kvist_codec_t codec, const char *payload,
    uint64_t payload_bytes, const char *lengths, char *scratch, const void **object_out)
{
    if (codec == KVIST_CODEC_NONE) {
        *object_out = payload;
        return payload_bytes == layout->object_bytes ? KV_OK : KV_CORRUPT;
    }
    uint64_t used = 0;
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        uint32_t length = kv_get_u32(lengths + (size_t)4 * i);
        if (length > payload_bytes - used) {
            return KV_CORRUPT;
        }
        kv_status_t status = kv_codec_decode(
            codec, payload + used, length, scratch + i * layout->unit_bytes, layout->unit_bytes);
        if (status != KV_OK) {
            return status;
        }
        used += length;
    }
    *object_out = scratch;
    return used == payload_bytes ? KV_OK : KV_CORRUPT;
}

static kv_status_t verify_object(const kv_layout_t *layout, const kvist_key_t *key,
    const char *header, const char *checksums, const char *object)
{
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        if (kv_checksum(object + i * layout->unit_bytes, layout->unit_bytes) !=
            kv_get_u64(checksums + (size_t)8 * i)) {
            return KV_CORRUPT;
        }
    }
    uint64_t whole =
        kv_layout_object_checksum(layout, key, (const uint64_t *)(const void *)checksums);
    return whole == kv_get_u64(header + AT_OBJECT_CHECKSUM) ? KV_OK : KV_CORRUPT;
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

kv_status_t kv_record_verify(const kv_layout_t *layout, const kv_record_t *expected, const void *at,
    size_t bytes, void *scratch, const void **object_out, uint32_t *tokens_out)
{
    kv_record_t found;
    bool same_layout;
    const char *header = at;
    if (kv_record_read(layout, at, bytes, &found, &same_layout) != KV_OK || !same_layout ||
        found.stored_bytes != bytes || found.generation != expected->generation ||
        found.position != expected->position ||
        !kv_key_equal(&found.name_space, &expected->name_space) ||
        !kv_key_equal(&found.key, &expected->key) ||
        !kv_key_equal(&found.parent, &expected->parent)) {
        return KV_CORRUPT;
    }
    uint32_t token_count = layout->shape.block_tokens;
    for (uint32_t i = 0; i < token_count; i++) {
        tokens_out[i] = kv_get_u32(header + AT_TOKENS + (size_t)4 * i);
    }
    kvist_key_t key = kv_identity_block_key(&found.parent, tokens_out, token_count);
    if (!kv_key_equal(&key, &found.key)) {
        return KV_CORRUPT;
    }
    const char *checksums = header + checksums_at(token_count);
    const char *payload = header + kv_record_header_bytes(layout);
    uint64_t payload_bytes = kv_get_u64(header + AT_PAYLOAD_BYTES);
    if (!all_zero(payload + payload_bytes,
            bytes - kv_record_header_bytes(layout) - (size_t)payload_bytes)) {
        return KV_CORRUPT;
    }
    kv_status_t status = decode_units(layout, found.codec, payload, payload_bytes,
        checksums + (size_t)8 * layout->unit_count, scratch, object_out);
    return status == KV_OK ? verify_object(layout, &found.key, header, checksums, *object_out)
                           : status;
}
