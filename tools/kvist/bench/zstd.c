/* The seam to zstd. */
#include "tools/kvist/bench/zstd.h"

#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>
#include <zstd.h>

struct kv_zstd {
    ZSTD_CCtx *encoder;
    ZSTD_DCtx *decoder;
};

kv_zstd_t *kv_zstd_create(void)
{
    kv_zstd_t *zstd = kv_allocate(sizeof *zstd);
    zstd->encoder = ZSTD_createCCtx();
    zstd->decoder = ZSTD_createDCtx();
    KV_CHECK(zstd->encoder != NULL && zstd->decoder != NULL);
    return zstd;
}

void kv_zstd_destroy(kv_zstd_t *zstd)
{
    ZSTD_freeCCtx(zstd->encoder);
    ZSTD_freeDCtx(zstd->decoder);
    free(zstd);
}

size_t kv_zstd_encode(
    kv_zstd_t *zstd, int level, const void *from, size_t bytes, void *encoded_out, size_t room)
{
    size_t got = ZSTD_compressCCtx(zstd->encoder, encoded_out, room, from, bytes, level);
    return ZSTD_isError(got) ? 0 : got;
}

bool kv_zstd_decode(
    kv_zstd_t *zstd, const void *encoded, size_t encoded_bytes, void *out, size_t bytes)
{
    return ZSTD_decompressDCtx(zstd->decoder, out, bytes, encoded, encoded_bytes) == bytes;
}
