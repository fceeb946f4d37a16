/* Serving a Fetch, over a real store: what is sent, what is refused, and that a lease lives just as
 * long as its slots are read. The test stands for the holder, the mover and the peers. */
#include "kvstore/harness.h"

#include "holder/source.h"

static const kv_block_shape_t SHAPE = {2, 2, 8, BLOCK_TOKENS, 2};

enum { SLOTS = 64, HELD = 6, CONTEXT = 1, TRANSFER = 4711 };

/* Handles that nothing looks into. */
static char peer_memory[2];
static kv_peer_t *const PEER = (kv_peer_t *)&peer_memory[0];
static kv_peer_t *const OTHER = (kv_peer_t *)&peer_memory[1];

static bench_t bench;
static kv_holder_t holder;
static kv_requests_t sources;
static uint64_t last_id;
static uint32_t peer_version;
static bool wire_refuses;

/* What was said since the last look. */
static struct {
    uint32_t begins, fetched, pieces, cancels;
    uint32_t begins_count, fetched_count; /* of arithmetic ids */
    kv_status_t status;
    kv_piece_t piece;
    uint32_t slots[SLOTS];
} seen;

kv_link_t kv_holder_link(const kv_peer_t *peer)
{
    return peer == PEER ? 1 : 2;
}

uint32_t kv_peer_version(const kv_peer_t *peer)
{
    (void)peer;
    return peer_version;
}

const char *kv_peer_name(const kv_peer_t *peer)
{
    return peer == PEER ? "asker" : "other";
}

uint64_t kv_holder_new_id(kv_holder_t *of)
{
    assert_true(of == &holder);
    return ++last_id;
}

static void check_ids(char **ids, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        assert_string_equal(ids[i], "test/plain");
    }
}

void kv_holder_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    (void)peer;
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_PREFILLING) {
        assert_int_equal(message->prefilling->transfer_id, TRANSFER);
        check_ids(message->prefilling->block_arithmetic, message->prefilling->n_block_arithmetic);
        seen.begins++;
        seen.begins_count = (uint32_t)message->prefilling->n_block_arithmetic;
        assert_int_equal(seen.pieces, 0);
    } else {
        assert_int_equal(message->body_case, KVIST__WIRE__ENVELOPE__BODY_FETCHED);
        check_ids(message->fetched->block_arithmetic, message->fetched->n_block_arithmetic);
        seen.fetched++;
        seen.fetched_count = (uint32_t)message->fetched->n_block_arithmetic;
        seen.status = (kv_status_t)message->fetched->status;
    }
}

bool kv_holder_send_piece(kv_holder_t *of, kv_peer_t *peer, const kv_piece_t *piece)
{
    assert_true(of == &holder && peer == PEER);
    if (wire_refuses) {
        return false;
    }
    seen.pieces++;
    seen.piece = *piece;
    memcpy(seen.slots, piece->slots, piece->block_count * sizeof seen.slots[0]);
    return true;
}

void kv_mover_cancel(kv_mover_t *mover, kv_link_t link, uint64_t transfer_id)
{
    (void)mover;
    assert_int_equal(link, 1);
    assert_int_equal(transfer_id, TRANSFER);
    seen.cancels++;
}

/* ---- asking ---- */

typedef struct {
    Kvist__Wire__Fetch message;
    uint32_t tokens[16 * BLOCK_TOKENS];
} ask_t;

static void ask_for(ask_t *ask, uint32_t first_block, uint32_t block_count)
{
    kvist__wire__fetch__init(&ask->message);
    make_tokens(CONTEXT, 0, ask->tokens, 16 * BLOCK_TOKENS);
    ask->message.request_id = "request-1";
    ask->message.transfer_id = TRANSFER;
    ask->message.first_block = first_block;
    ask->message.block_count = block_count;
    ask->message.name_space.data = bench.name_space.bytes;
    ask->message.name_space.len = KVIST_KEY_BYTES;
    ask->message.n_tokens = (size_t)(first_block + block_count) * BLOCK_TOKENS;
    ask->message.tokens = ask->tokens;
}

