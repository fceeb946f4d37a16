#include "kernels/simt/cublaslt.h"

#include "base/memory.h"
#include "kernels/simt/block_internal.h"
#include "kernels/simt/calls.h"
#include "kernels/simt/memory.h"
#include "kernels/simt/numbers.h"
#include "kernels/simt/product.h"

#include <stdlib.h>
#include <string.h>

enum { VERSION = 130000, PANEL_ROWS = KV_PRODUCT_PANEL };

struct kv_simt_blas {
    int open;
};

struct kv_simt_blas_description {
    cublasOperation_t a, b;
    int32_t a_scale_mode, b_scale_mode;
    const float *a_scales, *b_scales; /* of OUTER_VEC_32F: for rows of a, columns of b */
};

struct kv_simt_blas_layout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t pitch;        /* elements from a column to the next */
    int64_t batch_stride; /* elements from a matrix to the next */
    int32_t batch_count;
};

struct kv_simt_blas_preference {
    size_t workspace_bytes;
    uint32_t schemes;
};

/* One side of a product, whatever its order: row i of length depth, element k of it. */
typedef struct {
    const unsigned char *data;
    cudaDataType_t type;
    size_t row_stride, step; /* elements from a row to the next, and within one */
} side_t;

typedef struct {
    side_t left, right;
    size_t left_count, right_count, depth;
    const unsigned char *c;
    unsigned char *d;
    struct kv_simt_blas_layout c_layout, d_layout;
    float alpha, beta;
    const float *left_scales, *right_scales; /* NULL: 1 */
} product_t;

/* ---- elements ---- */

static size_t element_bytes(cudaDataType_t type)
{
    switch (type) {
    case CUDA_R_32F:
        return 4;
    case CUDA_R_16F:
    case CUDA_R_16BF:
        return 2;
    case CUDA_R_8F_E4M3:
        return 1;
    }
    return 0;
}

static float load(const unsigned char *data, cudaDataType_t type, size_t at)
{
    float value;
    uint16_t half;
    if (type == CUDA_R_32F) {
        memcpy(&value, data + 4 * at, sizeof value);
        return value;
    }
    if (type == CUDA_R_8F_E4M3) {
        return kv_e4m3_to_float(data[at]);
    }
    memcpy(&half, data + 2 * at, sizeof half);
    return type == CUDA_R_16BF ? kv_bf16_to_float(half) : kv_half_to_float(half);
}

static void store(unsigned char *data, cudaDataType_t type, size_t at, float value)
{
    if (type == CUDA_R_32F) {
        memcpy(data + 4 * at, &value, sizeof value);
        return;
    }
    uint16_t half = type == CUDA_R_16BF ? kv_bf16_of_float(value) : kv_half_of_float(value);
    memcpy(data + 2 * at, &half, sizeof half);
}

/* Rows first to first + count - 1 of a side as f32, each filled up with zeros to the pitch. */
static void widen(
    const side_t *side, size_t first, size_t count, size_t depth, size_t pitch, float *out)
{
    for (size_t i = 0; i < count; i++) {
        float *row = out + i * pitch;
        size_t at = (first + i) * side->row_stride;
        if (side->type == CUDA_R_16BF && side->step == 1) {
            const unsigned char *from = side->data + 2 * at;
            for (size_t k = 0; k < depth; k++) {
                uint16_t bits;
                memcpy(&bits, from + 2 * k, sizeof bits);
                row[k] = kv_bf16_to_float(bits);
            }
        } else if (side->type == CUDA_R_8F_E4M3 && side->step == 1) {
            for (size_t k = 0; k < depth; k++) {
                row[k] = kv_e4m3_to_float(side->data[at + k]);
            }
        } else {
            for (size_t k = 0; k < depth; k++) {
                row[k] = load(side->data, side->type, at + k * side->step);
            }
        }
        memset(row + depth, 0, (pitch - depth) * sizeof *row);
    }
}

/* ---- one matrix of the batch ---- */

static void finish_panel_f32(
    const product_t *product, const float *sums, size_t first, size_t count)
{
    const float *c = (const float *)(const void *)product->c;
    float *d = (float *)(void *)product->d, alpha = product->alpha, beta = product->beta;
    for (size_t j = 0; j < product->right_count; j++) {
        const float *from = sums + j * PANEL_ROWS;
        const float *added = c + j * (size_t)product->c_layout.pitch + first;
        float *to = d + j * (size_t)product->d_layout.pitch + first;
        for (size_t i = 0; i < count; i++) {
            to[i] = beta != 0 ? alpha * from[i] + beta * added[i] : alpha * from[i];
        }
    }
}

