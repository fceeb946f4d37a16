/* A GPU's copies and moves: which bytes go where, with kernels gathering or without, pinned or not,
 * several threads at once; and the checksums that it takes against this processor's. */
#include "kernels/device/bench.h"

#include "base/checksum.h"
#include "base/memory.h"
#include "kernels/moves.h"

#include <pthread.h>

enum { SLOTS = 24, COUNT = 9, THREADS = 12, ROUNDS = 8 };

static const uint32_t SOME[COUNT] = {5, 0, 3, 23, 22, 8, 1, 17, 9};

typedef struct {
    kv_device_t *device;
    size_t slot_bytes;
    char *slots;      /* device */
    char *mirror;     /* what lies in them */
    kv_region_t host; /* [COUNT][slot_bytes], and a page */
    char *places[COUNT];
} moving_t;

static void open_moving(moving_t *moving, kv_device_t *device, size_t slot_bytes)
{
    kv_error_t error;
    void *memory;
    uint64_t random = kv_test_seed();
    *moving = (moving_t){.device = device, .slot_bytes = slot_bytes};
    const size_t bytes = SLOTS * slot_bytes;
    assert_int_equal(device->ops->allocate(device, bytes, &memory, &error), KV_OK);
    moving->slots = memory;
    moving->mirror = malloc(bytes);
    assert_int_equal(device->ops->copy_out(device, moving->mirror, memory, bytes, &error), KV_OK);
    for (size_t i = 0; i < bytes; i++) {
        assert_int_equal(moving->mirror[i], 0);
        moving->mirror[i] = (char)kv_test_random(&random);
    }
    assert_int_equal(device->ops->copy_in(device, memory, moving->mirror, bytes, &error), KV_OK);
    assert_int_equal(kv_region_map(COUNT * slot_bytes + 4096, &moving->host, &error), KV_OK);
    for (uint32_t i = 0; i < COUNT; i++) { /* two runs of neighbours */
        moving->places[i] = (char *)moving->host.base + i * slot_bytes + (i < 4 ? 0 : 4096);
    }
}

static void close_moving(moving_t *moving)
{
    moving->device->ops->release(moving->device, moving->slots, SLOTS * moving->slot_bytes);
    free(moving->mirror);
    kv_region_unmap(&moving->host);
}

static void move(const moving_t *moving, kv_move_direction_t direction, const kv_slot_part_t *parts,
    uint32_t part_count, size_t unit_bytes, uint64_t *checksums)
{
    const kv_move_params_t params = {
        .direction = direction,
        .arena = moving->slots,
        .slot_bytes = moving->slot_bytes,
        .slots = SOME,
        .slot_count = COUNT,
        .parts = parts,
        .part_count = part_count,
        .outside = moving->places,
        .unit_bytes = unit_bytes,
        .checksums = checksums,
    };
    kv_error_t error = {0};
    if (kv_move(moving->device, &params, &error) != KV_OK) {
        fail_msg("move: %s", error.text);
    }
}

/* What lies outside is what lay in the slots' parts; true for both directions. */
static void compare(const moving_t *moving, const kv_slot_part_t *parts, uint32_t part_count)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        const char *outside = moving->places[i];
        for (uint32_t j = 0; j < part_count; j++) {
            assert_memory_equal(outside,
                moving->mirror + SOME[i] * moving->slot_bytes + parts[j].offset_bytes,
                parts[j].bytes);
            outside += parts[j].bytes;
        }
    }
}

/* Out, changed outside, in, and the whole arena as it should be then. */
static void there_and_back(moving_t *moving, const kv_slot_part_t *parts, uint32_t part_count)
{
    kv_error_t error;
    const size_t bytes = SLOTS * moving->slot_bytes;
    move(moving, KV_MOVE_OUT, parts, part_count, 0, NULL);
    compare(moving, parts, part_count);
    for (uint32_t i = 0; i < COUNT; i++) {
        char *outside = moving->places[i];
        for (uint32_t j = 0; j < part_count; j++) {
            char *inside = moving->mirror + SOME[i] * moving->slot_bytes + parts[j].offset_bytes;
            for (size_t at = 0; at < parts[j].bytes; at++) {
                outside[at] ^= (char)(i + j + 1);
            }
            memcpy(inside, outside, parts[j].bytes);
            outside += parts[j].bytes;
        }
    }
    move(moving, KV_MOVE_IN, parts, part_count, 0, NULL);
    char *arena = malloc(bytes);
    assert_int_equal(
        moving->device->ops->copy_out(moving->device, arena, moving->slots, bytes, &error), KV_OK);
    assert_memory_equal(arena, moving->mirror, bytes);
    free(arena);
}

