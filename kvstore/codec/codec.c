#include "kvstore/codec/codec.h"

#include "kvstore/codec/codec_internal.h"

#include <string.h>

static size_t encode_none(const uint8_t *unit, size_t unit_bytes, uint32_t element_bytes,
    uint8_t *encoded_out, size_t room)
{
    (void)unit, (void)unit_bytes, (void)element_bytes, (void)encoded_out, (void)room;
    return 0;
}

static bool decode_none(
    const uint8_t *encoded, size_t encoded_bytes, uint8_t *unit_out, size_t unit_bytes)
{
    (void)encoded, (void)encoded_bytes, (void)unit_out, (void)unit_bytes;
    return false;
}

static const kv_codec_ops_t none = {"none", encode_none, decode_none};

/* In the order of kvist_codec_t, whose numbers are those of records on disk. */
static const kv_codec_ops_t *const codecs[] = {&none, &kv_codec_lz4, &kv_codec_bf16};

_Static_assert(sizeof codecs / sizeof codecs[0] == KVIST_CODEC_COUNT, "a row for each codec");

const char *kv_codec_name(kvist_codec_t codec)
{
    return codecs[codec]->name;
}

size_t kv_codec_encode(kvist_codec_t codec, const void *unit, size_t unit_bytes,
    uint32_t element_bytes, void *encoded_out)
{
    size_t room =
        unit_bytes > 0 ? unit_bytes - 1 : 0; /* a result that is no smaller is not taken */
    size_t got = codecs[codec]->encode(unit, unit_bytes, element_bytes, encoded_out, room);
    if (got > 0) {
        return got;
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
    bool good = encoded_bytes > 0 && encoded_bytes < unit_bytes &&
                codecs[codec]->decode(encoded, encoded_bytes, unit_out, unit_bytes);
    return good ? KV_OK : KV_CORRUPT;
}
