/* Attention of prefill on tensor cores. A block is one tile of 64 positions and one or two heads of
 * a group, which share the keys and values; four warps a head, each 16 queries. For each tile of 64
 * keys: S = Q K^T (bf16, summed in f32), the running softmax in f32 in registers, O += P V with the
 * weights rounded to bf16. Keys of the next tile arrive while the softmax and the second product
 * run, values while the first does; one buffer each.
 *
 *   shared: Q [heads][64][dim]  K [64][dim]  V [64][dim], bf16; a row's 16-byte chunks lie at
 *   chunk ^ row % 8, so that eight rows of one chunk fill the banks once
 *
 * Operations: 4 x 64 x 64 x dim for a head, query tile and key tile; bytes from the second-level
 * cache for the same: 64 x dim x 4 / heads of the block. Tiles that see most keys start first.
 *
 * Keys past the sequence's last token are not read: their place is zero. Which queries of a tile
 * are computed does not show in the others: a row of a product depends on that row alone.
 *
 * Tolerance against kernels/cpu/plain.c: 0.03 of 1 + |value| (queries and weights in bf16).
 * Known limit: a short chunk far into a sequence has heads x tiles blocks only, which may not fill
 * the chip; its keys are not split. */
#include "kernels/cuda/paged.h"
#include "kernels/cuda/tensor.h"

enum {
    ROWS = CUDA_TILE_ROWS,
    KEYS = 64,
    WARP_ROWS = 16,
    WARPS_PER_HEAD = ROWS / WARP_ROWS,
    CHUNK = 8, /* elements of 16 bytes */
    KEY_GROUPS = KEYS / 8,
    PLAIN_SHARED_BYTES = 48 * 1024, /* more must be asked for */
};

typedef struct {
    paged_view_t view;
    kv_sequence_t sequence;
    const float *queries; /* of row 0 */
    size_t query_stride, out_stride;
    void *out;
    kv_element_t out_element;
    uint32_t group, last_tile, window_tokens;
    float scale; /* 1 / sqrt(head_dim) x log2(e): weights are powers of two */
} tiles_t;

/* A block's part of the work. */
typedef struct {
    uint32_t tile_row;   /* the tile's first row in the buffers */
    uint32_t begin, end; /* rows to compute, within the tile */
    uint32_t position;   /* of the tile's first row */
    uint32_t known;      /* keys before this position exist */
    uint32_t head_first; /* of the block's heads */
    uint32_t kv_head;
} tile_t;

template <int HEADS> static __device__ __forceinline__ tile_t own_tile(const tiles_t &tiles)
{
    tile_t tile;
    tile.tile_row = (tiles.last_tile - blockIdx.x) * ROWS;
    const uint32_t row = tiles.sequence.row, end = row + tiles.sequence.row_count;
    tile.begin = row > tile.tile_row ? row - tile.tile_row : 0;
    tile.end = end < tile.tile_row + ROWS ? end - tile.tile_row : (uint32_t)ROWS;
    tile.position = tiles.sequence.position - row + tile.tile_row;
    tile.known = tile.position + tile.end;
    tile.head_first = blockIdx.y * HEADS;
    tile.kv_head = tile.head_first / tiles.group;
    return tile;
}

template <int DIM>
static __device__ __forceinline__ uint16_t *chunk_at(uint16_t *rows, uint32_t row, uint32_t chunk)
{
    return rows + row * DIM + (chunk ^ row % 8) * CHUNK;
}

/* The block's queries as bf16; rows that are not computed are zero. */
template <int DIM, int HEADS>
static __device__ void load_queries(const tiles_t &tiles, const tile_t &tile, uint16_t *to)
{
    for (uint32_t i = threadIdx.x; i < HEADS * ROWS * DIM / CHUNK; i += blockDim.x) {
        const uint32_t chunk = i % (DIM / CHUNK), line = i / (DIM / CHUNK), row = line % ROWS;
        uint4 packed = make_uint4(0, 0, 0, 0);
        if (row >= tile.begin && row < tile.end) {
            const float4 *from =
                (const float4 *)(tiles.queries + (tile.tile_row + row) * tiles.query_stride +
                                 (size_t)(tile.head_first + line / ROWS) * DIM + chunk * CHUNK);
            const float4 a = from[0], b = from[1];
            packed = make_uint4(cuda_bf16_pair(a.x, a.y), cuda_bf16_pair(a.z, a.w),
                cuda_bf16_pair(b.x, b.y), cuda_bf16_pair(b.z, b.w));
        }
        *(uint4 *)chunk_at<DIM>(to, line, chunk) = packed;
    }
}

