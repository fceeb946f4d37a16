/* One end of a connection between a client and its host's store: frames (proto/frame.h) and
 * descriptors over a Unix stream socket that does not block.
 *
 * Owns: the socket, what waits to be sent, descriptors that came and nobody has taken.
 * Threads: its owner's.
 * Errors: KV_PEER_LOST: the other end is gone. KV_INVALID: what came breaks the framing, or brings
 * more descriptors than may come: the stream cannot be followed any further. */
#ifndef KV_KVSTORE_ATTACH_CHANNEL_H
#define KV_KVSTORE_ATTACH_CHANNEL_H

#include "proto/frame.h"

#include <stdbool.h>

enum { KV_CHANNEL_FDS_MAX = 8 }; /* an arena for each of KVIST_GROUPS_MAX */

typedef struct kv_channel_frame kv_channel_frame_t;

typedef struct {
    int fd; /* -1: none */
    kv_frame_reader_t reader;
    kv_channel_frame_t *first_out, *last_out;
    size_t out_bytes; /* that wait */
    int fds[KV_CHANNEL_FDS_MAX];
    uint32_t fd_count, fds_max; /* descriptors may come as long as so many are not taken */
} kv_channel_t;

/* The socket is the channel's from now on. */
void kv_channel_init(kv_channel_t *channel, int fd, uint32_t fds_max);
void kv_channel_clear(kv_channel_t *channel);

/* Queues one message behind those that wait. The descriptors stay the caller's: the channel sends
 * duplicates. KV_INVALID: it does not fit a frame. KV_NO_SPACE: no descriptors are left. */
kv_status_t kv_channel_queue(kv_channel_t *channel, const ProtobufCMessage *message, const int *fds,
    uint32_t fd_count, kv_error_t *error);

/* Sends what waits. KV_BUSY: the socket takes no more now. */
kv_status_t kv_channel_send(kv_channel_t *channel);

/* Takes in what has come, at most one portion. KV_BUSY: nothing has. */
kv_status_t kv_channel_receive(kv_channel_t *channel, kv_error_t *error);

/* The next whole message, valid until the next call; KV_MISSING: none is there yet. */
kv_status_t kv_channel_next(
    kv_channel_t *channel, const uint8_t **message_out, size_t *bytes_out, kv_error_t *error);

/* A descriptor that came, the oldest first; the caller's from now on. -1: there is none. */
int kv_channel_take_fd(kv_channel_t *channel);

#endif
