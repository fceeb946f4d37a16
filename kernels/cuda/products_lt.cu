/* Products by cuBLASLt. It reads matrices column by column, where ours lie row by row: what it
 * computes is out^T = weights x in^T, whose columns are our rows.
 *
 * An algorithm is chosen once for each shape of one tile; many tiles are a batch of it with the
 * weights shared. So the same instructions in the same order make a row, whatever else is computed.
 * Where one tile is all that is computed at once, sums may be split over the chip, if their parts
 * lie in the workspace and are added in their order; in batches no sum is split, since the parts'
 * room grows with the batch. An algorithm chosen for the largest batch is asked whether it takes a
 * single tile too.
 *
 * e4m3: a scale for each row of either operand. From cuBLASLt 12.9 on the library multiplies with
 * them itself on chips of 9.0 ("outer vectors"), tile by tile, since they know no batch; elsewhere
 * sums go to a scratch, and from there scaled to where they belong. Which it is, is asked once, and
 * is part of the arithmetic's name.
 *
 * Tolerance against the plain twin: 1e-5 x columns^0.5 of the largest |in| x |weight| in f32; the
 * operands of a bf16 or e4m3 product are the same numbers there and here. */
#include "kernels/cuda/products.h"

#include "kernels/cuda/quantise.h"
#include "kernels/cuda/runtime.h"

#include "base/memory.h"

#ifdef KVIST_SIMT
#include "kernels/simt/cublaslt.h"
#else
#include <cublasLt.h>
#endif

#include <stdio.h>
#include <stdlib.h>

enum {
    SHAPES_MAX = 64,
    NAME_BYTES = 16,
    CANDIDATES = 8,
    UNSCALED_TILES = 4, /* of e4m3 at once, through the scratch */
    OUTER_CHIP = 90,
    OUTER_VERSION = 120900,
};
#define WORKSPACE_BYTES ((size_t)32 << 20)

/* What the algorithm was chosen for. */
typedef struct {
    kv_element_t element;
    uint32_t rows, columns, tile_rows, tiles_max;
    cublasLtMatmulAlgo_t algorithm;
} shape_t;

struct cuda_products {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t description; /* the same for every shape */
    cublasLtMatmulDesc_t outer;       /* with scales for rows; NULL: not on this chip */
    cublasLtMatmulPreference_t preference;
    void *workspace;
    void *unscaled; /* f32 sums of e4m3, where there is no outer */
    size_t unscaled_bytes;
    shape_t shapes[SHAPES_MAX];
    uint32_t shape_count;
    char name[NAME_BYTES], outer_name[NAME_BYTES];
};

typedef struct {
    cublasLtMatrixLayout_t weights, in, out;
} layouts_t;

static kv_status_t check(cublasStatus_t code, const char *call, kv_error_t *error)
{
    switch (code) {
    case CUBLAS_STATUS_SUCCESS:
        return KV_OK;
    case CUBLAS_STATUS_ALLOC_FAILED:
        return kv_fail(error, KV_NO_SPACE, "%s failed: no memory (%d)", call, (int)code);
    default:
        return kv_fail(
            error, KV_FATAL, "%s failed: %s (%d)", call, cublasLtGetStatusName(code), (int)code);
    }
}

static kv_status_t allocate(size_t bytes, void **memory_out, kv_error_t *error)
{
    const cudaError_t code = cudaMalloc(memory_out, bytes);
    if (code == cudaSuccess) {
        return KV_OK;
    }
    (void)cudaGetLastError();
    *memory_out = nullptr;
    return kv_fail(
        error, KV_NO_SPACE, "cudaMalloc of %zu bytes failed: %s", bytes, cudaGetErrorString(code));
}

static size_t element_bytes(kv_element_t element)
{
    return element == KV_ELEMENT_E4M3 ? 1 : element == KV_ELEMENT_BF16 ? 2 : 4;
}

static cudaDataType_t type_of(kv_element_t element)
{
    return element == KV_ELEMENT_E4M3   ? CUDA_R_8F_E4M3
           : element == KV_ELEMENT_BF16 ? CUDA_R_16BF
                                        : CUDA_R_32F;
}

/* ---- layouts ---- */

