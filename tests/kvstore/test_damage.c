/* What each fault does: a miss with the right reason, never wrong bytes, never a crash; what is
 * only unreadable for now stays. */
#include "harness.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

enum { BLOCKS = 4 };

/* Four blocks of context 1 on disk only; with a codec they are large, so that it has an effect. */
static void open_with_codec(bench_t *bench, const char *name, kvist_codec_t codec)
{
    bench_init(bench, name, 8);
    if (codec != KVIST_CODEC_NONE) {
        bench_with_large_blocks(bench);
    }
    bench->params.codec = codec;
    bench_with_disk(bench, 8);
    bench_open(bench);
    request_context(bench, 1, BLOCKS);
    assert_int_equal(flush(bench), KV_OK);
    request_context(bench, 2, 8);
    assert_int_equal(flush(bench), KV_OK);
}

static void open_with_context_on_disk(bench_t *bench, const char *name)
{
    open_with_codec(bench, name, KVIST_CODEC_NONE);
}

static kv_object_t *object_of(const bench_t *bench, uint32_t context, uint32_t block)
{
    uint32_t tokens[8 * BLOCK_TOKENS];
    kvist_key_t keys[8];
    make_tokens(context, 0, tokens, 8 * BLOCK_TOKENS);
    kvist_keys(&bench->name_space, tokens, NULL, 8 * BLOCK_TOKENS, BLOCK_TOKENS, keys);
    uint32_t number = kv_table_find(bench->store->table, &keys[block]);
    assert_int_not_equal(number, KV_OBJECT_NONE);
    return kv_table_at(bench->store->table, number);
}

static int open_segment_file(const bench_t *bench, uint32_t segment)
{
    char path[KV_FOLDER_BYTES];
    kv_segment_path(bench->folder, segment, path, sizeof path);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    return fd;
}

static void access_record(const bench_t *bench, const kv_object_t *object, char *bytes, bool write)
{
    int fd = open_segment_file(bench, object->segment);
    size_t count = (size_t)object->length_pages * KV_PAGE_BYTES;
    off_t offset = (off_t)object->offset_pages * KV_PAGE_BYTES;
    ssize_t moved = write ? pwrite(fd, bytes, count, offset) : pread(fd, bytes, count, offset);
    assert_int_equal(moved, count);
    assert_int_equal(fsync(fd), 0);
    close(fd);
}

static void flip_byte(const bench_t *bench, uint32_t segment, off_t offset)
{
    int fd = open_segment_file(bench, segment);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, offset), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
    assert_int_equal(fsync(fd), 0);
    close(fd);
}

/* Context 1 is found up to its damaged second block, and can be stored again. */
static void expect_damage_in_second_block(bench_t *bench)
{
    uint64_t damaged = bench_stats(bench).damaged_objects;
    kvist_match_t match = request_context(bench, 1, BLOCKS);
    assert_int_equal(match.block_count, 1);
    assert_int_equal(match.miss, KVIST_MISS_DAMAGED);
    assert_true(bench_stats(bench).damaged_objects > damaged);
    assert_int_equal(flush(bench), KV_OK);
    request_context(bench, 2, 8); /* pushes context 1 out of the device again */
}

static void a_flipped_byte_anywhere_in_a_record_is_a_miss(void **state)
{
    (void)state;
    bench_t bench;
    open_with_context_on_disk(&bench, "flip");
    uint32_t step = kv_test_long() ? 7 : 97;
    uint32_t count = 0;
    for (uint32_t at = 0; at < 2 * KV_PAGE_BYTES; at += step) {
        const kv_object_t *object = object_of(&bench, 1, 1);
        assert_int_equal(object->length_pages, 2);
        flip_byte(&bench, object->segment, (off_t)object->offset_pages * KV_PAGE_BYTES + at);
        expect_damage_in_second_block(&bench);
        count++;
    }
    assert_int_equal(bench_stats(&bench).damaged_objects, count);
    bench_end(&bench);
}