static bool give(kv_peer_t *peer, const ask_t *ask, const kv_request_context_t *context)
{
    memset(&seen, 0, sizeof seen);
    kv_source_t *source =
        kv_source_create(&holder, ++last_id, peer, &ask->message, context, &sources);
    if (source != NULL) {
        kv_requests_add(&sources, source);
    }
    return source != NULL;
}

static void wait_until_sent(void)
{
    for (int turn = 0; seen.pieces == 0 && sources.count > 0; turn++) {
        assert_true(turn < 1000);
        bench_turn(&bench);
        kv_requests_tick(&sources, 0); /* what is done goes */
    }
}

static void give_sent(kv_status_t status)
{
    kv_mover_event_t event = {.kind = KV_MOVED_SENT, .tag = seen.piece.tag, .status = status};
    assert_true(kv_requests_moved(&sources, &event));
}

static void unfetch(kv_peer_t *peer, uint64_t transfer_id)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Unfetch message = KVIST__WIRE__UNFETCH__INIT;
    message.transfer_id = transfer_id;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_UNFETCH;
    envelope.unfetch = &message;
    kv_requests_message(&sources, peer, &envelope);
}

static void expect_sent(uint32_t first_block, uint32_t block_count)
{
    wait_until_sent();
    assert_int_equal(seen.pieces, 1);
    assert_int_equal(seen.piece.transfer_id, TRANSFER);
    assert_int_equal(seen.piece.first_block, 0);
    assert_int_equal(seen.piece.block_count, block_count);
    for (uint32_t i = 0; i < block_count; i++) {
        kvist_key_t key = block_key(&bench, CONTEXT, first_block + i);
        check_block(&bench, &key, seen.slots[i]);
    }
    assert_int_equal(seen.fetched, 0); /* not before they are SENT */
    assert_int_equal(bench_stats(&bench).leases, 1);
}

static void expect_nothing_left(void)
{
    bench_turn(&bench);
    kv_requests_tick(&sources, 0);
    assert_int_equal(sources.count, 0);
    assert_int_equal(bench_stats(&bench).leases, 0);
}

/* ---- set-up ---- */

static int open_node(void **state)
{
    (void)state;
    bench_init(&bench, "source", SLOTS);
    bench_with_host(&bench, SLOTS);
    bench_open(&bench);
    holder = (kv_holder_t){.store = bench.store,
        .block_bytes = kv_block_bytes(&SHAPE),
        .layer_bytes = kv_block_layer_bytes(&SHAPE),
        .block_tokens = BLOCK_TOKENS,
        .context_tokens_max = 15 * BLOCK_TOKENS,
        .vocabulary_count = 50000,
        .slot_count = SLOTS};
    sources = (kv_requests_t){.ops = &KV_SOURCE_OPS};
    peer_version = 2;
    wire_refuses = false;
    request_context(&bench, CONTEXT, HELD);
    return 0;
}

static int close_node(void **state)
{
    (void)state;
    bench_end(&bench);
    return 0;
}

/* ---- the tests ---- */

static void just_the_blocks_asked_for_are_sent(void **state)
{
    (void)state;
    ask_t ask;
    ask_for(&ask, 2, 3);
    assert_true(give(PEER, &ask, NULL));
    expect_sent(2, 3);
    assert_int_equal(seen.begins, 1);
    assert_int_equal(seen.begins_count, 3);
    give_sent(KV_OK);
    assert_int_equal(seen.fetched, 1);
    assert_int_equal(seen.status, KV_OK);
    assert_int_equal(seen.fetched_count, 3);
    expect_nothing_left();
}

