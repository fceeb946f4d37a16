/* The P/D machines: every event in every reachable state, with a ledger of what is out, so that
 * "slots are handed on only when nothing touches them" and "exactly one outcome" are checked in all
 * of them, and that each of them comes to its end. */
#include "testing/testing.h"
#include "transport/pd.h"

#include <stdlib.h>
#include <string.h>

enum { STATES_MAX = 200000, OURS = 77, STRANGE = 78, FETCH_ID = 99, HELD = 4, STREAMED = 3 };

/* ---- decode ---- */

typedef struct {
    kv_pd_decode_t machine;
    bool expecting; /* the mover has our slots */
    bool landed;    /* LANDED was given */
    bool revoking, pieces, released;
    bool told;              /* who makes the blocks was said */
    uint32_t landed_blocks; /* by the mover's word */
    uint32_t held;
    int outcomes, attempts;
} decode_world_t;

typedef struct {
    decode_world_t *worlds;
    size_t count;
} decode_worlds_t;

static void decode_add(decode_worlds_t *known, const decode_world_t *world)
{
    for (size_t i = 0; i < known->count; i++) {
        if (memcmp(&known->worlds[i], world, sizeof *world) == 0) {
            return;
        }
    }
    assert_true(known->count < STATES_MAX);
    memcpy(&known->worlds[known->count++], world, sizeof *world);
}

/* Carries out an event in a world; checks every action against the ledger. */
static void decode_apply(decode_world_t *world, const kv_pd_decode_event_t *event)
{
    bool done_before = world->machine.state == KV_PD_DECODE_DONE;
    kv_pd_decode_actions_t actions;
    kv_pd_decode_step(&world->machine, event, &actions);
    assert_true(actions.count <= KV_PD_ACTIONS_MAX);
    for (uint32_t i = 0; i < actions.count; i++) {
        const kv_pd_decode_action_t *action = &actions.items[i];
        if (done_before) {
            assert_int_equal(action->kind, KV_PD_DECODE_DO_SEND_FETCHED);
        }
        switch (action->kind) {
        case KV_PD_DECODE_DO_CHOOSE: /* a new attempt: nothing of the last one is out */
            assert_false(world->expecting || world->revoking || world->pieces);
            world->landed = world->told = false;
            world->landed_blocks = 0;
            break;
        case KV_PD_DECODE_DO_EXPECT:
            assert_false(world->expecting || world->landed);
            assert_int_equal(action->first_block, world->held);
            assert_int_equal(action->first_block + action->block_count, HELD + STREAMED);
            assert_true(++world->attempts <= KV_PD_ATTEMPTS_MAX);
            world->expecting = true;
            break;
        case KV_PD_DECODE_DO_KEEP: /* verified, made by somebody known, not the last token's */
            assert_false(world->expecting || world->revoking || world->pieces);
            assert_true(world->told && action->block_count > 0);
            assert_true(action->block_count <= world->landed_blocks);
            assert_int_equal(action->first_block, world->held);
            world->held += action->block_count;
            assert_true(world->held < HELD + STREAMED);
            world->landed_blocks = 0;
            break;
        case KV_PD_DECODE_DO_REVOKE:
            assert_true(world->expecting && !world->revoking);
            assert_int_equal(action->transfer_id, OURS);
            world->revoking = true;
            break;
        case KV_PD_DECODE_DO_SEND_PIECES:
            assert_false(world->pieces);
            assert_true(action->block_count > 0 &&
                        action->first_block + action->block_count <= world->held);
            world->pieces = true;
            break;
        case KV_PD_DECODE_DO_CANCEL_PIECES:
            assert_true(world->pieces);
            break;
        case KV_PD_DECODE_DO_READY:
            assert_true(world->landed && world->told);
            /* fall through */
        case KV_PD_DECODE_DO_FALL_BACK:
        case KV_PD_DECODE_DO_FAIL:
        case KV_PD_DECODE_DO_CANCELLED:
            assert_false(world->expecting || world->revoking || world->pieces);
            assert_int_equal(world->outcomes++, 0);
            break;
        case KV_PD_DECODE_DO_RELEASE:
            assert_false(world->expecting || world->revoking || world->pieces || world->released);
            world->released = true;
            break;
        default:
            break;
        }
    }
    assert_int_equal(world->outcomes, world->machine.state == KV_PD_DECODE_DONE);
}

