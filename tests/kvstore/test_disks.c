/* A disk tier of several disks: blocks lie on all of them, each keeps its quota and fails on its
 * own, one may be missing for a while, and a folder that is another's is refused. */
#include "harness.h"

#include <errno.h>

enum { CONTEXTS = 24, BLOCKS = 8, FIRST_SEGMENTS = 12, SECOND_SEGMENTS = 6 };

typedef struct {
    bench_t bench;
    kvist_disk_params_t disk;
    char folder[600], aside[600];
} disks_t;

static void disks_init(disks_t *disks, const char *name)
{
    bench_init(&disks->bench, name, BLOCKS);
    bench_with_host(&disks->bench, 64);
    bench_with_disk(&disks->bench, FIRST_SEGMENTS);
    snprintf(disks->folder, sizeof disks->folder, "%s.second", disks->bench.folder);
    snprintf(disks->aside, sizeof disks->aside, "%s.aside", disks->bench.folder);
    disks->disk = (kvist_disk_params_t){
        .folder = disks->folder,
        .bytes = SECOND_SEGMENTS * disks->bench.params.segment_bytes,
    };
    disks->bench.params.disks = &disks->disk;
    disks->bench.params.disk_count = 1;
}

static void store_contexts(bench_t *bench, uint32_t first, uint32_t end)
{
    for (uint32_t context = first; context < end; context++) {
        request_context(bench, context, BLOCKS);
        assert_int_equal(flush(bench), KV_OK);
    }
}

static uint32_t found_in_all(bench_t *bench, uint32_t end)
{
    uint32_t found = 0;
    for (uint32_t context = 0; context < end; context++) {
        found += found_blocks(bench, context, BLOCKS);
    }
    return found;
}

/* Objects whose record lies on that disk. */
static uint32_t objects_on(const bench_t *bench, uint32_t volume)
{
    const kvist_store_t *store = bench->store;
    uint32_t count = 0;
    for (uint32_t number = 0; number < kv_table_bound(store->table); number++) {
        const kv_object_t *object = kv_table_at(store->table, number);
        count += (object->flags & KV_OBJECT_USED) != 0 && kv_object_on_disk(object) &&
                 store->disk->segments.items[object->segment].volume == volume;
    }
    return count;
}

static void check_files(const bench_t *bench)
{
    const kv_segments_t *segments = &bench->store->disk->segments;
    for (uint32_t number = 0; number < segments->count; number++) {
        if (segments->items[number].state != KV_SEGMENT_ABSENT &&
            segments->items[number].state != KV_SEGMENT_BEGINNING) {
            char path[KV_SEGMENT_PATH_BYTES];
            kv_segments_path(segments, number, path);
            assert_int_equal(access(path, F_OK), 0);
            assert_int_equal(segments->items[number].volume, kv_segments_owner(segments, number));
        }
    }
    for (uint32_t i = 0; i < segments->volume_count; i++) {
        assert_true(segments->volumes[i]->present_count <= segments->volumes[i]->segments_max);
    }
}

static void expect_refused(disks_t *disks, kv_status_t status, const char *word)
{
    kv_error_t error = {0};
    bench_t *bench = &disks->bench;
    kv_status_t got = kv_store_open_with(&bench->params, &bench->seams, &bench->store, &error);
    if (got != status || strstr(error.text, word) == NULL) {
        fail_msg("%s: \"%s\" does not say \"%s\"", kv_status_name(got), error.text, word);
    }
    bench->store = NULL;
}

/* ---- tests ---- */

static void blocks_lie_on_both_and_outlive_a_restart(void **state)
{
    (void)state;
    disks_t disks;
    disks_init(&disks, "both");
    bench_t *bench = &disks.bench;
    bench_open(bench);
    store_contexts(bench, 0, CONTEXTS);
    uint32_t first = objects_on(bench, 0), second = objects_on(bench, 1);
    assert_int_equal(first + second, CONTEXTS * BLOCKS);
    assert_in_range(second, first / 3, 3 * first / 4); /* about half of it, as its quota */
    kvist_stats_t stats = bench_stats(bench);
    assert_int_equal(stats.tiers[KVIST_TIER_DISK].capacity_bytes,
        (FIRST_SEGMENTS + SECOND_SEGMENTS) * bench->params.segment_bytes);
    check_files(bench);
    for (int turn = 0; turn < 2; turn++) {
        bench_close(bench);
        bench_open(bench);
        assert_int_equal(objects_on(bench, 0), first);
        assert_int_equal(objects_on(bench, 1), second);
        for (uint32_t context = 0; context < CONTEXTS; context++) {
            assert_int_equal(request_context(bench, context, BLOCKS).block_count, BLOCKS);
        }
    }
    bench_end(bench);
}

