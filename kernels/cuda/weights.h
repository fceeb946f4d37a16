/* Weights in their file's form, read on the device: whole matrices to f32 or bf16, or the rows of
 * some tokens. The device keeps a file's blocks as they are; the formats are described in
 * kernels/cpu/dequantise.h.
 *
 * Borrows: every pointer is device memory and belongs to the stream until the kernel has run.
 * Blocks are 16-byte aligned at their first, outputs likewise.
 * Threads: the stream's own.
 * Errors: KV_FATAL where the launch is refused. Nothing to do: KV_OK, nothing is launched.
 * Limits: counts and columns are multiples of 32 and of the type's block. */
#ifndef KV_KERNELS_CUDA_WEIGHTS_H
#define KV_KERNELS_CUDA_WEIGHTS_H

#include "kernels/cuda/stream.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    kv_weight_type_t type;
    const void *from; /* [count] elements in blocks of the type */
    size_t count;
    void *to; /* [count] of to_element */
    kv_element_t to_element;
} cuda_dequantise_t;

kv_status_t cuda_dequantise(
    cuda_stream_t *stream, const cuda_dequantise_t *dequantise, kv_error_t *error);

typedef struct {
    kv_weight_type_t type;
    const void *matrix; /* [vocabulary][columns] in blocks of the type */
    uint32_t columns;
    const uint32_t *tokens; /* [rows.count], each below the vocabulary */
    kv_rows_t rows;
    float *out; /* [rows.first + rows.count][columns] */
} cuda_embed_t;

/* out[rows.first + i] = matrix[tokens[i]]. */
kv_status_t cuda_embed(cuda_stream_t *stream, const cuda_embed_t *embed, kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
