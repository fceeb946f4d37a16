/* How much memory may still be taken before somebody is stopped for want of it: the least of what
 * the machine has left and of what the process' control groups (version 1 or 2) leave it.
 *
 * What the kernel would give back by itself (pages of files that nobody uses) counts as left.
 *
 * Threads: any.
 * Errors: what cannot be read bounds nothing.
 * Limits: control groups are looked for where they are mounted by custom, /sys/fs/cgroup. */
#ifndef KV_BASE_AVAILABLE_H
#define KV_BASE_AVAILABLE_H

#include <stdint.h>

typedef struct {
    uint64_t available_bytes; /* UINT64_MAX: nothing is known to bound it */
    uint64_t total_bytes;     /* of whatever has so little left */
} kv_available_t;

/* Where the kernel tells of it; for tests. */
typedef struct {
    const char *proc, *cgroup;
} kv_available_places_t;

kv_available_t kv_available_memory(const kv_available_places_t *places); /* NULL: the machine's */

#endif
