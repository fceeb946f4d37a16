/* Gather and scatter of ranges of blocks. Bytes come out as they went in: compared with memcpy.
 *
 * Work is pieces of a range of a block, in the order of their bytes, so that a warp's neighbours
 * read neighbouring memory; thread blocks go round over them. Each thread has VECTORS loads under
 * way before its first store: memory that is far (the host's, over PCIe) is reached at its rate by
 * few thread blocks. */
#include "kernels/cuda/blocks.h"

#include "kernels/cuda/bytes.h"

enum {
    THREADS = 256,
    VECTORS = 4,
    PIECE_BYTES = THREADS * VECTORS * CUDA_VECTOR_BYTES, /* 16 KiB */
    RANGES_MAX = 32,                                     /* in one launch */
};

typedef struct {
    cuda_places_t to, from;
    cuda_range_t ranges[RANGES_MAX];
    uint32_t piece_ends[RANGES_MAX]; /* of one block, counted through its ranges */
    uint32_t range_count, block_count;
    bool vectors; /* every address and length is a multiple of 16 */
} batch_t;

static_assert(sizeof(batch_t) <= CUDA_PARAMETER_BYTES_MAX, "the parameters of a launch");

static __device__ void copy_vectors(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
    uint4 held[VECTORS];
    for (uint32_t i = 0; i < VECTORS; i++) {
        uint32_t at = (i * THREADS + threadIdx.x) * CUDA_VECTOR_BYTES;
        if (at < bytes) {
            held[i] = *(const uint4 *)(from + at);
        }
    }
    for (uint32_t i = 0; i < VECTORS; i++) {
        uint32_t at = (i * THREADS + threadIdx.x) * CUDA_VECTOR_BYTES;
        if (at < bytes) {
            *(uint4 *)(to + at) = held[i];
        }
    }
}

static __global__ void __launch_bounds__(THREADS) copy_blocks(const batch_t batch)
{
    uint32_t block_pieces = batch.piece_ends[batch.range_count - 1];
    uint32_t piece_count = block_pieces * batch.block_count; /* below 2^30 */
    for (uint32_t piece = blockIdx.x; piece < piece_count; piece += gridDim.x) {
        uint32_t block = piece / block_pieces;
        uint32_t in_block = piece % block_pieces, range = 0;
        while (in_block >= batch.piece_ends[range]) {
            range++;
        }
        const cuda_range_t *of = &batch.ranges[range];
        uint32_t in_range = range > 0 ? in_block - batch.piece_ends[range - 1] : in_block;
        uint32_t at = in_range * PIECE_BYTES, left = of->bytes - at;
        uint32_t bytes = left < PIECE_BYTES ? left : (uint32_t)PIECE_BYTES;
        uint8_t *to = cuda_place(&batch.to, block) + of->to_offset + at;
        const uint8_t *from = cuda_place(&batch.from, block) + of->from_offset + at;
        if (batch.vectors) {
            copy_vectors(to, from, bytes);
        } else {
            for (uint32_t i = threadIdx.x; i < bytes; i += THREADS) {
                to[i] = from[i];
            }
        }
    }
}

/* The ranges of one launch, from the cursor on; empty ones are left out. */
static void take_ranges(
    batch_t *batch, const cuda_range_t *ranges, uint32_t range_count, uint32_t *next)
{
    uint32_t pieces = 0;
    batch->range_count = 0;
    for (; *next < range_count && batch->range_count < RANGES_MAX; (*next)++) {
        const cuda_range_t *range = &ranges[*next];
        if (range->bytes > 0) {
            pieces += (uint32_t)(((uint64_t)range->bytes + PIECE_BYTES - 1) / PIECE_BYTES);
            batch->piece_ends[batch->range_count] = pieces;
            batch->ranges[batch->range_count++] = *range;
        }
    }
}

static bool whole_vectors(const batch_t *batch)
{
    uint64_t bits = (uint64_t)(uintptr_t)batch->to.base | (uint64_t)(uintptr_t)batch->from.base |
                    batch->to.stride_bytes | batch->from.stride_bytes;
    for (uint32_t i = 0; i < batch->range_count; i++) {
        const cuda_range_t *range = &batch->ranges[i];
        bits |= range->from_offset | range->to_offset | range->bytes;
    }
    return bits % CUDA_VECTOR_BYTES == 0;
}

extern "C" kv_status_t cuda_copy_blocks(
    cuda_stream_t *stream, const cuda_copy_t *copy, kv_error_t *error)
{
    cudaError_t code = cudaSuccess;
    for (uint32_t first = 0; first < copy->block_count && code == cudaSuccess;
         first += CUDA_BATCH) {
        batch_t batch = {};
        batch.block_count = cuda_batch(first, copy->block_count);
        batch.to = cuda_places(copy->to, first, batch.block_count);
        batch.from = cuda_places(copy->from, first, batch.block_count);
        for (uint32_t next = 0; next < copy->range_count && code == cudaSuccess;) {
            take_ranges(&batch, copy->ranges, copy->range_count, &next);
            if (batch.range_count == 0) {
                break;
            }
            batch.vectors = whole_vectors(&batch);
            uint32_t pieces = batch.piece_ends[batch.range_count - 1] * batch.block_count;
            uint32_t grid = cuda_thread_blocks(pieces, copy->thread_blocks_max);
            code = KV_LAUNCH(copy_blocks, grid, THREADS, 0, (cudaStream_t)stream, batch);
        }
    }
    return cuda_launched("copy_blocks", code, error);
}
