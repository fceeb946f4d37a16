/* What a codec is: a row of codec.c's table. */
#ifndef KV_KVSTORE_CODEC_CODEC_INTERNAL_H
#define KV_KVSTORE_CODEC_CODEC_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *name;

    /* Encodes a unit into at most room bytes. Returns the length; 0: it takes more, or this codec
     * has nothing for such elements. */
    size_t (*encode)(const uint8_t *unit, size_t unit_bytes, uint32_t element_bytes,
        uint8_t *encoded_out, size_t room);

    /* false: no encoder made this. */
    bool (*decode)(
        const uint8_t *encoded, size_t encoded_bytes, uint8_t *unit_out, size_t unit_bytes);
} kv_codec_ops_t;

extern const kv_codec_ops_t kv_codec_lz4, kv_codec_bf16;

#endif
