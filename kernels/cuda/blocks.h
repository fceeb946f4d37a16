/* Blocks in device memory, and moving ranges of many of them at once: gather and scatter.
 *
 * A paged layer is thousands of fragments of a few KiB. A copy engine takes each as a command of
 * its own; one kernel moves them all, between device memory and device memory or memory of the
 * host that the device maps.
 *
 * Owns: nothing. What a call points to in host memory (slots, ranges, seeds) is read before it
 * returns; device memory belongs to the stream until the stream has passed the call.
 * Threads: any; one at a time for one stream.
 * Errors: KV_FATAL where a launch is refused. What goes wrong inside a kernel shows when the stream
 * is waited for. Nothing to do is KV_OK, and no launch.
 * Limits: a range shorter than 4 GiB, an object of at most 65,536 units. Any alignment is right;
 * where base, strides, offsets and lengths are multiples of 16, 16 bytes move at once. */
#ifndef KV_KERNELS_CUDA_BLOCKS_H
#define KV_KERNELS_CUDA_BLOCKS_H

#include "base/status.h"
#include "kernels/cuda/stream.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_PARTS_MAX = 4 };

/* Blocks of one size: block i begins at base + slots[i] x stride_bytes. */
typedef struct {
    uint8_t *base;         /* device, or mapped by it */
    uint64_t stride_bytes; /* from the beginning of one slot to the next one's */
    const uint32_t *slots; /* host: [block_count]; NULL: 0, 1, 2, ... */
} cuda_blocks_t;

/* bytes from `from_offset` on of one block go to `to_offset` of the other. */
typedef struct {
    uint64_t from_offset, to_offset;
    uint32_t bytes;
} cuda_range_t;

/* One part (K, V, ...) of every layer of an object. */
typedef struct {
    uint32_t unit_first;   /* of the layer's units */
    uint32_t offset_bytes; /* in the layer */
    uint32_t unit_bytes;
    uint32_t element_bytes; /* the codec takes 2: bf16 */
} cuda_part_t;

/* How an object divides into units: one (layer, part, head) each, layer after layer, without gaps.
 */
typedef struct {
    cuda_part_t parts[CUDA_PARTS_MAX]; /* in the order of unit_first */
    uint32_t part_count;
    uint32_t layer_units; /* of one layer; unit_count is a multiple of it */
    uint32_t unit_count;
    uint64_t layer_bytes;
} cuda_units_t;

/* The same ranges of many blocks. No two of them overlap where they go, nor does what is read
 * overlap what is written. */
typedef struct {
    const cuda_blocks_t *to, *from;
    uint32_t block_count;
    const cuda_range_t *ranges; /* host: [range_count] */
    uint32_t range_count;
    /* It occupies no more of the device's processors than so many thread blocks of 256 threads do,
     * so that kernels beside it keep theirs; 0: as many as help. */
    uint32_t thread_blocks_max;
} cuda_copy_t;

kv_status_t cuda_copy_blocks(cuda_stream_t *stream, const cuda_copy_t *copy, kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
