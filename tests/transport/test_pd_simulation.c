/* The P/D machines of one request, joined by a toy cluster: a decode node, prefill nodes, and nodes
 * that hold blocks (any of them may be a source). Control messages are in order between two nodes,
 * data in any order, commands to and events of mover, store and compute come whenever they like;
 * connections are cut, nodes die, fragments are damaged, holders hold less than is thought of them,
 * cancels and time-outs come at any moment. A failure prints its seed: KVIST_SEED=n runs that one
 * alone.
 *
 * Invariants: slots are sealed, computed in or handed on only when nothing may write to them, and
 * given back only when nothing reads from them either; what is sealed, kept, or ready is the right
 * block; every request has one outcome; nothing stays behind on a node that lives. */
#include "joined.h"

#include <stdlib.h>
#include <string.h>

static uint64_t current_seed;

/* ---- the wire ---- */

static void deliver_to_decode(world_t *world, const message_t *message)
{
    if (message->from == world->chosen) {
        if (message->status == KV_OK) {
            world->told = message->id;
        }
        step_decode(world, (kv_pd_decode_event_t){.kind = message->says == SAYS_PREFILLED
                                                              ? KV_PD_DECODE_EV_PREFILLED
                                                              : KV_PD_DECODE_EV_PREFILLING,
                               .transfer_id = message->id,
                               .status = message->status});
    }
}

static void deliver_to_prefill(world_t *world, const message_t *message)
{
    node_t *at = &world->nodes[message->to];
    kv_pd_prefill_event_t event = {.transfer_id = message->id, .status = message->status};
    switch (message->says) {
    case SAYS_PREFILL:
        event.kind = KV_PD_PREFILL_EV_START;
        event.held_blocks = message->count;
        break;
    case SAYS_CANCEL:
        event.kind = KV_PD_PREFILL_EV_CANCEL;
        break;
    default: /* of a source; the node checks that it is the one, and what it was asked for */
        if (message->from != at->source || at->prefill.fetch_id != message->id ||
            (message->status == KV_OK && message->count > at->prefill.fetch_count)) {
            return;
        }
        event.kind =
            message->says == SAYS_BEGINS ? KV_PD_PREFILL_EV_FETCH_BEGINS : KV_PD_PREFILL_EV_FETCHED;
        event.block_count = message->count;
        at->known =
            message->status == KV_OK && message->count > at->known ? message->count : at->known;
        break;
    }
    step_prefill(world, message->to, event);
}

/* The first message between some two nodes. */
static void deliver_message(world_t *world)
{
    int at = (int)pick(world, (uint32_t)world->message_count);
    for (int i = 0; i < at; i++) {
        if (world->messages[i].from == world->messages[at].from &&
            world->messages[i].to == world->messages[at].to) {
            at = i;
        }
    }
    message_t message = world->messages[at];
    memmove(&world->messages[at], &world->messages[at + 1],
        (size_t)(--world->message_count - at) * sizeof message);
    if (message.says == SAYS_FETCH) {
        serve(world, &message);
    } else if (message.says == SAYS_UNFETCH) {
        unfetch(world, &message);
    } else if (message.to == DECODE) {
        deliver_to_decode(world, &message);
    } else {
        deliver_to_prefill(world, &message);
    }
}

/* Its slots are read now, at the latest moment. */
static void piece_is_sent(world_t *world)
{
    int at = (int)pick(world, (uint32_t)world->piece_count);
    piece_t piece = world->pieces[at];
    bool up = world->up[piece.from][piece.to];
    const node_t *node = &world->nodes[piece.from];
    const source_t *source = piece.source >= 0 ? &world->sources[piece.source] : NULL;
    assert_true(source != NULL ? source->leased : node->leased);
    for (uint32_t i = 0; i < piece.count && up && !piece.cancelled; i++) {
        assert_true(world->data_count < QUEUE);
        world->data[world->data_count++] = (data_t){piece.from, piece.to, piece.id, piece.index + i,
            source != NULL ? value_of(piece.first + i) : node->slots[piece.first + i]};
    }
    world->pieces[at] = world->pieces[--world->piece_count];
    kv_status_t status = !up ? KV_PEER_LOST : piece.cancelled ? KV_CANCELLED : KV_OK;
    if (source != NULL) {
        step_source(world, piece.source,
            (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_SENT, .status = status});
    } else {
        step_prefill(world, piece.from,
            (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_PIECE_SENT, .status = status});
    }
}

