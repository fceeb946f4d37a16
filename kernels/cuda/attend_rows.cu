/* Attention of single rows, in two kernels. The first: a block is one row, up to eight heads of one
 * group and 256 keys from a multiple of 256 on. Four lanes share a key, 64 keys at once: the key is
 * read once for all heads, in f32 sums. Then the softmax of each head by a warp; then each thread
 * takes eight dimensions of every so manieth value, and the threads' sums are added in their order.
 * The second merges a row's segments in their order. Rows do not know of each other.
 *
 *   shared: queries [heads][dim]  weights [256][heads]  sums [threads / (dim / 8)][heads][dim], f32
 *
 * Bytes: keys and values once for each eight heads of a group, and for each segment and head
 * dim + 2 floats out and in again. Operations: 4 x dim for each head and key.
 *
 * Keys past the row's own position, or before its window, are not read.
 *
 * Tolerance against kernels/cpu/plain.c: 1e-4 of 1 + |value|; the order of sums and the exponential
 * differ. */
#include "kernels/cuda/paged.h"

enum {
    SEGMENT = CUDA_KEY_SEGMENT,
    THREADS = 128,
    WARPS = THREADS / CUDA_WARP,
    LANES_PER_KEY = 4,
    KEYS_PER_PASS = THREADS / LANES_PER_KEY,
    KEYS_AT_ONCE = 2, /* of a lane: they share what is read of the queries */
    CHUNK = 8,        /* elements that a thread reads together */
    SUMS = THREADS * CHUNK,
};

typedef struct {
    paged_view_t view;
    const kv_sequence_t *sequences; /* [rows of the grid]; NULL: the rows of one */
    kv_sequence_t one;
    const float *queries;
    size_t query_stride;
    float *partial; /* [rows][heads][segment_count][head_dim] */
    float *ends;    /* [rows][heads][segment_count][largest score, sum of weights] */
    uint32_t segment_count, head_count, group, group_parts, head_dim, window_tokens;
    float scale; /* 1 / sqrt(head_dim) x log2(e): weights are powers of two */
    void *out;
    kv_element_t out_element;
} rows_t;

typedef struct {
    const uint32_t *slots;
    uint32_t position, row;
} row_t;

static __device__ __forceinline__ row_t own_row(const rows_t &rows, uint32_t at)
{
    row_t row;
    if (rows.sequences != NULL) {
        row.slots = rows.sequences[at].slots;
        row.position = rows.sequences[at].position;
        row.row = rows.sequences[at].row;
    } else {
        row.slots = rows.one.slots;
        row.position = rows.one.position + at;
        row.row = rows.one.row + at;
    }
    return row;
}

/* A block's part: keys from begin + first to begin + last - 1 against some heads. */
typedef struct {
    row_t row;
    uint32_t begin, first, last;
    uint32_t kv_head, head, heads; /* the heads from head on of all; at most the template's */
} segment_t;

template <int HEADS> static __device__ __forceinline__ segment_t own_segment(const rows_t &rows)
{
    segment_t segment;
    segment.row = own_row(rows, blockIdx.z);
    segment.begin = blockIdx.x * SEGMENT;
    const uint32_t seen = paged_first_seen(segment.row.position, rows.window_tokens),
                   end = segment.row.position + 1, part = blockIdx.y % rows.group_parts * HEADS,
                   known = end > segment.begin ? end - segment.begin : 0;
    segment.first = seen > segment.begin ? seen - segment.begin : 0;
    segment.last = known < SEGMENT ? known : (uint32_t)SEGMENT;
    segment.kv_head = blockIdx.y / rows.group_parts;
    segment.head = segment.kv_head * rows.group + part;
    segment.heads = rows.group - part < HEADS ? rows.group - part : (uint32_t)HEADS;
    return segment;
}

template <bool BF16>
static __device__ __forceinline__ void load_chunk(const char *vector, uint32_t chunk, float *to)
{
    if (BF16) {
        const uint4 v = ((const uint4 *)vector)[chunk];
        const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[2 * i] = cuda_bf16_low(pairs[i]);
            to[2 * i + 1] = cuda_bf16_high(pairs[i]);
        }
    } else {
        const float4 a = ((const float4 *)vector)[2 * chunk],
                     b = ((const float4 *)vector)[2 * chunk + 1];
        const float wide[CHUNK] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            to[i] = wide[i];
        }
    }
}

