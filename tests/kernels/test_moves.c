/* Moves between slots and memory outside, on the CPU device and made of copies: which bytes go
 * where, which do not, and the checksums of units. */
#include "kernels/moves.h"

#include "base/checksum.h"
#include "testing/testing.h"

#include <stdlib.h>
#include <string.h>

enum { SLOTS = 7, SLOT_BYTES = 4096, UNIT_BYTES = 256, COUNT = 3 };

static const uint32_t SOME[COUNT] = {5, 0, 3};

static kv_status_t copy(
    kv_device_t *device, void *to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(to, from, bytes);
    return KV_OK;
}

static kv_status_t copy_fails(
    kv_device_t *device, void *to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)to;
    (void)from;
    (void)bytes;
    return kv_fail(error, KV_FATAL, "the toy device is broken");
}

typedef struct {
    kv_device_t *device;
    char *arena;                          /* [SLOTS][SLOT_BYTES] */
    char outside[COUNT][SLOT_BYTES + 64]; /* with room behind, which nobody may touch */
    char *places[COUNT];
} bench_t;

static bench_t *make_bench(kv_device_t *device)
{
    bench_t *bench = calloc(1, sizeof *bench);
    bench->device = device;
    bench->arena = malloc(SLOTS * SLOT_BYTES);
    uint64_t random = kv_test_seed();
    for (size_t i = 0; i < SLOTS * SLOT_BYTES; i++) {
        bench->arena[i] = (char)kv_test_random(&random);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        memset(bench->outside[i], 0x5a, sizeof bench->outside[i]);
        bench->places[i] = bench->outside[i];
    }
    return bench;
}

static void free_bench(bench_t *bench)
{
    free(bench->arena);
    free(bench);
}

static kv_move_params_t params_of(const bench_t *bench, kv_move_direction_t direction,
    const kv_slot_part_t *parts, uint32_t count)
{
    return (kv_move_params_t){
        .direction = direction,
        .arena = bench->arena,
        .slot_bytes = SLOT_BYTES,
        .slots = SOME,
        .slot_count = COUNT,
        .parts = parts,
        .part_count = count,
        .outside = bench->places,
    };
}

static void parts_go_out_and_in(kv_device_t *device)
{
    static const kv_slot_part_t PARTS[] = {{256, 512}, {1024, 4}, {4000, 96}};
    const size_t moved = 512 + 4 + 96;
    bench_t *bench = make_bench(device);
    kv_move_params_t params = params_of(bench, KV_MOVE_OUT, PARTS, 3);
    kv_error_t error;
    assert_int_equal(kv_move_slot_bytes(&params), moved);
    assert_int_equal(kv_move(device, &params, &error), KV_OK);
    for (uint32_t i = 0; i < COUNT; i++) {
        const char *slot = bench->arena + SOME[i] * SLOT_BYTES;
        assert_memory_equal(bench->outside[i], slot + 256, 512);
        assert_memory_equal(bench->outside[i] + 512, slot + 1024, 4);
        assert_memory_equal(bench->outside[i] + 516, slot + 4000, 96);
        assert_int_equal(bench->outside[i][moved], 0x5a);
    }
    char *before = malloc(SLOTS * SLOT_BYTES);
    memcpy(before, bench->arena, SLOTS * SLOT_BYTES);
    for (uint32_t i = 0; i < COUNT; i++) {
        memset(bench->arena + SOME[i] * SLOT_BYTES + 256, 0, 512);
        memset(bench->arena + SOME[i] * SLOT_BYTES + 1024, 0, 4);
        memset(bench->arena + SOME[i] * SLOT_BYTES + 4000, 0, 96);
    }
    params.direction = KV_MOVE_IN;
    assert_int_equal(kv_move(device, &params, &error), KV_OK);
    assert_memory_equal(before, bench->arena, SLOTS * SLOT_BYTES);
    free(before);
    free_bench(bench);
}

