/* The mover over the loopback wire: what it accepts, what it refuses, what it promises. The peer is
 * a bare wire side that says whatever the test wants. */
#include "toy.h"

#include "base/bytes.h"
#include "base/checksum.h"
#include "transport/mover/data_message.h"
#include "transport/mover/wire.h"

#include <pthread.h>
#include <stdatomic.h>

enum { SLOTS = 16, UNITS = 4, UNIT = 256, SLOT = UNITS * UNIT };

/* A peer without manners. */
typedef struct {
    kv_wire_side_t *side;
    kv_wire_pipe_t *pipe;
    bool opened, welcomed, lost;
} rude_t;

static void rude_opened(void *owner)
{
    ((rude_t *)owner)->opened = true;
}

static void rude_received(void *owner, const void *bytes, size_t count)
{
    ((rude_t *)owner)->welcomed |= kv_data_kind(bytes, count) == KV_DATA_WELCOME;
}

static void rude_lost(void *owner, kv_status_t status, const char *reason)
{
    (void)status;
    (void)reason;
    ((rude_t *)owner)->lost = true;
}

static void rude_sent(void *owner, void *tag, kv_status_t status)
{
    (void)owner;
    (void)tag;
    (void)status;
}

static void rude_until(rude_t *rude, const bool *condition)
{
    for (int i = 0; i < 2000 && !*condition; i++) {
        kv_wire_loopback.progress(rude->side);
        usleep(1000);
    }
    assert_true(*condition);
}

static void rude_say(rude_t *rude, const void *bytes, size_t count)
{
    assert_int_equal(kv_wire_loopback.send(rude->pipe, bytes, count, NULL), KV_OK);
}

static kv_link_t rude_open(rude_t *rude, toy_node_t *node)
{
    assert_int_equal(toy_open(node, KV_WIRE_AUTO, &kv_wire_loopback, SLOTS, SLOT, UNIT), KV_OK);
    kv_link_t link = toy_link(node, 0, false, 0x42);
    *rude = (rude_t){0};
    kv_wire_params_t params = {.host = "127.0.0.1",
        .upcalls = {.context = rude,
            .opened = rude_opened,
            .received = rude_received,
            .sent = rude_sent,
            .lost = rude_lost}};
    assert_int_equal(kv_wire_loopback.open(&params, &rude->side, NULL), KV_OK);
    assert_int_equal(kv_wire_loopback.connect(rude->side, "127.0.0.1", kv_mover_port(node->mover),
                         0x4242424242424242 | 1, true, rude, &rude->pipe, NULL),
        KV_OK);
    rude_until(rude, &rude->opened);
    return link;
}

static void rude_prove(rude_t *rude, toy_node_t *node)
{
    uint8_t token[KV_DATA_TOKEN_BYTES], message[KV_DATA_OPEN_BYTES];
    memset(token, 0x42, sizeof token);
    kv_data_open_encode(message, token);
    rude_say(rude, message, sizeof message);
    rude_until(rude, &rude->welcomed);
    toy_expect_event(node, KV_MOVED_LINK_UP);
}

/* Until the node has looked at so many messages of blocks. */
static void await_messages(toy_node_t *node, uint64_t count)
{
    kv_mover_stats_t stats = {0};
    for (int i = 0; i < 10000 && stats.received_messages < count; i++) {
        usleep(1000);
        kv_mover_stats(node->mover, &stats);
    }
    assert_int_equal(stats.received_messages, count);
}

static void rude_close(rude_t *rude, toy_node_t *node)
{
    kv_wire_loopback.close(rude->side);
    toy_close(node);
}

typedef struct {
    size_t count;
    uint8_t bytes[KV_DATA_HEADER_BYTES + KV_DATA_RANGE_BYTES + 8 * (8 + SLOT)];
} wire_message_t;

static wire_message_t ranges_message(uint64_t id, uint32_t first, uint32_t count,
    const kv_data_range_t *ranges, uint32_t range_count)
{
    kv_data_blocks_t blocks = {.transfer_id = id, .first_block = first, .block_count = count};
    for (uint32_t i = 0; i < range_count; i++) {
        kv_data_blocks_add(&blocks, ranges[i].offset_bytes, ranges[i].bytes);
    }
    wire_message_t message = {.count = kv_data_blocks_bytes(&blocks)};
    assert_true(message.count <= sizeof message.bytes);
    kv_data_blocks_encode(message.bytes, &blocks);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *data = message.bytes + kv_data_block_at(&blocks, i);
        memset(data, (int)(1 + first + i), blocks.block_bytes);
        kv_put_u64(message.bytes + kv_data_checksum_at(&blocks, i),
            kv_checksum_seeded(
                data, blocks.block_bytes, kv_data_seed(&blocks, kv_data_place(&blocks), i)));
    }
    return message;
}

static wire_message_t blocks_message(
    uint64_t id, uint32_t first, uint32_t count, uint64_t offset, uint32_t range)
{
    return ranges_message(id, first, count, &(kv_data_range_t){offset, range}, 1);
}

static const uint32_t FOUR[] = {9, 3, 7, 1};

