/* A store that encrypts: what lies on disk shows nothing, what was dropped is gone, keys that are
 * wrong are said to be. */
#include "base/bytes.h"

#include "harness.h"

#include <errno.h>
#include <stdatomic.h>

enum { BLOCKS = 6, CONTEXTS = 8 };

static const char *const TENANTS[] = {NULL, "acme", "umbrella"};

typedef struct {
    bench_t bench;
    char key_file[600];
} place_t;

static void make_place(place_t *place, const char *name, uint32_t segments)
{
    kv_error_t error;
    memset(place, 0, sizeof *place);
    bench_init(&place->bench, name, 64);
    bench_with_disk(&place->bench, segments);
    snprintf(place->key_file, sizeof place->key_file, "%s.key", place->bench.folder);
    assert_int_equal(kvist_key_file_new(place->key_file, &error), KV_OK);
    place->bench.params.key_file = place->key_file;
}

/* Each context is one tenant's. */
static kvist_match_t ask(bench_t *bench, uint32_t context)
{
    bench->tenant = TENANTS[context % 3];
    return request_context(bench, context, BLOCKS);
}

static void store_contexts(bench_t *bench)
{
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        assert_int_equal(ask(bench, context).block_count, 0);
    }
    assert_int_equal(flush(bench), KV_OK);
}

static void reopen(bench_t *bench)
{
    bench_close(bench);
    bench_open(bench);
}

/* ---- what lies on disk ---- */

typedef struct {
    char *bytes;
    size_t count;
} content_t;

static content_t content_of(const char *path)
{
    content_t content = {0};
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    content.count = (size_t)ftell(file);
    content.bytes = malloc(content.count + 1);
    rewind(file);
    assert_int_equal(fread(content.bytes, 1, content.count, file), content.count);
    fclose(file);
    return content;
}

/* Of the file the places where content of the contexts stands in clear. */
static uint32_t count_clear(const bench_t *bench, const content_t *content, uint32_t contexts)
{
    const kv_layout_t *layout = &bench->store->groups[0].layout;
    uint32_t tokens[BLOCKS * BLOCK_TOKENS], found = 0;
    char block[2048];
    uint64_t checksums[64];
    assert_true(layout->object_bytes == sizeof block && layout->unit_count <= 64);
    for (uint32_t context = 0; context < contexts; context++) {
        make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
        for (uint32_t i = 0; i < BLOCKS; i++) {
            kvist_key_t key = block_key(bench, context, i);
            fill_block(&key, block, sizeof block);
            kv_layout_unit_checksums(layout, block, checksums);
            uint64_t whole = kv_layout_object_checksum(layout, &key, checksums);
            found += memmem(content->bytes, content->count, &whole, 8) != NULL;
            for (uint32_t unit = 0; unit < layout->unit_count; unit++) {
                found += memmem(content->bytes, content->count, &checksums[unit], 8) != NULL;
                found += memmem(content->bytes, content->count, block + unit * 256, 16) != NULL;
            }
            for (uint32_t at = 0; at + 3 <= BLOCK_TOKENS; at += 3) {
                found += memmem(content->bytes, content->count, tokens + i * BLOCK_TOKENS + at,
                             3 * sizeof *tokens) != NULL;
            }
        }
    }
    return found;
}

static const bench_t *walked;
static uint32_t files_seen, clear_found;

static int look_at_file(const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info;
    (void)where;
    if (type == FTW_F) {
        content_t content = content_of(path);
        files_seen++;
        clear_found += count_clear(walked, &content, CONTEXTS);
        free(content.bytes);
    }
    return 0;
}

/* In all files of the store, its index among them. */
static uint32_t clear_in_folder(const bench_t *bench)
{
    walked = bench;
    files_seen = clear_found = 0;
    assert_int_equal(nftw(bench->folder, look_at_file, 16, FTW_PHYS), 0);
    assert_true(files_seen > 5);
    return clear_found;
}

