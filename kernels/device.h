/* The device: where KV and weights live and where kernels run, behind one table of functions.
 *
 * A device is the CPU or one GPU. Callers hold device pointers and never dereference them: on a GPU
 * they are not addresses of this process. The engine calls compute kernels, the store and the
 * transport memory and copies, only through the table.
 *
 * Kernels are enqueued and run in order, at the latest when finish returns; every array that a call
 * names (device or host) belongs to the device until then, the call's own struct does not.
 *
 * Owns: the memory that it allocated, its matrices, its thread team.
 * Threads: memory and copies may be called from any thread; matrices, kernels and finish only from
 * the thread that leads the device's team (the node's compute thread), in order.
 * Errors: KV_NO_SPACE from allocation, KV_FATAL from a device that failed, reported by finish; a
 * copy cannot fail on the CPU. Kernels check nothing that a user sent: the engine has. */
#ifndef KV_KERNELS_DEVICE_H
#define KV_KERNELS_DEVICE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The geometry of paged KV. One block holds block_tokens positions of every layer; inside a block
 * the order is [layer][K, V][kv_head][token][head_dim], so that a layer is one range and a head
 * range is one range of it. A block table is an array of slot numbers; slot s starts at arena + s x
 * kv_block_bytes(). */
typedef struct {
    uint32_t layer_count;
    uint32_t kv_head_count;
    uint32_t head_dim;
    uint32_t block_tokens;  /* 16, 32, 64 or 128 */
    uint32_t element_bytes; /* 2: bf16; 4: f32 */
} kv_block_shape_t;

/* Bytes of K and V of one layer in one block. */
static inline size_t kv_block_layer_bytes(const kv_block_shape_t *shape)
{
    return (size_t)2 * shape->kv_head_count * shape->block_tokens * shape->head_dim *
           shape->element_bytes;
}

static inline size_t kv_block_bytes(const kv_block_shape_t *shape)
{
    return shape->layer_count * kv_block_layer_bytes(shape);
}

typedef struct kv_device kv_device_t;

/* How weights are written in a model's file; the numbers are GGUF's tensor types. */
typedef enum {
    KV_WEIGHT_F32 = 0,
    KV_WEIGHT_F16 = 1,
    KV_WEIGHT_Q4_0 = 2,
    KV_WEIGHT_Q4_1 = 3,
    KV_WEIGHT_Q8_0 = 8,
    KV_WEIGHT_Q4_K = 12,
    KV_WEIGHT_Q6_K = 14,
    KV_WEIGHT_BF16 = 30,
} kv_weight_type_t;

/* Elements of one block of the type, and the block's bytes; 0 for an unknown type. A matrix' row is
 * a whole number of blocks. */
uint32_t kv_weight_block_elements(kv_weight_type_t type);
uint32_t kv_weight_block_bytes(kv_weight_type_t type);

/* Rows of a weight matrix as the file holds them, in host memory. */
typedef struct {
    kv_weight_type_t type;
    uint32_t row_count;
    const void *data; /* [row_count][columns] */
} kv_matrix_part_t;

enum { KV_MATRIX_PARTS_MAX = 3 };

/* A weight matrix to prepare: its parts lie below each other (fused products). */
typedef struct {
    kv_matrix_part_t parts[KV_MATRIX_PARTS_MAX];
    uint32_t part_count;
    uint32_t columns; /* a multiple of 32 */
    bool f32;         /* f32 products; else the device's 16-bit form where it has one */
    bool prefill;     /* will be used in products over row tiles */
    bool decode;      /* will be used in products over single rows, or to embed */
} kv_matrix_params_t;

/* A weight matrix in the forms that the device's kernels read; belongs to the device. */
typedef struct kv_matrix kv_matrix_t;

typedef enum { KV_ELEMENT_F32 = 0, KV_ELEMENT_BF16 = 1 } kv_element_t;

/* Rows first to first + count - 1 of a buffer whose row 0 lies on a tile's boundary. */
typedef struct {
    uint32_t first, count;
} kv_rows_t;

/* Consecutive new tokens of one sequence: row_count rows of the buffers from row on hold the tokens
 * at position, position + 1, ... */
typedef struct {
    const uint32_t *slots; /* host: the block table, covers position + row_count tokens */
    uint32_t position;
    uint32_t row, row_count;
} kv_sequence_t;

/* The paged KV of one layer, and the heads that read it. Query rows hold head_count x head_dim; the
 * rows of a fused projection hold queries, keys and values beside each other. */
typedef struct {
    const kv_block_shape_t *shape;
    void *arena;
    uint32_t layer;
    uint32_t head_count; /* a multiple of shape->kv_head_count */
} kv_paged_t;