static uint64_t expect_four(toy_node_t *node, kv_link_t link)
{
    uint64_t id = kv_mover_transfer_id(node->mover);
    assert_int_equal(toy_expect(node, link, id, FOUR, 4), KV_OK);
    return id;
}

static void assert_clear(const toy_node_t *node)
{
    for (size_t i = 0; i < (size_t)SLOTS * SLOT; i++) {
        assert_int_equal(node->arena[i], 0);
    }
}

/* Of the arena, no byte but of the slots that were reserved was touched. */
static void assert_clear_beside_four(const toy_node_t *node)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        bool reserved = false;
        for (size_t i = 0; i < sizeof FOUR / sizeof FOUR[0]; i++) {
            reserved |= slot == FOUR[i];
        }
        for (size_t at = 0; at < SLOT && !reserved; at++) {
            assert_int_equal(node->arena[slot * SLOT + at], 0);
        }
    }
}

static void pieces_land_in_any_order_exactly_once(void **state)
{
    (void)state;
    rude_t rude;
    toy_node_t node;
    kv_link_t link = rude_open(&rude, &node);
    rude_prove(&rude, &node);
    uint64_t id = expect_four(&node, link);
    for (uint32_t unit = UNITS; unit-- > 0;) {
        wire_message_t tail = blocks_message(id, 2, 2, unit * UNIT, UNIT);
        wire_message_t head = blocks_message(id, 0, 2, unit * UNIT, UNIT);
        rude_say(&rude, tail.bytes, tail.count);
        rude_say(&rude, head.bytes, head.count);
    }
    kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_LANDED);
    assert_true(event.transfer_id == id && event.bytes == 4 * SLOT);
    for (uint32_t block = 0; block < 4; block++) {
        for (size_t i = 0; i < SLOT; i++) {
            assert_int_equal(node.arena[FOUR[block] * SLOT + i], 1 + block);
        }
    }
    /* After LANDED: unknown, dropped, the slots are someone else's. */
    memset(node.arena, 0, (size_t)SLOTS * SLOT);
    wire_message_t late = blocks_message(id, 0, 4, 0, SLOT);
    rude_say(&rude, late.bytes, late.count);
    kv_mover_revoke(node.mover, id); /* one that crossed LANDED */
    toy_expect_event(&node, KV_MOVED_REVOKED);
    usleep(20000);
    assert_clear(&node);
    kv_mover_stats_t stats;
    kv_mover_stats(node.mover, &stats);
    assert_int_equal(stats.dropped_messages, 1);
    rude_close(&rude, &node);
}

static void what_does_not_fit_is_not_written(void **state)
{
    (void)state;
    static const struct {
        uint32_t first, count;
        uint64_t offset;
        uint32_t range;
    } WRONG[] = {{4, 1, 0, UNIT}, {3, 2, 0, UNIT}, {UINT32_MAX, 1, 0, UNIT}, {0, 1, 1, UNIT},
        {0, 1, 0, UNIT / 2}, {0, 1, SLOT, UNIT}, {0, 1, UNIT, SLOT},
        {0, 1, UINT64_MAX - 2 * UNIT + 1, UNIT}};
    rude_t rude;
    toy_node_t node;
    kv_link_t link = rude_open(&rude, &node);
    rude_prove(&rude, &node);
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        uint64_t id = expect_four(&node, link);
        wire_message_t message =
            blocks_message(id, WRONG[i].first, WRONG[i].count, WRONG[i].offset, WRONG[i].range);
        rude_say(&rude, message.bytes, message.count);
        kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_FAILED);
        assert_int_equal(event.status, KV_INVALID);
        assert_true(event.transfer_id == id);
        /* Failed: nothing more is taken, not even what would be right. */
        message = blocks_message(id, 0, 4, 0, SLOT);
        rude_say(&rude, message.bytes, message.count);
        usleep(2000);
        kv_mover_revoke(node.mover, id);
        toy_expect_event(&node, KV_MOVED_REVOKED);
        assert_clear(&node);
    }
    /* Twice the same range. */
    uint64_t id = expect_four(&node, link);
    wire_message_t message = blocks_message(id, 1, 1, UNIT, UNIT);
    rude_say(&rude, message.bytes, message.count);
    message = blocks_message(id, 0, 2, 0, 2 * UNIT);
    rude_say(&rude, message.bytes, message.count);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_FAILED).status, KV_INVALID);
    rude_close(&rude, &node);
}

