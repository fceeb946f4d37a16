/* Both P/D machines, joined by a toy network: control messages in order, data in any order, events
 * of mover, store and compute whenever they like; connections cut, messages damaged, cancels and
 * time-outs at any moment. A failure prints its seed: KVIST_SEED=n runs that one alone.
 *
 * Invariants: slots are handed on only when nothing may write to them or reads from them; READY
 * means that every block is the right one; every request has one outcome; nothing stays behind. */
#include "testing/testing.h"
#include "transport/pd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS_MAX = 8, QUEUE = 64, DECODE_ID = 1000, FETCH_ID = 2000, STEPS_MAX = 2000 };

typedef enum {
    SAYS_PREFILL,
    SAYS_PREFILLING,
    SAYS_PREFILLED,
    SAYS_FETCH,
    SAYS_FETCHED,
    SAYS_CANCEL
} says_t;

typedef struct {
    says_t says;
    uint64_t id;
    uint32_t first, count;
    kv_status_t status;
} control_t;

typedef struct {
    control_t items[QUEUE];
    int count;
} line_t;

typedef struct {
    bool to_decode;
    uint64_t id;
    uint32_t index;
    int value;
} data_t;

/* A mover's reservation, as mover.h promises it. */
typedef struct {
    bool active, failed;
    uint64_t id;
    uint32_t first, count, mask;
} expected_t;

typedef struct {
    uint64_t random;
    bool up;
    int fault; /* 1 in that many steps */
    uint32_t blocks, held, kept;

    kv_pd_decode_t decode;
    kv_pd_decode_event_t decode_events[QUEUE];
    int decode_event_count;
    int decode_slots[BLOCKS_MAX];
    expected_t decode_expected;
    bool reserving, fetch_out, owned; /* owned: the lease is the request's */
    int outcomes;
    kv_pd_decode_action_kind_t outcome;

    kv_pd_prefill_t prefill;
    kv_pd_prefill_event_t prefill_events[QUEUE];
    int prefill_event_count;
    int prefill_slots[BLOCKS_MAX];
    expected_t prefill_expected;
    bool matching, computing, stop, leased;
    uint32_t prefill_held, next_block;
    int pieces;
    kv_status_t sent[QUEUE]; /* SENTs on their way */
    int sent_count;
    kv_status_t fetch_status; /* of FETCH_SENT, on its way */

    line_t to_decode, to_prefill;
    data_t data[QUEUE];
    int data_count;
} world_t;

static uint64_t current_seed;

static int value_of(uint32_t block)
{
    return 100 + (int)block;
}

static void check_slots(const int *slots, uint32_t first_block, uint32_t block_count)
{
    for (uint32_t block = first_block; block < first_block + block_count; block++) {
        assert_int_equal(slots[block], value_of(block));
    }
}

static uint32_t leading(uint32_t mask)
{
    uint32_t count = 0;
    while ((mask >> count & 1) != 0) {
        count++;
    }
    return count;
}

static uint32_t pick(world_t *world, uint32_t count)
{
    return (uint32_t)(kv_test_random(&world->random) % count);
}

static void say(world_t *world, line_t *line, control_t control)
{
    if (world->up) {
        assert_true(line->count < QUEUE);
        line->items[line->count++] = control;
    }
}

static control_t hear(line_t *line)
{
    control_t control = line->items[0];
    memmove(line->items, line->items + 1, (size_t)--line->count * sizeof control);
    return control;
}

static void give_decode(world_t *world, kv_pd_decode_event_t event)
{
    assert_true(world->decode_event_count < QUEUE);
    world->decode_events[world->decode_event_count++] = event;
}

static void give_prefill(world_t *world, kv_pd_prefill_event_t event)
{
    assert_true(world->prefill_event_count < QUEUE);
    world->prefill_events[world->prefill_event_count++] = event;
}

static void send_data(world_t *world, bool to_decode, uint64_t id, uint32_t index, int value)
{
    if (world->up) {
        assert_true(world->data_count < QUEUE);
        world->data[world->data_count++] = (data_t){to_decode, id, index, value};
    }
}

/* ---- the decode node ---- */

