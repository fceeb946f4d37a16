/* Frames: one protobuf message on a byte stream is a u32 length (little-endian, of what follows)
 * and the message.
 *
 * Threads: any; free of state but for the reader, which belongs to its connection.
 * Errors: a length of 0 or above KV_FRAME_BYTES_MAX is KV_INVALID: the stream cannot be followed
 * any further.
 * Limits: KV_FRAME_BYTES_MAX holds a prompt of a million tokens. */
#ifndef KV_PROTO_FRAME_H
#define KV_PROTO_FRAME_H

#include "base/status.h"

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_FRAME_HEADER_BYTES = 4,
    KV_FRAME_BYTES_MAX = 8 << 20,
    KV_FRAME_KEPT_BYTES = 1 << 20, /* memory that a reader keeps when it holds nothing */
};

/* The message in one frame; release with free(). KV_INVALID when it is too long. */
kv_status_t kv_frame_pack(
    const ProtobufCMessage *message, uint8_t **frame_out, size_t *bytes_out, kv_error_t *error);

/* Collects a stream's bytes and hands out whole frames. Zero-initialise; release with
 * kv_frame_reader_clear. */
typedef struct {
    uint8_t *bytes;
    size_t count, capacity, taken;
} kv_frame_reader_t;

void kv_frame_reader_push(kv_frame_reader_t *reader, const void *bytes, size_t count);

/* The next frame's message bytes, valid until the next call; KV_MISSING until more was pushed. */
kv_status_t kv_frame_reader_next(
    kv_frame_reader_t *reader, const uint8_t **message_out, size_t *bytes_out, kv_error_t *error);
void kv_frame_reader_clear(kv_frame_reader_t *reader);

#endif
