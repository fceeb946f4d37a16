#include "kvstore/disk/record.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/checksum.h"
#include "kvstore/codec/codec.h"
#include "kvstore/identity.h"

/* "KVISTREC" */
#define RECORD_MAGIC 0x434552545349564bull

/* Words and checksums are read and written in place. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "records are little-endian");

enum {
    RECORD_VERSION = 2,
    SEALED_VERSION = 3,
    EXTRA_VERSION = 4, /* with an extra key */
    SEALED_EXTRA_VERSION = 5,
    RECORD_VERSION_MIN = 1,
    RECORD_VERSION_MAX = SEALED_EXTRA_VERSION,
};

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
    AT_TENANT = 320, /* version 1 has no tenant, zeros from 296 on, and its tokens here */
    AT_TOKENS =
        352, /* u32 each, the extra key; then unit checksums, u64 each; then unit lengths, u32
                           each */
    CHECKSUM_BYTES = 8, /* at the header's end */
    /* Of an encrypted record, instead of AT_TOKENS: */
    AT_KEY_SLOT = 352,
    AT_KEY_ID = 360,
    AT_RECORD_ID = 376,
    AT_SECTION_TAG = 408,
    AT_SECTION = 424, /* tokens, extra key; checksums; the object's checksum; lengths; then in clear
                         the tags of the units */
    SECTION_NUMBER = -1, /* its nonce; a unit's is its number */
    SCRATCH_ALIGNMENT = 64,
};
_Static_assert(AT_SECTION % 8 == 0, "checksums are read in place");

/* Offsets in a marker; magic, version, generation and stored_bytes lie as in a record. */
enum { AT_MARKER_CHECKSUM = 32 };

/* More than any layout needs: bounds what a damaged header may claim. */
#define HEADER_BYTES_MAX (1u << 20)

static bool is_sealed(uint32_t version)
{
    return version == SEALED_VERSION || version == SEALED_EXTRA_VERSION;
}

static bool has_extra(uint32_t version)
{
    return version == EXTRA_VERSION || version == SEALED_EXTRA_VERSION;
}

static uint32_t version_of(const kv_layout_t *layout, const uint32_t *words, bool sealed)
{
    bool extra = kv_identity_has_extra(words, layout->block_tokens);
    return extra    ? sealed ? SEALED_EXTRA_VERSION : EXTRA_VERSION
           : sealed ? SEALED_VERSION
                    : RECORD_VERSION;
}

static size_t tokens_at(uint32_t version)
{
    return version == 1 ? AT_TENANT : is_sealed(version) ? AT_SECTION : AT_TOKENS;
}

/* Bytes of the words that the record has: an extra key that is none is left off. */
static size_t stored_words_bytes(const kv_layout_t *layout, uint32_t version)
{
    return (size_t)4 * (has_extra(version) ? layout->block_words : layout->block_tokens);
}

static size_t checksums_at(const kv_layout_t *layout, uint32_t version)
{
    return kv_round_up(tokens_at(version) + stored_words_bytes(layout, version), 8);
}

/* An encrypted record has the object's checksum among the units'. */
static size_t lengths_at(const kv_layout_t *layout, uint32_t version)
{
    return checksums_at(layout, version) + (size_t)8 * layout->unit_count +
           (is_sealed(version) ? 8 : 0);
}

static size_t section_bytes(const kv_layout_t *layout, uint32_t version)
{
    return lengths_at(layout, version) + (size_t)4 * layout->unit_count - AT_SECTION;
}

static size_t tags_at(const kv_layout_t *layout, uint32_t version)
{
    return AT_SECTION + section_bytes(layout, version);
}

static size_t header_bytes_of(const kv_layout_t *layout, uint32_t version)
{
    size_t used = lengths_at(layout, version) + (size_t)4 * layout->unit_count + CHECKSUM_BYTES;
    used += is_sealed(version) ? (size_t)KV_TAG_BYTES * layout->unit_count : 0;
    return kv_round_up(used, KV_PAGE_BYTES);
}

size_t kv_record_header_bytes(const kv_layout_t *layout, const uint32_t *words, bool sealed)
{
    return header_bytes_of(layout, version_of(layout, words, sealed));
}

size_t kv_record_header_bytes_max(const kv_layout_t *layout)
{
    return header_bytes_of(layout, SEALED_EXTRA_VERSION);
}

size_t kv_record_bytes_max(const kv_layout_t *layout)
{
    return kv_record_header_bytes_max(layout) + kv_round_up(layout->object_bytes, KV_PAGE_BYTES);
}

