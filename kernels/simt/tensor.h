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

/* A lane that comes to anything else with requests open: a finding, and the launch ends. */
void kv_simt_tensor_refuse_open(const kv_simt_lane_t *lane);

/* Before a lane begins: an ended launch may have left some open. */
void kv_simt_tensor_forget(kv_simt_lane_t *lane);

#endif
