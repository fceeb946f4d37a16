/* "Fail the Nth operation" over everything that the store asks of its files, its ring and its index
 * while it opens, reads, stores, flushes and closes: with each reason that passes, once and from
 * there on. It never crashes, hangs or gives wrong bytes; what was durable before, and what a flush
 * acknowledges in spite of it, is there when the reason has passed. Then a disk that takes its
 * time, and one that is not as new as the index, or newer. */
#include "harness.h"

#include "base/log.h"
#include "simulated_disk.h"

#include <errno.h>

enum {
    BLOCKS = 4,
    OLD = 3, /* contexts 0 .. are durable before */
    NEW = 6, /* .. and these are stored while operations fail */
    DEVICE_SLOTS = 8,
    TURNS_MAX = 5000,
};

static const int REASONS[] = {EIO, ENOSPC, EMFILE, ENOMEM};

typedef enum { DISK_EMPTY, DISK_FILLED, DISK_WITHOUT_INDEX, BASE_COUNT } base_t;

typedef struct {
    bench_t bench;
    simulated_disk_t *disk;
    kv_index_kept_t *index;
    base_t base;
    uint32_t operation, fail_at, reason;
    bool lasting;
    bool failed;  /* it came to that operation */
    bool evicted; /* with no room for a new segment, an old one made room */
    uint32_t acknowledged;
} trial_t;

static struct {
    trial_t trial;
    bool good;
} trying;

/* ---- the faults ---- */

static int fail_disk(void *context, simulated_operation_t operation)
{
    trial_t *trial = context;
    (void)operation;
    uint32_t number = trial->operation++;
    if (number == trial->fail_at || (trial->lasting && number > trial->fail_at)) {
        trial->failed = true;
        return -(int)trial->reason;
    }
    return 0;
}

static kv_status_t fail_index(void *context, bool sync)
{
    int result = fail_disk(context, sync ? SIMULATED_SYNC : SIMULATED_WRITE);
    return result < 0 ? kv_status_from_errno(-result) : KV_OK;
}

/* ---- one trial ---- */

static void trial_init(trial_t *trial, bool with_host)
{
    bench_init(&trial->bench, "faults", DEVICE_SLOTS);
    bench_with_host(&trial->bench, with_host ? 4 : 0);
    trial->bench.params.directory = "/disk/store";
    trial->bench.params.segment_bytes = 64 << 10;
    trial->bench.params.disk_bytes = 10 * trial->bench.params.segment_bytes;
    trial->bench.params.persist = with_host ? KVIST_PERSIST_SPILL : KVIST_PERSIST_EAGER;
    trial->bench.seams.memory_index = &trial->index;
    trial->bench.seams.files = simulated_disk_files(trial->disk);
    trial->bench.seams.threadless = true;
}

static void trial_end(trial_t *trial)
{
    bench_end(&trial->bench);
    simulated_disk_destroy(trial->disk);
    kv_index_memory_forget(&trial->index);
}

static kv_index_kept_t *copy_index(const kv_index_kept_t *index)
{
    return kv_index_memory_after_loss(index, kv_index_memory_unsynced(index));
}

/* Contexts 0 to OLD - 1, durable, and nothing else. */
static void fill(simulated_disk_t **disk_out, kv_index_kept_t **index_out)
{
    trial_t trial = {.disk = simulated_disk_create(1)};
    trial_init(&trial, false);
    bench_open(&trial.bench);
    for (uint32_t context = 0; context < OLD; context++) {
        request_context(&trial.bench, context, BLOCKS);
    }
    assert_int_equal(flush(&trial.bench), KV_OK);
    bench_close(&trial.bench);
    *disk_out = trial.disk;
    *index_out = trial.index;
    bench_end(&trial.bench);
}

static void check_context(trial_t *trial, uint32_t context, bool whole)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_key_t keys[BLOCKS];
    kvist_match_t match;
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_keys(&trial->bench.name_space, tokens, NULL, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS, keys);
    kvist_lease_t *lease = match_tokens(&trial->bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    outcome_t outcome = prepare(&trial->bench, lease, match.block_count);
    assert_int_equal(outcome.status, KV_OK);
    for (uint32_t block = 0; block < outcome.match.block_count; block++) {
        check_block(&trial->bench, &keys[block], kvist_lease_slots(lease)[block]);
    }
    kvist_miss_t miss = outcome.match.miss;
    assert_true(miss == KVIST_MISS_NONE || miss == KVIST_MISS_NEW || miss == KVIST_MISS_FAILED);
    if (whole) {
        assert_int_equal(outcome.match.block_count, BLOCKS);
    }
    kvist_lease_release(lease);
}

static void store_while_failing(trial_t *trial)
{
    uint32_t old = trial->base == DISK_EMPTY ? 0 : OLD;
    for (uint32_t context = 0; context < old; context++) {
        check_context(trial, context, false);
    }
    for (uint32_t context = OLD; context < NEW; context++) {
        request_context(&trial->bench, context, BLOCKS);
        if (flush(&trial->bench) == KV_OK && trial->acknowledged == context) {
            trial->acknowledged = context + 1;
        }
    }
    check_accounts(&trial->bench);
    trial->evicted = bench_stats(&trial->bench).tiers[KVIST_TIER_DISK].evicted_objects > 0;
    assert_true(!trial->evicted || trial->reason == ENOSPC);
    assert_int_equal(bench_stats(&trial->bench).damaged_objects, 0);
    bench_close(&trial->bench);
}

