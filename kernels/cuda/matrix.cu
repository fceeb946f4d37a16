/* Weight matrices: a file's blocks go to the device piece by piece and are dequantised there, into
 * one form that products over tiles, products over rows and the embedding read. */
#include "kernels/cuda/device_internal.h"
#include "kernels/cuda/weights.h"

#include "base/memory.h"

#include <stdlib.h>

/* Elements of one piece: whole blocks of every type, and blocks that begin on 16 bytes. */
#define PIECE_ELEMENTS ((size_t)1 << 20)
static_assert(PIECE_ELEMENTS * 4 <= CUDA_LANE_BYTES, "a piece of any type fits the staging");

static size_t element_bytes(kv_element_t element)
{
    return element == KV_ELEMENT_BF16 ? 2 : 4;
}

static kv_status_t load_part(cuda_device_t *cuda, cuda_lane_t *lane, const kv_matrix_t *matrix,
    const kv_matrix_part_t *part, char *to, kv_error_t *error)
{
    const size_t count = (size_t)part->row_count * matrix->columns;
    kv_status_t status = KV_OK;
    for (size_t at = 0; at < count && status == KV_OK; at += PIECE_ELEMENTS) {
        const size_t left = count - at, piece = left < PIECE_ELEMENTS ? left : PIECE_ELEMENTS,
                     block = kv_weight_block_elements(part->type),
                     block_bytes = kv_weight_block_bytes(part->type);
        char *from = (char *)(uintptr_t)part->data + at / block * block_bytes;
        status = cuda_copy_async(cuda, lane->stream, KV_MOVE_IN, lane->staging, from,
            piece / block * block_bytes, error);
        if (status == KV_OK) {
            cuda_dequantise_t dequantise = {};
            dequantise.type = part->type;
            dequantise.from = lane->staging;
            dequantise.count = piece;
            dequantise.to = to + at * element_bytes(matrix->element);
            dequantise.to_element = matrix->element;
            status = cuda_dequantise(cuda_opaque(lane->stream), &dequantise, error);
        }
    }
    return status;
}

static kv_status_t load_parts(cuda_device_t *cuda, const kv_matrix_t *matrix,
    const kv_matrix_params_t *params, kv_error_t *error)
{
    cuda_lane_t *lane = cuda_lane_take(cuda);
    char *to = (char *)matrix->weights;
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; i < params->part_count && status == KV_OK; i++) {
        status = load_part(cuda, lane, matrix, &params->parts[i], to, error);
        to += (size_t)params->parts[i].row_count * matrix->columns * element_bytes(matrix->element);
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
    const bool tiles = params->decode && matrix->element == KV_ELEMENT_BF16;
    if (status == KV_OK && tiles) {
        product.tile_rows = CUDA_DECODE_ROWS;
        product.tiles_max = 1;
        status = cuda->products_ops->prepare(cuda->products, &product, error);
    }
    if (status == KV_OK && tiles) {
        status = cuda_scratch_reserve(cuda, &cuda->rows_in,
            (size_t)CUDA_DECODE_ROWS * matrix->columns * element_bytes(KV_ELEMENT_BF16), error);
    }
    if (status == KV_OK && tiles) {
        status = cuda_scratch_reserve(
            cuda, &cuda->rows_out, (size_t)CUDA_DECODE_ROWS * matrix->rows * sizeof(float), error);
    }
    return status;
}

kv_status_t cuda_matrix_create(kv_device_t *device, const kv_matrix_params_t *params,
    kv_matrix_t **matrix_out, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_matrix_t *matrix = (kv_matrix_t *)kv_allocate(sizeof *matrix);
    matrix->columns = params->columns;
    matrix->element = params->f32 ? KV_ELEMENT_F32 : KV_ELEMENT_BF16;
    for (uint32_t i = 0; i < params->part_count; i++) {
        matrix->rows += params->parts[i].row_count;
    }
    matrix->bytes = (size_t)matrix->rows * matrix->columns * element_bytes(matrix->element);
    kv_status_t status = cuda_allocate(device, matrix->bytes, &matrix->weights, error);
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
