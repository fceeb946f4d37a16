/* Codecs: lossless encodings of units. Each unit is encoded alone, so that it can be read alone;
 * what does not get smaller is kept as it is.
 *
 *   none  as it is
 *   lz4   repetitions, of which KV has next to none
 *   bf16  KV's own: exponents of bf16 take 3 bits instead of 8 (bf16_kernel.h)
 *
 * Threads: any; free of state. The widest instructions of the machine are used; the bytes do not
 * depend on them.
 * Errors: decoding answers KV_CORRUPT for bytes that no encoder made; it never reads or writes
 * beyond what it was given. Whether the bytes are the right ones only a checksum tells. */
#ifndef KV_KVSTORE_CODEC_CODEC_H
#define KV_KVSTORE_CODEC_CODEC_H

#include "kvstore/kvist.h"

const char *kv_codec_name(kvist_codec_t codec);

/* Encodes one unit, of elements of that size, into at most unit_bytes bytes. Returns the encoded
 * length; unit_bytes where the codec does not make it smaller (the unit is then stored as it is).
 */
size_t kv_codec_encode(kvist_codec_t codec, const void *unit, size_t unit_bytes,
    uint32_t element_bytes, void *encoded_out);

/* The inverse: exactly unit_bytes come out. encoded_bytes == unit_bytes: stored as it is. */
kv_status_t kv_codec_decode(kvist_codec_t codec, const void *encoded, size_t encoded_bytes,
    void *unit_out, size_t unit_bytes);

#endif
