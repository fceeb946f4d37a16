/* Receiving: a message of blocks is written into the slots of the transfer that expects it, or
 * nowhere. Where it would be written is checked before any byte is: transfer, link, ranges, nothing
 * twice. The bytes themselves are hashed on their way into the slots, or by the device where they
 * have come to; slots are nobody's until they landed: what proves wrong is never said to have
 * landed, and ends the transfer. Slots are written on this thread and inside receive_write alone:
 * once an expectation left the table, nothing reaches its slots. */
#include "base/bytes.h"
#include "base/checksum.h"
#include "base/log.h"
#include "base/memory.h"
#include "transport/mover/mover_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static expectation_t **bucket_of(kv_mover_t *mover, uint64_t transfer_id)
{
    return &mover->expectations[transfer_id % EXPECTATION_BUCKETS];
}

static expectation_t **find(kv_mover_t *mover, uint64_t transfer_id)
{
    expectation_t **at = bucket_of(mover, transfer_id);
    while (*at != NULL && (*at)->transfer_id != transfer_id) {
        at = &(*at)->next;
    }
    return at;
}

static uint64_t first_unit(const kv_mover_t *mover, uint32_t block, uint64_t offset_bytes)
{
    return (uint64_t)block * mover->units_per_block + offset_bytes / mover->unit_bytes;
}

static bool unit_closed(const expectation_t *expectation, uint64_t unit)
{
    return (expectation->closed[unit / 64] >> (unit % 64) & 1) != 0;
}

static void close_unit(expectation_t *expectation, uint64_t unit)
{
    expectation->closed[unit / 64] |= UINT64_C(1) << (unit % 64);
}

expectation_t *receive_make(const kv_mover_t *mover, kv_link_t link, const kv_expectation_t *wanted)
{
    size_t slots_bytes = wanted->block_count * sizeof wanted->slots[0];
    expectation_t *expectation = kv_allocate(sizeof *expectation + slots_bytes);
    expectation->link = link;
    expectation->transfer_id = wanted->transfer_id;
    expectation->block_count = wanted->block_count;
    memcpy(expectation->slots, wanted->slots, slots_bytes);
    uint64_t unit_count = (uint64_t)wanted->block_count * mover->units_per_block;
    expectation->closed = kv_allocate_array((unit_count + 63) / 64, sizeof *expectation->closed);
    uint64_t unit = 0;
    for (uint32_t block = 0; block < wanted->block_count; block++) {
        for (uint32_t i = 0; i < wanted->range_count; i++) {
            uint64_t open = first_unit(mover, block, wanted->ranges[i].target_offset_bytes);
            for (; unit < open; unit++) {
                close_unit(expectation, unit);
            }
            unit += wanted->ranges[i].bytes / mover->unit_bytes;
            expectation->bytes += wanted->ranges[i].bytes;
        }
    }
    for (; unit < unit_count; unit++) {
        close_unit(expectation, unit);
    }
    expectation->units_left = expectation->bytes / mover->unit_bytes;
    return expectation;
}

void receive_free(expectation_t *expectation)
{
    free(expectation->closed);
    free(expectation);
}

/* A unit is closed only after its bytes were verified and written, but for those that are not
 * covered at all; so whole blocks are known exactly, whatever order their pieces came in. */
static uint32_t landed_blocks(const kv_mover_t *mover, const expectation_t *expectation)
{
    uint64_t unit = 0, end = (uint64_t)expectation->block_count * mover->units_per_block;
    while (unit < end && unit_closed(expectation, unit)) {
        unit++;
    }
    return (uint32_t)(unit / mover->units_per_block);
}

static void fail(
    kv_mover_t *mover, expectation_t *expectation, kv_status_t status, const char *reason)
{
    if (expectation->failed) {
        return;
    }
    expectation->failed = true;
    kv_mover_event_t event = {
        .kind = KV_MOVED_FAILED,
        .status = status,
        .link = expectation->link,
        .transfer_id = expectation->transfer_id,
        .landed_blocks = landed_blocks(mover, expectation),
    };
    snprintf(event.text, sizeof event.text, "%s", reason);
    mover_emit(mover, &event);
}

static void remove_at(kv_mover_t *mover, expectation_t **at)
{
    expectation_t *expectation = *at;
    *at = expectation->next;
    receive_free(expectation);
    atomic_fetch_sub(&mover->expectation_count, 1);
}

static void land_when_complete(kv_mover_t *mover, expectation_t **at)
{
    const expectation_t *expectation = *at;
    if (expectation->units_left > 0) {
        return;
    }
    kv_mover_event_t event = {
        .kind = KV_MOVED_LANDED,
        .link = expectation->link,
        .transfer_id = expectation->transfer_id,
        .bytes = expectation->bytes,
        .landed_blocks = expectation->block_count,
    };
    remove_at(mover, at);
    mover_emit(mover, &event);
}

