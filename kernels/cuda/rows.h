/* Kernels over rows of activations: the norm and the gate.
 *
 * Borrows: every pointer is device memory, 16-byte aligned, and belongs to the stream until the
 * kernel has run. Row r of a buffer starts at r x its columns.
 * Threads: the stream's own.
 * Errors: KV_FATAL where the launch is refused. No rows: KV_OK, nothing is launched.
 * Limits: columns are a multiple of 32. A row's numbers depend on that row alone. */
#ifndef KV_KERNELS_CUDA_ROWS_H
#define KV_KERNELS_CUDA_ROWS_H

#include "kernels/cuda/stream.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const float *x;      /* [rows.first + rows.count][columns] */
    const float *weight; /* [columns] */
    float epsilon;
    uint32_t columns;
    kv_rows_t rows;
    void *out; /* [rows.first + rows.count][columns] of out_element */
    kv_element_t out_element;
} cuda_norm_t;

/* out = x / sqrt(mean(x^2) + epsilon) x weight. */
kv_status_t cuda_norm(cuda_stream_t *stream, const cuda_norm_t *norm, kv_error_t *error);

typedef struct {
    const float *in; /* [rows.first + rows.count][2 x columns]: what is gated, then what it gates */
    uint32_t columns;
    kv_rows_t rows;
    void *out; /* [rows.first + rows.count][columns] of out_element */
    kv_element_t out_element;
} cuda_gate_t;

/* out = silu(in[0..columns)) x in[columns..2 columns). */
kv_status_t cuda_gate(cuda_stream_t *stream, const cuda_gate_t *gate, kv_error_t *error);

/* KV_MISSING with the cause where this build holds no code for the thread's GPU. */
kv_status_t cuda_rows_built(kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