static void nothing_in_clear_reaches_the_disk(void **state)
{
    (void)state;
    for (int codec = KVIST_CODEC_NONE; codec < KVIST_CODEC_COUNT; codec++) {
        place_t place;
        make_place(&place, "clear", 8);
        place.bench.params.codec = (kvist_codec_t)codec;
        bench_open(&place.bench);
        store_contexts(&place.bench);
        kvist_stats_t stats = bench_stats(&place.bench);
        assert_true(stats.encrypting);
        assert_int_equal(stats.encrypted_objects, CONTEXTS * BLOCKS);
        assert_int_equal(stats.tiers[KVIST_TIER_DISK].object_count, CONTEXTS * BLOCKS);
        assert_int_equal(clear_in_folder(&place.bench), 0);
        reopen(&place.bench);
        assert_int_equal(bench_stats(&place.bench).encrypted_objects, CONTEXTS * BLOCKS);
        for (uint32_t context = 0; context < CONTEXTS; context++) {
            assert_int_equal(ask(&place.bench, context).block_count, BLOCKS); /* and it looks */
        }
        bench_lose_index(&place.bench);
        reopen(&place.bench);
        assert_int_equal(ask(&place.bench, 5).block_count, BLOCKS);
        assert_int_equal(clear_in_folder(&place.bench), 0);
        bench_end(&place.bench);
    }
}

static void the_search_finds_what_is_in_clear(void **state)
{
    (void)state;
    place_t place;
    make_place(&place, "found", 8);
    place.bench.params.key_file = NULL;
    bench_open(&place.bench);
    store_contexts(&place.bench);
    /* Of each block: its checksum, those of 8 units, their bytes, 5 runs of tokens. */
    assert_int_equal(clear_in_folder(&place.bench), CONTEXTS * BLOCKS * (1 + 8 + 8 + 5));
    bench_end(&place.bench);
}

static void what_is_in_clear_already_stays_and_is_found(void **state)
{
    (void)state;
    place_t place;
    make_place(&place, "turned-on", 8);
    place.bench.params.key_file = NULL;
    bench_open(&place.bench);
    assert_int_equal(ask(&place.bench, 0).block_count, 0);
    assert_int_equal(flush(&place.bench), KV_OK);
    bench_close(&place.bench);
    place.bench.params.key_file = place.key_file;
    bench_open(&place.bench);
    assert_int_equal(ask(&place.bench, 0).block_count, BLOCKS);
    assert_int_equal(ask(&place.bench, 1).block_count, 0);
    assert_int_equal(flush(&place.bench), KV_OK);
    reopen(&place.bench);
    kvist_stats_t stats = bench_stats(&place.bench);
    assert_int_equal(stats.encrypted_objects, BLOCKS);
    assert_int_equal(stats.tiers[KVIST_TIER_DISK].object_count, 2 * BLOCKS);
    assert_int_equal(ask(&place.bench, 0).block_count, BLOCKS);
    assert_int_equal(ask(&place.bench, 1).block_count, BLOCKS);
    bench_end(&place.bench);
}

static void records_are_moved_on_as_they_are(void **state)
{
    (void)state;
    place_t place;
    make_place(&place, "moved", 3);
    place.bench.params.device_slot_count = 16; /* so that the disk is what holds most */
    bench_open(&place.bench);
    for (uint32_t round = 0; round < 60; round++) {
        ask(&place.bench, 0); /* always asked for: it survives */
        ask(&place.bench, 1 + round);
        assert_int_equal(flush(&place.bench), KV_OK);
    }
    kvist_stats_t stats = bench_stats(&place.bench);
    assert_true(stats.moved_objects > 0);
    assert_int_equal(stats.damaged_objects, 0);
    assert_int_equal(stats.encrypted_objects, stats.tiers[KVIST_TIER_DISK].object_count);
    reopen(&place.bench);
    assert_int_equal(ask(&place.bench, 0).block_count, BLOCKS);
    assert_int_equal(bench_stats(&place.bench).keyless_objects, 0);
    bench_end(&place.bench);
}

/* ---- keys that are wrong ---- */

static void assert_refused(bench_t *bench, kv_status_t expected, const char *said)
{
    kv_error_t error = {0};
    kvist_store_t *store = NULL;
    assert_int_equal(kv_store_open_with(&bench->params, &bench->seams, &store, &error), expected);
    if (strstr(error.text, said) == NULL) {
        print_message("%s\n", error.text);
    }
    assert_non_null(strstr(error.text, said));
    assert_null(store);
}

