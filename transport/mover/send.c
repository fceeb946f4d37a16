/* Sending: pieces become messages. Each message gathers the same ranges of a run of blocks into one
 * of the link's staging buffers, with a checksum a block, so that the wire has one contiguous
 * message and the source slots are only read here. Of a direct message the data is gathered in the
 * device's memory instead, and the staging holds what stands before it. A piece's SENT comes when
 * its last message left its buffer. */
#include "base/bytes.h"
#include "base/check.h"
#include "base/checksum.h"
#include "base/memory.h"
#include "transport/mover/mover_internal.h"

#include <stdlib.h>

static void piece_end(kv_mover_t *mover, kv_link_t link, piece_t *piece)
{
    kv_mover_event_t event = {
        .kind = KV_MOVED_SENT,
        .status = piece->status,
        .link = link,
        .transfer_id = piece->transfer_id,
        .tag = piece->tag,
        .bytes = (uint64_t)piece->block_count * piece->block_bytes,
    };
    mover_emit(mover, &event);
    free(piece);
}

static void piece_end_when_done(kv_mover_t *mover, kv_link_t link, piece_t *piece)
{
    if (!piece->queued && piece->messages == 0) {
        piece_end(mover, link, piece);
    }
}

void send_adopt(kv_mover_t *mover, kv_link_t id, piece_t *piece)
{
    link_t *link = link_find(mover, id);
    if (link == NULL || link->state == LINK_FAILED) {
        piece->status = KV_PEER_LOST;
        piece_end(mover, id, piece);
        return;
    }
    piece->queued = true;
    *link->queue_tail = piece;
    link->queue_tail = &piece->next;
}

static staging_t *free_staging(link_t *link)
{
    for (int i = 0; i < KV_MOVER_IN_FLIGHT; i++) {
        if (!link->staging[i].busy) {
            return &link->staging[i];
        }
    }
    return NULL;
}

/* From a first message in flight on, and from each one that left, the next one has its time. */
static void staging_take(link_t *link, staging_t *staging, piece_t *piece)
{
    staging->piece = piece;
    staging->busy = true;
    if (link->in_flight++ == 0) {
        link_expect_progress(link);
    }
}

static void staging_give(link_t *link, staging_t *staging)
{
    if (staging->direct != NULL) {
        direct_give(link->mover, staging->direct);
        staging->direct = NULL;
    }
    staging->piece = NULL;
    staging->busy = false;
    link->in_flight--;
    link_expect_progress(link);
}

/* What a message may hold. */
typedef struct {
    size_t bytes;      /* all of it */
    size_t head_bytes; /* what stands before the data */
    size_t data_bytes;
} limits_t;

static limits_t limits_of(const kv_mover_t *mover, bool direct)
{
    return direct ? (limits_t){SIZE_MAX, KV_WIRE_HEAD_BYTES, mover->direct.buffer_bytes}
                  : (limits_t){mover->message_bytes, SIZE_MAX, SIZE_MAX};
}

/* Room for one block's data behind so many ranges. */
static size_t room_of(const limits_t *limits, uint32_t range_count)
{
    const size_t head = kv_data_head_bytes(range_count) + sizeof(uint64_t),
                 room = limits->bytes > head ? limits->bytes - head : 0;
    return room < limits->data_bytes ? room : limits->data_bytes;
}

static uint32_t blocks_that_fit(const limits_t *limits, const kv_data_blocks_t *blocks)
{
    const size_t head = kv_data_head_bytes(blocks->range_count);
    size_t fit = (limits->bytes - head) / (sizeof(uint64_t) + blocks->block_bytes);
    const size_t checksums = (limits->head_bytes - head) / sizeof(uint64_t),
                 data = limits->data_bytes / blocks->block_bytes;
    fit = checksums < fit ? checksums : fit;
    fit = data < fit ? data : fit;
    return fit < KV_MOVER_BLOCKS_MAX ? (uint32_t)fit : (uint32_t)KV_MOVER_BLOCKS_MAX;
}

/* What the next message of the piece carries: as many whole blocks as fit; where not even one does,
 * as many units of one block, from the cursor on. Blocks are finished one after the other, so that
 * the receiver has whole ones early. */
