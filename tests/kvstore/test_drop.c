/* Dropping: gone from every tier at once, and no restart brings it back: not with the index, not
 * without it, not after kill -9; what was not dropped stays. */
#include "harness.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

enum { BLOCKS = 6 };

static uint32_t found(bench_t *bench, uint32_t context)
{
    return found_blocks(bench, context, BLOCKS);
}

static void lose_index(const bench_t *bench)
{
    char command[600];
    snprintf(command, sizeof command, "rm -r '%s/index'", bench->folder);
    assert_int_equal(system(command), 0);
}

/* What is stored survives both kinds of restart, what was dropped neither. */
static void expect_after_restarts(bench_t *bench, uint32_t context, uint32_t blocks)
{
    for (int lost = 0; lost < 2; lost++) {
        bench_close(bench);
        if (lost) {
            lose_index(bench);
        }
        bench_open(bench);
        assert_int_equal(found(bench, context), blocks);
        check_accounts(bench);
    }
}

static void open_three_tiers(bench_t *bench, const char *name, kvist_persist_t persist)
{
    bench_init(bench, name, 16);
    bench_with_host(bench, 16);
    bench_with_disk(bench, 8);
    bench->params.persist = persist; /* spill: so that host memory is used */
    bench_open(bench);
}

/* Whatever of the page's other sectors a power loss leaves, the first one decides. */
static void a_marker_lies_in_one_sector(void **state)
{
    (void)state;
    enum { SECTOR = 512, USED = 40 };
    uint8_t page[KV_PAGE_BYTES];
    uint64_t bytes = 0;
    kv_record_write_marker(page, 77, 3 * KV_PAGE_BYTES);
    memset(page + SECTOR, 0xa5, sizeof page - SECTOR);
    assert_int_equal(kv_record_read_marker(page, 77, &bytes), KV_OK);
    assert_int_equal(bytes, 3 * KV_PAGE_BYTES);
    assert_int_equal(kv_record_read_marker(page, 78, &bytes), KV_MISSING); /* another life */
    for (uint32_t bit = 0; bit < USED * 8; bit++) {
        page[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_not_equal(kv_record_read_marker(page, 77, &bytes), KV_OK);
        page[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    kv_record_write_marker(page, 77, 0);
    assert_int_equal(kv_record_read_marker(page, 77, &bytes), KV_CORRUPT); /* no length at all */
}

static void what_is_not_stored_cannot_be_dropped(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "missing", KVIST_PERSIST_EAGER);
    assert_int_equal(drop(&bench, 1, 0, false).status, KV_MISSING);
    bench_end(&bench);
}

static void a_block_goes_with_its_descendants(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "subtree", KVIST_PERSIST_SPILL);
    request_context(&bench, 1, BLOCKS);
    request_context(&bench, 2, BLOCKS);
    assert_int_equal(flush(&bench), KV_OK);
    outcome_t outcome = drop(&bench, 1, 2, false);
    assert_int_equal(outcome.status, KV_OK);
    assert_int_equal(outcome.match.block_count, BLOCKS - 2);
    assert_int_equal(found(&bench, 1), 2);
    assert_int_equal(found(&bench, 2), BLOCKS);
    check_accounts(&bench);
    expect_after_restarts(&bench, 1, 2);
    assert_int_equal(found(&bench, 2), BLOCKS);
    /* It can be stored anew, and that stays. */
    assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, 2);
    assert_int_equal(flush(&bench), KV_OK);
    expect_after_restarts(&bench, 1, BLOCKS);
    assert_int_equal(request_context(&bench, 1, BLOCKS).block_count, BLOCKS);
    assert_int_equal(bench_stats(&bench).damaged_objects, 0);
    bench_end(&bench);
}

static void without_a_disk_a_drop_is_one_of_memory(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "memory", 16);
    bench_open(&bench);
    request_context(&bench, 1, BLOCKS);
    assert_int_equal(drop(&bench, 1, 0, true).status, KV_OK);
    assert_int_equal(found(&bench, 1), 0);
    for (size_t i = 0; i < 16 * block_bytes(&bench); i++) {
        assert_int_equal(((char *)bench.params.device_arena)[i], 0);
    }
    check_accounts(&bench);
    bench_end(&bench);
}

