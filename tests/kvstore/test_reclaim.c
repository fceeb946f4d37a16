/* Reclaiming segments and making them ready: who survives, what is forgotten, what a restart knows
 * of files that hold nothing yet. */
#include "harness.h"

enum { BLOCKS = 8, SEGMENTS = 12, SEGMENT_RECORDS = 31 };

/* Stores contexts `first` to `last - 1`, durably. */
static void store_contexts(bench_t *bench, uint32_t first, uint32_t last)
{
    for (uint32_t context = first; context < last; context++) {
        request_context(bench, context, BLOCKS);
        assert_int_equal(flush(bench), KV_OK);
    }
}

static uint32_t found(bench_t *bench, uint32_t context)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_match_t match;
    kvist_lease_t *lease = match_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    kvist_lease_release(lease);
    return match.block_count;
}

static void open_small(bench_t *bench, const char *name)
{
    bench_init(bench, name, 2 * BLOCKS); /* what is older than two contexts is only on disk */
    bench_with_disk(bench, SEGMENTS);
    bench_open(bench);
}

static void what_was_asked_for_survives_its_segment(void **state)
{
    (void)state;
    bench_t bench;
    open_small(&bench, "survives");
    store_contexts(&bench, 0, 8);
    assert_int_equal(
        found(&bench, 1), BLOCKS); /* asked for once more; nobody asks for the others */
    uint32_t capacity = SEGMENTS * SEGMENT_RECORDS / BLOCKS;
    store_contexts(&bench, 8, capacity + 10);
    assert_true(bench_stats(&bench).moved_objects >= BLOCKS);
    assert_int_equal(found(&bench, 0), 0);
    assert_int_equal(found(&bench, 2), 0);
    request_context(&bench, 1, BLOCKS); /* checks the bytes of what is found */
    assert_int_equal(found(&bench, 1), BLOCKS);
    check_accounts(&bench);
    bench_close(&bench);
    bench_open(&bench);
    assert_int_equal(found(&bench, 1), BLOCKS);
    bench_end(&bench);
}

static void what_nobody_asked_for_is_not_moved(void **state)
{
    (void)state;
    bench_t bench;
    open_small(&bench, "dies");
    uint32_t capacity = SEGMENTS * SEGMENT_RECORDS / BLOCKS;
    store_contexts(&bench, 0, 2 * capacity);
    /* Only what lay in device memory when its segment was emptied: two contexts a segment. */
    assert_true(bench_stats(&bench).moved_objects <= 2 * BLOCKS * SEGMENTS);
    assert_int_equal(found(&bench, 0), 0);
    assert_int_equal(found(&bench, 2 * capacity - 1), BLOCKS);
    check_accounts(&bench);
    bench_end(&bench);
}

static uint32_t count_state(const bench_t *bench, kv_segment_state_t wanted, bool filled)
{
    const kv_segments_t *segments = &bench->store->disk->segments;
    uint32_t count = 0;
    for (uint32_t i = 0; i < segments->count; i++) {
        count += segments->items[i].state == wanted && (!filled || segments->items[i].filled);
    }
    return count;
}

static void spares_are_filled_when_nothing_else_is_to_be_done(void **state)
{
    (void)state;
    bench_t bench;
    open_small(&bench, "spares");
    bench_turn(&bench);
    assert_int_equal(bench.store->disk->segments.count, 0); /* nothing before the first write */
    store_contexts(&bench, 0, 1);
    uint64_t end_ns = patience_ns();
    while (count_state(&bench, KV_SEGMENT_SPARE, true) < 4) {
        bench_wait(&bench, end_ns);
    }
    assert_int_equal(count_state(&bench, KV_SEGMENT_READY, false), 1);
    bench_close(&bench);
    bench_open(&bench);
    assert_int_equal(count_state(&bench, KV_SEGMENT_SPARE, true), 4);
    assert_int_equal(count_state(&bench, KV_SEGMENT_READY, false), 1);
    assert_int_equal(count_state(&bench, KV_SEGMENT_OPEN, false), 1);
    assert_int_equal(found(&bench, 0), BLOCKS);
    bench_end(&bench);
}

static void a_smaller_quota_removes_spares_then_the_oldest(void **state)
{
    (void)state;
    bench_t bench;
    open_small(&bench, "smaller");
    store_contexts(&bench, 0, SEGMENTS * SEGMENT_RECORDS / BLOCKS - 8);
    bench_close(&bench);
    bench.params.disk_bytes = 3 * bench.params.segment_bytes;
    bench_open(&bench);
    const kv_volume_t *volume = bench.store->disk->segments.volumes[0];
    assert_true(volume->present_count <= 3);
    assert_int_equal(found(&bench, 0), 0);
    check_accounts(&bench);
    store_contexts(&bench, 100, 120);
    assert_true(volume->present_count <= 3);
    assert_int_equal(found(&bench, 119), BLOCKS);
    check_accounts(&bench);
    bench_end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_asked_for_survives_its_segment),
        cmocka_unit_test(what_nobody_asked_for_is_not_moved),
        cmocka_unit_test(spares_are_filled_when_nothing_else_is_to_be_done),
        cmocka_unit_test(a_smaller_quota_removes_spares_then_the_oldest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