/* What had landed whole before the end is known to the block, and nothing else is promised. */
static void the_good_prefix_is_told(void **state)
{
    (void)state;
    rude_t rude;
    toy_node_t node;
    kv_link_t link = rude_open(&rude, &node);
    rude_prove(&rude, &node);
    /* Blocks 0 and 1 whole in two parts, 3 whole, 2 without its last unit. */
    uint64_t id = expect_four(&node, link);
    wire_message_t message = blocks_message(id, 0, 2, UNIT, SLOT - UNIT);
    rude_say(&rude, message.bytes, message.count);
    message = blocks_message(id, 3, 1, 0, SLOT);
    rude_say(&rude, message.bytes, message.count);
    message = blocks_message(id, 0, 3, 0, UNIT);
    rude_say(&rude, message.bytes, message.count);
    message = blocks_message(id, 2, 1, UNIT, SLOT - 2 * UNIT);
    rude_say(&rude, message.bytes, message.count);
    message = blocks_message(id, 2, 1, SLOT - UNIT, UNIT);
    message.bytes[message.count - 1] ^= 1;
    rude_say(&rude, message.bytes, message.count);
    kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_FAILED);
    assert_int_equal(event.status, KV_CORRUPT);
    assert_int_equal(event.landed_blocks, 2);
    /* What comes between FAILED and REVOKED changes neither the slots nor the number. */
    message = blocks_message(id, 2, 1, SLOT - UNIT, UNIT);
    rude_say(&rude, message.bytes, message.count);
    await_messages(&node, 6);
    kv_mover_revoke(node.mover, id);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_REVOKED).landed_blocks, 2);
    for (size_t i = 0; i < SLOT; i++) {
        assert_int_equal(node.arena[FOUR[0] * SLOT + i], 1);
        assert_int_equal(node.arena[FOUR[1] * SLOT + i], 2);
    }
    kv_mover_revoke(node.mover, id); /* nothing is expected any more */
    assert_int_equal(toy_expect_event(&node, KV_MOVED_REVOKED).landed_blocks, 0);

    id = expect_four(&node, link); /* revoked in good health */
    message = blocks_message(id, 0, 3, 0, SLOT);
    rude_say(&rude, message.bytes, message.count);
    await_messages(&node, 7);
    kv_mover_revoke(node.mover, id);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_REVOKED).landed_blocks, 3);

    id = expect_four(&node, link);
    message = blocks_message(id, 0, 4, 0, SLOT);
    rude_say(&rude, message.bytes, message.count);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_LANDED).landed_blocks, 4);

    id = expect_four(&node, link); /* the sender dies */
    message = blocks_message(id, 0, 1, 0, SLOT);
    rude_say(&rude, message.bytes, message.count);
    await_messages(&node, 9);
    kv_mover_link_close(node.mover, link);
    event = toy_expect_event(&node, KV_MOVED_FAILED);
    assert_int_equal(event.status, KV_PEER_LOST);
    assert_int_equal(event.landed_blocks, 1);
    kv_mover_revoke(node.mover, id);
    toy_expect_event(&node, KV_MOVED_LINK_DOWN);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_REVOKED).landed_blocks, 1);
    rude_close(&rude, &node);
}

/* A source that has fewer blocks than it was asked for. */
static void fewer_blocks_land_as_well(void **state)
{
    (void)state;
    rude_t rude;
    toy_node_t node;
    kv_link_t link = rude_open(&rude, &node);
    rude_prove(&rude, &node);
    uint64_t id = expect_four(&node, link); /* said before they come */
    kv_mover_shorten(node.mover, id, 3);
    kv_mover_shorten(node.mover, id, 4); /* never longer again */
    kv_mover_shorten(node.mover, id, 2);
    wire_message_t message = blocks_message(id, 0, 2, 0, SLOT);
    rude_say(&rude, message.bytes, message.count);
    kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_LANDED);
    assert_int_equal(event.landed_blocks, 2);
    assert_int_equal(event.bytes, 2 * SLOT);

    id = expect_four(&node, link); /* said after some came, one unit of the left ones too */
    message = blocks_message(id, 0, 2, 0, SLOT);
    rude_say(&rude, message.bytes, message.count);
    message = blocks_message(id, 3, 1, UNIT, UNIT);
    rude_say(&rude, message.bytes, message.count);
    await_messages(&node, 3);
    kv_mover_shorten(node.mover, id, 2);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_LANDED).landed_blocks, 2);
    kv_mover_shorten(node.mover, id, 1); /* it has landed */

    id = expect_four(&node, link); /* beyond what was said is beyond the transfer */
    kv_mover_shorten(node.mover, id, 2);
    message = blocks_message(id, 2, 1, 0, SLOT);
    rude_say(&rude, message.bytes, message.count);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_FAILED).status, KV_INVALID);
    kv_mover_shorten(node.mover, id, 1); /* it has failed */
    kv_mover_revoke(node.mover, id);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_REVOKED).landed_blocks, 0);
    rude_close(&rude, &node);
}

/* Corrupt, and nothing of it is said to have landed. */
static void expect_corrupt(toy_node_t *node, uint64_t id, uint32_t landed_blocks)
{
    kv_mover_event_t event = toy_expect_event(node, KV_MOVED_FAILED);
    assert_int_equal(event.status, KV_CORRUPT);
    assert_int_equal(event.landed_blocks, landed_blocks);
    kv_mover_revoke(node->mover, id);
    assert_int_equal(toy_expect_event(node, KV_MOVED_REVOKED).landed_blocks, landed_blocks);
}

