/* pread, pwrite and fdatasync in threads: what io_uring does, where the kernel forbids it. */
#include "kvstore/disk/ring_internal.h"

#include "base/check.h"
#include "base/memory.h"
#include "base/queue.h"
#include "base/worker.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

enum { THREAD_COUNT = 4 };

typedef struct {
    kv_ring_t ring; /* first: the public object */
    kv_workers_t *workers;
    kv_queue_t *ended; /* operation_t * */
    struct operation *free_operations;
    struct operation *operations;
} threads_t;

/* One started request: the descriptor is read out on the owner's thread. */
typedef struct operation {
    threads_t *threads;
    kv_ring_request_t *request;
    int fd;
    struct operation *next;
} operation_t;

static int threads_fd(const kv_ring_t *ring)
{
    return kv_queue_fd(((const threads_t *)ring)->ended);
}

static void perform(void *argument)
{
    operation_t *operation = argument;
    kv_ring_request_t *request = operation->request;
    char *buffer = request->buffer + request->moved;
    size_t bytes = request->bytes - request->moved;
    off_t offset = (off_t)(request->offset + request->moved);
    ssize_t result = 0;
    switch (request->kind) {
    case KV_RING_READ:
        result = pread(operation->fd, buffer, bytes, offset);
        break;
    case KV_RING_WRITE:
        result = pwrite(operation->fd, buffer, bytes, offset);
        break;
    case KV_RING_SYNC:
        result = fdatasync(operation->fd);
        break;
    }
    request->result = result < 0 ? -errno : result;
    KV_CHECK(kv_queue_push(operation->threads->ended, &operation) == KV_OK);
}

static void threads_start(kv_ring_t *ring, kv_ring_request_t *request)
{
    threads_t *threads = (threads_t *)ring;
    operation_t *operation = threads->free_operations;
    KV_CHECK(operation != NULL); /* ring.c starts at most KV_RING_DEPTH */
    threads->free_operations = operation->next;
    operation->request = request;
    operation->fd = ring->files[request->file];
    KV_CHECK(kv_workers_submit(threads->workers, (kv_job_t){perform, operation}) == KV_OK);
}

static void threads_kick(kv_ring_t *ring)
{
    (void)ring; /* a started operation is under way already */
}

static kv_ring_request_t *threads_reap(kv_ring_t *ring)
{
    threads_t *threads = (threads_t *)ring;
    operation_t *operation;
    if (kv_queue_pop(threads->ended, &operation) != KV_OK) {
        return NULL;
    }
    kv_ring_request_t *request = operation->request;
    operation->next = threads->free_operations;
    threads->free_operations = operation;
    return request;
}

static void threads_file_changed(kv_ring_t *ring, int file)
{
    (void)ring;
    (void)file;
}

static void threads_close(kv_ring_t *ring)
{
    threads_t *threads = (threads_t *)ring;
    kv_workers_destroy(threads->workers);
    kv_queue_destroy(threads->ended);
    free(threads->operations);
    free(threads);
}

static const kv_ring_ops_t THREADS_OPS = {
    .name = "threads",
    .fd = threads_fd,
    .start = threads_start,
    .kick = threads_kick,
    .reap = threads_reap,
    .file_changed = threads_file_changed,
    .close = threads_close,
};

kv_status_t kv_ring_threads_open(kv_ring_t **ring_out, kv_error_t *error)
{
    (void)error;
    threads_t *threads = kv_allocate(sizeof *threads);
    threads->workers = kv_workers_create("kv-io", THREAD_COUNT, KV_RING_DEPTH);
    threads->ended = kv_queue_create(KV_RING_DEPTH, sizeof(operation_t *));
    threads->operations = kv_allocate_array(KV_RING_DEPTH, sizeof(operation_t));
    for (size_t i = 0; i < KV_RING_DEPTH; i++) {
        threads->operations[i].threads = threads;
        threads->operations[i].next = threads->free_operations;
        threads->free_operations = &threads->operations[i];
    }
    threads->ring.ops = &THREADS_OPS;
    *ring_out = &threads->ring;
    return KV_OK;
}