/* The scratch memory: an object, a section, a unit, words. */
static size_t section_scratch_at(const kv_layout_t *layout)
{
    return kv_round_up(layout->object_bytes, SCRATCH_ALIGNMENT);
}

static size_t unit_scratch_at(const kv_layout_t *layout)
{
    return kv_round_up(section_scratch_at(layout) + section_bytes(layout, SEALED_EXTRA_VERSION),
        SCRATCH_ALIGNMENT);
}

static size_t words_scratch_at(const kv_layout_t *layout)
{
    return kv_round_up(unit_scratch_at(layout) + layout->unit_bytes_max, SCRATCH_ALIGNMENT);
}

size_t kv_record_scratch_bytes(const kv_layout_t *layout)
{
    return words_scratch_at(layout) + (size_t)4 * layout->block_words;
}

/* ---- encryption ---- */

/* What the tags of a record cover: its header, but for what is entered anew when it is moved. */
static kvist_key_t binding_of(const char *header)
{
    char bound[AT_SECTION_TAG];
    memcpy(bound, header, sizeof bound);
    kv_put_u64(bound + AT_GENERATION, 0);
    kv_put_u64(bound + AT_USED, 0);
    kv_put_u32(bound + AT_EXPIRES, 0);
    kv_put_u32(bound + AT_PIN, 0);
    return kv_identity_digest(bound, sizeof bound);
}

static kv_associated_t bound_to(const kvist_key_t *binding)
{
    return (kv_associated_t){binding->bytes, sizeof binding->bytes};
}

static kv_cipher_t *cipher_of(const kv_secret_t *secret, const void *record_id, bool encrypts)
{
    kv_secret_t key = kv_secret_derive(secret, record_id, KV_RECORD_ID_BYTES, "kvist record 3");
    kv_cipher_t *cipher = kv_cipher_create(&key, encrypts);
    kv_wipe(&key, sizeof key);
    return cipher;
}

/* Encrypts a record that is complete but for generation and checksum. object: where its units are
 * now, if they are not in the payload. */
static void seal(
    const kv_layout_t *layout, const kv_record_key_t *key, const char *object, char *header)
{
    uint32_t version = kv_get_u32(header + AT_VERSION);
    char *payload = header + header_bytes_of(layout, version);
    char *tags = header + tags_at(layout, version);
    const char *lengths = header + lengths_at(layout, version);
    kvist_key_t binding = binding_of(header);
    kv_cipher_t *cipher = cipher_of(&key->secret, key->record_id, true);
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        size_t bytes, offset = kv_layout_unit(layout, i, &bytes);
        size_t length = kv_get_u32(lengths + (size_t)4 * i);
        kv_cipher_seal(cipher, i, bound_to(&binding), object != NULL ? object + offset : payload,
            length, payload, tags + (size_t)KV_TAG_BYTES * i);
        payload += length;
    }
    kv_cipher_seal(cipher, (uint32_t)SECTION_NUMBER, bound_to(&binding), header + AT_SECTION,
        section_bytes(layout, version), header + AT_SECTION, header + AT_SECTION_TAG);
    kv_cipher_destroy(cipher);
}

/* ---- writing ---- */