static void units_are_sealed(kv_device_t *device)
{
    enum { UNITS = 1024 / UNIT_BYTES };
    static const kv_slot_part_t PART = {2048, 1024};
    bench_t *bench = make_bench(device);
    uint64_t out[COUNT * UNITS] = {0}, in[COUNT * UNITS] = {0};
    kv_move_params_t params = params_of(bench, KV_MOVE_OUT, &PART, 1);
    params.unit_bytes = UNIT_BYTES;
    params.checksums = out;
    kv_error_t error;
    assert_int_equal(kv_move_slot_units(&params), UNITS);
    assert_int_equal(kv_move(device, &params, &error), KV_OK);
    for (uint32_t i = 0; i < COUNT * UNITS; i++) {
        const char *unit =
            bench->arena + SOME[i / UNITS] * SLOT_BYTES + 2048 + i % UNITS * UNIT_BYTES;
        assert_true(out[i] == kv_checksum(unit, UNIT_BYTES));
    }
    /* One flipped bit outside shows in the unit's checksum where it came to, and nowhere else. */
    bench->outside[1][3 * UNIT_BYTES - 1] ^= 1;
    params.direction = KV_MOVE_IN;
    params.checksums = in;
    assert_int_equal(kv_move(device, &params, &error), KV_OK);
    for (uint32_t i = 0; i < COUNT * UNITS; i++) {
        assert_true((in[i] == out[i]) == (i != UNITS + 2));
    }
    free_bench(bench);
}

/* A slot's parts have one checksum, as if they lay together, with the slot's own seed. */
static void slots_are_sealed(kv_device_t *device)
{
    static const kv_slot_part_t PARTS[] = {{256, 512}, {1024, 4}, {4000, 96}};
    const uint64_t seeds[COUNT] = {9, 8, 7};
    bench_t *bench = make_bench(device);
    uint64_t out[COUNT] = {0}, in[COUNT] = {0};
    kv_move_params_t params = params_of(bench, KV_MOVE_OUT, PARTS, 3);
    params.seeds = seeds;
    params.checksums = out;
    kv_error_t error;
    assert_int_equal(kv_move(device, &params, &error), KV_OK);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_true(out[i] == kv_checksum_seeded(bench->outside[i], 512 + 4 + 96, seeds[i]));
    }
    bench->outside[2][512] ^= 1;
    params.direction = KV_MOVE_IN;
    params.checksums = in;
    assert_int_equal(kv_move(device, &params, &error), KV_OK);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_true((in[i] == out[i]) == (i != 2));
    }
    free_bench(bench);
}

static void on_the_cpu(void **state)
{
    (void)state;
    kv_device_t *device;
    kv_error_t error;
    assert_int_equal(kv_device_cpu_open(1, &device, &error), KV_OK);
    parts_go_out_and_in(device);
    units_are_sealed(device);
    slots_are_sealed(device);
    kv_device_close(device);
}

static void made_of_copies(void **state)
{
    (void)state;
    const kv_device_ops_t ops = {.name = "toy", .copy_in = copy, .copy_out = copy};
    kv_device_t device = {&ops};
    parts_go_out_and_in(&device);
    units_are_sealed(&device);
    slots_are_sealed(&device);
}

static void a_failure_is_told(void **state)
{
    (void)state;
    static const kv_slot_part_t PART = {0, SLOT_BYTES};
    const kv_device_ops_t ops = {.name = "toy", .copy_in = copy, .copy_out = copy_fails};
    kv_device_t device = {&ops};
    bench_t *bench = make_bench(&device);
    const kv_move_params_t params = params_of(bench, KV_MOVE_OUT, &PART, 1);
    kv_error_t error;
    assert_int_equal(kv_move(&device, &params, &error), KV_FATAL);
    assert_string_equal(error.text, "the toy device is broken");
    free_bench(bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(on_the_cpu),
        cmocka_unit_test(made_of_copies),
        cmocka_unit_test(a_failure_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
