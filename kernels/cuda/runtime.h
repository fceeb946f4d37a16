/* The one header through which kernels and the CUDA device see CUDA: NVIDIA's under nvcc, the
 * stand-in of kernels/simt/ when a C++ compiler builds the same source with KVIST_SIMT.
 *
 * A source that includes this and nothing of CUDA's besides compiles both ways. Three things differ
 * from plain CUDA: launches go through KV_LAUNCH, dynamic shared memory through KV_SHARED, and
 * tensor instructions through kernels/cuda/tensor.h.
 *
 * Threads, errors: CUDA's own. */
#ifndef KV_KERNELS_CUDA_RUNTIME_H
#define KV_KERNELS_CUDA_RUNTIME_H

#ifdef KVIST_SIMT

#include "kernels/simt/simt.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

/* Enqueues kernel(arguments...) and gives the thread's last cudaError_t, which stays until
 * cudaGetLastError clears it. A kernel with template arguments stands in parentheses:
 * KV_LAUNCH((attend<64>), grid, block, shared_bytes, stream, ...). clang-format would take the
 * launch apart. */
/* clang-format off */
#define KV_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                  \
    ((kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__), cudaPeekAtLastError())
/* clang-format on */

/* Declares name[] as the block's dynamic shared memory, aligned to 128 bytes. A kernel declares it
 * once and cuts its arrays from it. */
#define KV_SHARED(type, name)                                                                      \
    extern __shared__ __align__(128) unsigned char kv_dynamic_shared[];                            \
    type *const name = reinterpret_cast<type *>(kv_dynamic_shared)

#endif

#endif
