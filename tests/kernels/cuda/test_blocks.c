/* Gather and scatter against memcpy, range by range: every alignment, more blocks and ranges than
 * one launch takes, and not a byte beside them. */
#include "kernels/cuda/blocks.h"
#include "on_device.h"
#include "testing/testing.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { GUARD = 0x5a, RANGES_MAX = 70, BLOCKS_MAX = 300 };

typedef struct {
    uint32_t block_count, range_count, thread_blocks_max;
    size_t from_stride, to_stride, from_slots, to_slots; /* of the arenas: slots */
    size_t skew;
    uint32_t from_slot[BLOCKS_MAX], to_slot[BLOCKS_MAX];
    cuda_range_t ranges[RANGES_MAX];
} case_t;

/* The same by memcpy. */
static void expect(const case_t *one, const uint8_t *from, uint8_t *to)
{
    for (uint32_t i = 0; i < one->block_count; i++) {
        for (uint32_t j = 0; j < one->range_count; j++) {
            const cuda_range_t *range = &one->ranges[j];
            memcpy(to + one->to_slot[i] * one->to_stride + range->to_offset,
                from + one->from_slot[i] * one->from_stride + range->from_offset, range->bytes);
        }
    }
}

static void check(const case_t *one)
{
    const size_t from_bytes = one->from_slots * one->from_stride;
    const size_t to_bytes = one->to_slots * one->to_stride;
    uint8_t *from = kv_allocate(from_bytes + 1), *to = kv_allocate(to_bytes + 1);
    uint8_t *got = kv_allocate(to_bytes + 1);
    uint64_t random = from_bytes;
    for (size_t i = 0; i < from_bytes; i++) {
        from[i] = (uint8_t)kv_test_random(&random);
    }
    memset(to, GUARD, to_bytes);
    expect(one, from, to);
    uint8_t *device_from = on_device(from, from_bytes, one->skew);
    uint8_t *device_to = on_device(NULL, to_bytes, 0);
    kv_error_t error;
    assert_int_equal(
        cuda_copy_blocks(NULL,
            &(cuda_copy_t){.to = &(cuda_blocks_t){device_to, one->to_stride, one->to_slot},
                .from = &(cuda_blocks_t){device_from, one->from_stride, one->from_slot},
                .block_count = one->block_count,
                .ranges = one->ranges,
                .range_count = one->range_count,
                .thread_blocks_max = one->thread_blocks_max},
            &error),
        KV_OK);
    from_device(got, device_to, to_bytes);
    assert_memory_equal(got, to, to_bytes);
    off_device(device_from);
    off_device(device_to);
    free(from);
    free(to);
    free(got);
}

/* slots: a permutation's beginning. */
static void draw_slots(uint32_t *slots, uint32_t count, size_t slot_count, uint32_t step)
{
    for (uint32_t i = 0; i < count; i++) {
        slots[i] = (uint32_t)((i * (size_t)step + 3) % slot_count);
    }
}

/* One layer of paged blocks to a row of it, and back. */
static void a_layer_is_gathered_and_scattered(void **state)
{
    (void)state;
    enum { LAYER_BYTES = 12288, LAYERS = 3, BLOCKS = 37, SLOTS = 41 };
    case_t *one = kv_allocate(sizeof *one);
    *one = (case_t){
        .block_count = BLOCKS,
        .range_count = 1,
        .from_stride = LAYERS * LAYER_BYTES,
        .to_stride = LAYER_BYTES,
        .from_slots = SLOTS,
        .to_slots = BLOCKS,
        .ranges = {{LAYER_BYTES, 0, LAYER_BYTES}},
    };
    draw_slots(one->from_slot, BLOCKS, SLOTS, 17);
    draw_slots(one->to_slot, BLOCKS, BLOCKS, 1);
    check(one);
    *one = (case_t){
        .block_count = BLOCKS,
        .range_count = 1,
        .thread_blocks_max = 2,
        .from_stride = LAYER_BYTES,
        .to_stride = LAYERS * LAYER_BYTES,
        .from_slots = BLOCKS,
        .to_slots = SLOTS,
        .ranges = {{0, 2 * LAYER_BYTES, LAYER_BYTES}},
    };
    draw_slots(one->from_slot, BLOCKS, BLOCKS, 1);
    draw_slots(one->to_slot, BLOCKS, SLOTS, 17);
    check(one);
    free(one);
}