static void a_lease_keeps_its_bytes_and_nobody_finds_them(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "leased", KVIST_PERSIST_SPILL);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_t *lease = serve(&bench, tokens, BLOCKS, &match);
    assert_int_equal(drop(&bench, 1, 0, true).status, KV_BUSY); /* their bytes are in use */
    assert_int_equal(found(&bench, 1), BLOCKS);
    assert_int_equal(drop(&bench, 1, 0, false).status, KV_OK);
    assert_int_equal(found(&bench, 1), 0);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        kvist_key_t key = block_key(&bench, 1, block);
        check_block(&bench, &key, kvist_lease_slots(lease)[block]);
    }
    request_context(&bench, 1, BLOCKS); /* stored anew beside the old one */
    kvist_lease_release(lease);
    assert_int_equal(found(&bench, 1), BLOCKS);
    assert_int_equal(flush(&bench), KV_OK);
    expect_after_restarts(&bench, 1, BLOCKS);
    bench_end(&bench);
}

/* The record is anywhere between queue and index when its block is dropped. */
static void a_record_on_its_way_is_dropped_too(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "under-way", KVIST_PERSIST_EAGER);
    for (uint32_t round = 0; round < 40; round++) {
        request_context(&bench, 100 + round, BLOCKS);
        for (uint32_t turn = 0; turn < round % 10; turn++) {
            kvist_store_poll(bench.store);
            usleep(round * 20);
        }
        outcome_t outcome = drop(&bench, 100 + round, round % 3, false);
        assert_int_equal(outcome.status, KV_OK);
        assert_int_equal(outcome.match.block_count, BLOCKS - round % 3);
        check_accounts(&bench);
    }
    bench_close(&bench);
    for (int lost = 0; lost < 2; lost++) {
        bench_open(&bench);
        for (uint32_t round = 0; round < 40; round++) {
            assert_int_equal(found(&bench, 100 + round), round % 3);
        }
        bench_close(&bench);
        lose_index(&bench);
    }
    bench_end(&bench);
}

/* Dropped and stored again at once: the later entry must win over the earlier one's end. */
static void dropped_and_stored_again_at_once_is_stored(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "again", KVIST_PERSIST_EAGER);
    for (uint32_t round = 0; round < 14; round++) {
        outcome_t outcome = {0};
        kvist_key_t key = block_key(&bench, round, 0);
        request_context(&bench, round, BLOCKS);
        for (uint32_t turn = 0; turn < round % 6; turn++) {
            kvist_store_poll(bench.store);
            usleep(round * 20);
        }
        assert_int_equal(kvist_store_drop(bench.store, &key, false, note_dropped, &outcome), KV_OK);
        request_context(&bench, round, BLOCKS);
        wait_for(&bench, &outcome);
        assert_int_equal(outcome.status, KV_OK);
    }
    assert_int_equal(flush(&bench), KV_OK);
    for (int lost = 0; lost < 2; lost++) {
        bench_close(&bench);
        if (lost) {
            lose_index(&bench);
        }
        bench_open(&bench);
        for (uint32_t round = 0; round < 14; round++) {
            assert_int_equal(found(&bench, round), BLOCKS);
        }
    }
    for (uint32_t round = 0; round < 14; round++) {
        assert_int_equal(request_context(&bench, round, BLOCKS).block_count, BLOCKS);
    }
    assert_int_equal(bench_stats(&bench).damaged_objects, 0);
    bench_end(&bench);
}