static void sealed_there_and_back(moving_t *moving, size_t unit_bytes)
{
    const kv_slot_part_t whole = {0, moving->slot_bytes};
    const size_t units = moving->slot_bytes / unit_bytes;
    uint64_t *out = calloc(COUNT * units, sizeof *out), *in = calloc(COUNT * units, sizeof *in);
    move(moving, KV_MOVE_OUT, &whole, 1, unit_bytes, out);
    for (size_t i = 0; i < COUNT * units; i++) {
        const char *unit =
            moving->mirror + SOME[i / units] * moving->slot_bytes + i % units * unit_bytes;
        assert_true(out[i] == kv_checksum(unit, unit_bytes));
    }
    moving->places[2][unit_bytes] ^= 16; /* in the second unit of the third slot */
    move(moving, KV_MOVE_IN, &whole, 1, unit_bytes, in);
    for (size_t i = 0; i < COUNT * units; i++) {
        assert_true((in[i] == out[i]) == (i != 2 * units + 1));
    }
    moving->places[2][unit_bytes] ^= 16;
    move(moving, KV_MOVE_IN, &whole, 1, unit_bytes, in);
    assert_memory_equal(in, out, COUNT * units * sizeof *in);
    free(out);
    free(in);
}

/* ---- with a seed for each slot ---- */

static void sealed_move(const moving_t *moving, kv_move_direction_t direction,
    const kv_slot_part_t *parts, uint32_t part_count, char *beside, uint64_t *checksums)
{
    uint64_t seeds[COUNT];
    char *places[COUNT];
    size_t bytes = 0;
    for (uint32_t i = 0; i < part_count; i++) {
        bytes += parts[i].bytes;
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        seeds[i] = 7 * i;
        places[i] = beside != NULL ? beside + i * bytes : moving->places[i];
    }
    const kv_move_params_t params = {
        .direction = direction,
        .arena = moving->slots,
        .slot_bytes = moving->slot_bytes,
        .slots = SOME,
        .slot_count = COUNT,
        .parts = parts,
        .part_count = part_count,
        .outside = places,
        .beside = beside != NULL,
        .seeds = seeds,
        .checksums = checksums,
    };
    kv_error_t error = {0};
    if (kv_move(moving->device, &params, &error) != KV_OK) {
        fail_msg("move: %s", error.text);
    }
}

/* Each slot's parts have one checksum, wherever they go; together holds them afterwards. */
static void check_seeded(const moving_t *moving, const kv_slot_part_t *parts, uint32_t part_count,
    const uint64_t *checksums, char *together)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        size_t bytes = 0;
        for (uint32_t j = 0; j < part_count; j++) {
            memcpy(together + bytes,
                moving->mirror + SOME[i] * moving->slot_bytes + parts[j].offset_bytes,
                parts[j].bytes);
            bytes += parts[j].bytes;
        }
        assert_true(checksums[i] == kv_checksum_seeded(together, bytes, 7 * i));
        together += bytes;
    }
}

static void seeded_there_and_back(
    const moving_t *moving, const kv_slot_part_t *parts, uint32_t part_count)
{
    kv_device_t *device = moving->device;
    kv_error_t error;
    uint64_t checksums[COUNT];
    const size_t bytes = COUNT * moving->slot_bytes;
    char *together = calloc(1, bytes), *copy = calloc(1, bytes);
    sealed_move(moving, KV_MOVE_OUT, parts, part_count, NULL, checksums);
    check_seeded(moving, parts, part_count, checksums, together);
    compare(moving, parts, part_count);
    memset(checksums, 0, sizeof checksums);
    sealed_move(moving, KV_MOVE_IN, parts, part_count, NULL, checksums);
    check_seeded(moving, parts, part_count, checksums, together);
    if (device->ops->network != KV_NETWORK_NONE) {
        void *beside;
        assert_int_equal(device->ops->allocate(device, bytes, &beside, &error), KV_OK);
        sealed_move(moving, KV_MOVE_OUT, parts, part_count, beside, checksums);
        check_seeded(moving, parts, part_count, checksums, together);
        assert_int_equal(device->ops->copy_out(device, copy, beside, bytes, &error), KV_OK);
        assert_memory_equal(copy, together, bytes);
        copy[parts[0].bytes - 1] ^= 1; /* of the first slot */
        assert_int_equal(device->ops->copy_in(device, beside, copy, bytes, &error), KV_OK);
        uint64_t in[COUNT];
        sealed_move(moving, KV_MOVE_IN, parts, part_count, beside, in);
        assert_true(in[0] != checksums[0]);
        assert_memory_equal(in + 1, checksums + 1, sizeof in - sizeof *in);
        copy[parts[0].bytes - 1] ^= 1;
        assert_int_equal(device->ops->copy_in(device, beside, copy, bytes, &error), KV_OK);
        sealed_move(moving, KV_MOVE_IN, parts, part_count, beside, in);
        assert_memory_equal(in, checksums, sizeof in);
        device->ops->release(device, beside, bytes);
    }
    sealed_move(moving, KV_MOVE_OUT, parts, part_count, NULL, checksums);
    compare(moving, parts, part_count);
    free(together);
    free(copy);
}

static void check_moves(moving_t *moving)
{
    const size_t slot = moving->slot_bytes;
    const kv_slot_part_t whole = {0, slot}, layer = {slot / 4, slot / 8},
                         scattered[] = {{16, 4}, {64, 256}, {slot / 2, 12}, {slot - 32, 32}};
    there_and_back(moving, &whole, 1);
    there_and_back(moving, &layer, 1);
    there_and_back(moving, scattered, 4);
    sealed_there_and_back(moving, slot / 8);
    sealed_there_and_back(moving, slot / 64);
    seeded_there_and_back(moving, &whole, 1);
    seeded_there_and_back(moving, &layer, 1);
    seeded_there_and_back(moving, scattered, 4);
}