static void destroy_layouts(const layouts_t *layouts)
{
    const cublasLtMatrixLayout_t all[] = {layouts->weights, layouts->in, layouts->out};
    for (uint32_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i] != nullptr) {
            (void)cublasLtMatrixLayoutDestroy(all[i]);
        }
    }
}

static kv_status_t make_layout(cudaDataType_t type, uint32_t rows, uint32_t columns,
    int32_t batch_count, int64_t batch_stride, cublasLtMatrixLayout_t *layout_out,
    kv_error_t *error)
{
    kv_status_t status = check(cublasLtMatrixLayoutCreate(layout_out, type, rows, columns, rows),
        "cublasLtMatrixLayoutCreate", error);
    if (status == KV_OK) {
        status = check(cublasLtMatrixLayoutSetAttribute(*layout_out,
                           CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch_count, sizeof batch_count),
            "cublasLtMatrixLayoutSetAttribute", error);
    }
    if (status == KV_OK) {
        status = check(
            cublasLtMatrixLayoutSetAttribute(*layout_out,
                CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride, sizeof batch_stride),
            "cublasLtMatrixLayoutSetAttribute", error);
    }
    return status;
}

static kv_status_t make_layouts(
    const cuda_product_t *product, uint32_t tile_count, layouts_t *layouts_out, kv_error_t *error)
{
    const cudaDataType_t type = type_of(product->element);
    const int64_t tile_rows = product->tile_rows;
    layouts_t layouts = {};
    kv_status_t status = make_layout(
        type, product->columns, product->rows, (int32_t)tile_count, 0, &layouts.weights, error);
    if (status == KV_OK) {
        status = make_layout(type, product->columns, product->tile_rows, (int32_t)tile_count,
            tile_rows * product->columns, &layouts.in, error);
    }
    if (status == KV_OK) {
        status = make_layout(CUDA_R_32F, product->rows, product->tile_rows, (int32_t)tile_count,
            tile_rows * product->rows, &layouts.out, error);
    }
    if (status != KV_OK) {
        destroy_layouts(&layouts);
        return status;
    }
    *layouts_out = layouts;
    return KV_OK;
}

/* ---- algorithms ---- */

static bool is_outer(const cuda_products_t *products, const cuda_product_t *product)
{
    return product->element == KV_ELEMENT_E4M3 && products->outer != nullptr;
}

static bool is_unscaled(const cuda_products_t *products, const cuda_product_t *product)
{
    return product->element == KV_ELEMENT_E4M3 && products->outer == nullptr;
}

static cublasLtMatmulDesc_t description_of(
    const cuda_products_t *products, const cuda_product_t *product)
{
    return is_outer(products, product) ? products->outer : products->description;
}

/* The product as it is computed: so many of its tiles at once. */
static cuda_product_t as_computed(const cuda_products_t *products, const cuda_product_t *product)
{
    const uint32_t most = is_outer(products, product)      ? 1
                          : is_unscaled(products, product) ? (uint32_t)UNSCALED_TILES
                                                           : product->tiles_max;
    cuda_product_t computed = *product;
    computed.tiles_max = product->tiles_max < most ? product->tiles_max : most;
    return computed;
}

static const shape_t *find_shape(const cuda_products_t *products, const cuda_product_t *product)
{
    for (uint32_t i = 0; i < products->shape_count; i++) {
        const shape_t *shape = &products->shapes[i];
        if (shape->element == product->element && shape->rows == product->rows &&
            shape->columns == product->columns && shape->tile_rows == product->tile_rows &&
            shape->tiles_max == product->tiles_max) {
            return shape;
        }
    }
    return nullptr;
}

/* Split sums only where one tile is computed at once. */
static kv_status_t allow_split(cuda_products_t *products, bool split, kv_error_t *error)
{
    const uint32_t schemes =
        split ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
    return check(cublasLtMatmulPreferenceSetAttribute(products->preference,
                     CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes),
        "cublasLtMatmulPreferenceSetAttribute", error);
}