/* How often the first 64 bytes of the block stand in the segment files and in memory. */
static uint32_t count_copies(const bench_t *bench, const kvist_key_t *key)
{
    char *block = malloc(block_bytes(bench)), *bytes = malloc(bench->params.segment_bytes);
    uint32_t count = 0;
    fill_block(key, block, block_bytes(bench));
    for (uint32_t segment = 0; segment < 8; segment++) {
        char path[KV_FOLDER_BYTES + 64];
        kv_segment_path(bench->folder, segment, path, sizeof path);
        int fd = open(path, O_RDONLY);
        ssize_t got = fd >= 0 ? read(fd, bytes, bench->params.segment_bytes) : 0;
        count += got > 0 && memmem(bytes, (size_t)got, block, 64) != NULL;
        if (fd >= 0) {
            close(fd);
        }
    }
    count += memmem(bench->params.device_arena, 16 * block_bytes(bench), block, 64) != NULL;
    count += memmem(bench->store->groups[0].host_arena.region.base, 16 * block_bytes(bench), block,
                 64) != NULL;
    free(block);
    free(bytes);
    return count;
}

static void an_erased_block_is_overwritten_everywhere(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "erase", KVIST_PERSIST_SPILL);
    request_context(&bench, 1, BLOCKS);
    request_context(&bench, 2, 16);
    request_context(&bench, 1, BLOCKS); /* on all three tiers by now */
    assert_int_equal(flush(&bench), KV_OK);
    kvist_key_t key = block_key(&bench, 1, 3);
    assert_true(count_copies(&bench, &key) >= 2);
    assert_int_equal(drop(&bench, 1, 1, true).status, KV_OK);
    assert_int_equal(count_copies(&bench, &key), 0);
    key = block_key(&bench, 1, 0);
    assert_true(count_copies(&bench, &key) >= 1);
    check_accounts(&bench);
    /* Written and moved at that moment. */
    for (uint32_t round = 0; round < 20; round++) {
        request_context(&bench, 50 + round, BLOCKS);
        for (uint32_t turn = 0; turn < round % 7; turn++) {
            kvist_store_poll(bench.store);
            usleep(round * 10);
        }
        assert_int_equal(drop(&bench, 50 + round, 0, true).status, KV_OK);
        key = block_key(&bench, 50 + round, 2);
        assert_int_equal(count_copies(&bench, &key), 0);
    }
    expect_after_restarts(&bench, 1, 1);
    bench_end(&bench);
}

/* ---- a disk that refuses ---- */

typedef struct {
    bool failing;
    kv_ring_kind_t kind;
} refusal_t;

static int64_t refuse(void *context, bool after, kv_ring_request_t *request, int64_t result)
{
    const refusal_t *refusal = context;
    return after && refusal->failing && request->kind == refusal->kind ? -EIO : result;
}

static void a_drop_that_cannot_be_made_durable_says_so(void **state)
{
    (void)state;
    static const kv_ring_kind_t KINDS[] = {KV_RING_WRITE, KV_RING_SYNC};
    for (size_t i = 0; i < 2; i++) {
        bench_t bench;
        refusal_t refusal = {.kind = KINDS[i]};
        bench_init(&bench, "refused", 16);
        bench_with_disk(&bench, 8);
        bench.seams.faults = (kv_ring_faults_t){refuse, &refusal};
        bench_open(&bench);
        request_context(&bench, 1, BLOCKS);
        request_context(&bench, 2, BLOCKS);
        assert_int_equal(flush(&bench), KV_OK);
        refusal.failing = true;
        assert_int_equal(drop(&bench, 1, 0, false).status, KV_IO);
        assert_int_equal(found(&bench, 1), 0);
        refusal.failing = false;
        assert_int_equal(drop(&bench, 2, 3, false).status, KV_OK); /* the others are tried again */
        expect_after_restarts(&bench, 1, 0);
        assert_int_equal(found(&bench, 2), 3);
        bench_end(&bench);
    }
}

/* The marks of a drop that was cut off are made by the next life. */
static void what_a_crash_left_unmarked_is_marked_later(void **state)
{
    (void)state;
    bench_t bench;
    refusal_t refusal = {.kind = KV_RING_WRITE};
    bench_init(&bench, "later", 16);
    bench_with_disk(&bench, 8);
    bench.seams.faults = (kv_ring_faults_t){refuse, &refusal};
    bench_open(&bench);
    request_context(&bench, 1, BLOCKS);
    assert_int_equal(flush(&bench), KV_OK);
    refusal.failing = true;
    assert_int_equal(drop(&bench, 1, 2, true).status, KV_IO);
    bench_close(&bench);
    refusal.failing = false;
    bench_open(&bench);
    bench_turn(&bench);
    bench_close(&bench);
    lose_index(&bench);
    bench_open(&bench);
    assert_int_equal(found(&bench, 1), 2);
    bench_end(&bench);
}

