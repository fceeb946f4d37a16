/* Tensor instructions: what the lanes of a warp ask for, and the step in which all of it is done.
 *
 * Owns: the notes of each lane. Borrows: rows in shared memory and sums on the lanes' stacks, until
 * the step.
 * Threads: the one that runs the launch.
 * Errors: findings. */
#ifndef KV_KERNELS_SIMT_TENSOR_H
#define KV_KERNELS_SIMT_TENSOR_H

#include "kernels/simt/block_internal.h"

/* The step: all that the 32 lanes have asked for since the last. */
void kv_simt_tensor_step(kv_simt_lane_t *lanes);

/* A lane came to something else, or to its end, with requests open: a finding that ends the launch.
 */
_Noreturn void kv_simt_tensor_refuse(const kv_simt_lane_t *lane);

static inline void kv_simt_tensor_check(const kv_simt_lane_t *lane)
{
    if (lane->note_count > 0) {
        kv_simt_tensor_refuse(lane);
    }
}

/* Before a launch: one that was ended may have left some open. */
void kv_simt_tensor_forget(kv_simt_lane_t *lane);

#endif