/* Algorithms for the largest batch, the best first. */
static kv_status_t list_algorithms(cuda_products_t *products, const cuda_product_t *product,
    cublasLtMatmulHeuristicResult_t *results_out, int *count_out, kv_error_t *error)
{
    layouts_t layouts;
    kv_status_t status = allow_split(products, product->tiles_max == 1, error);
    if (status == KV_OK) {
        status = make_layouts(product, product->tiles_max, &layouts, error);
    }
    if (status != KV_OK) {
        return status;
    }
    const cublasStatus_t code = cublasLtMatmulAlgoGetHeuristic(products->handle,
        description_of(products, product), layouts.weights, layouts.in, layouts.out, layouts.out,
        products->preference, CANDIDATES, results_out, count_out);
    destroy_layouts(&layouts);
    if (code == CUBLAS_STATUS_NOT_SUPPORTED) { /* none at all */
        *count_out = 0;
        return KV_OK;
    }
    return check(code, "cublasLtMatmulAlgoGetHeuristic", error);
}

/* Whether it computes one tile too, and with the workspace that there is. */
static bool takes_one(cuda_products_t *products, const cuda_product_t *product,
    const layouts_t *one, const cublasLtMatmulHeuristicResult_t *candidate)
{
    cublasLtMatmulHeuristicResult_t result = {};
    return candidate->state == CUBLAS_STATUS_SUCCESS &&
           candidate->workspaceSize <= WORKSPACE_BYTES &&
           cublasLtMatmulAlgoCheck(products->handle, description_of(products, product),
               one->weights, one->in, one->out, one->out, &candidate->algo,
               &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= WORKSPACE_BYTES;
}

static kv_status_t choose(cuda_products_t *products, const cuda_product_t *product,
    cublasLtMatmulAlgo_t *algorithm_out, kv_error_t *error)
{
    cublasLtMatmulHeuristicResult_t results[CANDIDATES] = {};
    layouts_t one;
    int count = 0;
    kv_status_t status = list_algorithms(products, product, results, &count, error);
    if (status == KV_OK) {
        status = make_layouts(product, 1, &one, error);
    }
    if (status != KV_OK) {
        return status;
    }
    int at = 0;
    while (at < count && !takes_one(products, product, &one, &results[at])) {
        at++;
    }
    destroy_layouts(&one);
    if (at == count) {
        return kv_fail(error, KV_FATAL,
            "cublasLt has no algorithm for %u x %u, 1 to %u tiles of %u rows; KVIST_PRODUCTS=plain "
            "does without",
            product->rows, product->columns, product->tiles_max, product->tile_rows);
    }
    *algorithm_out = results[at].algo;
    return KV_OK;
}

/* The scratch for sums that are to be scaled. The runtime waits before it frees. */
static kv_status_t reserve_unscaled(
    cuda_products_t *products, const cuda_product_t *product, kv_error_t *error)
{
    const size_t bytes =
        (size_t)product->tiles_max * product->tile_rows * product->rows * sizeof(float);
    if (!is_unscaled(products, product) || bytes <= products->unscaled_bytes) {
        return KV_OK;
    }
    (void)cudaFree(products->unscaled);
    products->unscaled = nullptr;
    products->unscaled_bytes = 0;
    kv_status_t status = allocate(bytes, &products->unscaled, error);
    products->unscaled_bytes = status == KV_OK ? bytes : 0;
    return status;
}

/* product: as it is computed. */
static kv_status_t prepare_computed(
    cuda_products_t *products, const cuda_product_t *product, kv_error_t *error)
{
    if (find_shape(products, product) != nullptr) {
        return KV_OK;
    }
    if (products->shape_count == SHAPES_MAX) {
        return kv_fail(error, KV_FATAL, "products of more than %d shapes", (int)SHAPES_MAX);
    }
    shape_t *shape = &products->shapes[products->shape_count];
    kv_status_t status = reserve_unscaled(products, product, error);
    if (status == KV_OK) {
        status = choose(products, product, &shape->algorithm, error);
    }
    if (status == KV_OK) {
        shape->element = product->element;
        shape->rows = product->rows;
        shape->columns = product->columns;
        shape->tile_rows = product->tile_rows;
        shape->tiles_max = product->tiles_max;
        products->shape_count++;
    }
    return status;
}

static kv_status_t lt_prepare(
    cuda_products_t *products, const cuda_product_t *product, kv_error_t *error)
{
    const cuda_product_t computed = as_computed(products, product);
    return prepare_computed(products, &computed, error);
}

/* Where the scales of rows lie; the library reads them when the product runs. */
static kv_status_t point_to_scales(cublasLtMatmulDesc_t description, const void *weight_scales,
    const void *in_scales, kv_error_t *error)
{
    kv_status_t status =
        check(cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                  &weight_scales, sizeof weight_scales),
            "cublasLtMatmulDescSetAttribute", error);
    if (status == KV_OK) {
        status = check(cublasLtMatmulDescSetAttribute(description,
                           CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &in_scales, sizeof in_scales),
            "cublasLtMatmulDescSetAttribute", error);
    }
    return status;
}

