/* Matrix products: a table of functions, so that cuBLASLt and the plain twin stand in for each
 * other.
 *
 * A product is a batch of tiles of one fixed height against one matrix. The height is part of what
 * chooses the instructions, the number of tiles is not: a tile's numbers do not depend on how many
 * are computed with it, nor a row's on its neighbours.
 *
 * Owns: its handle, the workspace, the chosen algorithms.
 * Borrows: device memory of a product until the stream has run it.
 * Threads: one.
 * Errors: KV_FATAL with the library's status.
 * Limits: columns are a multiple of 32; matrices begin on 256 bytes, which is what cuBLASLt
 * chooses its algorithms for; of e4m3 rows of weights are a multiple of 16. */
#ifndef KV_KERNELS_CUDA_PRODUCTS_H
#define KV_KERNELS_CUDA_PRODUCTS_H

#include "kernels/cuda/stream.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cuda_products cuda_products_t;

typedef struct {
    const void *weights;  /* [rows][columns] of element */
    const void *in;       /* [tile_count x tile_rows][columns] of element */
    float *out;           /* [tile_count x tile_rows][rows] */
    kv_element_t element; /* sums are f32 either way */
    uint32_t rows, columns;
    uint32_t tile_rows, tile_count;
    uint32_t tiles_max; /* computed at once: part of what chooses the instructions, as tile_rows */
    bool accumulate;    /* out += instead of out = */
    const float *weight_scales, *in_scales; /* of e4m3: [rows], [tile_count x tile_rows] */
} cuda_product_t;

typedef struct {
    /* chip: 90 for compute capability 9.0. */
    kv_status_t (*open)(int chip, cuda_products_t **products_out, kv_error_t *error);
    void (*close)(cuda_products_t *products);

    /* "lt130100": which arithmetic this is, at most 15 bytes; with an "o" where it is e4m3's and
     * the library multiplies with the scales itself. */
    const char *(*name)(const cuda_products_t *products, kv_element_t element);

    /* Chooses how it is computed, once for each shape; only element, rows, columns, tile_rows and
     * tiles_max are looked at. run does it where nobody did. */
    kv_status_t (*prepare)(
        cuda_products_t *products, const cuda_product_t *product, kv_error_t *error);

    /* out = in x weights^T, in order on the stream. */
    kv_status_t (*run)(cuda_products_t *products, cuda_stream_t *stream,
        const cuda_product_t *product, kv_error_t *error);
} cuda_products_ops_t;

extern const cuda_products_ops_t cuda_products_lt, cuda_products_plain;

/* Rows of activations to a tile in bf16: to[i] = in[rows.first + i] for i below rows.count, zero up
 * to tile_rows. */
typedef struct {
    const float *in; /* [rows.first + rows.count][columns] */
    void *to;        /* [tile_rows][columns] of bf16 */
    uint32_t columns, tile_rows;
    kv_rows_t rows;
} cuda_rows_in_t;

kv_status_t cuda_rows_in(cuda_stream_t *stream, const cuda_rows_in_t *rows_in, kv_error_t *error);

/* And a tile's rows to where they belong: out[rows.first + i] = or += from[i]. */
typedef struct {
    const float *from; /* [tile_rows][columns] */
    float *out;        /* [rows.first + rows.count][columns] */
    uint32_t columns;
    kv_rows_t rows;
    bool accumulate;
} cuda_rows_out_t;

kv_status_t cuda_rows_out(
    cuda_stream_t *stream, const cuda_rows_out_t *rows_out, kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