static void next_blocks(
    const kv_mover_t *mover, const piece_t *piece, const limits_t *limits, kv_data_blocks_t *blocks)
{
    blocks->transfer_id = piece->transfer_id;
    blocks->first_block = piece->first_block + piece->next_block;
    blocks->block_count = 1;
    blocks->range_count = 0;
    blocks->block_bytes = 0;
    uint32_t range = piece->next_range;
    size_t skip = piece->next_offset_bytes;
    const bool begun = range > 0 || skip > 0;
    const bool whole = !begun && piece->range_count <= KV_DATA_RANGES_MAX &&
                       piece->block_bytes <= room_of(limits, piece->range_count);
    for (; range < piece->range_count && blocks->range_count < KV_DATA_RANGES_MAX; range++) {
        const size_t all = room_of(limits, blocks->range_count + 1),
                     room = all > blocks->block_bytes ? all - blocks->block_bytes : 0,
                     bytes = piece->ranges[range].bytes - skip,
                     fit = room < bytes ? room / mover->unit_bytes * mover->unit_bytes : bytes;
        if (fit > 0) {
            kv_data_blocks_add(
                blocks, piece->ranges[range].target_offset_bytes + skip, (uint32_t)fit);
        }
        if (fit < bytes) {
            break;
        }
        skip = 0;
    }
    if (whole) {
        const uint32_t fit = blocks_that_fit(limits, blocks),
                       left = piece->block_count - piece->next_block;
        blocks->block_count = fit < left ? fit : left;
    }
}

/* Where the message's ranges lie in this node's slots. */
static void source_parts(
    const piece_t *piece, const kv_data_blocks_t *blocks, kv_slot_part_t *parts_out)
{
    const kv_range_t *range = &piece->ranges[piece->next_range];
    size_t skip = piece->next_offset_bytes;
    for (uint32_t j = 0; j < blocks->range_count; j++, skip = 0) {
        parts_out[j] =
            (kv_slot_part_t){range[j].source_offset_bytes + skip, blocks->ranges[j].bytes};
    }
}

/* A block's one range in memory of this process; its checksum, in the same pass. */
static uint64_t copy_block(const kv_mover_t *mover, const piece_t *piece,
    const kv_data_blocks_t *blocks, uint64_t place, uint32_t index, uint8_t *data)
{
    const uint8_t *slot =
        mover->arena + piece->slots[piece->next_block + index] * mover->slot_bytes;
    kv_slot_part_t part;
    source_parts(piece, blocks, &part);
    return kv_checksum_copy_near(
        data, slot + part.offset_bytes, blocks->block_bytes, kv_data_seed(blocks, place, index));
}

/* The blocks' data to where it is sent from: the device's memory, or in the message. */
static kv_status_t gather_by_device(const kv_mover_t *mover, const piece_t *piece,
    const kv_data_blocks_t *blocks, uint8_t *message, uint8_t *direct)
{
    kv_slot_part_t parts[KV_DATA_RANGES_MAX];
    source_parts(piece, blocks, parts);
    const moving_t moving = {
        .direction = KV_MOVE_OUT,
        .blocks = blocks,
        .slots = piece->slots + piece->next_block,
        .parts = parts,
        .data = direct != NULL ? direct : message + kv_data_block_at(blocks, 0),
        .beside = direct != NULL,
    };
    uint64_t *sums = kv_allocate_array(blocks->block_count, sizeof *sums);
    kv_status_t status = move_blocks(mover, &moving, sums);
    for (uint32_t i = 0; i < blocks->block_count && status == KV_OK; i++) {
        kv_put_u64(message + kv_data_checksum_at(blocks, i), sums[i]);
    }
    free(sums);
    return status;
}

static kv_status_t gather(kv_mover_t *mover, const piece_t *piece, const kv_data_blocks_t *blocks,
    const staging_t *staging)
{
    uint8_t *message = staging->bytes;
    kv_data_blocks_encode(message, blocks);
    if (!mover->device->ops->host || blocks->range_count > 1) {
        return gather_by_device(mover, piece, blocks, message, staging->direct);
    }
    const uint64_t place = kv_data_place(blocks);
    for (uint32_t i = 0; i < blocks->block_count; i++) {
        kv_put_u64(message + kv_data_checksum_at(blocks, i),
            copy_block(mover, piece, blocks, place, i, message + kv_data_block_at(blocks, i)));
    }
    return KV_OK;
}

/* Moves the cursor behind what a message took. */
static void advance(piece_t *piece, const kv_data_blocks_t *blocks)
{
    if (blocks->block_bytes == piece->block_bytes) {
        piece->next_block += blocks->block_count;
        return;
    }
    for (uint32_t j = 0; j < blocks->range_count; j++) {
        piece->next_offset_bytes += blocks->ranges[j].bytes;
        if (piece->next_offset_bytes == piece->ranges[piece->next_range].bytes) {
            piece->next_offset_bytes = 0;
            piece->next_range++;
        }
    }
    if (piece->next_range == piece->range_count) {
        piece->next_range = 0;
        piece->next_block++;
    }
}

static void unqueue(link_t *link, piece_t *piece)
{
    KV_CHECK(link->queue == piece);
    link->queue = piece->next;
    if (link->queue == NULL) {
        link->queue_tail = &link->queue;
    }
    piece->queued = false;
}

