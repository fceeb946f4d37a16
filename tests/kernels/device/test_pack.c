/* Slots through KV's codec on the device against the host's: the same bytes, lengths and checksums,
 * for objects of every shape, of one slice or many; bytes that no encoder made; several threads. */
#include "kernels/device/bench.h"

#include "base/checksum.h"
#include "base/memory.h"
#include "kernels/moves.h"
#include "kvstore/codec/codec.h"

#include <pthread.h>

enum { SLOTS = 3, THREADS = 10, ROUNDS = 2, GUARD_BYTES = 64, GUARD = 0x5a };

typedef struct {
    const char *name;
    uint32_t layer_count, run_count;
    kv_unit_run_t runs[KV_PACK_RUNS_MAX];
} shape_t;

/* As models have them, and as they do not: odd sizes, units that stay as they are, more bytes than
 * one slice takes, more units than it takes. */
static const shape_t SHAPES[] = {
    {"a model", 3, 2, {{3, 4096, 2}, {3, 4096, 2}}},
    {"one unit", 1, 1, {{1, 2048, 2}}},
    {"a few bytes", 3, 1, {{2, 2, 2}}},
    {"odd", 4, 3, {{1, 130, 2}, {2, 4099, 2}, {1, 514, 4}}},
    {"mixed", 3, 4, {{2, 4096, 2}, {1, 4096, 1}, {2, 6144, 2}, {1, 64, 8}}},
    {"slices of layers", 3, 2, {{2, 1u << 20, 1}, {1, 2048, 2}}},
    {"many units", 5, 1, {{4096, 4, 2}}},
};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof SHAPES[0] };

/* A slot of the shape on the device, and what the host makes of it. */
typedef struct {
    kv_device_t *device;
    const shape_t *shape;
    size_t slot_bytes, room; /* of the object; with gaps of 16 bytes: of a slot */
    uint32_t unit_count;
    char *slots; /* device */
    char *object, *packed;
    size_t packed_bytes;
    uint32_t *lengths;
    uint64_t *checksums;
} packing_t;

typedef void (*each_unit_t)(packing_t *packing, uint32_t unit, size_t offset, size_t bytes,
    uint32_t element_bytes, void *context);

static void each_unit(packing_t *packing, each_unit_t visit, void *context)
{
    size_t offset = 0;
    uint32_t unit = 0;
    for (uint32_t layer = 0; layer < packing->shape->layer_count; layer++) {
        for (uint32_t i = 0; i < packing->shape->run_count; i++) {
            const kv_unit_run_t *run = &packing->shape->runs[i];
            for (uint32_t j = 0; j < run->unit_count; j++, offset += run->unit_bytes) {
                visit(packing, unit++, offset, run->unit_bytes, run->element_bytes, context);
            }
        }
    }
    packing->slot_bytes = offset;
    packing->unit_count = unit;
}

static void count_unit(packing_t *packing, uint32_t unit, size_t offset, size_t bytes,
    uint32_t element_bytes, void *context)
{
    (void)packing, (void)unit, (void)offset, (void)bytes, (void)element_bytes, (void)context;
}

/* Most units like KV, every seventh like nothing. */
static void fill_unit(packing_t *packing, uint32_t unit, size_t offset, size_t bytes,
    uint32_t element_bytes, void *context)
{
    (void)element_bytes;
    uint64_t *random = context;
    for (size_t i = 0; i + 1 < bytes; i += 2) {
        uint64_t value = kv_test_random(random);
        uint32_t exponent = 126 - (uint32_t)__builtin_ctzll(value >> 20 | 1u << 20);
        uint16_t word = (uint16_t)(unit % 7 == 6 ? value : (value & 0x807f) | exponent << 7);
        memcpy(packing->object + offset + i, &word, sizeof word);
    }
}

static void encode_unit(packing_t *packing, uint32_t unit, size_t offset, size_t bytes,
    uint32_t element_bytes, void *context)
{
    (void)context;
    const char *from = packing->object + offset;
    packing->checksums[unit] = kv_checksum(from, bytes);
    packing->lengths[unit] = (uint32_t)kv_codec_encode(
        KVIST_CODEC_BF16, from, bytes, element_bytes, packing->packed + packing->packed_bytes);
    packing->packed_bytes += packing->lengths[unit];
}

