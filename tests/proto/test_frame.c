/* Frames: a stream however it is cut, lengths out of bounds, and what a reader keeps. */
#include "proto/frame.h"

#include "base/bytes.h"
#include "testing/testing.h"

#include <stdlib.h>
#include <string.h>

static void a_stream_may_be_cut_anywhere(void **state)
{
    (void)state;
    uint8_t stream[] = {3, 0, 0, 0, 'a', 'b', 'c', 1, 0, 0, 0, 'd'};
    for (size_t step = 1; step <= sizeof stream; step++) {
        kv_frame_reader_t reader = {0};
        char seen[8] = "";
        kv_frame_reader_push(&reader, stream, 0);
        for (size_t at = 0; at < sizeof stream; at += step) {
            size_t left = sizeof stream - at;
            kv_frame_reader_push(&reader, stream + at, left < step ? left : step);
            const uint8_t *message;
            size_t count;
            while (kv_frame_reader_next(&reader, &message, &count, NULL) == KV_OK) {
                strncat(seen, (const char *)message, count);
            }
        }
        assert_string_equal(seen, "abcd");
        kv_frame_reader_clear(&reader);
    }
}

static void a_length_out_of_bounds_ends_the_stream(void **state)
{
    (void)state;
    static const uint32_t LENGTHS[] = {0, KV_FRAME_BYTES_MAX + 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof LENGTHS / sizeof LENGTHS[0]; i++) {
        kv_frame_reader_t reader = {0};
        uint8_t header[4];
        const uint8_t *message;
        size_t count;
        kv_error_t error;
        kv_put_u32(header, LENGTHS[i]);
        kv_frame_reader_push(&reader, header, sizeof header);
        assert_int_equal(kv_frame_reader_next(&reader, &message, &count, &error), KV_INVALID);
        assert_non_null(strstr(error.text, "1 to 8388608"));
        kv_frame_reader_clear(&reader);
    }
}

/* A peer that once sent a large frame does not hold its memory for as long as it stays. */
static void memory_of_a_large_frame_is_given_back(void **state)
{
    (void)state;
    kv_frame_reader_t reader = {0};
    size_t bytes = 4 + KV_FRAME_BYTES_MAX, count;
    uint8_t *frame = calloc(1, bytes);
    const uint8_t *message;
    kv_put_u32(frame, KV_FRAME_BYTES_MAX);
    kv_frame_reader_push(&reader, frame, bytes);
    assert_int_equal(kv_frame_reader_next(&reader, &message, &count, NULL), KV_OK);
    assert_int_equal(count, KV_FRAME_BYTES_MAX);
    assert_int_equal(kv_frame_reader_next(&reader, &message, &count, NULL), KV_MISSING);
    kv_frame_reader_push(&reader, frame, 2);
    assert_true(reader.capacity <= KV_FRAME_KEPT_BYTES);
    kv_frame_reader_clear(&reader);
    free(frame);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_may_be_cut_anywhere),
        cmocka_unit_test(a_length_out_of_bounds_ends_the_stream),
        cmocka_unit_test(memory_of_a_large_frame_is_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
