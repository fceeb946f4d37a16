#include "kvstore/disk/ring_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "kvstore/disk/files.h"

#include <errno.h>

kv_status_t kv_ring_posix_open(
    kvist_io_t io, const kv_region_t *region, kv_ring_t **ring_out, kv_error_t *error)
{
    kv_status_t status = KV_REFUSED;
    if (io != KVIST_IO_THREADS) {
        kv_error_t reason;
        status = kv_ring_uring_open(region, ring_out, &reason);
        if (status != KV_OK && io == KVIST_IO_URING) {
            return kv_fail(error, status, "%s; io: auto or threads works here", reason.text);
        }
        if (status != KV_OK) {
            kv_log_info("store", "%s: using pread and pwrite in threads", reason.text);
        }
    }
    return status == KV_OK ? KV_OK : kv_ring_threads_open(ring_out, error);
}

kv_status_t kv_ring_open(kv_files_t *files, kvist_io_t io, const kv_region_t *region,
    const kv_ring_faults_t *faults, kv_ring_t **ring_out, kv_error_t *error)
{
    kv_ring_t *ring;
    kv_status_t status = files->ops->open_ring(files, io, region, &ring, error);
    if (status != KV_OK) {
        return status;
    }
    for (int i = 0; i < KV_RING_FILES_MAX; i++) {
        ring->files[i] = -1;
    }
    if (faults != NULL) {
        ring->faults = *faults;
    }
    *ring_out = ring;
    return KV_OK;
}

void kv_ring_close(kv_ring_t *ring)
{
    if (ring != NULL) {
        KV_CHECK(ring->under_way == 0 && ring->first_waiting == NULL);
        ring->ops->close(ring);
    }
}

const char *kv_ring_name(const kv_ring_t *ring)
{
    return ring->ops->name;
}

int kv_ring_fd(const kv_ring_t *ring)
{
    return ring->ops->fd(ring);
}

int kv_ring_add_file(kv_ring_t *ring, int fd)
{
    for (int i = 0; i < KV_RING_FILES_MAX; i++) {
        if (ring->files[i] < 0) {
            ring->files[i] = fd;
            ring->ops->file_changed(ring, i);
            return i;
        }
    }
    return -1;
}

void kv_ring_remove_file(kv_ring_t *ring, int file)
{
    ring->files[file] = -1;
    ring->ops->file_changed(ring, file);
}

static void start(kv_ring_t *ring, kv_ring_request_t *request)
{
    if (ring->faults.hook != NULL) {
        ring->faults.hook(ring->faults.context, false, request, 0);
    }
    ring->under_way++;
    ring->ops->start(ring, request);
}

void kv_ring_submit(kv_ring_t *ring, kv_ring_request_t *request)
{
    KV_CHECK(request->file >= 0 && ring->files[request->file] >= 0);
    request->moved = 0;
    request->next = NULL;
    if (ring->under_way < KV_RING_DEPTH) {
        start(ring, request);
        ring->ops->kick(ring);
        return;
    }
    if (ring->last_waiting != NULL) {
        ring->last_waiting->next = request;
    } else {
        ring->first_waiting = request;
    }
    ring->last_waiting = request;
}

/* true: the request is done, *errno_out says how; false: there is more of it to move. */
static bool take_result(kv_ring_request_t *request, int64_t result, int *errno_out)
{
    *errno_out = 0;
    if (result == -EINTR || result == -EAGAIN) {
        return false;
    }
    if (result < 0) {
        *errno_out = (int)-result;
        return true;
    }
    if (request->kind == KV_RING_SYNC) {
        return true;
    }
    request->moved += (size_t)result;
    if (request->moved < request->bytes && result == 0) {
        *errno_out = ENODATA;
        return true;
    }
    return request->moved >= request->bytes;
}

void kv_ring_poll(kv_ring_t *ring)
{
    kv_ring_request_t *request;
    while ((request = ring->ops->reap(ring)) != NULL) {
        int64_t result = request->result;
        if (ring->faults.hook != NULL) {
            result = ring->faults.hook(ring->faults.context, true, request, result);
        }
        ring->under_way--;
        int errno_value;
        if (!take_result(request, result, &errno_value)) {
            start(ring, request);
            continue;
        }
        if (ring->first_waiting != NULL) {
            kv_ring_request_t *next = ring->first_waiting;
            ring->first_waiting = next->next;
            if (ring->first_waiting == NULL) {
                ring->last_waiting = NULL;
            }
            start(ring, next);
        }
        request->done(request, errno_value);
    }
    ring->ops->kick(ring);
}