/* At most as many tiles as the algorithm was chosen for. */
static kv_status_t multiply_batch(cuda_products_t *products, cuda_stream_t *stream,
    const cuda_product_t *product, const cublasLtMatmulAlgo_t *algorithm, kv_error_t *error)
{
    layouts_t layouts;
    cublasLtMatmulDesc_t description = description_of(products, product);
    kv_status_t status =
        is_outer(products, product)
            ? point_to_scales(description, product->weight_scales, product->in_scales, error)
            : KV_OK;
    if (status == KV_OK) {
        status = make_layouts(product, product->tile_count, &layouts, error);
    }
    if (status != KV_OK) {
        return status;
    }
    const float one = 1, scale = product->accumulate ? 1 : 0;
    status = check(
        cublasLtMatmul(products->handle, description, &one, product->weights, layouts.weights,
            product->in, layouts.in, &scale, product->out, layouts.out, product->out, layouts.out,
            algorithm, products->workspace, WORKSPACE_BYTES, (cudaStream_t)stream),
        "cublasLtMatmul", error);
    destroy_layouts(&layouts);
    return status;
}

/* Sums to the scratch, and scaled from there. */
static kv_status_t multiply_unscaled(cuda_products_t *products, cuda_stream_t *stream,
    const cuda_product_t *product, const cublasLtMatmulAlgo_t *algorithm, kv_error_t *error)
{
    cuda_product_t sums = *product;
    sums.out = (float *)products->unscaled;
    sums.accumulate = false;
    kv_status_t status = multiply_batch(products, stream, &sums, algorithm, error);
    if (status != KV_OK) {
        return status;
    }
    cuda_rescale_t rescale = {};
    rescale.from = sums.out;
    rescale.out = product->out;
    rescale.rows = product->tile_count * product->tile_rows;
    rescale.columns = product->rows;
    rescale.row_scales = product->in_scales;
    rescale.column_scales = product->weight_scales;
    rescale.accumulate = product->accumulate;
    return cuda_rescale(stream, &rescale, error);
}

static kv_status_t lt_run(cuda_products_t *products, cuda_stream_t *stream,
    const cuda_product_t *product, kv_error_t *error)
{
    cuda_product_t batch = as_computed(products, product);
    kv_status_t status = prepare_computed(products, &batch, error);
    const shape_t *shape = find_shape(products, &batch);
    for (uint32_t at = 0; at < product->tile_count && status == KV_OK; at += batch.tile_count) {
        const uint32_t left = product->tile_count - at;
        const size_t row = (size_t)at * product->tile_rows;
        batch.tile_count = left < batch.tiles_max ? left : batch.tiles_max;
        batch.in =
            (const char *)product->in + row * product->columns * element_bytes(product->element);
        if (product->in_scales != nullptr) {
            batch.in_scales = product->in_scales + row;
        }
        batch.out = product->out + row * product->rows;
        status = is_unscaled(products, product)
                     ? multiply_unscaled(products, stream, &batch, &shape->algorithm, error)
                     : multiply_batch(products, stream, &batch, &shape->algorithm, error);
    }
    return status;
}

/* ---- open and close ---- */

static void lt_close(cuda_products_t *products)
{
    if (products == nullptr) {
        return;
    }
    if (products->preference != nullptr) {
        (void)cublasLtMatmulPreferenceDestroy(products->preference);
    }
    if (products->outer != nullptr) {
        (void)cublasLtMatmulDescDestroy(products->outer);
    }
    if (products->description != nullptr) {
        (void)cublasLtMatmulDescDestroy(products->description);
    }
    if (products->handle != nullptr) {
        (void)cublasLtDestroy(products->handle);
    }
    (void)cudaFree(products->unscaled);
    (void)cudaFree(products->workspace);
    free(products);
}