static void every_flipped_bit_is_noticed(void **state)
{
    (void)state;
    rude_t rude;
    toy_node_t node;
    kv_link_t link = rude_open(&rude, &node);
    rude_prove(&rude, &node);
    for (int remote = 0; remote < 2; remote++) {
        toy_device.ops = remote ? &TOY_REMOTE_OPS : &TOY_OPS;
        wire_message_t sample = blocks_message(1, 0, 1, 0, UNIT);
        for (size_t at = KV_DATA_HEADER_BYTES; at < sample.count; at += 3) {
            uint64_t id = expect_four(&node, link);
            wire_message_t message = blocks_message(id, 0, 1, 0, UNIT);
            message.bytes[at] ^= (uint8_t)(1 << at % 8);
            rude_say(&rude, message.bytes, message.count);
            expect_corrupt(&node, id, 0);
        }
    }
    toy_device.ops = &TOY_OPS;
    /* Right bytes under another place: the checksum is bound to it. */
    uint64_t id = expect_four(&node, link);
    wire_message_t message = blocks_message(id, 0, 1, 0, UNIT);
    kv_put_u32(message.bytes + 16, 1);
    rude_say(&rude, message.bytes, message.count);
    expect_corrupt(&node, id, 0);
    /* What came before the damage, in the same message, is whole and stays so. */
    id = expect_four(&node, link);
    message = blocks_message(id, 0, 3, 0, SLOT);
    message.bytes[message.count - 1] ^= 1;
    rude_say(&rude, message.bytes, message.count);
    expect_corrupt(&node, id, 2);
    for (size_t at = 0; at < SLOT; at++) {
        assert_int_equal(node.arena[FOUR[0] * SLOT + at], 1);
        assert_int_equal(node.arena[FOUR[1] * SLOT + at], 2);
    }
    assert_clear_beside_four(&node);
    rude_close(&rude, &node);
}

/* Damages one field of a message of two ranges; false: there is no such damage. */
static bool damage(wire_message_t *message, int which)
{
    uint8_t *second = message->bytes + KV_DATA_HEADER_BYTES;
    switch (which) {
    case 0:
        message->count--;
        return true;
    case 1:
        message->count = 10;
        return true;
    case 2:
        kv_put_u32(message->bytes + 4, 0);
        return true;
    case 3:
        kv_put_u32(message->bytes + 20, UINT32_MAX);
        return true;
    case 4:
        memcpy(message->bytes, "nope", 4);
        return true;
    case 5: /* more ranges than the message holds, than any may have, reserved bytes */
        kv_put_u32(message->bytes + 32, 100);
        return true;
    case 6:
        kv_put_u32(message->bytes + 32, KV_DATA_RANGES_MAX);
        return true;
    case 7:
        kv_put_u32(message->bytes + 36, 1);
        return true;
    case 8:
        kv_put_u32(second + 12, 1);
        return true;
    case 9: /* ranges that overlap, go back, are empty, go round */
        kv_put_u64(second, UNIT / 2);
        return true;
    case 10:
        kv_put_u64(message->bytes + 24, 3 * UNIT);
        return true;
    case 11:
        kv_put_u32(second + 8, 0);
        return true;
    case 12:
        kv_put_u64(second, UINT64_MAX - UNIT + 1);
        return true;
    default:
        return false;
    }
}

static void a_malformed_message_ends_the_link(void **state)
{
    (void)state;
    static const kv_data_range_t PAIR[] = {{0, UNIT}, {2 * UNIT, UNIT}};
    wire_message_t message = ranges_message(1, 0, 1, PAIR, 2);
    for (int which = 0; damage(&message, which); which++) {
        rude_t rude;
        toy_node_t node;
        kv_link_t link = rude_open(&rude, &node);
        rude_prove(&rude, &node);
        uint64_t id = expect_four(&node, link);
        message = ranges_message(id, 0, 1, PAIR, 2);
        damage(&message, which);
        rude_say(&rude, message.bytes, message.count);
        assert_int_equal(toy_expect_event(&node, KV_MOVED_FAILED).status, KV_PEER_LOST);
        assert_int_equal(toy_expect_event(&node, KV_MOVED_LINK_DOWN).status, KV_INVALID);
        kv_mover_revoke(node.mover, id);
        toy_expect_event(&node, KV_MOVED_REVOKED);
        rude_until(&rude, &rude.lost);
        assert_clear(&node);
        rude_close(&rude, &node);
    }
}

static void nothing_is_taken_before_the_token(void **state)
{
    (void)state;
    rude_t rude;
    toy_node_t node;
    kv_link_t link = rude_open(&rude, &node);
    uint64_t id = expect_four(&node, link);
    wire_message_t message = blocks_message(id, 0, 4, 0, SLOT);
    rude_say(&rude, message.bytes, message.count);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_FAILED).status, KV_PEER_LOST);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_LINK_DOWN).status, KV_REFUSED);
    assert_clear(&node);
    rude_close(&rude, &node);
}

