/* The kernels over rows and over weights against their C references, at the sizes where blocks
 * begin and end. */
#include "kernels/cuda/product_rows.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/weights.h"
#include "on_device.h"

#include "base/memory.h"
#include "kernels/cpu/dequantise.h"
#include "testing/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FILL = 0x5a }; /* what on_device writes where it has nothing to copy */

static uint64_t random_state;

static float uniform(void)
{
    return (float)(kv_test_random(&random_state) >> 40) / 8388608.0f - 1.0f;
}

static float *random_floats(size_t count, float width)
{
    float *floats = kv_allocate_array(count, sizeof *floats);
    for (size_t i = 0; i < count; i++) {
        floats[i] = uniform() * width;
    }
    return floats;
}

static float element(const void *from, size_t at, kv_element_t type)
{
    return type == KV_ELEMENT_BF16 ? cpu_float_from_bf16(((const uint16_t *)from)[at])
                                   : ((const float *)from)[at];
}

static size_t element_bytes(kv_element_t type)
{
    return type == KV_ELEMENT_BF16 ? 2 : 4;
}

/* is is near wanted in the rows and untouched (FILL) before them. */
static void assert_rows(const char *what, const void *is, const void *wanted, uint32_t columns,
    kv_rows_t rows, kv_element_t type)
{
    const float tolerance = type == KV_ELEMENT_BF16 ? 0.01f : 1e-5f;
    for (size_t i = 0; i < rows.first * columns * element_bytes(type); i++) {
        assert_int_equal(((const uint8_t *)is)[i], FILL);
    }
    for (size_t i = (size_t)rows.first * columns; i < (size_t)(rows.first + rows.count) * columns;
         i++) {
        const float a = element(is, i, type), b = element(wanted, i, type);
        if (!(fabsf(a - b) <= tolerance * (1.0f + fabsf(b)))) {
            fail_msg("%s of %u columns: row %zu, column %zu is %g, plain C says %g (seed %llu)",
                what, columns, i / columns, i % columns, (double)a, (double)b,
                (unsigned long long)kv_test_seed());
        }
    }
}

static void check_norm(uint32_t columns, kv_rows_t rows, kv_element_t type)
{
    const size_t all = rows.first + rows.count, out_bytes = all * columns * element_bytes(type);
    float *x = random_floats(all * columns, 20.0f), *weight = random_floats(columns, 3.0f);
    char *is = kv_allocate(out_bytes), *wanted = kv_allocate(out_bytes);
    cuda_norm_t norm = {
        .x = on_device(x, all * columns * sizeof *x, 0),
        .weight = on_device(weight, columns * sizeof *weight, 0),
        .epsilon = 1e-5f,
        .columns = columns,
        .rows = rows,
        .out = on_device(NULL, out_bytes, 0),
        .out_element = type,
    };
    assert_int_equal(cuda_norm(NULL, &norm, NULL), KV_OK);
    from_device(is, norm.out, out_bytes);
    off_device(norm.out);
    off_device((void *)(uintptr_t)norm.x);
    off_device((void *)(uintptr_t)norm.weight);
    for (size_t row = rows.first; row < all; row++) {
        cpu_kernels_plain.norm(x + row * columns, weight, norm.epsilon, columns,
            wanted + row * columns * element_bytes(type), type);
    }
    assert_rows("norm", is, wanted, columns, rows, type);
    free(x);
    free(weight);
    free(is);
    free(wanted);
}

static void check_gate(uint32_t columns, kv_rows_t rows, kv_element_t type)
{
    const size_t all = rows.first + rows.count, out_bytes = all * columns * element_bytes(type);
    float *in = random_floats(2 * all * columns, 20.0f);
    in[2 * (size_t)rows.first * columns] = -200.0f;
    in[2 * (size_t)rows.first * columns + 1] = 200.0f;
    char *is = kv_allocate(out_bytes), *wanted = kv_allocate(out_bytes);
    cuda_gate_t gate = {
        .in = on_device(in, 2 * all * columns * sizeof *in, 0),
        .columns = columns,
        .rows = rows,
        .out = on_device(NULL, out_bytes, 0),
        .out_element = type,
    };
    assert_int_equal(cuda_gate(NULL, &gate, NULL), KV_OK);
    from_device(is, gate.out, out_bytes);
    off_device(gate.out);
    off_device((void *)(uintptr_t)gate.in);
    for (size_t row = rows.first; row < all; row++) {
        const float *from = in + row * 2 * columns;
        cpu_kernels_plain.gate(
            from, from + columns, columns, wanted + row * columns * element_bytes(type), type);
    }
    assert_rows("gate", is, wanted, columns, rows, type);
    free(in);
    free(is);
    free(wanted);
}

