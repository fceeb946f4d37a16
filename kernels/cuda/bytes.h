/* What the kernels that move bytes share: where blocks and units lie, as kernels take it; loads,
 * stores and copies of any alignment. Device code, for .cu files alone.
 *
 * A launch takes its arrays by value: nothing has to be copied to the device first or to live until
 * the stream has come to it. So it takes CUDA_BATCH blocks at most; a call of more makes several
 * launches. Parameters stay below 4 KiB, which every driver takes. */
#ifndef KV_KERNELS_CUDA_BYTES_H
#define KV_KERNELS_CUDA_BYTES_H

#include "kernels/cuda/blocks.h"
#include "kernels/cuda/runtime.h"

#include <stdint.h>

enum {
    CUDA_BATCH = 128, /* blocks in one launch */
    CUDA_WARP = 32,   /* lanes */
    CUDA_PARAMETER_BYTES_MAX = 4096,
    CUDA_VECTOR_BYTES = 16,
};

#define CUDA_ALL_LANES 0xffffffffu

/* Blocks of one launch. */
typedef struct {
    uint8_t *base;
    uint64_t stride_bytes;
    uint32_t slots[CUDA_BATCH];
} cuda_places_t;

static inline cuda_places_t cuda_places(const cuda_blocks_t *blocks, uint32_t first, uint32_t count)
{
    cuda_places_t places = {};
    places.base = blocks->base;
    places.stride_bytes = blocks->stride_bytes;
    for (uint32_t i = 0; i < count; i++) {
        places.slots[i] = blocks->slots != nullptr ? blocks->slots[first + i] : first + i;
    }
    return places;
}

static inline uint32_t cuda_batch(uint32_t first, uint32_t block_count)
{
    uint32_t left = block_count - first;
    return left < CUDA_BATCH ? left : (uint32_t)CUDA_BATCH;
}

/* As many thread blocks as there is work for, within the caller's bound and the grid's. */
static inline uint32_t cuda_thread_blocks(uint64_t wanted, uint32_t thread_blocks_max)
{
    enum { GRID_MAX = 1 << 20 }; /* kernels go round: more would not help */
    uint64_t bound = thread_blocks_max > 0 ? thread_blocks_max : (uint64_t)GRID_MAX;
    return (uint32_t)(wanted < bound ? wanted : bound);
}

/* What KV_LAUNCH gave, as a status; a failure is cleared, so that no later call is blamed. */
static inline kv_status_t cuda_launched(const char *kernel, cudaError_t code, kv_error_t *error)
{
    if (code == cudaSuccess) {
        return KV_OK;
    }
    (void)cudaGetLastError();
    return kv_fail(
        error, KV_FATAL, "the kernel %s did not start: %s", kernel, cudaGetErrorString(code));
}

static __device__ inline uint8_t *cuda_place(const cuda_places_t *places, uint32_t block)
{
    return places->base + places->slots[block] * places->stride_bytes;
}

typedef struct {
    uint64_t offset_bytes;
    uint32_t bytes, element_bytes;
} cuda_unit_t;

static __device__ inline cuda_unit_t cuda_unit(const cuda_units_t *units, uint32_t unit)
{
    uint32_t layer = unit / units->layer_units, in_layer = unit % units->layer_units;
    uint32_t part = units->part_count - 1;
    while (part > 0 && units->parts[part].unit_first > in_layer) {
        part--;
    }
    const cuda_part_t *of = &units->parts[part];
    cuda_unit_t found;
    found.offset_bytes = layer * units->layer_bytes + of->offset_bytes +
                         (uint64_t)(in_layer - of->unit_first) * of->unit_bytes;
    found.bytes = of->unit_bytes;
    found.element_bytes = of->element_bytes;
    return found;
}

/* ---- loads and stores ---- */

static __device__ inline bool cuda_aligned(const void *at)
{
    return (uintptr_t)at % CUDA_VECTOR_BYTES == 0;
}

