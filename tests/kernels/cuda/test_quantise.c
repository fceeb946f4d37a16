/* Rows to e4m3 and the scaling of sums against plain C: equal to the bit. */
#include "kernels/cuda/quantise.h"
#include "on_device.h"

#include "base/memory.h"
#include "kernels/cpu/dequantise.h"
#include "kernels/simt/numbers.h"
#include "testing/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state;

static float uniform(void)
{
    return (float)(kv_test_random(&random_state) >> 40) / 8388608.0f - 1.0f;
}

static void wanted_row(const float *from, uint32_t columns, uint8_t *to, float *scale)
{
    float largest = 1e-30f;
    for (uint32_t i = 0; i < columns; i++) {
        largest = fmaxf(largest, fabsf(from[i]));
    }
    const float factor = 448.0f / largest;
    for (uint32_t i = 0; i < columns; i++) {
        to[i] = kv_e4m3_of_float(from[i] * factor);
    }
    *scale = largest / 448.0f;
}

/* Rows of every size, of zeros, of next to nothing, and with the largest first and last. */
static void fill_rows(float *rows, size_t row_count, uint32_t columns)
{
    for (size_t row = 0; row < row_count; row++) {
        float *one = rows + row * columns;
        const float size = ldexpf(1, (int)(kv_test_random(&random_state) % 80) - 40);
        for (uint32_t i = 0; i < columns; i++) {
            one[i] = row % 5 == 3 ? 0.0f : row % 5 == 4 ? 1e-36f * uniform() : size * uniform();
        }
        one[row % 2 == 0 ? 0 : columns - 1] *= 100.0f;
    }
}

static void check_quantise(uint32_t columns, kv_rows_t rows, uint32_t to_rows, bool bf16)
{
    const size_t all = rows.first + rows.count, count = all * columns,
                 out_bytes = (size_t)to_rows * columns;
    float *from = kv_allocate_array(count + 1, sizeof *from);
    uint16_t *half = kv_allocate_array(count + 1, sizeof *half);
    fill_rows(from, all, columns);
    for (size_t i = 0; i < count && bf16; i++) {
        half[i] = cpu_bf16_from_float(from[i]);
        from[i] = cpu_float_from_bf16(half[i]);
    }
    cuda_quantise_t quantise = {
        .from = on_device(bf16 ? (void *)half : from, count * (bf16 ? 2 : 4), 0),
        .from_element = bf16 ? KV_ELEMENT_BF16 : KV_ELEMENT_F32,
        .columns = columns,
        .rows = rows,
        .to_rows = to_rows,
        .to = on_device(NULL, out_bytes, 0),
        .scales = on_device(NULL, to_rows * sizeof(float), 0),
    };
    assert_int_equal(cuda_quantise(NULL, &quantise, NULL), KV_OK);
    uint8_t *is = kv_allocate(out_bytes + 1), *wanted = kv_allocate(out_bytes + 1);
    float *scales = kv_allocate_array(to_rows + 1, sizeof *scales), scale;
    from_device(is, quantise.to, out_bytes);
    from_device(scales, quantise.scales, to_rows * sizeof *scales);
    for (uint32_t row = 0; row < to_rows; row++) {
        memset(wanted + (size_t)row * columns, 0, columns);
        scale = 1e-30f / 448.0f;
        if (row < rows.count) {
            wanted_row(from + (size_t)(rows.first + row) * columns, columns,
                wanted + (size_t)row * columns, &scale);
        }
        assert_memory_equal(&scales[row], &scale, sizeof scale);
    }
    assert_memory_equal(is, wanted, out_bytes);
    off_device((void *)(uintptr_t)quantise.from);
    off_device(quantise.to);
    off_device(quantise.scales);
    free(from);
    free(half);
    free(is);
    free(wanted);
    free(scales);
}

