/* Encryption, piece by piece: the cipher against vectors that another implementation made
 * (docs/formats.md), the key file, the ring of keys, and records that somebody meddles with. */
#include "base/bytes.h"
#include "kvstore/crypt/key_file.h"
#include "kvstore/crypt/keyring.h"
#include "kvstore/disk/record.h"

#include "harness.h"

static void count_up(void *bytes, size_t count, uint8_t first)
{
    for (size_t i = 0; i < count; i++) {
        ((uint8_t *)bytes)[i] = (uint8_t)(first + i);
    }
}

static void assert_hex(const void *bytes, size_t count, const char *expected)
{
    char text[2 * 64 + 1];
    assert_true(count <= 64);
    kv_hex_encode(bytes, count, text);
    assert_string_equal(text, expected);
}

static bool with_extra; /* blocks of samples have an extra key */

/* In their records. */
static size_t word_bytes(void)
{
    return BLOCK_TOKENS * 4 + (with_extra ? KVIST_KEY_BYTES : 0);
}

/* ---- the cipher ---- */

static void the_cipher_is_the_one_of_the_format(void **state)
{
    (void)state;
    static const char UNIT[] = "a unit of a record";
    enum { UNIT_BYTES = sizeof UNIT - 1 };
    kv_error_t error;
    kv_secret_t master, secret;
    uint8_t ring[16], id[32], sealed[UNIT_BYTES], tag[KV_TAG_BYTES], back[UNIT_BYTES];
    assert_int_equal(kv_cipher_check(&error), KV_OK);
    count_up(master.bytes, sizeof master.bytes, 0);
    count_up(ring, sizeof ring, 0);
    kv_secret_t check = kv_secret_derive(&master, ring, sizeof ring, "kvist check 1");
    assert_hex(check.bytes, 16, "51d72e2a086e3976ef702dbbdde5977b");

    count_up(secret.bytes, sizeof secret.bytes, 32);
    count_up(id, sizeof id, 64);
    kv_secret_t key = kv_secret_derive(&secret, id, sizeof id, "kvist record 3");
    assert_hex(key.bytes, sizeof key.bytes,
        "841d6063fbd9f5e56d6bd9ea633258f6f3ee97f01287328d79b58ec8dce64c87");
    kvist_key_t binding = kv_identity_digest("header", 6);
    kv_associated_t bound = {binding.bytes, sizeof binding.bytes};
    kv_cipher_t *cipher = kv_cipher_create(&key, true);
    kv_cipher_seal(cipher, 7, bound, UNIT, UNIT_BYTES, sealed, tag);
    kv_cipher_destroy(cipher);
    assert_hex(sealed, sizeof sealed, "7bcb0822d177b6e24efedc3c3a8c610f353a");
    assert_hex(tag, sizeof tag, "7b0d115461eccc57bcb1b0583254cfcd");

    cipher = kv_cipher_create(&key, false);
    assert_true(kv_cipher_open(cipher, 7, bound, sealed, UNIT_BYTES, tag, back));
    assert_memory_equal(back, UNIT, UNIT_BYTES);
    assert_false(kv_cipher_open(cipher, 8, bound, sealed, UNIT_BYTES, tag, back));
    bound.count--;
    assert_false(kv_cipher_open(cipher, 7, bound, sealed, UNIT_BYTES, tag, back));
    kv_cipher_destroy(cipher);
}

/* ---- the key file ---- */

typedef struct {
    char folder[400], key_file[512];
} place_t;

static void make_place(place_t *place, const char *name)
{
    kv_error_t error;
    snprintf(place->folder, sizeof place->folder, "%s/%s%s", kv_test_folder(), name,
        with_extra ? "-extra" : "");
    snprintf(place->key_file, sizeof place->key_file, "%s/key", place->folder);
    assert_int_equal(mkdir(place->folder, 0700), 0);
    assert_int_equal(kvist_key_file_new(place->key_file, &error), KV_OK);
}

static size_t read_all(const char *path, char *bytes_out, size_t capacity)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t got = fread(bytes_out, 1, capacity, file);
    fclose(file);
    return got;
}

