/* Weight matrices: dequantised once, then kept packed for tiles and by rows for decode. */
#include "kernels/cpu/dequantise.h"
#include "kernels/cpu/device_internal.h"

#include <stdlib.h>

/* The form that decode reads: the file's own numbers where a compact form has them and all parts
 * agree on it. */
static cpu_rows_format_t choose_format(const kv_matrix_params_t *params)
{
    if (params->f32) {
        return CPU_ROWS_F32;
    }
    const cpu_rows_format_t format = cpu_compact_format(params->parts[0].type);
    for (uint32_t part = 1; part < params->part_count; part++) {
        if (cpu_compact_format(params->parts[part].type) != format) {
            return CPU_ROWS_BF16;
        }
    }
    return format;
}

static void fill_decode(kv_matrix_t *matrix, const kv_matrix_params_t *params, const float *weights)
{
    const size_t count = (size_t)matrix->rows * matrix->columns;
    if (matrix->format == CPU_ROWS_F32) {
        memcpy(matrix->decode.base, weights, count * sizeof(float));
        return;
    }
    if (matrix->format == CPU_ROWS_BF16) {
        uint16_t *to = matrix->decode.base;
        for (size_t i = 0; i < count; i++) {
            to[i] = cpu_bf16_from_float(weights[i]);
        }
        return;
    }
    char *to = matrix->decode.base;
    for (uint32_t part = 0; part < params->part_count; part++) {
        const size_t elements = (size_t)params->parts[part].row_count * params->columns;
        cpu_compact(params->parts[part].type, params->parts[part].data, elements, to);
        to += cpu_rows_bytes(matrix->format, elements);
    }
}

kv_status_t cpu_matrix_create(kv_device_t *device, const kv_matrix_params_t *params,
    kv_matrix_t **matrix_out, kv_error_t *error)
{
    cpu_device_t *cpu = (cpu_device_t *)device;
    kv_matrix_t *matrix = kv_allocate(sizeof *matrix);
    matrix->columns = params->columns;
    for (uint32_t part = 0; part < params->part_count; part++) {
        matrix->rows += params->parts[part].row_count;
    }
    const size_t count = (size_t)matrix->rows * matrix->columns;
    kv_region_t weights = {0};
    kv_arithmetic_t arithmetic;
    kv_status_t status =
        device->ops->describe(device, params->f32, params->fp8, &arithmetic, error);
    if (status == KV_OK) {
        status = kv_region_map(count * sizeof(float), &weights, error);
    }
    if (status == KV_OK) {
        float *to = weights.base;
        for (uint32_t part = 0; part < params->part_count; part++) {
            const size_t elements = (size_t)params->parts[part].row_count * params->columns;
            cpu_dequantise(params->parts[part].type, params->parts[part].data, elements, to);
            to += elements;
        }
    }
    if (status == KV_OK && params->prefill) {
        status = cpu_matmul_create(cpu->matmul, weights.base, matrix->rows, matrix->columns,
            arithmetic.operand, arithmetic.tile_rows, &matrix->tiles, error);
    }
    if (status == KV_OK && params->decode) {
        matrix->format = choose_format(params);
        status = kv_region_map(cpu_rows_bytes(matrix->format, count), &matrix->decode, error);
        if (status == KV_OK) {
            fill_decode(matrix, params, weights.base);
        }
    }
    kv_region_unmap(&weights);
    if (status != KV_OK) {
        cpu_matrix_destroy(device, matrix);
        return status;
    }
    *matrix_out = matrix;
    return KV_OK;
}

void cpu_matrix_destroy(kv_device_t *device, kv_matrix_t *matrix)
{
    (void)device;
    if (matrix == NULL) {
        return;
    }
    cpu_matmul_destroy(matrix->tiles);
    kv_region_unmap(&matrix->decode);
    free(matrix);
}

size_t cpu_matrix_bytes(const kv_matrix_t *matrix)
{
    return matrix->decode.bytes + (matrix->tiles != NULL ? cpu_matmul_bytes(matrix->tiles) : 0);
}