static void every_size(void **state)
{
    (void)state;
    static const size_t SLOT_BYTES[] = {1024, 24576, 131072};
    bench_t bench;
    bench_open(&bench);
    for (size_t i = 0; i < sizeof SLOT_BYTES / sizeof *SLOT_BYTES; i++) {
        moving_t moving;
        kv_error_t error;
        open_moving(&moving, bench.tested, SLOT_BYTES[i]);
        check_moves(&moving);
        /* All of it pinned, then a part that begins and ends amid what moves. */
        assert_int_equal(
            kv_device_pin(bench.tested, moving.host.base, moving.host.bytes, &error), KV_OK);
        check_moves(&moving);
        kv_device_unpin(bench.tested, moving.host.base, moving.host.bytes);
        char *amid = (char *)moving.host.base + 4096;
        assert_int_equal(kv_device_pin(bench.tested, amid, 8192, &error), KV_OK);
        assert_int_equal(kv_device_pin(bench.tested, amid + 8192, 4096, &error), KV_OK);
        check_moves(&moving);
        kv_device_unpin(bench.tested, amid, 8192);
        kv_device_unpin(bench.tested, amid + 8192, 4096);
        close_moving(&moving);
    }
    bench_close(&bench);
}

/* ---- several threads ---- */

static void *move_about(void *argument)
{
    moving_t *moving = argument;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        const kv_slot_part_t layer = {moving->slot_bytes / 4, moving->slot_bytes / 8};
        there_and_back(moving, &layer, 1);
        sealed_there_and_back(moving, moving->slot_bytes / 16);
    }
    return NULL;
}

/* More threads than the device has lanes. */
static void many_threads(void **state)
{
    (void)state;
    bench_t bench;
    bench_open(&bench);
    moving_t movings[THREADS];
    pthread_t threads[THREADS];
    for (uint32_t i = 0; i < THREADS; i++) {
        open_moving(&movings[i], bench.tested, 4096);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, move_about, &movings[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        close_moving(&movings[i]);
    }
    bench_close(&bench);
}

/* A move that is polled: busy until it has ended, and right then. */
static void polled(void **state)
{
    (void)state;
    bench_t bench;
    bench_open(&bench);
    moving_t moving;
    open_moving(&moving, bench.tested, 131072);
    const kv_slot_part_t whole = {0, moving.slot_bytes};
    const kv_move_params_t params = {
        .direction = KV_MOVE_OUT,
        .arena = moving.slots,
        .slot_bytes = moving.slot_bytes,
        .slots = SOME,
        .slot_count = COUNT,
        .parts = &whole,
        .part_count = 1,
        .outside = moving.places,
    };
    kv_error_t error;
    kv_move_t *started;
    kv_status_t status;
    assert_int_equal(kv_move_start(bench.tested, &params, &started, &error), KV_OK);
    do {
        status = kv_move_poll(bench.tested, started, &error);
    } while (status == KV_BUSY);
    assert_int_equal(status, KV_OK);
    compare(&moving, &whole, 1);
    close_moving(&moving);
    bench_close(&bench);
}

/* What checksums come to is ordinary memory: a copy to it would hold up the start of the move until
 * all of it has ended. So nothing is written there before somebody waits. */
static void checksums_come_at_the_end(void **state)
{
    (void)state;
    enum { UNITS = 32 };
    bench_t bench;
    bench_open(&bench);
    moving_t moving;
    kv_error_t error;
    kv_move_t *started;
    uint64_t sums[COUNT * UNITS];
    open_moving(&moving, bench.tested, 65536);
    const kv_slot_part_t whole = {0, moving.slot_bytes};
    const kv_move_params_t params = {
        .direction = KV_MOVE_IN,
        .arena = moving.slots,
        .slot_bytes = moving.slot_bytes,
        .slots = SOME,
        .slot_count = COUNT,
        .parts = &whole,
        .part_count = 1,
        .outside = moving.places,
        .unit_bytes = moving.slot_bytes / UNITS,
        .checksums = sums,
    };
    memset(sums, 0, sizeof sums);
    assert_int_equal(kv_move_start(bench.tested, &params, &started, &error), KV_OK);
    for (size_t at = 0; at < COUNT * UNITS; at++) {
        assert_true(sums[at] == 0);
    }
    assert_int_equal(kv_move_wait(bench.tested, started, &error), KV_OK);
    for (size_t at = 0; at < COUNT * UNITS; at++) {
        const char *unit = moving.places[at / UNITS] + at % UNITS * params.unit_bytes;
        assert_true(sums[at] == kv_checksum(unit, params.unit_bytes));
    }
    close_moving(&moving);
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_size),
        cmocka_unit_test(many_threads),
        cmocka_unit_test(polled),
        cmocka_unit_test(checksums_come_at_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
