#include "transport/data_message.h"

#include "base/bytes.h"
#include "base/checksum.h"

#include <string.h>

static const char MAGIC[][5] = {
    [KV_DATA_OPEN] = "KVO1", [KV_DATA_WELCOME] = "KVW1", [KV_DATA_BLOCKS] = "KVB1"};

static const char FRONT_MAGIC[4] = {'K', 'V', 'U', '1'};

void kv_data_front_encode(void *bytes_out, uint64_t id, uint32_t address_bytes)
{
    uint8_t *at = bytes_out;
    memcpy(at, FRONT_MAGIC, sizeof FRONT_MAGIC);
    kv_put_u64(at + 4, id);
    kv_put_u32(at + 12, address_bytes);
}

size_t kv_data_front_bytes(const void *bytes, size_t count)
{
    if (count < KV_DATA_FRONT_BYTES) {
        return KV_DATA_FRONT_BYTES;
    }
    uint32_t address_bytes = kv_get_u32((const uint8_t *)bytes + 12);
    if (memcmp(bytes, FRONT_MAGIC, sizeof FRONT_MAGIC) != 0 || address_bytes == 0 ||
        address_bytes > KV_DATA_ADDRESS_BYTES_MAX) {
        return 0;
    }
    return KV_DATA_FRONT_BYTES + address_bytes;
}

uint64_t kv_data_front_id(const void *bytes)
{
    return kv_get_u64((const uint8_t *)bytes + 4);
}

kv_data_kind_t kv_data_kind(const void *bytes, size_t count)
{
    for (kv_data_kind_t kind = KV_DATA_OPEN; count >= 4 && kind <= KV_DATA_BLOCKS; kind++) {
        if (memcmp(bytes, MAGIC[kind], 4) == 0) {
            return kind;
        }
    }
    return KV_DATA_UNKNOWN;
}

void kv_data_open_encode(void *bytes_out, const uint8_t *token)
{
    memcpy(bytes_out, MAGIC[KV_DATA_OPEN], 4);
    memcpy((uint8_t *)bytes_out + 4, token, KV_DATA_TOKEN_BYTES);
}

void kv_data_welcome_encode(void *bytes_out)
{
    memcpy(bytes_out, MAGIC[KV_DATA_WELCOME], 4);
}

void kv_data_blocks_encode(void *bytes_out, const kv_data_blocks_t *blocks)
{
    uint8_t *at = bytes_out;
    memset(at, 0, KV_DATA_HEADER_BYTES);
    memcpy(at, MAGIC[KV_DATA_BLOCKS], 4);
    kv_put_u32(at + 4, blocks->block_count);
    kv_put_u64(at + 8, blocks->transfer_id);
    kv_put_u32(at + 16, blocks->first_block);
    kv_put_u32(at + 20, blocks->range_bytes);
    kv_put_u64(at + 24, blocks->offset_bytes);
}

kv_status_t kv_data_blocks_decode(
    const void *bytes, size_t count, kv_data_blocks_t *blocks_out, kv_error_t *error)
{
    const uint8_t *at = bytes;
    if (count < KV_DATA_HEADER_BYTES || kv_data_kind(bytes, count) != KV_DATA_BLOCKS) {
        return kv_fail(error, KV_INVALID, "a data message of %zu bytes has no header", count);
    }
    kv_data_blocks_t blocks = {
        .block_count = kv_get_u32(at + 4),
        .transfer_id = kv_get_u64(at + 8),
        .first_block = kv_get_u32(at + 16),
        .range_bytes = kv_get_u32(at + 20),
        .offset_bytes = kv_get_u64(at + 24),
    };
    if (kv_get_u64(at + 32) != 0) {
        return kv_fail(error, KV_INVALID, "reserved bytes of a data message are not 0");
    }
    if (blocks.block_count == 0 || blocks.block_count > KV_MOVER_BLOCKS_MAX) {
        return kv_fail(error, KV_INVALID, "block count %u is not in 1 to %d", blocks.block_count,
            KV_MOVER_BLOCKS_MAX);
    }
    /* 2^20 x (8 + 2^32) fits 64 bits. */
    if (blocks.range_bytes == 0 ||
        count != kv_data_blocks_bytes(blocks.block_count, blocks.range_bytes)) {
        return kv_fail(error, KV_INVALID, "%zu bytes do not hold %u ranges of %u bytes", count,
            blocks.block_count, blocks.range_bytes);
    }
    *blocks_out = blocks;
    return KV_OK;
}

uint64_t kv_data_checksum(const kv_data_blocks_t *blocks, uint32_t index, const void *data)
{
    uint8_t place[24] = {0};
    kv_put_u64(place, blocks->transfer_id);
    kv_put_u64(place + 8, (uint64_t)blocks->first_block + index);
    kv_put_u64(place + 16, blocks->offset_bytes);
    return kv_checksum_seeded(data, blocks->range_bytes, kv_checksum(place, sizeof place));
}
