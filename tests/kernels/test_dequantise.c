/* Every weight format, from blocks made by hand. */
#include "kernels/cpu/dequantise.h"

#include "base/bytes.h"
#include "testing/testing.h"

#include <math.h>

enum { F16_ONE = 0x3c00, F16_HALF = 0x3800, F16_TWO = 0x4000, F16_MINUS_ONE = 0xbc00 };

static void plain_types(void **state)
{
    (void)state;
    static const struct {
        uint16_t half;
        float value;
    } halves[] = {{0, 0.0f}, {0x8000, -0.0f}, {F16_ONE, 1.0f}, {F16_MINUS_ONE, -1.0f},
        {0x7bff, 65504.0f}, {0x0001, 0x1p-24f}, {0x03ff, 1023 * 0x1p-24f}, {0x0400, 0x1p-14f},
        {0x3555, 0.333251953125f}, {0x7c00, INFINITY}, {0xfc00, -INFINITY}};
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++) {
        uint8_t bytes[2];
        float value;
        kv_put_u16(bytes, halves[i].half);
        cpu_dequantise(KV_WEIGHT_F16, bytes, 1, &value);
        assert_memory_equal(&value, &halves[i].value, sizeof value);
    }
    assert_true(isnan(cpu_float_from_f16(0x7e00)));
    const uint8_t bf16[] = {0x80, 0x3f, 0x49, 0xc0}, f32[] = {0, 0, 0x20, 0x41};
    float two[2];
    cpu_dequantise(KV_WEIGHT_BF16, bf16, 2, two);
    assert_true(two[0] == 1.0f && two[1] == -3.140625f);
    cpu_dequantise(KV_WEIGHT_F32, f32, 1, two);
    assert_true(two[0] == 10.0f);
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(cpu_bf16_from_float(1.0f), 0x3f80);
    assert_int_equal(cpu_bf16_from_float(cpu_float_from_bits(0x3f808000)), 0x3f80);
    assert_int_equal(cpu_bf16_from_float(cpu_float_from_bits(0x3f818000)), 0x3f82);
    assert_int_equal(cpu_bf16_from_float(cpu_float_from_bits(0x3f808001)), 0x3f81);
    assert_int_equal(cpu_bf16_from_float(INFINITY), 0x7f80);
    assert_true(isnan(cpu_float_from_bf16(cpu_bf16_from_float(NAN))));
}

static void blocks_of_32(void **state)
{
    (void)state;
    uint8_t block[34];
    float to[32];
    kv_put_u16(block, F16_HALF);
    for (int i = 0; i < 32; i++) {
        block[2 + i] = (uint8_t)(int8_t)(i * 8 - 128);
    }
    cpu_dequantise(KV_WEIGHT_Q8_0, block, 32, to);
    for (int i = 0; i < 32; i++) {
        assert_true(to[i] == 0.5f * (float)(i * 8 - 128));
    }
    /* Element i in a low nibble, element i + 16 in the high one. */
    for (int i = 0; i < 16; i++) {
        block[2 + i] = block[4 + i] = 0;
    }
    for (int i = 0; i < 16; i++) {
        block[2 + i] = (uint8_t)(i | (15 - i) << 4);
    }
    cpu_dequantise(KV_WEIGHT_Q4_0, block, 32, to);
    for (int i = 0; i < 16; i++) {
        assert_true(to[i] == 0.5f * (float)(i - 8) && to[i + 16] == 0.5f * (float)(7 - i));
    }
    kv_put_u16(block, F16_TWO);
    kv_put_u16(block + 2, F16_MINUS_ONE);
    for (int i = 0; i < 16; i++) {
        block[4 + i] = (uint8_t)(i | (15 - i) << 4);
    }
    cpu_dequantise(KV_WEIGHT_Q4_1, block, 32, to);
    for (int i = 0; i < 16; i++) {
        assert_true(to[i] == 2.0f * (float)i - 1.0f && to[i + 16] == 2.0f * (float)(15 - i) - 1.0f);
    }
}