static void write_all(const char *path, const void *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

static kv_status_t try_key_file(const char *path, const char *said)
{
    kv_error_t error = {0};
    kv_masters_t masters;
    kv_status_t status = kv_key_file_read(kv_files_posix(), path, &masters, &error);
    if (status != KV_OK) {
        assert_non_null(strstr(error.text, path));
        assert_non_null(strstr(error.text, said));
    }
    return status;
}

static void a_key_file_is_its_owners_and_whole(void **state)
{
    (void)state;
    place_t place;
    char text[512];
    kv_error_t error;
    struct stat info;
    make_place(&place, "key-file");
    assert_int_equal(stat(place.key_file, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(try_key_file(place.key_file, ""), KV_OK);
    assert_int_equal(
        kvist_key_file_new(place.key_file, &error), KV_REFUSED); /* never overwritten */
    assert_int_equal(try_key_file(place.folder, ""), KV_INVALID);

    size_t bytes = read_all(place.key_file, text, sizeof text);
    assert_int_equal(bytes, 12 + 65);
    for (mode_t mode = 1; mode < 0100; mode <<= 1) {
        assert_int_equal(chmod(place.key_file, 0600 | mode), 0);
        assert_int_equal(try_key_file(place.key_file, "chmod 600"), KV_REFUSED);
    }
    assert_int_equal(chmod(place.key_file, 0600), 0);
    for (size_t cut = 0; cut < bytes; cut++) {
        write_all(place.key_file, text, cut);
        assert_int_equal(try_key_file(place.key_file, ""), KV_INVALID);
    }
    text[20] = 'x';
    write_all(place.key_file, text, bytes);
    assert_int_equal(try_key_file(place.key_file, "line 2"), KV_INVALID);
    unlink(place.key_file);
    assert_int_equal(try_key_file(place.key_file, "kvist keys new"), KV_MISSING);
}

/* ---- the ring ---- */

static kv_status_t open_ring(const place_t *place, kv_keyring_t **ring_out, const char *said)
{
    kv_error_t error = {0};
    kv_status_t status =
        kv_keyring_open(kv_files_posix(), place->key_file, place->folder, ring_out, &error);
    if (status != KV_OK && said == NULL) {
        print_message("%s\n", error.text);
    }
    if (status != KV_OK && said != NULL) {
        assert_non_null(strstr(error.text, said));
    }
    return status;
}

static void take(kv_keyring_t *ring, const char *tenant, kv_key_id_t *id, kv_secret_t *secret)
{
    char padded[KV_TENANT_BYTES] = {0};
    kv_error_t error = {0};
    snprintf(padded, sizeof padded, "%s", tenant);
    assert_int_equal(kv_keyring_take(ring, padded, id, secret, &error), KV_OK);
}

static bool same_key(const kv_secret_t *left, const kv_secret_t *right)
{
    return memcmp(left->bytes, right->bytes, sizeof left->bytes) == 0;
}

/* path_out: of the ring's file, beside the key file. */
static void find_ring(const place_t *place, char *path_out, size_t path_bytes)
{
    char note[256], id[33];
    snprintf(path_out, path_bytes, "%s/keys", place->folder);
    note[read_all(path_out, note, sizeof note - 1)] = '\0';
    assert_int_equal(sscanf(note, "kvist-keys 1\nring %32s", id), 1);
    snprintf(path_out, path_bytes, "%s.%s", place->key_file, id);
}

enum { NAME_BYTES = 16 };

/* The first one is nobody's. */
static void tenant_name(int number, char name_out[NAME_BYTES])
{
    name_out[0] = '\0';
    if (number > 0) {
        snprintf(name_out, NAME_BYTES, "t%d", number);
    }
}

static void keys_of_tenants_outlive_the_process(void **state)
{
    (void)state;
    enum { TENANTS = 200 }; /* more than the file has room for at first */
    place_t place;
    kv_keyring_t *ring;
    kv_key_id_t ids[TENANTS], id;
    kv_secret_t secrets[TENANTS], secret;
    char name[NAME_BYTES];
    make_place(&place, "ring");
    assert_int_equal(open_ring(&place, &ring, NULL), KV_OK);
    for (int i = 0; i < TENANTS; i++) {
        tenant_name(i, name);
        take(ring, name, &ids[i], &secrets[i]);
        assert_true(i == 0 || !same_key(&secrets[i], &secrets[i - 1]));
    }
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < TENANTS; i++) {
            tenant_name(i, name);
            take(ring, name, &id, &secret);
            assert_true(same_key(&secret, &secrets[i]));
            assert_true(kv_keyring_find(ring, &ids[i], &secret));
            assert_true(same_key(&secret, &secrets[i]));
        }
        kv_keyring_close(ring);
        assert_int_equal(open_ring(&place, &ring, NULL), KV_OK);
    }
    kv_keyring_t *second;
    assert_int_equal(open_ring(&place, &second, "in use by another process"), KV_BUSY);
    id = ids[3];
    id.bytes[5] ^= 1;
    assert_false(kv_keyring_find(ring, &id, &secret));
    id = ids[3];
    id.slot = UINT32_MAX;
    assert_false(kv_keyring_find(ring, &id, &secret));
    kv_keyring_close(ring);
}

static void a_dropped_key_is_nowhere(void **state)
{
    (void)state;
    place_t place;
    kv_keyring_t *ring;
    kv_key_id_t id, other_id;
    kv_secret_t secret, other, again;
    kv_error_t error;
    char path[600], before[64 << 10], after[64 << 10];
    make_place(&place, "dropped");
    assert_int_equal(open_ring(&place, &ring, NULL), KV_OK);
    take(ring, "going", &id, &secret);
    take(ring, "staying", &other_id, &other);
    find_ring(&place, path, sizeof path);
    size_t bytes = read_all(path, before, sizeof before);
    assert_non_null(memmem(before, bytes, "going", 5));
    assert_null(memmem(before, bytes, secret.bytes, sizeof secret.bytes)); /* wrapped */

    assert_true(kv_keyring_has(ring, "going"));
    kv_keyring_retire(ring, "going");
    kv_keyring_retire(ring, "nobody");
    assert_false(kv_keyring_has(ring, "going"));
    assert_false(kv_keyring_find(ring, &id, NULL));
    take(ring, "going", &other_id, &again); /* who comes meanwhile gets another */
    assert_false(same_key(&again, &secret));
    assert_int_equal(kv_keyring_destroy_retired(ring, &error), KV_OK);

    assert_int_equal(read_all(path, after, sizeof after), bytes);
    const char *sector = before + 512; /* of the first tenant */
    assert_memory_equal(sector + 16, id.bytes, sizeof id.bytes);
    assert_null(memmem(after, bytes, sector + 16, 16));
    assert_null(memmem(after, bytes, sector + 64, 32));
    kv_keyring_close(ring);
    assert_int_equal(open_ring(&place, &ring, NULL), KV_OK);
    assert_false(kv_keyring_find(ring, &id, NULL));
    take(ring, "going", &other_id, &secret);
    assert_true(same_key(&again, &secret));
    take(ring, "staying", &other_id, &secret);
    assert_true(same_key(&other, &secret));
    kv_keyring_close(ring);
}

static void what_is_wrong_with_keys_is_said(void **state)
{
    (void)state;
    place_t place;
    kv_keyring_t *ring;
    kv_key_id_t id;
    kv_secret_t secret;
    kv_error_t error = {0};
    char path[600], aside[640], ring_bytes[64 << 10], text[512];
    make_place(&place, "wrong");
    assert_int_equal(open_ring(&place, &ring, NULL), KV_OK);
    take(ring, "tenant", &id, &secret);
    kv_keyring_close(ring);
    find_ring(&place, path, sizeof path);

    assert_int_equal(
        kv_keyring_open(kv_files_posix(), NULL, place.folder, &ring, &error), KV_REFUSED);
    assert_non_null(strstr(error.text, "key_file must name"));
    place_t other = place;
    snprintf(other.key_file, sizeof other.key_file, "%s/other", other.folder);
    assert_int_equal(kvist_key_file_new(other.key_file, &error), KV_OK);
    assert_int_equal(open_ring(&other, &ring, "is not the key that the blocks in"), KV_REFUSED);

    snprintf(aside, sizeof aside, "%s.aside", path);
    assert_int_equal(rename(path, aside), 0);
    assert_int_equal(open_ring(&place, &ring, "is missing"), KV_MISSING);
    assert_int_equal(rename(aside, path), 0);

    size_t bytes = read_all(path, ring_bytes, sizeof ring_bytes);
    for (size_t cut = 0; cut < bytes; cut += 511) {
        write_all(path, ring_bytes, cut);
        assert_int_equal(open_ring(&place, &ring, "was cut off"), KV_CORRUPT);
    }
    for (size_t at = 0; at < 1024; at++) { /* the ring's own sector, and the tenant's */
        ring_bytes[at] ^= 0x10;
        write_all(path, ring_bytes, bytes);
        assert_int_equal(open_ring(&place, &ring, "damaged"), KV_CORRUPT);
        ring_bytes[at] ^= 0x10;
    }
    write_all(path, ring_bytes, bytes);

    char note[600];
    snprintf(note, sizeof note, "%s/keys", place.folder);
    size_t note_bytes = read_all(note, text, sizeof text);
    text[30] = '-';
    write_all(note, text, note_bytes);
    assert_int_equal(open_ring(&place, &ring, "is damaged"), KV_CORRUPT);
    write_all(note, "", 0); /* as a crash leaves it that came before any record */
    assert_int_equal(open_ring(&place, &ring, NULL), KV_OK);
    kv_keyring_close(ring);
}

static void the_master_key_is_replaced(void **state)
{
    (void)state;
    place_t place;
    kv_keyring_t *ring;
    kv_key_id_t id;
    kv_secret_t secret, again;
    kv_error_t error;
    char text[512], old[512];
    make_place(&place, "rotated");
    assert_int_equal(open_ring(&place, &ring, NULL), KV_OK);
    take(ring, "tenant", &id, &secret);
    kv_keyring_close(ring);
    size_t old_bytes = read_all(place.key_file, old, sizeof old);
    assert_int_equal(kvist_key_file_rotate(place.key_file, &error), KV_OK);
    size_t bytes = read_all(place.key_file, text, sizeof text);
    assert_int_equal(bytes, 12 + 2 * 65);
    assert_memory_equal(text + 12 + 65, old + 12, 65);

    write_all(place.key_file, text, 12 + 65); /* too early: no store knows the new one yet */
    assert_int_equal(open_ring(&place, &ring, "is not the key"), KV_REFUSED);
    write_all(place.key_file, text, bytes);
    assert_int_equal(open_ring(&place, &ring, NULL), KV_OK);
    assert_true(kv_keyring_find(ring, &id, &again) && same_key(&secret, &again));
    kv_keyring_close(ring);
    write_all(place.key_file, text, 12 + 65);
    assert_int_equal(open_ring(&place, &ring, NULL), KV_OK);
    assert_true(kv_keyring_find(ring, &id, &again) && same_key(&secret, &again));
    kv_keyring_close(ring);
    write_all(place.key_file, old, old_bytes);
    assert_int_equal(open_ring(&place, &ring, "is not the key"), KV_REFUSED);
}

/* ---- records ---- */

enum { LAYERS = 3, HEADS = 2, UNITS = LAYERS * HEADS * 2 };

typedef struct {
    place_t place;
    kv_keyring_t *ring;
    kv_layout_t layout;
    kv_record_t record;
    uint32_t words[BLOCK_TOKENS + KV_EXTRA_WORDS];
    char *object, *at, *scratch;
} sample_t;

static void write_record(sample_t *sample, const char *tenant, kvist_codec_t codec)
{
    kv_error_t error;
    kv_record_key_t key;
    memset(sample->record.tenant, 0, sizeof sample->record.tenant);
    snprintf(sample->record.tenant, sizeof sample->record.tenant, "%s", tenant);
    sample->record.codec = codec;
    assert_int_equal(
        kv_keyring_take(sample->ring, sample->record.tenant, &key.id, &key.secret, &error), KV_OK);
    assert_int_equal(kv_random(key.record_id, sizeof key.record_id), KV_OK);
    assert_true(kv_record_write(
        &sample->layout, &sample->record, sample->words, sample->object, NULL, &key, sample->at));
    kv_record_sign(sample->at, 7);
    assert_true(sample->record.sealed);
}

static void make_sample(sample_t *sample, const char *name, kvist_codec_t codec)
{
    kv_error_t error;
    kv_block_shape_t shape = {LAYERS, HEADS, 32, BLOCK_TOKENS, 2};
    kvist_layout_t layout = kvist_layout_plain(&shape);
    memset(sample, 0, sizeof *sample);
    make_place(&sample->place, name);
    assert_int_equal(open_ring(&sample->place, &sample->ring, NULL), KV_OK);
    assert_int_equal(kv_layout_init(&layout, 0, &sample->layout, &error), KV_OK);
    sample->object = malloc(sample->layout.object_bytes);
    sample->scratch = malloc(kv_record_scratch_bytes(&sample->layout));
    sample->at = aligned_alloc(KV_PAGE_BYTES, kv_record_bytes_max(&sample->layout));
    for (size_t i = 0; i < sample->layout.object_bytes; i++) {
        sample->object[i] = (char)(i / 512 * 7 + i % 5);
    }
    uint32_t tokens[BLOCK_TOKENS];
    const kvist_key_t extra = kv_identity_digest("image", 5);
    make_tokens(3, 0, tokens, BLOCK_TOKENS);
    kv_identity_words(tokens, with_extra ? &extra : NULL, 1, BLOCK_TOKENS, sample->words);
    kv_record_t *record = &sample->record;
    record->name_space = kv_identity_digest("space", 5);
    record->parent = kv_identity_digest("parent", 6);
    record->key = kv_identity_block_key(&record->parent, sample->words, BLOCK_TOKENS);
    record->generation = 7;
    record->position = 9;
    write_record(sample, "tenant", codec);
}

static void end_sample(sample_t *sample)
{
    kv_keyring_close(sample->ring);
    free(sample->object);
    free(sample->scratch);
    free(sample->at);
}

/* What is read is right, or nothing is. The record itself is left as it is. */
static kv_status_t verify(const sample_t *sample)
{
    const void *object;
    uint32_t words[BLOCK_TOKENS + KV_EXTRA_WORDS];
    const kv_record_reader_t reader = {sample->ring, sample->scratch};
    char *before = malloc(sample->record.stored_bytes);
    memcpy(before, sample->at, sample->record.stored_bytes);
    kv_status_t status = kv_record_verify(&sample->layout, &reader, &sample->record, sample->at,
        sample->record.stored_bytes, &object, words);
    assert_memory_equal(before, sample->at, sample->record.stored_bytes);
    free(before);
    if (status == KV_OK) {
        assert_memory_equal(object, sample->object, sample->layout.object_bytes);
        assert_memory_equal(words, sample->words, sizeof words);
    }
    return status;
}

/* Whether count bytes of the content stand anywhere in the record. */
static bool shows(const sample_t *sample, const void *content, size_t count)
{
    return memmem(sample->at, sample->record.stored_bytes, content, count) != NULL;
}

static void an_encrypted_record_shows_no_content(void **state)
{
    (void)state;
    for (int codec = KVIST_CODEC_NONE; codec <= KVIST_CODEC_LZ4; codec++) {
        sample_t sample;
        make_sample(
            &sample, codec == KVIST_CODEC_NONE ? "shows-none" : "shows-lz4", (kvist_codec_t)codec);
        assert_int_equal(sample.record.codec, codec);
        assert_int_equal(verify(&sample), KV_OK);
        uint64_t checksums[UNITS];
        kv_layout_unit_checksums(&sample.layout, sample.object, checksums);
        uint64_t whole = kv_layout_object_checksum(&sample.layout, &sample.record.key, checksums);
        assert_false(shows(&sample, &whole, sizeof whole));
        for (size_t i = 0; i < UNITS; i++) {
            assert_false(shows(&sample, &checksums[i], sizeof checksums[i]));
        }
        size_t words = BLOCK_TOKENS + (with_extra ? KV_EXTRA_WORDS : 0);
        for (size_t i = 0; i + 2 <= words; i++) {
            assert_false(shows(&sample, &sample.words[i], 2 * sizeof(uint32_t)));
        }
        for (size_t i = 0; i + 16 <= sample.layout.object_bytes; i += 16) {
            assert_false(shows(&sample, sample.object + i, 16));
        }
        /* The same again looks altogether different. */
        char *first = malloc(sample.record.stored_bytes);
        size_t at = kv_record_header_bytes(&sample.layout, sample.words, true);
        memcpy(first, sample.at, sample.record.stored_bytes);
        write_record(&sample, "tenant", (kvist_codec_t)codec);
        for (; at + 16 <= sample.record.stored_bytes - KV_PAGE_BYTES; at += 16) {
            assert_memory_not_equal(first + at, sample.at + at, 16);
        }
        free(first);
        end_sample(&sample);
    }
}

static void no_flipped_bit_is_read(void **state)
{
    (void)state;
    for (int codec = KVIST_CODEC_NONE; codec <= KVIST_CODEC_LZ4; codec++) {
        sample_t sample;
        make_sample(
            &sample, codec == KVIST_CODEC_NONE ? "flip-none" : "flip-lz4", (kvist_codec_t)codec);
        size_t header_bytes = kv_record_header_bytes(&sample.layout, sample.words, true);
        for (size_t at = 0; at < sample.record.stored_bytes; at++) {
            sample.at[at] ^= 4;
            assert_int_equal(verify(&sample), KV_CORRUPT);
            sample.at[at] ^= 4;
        }
        /* And where somebody makes the header's checksum agree: of what is encrypted or covered by
         * tags nothing; the rest is the object's terms, which are no content, and padding. */
        uint32_t good = 0, missing = 0;
        for (size_t at = 16; at < header_bytes - 8; at++) {
            sample.at[at] ^= 4;
            kv_record_sign(sample.at, 7);
            kv_status_t status = verify(&sample);
            bool terms =
                (at >= 16 && at < 24) || (at >= 200 && at < 208) || (at >= 296 && at < 304);
            bool key = (at >= 352 && at < 356) || (at >= 360 && at < 376);
            size_t used = 424 + word_bytes() + UNITS * 8 + 8 + UNITS * 4 + UNITS * 16;
            assert_int_equal(status, terms || at >= used ? KV_OK : key ? KV_MISSING : KV_CORRUPT);
            good += status == KV_OK;
            missing += status == KV_MISSING;
            sample.at[at] ^= 4;
        }
        kv_record_sign(sample.at, 7);
        assert_true(good > 24 && missing == 20);
        assert_int_equal(verify(&sample), KV_OK);
        end_sample(&sample);
    }
}

/* What belongs to one record, put into another: key, namespace, position, layout, tenant. */
static void nothing_serves_in_the_place_of_another(void **state)
{
    (void)state;
    sample_t sample;
    make_sample(&sample, "swapped", KVIST_CODEC_NONE);
    size_t bytes = sample.record.stored_bytes;
    size_t header_bytes = kv_record_header_bytes(&sample.layout, sample.words, true);
    size_t unit_bytes = sample.layout.unit_bytes_max;
    char *saved = malloc(bytes), *other = malloc(bytes), unit[4096];
    memcpy(saved, sample.at, bytes);
    kv_record_t record = sample.record;

    /* Two units, with their tags. */
    char *payload = sample.at + header_bytes;
    size_t tags = 424 + word_bytes() + UNITS * 8 + 8 + UNITS * 4;
    memcpy(unit, payload, unit_bytes);
    memmove(payload, payload + unit_bytes, unit_bytes);
    memcpy(payload + unit_bytes, unit, unit_bytes);
    memcpy(unit, sample.at + tags, 16);
    memmove(sample.at + tags, sample.at + tags + 16, 16);
    memcpy(sample.at + tags + 16, unit, 16);
    kv_record_sign(sample.at, 7);
    assert_int_equal(verify(&sample), KV_CORRUPT);

    /* Payload or section of another writing of the same object. */
    write_record(&sample, "tenant", KVIST_CODEC_NONE);
    memcpy(other, sample.at, bytes);
    memcpy(sample.at + header_bytes, saved + header_bytes, bytes - header_bytes);
    assert_int_equal(verify(&sample), KV_CORRUPT);
    memcpy(sample.at, saved, bytes);
    memcpy(sample.at + 408, other + 408, 16 + word_bytes() + UNITS * 12 + 8);
    kv_record_sign(sample.at, 7);
    assert_int_equal(verify(&sample), KV_CORRUPT);

    /* Another tenant's record, given out for this one's: its key's id, and its record's. */
    write_record(&sample, "other", KVIST_CODEC_NONE);
    memcpy(sample.at + 320, saved + 320, 88);
    kv_record_sign(sample.at, 7);
    sample.record = record;
    assert_int_equal(verify(&sample), KV_CORRUPT);

    /* Another namespace, position, parent or key in the header, as a reader expects it. */
    for (size_t at = 52; at < 160; at += 36) {
        memcpy(sample.at, saved, bytes);
        sample.at[at] ^= 1;
        sample.record = record;
        kv_record_sign(sample.at, 7);
        assert_int_equal(kv_record_read(sample.at, bytes, &sample.record), KV_OK);
        assert_int_equal(verify(&sample), KV_CORRUPT);
    }
    /* Where it lies is no part of it: it is moved as it is. */
    memcpy(sample.at, saved, bytes);
    kv_record_sign(sample.at, 8);
    sample.record = record;
    sample.record.generation = 8;
    assert_int_equal(verify(&sample), KV_OK);
    free(saved);
    free(other);
    end_sample(&sample);
}

static void a_record_without_its_key_is_missing_and_not_damaged(void **state)
{
    (void)state;
    sample_t sample;
    kv_error_t error;
    make_sample(&sample, "gone", KVIST_CODEC_LZ4);
    kv_keyring_retire(sample.ring, "tenant");
    assert_int_equal(verify(&sample), KV_MISSING);
    assert_int_equal(kv_keyring_destroy_retired(sample.ring, &error), KV_OK);
    assert_int_equal(verify(&sample), KV_MISSING);
    kv_key_id_t id;
    kv_secret_t secret;
    take(sample.ring, "tenant", &id, &secret); /* the name alone brings nothing back */
    assert_int_equal(verify(&sample), KV_MISSING);
    kv_keyring_close(sample.ring);
    sample.ring = NULL;
    assert_int_equal(verify(&sample), KV_MISSING);
    end_sample(&sample);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cipher_is_the_one_of_the_format),
        cmocka_unit_test(a_key_file_is_its_owners_and_whole),
        cmocka_unit_test(keys_of_tenants_outlive_the_process),
        cmocka_unit_test(a_dropped_key_is_nowhere),
        cmocka_unit_test(what_is_wrong_with_keys_is_said),
        cmocka_unit_test(the_master_key_is_replaced),
    };
    const struct CMUnitTest of_records[] = {
        cmocka_unit_test(an_encrypted_record_shows_no_content),
        cmocka_unit_test(no_flipped_bit_is_read),
        cmocka_unit_test(nothing_serves_in_the_place_of_another),
        cmocka_unit_test(a_record_without_its_key_is_missing_and_not_damaged),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed += cmocka_run_group_tests_name("records", of_records, NULL, NULL);
    with_extra = true;
    return failed + cmocka_run_group_tests_name("with extra keys", of_records, NULL, NULL);
}
