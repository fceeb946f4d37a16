/* The bf16 codec: a unit is chunks (bf16_kernel.h) of 1024 elements, the last one of as many as
 * there are in multiples of 64, then what is left (less than 128 bytes) as it is. */
#include "kvstore/codec/bf16_kernel.h"
#include "kvstore/codec/codec_internal.h"

enum { ELEMENT_BYTES = 2, VECTOR_BYTES = KV_BF16_VECTOR * ELEMENT_BYTES };

static const kv_bf16_kernel_t *kernel(void)
{
    if (__builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512bw")) {
        return &kv_bf16_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
        __builtin_cpu_supports("popcnt")) {
        return &kv_bf16_avx2;
    }
    return &kv_bf16_plain;
}

/* Of the next chunk; 0: what is left is no chunk. */
static uint32_t chunk_elements(size_t left_bytes)
{
    size_t elements = left_bytes / VECTOR_BYTES * KV_BF16_VECTOR;
    return elements < KV_BF16_CHUNK_MAX ? (uint32_t)elements : (uint32_t)KV_BF16_CHUNK_MAX;
}

static size_t encode(const uint8_t *unit, size_t unit_bytes, uint32_t element_bytes,
    uint8_t *encoded_out, size_t room)
{
    if (element_bytes != ELEMENT_BYTES) {
        return 0;
    }
    const kv_bf16_kernel_t *use = kernel();
    uint8_t chunk[KV_BF16_ENCODED_ROOM];
    size_t at = 0, used = 0;
    for (uint32_t elements; (elements = chunk_elements(unit_bytes - at)) > 0;
         at += (size_t)elements * ELEMENT_BYTES) {
        size_t got = use->encode(unit + at, elements, chunk);
        if (got > room - used) {
            return 0;
        }
        memcpy(encoded_out + used, chunk, got);
        used += got;
    }
    size_t rest = unit_bytes - at;
    if (rest > room - used) {
        return 0;
    }
    memcpy(encoded_out + used, unit + at, rest);
    return used + rest;
}

static bool decode(
    const uint8_t *encoded, size_t encoded_bytes, uint8_t *unit_out, size_t unit_bytes)
{
    const kv_bf16_kernel_t *use = kernel();
    size_t at = 0, used = 0;
    for (uint32_t elements; (elements = chunk_elements(unit_bytes - at)) > 0;
         at += (size_t)elements * ELEMENT_BYTES) {
        size_t got = use->decode(encoded + used, encoded_bytes - used, elements, unit_out + at);
        if (got == 0) {
            return false;
        }
        used += got;
    }
    size_t rest = unit_bytes - at;
    if (encoded_bytes - used != rest) {
        return false;
    }
    memcpy(unit_out + at, encoded + used, rest);
    return true;
}

const kv_codec_ops_t kv_codec_bf16 = {"bf16", encode, decode};