/* true: the run came to the operation that was to fail. */
static bool try(trial_t *trial)
{
    kv_error_t error = {0};
    kv_status_t status =
        kv_store_open_with(&trial->bench.params, &trial->bench.seams, &trial->bench.store, &error);
    if (status == KV_OK) {
        bench_listen(&trial->bench);
        if (trial->index != NULL) {
            kv_index_memory_watch(trial->index, (kv_index_watch_t){fail_index, trial});
        }
        store_while_failing(trial);
    } else {
        assert_true(status == KV_IO || status == KV_NO_SPACE || status == KV_BUSY);
        assert_true(strlen(error.text) > 0 && trial->failed);
    }
    simulated_disk_watch(trial->disk, (simulated_watch_t){0});
    if (trial->index != NULL) {
        kv_index_memory_watch(trial->index, (kv_index_watch_t){0});
    }
    bench_open(&trial->bench);
    for (uint32_t context = trial->base == DISK_EMPTY ? OLD : 0; context < trial->acknowledged;
         context++) {
        check_context(trial, context, !trial->evicted);
    }
    request_context(&trial->bench, NEW, BLOCKS);
    assert_int_equal(flush(&trial->bench), KV_OK);
    assert_int_equal(bench_stats(&trial->bench).damaged_objects, 0);
    bench_close(&trial->bench);
    return trial->failed;
}

static bool try_at(base_t base, uint32_t operation, uint32_t reason, bool lasting, bool with_host)
{
    static simulated_disk_t *filled;
    static kv_index_kept_t *filled_index;
    if (filled == NULL) {
        fill(&filled, &filled_index);
    }
    trial_t *trial = &trying.trial;
    *trial = (trial_t){.base = base,
        .fail_at = operation,
        .reason = reason,
        .lasting = lasting,
        .acknowledged = OLD};
    trial->disk =
        base == DISK_EMPTY ? simulated_disk_create(1) : simulated_disk_after_loss(filled, 1);
    if (base == DISK_FILLED) {
        trial->index = copy_index(filled_index);
    }
    trial_init(trial, with_host);
    simulated_disk_watch(trial->disk, (simulated_watch_t){fail_disk, trial});
    bool came_to_it = try(trial);
    trial_end(trial);
    return came_to_it;
}

static void any_operation_may_fail(void **state)
{
    (void)state;
    kv_log_setup("faults", (kv_log_level_t)(KV_LOG_ERROR + 1));
    uint32_t trials = 0;
    trying.good = false;
    for (uint32_t setting = 0; setting < 4 * BASE_COUNT; setting++) {
        for (size_t i = 0; i < sizeof REASONS / sizeof REASONS[0]; i++) {
            uint32_t operation = 0;
            while (try_at((base_t)(setting / 4), operation, (uint32_t)REASONS[i],
                (setting & 1) != 0, (setting & 2) != 0)) {
                operation++;
            }
            assert_true(operation > 20); /* it is a run of some length */
            trials += operation;
        }
    }
    trying.good = true;
    print_message("%u faults\n", trials);
}

static int say_which(void **state)
{
    (void)state;
    if (!trying.good) {
        const trial_t *trial = &trying.trial;
        print_message("base %d, operation %u fails with %s%s\n", (int)trial->base, trial->fail_at,
            strerror((int)trial->reason), trial->lasting ? ", and all after it" : "");
    }
    return 0;
}

/* ---- what a failed write leaves ---- */

static void turn_often(trial_t *trial)
{
    for (int i = 0; i < 100; i++) {
        bench_turn(&trial->bench);
    }
}

static int fail_first_write(void *context, simulated_operation_t operation)
{
    bool *failed = context;
    bool fails = operation == SIMULATED_WRITE && !*failed;
    *failed = *failed || fails;
    return fails ? -EIO : 0;
}

static void count_note(
    void *context, const uint8_t *key, size_t key_bytes, const uint8_t *value, size_t value_bytes)
{
    kv_note_entry_t note;
    *(uint32_t *)context += kv_note_entry_read(key, key_bytes, value, value_bytes, &note);
}

/* Nobody asks for a sync here: the note must not wait for one, since a restart looks for such
 * records in the last segments only. */
