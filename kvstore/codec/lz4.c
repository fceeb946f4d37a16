/* The seam to LZ4. */
#include <lz4.h>

#include "kvstore/codec/codec_internal.h"

static size_t encode(const uint8_t *unit, size_t unit_bytes, uint32_t element_bytes,
    uint8_t *encoded_out, size_t room)
{
    (void)element_bytes;
    int got =
        LZ4_compress_default((const char *)unit, (char *)encoded_out, (int)unit_bytes, (int)room);
    return got > 0 ? (size_t)got : 0;
}

static bool decode(
    const uint8_t *encoded, size_t encoded_bytes, uint8_t *unit_out, size_t unit_bytes)
{
    return LZ4_decompress_safe((const char *)encoded, (char *)unit_out, (int)encoded_bytes,
               (int)unit_bytes) == (int)unit_bytes;
}

const kv_codec_ops_t kv_codec_lz4 = {"lz4", encode, decode};
