#include "transport/ucx/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char NAME[] = "kvist-wire";

kv_status_t kv_segment_create(size_t bytes, kv_segment_t *segment_out, kv_error_t *error)
{
    kv_segment_t segment = {.fd = memfd_create(NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING),
        .base = MAP_FAILED,
        .bytes = bytes};
    if (segment.fd < 0) {
        return kv_fail_errno(error, errno, "no memory to share");
    }
    if (ftruncate(segment.fd, (off_t)bytes) == 0) {
        segment.base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.fd, 0);
    }
    /* After our own map: from now on nobody makes another one to write to. */
    if (segment.base == MAP_FAILED ||
        fcntl(segment.fd, F_ADD_SEALS,
            F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        kv_status_t status = kv_fail_errno(error, errno, "no memory to share");
        if (segment.base != MAP_FAILED) {
            munmap(segment.base, bytes);
        }
        close(segment.fd);
        return status;
    }
    *segment_out = segment;
    return KV_OK;
}

kv_status_t kv_segment_name(
    const kv_segment_t *segment, kv_segment_name_t *name_out, kv_error_t *error)
{
    struct stat state;
    if (fstat(segment->fd, &state) != 0) {
        return kv_fail_errno(error, errno, "shared memory cannot be named");
    }
    *name_out = (kv_segment_name_t){
        (uint32_t)getpid(), (uint32_t)segment->fd, segment->bytes, (uint64_t)state.st_ino};
    return KV_OK;
}

void kv_segment_destroy(kv_segment_t *segment)
{
    if (segment->base != NULL) {
        munmap(segment->base, segment->bytes);
        close(segment->fd);
        segment->base = NULL;
    }
}

/* Nothing else is opened: a device or a pipe may do something by being opened alone. */
static kv_status_t check_place(const char *path, kv_error_t *error)
{
    char target[64];
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0) {
        return kv_fail_errno(error, errno, "the peer's shared memory %s", path);
    }
    target[length] = '\0';
    char expected[64];
    snprintf(expected, sizeof expected, "/memfd:%s", NAME);
    return strncmp(target, expected, strlen(expected)) == 0
               ? KV_OK
               : kv_fail(error, KV_REFUSED, "the peer's shared memory %s is something else", path);
}

/* It is what was named, and stays as long as it is. */
static kv_status_t check_file(int fd, const kv_segment_name_t *name, kv_error_t *error)
{
    struct stat state;
    int seals = fcntl(fd, F_GET_SEALS);
    if (fstat(fd, &state) != 0 || seals < 0) {
        return kv_fail_errno(error, errno, "the peer's shared memory");
    }
    return (seals & F_SEAL_SHRINK) != 0 && (uint64_t)state.st_size == name->bytes &&
                   (uint64_t)state.st_ino == name->inode
               ? KV_OK
               : kv_fail(error, KV_REFUSED, "the peer's shared memory is not the one it named");
}

kv_status_t kv_segment_map(
    const kv_segment_name_t *name, const uint8_t **base_out, kv_error_t *error)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/fd/%u", name->pid, name->fd);
    kv_status_t status = check_place(path, error);
    if (status != KV_OK) {
        return status;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return kv_fail_errno(error, errno, "the peer's shared memory %s", path);
    }
    status = check_file(fd, name, error);
    if (status == KV_OK) {
        void *base = mmap(NULL, name->bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (base == MAP_FAILED) {
            status = kv_fail_errno(error, errno, "the peer's shared memory %s", path);
        } else {
            *base_out = base;
        }
    }
    close(fd);
    return status;
}
