/* Direct messages over the loopback wire, on a device whose memory a network reaches: what is
 * missing leaves kv on its other way, what goes wrong fails its transfer and no other, and nothing
 * is written after a fence. The wire's functions are wrapped to make the moments. */
#include "toy.h"

#include "transport/mover/wire.h"

#include <stdatomic.h>

enum { SLOTS = 8, UNITS = 4, UNIT = 4096, SLOT = UNITS * UNIT, SENDERS = 2, LINKS = 3 };

static const uint32_t ALL[SLOTS] = {7, 6, 5, 4, 3, 2, 1, 0};

/* ---- a wire that can be bent ---- */

static kv_wire_upcalls_t plain; /* of the receiver's side */
static _Atomic bool holds, fails, damages;
static _Atomic uint32_t held_count, busy_count;

typedef struct {
    void *owner, *to;
} held_t;

static held_t held[64]; /* of the receiving mover's thread */
static kv_wire_side_t *holding_side;

static kv_status_t bent_offered(
    void *owner, const void *head, size_t head_bytes, size_t count, void **to_out)
{
    kv_status_t status = plain.offered(owner, head, head_bytes, count, to_out);
    busy_count += status == KV_BUSY;
    return status;
}

/* What has arrived is told later, or told to have failed. */
static void bent_arrived(void *owner, void *to, kv_status_t status)
{
    if (holds && status == KV_OK) {
        held[held_count] = (held_t){owner, to};
        held_count++;
    } else {
        plain.arrived(owner, to, fails ? KV_IO : status);
    }
}

static unsigned bent_progress(kv_wire_side_t *side)
{
    unsigned happened = 0;
    if (side == holding_side && !holds) {
        for (uint32_t i = held_count; i > 0; i--) {
            plain.arrived(held[i - 1].owner, held[i - 1].to, KV_OK);
            happened++;
        }
        held_count = 0;
    }
    return happened + kv_wire_loopback.progress(side);
}

static kv_status_t bent_open(
    const kv_wire_params_t *params, kv_wire_side_t **side_out, kv_error_t *error)
{
    kv_wire_params_t wrapped = *params;
    plain = params->upcalls;
    wrapped.upcalls.offered = bent_offered;
    wrapped.upcalls.arrived = bent_arrived;
    kv_status_t status = kv_wire_loopback.open(&wrapped, side_out, error);
    holding_side = *side_out;
    return status;
}

static bool never(kv_wire_side_t *side)
{
    (void)side;
    return false; /* looks again and again: what is held is told by nobody else */
}

/* What a peer without manners does to a message. */
typedef struct {
    int32_t head_more, data_more; /* bytes */
    int32_t flipped;              /* a byte of the head; -1: none */
} rudeness_t;

static rudeness_t rudeness; /* written while nothing is sent */

static kv_status_t damage(kv_wire_pipe_t *pipe, const void *head, size_t head_bytes,
    const void *data, size_t count, void *tag)
{
    uint8_t said[2 * KV_WIRE_HEAD_BYTES] = {0};
    memcpy(said, head, head_bytes);
    if (damages) {
        ((uint8_t *)(uintptr_t)data)[count - 1] ^= 0x10; /* of the last block */
    }
    if (rudeness.flipped >= 0) {
        said[rudeness.flipped] ^= 1;
    }
    return kv_wire_loopback.send_direct(pipe, said, head_bytes + (size_t)rudeness.head_more, data,
        count + (size_t)rudeness.data_more, tag);
}

static kv_status_t refuse_map(kv_wire_side_t *side, void *memory, size_t bytes, kv_error_t *error)
{
    (void)side;
    (void)memory;
    (void)bytes;
    return kv_fail(error, KV_NO_SPACE, "no more than 0 bytes can be registered");
}

static kv_status_t allocate_nothing(
    kv_device_t *device, size_t bytes, void **memory_out, kv_error_t *error)
{
    (void)device;
    (void)memory_out;
    return kv_fail(error, KV_NO_SPACE, "no %zu bytes left", bytes);
}

