/* Products of single rows with weights in their file's form: what decode reads is the file's own
 * bytes, widened in registers.
 *
 * Borrows: every pointer is device memory, 16-byte aligned, and belongs to the stream until the
 * kernel has run.
 * Threads: the stream's own.
 * Errors: KV_FATAL where a launch is refused. No rows: KV_OK, nothing is launched.
 * Limits: columns are a multiple of 32 and of the type's block. A row's numbers do not depend on
 * the rows that are computed with it. From some sixteen rows on a product over tiles is faster. */
#ifndef KV_KERNELS_CUDA_PRODUCT_ROWS_H
#define KV_KERNELS_CUDA_PRODUCT_ROWS_H

#include "kernels/cuda/stream.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One part of a matrix; a fused matrix takes a call for each, with its columns of out. */
typedef struct {
    kv_weight_type_t type;
    const void *weights; /* [weight_rows][columns] in blocks of the type */
    uint32_t weight_rows, columns;
    const float *in; /* [rows.first + rows.count][columns] */
    kv_rows_t rows;
    float *out; /* [rows.first + rows.count][out_stride], of which weight_rows from out_first on */
    uint32_t out_stride, out_first;
    bool accumulate;
} cuda_product_rows_t;

/* out = in x weights^T, or += with accumulate. */
kv_status_t cuda_product_rows(
    cuda_stream_t *stream, const cuda_product_rows_t *product, kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
