/* Re-layout between tensor-parallel degrees: every byte of every receiver's block comes exactly
 * once and is the right one; first over plain arrays, then through movers with a link for each pair
 * of shards. What a shard holds is worked out here by another formula than the one under test. */
#include "toy.h"

#include "base/bytes.h"
#include "transport/mover/data_message.h"
#include "transport/mover/wire.h"
#include "transport/relayout.h"

enum { DEGREES = 4, SHARDS_MAX = 8, BLOCKS = 5, SLOTS = 7 };

static const uint32_t DEGREE[DEGREES] = {1, 2, 4, 8};

static const struct {
    const char *name;
    kv_relayout_geometry_t geometry;
} LAYOUT[] = {
    {"MHA", {3, 2, {{16, 96}, {16, 96}}}},
    {"GQA", {4, 2, {{8, 64}, {8, 64}}}},
    {"GQA, fewer heads than shards", {3, 2, {{2, 128}, {2, 128}}}},
    {"MQA", {2, 2, {{1, 64}, {1, 64}}}},
    {"k and v of different widths", {2, 2, {{4, 96}, {4, 64}}}},
    {"MLA", {5, 2, {{1, 512}, {1, 64}}}},
    {"MLA beside an indexer of its own heads", {3, 3, {{1, 512}, {1, 64}, {8, 32}}}},
};
enum { LAYOUTS = sizeof LAYOUT / sizeof LAYOUT[0] };

/* ---- what a shard holds, by another formula ---- */

/* Rank r's share of heads reaches from r H / d to (r + 1) H / d; it holds every head that this
 * touches. */
static bool holds(uint32_t heads, kv_relayout_shard_t shard, uint32_t head)
{
    return head * shard.degree < (shard.rank + 1) * heads &&
           shard.rank * heads < (head + 1) * shard.degree;
}

static uint8_t byte_of(uint32_t block, uint32_t layer, uint32_t part, uint32_t head, uint32_t at)
{
    uint32_t name = (((block * 31 + layer) * 5 + part) * 67 + head) * 4099 + at;
    return (uint8_t)(name * 2654435761u >> 24);
}

/* Writes the shard's block; returns its size. */
static size_t fill(const kv_relayout_geometry_t *geometry, kv_relayout_shard_t shard,
    uint32_t block, uint8_t *bytes_out)
{
    size_t count = 0;
    for (uint32_t layer = 0; layer < geometry->layer_count; layer++) {
        for (uint32_t part = 0; part < geometry->part_count; part++) {
            for (uint32_t head = 0; head < geometry->parts[part].heads; head++) {
                for (uint32_t at = 0; holds(geometry->parts[part].heads, shard, head) &&
                                      at < geometry->parts[part].unit_bytes;
                     at++) {
                    bytes_out[count++] = byte_of(block, layer, part, head, at);
                }
            }
        }
    }
    return count;
}

/* ---- plain arrays ---- */

enum { BLOCK_BYTES_MAX = 16 << 10, RANGES_MAX = 64 };

static void apply(const kv_range_t *ranges, uint32_t count, size_t unit_bytes,
    const uint8_t *source, size_t source_bytes, uint8_t *target, uint8_t *times,
    size_t target_bytes)
{
    size_t end = 0;
    for (uint32_t i = 0; i < count; i++) {
        kv_range_t range = ranges[i];
        assert_true(range.bytes > 0 && range.target_offset_bytes >= end);
        assert_true(range.bytes % unit_bytes == 0 && range.source_offset_bytes % unit_bytes == 0 &&
                    range.target_offset_bytes % unit_bytes == 0);
        assert_true(range.source_offset_bytes + range.bytes <= source_bytes);
        assert_true(range.target_offset_bytes + range.bytes <= target_bytes);
        end = range.target_offset_bytes + range.bytes;
        memcpy(target + range.target_offset_bytes, source + range.source_offset_bytes, range.bytes);
        for (size_t at = range.target_offset_bytes; at < end; at++) {
            times[at]++;
        }
    }
}