static void rows_become_e4m3(void **state)
{
    (void)state;
    static const uint32_t COLUMNS[] = {32, 96, 576, 2048, 2080};
    random_state = kv_test_seed();
    for (size_t i = 0; i < sizeof COLUMNS / sizeof *COLUMNS; i++) {
        for (int bf16 = 0; bf16 < 2; bf16++) {
            check_quantise(COLUMNS[i], (kv_rows_t){0, 0}, 0, bf16);
            check_quantise(COLUMNS[i], (kv_rows_t){0, 1}, 1, bf16);
            check_quantise(COLUMNS[i], (kv_rows_t){2, 5}, 5, bf16);
            check_quantise(COLUMNS[i], (kv_rows_t){1, 3}, 8, bf16);
            check_quantise(COLUMNS[i], (kv_rows_t){0, 0}, 2, bf16);
        }
    }
}

static void a_row_with_no_number_has_none(void **state)
{
    (void)state;
    enum { COLUMNS = 64 };
    float from[COLUMNS] = {1, NAN, 2, INFINITY};
    cuda_quantise_t quantise = {
        .from = on_device(from, sizeof from, 0),
        .columns = COLUMNS,
        .rows = {0, 1},
        .to_rows = 1,
        .to = on_device(NULL, COLUMNS, 0),
        .scales = on_device(NULL, sizeof(float), 0),
    };
    uint8_t is[COLUMNS];
    float scale;
    assert_int_equal(cuda_quantise(NULL, &quantise, NULL), KV_OK);
    from_device(is, quantise.to, sizeof is);
    from_device(&scale, quantise.scales, sizeof scale);
    assert_true(isinf(scale));
    assert_true(isnan(kv_e4m3_to_float(is[1])));
    assert_true(isnan(kv_e4m3_to_float(is[0]) * scale)); /* 0 x infinity */
    off_device((void *)(uintptr_t)quantise.from);
    off_device(quantise.to);
    off_device(quantise.scales);
}

static void check_rescale(uint32_t rows, uint32_t columns, bool accumulate)
{
    const size_t count = (size_t)rows * columns;
    float *from = kv_allocate_array(count + 1, sizeof *from),
          *before = kv_allocate_array(count + 1, sizeof *before),
          *is = kv_allocate_array(count + 1, sizeof *is),
          *row_scales = kv_allocate_array(rows + 1, sizeof *row_scales),
          *column_scales = kv_allocate_array(columns, sizeof *column_scales);
    for (size_t i = 0; i < count; i++) {
        from[i] = uniform() * 1000;
        before[i] = uniform();
    }
    for (uint32_t i = 0; i < rows; i++) {
        row_scales[i] = uniform();
    }
    for (uint32_t i = 0; i < columns; i++) {
        column_scales[i] = uniform();
    }
    cuda_rescale_t rescale = {
        .from = on_device(from, count * sizeof *from, 0),
        .out = on_device(accumulate ? before : NULL, count * sizeof *from, 0),
        .rows = rows,
        .columns = columns,
        .row_scales = on_device(row_scales, rows * sizeof *row_scales, 0),
        .column_scales = on_device(column_scales, columns * sizeof *column_scales, 0),
        .accumulate = accumulate,
    };
    assert_int_equal(cuda_rescale(NULL, &rescale, NULL), KV_OK);
    from_device(is, rescale.out, count * sizeof *is);
    for (size_t i = 0; i < count; i++) {
        float wanted = from[i] * row_scales[i / columns];
        wanted *= column_scales[i % columns];
        wanted = accumulate ? before[i] + wanted : wanted;
        assert_memory_equal(&is[i], &wanted, sizeof wanted);
    }
    off_device((void *)(uintptr_t)rescale.from);
    off_device(rescale.out);
    off_device((void *)(uintptr_t)rescale.row_scales);
    off_device((void *)(uintptr_t)rescale.column_scales);
    free(from);
    free(before);
    free(is);
    free(row_scales);
    free(column_scales);
}

static void sums_are_scaled(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        check_rescale(0, 32, accumulate);
        check_rescale(1, 32, accumulate);
        check_rescale(7, 160, accumulate);
        check_rescale(3, 2080, accumulate);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_become_e4m3),
        cmocka_unit_test(a_row_with_no_number_has_none),
        cmocka_unit_test(sums_are_scaled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