static void each_keeps_its_quota(void **state)
{
    (void)state;
    disks_t disks;
    disks_init(&disks, "quota");
    bench_t *bench = &disks.bench;
    bench->params.disk_bytes = 4 * bench->params.segment_bytes;
    disks.disk.bytes = 2 * bench->params.segment_bytes;
    bench_open(bench);
    for (uint32_t context = 0; context < 2 * CONTEXTS; context++) {
        request_context(bench, context, BLOCKS);
        assert_int_equal(flush(bench), KV_OK);
        check_files(bench);
    }
    assert_true(bench_stats(bench).tiers[KVIST_TIER_DISK].evicted_objects > 0);
    assert_true(objects_on(bench, 0) > 0);
    assert_true(objects_on(bench, 1) > 0);
    kv_error_t error = {0};
    uint64_t segment_bytes = bench->params.segment_bytes;
    assert_int_equal(
        kvist_store_set_disk_bytes(bench->store, 5 * segment_bytes, &error), KV_INVALID);
    assert_non_null(strstr(error.text, disks.folder));
    assert_int_equal(kvist_store_set_disk_bytes(bench->store, 12 * segment_bytes, &error), KV_OK);
    assert_int_equal(bench->store->disk->segments.volumes[0]->segments_max, 8);
    assert_int_equal(bench->store->disk->segments.volumes[1]->segments_max, 4);
    bench_end(bench);
}

/* Every write to one disk fails. */
typedef struct {
    bench_t *bench;
    uint32_t volume;
} failing_t;

static int64_t fail_volume(void *context, bool after, kv_ring_request_t *request, int64_t result)
{
    const failing_t *failing = context;
    const kv_segments_t *segments = &failing->bench->store->disk->segments;
    uint32_t number = segments->file_segments[request->file];
    bool fails = after && request->kind == KV_RING_WRITE &&
                 segments->items[number].volume == failing->volume;
    return fails ? -EIO : result;
}

static void one_fails_and_the_other_goes_on(void **state)
{
    (void)state;
    for (uint32_t volume = 0; volume < 2; volume++) {
        disks_t disks;
        disks_init(&disks, "fails");
        bench_t *bench = &disks.bench;
        failing_t failing = {.bench = bench, .volume = KV_VOLUMES_MAX};
        bench->seams.faults = (kv_ring_faults_t){fail_volume, &failing};
        bench_open(bench);
        store_contexts(bench, 0, 6);
        uint32_t before = objects_on(bench, volume);
        assert_true(before > 0);
        failing.volume = volume;
        for (uint32_t context = 6; context < 12; context++) {
            request_context(bench, context, BLOCKS);
            flush(bench);
        }
        assert_true(bench->store->disk->lanes[volume].offline);
        assert_false(bench->store->disk->lanes[1 - volume].offline);
        assert_false(bench_stats(bench).disk_offline);
        store_contexts(bench, 12, 14);
        assert_int_equal(bench_stats(bench).unsaved_objects, 0);
        assert_int_equal(objects_on(bench, volume), before);
        for (uint32_t context = 0; context < 14; context++) {
            assert_int_equal(request_context(bench, context, BLOCKS).block_count, BLOCKS);
        }
        failing.volume = KV_VOLUMES_MAX;
        bench_close(bench);
        bench_open(bench);
        assert_int_equal(found_in_all(bench, 14), 14 * BLOCKS);
        bench_end(bench);
    }
}

static void a_missing_disk_comes_back(void **state)
{
    (void)state;
    disks_t disks;
    disks_init(&disks, "missing");
    bench_t *bench = &disks.bench;
    bench_open(bench);
    store_contexts(bench, 0, CONTEXTS);
    uint32_t first = objects_on(bench, 0), second = objects_on(bench, 1);
    bench_close(bench);
    assert_int_equal(rename(disks.folder, disks.aside), 0);
    for (int turn = 0; turn < 2; turn++) { /* its folder is gone, then empty, as not mounted */
        bench_open(bench);
        uint32_t found = found_in_all(bench, CONTEXTS);
        assert_true(found < CONTEXTS * BLOCKS);
        assert_true(turn > 0 || objects_on(bench, 0) <= first);
        assert_int_equal(objects_on(bench, 1), 0);
        check_accounts(bench);
        store_contexts(bench, CONTEXTS + (uint32_t)turn, CONTEXTS + (uint32_t)turn + 1);
        request_context(bench, 0, BLOCKS); /* computed again: two records of some */
        assert_int_equal(flush(bench), KV_OK);
        assert_int_equal(drop(bench, CONTEXTS, 0, false).status, KV_BUSY);
        bench_close(bench);
        if (turn == 0) {
            assert_int_equal(mkdir(disks.folder, 0700), 0);
        }
    }
    assert_int_equal(rmdir(disks.folder), 0);
    assert_int_equal(rename(disks.aside, disks.folder), 0);
    bench_open(bench);
    assert_int_equal(found_in_all(bench, CONTEXTS + 2), (CONTEXTS + 2) * BLOCKS);
    assert_true(objects_on(bench, 1) <= second);
    check_accounts(bench);
    assert_int_equal(drop(bench, 0, 0, false).status, KV_OK);
    for (int turn = 0; turn < 2; turn++) {
        assert_int_equal(found_blocks(bench, 0, BLOCKS), 0); /* of neither record */
        assert_int_equal(found_in_all(bench, CONTEXTS + 2), (CONTEXTS + 1) * BLOCKS);
        bench_close(bench);
        bench_open(bench);
    }
    bench_end(bench);
}

