#include "joined.h"

#include <string.h>

tally_t tally;

int value_of(uint32_t block)
{
    return 100 + (int)block;
}

uint32_t pick(world_t *world, uint32_t count)
{
    return (uint32_t)(kv_test_random(&world->random) % count);
}

static void check_slots(const int *slots, uint32_t first_block, uint32_t block_count)
{
    for (uint32_t block = first_block; block < first_block + block_count; block++) {
        assert_int_equal(slots[block], value_of(block));
    }
}

uint32_t leading(const expected_t *expected)
{
    uint32_t count = 0;
    while (count < expected->count && (expected->mask >> count & 1) != 0) {
        count++;
    }
    return count;
}

static void say(world_t *world, message_t message)
{
    if (message.to >= 0 && world->up[message.from][message.to]) {
        assert_true(world->message_count < QUEUE);
        world->messages[world->message_count++] = message;
    }
}

void happen(world_t *world, int node, happening_t happening)
{
    node_t *at = &world->nodes[node];
    assert_true(at->happening_count < QUEUE);
    at->happenings[at->happening_count++] = happening;
}

void moved(world_t *world, int node, kv_pd_decode_event_kind_t decode,
    kv_pd_prefill_event_kind_t prefill, uint64_t id, uint32_t landed)
{
    happen(world, node,
        (happening_t){.of_mover = true,
            .decode = {.kind = decode,
                .status = KV_PEER_LOST,
                .transfer_id = id,
                .landed_blocks = landed},
            .prefill = {.kind = prefill,
                .status = KV_PEER_LOST,
                .transfer_id = id,
                .landed_blocks = landed}});
}

void fail_receive(world_t *world, int node)
{
    expected_t *expected = &world->nodes[node].expected;
    if (expected->active && !expected->failed) {
        expected->failed = true;
        moved(world, node, KV_PD_DECODE_EV_RECEIVE_FAILED, KV_PD_PREFILL_EV_RECEIVE_FAILED,
            expected->id, 0);
    }
}

static void expect(world_t *world, int node, int link, uint64_t id, uint32_t first, uint32_t count)
{
    node_t *at = &world->nodes[node];
    assert_true(at->leased && !at->expected.active && count > 0);
    at->expected = (expected_t){true, false, link, id, first, count, 0};
    if (link < 0 || !world->up[node][link]) {
        fail_receive(world, node);
    }
}

static void command(world_t *world, int node, bool shorten, uint64_t id, uint32_t count)
{
    node_t *at = &world->nodes[node];
    assert_true(at->command_count < QUEUE);
    at->commands[at->command_count++] = (command_t){shorten, id, count};
}

static void send_piece(world_t *world, piece_t piece)
{
    assert_true(world->piece_count < QUEUE);
    world->pieces[world->piece_count++] = piece;
}

static void cancel_pieces(world_t *world, int from, uint64_t id)
{
    for (int i = 0; i < world->piece_count; i++) {
        if (world->pieces[i].from == from && world->pieces[i].id == id) {
            world->pieces[i].cancelled = true;
        }
    }
}

static bool reads_slots(const world_t *world, int node, int source)
{
    for (int i = 0; i < world->piece_count; i++) {
        if (world->pieces[i].from == node && world->pieces[i].source == source) {
            return true;
        }
    }
    return false;
}

/* ---- the decode node ---- */

static void choose(world_t *world)
{
    int candidates[PREFILLS], count = 0;
    for (int node = 1; node <= PREFILLS; node++) {
        if (world->up[DECODE][node] && !world->tried[node]) {
            candidates[count++] = node;
        }
    }
    world->chosen = count > 0 ? candidates[pick(world, (uint32_t)count)] : -1;
    kv_pd_decode_event_t event = {.kind = KV_PD_DECODE_EV_CHOSEN, .peer_up = count > 0};
    if (count > 0) {
        world->tried[world->chosen] = true;
        event.transfer_id = ++world->last_id;
    }
    happen(world, DECODE, (happening_t){.decode = event});
}

