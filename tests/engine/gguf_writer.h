/* Writes small GGUF files for tests: whatever the test says, true or not. */
#ifndef KV_TEST_GGUF_WRITER_H
#define KV_TEST_GGUF_WRITER_H

#include "base/bytes.h"
#include "testing/testing.h"

#include <stdio.h>
#include <string.h>

enum { GGUF_WRITER_BYTES_MAX = 1 << 16 };

enum {
    GGUF_U8 = 0,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_I64 = 11
};

typedef struct {
    uint8_t bytes[GGUF_WRITER_BYTES_MAX];
    size_t count;
} gguf_writer_t;

static inline void gguf_raw(gguf_writer_t *writer, const void *bytes, size_t count)
{
    assert_true(writer->count + count <= sizeof writer->bytes);
    if (count > 0) {
        memcpy(writer->bytes + writer->count, bytes, count);
    }
    writer->count += count;
}

static inline void gguf_u32(gguf_writer_t *writer, uint32_t value)
{
    uint8_t bytes[4];
    kv_put_u32(bytes, value);
    gguf_raw(writer, bytes, sizeof bytes);
}

static inline void gguf_u64(gguf_writer_t *writer, uint64_t value)
{
    uint8_t bytes[8];
    kv_put_u64(bytes, value);
    gguf_raw(writer, bytes, sizeof bytes);
}

static inline void gguf_text(gguf_writer_t *writer, const char *text)
{
    gguf_u64(writer, strlen(text));
    gguf_raw(writer, text, strlen(text));
}

static inline void gguf_header(gguf_writer_t *writer, uint64_t tensor_count, uint64_t key_count)
{
    writer->count = 0;
    gguf_raw(writer, "GGUF", 4);
    gguf_u32(writer, 3);
    gguf_u64(writer, tensor_count);
    gguf_u64(writer, key_count);
}

static inline void gguf_key(gguf_writer_t *writer, const char *name, uint32_t type)
{
    gguf_text(writer, name);
    gguf_u32(writer, type);
}

static inline void gguf_key_u32(gguf_writer_t *writer, const char *name, uint32_t value)
{
    gguf_key(writer, name, GGUF_U32);
    gguf_u32(writer, value);
}

static inline void gguf_key_text(gguf_writer_t *writer, const char *name, const char *value)
{
    gguf_key(writer, name, GGUF_STRING);
    gguf_text(writer, value);
}

static inline void gguf_key_texts(
    gguf_writer_t *writer, const char *name, const char *const *values, size_t count)
{
    gguf_key(writer, name, GGUF_ARRAY);
    gguf_u32(writer, GGUF_STRING);
    gguf_u64(writer, count);
    for (size_t i = 0; i < count; i++) {
        gguf_text(writer, values[i]);
    }
}

static inline void gguf_key_i32s(
    gguf_writer_t *writer, const char *name, const int32_t *values, size_t count)
{
    gguf_key(writer, name, GGUF_ARRAY);
    gguf_u32(writer, GGUF_I32);
    gguf_u64(writer, count);
    for (size_t i = 0; i < count; i++) {
        gguf_u32(writer, (uint32_t)values[i]);
    }
}

static inline void gguf_tensor(gguf_writer_t *writer, const char *name, uint64_t columns,
    uint64_t rows, uint32_t type, uint64_t offset)
{
    gguf_text(writer, name);
    gguf_u32(writer, 2);
    gguf_u64(writer, columns);
    gguf_u64(writer, rows);
    gguf_u32(writer, type);
    gguf_u64(writer, offset);
}

static inline void gguf_pad(gguf_writer_t *writer, size_t alignment)
{
    static const uint8_t ZEROS[64];
    gguf_raw(writer, ZEROS, kv_round_up(writer->count, alignment) - writer->count);
}

/* Writes the first count bytes to a file of the test's folder; returns its path. */
static inline const char *gguf_write(const gguf_writer_t *writer, size_t count)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/test.gguf", kv_test_folder());
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(writer->bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
    return path;
}

#endif
