/* Sums of products of f32 rows, as fast as one thread of the host makes them.
 *
 * Threads: free of state. */
#ifndef KV_KERNELS_SIMT_PRODUCT_H
#define KV_KERNELS_SIMT_PRODUCT_H

#include <stddef.h>

enum { KV_PRODUCT_LANES = 8 };

/* out[j x out_pitch + i] = the sum over k of left[i x pitch + k] x right[j x pitch + k], for i
 * below left_count and j below right_count.
 *
 * pitch is a multiple of KV_PRODUCT_LANES; what a row holds past its end is zero. A sum's order
 * depends on pitch alone. */
void kv_product_f32(const float *left, size_t left_count, const float *right, size_t right_count,
    size_t pitch, float *out, size_t out_pitch);

#endif