static void decode_ends(world_t *world, kv_pd_decode_action_kind_t outcome)
{
    assert_false(world->nodes[DECODE].expected.active);
    world->outcome = outcome;
    assert_int_equal(world->outcomes++, 0);
}

static void carry_out_decode(world_t *world, const kv_pd_decode_action_t *action)
{
    node_t *node = &world->nodes[DECODE];
    switch (action->kind) {
    case KV_PD_DECODE_DO_RESERVE:
        world->reserving = node->leased = true;
        break;
    case KV_PD_DECODE_DO_CHOOSE:
        assert_false(node->expected.active);
        choose(world);
        break;
    case KV_PD_DECODE_DO_EXPECT:
        assert_int_equal(action->first_block, world->held);
        assert_int_equal(action->first_block + action->block_count, world->blocks);
        expect(world, DECODE, world->chosen, action->transfer_id, action->first_block,
            action->block_count);
        break;
    case KV_PD_DECODE_DO_SEND_PREFILL:
        say(world, (message_t){.from = DECODE,
                       .to = world->chosen,
                       .says = SAYS_PREFILL,
                       .id = action->transfer_id,
                       .count = world->held});
        break;
    case KV_PD_DECODE_DO_SEND_CANCEL:
        say(world, (message_t){.from = DECODE, .to = world->chosen, .says = SAYS_CANCEL});
        break;
    case KV_PD_DECODE_DO_REVOKE:
        command(world, DECODE, false, action->transfer_id, 0);
        break;
    case KV_PD_DECODE_DO_KEEP:
        assert_false(node->expected.active);
        assert_true(world->told == world->decode.transfer_id);
        assert_int_equal(action->first_block, world->held);
        check_slots(node->slots, action->first_block, action->block_count);
        world->held += action->block_count;
        assert_true(world->held < world->blocks);
        node->store = world->held;
        tally.kept += action->block_count;
        break;
    case KV_PD_DECODE_DO_RELEASE:
        assert_true(node->leased && !node->expected.active);
        node->leased = world->reserving = false;
        break;
    case KV_PD_DECODE_DO_READY:
        check_slots(node->slots, 0, world->blocks);
        tally.again += world->decode.attempts > 1;
        decode_ends(world, action->kind);
        break;
    case KV_PD_DECODE_DO_FALL_BACK:
        check_slots(node->slots, 0, world->held);
        decode_ends(world, action->kind);
        break;
    case KV_PD_DECODE_DO_FAIL:
    case KV_PD_DECODE_DO_CANCELLED:
        decode_ends(world, action->kind);
        break;
    }
}

void step_decode(world_t *world, kv_pd_decode_event_t event)
{
    kv_pd_decode_actions_t actions;
    kv_pd_decode_step(&world->decode, &event, &actions);
    for (uint32_t i = 0; i < actions.count; i++) {
        carry_out_decode(world, &actions.items[i]);
    }
}

void store_answers_decode(world_t *world)
{
    world->reserving = false;
    bool refused = pick(world, 20) == 0;
    world->held = world->nodes[DECODE].store;
    step_decode(world, (kv_pd_decode_event_t){.kind = refused ? KV_PD_DECODE_EV_RESERVE_FAILED
                                                              : KV_PD_DECODE_EV_RESERVED,
                           .status = refused ? KV_BUSY : KV_OK,
                           .held_blocks = world->held,
                           .block_count = world->blocks - world->held,
                           .whole_blocks = world->blocks - world->held - 1});
}

/* ---- a prefill node ---- */

/* What is known of others is approximate. */
static void find_source(world_t *world, int node, uint32_t first, uint32_t count)
{
    node_t *at = &world->nodes[node];
    kv_pd_prefill_event_t event = {.kind = KV_PD_PREFILL_EV_SOURCE};
    int candidate = (int)pick(world, NODES);
    uint32_t thought = pick(world, 3) == 0 ? world->blocks - 1 : world->nodes[candidate].store;
    if (candidate != node && world->up[node][candidate] && !at->asked[candidate] &&
        thought > first) {
        at->asked[candidate] = true;
        at->source = candidate;
        at->known = 0;
        event.block_count = thought - first < count ? thought - first : count;
        event.transfer_id = ++world->last_id;
    }
    happen(world, node, (happening_t){.prefill = event});
}