static void a_wrong_key_is_said_and_costs_nothing(void **state)
{
    (void)state;
    place_t place;
    kv_error_t error;
    char other[640];
    make_place(&place, "wrong", 8);
    bench_t *bench = &place.bench;
    bench_open(bench);
    store_contexts(bench);
    bench_close(bench);

    bench->params.key_file = NULL;
    assert_refused(bench, KV_REFUSED, "key_file must name");
    snprintf(other, sizeof other, "%s.other", place.key_file);
    bench->params.key_file = other;
    assert_refused(bench, KV_MISSING, "kvist keys new");
    assert_int_equal(kvist_key_file_new(other, &error), KV_OK);
    assert_refused(bench, KV_REFUSED, "is not the key that the blocks in");
    bench->params.key_file = place.key_file;
    assert_int_equal(chmod(place.key_file, 0640), 0);
    assert_refused(bench, KV_REFUSED, "chmod 600");
    assert_int_equal(chmod(place.key_file, 0600), 0);
    assert_int_equal(truncate(place.key_file, 40), 0);
    assert_refused(bench, KV_INVALID, "line 2");

    const char *directory = bench->params.directory;
    bench->params.directory = NULL;
    assert_refused(bench, KV_INVALID, "without a directory");
    bench->params.directory = directory;
    bench_end(bench);
}

static void a_rotated_key_opens_the_store(void **state)
{
    (void)state;
    place_t place;
    kv_error_t error;
    make_place(&place, "rotated", 8);
    bench_open(&place.bench);
    store_contexts(&place.bench);
    bench_close(&place.bench);
    assert_int_equal(kvist_key_file_rotate(place.key_file, &error), KV_OK);
    bench_open(&place.bench);
    assert_int_equal(ask(&place.bench, 1).block_count, BLOCKS);
    bench_close(&place.bench);
    assert_int_equal(truncate(place.key_file, 12 + 65), 0); /* the new key alone */
    bench_open(&place.bench);
    assert_int_equal(ask(&place.bench, 2).block_count, BLOCKS);
    bench_end(&place.bench);
}

/* ---- dropped tenants ---- */

static outcome_t drop_tenant(bench_t *bench, const char *tenant)
{
    outcome_t outcome = {0};
    outcome.status = kvist_store_drop_tenant(bench->store, tenant, note_dropped, &outcome);
    if (outcome.status == KV_OK) {
        assert_false(outcome.ended);
        wait_for(bench, &outcome);
    }
    return outcome;
}

static void assert_only_left(bench_t *bench, const char *gone)
{
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        const char *tenant = TENANTS[context % 3] != NULL ? TENANTS[context % 3] : "";
        bool left = strcmp(tenant, gone) != 0;
        assert_int_equal(found_blocks(bench, context, BLOCKS), left ? BLOCKS : 0);
    }
}

static void a_dropped_tenants_blocks_are_gone(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"acme", "", "umbrella"};
    for (int which = 0; which < 3; which++) {
        place_t place;
        make_place(&place, "dropped", 8);
        bench_t *bench = &place.bench;
        bench_open(bench);
        store_contexts(bench);
        assert_int_equal(drop_tenant(bench, "nobody's name").status, KV_MISSING);
        assert_int_equal(drop_tenant(bench, "a name of thirty-two characters.").status, KV_INVALID);
        outcome_t outcome = drop_tenant(bench, NAMES[which]);
        assert_int_equal(outcome.status, KV_OK);
        assert_int_equal(outcome.match.block_count, (which == 2 ? 2 : 3) * BLOCKS);
        check_accounts(bench);
        assert_only_left(bench, NAMES[which]);
        reopen(bench);
        assert_only_left(bench, NAMES[which]);
        bench_close(bench);
        bench_lose_index(bench); /* nothing in the records brings them back */
        bench_open(bench);
        assert_only_left(bench, NAMES[which]);
        check_accounts(bench);
        kvist_stats_t stats = bench_stats(bench);
        assert_int_equal(stats.damaged_objects + stats.keyless_objects, 0);

        /* Who stores again is served again. */
        uint32_t context = which == 0 ? 1 : which == 1 ? 0 : 2;
        assert_int_equal(ask(bench, context).block_count, 0);
        reopen(bench);
        assert_int_equal(ask(bench, context).block_count, BLOCKS);
        bench_end(bench);
    }
}

