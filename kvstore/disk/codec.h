/* Codecs of records on disk. Each unit is encoded alone, so that it can be read alone.
 *
 * Threads: any; free of state.
 * Errors: decoding answers KV_CORRUPT for bytes that no encoder made; it never writes past its
 * output. */
#ifndef KV_KVSTORE_DISK_CODEC_H
#define KV_KVSTORE_DISK_CODEC_H

#include "kvstore/kvist.h"

/* Encodes one unit into at most unit_bytes bytes. Returns the encoded length; unit_bytes where the
 * codec does not make it smaller (the unit is then stored as it is). */
size_t kv_codec_encode(kvist_codec_t codec, const void *unit, size_t unit_bytes, void *encoded_out);

/* The inverse: exactly unit_bytes come out. encoded_bytes == unit_bytes: stored as it is. */
kv_status_t kv_codec_decode(kvist_codec_t codec, const void *encoded, size_t encoded_bytes,
    void *unit_out, size_t unit_bytes);

#endif