static void scale_panel(const product_t *product, float *sums, size_t first, size_t count)
{
    for (size_t j = 0; j < product->right_count; j++) {
        for (size_t i = 0; i < count; i++) {
            sums[j * PANEL_ROWS + i] *= product->left_scales[first + i] * product->right_scales[j];
        }
    }
}

static void finish_panel(const product_t *product, float *sums, size_t first, size_t count)
{
    if (product->left_scales != NULL) {
        scale_panel(product, sums, first, count);
    }
    if (product->c_layout.type == CUDA_R_32F && product->d_layout.type == CUDA_R_32F) {
        finish_panel_f32(product, sums, first, count);
        return;
    }
    for (size_t j = 0; j < product->right_count; j++) {
        for (size_t i = 0; i < count; i++) {
            float value = product->alpha * sums[j * PANEL_ROWS + i];
            size_t c = j * (size_t)product->c_layout.pitch + first + i;
            size_t d = j * (size_t)product->d_layout.pitch + first + i;
            if (product->beta != 0) {
                value += product->beta * load(product->c, product->c_layout.type, c);
            }
            store(product->d, product->d_layout.type, d, value);
        }
    }
}

static void multiply(const product_t *product, float *right, float *left, float *sums, size_t pitch)
{
    widen(&product->right, 0, product->right_count, product->depth, pitch, right);
    for (size_t first = 0; first < product->left_count; first += PANEL_ROWS) {
        size_t rest = product->left_count - first, count = rest < PANEL_ROWS ? rest : PANEL_ROWS;
        widen(&product->left, first, count, product->depth, pitch, left);
        kv_product_f32(left, count, right, product->right_count, pitch, sums, PANEL_ROWS);
        finish_panel(product, sums, first, count);
    }
}

static bool is_bf16(const side_t *side)
{
    return side->type == CUDA_R_16BF && side->step == 1;
}

static const uint16_t *bf16_rows(const side_t *side, size_t first)
{
    return (const uint16_t *)(const void *)side->data + first * side->row_stride;
}

static bool takes_bf16(const product_t *product)
{
    return is_bf16(&product->left) && is_bf16(&product->right) &&
           kv_product_takes_bf16(product->left_count, product->depth);
}

static void multiply_bf16(const product_t *product, float *sums)
{
    kv_product_packed_t packed;
    kv_product_pack(bf16_rows(&product->right, 0), product->right.row_stride, product->right_count,
        product->depth, &packed);
    for (size_t first = 0; first < product->left_count; first += PANEL_ROWS) {
        size_t rest = product->left_count - first, count = rest < PANEL_ROWS ? rest : PANEL_ROWS;
        kv_product_bf16(
            bf16_rows(&product->left, first), product->left.row_stride, count, &packed, sums);
        finish_panel(product, sums, first, count);
    }
    kv_product_unpack(&packed);
}

static bool takes_e4m3(const product_t *product)
{
    return product->left.type == CUDA_R_8F_E4M3 && product->right.type == CUDA_R_8F_E4M3 &&
           product->left.step == 1 && product->right.step == 1 &&
           kv_product_takes_bf16(product->left_count, product->depth);
}

/* Rows of e4m3, each of which bf16 has too, as bf16; allocated. */
static uint16_t *bf16_of_e4m3(const side_t *side, size_t count, size_t depth)
{
    uint16_t table[256], *rows = kv_allocate_array(count * depth + 1, sizeof *rows);
    for (size_t i = 0; i < 256; i++) {
        table[i] = kv_bf16_of_float(kv_e4m3_to_float((uint8_t)i));
    }
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < depth; k++) {
            rows[i * depth + k] = table[side->data[i * side->row_stride + k]];
        }
    }
    return rows;
}

static void multiply_e4m3(const product_t *product, float *sums)
{
    uint16_t *left = bf16_of_e4m3(&product->left, product->left_count, product->depth),
             *right = bf16_of_e4m3(&product->right, product->right_count, product->depth);
    product_t same = *product;
    same.left = (side_t){(const unsigned char *)left, CUDA_R_16BF, product->depth, 1};
    same.right = (side_t){(const unsigned char *)right, CUDA_R_16BF, product->depth, 1};
    multiply_bf16(&same, sums);
    free(left);
    free(right);
}

/* ---- bounds ---- */

static size_t layout_bytes(const struct kv_simt_blas_layout *layout)
{
    if (layout->rows == 0 || layout->columns == 0) {
        return 0;
    }
    size_t matrix = (size_t)layout->pitch * (layout->columns - 1) + layout->rows;
    size_t before = (size_t)layout->batch_stride * (size_t)(layout->batch_count - 1);
    return (before + matrix) * element_bytes(layout->type);
}