static void land_when_complete(world_t *world, int node)
{
    expected_t *expected = &world->nodes[node].expected;
    if (leading(expected) == expected->count) {
        expected->active = false;
        moved(world, node, KV_PD_DECODE_EV_LANDED, KV_PD_PREFILL_EV_LANDED, expected->id,
            expected->count);
    }
}

static void deliver_data(world_t *world)
{
    int at = (int)pick(world, (uint32_t)world->data_count);
    data_t data = world->data[at];
    world->data[at] = world->data[--world->data_count];
    node_t *node = &world->nodes[data.to];
    expected_t *expected = &node->expected;
    if (!expected->active || expected->failed || expected->id != data.id ||
        expected->link != data.from) {
        return; /* dropped: fenced */
    }
    if (data.index >= expected->count || pick(world, 100) == 0) { /* too many; damaged */
        fail_receive(world, data.to);
        return;
    }
    assert_true(node->leased && !node->computing); /* never into slots that are not its own */
    node->slots[expected->first + data.index] = data.value;
    expected->mask |= 1u << data.index;
    land_when_complete(world, data.to);
}

static void carry_out_command(world_t *world, int index)
{
    node_t *node = &world->nodes[index];
    expected_t *expected = &node->expected;
    command_t command_now = node->commands[0];
    memmove(node->commands, node->commands + 1, (size_t)--node->command_count * sizeof command_now);
    bool active = expected->active && expected->id == command_now.id;
    if (!command_now.shorten) {
        uint32_t landed = active ? leading(expected) : 0;
        expected->active = expected->active && !active;
        moved(world, index, KV_PD_DECODE_EV_REVOKED, KV_PD_PREFILL_EV_REVOKED, command_now.id,
            landed);
    } else if (active && !expected->failed && command_now.count < expected->count) {
        expected->count = command_now.count;
        land_when_complete(world, index);
    }
}

static void node_hears(world_t *world, int index)
{
    node_t *node = &world->nodes[index];
    happening_t happening = node->happenings[0];
    memmove(
        node->happenings, node->happenings + 1, (size_t)--node->happening_count * sizeof happening);
    if (index == DECODE) {
        step_decode(world, happening.decode);
    } else {
        step_prefill(world, index, happening.prefill);
    }
}

/* ---- faults ---- */

/* One end notices. */
static void end_down(world_t *world, int node, int other)
{
    if (world->nodes[node].dead) {
        return;
    }
    if (world->nodes[node].expected.link == other) {
        fail_receive(world, node);
    }
    for (int i = 0; i < world->source_count; i++) {
        if (world->sources[i].node == node && world->sources[i].asker == other) {
            step_source(world, i, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_PEER_DOWN});
        }
    }
    if (node == DECODE && world->chosen == other) {
        happen(world, node, (happening_t){.decode = {.kind = KV_PD_DECODE_EV_PEER_DOWN}});
    } else if (node != DECODE && node <= PREFILLS) {
        if (world->nodes[node].source == other) {
            world->nodes[node].source = -1;
            happen(world, node, (happening_t){.prefill = {.kind = KV_PD_PREFILL_EV_SOURCE_DOWN}});
        }
        if (other == DECODE) {
            happen(world, node, (happening_t){.prefill = {.kind = KV_PD_PREFILL_EV_PEER_DOWN}});
        }
    }
}

