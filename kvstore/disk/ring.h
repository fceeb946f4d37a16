/* The ring: reads, writes and syncs of files, asynchronously, by io_uring or by a few threads.
 *
 * Both ways have one interface and one behaviour: a request is done when all its bytes have moved
 * or an error ended it; a short transfer is continued. Files are opened by the caller and known to
 * the ring by a small number. Buffers lie inside the one region given at the start.
 *
 * Owns: the ring, its threads.
 * Borrows: the region; a request from kv_ring_submit until its done() ran; a file's descriptor
 * until kv_ring_remove_file.
 * Threads: the owner's. done() runs only inside kv_ring_poll.
 * Errors: done() gets an errno value; ENODATA where the file ends before the request does.
 * Limits: KV_RING_DEPTH requests are under way at once, the others wait in order. */
#ifndef KV_KVSTORE_DISK_RING_H
#define KV_KVSTORE_DISK_RING_H

#include "base/memory.h"
#include "kvstore/kvist.h"

enum { KV_RING_DEPTH = 64, KV_RING_FILES_MAX = 256 };

typedef enum { KV_RING_READ, KV_RING_WRITE, KV_RING_SYNC } kv_ring_kind_t;

typedef struct kv_ring_request kv_ring_request_t;
struct kv_ring_request {
    kv_ring_kind_t kind;
    int file; /* from kv_ring_add_file */
    char *buffer;
    size_t bytes;
    uint64_t offset;
    void (*done)(kv_ring_request_t *request, int errno_value);
    /* the ring's own: */
    size_t moved;
    int64_t result;
    kv_ring_request_t *next;
};

/* For tests: sees each operation before it starts (result is then 0; it may change the buffer's
 * bytes) and after it ended (returns the result to go on with: bytes, or a negative errno value).
 */
typedef struct {
    int64_t (*hook)(void *context, bool after, kv_ring_request_t *request, int64_t result);
    void *context;
} kv_ring_faults_t;

typedef struct kv_ring kv_ring_t;

struct kv_files;

/* The ring of these files. io: auto takes threads where the kernel refuses io_uring. faults: NULL
 * for none. */
kv_status_t kv_ring_open(struct kv_files *files, kvist_io_t io, const kv_region_t *region,
    const kv_ring_faults_t *faults, kv_ring_t **ring_out, kv_error_t *error);

/* Nothing may be under way. */
void kv_ring_close(kv_ring_t *ring);

const char *kv_ring_name(const kv_ring_t *ring); /* "io_uring" or "threads" */
int kv_ring_fd(const kv_ring_t *ring); /* readable when kv_ring_poll has something to do */

/* -1 when KV_RING_FILES_MAX files are known. */
int kv_ring_add_file(kv_ring_t *ring, int fd);
void kv_ring_remove_file(kv_ring_t *ring, int file);

void kv_ring_submit(kv_ring_t *ring, kv_ring_request_t *request);
void kv_ring_poll(kv_ring_t *ring);

#endif