static void a_transfer_belongs_to_its_link(void **state)
{
    (void)state;
    rude_t rude;
    toy_node_t node;
    kv_link_t link = rude_open(&rude, &node);
    rude_prove(&rude, &node);
    kv_link_t other = toy_link(&node, 0, false, 0x77);
    uint64_t id = expect_four(&node, other);
    wire_message_t message = blocks_message(id, 0, 4, 0, SLOT);
    rude_say(&rude, message.bytes, message.count);
    uint64_t good = expect_four(&node, link);
    message = blocks_message(good, 0, 4, 0, SLOT);
    memset(node.arena, 0, (size_t)SLOTS * SLOT);
    rude_say(&rude, message.bytes, message.count);
    kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_LANDED);
    assert_true(event.transfer_id == good);
    kv_mover_stats_t stats;
    kv_mover_stats(node.mover, &stats);
    assert_int_equal(stats.dropped_messages, 1);
    rude_close(&rude, &node);
}

/* Two movers, both directions at once, pieces larger and smaller than a message. */
/* Large messages are read where they were built, or copied; slots are written directly, or through
 * the device. */
static void exchange(kv_wire_t wire, const kv_device_ops_t *ops)
{
    enum { BIG_UNIT = 200 << 10, BIG_SLOT = 5 * BIG_UNIT, COUNT = 8 };
    toy_device.ops = ops;
    toy_node_t a, b;
    assert_int_equal(toy_open(&a, wire, &kv_wire_loopback, COUNT, BIG_SLOT, BIG_UNIT), KV_OK);
    assert_int_equal(toy_open(&b, wire, &kv_wire_loopback, COUNT, BIG_SLOT, BIG_UNIT), KV_OK);
    toy_fill(&a, 1);
    kv_link_t la = toy_link(&a, 0, false, 5);
    kv_link_t lb = toy_link(&b, kv_mover_port(a.mover), true, 5);
    toy_expect_event(&a, KV_MOVED_LINK_UP);
    toy_expect_event(&b, KV_MOVED_LINK_UP);
    uint32_t slots[COUNT] = {0, 1, 2, 3, 4, 5, 6, 7};
    uint64_t id = kv_mover_transfer_id(b.mover);
    assert_int_equal(toy_expect(&b, lb, id, slots, COUNT), KV_OK);
    kv_range_t range = kv_range_alike(BIG_UNIT, BIG_SLOT - BIG_UNIT);
    kv_piece_t piece = {.transfer_id = id,
        .tag = 1,
        .block_count = COUNT,
        .ranges = &range,
        .range_count = 1,
        .slots = slots};
    assert_int_equal(kv_mover_send(a.mover, la, &piece, NULL), KV_OK);
    piece.tag = 2;
    range = kv_range_alike(0, BIG_UNIT);
    assert_int_equal(kv_mover_send(a.mover, la, &piece, NULL), KV_OK);
    assert_int_equal(toy_expect_event(&a, KV_MOVED_SENT).tag, 1);
    assert_int_equal(toy_expect_event(&a, KV_MOVED_SENT).tag, 2);
    toy_expect_event(&b, KV_MOVED_LANDED);
    assert_memory_equal(a.arena, b.arena, (size_t)COUNT * BIG_SLOT);

    toy_close(&a);
    toy_expect_event(&b, KV_MOVED_LINK_DOWN);
    toy_close(&b);
    toy_device.ops = &TOY_OPS;
}

static void two_movers_exchange_blocks(void **state)
{
    (void)state;
    exchange(KV_WIRE_AUTO, &TOY_OPS);
    exchange(KV_WIRE_AUTO, &TOY_REMOTE_OPS);
    exchange(KV_WIRE_AUTO, &TOY_REACHED_OPS);
    exchange(KV_WIRE_TCP, &TOY_OPS);
    exchange(KV_WIRE_TCP, &TOY_REMOTE_OPS);
    exchange(KV_WIRE_TCP, &TOY_REACHED_OPS);
}

/* A receiver that reads no more holds what is lent to it until the pipe ends; then each piece has
 * its SENT all the same. */
static void what_is_lent_comes_back_at_the_end(void **state)
{
    (void)state;
    rude_t rude;
    toy_node_t node;
    kv_link_t link = rude_open(&rude, &node);
    rude_prove(&rude, &node);
    enum { PIECES = 3 };
    const uint32_t slots[] = {0, 1, 2, 3, 4, 5};
    const kv_range_t range = kv_range_alike(0, SLOT);
    const kv_piece_t piece = {
        .transfer_id = 5, .block_count = 6, .ranges = &range, .range_count = 1, .slots = slots};
    for (int i = 0; i < PIECES; i++) {
        assert_int_equal(kv_mover_send(node.mover, link, &piece, NULL), KV_OK);
    }
    kv_mover_event_t event;
    assert_false(toy_wait(&node, &event, 50));
    kv_mover_link_close(node.mover, link);
    for (int i = 0; i < PIECES; i++) {
        assert_int_equal(toy_expect_event(&node, KV_MOVED_SENT).status, KV_PEER_LOST);
    }
    toy_expect_event(&node, KV_MOVED_LINK_DOWN);
    rude_until(&rude, &rude.lost); /* reads what was lent, after its owner has gone */
    rude_close(&rude, &node);
}

/* ---- ranges ---- */

