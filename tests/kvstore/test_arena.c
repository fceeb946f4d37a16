/* The host tier's memory: where things lie in it, and who may write what other processes read. */
#include "harness.h"
#include "kvstore/embedded.h"

#include "base/log.h"

#include <errno.h>
#include <semaphore.h>
#include <sys/mman.h>

static kv_arena_plan_t plan_of(uint32_t slot_count, uint64_t object_bytes)
{
    kv_arena_plan_t plan = {.slot_count = slot_count,
        .object_bytes = object_bytes,
        .unit_count = 8,
        .block_words = BLOCK_TOKENS};
    kv_error_t error = {0};
    assert_int_equal(kv_arena_plan(&plan, &error), KV_OK);
    return plan;
}

static void a_plan_has_room_for_everything(void **state)
{
    (void)state;
    for (uint64_t object_bytes = 24; object_bytes < 100000; object_bytes *= 3) {
        for (uint32_t count = 1; count < 10000; count *= 7) {
            kv_arena_plan_t plan = plan_of(count, object_bytes);
            assert_true(plan.checksums_at >= count * object_bytes);
            assert_true(plan.words_at >= plan.checksums_at + count * 8ull * sizeof(uint64_t));
            assert_true(plan.total_bytes >= plan.words_at + (uint64_t)count * BLOCK_TOKENS * 4);
            assert_int_equal(plan.checksums_at % 4096 + plan.words_at % 4096, 0);
            assert_int_equal(plan.total_bytes % (2 << 20), 0);
        }
    }
    kv_error_t error;
    kv_arena_plan_t none = {.slot_count = 0, .object_bytes = 1};
    assert_int_equal(kv_arena_plan(&none, &error), KV_INVALID);
    kv_arena_plan_t endless = {.slot_count = UINT32_MAX, .object_bytes = UINT64_MAX / 8};
    assert_int_equal(kv_arena_plan(&endless, &error), KV_INVALID);
    kv_arena_plan_t full = {.slot_count = 1,
        .object_bytes = UINT64_MAX / 2 - 4096,
        .unit_count = UINT32_MAX,
        .block_words = UINT32_MAX};
    assert_int_equal(kv_arena_plan(&full, &error), KV_INVALID);
}

static kv_arena_t open_arena(const kv_arena_plan_t *plan, bool shared)
{
    kv_arena_t arena;
    kv_error_t error = {0};
    assert_int_equal(kv_arena_open(plan, shared, &arena, &error), KV_OK);
    return arena;
}

static void a_reader_sees_what_is_written(void **state)
{
    (void)state;
    kv_arena_plan_t plan = plan_of(100, 5000);
    kv_arena_t arena = open_arena(&plan, true), seen;
    kv_error_t error = {0};
    assert_int_equal(kv_arena_map(&plan, arena.fd, &seen, &error), KV_OK);
    memset(kv_arena_slot(&arena, 99), 'k', 5000);
    kv_arena_checksums(&arena)[100 * 8 - 1] = 42;
    kv_arena_words(&arena)[100 * BLOCK_TOKENS - 1] = 43;
    assert_int_equal(kv_arena_slot(&seen, 98)[4999], 0);
    assert_memory_equal(kv_arena_slot(&seen, 99), kv_arena_slot(&arena, 99), 5000);
    assert_int_equal(kv_arena_checksums(&seen)[100 * 8 - 1], 42);
    assert_int_equal(kv_arena_words(&seen)[100 * BLOCK_TOKENS - 1], 43);
    /* What was mapped stays when its owner is gone. */
    kv_arena_close(&arena);
    assert_int_equal(kv_arena_slot(&seen, 99)[0], 'k');
    kv_arena_close(&seen);
    kv_arena_close(&seen);
}

