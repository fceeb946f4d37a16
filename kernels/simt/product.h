/* Sums of products of rows, as fast as one thread of the host makes them.
 *
 * The instruction set is chosen at run time, once (kernels/cpu/isa.h); the order of a sum, and with
 * it its last bits, is that of the instruction set.
 *
 * Owns: packed rows, until they are given back.
 * Threads: free of state. */
#ifndef KV_KERNELS_SIMT_PRODUCT_H
#define KV_KERNELS_SIMT_PRODUCT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_PRODUCT_LANES = 8, KV_PRODUCT_PANEL = 32 };

/* Which order of sums is this machine's: 0 plain, 1 AVX2, 2 AMX for bf16 and AVX2 otherwise. */
int kv_product_order(void);

/* out[j x out_pitch + i] = the sum over k of left[i x pitch + k] x right[j x pitch + k], for i
 * below left_count and j below right_count.
 *
 * pitch is a multiple of KV_PRODUCT_LANES; what a row holds past its end is zero. A sum's order
 * depends on pitch alone. */
void kv_product_f32(const float *left, size_t left_count, const float *right, size_t right_count,
    size_t pitch, float *out, size_t out_pitch);

/* Is there an instruction for bf16 rows of this length, so many on the left side? */
bool kv_product_takes_bf16(size_t left_count, size_t depth);

/* The right side's rows, pitch elements apart, as that instruction wants them. Sixteen rows of
 * nothing but zeros are known for that and cost nothing; their products are zero. */
typedef struct {
    uint16_t *tiles;
    bool *filled;
    size_t count, depth;
} kv_product_packed_t;
void kv_product_pack(const uint16_t *rows, size_t pitch, size_t count, size_t depth,
    kv_product_packed_t *packed_out);
void kv_product_unpack(kv_product_packed_t *packed);

/* out[j x KV_PRODUCT_PANEL + i], as above, for up to KV_PRODUCT_PANEL rows of the left side. */
void kv_product_bf16(const uint16_t *left, size_t pitch, size_t left_count,
    const kv_product_packed_t *packed, float *out);

#endif