static void step_decode(world_t *world, const kv_pd_decode_event_t *event)
{
    kv_pd_decode_actions_t actions;
    kv_pd_decode_step(&world->decode, event, &actions);
    for (uint32_t i = 0; i < actions.count; i++) {
        const kv_pd_decode_action_t *action = &actions.items[i];
        switch (action->kind) {
        case KV_PD_DECODE_DO_RESERVE:
            world->reserving = true;
            break;
        case KV_PD_DECODE_DO_CHOOSE: /* there is one prefill node */
            give_decode(world, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_CHOSEN,
                                   .peer_up = world->up && world->decode.attempts == 0,
                                   .transfer_id = DECODE_ID});
            break;
        case KV_PD_DECODE_DO_KEEP:
            assert_false(world->decode_expected.active || world->fetch_out);
            assert_true(action->first_block + action->block_count < world->blocks);
            check_slots(world->decode_slots, action->first_block, action->block_count);
            world->kept = action->block_count;
            break;
        case KV_PD_DECODE_DO_EXPECT:
            if (!world->up) {
                give_decode(world, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_RECEIVE_FAILED,
                                       .status = KV_PEER_LOST,
                                       .transfer_id = action->transfer_id});
            }
            world->decode_expected = (expected_t){
                true, !world->up, action->transfer_id, action->first_block, action->block_count, 0};
            break;
        case KV_PD_DECODE_DO_SEND_PREFILL:
            say(world, &world->to_prefill, (control_t){.says = SAYS_PREFILL, .id = DECODE_ID});
            break;
        case KV_PD_DECODE_DO_SEND_CANCEL:
            say(world, &world->to_prefill, (control_t){.says = SAYS_CANCEL});
            break;
        case KV_PD_DECODE_DO_REVOKE:
            world->decode_expected.active = false;
            give_decode(world, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_REVOKED,
                                   .transfer_id = action->transfer_id,
                                   .landed_blocks = leading(world->decode_expected.mask)});
            break;
        case KV_PD_DECODE_DO_SEND_PIECES:
            world->fetch_out = true;
            for (uint32_t block = 0; block < action->block_count; block++) {
                send_data(world, false, action->transfer_id, block,
                    world->decode_slots[action->first_block + block]);
            }
            world->fetch_status = world->up ? KV_OK : KV_PEER_LOST;
            break;
        case KV_PD_DECODE_DO_CANCEL_PIECES:
            break;
        case KV_PD_DECODE_DO_SEND_FETCHED:
            say(world, &world->to_prefill,
                (control_t){
                    .says = SAYS_FETCHED, .id = action->transfer_id, .status = action->status});
            break;
        case KV_PD_DECODE_DO_RELEASE:
            assert_true(world->owned);
            assert_false(world->decode_expected.active || world->fetch_out);
            world->owned = false;
            break;
        case KV_PD_DECODE_DO_READY:
            for (uint32_t block = 0; block < world->blocks; block++) {
                assert_int_equal(world->decode_slots[block], value_of(block));
            }
            /* fall through */
        case KV_PD_DECODE_DO_FALL_BACK:
        case KV_PD_DECODE_DO_FAIL:
        case KV_PD_DECODE_DO_CANCELLED:
            assert_false(world->decode_expected.active || world->fetch_out);
            world->outcome = action->kind;
            assert_int_equal(world->outcomes++, 0);
            break;
        }
    }
}

static void decode_hears(world_t *world)
{
    control_t control = hear(&world->to_decode);
    kv_pd_decode_event_t event = {.transfer_id = control.id, .status = control.status};
    if (control.says == SAYS_PREFILLED) {
        event.kind = KV_PD_DECODE_EV_PREFILLED;
    } else if (control.says == SAYS_PREFILLING) {
        event.kind = KV_PD_DECODE_EV_PREFILLING;
    } else {
        event.kind = KV_PD_DECODE_EV_FETCH;
        event.first_block = control.first;
        event.block_count = control.count;
    }
    step_decode(world, &event);
}

static void decode_polls(world_t *world)
{
    kv_pd_decode_event_t event = world->decode_events[0];
    memmove(world->decode_events, world->decode_events + 1,
        (size_t)--world->decode_event_count * sizeof event);
    step_decode(world, &event);
}

static void store_answers_decode(world_t *world)
{
    world->reserving = false;
    bool refused = pick(world, 20) == 0;
    kv_pd_decode_event_t event = {
        .kind = refused ? KV_PD_DECODE_EV_RESERVE_FAILED : KV_PD_DECODE_EV_RESERVED,
        .status = refused ? KV_BUSY : KV_OK,
        .held_blocks = world->held,
        .block_count = world->blocks - world->held,
        .whole_blocks = world->blocks - world->held - 1};
    step_decode(world, &event);
}

/* ---- the prefill node ---- */