/* Whatever a descriptor's holder tries. */
static void check_locked(int fd, size_t bytes)
{
    assert_ptr_equal(mmap(NULL, bytes, PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    assert_int_equal(pwrite(fd, "x", 1, 0), -1);
    assert_int_equal(ftruncate(fd, 0), -1);
    assert_int_equal(ftruncate(fd, (off_t)bytes * 2), -1);
    assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
}

static void nobody_else_can_write(void **state)
{
    (void)state;
    kv_arena_plan_t plan = plan_of(10, 4096);
    kv_arena_t arena = open_arena(&plan, true), seen;
    kv_error_t error = {0};
    memset(kv_arena_slot(&arena, 0), 'k', 4096);
    check_locked(arena.fd, plan.total_bytes);
    /* Also not who may open the file anew to write, as this user can. */
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", arena.fd);
    int again = open(path, O_RDWR | O_CLOEXEC);
    if (again >= 0) {
        check_locked(again, plan.total_bytes);
        close(again);
    }
    assert_int_equal(kv_arena_map(&plan, arena.fd, &seen, &error), KV_OK);
    assert_int_equal(mprotect(seen.region.base, 4096, PROT_READ | PROT_WRITE), -1);
    assert_int_equal(errno, EACCES);
    assert_int_equal(kv_arena_slot(&arena, 0)[0], 'k');
    kv_arena_close(&seen);
    kv_arena_close(&arena);
}

static void what_is_not_sealed_is_refused(void **state)
{
    (void)state;
    kv_arena_plan_t plan = plan_of(10, 4096), larger = plan_of(1000, 4096);
    kv_arena_t arena = open_arena(&plan, true), seen;
    kv_error_t error = {0};
    assert_int_equal(kv_arena_map(&larger, arena.fd, &seen, &error), KV_REFUSED);
    assert_non_null(strstr(error.text, "plan"));
    kv_arena_close(&arena);
    int fd = memfd_create("kvist-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(fd, (off_t)plan.total_bytes), 0);
    assert_int_equal(kv_arena_map(&plan, fd, &seen, &error), KV_REFUSED);
    assert_non_null(strstr(error.text, "sealed"));
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    assert_int_equal(kv_arena_map(&plan, fd, &seen, &error), KV_REFUSED);
    close(fd);
    assert_int_equal(kv_arena_map(&plan, fd, &seen, &error), KV_REFUSED);
}

/* The store over it: its objects lie where the plan says. */
static void a_store_lies_in_shared_memory(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "shared", 4);
    bench_with_host(&bench, 32);
    bench.params.host_shared = true;
    bench_open(&bench);
    for (uint32_t context = 1; context <= 4; context++) {
        assert_int_equal(request_context(&bench, context, 4).block_count, 0);
    }
    const kv_arena_t *arena = kv_embedded_store_arena(bench.store, 0);
    assert_non_null(arena);
    kv_arena_t seen;
    kv_error_t error = {0};
    assert_int_equal(kv_arena_map(&arena->plan, arena->fd, &seen, &error), KV_OK);
    char *expected = malloc(block_bytes(&bench));
    for (uint32_t block = 0; block < 4; block++) {
        kvist_key_t key = block_key(&bench, 1, block);
        const kv_object_t *object =
            kv_table_at(bench.store->table, kv_table_find(bench.store->table, &key));
        assert_true(kv_object_on_host(object));
        fill_block(&key, expected, block_bytes(&bench));
        assert_memory_equal(kv_arena_slot(&seen, object->host_slot), expected, block_bytes(&bench));
    }
    free(expected);
    for (uint32_t context = 1; context <= 4; context++) {
        assert_int_equal(request_context(&bench, context, 4).block_count, 4);
    }
    kv_arena_close(&seen);
    bench_end(&bench);
    bench_init(&bench, "private", 4);
    bench_with_host(&bench, 32);
    bench_open(&bench);
    assert_null(kv_embedded_store_arena(bench.store, 0)); /* nobody's but this process' */
    bench_end(&bench);
}

/* ---- made ready in chunks, while it serves ---- */

enum {
    CHUNK_MIB = 64,
    CHUNKS = 4,
    STEPS_PER_CHUNK_MIN = 4, /* each of 16 MiB; beside the slots come checksums and token ids */
};

/* Memory that is there, but as the test wants: tables have no context. */
static struct {
    uint32_t populated, populate_max; /* steps; those after the first populate_max fail */
    uint32_t locked, lock_max;
    bool gated; /* steps after the first chunk's wait for the gate */
    sem_t gate;
    uint64_t bytes;
} memory;

static kv_status_t populate_as_told(void *base, size_t bytes, kv_error_t *error)
{
    (void)base;
    if (memory.gated && memory.populated >= 2 + STEPS_PER_CHUNK_MIN) {
        sem_wait(&memory.gate);
    }
    if (memory.populated == memory.populate_max) {
        return kv_fail(error, KV_NO_SPACE, "no more, says the test");
    }
    memory.populated++;
    memory.bytes += bytes;
    return KV_OK;
}

static bool lock_as_told(void *base, size_t bytes)
{
    (void)base;
    (void)bytes;
    return memory.locked++ < memory.lock_max;
}

static const kv_arena_memory_t TOLD = {populate_as_told, lock_as_told};

static void start_memory(uint32_t populate_max, uint32_t lock_max)
{
    memory.populated = memory.locked = 0;
    memory.bytes = 0;
    memory.populate_max = populate_max;
    memory.lock_max = lock_max;
    memory.gated = false;
}

static void bench_growing(bench_t *bench, const char *name)
{
    bench_init(bench, name, 8);
    bench->params.host_bytes = (uint64_t)CHUNKS * CHUNK_MIB << 20;
    bench->params.host_shared = true;
    bench->seams.memory = &TOLD;
}

static void wait_until_grown(bench_t *bench)
{
    uint64_t end_ns = patience_ns();
    while (bench_stats(bench).host_coming_bytes > 0) {
        bench_wait(bench, end_ns);
    }
}

static void the_first_chunk_serves_while_others_come(void **state)
{
    (void)state;
    bench_t bench;
    bench_growing(&bench, "growing");
    start_memory(UINT32_MAX, UINT32_MAX);
    memory.gated = true;
    sem_init(&memory.gate, 0, 0);
    bench_open(&bench);
    kvist_stats_t stats = bench_stats(&bench);
    const uint64_t capacity = stats.tiers[KVIST_TIER_HOST].capacity_bytes;
    assert_int_equal(capacity, CHUNK_MIB << 20);
    assert_int_equal(capacity + stats.host_coming_bytes, bench.params.host_bytes);
    /* More than the device tier has goes through the host's and comes back. */
    for (uint32_t context = 1; context <= 8; context++) {
        assert_int_equal(request_context(&bench, context, 4).block_count, 0);
    }
    for (uint32_t context = 1; context <= 8; context++) {
        assert_int_equal(request_context(&bench, context, 4).block_count, 4);
    }
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_HOST].capacity_bytes, capacity);
    for (int i = 0; i < 100; i++) {
        sem_post(&memory.gate);
    }
    wait_until_grown(&bench);
    stats = bench_stats(&bench);
    assert_int_equal(stats.tiers[KVIST_TIER_HOST].capacity_bytes, bench.params.host_bytes);
    assert_int_equal(stats.host_locked_bytes, bench.params.host_bytes);
    assert_true(memory.bytes >= bench.params.host_bytes);
    assert_int_equal(request_context(&bench, 1, 4).block_count, 4);
    check_accounts(&bench);
    bench_end(&bench);
    sem_destroy(&memory.gate);
}