/* Some bits of an encoding mean nothing: what comes back is right (serve() looks), or a miss. */
static void a_flipped_byte_in_an_encoded_record_gives_no_wrong_byte(void **state)
{
    (void)state;
    for (kvist_codec_t codec = KVIST_CODEC_LZ4; codec < KVIST_CODEC_COUNT; codec++) {
        bench_t bench;
        open_with_codec(&bench, "flip-encoded", codec);
        uint32_t step = kv_test_long() ? 13 : 211, count = 0, damaged = 0;
        for (uint32_t at = 0; at < LARGE_RECORD_BYTES(codec); at += step) {
            const kv_object_t *object = object_of(&bench, 1, 1);
            assert_int_equal(object->length_pages, LARGE_RECORD_BYTES(codec) / KV_PAGE_BYTES);
            flip_byte(&bench, object->segment, (off_t)object->offset_pages * KV_PAGE_BYTES + at);
            kvist_match_t match = request_context(&bench, 1, BLOCKS);
            assert_true(match.block_count == BLOCKS ||
                        (match.block_count == 1 && match.miss == KVIST_MISS_DAMAGED));
            damaged += match.block_count != BLOCKS;
            count++;
            assert_int_equal(flush(&bench), KV_OK);
            request_context(&bench, 2, 8); /* pushes context 1 out of the device again */
        }
        assert_true(damaged >= count * 9 / 10);
        assert_int_equal(bench_stats(&bench).damaged_objects, damaged);
        bench_end(&bench);
    }
}

static void a_record_that_is_another_is_a_miss(void **state)
{
    (void)state;
    bench_t bench;
    char bytes[2 * KV_PAGE_BYTES], other[2 * KV_PAGE_BYTES];
    open_with_context_on_disk(&bench, "swap");

    access_record(&bench, object_of(&bench, 1, 2), other, false);
    access_record(&bench, object_of(&bench, 1, 1), other, true); /* a swapped record */
    expect_damage_in_second_block(&bench);

    access_record(&bench, object_of(&bench, 1, 1), bytes, false);
    kv_record_sign(bytes, kv_get_u64(bytes + 16) - 1); /* of an earlier life of the segment */
    access_record(&bench, object_of(&bench, 1, 1), bytes, true);
    expect_damage_in_second_block(&bench);

    access_record(&bench, object_of(&bench, 1, 1), bytes, false);
    bytes[160] ^= 1; /* of another layout */
    kv_record_sign(bytes, kv_get_u64(bytes + 16));
    access_record(&bench, object_of(&bench, 1, 1), bytes, true);
    expect_damage_in_second_block(&bench);

    access_record(&bench, object_of(&bench, 1, 1), bytes, false);
    bytes[64] ^= 1; /* of another namespace */
    kv_record_sign(bytes, kv_get_u64(bytes + 16));
    access_record(&bench, object_of(&bench, 1, 1), bytes, true);
    expect_damage_in_second_block(&bench);

    access_record(&bench, object_of(&bench, 1, 1), bytes, false);
    bytes[352] ^= 1; /* other tokens under the same key */
    kv_record_sign(bytes, kv_get_u64(bytes + 16));
    access_record(&bench, object_of(&bench, 1, 1), bytes, true);
    expect_damage_in_second_block(&bench);
    bench_end(&bench);
}

static void a_damaged_segment_header_forgets_the_segment(void **state)
{
    (void)state;
    static const off_t PLACES[] = {0, 8, 12, 16, 24, 2000, 4095};
    bench_t bench;
    open_with_context_on_disk(&bench, "header");
    for (size_t i = 0; i < sizeof PLACES / sizeof PLACES[0]; i++) {
        uint32_t segment = object_of(&bench, 1, 1)->segment;
        bench_close(&bench);
        flip_byte(&bench, segment, PLACES[i]);
        bench_open(&bench);
        assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, 0);
        assert_int_equal(flush(&bench), KV_OK);
        assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS);
    }
    bench_end(&bench);
}

static void a_shortened_segment_file_is_a_miss(void **state)
{
    (void)state;
    bench_t bench;
    open_with_context_on_disk(&bench, "short-file");
    const kv_object_t *object = object_of(&bench, 1, 1);
    int fd = open_segment_file(&bench, object->segment);
    assert_int_equal(ftruncate(fd, (off_t)object->offset_pages * KV_PAGE_BYTES), 0);
    close(fd);
    kvist_match_t match = request_context(&bench, 1, BLOCKS);
    assert_int_equal(match.block_count, 1);
    assert_int_equal(match.miss, KVIST_MISS_DAMAGED);
    bench_end(&bench);
}

/* ---- faults of the ring ---- */

typedef struct {
    kv_ring_kind_t kind;
    int64_t result;  /* given instead of the true one; 0: left */
    int32_t count;   /* how many operations it hits */
    bool flip_write; /* changes a byte on its way to the disk */
    bool halve;      /* transfers end early, at a page */
} faults_t;

