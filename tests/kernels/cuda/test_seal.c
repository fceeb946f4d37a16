/* Checksums on the device against those of base/checksum.h: every short length, long ones around
 * each boundary, any alignment and seed; copies on the way; what is said of units that differ. */
#include "kernels/cuda/seal.h"
#include "on_device.h"
#include "testing/testing.h"

#include "base/checksum.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { GUARD = 0x5a, BLOCKS = 5 };

static uint8_t *random_bytes(size_t count, uint64_t seed)
{
    uint8_t *bytes = kv_allocate(count + 1);
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)kv_test_random(&seed);
    }
    return bytes;
}

static cuda_units_t one_unit(uint32_t bytes)
{
    return (cuda_units_t){
        .parts = {{.unit_bytes = bytes, .element_bytes = 1}},
        .part_count = 1,
        .layer_units = 1,
        .unit_count = 1,
        .layer_bytes = bytes,
    };
}

/* Blocks of one unit, each at another distance from a boundary where `gap` is odd. */
static void check_length(uint32_t bytes, uint32_t gap, size_t skew, const uint64_t *seeds)
{
    const size_t stride = bytes + gap, size = BLOCKS * stride;
    uint8_t *host = random_bytes(size, bytes + gap), *copied = kv_allocate(size + 1);
    uint8_t *from = on_device(host, size, skew), *to = on_device(NULL, size, skew + gap % 16);
    uint64_t *sums = on_device(NULL, BLOCKS * sizeof *sums, 0), got[BLOCKS];
    const cuda_units_t units = one_unit(bytes);
    kv_error_t error;
    assert_int_equal(cuda_seal(NULL,
                         &(cuda_seal_t){.units = &units,
                             .from = &(cuda_blocks_t){.base = from, .stride_bytes = stride},
                             .to = &(cuda_blocks_t){.base = to, .stride_bytes = stride},
                             .block_count = BLOCKS,
                             .seeds = seeds,
                             .checksums_out = sums},
                         &error),
        KV_OK);
    from_device(got, sums, sizeof got);
    from_device(copied, to, size);
    for (size_t i = 0; i < BLOCKS; i++) {
        uint64_t seed = seeds != NULL ? seeds[i] : 0;
        assert_true(got[i] == kv_checksum_seeded(host + i * stride, bytes, seed));
        assert_memory_equal(copied + i * stride, host + i * stride, bytes);
        for (size_t at = i * stride + bytes; at < (i + 1) * stride; at++) {
            assert_int_equal(copied[at], GUARD);
        }
    }
    off_device(from);
    off_device(to);
    off_device(sums);
    free(host);
    free(copied);
}

static const uint64_t SEEDS[BLOCKS] = {0, 1, UINT64_MAX, 0x8000000000000000, 0x0123456789abcdef};

static void every_short_length_has_its_checksum(void **state)
{
    (void)state;
    for (uint32_t bytes = 0; bytes <= 320; bytes++) {
        check_length(bytes, 1, 0, bytes % 2 == 0 ? SEEDS : NULL);
    }
}

static void long_lengths_around_every_boundary(void **state)
{
    (void)state;
    static const uint32_t LENGTHS[] = {511, 512, 513, 1008, 1023, 1024, 1025, 1040, 1087, 1088,
        1089, 2047, 2048, 2049, 2064, 4096, 4097, 8191, 8192, 8208, 9216, 12288, 16384, 65535,
        65536, 65537, 262144};
    for (size_t i = 0; i < sizeof LENGTHS / sizeof LENGTHS[0]; i++) {
        check_length(LENGTHS[i], 0, 0, SEEDS);
        check_length(LENGTHS[i], 16, 16, NULL);
        check_length(LENGTHS[i], 7, 3, SEEDS);
    }
}

/* ---- objects of many units, at slots ---- */

enum {
    LAYERS = 3,
    HEADS = 3,
    K_BYTES = 2048,
    V_BYTES = 1000,
    TAIL_BYTES = 40,
    UNIT_COUNT = LAYERS * (2 * HEADS + 1),
    LAYER_BYTES = HEADS * (K_BYTES + V_BYTES) + TAIL_BYTES,
    OBJECT_BYTES = LAYERS * LAYER_BYTES,
    SLOTS = 140,
    COUNT = 131, /* more than one launch takes */
};

static const cuda_units_t UNITS = {
    .parts = {{.unit_bytes = K_BYTES, .element_bytes = 2},
        {.unit_first = HEADS,
            .offset_bytes = HEADS * K_BYTES,
            .unit_bytes = V_BYTES,
            .element_bytes = 2},
        {.unit_first = 2 * HEADS,
            .offset_bytes = HEADS * (K_BYTES + V_BYTES),
            .unit_bytes = TAIL_BYTES,
            .element_bytes = 2}},
    .part_count = 3,
    .layer_units = 2 * HEADS + 1,
    .unit_count = UNIT_COUNT,
    .layer_bytes = LAYER_BYTES,
};

