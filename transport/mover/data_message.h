/* Messages of the data connection, bytes only (docs/formats.md, "On the wire"):
 *
 *   front    "KVU1" id length address     before it, on a plain socket: a worker's address
 *   open     "KVO1" token[16]             the connecting side's first: which link this is
 *   welcome  "KVW1"                       the accepting side's answer
 *   blocks   "KVB1" header ranges checksums data
 *                                         the same ranges of block_count blocks of a transfer
 *
 * Threads: any, free of state.
 * Errors: KV_INVALID names the field; lengths are checked before use. */
#ifndef KV_TRANSPORT_DATA_MESSAGE_H
#define KV_TRANSPORT_DATA_MESSAGE_H

#include "base/status.h"
#include "transport/mover.h"

#include <stddef.h>
#include <stdint.h>

enum {
    KV_DATA_OPEN_BYTES = 4 + KV_DATA_TOKEN_BYTES,
    KV_DATA_WELCOME_BYTES = 4,
    KV_DATA_HEADER_BYTES = 40,
    KV_DATA_RANGE_BYTES = 16, /* each range after the first, which stands in the header */
    KV_DATA_RANGES_MAX = 128, /* in one message */
    KV_DATA_FRONT_BYTES = 16, /* what stands before the address */
    KV_DATA_ADDRESS_BYTES_MAX = 8192,
};

/* address_bytes: 1 to KV_DATA_ADDRESS_BYTES_MAX of them follow. */
void kv_data_front_encode(void *bytes_out, uint64_t id, uint32_t address_bytes);

/* How many bytes the front's message has in all, as far as its first count bytes tell; 0: it is
 * none. */
size_t kv_data_front_bytes(const void *bytes, size_t count);
uint64_t kv_data_front_id(const void *bytes); /* of KV_DATA_FRONT_BYTES */

typedef enum { KV_DATA_UNKNOWN, KV_DATA_OPEN, KV_DATA_WELCOME, KV_DATA_BLOCKS } kv_data_kind_t;

kv_data_kind_t kv_data_kind(const void *bytes, size_t count);

void kv_data_open_encode(void *bytes_out, const uint8_t *token);
void kv_data_welcome_encode(void *bytes_out);

typedef struct {
    uint64_t offset_bytes; /* inside the receiver's block */
    uint32_t bytes;
} kv_data_range_t;

typedef struct {
    uint64_t transfer_id;
    uint32_t first_block, block_count;
    uint32_t range_count;
    uint32_t block_bytes;                       /* all ranges of one block */
    kv_data_range_t ranges[KV_DATA_RANGES_MAX]; /* ascending, disjoint */
} kv_data_blocks_t;

/* Appends; block_bytes follows. The caller keeps to the order and to KV_DATA_RANGES_MAX. */
void kv_data_blocks_add(kv_data_blocks_t *blocks, uint64_t offset_bytes, uint32_t bytes);

/* What stands before the checksums, and the whole message. */
static inline size_t kv_data_head_bytes(uint32_t range_count)
{
    return KV_DATA_HEADER_BYTES + (size_t)(range_count - 1) * KV_DATA_RANGE_BYTES;
}

static inline size_t kv_data_blocks_bytes(const kv_data_blocks_t *blocks)
{
    return kv_data_head_bytes(blocks->range_count) +
           blocks->block_count * (sizeof(uint64_t) + blocks->block_bytes);
}

/* Writes kv_data_head_bytes. */
void kv_data_blocks_encode(void *bytes_out, const kv_data_blocks_t *blocks);

/* Reads the head; count must be exactly what it says. Where it fails, blocks_out is undefined (it
 * is large, and this is the way of every message). */
kv_status_t kv_data_blocks_decode(
    const void *bytes, size_t count, kv_data_blocks_t *blocks_out, kv_error_t *error);

/* The same of a message whose data is elsewhere: bytes holds its head and checksums. */
kv_status_t kv_data_head_decode(const void *bytes, size_t count, size_t data_bytes,
    kv_data_blocks_t *blocks_out, kv_error_t *error);

/* Where the i-th block's checksum and data (its ranges, one after the other) stand in the message.
 */
static inline size_t kv_data_checksum_at(const kv_data_blocks_t *blocks, uint32_t index)
{
    return kv_data_head_bytes(blocks->range_count) + (size_t)index * sizeof(uint64_t);
}

static inline size_t kv_data_block_at(const kv_data_blocks_t *blocks, uint32_t index)
{
    return kv_data_checksum_at(blocks, blocks->block_count) + (size_t)index * blocks->block_bytes;
}

/* Binds a block's checksum to transfer and ranges: the same for all blocks of a message. */
uint64_t kv_data_place(const kv_data_blocks_t *blocks);

/* The seed of the i-th block's checksum, which is its data's kv_checksum_seeded: binds it to that
 * place and to the block. */
uint64_t kv_data_seed(const kv_data_blocks_t *blocks, uint64_t place, uint32_t index);

#endif
