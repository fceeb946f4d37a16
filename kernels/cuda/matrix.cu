/* Weight matrices: a file's blocks go to the device piece by piece and are dequantised there, into
 * one form that products over tiles, products over rows and (not of e4m3) the embedding read. */
#include "kernels/cuda/device_internal.h"
#include "kernels/cuda/quantise.h"
#include "kernels/cuda/weights.h"

#include "base/memory.h"

#include <stdlib.h>

/* Elements of one piece: whole blocks of every type, and blocks that begin on 16 bytes. */
#define PIECE_ELEMENTS ((size_t)1 << 20)
#define WIDENED_AT (PIECE_ELEMENTS * 4)
static_assert(WIDENED_AT + PIECE_ELEMENTS * 4 <= CUDA_LANE_BYTES,
    "a piece of any type fits the staging, and the same in f32 behind it");

/* Some of the rows in f32, behind the staging's first half, to e4m3. */
static kv_status_t quantise_piece(cuda_lane_t *lane, const kv_matrix_t *matrix, size_t first,
    uint32_t row_count, kv_error_t *error)
{
    cuda_quantise_t quantise = {};
    quantise.from = lane->staging + WIDENED_AT;
    quantise.from_element = KV_ELEMENT_F32;
    quantise.columns = matrix->columns;
    quantise.rows.count = quantise.to_rows = row_count;
    quantise.to = (uint8_t *)matrix->weights + first * matrix->columns;
    quantise.scales = matrix->scales + first;
    return cuda_quantise(cuda_opaque(lane->stream), &quantise, error);
}

/* A part of a matrix, whose first row is the matrix' row first. */
static kv_status_t load_part(cuda_device_t *cuda, cuda_lane_t *lane, const kv_matrix_t *matrix,
    const kv_matrix_part_t *part, size_t first, kv_error_t *error)
{
    const bool e4m3 = matrix->element == KV_ELEMENT_E4M3;
    const size_t count = (size_t)part->row_count * matrix->columns,
                 step = e4m3 ? PIECE_ELEMENTS / matrix->columns * matrix->columns : PIECE_ELEMENTS,
                 block = kv_weight_block_elements(part->type),
                 block_bytes = kv_weight_block_bytes(part->type);
    char *to =
        (char *)matrix->weights + first * matrix->columns * cuda_element_bytes(matrix->element);
    kv_status_t status = KV_OK;
    for (size_t at = 0; at < count && status == KV_OK; at += step) {
        const size_t piece = count - at < step ? count - at : step;
        char *from = (char *)(uintptr_t)part->data + at / block * block_bytes;
        status = cuda_copy_async(cuda, lane->stream, KV_MOVE_IN, lane->staging, from,
            piece / block * block_bytes, error);
        if (status == KV_OK) {
            cuda_dequantise_t dequantise = {};
            dequantise.type = part->type;
            dequantise.from = lane->staging;
            dequantise.count = piece;
            dequantise.to =
                e4m3 ? lane->staging + WIDENED_AT : to + at * cuda_element_bytes(matrix->element);
            dequantise.to_element = e4m3 ? KV_ELEMENT_F32 : matrix->element;
            status = cuda_dequantise(cuda_opaque(lane->stream), &dequantise, error);
        }
        if (status == KV_OK && e4m3) {
            status = quantise_piece(lane, matrix, first + at / matrix->columns,
                (uint32_t)(piece / matrix->columns), error);
        }
    }
    return status;
}

static kv_status_t load_parts(cuda_device_t *cuda, const kv_matrix_t *matrix,
    const kv_matrix_params_t *params, kv_error_t *error)
{
    cuda_lane_t *lane = cuda_lane_take(cuda);
    size_t first = 0;
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; i < params->part_count && status == KV_OK; i++) {
        status = load_part(cuda, lane, matrix, &params->parts[i], first, error);
        first += params->parts[i].row_count;
    }
    kv_status_t drained = cuda_lane_drain(cuda, lane, status == KV_OK ? error : nullptr);
    cuda_lane_give(cuda, lane);
    return status != KV_OK ? status : drained;
}

