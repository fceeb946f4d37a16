/* Bytes and text: the little-endian encoding of every persistent and wire format, hexadecimal,
 * sizes, UTF-8. */
#ifndef KV_BASE_BYTES_H
#define KV_BASE_BYTES_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline void kv_put_u16(void *at, uint16_t value)
{
    uint8_t *bytes = at;
    bytes[0] = (uint8_t)value;
    bytes[1] = (uint8_t)(value >> 8);
}

static inline void kv_put_u32(void *at, uint32_t value)
{
    kv_put_u16(at, (uint16_t)value);
    kv_put_u16((uint8_t *)at + 2, (uint16_t)(value >> 16));
}

static inline void kv_put_u64(void *at, uint64_t value)
{
    kv_put_u32(at, (uint32_t)value);
    kv_put_u32((uint8_t *)at + 4, (uint32_t)(value >> 32));
}

static inline uint16_t kv_get_u16(const void *at)
{
    const uint8_t *bytes = at;
    return (uint16_t)(bytes[0] | bytes[1] << 8);
}

static inline uint32_t kv_get_u32(const void *at)
{
    return kv_get_u16(at) | (uint32_t)kv_get_u16((const uint8_t *)at + 2) << 16;
}

static inline uint64_t kv_get_u64(const void *at)
{
    return kv_get_u32(at) | (uint64_t)kv_get_u32((const uint8_t *)at + 4) << 32;
}

static inline uint64_t kv_round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* Lower-case hexadecimal of count bytes; text_out holds 2 x count + 1. */
void kv_hex_encode(const void *bytes, size_t count, char *text_out);

/* 1 to bytes_max characters of ASCII, all of them from least (' ' or '!') to '~'. */
bool kv_text_is_plain(const char *text, char least, size_t bytes_max);

/* Exactly 2 x count digits, or KV_INVALID. */
kv_status_t kv_hex_decode(const char *text, void *bytes_out, size_t count);

/* A size as people write it ("512", "64 KiB", "1.5GiB", powers of 1024; "KB" means 1024 too) in
 * bytes. */
kv_status_t kv_size_parse(const char *text, uint64_t *bytes_out);

/* The length of the UTF-8 sequence that starts at text (1 to 4), or 0 where the bytes are no valid
 * one. */
size_t kv_utf8_length(const char *text, size_t bytes);
bool kv_utf8_valid(const char *text, size_t bytes);

#endif