/* Begins to load 64 vectors of a head (of keys, or past those of values) from position first on. */
template <int DIM>
static __device__ __forceinline__ void begin_load(
    const tiles_t &tiles, uint32_t head, uint32_t first, uint32_t known, uint16_t *to)
{
    for (uint32_t i = threadIdx.x; i < KEYS * DIM / CHUNK; i += blockDim.x) {
        const uint32_t row = i / (DIM / CHUNK), chunk = i % (DIM / CHUNK);
        const bool valid = first + row < known;
        const char *from =
            valid ? paged_vector(tiles.view, tiles.sequence.slots, first + row, head) + chunk * 16
                  : tiles.view.layer;
        kv_copy_async_16(chunk_at<DIM>(to, row, chunk), from, valid ? 16 : 0);
    }
}

/* The warp's queries of one step of 16 dimensions. */
template <int DIM>
static __device__ __forceinline__ void query_fragment(
    uint16_t *queries, uint32_t step, uint32_t fragment[4])
{
    const uint32_t lane = threadIdx.x % CUDA_WARP, row = threadIdx.x / CUDA_WARP * WARP_ROWS;
    kv_load_matrix_x4(fragment, chunk_at<DIM>(queries, row + lane % 16, 2 * step + lane / 16));
}

/* scores[n]: the warp's 16 queries against keys 8 n to 8 n + 7. */
template <int DIM>
static __device__ __forceinline__ void score_keys(
    uint16_t *queries, uint16_t *keys, float scores[KEY_GROUPS][4])
{
    const uint32_t lane = threadIdx.x % CUDA_WARP, key = lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int n = 0; n < KEY_GROUPS; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            scores[n][i] = 0;
        }
    }
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
        uint32_t a[4];
        query_fragment<DIM>(queries, step, a);
#pragma unroll
        for (int n = 0; n < KEY_GROUPS; n += 2) {
            uint32_t b[4];
            kv_load_matrix_x4(b, chunk_at<DIM>(keys, n * 8 + key, 2 * step + lane / 8 % 2));
            kv_mma_bf16(scores[n], a, b);
            kv_mma_bf16(scores[n + 1], a, b + 2);
        }
    }
}

/* Hides the keys that the rows position and position + 8 do not see. */
static __device__ __forceinline__ void hide(
    float scores[KEY_GROUPS][4], uint32_t first, uint32_t position, uint32_t window_tokens)
{
    const uint32_t column = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t row = position + i / 2 * 8, seen = paged_first_seen(row, window_tokens);
#pragma unroll
        for (int n = 0; n < KEY_GROUPS; n++) {
            const uint32_t key = column + n * 8 + i % 2;
            if (key > row || key < seen) {
                scores[n][i] = -INFINITY;
            }
        }
    }
}

/* The running softmax of the thread's two rows; sums are the thread's own columns' until the end. */
typedef struct {
    float largest[2], sum[2];
} running_t;

/* Scores to weights; fade: what the rows' earlier sums are to be multiplied by. A row that has seen
 * no key yet (a window) keeps -infinity and zero sums. */
static __device__ __forceinline__ void soften(
    float scores[KEY_GROUPS][4], float scale, running_t *running, float fade[2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float peak = running->largest[half];
#pragma unroll
        for (int n = 0; n < KEY_GROUPS; n++) {
            peak = fmaxf(peak, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        }
        peak = fmaxf(peak, __shfl_xor_sync(CUDA_ALL_LANES, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync(CUDA_ALL_LANES, peak, 2));
        const float shift = peak == -INFINITY ? 0.0f : peak * scale;
        fade[half] = exp2f(running->largest[half] * scale - shift);
        float sum = running->sum[half] * fade[half];
#pragma unroll
        for (int n = 0; n < KEY_GROUPS; n++) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                scores[n][i] = exp2f(fmaf(scores[n][i], scale, -shift));
                sum += scores[n][i];
            }
        }
        running->sum[half] = sum;
        running->largest[half] = peak;
    }
}