static void bend(kv_wire_driver_t *driver, bool maps, bool receives)
{
    *driver = kv_wire_loopback;
    driver->map = maps ? driver->map : refuse_map;
    if (receives) {
        driver->open = bent_open;
        driver->progress = bent_progress;
        driver->arm = never;
    } else {
        driver->send_direct = damage;
    }
}

/* ---- movers ---- */

/* What one side has; all of it serves direct messages, or not. */
typedef struct {
    const kv_device_ops_t *ops;
    bool maps;
} side_t;

static const side_t GOOD = {&TOY_REACHED_OPS, true};

typedef struct {
    kv_device_t device;
    kv_wire_driver_t driver;
} beside_t;

typedef struct {
    toy_node_t from[SENDERS], to;
    beside_t besides[SENDERS + 1];
    kv_link_t out[SENDERS][LINKS], in[SENDERS][LINKS];
    uint8_t token;
} movers_t;

static void open_node(toy_node_t *node, beside_t *beside, const side_t *side, bool receives)
{
    *node = (toy_node_t){NULL, calloc(SLOTS, SLOT), SLOTS, SLOT, UNIT};
    beside->device.ops = side->ops;
    bend(&beside->driver, side->maps, receives);
    const kv_mover_params_t params = {
        .device = &beside->device,
        .arena = node->arena,
        .slot_count = SLOTS,
        .slot_bytes = SLOT,
        .unit_bytes = UNIT,
        .host = "127.0.0.1",
        .driver = &beside->driver,
    };
    assert_int_equal(kv_mover_create(&params, &node->mover, NULL), KV_OK);
}

static movers_t *open_movers(const side_t *from, const side_t *to)
{
    movers_t *movers = calloc(1, sizeof *movers);
    holds = fails = damages = false;
    held_count = busy_count = 0;
    rudeness = (rudeness_t){.flipped = -1};
    open_node(&movers->to, &movers->besides[SENDERS], to, true);
    for (uint32_t i = 0; i < SENDERS; i++) {
        open_node(&movers->from[i], &movers->besides[i], from, false);
        toy_fill(&movers->from[i], 3);
    }
    return movers;
}

static void close_movers(movers_t *movers)
{
    toy_close(&movers->to);
    for (uint32_t i = 0; i < SENDERS; i++) {
        toy_close(&movers->from[i]);
    }
    free(movers);
}

static void link_up(movers_t *movers, uint32_t sender, uint32_t link)
{
    const uint8_t token = ++movers->token;
    movers->in[sender][link] = toy_link(&movers->to, 0, false, token);
    movers->out[sender][link] =
        toy_link(&movers->from[sender], kv_mover_port(movers->to.mover), true, token);
    toy_expect_event(&movers->to, KV_MOVED_LINK_UP);
    toy_expect_event(&movers->from[sender], KV_MOVED_LINK_UP);
}

static uint64_t expect_all(movers_t *movers, uint32_t sender, uint32_t link)
{
    const uint64_t id = kv_mover_transfer_id(movers->to.mover);
    assert_int_equal(toy_expect(&movers->to, movers->in[sender][link], id, ALL, SLOTS), KV_OK);
    return id;
}

static void send_ranges(
    movers_t *movers, uint32_t sender, uint32_t link, uint64_t id, const kv_range_t *ranges, int n)
{
    const kv_piece_t piece = {.transfer_id = id,
        .block_count = SLOTS,
        .ranges = ranges,
        .range_count = (uint32_t)n,
        .slots = ALL};
    assert_int_equal(
        kv_mover_send(movers->from[sender].mover, movers->out[sender][link], &piece, NULL), KV_OK);
}

static void send_whole(movers_t *movers, uint32_t sender, uint32_t link, uint64_t id)
{
    const kv_range_t whole = kv_range_alike(0, SLOT);
    send_ranges(movers, sender, link, id, &whole, 1);
}

