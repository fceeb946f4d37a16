/* A directory of format 1, as the program before this one left it: written here, byte by byte after
 * docs/formats.md, by code that shares nothing with the store's. It is read, stored on top of, and
 * read again. */
#include "harness.h"

#include "base/bytes.h"
#include "base/checksum.h"

#include <fcntl.h>

enum {
    CONTEXTS = 5,
    BLOCKS = 6,
    UNITS = 8, /* 2 layers, K and V, 2 heads */
    UNIT_BYTES = 256,
    OBJECT_BYTES = UNITS * UNIT_BYTES,
    PAGE = 4096,
    RECORD_BYTES = 2 * PAGE,
    SEGMENT_BYTES = 256 << 10,
};
#define GENERATION 77u

/* ---- the writer ---- */

static kvist_key_t layout_digest(void)
{
    static const uint32_t FIELDS[] = {1, 2, 2, 8, BLOCK_TOKENS, 2};
    uint8_t encoded[sizeof FIELDS];
    for (size_t i = 0; i < sizeof FIELDS / sizeof FIELDS[0]; i++) {
        kv_put_u32(encoded + 4 * i, FIELDS[i]);
    }
    return kv_identity_digest(encoded, sizeof encoded);
}

typedef struct {
    kvist_key_t name_space, key, parent;
    uint32_t position;
    const uint32_t *tokens;
    uint64_t offset;
} block_1_t;

/* tokens at 320, unit checksums at 384, lengths after them, the header's checksum at its end. */
static void make_record(const block_1_t *block, uint8_t record[RECORD_BYTES])
{
    kvist_key_t layout = layout_digest();
    uint64_t checksums[UNITS];
    memset(record, 0, RECORD_BYTES);
    fill_block(&block->key, (char *)record + PAGE, OBJECT_BYTES);
    memcpy(record, "KVISTREC", 8);
    kv_put_u32(record + 8, 1);
    kv_put_u32(record + 12, PAGE);
    kv_put_u64(record + 16, GENERATION);
    kv_put_u64(record + 24, RECORD_BYTES);
    kv_put_u64(record + 32, OBJECT_BYTES);
    kv_put_u64(record + 40, OBJECT_BYTES);
    kv_put_u32(record + 52, block->position);
    kv_put_u32(record + 56, BLOCK_TOKENS);
    kv_put_u32(record + 60, UNITS);
    memcpy(record + 64, block->name_space.bytes, KVIST_KEY_BYTES);
    memcpy(record + 96, block->key.bytes, KVIST_KEY_BYTES);
    memcpy(record + 128, block->parent.bytes, KVIST_KEY_BYTES);
    memcpy(record + 160, layout.bytes, KVIST_KEY_BYTES);
    kv_put_u64(record + 192, 1700000000000000000u);
    kv_put_u64(record + 200, 1700000001000000000u);
    memcpy(record + 216, "old-node", 8);
    memcpy(record + 248, "old/kernel", 10);
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++) {
        kv_put_u32(record + 320 + (size_t)4 * i, block->tokens[i]);
    }
    for (uint32_t i = 0; i < UNITS; i++) {
        checksums[i] = kv_checksum(record + PAGE + (size_t)UNIT_BYTES * i, UNIT_BYTES);
        kv_put_u64(record + 384 + (size_t)8 * i, checksums[i]);
        kv_put_u32(record + 448 + (size_t)4 * i, UNIT_BYTES);
    }
    uint64_t seed = kv_checksum(block->key.bytes, KVIST_KEY_BYTES);
    seed = kv_checksum_seeded(layout.bytes, KVIST_KEY_BYTES, seed);
    kv_put_u64(record + 208, kv_checksum_seeded(checksums, sizeof checksums, seed));
    kv_put_u64(record + PAGE - 8, kv_checksum(record, PAGE - 8));
}

