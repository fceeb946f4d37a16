/* The P/D machines: every event in every reachable state, with a ledger of what is out, so that
 * "slots are handed on only when nothing touches them" and "exactly one outcome" are checked in all
 * of them, and that each of them comes to its end. */
#include "testing/testing.h"
#include "transport/pd.h"

#include <stdlib.h>
#include <string.h>

enum { STATES_MAX = 200000, OURS = 77, STRANGE = 78, FETCH_ID = 99, HELD = 4, STREAMED = 3 };

/* Worlds that were reached, each once; padding included, so that they are copied with memcpy. */
typedef struct {
    char *worlds; /* [count] of size bytes */
    size_t size, count;
    uint32_t *table; /* number + 1, by hash; 0: free */
} worlds_t;

enum { TABLE_SIZE = 1 << 19 };

static worlds_t worlds_of(size_t size)
{
    worlds_t known = {malloc(STATES_MAX * size), size, 0, calloc(TABLE_SIZE, sizeof(uint32_t))};
    assert_true(known.worlds != NULL && known.table != NULL);
    return known;
}

static void free_worlds(worlds_t *known)
{
    free(known->worlds);
    free(known->table);
}

static const void *world_at(const worlds_t *known, size_t at)
{
    return known->worlds + at * known->size;
}

static void add(worlds_t *known, const void *world)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < known->size; i++) {
        hash = (hash ^ ((const uint8_t *)world)[i]) * 0x100000001b3;
    }
    size_t at = hash % TABLE_SIZE;
    for (; known->table[at] != 0; at = (at + 1) % TABLE_SIZE) {
        if (memcmp(world_at(known, known->table[at] - 1), world, known->size) == 0) {
            return;
        }
    }
    assert_true(known->count < STATES_MAX);
    memcpy(known->worlds + known->count * known->size, world, known->size);
    known->table[at] = (uint32_t)++known->count;
}

/* ---- decode ---- */

typedef struct {
    kv_pd_decode_t machine;
    bool expecting; /* the mover has our slots */
    bool landed;    /* LANDED was given */
    bool revoking, released;
    bool told;              /* who makes the blocks was said */
    uint32_t landed_blocks; /* by the mover's word */
    uint32_t held;
    int outcomes, attempts;
} decode_world_t;

/* Carries out an event in a world; checks every action against the ledger. */
static void decode_apply(decode_world_t *world, const kv_pd_decode_event_t *event)
{
    bool done_before = world->machine.state == KV_PD_DECODE_DONE;
    kv_pd_decode_actions_t actions;
    kv_pd_decode_step(&world->machine, event, &actions);
    assert_true(actions.count <= KV_PD_ACTIONS_MAX);
    for (uint32_t i = 0; i < actions.count; i++) {
        const kv_pd_decode_action_t *action = &actions.items[i];
        assert_false(done_before);
        switch (action->kind) {
        case KV_PD_DECODE_DO_CHOOSE: /* a new attempt: nothing of the last one is out */
            assert_false(world->expecting || world->revoking);
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
            assert_false(world->expecting || world->revoking);
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
        case KV_PD_DECODE_DO_READY:
            assert_true(world->landed && world->told);
            /* fall through */
        case KV_PD_DECODE_DO_FALL_BACK:
        case KV_PD_DECODE_DO_FAIL:
        case KV_PD_DECODE_DO_CANCELLED:
            assert_false(world->expecting || world->revoking);
            assert_int_equal(world->outcomes++, 0);
            break;
        case KV_PD_DECODE_DO_RELEASE:
            assert_false(world->expecting || world->revoking || world->released);
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
    case KV_PD_DECODE_EV_EXPECT_FAILED:
        return world->expecting && !world->landed && !world->revoking &&
               world->machine.state == KV_PD_DECODE_STREAMING && !world->machine.prefilled;
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
        }
        decode_account(&world, &event);
        decode_apply(&world, &event);
    }
    assert_int_equal(world.machine.state, KV_PD_DECODE_DONE);
    assert_false(world.expecting || world.revoking);
}

static void decode_takes_every_event_in_every_state(void **state)
{
    (void)state;
    kv_pd_decode_event_t events[256];
    size_t event_count = decode_events(events);
    worlds_t known = worlds_of(sizeof(decode_world_t));
    decode_world_t start;
    memset(&start, 0, sizeof start);
    start.held = HELD;
    add(&known, &start);
    for (size_t at = 0; at < known.count; at++) {
        for (size_t i = 0; i < event_count; i++) {
            decode_world_t next;
            memcpy(&next, world_at(&known, at), sizeof next);
            if (decode_possible(&next, &events[i])) {
                decode_account(&next, &events[i]);
                decode_apply(&next, &events[i]);
                add(&known, &next);
            } else { /* cannot come; must do no harm all the same */
                kv_pd_decode_actions_t actions;
                kv_pd_decode_step(&next.machine, &events[i], &actions);
            }
        }
        decode_world_t reached;
        memcpy(&reached, world_at(&known, at), sizeof reached);
        decode_comes_to_an_end(reached);
    }
    bool seen[KV_PD_DECODE_DONE + 1] = {0};
    for (size_t i = 0; i < known.count; i++) {
        seen[((const decode_world_t *)world_at(&known, i))->machine.state] = true;
    }
    for (int i = 0; i <= KV_PD_DECODE_DONE; i++) {
        assert_true(seen[i]);
    }
    print_message("decode: %zu worlds x %zu events\n", known.count, event_count);
    free_worlds(&known);
}