static void copy_file(const char *from, const char *to)
{
    content_t content = content_of(from);
    FILE *file = fopen(to, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(content.bytes, 1, content.count, file), content.count);
    fclose(file);
    free(content.bytes);
}

static char copied_from[600], copied_to[600];

static int copy_one(const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info;
    (void)where;
    char to[1300];
    snprintf(to, sizeof to, "%s%s", copied_to, path + strlen(copied_from));
    if (type == FTW_D) {
        return mkdir(to, 0700);
    }
    copy_file(path, to);
    return 0;
}

/* A copy of the whole directory from before the drop, with the master key and all that is left of
 * the ring: index and records are all there. */
static void an_old_copy_of_the_disk_is_of_no_use(void **state)
{
    (void)state;
    place_t place;
    make_place(&place, "copied", 8);
    bench_t *bench = &place.bench;
    bench_open(bench);
    store_contexts(bench);
    bench_close(bench);
    snprintf(copied_from, sizeof copied_from, "%s", bench->folder);
    snprintf(copied_to, sizeof copied_to, "%s.copy", bench->folder);
    assert_int_equal(nftw(copied_from, copy_one, 16, FTW_PHYS), 0);
    bench_open(bench);
    assert_int_equal(drop_tenant(bench, "acme").status, KV_OK);
    bench_close(bench);

    bench->params.directory = copied_to;
    bench_open(bench);
    assert_int_equal(found_blocks(bench, 1, BLOCKS), BLOCKS); /* as the old index has it */
    bench->tenant = "acme";
    assert_int_equal(request_context(bench, 1, BLOCKS).block_count, 0);
    assert_int_equal(request_context(bench, 2, BLOCKS).block_count, BLOCKS);
    kvist_stats_t stats = bench_stats(bench);
    assert_true(stats.keyless_objects > 0);
    assert_int_equal(stats.damaged_objects, 0);
    bench_end(bench);
}

static void a_drop_waits_for_who_holds_and_erases_memory(void **state)
{
    (void)state;
    place_t place;
    make_place(&place, "held", 8);
    bench_t *bench = &place.bench;
    bench_open(bench);
    store_contexts(bench);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_t *lease = serve(bench, tokens, BLOCKS, &match);
    uint32_t slot = kvist_lease_slots(lease)[0];
    outcome_t outcome = {0};
    assert_int_equal(kvist_store_drop_tenant(bench->store, "acme", note_dropped, &outcome), KV_OK);
    for (int turn = 0; turn < 50; turn++) {
        kvist_store_poll(bench->store);
    }
    assert_false(outcome.ended);
    assert_int_equal(found_blocks(bench, 1, BLOCKS), 0); /* but nobody finds it any more */
    kvist_key_t key = block_key(bench, 1, 0);
    check_block(bench, &key, slot);
    kvist_lease_release(lease);
    wait_for(bench, &outcome);
    assert_int_equal(outcome.status, KV_OK);
    for (size_t i = 0; i < block_bytes(bench); i++) {
        assert_int_equal(slot_bytes(bench, slot)[i], 0);
    }
    bench_end(bench);
}

static void without_encryption_bytes_are_overwritten(void **state)
{
    (void)state;
    place_t place;
    make_place(&place, "overwritten", 8);
    bench_t *bench = &place.bench;
    bench->params.key_file = NULL;
    bench_open(bench);
    store_contexts(bench);
    assert_int_equal(drop_tenant(bench, "acme").status, KV_OK);
    assert_int_equal(drop_tenant(bench, "").status, KV_OK);
    assert_int_equal(clear_in_folder(bench), 2 * BLOCKS * (1 + 8 + 8 + 5)); /* umbrella's alone */
    reopen(bench);
    assert_int_equal(found_blocks(bench, 1, BLOCKS), 0);
    assert_int_equal(found_blocks(bench, 2, BLOCKS), BLOCKS);
    bench_end(bench);
}