/* All senders into one receiver; layers: how many at a time. */
static void one_receiver(const kv_relayout_geometry_t *geometry, uint32_t sender_degree,
    kv_relayout_shard_t receiver, uint32_t layers)
{
    static uint8_t source[BLOCK_BYTES_MAX], target[BLOCK_BYTES_MAX], expected[BLOCK_BYTES_MAX];
    static uint8_t times[BLOCK_BYTES_MAX];
    memset(times, 0, sizeof times);
    size_t bytes = fill(geometry, receiver, 1, expected), said, unit_bytes;
    assert_int_equal(kv_relayout_block_bytes(geometry, receiver, &said, &unit_bytes, NULL), KV_OK);
    assert_int_equal(said, bytes);
    for (uint32_t rank = 0; rank < sender_degree; rank++) {
        kv_relayout_shard_t sender = {sender_degree, rank};
        size_t source_bytes = fill(geometry, sender, 1, source);
        for (uint32_t layer = 0; layer < geometry->layer_count; layer += layers) {
            uint32_t left = geometry->layer_count - layer, count = UINT32_MAX;
            kv_range_t ranges[RANGES_MAX];
            assert_int_equal(kv_relayout_ranges(geometry, sender, receiver, layer,
                                 layers < left ? layers : left, ranges, &count, NULL),
                KV_OK);
            assert_true(count <= layers * geometry->part_count);
            apply(ranges, count, unit_bytes, source, source_bytes, target, times, bytes);
        }
    }
    for (size_t at = 0; at < bytes; at++) {
        assert_int_equal(times[at], 1);
    }
    assert_memory_equal(target, expected, bytes);
}

static void every_byte_comes_exactly_once(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < LAYOUTS * DEGREES * DEGREES; i++) {
        const kv_relayout_geometry_t *geometry = &LAYOUT[i / DEGREES / DEGREES].geometry;
        uint32_t from = DEGREE[i / DEGREES % DEGREES], to = DEGREE[i % DEGREES];
        for (uint32_t rank = 0; rank < to; rank++) {
            one_receiver(geometry, from, (kv_relayout_shard_t){to, rank}, 1);
            one_receiver(geometry, from, (kv_relayout_shard_t){to, rank}, 2);
            one_receiver(geometry, from, (kv_relayout_shard_t){to, rank}, geometry->layer_count);
        }
    }
    /* Degrees that are not powers of two go as well, where the heads allow it. */
    kv_relayout_geometry_t six = {2, 3, {{6, 32}, {12, 64}, {1, 32}}};
    for (uint32_t rank = 0; rank < 12; rank++) {
        one_receiver(&six, 3, (kv_relayout_shard_t){12, rank}, 1);
        one_receiver(&six, 12, (kv_relayout_shard_t){6, rank % 6}, 2);
        one_receiver(&six, 6, (kv_relayout_shard_t){2, rank % 2}, 1);
    }
}

/* Ranges by hand: they are as long as both layouts allow. */
static void ranges_are_coalesced(void **state)
{
    (void)state;
    kv_range_t ranges[RANGES_MAX];
    uint32_t count;
    kv_relayout_geometry_t geometry = {3, 2, {{4, 10}, {4, 10}}};
    kv_relayout_shard_t one = {1, 0}, last_of_two = {2, 1};
    assert_int_equal(
        kv_relayout_ranges(&geometry, last_of_two, last_of_two, 1, 2, ranges, &count, NULL), KV_OK);
    assert_int_equal(count, 1); /* the same shard: both layers at once */
    assert_true(ranges[0].source_offset_bytes == 40 && ranges[0].target_offset_bytes == 40 &&
                ranges[0].bytes == 80);
    assert_int_equal(
        kv_relayout_ranges(&geometry, one, last_of_two, 2, 1, ranges, &count, NULL), KV_OK);
    assert_int_equal(count, 2);
    assert_true(ranges[0].source_offset_bytes == 180 && ranges[0].target_offset_bytes == 80 &&
                ranges[0].bytes == 20);
    assert_true(ranges[1].source_offset_bytes == 220 && ranges[1].target_offset_bytes == 100 &&
                ranges[1].bytes == 20);
    kv_relayout_shard_t first_of_two = {2, 0};
    assert_int_equal(
        kv_relayout_ranges(&geometry, first_of_two, last_of_two, 0, 3, ranges, &count, NULL),
        KV_OK);
    assert_int_equal(count, 0);
}