/* The layout in words: where a unit is, without the table. */
static size_t unit_at(uint32_t unit, size_t *bytes_out)
{
    uint32_t layer = unit / (2 * HEADS + 1), in_layer = unit % (2 * HEADS + 1);
    size_t at = (size_t)layer * LAYER_BYTES;
    *bytes_out = in_layer < HEADS ? K_BYTES : in_layer < 2 * HEADS ? V_BYTES : TAIL_BYTES;
    return in_layer < HEADS ? at + (size_t)in_layer * K_BYTES
                            : at + HEADS * K_BYTES + (size_t)(in_layer - HEADS) * V_BYTES;
}

static void every_unit_of_objects_at_slots(void **state)
{
    (void)state;
    static uint64_t sums[COUNT][UNIT_COUNT];
    static uint32_t slots[COUNT];
    const size_t size = (size_t)SLOTS * OBJECT_BYTES;
    uint8_t *host = random_bytes(size, 5);
    for (uint32_t i = 0; i < COUNT; i++) {
        slots[i] = i * 37 % SLOTS;
    }
    uint8_t *arena = on_device(host, size, 0);
    uint64_t *sums_out = on_device(NULL, sizeof sums, 0);
    kv_error_t error;
    const cuda_blocks_t from = {arena, OBJECT_BYTES, slots};
    assert_int_equal(cuda_seal(NULL,
                         &(cuda_seal_t){.units = &UNITS,
                             .from = &from,
                             .block_count = COUNT,
                             .thread_blocks_max = 3,
                             .checksums_out = sums_out},
                         &error),
        KV_OK);
    from_device(sums, sums_out, sizeof sums);
    for (uint32_t i = 0; i < COUNT; i++) {
        for (uint32_t unit = 0; unit < UNIT_COUNT; unit++) {
            size_t bytes, at = unit_at(unit, &bytes);
            assert_true(sums[i][unit] == kv_checksum(host + slots[i] * OBJECT_BYTES + at, bytes));
        }
    }
    off_device(arena);
    off_device(sums_out);
    free(host);
}

/* Objects come back in a row and go to slots; some of their units are damaged. */
static void units_that_differ_are_counted_for_their_block(void **state)
{
    (void)state;
    enum { FEW = 4 };
    static uint64_t sums[FEW][UNIT_COUNT];
    static const uint32_t slots[FEW] = {6, 0, 3, 1};
    uint32_t differing[FEW] = {0, 0, 0, 10};
    const size_t size = (size_t)FEW * OBJECT_BYTES, arena_size = 7 * (size_t)OBJECT_BYTES;
    uint8_t *host = random_bytes(size, 6), *arena_host = kv_allocate(arena_size);
    for (uint32_t i = 0; i < FEW; i++) {
        for (uint32_t unit = 0; unit < UNIT_COUNT; unit++) {
            size_t bytes, at = unit_at(unit, &bytes);
            sums[i][unit] = kv_checksum(host + i * OBJECT_BYTES + at, bytes);
        }
    }
    host[OBJECT_BYTES + 5] ^= 1;              /* block 1: its first unit */
    host[3 * OBJECT_BYTES + K_BYTES] ^= 0x80; /* block 3: its second one, */
    host[4 * OBJECT_BYTES - 1] ^= 0x10;       /* and its last one */
    uint8_t *staged = on_device(host, size, 0), *arena = on_device(NULL, arena_size, 0);
    uint64_t *expected = on_device(sums, sizeof sums, 0);
    uint32_t *differing_out = on_device(differing, sizeof differing, 0);
    kv_error_t error;
    const cuda_blocks_t from = {staged, OBJECT_BYTES, NULL}, to = {arena, OBJECT_BYTES, slots};
    assert_int_equal(cuda_seal(NULL,
                         &(cuda_seal_t){.units = &UNITS,
                             .from = &from,
                             .to = &to,
                             .block_count = FEW,
                             .expected = expected,
                             .differing = differing_out},
                         &error),
        KV_OK);
    from_device(differing, differing_out, sizeof differing);
    from_device(arena_host, arena, arena_size);
    assert_int_equal(differing[0], 0);
    assert_int_equal(differing[1], 1);
    assert_int_equal(differing[2], 0);
    assert_int_equal(differing[3], 12);
    for (uint32_t i = 0; i < FEW; i++) {
        assert_memory_equal(
            arena_host + slots[i] * OBJECT_BYTES, host + i * OBJECT_BYTES, OBJECT_BYTES);
    }
    for (size_t at = 2 * OBJECT_BYTES; at < 3 * OBJECT_BYTES; at++) {
        assert_int_equal(arena_host[at], GUARD);
    }
    off_device(staged);
    off_device(arena);
    off_device(expected);
    off_device(differing_out);
    free(host);
    free(arena_host);
}

