/* Verifying everything, and looking at one block. */
#include "harness.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>

enum { BLOCKS = 6 };

typedef struct {
    bool ended;
    kv_status_t status;
    kvist_verify_t state, last;
    uint32_t progress_count;
} course_t;

static void note_progress(void *context, const kvist_verify_t *state)
{
    course_t *course = context;
    assert_false(course->ended);
    assert_true(state->object_count >= course->last.object_count);
    course->last = *state;
    course->progress_count++;
}

static void note_verified(void *context, kv_status_t status, const kvist_verify_t *state)
{
    course_t *course = context;
    assert_false(course->ended);
    *course = (course_t){.ended = true, .status = status, .state = *state};
}

static kvist_verify_t verify(bench_t *bench)
{
    course_t course = {0};
    assert_int_equal(
        kvist_store_verify(bench->store, note_progress, note_verified, &course), KV_OK);
    assert_int_equal(kvist_store_verify(bench->store, NULL, note_verified, &course), KV_BUSY);
    assert_false(course.ended);
    uint64_t end_ns = patience_ns();
    while (!course.ended) {
        bench_wait(bench, end_ns);
    }
    assert_int_equal(course.status, KV_OK);
    return course.state;
}

static kv_object_t *object_of(const bench_t *bench, uint32_t context, uint32_t block)
{
    kvist_key_t key = block_key(bench, context, block);
    uint32_t number = kv_table_find(bench->store->table, &key);
    assert_int_not_equal(number, KV_OBJECT_NONE);
    return kv_table_at(bench->store->table, number);
}

static uint32_t found(bench_t *bench, uint32_t context)
{
    return found_blocks(bench, context, BLOCKS);
}

static void open_three_tiers(bench_t *bench, const char *name)
{
    bench_init(bench, name, 24);
    bench_with_host(bench, 24);
    bench_with_disk(bench, 8);
    bench->params.persist = KVIST_PERSIST_SPILL; /* so that host memory is used */
    bench_open(bench);
}

static void what_is_whole_is_found_whole(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "whole");
    assert_int_equal(verify(&bench).object_count, 0);
    for (uint32_t context = 0; context < 10; context++) {
        request_context(&bench, context, BLOCKS);
    }
    assert_int_equal(flush(&bench), KV_OK);
    kvist_stats_t stats = bench_stats(&bench);
    kvist_verify_t result = verify(&bench);
    assert_true(stats.tiers[KVIST_TIER_HOST].object_count > 0);
    assert_int_equal(result.object_total, 10 * BLOCKS + stats.tiers[KVIST_TIER_HOST].object_count);
    assert_int_equal(result.object_count, result.object_total);
    assert_int_equal(result.bytes, result.bytes_total);
    assert_int_equal(result.damaged_objects, 0);
    assert_int_equal(result.failed_objects, 0);
    check_accounts(&bench);
    bench_end(&bench);
}

static void damage_is_dropped_with_its_descendants(void **state)
{
    (void)state;
    for (off_t at = 0; at < 2 * KV_PAGE_BYTES; at += KV_PAGE_BYTES) {
        bench_t bench;
        bench_init(&bench, "damaged", 24);
        bench_with_disk(&bench, 8);
        bench_open(&bench);
        for (uint32_t context = 0; context < 10; context++) {
            request_context(&bench, context, BLOCKS);
        }
        assert_int_equal(flush(&bench), KV_OK);
        assert_false(kv_object_on_device(bench.store, object_of(&bench, 2, 1)));
        damage_record(&bench, 2, 1, at + 77);
        damage_record(&bench, 2, 3, at + 77); /* goes with the one above: counted once */
        damage_record(&bench, 4, BLOCKS - 1, at + 77);
        kvist_verify_t result = verify(&bench);
        assert_int_equal(result.damaged_objects, BLOCKS - 1 + 1);
        assert_int_equal(found(&bench, 2), 1);
        assert_int_equal(found(&bench, 4), BLOCKS - 1);
        assert_int_equal(found(&bench, 5), BLOCKS);
        check_accounts(&bench);
        assert_int_equal(verify(&bench).damaged_objects, 0);
        bench_close(&bench);
        bench_open(&bench);
        assert_int_equal(found(&bench, 2), 1);
        assert_int_equal(found(&bench, 4), BLOCKS - 1);
        bench_end(&bench);
    }
}

static void a_damaged_copy_beside_a_good_one_costs_no_block(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "copies");
    for (uint32_t context = 0; context < 5; context++) {
        request_context(&bench, context, BLOCKS);
    }
    assert_int_equal(flush(&bench), KV_OK);
    kv_object_t *object = object_of(&bench, 0, 0);
    assert_true(kv_object_on_host(object) && kv_object_on_disk(object));
    kv_group_host_bytes(&bench.store->groups[0], object->host_slot)[100] ^= 4;
    object = object_of(&bench, 4, 2);
    assert_true(kv_object_on_device(bench.store, object));
    damage_record(&bench, 4, 2, KV_PAGE_BYTES + 9);
    assert_int_equal(verify(&bench).damaged_objects, 2);
    assert_int_equal(found(&bench, 0), BLOCKS);
    assert_int_equal(found(&bench, 4), BLOCKS);
    assert_int_equal(request_context(&bench, 0, BLOCKS).block_count, BLOCKS);
    check_accounts(&bench);
    bench_end(&bench);
}

static int64_t fail_reads(void *context, bool after, kv_ring_request_t *request, int64_t result)
{
    return after && *(bool *)context && request->kind == KV_RING_READ ? -EIO : result;
}

