/* Small floats: every value comes back, and between two neighbours rounding goes to the nearer one,
 * at the middle to the even one. */
#include "kernels/simt/numbers.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

typedef float widen_t(uint32_t bits);
typedef uint32_t narrow_t(float value);

static float widen_bf16(uint32_t bits)
{
    return kv_bf16_to_float((uint16_t)bits);
}

static uint32_t narrow_bf16(float value)
{
    return kv_bf16_of_float(value);
}

static float widen_half(uint32_t bits)
{
    return kv_half_to_float((uint16_t)bits);
}

static uint32_t narrow_half(float value)
{
    return kv_half_of_float(value);
}

static float widen_e4m3(uint32_t bits)
{
    return kv_e4m3_to_float((uint8_t)bits);
}

static uint32_t narrow_e4m3(float value)
{
    return kv_e4m3_of_float(value);
}

static float widen_e5m2(uint32_t bits)
{
    return kv_e5m2_to_float((uint8_t)bits);
}

static uint32_t narrow_e5m2(float value)
{
    return kv_e5m2_of_float(value);
}

/* A format: the bits of its largest finite value, of its sign, and what it makes of infinity. */
typedef struct {
    widen_t *widen;
    narrow_t *narrow;
    uint32_t largest, sign, of_infinity, nan;
} format_t;

static const format_t formats[] = {
    {widen_bf16, narrow_bf16, 0x7f7f, 0x8000, 0x7f80, 0x7fff},
    {widen_half, narrow_half, 0x7bff, 0x8000, 0x7c00, 0x7fff},
    {widen_e4m3, narrow_e4m3, 0x7e, 0x80, 0x7e, 0x7f},
    {widen_e5m2, narrow_e5m2, 0x7b, 0x80, 0x7b, 0x7f},
};

static void every_value_comes_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        const format_t *format = &formats[i];
        for (uint32_t bits = 0; bits <= format->largest; bits++) {
            assert_int_equal(format->narrow(format->widen(bits)), bits);
            uint32_t negative = bits | format->sign;
            assert_int_equal(format->narrow(format->widen(negative)), negative);
        }
    }
}

static void rounding_goes_to_the_nearer(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        const format_t *format = &formats[i];
        for (uint32_t bits = 0; bits < format->largest; bits++) {
            double low = (double)format->widen(bits), high = (double)format->widen(bits + 1);
            float middle = (float)(low + (high - low) / 2);
            uint32_t even = bits % 2 == 0 ? bits : bits + 1;
            assert_int_equal(format->narrow(middle), even);
            assert_int_equal(format->narrow(-middle), even | format->sign);
            assert_int_equal(format->narrow(nextafterf(middle, INFINITY)), bits + 1);
            assert_int_equal(format->narrow(nextafterf(middle, 0)), bits);
        }
    }
}

static void ends_are_kept(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        const format_t *format = &formats[i];
        assert_int_equal(format->narrow(INFINITY), format->of_infinity);
        assert_int_equal(format->narrow(-INFINITY), format->of_infinity | format->sign);
        assert_int_equal(format->narrow(NAN), format->nan);
        assert_true(isnan(format->widen(format->nan)));
        assert_int_equal(format->narrow(0.0f), 0);
        assert_int_equal(format->narrow(-0.0f), format->sign);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_comes_back),
        cmocka_unit_test(rounding_goes_to_the_nearer),
        cmocka_unit_test(ends_are_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