/* Could the world give this event now? What a peer or a user causes always can. */
static bool decode_possible(const decode_world_t *world, const kv_pd_decode_event_t *event)
{
    bool ours = event->transfer_id == OURS;
    switch (event->kind) {
    case KV_PD_DECODE_EV_LANDED:
        return ours && world->expecting && !world->landed;
    case KV_PD_DECODE_EV_RECEIVE_FAILED:
        return ours && world->expecting && !world->landed;
    case KV_PD_DECODE_EV_REVOKED:
        return ours && world->revoking;
    case KV_PD_DECODE_EV_CHOSEN:
        return world->machine.state == KV_PD_DECODE_CHOOSING;
    case KV_PD_DECODE_EV_FETCH_SENT:
        return world->pieces;
    case KV_PD_DECODE_EV_EXPECT_FAILED:
        return world->expecting && !world->landed && !world->revoking &&
               world->machine.state == KV_PD_DECODE_STREAMING && !world->pieces &&
               !world->machine.prefilled;
    default:
        return true;
    }
}

static void decode_account(decode_world_t *world, const kv_pd_decode_event_t *event)
{
    bool ours = event->transfer_id == OURS;
    bool attempt = world->machine.state == KV_PD_DECODE_STREAMING ||
                   world->machine.state == KV_PD_DECODE_ENDING;
    if (event->kind == KV_PD_DECODE_EV_LANDED) {
        world->landed = true;
        world->landed_blocks = HELD + STREAMED - world->held;
        world->expecting = world->revoking; /* one crossing a revoke: REVOKED still comes */
    } else if (event->kind == KV_PD_DECODE_EV_REVOKED) {
        world->expecting = world->revoking = false;
        if (!world->landed) {
            world->landed_blocks = event->landed_blocks;
        }
    } else if (event->kind == KV_PD_DECODE_EV_PREFILLING && ours && attempt) {
        world->told = true;
    } else if (event->kind == KV_PD_DECODE_EV_PREFILLED && ours && event->status == KV_OK &&
               world->machine.state == KV_PD_DECODE_STREAMING) {
        world->told = true;
    } else if (event->kind == KV_PD_DECODE_EV_FETCH_SENT) {
        world->pieces = false;
    } else if (event->kind == KV_PD_DECODE_EV_EXPECT_FAILED) {
        world->expecting = false;
    }
}

static size_t decode_events(kv_pd_decode_event_t *events)
{
    size_t count = 0;
    for (kv_pd_decode_event_kind_t kind = 0; kind <= KV_PD_DECODE_EV_CANCEL; kind++) {
        for (int variant = 0; variant < 8; variant++) {
            kv_pd_decode_event_t event = {.kind = kind,
                .status = variant & 1 ? KV_IO : KV_OK,
                .peer_up = (variant & 1) != 0,
                .transfer_id = variant & 2 ? STRANGE : OURS,
                .held_blocks = HELD,
                .first_block = variant & 4 ? HELD - 1 : 0,
                .block_count = variant & 2 ? 2 : 1};
            if (kind == KV_PD_DECODE_EV_RESERVED) {
                event.block_count = variant & 2 ? 0 : STREAMED;
                event.whole_blocks = variant & 2 ? 0 : STREAMED - 1;
            } else if (kind == KV_PD_DECODE_EV_CHOSEN) {
                event.transfer_id = OURS; /* of every attempt: the ledger tells them apart */
            } else if (kind == KV_PD_DECODE_EV_REVOKED) {
                event.landed_blocks = variant & 4 ? 1 : variant & 1 ? STREAMED : 0;
            }
            events[count++] = event;
        }
    }
    return count;
}

/* Whatever the world owes is given, and time passes: every request ends. */
static void decode_comes_to_an_end(decode_world_t world)
{
    if (world.machine.state == KV_PD_DECODE_IDLE) {
        return;
    }
    for (int turn = 0; turn < 24 && world.machine.state != KV_PD_DECODE_DONE; turn++) {
        kv_pd_decode_event_t event = {.transfer_id = OURS, .kind = KV_PD_DECODE_EV_TIMEOUT};
        if (world.machine.state == KV_PD_DECODE_CHOOSING) {
            event.kind = KV_PD_DECODE_EV_CHOSEN;
            event.peer_up = true;
        } else if (world.revoking) {
            event.kind = KV_PD_DECODE_EV_REVOKED;
        } else if (world.pieces) {
            event.kind = KV_PD_DECODE_EV_FETCH_SENT;
        }
        decode_account(&world, &event);
        decode_apply(&world, &event);
    }
    assert_int_equal(world.machine.state, KV_PD_DECODE_DONE);
    assert_false(world.expecting || world.revoking || world.pieces);
}

