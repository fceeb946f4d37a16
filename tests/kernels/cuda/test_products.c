/* Products over tiles, the plain kernel and cuBLASLt behind one table, against sums in double; rows
 * on their way into a tile and out of it. */
#include "kernels/cuda/products.h"
#include "on_device.h"

#include "base/memory.h"
#include "kernels/cpu/dequantise.h"
#include "kernels/simt/numbers.h"
#include "testing/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHIP = 90 };

static uint64_t random_state;

static float uniform(void)
{
    return (float)(kv_test_random(&random_state) >> 40) / 8388608.0f - 1.0f;
}

static size_t element_bytes(kv_element_t element)
{
    return element == KV_ELEMENT_E4M3 ? 1 : element == KV_ELEMENT_BF16 ? 2 : 4;
}

static float float_at(const void *from, size_t at, kv_element_t element)
{
    switch (element) {
    case KV_ELEMENT_F32:
        break;
    case KV_ELEMENT_BF16:
        return cpu_float_from_bf16(((const uint16_t *)from)[at]);
    case KV_ELEMENT_E4M3:
        return kv_e4m3_to_float(((const uint8_t *)from)[at]);
    }
    return ((const float *)from)[at];
}

/* Numbers of the element's type, to be freed. */
static void *random_elements(size_t count, kv_element_t element)
{
    char *elements = kv_allocate(count * element_bytes(element));
    for (size_t i = 0; i < count; i++) {
        const float value = uniform();
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        const uint16_t high = (uint16_t)(bits >> 16);
        if (element == KV_ELEMENT_BF16) {
            memcpy(elements + 2 * i, &high, sizeof high);
        } else if (element == KV_ELEMENT_E4M3) {
            elements[i] = (char)kv_e4m3_of_float(value);
        } else {
            memcpy(elements + 4 * i, &value, sizeof value);
        }
    }
    return elements;
}

/* ---- products ---- */

typedef struct {
    cuda_product_t product; /* of host memory */
    size_t in_rows;
    float *before; /* what out holds before */
    int chip;
} problem_t;

static problem_t make_problem(
    uint32_t rows, uint32_t columns, uint32_t tile_count, kv_element_t element, bool accumulate)
{
    enum { TILE_ROWS = 64, TILES_MAX = 3 };
    problem_t problem = {.in_rows = (size_t)TILE_ROWS * tile_count, .chip = CHIP};
    problem.product = (cuda_product_t){
        .weights = random_elements((size_t)rows * columns, element),
        .in = random_elements(problem.in_rows * columns, element),
        .element = element,
        .rows = rows,
        .columns = columns,
        .tile_rows = TILE_ROWS,
        .tile_count = tile_count,
        .tiles_max = TILES_MAX,
        .accumulate = accumulate,
    };
    problem.before = random_elements(problem.in_rows * rows, KV_ELEMENT_F32);
    if (element == KV_ELEMENT_E4M3) {
        problem.product.weight_scales = random_elements(rows, KV_ELEMENT_F32);
        problem.product.in_scales = random_elements(problem.in_rows, KV_ELEMENT_F32);
    }
    return problem;
}

static void free_problem(problem_t *problem)
{
    free((void *)(uintptr_t)problem->product.weights);
    free((void *)(uintptr_t)problem->product.in);
    free((void *)(uintptr_t)problem->product.weight_scales);
    free((void *)(uintptr_t)problem->product.in_scales);
    free(problem->before);
}

/* Out, to be freed. */
static float *run(const cuda_products_ops_t *ops, const problem_t *problem)
{
    cuda_product_t product = problem->product;
    const size_t bytes = element_bytes(product.element),
                 out_bytes = problem->in_rows * product.rows * sizeof(float);
    float *is = kv_allocate(out_bytes);
    void *weights = on_device(product.weights, (size_t)product.rows * product.columns * bytes, 0),
         *in = on_device(product.in, problem->in_rows * product.columns * bytes, 0);
    float *weight_scales = NULL, *in_scales = NULL;
    if (product.element == KV_ELEMENT_E4M3) {
        weight_scales = on_device(product.weight_scales, product.rows * sizeof(float), 0);
        in_scales = on_device(product.in_scales, problem->in_rows * sizeof(float), 0);
    }
    product.weights = weights;
    product.weight_scales = weight_scales;
    product.in = in;
    product.in_scales = in_scales;
    product.out = on_device(problem->before, out_bytes, 0);
    cuda_products_t *products;
    assert_int_equal(ops->open(problem->chip, &products, NULL), KV_OK);
    assert_int_equal(ops->prepare(products, &product, NULL), KV_OK);
    assert_int_equal(ops->run(products, NULL, &product, NULL), KV_OK);
    from_device(is, product.out, out_bytes);
    ops->close(products);
    off_device(weights);
    off_device(in);
    off_device(weight_scales);
    off_device(in_scales);
    off_device(product.out);
    return is;
}