static void stream(world_t *world, uint32_t block)
{
    world->pieces++;
    give_prefill(world, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_PIECE_QUEUED});
    send_data(world, true, DECODE_ID, block - world->held, world->prefill_slots[block]);
    assert_true(world->sent_count < QUEUE);
    world->sent[world->sent_count++] = world->up ? KV_OK : KV_PEER_LOST;
}

static void step_prefill(world_t *world, const kv_pd_prefill_event_t *event)
{
    kv_pd_prefill_actions_t actions;
    kv_pd_prefill_step(&world->prefill, event, &actions);
    for (uint32_t i = 0; i < actions.count; i++) {
        const kv_pd_prefill_action_t *action = &actions.items[i];
        switch (action->kind) {
        case KV_PD_PREFILL_DO_MATCH:
            world->matching = world->leased = true;
            break;
        case KV_PD_PREFILL_DO_EXPECT:
            if (!world->up) {
                give_prefill(world, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_RECEIVE_FAILED,
                                        .status = KV_PEER_LOST,
                                        .transfer_id = action->transfer_id});
            }
            world->prefill_expected = (expected_t){
                true, !world->up, action->transfer_id, action->first_block, action->block_count, 0};
            break;
        case KV_PD_PREFILL_DO_SEND_FETCH:
            say(world, &world->to_decode,
                (control_t){SAYS_FETCH, action->transfer_id, action->first_block,
                    action->block_count, KV_OK});
            break;
        case KV_PD_PREFILL_DO_REVOKE:
            world->prefill_expected.active = false;
            give_prefill(world, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_REVOKED,
                                    .transfer_id = action->transfer_id});
            break;
        case KV_PD_PREFILL_DO_SEAL:
            assert_false(world->prefill_expected.active);
            check_slots(world->prefill_slots, action->first_block, action->block_count);
            break;
        case KV_PD_PREFILL_DO_SEND_PREFILLING:
            say(world, &world->to_decode,
                (control_t){.says = SAYS_PREFILLING, .id = action->transfer_id});
            break;
        case KV_PD_PREFILL_DO_COMPUTE:
            assert_false(world->prefill_expected.active);
            world->computing = true;
            world->stop = false;
            for (uint32_t block = 0; block < action->first_block; block++) {
                assert_int_equal(world->prefill_slots[block], value_of(block));
            }
            for (uint32_t block = world->held; block < action->first_block; block++) {
                stream(world, block);
            }
            world->next_block = action->first_block;
            break;
        case KV_PD_PREFILL_DO_STOP:
            world->stop = true;
            break;
        case KV_PD_PREFILL_DO_CANCEL_PIECES:
            break;
        case KV_PD_PREFILL_DO_SEND_PREFILLED:
            say(world, &world->to_decode,
                (control_t){
                    .says = SAYS_PREFILLED, .id = action->transfer_id, .status = action->status});
            break;
        case KV_PD_PREFILL_DO_RELEASE:
            assert_true(world->leased);
            assert_false(world->prefill_expected.active || world->computing);
            assert_int_equal(world->pieces, 0);
            world->leased = world->matching = false;
            break;
        }
    }
}

static void prefill_hears(world_t *world)
{
    control_t control = hear(&world->to_prefill);
    kv_pd_prefill_event_t event = {.transfer_id = control.id, .status = control.status};
    switch (control.says) {
    case SAYS_PREFILL:
        event.kind = KV_PD_PREFILL_EV_START;
        event.held_blocks = world->held;
        break;
    case SAYS_FETCHED:
        event.kind = KV_PD_PREFILL_EV_FETCHED;
        break;
    default:
        event.kind = KV_PD_PREFILL_EV_CANCEL;
        break;
    }
    step_prefill(world, &event);
}

static void prefill_polls(world_t *world)
{
    kv_pd_prefill_event_t event = world->prefill_events[0];
    memmove(world->prefill_events, world->prefill_events + 1,
        (size_t)--world->prefill_event_count * sizeof event);
    if (event.kind == KV_PD_PREFILL_EV_COMPUTED) {
        world->computing = false;
    }
    step_prefill(world, &event);
}

static void store_answers_prefill(world_t *world)
{
    world->matching = false;
    bool refused = pick(world, 20) == 0;
    kv_pd_prefill_event_t event = {
        .kind = refused ? KV_PD_PREFILL_EV_MATCH_FAILED : KV_PD_PREFILL_EV_MATCHED,
        .status = refused ? KV_BUSY : KV_OK,
        .held_blocks = world->prefill_held,
        .fetch_id = FETCH_ID};
    step_prefill(world, &event);
}

