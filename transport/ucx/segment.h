/* A segment: memory of this process that another process of this host may read.
 *
 * It is named by process and descriptor, and opened through /proc, which asks for what reading that
 * process' memory asks for (the same user, the same process ids). Seals keep everybody else from
 * writing to it or making it shorter under a reader.
 *
 * Owns: the descriptor and this process' map. A reader's map outlives both.
 * Threads: any.
 * Errors: KV_REFUSED: what the name leads to is no such segment; else errno's. */
#ifndef KV_TRANSPORT_UCX_SEGMENT_H
#define KV_TRANSPORT_UCX_SEGMENT_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int fd;
    uint8_t *base;
    size_t bytes;
} kv_segment_t;

/* What a peer must know; both are on one host, so it goes as it is. */
typedef struct {
    uint32_t pid, fd;
    uint64_t bytes;
    uint64_t inode; /* a process id or a descriptor that serves another by now is noticed */
} kv_segment_name_t;

_Static_assert(sizeof(kv_segment_name_t) == 24, "goes over the wire as it is");

kv_status_t kv_segment_create(size_t bytes, kv_segment_t *segment_out, kv_error_t *error);
kv_status_t kv_segment_name(
    const kv_segment_t *segment, kv_segment_name_t *name_out, kv_error_t *error);
void kv_segment_destroy(kv_segment_t *segment);

/* Maps another process' segment, to be read; munmap it. */
kv_status_t kv_segment_map(
    const kv_segment_name_t *name, const uint8_t **base_out, kv_error_t *error);

#endif
