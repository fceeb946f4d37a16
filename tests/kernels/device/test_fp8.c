/* Products of e4m3 through a GPU's table against sums in C of the same rounded numbers: with scales
 * that the library multiplies with (compute capability 9.0), with our own pass behind it (10.0),
 * and by the plain twin; and who has none. On a GPU: as its chip is. */
#include "kernels/device/bench.h"

#include "kernels/cpu/dequantise.h"
#include "kernels/simt/numbers.h"

#include <dlfcn.h>
#include <stdio.h>

enum { ROWS = 160, COLUMNS = 96, IN_ROWS = 384, TILE_ROWS = 128 };

static bool on_stand_in(void)
{
    return strcmp(bench_device(), "simt") == 0;
}

/* Which chip the stand-in says it is, and which products it takes. */
static void choose(const char *chip, const char *products)
{
    assert_int_equal(setenv("KVIST_SIMT_CHIP", chip, 1), 0);
    assert_int_equal(setenv("KVIST_PRODUCTS", products, 1), 0);
}

static int forget_choice(void **state)
{
    (void)state;
    unsetenv("KVIST_SIMT_CHIP");
    unsetenv("KVIST_PRODUCTS");
    return 0;
}

/* Rows as e4m3 says them: value x scale, in double. */
static double *rounded(const float *rows, size_t row_count)
{
    double *out = malloc(row_count * COLUMNS * sizeof *out);
    for (size_t row = 0; row < row_count; row++) {
        float largest = 1e-30f;
        for (size_t i = 0; i < COLUMNS; i++) {
            largest = fmaxf(largest, fabsf(rows[row * COLUMNS + i]));
        }
        const float factor = 448.0f / largest;
        for (size_t i = 0; i < COLUMNS; i++) {
            const uint8_t bits = kv_e4m3_of_float(rows[row * COLUMNS + i] * factor);
            out[row * COLUMNS + i] = (double)kv_e4m3_to_float(bits) * (double)(largest / 448.0f);
        }
    }
    return out;
}

typedef struct {
    bench_t bench;
    kv_matrix_t *matrix;
    float *weights, *in;           /* host */
    double *weights_as, *in_as;    /* what e4m3 makes of them */
    double *in_bf16_as;            /* and of what bf16 made of the rows before */
    void *in_device, *bf16_device; /* [IN_ROWS][COLUMNS] */
    buffer_t out;                  /* [IN_ROWS][ROWS] */
} subject_t;

static void *to_device(subject_t *subject, const void *from, size_t bytes)
{
    kv_device_t *device = subject->bench.tested;
    void *memory;
    kv_error_t error;
    assert_int_equal(device->ops->allocate(device, bytes, &memory, &error), KV_OK);
    assert_int_equal(device->ops->copy_in(device, memory, from, bytes, &error), KV_OK);
    return memory;
}

static void make_rows(subject_t *subject)
{
    subject->weights = malloc(ROWS * COLUMNS * sizeof(float));
    subject->in = malloc(IN_ROWS * COLUMNS * sizeof(float));
    for (size_t i = 0; i < ROWS * COLUMNS; i++) {
        /* Rows of very different sizes: one scale for all would lose the small ones. */
        subject->weights[i] = bench_uniform(&subject->bench) * ldexpf(1, -(int)(i / COLUMNS % 20));
    }
    for (size_t i = 0; i < IN_ROWS * COLUMNS; i++) {
        subject->in[i] = bench_uniform(&subject->bench) * ldexpf(1, (int)(i / COLUMNS % 9));
    }
    memset(subject->in + (size_t)3 * COLUMNS, 0, COLUMNS * sizeof(float));
    static uint16_t bf16[IN_ROWS * COLUMNS];
    static float wide[IN_ROWS * COLUMNS];
    for (size_t i = 0; i < IN_ROWS * COLUMNS; i++) {
        bf16[i] = cpu_bf16_from_float(subject->in[i]);
        wide[i] = cpu_float_from_bf16(bf16[i]);
    }
    subject->weights_as = rounded(subject->weights, ROWS);
    subject->in_as = rounded(subject->in, IN_ROWS);
    subject->in_bf16_as = rounded(wide, IN_ROWS);
    subject->in_device = to_device(subject, subject->in, IN_ROWS * COLUMNS * sizeof(float));
    subject->bf16_device = to_device(subject, bf16, sizeof bf16);
}