void receive_adopt(kv_mover_t *mover, expectation_t *expectation)
{
    expectation_t **bucket = bucket_of(mover, expectation->transfer_id);
    expectation->next = *bucket;
    *bucket = expectation;
    link_t *link = link_find(mover, expectation->link);
    if (link == NULL || link->state == LINK_FAILED) {
        fail(mover, expectation, KV_PEER_LOST, "the link is down");
    }
}

/* Units of the blocks that are left out may have come all the same: they are counted as received,
 * and no longer expected. */
void receive_shorten(kv_mover_t *mover, uint64_t transfer_id, uint32_t block_count)
{
    expectation_t **at = find(mover, transfer_id);
    expectation_t *expectation = *at;
    if (expectation == NULL || expectation->failed || block_count >= expectation->block_count) {
        return;
    }
    uint64_t unit = (uint64_t)block_count * mover->units_per_block;
    uint64_t end = (uint64_t)expectation->block_count * mover->units_per_block;
    for (; unit < end; unit++) {
        if (!unit_closed(expectation, unit)) {
            expectation->units_left--;
            expectation->bytes -= mover->unit_bytes;
        }
    }
    expectation->block_count = block_count;
    land_when_complete(mover, at);
}

void receive_revoke(kv_mover_t *mover, uint64_t transfer_id)
{
    kv_mover_event_t event = {.kind = KV_MOVED_REVOKED, .transfer_id = transfer_id};
    expectation_t **at = find(mover, transfer_id);
    if (*at != NULL) {
        event.link = (*at)->link;
        event.landed_blocks = landed_blocks(mover, *at);
        remove_at(mover, at);
    }
    mover_emit(mover, &event);
}

void receive_fail_link(kv_mover_t *mover, kv_link_t id, const char *reason)
{
    for (size_t i = 0; i < EXPECTATION_BUCKETS; i++) {
        for (expectation_t *at = mover->expectations[i]; at != NULL; at = at->next) {
            if (at->link == id) {
                fail(mover, at, KV_PEER_LOST, reason);
            }
        }
    }
}

/* Every unit of the message's i-th block is expected and did not come yet. A message's ranges are
 * disjoint, so that none is there twice in itself. */
static bool block_open(const kv_mover_t *mover, const expectation_t *expectation,
    const kv_data_blocks_t *blocks, uint32_t index)
{
    for (uint32_t i = 0; i < blocks->range_count; i++) {
        const kv_data_range_t *range = &blocks->ranges[i];
        uint64_t unit = first_unit(mover, blocks->first_block + index, range->offset_bytes);
        uint64_t end = unit + range->bytes / mover->unit_bytes;
        for (; unit < end; unit++) {
            if (unit_closed(expectation, unit)) {
                return false;
            }
        }
    }
    return true;
}

/* The first reason why this message may not be written, or KV_OK. */
static kv_status_t check_blocks(const kv_mover_t *mover, const expectation_t *expectation,
    const kv_data_blocks_t *blocks, const char **reason_out)
{
    if (blocks->first_block > expectation->block_count ||
        blocks->block_count > expectation->block_count - blocks->first_block) {
        *reason_out = "the peer sent blocks beyond the transfer's end";
        return KV_INVALID;
    }
    for (uint32_t i = 0; i < blocks->range_count; i++) {
        const kv_data_range_t *range = &blocks->ranges[i];
        if (range->offset_bytes % mover->unit_bytes != 0 || range->bytes % mover->unit_bytes != 0 ||
            range->bytes > mover->slot_bytes ||
            range->offset_bytes > mover->slot_bytes - range->bytes) {
            *reason_out = "the peer sent a range that is not made of units of a slot";
            return KV_INVALID;
        }
    }
    for (uint32_t i = 0; i < blocks->block_count; i++) {
        if (!block_open(mover, expectation, blocks, i)) {
            *reason_out = "the peer sent a range twice, or one that is not expected of it";
            return KV_INVALID;
        }
    }
    return KV_OK;
}

/* A block's one range into memory of this process, in the pass that proves it. */
static bool copy_block(const kv_mover_t *mover, const expectation_t *expectation,
    const incoming_t *incoming, uint64_t place, uint32_t index)
{
    const kv_data_blocks_t *blocks = &incoming->blocks;
    uint8_t *slot =
        mover->arena + expectation->slots[blocks->first_block + index] * mover->slot_bytes;
    return kv_checksum_copy_seeded(slot + blocks->ranges[0].offset_bytes,
               incoming->data + (size_t)index * blocks->block_bytes, blocks->block_bytes,
               kv_data_seed(blocks, place, index)) ==
           kv_get_u64(incoming->checksums + (size_t)index * sizeof(uint64_t));
}

/* How many leading blocks are what was sent. */
static uint32_t copy_good(
    const kv_mover_t *mover, const expectation_t *expectation, const incoming_t *incoming)
{
    const uint64_t place = kv_data_place(&incoming->blocks);
    uint32_t good = 0;
    while (good < incoming->blocks.block_count &&
           copy_block(mover, expectation, incoming, place, good)) {
        good++;
    }
    return good;
}

