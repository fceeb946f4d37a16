/* The codec on the device against kvstore/codec: the same bytes, packed as in a record, and back;
 * of what no encoder made the same answer, and not a byte beyond. */
#include "kernels/cuda/codec.h"
#include "on_device.h"
#include "testing/testing.h"

#include "base/memory.h"
#include "kvstore/codec/codec.h"

#include <stdlib.h>
#include <string.h>

enum { GUARD = 0x5a, PARTS = CUDA_PARTS_MAX, UNITS_MAX = 1024 };

/* ---- what is encoded ---- */

typedef uint16_t (*element_t)(uint64_t *random, size_t i);

static uint16_t like_kv(uint64_t *random, size_t i)
{
    (void)i;
    uint64_t value = kv_test_random(random);
    uint32_t exponent = 126 - (uint32_t)__builtin_ctzll(value >> 20 | 1u << 20);
    return (uint16_t)((value & 0x807f) | exponent << 7);
}

static uint16_t anything(uint64_t *random, size_t i)
{
    (void)i;
    return (uint16_t)kv_test_random(random);
}

static uint16_t zero(uint64_t *random, size_t i)
{
    (void)random, (void)i;
    return 0;
}

static uint16_t every_exponent(uint64_t *random, size_t i)
{
    return (uint16_t)((kv_test_random(random) & 0x807f) | (i & 255) << 7);
}

/* The first steps are right for most of it, then nothing is. */
static uint16_t turning(uint64_t *random, size_t i)
{
    return i < 700 ? like_kv(random, i) : anything(random, i);
}

/* Large ones, whose base is not zero, and small ones near zero, whose base would be below it. */
static uint16_t extreme(uint64_t *random, size_t i)
{
    uint64_t value = kv_test_random(random);
    uint32_t exponent = (uint32_t)(i / 512 % 2 == 0 ? value >> 32 & 7 : 255 - (value >> 32 & 15));
    return (uint16_t)((value & 0x807f) | exponent << 7);
}

static const element_t CONTENTS[] = {like_kv, anything, zero, every_exponent, turning, extreme};
enum { CONTENT_COUNT = sizeof CONTENTS / sizeof CONTENTS[0] };

static void fill(element_t content, uint64_t seed, uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t word = content(&seed, i / 2);
        bytes[i] = (uint8_t)(i % 2 == 0 ? word : word >> 8);
    }
}

/* ---- objects of four parts, one head each ---- */

typedef struct {
    cuda_units_t units;
    size_t object_bytes;
} shape_t;

static shape_t shape_of(const uint32_t *unit_bytes, const uint32_t *element_bytes, uint32_t layers)
{
    shape_t shape = {
        .units = {.part_count = PARTS, .layer_units = PARTS, .unit_count = layers * PARTS}};
    uint32_t at = 0;
    for (uint32_t i = 0; i < PARTS; i++) {
        shape.units.parts[i] = (cuda_part_t){i, at, unit_bytes[i], element_bytes[i]};
        at += unit_bytes[i];
    }
    shape.units.layer_bytes = at;
    shape.object_bytes = (size_t)at * layers;
    return shape;
}

static size_t unit_at(const shape_t *shape, uint32_t unit, const cuda_part_t **part_out)
{
    const cuda_part_t *part = &shape->units.parts[unit % PARTS];
    *part_out = part;
    return unit / PARTS * shape->units.layer_bytes + part->offset_bytes;
}

typedef struct {
    uint8_t *packed;
    uint32_t *lengths; /* [unit_count] */
    size_t bytes;
} packed_t;

/* An object packed by kvstore/codec. */
static packed_t pack_on_host(const shape_t *shape, const uint8_t *object)
{
    packed_t packed = {
        .packed = kv_allocate(shape->object_bytes + 1),
        .lengths = kv_allocate(shape->units.unit_count * sizeof(uint32_t)),
    };
    for (uint32_t unit = 0; unit < shape->units.unit_count; unit++) {
        const cuda_part_t *part;
        size_t at = unit_at(shape, unit, &part);
        packed.lengths[unit] = (uint32_t)kv_codec_encode(KVIST_CODEC_BF16, object + at,
            part->unit_bytes, part->element_bytes, packed.packed + packed.bytes);
        packed.bytes += packed.lengths[unit];
    }
    return packed;
}

static void free_packed(packed_t *packed)
{
    free(packed->packed);
    free(packed->lengths);
}