/* Turned on later: of one tenant both kinds of records. */
static void records_in_clear_go_with_the_key(void **state)
{
    (void)state;
    place_t place;
    make_place(&place, "both", 8);
    bench_t *bench = &place.bench;
    bench->params.key_file = NULL;
    bench_open(bench);
    assert_int_equal(ask(bench, 1).block_count, 0);
    assert_int_equal(flush(bench), KV_OK);
    bench_close(bench);
    bench->params.key_file = place.key_file;
    bench_open(bench);
    assert_int_equal(ask(bench, 4).block_count, 0);
    assert_int_equal(flush(bench), KV_OK);
    assert_int_equal(drop_tenant(bench, "acme").status, KV_OK);
    assert_int_equal(clear_in_folder(bench), 0);
    bench_close(bench);
    bench_lose_index(bench);
    bench_open(bench);
    assert_int_equal(found_blocks(bench, 1, BLOCKS) + found_blocks(bench, 4, BLOCKS), 0);
    bench_end(bench);
}

/* ---- keys that cannot be made ---- */

static kv_files_ops_t ops_failing;
static const kv_files_t *ops_behind;
static atomic_bool failing;

static int64_t write_or_fail(
    kv_files_t *files, int file, const void *buffer, size_t bytes, uint64_t offset)
{
    (void)files;
    return failing && bytes == 512
               ? -ENOSPC
               : ops_behind->ops->write((kv_files_t *)ops_behind, file, buffer, bytes, offset);
}

static void without_a_key_nothing_is_written(void **state)
{
    (void)state;
    place_t place;
    make_place(&place, "no-key", 8);
    bench_t *bench = &place.bench;
    kv_files_t files = {&ops_failing};
    ops_behind = kv_files_posix();
    ops_failing = *ops_behind->ops;
    ops_failing.write = write_or_fail;
    bench->seams.files = &files;
    failing = false;
    bench_open(bench);
    assert_int_equal(ask(bench, 1).block_count, 0);
    assert_int_equal(flush(bench), KV_OK);
    failing = true;
    assert_int_equal(ask(bench, 2).block_count, 0);
    assert_int_not_equal(flush(bench), KV_OK);
    kvist_stats_t stats = bench_stats(bench);
    assert_true(stats.failed_writes > 0);
    for (uint32_t context = 3; !stats.disk_offline; context++) { /* so many in a row */
        assert_true(context < 3 + KV_WRITE_FAILURES_MAX);
        ask(bench, context);
        assert_int_not_equal(flush(bench), KV_OK);
        stats = bench_stats(bench);
    }
    assert_int_equal(stats.tiers[KVIST_TIER_DISK].object_count, BLOCKS);
    assert_int_equal(found_blocks(bench, 2, BLOCKS), BLOCKS); /* from memory */
    assert_int_equal(clear_in_folder(bench), 0);
    bench_close(bench);
    failing = false;
    bench_open(bench);
    assert_int_equal(found_blocks(bench, 1, BLOCKS), BLOCKS);
    assert_int_equal(ask(bench, 2).block_count, 0);
    assert_int_equal(flush(bench), KV_OK);
    bench_end(bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_in_clear_reaches_the_disk),
        cmocka_unit_test(the_search_finds_what_is_in_clear),
        cmocka_unit_test(what_is_in_clear_already_stays_and_is_found),
        cmocka_unit_test(records_are_moved_on_as_they_are),
        cmocka_unit_test(a_wrong_key_is_said_and_costs_nothing),
        cmocka_unit_test(a_rotated_key_opens_the_store),
        cmocka_unit_test(a_dropped_tenants_blocks_are_gone),
        cmocka_unit_test(an_old_copy_of_the_disk_is_of_no_use),
        cmocka_unit_test(a_drop_waits_for_who_holds_and_erases_memory),
        cmocka_unit_test(without_encryption_bytes_are_overwritten),
        cmocka_unit_test(records_in_clear_go_with_the_key),
        cmocka_unit_test(without_a_key_nothing_is_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