/* ---- damage ---- */

/* Damage that a read found is forgotten for good, and what lies behind it is still found. */
static void a_rebuilt_index_knows_nothing_of_damaged_blocks(void **state)
{
    (void)state;
    for (uint32_t at = 0; at < 2; at++) {
        bench_t bench;
        bench_init(&bench, "damage", 16);
        bench_with_disk(&bench, 8);
        bench_open(&bench);
        request_context(&bench, 1, BLOCKS);
        request_context(&bench, 2, BLOCKS);
        assert_int_equal(flush(&bench), KV_OK);
        damage_record(&bench, 1, 1, at == 0 ? 100 : KV_PAGE_BYTES + 100);
        request_context(&bench, 3, 16); /* pushes the others out of the device */
        uint32_t tokens[BLOCKS * BLOCK_TOKENS];
        kvist_match_t match;
        make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
        kvist_lease_t *lease = match_tokens(&bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
        assert_int_equal(prepare(&bench, lease, BLOCKS).match.block_count, 1);
        kvist_lease_release(lease);
        assert_int_equal(flush(&bench), KV_OK);
        expect_after_restarts(&bench, 1, 1);
        assert_int_equal(found(&bench, 2), BLOCKS);
        bench_end(&bench);
    }
}

/* A header that nobody can read costs its own record alone when the index is made anew. */
/* As a crash may leave a record that nobody was told of: at a page of the segment of another one,
 * with bytes of its own or torn ones. */
static void leave_behind(
    const bench_t *bench, uint32_t context, uint32_t block, off_t page, bool torn)
{
    kvist_key_t key = block_key(bench, context, block);
    const kv_object_t *object =
        kv_table_at(bench->store->table, kv_table_find(bench->store->table, &key));
    char path[KV_FOLDER_BYTES + 64], bytes[2 * KV_PAGE_BYTES];
    kv_segment_path(bench->folder, object->segment, path, sizeof path);
    int fd = open(path, O_RDWR);
    off_t offset = (off_t)object->offset_pages * KV_PAGE_BYTES;
    assert_int_equal(pread(fd, bytes, sizeof bytes, offset), sizeof bytes);
    bytes[KV_PAGE_BYTES] ^= torn;
    assert_int_equal(pwrite(fd, bytes, sizeof bytes, page * KV_PAGE_BYTES), sizeof bytes);
    fsync(fd);
    close(fd);
}

/* Records at the end of a segment that was left early: one is torn, the other is behind a hole. */
static void what_a_crash_left_behind_does_not_come_back(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "left-behind", 16);
    bench_with_disk(&bench, 12);
    bench_open(&bench);
    uint32_t context = 1;
    for (; context <= 8; context++) { /* the 29th record begins the second segment */
        request_context(&bench, context, 4);
        assert_int_equal(flush(&bench), KV_OK);
    }
    leave_behind(&bench, 1, 2, 57, true);
    leave_behind(&bench, 1, 3, 60, false);
    bench_close(&bench);
    bench_open(&bench);
    assert_int_equal(found(&bench, 1), 4);
    assert_int_equal(drop(&bench, 1, 2, false).status, KV_OK);
    for (; context <= 24; context++) { /* some segments on, headers alone are read */
        request_context(&bench, context, 4);
        assert_int_equal(flush(&bench), KV_OK);
    }
    assert_int_equal(found(&bench, 1), 2);
    expect_after_restarts(&bench, 1, 2);
    bench_end(&bench);
}

typedef struct {
    bool records, markers; /* which writes fail; of records nothing reaches the disk */
} failing_t;