static kv_mover_stats_t stats_of(const toy_node_t *node)
{
    kv_mover_stats_t stats;
    kv_mover_stats(node->mover, &stats);
    return stats;
}

static void until(const _Atomic uint32_t *count)
{
    for (int i = 0; i < 30000 && *count == 0; i++) {
        usleep(1000);
    }
    assert_true(*count > 0);
}

/* One transfer in pieces: of one range, and of two that change places. */
static void transfer(movers_t *movers)
{
    static const kv_range_t FIRST = {0, 0, 2 * UNIT},
                            CROSSED[] = {{3 * UNIT, 2 * UNIT, UNIT}, {2 * UNIT, 3 * UNIT, UNIT}};
    memset(movers->to.arena, 0, (size_t)SLOTS * SLOT);
    const uint64_t id = expect_all(movers, 0, 0);
    send_ranges(movers, 0, 0, id, &FIRST, 1);
    send_ranges(movers, 0, 0, id, CROSSED, 2);
    toy_expect_event(&movers->to, KV_MOVED_LANDED);
    assert_int_equal(toy_expect_event(&movers->from[0], KV_MOVED_SENT).status, KV_OK);
    assert_int_equal(toy_expect_event(&movers->from[0], KV_MOVED_SENT).status, KV_OK);
    for (size_t slot = 0; slot < SLOTS; slot++) {
        const uint8_t *is = movers->to.arena + slot * SLOT,
                      *was = movers->from[0].arena + slot * SLOT;
        assert_memory_equal(is, was, 2 * UNIT);
        assert_memory_equal(is + 2 * UNIT, was + 3 * UNIT, UNIT);
        assert_memory_equal(is + 3 * UNIT, was + 2 * UNIT, UNIT);
    }
}

/* ---- tests ---- */

static void blocks_go_from_device_to_device(void **state)
{
    (void)state;
    movers_t *movers = open_movers(&GOOD, &GOOD);
    link_up(movers, 0, 0);
    transfer(movers);
    transfer(movers);
    const kv_mover_stats_t to = stats_of(&movers->to), from = stats_of(&movers->from[0]);
    assert_int_equal(to.received_direct_messages, 4);
    assert_int_equal(to.received_messages, 4);
    assert_int_equal(from.sent_direct_messages, 4);
    assert_int_equal(from.sent_messages, 4);
    close_movers(movers);
}

/* Without any one of these, on either side, kv arrives all the same, and not directly. */
static void what_is_missing_costs_speed_alone(void **state)
{
    (void)state;
    kv_device_ops_t poor = TOY_REACHED_OPS, gpu = TOY_REACHED_OPS;
    poor.allocate = allocate_nothing;
    gpu.network = KV_NETWORK_CUDA; /* which the loopback wire does not reach */
    const side_t lacking[] = {{&TOY_OPS, true}, {&TOY_REMOTE_OPS, true}, {&TOY_REACHED_OPS, false},
        {&poor, true}, {&gpu, true}};
    for (size_t i = 0; i < sizeof lacking / sizeof *lacking; i++) {
        for (int receiver = 0; receiver < 2; receiver++) {
            movers_t *movers =
                open_movers(receiver ? &GOOD : &lacking[i], receiver ? &lacking[i] : &GOOD);
            link_up(movers, 0, 0);
            transfer(movers);
            assert_int_equal(stats_of(&movers->to).received_direct_messages, 0);
            assert_int_equal(stats_of(&movers->from[0]).sent_direct_messages, 0);
            close_movers(movers);
        }
    }
}

