/* cuBLASLt's stand-in against sums in double, for every order and type that it takes; a row's
 * numbers do not depend on how many there are. */
#include "kernels/simt/control.h"
#include "kernels/simt/cublaslt.h"
#include "kernels/simt/finding.h"
#include "kernels/simt/numbers.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* One product: d (rows x columns) = op(a) x op(b) + beta x d, in a batch of tiles. */
typedef struct {
    cudaDataType_t type, out_type;
    bool a_turned, b_turned;
    uint32_t rows, columns, depth;
    int32_t batch_count;
    float beta;
} case_t;

static float value_at(uint32_t seed, uint32_t i)
{
    uint32_t x = (seed * 2654435761u + i) * 2246822519u;
    return (float)((int32_t)(x >> 24) - 128) / 64;
}

static size_t bytes_of(cudaDataType_t type)
{
    return type == CUDA_R_32F ? 4 : type == CUDA_R_8F_E4M3 ? 1 : 2;
}

/* Writes the value in the type and gives back what was written. */
static float put(void *data, cudaDataType_t type, size_t at, float value)
{
    if (type == CUDA_R_32F) {
        ((float *)data)[at] = value;
        return value;
    }
    if (type == CUDA_R_8F_E4M3) {
        ((uint8_t *)data)[at] = kv_e4m3_of_float(value);
        return kv_e4m3_to_float(((uint8_t *)data)[at]);
    }
    uint16_t bits = type == CUDA_R_16BF ? kv_bf16_of_float(value) : kv_half_of_float(value);
    ((uint16_t *)data)[at] = bits;
    return type == CUDA_R_16BF ? kv_bf16_to_float(bits) : kv_half_to_float(bits);
}

static float get(const void *data, cudaDataType_t type, size_t at)
{
    if (type == CUDA_R_32F) {
        return ((const float *)data)[at];
    }
    uint16_t bits = ((const uint16_t *)data)[at];
    return type == CUDA_R_16BF ? kv_bf16_to_float(bits) : kv_half_to_float(bits);
}

/* A matrix on both sides; device memory is read through copies, as a device's would be. */
typedef struct {
    cublasLtMatrixLayout_t layout;
    unsigned char *host;
    void *device;
    uint32_t rows, columns;
    size_t bytes;
    cudaDataType_t type;
} matrix_t;

static matrix_t make_matrix(
    cudaDataType_t type, uint32_t rows, uint32_t columns, int32_t batch_count, uint32_t seed)
{
    matrix_t made = {.rows = rows, .columns = columns, .type = type};
    size_t count = (size_t)rows * columns * (size_t)batch_count;
    int64_t stride = (int64_t)rows * columns;
    made.bytes = count * bytes_of(type);
    made.host = malloc(made.bytes + 1);
    for (size_t i = 0; i < count; i++) {
        (void)put(made.host, type, i, value_at(seed, (uint32_t)i));
    }
    assert_int_equal(cudaMalloc(&made.device, made.bytes), cudaSuccess);
    assert_int_equal(
        cudaMemcpy(made.device, made.host, made.bytes, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(
        cublasLtMatrixLayoutCreate(&made.layout, type, rows, columns, rows), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatrixLayoutSetAttribute(made.layout,
                         CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch_count, sizeof batch_count),
        CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatrixLayoutSetAttribute(made.layout,
                         CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride),
        CUBLAS_STATUS_SUCCESS);
    return made;
}

static void free_matrix(matrix_t *matrix)
{
    assert_int_equal(cublasLtMatrixLayoutDestroy(matrix->layout), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaFree(matrix->device), cudaSuccess);
    free(matrix->host);
}

static float element(const matrix_t *matrix, bool turned, size_t batch, uint32_t i, uint32_t j)
{
    size_t at = batch * matrix->rows * matrix->columns;
    at += turned ? (size_t)i * matrix->rows + j : (size_t)j * matrix->rows + i;
    return matrix->type == CUDA_R_8F_E4M3 ? kv_e4m3_to_float(matrix->host[at])
                                          : get(matrix->host, matrix->type, at);
}

static cublasStatus_t multiply(const case_t *c, const matrix_t *a, const matrix_t *b, matrix_t *d)
{
    cublasLtHandle_t handle = NULL;
    cublasLtMatmulDesc_t description = NULL;
    cublasOperation_t a_operation = c->a_turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t b_operation = c->b_turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    const float one = 1;
    assert_int_equal(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_TRANSA,
                         &a_operation, sizeof a_operation),
        CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_TRANSB,
                         &b_operation, sizeof b_operation),
        CUBLAS_STATUS_SUCCESS);
    cublasStatus_t status =
        cublasLtMatmul(handle, description, &one, a->device, a->layout, b->device, b->layout,
            &c->beta, d->device, d->layout, d->device, d->layout, NULL, NULL, 0, NULL);
    /* They answer with the error of a product that has broken the device by now. */
    (void)cublasLtMatmulDescDestroy(description);
    (void)cublasLtDestroy(handle);
    return status;
}