static void decode_takes_every_event_in_every_state(void **state)
{
    (void)state;
    kv_pd_decode_event_t events[256];
    size_t event_count = decode_events(events);
    decode_worlds_t known = {malloc(STATES_MAX * sizeof(decode_world_t)), 0};
    decode_world_t start;
    memset(&start, 0, sizeof start);
    start.held = HELD;
    decode_add(&known, &start);
    for (size_t at = 0; at < known.count; at++) {
        for (size_t i = 0; i < event_count; i++) {
            decode_world_t next;
            memcpy(&next, &known.worlds[at], sizeof next);
            if (decode_possible(&next, &events[i])) {
                decode_account(&next, &events[i]);
                decode_apply(&next, &events[i]);
                decode_add(&known, &next);
            } else { /* cannot come; must do no harm all the same */
                kv_pd_decode_actions_t actions;
                kv_pd_decode_step(&next.machine, &events[i], &actions);
            }
        }
        decode_comes_to_an_end(known.worlds[at]);
    }
    bool seen[KV_PD_DECODE_DONE + 1] = {0};
    for (size_t i = 0; i < known.count; i++) {
        seen[known.worlds[i].machine.state] = true;
    }
    for (int i = 0; i <= KV_PD_DECODE_DONE; i++) {
        assert_true(seen[i]);
    }
    print_message("decode: %zu worlds x %zu events\n", known.count, event_count);
    free(known.worlds);
}

/* ---- prefill ---- */

enum { PIECES_MAX = 2 };

typedef struct {
    kv_pd_prefill_t machine;
    bool expecting, landed, revoking, computing, released, told;
    int pieces;
} prefill_world_t;

typedef struct {
    prefill_world_t *worlds;
    size_t count;
} prefill_worlds_t;

static void prefill_add(prefill_worlds_t *known, const prefill_world_t *world)
{
    for (size_t i = 0; i < known->count; i++) {
        if (memcmp(&known->worlds[i], world, sizeof *world) == 0) {
            return;
        }
    }
    assert_true(known->count < STATES_MAX);
    memcpy(&known->worlds[known->count++], world, sizeof *world);
}

static void prefill_apply(prefill_world_t *world, const kv_pd_prefill_event_t *event)
{
    bool done_before = world->machine.state == KV_PD_PREFILL_DONE;
    kv_pd_prefill_actions_t actions;
    kv_pd_prefill_step(&world->machine, event, &actions);
    for (uint32_t i = 0; i < actions.count; i++) {
        const kv_pd_prefill_action_t *action = &actions.items[i];
        assert_false(done_before);
        switch (action->kind) {
        case KV_PD_PREFILL_DO_EXPECT:
            assert_false(world->expecting || world->landed);
            assert_true(action->block_count > 0);
            world->expecting = true;
            break;
        case KV_PD_PREFILL_DO_REVOKE:
            assert_true(world->expecting && !world->revoking);
            world->revoking = true;
            break;
        case KV_PD_PREFILL_DO_COMPUTE: /* writes into the slots that were fetched into */
            assert_false(world->computing || world->expecting || world->revoking);
            world->computing = true;
            break;
        case KV_PD_PREFILL_DO_STOP:
            assert_true(world->computing);
            break;
        case KV_PD_PREFILL_DO_SEND_PREFILLED:
            assert_false(world->told);
            assert_int_equal(world->pieces, 0);
            world->told = true;
            break;
        case KV_PD_PREFILL_DO_RELEASE:
            assert_false(world->released || world->expecting || world->revoking ||
                         world->computing || world->pieces > 0);
            world->released = true;
            break;
        default:
            break;
        }
    }
    assert_int_equal(world->released, world->machine.state == KV_PD_PREFILL_DONE);
    if (world->released && !world->machine.peer_lost) {
        assert_true(world->told);
    }
}

static bool prefill_possible(const prefill_world_t *world, const kv_pd_prefill_event_t *event)
{
    bool ours = event->transfer_id == FETCH_ID;
    switch (event->kind) {
    case KV_PD_PREFILL_EV_LANDED:
    case KV_PD_PREFILL_EV_RECEIVE_FAILED:
        return ours && world->expecting && !world->landed;
    case KV_PD_PREFILL_EV_REVOKED:
        return ours && world->revoking;
    case KV_PD_PREFILL_EV_FETCH_REFUSED:
        return world->expecting && !world->landed && !world->revoking &&
               world->machine.state == KV_PD_PREFILL_FETCHING && !world->machine.fetched;
    case KV_PD_PREFILL_EV_PIECE_QUEUED:
        return world->computing && world->pieces < PIECES_MAX;
    case KV_PD_PREFILL_EV_PIECE_SENT:
        return world->pieces > 0;
    case KV_PD_PREFILL_EV_COMPUTED:
        return world->computing;
    case KV_PD_PREFILL_EV_START:
        return world->machine.state == KV_PD_PREFILL_IDLE;
    default:
        return true;
    }
}