static void fewer_are_sent_where_fewer_are_held(void **state)
{
    (void)state;
    ask_t ask;
    ask_for(&ask, 4, 5);
    assert_true(give(PEER, &ask, NULL));
    expect_sent(4, HELD - 4);
    assert_int_equal(seen.begins_count, HELD - 4);
    give_sent(KV_OK);
    assert_int_equal(seen.fetched_count, HELD - 4);
    expect_nothing_left();

    ask_for(&ask, HELD, 2); /* none of those asked for */
    give(PEER, &ask, NULL);
    assert_int_equal(seen.fetched, 1);
    assert_int_equal(seen.status, KV_MISSING);
    expect_nothing_left();

    ask_for(&ask, 0, 2); /* another tenant's */
    uint8_t other[KVIST_KEY_BYTES] = {1};
    ask.message.name_space.data = other;
    give(PEER, &ask, NULL);
    assert_int_equal(seen.status, KV_MISSING);
    expect_nothing_left();
}

/* It names no tokens: the request's are meant; and it knows no Prefilling. */
static void an_asker_of_version_1_is_served(void **state)
{
    (void)state;
    peer_version = 1;
    ask_t ask;
    ask_for(&ask, 1, 3);
    kv_request_context_t context = {bench.name_space, ask.tokens, HELD * BLOCK_TOKENS};
    ask.message.n_tokens = 0;
    ask.message.name_space.len = 0;
    assert_true(give(PEER, &ask, &context));
    expect_sent(1, 3);
    assert_int_equal(seen.begins, 0);
    give_sent(KV_OK);
    assert_int_equal(seen.status, KV_OK);
    assert_int_equal(seen.fetched_count, 3);
    expect_nothing_left();
    assert_false(give(PEER, &ask, NULL)); /* no such request here */
    assert_int_equal(seen.status, KV_INVALID);
    ask.message.block_count = HELD; /* beyond the request */
    assert_false(give(PEER, &ask, &context));
    assert_int_equal(seen.status, KV_INVALID);
}

static void what_is_out_of_bounds_is_refused(void **state)
{
    (void)state;
    for (int kind = 0; kind < 10; kind++) {
        ask_t ask;
        ask_for(&ask, 2, 3);
        switch (kind) {
        case 0:
            ask.message.transfer_id = 0;
            break;
        case 1:
            ask.message.request_id = "two words";
            break;
        case 2:
            ask.message.name_space.len = KVIST_KEY_BYTES - 1;
            break;
        case 3:
            ask.tokens[7] = holder.vocabulary_count;
            break;
        case 4:
            ask.message.n_tokens = holder.context_tokens_max + 1;
            break;
        case 5:
            ask.message.block_count = 0;
            break;
        case 6:
            ask.message.block_count = 4;
            break;
        case 7:
            ask.message.first_block = 5;
            break;
        case 8:
            ask.message.first_block = UINT32_MAX;
            break;
        default:
            ask.message.block_count = UINT32_MAX - 1;
            break;
        }
        assert_false(give(PEER, &ask, NULL));
        assert_int_equal(seen.fetched, 1);
        assert_int_equal(seen.status, KV_INVALID);
    }
    expect_nothing_left();
}

static void a_peer_may_have_so_many_at_once(void **state)
{
    (void)state;
    ask_t ask;
    for (uint32_t i = 0; i < KV_SOURCES_PEER_MAX; i++) {
        ask_for(&ask, 0, 2);
        ask.message.transfer_id = TRANSFER + 1 + i;
        assert_true(give(PEER, &ask, NULL));
    }
    assert_false(give(PEER, &ask, NULL)); /* one that is served already */
    ask.message.transfer_id = TRANSFER;
    assert_false(give(PEER, &ask, NULL));
    assert_int_equal(seen.status, KV_BUSY);
    assert_true(give(OTHER, &ask, NULL));
    kv_requests_peer_down(&sources, OTHER);
    kv_requests_peer_down(&sources, PEER);
    for (int turn = 0; turn < 100 && sources.count > 0; turn++) {
        bench_turn(&bench);
        kv_requests_tick(&sources, 0);
    }
    expect_nothing_left();
}