static int64_t inject(void *context, bool after, kv_ring_request_t *request, int64_t result)
{
    faults_t *faults = context;
    if (request->kind != faults->kind || faults->count == 0) {
        return result;
    }
    if (!after && faults->flip_write) {
        request->buffer[request->bytes - KV_PAGE_BYTES] ^= 1; /* in the last record's bytes */
        faults->count--;
    } else if (after && faults->halve && result > KV_PAGE_BYTES) {
        return result / 2 / KV_PAGE_BYTES * KV_PAGE_BYTES;
    } else if (after && faults->result != 0) {
        faults->count--;
        return faults->result;
    }
    return result;
}

static void an_unreadable_block_stays(void **state)
{
    (void)state;
    static const int64_t REASONS[] = {-EIO, -ENOMEM, -EAGAIN};
    bench_t bench;
    faults_t faults = {.kind = KV_RING_READ};
    open_with_context_on_disk(&bench, "eio");
    bench_close(&bench);
    bench.seams.faults = (kv_ring_faults_t){inject, &faults};
    for (size_t i = 0; i < 3; i++) {
        bench_open(&bench);
        faults.result = REASONS[i];
        faults.count = 2; /* the run of four, then its first block alone */
        uint32_t tokens[BLOCKS * BLOCK_TOKENS];
        make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
        kvist_match_t match;
        kvist_lease_t *lease = match_tokens(&bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
        assert_int_equal(match.block_count, BLOCKS);
        outcome_t outcome = prepare(&bench, lease, BLOCKS);
        assert_int_equal(outcome.status, KV_OK);
        bool passes = REASONS[i] == -EAGAIN; /* tried again by the ring itself */
        assert_int_equal(outcome.match.miss, passes ? KVIST_MISS_NONE : KVIST_MISS_FAILED);
        assert_int_equal(outcome.match.block_count, passes ? BLOCKS : 0);
        kvist_lease_release(lease);
        assert_int_equal(bench_stats(&bench).damaged_objects, 0);
        assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS);
        bench_close(&bench);
    }
    bench_end(&bench);
}

static void short_transfers_are_continued(void **state)
{
    (void)state;
    for (int io = KVIST_IO_AUTO; io <= KVIST_IO_THREADS; io++) {
        bench_t bench;
        faults_t faults = {.kind = KV_RING_READ, .count = -1, .halve = true};
        bench_init(&bench, "halved", 8);
        bench_with_disk(&bench, 8);
        bench.params.io = io == KVIST_IO_URING ? KVIST_IO_AUTO : (kvist_io_t)io;
        bench.seams.faults = (kv_ring_faults_t){inject, &faults};
        bench_open(&bench);
        request_context(&bench, 1, 8);
        request_context(&bench, 2, 8);
        assert_int_equal(request_context(&bench, 1, 8).block_count, 8);
        faults.kind = KV_RING_WRITE;
        request_context(&bench, 3, 8);
        request_context(&bench, 4, 8);
        assert_int_equal(request_context(&bench, 3, 8).block_count, 8);
        bench_end(&bench);
    }
}

static void no_descriptors_left_is_no_damage(void **state)
{
    (void)state;
    bench_t bench;
    open_with_context_on_disk(&bench, "emfile");
    bench_close(&bench);
    bench_open(&bench);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_match_t match;
    kvist_lease_t *lease = match_tokens(&bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    struct rlimit limit, none;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = limit;
    none.rlim_cur = 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    outcome_t outcome = {0};
    kvist_lease_prepare(lease, BLOCKS, UINT64_MAX, note_prepared, &outcome);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    wait_for(&bench, &outcome);
    assert_int_equal(outcome.status, KV_OK);
    assert_int_equal(outcome.match.block_count, 0);
    assert_int_equal(outcome.match.miss, KVIST_MISS_FAILED);
    kvist_lease_release(lease);
    assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS);
    bench_end(&bench);
}

static void failed_writes_are_tried_again_then_the_disk_is_left_alone(void **state)
{
    (void)state;
    static const kv_ring_kind_t KINDS[] = {KV_RING_WRITE, KV_RING_SYNC};
    for (int i = 0; i < 2; i++) {
        bench_t bench;
        faults_t faults = {.kind = KINDS[i], .result = -ENOSPC, .count = 2};
        bench_init(&bench, "enospc", 8);
        bench_with_host(&bench, 8);
        bench_with_disk(&bench, 8);
        bench.seams.faults = (kv_ring_faults_t){inject, &faults};
        bench_open(&bench);
        request_context(&bench, 1, BLOCKS);
        for (int tries = 0; flush(&bench) != KV_OK; tries++) {
            assert_true(tries < 2);
        }
        assert_true(bench_stats(&bench).failed_writes > 0);
        assert_int_equal(bench_stats(&bench).unsaved_objects, 0);
        assert_false(bench_stats(&bench).disk_offline);

        faults.count = -1;
        for (uint32_t context = 2; context < 8; context++) {
            request_context(&bench, context, 8);
        }
        while (!bench_stats(&bench).disk_offline) {
            bench_turn(&bench);
        }
        assert_int_not_equal(flush(&bench), KV_OK);
        assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS); /* still read */
        request_context(&bench, 9, 8);
        assert_int_equal(request_context(&bench, 9, 8).block_count, 8);
        bench_close(&bench);
        faults.count = 0;
        bench_open(&bench);
        assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS);
        bench_end(&bench);
    }
}