/* Algorithms and scratch for the products that will be asked for, so that none is chosen or
 * allocated between two kernels. */
static kv_status_t prepare(cuda_device_t *cuda, const kv_matrix_t *matrix,
    const kv_matrix_params_t *params, kv_error_t *error)
{
    cuda_product_t product = {};
    product.element = matrix->element;
    product.rows = matrix->rows;
    product.columns = matrix->columns;
    kv_status_t status = KV_OK;
    if (params->prefill) {
        product.tile_rows = CUDA_PRODUCT_ROWS;
        product.tiles_max = CUDA_PRODUCT_TILES;
        status = cuda->products_ops->prepare(cuda->products, &product, error);
    }
    const bool tiles = params->decode && matrix->element != KV_ELEMENT_F32;
    if (status == KV_OK && tiles) {
        product.tile_rows = CUDA_DECODE_ROWS;
        product.tiles_max = 1;
        status = cuda->products_ops->prepare(cuda->products, &product, error);
    }
    if (status == KV_OK && tiles) {
        /* As many of e4m3 and their scales need no more. */
        status = cuda_scratch_reserve(cuda, &cuda->rows_in,
            (size_t)CUDA_DECODE_ROWS * matrix->columns * cuda_element_bytes(KV_ELEMENT_BF16),
            error);
    }
    if (status == KV_OK && tiles) {
        status = cuda_scratch_reserve(
            cuda, &cuda->rows_out, (size_t)CUDA_DECODE_ROWS * matrix->rows * sizeof(float), error);
    }
    return status;
}

/* What a matrix of e4m3 is refused for. */
static kv_status_t validate_fp8(cuda_device_t *cuda, const kv_matrix_t *matrix, kv_error_t *error)
{
    if (cuda->sm < CUDA_FP8_CHIP) {
        return cuda_refuse_fp8(cuda, error);
    }
    if (matrix->rows % 16 != 0 || matrix->columns > PIECE_ELEMENTS) {
        return kv_fail(error, KV_INVALID,
            "a matrix of %u x %u in fp8: rows must be a multiple of 16, columns at most %zu",
            matrix->rows, matrix->columns, PIECE_ELEMENTS);
    }
    return KV_OK;
}

kv_status_t cuda_matrix_create(kv_device_t *device, const kv_matrix_params_t *params,
    kv_matrix_t **matrix_out, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_matrix_t *matrix = (kv_matrix_t *)kv_allocate(sizeof *matrix);
    matrix->columns = params->columns;
    matrix->element = params->f32   ? KV_ELEMENT_F32
                      : params->fp8 ? KV_ELEMENT_E4M3
                                    : KV_ELEMENT_BF16;
    for (uint32_t i = 0; i < params->part_count; i++) {
        matrix->rows += params->parts[i].row_count;
    }
    const bool e4m3 = matrix->element == KV_ELEMENT_E4M3;
    matrix->bytes =
        e4m3 ? cuda_e4m3_bytes(matrix->rows, matrix->columns)
             : (size_t)matrix->rows * matrix->columns * cuda_element_bytes(matrix->element);
    kv_status_t status = e4m3 ? validate_fp8(cuda, matrix, error) : KV_OK;
    if (status == KV_OK) {
        status = cuda_allocate(device, matrix->bytes, &matrix->weights, error);
    }
    if (status == KV_OK && e4m3) {
        matrix->scales =
            (float *)((char *)matrix->weights + cuda_scales_at(matrix->rows, matrix->columns));
    }
    if (status == KV_OK) {
        status = load_parts(cuda, matrix, params, error);
    }
    if (status == KV_OK) {
        status = prepare(cuda, matrix, params, error);
    }
    if (status != KV_OK) {
        cuda_matrix_destroy(device, matrix);
        return status;
    }
    *matrix_out = matrix;
    return KV_OK;
}

void cuda_matrix_destroy(kv_device_t *device, kv_matrix_t *matrix)
{
    if (matrix != nullptr) {
        cuda_release(device, matrix->weights, matrix->bytes);
        free(matrix);
    }
}

size_t cuda_matrix_bytes(const kv_matrix_t *matrix)
{
    return matrix->bytes;
}