static void damage_on_the_way_is_found(void **state)
{
    (void)state;
    movers_t *movers = open_movers(&GOOD, &GOOD);
    link_up(movers, 0, 0);
    damages = true;
    const uint64_t id = expect_all(movers, 0, 0);
    send_whole(movers, 0, 0, id);
    const kv_mover_event_t event = toy_expect_event(&movers->to, KV_MOVED_FAILED);
    assert_int_equal(event.status, KV_CORRUPT);
    assert_int_equal(event.landed_blocks, SLOTS - 1); /* the last one was hit */
    kv_mover_revoke(movers->to.mover, id);
    toy_expect_event(&movers->to, KV_MOVED_REVOKED);
    toy_expect_event(&movers->from[0], KV_MOVED_SENT);
    assert_int_equal(stats_of(&movers->to).corrupt_fragments, 1);
    damages = false;
    transfer(movers);
    close_movers(movers);
}

/* The data is there, its slots have got another life meanwhile: it goes nowhere. */
static void nothing_is_written_after_a_revoke(void **state)
{
    (void)state;
    movers_t *movers = open_movers(&GOOD, &GOOD);
    link_up(movers, 0, 0);
    holds = true;
    const uint64_t id = expect_all(movers, 0, 0);
    send_whole(movers, 0, 0, id);
    until(&held_count);
    kv_mover_revoke(movers->to.mover, id);
    toy_expect_event(&movers->to, KV_MOVED_REVOKED);
    holds = false;
    toy_expect_event(&movers->from[0], KV_MOVED_SENT);
    for (int i = 0; i < 30000 && stats_of(&movers->to).dropped_messages == 0; i++) {
        usleep(1000);
    }
    assert_int_equal(stats_of(&movers->to).dropped_messages, 1);
    for (size_t i = 0; i < (size_t)SLOTS * SLOT; i++) {
        assert_int_equal(movers->to.arena[i], 0);
    }
    transfer(movers);
    close_movers(movers);
}

/* Several links send more at once than there are buffers: some wait for others, all arrive. */
static void buffers_that_run_out_are_waited_for(void **state)
{
    (void)state;
    enum { PIECES = 8 };
    movers_t *movers = open_movers(&GOOD, &GOOD);
    uint32_t expected = 0;
    holds = true;
    for (uint32_t sender = 0; sender < SENDERS; sender++) {
        for (uint32_t link = 0; link < LINKS; link++) {
            link_up(movers, sender, link);
        }
    }
    for (uint32_t sender = 0; sender < SENDERS; sender++) {
        for (uint32_t link = 0; link < LINKS; link++) {
            for (uint32_t i = 0; i < PIECES; i++, expected++) {
                send_whole(movers, sender, link, expect_all(movers, sender, link));
            }
        }
    }
    until(&busy_count);
    holds = false;
    for (; expected > 0; expected--) {
        toy_expect_event(&movers->to, KV_MOVED_LANDED);
    }
    assert_memory_equal(movers->to.arena, movers->from[0].arena, (size_t)SLOTS * SLOT);
    for (uint32_t i = 0; i < SENDERS * LINKS * PIECES; i++) {
        const toy_node_t *from = &movers->from[i / (LINKS * PIECES)];
        assert_int_equal(toy_expect_event((toy_node_t *)from, KV_MOVED_SENT).status, KV_OK);
    }
    close_movers(movers);
}

/* Memory that cannot be read ends links, three in a row; then kv goes its other way. */
static void what_cannot_be_read_is_given_up(void **state)
{
    (void)state;
    movers_t *movers = open_movers(&GOOD, &GOOD);
    fails = true;
    for (int round = 0; round < 3; round++) {
        link_up(movers, 0, 0);
        const uint64_t id = expect_all(movers, 0, 0);
        send_whole(movers, 0, 0, id);
        assert_int_equal(toy_expect_event(&movers->to, KV_MOVED_FAILED).status, KV_PEER_LOST);
        const kv_mover_event_t event = toy_expect_event(&movers->to, KV_MOVED_LINK_DOWN);
        assert_non_null(strstr(event.text, "could not be read"));
        kv_mover_revoke(movers->to.mover, id);
        toy_expect_event(&movers->to, KV_MOVED_REVOKED);
        toy_expect_event(&movers->from[0], KV_MOVED_SENT);
        toy_expect_event(&movers->from[0], KV_MOVED_LINK_DOWN);
    }
    link_up(movers, 0, 0);
    transfer(movers);
    assert_int_equal(stats_of(&movers->to).received_direct_messages, 0);
    close_movers(movers);
}

