/* Blocks of CUDA threads on the CPU: what kernels/simt/simt.h is built on, and what tests ask.
 *
 * A launch runs its blocks one after the other; a block's threads are fibers that run until they
 * wait. Operations of a warp (shuffles, votes, tensor instructions) are one step: the last lane to
 * arrive computes all lanes' results. Everything that is undefined on a GPU is a finding here: it
 * is named, counted, and where going on makes no sense it ends the launch.
 *
 * Owns: the fibers' stacks, the block's shared memory. Borrows: a launch's arguments until it ends.
 * Threads: launches may come from any thread and run one at a time; functions marked "kernel" only
 * from inside a kernel.
 * Errors: findings (finding.h); a launch that was ended gives its cudaError_t.
 * Limits: 1024 threads a block; 99 KiB of shared memory; 64 KiB of stack a thread. */
#ifndef KV_KERNELS_SIMT_BLOCK_H
#define KV_KERNELS_SIMT_BLOCK_H

#include "kernels/simt/launched.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    KV_SIMT_WARP_LANES = 32,
    KV_SIMT_THREADS_MAX = 1024,
    KV_SIMT_SHARED_BYTES_MAX = 99 * 1024,   /* of all chips the least, sm_86 and sm_120 */
    KV_SIMT_SHARED_BYTES_PLAIN = 48 * 1024, /* more needs the kernel's attribute */
};

typedef struct {
    unsigned int x, y, z;
} kv_simt_index_t;

/* What a kernel's thread sees of itself. */
typedef struct {
    kv_simt_index_t thread, block, block_dim, grid_dim;
} kv_simt_thread_t;

typedef struct {
    const char *name;        /* the kernel's, for findings; a constant */
    kv_simt_kernel_t *known; /* where its runs are counted */
    const void *function;    /* its address, which attributes are kept for */
    void (*run)(void *body); /* one thread of it */
    void *body;              /* [body_bytes] the arguments */
    size_t body_bytes;
    kv_simt_index_t grid, block;
    size_t shared_bytes;
} kv_simt_launch_t;

/* Runs the whole grid on the calling thread; 0 or the cudaError_t that ended it. */
int kv_simt_grid_run(const kv_simt_launch_t *launch);

/* In which order threads, warps and blocks take turns: 0 is ascending, every other seed another
 * order. What a kernel computes must not depend on it. */
void kv_simt_set_order(uint64_t seed);

/* Kernel: the calling thread; never changes within one. */
__attribute__((const)) const kv_simt_thread_t *kv_simt_self(void);

/* Kernel: the block's dynamic shared memory. */
__attribute__((const)) void *kv_simt_shared(void);

/* Kernel: the barrier of the block; votes over predicate. */
typedef enum { KV_SIMT_COUNT, KV_SIMT_AND, KV_SIMT_OR } kv_simt_vote_t;
int kv_simt_barrier(kv_simt_vote_t vote, int predicate, const char *file, int line);

/* Kernel: what the lanes of mask do together. Each gives the 64 bits of value; shuffles read the
 * lane that argument names as CUDA does within segments of width lanes. */
typedef enum {
    KV_SIMT_SYNC,
    KV_SIMT_SHUFFLE,
    KV_SIMT_SHUFFLE_UP,
    KV_SIMT_SHUFFLE_DOWN,
    KV_SIMT_SHUFFLE_XOR,
    KV_SIMT_BALLOT,
    KV_SIMT_MATCH,
    KV_SIMT_ADD,
    KV_SIMT_MIN,
    KV_SIMT_MAX,
    KV_SIMT_MIN_SIGNED,
    KV_SIMT_MAX_SIGNED,
    KV_SIMT_BITS_AND,
    KV_SIMT_BITS_OR,
    KV_SIMT_BITS_XOR,
    KV_SIMT_TENSOR,
} kv_simt_collective_t;

uint64_t kv_simt_together(kv_simt_collective_t operation, uint32_t mask, uint64_t value,
    uint32_t argument, uint32_t width, const char *file, int line);

/* Kernel: kernels/cuda/tensor.h says what these do. */
typedef enum { KV_SIMT_BF16, KV_SIMT_F16 } kv_simt_operand_t;
void kv_simt_mma(kv_simt_operand_t operand, float c[4], const uint32_t a[4], const uint32_t b[2]);
void kv_simt_load_matrix(uint32_t count, bool transposed, uint32_t *out, const void *row);
void kv_simt_tensor_wait(const char *file, int line);
void kv_simt_copy_async(void *shared, const void *global, uint32_t bytes, uint32_t source_bytes);
void kv_simt_copy_async_commit(void);
void kv_simt_copy_async_wait(uint32_t pending_max);

/* Kernel: atomic operations; each gives what was there before. */
typedef enum {
    KV_SIMT_ATOMIC_ADD,
    KV_SIMT_ATOMIC_EXCHANGE,
    KV_SIMT_ATOMIC_COMPARE,
    KV_SIMT_ATOMIC_MIN,
    KV_SIMT_ATOMIC_MAX,
    KV_SIMT_ATOMIC_MIN_SIGNED,
    KV_SIMT_ATOMIC_MAX_SIGNED,
    KV_SIMT_ATOMIC_AND,
    KV_SIMT_ATOMIC_OR,
    KV_SIMT_ATOMIC_XOR,
    KV_SIMT_ATOMIC_ADD_F32,
} kv_simt_atomic_t;
uint32_t kv_simt_atomic_32(
    kv_simt_atomic_t operation, void *address, uint32_t value, uint32_t expected);
uint64_t kv_simt_atomic_64(
    kv_simt_atomic_t operation, void *address, uint64_t value, uint64_t expected);

#ifdef __cplusplus
}
#endif

#endif