static void a_failed_write_is_noted_durably_at_once(void **state)
{
    (void)state;
    trial_t trial = {.disk = simulated_disk_create(1)};
    bool failed = true;
    trial_init(&trial, false);
    bench_open(&trial.bench);
    simulated_disk_watch(trial.disk, (simulated_watch_t){fail_first_write, &failed});
    request_context(&trial.bench, 0, 1);
    turn_often(&trial);
    failed = false;
    request_context(&trial.bench, 1, BLOCKS);
    turn_often(&trial);
    assert_int_equal(bench_stats(&trial.bench).unsaved_objects, 0); /* they are elsewhere now */
    uint32_t notes = 0;
    kv_index_kept_t *left = kv_index_memory_after_loss(trial.index, 0);
    bool made, ended;
    kv_error_t error;
    kv_index_t *index = kv_index_memory_open(&left, &made);
    kv_index_cursor_t *cursor = index->ops->open_cursor(index, 'x');
    assert_int_equal(
        index->ops->read(index, cursor, 100, count_note, &notes, &ended, &error), KV_OK);
    index->ops->close_cursor(index, cursor);
    index->ops->close(index);
    assert_true(notes > 0);
    kv_index_memory_forget(&left);
    trial_end(&trial);
}

/* ---- a slow disk ---- */

static void a_slow_disk_costs_time_and_nothing_else(void **state)
{
    (void)state;
    trial_t trial = {.base = DISK_FILLED};
    fill(&trial.disk, &trial.index);
    trial_init(&trial, false);
    bench_open(&trial.bench);
    simulated_disk_hold(trial.disk, true);

    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(0, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_t *lease = match_tokens(&trial.bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    assert_int_equal(match.block_count, BLOCKS);
    outcome_t reading = {0}, flushed = {0};
    assert_int_equal(
        kvist_lease_prepare(lease, BLOCKS, UINT64_MAX, note_prepared, &reading), KV_OK);
    turn_often(&trial);
    assert_false(reading.ended);
    /* Others go on meanwhile, in the slots that are left. */
    assert_int_equal(request_context(&trial.bench, OLD, BLOCKS).block_count, 0);
    assert_int_equal(request_context(&trial.bench, OLD, BLOCKS).block_count, BLOCKS);
    kvist_store_flush(trial.bench.store, note_flushed, &flushed);
    turn_often(&trial);
    assert_false(flushed.ended);
    kvist_lease_release(lease); /* does not want to wait; the slots come back with the answer */
    turn_often(&trial);
    simulated_disk_hold(trial.disk, false);
    wait_for(&trial.bench, &reading);
    assert_int_equal(reading.status, KV_CANCELLED);
    wait_for(&trial.bench, &flushed);
    assert_int_equal(flushed.status, KV_OK);
    for (uint32_t context = 0; context <= OLD; context++) {
        check_context(&trial, context, true);
    }
    kvist_stats_t stats = bench_stats(&trial.bench);
    assert_int_equal(stats.damaged_objects + stats.failed_reads + stats.failed_writes, 0);
    assert_int_equal(stats.slots_private, 0);
    trial_end(&trial);
}

/* ---- index and disk of different times ---- */

/* Contexts 0 to OLD - 1 of the past, OLD of the present. */
static void open_mixed(trial_t *trial, bool index_of_the_past)
{
    *trial = (trial_t){.base = DISK_FILLED};
    fill(&trial->disk, &trial->index);
    simulated_disk_t *past = simulated_disk_after_loss(trial->disk, 1);
    kv_index_kept_t *past_index = copy_index(trial->index);
    trial_init(trial, false);
    bench_open(&trial->bench);
    request_context(&trial->bench, OLD, BLOCKS);
    assert_int_equal(flush(&trial->bench), KV_OK);
    bench_close(&trial->bench);
    if (index_of_the_past) {
        kv_index_memory_forget(&trial->index);
        trial->index = past_index;
        simulated_disk_destroy(past);
    } else {
        kv_index_memory_forget(&past_index);
        simulated_disk_destroy(trial->disk);
        trial->disk = past;
        trial->bench.seams.files = simulated_disk_files(past);
    }
    bench_open(&trial->bench);
}

static void an_index_behind_the_data_catches_up(void **state)
{
    (void)state;
    trial_t trial;
    open_mixed(&trial, true);
    for (uint32_t context = 0; context <= OLD; context++) {
        check_context(&trial, context, true);
    }
    trial_end(&trial);
}

static void an_index_ahead_of_the_data_is_a_miss(void **state)
{
    (void)state;
    trial_t trial;
    open_mixed(&trial, false);
    for (uint32_t context = 0; context < OLD; context++) {
        check_context(&trial, context, true);
    }
    kvist_match_t match = request_context(&trial.bench, OLD, BLOCKS);
    assert_int_equal(match.block_count, 0);
    assert_true(match.miss == KVIST_MISS_NEW || match.miss == KVIST_MISS_DAMAGED);
    assert_int_equal(flush(&trial.bench), KV_OK);
    bench_close(&trial.bench);
    bench_open(&trial.bench);
    for (uint32_t context = 0; context <= OLD; context++) {
        check_context(&trial, context, true);
    }
    trial_end(&trial);
}

int main(void)
{
    kv_test_reuse_memory();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(any_operation_may_fail, say_which),
        cmocka_unit_test(a_failed_write_is_noted_durably_at_once),
        cmocka_unit_test(a_slow_disk_costs_time_and_nothing_else),
        cmocka_unit_test(an_index_behind_the_data_catches_up),
        cmocka_unit_test(an_index_ahead_of_the_data_is_a_miss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