static void bad_shards_are_refused(void **state)
{
    (void)state;
    static const struct {
        kv_relayout_shard_t shard;
        const char *field;
    } WRONG[] = {{{0, 0}, "degree"}, {{3, 0}, "degree"}, {{16, 0}, "part 0"}, {{2, 2}, "rank"},
        {{UINT32_MAX, 0}, "degree"}, {{8, UINT32_MAX}, "rank"}, {{12, 3}, "part 1"}};
    kv_relayout_geometry_t geometry = {2, 2, {{24, 16}, {8, 16}}};
    kv_relayout_shard_t good = {8, 7};
    kv_range_t ranges[RANGES_MAX];
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        for (int side = 0; side < 2; side++) {
            kv_error_t error = {0};
            uint32_t count = 77;
            assert_int_equal(kv_relayout_ranges(&geometry, side == 0 ? WRONG[i].shard : good,
                                 side == 0 ? good : WRONG[i].shard, 0, 2, ranges, &count, &error),
                KV_INVALID);
            assert_non_null(strstr(error.text, WRONG[i].field));
            assert_int_equal(count, 77);
        }
        size_t bytes, unit_bytes;
        assert_int_equal(
            kv_relayout_block_bytes(&geometry, WRONG[i].shard, &bytes, &unit_bytes, NULL),
            KV_INVALID);
    }
    uint32_t count;
    kv_error_t error;
    assert_int_equal(
        kv_relayout_ranges(&geometry, good, good, 1, 2, ranges, &count, &error), KV_INVALID);
    assert_int_equal(
        kv_relayout_ranges(&geometry, good, good, UINT32_MAX, 1, ranges, &count, &error),
        KV_INVALID);
    kv_relayout_geometry_t bad[] = {{0, 1, {{8, 8}}}, {1, 0, {{8, 8}}}, {1, 5, {{8, 8}}},
        {1, 1, {{0, 8}}}, {1, 1, {{8, 0}}}, {1, 2, {{8, 8}, {8, UINT32_MAX}}},
        {UINT32_MAX, 1, {{8, 8}}}, {1, 1, {{UINT32_MAX, 8}}}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(
            kv_relayout_ranges(&bad[i], good, good, 0, 1, ranges, &count, &error), KV_INVALID);
    }
}

/* ---- through movers ---- */

/* Shards of both sides, each with its own mover, and a link for each pair of them. */
typedef struct {
    kv_relayout_geometry_t geometry;
    uint32_t sender_count, receiver_count;
    toy_node_t senders[SHARDS_MAX], receivers[SHARDS_MAX];
    kv_link_t to[SHARDS_MAX][SHARDS_MAX], from[SHARDS_MAX][SHARDS_MAX]; /* [sender][receiver] */
    uint64_t transfers[SHARDS_MAX][SHARDS_MAX];                         /* 0: nothing comes */
} shards_t;

/* Block i stands in these slots. */
static uint32_t sender_slot(uint32_t block)
{
    return (block * 3 + 1) % SLOTS;
}

static uint32_t receiver_slot(uint32_t block)
{
    return (block * 5 + 2) % SLOTS;
}

static void open_shard(const shards_t *shards, toy_node_t *node, kv_relayout_shard_t shard,
    kv_wire_t wire, const kv_wire_driver_t *driver)
{
    size_t bytes, unit_bytes;
    assert_int_equal(
        kv_relayout_block_bytes(&shards->geometry, shard, &bytes, &unit_bytes, NULL), KV_OK);
    assert_int_equal(toy_open(node, wire, driver, SLOTS, bytes, unit_bytes), KV_OK);
}

static void open_shards(shards_t *shards, kv_wire_t wire, const kv_wire_driver_t *driver)
{
    for (uint32_t s = 0; s < shards->sender_count; s++) {
        kv_relayout_shard_t shard = {shards->sender_count, s};
        open_shard(shards, &shards->senders[s], shard, wire, driver);
        for (uint32_t block = 0; block < BLOCKS; block++) {
            fill(&shards->geometry, shard, block,
                shards->senders[s].arena + sender_slot(block) * shards->senders[s].slot_bytes);
        }
    }
    for (uint32_t r = 0; r < shards->receiver_count; r++) {
        open_shard(shards, &shards->receivers[r], (kv_relayout_shard_t){shards->receiver_count, r},
            wire, driver);
        for (uint32_t s = 0; s < shards->sender_count; s++) {
            uint8_t token = (uint8_t)(1 + s * SHARDS_MAX + r);
            uint16_t port = kv_mover_port(shards->senders[s].mover);
            shards->to[s][r] = toy_link(&shards->senders[s], 0, false, token);
            shards->from[s][r] = toy_link(&shards->receivers[r], port, true, token);
        }
    }
    for (uint32_t i = 0; i < shards->sender_count * shards->receiver_count; i++) {
        toy_expect_event(&shards->senders[i % shards->sender_count], KV_MOVED_LINK_UP);
        toy_expect_event(&shards->receivers[i % shards->receiver_count], KV_MOVED_LINK_UP);
    }
}

