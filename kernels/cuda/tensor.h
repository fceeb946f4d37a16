/* Tensor instructions and asynchronous copies to shared memory, as functions: PTX under nvcc, one
 * step for the whole warp in the stand-in.
 *
 * Fragments are those of the PTX ISA (mma.m16n8k16, ldmatrix). With group = lane / 4 and pair =
 * lane % 4, a lane holds
 *   A (16 x 16): a[0] row group, columns 2 pair and 2 pair + 1; a[1] row group + 8; a[2] row group,
 *                columns + 8; a[3] row group + 8, columns + 8
 *   B (16 x 8):  b[0] rows 2 pair and 2 pair + 1 of column group; b[1] rows + 8
 *   C (16 x 8):  c[0], c[1] row group, columns 2 pair and 2 pair + 1; c[2], c[3] row group + 8
 * the lower index in the lower half of a register.
 *
 * What kv_mma_* sums is read, and fragments that kv_load_matrix_* loaded are computed with, after
 * kv_tensor_wait; before it fragments are handed on to kv_mma_* only. A GPU's compiler sees what
 * depends on what and needs no wait: it is for the stand-in, which does all of it in one step, and
 * calls a barrier, a shuffle or an end without it a mistake.
 *
 * Threads: kv_mma_* and kv_load_matrix_* are for all 32 lanes of a warp together; kv_copy_async_*
 * are a thread's own: what a thread copied is seen by itself after its wait, by the block after a
 * barrier that follows. */
#ifndef KV_KERNELS_CUDA_TENSOR_H
#define KV_KERNELS_CUDA_TENSOR_H

#include "kernels/cuda/runtime.h"

#include <stdint.h>

#ifdef KVIST_SIMT
#define KV_TENSOR static inline
#else
#define KV_TENSOR static __device__ __forceinline__

KV_TENSOR uint32_t kv_shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}
#endif

/* c += A x B, of bf16. */
KV_TENSOR void kv_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef KVIST_SIMT
    kv_simt_mma(KV_SIMT_BF16, c, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* c += A x B, of f16. */
KV_TENSOR void kv_mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef KVIST_SIMT
    kv_simt_mma(KV_SIMT_F16, c, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* Four, two or one matrices of 8 x 8 16-bit elements from shared memory. Lane i names the row i % 8
 * of matrix i / 8: 16 bytes, aligned to 16. A lane receives of matrix m, in out[m], the elements
 * 2 pair and 2 pair + 1 of row group; transposed: rows 2 pair and 2 pair + 1 of column group. */
KV_TENSOR void kv_load_matrix_x4(uint32_t out[4], const void *row)
{
#ifdef KVIST_SIMT
    kv_simt_load_matrix(4, false, out, row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(kv_shared_address(row))
                 : "memory");
#endif
}

KV_TENSOR void kv_load_matrix_x4_transposed(uint32_t out[4], const void *row)
{
#ifdef KVIST_SIMT
    kv_simt_load_matrix(4, true, out, row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(kv_shared_address(row))
                 : "memory");
#endif
}

KV_TENSOR void kv_load_matrix_x2(uint32_t out[2], const void *row)
{
#ifdef KVIST_SIMT
    kv_simt_load_matrix(2, false, out, row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(kv_shared_address(row))
                 : "memory");
#endif
}

KV_TENSOR void kv_load_matrix_x2_transposed(uint32_t out[2], const void *row)
{
#ifdef KVIST_SIMT
    kv_simt_load_matrix(2, true, out, row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(kv_shared_address(row))
                 : "memory");
#endif
}

#ifdef KVIST_SIMT
KV_TENSOR void kv_tensor_wait(KV_SIMT_PLACE)
{
    kv_simt_tensor_wait(file, line);
}
#else
KV_TENSOR void kv_tensor_wait(void)
{
}
#endif

/* Starts a copy of 16 bytes from global to shared memory, both aligned to 16: the first
 * source_bytes (0 to 16) are read, the rest of the 16 is zero. */
KV_TENSOR void kv_copy_async_16(void *shared, const void *global, uint32_t source_bytes)
{
#ifdef KVIST_SIMT
    kv_simt_copy_async(shared, global, 16, source_bytes);
#else
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :
        : "r"(kv_shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
        : "memory");
#endif
}

/* Closes the group of the copies that this thread started since the last commit. */
KV_TENSOR void kv_copy_async_commit(void)
{
#ifdef KVIST_SIMT
    kv_simt_copy_async_commit();
#else
    asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}

/* Waits until at most pending_max of this thread's groups, the youngest, are still under way. */
template <int pending_max> KV_TENSOR void kv_copy_async_wait(void)
{
#ifdef KVIST_SIMT
    kv_simt_copy_async_wait(pending_max);
#else
    asm volatile("cp.async.wait_group %0;" : : "n"(pending_max) : "memory");
#endif
}

#endif