/* ---- prefill ---- */

enum { PIECES_MAX = 2, FETCHABLE = 4 };

typedef struct {
    kv_pd_prefill_t machine;
    bool expecting, landed, revoking, computing, released, told, said, asking;
    uint32_t held, known, landed_blocks, coming; /* by what store, source and mover said */
    int pieces, fetches;
} prefill_world_t;

static void prefill_carry_out(prefill_world_t *world, const kv_pd_prefill_action_t *action)
{
    switch (action->kind) {
    case KV_PD_PREFILL_DO_FIND_SOURCE:
        assert_false(world->expecting || world->revoking || world->computing || world->asking);
        assert_int_equal(action->first_block, world->held);
        assert_int_equal(action->first_block + action->block_count, FETCHABLE);
        world->asking = true;
        break;
    case KV_PD_PREFILL_DO_EXPECT:
        assert_false(world->expecting);
        assert_true(++world->fetches <= KV_PD_FETCHES_MAX);
        assert_true(action->block_count > 0);
        assert_int_equal(action->first_block, world->held);
        assert_true(action->first_block + action->block_count <= FETCHABLE);
        world->expecting = true;
        world->landed = false;
        world->known = world->landed_blocks = 0;
        world->coming = action->block_count;
        break;
    case KV_PD_PREFILL_DO_SHORTEN:
        assert_true(world->expecting && action->block_count > 0);
        assert_true(action->block_count < world->coming);
        world->coming = action->block_count;
        break;
    case KV_PD_PREFILL_DO_REVOKE:
        assert_true(world->expecting && !world->revoking);
        world->revoking = true;
        break;
    case KV_PD_PREFILL_DO_SEAL: /* verified, made by somebody known */
        assert_false(world->expecting || world->revoking);
        assert_int_equal(action->first_block, world->held);
        assert_true(action->block_count <= world->known);
        assert_true(action->block_count <= world->landed_blocks);
        world->held += action->block_count;
        world->known = world->landed_blocks = 0;
        break;
    case KV_PD_PREFILL_DO_SEND_PREFILLING:
        assert_false(world->said || world->computing);
        world->said = true;
        break;
    case KV_PD_PREFILL_DO_COMPUTE: /* writes into the slots that were fetched into */
        assert_false(world->computing || world->expecting || world->revoking);
        assert_true(world->said);
        assert_int_equal(action->first_block, world->held);
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
        assert_false(world->released || world->expecting || world->revoking || world->computing ||
                     world->pieces > 0);
        world->released = true;
        break;
    default:
        break;
    }
}

