#include "kvstore/disk/codec.h"

#include <lz4.h>
#include <string.h>

size_t kv_codec_encode(kvist_codec_t codec, const void *unit, size_t unit_bytes, void *encoded_out)
{
    if (codec == KVIST_CODEC_LZ4 && unit_bytes > 1) {
        /* One byte less than the unit: a result that is no smaller fails and is not taken. */
        int got = LZ4_compress_default(unit, encoded_out, (int)unit_bytes, (int)unit_bytes - 1);
        if (got > 0) {
            return (size_t)got;
        }
    }
    memcpy(encoded_out, unit, unit_bytes);
    return unit_bytes;
}

kv_status_t kv_codec_decode(kvist_codec_t codec, const void *encoded, size_t encoded_bytes,
    void *unit_out, size_t unit_bytes)
{
    if (encoded_bytes == unit_bytes) {
        memcpy(unit_out, encoded, unit_bytes);
        return KV_OK;
    }
    if (codec != KVIST_CODEC_LZ4 || encoded_bytes == 0 || encoded_bytes > unit_bytes) {
        return KV_CORRUPT;
    }
    int got = LZ4_decompress_safe(encoded, unit_out, (int)encoded_bytes, (int)unit_bytes);
    return got == (int)unit_bytes ? KV_OK : KV_CORRUPT;
}