bool kv_record_packed_saves(const kv_layout_t *layout, size_t payload_bytes)
{
    return kv_round_up(payload_bytes, KV_PAGE_BYTES) <
           kv_round_up(layout->object_bytes, KV_PAGE_BYTES);
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
    return kv_record_packed_saves(layout, used) ? used : 0;
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

static void put_fields(const kv_layout_t *layout, const kv_record_t *record, char *header)
{
    kv_put_u64(header + AT_STORED_BYTES, record->stored_bytes);
    kv_put_u64(header + AT_OBJECT_BYTES, layout->object_bytes);
    kv_put_u32(header + AT_CODEC, (uint32_t)record->codec);
    kv_put_u32(header + AT_POSITION, record->position);
    kv_put_u32(header + AT_TOKEN_COUNT, layout->block_tokens);
    kv_put_u32(header + AT_UNIT_COUNT, layout->unit_count);
    memcpy(header + AT_NAMESPACE, record->name_space.bytes, KVIST_KEY_BYTES);
    memcpy(header + AT_KEY, record->key.bytes, KVIST_KEY_BYTES);
    memcpy(header + AT_PARENT, record->parent.bytes, KVIST_KEY_BYTES);
    memcpy(header + AT_LAYOUT, layout->digest.bytes, KVIST_KEY_BYTES);
    kv_put_u64(header + AT_CREATED, record->created_unix_ns);
    kv_put_u64(header + AT_USED, record->used_unix_ns);
    memcpy(header + AT_ORIGIN, record->origin, KV_ORIGIN_BYTES);
    memcpy(header + AT_ARITHMETIC, record->arithmetic, KV_ARITHMETIC_BYTES);
    kv_put_u32(header + AT_EXPIRES, record->expires_s);
    kv_put_u32(header + AT_PIN, record->pin_until_s);
    header[AT_PRIORITY] = (char)record->priority;
    header[AT_GROUP] = (char)record->group;
    memcpy(header + AT_TENANT, record->tenant, KV_TENANT_BYTES);
}

static void put_key(const kv_record_key_t *key, char *header)
{
    kv_put_u32(header + AT_KEY_SLOT, key->id.slot);
    memcpy(header + AT_KEY_ID, key->id.bytes, KV_KEY_ID_BYTES);
    memcpy(header + AT_RECORD_ID, key->record_id, KV_RECORD_ID_BYTES);
}

/* The rest of a record that has the units' checksums, and their lengths unless it is of codec none.
 * object: where its units are now, if they are not in the payload: encrypted from there. */
static void finish_record(const kv_layout_t *layout, kv_record_t *record, const uint32_t *words,
    size_t payload_bytes, const char *object, const kv_record_key_t *key, char *header)
{
    uint32_t version = version_of(layout, words, key != NULL);
    size_t header_bytes = header_bytes_of(layout, version);
    const uint64_t *checksums =
        (const uint64_t *)(const void *)(header + checksums_at(layout, version));
    char *payload = header + header_bytes, *lengths = header + lengths_at(layout, version);
    uint64_t object_checksum = kv_layout_object_checksum(layout, &record->key, checksums);
    if (record->codec == KVIST_CODEC_NONE) {
        put_plain_lengths(layout, lengths);
    }
    size_t padded = kv_round_up(payload_bytes, KV_PAGE_BYTES);
    memset(payload + payload_bytes, 0, padded - payload_bytes);
    record->stored_bytes = header_bytes + padded;
    record->sealed = key != NULL;

    kv_put_u64(header + AT_MAGIC, RECORD_MAGIC);
    kv_put_u32(header + AT_VERSION, version);
    kv_put_u32(header + AT_HEADER_BYTES, (uint32_t)header_bytes);
    kv_put_u64(header + AT_PAYLOAD_BYTES, payload_bytes);
    put_fields(layout, record, header);
    memcpy(header + tokens_at(version), words, stored_words_bytes(layout, version));
    if (key == NULL) {
        kv_put_u64(header + AT_OBJECT_CHECKSUM, object_checksum);
        return;
    }
    record->key_id = key->id;
    put_key(key, header);
    kv_put_u64(lengths - 8, object_checksum);
    seal(layout, key, object, header);
}

bool kv_record_write(const kv_layout_t *layout, kv_record_t *record, const uint32_t *words,
    const void *object, const uint64_t *expected, const kv_record_key_t *key, void *at)
{
    uint32_t version = version_of(layout, words, key != NULL);
    size_t header_bytes = header_bytes_of(layout, version);
    char *header = at, *payload = header + header_bytes;
    memset(header, 0, header_bytes);

    /* 8-aligned: at is page-aligned */
    uint64_t *checksums = (uint64_t *)(void *)(header + checksums_at(layout, version));
    bool plain = record->codec == KVIST_CODEC_NONE, in_place = (const char *)object == payload;
    if (plain && !in_place && key == NULL) {
        copy_units(layout, object, payload, checksums);
    } else {
        kv_layout_unit_checksums(layout, object, checksums);
    }
    if (expected != NULL && memcmp(checksums, expected, (size_t)8 * layout->unit_count) != 0) {
        return false;
    }
    size_t payload_bytes = layout->object_bytes;
    if (!plain) {
        KV_CHECK(!in_place);
        payload_bytes = encode_units(
            layout, record->codec, object, payload, header + lengths_at(layout, version));
        if (payload_bytes == 0) {
            record->codec = KVIST_CODEC_NONE;
            payload_bytes = layout->object_bytes;
            if (key == NULL) {
                memcpy(payload, object, payload_bytes);
            }
        }
    }
    finish_record(layout, record, words, payload_bytes,
        record->codec == KVIST_CODEC_NONE ? object : NULL, key, header);
    return true;
}

void kv_record_write_packed(const kv_layout_t *layout, kv_record_t *record, const uint32_t *words,
    const kv_record_packed_t *packed, const kv_record_key_t *key, void *at)
{
    uint32_t version = version_of(layout, words, key != NULL);
    char *header = at;
    KV_CHECK(kv_record_packed_saves(layout, packed->payload_bytes));
    memset(header, 0, header_bytes_of(layout, version));
    memcpy(header + checksums_at(layout, version), packed->checksums,
        layout->unit_count * sizeof *packed->checksums);
    memcpy(header + lengths_at(layout, version), packed->lengths,
        layout->unit_count * sizeof *packed->lengths);
    finish_record(layout, record, words, packed->payload_bytes, NULL, key, header);
}

void kv_record_sign(void *at, uint64_t generation)
{
    char *header = at;
    size_t covered = kv_get_u32(header + AT_HEADER_BYTES) - (size_t)CHECKSUM_BYTES;
    kv_put_u64(header + AT_GENERATION, generation);
    kv_put_u64(header + covered, kv_checksum(header, covered));
}

/* ---- reading ---- */

/* What version 1 did not have is none. */
static bool version_known(uint32_t version)
{
    return version >= RECORD_VERSION_MIN && version <= RECORD_VERSION_MAX;
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
    if (is_sealed(version)) {
        record->sealed = true;
        record->key_id.slot = kv_get_u32(header + AT_KEY_SLOT);
        memcpy(record->key_id.bytes, header + AT_KEY_ID, KV_KEY_ID_BYTES);
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
    record->sealed = is_sealed(kv_get_u32(header + AT_VERSION));
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

/* The section that tells of content: where it stands, or decrypted into the scratch memory. Opens
 * the view's cipher. KV_MISSING: the key is gone. */
static kv_status_t open_section(const kv_layout_t *layout, const kv_record_reader_t *reader,
    const char *header, kv_record_view_t *view, const char **section_out)
{
    kv_secret_t secret;
    if (reader->keys == NULL || !kv_keyring_find(reader->keys, &view->record.key_id, &secret)) {
        return KV_MISSING;
    }
    uint32_t version = kv_get_u32(header + AT_VERSION);
    char *section = (char *)reader->scratch + section_scratch_at(layout);
    view->binding = binding_of(header);
    view->tags = header + tags_at(layout, version);
    view->cipher = cipher_of(&secret, header + AT_RECORD_ID, false);
    kv_wipe(&secret, sizeof secret);
    if (!kv_cipher_open(view->cipher, (uint32_t)SECTION_NUMBER, bound_to(&view->binding),
            header + AT_SECTION, section_bytes(layout, version), header + AT_SECTION_TAG,
            section)) {
        return KV_CORRUPT;
    }
    *section_out = section;
    return KV_OK;
}

/* The block's words: what the record has of them, and zeros. */
static const uint32_t *take_words(
    const kv_layout_t *layout, uint32_t version, const char *stored, void *scratch)
{
    char *words = (char *)scratch + words_scratch_at(layout);
    size_t bytes = stored_words_bytes(layout, version);
    memcpy(words, stored, bytes);
    memset(words + bytes, 0, (size_t)4 * layout->block_words - bytes);
    return (const uint32_t *)(const void *)words; /* 64-aligned, as far as the scratch memory is */
}

/* Whether what the header says agrees with itself. */
static bool proves(const kv_layout_t *layout, const char *header, size_t bytes,
    const kv_record_view_t *view, uint64_t object_checksum)
{
    const kv_record_t *record = &view->record;
    kvist_key_t key = kv_identity_block_key(&record->parent, view->words, layout->block_tokens);
    key = kv_identity_group_key(&key, record->group);
    size_t used = (size_t)(view->payload - header) + view->payload_bytes;
    return kv_key_equal(&key, &record->key) &&
           kv_layout_object_checksum(layout, &key, view->checksums) == object_checksum &&
           (record->codec != KVIST_CODEC_NONE || view->payload_bytes == layout->object_bytes) &&
           (bytes < record->stored_bytes || all_zero(header + used, record->stored_bytes - used));
}

kv_status_t kv_record_open(const kv_layout_t *layout, const kv_record_reader_t *reader,
    const kv_record_t *expected, const void *at, size_t bytes, kv_record_view_t *view_out)
{
    const char *header = at;
    kv_record_view_t view = {.scratch = reader->scratch};
    if (kv_record_read(at, bytes, &view.record) != KV_OK || !kv_record_fits(layout, at) ||
        !as_expected(&view.record, expected)) {
        return KV_CORRUPT;
    }
    uint32_t version = kv_get_u32(header + AT_VERSION);
    const char *section = header + tokens_at(version);
    kv_status_t status =
        view.record.sealed ? open_section(layout, reader, header, &view, &section) : KV_OK;
    if (status == KV_OK) {
        const char *checksums = section + (checksums_at(layout, version) - tokens_at(version));
        view.words = take_words(layout, version, section, reader->scratch);
        view.checksums = (const uint64_t *)(const void *)checksums; /* 8-aligned: so is the page */
        view.lengths = section + (lengths_at(layout, version) - tokens_at(version));
        view.payload = header + header_bytes_of(layout, version);
        view.payload_bytes = kv_get_u64(header + AT_PAYLOAD_BYTES);
        uint64_t object_checksum =
            kv_get_u64(view.record.sealed ? view.lengths - 8 : header + AT_OBJECT_CHECKSUM);
        status = proves(layout, header, bytes, &view, object_checksum) ? KV_OK : KV_CORRUPT;
    }
    if (status != KV_OK) {
        kv_record_close(&view);
        return status;
    }
    *view_out = view;
    return KV_OK;
}

void kv_record_close(kv_record_view_t *view)
{
    kv_cipher_destroy(view->cipher);
    view->cipher = NULL;
}

/* One unit, from its stored bytes to where it belongs in the object. */
static kv_status_t read_unit(const kv_layout_t *layout, const kv_record_view_t *view, uint32_t unit,
    const char *stored, size_t length)
{
    size_t bytes, offset = kv_layout_unit(layout, unit, &bytes);
    char *to = view->scratch + offset;
    if (view->cipher != NULL) {
        if (length > bytes) {
            return KV_CORRUPT;
        }
        char *clear = length == bytes ? to : view->scratch + unit_scratch_at(layout);
        if (!kv_cipher_open(view->cipher, unit, bound_to(&view->binding), stored, length,
                view->tags + (size_t)KV_TAG_BYTES * unit, clear)) {
            return KV_CORRUPT;
        }
        if (length == bytes) {
            return KV_OK;
        }
        stored = clear;
    }
    return kv_codec_decode(view->record.codec, stored, length, to, bytes);
}

kv_status_t kv_record_object(
    const kv_layout_t *layout, const kv_record_view_t *view, const void **object_out)
{
    if (view->record.codec == KVIST_CODEC_NONE && view->cipher == NULL) {
        *object_out = view->payload;
        return KV_OK;
    }
    uint64_t used = 0;
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        uint32_t length = kv_get_u32(view->lengths + (size_t)4 * i);
        if (length > view->payload_bytes - used) {
            return KV_CORRUPT;
        }
        kv_status_t status = read_unit(layout, view, i, view->payload + used, length);
        if (status != KV_OK) {
            return status;
        }
        used += length;
    }
    *object_out = view->scratch;
    return used == view->payload_bytes ? KV_OK : KV_CORRUPT;
}

/* All units decrypted, one after the other. */
static kv_status_t decrypt_units(const kv_layout_t *layout, const kv_record_view_t *view)
{
    size_t used = 0;
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        size_t length = kv_get_u32(view->lengths + (size_t)4 * i);
        if (!kv_cipher_open(view->cipher, i, bound_to(&view->binding), view->payload + used, length,
                view->tags + (size_t)KV_TAG_BYTES * i, view->scratch + used)) {
            return KV_CORRUPT;
        }
        used += length;
    }
    return KV_OK;
}

kv_status_t kv_record_packed(const kv_layout_t *layout, const kv_record_view_t *view,
    const char **payload_out, const uint32_t **lengths_out)
{
    size_t used = 0;
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        size_t bytes, length = kv_get_u32(view->lengths + (size_t)4 * i);
        kv_layout_unit(layout, i, &bytes);
        if (length > bytes) {
            return KV_CORRUPT;
        }
        used += length;
    }
    if (used != view->payload_bytes ||
        (view->cipher != NULL && decrypt_units(layout, view) != KV_OK)) {
        return KV_CORRUPT;
    }
    *payload_out = view->cipher != NULL ? view->scratch : view->payload;
    *lengths_out = (const uint32_t *)(const void *)view->lengths; /* as checksums, read in place */
    return KV_OK;
}

kv_status_t kv_record_verify(const kv_layout_t *layout, const kv_record_reader_t *reader,
    const kv_record_t *expected, const void *at, size_t bytes, const void **object_out,
    uint32_t *words_out)
{
    kv_record_view_t view;
    kv_status_t status = kv_record_open(layout, reader, expected, at, bytes, &view);
    if (status != KV_OK) {
        return status;
    }
    const void *object;
    bool good = view.record.stored_bytes == bytes &&
                kv_record_object(layout, &view, &object) == KV_OK &&
                kv_layout_units_agree(layout, object, view.checksums);
    if (good) {
        memcpy(words_out, view.words, layout->block_words * sizeof *words_out);
        *object_out = object;
    }
    kv_record_close(&view);
    return good ? KV_OK : KV_CORRUPT;
}