/* Packs blocks on the device and holds each against the host's. */
static void check_pack(const shape_t *shape, const uint8_t *objects, uint32_t count, size_t skew)
{
    const uint32_t unit_count = shape->units.unit_count;
    const size_t stride = shape->object_bytes + 5, size = count * shape->object_bytes;
    uint8_t *from = on_device(objects, size, skew), *scratch = on_device(NULL, size, 0);
    uint8_t *packed_out = on_device(NULL, count * stride, 0), *got = kv_allocate(count * stride);
    uint32_t *lengths_out = on_device(NULL, (size_t)count * unit_count * 4, 0);
    uint32_t *offsets_out = on_device(NULL, (size_t)count * (unit_count + 1) * 4, 0);
    uint32_t *lengths = kv_allocate((size_t)count * unit_count * 4);
    uint32_t *offsets = kv_allocate((size_t)count * (unit_count + 1) * 4);
    kv_error_t error;
    assert_int_equal(
        cuda_pack(NULL,
            &(cuda_pack_t){.units = &shape->units,
                .from = &(cuda_blocks_t){.base = from, .stride_bytes = shape->object_bytes},
                .block_count = count,
                .scratch = scratch,
                .packed_out = packed_out,
                .object_bytes = shape->object_bytes,
                .packed_stride_bytes = stride,
                .lengths_out = lengths_out,
                .offsets_out = offsets_out},
            &error),
        KV_OK);
    from_device(got, packed_out, count * stride);
    from_device(lengths, lengths_out, (size_t)count * unit_count * 4);
    from_device(offsets, offsets_out, (size_t)count * (unit_count + 1) * 4);
    for (uint32_t i = 0; i < count; i++) {
        packed_t packed = pack_on_host(shape, objects + i * shape->object_bytes);
        assert_memory_equal(lengths + (size_t)i * unit_count, packed.lengths, unit_count * 4);
        assert_int_equal(offsets[(size_t)i * (unit_count + 1) + unit_count], packed.bytes);
        assert_memory_equal(got + i * stride, packed.packed, packed.bytes);
        for (size_t at = packed.bytes; at < stride; at++) {
            assert_int_equal(got[i * stride + at], GUARD);
        }
        free_packed(&packed);
    }
    off_device(from);
    off_device(scratch);
    off_device(packed_out);
    off_device(lengths_out);
    off_device(offsets_out);
    free(got);
    free(lengths);
    free(offsets);
}

/* Unpacks one object, of which packed_bytes are there; holds every unit, and what is said of the
 * damaged ones, against the host. */
static void check_unpack_of(
    const shape_t *shape, const packed_t *packed, size_t packed_bytes, size_t skew)
{
    const size_t bytes = shape->object_bytes;
    uint32_t damaged = 0, expected_damaged = 0;
    uint8_t *device_packed = on_device(packed->packed, packed_bytes, skew);
    uint8_t *to = on_device(NULL, bytes, 0), *got = kv_allocate(bytes + 1);
    uint8_t *unit_host = kv_allocate(bytes + 1);
    uint32_t *lengths = on_device(packed->lengths, shape->units.unit_count * 4, 0);
    uint32_t *offsets = on_device(NULL, (shape->units.unit_count + 1) * 4, 0);
    uint32_t *damaged_out = on_device(&damaged, sizeof damaged, 0);
    kv_error_t error;
    assert_int_equal(cuda_unpack(NULL,
                         &(cuda_unpack_t){.units = &shape->units,
                             .to = &(cuda_blocks_t){.base = to, .stride_bytes = bytes},
                             .block_count = 1,
                             .packed = device_packed,
                             .object_bytes = bytes,
                             .packed_stride_bytes = bytes,
                             .lengths = lengths,
                             .offsets = offsets,
                             .damaged = damaged_out},
                         &error),
        KV_OK);
    from_device(got, to, bytes);
    from_device(&damaged, damaged_out, sizeof damaged);
    size_t at = 0;
    for (uint32_t unit = 0; unit < shape->units.unit_count; unit++) {
        const cuda_part_t *part;
        size_t place = unit_at(shape, unit, &part);
        uint32_t stored = packed->lengths[unit];
        if (stored > part->unit_bytes || kv_codec_decode(KVIST_CODEC_BF16, packed->packed + at,
                                             stored, unit_host, part->unit_bytes) != KV_OK) {
            expected_damaged++;
        } else {
            assert_memory_equal(got + place, unit_host, part->unit_bytes);
        }
        at += stored < part->unit_bytes ? stored : part->unit_bytes;
    }
    assert_int_equal(damaged, expected_damaged);
    off_device(device_packed);
    off_device(to);
    off_device(lengths);
    off_device(offsets);
    off_device(damaged_out);
    free(got);
    free(unit_host);
}

static void check_unpack(const shape_t *shape, const packed_t *packed, size_t skew)
{
    check_unpack_of(shape, packed, shape->object_bytes, skew);
}

/* ---- the cases ---- */

static const uint32_t SHAPES[][PARTS] = {{0, 1, 2, 127}, {128, 129, 130, 256},
    {2046, 2048, 2050, 2176}, {4096, 4224, 4300, 4}, {1920, 64, 2047, 10240}};
static const uint32_t ELEMENTS[][PARTS] = {
    {2, 2, 2, 2}, {2, 2, 2, 4}, {2, 2, 2, 2}, {2, 2, 2, 1}, {2, 1, 2, 2}};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof SHAPES[0] };

