/* The headers of the data connection: front, open, welcome, blocks. What is accepted encodes to
 * the same bytes again, and what it describes lies within the message. */
#include "base/checksum.h"
#include "fuzz.h"
#include "transport/mover/data_message.h"

static void look_at_front(const uint8_t *bytes, size_t count)
{
    size_t expected = kv_data_front_bytes(bytes, count);
    FUZZ_CHECK(expected == 0 || expected >= KV_DATA_FRONT_BYTES);
    FUZZ_CHECK(expected <= KV_DATA_FRONT_BYTES + KV_DATA_ADDRESS_BYTES_MAX);
    if (count < KV_DATA_FRONT_BYTES || expected == 0) {
        return;
    }
    uint8_t again[KV_DATA_FRONT_BYTES];
    kv_data_front_encode(
        again, kv_data_front_id(bytes), (uint32_t)(expected - KV_DATA_FRONT_BYTES));
    FUZZ_CHECK(memcmp(again, bytes, sizeof again) == 0);
}

static void look_at_blocks(const uint8_t *bytes, size_t count)
{
    kv_data_blocks_t blocks;
    kv_error_t error = {0};
    if (kv_data_blocks_decode(bytes, count, &blocks, &error) != KV_OK) {
        FUZZ_CHECK(error.text[0] != '\0');
        return;
    }
    FUZZ_CHECK(blocks.block_count >= 1 && blocks.range_count >= 1);
    FUZZ_CHECK(blocks.range_count <= KV_DATA_RANGES_MAX);
    FUZZ_CHECK(kv_data_block_at(&blocks, blocks.block_count) == count);
    uint64_t end = 0, block_bytes = 0;
    for (uint32_t i = 0; i < blocks.range_count; i++) {
        FUZZ_CHECK(blocks.ranges[i].bytes >= 1 && blocks.ranges[i].offset_bytes >= end);
        end = blocks.ranges[i].offset_bytes + blocks.ranges[i].bytes;
        FUZZ_CHECK(end >= blocks.ranges[i].offset_bytes);
        block_bytes += blocks.ranges[i].bytes;
    }
    FUZZ_CHECK(block_bytes == blocks.block_bytes);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < blocks.block_count; i++) {
        sum += kv_get_u64(bytes + kv_data_checksum_at(&blocks, i));
        sum += kv_checksum_seeded(bytes + kv_data_block_at(&blocks, i), blocks.block_bytes,
            kv_data_seed(&blocks, kv_data_place(&blocks), i));
    }
    uint8_t again[KV_DATA_HEADER_BYTES + KV_DATA_RANGES_MAX * KV_DATA_RANGE_BYTES];
    kv_data_blocks_encode(again, &blocks);
    FUZZ_CHECK(memcmp(again, bytes, kv_data_head_bytes(blocks.range_count)) == 0 || sum == 0);
}

/* The same bytes as a head whose data is elsewhere: it is believed only as a message would be. */
static void look_at_head(const uint8_t *bytes, size_t count, size_t data_bytes)
{
    kv_data_blocks_t blocks;
    kv_error_t error = {0};
    if (kv_data_head_decode(bytes, count, data_bytes, &blocks, &error) != KV_OK) {
        FUZZ_CHECK(error.text[0] != '\0');
        return;
    }
    FUZZ_CHECK(kv_data_block_at(&blocks, 0) == count);
    FUZZ_CHECK(blocks.block_count * (uint64_t)blocks.block_bytes == data_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    fuzz_input_t input = {bytes, count};
    size_t held;
    uint8_t *copy = fuzz_take(&input, count, &held);
    look_at_front(copy, held);
    look_at_blocks(copy, held);
    if (held >= 24) { /* as much data as one block of one range, and as many as it likes */
        look_at_head(copy, held, kv_get_u32(copy + 20));
        look_at_head(copy, held, (size_t)kv_get_u32(copy + 4) * kv_get_u32(copy + 20));
    }
    if (kv_data_kind(copy, held) == KV_DATA_OPEN && held == KV_DATA_OPEN_BYTES) {
        uint8_t again[KV_DATA_OPEN_BYTES];
        kv_data_open_encode(again, copy + 4);
        FUZZ_CHECK(memcmp(again, copy, sizeof again) == 0);
    }
    free(copy);
    return 0;
}