static void bytes_that_changed_on_their_way_to_the_disk_are_found_out(void **state)
{
    (void)state;
    bench_t bench;
    faults_t faults = {.kind = KV_RING_WRITE, .flip_write = true, .count = -1};
    bench_init(&bench, "bitflip", 8);
    bench_with_disk(&bench, 8);
    bench.seams.faults = (kv_ring_faults_t){inject, &faults};
    bench_open(&bench);
    request_context(&bench, 1, BLOCKS);
    flush(&bench);
    request_context(&bench, 2, 8);
    assert_int_equal(request_context(&bench, 1, BLOCKS).miss, KVIST_MISS_DAMAGED);
    bench_end(&bench);
}

/* ---- memory ---- */

static void a_flipped_bit_in_host_memory_is_found_out(void **state)
{
    (void)state;
    for (int disk = 0; disk < 2; disk++) {
        bench_t bench;
        bench_init(&bench, "host-flip", 8);
        bench_with_host(&bench, 32);
        if (disk == 1) {
            bench_with_disk(&bench, 8);
            bench.params.persist = KVIST_PERSIST_SPILL;
        }
        bench_open(&bench);
        request_context(&bench, 1, BLOCKS);
        request_context(&bench, 2, 8);
        if (disk == 1) {
            assert_int_equal(flush(&bench), KV_OK);
        }
        uint32_t slot = object_of(&bench, 1, 1)->host_slot;
        assert_int_not_equal(slot, KV_SLOT_NONE);
        kv_group_host_bytes(&bench.store->groups[0], slot)[100] ^= 1;
        kvist_match_t match = request_context(&bench, 1, BLOCKS);
        assert_int_equal(bench_stats(&bench).damaged_objects, 1);
        /* Without a copy on disk it is lost; with one, that is read. */
        assert_int_equal(match.block_count, disk == 1 ? BLOCKS : 1);
        assert_int_equal(match.miss, disk == 1 ? KVIST_MISS_NONE : KVIST_MISS_DAMAGED);
        bench_end(&bench);
    }
}

static void what_changed_in_host_memory_is_not_written(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "host-write", 8);
    bench_with_host(&bench, 32);
    bench_with_disk(&bench, 8);
    bench.params.persist = KVIST_PERSIST_SPILL;
    bench_open(&bench);
    request_context(&bench, 1, BLOCKS);
    request_context(&bench, 2, 8);
    kv_group_host_bytes(&bench.store->groups[0], object_of(&bench, 1, 1)->host_slot)[100] ^= 1;
    bench_close(&bench); /* writes everything */
    bench_open(&bench);
    assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, 1);
    assert_int_equal(request_context(&bench, 2, 8).block_count, 8);
    bench_end(&bench);
}

static void two_token_blocks_with_one_key_are_told_apart(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "collision", 8);
    bench_open(&bench);
    request_context(&bench, 1, BLOCKS);
    uint32_t slot = object_of(&bench, 1, 1)->device_slot;
    kv_pool_words(&bench.store->device_pool, slot)[3] ^= 1; /* as if another block had this key */
    kvist_match_t match = request_context(&bench, 1, BLOCKS);
    assert_int_equal(match.block_count, 1);
    assert_int_equal(match.miss, KVIST_MISS_DAMAGED);
    assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS);
    bench_end(&bench);
}

/* ---- the directory's other files ---- */

static void overwrite(const bench_t *bench, const char *name, const char *text)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", bench->folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void lose_index(kvist_codec_t codec)
{
    bench_t bench;
    open_with_codec(&bench, "index", codec);
    bench_close(&bench);
    overwrite(&bench, "index/CURRENT", "nonsense\n");
    bench_open(&bench);
    assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS);
    assert_int_equal(request_context(&bench, 2, 8).block_count, 8);
    bench_close(&bench);
    char command[1200];
    snprintf(command, sizeof command, "rm -r '%s/index'", bench.folder);
    assert_int_equal(system(command), 0);
    bench_open(&bench);
    assert_int_equal(request_context(&bench, 2, 8).block_count, 8);
    assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS);
    bench_end(&bench);
}