static bool covered_bytes(const void *data, size_t bytes, const char *name)
{
    if (bytes == 0 || (kv_simt_memory_is_device(data) && kv_simt_memory_covers(data, bytes))) {
        return true;
    }
    kv_simt_find(KV_SIMT_OUT_OF_BOUNDS,
        "cublasLtMatmul: %zu bytes of %s at %p are not device memory", bytes, name, data);
    return false;
}

static bool covered(const void *data, const struct kv_simt_blas_layout *layout, const char *name)
{
    return covered_bytes(data, layout_bytes(layout), name);
}

static bool covered_scales(const product_t *product)
{
    return product->left_scales == NULL ||
           (covered_bytes(
                product->left_scales, product->left_count * sizeof(float), "scales of a") &&
               covered_bytes(
                   product->right_scales, product->right_count * sizeof(float), "scales of b"));
}

/* ---- the enqueued product ---- */

typedef struct {
    product_t product;
    struct kv_simt_blas_layout a, b;
    const void *a_data, *b_data;
} work_t;

static int run(void *argument)
{
    work_t *work = argument;
    product_t *product = &work->product;
    if (!covered(work->a_data, &work->a, "a") || !covered(work->b_data, &work->b, "b") ||
        !covered(product->d, &product->d_layout, "d") ||
        (product->beta != 0 && !covered(product->c, &product->c_layout, "c")) ||
        !covered_scales(product)) {
        return KV_SIMT_ILLEGAL_ADDRESS;
    }
    size_t pitch = (product->depth + KV_PRODUCT_LANES - 1) / KV_PRODUCT_LANES * KV_PRODUCT_LANES;
    float *right = kv_allocate_array(product->right_count * pitch + 1, sizeof *right);
    float *left = kv_allocate_array(PANEL_ROWS * pitch + 1, sizeof *left);
    float *sums = kv_allocate_array(product->right_count * PANEL_ROWS + 1, sizeof *sums);
    bool bf16 = takes_bf16(product), e4m3 = takes_e4m3(product);
    size_t a_bytes = element_bytes(work->a.type), b_bytes = element_bytes(work->b.type);
    size_t c_bytes = element_bytes(product->c_layout.type);
    size_t d_bytes = element_bytes(product->d_layout.type);
    for (int32_t i = 0; i < product->d_layout.batch_count; i++) {
        if (bf16) {
            multiply_bf16(product, sums);
        } else if (e4m3) {
            multiply_e4m3(product, sums);
        } else {
            multiply(product, right, left, sums, pitch);
        }
        product->left.data += (size_t)work->a.batch_stride * a_bytes;
        product->right.data += (size_t)work->b.batch_stride * b_bytes;
        product->c += (size_t)product->c_layout.batch_stride * c_bytes;
        product->d += (size_t)product->d_layout.batch_stride * d_bytes;
    }
    free(right);
    free(left);
    free(sums);
    return 0;
}

/* op(a) is left_count x depth: its rows are a's columns when it is transposed. */
static side_t make_side(
    const void *data, const struct kv_simt_blas_layout *layout, bool columns_are_rows)
{
    return (side_t){
        .data = data,
        .type = layout->type,
        .row_stride = columns_are_rows ? (size_t)layout->pitch : 1,
        .step = columns_are_rows ? 1 : (size_t)layout->pitch,
    };
}

static bool fits(const work_t *work, size_t b_depth)
{
    const product_t *product = &work->product;
    const struct kv_simt_blas_layout *c = &product->c_layout, *d = &product->d_layout;
    int32_t batch = d->batch_count;
    bool sizes = product->depth == b_depth && d->rows == product->left_count &&
                 d->columns == product->right_count && c->rows == d->rows &&
                 c->columns == d->columns;
    bool batches = batch > 0 && work->a.batch_count == batch && work->b.batch_count == batch &&
                   c->batch_count == batch;
    return sizes && batches && d->type != CUDA_R_8F_E4M3 && c->type != CUDA_R_8F_E4M3;
}

/* ---- algorithms ---- */

enum {
    ALGORITHM = 0x6b766c74, /* the first word of one that was chosen here */
    ALIGNMENT_BYTES = 256,
    PARTS = 2, /* of a sum that is split */
};

/* What the algorithm keeps its parts of sums in: as f32, of every matrix of the batch. */
static size_t parts_bytes(bool split, const struct kv_simt_blas_layout *d)
{
    return split ? PARTS * sizeof(float) * d->rows * d->columns * (size_t)d->batch_count : 0;
}