/* Q4_K: sub-block s has scale 5 s + 1 and minimum 63 - 7 s, packed as the format has them. */
static void blocks_of_q4_k(void **state)
{
    (void)state;
    uint8_t block[144] = {0};
    kv_put_u16(block, F16_HALF);
    kv_put_u16(block + 2, F16_TWO);
    uint8_t *packed = block + 4;
    for (int s = 0; s < 8; s++) {
        const int scale = 5 * s + 1 + (s > 4 ? 20 : 0), minimum = 63 - 7 * s;
        if (s < 4) {
            packed[s] |= (uint8_t)scale;
            packed[s + 4] |= (uint8_t)minimum;
        } else {
            packed[s + 4] |= (uint8_t)((scale & 15) | (minimum & 15) << 4);
            packed[s - 4] |= (uint8_t)(scale >> 4 << 6);
            packed[s] |= (uint8_t)(minimum >> 4 << 6);
        }
    }
    for (int i = 0; i < 128; i++) {
        block[16 + i] = (uint8_t)(i % 16 | (i / 16 + 3) % 16 << 4);
    }
    float to[256];
    cpu_dequantise(KV_WEIGHT_Q4_K, block, 256, to);
    for (int i = 0; i < 256; i++) {
        const int s = i / 32, scale = 5 * s + 1 + (s > 4 ? 20 : 0), minimum = 63 - 7 * s,
                  byte = s / 2 * 32 + i % 32, quant = s % 2 == 0 ? byte % 16 : (byte / 16 + 3) % 16;
        const float wanted = 0.5f * (float)scale * (float)quant - 2.0f * (float)minimum;
        if (to[i] != wanted) {
            fail_msg("element %d is %g, not %g", i, (double)to[i], (double)wanted);
        }
    }
}

static void blocks_of_q6_k(void **state)
{
    (void)state;
    uint8_t block[210] = {0};
    int quants[256];
    /* Element e of a half: run e / 32 takes nibble run / 2 of byte run % 2 x 32 + column, and pair
     * run of the high byte of the column. */
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, run = i % 128 / 32, column = i % 32;
        quants[i] = (i * 37 + 11) % 64;
        block[half * 64 + run % 2 * 32 + column] |=
            (uint8_t)((quants[i] & 15) << (run >= 2 ? 4 : 0));
        block[128 + half * 32 + column] |= (uint8_t)(quants[i] >> 4 << (2 * run));
    }
    for (int s = 0; s < 16; s++) {
        block[192 + s] = (uint8_t)(int8_t)(s * 15 - 120);
    }
    kv_put_u16(block + 208, F16_HALF);
    float to[256];
    cpu_dequantise(KV_WEIGHT_Q6_K, block, 256, to);
    for (int i = 0; i < 256; i++) {
        const float wanted = 0.5f * (float)(i / 16 * 15 - 120) * (float)(quants[i] - 32);
        if (to[i] != wanted) {
            fail_msg("element %d is %g, not %g", i, (double)to[i], (double)wanted);
        }
    }
}

/* The compact forms hold the very numbers of the file. */
static void compact_forms_are_exact(void **state)
{
    (void)state;
    enum { BLOCKS = 8 };
    static const kv_weight_type_t types[] = {
        KV_WEIGHT_Q8_0, KV_WEIGHT_Q4_0, KV_WEIGHT_Q4_1, KV_WEIGHT_Q4_K};
    uint64_t random = kv_test_seed();
    for (size_t type = 0; type < sizeof types / sizeof *types; type++) {
        static uint8_t from[256 * BLOCKS];
        static float wanted[256 * BLOCKS], is[256 * BLOCKS], compact[256 * BLOCKS];
        const uint32_t bytes = kv_weight_block_bytes(types[type]),
                       count = BLOCKS * kv_weight_block_elements(types[type]);
        for (uint32_t i = 0; i < BLOCKS * bytes; i++) {
            from[i] = (uint8_t)kv_test_random(&random);
        }
        for (uint32_t block = 0; block < BLOCKS; block++) {
            kv_put_u16(from + block * bytes, (uint16_t)(F16_HALF + 37 * block));
            if (types[type] == KV_WEIGHT_Q4_1 || types[type] == KV_WEIGHT_Q4_K) {
                kv_put_u16(from + block * bytes + 2, (uint16_t)(F16_MINUS_ONE - 51 * block));
            }
        }
        cpu_dequantise(types[type], from, count, wanted);
        cpu_compact(types[type], from, count, compact);
        cpu_expand(cpu_compact_format(types[type]), compact, count, is);
        for (uint32_t i = 0; i < count; i++) {
            assert_true(is[i] == wanted[i]);
        }
    }
    assert_int_equal(cpu_compact_format(KV_WEIGHT_Q6_K), CPU_ROWS_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_types),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(blocks_of_32),
        cmocka_unit_test(blocks_of_q4_k),
        cmocka_unit_test(blocks_of_q6_k),
        cmocka_unit_test(compact_forms_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