/* weighted = weighted x fade + weights x values. */
template <int DIM>
static __device__ __forceinline__ void add_values(uint16_t *values,
    const float weights[KEY_GROUPS][4], const float fade[2], float weighted[DIM / 8][4])
{
    const uint32_t lane = threadIdx.x % CUDA_WARP;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
        weighted[n][0] *= fade[0];
        weighted[n][1] *= fade[0];
        weighted[n][2] *= fade[1];
        weighted[n][3] *= fade[1];
    }
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        const float *low = weights[2 * step], *high = weights[2 * step + 1];
        const uint32_t a[4] = {cuda_bf16_pair(low[0], low[1]), cuda_bf16_pair(low[2], low[3]),
            cuda_bf16_pair(high[0], high[1]), cuda_bf16_pair(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < DIM / 8; n += 2) {
            uint32_t b[4];
            kv_load_matrix_x4_transposed(
                b, chunk_at<DIM>(values, step * 16 + lane % 16, n + lane / 16));
            kv_mma_bf16(weighted[n], a, b);
            kv_mma_bf16(weighted[n + 1], a, b + 2);
        }
    }
}

template <int DIM>
static __device__ void store_rows(const tiles_t &tiles, const tile_t &tile,
    const float weighted[DIM / 8][4], const running_t &running)
{
    const uint32_t warp = threadIdx.x / CUDA_WARP, lane = threadIdx.x % CUDA_WARP,
                   head = tile.head_first + warp / WARPS_PER_HEAD;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = running.sum[half];
        sum += __shfl_xor_sync(CUDA_ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(CUDA_ALL_LANES, sum, 2);
        const uint32_t row = warp % WARPS_PER_HEAD * WARP_ROWS + half * 8 + lane / 4;
        if (row < tile.begin || row >= tile.end) {
            continue;
        }
        const float share = 1.0f / sum;
        const size_t at = (tile.tile_row + row) * tiles.out_stride + (size_t)head * DIM;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            const float even = weighted[n][2 * half] * share,
                        odd = weighted[n][2 * half + 1] * share;
            const size_t pair = (at + n * 8) / 2 + lane % 4;
            if (tiles.out_element == KV_ELEMENT_BF16) {
                ((uint32_t *)tiles.out)[pair] = cuda_bf16_pair(even, odd);
            } else {
                ((float2 *)tiles.out)[pair] = make_float2(even, odd);
            }
        }
    }
}

template <int DIM, int HEADS>
static __global__ void __launch_bounds__(HEADS *WARPS_PER_HEAD *CUDA_WARP)
    attend_tiles_kernel(const tiles_t tiles)
{
    KV_SHARED(uint16_t, queries);
    uint16_t *keys = queries + HEADS * ROWS * DIM, *values = keys + KEYS * DIM;
    const tile_t tile = own_tile<HEADS>(tiles);
    const uint32_t warp = threadIdx.x / CUDA_WARP,
                   position = tile.position + warp % WARPS_PER_HEAD * WARP_ROWS +
                              threadIdx.x % CUDA_WARP / 4,
                   value_head = tiles.view.kv_head_count + tile.kv_head,
                   all_seen = paged_first_seen(tile.position + ROWS - 1, tiles.window_tokens);
    uint32_t first = paged_first_seen(tile.position, tiles.window_tokens) / KEYS * KEYS;
    float weighted[DIM / 8][4] = {};
    running_t running = {{-INFINITY, -INFINITY}, {0, 0}};
    begin_load<DIM>(tiles, tile.kv_head, first, tile.known, keys);
    kv_copy_async_commit();
    load_queries<DIM, HEADS>(tiles, tile, queries);
    for (; first < tile.known; first += KEYS) {
        float scores[KEY_GROUPS][4], fade[2];
        begin_load<DIM>(tiles, value_head, first, tile.known, values);
        kv_copy_async_commit();
        kv_copy_async_wait<1>();
        __syncthreads(); /* the keys have arrived */
        score_keys<DIM>(queries, keys, scores);
        __syncthreads(); /* the keys' place is free */
        if (first + KEYS < tile.known) {
            begin_load<DIM>(tiles, tile.kv_head, first + KEYS, tile.known, keys);
        }
        kv_copy_async_commit(); /* empty after the last */
        if (first + KEYS > tile.position || first < all_seen) {
            hide(scores, first, position, tiles.window_tokens);
        }
        soften(scores, tiles.scale, &running, fade);
        kv_copy_async_wait<1>();
        __syncthreads(); /* the values have arrived */
        add_values<DIM>(values, scores, fade, weighted);
        __syncthreads(); /* the values' place is free */
    }
    store_rows<DIM>(tiles, tile, weighted, running);
}