static void closing_does_not_wait_for_the_rest(void **state)
{
    (void)state;
    bench_t bench;
    bench_growing(&bench, "closing");
    start_memory(UINT32_MAX, UINT32_MAX);
    memory.gated = true;
    sem_init(&memory.gate, 0, 0);
    bench_open(&bench);
    assert_false(kv_populate_stop(bench.store)); /* as closing does first */
    sem_post(&memory.gate);
    bench_end(&bench);
    assert_true(memory.populated <= 2 + STEPS_PER_CHUNK_MIN + 1);
    sem_destroy(&memory.gate);
}

/* With memory for the first N steps, for every N. */
static void where_memory_ends_the_tier_stays_smaller(void **state)
{
    (void)state;
    bench_t bench;
    uint64_t before = 0;
    kv_log_setup("test", KV_LOG_ERROR);
    for (uint32_t steps = 0;; steps++) {
        bench_growing(&bench, "short");
        bench.seams.threadless = true;
        start_memory(steps, 0);
        kv_error_t error = {0};
        kv_status_t status = kv_store_open_with(&bench.params, &bench.seams, &bench.store, &error);
        if (status != KV_OK) { /* not even the first chunk */
            assert_int_equal(status, KV_NO_SPACE);
            assert_non_null(strstr(error.text, "no memory for the host tier: no more, says"));
            assert_true(memory.bytes < (CHUNK_MIB << 20) + (4 << 20));
            bench.store = NULL;
            bench_end(&bench);
            continue;
        }
        bench_listen(&bench);
        wait_until_grown(&bench);
        const kvist_stats_t stats = bench_stats(&bench);
        const uint64_t capacity = stats.tiers[KVIST_TIER_HOST].capacity_bytes;
        assert_true(capacity >= CHUNK_MIB << 20 && capacity <= memory.bytes);
        assert_true(capacity >= before);
        assert_int_equal(stats.host_locked_bytes, 0);
        before = capacity;
        for (uint32_t context = 1; context <= 8; context++) {
            request_context(&bench, context, 4);
        }
        assert_int_equal(request_context(&bench, 1, 4).block_count, 4);
        check_accounts(&bench);
        bench_end(&bench);
        if (capacity == bench.params.host_bytes) {
            break;
        }
    }
    kv_log_setup("test", KV_LOG_INFO);
}