static __device__ inline uint32_t cuda_load_4(const uint8_t *from)
{
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 |
           (uint32_t)from[3] << 24;
}

static __device__ inline uint64_t cuda_load_8(const uint8_t *from)
{
    return (uint64_t)cuda_load_4(from) | (uint64_t)cuda_load_4(from + 4) << 32;
}

static __device__ inline uint4 cuda_load_16(const uint8_t *from)
{
    if (cuda_aligned(from)) {
        return *(const uint4 *)from;
    }
    uint4 vector;
    vector.x = cuda_load_4(from);
    vector.y = cuda_load_4(from + 4);
    vector.z = cuda_load_4(from + 8);
    vector.w = cuda_load_4(from + 12);
    return vector;
}

static __device__ inline void cuda_store_4(uint8_t *to, uint32_t word)
{
    for (uint32_t i = 0; i < 4; i++) {
        to[i] = (uint8_t)(word >> 8 * i);
    }
}

static __device__ inline void cuda_store_16(uint8_t *to, uint4 vector)
{
    if (cuda_aligned(to)) {
        *(uint4 *)to = vector;
        return;
    }
    cuda_store_4(to, vector.x);
    cuda_store_4(to + 4, vector.y);
    cuda_store_4(to + 8, vector.z);
    cuda_store_4(to + 12, vector.w);
}

/* ---- copies by one warp, whose lanes all call ---- */

/* Both ends lie alike to 16 bytes (or it goes byte by byte). No lane reads or writes beyond. */
static __device__ inline void cuda_copy_alike(
    uint8_t *to, const uint8_t *from, uint32_t bytes, uint32_t lane)
{
    uint32_t head = (uint32_t)(-(uintptr_t)to % CUDA_VECTOR_BYTES);
    if (((uintptr_t)to ^ (uintptr_t)from) % CUDA_VECTOR_BYTES != 0 || head > bytes) {
        head = bytes;
    }
    for (uint32_t at = lane; at < head; at += CUDA_WARP) {
        to[at] = from[at];
    }
    uint32_t vectors = (bytes - head) / CUDA_VECTOR_BYTES;
    for (uint32_t i = lane; i < vectors; i += CUDA_WARP) {
        uint32_t at = head + i * CUDA_VECTOR_BYTES;
        *(uint4 *)(to + at) = *(const uint4 *)(from + at);
    }
    for (uint32_t at = head + vectors * CUDA_VECTOR_BYTES + lane; at < bytes; at += CUDA_WARP) {
        to[at] = from[at];
    }
}

/* Any alignment: `to` is written in words, each put together from the two of `from` that it lies
 * across. */
static __device__ inline void cuda_copy_across(
    uint8_t *to, const uint8_t *from, uint32_t bytes, uint32_t lane)
{
    uint32_t head = (uint32_t)(-(uintptr_t)to % 4);
    uint32_t shift = (uint32_t)(((uintptr_t)from + head) % 4);
    head += head < shift ? 4 : 0; /* the first word that is read begins within `from` */
    if (bytes < head + 8 || ((uintptr_t)to ^ (uintptr_t)from) % CUDA_VECTOR_BYTES == 0) {
        cuda_copy_alike(to, from, bytes, lane);
        return;
    }
    if (lane < head) {
        to[lane] = from[lane];
    }
    /* ... and the last one ends within it: what is left after it goes as bytes. */
    uint32_t words = (bytes - head - (4 - shift)) / 4;
    const uint32_t *around = (const uint32_t *)(from + head - shift);
    for (uint32_t i = lane; i < words; i += CUDA_WARP) {
        uint32_t low = around[i], high = around[i + 1];
        *(uint32_t *)(to + head + 4 * i) = __funnelshift_r(low, high, 8 * shift);
    }
    for (uint32_t at = head + 4 * words + lane; at < bytes; at += CUDA_WARP) {
        to[at] = from[at];
    }
}

#endif