template <int HEADS>
static __device__ void load_queries(const rows_t &rows, const segment_t &segment, float *to)
{
    const float *from =
        rows.queries + segment.row.row * rows.query_stride + (size_t)segment.head * rows.head_dim;
    for (uint32_t i = threadIdx.x; i < HEADS * rows.head_dim; i += THREADS) {
        to[i] = i < segment.heads * rows.head_dim ? from[i] : 0.0f;
    }
}

/* sums[k][h] of the lane's keys, complete in each of a key's lanes. */
template <int HEADS, bool BF16>
static __device__ __forceinline__ void score_pass(const rows_t &rows, const char *const *vectors,
    const float *queries, float sums[KEYS_AT_ONCE][HEADS])
{
    for (uint32_t chunk = threadIdx.x % LANES_PER_KEY; chunk < rows.head_dim / CHUNK;
         chunk += LANES_PER_KEY) {
        float key[KEYS_AT_ONCE][CHUNK] = {};
#pragma unroll
        for (int k = 0; k < KEYS_AT_ONCE; k++) {
            if (vectors[k] != NULL) {
                load_chunk<BF16>(vectors[k], chunk, key[k]);
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float query[CHUNK];
            load_chunk<false>((const char *)(queries + h * rows.head_dim), chunk, query);
#pragma unroll
            for (int k = 0; k < KEYS_AT_ONCE; k++) {
#pragma unroll
                for (int i = 0; i < CHUNK; i++) {
                    sums[k][h] = fmaf(query[i], key[k][i], sums[k][h]);
                }
            }
        }
    }
#pragma unroll
    for (int k = 0; k < KEYS_AT_ONCE; k++) {
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            sums[k][h] += __shfl_xor_sync(CUDA_ALL_LANES, sums[k][h], 1);
            sums[k][h] += __shfl_xor_sync(CUDA_ALL_LANES, sums[k][h], 2);
        }
    }
}

/* weights[key][head] = score x scale, -infinity where the key is not seen. */
template <int HEADS, bool BF16>
static __device__ void score_keys(
    const rows_t &rows, const segment_t &segment, const float *queries, float *weights)
{
    for (uint32_t pass = 0; pass < segment.last; pass += KEYS_AT_ONCE * KEYS_PER_PASS) {
        const uint32_t own = pass + threadIdx.x / LANES_PER_KEY;
        const char *vectors[KEYS_AT_ONCE];
        float sums[KEYS_AT_ONCE][HEADS] = {};
#pragma unroll
        for (int k = 0; k < KEYS_AT_ONCE; k++) {
            const uint32_t key = own + k * KEYS_PER_PASS;
            vectors[k] = key >= segment.first && key < segment.last
                             ? paged_vector(rows.view, segment.row.slots, segment.begin + key,
                                   segment.kv_head)
                             : NULL;
        }
        score_pass<HEADS, BF16>(rows, vectors, queries, sums);
#pragma unroll
        for (int k = 0; k < KEYS_AT_ONCE; k++) {
            const uint32_t key = own + k * KEYS_PER_PASS;
            /* Each of the key's lanes writes every fourth head. */
#pragma unroll
            for (uint32_t h = 0; h < HEADS; h++) {
                if (h % LANES_PER_KEY == threadIdx.x % LANES_PER_KEY && key < SEGMENT) {
                    weights[key * HEADS + h] =
                        vectors[k] != NULL ? sums[k][h] * rows.scale : -INFINITY;
                }
            }
        }
    }
}

/* A warp turns a head's scores into weights and notes the largest score and the weights' sum. */
template <int HEADS>
static __device__ void soften(const rows_t &rows, const segment_t &segment, float *weights)
{
    const uint32_t lane = threadIdx.x % CUDA_WARP;
    for (uint32_t head = threadIdx.x / CUDA_WARP; head < segment.heads; head += WARPS) {
        float peak = -INFINITY, sum = 0;
        for (uint32_t key = lane; key < segment.last; key += CUDA_WARP) {
            peak = fmaxf(peak, weights[key * HEADS + head]);
        }
        for (int step = CUDA_WARP / 2; step > 0; step /= 2) {
            peak = fmaxf(peak, __shfl_xor_sync(CUDA_ALL_LANES, peak, step));
        }
        for (uint32_t key = lane; key < segment.last; key += CUDA_WARP) {
            const float weight = exp2f(weights[key * HEADS + head] - peak);
            weights[key * HEADS + head] = weight;
            sum += weight;
        }
        for (int step = CUDA_WARP / 2; step > 0; step /= 2) {
            sum += __shfl_xor_sync(CUDA_ALL_LANES, sum, step);
        }
        if (lane == 0) {
            float *end =
                rows.ends + 2 * (((size_t)blockIdx.z * rows.head_count + segment.head + head) *
                                        rows.segment_count +
                                    blockIdx.x);
            end[0] = peak;
            end[1] = sum;
        }
    }
}

