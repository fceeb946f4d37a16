/* "Fail the Nth operation" over everything that the store asks of its files, its ring and its index
 * while it opens, reads, stores, flushes and closes: with each reason that passes, once and from
 * there on. It never crashes, hangs or gives wrong bytes; what was durable before, and what a flush
 * acknowledges in spite of it, is there when the reason has passed. */
#include "harness.h"

#include "base/log.h"
#include "simulated_disk.h"

#include <errno.h>
#include <sys/prctl.h>

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
    kvist_keys(&trial->bench.name_space, tokens, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS, keys);
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
        trial->index = kv_index_memory_after_loss(filled_index, NULL);
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

int main(void)
{
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); /* thousands of small stores: none needs huge pages */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(any_operation_may_fail, say_which),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