static kv_status_t hand_over(const link_t *link, staging_t *staging, const kv_data_blocks_t *blocks)
{
    const kv_wire_driver_t *driver = link->mover->driver;
    if (staging->direct == NULL) {
        return driver->send(link->pipe, staging->bytes, kv_data_blocks_bytes(blocks), staging);
    }
    atomic_fetch_add(&link->mover->sent_direct_messages, 1);
    return driver->send_direct(link->pipe, staging->bytes, kv_data_block_at(blocks, 0),
        staging->direct, (size_t)blocks->block_count * blocks->block_bytes, staging);
}

static bool send_next_message(link_t *link, piece_t *piece, staging_t *staging)
{
    kv_mover_t *mover = link->mover;
    const bool direct = direct_possible(link);
    uint8_t *buffer = direct ? direct_take(mover) : NULL;
    if (direct && buffer == NULL) {
        return false; /* another link's messages are in them, and leave */
    }
    kv_data_blocks_t blocks;
    const limits_t limits = limits_of(mover, direct);
    next_blocks(mover, piece, &limits, &blocks);
    staging_take(link, staging, piece);
    staging->direct = buffer;
    kv_status_t status = gather(mover, piece, &blocks, staging);
    if (status != KV_OK) {
        staging_give(link, staging);
        link_fail(link, status, "cannot send: the device could not be read");
        return false;
    }
    piece->messages++;
    status = hand_over(link, staging, &blocks);
    if (status != KV_OK && status != KV_BUSY) {
        staging_give(link, staging);
        piece->messages--;
        link_fail(link, status, "cannot send: %s", kv_status_name(status));
        return false;
    }
    atomic_fetch_add(&mover->sent_messages, 1);
    atomic_fetch_add(&mover->sent_bytes, (uint64_t)blocks.block_count * blocks.block_bytes);
    advance(piece, &blocks);
    if (piece->next_block == piece->block_count) {
        unqueue(link, piece);
    }
    if (status == KV_OK) {
        send_done(link, staging, KV_OK);
    }
    return true;
}

unsigned send_pump(link_t *link)
{
    unsigned sent = 0;
    staging_t *staging;
    while (link->state == LINK_UP && link->queue != NULL &&
           (staging = free_staging(link)) != NULL &&
           send_next_message(link, link->queue, staging)) {
        sent++;
    }
    return sent;
}

void send_opening(link_t *link, kv_data_kind_t kind)
{
    staging_t *staging = free_staging(link);
    KV_CHECK(staging != NULL); /* nothing is sent before a link is up */
    size_t count = KV_DATA_WELCOME_BYTES;
    if (kind == KV_DATA_OPEN) {
        kv_data_open_encode(staging->bytes, link->token);
        count = KV_DATA_OPEN_BYTES;
    } else {
        kv_data_welcome_encode(staging->bytes);
    }
    staging_take(link, staging, NULL);
    kv_status_t status = link->mover->driver->send(link->pipe, staging->bytes, count, staging);
    if (status == KV_BUSY) {
        return;
    }
    staging_give(link, staging);
    if (status != KV_OK) {
        link_fail(link, status, "cannot send: %s", kv_status_name(status));
    }
}

void send_done(void *owner, void *tag, kv_status_t status)
{
    link_t *link = owner;
    staging_t *staging = tag;
    piece_t *piece = staging->piece;
    staging_give(link, staging);
    if (status != KV_OK) {
        link_fail(link, KV_PEER_LOST, "the wire gave up a message: %s", kv_status_name(status));
    }
    if (piece == NULL) {
        return;
    }
    piece->messages--;
    if (status != KV_OK && piece->status == KV_OK) {
        piece->status = KV_PEER_LOST;
    }
    piece_end_when_done(link->mover, link->id, piece);
}

void send_cancel(link_t *link, uint64_t transfer_id)
{
    piece_t **at = &link->queue;
    while (*at != NULL) {
        piece_t *piece = *at;
        bool begun = piece->next_block > 0 || piece->next_range > 0 || piece->next_offset_bytes > 0;
        if (piece->transfer_id != transfer_id || begun) {
            at = &piece->next;
            continue;
        }
        *at = piece->next;
        piece->status = KV_CANCELLED;
        piece_end(link->mover, link->id, piece);
    }
    link->queue_tail = at;
}

/* After the pipe was dropped: nothing is in flight. */
void send_fail_queue(link_t *link)
{
    while (link->queue != NULL) {
        piece_t *piece = link->queue;
        unqueue(link, piece);
        KV_CHECK(piece->messages == 0);
        piece->status = KV_PEER_LOST;
        piece_end(link->mover, link->id, piece);
    }
}
