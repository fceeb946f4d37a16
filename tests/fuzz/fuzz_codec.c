/* Codecs: bytes of a record that no encoder made, and units of any content and length. What is
 * decoded stays within its bounds, and is the same by all instruction sets of the machine; what is
 * encoded comes back. */
#include "fuzz.h"
#include "kvstore/codec/bf16_kernel.h"
#include "kvstore/codec/codec.h"

enum { UNIT_BYTES_MAX = 16384 };

static uint8_t *room_for(size_t count)
{
    uint8_t *room = malloc(count > 0 ? count : 1);
    FUZZ_CHECK(room != NULL);
    return room;
}

static void decode(kvist_codec_t codec, size_t unit_bytes, const uint8_t *encoded, size_t count)
{
    uint8_t *unit = room_for(unit_bytes);
    kv_status_t status = kv_codec_decode(codec, encoded, count, unit, unit_bytes);
    FUZZ_CHECK(status == KV_OK || status == KV_CORRUPT);
    FUZZ_CHECK(status == KV_CORRUPT || count <= unit_bytes);
    free(unit);
}

static void decode_chunk(uint32_t elements, const uint8_t *encoded, size_t count)
{
    uint8_t *first = room_for(2 * (size_t)elements), *second = room_for(2 * (size_t)elements);
    size_t length = kv_bf16_plain.decode(encoded, count, elements, first);
    FUZZ_CHECK(length <= count);
    const kv_bf16_kernel_t *const others[] = {
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") ? &kv_bf16_avx2 : NULL,
        __builtin_cpu_supports("avx512vbmi2") ? &kv_bf16_avx512 : NULL};
    for (int i = 0; i < 2; i++) {
        if (others[i] != NULL) {
            FUZZ_CHECK(others[i]->decode(encoded, count, elements, second) == length);
            FUZZ_CHECK(length == 0 || memcmp(first, second, 2 * (size_t)elements) == 0);
        }
    }
    free(first);
    free(second);
}

static void round_trip(kvist_codec_t codec, const uint8_t *unit, size_t count)
{
    uint8_t *encoded = room_for(count), *back = room_for(count);
    size_t length = kv_codec_encode(codec, unit, count, 2, encoded);
    FUZZ_CHECK(length <= count);
    FUZZ_CHECK(kv_codec_decode(codec, encoded, length, back, count) == KV_OK);
    FUZZ_CHECK(count == 0 || memcmp(unit, back, count) == 0);
    free(encoded);
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    fuzz_input_t input = {bytes, count};
    uint8_t how = fuzz_u8(&input);
    kvist_codec_t codec = (kvist_codec_t)(how / 4 % KVIST_CODEC_COUNT);
    uint32_t size = fuzz_u16(&input);
    size_t held;
    uint8_t *rest = fuzz_take(&input, SIZE_MAX, &held);
    if (how % 4 < 2) {
        decode(codec, size % UNIT_BYTES_MAX, rest, held);
    } else if (how % 4 == 2) {
        decode_chunk(
            KV_BF16_VECTOR * (1 + size % (KV_BF16_CHUNK_MAX / KV_BF16_VECTOR)), rest, held);
    } else {
        round_trip(codec, rest, held);
    }
    free(rest);
    return 0;
}
