/* Products by one plain kernel, and the rows of decode on their way into a tile and out of it.
 *
 * product: a block of 256 threads makes 64 rows of weights x 32 rows of a tile; columns go by in
 * steps of 32, which every thread adds to its 8 sums in their order. So a row's sum has one order.
 * Bytes: weights once for each 32 rows, in once for each 64 rows of weights.
 * Tolerance against a sum in double: 2e-7 x columns^0.5 of the largest |in| x |weight| x columns.
 * rows_in, rows_out: a thread for four columns; exact but for rounding to bf16. */
#include "kernels/cuda/products.h"

#include "kernels/cuda/launch.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum {
    THREADS = 256,
    OUT_ROWS = 32, /* of a tile, in one block */
    WEIGHTS = 64,  /* rows of weights in one block */
    STEP = 32,     /* columns at a time */
    PAD = 1,       /* words: neighbouring rows in different banks */
    THREAD_ROWS = 2,
    THREAD_WEIGHTS = 4,
    VECTOR = 4,
};
static_assert(OUT_ROWS / THREAD_ROWS * (WEIGHTS / THREAD_WEIGHTS) == THREADS, "one thread a patch");

struct cuda_products {
    char name[8];
};

static __device__ __forceinline__ float load(const float *from)
{
    return *from;
}

static __device__ __forceinline__ float load(const __nv_bfloat16 *from)
{
    return __bfloat162float(*from);
}

static __device__ __forceinline__ float load(const __nv_fp8_e4m3 *from)
{
    return (float)*from;
}

/* Rows first to first + count - 1 of from[][columns], columns at to at + STEP - 1, into shared
 * memory; rows past row_count are zero. */
template <typename element_t>
static __device__ void fetch(float (*to)[STEP + PAD], const element_t *from, uint32_t first,
    uint32_t count, uint32_t row_count, uint32_t columns, uint32_t at)
{
    for (uint32_t i = threadIdx.x; i < count * STEP; i += THREADS) {
        const uint32_t row = i / STEP, column = i % STEP;
        to[row][column] = first + row < row_count
                              ? load(from + (size_t)(first + row) * columns + at + column)
                              : 0.0f;
    }
}

template <typename element_t>
static __global__ void __launch_bounds__(THREADS) product_kernel(const cuda_product_t product)
{
    __shared__ float in[OUT_ROWS][STEP + PAD], weights[WEIGHTS][STEP + PAD];
    const uint32_t first_row = blockIdx.x * OUT_ROWS, first_weight = blockIdx.y * WEIGHTS,
                   row_count = product.tile_rows * product.tile_count,
                   row = threadIdx.x / (WEIGHTS / THREAD_WEIGHTS) * THREAD_ROWS,
                   weight = threadIdx.x % (WEIGHTS / THREAD_WEIGHTS);
    float sums[THREAD_ROWS][THREAD_WEIGHTS] = {};
    for (uint32_t at = 0; at < product.columns; at += STEP) {
        fetch(
            in, (const element_t *)product.in, first_row, OUT_ROWS, row_count, product.columns, at);
        fetch(weights, (const element_t *)product.weights, first_weight, WEIGHTS, product.rows,
            product.columns, at);
        __syncthreads();
        for (uint32_t k = 0; k < STEP; k++) {
            for (uint32_t i = 0; i < THREAD_ROWS; i++) {
                for (uint32_t j = 0; j < THREAD_WEIGHTS; j++) {
                    sums[i][j] +=
                        in[row + i][k] * weights[weight + j * (WEIGHTS / THREAD_WEIGHTS)][k];
                }
            }
        }
        __syncthreads();
    }
    for (uint32_t i = 0; i < THREAD_ROWS; i++) {
        for (uint32_t j = 0; j < THREAD_WEIGHTS; j++) {
            const uint32_t out_row = first_row + row + i,
                           column = first_weight + weight + j * (WEIGHTS / THREAD_WEIGHTS);
            if (out_row < row_count && column < product.rows) {
                float *out = product.out + (size_t)out_row * product.rows + column;
                float sum = sums[i][j];
                if (product.element == KV_ELEMENT_E4M3) {
                    sum *= product.in_scales[out_row] * product.weight_scales[column];
                }
                *out = product.accumulate ? *out + sum : sum;
            }
        }
    }
}