static void close_shards(shards_t *shards)
{
    for (uint32_t s = 0; s < shards->sender_count; s++) {
        toy_close(&shards->senders[s]);
    }
    for (uint32_t r = 0; r < shards->receiver_count; r++) {
        toy_close(&shards->receivers[r]);
    }
}

static uint32_t ranges_between(const shards_t *shards, uint32_t sender, uint32_t receiver,
    uint32_t first_layer, uint32_t layer_count, kv_range_t *ranges_out)
{
    uint32_t count = 0;
    assert_int_equal(
        kv_relayout_ranges(&shards->geometry, (kv_relayout_shard_t){shards->sender_count, sender},
            (kv_relayout_shard_t){shards->receiver_count, receiver}, first_layer, layer_count,
            ranges_out, &count, NULL),
        KV_OK);
    return count;
}

/* One expectation for each source link; returns how many the receiver has. */
static uint32_t expect_shard(shards_t *shards, uint32_t receiver)
{
    toy_node_t *node = &shards->receivers[receiver];
    uint32_t slots[BLOCKS], expected = 0;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        slots[block] = receiver_slot(block);
    }
    for (uint32_t s = 0; s < shards->sender_count; s++) {
        kv_range_t ranges[RANGES_MAX];
        kv_expectation_t expectation = {.block_count = BLOCKS, .slots = slots, .ranges = ranges};
        expectation.range_count =
            ranges_between(shards, s, receiver, 0, shards->geometry.layer_count, ranges);
        shards->transfers[s][receiver] = 0;
        if (expectation.range_count > 0) {
            expectation.transfer_id = kv_mover_transfer_id(node->mover);
            shards->transfers[s][receiver] = expectation.transfer_id;
            assert_int_equal(
                kv_mover_expect(node->mover, shards->from[s][receiver], &expectation, NULL), KV_OK);
            expected++;
        }
    }
    return expected;
}

/* Layer by layer, as a shard computes them, to every receiver; returns the number of pieces. */
static uint32_t send_shard(shards_t *shards, uint32_t sender)
{
    uint32_t slots[BLOCKS], sent = 0;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        slots[block] = sender_slot(block);
    }
    for (uint32_t i = 0; i < shards->geometry.layer_count * shards->receiver_count; i++) {
        uint32_t layer = i / shards->receiver_count, receiver = i % shards->receiver_count;
        kv_range_t ranges[RANGES_MAX];
        kv_piece_t piece = {.transfer_id = shards->transfers[sender][receiver],
            .block_count = BLOCKS,
            .ranges = ranges,
            .slots = slots};
        piece.range_count = ranges_between(shards, sender, receiver, layer, 1, ranges);
        if (piece.range_count > 0) {
            assert_int_equal(kv_mover_send(shards->senders[sender].mover,
                                 shards->to[sender][receiver], &piece, NULL),
                KV_OK);
            sent++;
        }
    }
    return sent;
}

static void assert_shard(const shards_t *shards, uint32_t receiver)
{
    static uint8_t expected[BLOCK_BYTES_MAX];
    const toy_node_t *node = &shards->receivers[receiver];
    for (uint32_t block = 0; block < BLOCKS; block++) {
        size_t bytes = fill(&shards->geometry,
            (kv_relayout_shard_t){shards->receiver_count, receiver}, block, expected);
        assert_memory_equal(node->arena + receiver_slot(block) * node->slot_bytes, expected, bytes);
    }
    for (size_t slot = 0; slot < SLOTS; slot++) { /* and nothing beside them */
        bool used = false;
        for (uint32_t block = 0; block < BLOCKS; block++) {
            used |= receiver_slot(block) == slot;
        }
        for (size_t at = 0; !used && at < node->slot_bytes; at++) {
            assert_int_equal(node->arena[slot * node->slot_bytes + at], 0);
        }
    }
}