static void norm_and_gate_equal_plain_c(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    static const uint32_t widths[] = {32, 64, 96, 576, 1024, 1056, 1536};
    static const kv_rows_t rows[] = {{0, 1}, {3, 1}, {1, 5}};
    for (size_t at = 0; at < sizeof widths / sizeof *widths; at++) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            for (int type = KV_ELEMENT_F32; type <= KV_ELEMENT_BF16; type++) {
                check_norm(widths[at], rows[i], (kv_element_t)type);
                check_gate(widths[at], rows[i], (kv_element_t)type);
            }
        }
    }
}

static void no_rows_are_no_launch(void **state)
{
    (void)state;
    assert_int_equal(cuda_norm(NULL, &(cuda_norm_t){.columns = 32}, NULL), KV_OK);
    assert_int_equal(cuda_gate(NULL, &(cuda_gate_t){.columns = 32}, NULL), KV_OK);
    assert_int_equal(cuda_embed(NULL, &(cuda_embed_t){.columns = 32}, NULL), KV_OK);
    assert_int_equal(cuda_dequantise(NULL, &(cuda_dequantise_t){0}, NULL), KV_OK);
}

static const kv_weight_type_t types[] = {KV_WEIGHT_F32, KV_WEIGHT_F16, KV_WEIGHT_BF16,
    KV_WEIGHT_Q4_0, KV_WEIGHT_Q4_1, KV_WEIGHT_Q8_0, KV_WEIGHT_Q4_K, KV_WEIGHT_Q6_K};

enum { TYPES = sizeof types / sizeof *types };

static size_t weight_bytes(kv_weight_type_t type, size_t count)
{
    return count / kv_weight_block_elements(type) * kv_weight_block_bytes(type);
}

/* Random blocks whose scales are finite: bytes of which no half and no float is not a number. */
static uint8_t *random_blocks(kv_weight_type_t type, size_t count)
{
    const size_t bytes = weight_bytes(type, count);
    uint8_t *blocks = kv_allocate(bytes);
    for (size_t i = 0; i < bytes; i++) {
        blocks[i] = (uint8_t)(kv_test_random(&random_state) & 0xbf);
    }
    return blocks;
}

static void check_dequantise(kv_weight_type_t type, size_t count)
{
    uint8_t *blocks = random_blocks(type, count);
    float *wanted = kv_allocate_array(count, sizeof *wanted);
    cpu_dequantise(type, blocks, count, wanted);
    for (int to = KV_ELEMENT_F32; to <= KV_ELEMENT_BF16; to++) {
        const size_t out_bytes = count * element_bytes((kv_element_t)to);
        char *is = kv_allocate(out_bytes);
        cuda_dequantise_t dequantise = {
            .type = type,
            .from = on_device(blocks, weight_bytes(type, count), 0),
            .count = count,
            .to = on_device(NULL, out_bytes, 0),
            .to_element = (kv_element_t)to,
        };
        assert_int_equal(cuda_dequantise(NULL, &dequantise, NULL), KV_OK);
        from_device(is, dequantise.to, out_bytes);
        off_device(dequantise.to);
        off_device((void *)(uintptr_t)dequantise.from);
        for (size_t i = 0; i < count; i++) {
            if (to == KV_ELEMENT_BF16) {
                assert_int_equal(((uint16_t *)is)[i], cpu_bf16_from_float(wanted[i]));
            } else {
                assert_int_equal(
                    cpu_bits_from_float(((float *)is)[i]), cpu_bits_from_float(wanted[i]));
            }
        }
        free(is);
    }
    free(blocks);
    free(wanted);
}

static void weights_equal_the_formats_to_the_bit(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    for (int at = 0; at < TYPES; at++) {
        static const size_t counts[] = {256, 2048, 2304, 8192};
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            check_dequantise(types[at], counts[i]);
        }
        if (kv_weight_block_elements(types[at]) <= 32) {
            check_dequantise(types[at], 32);
        }
    }
}

static void embedding_takes_the_tokens_rows(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    enum { VOCABULARY = 7, COLUMNS = 2304, ROWS = 3 };
    static const uint32_t tokens[ROWS] = {6, 0, 6};
    static float is[ROWS + 1][COLUMNS];
    for (int at = 0; at < TYPES; at++) {
        uint8_t *blocks = random_blocks(types[at], (size_t)VOCABULARY * COLUMNS);
        float *wanted = kv_allocate_array((size_t)VOCABULARY * COLUMNS, sizeof *wanted);
        cpu_dequantise(types[at], blocks, (size_t)VOCABULARY * COLUMNS, wanted);
        cuda_embed_t embed = {
            .type = types[at],
            .matrix = on_device(blocks, weight_bytes(types[at], (size_t)VOCABULARY * COLUMNS), 0),
            .columns = COLUMNS,
            .tokens = on_device(tokens, sizeof tokens, 0),
            .rows = {1, ROWS},
            .out = on_device(NULL, sizeof is, 0),
        };
        assert_int_equal(cuda_embed(NULL, &embed, NULL), KV_OK);
        from_device(is, embed.out, sizeof is);
        off_device(embed.out);
        off_device((void *)(uintptr_t)embed.matrix);
        off_device((void *)(uintptr_t)embed.tokens);
        for (int row = 0; row < ROWS; row++) {
            assert_memory_equal(is[1 + row], wanted + (size_t)tokens[row] * COLUMNS, sizeof is[0]);
        }
        free(blocks);
        free(wanted);
    }
}

