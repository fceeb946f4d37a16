/* What the stand-in found wrong with a kernel or with a use of the runtime.
 *
 * Each finding is printed where it is found and kept, up to a bound, until findings are cleared. A
 * test asks for them at its end: a program without mistakes has none.
 *
 * Threads: any. */
#ifndef KV_KERNELS_SIMT_FINDING_H
#define KV_KERNELS_SIMT_FINDING_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    KV_SIMT_DIVERGENT_BARRIER, /* not every thread of the block comes to the same barrier */
    KV_SIMT_INACTIVE_LANE,     /* a warp's operation names or reads a lane that is not there */
    KV_SIMT_OUT_OF_BOUNDS,     /* an access outside every buffer that a kernel may touch */
    KV_SIMT_MISALIGNED,        /* an address that the instruction refuses */
    KV_SIMT_RACE,              /* two threads, one of them writing, with no barrier between */
    KV_SIMT_UNWRITTEN,         /* shared memory read before this block wrote it */
    KV_SIMT_HOST_ACCESS,       /* host code dereferences device memory */
    KV_SIMT_MISUSE,            /* a call of the runtime that CUDA leaves undefined */
    KV_SIMT_FINDING_KINDS,
} kv_simt_finding_kind_t;

enum { KV_SIMT_FINDINGS_KEPT = 64 };

typedef struct {
    kv_simt_finding_kind_t kind;
    char text[256]; /* the kernel, its block and thread, the place, the cause */
} kv_simt_finding_t;

/* The findings of one kind since they were cleared, or of all for KV_SIMT_FINDING_KINDS. */
size_t kv_simt_finding_count(kv_simt_finding_kind_t kind);

/* The kept finding number index, or NULL. */
const kv_simt_finding_t *kv_simt_finding_at(size_t index);
void kv_simt_findings_clear(void);
const char *kv_simt_finding_kind_name(kv_simt_finding_kind_t kind);

#ifdef __cplusplus
}
#endif

#endif
