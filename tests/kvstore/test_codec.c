/* Codecs: what goes in comes out, whatever it is and whichever instructions are there; what no
 * encoder made is refused without a byte read or written beyond. */
#include "harness.h"

#include "base/memory.h"
#include "kvstore/codec/bf16_kernel.h"
#include "kvstore/codec/codec.h"

enum { GUARD = 0x5a, GUARD_BYTES = 64, ROOM_BYTES = 1 << 16 };

static const kv_bf16_kernel_t *const KERNELS[] = {&kv_bf16_plain, &kv_bf16_avx2, &kv_bf16_avx512};
enum { KERNEL_COUNT = sizeof KERNELS / sizeof KERNELS[0] };

static bool runs_here(size_t kernel)
{
    return kernel == 0 ||
           (kernel == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) ||
           (kernel == 2 && __builtin_cpu_supports("avx512vbmi2"));
}

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

static uint16_t constant(uint64_t *random, size_t i)
{
    (void)random, (void)i;
    return 0x3f80;
}

static uint16_t zero(uint64_t *random, size_t i)
{
    (void)random, (void)i;
    return 0;
}

/* Zeros of both signs, denormals, infinities, quiet and signalling NaNs, among others. */
static uint16_t special(uint64_t *random, size_t i)
{
    static const uint16_t words[] = {
        0x0000, 0x8000, 0x0001, 0x807f, 0x7f80, 0xff80, 0x7fc0, 0x7f81, 0xffff, 0x0080, 0x7f7f};
    return kv_test_random(random) % 3 == 0 ? words[i % (sizeof words / sizeof words[0])]
                                           : like_kv(random, i);
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

static const element_t CONTENTS[] = {
    like_kv, anything, constant, zero, special, every_exponent, turning};
enum { CONTENT_COUNT = sizeof CONTENTS / sizeof CONTENTS[0] };

static void fill(element_t content, uint64_t seed, uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t word = content(&seed, i / 2);
        bytes[i] = (uint8_t)(i % 2 == 0 ? word : word >> 8);
    }
}

static void check_guard(const uint8_t *bytes)
{
    for (int i = 0; i < GUARD_BYTES; i++) {
        assert_int_equal(bytes[i], GUARD);
    }
}

/* ---- chunks ---- */

static void check_chunk(element_t content, uint32_t elements, uint64_t seed)
{
    static uint8_t from[2 * KV_BF16_CHUNK_MAX], back[2 * KV_BF16_CHUNK_MAX + GUARD_BYTES];
    static uint8_t first[KV_BF16_ENCODED_ROOM], encoded[KV_BF16_ENCODED_ROOM];
    size_t bytes = 2 * (size_t)elements, length = 0;
    fill(content, seed, from, bytes);
    for (size_t i = 0; i < KERNEL_COUNT; i++) {
        if (!runs_here(i)) {
            continue;
        }
        size_t got = KERNELS[i]->encode(from, elements, encoded);
        if (i == 0) {
            length = got;
            memcpy(first, encoded, got);
        }
        assert_int_equal(got, length);
        assert_memory_equal(encoded, first, length);
        memset(back, GUARD, sizeof back);
        /* In memory of exactly its size, so that a sanitizer sees what is read beyond. */
        uint8_t *alone = kv_allocate(length);
        memcpy(alone, encoded, length);
        assert_int_equal(KERNELS[i]->decode(alone, length, elements, back), length);
        assert_memory_equal(back, from, bytes);
        check_guard(back + bytes);
        assert_int_equal(KERNELS[i]->decode(alone, length - 1, elements, back), 0);
        free(alone);
    }
}

static void every_instruction_set_makes_the_same_bytes_and_takes_them_back(void **state)
{
    (void)state;
    for (size_t content = 0; content < CONTENT_COUNT; content++) {
        for (uint32_t elements = KV_BF16_VECTOR; elements <= KV_BF16_CHUNK_MAX;
             elements += KV_BF16_VECTOR) {
            for (uint64_t seed = 0; seed < 8; seed++) {
                check_chunk(CONTENTS[content], elements, kv_test_seed() + seed);
            }
        }
    }
}

