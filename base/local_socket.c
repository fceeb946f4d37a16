#include "base/local_socket.h"

#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

kv_status_t kv_local_address(
    const char *path, const char *option, struct sockaddr_un *address_out, kv_error_t *error)
{
    *address_out = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t bytes = strlen(path);
    if (bytes < 1 || bytes >= sizeof address_out->sun_path) {
        return kv_fail(error, KV_INVALID, "%s: %zu bytes, at most %zu: %s", option, bytes,
            sizeof address_out->sun_path - 1, path);
    }
    memcpy(address_out->sun_path, path, bytes);
    return KV_OK;
}

/* The pid that listens at the path; 0: nobody does. */
static pid_t listener_pid(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct ucred peer = {0};
    socklen_t bytes = sizeof peer;
    if (fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 &&
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) {
        peer.pid = -1;
    }
    if (fd >= 0) {
        close(fd);
    }
    return peer.pid;
}

static kv_status_t bind_socket(
    int fd, const struct sockaddr_un *address, const char *option, mode_t mode, kv_error_t *error)
{
    const char *path = address->sun_path;
    struct stat info;
    if (lstat(path, &info) == 0) {
        if (!S_ISSOCK(info.st_mode)) {
            return kv_fail(error, KV_INVALID, "%s: %s: exists and is no socket", option, path);
        }
        pid_t pid = listener_pid(address);
        if (pid != 0) {
            return kv_fail(error, KV_BUSY,
                "%s: %s: process %d serves it: stop it or name another path", option, path,
                (int)pid);
        }
        unlink(path);
    }
    /* The file must never exist with more than these rights. */
    mode_t mask = umask(0777 & ~mode);
    int code = bind(fd, (const struct sockaddr *)address, sizeof *address) == 0 ? 0 : errno;
    umask(mask);
    return code == 0 ? KV_OK : kv_fail_errno(error, code, "%s: %s", option, path);
}

/* Whoever may rename things in the folder could put a socket of theirs in the place of ours. */
static kv_status_t check_folder(int folder, const char *path, const char *option, kv_error_t *error)
{
    struct stat info;
    if (fstat(folder, &info) != 0) {
        return kv_fail_errno(error, errno, "%s: %s", option, path);
    }
    if (info.st_uid != geteuid() && info.st_uid != 0) {
        return kv_fail(error, KV_REFUSED,
            "%s: %s: its folder belongs to user %u: name a path of your own", option, path,
            (unsigned)info.st_uid);
    }
    if ((info.st_mode & S_IWOTH) != 0 && (info.st_mode & S_ISVTX) == 0) {
        return kv_fail(error, KV_REFUSED,
            "%s: %s: everybody may write in its folder (mode %03o): chmod 700", option, path,
            (unsigned)info.st_mode & 0777);
    }
    return KV_OK;
}

/* The path's folder, made where it is absent. */
static int open_folder(const char *path)
{
    char *folder = kv_duplicate_string(path);
    char *slash = strrchr(folder, '/');
    if (slash != NULL && slash != folder) {
        *slash = '\0';
        mkdir(folder, 0700); /* an error shows in the next step */
    }
    const char *name = slash == NULL ? "." : slash == folder ? "/" : folder;
    int fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    return fd;
}

kv_status_t kv_local_listen(
    const char *path, const char *option, mode_t mode, int backlog, int *fd_out, kv_error_t *error)
{
    struct sockaddr_un address;
    kv_status_t status = kv_local_address(path, option, &address, error);
    if (status != KV_OK) {
        return status;
    }
    int lock = open_folder(path);
    if (lock < 0) {
        return kv_fail_errno(error, errno, "%s: %s", option, path);
    }
    status = check_folder(lock, path, option, error);
    if (status != KV_OK) {
        close(lock);
        return status;
    }
    flock(lock, LOCK_EX);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    status = fd < 0 ? kv_fail_errno(error, errno, "%s: %s", option, path)
                    : bind_socket(fd, &address, option, mode, error);
    if (status == KV_OK && listen(fd, backlog) != 0) {
        status = kv_fail_errno(error, errno, "%s: %s", option, path);
    }
    close(lock);
    if (status != KV_OK && fd >= 0) {
        close(fd);
    }
    if (status == KV_OK) {
        *fd_out = fd;
    }
    return status;
}