static void the_calls_refuse_what_leaves_the_arena(void **state)
{
    (void)state;
    toy_node_t a;
    assert_int_equal(toy_open(&a, KV_WIRE_AUTO, &kv_wire_loopback, SLOTS, SLOT, UNIT), KV_OK);
    kv_link_t link = toy_link(&a, 0, false, 5);
    static const uint32_t OUTSIDE[] = {0, SLOTS}, INSIDE[] = {0, 1};
    kv_error_t error = {0};
    kv_range_t whole = kv_range_alike(0, SLOT);
    kv_piece_t piece = {
        .block_count = 2, .slots = OUTSIDE, .ranges = &whole, .range_count = 1, .transfer_id = 1};
    assert_int_equal(kv_mover_send(a.mover, link, &piece, &error), KV_INVALID);
    assert_int_equal(toy_expect(&a, link, 1, OUTSIDE, 2), KV_INVALID);
    assert_int_equal(toy_expect(&a, link, 1, INSIDE, 0), KV_INVALID);
    piece.slots = INSIDE;
    piece.first_block = KV_MOVER_BLOCKS_MAX + 1;
    assert_int_equal(kv_mover_send(a.mover, link, &piece, &error), KV_INVALID);
    piece.first_block = 0;
    kv_expectation_t expectation = {.transfer_id = 1, .block_count = 2, .slots = INSIDE};
    /* Wrong in the target, which both calls look at; and in the source, which the sender does. */
    static const struct {
        kv_range_t ranges[2];
        uint32_t count;
        bool source_only;
    } WRONG[] = {
        {{{0, 0, 0}}, 1, false},
        {{{0, 0, UNIT / 2}}, 1, false},
        {{{0, UNIT / 2, UNIT}}, 1, false},
        {{{UNIT / 2, 0, UNIT}}, 1, true},
        {{{0, 0, SLOT + UNIT}}, 1, false},
        {{{SLOT, 0, UNIT}}, 1, true},
        {{{UNIT, 0, SLOT}}, 1, true},
        {{{0, SIZE_MAX - UNIT + 1, UNIT}}, 1, false},
        {{{0, 0, 2 * UNIT}, {2 * UNIT, UNIT, UNIT}}, 2, false},
        {{{0, 2 * UNIT, UNIT}, {UNIT, 0, UNIT}}, 2, false},
        {{{0, 0, UNIT}}, KV_MOVER_RANGES_MAX + 1, false},
    };
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        piece.ranges = expectation.ranges = WRONG[i].ranges;
        piece.range_count = expectation.range_count = WRONG[i].count;
        error.text[0] = '\0';
        assert_int_equal(kv_mover_send(a.mover, link, &piece, &error), KV_INVALID);
        assert_non_null(strstr(error.text, "range"));
        if (!WRONG[i].source_only) {
            assert_int_equal(kv_mover_expect(a.mover, link, &expectation, &error), KV_INVALID);
        }
    }
    piece.ranges = &whole;
    piece.range_count = 0;
    assert_int_equal(kv_mover_send(a.mover, link, &piece, &error), KV_INVALID);
    toy_close(&a);
}

/* An expectation of some ranges takes these and no others; LANDED does not wait for the rest. */
static void what_is_not_expected_of_this_link_is_not_written(void **state)
{
    (void)state;
    static const kv_range_t WANTED[] = {{0, UNIT, UNIT}, {0, 3 * UNIT, UNIT}};
    static const kv_data_range_t BOTH[] = {{UNIT, UNIT}, {3 * UNIT, UNIT}};
    static const kv_data_range_t WRONG[][2] = {{{0, UNIT}, {3 * UNIT, UNIT}},
        {{UNIT, UNIT}, {2 * UNIT, 2 * UNIT}}, {{UNIT, UNIT}, {2 * UNIT, UNIT}},
        {{UNIT, UNIT}, {SLOT, UNIT}}, {{UNIT, UNIT}, {3 * UNIT, UNIT + 1}}};
    rude_t rude;
    toy_node_t node;
    kv_link_t link = rude_open(&rude, &node);
    rude_prove(&rude, &node);
    kv_expectation_t expectation = {
        .block_count = 4, .slots = FOUR, .ranges = WANTED, .range_count = 2};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        expectation.transfer_id = kv_mover_transfer_id(node.mover);
        assert_int_equal(kv_mover_expect(node.mover, link, &expectation, NULL), KV_OK);
        wire_message_t message = ranges_message(expectation.transfer_id, 0, 2, WRONG[i], 2);
        rude_say(&rude, message.bytes, message.count);
        assert_int_equal(toy_expect_event(&node, KV_MOVED_FAILED).status, KV_INVALID);
        kv_mover_revoke(node.mover, expectation.transfer_id);
        assert_int_equal(toy_expect_event(&node, KV_MOVED_REVOKED).landed_blocks, 0);
        assert_clear(&node);
    }
    /* The right ones, once gathered and once by themselves. */
    expectation.transfer_id = kv_mover_transfer_id(node.mover);
    assert_int_equal(kv_mover_expect(node.mover, link, &expectation, NULL), KV_OK);
    wire_message_t message = ranges_message(expectation.transfer_id, 0, 3, BOTH, 2);
    rude_say(&rude, message.bytes, message.count);
    message = ranges_message(expectation.transfer_id, 3, 1, &BOTH[1], 1);
    rude_say(&rude, message.bytes, message.count);
    message = ranges_message(expectation.transfer_id, 3, 1, &BOTH[0], 1);
    rude_say(&rude, message.bytes, message.count);
    kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_LANDED);
    assert_int_equal(event.bytes, 4 * 2 * UNIT);
    assert_int_equal(event.landed_blocks, 4);
    for (size_t i = 0; i < (size_t)SLOTS * SLOT; i++) {
        uint8_t expected = 0;
        for (uint32_t block = 0; block < 4; block++) {
            bool inside = i / SLOT == FOUR[block] && i % SLOT / UNIT % 2 == 1;
            expected = inside ? (uint8_t)(1 + block) : expected;
        }
        assert_int_equal(node.arena[i], expected);
    }
    rude_close(&rude, &node);
}

