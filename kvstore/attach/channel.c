#include "kvstore/attach/channel.h"

#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PORTION_BYTES = 64 << 10, FRAMES_AT_ONCE = 16 };

struct kv_channel_frame {
    uint8_t *bytes;
    size_t count, sent;
    int fds[KV_CHANNEL_FDS_MAX];
    uint32_t fd_count;
    kv_channel_frame_t *next;
};

/* Room for the descriptors of one message, aligned as the kernel wants it. */
typedef union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(KV_CHANNEL_FDS_MAX * sizeof(int))];
} control_t;

void kv_channel_init(kv_channel_t *channel, int fd, uint32_t fds_max)
{
    *channel = (kv_channel_t){.fd = fd, .fds_max = fds_max};
}

static void close_all(const int *fds, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        close(fds[i]);
    }
}

static void free_frame(kv_channel_frame_t *frame)
{
    close_all(frame->fds, frame->fd_count);
    free(frame->bytes);
    free(frame);
}

void kv_channel_clear(kv_channel_t *channel)
{
    while (channel->first_out != NULL) {
        kv_channel_frame_t *frame = channel->first_out;
        channel->first_out = frame->next;
        free_frame(frame);
    }
    close_all(channel->fds, channel->fd_count);
    if (channel->fd >= 0) {
        close(channel->fd);
    }
    kv_frame_reader_clear(&channel->reader);
    *channel = (kv_channel_t){.fd = -1};
}

/* ---- out ---- */

kv_status_t kv_channel_queue(kv_channel_t *channel, const ProtobufCMessage *message, const int *fds,
    uint32_t fd_count, kv_error_t *error)
{
    kv_channel_frame_t *frame = kv_allocate(sizeof *frame);
    kv_status_t status = kv_frame_pack(message, &frame->bytes, &frame->count, error);
    for (uint32_t i = 0; status == KV_OK && i < fd_count; i++) {
        frame->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        if (frame->fds[i] < 0) {
            status = kv_fail_errno(error, errno, "a descriptor to be passed");
        } else {
            frame->fd_count++;
        }
    }
    if (status != KV_OK) {
        free_frame(frame);
        return status;
    }
    if (channel->last_out != NULL) {
        channel->last_out->next = frame;
    } else {
        channel->first_out = frame;
    }
    channel->last_out = frame;
    channel->out_bytes += frame->count;
    return KV_OK;
}

/* The first frame and those behind it that have no descriptors: these travel with a message's first
 * byte. */
static ssize_t send_some(const kv_channel_t *channel)
{
    const kv_channel_frame_t *frame = channel->first_out;
    struct iovec parts[FRAMES_AT_ONCE];
    struct msghdr header = {.msg_iov = parts};
    control_t control = {0};
    const kv_channel_frame_t *next = frame;
    do {
        parts[header.msg_iovlen++] =
            (struct iovec){next->bytes + next->sent, next->count - next->sent};
        next = next->next;
    } while (next != NULL && next->fd_count == 0 && header.msg_iovlen < FRAMES_AT_ONCE);
    if (frame->sent == 0 && frame->fd_count > 0) {
        size_t bytes = frame->fd_count * sizeof(int);
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(bytes);
        struct cmsghdr *fds = CMSG_FIRSTHDR(&header);
        fds->cmsg_level = SOL_SOCKET;
        fds->cmsg_type = SCM_RIGHTS;
        fds->cmsg_len = CMSG_LEN(bytes);
        memcpy(CMSG_DATA(fds), frame->fds, bytes);
    }
    return sendmsg(channel->fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void note_sent(kv_channel_t *channel, size_t sent)
{
    channel->out_bytes -= sent;
    while (channel->first_out != NULL) {
        kv_channel_frame_t *frame = channel->first_out;
        const size_t rest = frame->count - frame->sent;
        frame->sent += sent < rest ? sent : rest;
        if (frame->sent < frame->count) {
            return;
        }
        sent -= rest;
        channel->first_out = frame->next;
        if (channel->first_out == NULL) {
            channel->last_out = NULL;
        }
        free_frame(frame);
    }
}

kv_status_t kv_channel_send(kv_channel_t *channel)
{
    while (channel->first_out != NULL) {
        ssize_t sent = send_some(channel);
        if (sent < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno == EAGAIN ? KV_BUSY : KV_PEER_LOST;
        }
        note_sent(channel, (size_t)sent);
    }
    return KV_OK;
}

/* ---- in ---- */

/* false: more came than may. */
static bool take_fds(kv_channel_t *channel, struct msghdr *header)
{
    bool good = (header->msg_flags & MSG_CTRUNC) == 0;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(header); at != NULL; at = CMSG_NXTHDR(header, at)) {
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t count = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(at) + i * sizeof fd, sizeof fd);
            if (channel->fd_count < channel->fds_max) {
                channel->fds[channel->fd_count++] = fd;
            } else {
                close(fd);
                good = false;
            }
        }
    }
    return good;
}

kv_status_t kv_channel_receive(kv_channel_t *channel, kv_error_t *error)
{
    char buffer[PORTION_BYTES];
    struct iovec part = {buffer, sizeof buffer};
    control_t control;
    struct msghdr header = {.msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes};
    ssize_t count;
    do {
        count = recvmsg(channel->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (count < 0 && errno == EINTR);
    if (count < 0 && errno == EAGAIN) {
        return KV_BUSY;
    }
    if (count <= 0) {
        return kv_fail(error, KV_PEER_LOST, "the connection has ended");
    }
    if (!take_fds(channel, &header)) {
        return kv_fail(error, KV_INVALID, "more descriptors came than %u", channel->fds_max);
    }
    kv_frame_reader_push(&channel->reader, buffer, (size_t)count);
    return KV_OK;
}

kv_status_t kv_channel_next(
    kv_channel_t *channel, const uint8_t **message_out, size_t *bytes_out, kv_error_t *error)
{
    return kv_frame_reader_next(&channel->reader, message_out, bytes_out, error);
}

int kv_channel_take_fd(kv_channel_t *channel)
{
    if (channel->fd_count == 0) {
        return -1;
    }
    int fd = channel->fds[0];
    channel->fd_count--;
    memmove(channel->fds, channel->fds + 1, channel->fd_count * sizeof fd);
    return fd;
}
