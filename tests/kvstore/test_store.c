/* The store as its callers see it: round trips through every tier, restarts, leases, bounds. */
#include "harness.h"

static void a_context_comes_back_from_device_memory(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "device", 16);
    bench_open(&bench);
    assert_int_equal(request_context(&bench, 1, 6).miss, KVIST_MISS_NEW);
    kvist_match_t match = request_context(&bench, 1, 6);
    assert_int_equal(match.block_count, 6);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DEVICE], 6);
    assert_int_equal(match.miss, KVIST_MISS_NONE);
    assert_int_equal(bench_stats(&bench).slots_private, 0);
    bench_end(&bench);
}

static void spilled_blocks_come_back_from_host_memory(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "host", 8);
    bench_with_host(&bench, 32);
    bench_open(&bench);
    for (uint32_t context = 0; context < 4; context++) {
        request_context(&bench, context, 8);
    }
    kvist_match_t match = request_context(&bench, 0, 8);
    assert_int_equal(match.block_count, 8);
    assert_int_equal(match.tier_blocks[KVIST_TIER_HOST], 8);
    bench_end(&bench);
}

static void round_trip_by_disk(kvist_persist_t persist, kvist_codec_t codec, kvist_io_t io)
{
    bench_t bench;
    bench_init(&bench, "disk", 8);
    bench_with_host(&bench, 8);
    bench_with_disk(&bench, 8);
    bench.params.persist = persist;
    bench.params.codec = codec;
    bench.params.io = io;
    bench_open(&bench);
    for (uint32_t context = 0; context < 10; context++) {
        request_context(&bench, context, 8);
    }
    kvist_match_t match = request_context(&bench, 0, 8);
    assert_int_equal(match.block_count, 8);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DISK], 8);
    bench_close(&bench);
    bench_open(&bench);
    for (uint32_t context = 0; context < 10; context++) {
        match = request_context(&bench, context, 8);
        assert_int_equal(match.block_count, 8);
        assert_int_equal(match.tier_blocks[KVIST_TIER_DISK], 8);
    }
    assert_int_equal(bench_stats(&bench).damaged_objects, 0);
    bench_end(&bench);
}

static void evicted_blocks_and_restarts_are_served_from_disk(void **state)
{
    (void)state;
    round_trip_by_disk(KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, KVIST_IO_AUTO);
    round_trip_by_disk(KVIST_PERSIST_SPILL, KVIST_CODEC_NONE, KVIST_IO_AUTO);
    round_trip_by_disk(KVIST_PERSIST_EAGER, KVIST_CODEC_LZ4, KVIST_IO_AUTO);
    round_trip_by_disk(KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, KVIST_IO_THREADS);
    round_trip_by_disk(KVIST_PERSIST_SPILL, KVIST_CODEC_LZ4, KVIST_IO_THREADS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_context_comes_back_from_device_memory),
        cmocka_unit_test(spilled_blocks_come_back_from_host_memory),
        cmocka_unit_test(evicted_blocks_and_restarts_are_served_from_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