typedef struct {
    cuda_stream_t *stream;
    uint32_t tile_count, head_count;
} launch_t;

template <int DIM, int HEADS>
static kv_status_t launch(const launch_t *own, const tiles_t *tiles, kv_error_t *error)
{
    void (*kernel)(const tiles_t) = attend_tiles_kernel<DIM, HEADS>;
    const size_t shared_bytes = (size_t)(HEADS * ROWS + 2 * KEYS) * DIM * sizeof(uint16_t);
    if (shared_bytes > PLAIN_SHARED_BYTES) {
        const cudaError_t code = cudaFuncSetAttribute(
            (const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
        if (code != cudaSuccess) {
            (void)cudaGetLastError();
            return kv_fail(error, KV_FATAL,
                "attend_tiles cannot have %zu bytes of shared memory: %s", shared_bytes,
                cudaGetErrorString(code));
        }
    }
    return cuda_launched("attend_tiles",
        KV_LAUNCH(kernel, dim3(own->tile_count, own->head_count / HEADS),
            dim3(HEADS * WARPS_PER_HEAD * CUDA_WARP), shared_bytes, cuda_stream_of(own->stream),
            *tiles),
        error);
}

bool cuda_attend_tiles_on_tensor_cores(const cuda_paged_t *paged)
{
    const uint32_t head_dim = paged->shape.head_dim;
    return paged->shape.element_bytes == 2 &&
           (head_dim == 64 || head_dim == 128 || head_dim == 256);
}

kv_status_t cuda_attend_tiles(
    cuda_stream_t *stream, const cuda_attend_tiles_t *attend, kv_error_t *error)
{
    const cuda_paged_t *paged = &attend->paged;
    const uint32_t head_dim = paged->shape.head_dim, row = attend->sequence.row,
                   end = row + attend->sequence.row_count,
                   group = paged->head_count / paged->shape.kv_head_count;
    if (attend->sequence.row_count == 0) {
        return KV_OK;
    }
    if (!cuda_attend_tiles_on_tensor_cores(paged)) {
        return cuda_attend_tiles_plain(stream, attend, error);
    }
    tiles_t tiles = {};
    tiles.view = paged_view(paged);
    tiles.sequence = attend->sequence;
    tiles.queries = attend->projected;
    tiles.query_stride = paged_columns(paged);
    tiles.out = attend->out;
    tiles.out_element = attend->out_element;
    tiles.out_stride = (size_t)paged->head_count * head_dim;
    tiles.group = group;
    tiles.last_tile = (end - 1) / ROWS;
    tiles.window_tokens = paged->window_tokens;
    tiles.scale = (float)(1.4426950408889634 / sqrt((double)head_dim));
    const launch_t own = {stream, tiles.last_tile - row / ROWS + 1, paged->head_count};
    if (head_dim == 256) {
        return launch<256, 1>(&own, &tiles, error);
    }
    if (head_dim == 128) {
        return group % 2 == 0 ? launch<128, 2>(&own, &tiles, error)
                              : launch<128, 1>(&own, &tiles, error);
    }
    return group % 2 == 0 ? launch<64, 2>(&own, &tiles, error) : launch<64, 1>(&own, &tiles, error);
}