static void prefill_account(prefill_world_t *world, const kv_pd_prefill_event_t *event)
{
    switch (event->kind) {
    case KV_PD_PREFILL_EV_LANDED:
        world->landed = true;
        world->expecting = world->revoking;
        break;
    case KV_PD_PREFILL_EV_REVOKED:
        world->expecting = world->revoking = false;
        break;
    case KV_PD_PREFILL_EV_FETCH_REFUSED:
        world->expecting = false;
        break;
    case KV_PD_PREFILL_EV_PIECE_QUEUED:
        world->pieces++;
        break;
    case KV_PD_PREFILL_EV_PIECE_SENT:
        world->pieces--;
        break;
    case KV_PD_PREFILL_EV_COMPUTED:
        world->computing = false;
        break;
    default:
        break;
    }
}

static size_t prefill_events(kv_pd_prefill_event_t *events)
{
    size_t count = 0;
    for (kv_pd_prefill_event_kind_t kind = 0; kind <= KV_PD_PREFILL_EV_PEER_DOWN; kind++) {
        for (int variant = 0; variant < 8; variant++) {
            events[count++] = (kv_pd_prefill_event_t){.kind = kind,
                .status = variant & 1 ? KV_PEER_LOST : KV_OK,
                .transfer_id = kind == KV_PD_PREFILL_EV_START ? OURS
                               : variant & 2                  ? STRANGE
                                                              : FETCH_ID,
                .held_blocks = kind == KV_PD_PREFILL_EV_START ? HELD
                               : variant & 4                  ? HELD
                                                              : 1,
                .fetch_id = variant & 2 ? 0 : FETCH_ID};
        }
    }
    return count;
}

static void prefill_comes_to_an_end(prefill_world_t world)
{
    if (world.machine.state == KV_PD_PREFILL_IDLE) {
        return;
    }
    for (int turn = 0; turn < 12 && world.machine.state != KV_PD_PREFILL_DONE; turn++) {
        kv_pd_prefill_event_t event = {.transfer_id = FETCH_ID, .kind = KV_PD_PREFILL_EV_TIMEOUT};
        if (world.revoking) {
            event.kind = KV_PD_PREFILL_EV_REVOKED;
        } else if (world.computing) {
            event.kind = KV_PD_PREFILL_EV_COMPUTED;
        } else if (world.pieces > 0) {
            event.kind = KV_PD_PREFILL_EV_PIECE_SENT;
        } else if (world.machine.state == KV_PD_PREFILL_MATCHING) {
            event.kind = KV_PD_PREFILL_EV_MATCH_FAILED;
        }
        prefill_account(&world, &event);
        prefill_apply(&world, &event);
    }
    assert_int_equal(world.machine.state, KV_PD_PREFILL_DONE);
}

static void prefill_takes_every_event_in_every_state(void **state)
{
    (void)state;
    kv_pd_prefill_event_t events[256];
    size_t event_count = prefill_events(events);
    prefill_worlds_t known = {malloc(STATES_MAX * sizeof(prefill_world_t)), 0};
    prefill_world_t start;
    memset(&start, 0, sizeof start);
    prefill_add(&known, &start);
    for (size_t at = 0; at < known.count; at++) {
        for (size_t i = 0; i < event_count; i++) {
            prefill_world_t next;
            memcpy(&next, &known.worlds[at], sizeof next);
            if (prefill_possible(&next, &events[i])) {
                prefill_account(&next, &events[i]);
                prefill_apply(&next, &events[i]);
                prefill_add(&known, &next);
            } else {
                kv_pd_prefill_actions_t actions;
                kv_pd_prefill_step(&next.machine, &events[i], &actions);
            }
        }
        prefill_comes_to_an_end(known.worlds[at]);
    }
    bool seen[KV_PD_PREFILL_DONE + 1] = {0};
    for (size_t i = 0; i < known.count; i++) {
        seen[known.worlds[i].machine.state] = true;
    }
    for (int i = 0; i <= KV_PD_PREFILL_DONE; i++) {
        assert_true(seen[i]);
    }
    print_message("prefill: %zu worlds x %zu events\n", known.count, event_count);
    free(known.worlds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_takes_every_event_in_every_state),
        cmocka_unit_test(prefill_takes_every_event_in_every_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