static void move(shards_t *shards)
{
    uint32_t expected[SHARDS_MAX], sent[SHARDS_MAX];
    for (uint32_t r = 0; r < shards->receiver_count; r++) {
        expected[r] = expect_shard(shards, r);
    }
    for (uint32_t s = 0; s < shards->sender_count; s++) {
        sent[s] = send_shard(shards, s);
    }
    for (uint32_t s = 0; s < shards->sender_count; s++) {
        while (sent[s]-- > 0) {
            assert_int_equal(toy_expect_event(&shards->senders[s], KV_MOVED_SENT).status, KV_OK);
        }
    }
    for (uint32_t r = 0; r < shards->receiver_count; r++) {
        uint64_t bytes = 0;
        while (expected[r]-- > 0) {
            bytes += toy_expect_event(&shards->receivers[r], KV_MOVED_LANDED).bytes;
        }
        assert_int_equal(bytes, BLOCKS * shards->receivers[r].slot_bytes);
        assert_shard(shards, r);
    }
}

static void shards_fill_one_another_through_movers(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < LAYOUTS * DEGREES * DEGREES; i++) {
        shards_t shards = {.geometry = LAYOUT[i / DEGREES / DEGREES].geometry,
            .sender_count = DEGREE[i / DEGREES % DEGREES],
            .receiver_count = DEGREE[i % DEGREES]};
        open_shards(&shards, KV_WIRE_AUTO, &kv_wire_loopback);
        move(&shards);
        close_shards(&shards);
    }
}

static void and_over_ucx(void **state)
{
    (void)state;
    static const struct {
        kv_wire_t wire;
        uint32_t layout, senders, receivers;
    } CASE[] = {{KV_WIRE_TCP, 1, 2, 4}, {KV_WIRE_SHM, 2, 4, 1}, {KV_WIRE_TCP, 6, 1, 2}};
    for (size_t i = 0; i < sizeof CASE / sizeof CASE[0]; i++) {
        shards_t shards = {.geometry = LAYOUT[CASE[i].layout].geometry,
            .sender_count = CASE[i].senders,
            .receiver_count = CASE[i].receivers};
        open_shards(&shards, CASE[i].wire, NULL);
        move(&shards);
        close_shards(&shards);
    }
}

/* A peer that takes itself for a shard of another degree: its ranges are not those that are
 * expected of its link, and nothing of them stays in a landed block. */
static void a_shard_of_another_degree_is_refused(void **state)
{
    (void)state;
    shards_t shards = {.geometry = LAYOUT[1].geometry, .sender_count = 2, .receiver_count = 1};
    open_shards(&shards, KV_WIRE_AUTO, &kv_wire_loopback);
    assert_int_equal(expect_shard(&shards, 0), 2);
    kv_range_t ranges[RANGES_MAX];
    uint32_t count, slots[BLOCKS] = {0, 1, 2, 3, 4};
    kv_relayout_shard_t four = {4, 2}, one = {1, 0}; /* overlaps what comes of rank 1, not 0 */
    assert_int_equal(
        kv_relayout_ranges(&shards.geometry, four, one, 0, 1, ranges, &count, NULL), KV_OK);
    kv_piece_t piece = {.transfer_id = shards.transfers[0][0],
        .block_count = BLOCKS,
        .ranges = ranges,
        .range_count = count,
        .slots = slots};
    assert_int_equal(kv_mover_send(shards.senders[0].mover, shards.to[0][0], &piece, NULL), KV_OK);
    kv_mover_event_t event = toy_expect_event(&shards.receivers[0], KV_MOVED_FAILED);
    assert_int_equal(event.status, KV_INVALID);
    assert_true(event.transfer_id == shards.transfers[0][0]);
    for (size_t at = 0; at < SLOTS * shards.receivers[0].slot_bytes; at++) {
        assert_int_equal(shards.receivers[0].arena[at], 0);
    }
    close_shards(&shards);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_comes_exactly_once),
        cmocka_unit_test(ranges_are_coalesced),
        cmocka_unit_test(bad_shards_are_refused),
        cmocka_unit_test(shards_fill_one_another_through_movers),
        cmocka_unit_test(and_over_ucx),
        cmocka_unit_test(a_shard_of_another_degree_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
