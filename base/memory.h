/* Memory for set-up and for arenas.
 *
 * kv_allocate* are for set-up and control paths: they never return NULL (running out there stops
 * the process with a message). Sizes that a user or a peer chose go through kv_region_map, which
 * answers KV_NO_SPACE instead. Data paths take from pools that were made at set-up.
 *
 * Threads: any. */
#ifndef KV_BASE_MEMORY_H
#define KV_BASE_MEMORY_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

void *kv_allocate(size_t bytes); /* zeroed; release with free() */
void *kv_allocate_array(
    size_t count, size_t bytes); /* zeroed; count x bytes is checked for overflow */
void *kv_reallocate(void *memory, size_t count, size_t bytes); /* grown part is not zeroed */
char *kv_duplicate_string(const char *text);

/* A private anonymous mapping, aligned to 2 MiB and advised to use huge pages; zeroed, populated on
 * first touch. */
typedef struct {
    void *base;
    size_t bytes;
} kv_region_t;

kv_status_t kv_region_map(size_t bytes, kv_region_t *region_out, kv_error_t *error);

/* The first bytes of a file, shared with whoever else maps it, aligned to 2 MiB; fd is not needed
 * any more afterwards. */
kv_status_t kv_region_map_file(
    int fd, size_t bytes, bool writable, kv_region_t *region_out, kv_error_t *error);
void kv_region_unmap(kv_region_t *region);

#ifdef __cplusplus
}
#endif

#endif
