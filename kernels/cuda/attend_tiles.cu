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
 * Keys are cut into runs of 2048 positions from a multiple of 2048 on, each in a block of its own,
 * so that a short chunk far into a sequence fills the chip too; a second kernel merges a row's runs
 * in their order. That costs dim + 2 floats out and in again for each row, head and run. A tile
 * that sees one run only is written at once. As many tiles go in one launch as partial has room
 * for: every (tile, head, run) is computed by itself, so that this does not show.
 *
 * Keys past the sequence's last token are not read: their place is zero. Which queries of a tile
 * are computed does not show in the others: a row of a product depends on that row alone.
 *
 * Tolerance against kernels/cpu/plain.c: 0.03 of 1 + |value| (queries and weights in bf16). */
#include "kernels/cuda/paged.h"
#include "kernels/cuda/tensor.h"

enum {
    ROWS = CUDA_TILE_ROWS,
    KEYS = 64,
    RUN = 2048, /* keys of one block */
    WARP_ROWS = 16,
    WARPS_PER_HEAD = ROWS / WARP_ROWS,
    CHUNK = 8, /* elements of 16 bytes */
    KEY_GROUPS = KEYS / 8,
    PLAIN_SHARED_BYTES = 48 * 1024, /* more must be asked for */
    MERGE_THREADS = 128,
    FILLING_BLOCKS = 1024, /* enough for any chip */
};
static_assert(RUN % KEYS == 0, "a tile of keys lies in one run");

/* Blocks that a processor is to hold at a time, where registers are what they lack: on sm_90 128
 * registers do for two heads of 128 dimensions, so that one block's softmax runs beside the other's
 * products. Elsewhere that would spill. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
template <int DIM, int HEADS> static constexpr int BLOCKS_WANTED = DIM == 128 && HEADS == 2 ? 2 : 0;
#else
template <int DIM, int HEADS> [[maybe_unused]] static constexpr int BLOCKS_WANTED = 0;
#endif

typedef struct {
    paged_view_t view;
    kv_sequence_t sequence;
    const float *queries; /* of row 0 */
    size_t query_stride, out_stride;
    void *out;
    kv_element_t out_element;
    uint32_t group, head_count, window_tokens;
    uint32_t first_tile, last_tile; /* of the launch */
    uint32_t run_count;             /* of the last tile */
    float *partial;                 /* [tiles][heads][run_count][64][head_dim] */
    float *ends; /* [tiles][heads][run_count][64][largest score, sum of weights] */
    float scale; /* 1 / sqrt(head_dim) x log2(e): weights are powers of two */
} tiles_t;

/* A block's part of the work. */
typedef struct {
    uint32_t tile_row;   /* the tile's first row in the buffers */
    uint32_t begin, end; /* rows to compute, within the tile */
    uint32_t position;   /* of the tile's first row */
    uint32_t known;      /* keys before this position exist */
    uint32_t first_run, last_run;
    uint32_t head_first; /* of the block's heads */
    uint32_t kv_head;
} tile_t;

/* number: of the tile in the buffers. */
static __device__ __forceinline__ tile_t tile_at(const tiles_t &tiles, uint32_t number)
{
    tile_t tile = {};
    tile.tile_row = number * ROWS;
    const uint32_t row = tiles.sequence.row, end = row + tiles.sequence.row_count;
    tile.begin = row > tile.tile_row ? row - tile.tile_row : 0;
    tile.end = end < tile.tile_row + ROWS ? end - tile.tile_row : (uint32_t)ROWS;
    tile.position = tiles.sequence.position - row + tile.tile_row;
    tile.known = tile.position + tile.end;
    tile.first_run = paged_first_seen(tile.position, tiles.window_tokens) / RUN;
    tile.last_run = tile.position / RUN;
    return tile;
}

template <int HEADS> static __device__ __forceinline__ tile_t own_tile(const tiles_t &tiles)
{
    tile_t tile = tile_at(tiles, tiles.last_tile - blockIdx.x);
    tile.head_first = blockIdx.y * HEADS;
    tile.kv_head = tile.head_first / tiles.group;
    return tile;
}