static void stream(world_t *world, int node, uint32_t first, uint32_t last)
{
    node_t *at = &world->nodes[node];
    uint32_t held = at->prefill.decode_held;
    first = first > held ? first : held;
    if (first < last && world->up[node][DECODE]) {
        send_piece(world, (piece_t){.from = node,
                              .to = DECODE,
                              .source = -1,
                              .id = at->prefill.transfer_id,
                              .index = first - held,
                              .first = first,
                              .count = last - first});
        happen(world, node, (happening_t){.prefill = {.kind = KV_PD_PREFILL_EV_PIECE_QUEUED}});
    }
}

static void begin_computing(world_t *world, int node, uint32_t first_block)
{
    node_t *at = &world->nodes[node];
    assert_false(at->expected.active || at->computing);
    check_slots(at->slots, 0, first_block);
    at->computing = true;
    at->stop = false;
    at->next_block = first_block;
    stream(world, node, 0, first_block);
}

static void fetched(world_t *world, int node, uint32_t first, uint32_t count)
{
    node_t *at = &world->nodes[node];
    assert_false(at->expected.active);
    assert_true(count <= at->known);
    check_slots(at->slots, first, count);
    tally.fetched += count;
    tally.fetched_in_part += count > 0 && count < at->expected.count;
    at->source = -1;
}

static void carry_out_prefill(world_t *world, int node, const kv_pd_prefill_action_t *action)
{
    node_t *at = &world->nodes[node];
    message_t message = {.from = node,
        .to = at->source,
        .id = action->transfer_id,
        .first = action->first_block,
        .count = action->block_count,
        .status = action->status};
    switch (action->kind) {
    case KV_PD_PREFILL_DO_MATCH:
        at->matching = at->leased = true;
        break;
    case KV_PD_PREFILL_DO_FIND_SOURCE:
        find_source(world, node, action->first_block, action->block_count);
        break;
    case KV_PD_PREFILL_DO_EXPECT:
        expect(
            world, node, at->source, action->transfer_id, action->first_block, action->block_count);
        break;
    case KV_PD_PREFILL_DO_SEND_FETCH:
        message.says = SAYS_FETCH;
        say(world, message);
        break;
    case KV_PD_PREFILL_DO_SHORTEN:
        command(world, node, true, action->transfer_id, action->block_count);
        break;
    case KV_PD_PREFILL_DO_SEND_UNFETCH:
        message.says = SAYS_UNFETCH;
        say(world, message);
        break;
    case KV_PD_PREFILL_DO_REVOKE:
        command(world, node, false, action->transfer_id, 0);
        break;
    case KV_PD_PREFILL_DO_SEAL:
        fetched(world, node, action->first_block, action->block_count);
        break;
    case KV_PD_PREFILL_DO_SEND_PREFILLING:
        message.says = SAYS_PREFILLING;
        message.to = DECODE;
        say(world, message);
        break;
    case KV_PD_PREFILL_DO_COMPUTE:
        begin_computing(world, node, action->first_block);
        break;
    case KV_PD_PREFILL_DO_STOP:
        at->stop = true;
        break;
    case KV_PD_PREFILL_DO_CANCEL_PIECES:
        cancel_pieces(world, node, action->transfer_id);
        break;
    case KV_PD_PREFILL_DO_SEND_PREFILLED:
        message.says = SAYS_PREFILLED;
        message.to = DECODE;
        say(world, message);
        break;
    case KV_PD_PREFILL_DO_RELEASE:
        assert_true(at->leased);
        assert_false(at->expected.active || at->computing || reads_slots(world, node, -1));
        at->leased = at->matching = false;
        break;
    }
}

void step_prefill(world_t *world, int node, kv_pd_prefill_event_t event)
{
    kv_pd_prefill_actions_t actions;
    kv_pd_prefill_step(&world->nodes[node].prefill, &event, &actions);
    for (uint32_t i = 0; i < actions.count; i++) {
        carry_out_prefill(world, node, &actions.items[i]);
    }
}