static void a_disk_is_added_and_one_is_begun_anew(void **state)
{
    (void)state;
    disks_t disks;
    disks_init(&disks, "added");
    bench_t *bench = &disks.bench;
    bench->params.disk_count = 0;
    bench_open(bench);
    store_contexts(bench, 0, CONTEXTS / 2);
    bench_close(bench);
    bench->params.disk_count = 1;
    bench_open(bench);
    assert_int_equal(found_in_all(bench, CONTEXTS), CONTEXTS / 2 * BLOCKS);
    store_contexts(bench, CONTEXTS / 2, CONTEXTS);
    assert_true(objects_on(bench, 1) > 0);
    bench_close(bench);
    bench_open(bench);
    assert_int_equal(found_in_all(bench, CONTEXTS), CONTEXTS * BLOCKS);
    bench_close(bench);
    assert_int_equal(rename(disks.folder, disks.aside), 0);
    assert_int_equal(mkdir(disks.folder, 0700), 0);
    char path[700];
    snprintf(path, sizeof path, "%s/disk", disks.folder);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    bench_open(bench);
    assert_int_equal(bench->store->disk->missing, 0);
    assert_true(found_in_all(bench, CONTEXTS) >= CONTEXTS / 2 * BLOCKS);
    store_contexts(bench, 0, CONTEXTS);
    assert_true(objects_on(bench, 1) > 0);
    bench_end(bench);
}

static void a_foreign_folder_is_refused(void **state)
{
    (void)state;
    disks_t disks, other;
    disks_init(&disks, "own");
    disks_init(&other, "foreign");
    kvist_disk_params_t two[2] = {disks.disk, {other.folder, disks.disk.bytes}};
    bench_open(&disks.bench);
    bench_close(&disks.bench);
    bench_open(&other.bench);
    bench_close(&other.bench);
    disks.disk.folder = other.folder;
    expect_refused(&disks, KV_REFUSED, "a disk of another store");
    two[1].folder = other.bench.folder;
    disks.bench.params.disks = two;
    disks.bench.params.disk_count = 2;
    expect_refused(&disks, KV_REFUSED, "holds a store");
    two[1].folder = disks.folder;
    expect_refused(&disks, KV_REFUSED, "is disk 1 of this store and is given as disk 2");
    bench_end(&disks.bench);
    bench_end(&other.bench);
}

static void bounds_are_named(void **state)
{
    (void)state;
    disks_t disks;
    disks_init(&disks, "bounds");
    disks.bench.params.disk_count = 8;
    expect_refused(&disks, KV_INVALID, "disk_count is 8: it must be at most 7");
    disks.bench.params.disk_count = 1;
    disks.disk.bytes = disks.bench.params.segment_bytes;
    expect_refused(&disks, KV_INVALID, "disks[0].bytes is 262144: it must be 524288");
    disks.disk.bytes = 8192 * disks.bench.params.segment_bytes;
    expect_refused(&disks, KV_INVALID, "(8191 segments)");
    disks.disk.folder = "";
    expect_refused(&disks, KV_INVALID, "disks[0].folder must have 1 to");
    bench_end(&disks.bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_lie_on_both_and_outlive_a_restart),
        cmocka_unit_test(each_keeps_its_quota),
        cmocka_unit_test(one_fails_and_the_other_goes_on),
        cmocka_unit_test(a_missing_disk_comes_back),
        cmocka_unit_test(a_disk_is_added_and_one_is_begun_anew),
        cmocka_unit_test(a_foreign_folder_is_refused),
        cmocka_unit_test(bounds_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
