/* Which cores a process runs on, and how long it has.
 *
 * Threads: any.
 * Errors: KV_MISSING when the process has ended. */
#ifndef KV_TOOLS_CORES_H
#define KV_TOOLS_CORES_H

#include "tools/kvist/child.h"

/* Of those that this process may use. */
uint32_t kv_cores_count(void);

/* Keeps all threads that it has (and those that they make) on `count` of these cores, from the
 * first_core-th on. */
kv_status_t kv_child_pin(
    const kv_child_t *child, uint32_t first_core, uint32_t count, kv_error_t *error);

/* The processor time of its living threads, from the scheduler's own count. */
kv_status_t kv_child_cpu_ns(const kv_child_t *child, uint64_t *cpu_ns_out, kv_error_t *error);

#endif