static void a_damaged_or_lost_index_is_made_anew(void **state)
{
    (void)state;
    for (kvist_codec_t codec = KVIST_CODEC_NONE; codec < KVIST_CODEC_COUNT; codec++) {
        lose_index(codec);
    }
}

static void another_format_is_refused_with_both_versions_named(void **state)
{
    (void)state;
    bench_t bench;
    kv_error_t error;
    open_with_context_on_disk(&bench, "format");
    bench_close(&bench);
    overwrite(&bench, "format", "kvist-store 6\nsegment_bytes 262144\n");
    assert_int_equal(kvist_store_open(&bench.params, &bench.store, &error), KV_REFUSED);
    assert_non_null(strstr(error.text, "format 6"));
    overwrite(&bench, "format", "\x01garbage");
    bench_open(&bench);
    assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS);
    bench_end(&bench);
}

static void a_pipe_in_the_place_of_a_segment_is_refused(void **state)
{
    (void)state;
    bench_t bench;
    kv_error_t error;
    char path[KV_FOLDER_BYTES];
    open_with_context_on_disk(&bench, "pipe");
    bench_close(&bench);
    kv_segment_path(bench.folder, 7, path, sizeof path);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_not_equal(kvist_store_open(&bench.params, &bench.store, &error), KV_OK);
    assert_non_null(strstr(error.text, "segment-00007"));
    bench.store = NULL;
    assert_int_equal(unlink(path), 0);
    bench_open(&bench);
    assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS);
    bench_end(&bench);
}

/* ---- a full disk ---- */

static void a_full_disk_works_with_the_segments_there_are(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "full", 8);
    assert_int_equal(mkdir(bench.folder, 0700), 0);
    /* A mount of our own; only the superuser may. */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("small", bench.folder, "tmpfs", 0, "size=6m") != 0) {
        print_message("skipped: a small file system cannot be mounted here\n");
        free(bench.params.device_arena);
        skip();
    }
    bench_with_disk(&bench, 64); /* 16 MiB of 6 */
    bench_open(&bench);
    for (uint32_t context = 0; context < 120; context++) { /* 7 MiB */
        request_context(&bench, context, 8);
        flush(&bench);
    }
    kvist_stats_t stats = bench_stats(&bench);
    assert_false(stats.disk_offline);
    assert_true(stats.failed_writes > 0);
    assert_true(stats.tiers[KVIST_TIER_DISK].capacity_bytes < 6 << 20);
    assert_true(stats.tiers[KVIST_TIER_DISK].evicted_objects > 0);
    assert_int_equal(request_context(&bench, 110, 8).tier_blocks[KVIST_TIER_DISK], 8);
    bench_close(&bench);
    bench_open(&bench);
    assert_int_equal(request_context(&bench, 115, 8).tier_blocks[KVIST_TIER_DISK], 8);
    bench_end(&bench);
    umount2(bench.folder, MNT_DETACH);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_flipped_byte_anywhere_in_a_record_is_a_miss),
        cmocka_unit_test(a_flipped_byte_in_an_encoded_record_gives_no_wrong_byte),
        cmocka_unit_test(a_record_that_is_another_is_a_miss),
        cmocka_unit_test(a_damaged_segment_header_forgets_the_segment),
        cmocka_unit_test(a_shortened_segment_file_is_a_miss),
        cmocka_unit_test(an_unreadable_block_stays),
        cmocka_unit_test(short_transfers_are_continued),
        cmocka_unit_test(no_descriptors_left_is_no_damage),
        cmocka_unit_test(failed_writes_are_tried_again_then_the_disk_is_left_alone),
        cmocka_unit_test(bytes_that_changed_on_their_way_to_the_disk_are_found_out),
        cmocka_unit_test(a_flipped_bit_in_host_memory_is_found_out),
        cmocka_unit_test(what_changed_in_host_memory_is_not_written),
        cmocka_unit_test(two_token_blocks_with_one_key_are_told_apart),
        cmocka_unit_test(a_damaged_or_lost_index_is_made_anew),
        cmocka_unit_test(another_format_is_refused_with_both_versions_named),
        cmocka_unit_test(a_pipe_in_the_place_of_a_segment_is_refused),
        cmocka_unit_test(a_full_disk_works_with_the_segments_there_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