static void put_entry(kv_index_batch_t *batch, const block_1_t *block)
{
    uint8_t name[1 + KVIST_KEY_BYTES] = {'o'}, value[184] = {1};
    memcpy(name + 1, block->key.bytes, KVIST_KEY_BYTES);
    kv_put_u32(value + 4, (uint32_t)(block->offset / PAGE));
    kv_put_u64(value + 8, GENERATION);
    kv_put_u32(value + 16, RECORD_BYTES / PAGE);
    kv_put_u32(value + 20, block->position);
    kv_put_u64(value + 24, 1700000000000000000u);
    kv_put_u64(value + 32, 1700000001000000000u);
    memcpy(value + 40, block->parent.bytes, KVIST_KEY_BYTES);
    memcpy(value + 72, block->name_space.bytes, KVIST_KEY_BYTES);
    memcpy(value + 104, "old-node", 8);
    memcpy(value + 136, "old/kernel", 10);
    kv_index_batch_put(batch, name, sizeof name, value, sizeof value);
}

static void write_at(int fd, const void *bytes, size_t count, uint64_t offset)
{
    assert_int_equal(pwrite(fd, bytes, count, (off_t)offset), count);
}

static int make_segment(const bench_t *bench)
{
    char path[600];
    uint8_t header[PAGE] = {0};
    snprintf(path, sizeof path, "%s/segment-00000", bench->folder);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, SEGMENT_BYTES), 0);
    memcpy(header, "KVISTSEG", 8);
    kv_put_u32(header + 8, 1);
    kv_put_u64(header + 16, GENERATION);
    kv_put_u64(header + 24, SEGMENT_BYTES);
    kv_put_u64(header + PAGE - 8, kv_checksum(header, PAGE - 8));
    write_at(fd, header, sizeof header, 0);
    return fd;
}

static void write_text(const bench_t *bench, const char *name, const char *text)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", bench->folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* CONTEXTS chains; of the last one the index knows nothing, as after a crash. complete: the index
 * has the mark that a later program gave it. */
static void make_directory(const bench_t *bench, bool complete)
{
    char path[600];
    kv_error_t error;
    assert_int_equal(mkdir(bench->folder, 0700), 0);
    write_text(bench, "format", "kvist-store 1\nsegment_bytes 262144\n");
    int fd = make_segment(bench);
    kv_index_batch_t batch = {0};
    uint64_t offset = PAGE, indexed_bytes = 0;
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        uint32_t tokens[BLOCKS * BLOCK_TOKENS];
        kvist_key_t keys[BLOCKS];
        make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
        kvist_keys(&bench->name_space, tokens, NULL, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS, keys);
        for (uint32_t i = 0; i < BLOCKS; i++, offset += RECORD_BYTES) {
            uint8_t record[RECORD_BYTES];
            block_1_t block = {bench->name_space, keys[i], i > 0 ? keys[i - 1] : bench->name_space,
                i, tokens + (size_t)i * BLOCK_TOKENS, offset};
            make_record(&block, record);
            write_at(fd, record, sizeof record, offset);
            if (context + 1 < CONTEXTS) {
                put_entry(&batch, &block);
            }
        }
        indexed_bytes = context + 2 == CONTEXTS ? offset : indexed_bytes;
    }
    close(fd);
    uint8_t value[16];
    kv_put_u64(value, GENERATION);
    kv_put_u64(value + 8, indexed_bytes);
    kv_index_batch_put(&batch, "s\0\0", 3, value, sizeof value);
    if (complete) {
        kv_index_batch_put(&batch, "mc", 2, NULL, 0);
    }
    kv_index_t *index;
    bool made;
    snprintf(path, sizeof path, "%s/index", bench->folder);
    assert_int_equal(kv_index_rocksdb_open(path, 0, &index, &made, &error), KV_OK);
    assert_int_equal(index->ops->write(index, &batch, true, &error), KV_OK);
    index->ops->close(index);
    kv_index_batch_release(&batch);
}

/* ---- tests ---- */

