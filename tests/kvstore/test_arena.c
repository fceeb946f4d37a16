/* The host tier's memory: where things lie in it, and who may write what other processes read. */
#include "harness.h"
#include "kvstore/embedded.h"

#include <errno.h>
#include <sys/mman.h>

static kv_arena_plan_t plan_of(uint32_t slot_count, uint64_t object_bytes)
{
    kv_arena_plan_t plan = {.slot_count = slot_count,
        .object_bytes = object_bytes,
        .unit_count = 8,
        .block_tokens = BLOCK_TOKENS};
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
            assert_true(plan.tokens_at >= plan.checksums_at + count * 8ull * sizeof(uint64_t));
            assert_true(plan.total_bytes >= plan.tokens_at + (uint64_t)count * BLOCK_TOKENS * 4);
            assert_int_equal(plan.checksums_at % 4096 + plan.tokens_at % 4096, 0);
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
        .block_tokens = UINT32_MAX};
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
    kv_arena_tokens(&arena)[100 * BLOCK_TOKENS - 1] = 43;
    assert_int_equal(kv_arena_slot(&seen, 98)[4999], 0);
    assert_memory_equal(kv_arena_slot(&seen, 99), kv_arena_slot(&arena, 99), 5000);
    assert_int_equal(kv_arena_checksums(&seen)[100 * 8 - 1], 42);
    assert_int_equal(kv_arena_tokens(&seen)[100 * BLOCK_TOKENS - 1], 43);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plan_has_room_for_everything),
        cmocka_unit_test(a_reader_sees_what_is_written),
        cmocka_unit_test(nobody_else_can_write),
        cmocka_unit_test(what_is_not_sealed_is_refused),
        cmocka_unit_test(a_store_lies_in_shared_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