/* Which line of partial and of ends is a row's. */
static __device__ __forceinline__ size_t partial_line(
    const tiles_t &tiles, const tile_t &tile, uint32_t head, uint32_t run, uint32_t row)
{
    const size_t at = tile.tile_row / ROWS - tiles.first_tile;
    return ((at * tiles.head_count + head) * tiles.run_count + run) * ROWS + row;
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
    kv_tensor_wait();
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

/* The running softmax of the thread's two rows; a sum is its own columns' until the end. */
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
    kv_tensor_wait();
}

/* The sums of a row's columns, which four lanes share. */
static __device__ __forceinline__ void complete(running_t *running)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        running->sum[half] += __shfl_xor_sync(CUDA_ALL_LANES, running->sum[half], 1);
        running->sum[half] += __shfl_xor_sync(CUDA_ALL_LANES, running->sum[half], 2);
    }
}

static __device__ __forceinline__ void store_pair(
    const tiles_t &tiles, size_t pair, float even, float odd)
{
    if (tiles.out_element == KV_ELEMENT_BF16) {
        ((uint32_t *)tiles.out)[pair] = cuda_bf16_pair(even, odd);
    } else {
        ((float2 *)tiles.out)[pair] = make_float2(even, odd);
    }
}

/* To out where the tile sees one run only, else to partial. */
template <int DIM>
static __device__ void store_rows(const tiles_t &tiles, const tile_t &tile,
    const float weighted[DIM / 8][4], const running_t &running)
{
    const uint32_t warp = threadIdx.x / CUDA_WARP, lane = threadIdx.x % CUDA_WARP,
                   head = tile.head_first + warp / WARPS_PER_HEAD;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t row = warp % WARPS_PER_HEAD * WARP_ROWS + half * 8 + lane / 4;
        if (row < tile.begin || row >= tile.end) {
            continue;
        }
        if (tile.first_run == tile.last_run) {
            const size_t at = (tile.tile_row + row) * tiles.out_stride + (size_t)head * DIM;
            const float share = 1.0f / running.sum[half];
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                store_pair(tiles, (at + n * 8) / 2 + lane % 4, weighted[n][2 * half] * share,
                    weighted[n][2 * half + 1] * share);
            }
            continue;
        }
        const size_t line = partial_line(tiles, tile, head, blockIdx.z, row);
        float2 *partial = (float2 *)(tiles.partial + line * DIM) + lane % 4;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            partial[n * 4] = make_float2(weighted[n][2 * half], weighted[n][2 * half + 1]);
        }
        if (lane % 4 == 0) {
            ((float2 *)tiles.ends)[line] =
                make_float2(running.largest[half] * tiles.scale, running.sum[half]);
        }
    }
}