static void open_subject(subject_t *subject)
{
    bench_open(&subject->bench);
    make_rows(subject);
    subject->out = bench_buffer(&subject->bench, (size_t)IN_ROWS * ROWS, 1);
    kv_error_t error;
    /* The second part begins in the middle of a piece. */
    const kv_matrix_params_t params = {
        .parts = {{KV_WEIGHT_F32, 48, subject->weights},
            {KV_WEIGHT_F32, ROWS - 48, subject->weights + (size_t)48 * COLUMNS}},
        .part_count = 2,
        .columns = COLUMNS,
        .fp8 = true,
        .prefill = true,
        .decode = true,
    };
    kv_device_t *device = subject->bench.tested;
    if (device->ops->matrix_create(device, &params, &subject->matrix, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    assert_true(device->ops->matrix_bytes(subject->matrix) <= ROWS * (COLUMNS + 4) + 256);
}

static void close_subject(subject_t *subject)
{
    kv_device_t *device = subject->bench.tested;
    device->ops->matrix_destroy(device, subject->matrix);
    device->ops->release(device, subject->in_device, IN_ROWS * COLUMNS * sizeof(float));
    device->ops->release(device, subject->bf16_device, IN_ROWS * COLUMNS * sizeof(uint16_t));
    free(subject->weights);
    free(subject->in);
    free(subject->weights_as);
    free(subject->in_as);
    free(subject->in_bf16_as);
    bench_release(&subject->bench, &subject->out);
    bench_close(&subject->bench);
}

static void read_out(subject_t *subject, float *out)
{
    kv_error_t error;
    bench_finish(&subject->bench);
    assert_int_equal(subject->bench.tested->ops->copy_out(subject->bench.tested, out,
                         subject->out.tested, subject->out.count * sizeof *out, &error),
        KV_OK);
}

/* The rows are sums of what e4m3 made of both sides, on top of before where they accumulate. */
static void assert_products(const subject_t *subject, const double *in_as, kv_rows_t rows,
    const float *before, bool accumulate, const float *out)
{
    for (size_t row = rows.first; row < rows.first + rows.count; row++) {
        for (size_t n = 0; n < ROWS; n++) {
            double sum = 0, size = 0;
            for (size_t i = 0; i < COLUMNS; i++) {
                const double one = in_as[row * COLUMNS + i] * subject->weights_as[n * COLUMNS + i];
                sum += one;
                size += fabs(one);
            }
            const double start = accumulate ? (double)before[row * ROWS + n] : 0;
            const double is = (double)out[row * ROWS + n];
            if (!(fabs(is - start - sum) <= 1e-5 * (size + fabs(start)))) {
                fail_msg("row %zu, output %zu is %g, the sum is %g (seed %llu)", row, n, is,
                    start + sum, (unsigned long long)kv_test_seed());
            }
        }
    }
}

static void check_products(subject_t *subject)
{
    static const kv_rows_t WHERE[] = {{0, 1}, {5, 60}, {3, 1}, {100, 130}, {0, IN_ROWS}};
    static float before[IN_ROWS * ROWS], out[IN_ROWS * ROWS];
    kv_device_t *device = subject->bench.tested;
    for (size_t i = 0; i < sizeof WHERE / sizeof *WHERE; i++) {
        const bool accumulate = i % 2 == 1;
        read_out(subject, before);
        device->ops->product_rows(
            device, subject->matrix, subject->in_device, WHERE[i], accumulate, subject->out.tested);
        read_out(subject, out);
        assert_products(subject, subject->in_as, WHERE[i], before, accumulate, out);
        device->ops->product_tiles(device, subject->matrix, subject->bf16_device, WHERE[i],
            !accumulate, subject->out.tested);
        read_out(subject, before);
        device->ops->product_tiles(device, subject->matrix, subject->bf16_device, WHERE[i],
            accumulate, subject->out.tested);
        read_out(subject, out);
        assert_products(subject, subject->in_bf16_as, WHERE[i], before, accumulate, out);
    }
}

/* A row's bits are the same with other rows and without, in every tile of a batch. */
static void check_rows_alone(subject_t *subject)
{
    static float together[IN_ROWS * ROWS], alone[IN_ROWS * ROWS];
    kv_device_t *device = subject->bench.tested;
    const kv_device_ops_t *ops = device->ops;
    ops->product_tiles(device, subject->matrix, subject->bf16_device, (kv_rows_t){0, IN_ROWS},
        false, subject->out.tested);
    read_out(subject, together);
    for (uint32_t row = 0; row < IN_ROWS; row += TILE_ROWS - 1) {
        ops->product_tiles(device, subject->matrix, subject->bf16_device, (kv_rows_t){row, 1},
            false, subject->out.tested);
        read_out(subject, alone);
        assert_memory_equal(alone + (size_t)row * ROWS, together + (size_t)row * ROWS, ROWS * 4);
    }
    ops->product_rows(device, subject->matrix, subject->in_device, (kv_rows_t){0, IN_ROWS}, false,
        subject->out.tested);
    read_out(subject, together);
    for (uint32_t row = 0; row < IN_ROWS; row += 37) {
        ops->product_rows(device, subject->matrix, subject->in_device, (kv_rows_t){row, 1}, false,
            subject->out.tested);
    }
    read_out(subject, alone);
    assert_memory_equal(alone, together, sizeof alone);
}

/* The arithmetic in effect is part of what KV is known by. */
static void check_names(const subject_t *subject, const char *word)
{
    kv_device_t *device = subject->bench.tested;
    kv_arithmetic_t bf16, fp8;
    kv_error_t error;
    assert_int_equal(device->ops->describe(device, false, false, &bf16, &error), KV_OK);
    assert_int_equal(device->ops->describe(device, false, true, &fp8, &error), KV_OK);
    assert_string_not_equal(bf16.prefill, fp8.prefill);
    assert_string_not_equal(bf16.decode, fp8.decode);
    assert_non_null(strstr(fp8.prefill, "/fp8/"));
    assert_non_null(strstr(fp8.decode, "/fp8/"));
    assert_int_equal(fp8.operand, KV_ELEMENT_BF16);
    if (word != NULL && strstr(fp8.prefill, word) == NULL) {
        fail_msg("%s is not in %s", word, fp8.prefill);
    }
    if (word != NULL && word[0] != 'o') {
        assert_null(strstr(fp8.prefill, "o/fp8"));
    }
}

static void products_are_those_of_the_rounded_rows(void **state)
{
    (void)state;
    static const struct {
        const char *chip, *products, *word;
    } ways[] = {{"90", "lt", "o/fp8/sm90"}, {"100", "lt", "/fp8/sm100"}, {"90", "plain", "plain"}};
    for (size_t i = 0; i < (on_stand_in() ? sizeof ways / sizeof *ways : 1); i++) {
        subject_t subject = {0};
        if (on_stand_in()) {
            choose(ways[i].chip, ways[i].products);
        }
        open_subject(&subject);
        check_names(&subject, on_stand_in() ? ways[i].word : NULL);
        check_products(&subject);
        check_rows_alone(&subject);
        close_subject(&subject);
    }
}

/* The next calls of cudaMalloc fail for want of memory, or none does. */
static void fail_allocations(bool fail)
{
    char path[512];
    snprintf(path, sizeof path, "%s/libkvist-simt.so", getenv("KVIST_PLUGINS"));
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(library);
    bool (*fail_call)(const char *name, uint64_t nth, int error);
    void (*fail_none)(void);
    *(void **)&fail_call = dlsym(library, "kv_simt_fail");
    *(void **)&fail_none = dlsym(library, "kv_simt_fail_none");
    assert_true(fail_call != NULL && fail_none != NULL);
    fail_none();
    for (uint64_t nth = 1; fail && nth <= 2; nth++) {
        assert_true(fail_call("cudaMalloc", nth, 2));
    }
    dlclose(library);
}

/* The scratch that grew for e4m3 and could not is also what products in bf16 go through. */
static void bf16_goes_on_after_no_room_for_e4m3(void **state)
{
    (void)state;
    if (!on_stand_in()) {
        skip();
    }
    static float before[IN_ROWS * ROWS], after[IN_ROWS * ROWS];
    choose("90", "lt");
    subject_t subject = {0};
    open_subject(&subject);
    kv_device_t *device = subject.bench.tested;
    const kv_matrix_params_t params = {
        .parts = {{KV_WEIGHT_F32, ROWS, subject.weights}},
        .part_count = 1,
        .columns = COLUMNS,
        .decode = true,
    };
    const kv_rows_t rows = {0, 5};
    kv_matrix_t *bf16 = NULL;
    kv_error_t error;
    assert_int_equal(device->ops->matrix_create(device, &params, &bf16, &error), KV_OK);
    device->ops->product_rows(device, bf16, subject.in_device, rows, false, subject.out.tested);
    read_out(&subject, before);
    fail_allocations(true);
    device->ops->product_tiles(device, subject.matrix, subject.bf16_device,
        (kv_rows_t){TILE_ROWS, IN_ROWS - TILE_ROWS}, false, subject.out.tested);
    assert_int_not_equal(device->ops->finish(device, &error), KV_OK);
    fail_allocations(false);
    device->ops->product_rows(device, bf16, subject.in_device, rows, false, subject.out.tested);
    read_out(&subject, after);
    assert_memory_equal(after, before, sizeof after);
    device->ops->matrix_destroy(device, bf16);
    close_subject(&subject);
}

static void assert_refused(kv_device_t *device, const char *word)
{
    static float weights[32 * 32];
    const kv_matrix_params_t params = {
        .parts = {{KV_WEIGHT_F32, 32, weights}},
        .part_count = 1,
        .columns = 32,
        .fp8 = true,
        .prefill = true,
    };
    kv_arithmetic_t arithmetic;
    kv_matrix_t *matrix = NULL;
    kv_error_t error;
    assert_int_equal(device->ops->describe(device, false, true, &arithmetic, &error), KV_INVALID);
    assert_non_null(strstr(error.text, word));
    assert_non_null(strstr(error.text, "model.fp8"));
    assert_int_equal(device->ops->matrix_create(device, &params, &matrix, &error), KV_INVALID);
    assert_non_null(strstr(error.text, word));
    assert_null(matrix);
}

static void who_has_none_says_so(void **state)
{
    (void)state;
    bench_t bench;
    if (on_stand_in()) {
        choose("86", "lt");
    }
    bench_open(&bench);
    assert_refused(bench.cpu, "cpu");
    if (on_stand_in()) {
        assert_refused(bench.tested, "8.6");
    }
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(products_are_those_of_the_rounded_rows, forget_choice),
        cmocka_unit_test_teardown(bf16_goes_on_after_no_room_for_e4m3, forget_choice),
        cmocka_unit_test_teardown(who_has_none_says_so, forget_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
