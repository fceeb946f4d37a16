/* The block that runs: shared by the files of this folder.
 *
 * One block runs at a time in the whole process. Its lanes (threads) run on fibers; a lane is ready
 * (it may not have begun), waits for its warp (a collective step), waits at the block's barrier, or
 * has exited:
 *
 *     ready --collective--> together --last lane of the mask arrives--> ready
 *     ready --barrier-----> barrier  --last thread of the block arrives--> ready
 *     ready --returns-----> exited
 *
 * 1. Each lane that exists is in exactly one of the four sets of its warp.
 * 2. When no lane is ready and not all have exited, no lane will ever be: the block is stuck, and
 *    that is a finding.
 *
 * Threads: only the thread that runs the launch; it holds the lock of kv_simt_grid_run. */
#ifndef KV_KERNELS_SIMT_BLOCK_INTERNAL_H
#define KV_KERNELS_SIMT_BLOCK_INTERNAL_H

#include "kernels/simt/block.h"
#include "kernels/simt/fiber.h"
#include "kernels/simt/finding.h"

enum {
    KV_SIMT_WARPS_MAX = KV_SIMT_THREADS_MAX / KV_SIMT_WARP_LANES,
    KV_SIMT_COPIES_MAX = 64, /* of one thread, under way at once */
};

/* A copy to shared memory that was started; it is done as late as the waits permit. */
typedef struct {
    void *shared;
    const void *global;
    uint32_t bytes, source_bytes;
    uint32_t group;
} kv_simt_copy_t;

typedef struct {
    /* What it brings to the step that it waits for: one line of the cache. */
    _Alignas(64) kv_simt_collective_t operation;
    uint32_t mask, argument, width;
    uint64_t value, result;
    struct kv_simt_notes *notes; /* tensor instructions (tensor.h); NULL before its first */
    uint32_t note_count;
    kv_fiber_t *fiber; /* NULL: it has not begun, or has ended and left its stack to another */
    kv_simt_thread_t seen;
    uint32_t index, warp, lane;
    int line;
    kv_simt_copy_t *copies; /* [KV_SIMT_COPIES_MAX]; NULL before its first */
    uint32_t copy_count;
    uint32_t group; /* the one that is open */
} kv_simt_lane_t;

/* The four sets of rule 1, as masks of lanes. */
typedef struct {
    uint32_t ready, together, barrier, exited;
} kv_simt_warp_t;

typedef struct {
    const kv_simt_launch_t *launch;
    kv_fiber_t *scheduler;
    kv_simt_lane_t *lanes; /* [KV_SIMT_THREADS_MAX] */
    kv_simt_lane_t *current;
    kv_simt_warp_t warps[KV_SIMT_WARPS_MAX];
    uint32_t thread_count, warp_count;
    uint32_t ready_warps; /* those with a ready lane */
    /* Stacks: the first used of them have begun in this launch; idle ones wait for a lane. */
    kv_fiber_t *fibers[KV_SIMT_THREADS_MAX], *idle[KV_SIMT_THREADS_MAX];
    uint32_t used_count, idle_count;
    uint32_t arrived, exited;
    const char *barrier_file; /* where the first thread waits */
    int barrier_line;
    kv_simt_vote_t barrier_vote;
    uint32_t votes;     /* predicates so far that held */
    int barrier_result; /* of the barrier that was passed last */
    int error;          /* what ended the launch */
    kv_simt_index_t index;
    unsigned char *shared; /* [KV_SIMT_SHARED_BYTES_MAX] */
} kv_simt_block_t;

extern kv_simt_block_t kv_simt_block;

/* This thread is inside kv_simt_grid_run, in a kernel. */
extern _Thread_local bool kv_simt_inside;

/* CUDA's numbers for what ends a launch. */
enum {
    KV_SIMT_ILLEGAL_ADDRESS = 700,
    KV_SIMT_LAUNCH_FAILURE = 719,
    KV_SIMT_MISALIGNED_ADDRESS = 716,
};

/* Notes a finding; adds the kernel, block and thread when inside one. */
__attribute__((format(printf, 2, 3))) void kv_simt_find(
    kv_simt_finding_kind_t kind, const char *format, ...);

/* Ends the launch with the error: the calling lane is never gone on with. */
_Noreturn void kv_simt_abandon(int error);

/* Waits until something makes the calling lane ready; the caller took it from the ready set. */
void kv_simt_wait(kv_simt_lane_t *self);

/* Lanes of a warp become ready again. */
void kv_simt_wake(uint32_t warp, uint32_t lanes);

/* Why no lane of the warp is ready, as a finding; false if none waits for a collective step. */
bool kv_simt_explain_stuck_warp(uint32_t warp);

#endif