static cublasLtMatmulHeuristicResult_t algorithm_result(
    bool split, const struct kv_simt_blas_layout *d)
{
    return (cublasLtMatmulHeuristicResult_t){
        .algo = {{ALGORITHM, split}},
        .workspaceSize = parts_bytes(split, d),
        .state = CUBLAS_STATUS_SUCCESS,
    };
}

static bool aligned(const void *data)
{
    return (uintptr_t)data % ALIGNMENT_BYTES == 0;
}

/* Without one cuBLASLt looks for one that fits the call. */
static bool algorithm_takes(const cublasLtMatmulAlgo_t *algorithm, const product_t *product,
    const void *a, const void *b, const void *workspace, size_t workspace_bytes)
{
    if (algorithm == NULL) {
        return true;
    }
    size_t parts = parts_bytes(algorithm->data[1] != 0, &product->d_layout);
    return algorithm->data[0] == ALGORITHM && parts <= workspace_bytes &&
           (parts == 0 || (workspace != NULL && aligned(workspace))) && aligned(a) && aligned(b) &&
           aligned(product->c) && aligned(product->d);
}

/* ---- what the library has ---- */

static bool is_whole_16_bytes(const struct kv_simt_blas_layout *layout)
{
    return layout->rows % 16 == 0 && layout->pitch % 16 == 0;
}

/* Whether products of these types and scales are there on this chip. */
static bool is_supported(const struct kv_simt_blas_description *description,
    const struct kv_simt_blas_layout *a, const struct kv_simt_blas_layout *b,
    const struct kv_simt_blas_layout *d)
{
    enum { FIRST_CHIP = 89, OUTER_CHIP = 90 };
    const bool e4m3 = a->type == CUDA_R_8F_E4M3,
               outer = description->a_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    if (e4m3 != (b->type == CUDA_R_8F_E4M3) || (outer && !e4m3) ||
        description->a_scale_mode != description->b_scale_mode) {
        return false;
    }
    if (!e4m3) {
        return true;
    }
    const bool turned = description->a == CUBLAS_OP_T && description->b == CUBLAS_OP_N,
               whole = is_whole_16_bytes(a) && is_whole_16_bytes(b) && d->rows % 16 == 0;
    return turned && whole && kv_simt_chip() >= FIRST_CHIP &&
           (!outer || (kv_simt_chip() == OUTER_CHIP && d->batch_count == 1 &&
                          description->a_scales != NULL && description->b_scales != NULL));
}

/* ---- cuBLASLt's functions ---- */

static cublasStatus_t status_of(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return CUBLAS_STATUS_SUCCESS;
    case cudaErrorMemoryAllocation:
        return CUBLAS_STATUS_ALLOC_FAILED;
    default:
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
    const void *alpha, const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
    cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
    cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
    const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t workspace_bytes,
    cudaStream_t stream)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess || handle == NULL) {
        return handle == NULL ? CUBLAS_STATUS_NOT_INITIALIZED : status_of(refused);
    }
    bool a_turned = description->a == CUBLAS_OP_T, b_turned = description->b == CUBLAS_OP_T;
    work_t work = {.a = *a_layout, .b = *b_layout, .a_data = a, .b_data = b};
    product_t *product = &work.product;
    product->left = make_side(a, a_layout, a_turned);
    product->right = make_side(b, b_layout, !b_turned);
    product->left_count = a_turned ? a_layout->columns : a_layout->rows;
    product->depth = a_turned ? a_layout->rows : a_layout->columns;
    product->right_count = b_turned ? b_layout->rows : b_layout->columns;
    product->c = c;
    product->d = d;
    product->c_layout = *c_layout;
    product->d_layout = *d_layout;
    memcpy(&product->alpha, alpha, sizeof product->alpha);
    memcpy(&product->beta, beta, sizeof product->beta);
    if (description->a_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F) {
        product->left_scales = description->a_scales;
        product->right_scales = description->b_scales;
    }
    if (!fits(&work, b_turned ? b_layout->columns : b_layout->rows) ||
        !algorithm_takes(algorithm, product, a, b, workspace, workspace_bytes)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!is_supported(description, a_layout, b_layout, d_layout)) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return status_of(kv_simt_enqueue_work(run, &work, sizeof work, stream));
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle,
    cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference,
    int wanted, cublasLtMatmulHeuristicResult_t *results_out, int *count_out)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return status_of(refused);
    }
    if (handle == NULL || description == NULL || a == NULL || b == NULL || c == NULL || d == NULL ||
        preference == NULL || wanted < 1) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!is_supported(description, a, b, d)) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    bool split = (preference->schemes & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) != 0 &&
                 parts_bytes(true, d) <= preference->workspace_bytes;
    results_out[0] = algorithm_result(split, d);
    *count_out = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
    cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
    cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *algorithm,
    cublasLtMatmulHeuristicResult_t *result_out)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return status_of(refused);
    }
    if (handle == NULL || description == NULL || a == NULL || b == NULL || c == NULL || d == NULL ||
        algorithm->data[0] != ALGORITHM) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!is_supported(description, a, b, d)) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    *result_out = algorithm_result(algorithm->data[1] != 0, d);
    return CUBLAS_STATUS_SUCCESS;
}