static void check_case(const case_t *c)
{
    matrix_t a = make_matrix(c->type, c->a_turned ? c->depth : c->rows,
        c->a_turned ? c->rows : c->depth, c->batch_count, 1);
    matrix_t b = make_matrix(c->type, c->b_turned ? c->columns : c->depth,
        c->b_turned ? c->depth : c->columns, c->batch_count, 2);
    matrix_t d = make_matrix(c->out_type, c->rows, c->columns, c->batch_count, 3);
    unsigned char *got = malloc(d.bytes + 1);
    assert_int_equal(multiply(c, &a, &b, &d), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaMemcpy(got, d.device, d.bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    double tolerance = c->out_type == CUDA_R_32F ? 1e-5 : 0.01;
    for (size_t batch = 0; batch < (size_t)c->batch_count; batch++) {
        for (uint32_t i = 0; i < c->rows * c->columns; i++) {
            uint32_t row = i % c->rows, column = i / c->rows;
            double sum = 0, size = 1;
            for (uint32_t k = 0; k < c->depth; k++) {
                double product = (double)element(&a, c->a_turned, batch, row, k) *
                                 (double)element(&b, c->b_turned, batch, k, column);
                sum += product;
                size += fabs(product);
            }
            size_t at = batch * c->rows * c->columns + i;
            sum += (double)c->beta * (double)get(d.host, c->out_type, at);
            assert_true(fabs((double)get(got, c->out_type, at) - sum) <= tolerance * size);
        }
    }
    free(got);
    free_matrix(&a);
    free_matrix(&b);
    free_matrix(&d);
}

static void products_are_right(void **state)
{
    (void)state;
    static const case_t cases[] = {
        {CUDA_R_32F, CUDA_R_32F, true, false, 1, 1, 1, 1, 0},
        {CUDA_R_32F, CUDA_R_32F, true, false, 33, 7, 65, 1, 1},
        {CUDA_R_32F, CUDA_R_32F, false, false, 5, 9, 17, 2, 0},
        {CUDA_R_32F, CUDA_R_32F, false, true, 34, 3, 8, 1, 0.5f},
        {CUDA_R_32F, CUDA_R_32F, true, true, 3, 5, 7, 3, 0},
        {CUDA_R_16BF, CUDA_R_32F, true, false, 96, 64, 576, 2, 1},
        {CUDA_R_16BF, CUDA_R_16BF, true, false, 31, 1, 40, 1, 0},
        {CUDA_R_16BF, CUDA_R_32F, true, false, 48, 17, 64, 3, 0},
        {CUDA_R_16BF, CUDA_R_16BF, true, false, 16, 33, 32, 1, 1},
        {CUDA_R_16F, CUDA_R_32F, true, false, 2, 4, 31, 1, 0},
        {CUDA_R_8F_E4M3, CUDA_R_16F, true, false, 16, 8, 32, 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_case(&cases[i]);
    }
    assert_int_equal(kv_simt_finding_count(KV_SIMT_FINDING_KINDS), 0);
}

/* The first column of a wide product is that of a narrow one, bit for bit; zeros beside it, which
 * are skipped, change nothing. */
static void check_independence(uint32_t rows)
{
    case_t c = {CUDA_R_16BF, CUDA_R_32F, true, false, rows, 0, 576, 1, 0};
    static const uint32_t columns[] = {64, 1, 17, 64};
    float first[64], again[64];
    matrix_t a = make_matrix(c.type, c.depth, c.rows, 1, 1);
    for (int pass = 0; pass < 4; pass++) {
        c.columns = columns[pass];
        matrix_t b = make_matrix(c.type, c.depth, c.columns, 1, 2);
        matrix_t d = make_matrix(c.out_type, c.rows, c.columns, 1, 3);
        size_t row_bytes = c.depth * bytes_of(c.type);
        if (pass == 3) {
            assert_int_equal(
                cudaMemset((char *)b.device + row_bytes, 0, b.bytes - row_bytes), cudaSuccess);
        }
        assert_int_equal(multiply(&c, &a, &b, &d), CUBLAS_STATUS_SUCCESS);
        assert_int_equal(cudaMemcpy(pass == 0 ? first : again, d.device, rows * sizeof *first,
                             cudaMemcpyDeviceToHost),
            cudaSuccess);
        free_matrix(&b);
        free_matrix(&d);
        if (pass > 0) {
            assert_memory_equal(first, again, rows * sizeof *first);
        }
    }
    free_matrix(&a);
}

static void a_column_does_not_depend_on_others(void **state)
{
    (void)state;
    check_independence(45);
    check_independence(64);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    case_t c = {CUDA_R_32F, CUDA_R_32F, true, false, 4, 4, 8, 1, 0};
    matrix_t a = make_matrix(c.type, 8, 4, 1, 1), b = make_matrix(c.type, 9, 4, 1, 2);
    matrix_t d = make_matrix(c.type, 4, 4, 1, 3), right = make_matrix(c.type, 8, 4, 1, 2);
    assert_int_equal(multiply(&c, &a, &b, &d), CUBLAS_STATUS_INVALID_VALUE);
    matrix_t outside = right;
    outside.device = (char *)right.device + 4;
    assert_int_equal(multiply(&c, &a, &outside, &d), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    assert_int_equal(kv_simt_finding_count(KV_SIMT_OUT_OF_BOUNDS), 1);
    matrix_t *matrices[] = {&a, &b, &d, &right};
    for (size_t i = 0; i < 4; i++) {
        free(matrices[i]->host);
        (void)cublasLtMatrixLayoutDestroy(matrices[i]->layout);
    }
}

static int end(void **state)
{
    (void)state;
    kv_simt_reset();
    kv_simt_findings_clear();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(products_are_right, end),
        cmocka_unit_test_teardown(a_column_does_not_depend_on_others, end),
        cmocka_unit_test_teardown(what_does_not_fit_is_refused, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