static bool compute_is_over(const world_t *world)
{
    return world->next_block == UINT32_MAX;
}

static void compute_one(world_t *world)
{
    kv_status_t status = world->stop ? KV_CANCELLED : pick(world, 50) == 0 ? KV_IO : KV_OK;
    if (world->stop || status != KV_OK || world->next_block == world->blocks) {
        give_prefill(
            world, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_COMPUTED, .status = status});
        world->next_block = UINT32_MAX;
        return;
    }
    uint32_t block = world->next_block++;
    world->prefill_slots[block] = value_of(block);
    if (block >= world->held) {
        stream(world, block);
    }
}

/* ---- the wire ---- */

static void fetch_is_sent(world_t *world)
{
    world->fetch_out = false;
    kv_pd_decode_event_t event = {
        .kind = KV_PD_DECODE_EV_FETCH_SENT, .status = world->fetch_status};
    step_decode(world, &event);
}

static void piece_is_sent(world_t *world)
{
    world->pieces--;
    kv_pd_prefill_event_t event = {
        .kind = KV_PD_PREFILL_EV_PIECE_SENT, .status = world->sent[--world->sent_count]};
    step_prefill(world, &event);
}

static void deliver_data(world_t *world)
{
    uint32_t at = pick(world, (uint32_t)world->data_count);
    data_t data = world->data[at];
    world->data[at] = world->data[--world->data_count];
    expected_t *expected = data.to_decode ? &world->decode_expected : &world->prefill_expected;
    if (!expected->active || expected->failed || expected->id != data.id) {
        return; /* dropped: fenced */
    }
    bool damaged = pick(world, 100) == 0;
    kv_status_t status = damaged ? KV_CORRUPT : KV_OK;
    if (!damaged) {
        assert_true(
            data.to_decode ? world->owned : world->leased); /* never into slots given back */
        int *slots = data.to_decode ? world->decode_slots : world->prefill_slots;
        slots[expected->first + data.index] = data.value;
        expected->mask |= 1u << data.index;
        if (expected->mask != (1u << expected->count) - 1) {
            return;
        }
        expected->active = false;
    } else {
        expected->failed = true;
    }
    if (data.to_decode) {
        give_decode(world, (kv_pd_decode_event_t){.kind = damaged ? KV_PD_DECODE_EV_RECEIVE_FAILED
                                                                  : KV_PD_DECODE_EV_LANDED,
                               .status = status,
                               .transfer_id = data.id});
    } else {
        give_prefill(
            world, (kv_pd_prefill_event_t){
                       .kind = damaged ? KV_PD_PREFILL_EV_RECEIVE_FAILED : KV_PD_PREFILL_EV_LANDED,
                       .status = status,
                       .transfer_id = data.id});
    }
}

static void cut(world_t *world)
{
    if (!world->up) {
        return;
    }
    world->up = false;
    world->to_decode.count = world->to_prefill.count = world->data_count = 0;
    if (world->decode_expected.active && !world->decode_expected.failed) {
        world->decode_expected.failed = true;
        give_decode(world, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_RECEIVE_FAILED,
                               .status = KV_PEER_LOST,
                               .transfer_id = DECODE_ID});
    }
    if (world->prefill_expected.active && !world->prefill_expected.failed) {
        world->prefill_expected.failed = true;
        give_prefill(world, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_RECEIVE_FAILED,
                                .status = KV_PEER_LOST,
                                .transfer_id = FETCH_ID});
    }
    give_decode(world, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_PEER_DOWN});
    give_prefill(world, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_PEER_DOWN});
}

static void fault(world_t *world)
{
    static const kv_pd_decode_event_t TIMEOUT = {.kind = KV_PD_DECODE_EV_TIMEOUT},
                                      CANCEL = {.kind = KV_PD_DECODE_EV_CANCEL};
    static const kv_pd_prefill_event_t FETCH_TIMEOUT = {.kind = KV_PD_PREFILL_EV_TIMEOUT};
    switch (pick(world, 4)) {
    case 0:
        cut(world);
        break;
    case 1:
        step_decode(world, &TIMEOUT);
        break;
    case 2:
        step_decode(world, &CANCEL);
        break;
    default:
        step_prefill(world, &FETCH_TIMEOUT);
        break;
    }
}

typedef void (*turn_t)(world_t *world);

