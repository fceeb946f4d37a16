#include "transport/mover/data_message.h"

#include "base/bytes.h"
#include "base/checksum.h"

#include <stdatomic.h>
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

void kv_data_blocks_add(kv_data_blocks_t *blocks, uint64_t offset_bytes, uint32_t bytes)
{
    blocks->ranges[blocks->range_count++] = (kv_data_range_t){offset_bytes, bytes};
    blocks->block_bytes += bytes;
}

/* The ranges after the first. */
static void put_table(uint8_t *at, const kv_data_blocks_t *blocks)
{
    for (uint32_t i = 1; i < blocks->range_count; i++, at += KV_DATA_RANGE_BYTES) {
        kv_put_u64(at, blocks->ranges[i].offset_bytes);
        kv_put_u32(at + 8, blocks->ranges[i].bytes);
        kv_put_u32(at + 12, 0);
    }
}

void kv_data_blocks_encode(void *bytes_out, const kv_data_blocks_t *blocks)
{
    uint8_t *at = bytes_out;
    memset(at, 0, KV_DATA_HEADER_BYTES);
    memcpy(at, MAGIC[KV_DATA_BLOCKS], 4);
    kv_put_u32(at + 4, blocks->block_count);
    kv_put_u64(at + 8, blocks->transfer_id);
    kv_put_u32(at + 16, blocks->first_block);
    kv_put_u32(at + 20, blocks->ranges[0].bytes);
    kv_put_u64(at + 24, blocks->ranges[0].offset_bytes);
    kv_put_u32(at + 32, blocks->range_count - 1);
    put_table(at + KV_DATA_HEADER_BYTES, blocks);
}

/* What a message may say of itself, apart from its length. */
static kv_status_t check_blocks(const kv_data_blocks_t *blocks, kv_error_t *error)
{
    if (blocks->block_count == 0 || blocks->block_count > KV_MOVER_BLOCKS_MAX) {
        return kv_fail(error, KV_INVALID, "block count %u is not in 1 to %d", blocks->block_count,
            KV_MOVER_BLOCKS_MAX);
    }
    uint64_t end = 0;
    for (uint32_t i = 0; i < blocks->range_count; i++) {
        const kv_data_range_t *range = &blocks->ranges[i];
        if (range->bytes == 0 || range->offset_bytes < end ||
            range->offset_bytes > UINT64_MAX - range->bytes) {
            return kv_fail(error, KV_INVALID,
                "range %u of %u bytes at %llu does not follow the one before it", i, range->bytes,
                (unsigned long long)range->offset_bytes);
        }
        end = range->offset_bytes + range->bytes;
    }
    return KV_OK;
}

/* The ranges after the first; what they add up to may be more than 32 bits hold. */
static kv_status_t read_table(const uint8_t *at, uint32_t count, kv_data_blocks_t *blocks,
    uint64_t *block_bytes_out, kv_error_t *error)
{
    uint64_t sum = blocks->ranges[0].bytes;
    for (uint32_t i = 0; i < count; i++, at += KV_DATA_RANGE_BYTES) {
        if (kv_get_u32(at + 12) != 0) {
            return kv_fail(error, KV_INVALID, "reserved bytes of a data message are not 0");
        }
        kv_data_blocks_add(blocks, kv_get_u64(at), kv_get_u32(at + 8));
        sum += blocks->ranges[i + 1].bytes;
    }
    *block_bytes_out = sum;
    return KV_OK;
}

/* Of a message of count bytes the first readable ones are at hand. */
static kv_status_t decode(const void *bytes, size_t readable, size_t count,
    kv_data_blocks_t *blocks_out, kv_error_t *error)
{
    if (readable < KV_DATA_HEADER_BYTES || kv_data_kind(bytes, readable) != KV_DATA_BLOCKS) {
        return kv_fail(error, KV_INVALID, "a data message of %zu bytes has no header", count);
    }
    /* The message may lie in memory that the peer can write to: what is checked is a copy, and it
     * is the copy that is used. */
    uint8_t header[KV_DATA_HEADER_BYTES];
    memcpy(header, bytes, sizeof header);
    atomic_signal_fence(memory_order_seq_cst); /* not read again from there instead */
    uint32_t more = kv_get_u32(header + 32);
    if (kv_get_u32(header + 36) != 0) {
        return kv_fail(error, KV_INVALID, "reserved bytes of a data message are not 0");
    }
    if (more >= KV_DATA_RANGES_MAX ||
        (readable - KV_DATA_HEADER_BYTES) / KV_DATA_RANGE_BYTES < more) {
        return kv_fail(error, KV_INVALID, "%zu bytes do not hold %u more ranges (at most %d)",
            readable, more, KV_DATA_RANGES_MAX - 1);
    }
    blocks_out->block_count = kv_get_u32(header + 4);
    blocks_out->transfer_id = kv_get_u64(header + 8);
    blocks_out->first_block = kv_get_u32(header + 16);
    blocks_out->range_count = 0;
    blocks_out->block_bytes = 0;
    kv_data_blocks_add(blocks_out, kv_get_u64(header + 24), kv_get_u32(header + 20));
    uint64_t block_bytes = 0;
    kv_status_t status = read_table(
        (const uint8_t *)bytes + KV_DATA_HEADER_BYTES, more, blocks_out, &block_bytes, error);
    atomic_signal_fence(memory_order_seq_cst);
    if (status == KV_OK) {
        status = check_blocks(blocks_out, error);
    }
    /* 2^20 x (8 + 2^7 x 2^32) fits 64 bits. */
    if (status == KV_OK && count != kv_data_head_bytes(blocks_out->range_count) +
                                        blocks_out->block_count * (8 + block_bytes)) {
        status = kv_fail(error, KV_INVALID, "%zu bytes do not hold %u times %llu bytes", count,
            blocks_out->block_count, (unsigned long long)block_bytes);
    }
    return status;
}

kv_status_t kv_data_blocks_decode(
    const void *bytes, size_t count, kv_data_blocks_t *blocks_out, kv_error_t *error)
{
    return decode(bytes, count, count, blocks_out, error);
}

kv_status_t kv_data_head_decode(const void *bytes, size_t count, size_t data_bytes,
    kv_data_blocks_t *blocks_out, kv_error_t *error)
{
    if (data_bytes > SIZE_MAX - count) {
        return kv_fail(error, KV_INVALID, "%zu bytes of data behind a head", data_bytes);
    }
    kv_status_t status = decode(bytes, count, count + data_bytes, blocks_out, error);
    if (status == KV_OK && count != kv_data_block_at(blocks_out, 0)) {
        status = kv_fail(error, KV_INVALID, "a head of %zu bytes, where %zu stand before the data",
            count, kv_data_block_at(blocks_out, 0));
    }
    return status;
}

uint64_t kv_data_place(const kv_data_blocks_t *blocks)
{
    if (blocks->range_count == 1) {
        return 0;
    }
    uint8_t table[KV_DATA_RANGES_MAX * KV_DATA_RANGE_BYTES];
    put_table(table, blocks);
    return kv_checksum(table, (size_t)(blocks->range_count - 1) * KV_DATA_RANGE_BYTES);
}

uint64_t kv_data_seed(const kv_data_blocks_t *blocks, uint64_t place, uint32_t index)
{
    uint8_t position[24] = {0};
    kv_put_u64(position, blocks->transfer_id);
    kv_put_u64(position + 8, (uint64_t)blocks->first_block + index);
    kv_put_u64(position + 16, blocks->ranges[0].offset_bytes);
    return kv_checksum_seeded(position, sizeof position, place);
}
