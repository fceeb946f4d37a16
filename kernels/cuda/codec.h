/* The lossless codec of KV (kvstore/codec, "bf16") on the device: what leaves VRAM leaves it small,
 * and what comes back is unpacked there.
 *
 * The bytes are those of kv_codec_encode with KVIST_CODEC_BF16, for each unit, bit by bit; packed
 * as in a record: the units as stored, one after the other. A unit that does not get smaller, or
 * is not of bf16, is stored as it is. docs/formats.md, "Codec bf16", has the form.
 *
 * Owns, Threads, Errors: as blocks.h. Bytes that no encoder made are counted, never followed: no
 * kernel reads or writes beyond what it was given.
 * Limits: objects of at most 64 MiB. */
#ifndef KV_KERNELS_CUDA_CODEC_H
#define KV_KERNELS_CUDA_CODEC_H

#include "kernels/cuda/blocks.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const cuda_units_t *units;
    const cuda_blocks_t *from; /* [block_count][units] */
    uint32_t block_count;
    uint32_t thread_blocks_max;                 /* as cuda_copy_t */
    uint8_t *scratch;                           /* device: [block_count][object_bytes] */
    uint8_t *packed_out;                        /* device: block_count times packed_stride_bytes */
    uint64_t object_bytes, packed_stride_bytes; /* the stride is no less */
    uint32_t *lengths_out;                      /* device: [block_count][unit_count], as stored */
    uint32_t *offsets_out; /* device: [block_count][unit_count + 1], in the packed object; the
                                  last one is its length */
} cuda_pack_t;

kv_status_t cuda_pack(cuda_stream_t *stream, const cuda_pack_t *pack, kv_error_t *error);

typedef struct {
    const cuda_units_t *units;
    const cuda_blocks_t *to; /* [block_count][units] */
    uint32_t block_count;
    uint32_t thread_blocks_max;                 /* as cuda_copy_t */
    const uint8_t *packed;                      /* device: block_count times packed_stride_bytes */
    uint64_t object_bytes, packed_stride_bytes; /* the stride is no less */
    const uint32_t *lengths; /* device: [block_count][unit_count]; anything may stand there */
    uint32_t *offsets;       /* device: [block_count][unit_count + 1], scratch */
    uint32_t *damaged;       /* device: [block_count]: units that no encoder made are added to what
                                stands there; of those nothing, or a part, is written */
} cuda_unpack_t;

kv_status_t cuda_unpack(cuda_stream_t *stream, const cuda_unpack_t *unpack, kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