static kv_status_t plain_run(cuda_products_t *products, cuda_stream_t *stream,
    const cuda_product_t *product, kv_error_t *error)
{
    (void)products;
    if (product->tile_count == 0) {
        return KV_OK;
    }
    const dim3 grid(cuda_blocks((size_t)product->tile_rows * product->tile_count, OUT_ROWS),
        cuda_blocks(product->rows, WEIGHTS));
    const cudaStream_t to = cuda_stream_of(stream);
    cudaError_t code = cudaErrorInvalidValue;
    switch (product->element) {
    case KV_ELEMENT_F32:
        code = KV_LAUNCH((product_kernel<float>), grid, dim3(THREADS), 0, to, *product);
        break;
    case KV_ELEMENT_BF16:
        code = KV_LAUNCH((product_kernel<__nv_bfloat16>), grid, dim3(THREADS), 0, to, *product);
        break;
    case KV_ELEMENT_E4M3:
        code = KV_LAUNCH((product_kernel<__nv_fp8_e4m3>), grid, dim3(THREADS), 0, to, *product);
        break;
    }
    return cuda_launched("product", code, error);
}

static kv_status_t plain_prepare(
    cuda_products_t *products, const cuda_product_t *product, kv_error_t *error)
{
    (void)products;
    (void)product;
    (void)error;
    return KV_OK;
}

static kv_status_t plain_open(int chip, cuda_products_t **products_out, kv_error_t *error)
{
    (void)chip;
    (void)error;
    cuda_products_t *products = (cuda_products_t *)kv_allocate(sizeof *products);
    memcpy(products->name, "plain", sizeof "plain");
    *products_out = products;
    return KV_OK;
}

static void plain_close(cuda_products_t *products)
{
    free(products);
}

static const char *plain_name(const cuda_products_t *products, kv_element_t element)
{
    (void)element;
    return products->name;
}

const cuda_products_ops_t cuda_products_plain = {
    plain_open, plain_close, plain_name, plain_prepare, plain_run};

/* ---- rows in and out of a tile ---- */

static __global__ void __launch_bounds__(THREADS) rows_in_kernel(const cuda_rows_in_t rows_in)
{
    const size_t quarter = rows_in.columns / VECTOR,
                 at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= rows_in.tile_rows * quarter) {
        return;
    }
    const size_t row = at / quarter;
    const float4 *in = (const float4 *)rows_in.in;
    const float4 value =
        row < rows_in.rows.count ? in[rows_in.rows.first * quarter + at] : make_float4(0, 0, 0, 0);
    cuda_store4(rows_in.to, at, value, KV_ELEMENT_BF16);
}

kv_status_t cuda_rows_in(cuda_stream_t *stream, const cuda_rows_in_t *rows_in, kv_error_t *error)
{
    const size_t count = (size_t)rows_in->tile_rows * (rows_in->columns / VECTOR);
    const cudaError_t code = KV_LAUNCH(rows_in_kernel, dim3(cuda_blocks(count, THREADS)),
        dim3(THREADS), 0, cuda_stream_of(stream), *rows_in);
    return cuda_launched("rows_in", code, error);
}

static __global__ void __launch_bounds__(THREADS) rows_out_kernel(const cuda_rows_out_t rows_out)
{
    const size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)rows_out.rows.count * rows_out.columns) {
        return;
    }
    float *out = rows_out.out + (size_t)rows_out.rows.first * rows_out.columns + at;
    *out = rows_out.accumulate ? *out + rows_out.from[at] : rows_out.from[at];
}

kv_status_t cuda_rows_out(cuda_stream_t *stream, const cuda_rows_out_t *rows_out, kv_error_t *error)
{
    const size_t count = (size_t)rows_out->rows.count * rows_out->columns;
    if (count == 0) {
        return KV_OK;
    }
    const cudaError_t code = KV_LAUNCH(rows_out_kernel, dim3(cuda_blocks(count, THREADS)),
        dim3(THREADS), 0, cuda_stream_of(stream), *rows_out);
    return cuda_launched("rows_out", code, error);
}
