#include "proto/frame.h"

#include "base/bytes.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

kv_status_t kv_frame_pack(
    const ProtobufCMessage *message, uint8_t **frame_out, size_t *bytes_out, kv_error_t *error)
{
    size_t length = protobuf_c_message_get_packed_size(message);
    if (length == 0 || length > KV_FRAME_BYTES_MAX) {
        return kv_fail(error, KV_INVALID, "a message of %zu bytes does not fit a frame (1 to %d)",
            length, KV_FRAME_BYTES_MAX);
    }
    uint8_t *frame = kv_allocate(KV_FRAME_HEADER_BYTES + length);
    kv_put_u32(frame, (uint32_t)length);
    protobuf_c_message_pack(message, frame + KV_FRAME_HEADER_BYTES);
    *frame_out = frame;
    *bytes_out = KV_FRAME_HEADER_BYTES + length;
    return KV_OK;
}

void kv_frame_reader_push(kv_frame_reader_t *reader, const void *bytes, size_t count)
{
    if (count == 0) {
        return;
    }
    if (reader->taken > 0) {
        reader->count -= reader->taken;
        memmove(reader->bytes, reader->bytes + reader->taken, reader->count);
        reader->taken = 0;
        if (reader->count == 0 && reader->capacity > KV_FRAME_KEPT_BYTES) {
            kv_frame_reader_clear(reader);
        }
    }
    if (reader->count + count > reader->capacity) {
        reader->capacity = 2 * (reader->count + count);
        reader->bytes = kv_reallocate(reader->bytes, reader->capacity, 1);
    }
    memcpy(reader->bytes + reader->count, bytes, count);
    reader->count += count;
}

kv_status_t kv_frame_reader_next(
    kv_frame_reader_t *reader, const uint8_t **message_out, size_t *bytes_out, kv_error_t *error)
{
    size_t held = reader->count - reader->taken;
    if (held < KV_FRAME_HEADER_BYTES) {
        return KV_MISSING;
    }
    uint32_t length = kv_get_u32(reader->bytes + reader->taken);
    if (length == 0 || length > KV_FRAME_BYTES_MAX) {
        return kv_fail(
            error, KV_INVALID, "a frame of %u bytes (1 to %d)", length, KV_FRAME_BYTES_MAX);
    }
    if (held - KV_FRAME_HEADER_BYTES < length) {
        return KV_MISSING;
    }
    *message_out = reader->bytes + reader->taken + KV_FRAME_HEADER_BYTES;
    *bytes_out = length;
    reader->taken += KV_FRAME_HEADER_BYTES + length;
    return KV_OK;
}

void kv_frame_reader_clear(kv_frame_reader_t *reader)
{
    free(reader->bytes);
    *reader = (kv_frame_reader_t){0};
}