/* Every byte of a message of several ranges is bound to its place: none can be altered. */
static void ranges_are_bound_by_the_checksum(void **state)
{
    (void)state;
    static const kv_data_range_t PAIR[] = {{0, UNIT}, {2 * UNIT, UNIT}};
    rude_t rude;
    toy_node_t node;
    kv_link_t link = rude_open(&rude, &node);
    rude_prove(&rude, &node);
    uint64_t id = expect_four(&node, link);
    wire_message_t message = ranges_message(id, 0, 1, PAIR, 2);
    kv_put_u64(message.bytes + KV_DATA_HEADER_BYTES, UNIT); /* another, good place */
    rude_say(&rude, message.bytes, message.count);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_FAILED).status, KV_CORRUPT);
    kv_mover_revoke(node.mover, id);
    toy_expect_event(&node, KV_MOVED_REVOKED);
    id = expect_four(&node, link);
    message = ranges_message(id, 0, 1, PAIR, 2);
    kv_put_u32(message.bytes + 20, 2 * UNIT); /* the same bytes, cut elsewhere */
    kv_put_u32(message.bytes + KV_DATA_HEADER_BYTES + 8, 0);
    rude_say(&rude, message.bytes, message.count);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_FAILED).status, KV_PEER_LOST);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_LINK_DOWN).status, KV_INVALID);
    assert_clear_beside_four(&node);
    rude_close(&rude, &node);
}

/* A piece of so many ranges that it takes several messages, each of a part of one block. */
static void many_ranges_go_from_place_to_place(void **state)
{
    (void)state;
    enum { MANY = 3 * KV_DATA_RANGES_MAX, WIDE = 2 * MANY * UNIT, COUNT = 3 };
    toy_node_t a, b;
    assert_int_equal(toy_open(&a, KV_WIRE_AUTO, &kv_wire_loopback, COUNT, WIDE, UNIT), KV_OK);
    assert_int_equal(toy_open(&b, KV_WIRE_AUTO, &kv_wire_loopback, COUNT, 2 * WIDE, UNIT), KV_OK);
    toy_fill(&a, 3);
    kv_link_t la = toy_link(&a, 0, false, 5);
    kv_link_t lb = toy_link(&b, kv_mover_port(a.mover), true, 5);
    toy_expect_event(&a, KV_MOVED_LINK_UP);
    toy_expect_event(&b, KV_MOVED_LINK_UP);
    static const uint32_t FROM[] = {2, 0, 1}, TO[] = {1, 2, 0};
    static kv_range_t ranges[MANY];
    for (size_t i = 0; i < MANY; i++) { /* backwards in the source, with holes in the target */
        ranges[i] = (kv_range_t){(MANY - 1 - i) * 2 * UNIT, i * 4 * UNIT, (1 + i % 2) * UNIT};
    }
    kv_expectation_t expectation = {.transfer_id = kv_mover_transfer_id(b.mover),
        .block_count = COUNT,
        .slots = TO,
        .ranges = ranges,
        .range_count = MANY};
    assert_int_equal(kv_mover_expect(b.mover, lb, &expectation, NULL), KV_OK);
    kv_piece_t piece = {.transfer_id = expectation.transfer_id,
        .block_count = COUNT,
        .slots = FROM,
        .ranges = ranges,
        .range_count = MANY};
    assert_int_equal(kv_mover_send(a.mover, la, &piece, NULL), KV_OK);
    assert_int_equal(toy_expect_event(&a, KV_MOVED_SENT).bytes, COUNT * MANY / 2 * 3 * UNIT);
    assert_int_equal(toy_expect_event(&b, KV_MOVED_LANDED).landed_blocks, COUNT);
    kv_mover_stats_t stats;
    kv_mover_stats(a.mover, &stats);
    assert_int_equal(stats.sent_messages, COUNT * MANY / KV_DATA_RANGES_MAX);
    for (size_t block = 0; block < COUNT; block++) {
        for (size_t i = 0; i < MANY; i++) {
            assert_memory_equal(a.arena + FROM[block] * WIDE + ranges[i].source_offset_bytes,
                b.arena + TO[block] * 2 * WIDE + ranges[i].target_offset_bytes, ranges[i].bytes);
        }
    }
    toy_close(&a);
    toy_close(&b);
}

