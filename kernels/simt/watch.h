/* Watching memory: every access of a kernel is judged against what it may touch and against the
 * accesses of other threads.
 *
 * Sources that are compiled with -fsanitize=thread call a hook for each read and write; the hooks
 * are this folder's own (hooks.c) instead of ThreadSanitizer's, so that the instrumentation serves
 * blocks and barriers. Sources compiled without it are judged only where the stand-in itself reads
 * or writes for them (tensor instructions, asynchronous copies, atomics), and not for races.
 *
 * Owns: a record for each byte of shared memory and of device memory that was touched.
 * Threads: the thread that runs the launch.
 * Errors: findings; an access out of bounds ends the launch before it happens.
 * Limits: device memory beyond the first KV_SIMT_WATCHED_BYTES is watched for bounds only. */
#ifndef KV_KERNELS_SIMT_WATCH_H
#define KV_KERNELS_SIMT_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { KV_SIMT_READ, KV_SIMT_WRITE, KV_SIMT_ATOMIC } kv_simt_access_kind_t;

#define KV_SIMT_WATCHED_BYTES ((size_t)256 << 20)

/* From now on accesses are recorded; hooks.c begins it when some source of the program is
 * instrumented. */
void kv_simt_watch_begin(void);
bool kv_simt_watching(void);

/* The current lane is about to access memory; site: the instruction, for the finding. */
void kv_simt_access(
    const void *address, size_t bytes, kv_simt_access_kind_t kind, const void *site);

/* What orders accesses: a launch after those before it, a block's part after a barrier, lanes of a
 * warp that synchronised. */
void kv_simt_watch_launch(void);
void kv_simt_watch_block(void);
void kv_simt_watch_barrier(void);
void kv_simt_watch_warp(uint32_t warp, uint32_t lanes);

/* Device memory is new again: what was recorded of it is forgotten. */
void kv_simt_watch_forget(const void *memory, size_t bytes);

#endif