static void close_block(const kv_mover_t *mover, expectation_t *expectation,
    const kv_data_blocks_t *blocks, uint32_t block)
{
    for (uint32_t j = 0; j < blocks->range_count; j++) {
        const kv_data_range_t *range = &blocks->ranges[j];
        uint64_t unit = first_unit(mover, block, range->offset_bytes);
        uint64_t end = unit + range->bytes / mover->unit_bytes;
        for (; unit < end; unit++) {
            close_unit(expectation, unit);
        }
    }
    expectation->units_left -= blocks->block_bytes / mover->unit_bytes;
}

/* The same by the device, in one move: it says what it wrote. */
static kv_status_t move_good(const kv_mover_t *mover, const expectation_t *expectation,
    const incoming_t *incoming, uint32_t *good_out)
{
    const kv_data_blocks_t *blocks = &incoming->blocks;
    kv_slot_part_t parts[KV_DATA_RANGES_MAX];
    for (uint32_t j = 0; j < blocks->range_count; j++) {
        parts[j] = (kv_slot_part_t){blocks->ranges[j].offset_bytes, blocks->ranges[j].bytes};
    }
    const moving_t moving = {
        .direction = KV_MOVE_IN,
        .blocks = blocks,
        .slots = expectation->slots + blocks->first_block,
        .parts = parts,
        .data = (uint8_t *)(uintptr_t)incoming->data, /* moving in only reads there */
        .beside = incoming->beside,
    };
    uint64_t *sums = kv_allocate_array(blocks->block_count, sizeof *sums);
    kv_status_t status = move_blocks(mover, &moving, sums);
    uint32_t good = 0;
    while (status == KV_OK && good < blocks->block_count &&
           sums[good] == kv_get_u64(incoming->checksums + good * sizeof *sums)) {
        good++;
    }
    free(sums);
    *good_out = good;
    return status;
}

/* KV_CORRUPT: a block's bytes are not what was sent; those before it are good. */
static kv_status_t scatter(
    kv_mover_t *mover, expectation_t *expectation, const incoming_t *incoming)
{
    const kv_data_blocks_t *blocks = &incoming->blocks;
    uint32_t good;
    if (!mover->device->ops->host || blocks->range_count > 1) {
        kv_status_t status = move_good(mover, expectation, incoming, &good);
        if (status != KV_OK) {
            return status;
        }
    } else {
        good = copy_good(mover, expectation, incoming);
    }
    for (uint32_t i = 0; i < good; i++) {
        close_block(mover, expectation, blocks, blocks->first_block + i);
    }
    kv_checksum_copy_fence(); /* before another thread is told */
    atomic_fetch_add(&mover->received_bytes, (uint64_t)good * blocks->block_bytes);
    return good == blocks->block_count ? KV_OK : KV_CORRUPT;
}

static void fail_transfer(
    const link_t *link, expectation_t *expectation, kv_status_t status, const char *reason)
{
    kv_log_warn("transport", "transfer from %s failed: %s", link->name, reason);
    fail(link->mover, expectation, status, reason);
}

expectation_t **receive_admit(link_t *link, const kv_data_blocks_t *blocks)
{
    kv_mover_t *mover = link->mover;
    expectation_t **at = find(mover, blocks->transfer_id);
    if (*at == NULL) {
        mover_drain_commands(mover); /* the expectation may be on its way */
        at = find(mover, blocks->transfer_id);
    }
    if (*at == NULL || (*at)->link != link->id || (*at)->failed) {
        atomic_fetch_add(&mover->dropped_messages, 1);
        return NULL;
    }
    const char *reason = NULL;
    kv_status_t status = check_blocks(mover, *at, blocks, &reason);
    if (status != KV_OK) {
        fail_transfer(link, *at, status, reason);
        return NULL;
    }
    return at;
}

void receive_write(link_t *link, expectation_t **at, const incoming_t *incoming)
{
    kv_mover_t *mover = link->mover;
    kv_status_t status = scatter(mover, *at, incoming);
    if (status == KV_CORRUPT) {
        atomic_fetch_add(&mover->corrupt_fragments, 1);
        fail_transfer(link, *at, status, "a checksum does not agree");
    } else if (status != KV_OK) {
        fail_transfer(link, *at, status, "the device cannot be written");
    } else {
        land_when_complete(mover, at);
    }
}

void receive_blocks(link_t *link, const uint8_t *bytes, size_t count)
{
    atomic_fetch_add(&link->mover->received_messages, 1);
    incoming_t incoming; /* its blocks are large, and are written below */
    kv_error_t error;
    if (kv_data_blocks_decode(bytes, count, &incoming.blocks, &error) != KV_OK) {
        link_fail(link, KV_INVALID, "%s", error.text); /* whoever sends such is no Kvist node */
        return;
    }
    incoming.checksums = bytes + kv_data_checksum_at(&incoming.blocks, 0);
    incoming.data = bytes + kv_data_block_at(&incoming.blocks, 0);
    incoming.beside = false;
    expectation_t **at = receive_admit(link, &incoming.blocks);
    if (at != NULL) {
        receive_write(link, at, &incoming);
    }
}