static void a_cancelled_transfer_still_answers_every_piece(void **state)
{
    (void)state;
    toy_node_t a;
    assert_int_equal(toy_open(&a, KV_WIRE_AUTO, &kv_wire_loopback, SLOTS, SLOT, UNIT), KV_OK);
    kv_link_t link = toy_link(&a, 0, false, 5); /* nobody comes: the pieces wait */
    uint32_t slots[] = {0};
    kv_range_t range = kv_range_alike(0, SLOT);
    kv_piece_t piece = {
        .transfer_id = 11, .block_count = 1, .ranges = &range, .range_count = 1, .slots = slots};
    for (uint64_t i = 0; i < 4; i++) {
        piece.transfer_id = 11 + i % 2;
        piece.tag = i;
        assert_int_equal(kv_mover_send(a.mover, link, &piece, NULL), KV_OK);
    }
    kv_mover_cancel(a.mover, link, 11);
    for (uint64_t i = 0; i < 4; i += 2) {
        kv_mover_event_t event = toy_expect_event(&a, KV_MOVED_SENT);
        assert_int_equal(event.tag, i);
        assert_int_equal(event.status, KV_CANCELLED);
    }
    kv_mover_link_close(a.mover, link);
    for (uint64_t i = 1; i < 4; i += 2) {
        kv_mover_event_t event = toy_expect_event(&a, KV_MOVED_SENT);
        assert_int_equal(event.tag, i);
        assert_int_equal(event.status, KV_PEER_LOST);
    }
    toy_expect_event(&a, KV_MOVED_LINK_DOWN);
    piece.tag = 0;
    uint32_t accepted = 0;
    while (kv_mover_send(a.mover, link, &piece, NULL) == KV_OK) {
        accepted++;
    }
    assert_int_equal(accepted, KV_MOVER_PIECES_MAX); /* the bound, until they are polled */
    toy_expect_event(&a, KV_MOVED_SENT);
    assert_int_equal(kv_mover_send(a.mover, link, &piece, NULL), KV_OK);
    toy_close(&a);
}

typedef struct {
    uint8_t bytes[KV_DATA_HEADER_BYTES + KV_DATA_RANGES_MAX * KV_DATA_RANGE_BYTES];
    atomic_bool enough;
} changing_t;

static void *change_head(void *argument)
{
    changing_t *changing = argument;
    volatile uint8_t *more = changing->bytes + 32;
    while (!atomic_load(&changing->enough)) {
        more[1] = (uint8_t)~more[1]; /* 1 range more, or 65,281 */
    }
    return NULL;
}

/* A message may lie in the peer's memory: what it says of itself is read once. */
static void a_head_may_change_while_it_is_read(void **state)
{
    (void)state;
    changing_t changing = {.enough = false};
    static const kv_data_range_t PAIR[] = {{0, UNIT}, {2 * UNIT, UNIT}};
    wire_message_t message = ranges_message(1, 0, 1, PAIR, 2);
    memcpy(changing.bytes, message.bytes, kv_data_head_bytes(2));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, change_head, &changing), 0);
    uint64_t end_ns = kv_clock_now_ns() + 200 * (uint64_t)KV_NS_PER_MS;
    struct {
        kv_data_blocks_t blocks;
        uint8_t guard[1 << 20];
    } *place = calloc(1, sizeof *place);
    assert_non_null(place);
    for (int i = 0; i % 1024 != 0 || kv_clock_now_ns() < end_ns; i++) {
        kv_error_t error;
        kv_data_blocks_decode(changing.bytes, message.count, &place->blocks, &error);
        assert_true(place->blocks.range_count <= 2);
        assert_int_equal(place->guard[0], 0);
    }
    atomic_store(&changing.enough, true);
    pthread_join(thread, NULL);
    free(place);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_land_in_any_order_exactly_once),
        cmocka_unit_test(what_does_not_fit_is_not_written),
        cmocka_unit_test(the_good_prefix_is_told),
        cmocka_unit_test(fewer_blocks_land_as_well),
        cmocka_unit_test(every_flipped_bit_is_noticed),
        cmocka_unit_test(a_malformed_message_ends_the_link),
        cmocka_unit_test(nothing_is_taken_before_the_token),
        cmocka_unit_test(a_transfer_belongs_to_its_link),
        cmocka_unit_test(two_movers_exchange_blocks),
        cmocka_unit_test(what_is_lent_comes_back_at_the_end),
        cmocka_unit_test(the_calls_refuse_what_leaves_the_arena),
        cmocka_unit_test(what_is_not_expected_of_this_link_is_not_written),
        cmocka_unit_test(ranges_are_bound_by_the_checksum),
        cmocka_unit_test(many_ranges_go_from_place_to_place),
        cmocka_unit_test(a_head_may_change_while_it_is_read),
        cmocka_unit_test(a_cancelled_transfer_still_answers_every_piece),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
