/* io_uring with registered buffers and files; each registration is a saving, not a need. */
#include "kvstore/disk/ring_internal.h"

#include "base/check.h"
#include "base/memory.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct {
    kv_ring_t ring; /* first: the public object */
    struct io_uring uring;
    int event_fd;
    bool buffers_registered, files_registered;
    uint32_t unsubmitted;
} uring_t;

static int uring_fd(const kv_ring_t *ring)
{
    return ((const uring_t *)ring)->event_fd;
}

static void prepare(uring_t *uring, struct io_uring_sqe *sqe, const kv_ring_request_t *request)
{
    int file = uring->files_registered ? request->file : uring->ring.files[request->file];
    char *buffer = request->buffer + request->moved;
    unsigned bytes = (unsigned)(request->bytes - request->moved);
    uint64_t offset = request->offset + request->moved;
    switch (request->kind) {
    case KV_RING_READ:
        if (uring->buffers_registered) {
            io_uring_prep_read_fixed(sqe, file, buffer, bytes, offset, 0);
        } else {
            io_uring_prep_read(sqe, file, buffer, bytes, offset);
        }
        break;
    case KV_RING_WRITE:
        if (uring->buffers_registered) {
            io_uring_prep_write_fixed(sqe, file, buffer, bytes, offset, 0);
        } else {
            io_uring_prep_write(sqe, file, buffer, bytes, offset);
        }
        break;
    case KV_RING_SYNC:
        io_uring_prep_fsync(sqe, file, IORING_FSYNC_DATASYNC);
        break;
    }
    if (uring->files_registered) {
        sqe->flags |= IOSQE_FIXED_FILE;
    }
}

static void uring_start(kv_ring_t *ring, kv_ring_request_t *request)
{
    uring_t *uring = (uring_t *)ring;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->uring);
    KV_CHECK(sqe != NULL); /* the queue has KV_RING_DEPTH entries and each start is kicked */
    prepare(uring, sqe, request);
    io_uring_sqe_set_data(sqe, request);
    uring->unsubmitted++;
}

static void uring_kick(kv_ring_t *ring)
{
    uring_t *uring = (uring_t *)ring;
    while (uring->unsubmitted > 0) {
        int submitted = io_uring_submit(&uring->uring);
        if (submitted < 0) {
            /* The kernel is short of memory for now; the entries stay queued for the next kick,
             * and the descriptor is made readable so that one comes. */
            uint64_t one = 1;
            ssize_t ignored = write(uring->event_fd, &one, sizeof one);
            (void)ignored;
            return;
        }
        uring->unsubmitted -=
            (uint32_t)submitted < uring->unsubmitted ? (uint32_t)submitted : uring->unsubmitted;
    }
}

static kv_ring_request_t *uring_reap(kv_ring_t *ring)
{
    uring_t *uring = (uring_t *)ring;
    struct io_uring_cqe *cqe = NULL;
    if (io_uring_peek_cqe(&uring->uring, &cqe) != 0 || cqe == NULL) {
        /* Clear, then look again: a completion between the two would otherwise go unseen. */
        uint64_t value;
        if (read(uring->event_fd, &value, sizeof value) < 0 ||
            io_uring_peek_cqe(&uring->uring, &cqe) != 0 || cqe == NULL) {
            return NULL;
        }
    }
    kv_ring_request_t *request = io_uring_cqe_get_data(cqe);
    request->result = cqe->res;
    io_uring_cqe_seen(&uring->uring, cqe);
    return request;
}

static void uring_file_changed(kv_ring_t *ring, int file)
{
    uring_t *uring = (uring_t *)ring;
    if (uring->files_registered) {
        int fd = ring->files[file];
        KV_CHECK(io_uring_register_files_update(&uring->uring, (unsigned)file, &fd, 1) == 1);
    }
}

static void uring_close(kv_ring_t *ring)
{
    uring_t *uring = (uring_t *)ring;
    io_uring_queue_exit(&uring->uring);
    close(uring->event_fd);
    free(uring);
}

static const kv_ring_ops_t URING_OPS = {
    .name = "io_uring",
    .fd = uring_fd,
    .start = uring_start,
    .kick = uring_kick,
    .reap = uring_reap,
    .file_changed = uring_file_changed,
    .close = uring_close,
};

kv_status_t kv_ring_uring_open(const kv_region_t *region, kv_ring_t **ring_out, kv_error_t *error)
{
    uring_t *uring = kv_allocate(sizeof *uring);
    int result = io_uring_queue_init(KV_RING_DEPTH, &uring->uring, 0);
    if (result < 0) {
        free(uring);
        return kv_fail_errno(error, -result, "io_uring is not to be had");
    }
    uring->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (uring->event_fd < 0 || io_uring_register_eventfd(&uring->uring, uring->event_fd) != 0) {
        int reason = errno;
        io_uring_queue_exit(&uring->uring);
        if (uring->event_fd >= 0) {
            close(uring->event_fd);
        }
        free(uring);
        return kv_fail_errno(error, reason, "io_uring takes no eventfd");
    }
    struct iovec vector = {.iov_base = region->base, .iov_len = region->bytes};
    uring->buffers_registered = io_uring_register_buffers(&uring->uring, &vector, 1) == 0;
    uring->files_registered = io_uring_register_files_sparse(&uring->uring, KV_RING_FILES_MAX) == 0;
    uring->ring.ops = &URING_OPS;
    *ring_out = &uring->ring;
    return KV_OK;
}