static kv_status_t describe(cublasLtMatmulDesc_t *description_out, kv_error_t *error)
{
    const cublasOperation_t turned = CUBLAS_OP_T;
    kv_status_t status =
        check(cublasLtMatmulDescCreate(description_out, CUBLAS_COMPUTE_32F, CUDA_R_32F),
            "cublasLtMatmulDescCreate", error);
    if (status == KV_OK) {
        status = check(cublasLtMatmulDescSetAttribute(
                           *description_out, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned),
            "cublasLtMatmulDescSetAttribute", error);
    }
    return status;
}

static kv_status_t describe_outer(cuda_products_t *products, kv_error_t *error)
{
    const int32_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    kv_status_t status = describe(&products->outer, error);
    if (status == KV_OK) {
        status = check(cublasLtMatmulDescSetAttribute(
                           products->outer, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode, sizeof mode),
            "cublasLtMatmulDescSetAttribute", error);
    }
    if (status == KV_OK) {
        status = check(cublasLtMatmulDescSetAttribute(
                           products->outer, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode, sizeof mode),
            "cublasLtMatmulDescSetAttribute", error);
    }
    /* Algorithms are chosen for scales that are somewhere. */
    return status == KV_OK
               ? point_to_scales(products->outer, products->workspace, products->workspace, error)
               : status;
}

/* Whether the library scales rows itself: asked for some product that every chip could do. */
static kv_status_t find_outer(cuda_products_t *products, int chip, kv_error_t *error)
{
    if (chip != OUTER_CHIP || cublasLtGetVersion() < OUTER_VERSION) {
        return KV_OK;
    }
    cuda_product_t some = {};
    some.element = KV_ELEMENT_E4M3;
    some.rows = some.columns = some.tile_rows = 128;
    some.tiles_max = 1;
    cublasLtMatmulHeuristicResult_t results[CANDIDATES] = {};
    int count = 0;
    kv_status_t status = describe_outer(products, error);
    if (status == KV_OK) {
        status = list_algorithms(products, &some, results, &count, error);
    }
    if (status == KV_OK && count == 0) {
        (void)cublasLtMatmulDescDestroy(products->outer);
        products->outer = nullptr;
    }
    return status;
}

static kv_status_t prefer(cuda_products_t *products, kv_error_t *error)
{
    const size_t workspace_bytes = WORKSPACE_BYTES;
    kv_status_t status = check(cublasLtMatmulPreferenceCreate(&products->preference),
        "cublasLtMatmulPreferenceCreate", error);
    if (status == KV_OK) {
        status = check(
            cublasLtMatmulPreferenceSetAttribute(products->preference,
                CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes, sizeof workspace_bytes),
            "cublasLtMatmulPreferenceSetAttribute", error);
    }
    return status;
}

static kv_status_t lt_open(int chip, cuda_products_t **products_out, kv_error_t *error)
{
    cuda_products_t *products = (cuda_products_t *)kv_allocate(sizeof *products);
    snprintf(products->name, sizeof products->name, "lt%zu", cublasLtGetVersion());
    snprintf(products->outer_name, sizeof products->outer_name, "lt%zuo", cublasLtGetVersion());
    kv_status_t status = check(cublasLtCreate(&products->handle), "cublasLtCreate", error);
    if (status == KV_OK) {
        status = describe(&products->description, error);
    }
    if (status == KV_OK) {
        status = prefer(products, error);
    }
    if (status == KV_OK) {
        status = allocate(WORKSPACE_BYTES, &products->workspace, error);
    }
    if (status == KV_OK) {
        status = find_outer(products, chip, error);
    }
    if (status != KV_OK) {
        lt_close(products);
        return status;
    }
    *products_out = products;
    return KV_OK;
}

static const char *lt_name(const cuda_products_t *products, kv_element_t element)
{
    return element == KV_ELEMENT_E4M3 && products->outer != nullptr ? products->outer_name
                                                                    : products->name;
}

const cuda_products_ops_t cuda_products_lt = {lt_open, lt_close, lt_name, lt_prepare, lt_run};