/* sums[part][head][dimension]: the values of every so manieth key, weighted. */
template <int HEADS, bool BF16>
static __device__ void add_values(
    const rows_t &rows, const segment_t &segment, const float *weights, float *sums)
{
    const uint32_t chunks = rows.head_dim / CHUNK, parts = THREADS / chunks,
                   part = threadIdx.x / chunks, chunk = threadIdx.x % chunks;
    if (part >= parts) {
        return; /* 96, 160 and 192 dimensions leave some threads over */
    }
    float own[HEADS][CHUNK] = {};
#pragma unroll 2
    for (uint32_t key = segment.first + part; key < segment.last; key += parts) {
        float value[CHUNK];
        load_chunk<BF16>(paged_vector(rows.view, segment.row.slots, segment.begin + key,
                             rows.view.kv_head_count + segment.kv_head),
            chunk, value);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const float weight = weights[key * HEADS + h];
#pragma unroll
            for (int i = 0; i < CHUNK; i++) {
                own[h][i] = fmaf(weight, value[i], own[h][i]);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        float4 *to = (float4 *)(sums + ((size_t)part * HEADS + h) * rows.head_dim) + 2 * chunk;
        to[0] = make_float4(own[h][0], own[h][1], own[h][2], own[h][3]);
        to[1] = make_float4(own[h][4], own[h][5], own[h][6], own[h][7]);
    }
}

template <int HEADS>
static __device__ void store_partial(
    const rows_t &rows, const segment_t &segment, const float *sums)
{
    const uint32_t parts = THREADS / (rows.head_dim / CHUNK), stride = HEADS * rows.head_dim;
    for (uint32_t i = threadIdx.x; i < segment.heads * rows.head_dim; i += THREADS) {
        float sum = 0;
        for (uint32_t part = 0; part < parts; part++) {
            sum += sums[part * stride + i];
        }
        const size_t head = (size_t)blockIdx.z * rows.head_count + segment.head + i / rows.head_dim;
        rows.partial[(head * rows.segment_count + blockIdx.x) * rows.head_dim + i % rows.head_dim] =
            sum;
    }
}

template <int HEADS, bool BF16>
static __global__ void __launch_bounds__(THREADS) attend_segment_kernel(const rows_t rows)
{
    KV_SHARED(float, queries);
    float *weights = queries + HEADS * rows.head_dim, *sums = weights + SEGMENT * HEADS;
    const segment_t segment = own_segment<HEADS>(rows);
    if (segment.first >= segment.last) {
        return; /* the whole block: nothing to see in this segment */
    }
    load_queries<HEADS>(rows, segment, queries);
    __syncthreads();
    score_keys<HEADS, BF16>(rows, segment, queries, weights);
    __syncthreads();
    soften<HEADS>(rows, segment, weights);
    __syncthreads();
    add_values<HEADS, BF16>(rows, segment, weights, sums);
    __syncthreads();
    store_partial<HEADS>(rows, segment, sums);
}

/* A block is one head of one row; a thread two of its dimensions. */
static __global__ void __launch_bounds__(THREADS) merge_segments_kernel(const rows_t rows)
{
    const row_t row = own_row(rows, blockIdx.y);
    const uint32_t pair = threadIdx.x,
                   first = paged_first_seen(row.position, rows.window_tokens) / SEGMENT,
                   last = row.position / SEGMENT;
    if (pair >= rows.head_dim / 2) {
        return;
    }
    const size_t head = ((size_t)blockIdx.y * rows.head_count + blockIdx.x) * rows.segment_count;
    const float2 *ends = (const float2 *)rows.ends + head,
                 *partial = (const float2 *)rows.partial + head * (rows.head_dim / 2) + pair;
    float largest = -INFINITY, sum = 0, even = 0, odd = 0;
    for (uint32_t segment = first; segment <= last; segment++) {
        largest = fmaxf(largest, ends[segment].x);
    }
    for (uint32_t segment = first; segment <= last; segment++) {
        const float weight = exp2f(ends[segment].x - largest);
        const float2 values = partial[(size_t)segment * (rows.head_dim / 2)];
        sum = fmaf(weight, ends[segment].y, sum);
        even = fmaf(weight, values.x, even);
        odd = fmaf(weight, values.y, odd);
    }
    const size_t at = ((size_t)row.row * rows.head_count + blockIdx.x) * (rows.head_dim / 2) + pair;
    if (rows.out_element == KV_ELEMENT_BF16) {
        ((uint32_t *)rows.out)[at] = cuda_bf16_pair(even / sum, odd / sum);
    } else {
        ((float2 *)rows.out)[at] = make_float2(even / sum, odd / sum);
    }
}

static uint32_t segments_to(uint32_t position_max)
{
    return position_max / SEGMENT + 1;
}

size_t cuda_attend_partial_bytes(
    const cuda_paged_t *paged, uint32_t row_count, uint32_t position_max)
{
    return (size_t)row_count * paged->head_count * segments_to(position_max) *
           (paged->shape.head_dim + 2) * sizeof(float);
}

/* What does not depend on the sequences. */
static rows_t rows_of(const cuda_paged_t *paged, const float *projected)
{
    const uint32_t group = paged->head_count / paged->shape.kv_head_count;
    rows_t rows = {};
    rows.view = paged_view(paged);
    rows.queries = projected;
    rows.query_stride = paged_columns(paged);
    rows.head_count = paged->head_count;
    rows.group = group;
    rows.head_dim = paged->shape.head_dim;
    rows.window_tokens = paged->window_tokens;
    rows.scale = (float)(1.4426950408889634 / sqrt((double)paged->shape.head_dim));
    return rows;
}

template <int HEADS, bool BF16>
static cudaError_t launch_segments(cudaStream_t stream, rows_t *rows, uint32_t row_count)
{
    const size_t shared_bytes = sizeof(float) * HEADS * (rows->head_dim + SEGMENT + SUMS);
    rows->group_parts = (rows->group + HEADS - 1) / HEADS;
    return KV_LAUNCH((attend_segment_kernel<HEADS, BF16>),
        dim3(rows->segment_count, rows->view.kv_head_count * rows->group_parts, row_count),
        dim3(THREADS), shared_bytes, stream, *rows);
}

/* Both kernels for row_count rows, none past position_max. */
static kv_status_t launch(cuda_stream_t *stream, rows_t *rows, uint32_t row_count,
    uint32_t position_max, float *partial, kv_error_t *error)
{
    const cudaStream_t to = cuda_stream_of(stream);
    const bool bf16 = rows->view.token_bytes == 2 * rows->head_dim, few = rows->group <= 4;
    rows->segment_count = segments_to(position_max);
    rows->partial = partial;
    rows->ends =
        partial + (size_t)row_count * rows->head_count * rows->segment_count * rows->head_dim;
    const cudaError_t code = few    ? bf16 ? launch_segments<4, true>(to, rows, row_count)
                                           : launch_segments<4, false>(to, rows, row_count)
                                : bf16 ? launch_segments<8, true>(to, rows, row_count)
                                    : launch_segments<8, false>(to, rows, row_count);
    kv_status_t status = cuda_launched("attend_segment", code, error);
    if (status == KV_OK) {
        status = cuda_launched("merge_segments",
            KV_LAUNCH(merge_segments_kernel, dim3(rows->head_count, row_count), dim3(THREADS), 0,
                to, *rows),
            error);
    }
    return status;
}

kv_status_t cuda_attend_rows(
    cuda_stream_t *stream, const cuda_attend_rows_t *attend, kv_error_t *error)
{
    if (attend->sequence_count == 0) {
        return KV_OK;
    }
    rows_t rows = rows_of(&attend->paged, attend->projected);
    rows.sequences = attend->sequences;
    rows.out = attend->out;
    rows.out_element = attend->out_element;
    return launch(
        stream, &rows, attend->sequence_count, attend->position_max, attend->partial, error);
}

/* A tile's rows at a time, so that partial stays small; each as a sequence of its own. */
kv_status_t cuda_attend_tiles_plain(
    cuda_stream_t *stream, const cuda_attend_tiles_t *attend, kv_error_t *error)
{
    const kv_sequence_t *sequence = &attend->sequence;
    rows_t rows = rows_of(&attend->paged, attend->projected);
    rows.out = attend->out;
    rows.out_element = attend->out_element;
    kv_status_t status = KV_OK;
    for (uint32_t at = 0; at < sequence->row_count && status == KV_OK; at += CUDA_TILE_ROWS) {
        const uint32_t left = sequence->row_count - at, most = CUDA_TILE_ROWS,
                       count = left < most ? left : most;
        rows.one = *sequence;
        rows.one.position += at;
        rows.one.row += at;
        rows.one.row_count = count;
        status =
            launch(stream, &rows, count, rows.one.position + count - 1, attend->partial, error);
    }
    return status;
}