static int64_t fail_writes(void *context, bool after, kv_ring_request_t *request, int64_t result)
{
    const failing_t *failing = context;
    bool fails = request->kind == KV_RING_WRITE &&
                 (request->bytes == KV_PAGE_BYTES ? failing->markers : failing->records);
    if (fails && !after) {
        memset(request->buffer, 0, request->bytes);
    }
    return fails && after ? -EIO : result;
}

static void a_place_that_waits_for_its_marker_is_not_used_again(void **state)
{
    (void)state;
    bench_t bench;
    failing_t failing = {0};
    bench_init(&bench, "waits", 8);
    bench_with_disk(&bench, 8);
    bench.seams.faults = (kv_ring_faults_t){fail_writes, &failing};
    bench_open(&bench);
    request_context(&bench, 1, 4);
    assert_int_equal(flush(&bench), KV_OK);
    failing = (failing_t){true, true};
    request_context(&bench, 2, 4);
    assert_int_not_equal(flush(&bench), KV_OK);
    bench_close(&bench); /* the places that context 2 had are noted */
    failing.records = false;
    bench_open(&bench);
    request_context(&bench, 3, 4);
    assert_int_equal(flush(&bench), KV_OK);
    bench_close(&bench);
    failing.markers = false;
    for (int life = 0; life < 2; life++) { /* the first one writes the markers */
        bench_open(&bench);
        assert_int_equal(request_context(&bench, 3, 4).block_count, 4);
        assert_int_equal(request_context(&bench, 1, 4).block_count, 4);
        bench_close(&bench);
    }
    bench_end(&bench);
}

static void a_rebuild_goes_on_behind_a_damaged_header(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "behind", 16);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    request_context(&bench, 1, BLOCKS);
    request_context(&bench, 2, BLOCKS);
    assert_int_equal(flush(&bench), KV_OK);
    damage_record(&bench, 1, 1, 100);
    bench_close(&bench);
    lose_index(&bench);
    bench_open(&bench);
    assert_int_equal(found(&bench, 1), 1);
    assert_int_equal(found(&bench, 2), BLOCKS);
    bench_end(&bench);
}

/* ---- kill -9 ---- */

enum { LIFE_CONTEXTS = 64 };

static void bench_for(bench_t *bench, const char *folder)
{
    bench_init(bench, "killed", 24);
    snprintf(bench->folder, sizeof bench->folder, "%s", folder);
    bench_with_host(bench, 8);
    bench_with_disk(bench, 400);
}

/* The victim: stores contexts one after the other and drops every third of them from its second
 * block on, some blocks later; tells its standard output which drops were acknowledged. */
static int live(const char *folder, uint32_t first)
{
    bench_t bench;
    bench_for(&bench, folder);
    bench_open(&bench);
    for (uint32_t context = first; context < first + LIFE_CONTEXTS; context++) {
        request_context(&bench, context, BLOCKS);
        if (context % 8 == 7 && flush(&bench) != KV_OK) {
            return 1;
        }
        if (context >= first + 2 && context % 3 == 0) {
            uint32_t victim = context - context % 2 * 2;
            if (drop(&bench, victim, 1, context % 4 == 0).status != KV_OK ||
                write(STDOUT_FILENO, &victim, sizeof victim) != sizeof victim) {
                return 1;
            }
        }
    }
    for (;;) {
        bench_turn(&bench);
    }
}

/* Which contexts' drops a victim acknowledged before it was killed. */
static uint32_t run_victim(const char *folder, uint32_t first, uint32_t wait_us, uint32_t *dropped)
{
    int channel[2];
    char first_text[16];
    uint32_t count = 0, word;
    assert_int_equal(pipe(channel), 0);
    snprintf(first_text, sizeof first_text, "%u", first);
    pid_t victim = fork();
    assert_true(victim >= 0);
    if (victim == 0) {
        dup2(channel[1], STDOUT_FILENO);
        close(channel[0]);
        close(channel[1]);
        execl("/proc/self/exe", "victim", folder, first_text, (char *)NULL);
        _exit(127);
    }
    close(channel[1]);
    assert_int_equal(read(channel[0], &dropped[count], sizeof word), sizeof word);
    count++;
    usleep(wait_us);
    assert_int_equal(kill(victim, SIGKILL), 0);
    while (read(channel[0], &word, sizeof word) == sizeof word) {
        dropped[count++] = word;
    }
    close(channel[0]);
    int status;
    assert_int_equal(waitpid(victim, &status, 0), victim);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    return count;
}

