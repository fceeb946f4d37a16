/* Unix stream sockets that listen at a path.
 *
 * Threads: any, but for kv_local_listen, which sets the process's umask for a moment.
 * Errors: named after the option that says the path. KV_BUSY, with pid and path, where a living
 * process has the socket; one that a dead process left is replaced. KV_REFUSED for a folder of
 * another user, or one in which everybody may write. */
#ifndef KV_BASE_LOCAL_SOCKET_H
#define KV_BASE_LOCAL_SOCKET_H

#include "base/status.h"

#include <sys/types.h>
#include <sys/un.h>

/* KV_INVALID: the path is empty or too long. */
kv_status_t kv_local_address(
    const char *path, const char *option, struct sockaddr_un *address_out, kv_error_t *error);

/* A socket that listens, does not block, and has these rights. The path's folder is made (mode
 * 0700) where only it is missing, and locked meanwhile, so that two starting processes cannot both
 * take a dead one's path. */
kv_status_t kv_local_listen(
    const char *path, const char *option, mode_t mode, int backlog, int *fd_out, kv_error_t *error);

#endif
