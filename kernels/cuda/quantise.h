/* Rows to e4m3 with a scale each, and back from the products of such rows.
 *
 * A row's largest |value| becomes 448, the largest of e4m3: value = scale x e4m3. A row of zeros
 * has zeros; one with an infinity or a not-a-number has not-a-numbers.
 *
 * Borrows: every pointer is device memory, 16-byte aligned, and belongs to the stream until the
 * kernel has run.
 * Threads: the stream's own.
 * Errors: KV_FATAL where the launch is refused. No rows: KV_OK, nothing is launched.
 * Limits: columns are a multiple of 32. A row's numbers depend on that row alone. */
#ifndef KV_KERNELS_CUDA_QUANTISE_H
#define KV_KERNELS_CUDA_QUANTISE_H

#include "kernels/cuda/stream.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const void *from;          /* [rows.first + rows.count][columns] of from_element */
    kv_element_t from_element; /* f32 or bf16 */
    uint32_t columns;
    kv_rows_t rows;
    uint32_t to_rows; /* at least rows.count; those behind are zeros */
    uint8_t *to;      /* [to_rows][columns] of e4m3 */
    float *scales;    /* [to_rows] */
} cuda_quantise_t;

kv_status_t cuda_quantise(
    cuda_stream_t *stream, const cuda_quantise_t *quantise, kv_error_t *error);

typedef struct {
    const float *from; /* [rows][columns]: sums of products of e4m3 */
    float *out;        /* [rows][columns] */
    uint32_t rows, columns;
    const float *row_scales;    /* [rows] */
    const float *column_scales; /* [columns] */
    bool accumulate;
} cuda_rescale_t;

/* out = from x row_scale x column_scale, or += with accumulate. */
kv_status_t cuda_rescale(cuda_stream_t *stream, const cuda_rescale_t *rescale, kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