void store_answers_prefill(world_t *world, int node)
{
    node_t *at = &world->nodes[node];
    at->matching = false;
    bool refused = pick(world, 20) == 0;
    step_prefill(world, node,
        (kv_pd_prefill_event_t){
            .kind = refused ? KV_PD_PREFILL_EV_MATCH_FAILED : KV_PD_PREFILL_EV_MATCHED,
            .status = refused ? KV_BUSY : KV_OK,
            .held_blocks = at->matched,
            .whole_blocks = world->blocks - 1});
}

void compute_one(world_t *world, int node)
{
    node_t *at = &world->nodes[node];
    kv_status_t status = at->stop ? KV_CANCELLED : pick(world, 50) == 0 ? KV_IO : KV_OK;
    if (status != KV_OK || at->next_block == world->blocks) {
        at->computing = false;
        happen(world, node,
            (happening_t){.prefill = {.kind = KV_PD_PREFILL_EV_COMPUTED, .status = status}});
        return;
    }
    uint32_t block = at->next_block++;
    at->slots[block] = value_of(block);
    stream(world, node, block, block + 1);
}

/* ---- sources ---- */

void step_source(world_t *world, int index, kv_pd_source_event_t event)
{
    source_t *source = &world->sources[index];
    kv_pd_source_actions_t actions;
    kv_pd_source_step(&source->machine, &event, &actions);
    for (uint32_t i = 0; i < actions.count; i++) {
        const kv_pd_source_action_t *action = &actions.items[i];
        message_t message = {.from = source->node,
            .to = source->asker,
            .id = action->transfer_id,
            .count = action->block_count,
            .status = action->status};
        switch (action->kind) {
        case KV_PD_SOURCE_DO_MATCH:
            source->matching = source->leased = true;
            break;
        case KV_PD_SOURCE_DO_SEND_BEGINS:
            message.says = SAYS_BEGINS;
            say(world, message);
            break;
        case KV_PD_SOURCE_DO_SEND_PIECES:
            assert_true(action->first_block + action->block_count <= source->held);
            send_piece(world, (piece_t){.from = source->node,
                                  .to = source->asker,
                                  .source = index,
                                  .id = action->transfer_id,
                                  .first = action->first_block,
                                  .count = action->block_count});
            break;
        case KV_PD_SOURCE_DO_CANCEL_PIECES:
            cancel_pieces(world, source->node, action->transfer_id);
            break;
        case KV_PD_SOURCE_DO_SEND_FETCHED:
            message.says = SAYS_FETCHED;
            say(world, message);
            break;
        case KV_PD_SOURCE_DO_RELEASE:
            assert_true(source->leased && !reads_slots(world, source->node, index));
            source->leased = source->matching = false;
            break;
        }
    }
}

void store_answers_source(world_t *world, int index)
{
    source_t *source = &world->sources[index];
    source->matching = false;
    bool refused = pick(world, 20) == 0;
    source->held = world->nodes[source->node].store;
    step_source(world, index,
        (kv_pd_source_event_t){
            .kind = refused ? KV_PD_SOURCE_EV_MATCH_FAILED : KV_PD_SOURCE_EV_MATCHED,
            .status = refused ? KV_BUSY : KV_OK,
            .held_blocks = source->held});
}

void serve(world_t *world, const message_t *message)
{
    assert_true(world->source_count < SOURCES_MAX);
    int index = world->source_count++;
    world->sources[index] = (source_t){.node = message->to, .asker = message->from};
    step_source(world, index,
        (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_START,
            .transfer_id = message->id,
            .first_block = message->first,
            .block_count = message->count});
}

void unfetch(world_t *world, const message_t *message)
{
    for (int i = 0; i < world->source_count; i++) {
        const source_t *source = &world->sources[i];
        if (source->node == message->to && source->asker == message->from &&
            source->machine.transfer_id == message->id) {
            step_source(world, i, (kv_pd_source_event_t){.kind = KV_PD_SOURCE_EV_UNFETCH});
        }
    }
}
