/* Frames and the messages in them. First byte: how the stream is cut into reads. However it is
 * cut, the same messages come out, and each can be decoded and packed again or is refused. */
#include "fuzz.h"
#include "proto/admin.pb-c.h"
#include "proto/frame.h"
#include "proto/wire.pb-c.h"

typedef struct {
    uint64_t sum;
    uint32_t count;
    kv_status_t end;
} seen_t;

/* What decodes fits the size that it says it has, and can be let go. (Not the same bytes again: a
 * string may hold a NUL, behind which protobuf-c sees nothing.) */
static void take_apart(const ProtobufCMessageDescriptor *kind, const uint8_t *bytes, size_t count)
{
    ProtobufCMessage *message = protobuf_c_message_unpack(kind, NULL, count, bytes);
    if (message == NULL) {
        return;
    }
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *packed = malloc(size + 1);
    FUZZ_CHECK(packed != NULL && protobuf_c_message_pack(message, packed) == size);
    free(packed);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void take_all(kv_frame_reader_t *reader, seen_t *seen, bool decode)
{
    const uint8_t *message;
    size_t count;
    kv_error_t error;
    while (seen->end == KV_MISSING) {
        kv_status_t status = kv_frame_reader_next(reader, &message, &count, &error);
        if (status == KV_MISSING) {
            return;
        }
        if (status != KV_OK) {
            seen->end = status;
            return;
        }
        FUZZ_CHECK(count >= 1 && count <= KV_FRAME_BYTES_MAX);
        seen->count++;
        for (size_t i = 0; i < count; i++) {
            seen->sum = seen->sum * 31 + message[i];
        }
        if (decode) {
            take_apart(&kvist__wire__envelope__descriptor, message, count);
            take_apart(&kvist__admin__reply__descriptor, message, count);
        }
    }
}

static seen_t read_stream(const uint8_t *bytes, size_t count, size_t step, bool decode)
{
    seen_t seen = {.end = KV_MISSING};
    kv_frame_reader_t reader = {0};
    for (size_t at = 0; at < count; at += step) {
        kv_frame_reader_push(&reader, bytes + at, count - at < step ? count - at : step);
        take_all(&reader, &seen, decode);
    }
    kv_frame_reader_clear(&reader);
    return seen;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    fuzz_input_t input = {bytes, count};
    size_t step = (size_t)fuzz_u8(&input) + 1;
    seen_t whole = read_stream(input.bytes, input.count, input.count + 1, true);
    seen_t cut = read_stream(input.bytes, input.count, step, false);
    FUZZ_CHECK(whole.count == cut.count && whole.sum == cut.sum && whole.end == cut.end);
    return 0;
}