static void check_problem(const cuda_products_ops_t *ops, const problem_t *problem)
{
    const cuda_product_t *product = &problem->product;
    const double columns = product->columns;
    float *is = run(ops, problem);
    for (size_t i = 0; i < problem->in_rows * product->rows; i++) {
        const size_t in = i / product->rows * product->columns,
                     weights = i % product->rows * product->columns;
        double sum = 0;
        for (size_t k = 0; k < product->columns; k++) {
            sum += (double)float_at(product->in, in + k, product->element) *
                   (double)float_at(product->weights, weights + k, product->element);
        }
        if (product->element == KV_ELEMENT_E4M3) {
            sum *= (double)product->in_scales[i / product->rows] *
                   (double)product->weight_scales[i % product->rows];
        }
        sum += product->accumulate ? (double)problem->before[i] : 0;
        if (!(fabs((double)is[i] - sum) <= 2e-7 * sqrt(columns) * columns)) {
            fail_msg("%u x %u, %u tiles: row %zu, output %zu is %g, in double %g (seed %llu)",
                product->rows, product->columns, product->tile_count, i / product->rows,
                i % product->rows, (double)is[i], sum, (unsigned long long)kv_test_seed());
        }
    }
    free(is);
}

static void products_equal_sums_in_double(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    static const struct {
        uint32_t rows, columns, tile_count;
    } sizes[] = {{1, 32, 1}, {63, 96, 1}, {64, 32, 2}, {65, 64, 3}, {130, 288, 1}};
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        problem_t problem = make_problem(sizes[i / 2].rows, sizes[i / 2].columns,
            sizes[i / 2].tile_count, i % 2 == 0 ? KV_ELEMENT_F32 : KV_ELEMENT_BF16, i % 3 == 0);
        check_problem(&cuda_products_plain, &problem);
        check_problem(&cuda_products_lt, &problem);
        free_problem(&problem);
    }
}

/* With the library's scales (chip 9.0), with the pass behind it, and by the plain kernel. */
static void products_of_e4m3_equal_sums_in_double(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    static const struct {
        uint32_t rows, columns, tile_count;
    } sizes[] = {{16, 32, 1}, {80, 96, 2}, {48, 64, 5}};
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        problem_t problem = make_problem(sizes[i / 2].rows, sizes[i / 2].columns,
            sizes[i / 2].tile_count, KV_ELEMENT_E4M3, i % 2 == 0);
        check_problem(&cuda_products_plain, &problem);
        check_problem(&cuda_products_lt, &problem);
        problem.chip = 100;
        check_problem(&cuda_products_lt, &problem);
        free_problem(&problem);
    }
}

/* A tile by itself has the bits that it has among others. */
static void tiles_do_not_know_of_each_other(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    const cuda_products_ops_t *const all[] = {&cuda_products_plain, &cuda_products_lt};
    for (int i = 0; i < 4; i++) {
        problem_t problem =
            make_problem(70, 96, 3, i / 2 == 0 ? KV_ELEMENT_F32 : KV_ELEMENT_BF16, false);
        float *is = run(all[i % 2], &problem);
        const size_t tile_bytes = 64 * 96 * element_bytes(problem.product.element);
        problem_t alone = problem;
        alone.in_rows = 64;
        alone.product.tile_count = 1;
        alone.product.in = (const char *)problem.product.in + tile_bytes;
        float *own = run(all[i % 2], &alone);
        assert_memory_equal(own, is + 64 * 70, 64 * 70 * sizeof(float));
        free(is);
        free(own);
        free_problem(&problem);
    }
}