static bool turn(world_t *world)
{
    turn_t turns[10];
    uint32_t count = 0;
    if (world->to_decode.count > 0) {
        turns[count++] = decode_hears;
    }
    if (world->to_prefill.count > 0) {
        turns[count++] = prefill_hears;
    }
    if (world->decode_event_count > 0) {
        turns[count++] = decode_polls;
    }
    if (world->prefill_event_count > 0) {
        turns[count++] = prefill_polls;
    }
    if (world->data_count > 0) {
        turns[count++] = deliver_data;
    }
    if (world->reserving) {
        turns[count++] = store_answers_decode;
    }
    if (world->matching) {
        turns[count++] = store_answers_prefill;
    }
    if (world->computing && !compute_is_over(world)) {
        turns[count++] = compute_one;
    }
    if (world->fetch_out) {
        turns[count++] = fetch_is_sent;
    }
    if (world->sent_count > 0) {
        turns[count++] = piece_is_sent;
    }
    if (count == 0) {
        return false;
    }
    turns[pick(world, count)](world);
    return true;
}

static kv_pd_decode_action_kind_t simulate(uint64_t seed, uint32_t *kept_out)
{
    world_t world;
    memset(&world, 0, sizeof world);
    world.random = seed;
    world.up = pick(&world, 20) != 0;
    world.fault = pick(&world, 3) == 0 ? 1000000 : 8 + (int)pick(&world, 60);
    world.blocks = 1 + pick(&world, BLOCKS_MAX);
    world.held = pick(&world, world.blocks);
    world.prefill_held = pick(&world, world.blocks);
    world.owned = true;
    for (uint32_t block = 0; block < world.held; block++) {
        world.decode_slots[block] = value_of(block);
    }
    for (uint32_t block = 0; block < world.prefill_held; block++) {
        world.prefill_slots[block] = value_of(block);
    }
    kv_pd_decode_event_t start = {.kind = KV_PD_DECODE_EV_START};
    step_decode(&world, &start);
    int steps = 0;
    for (;;) {
        assert_true(++steps < STEPS_MAX);
        if (pick(&world, (uint32_t)world.fault) == 0) {
            fault(&world);
        }
        if (turn(&world)) {
            continue;
        }
        /* Nothing moves: time passes. */
        bool prefill_quiet =
            world.prefill.state == KV_PD_PREFILL_IDLE || world.prefill.state == KV_PD_PREFILL_DONE;
        if (world.decode.state == KV_PD_DECODE_DONE && prefill_quiet) {
            break;
        }
        kv_pd_decode_event_t timeout = {.kind = KV_PD_DECODE_EV_TIMEOUT};
        kv_pd_prefill_event_t fetch_timeout = {.kind = KV_PD_PREFILL_EV_TIMEOUT};
        step_decode(&world, &timeout);
        step_prefill(&world, &fetch_timeout);
    }
    assert_int_equal(world.outcomes, 1);
    assert_false(world.decode_expected.active || world.prefill_expected.active);
    assert_false(world.leased || world.computing || world.fetch_out);
    *kept_out += world.kept;
    return world.outcome;
}

static void joined_machines_keep_their_promises(void **state)
{
    (void)state;
    uint64_t first = kv_test_seed();
    bool one = getenv("KVIST_SEED") != NULL;
    int runs = one ? 1 : kv_test_long() ? 200000 : 20000;
    int ready = 0, fell_back = 0, cancelled = 0, failed = 0;
    uint32_t kept = 0;
    for (int run = 0; run < runs; run++) {
        current_seed = first + (uint64_t)run;
        switch (simulate(current_seed, &kept)) {
        case KV_PD_DECODE_DO_READY:
            ready++;
            break;
        case KV_PD_DECODE_DO_FALL_BACK:
            fell_back++;
            break;
        case KV_PD_DECODE_DO_CANCELLED:
            cancelled++;
            break;
        default:
            failed++;
            break;
        }
    }
    print_message(
        "%d runs: %d ready, %d fell back (with %u blocks kept), %d cancelled, %d failed\n", runs,
        ready, fell_back, kept, cancelled, failed);
    assert_true(
        one || (ready > runs / 5 && fell_back > 0 && kept > 0 && cancelled > 0 && failed > 0));
}

static int say_seed(void **state)
{
    (void)state;
    print_message("last seed %llu: KVIST_SEED=%llu runs it alone\n",
        (unsigned long long)current_seed, (unsigned long long)current_seed);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(joined_machines_keep_their_promises, say_seed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
