#include "node/admin_client.h"

#include "base/clock.h"
#include "proto/frame.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Waits until the socket is ready for events; false at the deadline. */
static bool wait_for(int fd, short events, uint64_t deadline_ns)
{
    uint64_t now_ns = kv_clock_now_ns();
    struct pollfd wanted = {.fd = fd, .events = events};
    while (now_ns < deadline_ns) {
        int count = poll(&wanted, 1, (int)((deadline_ns - now_ns) / KV_NS_PER_MS + 1));
        if (count > 0) {
            return true;
        }
        if (count < 0 && errno != EINTR) {
            return false;
        }
        now_ns = kv_clock_now_ns();
    }
    return false;
}

static kv_status_t send_all(
    int fd, const uint8_t *bytes, size_t count, uint64_t deadline_ns, kv_error_t *error)
{
    while (count > 0) {
        if (!wait_for(fd, POLLOUT, deadline_ns)) {
            return kv_fail(error, KV_PEER_LOST, "admin socket: the node takes no request");
        }
        ssize_t sent = send(fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            return kv_fail(error, KV_PEER_LOST, "admin socket: %s", strerror(errno));
        }
        bytes += sent > 0 ? sent : 0;
        count -= sent > 0 ? (size_t)sent : 0;
    }
    return KV_OK;
}

static kv_status_t receive(int fd, kv_frame_reader_t *reader, uint64_t deadline_ns,
    Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    const uint8_t *message;
    size_t bytes;
    char buffer[16384];
    kv_status_t status;
    while ((status = kv_frame_reader_next(reader, &message, &bytes, error)) == KV_MISSING) {
        if (!wait_for(fd, POLLIN, deadline_ns)) {
            return kv_fail(error, KV_PEER_LOST, "admin socket: no answer in time");
        }
        ssize_t count = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) {
            return kv_fail(error, KV_PEER_LOST, "admin socket: the node closed the connection");
        }
        kv_frame_reader_push(reader, buffer, count > 0 ? (size_t)count : 0);
    }
    if (status != KV_OK) {
        return status;
    }
    Kvist__Admin__Reply *reply = kvist__admin__reply__unpack(NULL, bytes, message);
    if (reply == NULL) {
        return kv_fail(error, KV_INVALID, "admin socket: the answer is no kvist.admin.Reply");
    }
    if (reply->code != KV_OK) {
        status = kv_fail(error, (kv_status_t)reply->code, "%s", reply->error);
        kvist__admin__reply__free_unpacked(reply, NULL);
        return status;
    }
    *reply_out = reply;
    return KV_OK;
}

/* The one who listens there is this user or root, or we are root: at a path in /tmp it could be
 * anybody. */
static kv_status_t check_server(int fd, const char *path, kv_error_t *error)
{
    struct ucred server;
    socklen_t bytes = sizeof server;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server, &bytes) != 0) {
        return kv_fail_errno(error, errno, "admin socket");
    }
    if (geteuid() != 0 && server.uid != 0 && server.uid != geteuid()) {
        return kv_fail(error, KV_REFUSED, "admin socket: %s belongs to a process of user %u", path,
            (unsigned)server.uid);
    }
    return KV_OK;
}

kv_status_t kv_admin_ask(const char *path, const Kvist__Admin__Request *request, uint64_t limit_ms,
    Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    uint64_t deadline_ns = kv_clock_now_ns() + limit_ms * KV_NS_PER_MS;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        return kv_fail(error, KV_INVALID, "admin socket: %zu bytes, at most %zu: %s", strlen(path),
            sizeof address.sun_path - 1, path);
    }
    memcpy(address.sun_path, path, strlen(path));
    uint8_t *frame;
    size_t bytes;
    kv_status_t status = kv_frame_pack(&request->base, &frame, &bytes, error);
    if (status != KV_OK) {
        return status;
    }
    kv_frame_reader_t reader = {0};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        status = kv_fail_errno(error, errno, "admin socket");
    } else if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        status =
            kv_fail(error, KV_MISSING, "admin socket: no node at %s: %s", path, strerror(errno));
    } else {
        status = check_server(fd, path, error);
    }
    if (status == KV_OK) {
        status = send_all(fd, frame, bytes, deadline_ns, error);
    }
    if (status == KV_OK) {
        status = receive(fd, &reader, deadline_ns, reply_out, error);
    }
    kv_frame_reader_clear(&reader);
    if (fd >= 0) {
        close(fd);
    }
    free(frame);
    return status;
}