static void open_packing(packing_t *packing, kv_device_t *device, const shape_t *shape)
{
    kv_error_t error;
    void *memory;
    uint64_t random = kv_test_seed();
    *packing = (packing_t){.device = device, .shape = shape};
    each_unit(packing, count_unit, NULL);
    packing->room = (packing->slot_bytes + 31) / 16 * 16;
    packing->object = kv_allocate(packing->slot_bytes);
    packing->packed = kv_allocate(packing->slot_bytes + GUARD_BYTES);
    packing->lengths = kv_allocate_array(packing->unit_count, sizeof *packing->lengths);
    packing->checksums = kv_allocate_array(packing->unit_count, sizeof *packing->checksums);
    each_unit(packing, fill_unit, &random);
    each_unit(packing, encode_unit, NULL);
    assert_int_equal(device->ops->allocate(device, SLOTS * packing->room, &memory, &error), KV_OK);
    packing->slots = memory;
}

static void close_packing(packing_t *packing)
{
    packing->device->ops->release(packing->device, packing->slots, SLOTS * packing->room);
    free(packing->object);
    free(packing->packed);
    free(packing->lengths);
    free(packing->checksums);
}

static kv_pack_t pack_of(
    const packing_t *packing, uint32_t slot, char *packed, uint32_t *lengths, uint64_t *checksums)
{
    return (kv_pack_t){
        .arena = packing->slots,
        .slot_bytes = packing->room,
        .slot = slot,
        .layer_count = packing->shape->layer_count,
        .runs = packing->shape->runs,
        .run_count = packing->shape->run_count,
        .packed = packed,
        .lengths = lengths,
        .checksums = checksums,
    };
}

static void put_object(const packing_t *packing, uint32_t slot)
{
    kv_error_t error;
    assert_int_equal(
        packing->device->ops->copy_in(packing->device, packing->slots + slot * packing->room,
            packing->object, packing->slot_bytes, &error),
        KV_OK);
}

/* Slot 1 on the device is as the host makes it. */
static void pack_and_compare(packing_t *packing)
{
    const uint32_t count = packing->unit_count;
    const size_t room = packing->slot_bytes + GUARD_BYTES;
    char *packed = kv_allocate(room);
    uint32_t *lengths = kv_allocate_array(count, sizeof *lengths);
    uint64_t *checksums = kv_allocate_array(count, sizeof *checksums);
    const kv_pack_t pack = pack_of(packing, 1, packed, lengths, checksums);
    size_t bytes = 0;
    kv_error_t error = {0};
    memset(packed, GUARD, room);
    put_object(packing, 1);
    if (packing->device->ops->pack(packing->device, &pack, &bytes, &error) != KV_OK) {
        fail_msg("pack %s: %s", packing->shape->name, error.text);
    }
    assert_int_equal(bytes, packing->packed_bytes);
    assert_memory_equal(lengths, packing->lengths, count * sizeof *lengths);
    assert_memory_equal(checksums, packing->checksums, count * sizeof *checksums);
    assert_memory_equal(packed, packing->packed, bytes);
    for (size_t i = bytes; i < room; i++) {
        assert_int_equal(packed[i], GUARD);
    }
    free(packed);
    free(lengths);
    free(checksums);
}

/* What the host packed comes to slot 1, and to nothing beside it. */
static void unpack_and_compare(packing_t *packing)
{
    const uint32_t count = packing->unit_count;
    const size_t room = SLOTS * packing->room;
    char *arena = kv_allocate(room);
    uint64_t *checksums = kv_allocate_array(count, sizeof *checksums);
    const kv_pack_t pack = pack_of(packing, 1, packing->packed, packing->lengths, checksums);
    kv_error_t error = {0};
    memset(arena, GUARD, room);
    assert_int_equal(
        packing->device->ops->copy_in(packing->device, packing->slots, arena, room, &error), KV_OK);
    if (packing->device->ops->unpack(packing->device, &pack, &error) != KV_OK) {
        fail_msg("unpack %s: %s", packing->shape->name, error.text);
    }
    assert_memory_equal(checksums, packing->checksums, count * sizeof *checksums);
    assert_int_equal(
        packing->device->ops->copy_out(packing->device, arena, packing->slots, room, &error),
        KV_OK);
    for (size_t i = 0; i < room; i++) {
        const size_t in_slot = i - packing->room;
        const bool inside = i >= packing->room && in_slot < packing->slot_bytes;
        if (arena[i] != (inside ? packing->object[in_slot] : GUARD)) {
            fail_msg("%s: byte %zu is %d", packing->shape->name, i, arena[i]);
        }
    }
    free(arena);
    free(checksums);
}