typedef struct {
    /* Rows of one tile of prefill; buffers of prefill hold whole tiles. */
    uint32_t tile_rows;
    /* What products over tiles read; products over single rows read f32. */
    kv_element_t operand;
    /* "cpu/prefill/amx+amx/bf16/v1": instructions of products and of attention */
    char prefill[48], decode[48];
} kv_arithmetic_t;

typedef struct {
    const char *name; /* "cpu" */
    bool host;        /* its pointers are addresses of this process after all: who copies may do so
                         without it, and do more on the way */

    void (*close)(kv_device_t *device);

    /* Memory of the device, 2 MiB aligned, zeroed. */
    kv_status_t (*allocate)(
        kv_device_t *device, size_t bytes, void **memory_out, kv_error_t *error);
    void (*release)(kv_device_t *device, void *memory, size_t bytes);

    /* Copies between this process's memory and the device's; complete when the call returns. */
    void (*copy_in)(kv_device_t *device, void *device_to, const void *from, size_t bytes);
    void (*copy_out)(kv_device_t *device, void *to, const void *device_from, size_t bytes);

    /* How the device computes, with f32 products or without. */
    void (*describe)(const kv_device_t *device, bool f32, kv_arithmetic_t *arithmetic_out);

    kv_status_t (*matrix_create)(kv_device_t *device, const kv_matrix_params_t *params,
        kv_matrix_t **matrix_out, kv_error_t *error);
    void (*matrix_destroy)(kv_device_t *device, kv_matrix_t *matrix);
    size_t (*matrix_bytes)(const kv_matrix_t *matrix);

    /* out[row][columns] = matrix[tokens[i]], for the rows in order. tokens: host. */
    void (*embed)(kv_device_t *device, const kv_matrix_t *matrix, const uint32_t *tokens,
        kv_rows_t rows, float *out);

    /* out[row][columns] = x / sqrt(mean(x^2) + epsilon) x weight[columns]. */
    void (*norm)(kv_device_t *device, const float *x, const float *weight, float epsilon,
        uint32_t columns, kv_rows_t rows, void *out, kv_element_t out_element);

    /* out[row][matrix rows] = in[row][columns] x matrix^T, or += with accumulate. Over tiles the
     * tiles that the rows touch are computed whole. */
    void (*product_tiles)(kv_device_t *device, const kv_matrix_t *matrix, const void *in,
        kv_rows_t rows, bool accumulate, float *out);
    void (*product_rows)(kv_device_t *device, const kv_matrix_t *matrix, const float *in,
        kv_rows_t rows, bool accumulate, float *out);

    /* Rotates the queries (in place) and keys of projected[row][(heads + 2 kv_heads) x head_dim]
     * by adjacent pairs (rotation[position][head_dim / 2][cos, sin]) and writes keys and values to
     * the arena. */
    void (*rotate_store)(kv_device_t *device, const kv_paged_t *paged,
        const kv_sequence_t *sequences, uint32_t sequence_count, const float *rotation,
        float *projected);

    /* out[row][heads x head_dim]: causal attention, scaled by 1 / sqrt(head_dim), of the rotated
     * queries in projected over the arena. tiles: one sequence whose row 0 of the buffers lies on
     * an absolute tile boundary; rows: sequences of one row each, out in f32. */
    void (*attend_tiles)(kv_device_t *device, const kv_paged_t *paged,
        const kv_sequence_t *sequence, const float *projected, void *out, kv_element_t out_element);
    void (*attend_rows)(kv_device_t *device, const kv_paged_t *paged,
        const kv_sequence_t *sequences, uint32_t sequence_count, const float *projected,
        float *out);

    /* out[row][columns] = silu(in[row][0..columns)) x in[row][columns..2 columns). */
    void (*gate)(kv_device_t *device, const float *in, uint32_t columns, kv_rows_t rows, void *out,
        kv_element_t out_element);

    /* Returns when everything that was enqueued has run. */
    kv_status_t (*finish)(kv_device_t *device, kv_error_t *error);
} kv_device_ops_t;

struct kv_device {
    const kv_device_ops_t *ops;
};

/* The CPU of this machine. thread_count: of the compute team, 1 to 256. The best instruction set
 * that the machine has is used; the environment's KVIST_ISA (plain, avx2, avx512, amx) caps it. */
kv_status_t kv_device_cpu_open(uint32_t thread_count, kv_device_t **device_out, kv_error_t *error);
void kv_device_close(kv_device_t *device);

#ifdef __cplusplus
}
#endif

#endif