/* Fetches do not take all device memory: what they bring up from other tiers is bounded. */
static void what_must_be_brought_up_is_bounded(void **state)
{
    (void)state;
    for (uint32_t context = 2; context < 2 + SLOTS / 8; context++) {
        request_context(&bench, context, 8); /* CONTEXT goes to host memory */
    }
    holder.slot_count = 2 * HELD - 2; /* as if the device had no more: half of it is one too few */
    ask_t ask;
    ask_for(&ask, 0, HELD);
    give(PEER, &ask, NULL);
    assert_int_equal(seen.status, KV_BUSY);
    expect_nothing_left();
    holder.slot_count = 2 * HELD;
    assert_true(give(PEER, &ask, NULL));
    expect_sent(0, HELD);
    give_sent(KV_OK);
    expect_nothing_left();
}

/* Whoever ends it: its slots stay until the piece was SENT. */
static void the_lease_outlives_the_pieces(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        ask_t ask;
        ask_for(&ask, 0, 4);
        assert_true(give(PEER, &ask, NULL));
        expect_sent(0, 4);
        switch (kind) {
        case 0:
            unfetch(OTHER, TRANSFER); /* not its own */
            unfetch(PEER, TRANSFER + 1);
            assert_int_equal(seen.cancels, 0);
            unfetch(PEER, TRANSFER);
            break;
        case 1:
            kv_requests_peer_down(&sources, PEER);
            break;
        case 2:
            kv_requests_tick(&sources, UINT64_MAX - 1);
            break;
        default:
            kv_requests_stop(&sources);
            break;
        }
        assert_int_equal(seen.cancels, 1);
        assert_int_equal(bench_stats(&bench).leases, 1);
        give_sent(KV_CANCELLED);
        assert_int_equal(seen.fetched, kind < 2 ? 0 : 1);
        assert_true(seen.fetched == 0 || seen.status == (kind == 2 ? KV_BUSY : KV_CANCELLED));
        expect_nothing_left();
    }
}

static void one_that_ends_early_leaves_nothing(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        ask_t ask;
        ask_for(&ask, 0, 4);
        assert_true(give(PEER, &ask, NULL)); /* the store was asked, and has not answered */
        if (kind == 0) {
            unfetch(PEER, TRANSFER);
        } else if (kind == 1) {
            kv_requests_peer_down(&sources, PEER);
        } else if (kind == 2) {
            kv_requests_tick(&sources, UINT64_MAX - 1);
        } else {
            wire_refuses = true;
        }
        wait_until_sent();
        assert_int_equal(seen.pieces, 0);
        assert_int_equal(seen.fetched, kind < 2 ? 0 : 1);
        assert_true(seen.fetched == 0 || seen.status == (kind == 2 ? KV_BUSY : KV_PEER_LOST));
        wire_refuses = false;
        expect_nothing_left();
    }
}

static void a_node_that_stops_refuses(void **state)
{
    (void)state;
    holder.stopping = true;
    ask_t ask;
    ask_for(&ask, 0, 4);
    assert_false(give(PEER, &ask, NULL));
    assert_int_equal(seen.status, KV_BUSY);
    holder.stopping = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(just_the_blocks_asked_for_are_sent, open_node, close_node),
        cmocka_unit_test_setup_teardown(fewer_are_sent_where_fewer_are_held, open_node, close_node),
        cmocka_unit_test_setup_teardown(an_asker_of_version_1_is_served, open_node, close_node),
        cmocka_unit_test_setup_teardown(what_is_out_of_bounds_is_refused, open_node, close_node),
        cmocka_unit_test_setup_teardown(a_peer_may_have_so_many_at_once, open_node, close_node),
        cmocka_unit_test_setup_teardown(what_must_be_brought_up_is_bounded, open_node, close_node),
        cmocka_unit_test_setup_teardown(the_lease_outlives_the_pieces, open_node, close_node),
        cmocka_unit_test_setup_teardown(one_that_ends_early_leaves_nothing, open_node, close_node),
        cmocka_unit_test_setup_teardown(a_node_that_stops_refuses, open_node, close_node),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