static void nothing_dropped_comes_back_after_kill_9(void **state)
{
    (void)state;
    char folder[512];
    snprintf(folder, sizeof folder, "%s/victim", kv_test_folder());
    uint64_t random = kv_test_seed();
    uint32_t lives = kv_test_long() ? 100 : 10;
    for (uint32_t life = 0; life < lives; life++) {
        uint32_t dropped[LIFE_CONTEXTS], wait_us = (uint32_t)(kv_test_random(&random) % 40000);
        uint32_t count = run_victim(folder, life * LIFE_CONTEXTS, wait_us, dropped);
        bench_t bench;
        bench_for(&bench, folder);
        if (kv_test_random(&random) % 2 == 0) {
            lose_index(&bench);
        }
        bench_open(&bench);
        for (uint32_t i = 0; i < count; i++) {
            assert_in_range(found(&bench, dropped[i]), 0, 1);
        }
        uint32_t whole = 0;
        for (uint32_t context = life * LIFE_CONTEXTS; context < (life + 1) * LIFE_CONTEXTS;
             context++) {
            whole += request_context(&bench, context, BLOCKS).block_count == BLOCKS;
        }
        assert_int_equal(bench_stats(&bench).damaged_objects, 0);
        print_message("life %u: %u drops, %u contexts found\n", life, count, whole);
        bench_end(&bench);
    }
}

/* What is to be erased keeps both segments of this disk, what is being written waits for one. */
static void an_erase_does_not_wait_for_what_waits_for_it(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "erase-wait", 24);
    bench_with_disk(&bench, 2);
    bench.params.segment_bytes = 64 << 10; /* 7 records */
    bench.params.disk_bytes = 2 * bench.params.segment_bytes;
    bench_open(&bench);
    request_context(&bench, 1, 14);
    assert_int_equal(flush(&bench), KV_OK);
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_DISK].object_count, 14);
    request_context(&bench, 1, 18);
    kvist_store_poll(bench.store); /* their writing begins */
    outcome_t outcome = drop(&bench, 1, 0, true);
    assert_int_equal(outcome.status, KV_OK);
    assert_int_equal(outcome.match.block_count, 18);
    check_accounts(&bench);
    bench_end(&bench);
}

int main(int argument_count, char **arguments)
{
    if (argument_count == 3 && strcmp(arguments[0], "victim") == 0) {
        return live(arguments[1], (uint32_t)strtoul(arguments[2], NULL, 10));
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_marker_lies_in_one_sector),
        cmocka_unit_test(what_is_not_stored_cannot_be_dropped),
        cmocka_unit_test(a_block_goes_with_its_descendants),
        cmocka_unit_test(without_a_disk_a_drop_is_one_of_memory),
        cmocka_unit_test(a_lease_keeps_its_bytes_and_nobody_finds_them),
        cmocka_unit_test(a_record_on_its_way_is_dropped_too),
        cmocka_unit_test(dropped_and_stored_again_at_once_is_stored),
        cmocka_unit_test(an_erased_block_is_overwritten_everywhere),
        cmocka_unit_test(a_drop_that_cannot_be_made_durable_says_so),
        cmocka_unit_test(what_a_crash_left_unmarked_is_marked_later),
        cmocka_unit_test(a_rebuilt_index_knows_nothing_of_damaged_blocks),
        cmocka_unit_test(what_a_crash_left_behind_does_not_come_back),
        cmocka_unit_test(a_place_that_waits_for_its_marker_is_not_used_again),
        cmocka_unit_test(a_rebuild_goes_on_behind_a_damaged_header),
        cmocka_unit_test(nothing_dropped_comes_back_after_kill_9),
        cmocka_unit_test(an_erase_does_not_wait_for_what_waits_for_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