static void objects_pack_and_unpack_as_on_the_host(void **state)
{
    (void)state;
    for (size_t i = 0; i < SHAPE_COUNT; i++) {
        const shape_t shape = shape_of(SHAPES[i], ELEMENTS[i], 2);
        uint8_t *objects = kv_allocate(CONTENT_COUNT * shape.object_bytes + 1);
        for (size_t content = 0; content < CONTENT_COUNT; content++) {
            fill(CONTENTS[content], kv_test_seed() + content,
                objects + content * shape.object_bytes, shape.object_bytes);
        }
        check_pack(&shape, objects, CONTENT_COUNT, i % 2 * 3);
        for (size_t content = 0; content < CONTENT_COUNT; content++) {
            packed_t packed = pack_on_host(&shape, objects + content * shape.object_bytes);
            check_unpack(&shape, &packed, content % 3);
            free_packed(&packed);
        }
        free(objects);
    }
}

/* More units than a scan takes at once, more blocks than a launch does. */
static void many_units_and_many_blocks(void **state)
{
    (void)state;
    enum { BLOCKS = 130, LAYERS = 70 };
    static const uint32_t unit_bytes[PARTS] = {128, 130, 2, 256}, elements[PARTS] = {2, 2, 2, 2};
    shape_t shape = shape_of(unit_bytes, elements, LAYERS);
    uint8_t *objects = kv_allocate(BLOCKS * shape.object_bytes);
    fill(like_kv, kv_test_seed(), objects, BLOCKS * shape.object_bytes);
    check_pack(&shape, objects, 1, 0);
    packed_t packed = pack_on_host(&shape, objects);
    check_unpack(&shape, &packed, 0);
    free_packed(&packed);
    shape = shape_of(unit_bytes, elements, 1);
    check_pack(&shape, objects, BLOCKS, 0);
    free(objects);
}

static void damage(packed_t *packed, const shape_t *shape, uint64_t *random)
{
    for (uint64_t flips = 1 + kv_test_random(random) % 12; flips > 0; flips--) {
        packed->packed[kv_test_random(random) % packed->bytes] = (uint8_t)kv_test_random(random);
    }
    if (kv_test_random(random) % 2 == 0) {
        uint32_t unit = (uint32_t)(kv_test_random(random) % shape->units.unit_count);
        static const uint32_t LENGTHS[] = {0, 1, 6, 7, 300, UINT32_MAX};
        uint64_t which = kv_test_random(random) % 8;
        packed->lengths[unit] = which < 6 ? LENGTHS[which] : packed->lengths[unit] - 1;
    }
}

static void what_no_encoder_made_is_refused_as_on_the_host(void **state)
{
    (void)state;
    const int rounds = kv_test_long() ? 2000 : 100;
    uint64_t random = kv_test_seed();
    for (int round = 0; round < rounds; round++) {
        size_t i = 1 + (size_t)round % (SHAPE_COUNT - 1);
        const shape_t shape = shape_of(SHAPES[i], ELEMENTS[i], 1);
        uint8_t *object = kv_allocate(shape.object_bytes);
        fill(CONTENTS[(size_t)round % CONTENT_COUNT], random, object, shape.object_bytes);
        packed_t packed = pack_on_host(&shape, object);
        damage(&packed, &shape, &random);
        check_unpack(&shape, &packed, (size_t)round % 16);
        free_packed(&packed);
        free(object);
    }
}

/* A unit that ends too early, wherever: nothing is read beyond its end. */
static void a_unit_that_is_cut_is_refused(void **state)
{
    (void)state;
    enum { BYTES = 4096, HALF = BYTES / 2 };
    static const uint32_t unit_bytes[PARTS] = {BYTES, 0, 0, 0}, elements[PARTS] = {2, 2, 2, 2};
    const shape_t shape = shape_of(unit_bytes, elements, 1);
    uint8_t object[BYTES], half[HALF];
    fill(every_exponent, kv_test_seed(), object, HALF);
    fill(like_kv, kv_test_seed(), object + HALF, HALF);
    fill(like_kv, kv_test_seed(), object, 3 * HALF / 4);
    packed_t packed = pack_on_host(&shape, object);
    const uint32_t length = packed.lengths[0];
    const size_t first = kv_codec_encode(KVIST_CODEC_BF16, object, HALF, 2, half);
    assert_true(first < HALF && length < BYTES);
    for (uint32_t cut = 1; cut < length; cut++) {
        if (cut % 61 != 0 && (cut + 4 < first || cut > first + 4)) {
            continue;
        }
        packed.lengths[0] = cut;
        check_unpack_of(&shape, &packed, cut, cut % 3);
    }
    free_packed(&packed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(objects_pack_and_unpack_as_on_the_host),
        cmocka_unit_test(many_units_and_many_blocks),
        cmocka_unit_test(a_unit_that_is_cut_is_refused),
        cmocka_unit_test(what_no_encoder_made_is_refused_as_on_the_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
