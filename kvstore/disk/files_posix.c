/* The machine's file system. */
#include "kvstore/disk/files.h"

#include "kvstore/disk/ring_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int negative_errno(int result)
{
    return result < 0 ? -errno : result;
}

static int posix_open(kv_files_t *files, const char *path, unsigned how)
{
    (void)files;
    struct stat status;
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode)) {
        return S_ISDIR(status.st_mode) ? -EISDIR : -ENOTSUP; /* opening a pipe would wait */
    }
    int flags = O_CLOEXEC | ((how & KV_FILES_WRITE) != 0 ? O_RDWR : O_RDONLY);
    flags |= (how & KV_FILES_CREATE) != 0 ? O_CREAT : 0;
    flags |= (how & KV_FILES_DIRECT) != 0 ? O_DIRECT : 0;
    return negative_errno(open(path, flags, 0600));
}

static void posix_close(kv_files_t *files, int file)
{
    (void)files;
    close(file);
}

static int64_t posix_read(kv_files_t *files, int file, void *buffer, size_t bytes, uint64_t offset)
{
    (void)files;
    size_t moved = 0;
    while (moved < bytes) {
        ssize_t got = pread(file, (char *)buffer + moved, bytes - moved, (off_t)(offset + moved));
        if (got < 0 && errno != EINTR) {
            return -errno;
        }
        if (got == 0) {
            break;
        }
        moved += got > 0 ? (size_t)got : 0;
    }
    return (int64_t)moved;
}

static int64_t posix_write(
    kv_files_t *files, int file, const void *buffer, size_t bytes, uint64_t offset)
{
    (void)files;
    size_t moved = 0;
    while (moved < bytes) {
        ssize_t put =
            pwrite(file, (const char *)buffer + moved, bytes - moved, (off_t)(offset + moved));
        if (put < 0 && errno != EINTR) {
            return -errno;
        }
        moved += put > 0 ? (size_t)put : 0;
    }
    return (int64_t)moved;
}

static int64_t posix_size(kv_files_t *files, int file)
{
    (void)files;
    struct stat status;
    return fstat(file, &status) == 0 ? (int64_t)status.st_size : -errno;
}

static int posix_mode(kv_files_t *files, int file)
{
    (void)files;
    struct stat status;
    return fstat(file, &status) == 0 ? (int)(status.st_mode & 0777) : -errno;
}

static int posix_allocate(kv_files_t *files, int file, uint64_t bytes)
{
    (void)files;
    if (fallocate(file, 0, 0, (off_t)bytes) != 0 && errno != EOPNOTSUPP) {
        return -errno;
    }
    return negative_errno(ftruncate(file, (off_t)bytes));
}

static int posix_truncate(kv_files_t *files, int file)
{
    (void)files;
    return negative_errno(ftruncate(file, 0));
}

static int posix_sync(kv_files_t *files, int file)
{
    (void)files;
    return negative_errno(fdatasync(file)); /* with the size, which reading needs */
}

static int posix_lock(kv_files_t *files, int file)
{
    (void)files;
    return negative_errno(flock(file, LOCK_EX | LOCK_NB));
}

static int posix_space(
    kv_files_t *files, int file, uint64_t *total_bytes_out, uint64_t *free_bytes_out)
{
    (void)files;
    struct statvfs status;
    if (fstatvfs(file, &status) != 0) {
        return -errno;
    }
    *total_bytes_out = (uint64_t)status.f_blocks * status.f_frsize;
    *free_bytes_out = (uint64_t)status.f_bavail * status.f_frsize;
    return 0;
}

static int posix_make_folder(kv_files_t *files, const char *path)
{
    (void)files;
    return negative_errno(mkdir(path, 0700));
}

static int posix_sync_folder(kv_files_t *files, const char *path)
{
    (void)files;
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) {
        return -errno;
    }
    int result = negative_errno(fsync(folder));
    close(folder);
    return result;
}

static int posix_list(kv_files_t *files, const char *path, kv_files_visit_t visit, void *context)
{
    (void)files;
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return -errno;
    }
    struct dirent *entry;
    errno = 0;
    while ((entry = readdir(folder)) != NULL) {
        visit(context, entry->d_name);
        errno = 0;
    }
    int result = -errno;
    closedir(folder);
    return result;
}

static int posix_remove(kv_files_t *files, const char *path)
{
    (void)files;
    return negative_errno(unlink(path));
}

static kv_status_t posix_open_ring(kv_files_t *files, kvist_io_t io, const kv_region_t *region,
    kv_ring_t **ring_out, kv_error_t *error)
{
    (void)files;
    return kv_ring_posix_open(io, region, ring_out, error);
}

static const kv_files_ops_t POSIX_OPS = {
    .open = posix_open,
    .close = posix_close,
    .read = posix_read,
    .write = posix_write,
    .size = posix_size,
    .mode = posix_mode,
    .allocate = posix_allocate,
    .truncate = posix_truncate,
    .sync = posix_sync,
    .lock = posix_lock,
    .space = posix_space,
    .make_folder = posix_make_folder,
    .sync_folder = posix_sync_folder,
    .list = posix_list,
    .remove = posix_remove,
    .open_ring = posix_open_ring,
};

kv_files_t *kv_files_posix(void)
{
    static kv_files_t posix = {&POSIX_OPS};
    return &posix;
}