/* Whatever is changed: the same answer and the same bytes from all, none of them beyond. */
static void check_malformed(uint8_t *encoded, size_t bytes, uint32_t elements)
{
    static uint8_t first[2 * KV_BF16_CHUNK_MAX + GUARD_BYTES];
    static uint8_t back[2 * KV_BF16_CHUNK_MAX + GUARD_BYTES];
    size_t length = 0;
    for (size_t i = 0; i < KERNEL_COUNT; i++) {
        if (!runs_here(i)) {
            continue;
        }
        memset(back, GUARD, sizeof back);
        size_t got = KERNELS[i]->decode(encoded, bytes, elements, back);
        assert_true(got <= bytes);
        check_guard(back + 2 * (size_t)elements);
        if (i == 0) {
            length = got;
            memcpy(first, back, sizeof first);
        }
        assert_int_equal(got, length);
        assert_memory_equal(back, first, sizeof first);
    }
}

static void malformed_chunks_are_refused_within_their_bounds(void **state)
{
    (void)state;
    uint64_t random = kv_test_seed();
    static uint8_t from[2 * KV_BF16_CHUNK_MAX], encoded[KV_BF16_ENCODED_ROOM];
    for (int round = 0; round < 6000; round++) {
        uint32_t elements = KV_BF16_VECTOR * (1 + (uint32_t)(kv_test_random(&random) % 16));
        fill(CONTENTS[round % CONTENT_COUNT], random, from, sizeof from);
        size_t length = kv_bf16_plain.encode(from, elements, encoded);
        size_t cut = 1 + kv_test_random(&random) % length;
        for (uint64_t flips = kv_test_random(&random) % 9; flips > 0; flips--) {
            size_t at = kv_test_random(&random) % (flips > 4 ? 300 : length);
            encoded[at % length] = (uint8_t)kv_test_random(&random);
        }
        uint8_t *alone = kv_allocate(cut);
        memcpy(alone, encoded, cut);
        check_malformed(alone, cut, elements);
        free(alone);
    }
    /* Every code says that it goes on: the most that a chunk can claim. */
    uint8_t *full = kv_allocate(KV_BF16_ENCODED_ROOM);
    memset(full, 0xff, KV_BF16_ENCODED_ROOM);
    check_malformed(full, KV_BF16_ENCODED_ROOM, KV_BF16_CHUNK_MAX);
    check_malformed(full, KV_BF16_ENCODED_ROOM / 2, KV_BF16_CHUNK_MAX);
    free(full);
}

/* ---- units ---- */

static void check_unit(kvist_codec_t codec, const uint8_t *unit, size_t bytes)
{
    uint8_t *encoded = kv_allocate(bytes + GUARD_BYTES), *back = kv_allocate(bytes + GUARD_BYTES);
    memset(encoded, GUARD, bytes + GUARD_BYTES);
    memset(back, GUARD, bytes + GUARD_BYTES);
    size_t length = kv_codec_encode(codec, unit, bytes, 2, encoded);
    assert_true(length <= bytes);
    check_guard(encoded + bytes);
    assert_int_equal(kv_codec_decode(codec, encoded, length, back, bytes), KV_OK);
    assert_memory_equal(back, unit, bytes);
    check_guard(back + bytes);
    if (codec == KVIST_CODEC_BF16 && length < bytes) { /* LZ4 takes some that are too short */
        assert_int_equal(kv_codec_decode(codec, encoded, length - 1, back, bytes), KV_CORRUPT);
        assert_int_equal(kv_codec_decode(codec, encoded, length + 1, back, bytes), KV_CORRUPT);
    }
    free(encoded);
    free(back);
}

static void units_of_any_length_and_content_come_back(void **state)
{
    (void)state;
    uint8_t *unit = kv_allocate(ROOM_BYTES);
    for (int codec = 0; codec < KVIST_CODEC_COUNT; codec++) {
        for (size_t content = 0; content < CONTENT_COUNT; content++) {
            fill(CONTENTS[content], kv_test_seed() + content, unit, ROOM_BYTES);
            for (size_t bytes = 1; bytes <= 4300; bytes += bytes < 400 ? 1 : 61) {
                check_unit((kvist_codec_t)codec, unit, bytes);
                check_unit((kvist_codec_t)codec, unit + 1, bytes); /* nothing need be aligned */
            }
            check_unit((kvist_codec_t)codec, unit, ROOM_BYTES);
        }
    }
    free(unit);
}

