/* Paged attention: writing new keys and values to the arena, and the two ways of reading them.
 *
 * A sequence's kv_sequence_t is as in kernels/device.h, but its slots are device memory.
 * Borrows: every pointer but the calls' own structs is device memory, 16-byte aligned, and belongs
 * to the stream until the kernels have run. The arena's blocks may hold anything past a sequence's
 * last token, not-a-number too: nothing of it is let through.
 * Threads: the stream's own.
 * Errors: KV_FATAL where a launch is refused. Nothing to do: KV_OK, nothing is launched.
 * Limits: heads of 32 to 256 dimensions, a multiple of 32; at most 65535 sequences and 65535 heads
 * of keys and values; block_tokens a power of two, 16 to 128.
 *
 * A row's numbers depend on that row and its absolute position: over tiles keys are taken 64 at a
 * time, in runs from a multiple of 2048 on; over rows 256 at a time from a multiple of 256 on;
 * whatever else is computed in the same call. */
#ifndef KV_KERNELS_CUDA_ATTEND_H
#define KV_KERNELS_CUDA_ATTEND_H

#include "kernels/cuda/stream.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_TILE_ROWS = 64, CUDA_KEY_SEGMENT = 256 };

/* The paged KV of one layer, and the heads that read it. */
typedef struct {
    kv_block_shape_t shape;
    void *arena;
    uint32_t layer;
    uint32_t head_count;    /* a multiple of shape.kv_head_count */
    uint32_t window_tokens; /* a token sees so many, itself among them; 0: all before it */
} cuda_paged_t;

typedef struct {
    cuda_paged_t paged;
    const kv_sequence_t *sequences; /* [sequence_count] */
    uint32_t sequence_count;
    uint32_t row_count_max; /* of any of them; more than it has: rows past its end are skipped */
    const float *rotation;  /* [positions][head_dim / 2][cos, sin] */
    float *projected;       /* [rows][(heads + 2 kv_heads) x head_dim] */
} cuda_rotate_store_t;

/* Rotates queries (in place) and keys by adjacent pairs; keys and values to the arena. */
kv_status_t cuda_rotate_store(
    cuda_stream_t *stream, const cuda_rotate_store_t *rotate, kv_error_t *error);

/* Bytes of partial that attention over row_count rows, none past position_max, needs. */
size_t cuda_attend_partial_bytes(
    const cuda_paged_t *paged, uint32_t row_count, uint32_t position_max);

typedef struct {
    cuda_paged_t paged;
    const kv_sequence_t *sequences; /* [sequence_count], of one row each */
    uint32_t sequence_count;
    uint32_t position_max;  /* of any of them */
    const float *projected; /* [rows][(heads + 2 kv_heads) x head_dim], the queries rotated */
    void *out;              /* [rows][heads x head_dim] of out_element */
    kv_element_t out_element;
    float *partial; /* cuda_attend_partial_bytes(sequence_count, position_max) */
} cuda_attend_rows_t;

kv_status_t cuda_attend_rows(
    cuda_stream_t *stream, const cuda_attend_rows_t *attend, kv_error_t *error);

typedef struct {
    cuda_paged_t paged;
    kv_sequence_t sequence; /* row 0 of the buffers lies on a multiple of CUDA_TILE_ROWS */
    const float *projected; /* [rows][(heads + 2 kv_heads) x head_dim], the queries rotated */
    void *out;              /* [rows][heads x head_dim] of out_element */
    kv_element_t out_element;
    float *partial; /* cuda_attend_tiles_partial_bytes(the last position); NULL where that is 0 */
    size_t partial_bytes;
} cuda_attend_tiles_t;

/* Whether tensor cores take the shape: KV in bf16, heads of 64, 128 or 256 dimensions. Others go
 * row by row as in decode, a tile's rows at a time. */
bool cuda_attend_tiles_on_tensor_cores(const cuda_paged_t *paged);

/* Bytes of partial with which attention over tiles, none past position_max, fills the chip. Less
 * will do, down to one tile's: heads x runs of 2048 keys x 64 x (head_dim + 2) floats, none where
 * there is one run; what is too little is answered with KV_FATAL. */
size_t cuda_attend_tiles_partial_bytes(const cuda_paged_t *paged, uint32_t position_max);

kv_status_t cuda_attend_tiles(
    cuda_stream_t *stream, const cuda_attend_tiles_t *attend, kv_error_t *error);

/* The same for any shape, in f32 and without tensor cores: what the others get. */
kv_status_t cuda_attend_tiles_plain(
    cuda_stream_t *stream, const cuda_attend_tiles_t *attend, kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