static void prefill_apply(prefill_world_t *world, const kv_pd_prefill_event_t *event)
{
    bool done_before = world->machine.state == KV_PD_PREFILL_DONE;
    kv_pd_prefill_actions_t actions;
    kv_pd_prefill_step(&world->machine, event, &actions);
    for (uint32_t i = 0; i < actions.count; i++) {
        assert_false(done_before);
        prefill_carry_out(world, &actions.items[i]);
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
        return ours && world->revoking && event->landed_blocks <= world->coming;
    case KV_PD_PREFILL_EV_SOURCE:
        return world->asking;
    case KV_PD_PREFILL_EV_FETCH_REFUSED:
        return world->expecting && !world->landed && !world->revoking && world->known == 0 &&
               world->machine.state == KV_PD_PREFILL_FETCHING;
    case KV_PD_PREFILL_EV_FETCH_BEGINS: /* the node has checked it */
    case KV_PD_PREFILL_EV_FETCHED:
        return event->block_count <= FETCHABLE;
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
    bool listens = world->machine.state == KV_PD_PREFILL_FETCHING && !world->revoking &&
                   event->transfer_id == FETCH_ID;
    switch (event->kind) {
    case KV_PD_PREFILL_EV_MATCHED:
        if (world->machine.state == KV_PD_PREFILL_MATCHING) {
            world->held = event->held_blocks;
        }
        break;
    case KV_PD_PREFILL_EV_SOURCE:
        world->asking = false;
        break;
    case KV_PD_PREFILL_EV_FETCH_BEGINS:
    case KV_PD_PREFILL_EV_FETCHED:
        if (listens && event->block_count > world->known &&
            (event->kind != KV_PD_PREFILL_EV_FETCHED || event->status == KV_OK)) {
            world->known = event->block_count;
        }
        break;
    case KV_PD_PREFILL_EV_LANDED:
        world->landed = true;
        world->landed_blocks = world->coming;
        world->expecting = world->revoking;
        break;
    case KV_PD_PREFILL_EV_REVOKED:
        world->expecting = world->revoking = false;
        world->landed_blocks = world->landed ? world->landed_blocks : event->landed_blocks;
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
        for (uint32_t variant = 0; variant < 8; variant++) {
            kv_pd_prefill_event_t event = {.kind = kind,
                .status = variant & 1 ? KV_PEER_LOST : KV_OK,
                .transfer_id = variant & 2 ? STRANGE : FETCH_ID,
                .held_blocks = variant & 4 ? FETCHABLE : 1,
                .whole_blocks = FETCHABLE,
                .block_count = variant & 1   ? FETCHABLE
                               : variant & 4 ? 1
                                             : 0,
                .landed_blocks = variant & 4   ? 1
                                 : variant & 1 ? 2
                                               : 0};
            if (kind == KV_PD_PREFILL_EV_START) {
                event.transfer_id = OURS;
            } else if (kind == KV_PD_PREFILL_EV_SOURCE) {
                event.transfer_id = FETCH_ID; /* of every fetch: the ledger tells them apart */
                event.block_count = variant > 3 ? 0 : variant;
            } else if (kind == KV_PD_PREFILL_EV_FETCHED) {
                event.block_count = variant & 4 ? 1 : 2;
            }
            events[count++] = event;
        }
    }
    return count;
}

static void prefill_comes_to_an_end(prefill_world_t world)
{
    if (world.machine.state == KV_PD_PREFILL_IDLE) {
        return;
    }
    for (int turn = 0; turn < 24 && world.machine.state != KV_PD_PREFILL_DONE; turn++) {
        kv_pd_prefill_event_t event = {.transfer_id = FETCH_ID, .kind = KV_PD_PREFILL_EV_TIMEOUT};
        if (world.revoking) {
            event.kind = KV_PD_PREFILL_EV_REVOKED;
        } else if (world.asking) {
            event.kind = KV_PD_PREFILL_EV_SOURCE;
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
    worlds_t known = worlds_of(sizeof(prefill_world_t));
    prefill_world_t start;
    memset(&start, 0, sizeof start);
    add(&known, &start);
    for (size_t at = 0; at < known.count; at++) {
        for (size_t i = 0; i < event_count; i++) {
            prefill_world_t next;
            memcpy(&next, world_at(&known, at), sizeof next);
            if (prefill_possible(&next, &events[i])) {
                prefill_account(&next, &events[i]);
                prefill_apply(&next, &events[i]);
                add(&known, &next);
            } else {
                kv_pd_prefill_actions_t actions;
                kv_pd_prefill_step(&next.machine, &events[i], &actions);
            }
        }
        prefill_world_t reached;
        memcpy(&reached, world_at(&known, at), sizeof reached);
        prefill_comes_to_an_end(reached);
    }
    bool seen[KV_PD_PREFILL_DONE + 1] = {0};
    for (size_t i = 0; i < known.count; i++) {
        seen[((const prefill_world_t *)world_at(&known, i))->machine.state] = true;
    }
    for (int i = 0; i <= KV_PD_PREFILL_DONE; i++) {
        assert_true(seen[i]);
    }
    print_message("prefill: %zu worlds x %zu events\n", known.count, event_count);
    free_worlds(&known);
}

/* ---- source ---- */

enum { FROM = 2, WANTED = 3 };

typedef struct {
    kv_pd_source_t machine;
    bool matching, leased, pieces, released, answered, silent;
    uint32_t held; /* by the store's word */
} source_world_t;

static void source_apply(source_world_t *world, const kv_pd_source_event_t *event)
{
    bool done_before = world->machine.state == KV_PD_SOURCE_DONE;
    kv_pd_source_actions_t actions;
    kv_pd_source_step(&world->machine, event, &actions);
    for (uint32_t i = 0; i < actions.count; i++) {
        const kv_pd_source_action_t *action = &actions.items[i];
        assert_false(done_before);
        assert_int_equal(action->transfer_id, OURS);
        switch (action->kind) {
        case KV_PD_SOURCE_DO_MATCH:
            world->matching = true;
            break;
        case KV_PD_SOURCE_DO_SEND_BEGINS:
            assert_false(world->pieces || world->answered || world->silent);
            break;
        case KV_PD_SOURCE_DO_SEND_PIECES: /* of what the lease holds, and of nothing else */
            assert_true(world->leased && !world->pieces);
            assert_int_equal(action->first_block, FROM);
            assert_true(action->block_count > 0 && action->block_count <= WANTED);
            assert_true(action->first_block + action->block_count <= world->held);
            world->pieces = true;
            break;
        case KV_PD_SOURCE_DO_CANCEL_PIECES:
            assert_true(world->pieces);
            break;
        case KV_PD_SOURCE_DO_SEND_FETCHED:
            assert_false(world->answered || world->silent || world->released || world->pieces);
            assert_true(action->status != KV_OK || world->leased);
            world->answered = true;
            break;
        case KV_PD_SOURCE_DO_RELEASE:
            assert_false(world->pieces || world->released);
            world->released = true;
            break;
        }
    }
    assert_int_equal(world->released, world->machine.state == KV_PD_SOURCE_DONE);
    assert_true(!world->released || world->answered || world->silent);
}

static bool source_possible(const source_world_t *world, const kv_pd_source_event_t *event)
{
    switch (event->kind) {
    case KV_PD_SOURCE_EV_START:
        return world->machine.state == KV_PD_SOURCE_IDLE;
    case KV_PD_SOURCE_EV_MATCHED:
    case KV_PD_SOURCE_EV_MATCH_FAILED:
        return world->matching && !world->released;
    case KV_PD_SOURCE_EV_SENT:
        return world->pieces;
    default:
        return true;
    }
}

static void source_account(source_world_t *world, const kv_pd_source_event_t *event)
{
    bool begun = world->machine.state != KV_PD_SOURCE_IDLE;
    if (event->kind == KV_PD_SOURCE_EV_MATCHED) {
        world->matching = false;
        world->leased = true;
        world->held = event->held_blocks;
    } else if (event->kind == KV_PD_SOURCE_EV_MATCH_FAILED) {
        world->matching = false;
    } else if (event->kind == KV_PD_SOURCE_EV_SENT) {
        world->pieces = false;
    } else if (begun && (event->kind == KV_PD_SOURCE_EV_UNFETCH ||
                            event->kind == KV_PD_SOURCE_EV_PEER_DOWN)) {
        world->silent = true;
    }
}

static void source_comes_to_an_end(source_world_t world)
{
    if (world.machine.state == KV_PD_SOURCE_IDLE) {
        return;
    }
    for (int turn = 0; turn < 4 && world.machine.state != KV_PD_SOURCE_DONE; turn++) {
        kv_pd_source_event_t event = {.kind = KV_PD_SOURCE_EV_TIMEOUT};
        if (world.machine.state == KV_PD_SOURCE_ENDING) {
            event.kind = KV_PD_SOURCE_EV_SENT;
        }
        source_account(&world, &event);
        source_apply(&world, &event);
    }
    assert_int_equal(world.machine.state, KV_PD_SOURCE_DONE);
    assert_false(world.pieces);
}

static void source_takes_every_event_in_every_state(void **state)
{
    (void)state;
    worlds_t known = worlds_of(sizeof(source_world_t));
    source_world_t start;
    memset(&start, 0, sizeof start);
    add(&known, &start);
    for (size_t at = 0; at < known.count; at++) {
        for (int kind = 0; kind <= KV_PD_SOURCE_EV_PEER_DOWN; kind++) {
            for (uint32_t variant = 0; variant < 4; variant++) {
                kv_pd_source_event_t event = {.kind = (kv_pd_source_event_kind_t)kind,
                    .status = variant & 1 ? KV_BUSY : KV_OK,
                    .transfer_id = OURS,
                    .first_block = FROM,
                    .block_count = WANTED,
                    .held_blocks = variant == 0   ? 0
                                   : variant == 1 ? FROM
                                   : variant == 2 ? FROM + 1
                                                  : FROM + WANTED};
                source_world_t next;
                memcpy(&next, world_at(&known, at), sizeof next);
                if (!source_possible(&next, &event)) { /* must do no harm all the same */
                    kv_pd_source_actions_t actions;
                    kv_pd_source_step(&next.machine, &event, &actions);
                    continue;
                }
                source_account(&next, &event);
                source_apply(&next, &event);
                add(&known, &next);
            }
        }
        source_world_t reached;
        memcpy(&reached, world_at(&known, at), sizeof reached);
        source_comes_to_an_end(reached);
    }
    bool seen[KV_PD_SOURCE_DONE + 1] = {0};
    for (size_t i = 0; i < known.count; i++) {
        seen[((const source_world_t *)world_at(&known, i))->machine.state] = true;
    }
    for (int i = 0; i <= KV_PD_SOURCE_DONE; i++) {
        assert_true(seen[i]);
    }
    print_message("source: %zu worlds\n", known.count);
    free_worlds(&known);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_takes_every_event_in_every_state),
        cmocka_unit_test(prefill_takes_every_event_in_every_state),
        cmocka_unit_test(source_takes_every_event_in_every_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