static void expect_contexts(bench_t *bench, uint32_t count)
{
    for (uint32_t context = 0; context < count; context++) {
        kvist_match_t match = request_context(bench, context, BLOCKS); /* checks the bytes */
        assert_int_equal(match.block_count, BLOCKS);
    }
    assert_int_equal(bench_stats(bench).damaged_objects, 0);
}

static void read_on_top_and_again(bool complete)
{
    bench_t bench;
    bench_init(&bench, "format-1", 16);
    bench_with_disk(&bench, 8);
    make_directory(&bench, complete);
    bench_open(&bench);
    expect_contexts(&bench, CONTEXTS);
    kvist_object_t object;
    kvist_key_t key = block_key(&bench, 1, 2);
    assert_int_equal(kvist_store_show(bench.store, &key, &object), KV_OK);
    assert_string_equal(object.origin, "old-node");
    assert_string_equal(object.arithmetic, "old/kernel");
    assert_int_equal(object.used_unix_ns / KV_NS_PER_S, kv_store_now_s(bench.store));
    assert_int_equal(object.created_unix_ns, 1700000000000000000u);
    assert_int_equal(object.expires_unix_ns, 0);
    for (uint32_t context = CONTEXTS; context < 2 * CONTEXTS; context++) {
        request_context(&bench, context, BLOCKS);
    }
    assert_int_equal(drop(&bench, 0, 2, false).status, KV_OK); /* of the old ones */
    bench_close(&bench);
    bench_open(&bench);
    assert_int_equal(found_blocks(&bench, 0, BLOCKS), 2);
    expect_contexts(&bench, 0);
    for (uint32_t context = 1; context < 2 * CONTEXTS; context++) {
        assert_int_equal(request_context(&bench, context, BLOCKS).block_count, BLOCKS);
    }
    assert_int_equal(bench_stats(&bench).damaged_objects, 0);
    check_accounts(&bench);
    bench_end(&bench);
}

static void format_1_is_read_stored_on_top_of_and_read_again(void **state)
{
    (void)state;
    read_on_top_and_again(false); /* from its records */
    read_on_top_and_again(true);  /* from its index */
}

static void what_format_1_does_not_allow_is_damage_there_too(void **state)
{
    (void)state;
    bench_t bench;
    char path[600];
    bench_init(&bench, "format-1-damaged", 16);
    bench_with_disk(&bench, 8);
    make_directory(&bench, true);
    snprintf(path, sizeof path, "%s/segment-00000", bench.folder);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    write_at(fd, "\x01", 1, PAGE + (uint64_t)3 * RECORD_BYTES + 300); /* context 0, block 3 */
    close(fd);
    bench_open(&bench);
    assert_int_equal(request_context(&bench, 0, BLOCKS).block_count, 3);
    assert_int_equal(bench_stats(&bench).damaged_objects, 1);
    bench_end(&bench);
}

static void a_newer_format_is_refused_in_words(void **state)
{
    (void)state;
    bench_t bench;
    kv_error_t error = {0};
    bench_init(&bench, "format-3", 16);
    bench_with_disk(&bench, 8);
    make_directory(&bench, true);
    write_text(&bench, "format", "kvist-store 6\nsegment_bytes 262144\n");
    assert_int_equal(
        kv_store_open_with(&bench.params, &bench.seams, &bench.store, &error), KV_REFUSED);
    assert_non_null(strstr(error.text, "format 6"));
    assert_non_null(strstr(error.text, "1 to 5"));
    assert_non_null(strstr(error.text, "use another directory"));
    write_text(&bench, "format", "kvist-store 1\nsegment_bytes 262144\n");
    bench_open(&bench); /* nothing was touched */
    expect_contexts(&bench, CONTEXTS);
    bench_end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(format_1_is_read_stored_on_top_of_and_read_again),
        cmocka_unit_test(what_format_1_does_not_allow_is_damage_there_too),
        cmocka_unit_test(a_newer_format_is_refused_in_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