/* Where one part's units are large, a whole thread block takes each of the others, too. */
static void short_units_beside_large_ones(void **state)
{
    (void)state;
    enum { LARGE = 40001, SHORT = 100, MIDDLE = 3000, BYTES = LARGE + SHORT + MIDDLE, FEW = 3 };
    static const uint32_t SIZES[] = {LARGE, SHORT, MIDDLE};
    const cuda_units_t units = {
        .parts = {{.unit_bytes = LARGE, .element_bytes = 1},
            {.unit_first = 1, .offset_bytes = LARGE, .unit_bytes = SHORT, .element_bytes = 1},
            {.unit_first = 2,
                .offset_bytes = LARGE + SHORT,
                .unit_bytes = MIDDLE,
                .element_bytes = 1}},
        .part_count = 3,
        .layer_units = 3,
        .unit_count = 3,
        .layer_bytes = BYTES,
    };
    uint8_t *host = random_bytes(FEW * BYTES, 7), *copied = kv_allocate(FEW * BYTES);
    uint8_t *from = on_device(host, FEW * BYTES, 0), *to = on_device(NULL, FEW * BYTES, 0);
    uint64_t sums[FEW][3], *sums_out = on_device(NULL, sizeof sums, 0);
    kv_error_t error;
    const cuda_blocks_t from_blocks = {from, BYTES, NULL}, to_blocks = {to, BYTES, NULL};
    assert_int_equal(cuda_seal(NULL,
                         &(cuda_seal_t){.units = &units,
                             .from = &from_blocks,
                             .to = &to_blocks,
                             .block_count = FEW,
                             .thread_blocks_max = 2,
                             .checksums_out = sums_out},
                         &error),
        KV_OK);
    from_device(sums, sums_out, sizeof sums);
    from_device(copied, to, FEW * BYTES);
    assert_memory_equal(copied, host, FEW * BYTES);
    const uint8_t *at = host;
    for (uint32_t i = 0; i < FEW * 3; i++) {
        assert_true(sums[i / 3][i % 3] == kv_checksum(at, SIZES[i % 3]));
        at += SIZES[i % 3];
    }
    off_device(from);
    off_device(to);
    off_device(sums_out);
    free(host);
    free(copied);
}

/* Units of any length up to their own, one after the other, as the codec packs them. */
static void packed_units_lie_where_offsets_say(void **state)
{
    (void)state;
    enum { FEW = 3, STRIDE = OBJECT_BYTES + 5 };
    uint32_t offsets[FEW][UNIT_COUNT + 1];
    uint64_t random = kv_test_seed();
    for (uint32_t i = 0; i < FEW; i++) {
        offsets[i][0] = 0;
        for (uint32_t unit = 0; unit < UNIT_COUNT; unit++) {
            size_t bytes;
            unit_at(unit, &bytes);
            uint32_t length = i == 0 ? (uint32_t)bytes : kv_test_random(&random) % (bytes + 1);
            offsets[i][unit + 1] = offsets[i][unit] + length;
        }
    }
    uint8_t *host = random_bytes(FEW * STRIDE, 8), *packed = on_device(host, FEW * STRIDE, 0);
    uint32_t *offsets_there = on_device(offsets, sizeof offsets, 0);
    uint64_t sums[FEW][UNIT_COUNT], *sums_out = on_device(NULL, sizeof sums, 0);
    kv_error_t error;
    const cuda_blocks_t from = {packed, STRIDE, NULL};
    assert_int_equal(cuda_seal(NULL,
                         &(cuda_seal_t){.units = &UNITS,
                             .from = &from,
                             .block_count = FEW,
                             .offsets = offsets_there,
                             .checksums_out = sums_out},
                         &error),
        KV_OK);
    from_device(sums, sums_out, sizeof sums);
    for (uint32_t i = 0; i < FEW; i++) {
        for (uint32_t unit = 0; unit < UNIT_COUNT; unit++) {
            const uint32_t at = offsets[i][unit], bytes = offsets[i][unit + 1] - at;
            assert_true(sums[i][unit] == kv_checksum(host + i * STRIDE + at, bytes));
        }
    }
    off_device(packed);
    off_device(offsets_there);
    off_device(sums_out);
    free(host);
}

static void nothing_to_seal_is_no_launch(void **state)
{
    (void)state;
    kv_error_t error;
    const cuda_blocks_t from = {0};
    assert_int_equal(
        cuda_seal(NULL, &(cuda_seal_t){.units = &UNITS, .from = &from}, &error), KV_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_short_length_has_its_checksum),
        cmocka_unit_test(long_lengths_around_every_boundary),
        cmocka_unit_test(every_unit_of_objects_at_slots),
        cmocka_unit_test(units_that_differ_are_counted_for_their_block),
        cmocka_unit_test(short_units_beside_large_ones),
        cmocka_unit_test(packed_units_lie_where_offsets_say),
        cmocka_unit_test(nothing_to_seal_is_no_launch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