static void kv_gets_smaller_and_nothing_gets_larger(void **state)
{
    (void)state;
    enum { BYTES = 2048 };
    uint8_t unit[BYTES], encoded[BYTES];
    fill(like_kv, 1, unit, BYTES);
    assert_true(kv_codec_encode(KVIST_CODEC_BF16, unit, BYTES, 2, encoded) < BYTES * 10 / 14);
    /* Only what is bf16 is tried. */
    assert_int_equal(kv_codec_encode(KVIST_CODEC_BF16, unit, BYTES, 4, encoded), BYTES);
    assert_int_equal(kv_codec_encode(KVIST_CODEC_BF16, unit, BYTES, 1, encoded), BYTES);
    assert_int_equal(kv_codec_encode(KVIST_CODEC_NONE, unit, BYTES, 2, encoded), BYTES);
    fill(anything, 1, unit, BYTES);
    for (int codec = 0; codec < KVIST_CODEC_COUNT; codec++) {
        assert_int_equal(kv_codec_encode((kvist_codec_t)codec, unit, BYTES, 2, encoded), BYTES);
        assert_memory_equal(unit, encoded, BYTES);
    }
    assert_int_equal(
        kv_codec_decode(KVIST_CODEC_NONE, unit, BYTES - 1, encoded, BYTES), KV_CORRUPT);
}

/* A unit of 64 elements and 2 bytes, written out by docs/formats.md: records on disks hold such. */
static void the_form_is_the_documented_one(void **state)
{
    (void)state;
    enum { ELEMENTS = 64, BYTES = 2 * ELEMENTS + 2 };
    static const uint8_t head[] = {0x7f, 0x7e, 0x7d, 0x7c, 0x7b, 0x7a, 0x70};
    static const uint8_t steps[] = {0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
        0xaa,                                           /* step 1: codes 0, 1, 2, 3, 0, ... */
        0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, /* and their high bits */
        0xaa, 0xaa, 0xcc, 0xcc,                         /* step 2: the same for 16 */
        0x10, 0xfe, 0xff};                              /* step 3: 0, 1, 14, 15; step 4 */
    static const uint8_t thirds[] = {0x70, 0x71, 0x7e, 0xff};
    uint8_t encoded[sizeof head + sizeof steps + ELEMENTS + 2], unit[BYTES], back[BYTES];
    memcpy(encoded, head, sizeof head);
    memcpy(encoded + sizeof head, steps, sizeof steps);
    for (uint32_t i = 0; i < ELEMENTS; i++) {
        uint8_t exponent = i % 4 < 3       ? head[i % 4]
                           : i / 4 % 4 < 3 ? head[3 + i / 4 % 4]
                                           : thirds[i / 16];
        uint32_t sign = i % 2, mantissa = 127 - i;
        uint32_t word = sign << 15 | (uint32_t)exponent << 7 | mantissa;
        unit[2 * i] = (uint8_t)word;
        unit[2 * i + 1] = (uint8_t)(word >> 8);
        encoded[sizeof head + sizeof steps + i] = (uint8_t)(mantissa << 1 | sign);
    }
    memcpy(encoded + sizeof encoded - 2, "ab", 2);
    memcpy(unit + BYTES - 2, "ab", 2);
    assert_int_equal(
        kv_codec_decode(KVIST_CODEC_BF16, encoded, sizeof encoded, back, BYTES), KV_OK);
    assert_memory_equal(back, unit, BYTES);
}

static void malformed_units_are_refused(void **state)
{
    (void)state;
    enum { BYTES = 3000 };
    uint64_t random = kv_test_seed();
    uint8_t unit[BYTES], encoded[BYTES], back[BYTES];
    fill(like_kv, 1, unit, BYTES);
    memset(unit + BYTES / 2, 'k', BYTES / 4); /* for LZ4 */
    for (int codec = KVIST_CODEC_LZ4; codec < KVIST_CODEC_COUNT; codec++) {
        size_t length = kv_codec_encode((kvist_codec_t)codec, unit, BYTES, 2, encoded);
        assert_true(length < BYTES * 9 / 10);
        for (int i = 0; i < 10000; i++) {
            size_t cut = 1 + kv_test_random(&random) % length;
            uint8_t *mutated = kv_allocate(cut);
            memcpy(mutated, encoded, cut);
            mutated[kv_test_random(&random) % cut] ^= (uint8_t)(1 << kv_test_random(&random) % 8);
            kv_status_t status =
                kv_codec_decode((kvist_codec_t)codec, mutated, cut, back, sizeof back);
            assert_true(status == KV_OK || status == KV_CORRUPT);
            free(mutated);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_instruction_set_makes_the_same_bytes_and_takes_them_back),
        cmocka_unit_test(malformed_chunks_are_refused_within_their_bounds),
        cmocka_unit_test(units_of_any_length_and_content_come_back),
        cmocka_unit_test(kv_gets_smaller_and_nothing_gets_larger),
        cmocka_unit_test(the_form_is_the_documented_one),
        cmocka_unit_test(malformed_units_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