static void cut(world_t *world, int a, int b)
{
    if (!world->up[a][b]) {
        return;
    }
    world->up[a][b] = world->up[b][a] = false;
    int kept = 0;
    for (int i = 0; i < world->message_count; i++) {
        message_t *message = &world->messages[i];
        bool lost =
            (message->from == a && message->to == b) || (message->from == b && message->to == a);
        if (!lost) {
            world->messages[kept++] = *message;
        }
    }
    world->message_count = kept;
    end_down(world, a, b);
    end_down(world, b, a);
}

static void kill_node(world_t *world, int node)
{
    world->nodes[node].dead = true;
    for (int other = 0; other < NODES; other++) {
        if (other != node) {
            cut(world, node, other);
        }
    }
    int kept = 0;
    for (int i = 0; i < world->piece_count; i++) {
        if (world->pieces[i].from != node) {
            world->pieces[kept++] = world->pieces[i];
        }
    }
    world->piece_count = kept;
}

static void time_passes(world_t *world)
{
    if (!world->nodes[DECODE].dead) {
        step_decode(world, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_TIMEOUT});
    }
    for (int node = 1; node <= PREFILLS; node++) {
        if (!world->nodes[node].dead) {
            step_prefill(world, node, (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_TIMEOUT});
        }
    }
    for (int i = 0; i < world->source_count; i++) {
        if (!world->nodes[world->sources[i].node].dead) {
            step_source(world, i, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_TIMEOUT});
        }
    }
}

static void fault(world_t *world)
{
    switch (pick(world, 6)) {
    case 0:
    case 1:
        cut(world, (int)pick(world, NODES), (int)pick(world, NODES));
        break;
    case 2:
        kill_node(world, (int)pick(world, NODES));
        break;
    case 3:
        step_decode(world, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_CANCEL});
        break;
    case 4:
        step_prefill(world, 1 + (int)pick(world, PREFILLS),
            (kv_pd_prefill_event_t){.kind = KV_PD_PREFILL_EV_CANCEL}); /* the node stops */
        break;
    default:
        time_passes(world);
        break;
    }
}

/* ---- turns ---- */

typedef struct {
    void (*act)(world_t *world);
    void (*act_at)(world_t *world, int index);
    int index;
} turn_t;

typedef struct {
    turn_t items[8 + NODES * 4 + SOURCES_MAX];
    uint32_t count;
} turns_t;

static void may(turns_t *turns, bool possible, void (*act)(world_t *world))
{
    if (possible) {
        turns->items[turns->count++] = (turn_t){.act = act};
    }
}

static void may_at(turns_t *turns, bool possible, void (*act)(world_t *world, int index), int index)
{
    if (possible) {
        turns->items[turns->count++] = (turn_t){.act_at = act, .index = index};
    }
}

static bool turn(world_t *world)
{
    turns_t turns = {.count = 0};
    may(&turns, world->message_count > 0, deliver_message);
    may(&turns, world->data_count > 0, deliver_data);
    may(&turns, world->piece_count > 0, piece_is_sent);
    may(&turns, world->reserving && !world->nodes[DECODE].dead, store_answers_decode);
    for (int i = 0; i <= PREFILLS; i++) {
        const node_t *node = &world->nodes[i];
        may_at(&turns, !node->dead && node->happening_count > 0, node_hears, i);
        may_at(&turns, !node->dead && node->command_count > 0, carry_out_command, i);
        may_at(&turns, !node->dead && node->matching, store_answers_prefill, i);
        may_at(&turns, !node->dead && node->computing, compute_one, i);
    }
    for (int i = 0; i < world->source_count; i++) {
        const source_t *source = &world->sources[i];
        may_at(
            &turns, source->matching && !world->nodes[source->node].dead, store_answers_source, i);
    }
    if (turns.count == 0) {
        return false;
    }
    const turn_t *chosen = &turns.items[pick(world, turns.count)];
    if (chosen->act != NULL) {
        chosen->act(world);
    } else {
        chosen->act_at(world, chosen->index);
    }
    return true;
}