/* Numbers made in another order are those of another library. */
size_t cublasLtGetVersion(void)
{
    return VERSION + (size_t)kv_product_order();
}

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "CUBLAS_STATUS_UNKNOWN";
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return cublasLtGetStatusName(status);
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle_out)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused == cudaSuccess) {
        *handle_out = kv_allocate(sizeof **handle_out);
    }
    return status_of(refused);
}

/* What is held is given back whatever the device's state. */
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    cudaError_t refused = kv_simt_call(__func__);
    free(handle);
    return status_of(refused);
}

cublasStatus_t cublasLtMatmulDescCreate(
    cublasLtMatmulDesc_t *description_out, cublasComputeType_t compute, cudaDataType_t scale)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return status_of(refused);
    }
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    *description_out = kv_allocate(sizeof **description_out);
    return CUBLAS_STATUS_SUCCESS;
}

/* Where a description keeps an attribute; NULL: nowhere. */
static void *find_field(struct kv_simt_blas_description *description,
    cublasLtMatmulDescAttributes_t attribute, size_t *bytes_out)
{
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        *bytes_out = sizeof description->a;
        return &description->a;
    case CUBLASLT_MATMUL_DESC_TRANSB:
        *bytes_out = sizeof description->b;
        return &description->b;
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
        *bytes_out = sizeof description->a_scale_mode;
        return &description->a_scale_mode;
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
        *bytes_out = sizeof description->b_scale_mode;
        return &description->b_scale_mode;
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
        *bytes_out = sizeof description->a_scales;
        return &description->a_scales;
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
        *bytes_out = sizeof description->b_scales;
        return &description->b_scales;
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
        break;
    }
    *bytes_out = 0;
    return NULL;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
    cublasLtMatmulDescAttributes_t attribute, const void *value, size_t bytes)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return status_of(refused);
    }
    if (attribute == CUBLASLT_MATMUL_DESC_FAST_ACCUM) {
        return CUBLAS_STATUS_SUCCESS;
    }
    size_t field_bytes;
    void *field = find_field(description, attribute, &field_bytes);
    if (field == NULL || bytes != field_bytes) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    memcpy(field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description)
{
    cudaError_t refused = kv_simt_call(__func__);
    free(description);
    return status_of(refused);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout_out, cudaDataType_t type,
    uint64_t rows, uint64_t columns, int64_t pitch)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return status_of(refused);
    }
    if (element_bytes(type) == 0 || pitch < 0 || (uint64_t)pitch < rows) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    struct kv_simt_blas_layout *layout = kv_allocate(sizeof *layout);
    layout->type = type;
    layout->rows = rows;
    layout->columns = columns;
    layout->pitch = pitch;
    layout->batch_count = 1;
    *layout_out = layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
    cublasLtMatrixLayoutAttribute_t attribute, const void *value, size_t bytes)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return status_of(refused);
    }
    if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT && bytes == sizeof layout->batch_count) {
        memcpy(&layout->batch_count, value, bytes);
    } else if (attribute == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET &&
               bytes == sizeof layout->batch_stride) {
        memcpy(&layout->batch_stride, value, bytes);
    } else {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    cudaError_t refused = kv_simt_call(__func__);
    free(layout);
    return status_of(refused);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference_out)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused == cudaSuccess) {
        *preference_out = kv_allocate(sizeof **preference_out);
        (*preference_out)->schemes = UINT32_MAX; /* all */
    }
    return status_of(refused);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
    cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t bytes)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return status_of(refused);
    }
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES &&
        bytes == sizeof preference->workspace_bytes) {
        memcpy(&preference->workspace_bytes, value, bytes);
    } else if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK &&
               bytes == sizeof preference->schemes) {
        memcpy(&preference->schemes, value, bytes);
    } else {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    cudaError_t refused = kv_simt_call(__func__);
    free(preference);
    return status_of(refused);
}