template <int DIM, int HEADS>
static __global__ void __launch_bounds__(HEADS *WARPS_PER_HEAD *CUDA_WARP,
    BLOCKS_WANTED<DIM, HEADS>) attend_tiles_kernel(const tiles_t tiles)
{
    KV_SHARED(uint16_t, queries);
    uint16_t *keys = queries + HEADS * ROWS * DIM, *values = keys + KEYS * DIM;
    const tile_t tile = own_tile<HEADS>(tiles);
    if (blockIdx.z < tile.first_run || blockIdx.z > tile.last_run) {
        return; /* the whole block: the tile sees nothing of this run */
    }
    const uint32_t warp = threadIdx.x / CUDA_WARP,
                   position = tile.position + warp % WARPS_PER_HEAD * WARP_ROWS +
                              threadIdx.x % CUDA_WARP / 4,
                   value_head = tiles.view.kv_head_count + tile.kv_head,
                   seen = paged_first_seen(tile.position, tiles.window_tokens) / KEYS * KEYS,
                   all_seen = paged_first_seen(tile.position + ROWS - 1, tiles.window_tokens),
                   run = blockIdx.z * RUN,
                   last = blockIdx.z < tile.last_run ? run + RUN : tile.known;
    uint32_t first = seen > run ? seen : run;
    float weighted[DIM / 8][4] = {};
    running_t running = {{-INFINITY, -INFINITY}, {0, 0}};
    begin_load<DIM>(tiles, tile.kv_head, first, tile.known, keys);
    kv_copy_async_commit();
    load_queries<DIM, HEADS>(tiles, tile, queries);
    for (; first < last; first += KEYS) {
        float scores[KEY_GROUPS][4], fade[2];
        begin_load<DIM>(tiles, value_head, first, tile.known, values);
        kv_copy_async_commit();
        kv_copy_async_wait<1>();
        __syncthreads(); /* the keys have arrived */
        score_keys<DIM>(queries, keys, scores);
        __syncthreads(); /* the keys' place is free */
        if (first + KEYS < last) {
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
    complete(&running);
    store_rows<DIM>(tiles, tile, weighted, running);
}

/* A block is one head of one row of the launch's tiles; a thread two of its dimensions. A run of
 * which the row sees nothing (a window) has -infinity and zeros, and so no share. */
static __global__ void __launch_bounds__(MERGE_THREADS) merge_runs_kernel(const tiles_t tiles)
{
    const tile_t tile = tile_at(tiles, tiles.first_tile + blockIdx.x / ROWS);
    const uint32_t head = blockIdx.y, row = blockIdx.x % ROWS, pair = threadIdx.x,
                   pairs = (uint32_t)(tiles.out_stride / tiles.head_count / 2);
    if (tile.first_run == tile.last_run || row < tile.begin || row >= tile.end || pair >= pairs) {
        return;
    }
    float largest = -INFINITY, sum = 0, even = 0, odd = 0;
    for (uint32_t run = tile.first_run; run <= tile.last_run; run++) {
        const size_t line = partial_line(tiles, tile, head, run, row);
        largest = fmaxf(largest, ((const float2 *)tiles.ends)[line].x);
    }
    for (uint32_t run = tile.first_run; run <= tile.last_run; run++) {
        const size_t line = partial_line(tiles, tile, head, run, row);
        const float2 end = ((const float2 *)tiles.ends)[line],
                     values = ((const float2 *)tiles.partial)[line * pairs + pair];
        const float weight = exp2f(end.x - largest);
        sum = fmaf(weight, end.y, sum);
        even = fmaf(weight, values.x, even);
        odd = fmaf(weight, values.y, odd);
    }
    const float share = 1.0f / sum;
    store_pair(tiles, (tile.tile_row + row) * (tiles.out_stride / 2) + (size_t)head * pairs + pair,
        even * share, odd * share);
}

template <int DIM, int HEADS>
static kv_status_t launch(cuda_stream_t *stream, const tiles_t *tiles, kv_error_t *error)
{
    const size_t shared_bytes = (size_t)(HEADS * ROWS + 2 * KEYS) * DIM * sizeof(uint16_t);
    if (shared_bytes > PLAIN_SHARED_BYTES) {
        const cudaError_t code = cudaFuncSetAttribute(attend_tiles_kernel<DIM, HEADS>,
            cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
        if (code != cudaSuccess) {
            (void)cudaGetLastError();
            return kv_fail(error, KV_FATAL,
                "attend_tiles cannot have %zu bytes of shared memory: %s", shared_bytes,
                cudaGetErrorString(code));
        }
    }
    const dim3 grid(
        tiles->last_tile - tiles->first_tile + 1, tiles->head_count / HEADS, tiles->run_count),
        block(HEADS * WARPS_PER_HEAD * CUDA_WARP);
    return cuda_launched("attend_tiles",
        KV_LAUNCH((attend_tiles_kernel<DIM, HEADS>), grid, block, shared_bytes,
            cuda_stream_of(stream), *tiles),
        error);
}

static kv_status_t launch_shape(
    cuda_stream_t *stream, const tiles_t *tiles, uint32_t head_dim, kv_error_t *error)
{
    const bool pairs = tiles->group % 2 == 0;
    if (head_dim == 256) {
        return launch<256, 1>(stream, tiles, error);
    }
    if (head_dim == 128) {
        return pairs ? launch<128, 2>(stream, tiles, error) : launch<128, 1>(stream, tiles, error);
    }
    return pairs ? launch<64, 2>(stream, tiles, error) : launch<64, 1>(stream, tiles, error);
}

bool cuda_attend_tiles_on_tensor_cores(const cuda_paged_t *paged)
{
    const uint32_t head_dim = paged->shape.head_dim;
    return paged->shape.element_bytes == 2 &&
           (head_dim == 64 || head_dim == 128 || head_dim == 256);
}

static uint32_t runs_to(uint32_t position)
{
    return position / RUN + 1;
}

/* Bytes of partial for a tile whose rows see so many runs. */
static size_t tile_partial_bytes(const cuda_paged_t *paged, uint32_t run_count)
{
    return run_count < 2 ? 0
                         : (size_t)paged->head_count * run_count * ROWS *
                               (paged->shape.head_dim + 2) * sizeof(float);
}

size_t cuda_attend_tiles_partial_bytes(const cuda_paged_t *paged, uint32_t position_max)
{
    if (!cuda_attend_tiles_on_tensor_cores(paged)) {
        return cuda_attend_partial_bytes(paged, ROWS, position_max);
    }
    const uint32_t run_count = runs_to(position_max), tile_blocks = paged->head_count * run_count;
    return tile_partial_bytes(paged, run_count) * ((FILLING_BLOCKS - 1) / tile_blocks + 1);
}

/* Some tiles, and what their runs come to. */
static kv_status_t attend_some(cuda_stream_t *stream, tiles_t *tiles, const cuda_paged_t *paged,
    float *partial, kv_error_t *error)
{
    const uint32_t head_dim = paged->shape.head_dim,
                   tile_count = tiles->last_tile - tiles->first_tile + 1;
    tiles->partial = partial;
    if (partial != NULL) {
        tiles->ends =
            partial + (size_t)tile_count * paged->head_count * tiles->run_count * ROWS * head_dim;
    }
    kv_status_t status = launch_shape(stream, tiles, head_dim, error);
    if (status != KV_OK || tiles->run_count < 2) {
        return status;
    }
    return cuda_launched("merge_runs",
        KV_LAUNCH(merge_runs_kernel, dim3(tile_count * ROWS, paged->head_count),
            dim3(MERGE_THREADS), 0, cuda_stream_of(stream), *tiles),
        error);
}

static tiles_t tiles_of(const cuda_attend_tiles_t *attend)
{
    const cuda_paged_t *paged = &attend->paged;
    tiles_t tiles = {};
    tiles.view = paged_view(paged);
    tiles.sequence = attend->sequence;
    tiles.queries = attend->projected;
    tiles.query_stride = paged_columns(paged);
    tiles.out = attend->out;
    tiles.out_element = attend->out_element;
    tiles.out_stride = (size_t)paged->head_count * paged->shape.head_dim;
    tiles.group = paged->head_count / paged->shape.kv_head_count;
    tiles.head_count = paged->head_count;
    tiles.window_tokens = paged->window_tokens;
    tiles.scale = (float)(1.4426950408889634 / sqrt((double)paged->shape.head_dim));
    return tiles;
}

kv_status_t cuda_attend_tiles(
    cuda_stream_t *stream, const cuda_attend_tiles_t *attend, kv_error_t *error)
{
    const cuda_paged_t *paged = &attend->paged;
    const kv_sequence_t *sequence = &attend->sequence;
    if (sequence->row_count == 0) {
        return KV_OK;
    }
    if (!cuda_attend_tiles_on_tensor_cores(paged)) {
        return cuda_attend_tiles_plain(stream, attend, error);
    }
    const uint32_t run_count = runs_to(sequence->position + sequence->row_count - 1),
                   first = sequence->row / ROWS,
                   end = (sequence->row + sequence->row_count - 1) / ROWS + 1;
    const size_t tile_bytes = tile_partial_bytes(paged, run_count);
    if (tile_bytes > attend->partial_bytes) {
        return kv_fail(error, KV_FATAL, "attend_tiles was given %zu bytes of partial, not %zu",
            attend->partial_bytes, tile_bytes);
    }
    uint32_t step = end - first;
    if (tile_bytes > 0 && attend->partial_bytes / tile_bytes < step) {
        step = (uint32_t)(attend->partial_bytes / tile_bytes);
    }
    tiles_t tiles = tiles_of(attend);
    kv_status_t status = KV_OK;
    for (uint32_t at = first; at < end && status == KV_OK; at += step) {
        tiles.first_tile = at;
        tiles.last_tile = end - at < step ? end - 1 : at + step - 1;
        tiles.run_count = runs_to(sequence->position - sequence->row + tiles.last_tile * ROWS);
        status = attend_some(stream, &tiles, paged, attend->partial, error);
    }
    return status;
}