/* Lengths around a vector, a piece, several pieces; at any distance from a boundary. */
static void every_length_and_alignment(void **state)
{
    (void)state;
    static const uint32_t LENGTHS[] = {
        0, 1, 15, 16, 17, 4080, 4096, 16383, 16384, 16385, 16400, 32768, 49168};
    case_t *one = kv_allocate(sizeof *one);
    for (size_t i = 0; i < sizeof LENGTHS / sizeof LENGTHS[0]; i++) {
        for (size_t skew = 0; skew < 18; skew += 8 + (skew == 8)) {
            *one = (case_t){
                .block_count = 2,
                .range_count = 1,
                .from_stride = LENGTHS[i] + 48,
                .to_stride = LENGTHS[i] + 32,
                .from_slots = 2,
                .to_slots = 3,
                .skew = skew,
                .from_slot = {1, 0},
                .to_slot = {0, 2},
                .ranges = {{48, 16, LENGTHS[i]}},
            };
            check(one);
        }
    }
    free(one);
}

/* Ranges in any order, empty ones among them, more than one launch takes of both. */
static void many_blocks_and_ranges(void **state)
{
    (void)state;
    uint64_t random = kv_test_seed();
    case_t *one = kv_allocate(sizeof *one);
    for (int round = 0; round < 6; round++) {
        const uint32_t unit = round % 2 == 0 ? 16 : 1;
        *one = (case_t){
            .block_count = round < 3 ? 3 : BLOCKS_MAX,
            .range_count = round < 3 ? RANGES_MAX : 33,
            .thread_blocks_max = round == 1,
            .from_slots = BLOCKS_MAX,
            .to_slots = BLOCKS_MAX,
        };
        size_t from_at = 0, to_at = 0;
        for (uint32_t i = 0; i < one->range_count; i++) {
            cuda_range_t *range = &one->ranges[one->range_count - 1 - i];
            from_at += unit * (kv_test_random(&random) % 3);
            to_at += unit * (kv_test_random(&random) % 3);
            *range = (cuda_range_t){from_at, to_at, unit * (uint32_t)(kv_test_random(&random) % 5)};
            from_at += range->bytes;
            to_at += range->bytes;
        }
        one->from_stride = from_at + unit;
        one->to_stride = to_at + unit;
        draw_slots(one->from_slot, one->block_count, BLOCKS_MAX, 7);
        draw_slots(one->to_slot, one->block_count, BLOCKS_MAX, 11);
        check(one);
    }
    free(one);
}

static void nothing_to_copy_is_no_launch(void **state)
{
    (void)state;
    const cuda_blocks_t blocks = {0};
    const cuda_range_t empty[2] = {0};
    kv_error_t error;
    cuda_copy_t copy = {.to = &blocks, .from = &blocks, .ranges = empty, .range_count = 2};
    assert_int_equal(cuda_copy_blocks(NULL, &copy, &error), KV_OK);
    copy.block_count = 3;
    assert_int_equal(cuda_copy_blocks(NULL, &copy, &error), KV_OK);
    copy.range_count = 0;
    assert_int_equal(cuda_copy_blocks(NULL, &copy, &error), KV_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_layer_is_gathered_and_scattered),
        cmocka_unit_test(every_length_and_alignment),
        cmocka_unit_test(many_blocks_and_ranges),
        cmocka_unit_test(nothing_to_copy_is_no_launch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
