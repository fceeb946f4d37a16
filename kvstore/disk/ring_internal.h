/* What the ways of doing I/O share with ring.c. */
#ifndef KV_KVSTORE_DISK_RING_INTERNAL_H
#define KV_KVSTORE_DISK_RING_INTERNAL_H

#include "kvstore/disk/ring.h"

typedef struct kv_ring_ops kv_ring_ops_t;

struct kv_ring {
    const kv_ring_ops_t *ops;
    int files[KV_RING_FILES_MAX]; /* descriptors; -1: free */
    kv_ring_faults_t faults;
    uint32_t under_way;
    kv_ring_request_t *first_waiting, *last_waiting;
};

struct kv_ring_ops {
    const char *name;
    int (*fd)(const kv_ring_t *ring);
    /* Starts what is left of the request: at most KV_RING_DEPTH are started and not reaped. */
    void (*start)(kv_ring_t *ring, kv_ring_request_t *request);
    void (*kick)(kv_ring_t *ring);                   /* hands what was started to the kernel */
    kv_ring_request_t *(*reap)(kv_ring_t *ring);     /* one that ended, with its result; or NULL */
    void (*file_changed)(kv_ring_t *ring, int file); /* files[file] has another value now */
    void (*close)(kv_ring_t *ring);
};

/* The machine's: by io_uring or by threads, as io says. */
kv_status_t kv_ring_posix_open(
    kvist_io_t io, const kv_region_t *region, kv_ring_t **ring_out, kv_error_t *error);
kv_status_t kv_ring_uring_open(const kv_region_t *region, kv_ring_t **ring_out, kv_error_t *error);
kv_status_t kv_ring_threads_open(kv_ring_t **ring_out, kv_error_t *error);

#endif
