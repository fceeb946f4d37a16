/* Checksums of what lies in device memory, with or without copying it: an object is sealed before
 * it leaves, and proved after it came back, without its bytes passing through a processor of the
 * host.
 *
 * The values are those of base/checksum.h (XXH3, 64 bits), bit by bit, at every length.
 *
 * Owns, Threads, Errors: as blocks.h.
 * Limits: a unit shorter than 4 GiB. Any alignment is right; multiples of 16 are fast. */
#ifndef KV_KERNELS_CUDA_SEAL_H
#define KV_KERNELS_CUDA_SEAL_H

#include "kernels/cuda/blocks.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One pass over the units of blocks. What is not wanted is NULL. */
typedef struct {
    const cuda_units_t *units;
    const cuda_blocks_t *from; /* [block_count][units] */
    const cuda_blocks_t *to;   /* where the same bytes are written */
    uint32_t block_count;
    uint32_t thread_blocks_max; /* as cuda_copy_t */
    const uint32_t *offsets;    /* device: [block_count][unit_count + 1], of cuda_pack: unit n lies
                                   from offsets[n] to offsets[n + 1], and is no longer than units
                                   say; NULL: where these say */
    const uint64_t *seeds;      /* host: [block_count], of kv_checksum_seeded; NULL: zeros */
    uint64_t *checksums_out;    /* device: [block_count][unit_count] */
    const uint64_t *expected;   /* device: [block_count][unit_count] */
    uint32_t *differing;        /* device: [block_count]: units that are not as expected are added
                                   to what stands there */
} cuda_seal_t;

/* A copy is there before its checksum has been compared: nobody may use it until `differing` says
 * zero. */
kv_status_t cuda_seal(cuda_stream_t *stream, const cuda_seal_t *seal, kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