/* Runs a product over rows of one part of a matrix of which others lie on both sides. */
static float *multiply(const cuda_product_rows_t *host, size_t weights_bytes, size_t out_floats)
{
    const size_t in_bytes =
        (size_t)(host->rows.first + host->rows.count) * host->columns * sizeof(float);
    float *is = random_floats(out_floats, 0);
    cuda_product_rows_t product = *host;
    for (size_t i = 0; i < out_floats; i++) {
        is[i] = 3.0f;
    }
    product.weights = on_device(host->weights, weights_bytes, 0);
    product.in = on_device(host->in, in_bytes, 0);
    product.out = on_device(is, out_floats * sizeof(float), 0);
    assert_int_equal(cuda_product_rows(NULL, &product, NULL), KV_OK);
    from_device(is, product.out, out_floats * sizeof(float));
    off_device(product.out);
    off_device((void *)(uintptr_t)product.weights);
    off_device((void *)(uintptr_t)product.in);
    return is;
}

/* One output: the sum in double, and near it within 1e-5 of the sum of the parts' sizes. */
static void assert_output(const float *in, const float *weights, uint32_t columns, float before,
    float is, const char *what)
{
    double sum = (double)before, size = 1;
    for (uint32_t i = 0; i < columns; i++) {
        sum += (double)in[i] * (double)weights[i];
        size += fabs((double)in[i] * (double)weights[i]);
    }
    if (!(fabs(sum - (double)is) <= 1e-5 * size)) {
        fail_msg("product over rows, %s: %g, in double %g (seed %llu)", what, (double)is, sum,
            (unsigned long long)kv_test_seed());
    }
}

static void check_product(
    kv_weight_type_t type, uint32_t columns, uint32_t weight_rows, kv_rows_t rows, bool accumulate)
{
    enum { BEFORE = 5, AFTER = 2 };
    const size_t count = (size_t)weight_rows * columns, stride = BEFORE + weight_rows + AFTER;
    uint8_t *blocks = random_blocks(type, count);
    float *weights = kv_allocate_array(count, sizeof *weights),
          *in = random_floats((size_t)(rows.first + rows.count) * columns, 1.0f);
    cpu_dequantise(type, blocks, count, weights);
    cuda_product_rows_t product = {
        type, blocks, weight_rows, columns, in, rows, NULL, (uint32_t)stride, BEFORE, accumulate};
    const size_t floats = (rows.first + rows.count) * stride;
    float *is = multiply(&product, weight_bytes(type, count), floats);
    for (size_t i = 0; i < floats; i++) {
        const size_t row = i / stride, at = i % stride;
        if (row < rows.first || at < BEFORE || at >= BEFORE + weight_rows) {
            assert_true(is[i] == 3.0f);
            continue;
        }
        assert_output(in + row * columns, weights + (at - BEFORE) * columns, columns,
            accumulate ? 3.0f : 0.0f, is[i], accumulate ? "added" : "written");
    }
    /* The last row by itself: the same bits. */
    product.rows = (kv_rows_t){rows.first + rows.count - 1, 1};
    float *alone = multiply(&product, weight_bytes(type, count), floats);
    assert_memory_equal(alone + product.rows.first * stride, is + product.rows.first * stride,
        stride * sizeof(float));
    free(blocks);
    free(weights);
    free(in);
    free(is);
    free(alone);
}

static void products_over_rows_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    static const uint32_t outputs[] = {1, 4, 7};
    static const kv_rows_t rows[] = {{0, 1}, {2, 3}, {1, 4}, {0, 9}};
    for (int at = 0; at < TYPES; at++) {
        for (int i = 0; i < 12; i++) {
            const uint32_t step = kv_weight_block_elements(types[at]) > 32 ? 256 : 32;
            const uint32_t columns = i % 3 == 0 ? step : i % 3 == 1 ? 1536 : 1024 + step;
            check_product(types[at], columns, outputs[i % 3], rows[i / 3], i % 2 == 0);
        }
    }
    assert_int_equal(cuda_product_rows(NULL, &(cuda_product_rows_t){.columns = 32}, NULL), KV_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norm_and_gate_equal_plain_c),
        cmocka_unit_test(no_rows_are_no_launch),
        cmocka_unit_test(weights_equal_the_formats_to_the_bit),
        cmocka_unit_test(embedding_takes_the_tokens_rows),
        cmocka_unit_test(products_over_rows_do_not_depend_on_the_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