static void set_up(world_t *world, uint64_t seed)
{
    memset(world, 0, sizeof *world);
    world->random = seed;
    world->fault = pick(world, 3) == 0 ? 1000000 : 20 + (int)pick(world, 120);
    world->blocks = 1 + pick(world, BLOCKS_MAX);
    world->chosen = -1;
    for (int i = 0; i < NODES; i++) {
        node_t *node = &world->nodes[i];
        node->source = node->expected.link = -1;
        node->store = pick(world, world->blocks);
        node->matched = i > 0 && i <= PREFILLS ? node->store : 0;
        for (uint32_t block = 0; block < node->store; block++) {
            node->slots[block] = value_of(block);
        }
        for (int other = 0; other < i; other++) {
            world->up[i][other] = world->up[other][i] = pick(world, 20) != 0;
        }
    }
}

static bool all_ended(const world_t *world)
{
    bool ended = world->nodes[DECODE].dead || world->decode.state == KV_PD_DECODE_DONE;
    for (int i = 1; i <= PREFILLS; i++) {
        kv_pd_prefill_state_t state = world->nodes[i].prefill.state;
        ended = ended && (world->nodes[i].dead || state == KV_PD_PREFILL_IDLE ||
                             state == KV_PD_PREFILL_DONE);
    }
    for (int i = 0; i < world->source_count; i++) {
        ended = ended && (world->nodes[world->sources[i].node].dead ||
                             world->sources[i].machine.state == KV_PD_SOURCE_DONE);
    }
    return ended;
}

static void check_end(const world_t *world)
{
    for (int i = 0; i <= PREFILLS; i++) {
        const node_t *node = &world->nodes[i];
        assert_true(node->dead || !node->expected.active);
        assert_true(node->dead || i == DECODE || !(node->leased || node->computing));
    }
    for (int i = 0; i < world->source_count; i++) {
        assert_true(world->nodes[world->sources[i].node].dead || !world->sources[i].leased);
    }
    if (world->nodes[DECODE].dead && world->outcomes == 0) {
        tally.died++;
        return;
    }
    assert_int_equal(world->outcomes, 1);
    tally.ready += world->outcome == KV_PD_DECODE_DO_READY;
    tally.fell_back += world->outcome == KV_PD_DECODE_DO_FALL_BACK;
    tally.cancelled += world->outcome == KV_PD_DECODE_DO_CANCELLED;
    tally.failed += world->outcome == KV_PD_DECODE_DO_FAIL;
}

static void simulate(uint64_t seed)
{
    world_t world;
    set_up(&world, seed);
    step_decode(&world, (kv_pd_decode_event_t){.kind = KV_PD_DECODE_EV_START});
    int steps = 0;
    for (;;) {
        assert_true(++steps < STEPS_MAX);
        if (pick(&world, (uint32_t)world.fault) == 0) {
            fault(&world);
        }
        if (turn(&world)) {
            continue;
        }
        if (all_ended(&world)) {
            break;
        }
        time_passes(&world);
    }
    check_end(&world);
}

static void joined_machines_keep_their_promises(void **state)
{
    (void)state;
    uint64_t first = kv_test_seed();
    bool one = getenv("KVIST_SEED") != NULL;
    int runs = one ? 1 : kv_test_long() ? 200000 : 20000;
    for (int run = 0; run < runs; run++) {
        current_seed = first + (uint64_t)run;
        simulate(current_seed);
    }
    print_message(
        "%d runs: %d ready (%d at a later attempt), %d fell back, %d cancelled, %d failed, "
        "%d died; %u blocks kept, %u fetched, %u fetches in part\n",
        runs, tally.ready, tally.again, tally.fell_back, tally.cancelled, tally.failed, tally.died,
        tally.kept, tally.fetched, tally.fetched_in_part);
    assert_true(one || (tally.ready > runs / 5 && tally.again > 0 && tally.fell_back > 0 &&
                           tally.cancelled > 0 && tally.failed > 0 && tally.died > 0 &&
                           tally.kept > 0 && tally.fetched > 0 && tally.fetched_in_part > 0));
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