static void what_cannot_be_read_stays(void **state)
{
    (void)state;
    bench_t bench;
    bool failing = false;
    bench_init(&bench, "unreadable", 24);
    bench_with_disk(&bench, 8);
    bench.seams.faults = (kv_ring_faults_t){fail_reads, &failing};
    bench_open(&bench);
    request_context(&bench, 1, BLOCKS);
    assert_int_equal(flush(&bench), KV_OK);
    failing = true;
    kvist_verify_t result = verify(&bench);
    assert_int_equal(result.failed_objects, BLOCKS);
    assert_int_equal(result.damaged_objects, 0);
    failing = false;
    assert_int_equal(found(&bench, 1), BLOCKS);
    bench_end(&bench);
}

static void closing_ends_it(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "closing");
    for (uint32_t context = 0; context < 10; context++) {
        request_context(&bench, context, BLOCKS);
    }
    course_t course = {0};
    assert_int_equal(kvist_store_verify(bench.store, NULL, note_verified, &course), KV_OK);
    bench_close(&bench);
    assert_true(course.ended);
    assert_int_equal(course.status, KV_CANCELLED);
    bench_end(&bench);
}

/* Requests, evictions and drops go on while it runs. */
static void work_goes_on_meanwhile(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "meanwhile");
    uint64_t random = kv_test_seed();
    for (uint32_t round = 0; round < 30; round++) {
        course_t course = {0};
        assert_int_equal(
            kvist_store_verify(bench.store, note_progress, note_verified, &course), KV_OK);
        while (!course.ended) {
            uint32_t context = (uint32_t)kv_test_random(&random) % 12;
            request_context(&bench, context, BLOCKS);
            if (kv_test_random(&random) % 4 == 0) {
                assert_int_equal(
                    drop(&bench, context, context % BLOCKS, context % 2 == 0).status, KV_OK);
            }
            check_accounts(&bench);
        }
        assert_int_equal(course.status, KV_OK);
        assert_int_equal(course.state.damaged_objects, 0);
    }
    assert_int_equal(bench_stats(&bench).damaged_objects, 0);
    bench_end(&bench);
}

/* ---- one block ---- */

static void a_block_is_shown_as_it_is(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "show");
    uint64_t before_ns = bench.store->clock->unix_ns(bench.store->clock);
    request_context(&bench, 1, BLOCKS);
    kvist_key_t key = block_key(&bench, 1, 2), parent = block_key(&bench, 1, 1);
    kvist_object_t shown;
    assert_int_equal(kvist_store_show(bench.store, &key, &shown), KV_OK);
    assert_int_equal(flush(&bench), KV_OK);
    assert_int_equal(kvist_store_show(bench.store, &key, &shown), KV_OK);
    assert_memory_equal(&shown.key, &key, sizeof key);
    assert_memory_equal(&shown.parent, &parent, sizeof key);
    assert_memory_equal(&shown.name_space, &bench.name_space, sizeof key);
    assert_int_equal(shown.position, 2);
    assert_int_equal(shown.token_count, 3 * BLOCK_TOKENS);
    assert_int_equal(shown.children, 1);
    assert_int_equal(shown.groups, 1);
    assert_true(shown.tiers[KVIST_TIER_DEVICE] && shown.tiers[KVIST_TIER_DISK]);
    assert_int_equal(shown.bytes, block_bytes(&bench));
    assert_int_equal(shown.stored_bytes, 2 * KV_PAGE_BYTES);
    assert_true(shown.created_unix_ns + KV_NS_PER_S >= before_ns);
    assert_int_equal(shown.leases, 0);
    assert_string_equal(shown.origin, "test-node");
    assert_string_equal(shown.arithmetic, "test/plain");
    key = block_key(&bench, 1, BLOCKS);
    assert_int_equal(kvist_store_show(bench.store, &key, &shown), KV_MISSING);
    bench_end(&bench);
}

static void a_key_is_found_by_its_beginning(void **state)
{
    (void)state;
    bench_t bench;
    open_three_tiers(&bench, "find");
    request_context(&bench, 1, BLOCKS);
    kvist_key_t key = block_key(&bench, 1, 3), got;
    kv_error_t error;
    char text[65];
    kv_hex_encode(key.bytes, KVIST_KEY_BYTES, text);
    for (size_t count = 64; count >= 8; count--) {
        text[count] = '\0';
        assert_int_equal(kvist_store_find(bench.store, text, &got, &error), KV_OK);
        assert_memory_equal(&got, &key, sizeof key);
    }
    text[7] = '\0';
    assert_int_equal(kvist_store_find(bench.store, text, &got, &error), KV_INVALID);
    assert_int_equal(kvist_store_find(bench.store, "0123456z", &got, &error), KV_INVALID);
    assert_int_equal(kvist_store_find(bench.store, "0000000000", &got, &error), KV_MISSING);
    /* Two keys that begin alike. */
    kv_object_t *object = object_of(&bench, 1, 4);
    kvist_key_t was = object->key;
    memcpy(object->key.bytes, key.bytes, 6);
    kv_hex_encode(key.bytes, KVIST_KEY_BYTES, text);
    text[12] = '\0';
    assert_int_equal(kvist_store_find(bench.store, text, &got, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "more than one"));
    object->key = was;
    bench_end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_whole_is_found_whole),
        cmocka_unit_test(damage_is_dropped_with_its_descendants),
        cmocka_unit_test(a_damaged_copy_beside_a_good_one_costs_no_block),
        cmocka_unit_test(what_cannot_be_read_stays),
        cmocka_unit_test(closing_ends_it),
        cmocka_unit_test(work_goes_on_meanwhile),
        cmocka_unit_test(a_block_is_shown_as_it_is),
        cmocka_unit_test(a_key_is_found_by_its_beginning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