static void every_shape(void **state)
{
    (void)state;
    bench_t bench;
    bench_open(&bench);
    for (size_t i = 0; i < SHAPE_COUNT; i++) {
        packing_t packing;
        open_packing(&packing, bench.tested, &SHAPES[i]);
        pack_and_compare(&packing);
        unpack_and_compare(&packing);
        close_packing(&packing);
    }
    bench_close(&bench);
}

/* Whatever lengths and bytes there are, what comes is told to be damaged, or has other checksums,
 * and nothing beside the slot is touched. */
static void damaged(void **state)
{
    (void)state;
    enum { TURNS = 16 };
    bench_t bench;
    packing_t packing;
    kv_error_t error = {0};
    uint64_t random = kv_test_seed();
    bench_open(&bench);
    open_packing(&packing, bench.tested, &SHAPES[0]);
    uint64_t *checksums = kv_allocate_array(packing.unit_count, sizeof *checksums);
    uint32_t *lengths = kv_allocate_array(packing.unit_count, sizeof *lengths);
    char *packed = kv_allocate(packing.slot_bytes);
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        memcpy(packed, packing.packed, packing.slot_bytes);
        memcpy(lengths, packing.lengths, packing.unit_count * sizeof *lengths);
        if (turn % 2 == 0) {
            size_t at = kv_test_random(&random) % packing.packed_bytes;
            packed[at] ^= (char)(1 << kv_test_random(&random) % 8);
        } else {
            lengths[kv_test_random(&random) % packing.unit_count] =
                (uint32_t)(kv_test_random(&random) % 3 == 0 ? UINT32_MAX
                                                            : kv_test_random(&random) % 9000);
        }
        const kv_pack_t pack = pack_of(&packing, 1, packed, lengths, checksums);
        size_t bytes = 0;
        for (uint32_t i = 0; i < packing.unit_count; i++) {
            bytes += lengths[i];
        }
        if (bytes > packing.packed_bytes && bytes <= packing.slot_bytes) {
            memset(packed + packing.packed_bytes, 0, bytes - packing.packed_bytes);
        }
        kv_status_t status = bench.tested->ops->unpack(bench.tested, &pack, &error);
        if (status != KV_CORRUPT) {
            assert_int_equal(status, KV_OK);
            const size_t all = packing.unit_count * sizeof *checksums;
            const bool same_lengths =
                memcmp(lengths, packing.lengths, packing.unit_count * sizeof *lengths) == 0;
            const bool same_bytes = memcmp(packed, packing.packed, packing.packed_bytes) == 0;
            assert_true(
                (same_lengths && same_bytes) || memcmp(checksums, packing.checksums, all) != 0);
        }
    }
    unpack_and_compare(&packing);
    free(checksums);
    free(lengths);
    free(packed);
    close_packing(&packing);
    bench_close(&bench);
}

/* ---- several threads ---- */

static void *pack_about(void *argument)
{
    packing_t *packing = argument;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        pack_and_compare(packing);
        unpack_and_compare(packing);
    }
    return NULL;
}

/* More than the device has lanes. */
static void many_threads(void **state)
{
    (void)state;
    bench_t bench;
    bench_open(&bench);
    packing_t packings[THREADS];
    pthread_t threads[THREADS];
    for (uint32_t i = 0; i < THREADS; i++) {
        open_packing(&packings[i], bench.tested, &SHAPES[i % 2 == 0 ? 1 : 3]);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, pack_about, &packings[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        close_packing(&packings[i]);
    }
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape),
        cmocka_unit_test(damaged),
        cmocka_unit_test(many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