static void what_may_not_be_locked_is_used_all_the_same(void **state)
{
    (void)state;
    bench_t bench;
    bench_growing(&bench, "unlocked");
    bench.seams.threadless = true;
    /* The first chunk, and a part of the second. */
    start_memory(UINT32_MAX, 2 + STEPS_PER_CHUNK_MIN + 1);
    bench_open(&bench);
    wait_until_grown(&bench);
    const kvist_stats_t stats = bench_stats(&bench);
    assert_int_equal(stats.host_locked_bytes, CHUNK_MIB << 20);
    assert_int_equal(stats.tiers[KVIST_TIER_HOST].capacity_bytes, bench.params.host_bytes);
    bench_end(&bench);
}

/* A tier of one chunk that is full of what nobody has elsewhere: nothing is dropped while more is
 * to come. */
static void nothing_is_lost_for_want_of_a_chunk(void **state)
{
    (void)state;
    bench_t bench;
    bench_growing(&bench, "full");
    bench.params.host_bytes = (CHUNK_MIB << 20) + (1 << 20);
    start_memory(UINT32_MAX, UINT32_MAX);
    memory.gated = true;
    sem_init(&memory.gate, 0, 0);
    bench_open(&bench);
    const uint32_t contexts = (CHUNK_MIB << 20) / (uint32_t)block_bytes(&bench) / 8;
    for (uint32_t context = 1; context <= contexts + 1;
         context++) { /* the last one is on the device */
        request_context(&bench, context, 8);
    }
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_HOST].evicted_objects, 0);
    kvist_match_t match;
    uint32_t tokens[8 * BLOCK_TOKENS];
    make_tokens(contexts + 2, 0, tokens, 8 * BLOCK_TOKENS);
    kvist_lease_t *lease = match_tokens(&bench, tokens, 8 * BLOCK_TOKENS, &match);
    outcome_t outcome = {0};
    assert_int_equal(kvist_lease_prepare(lease, 8, kv_clock_now_ns() + 20ull * KV_NS_PER_S,
                         note_prepared, &outcome),
        KV_OK);
    for (int turn = 0; turn < 3; turn++) {
        bench_turn(&bench);
    }
    assert_false(outcome.ended);
    for (int i = 0; i < 100; i++) {
        sem_post(&memory.gate);
    }
    wait_for(&bench, &outcome);
    assert_int_equal(outcome.status, KV_OK);
    kvist_lease_release(lease);
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_HOST].evicted_objects, 0);
    bench_end(&bench);
    sem_destroy(&memory.gate);
}

/* The machine's own: what it makes ready reads as zero and can be written. */
static void the_machine_makes_memory_ready(void **state)
{
    (void)state;
    kv_arena_plan_t plan = plan_of(100, 100000);
    kv_arena_t arena = open_arena(&plan, true);
    kv_error_t error = {0};
    atomic_bool stop = false;
    bool locked = false; /* is not asked for */
    assert_int_equal(
        kv_arena_make_ready(&arena, &KV_ARENA_MACHINE, 50, 50, &stop, &locked, &error), KV_OK);
    assert_int_equal(
        kv_arena_make_ready(&arena, &KV_ARENA_MACHINE, 0, 50, &stop, &locked, &error), KV_OK);
    struct stat about;
    assert_int_equal(fstat(arena.fd, &about), 0);
    assert_true((uint64_t)about.st_blocks * 512 >= plan.total_bytes - (2 << 20));
    for (size_t i = 0; i < 100 * 100000; i++) {
        assert_int_equal(kv_arena_slot(&arena, 0)[i], 0);
    }
    memset(kv_arena_slot(&arena, 0), 'k', 100 * 100000);
    assert_int_equal(kv_arena_checksums(&arena)[0], 0);
    stop = true;
    assert_int_equal(kv_arena_make_ready(&arena, &KV_ARENA_MACHINE, 0, 100, &stop, &locked, &error),
        KV_CANCELLED);
    kv_arena_close(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plan_has_room_for_everything),
        cmocka_unit_test(a_reader_sees_what_is_written),
        cmocka_unit_test(nobody_else_can_write),
        cmocka_unit_test(what_is_not_sealed_is_refused),
        cmocka_unit_test(a_store_lies_in_shared_memory),
        cmocka_unit_test(the_first_chunk_serves_while_others_come),
        cmocka_unit_test(closing_does_not_wait_for_the_rest),
        cmocka_unit_test(where_memory_ends_the_tier_stays_smaller),
        cmocka_unit_test(what_may_not_be_locked_is_used_all_the_same),
        cmocka_unit_test(nothing_is_lost_for_want_of_a_chunk),
        cmocka_unit_test(the_machine_makes_memory_ready),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