static void no_tiles_are_no_launch(void **state)
{
    (void)state;
    const cuda_products_ops_t *const all[] = {&cuda_products_plain, &cuda_products_lt};
    for (int i = 0; i < 2; i++) {
        cuda_products_t *products;
        const cuda_product_t none = {.rows = 64, .columns = 32, .tile_rows = 64, .tiles_max = 1};
        assert_int_equal(all[i]->open(CHIP, &products, NULL), KV_OK);
        assert_int_equal(all[i]->run(products, NULL, &none, NULL), KV_OK);
        all[i]->close(products);
    }
}

/* ---- rows in and out ---- */

static const kv_rows_t some_rows[] = {{0, 0}, {0, 1}, {3, 5}, {1, 64}, {2, 63}};
static const uint32_t widths[] = {4, 36, 1024};

enum { SOME_ROWS = sizeof some_rows / sizeof *some_rows, WIDTHS = 3, TILE_ROWS = 64 };

static void rows_go_into_a_tile(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    for (int i = 0; i < SOME_ROWS * WIDTHS; i++) {
        const kv_rows_t rows = some_rows[i % SOME_ROWS];
        const uint32_t columns = widths[i / SOME_ROWS];
        const size_t in_count = (size_t)(rows.first + rows.count) * columns,
                     to_count = (size_t)TILE_ROWS * columns;
        float *in = random_elements(in_count, KV_ELEMENT_F32);
        uint16_t *to = kv_allocate_array(to_count, sizeof *to);
        float *device_in = on_device(in, in_count * sizeof *in, 0);
        const cuda_rows_in_t rows_in = {
            device_in, on_device(NULL, to_count * sizeof *to, 0), columns, TILE_ROWS, rows};
        assert_int_equal(cuda_rows_in(NULL, &rows_in, NULL), KV_OK);
        from_device(to, rows_in.to, to_count * sizeof *to);
        for (size_t k = 0; k < to_count; k++) {
            const bool given = k < (size_t)rows.count * columns;
            const float wanted = given ? in[(size_t)rows.first * columns + k] : 0.0f;
            assert_true(fabsf(cpu_float_from_bf16(to[k]) - wanted) <= fabsf(wanted) / 256);
        }
        off_device(device_in);
        off_device(rows_in.to);
        free(in);
        free(to);
    }
}

static void rows_come_out_of_a_tile(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    for (int i = 0; i < 2 * SOME_ROWS * WIDTHS; i++) {
        const kv_rows_t rows = some_rows[i % SOME_ROWS];
        const uint32_t columns = widths[i / SOME_ROWS % WIDTHS] - 1;
        const bool accumulate = i >= SOME_ROWS * WIDTHS;
        const size_t before = (size_t)rows.first * columns, count = (size_t)rows.count * columns;
        float *from = random_elements(count, KV_ELEMENT_F32),
              *out = random_elements(before + count, KV_ELEMENT_F32),
              *is = kv_allocate_array(before + count + 1, sizeof *is);
        float *device_from = on_device(from, count * sizeof *from, 0);
        const cuda_rows_out_t rows_out = {device_from,
            on_device(out, (before + count) * sizeof *out, 0), columns, rows, accumulate};
        assert_int_equal(cuda_rows_out(NULL, &rows_out, NULL), KV_OK);
        from_device(is, rows_out.out, (before + count) * sizeof *is);
        for (size_t k = 0; k < before + count; k++) {
            const float wanted = k < before   ? out[k]
                                 : accumulate ? out[k] + from[k - before]
                                              : from[k - before];
            assert_true(is[k] == wanted);
        }
        off_device(device_from);
        off_device(rows_out.out);
        free(from);
        free(out);
        free(is);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_equal_sums_in_double),
        cmocka_unit_test(products_of_e4m3_equal_sums_in_double),
        cmocka_unit_test(tiles_do_not_know_of_each_other),
        cmocka_unit_test(no_tiles_are_no_launch),
        cmocka_unit_test(rows_go_into_a_tile),
        cmocka_unit_test(rows_come_out_of_a_tile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