/* What came last of a link and its transfer; nothing landed. */
static kv_status_t await_link_down(movers_t *movers)
{
    kv_mover_event_t event = {.kind = KV_MOVED_SENT};
    while (event.kind != KV_MOVED_LINK_DOWN) {
        assert_true(toy_wait(&movers->to, &event, 30000));
        assert_int_not_equal(event.kind, KV_MOVED_LANDED);
    }
    kv_mover_event_t theirs = {.kind = KV_MOVED_SENT};
    while (theirs.kind != KV_MOVED_LINK_DOWN) {
        assert_true(toy_wait(&movers->from[0], &theirs, 30000));
    }
    return event.status;
}

/* A transfer that came to know of its link's end late says so after it. */
static void give_up(movers_t *movers, uint64_t id)
{
    kv_mover_event_t event = {.kind = KV_MOVED_FAILED};
    kv_mover_revoke(movers->to.mover, id);
    while (event.kind == KV_MOVED_FAILED) {
        assert_true(toy_wait(&movers->to, &event, 30000));
    }
    assert_int_equal(event.kind, KV_MOVED_REVOKED);
    assert_true(event.landed_blocks < SLOTS);
}

static void heads_that_make_no_sense_end_the_link(void **state)
{
    (void)state;
    static const rudeness_t RUDE[] = {
        {-1, 0, -1},      /* less than its checksums take */
        {-8, 0, -1},      /* a checksum less */
        {8, 0, -1},       /* one more */
        {-104, 0, -1},    /* none at all */
        {-65, 0, -1},     /* not even a header */
        {0, UNIT, -1},    /* more data than it says */
        {0, -UNIT, -1},   /* less */
        {0, 2 << 20, -1}, /* more than a buffer holds */
    };
    movers_t *movers = open_movers(&GOOD, &GOOD);
    for (size_t i = 0; i < sizeof RUDE / sizeof *RUDE; i++) {
        rudeness = RUDE[i];
        link_up(movers, 0, 0);
        const uint64_t id = expect_all(movers, 0, 0);
        send_whole(movers, 0, 0, id);
        assert_int_equal(await_link_down(movers), KV_INVALID);
        give_up(movers, id);
    }
    close_movers(movers);
}

/* A flipped bit anywhere in a head: whatever it says then, nothing lands. */
static void no_bit_of_a_head_may_flip(void **state)
{
    (void)state;
    enum { HEAD_BYTES = 40 + 8 * SLOTS };
    movers_t *movers = open_movers(&GOOD, &GOOD);
    for (int32_t at = 0; at < HEAD_BYTES; at++) {
        rudeness.flipped = at;
        link_up(movers, 0, 0);
        const uint64_t id = expect_all(movers, 0, 0);
        send_whole(movers, 0, 0, id);
        toy_expect_event(&movers->from[0], KV_MOVED_SENT); /* read, or refused */
        kv_mover_link_close(movers->to.mover, movers->in[0][0]);
        await_link_down(movers);
        give_up(movers, id);
    }
    close_movers(movers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_go_from_device_to_device),
        cmocka_unit_test(what_is_missing_costs_speed_alone),
        cmocka_unit_test(damage_on_the_way_is_found),
        cmocka_unit_test(nothing_is_written_after_a_revoke),
        cmocka_unit_test(buffers_that_run_out_are_waited_for),
        cmocka_unit_test(what_cannot_be_read_is_given_up),
        cmocka_unit_test(heads_that_make_no_sense_end_the_link),
        cmocka_unit_test(no_bit_of_a_head_may_flip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
