/* The machine that a benchmark runs on: what a figure means nothing without.
 *
 * Owns: nothing.
 * Threads: any.
 * Errors: what cannot be found out is "unknown", or 0. */
#ifndef KV_TOOLS_MACHINE_H
#define KV_TOOLS_MACHINE_H

#include <stdint.h>
#include <stdio.h>

/* Bytes of the largest processor cache, as the kernel tells; 0: unknown. */
uint64_t kv_machine_cache_bytes(void);

uint64_t kv_machine_memory_bytes(void); /* installed */

/* Of a region to rotate over, so that nothing of it lies in a cache: 1.25 times the largest one, at
 * least 256 MiB, at most an eighth of the memory; a multiple of 64 MiB. */
uint64_t kv_machine_working_bytes(void);

/* Resident bytes of this process. */
uint64_t kv_machine_resident_bytes(void);

/* A few lines, each begun with "# ": date, processor, memory, kernel and, where folder is not NULL,
 * the file system and the disk that the (existing) folder is on. */
void kv_machine_print(FILE *out, const char *folder);

#endif
