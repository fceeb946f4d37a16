/* Serving a Fetch without a device tier, over a real store: what it holds in host memory and on
 * disk leaves through bounce blocks, window by window, proved. The test stands for the holder, the
 * mover and the peers. */
#include "kvstore/harness.h"

#include "holder/bounce.h"
#include "holder/source.h"

enum { CONTEXT = 1, BLOCKS = 40, TRANSFER = 4711, PIECES_MAX = 64 };

/* Handles that nothing looks into. */
static char peer_memory[2];
static kv_peer_t *const PEER = (kv_peer_t *)&peer_memory[0];
static kv_peer_t *const OTHER = (kv_peer_t *)&peer_memory[1];

static bench_t bench;
static kv_holder_t holder;
static kv_requests_t sources;
static uint64_t last_id;
static uint32_t tokens[BLOCKS * BLOCK_TOKENS];
static kvist_key_t keys[BLOCKS];
static bool wire_refuses;

/* Pieces on the wire, whose SENT the test gives; and what was said to each peer. */
typedef struct {
    kv_peer_t *peer;
    kv_piece_t piece;
    uint32_t slots[KV_BOUNCE_BLOCKS_MIN * 8];
} leaving_t;
static leaving_t leaving[PIECES_MAX];
static uint32_t leaving_count;
static struct {
    uint32_t begins_count, fetched, fetched_count, came, cancels;
    kv_status_t status;
} said[2];

static int number_of(const kv_peer_t *peer)
{
    return peer == OTHER;
}

kv_link_t kv_holder_link(const kv_peer_t *peer)
{
    return 1 + (kv_link_t)number_of(peer);
}

uint64_t kv_holder_new_id(kv_holder_t *of)
{
    assert_true(of == &holder);
    return ++last_id;
}

uint32_t kv_peer_version(const kv_peer_t *peer)
{
    (void)peer;
    return 2;
}

const char *kv_peer_name(const kv_peer_t *peer)
{
    return peer == PEER ? "asker" : "other";
}

void kv_holder_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    int number = number_of(peer);
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_PREFILLING) {
        said[number].begins_count = (uint32_t)message->prefilling->n_block_arithmetic;
        assert_string_equal(message->prefilling->block_arithmetic[0], "test/plain");
        assert_int_equal(said[number].came, 0);
        return;
    }
    assert_int_equal(message->body_case, KVIST__WIRE__ENVELOPE__BODY_FETCHED);
    said[number].fetched++;
    said[number].fetched_count = (uint32_t)message->fetched->n_block_arithmetic;
    said[number].status = (kv_status_t)message->fetched->status;
}

bool kv_holder_send_piece(kv_holder_t *of, kv_peer_t *peer, const kv_piece_t *piece)
{
    assert_true(of == &holder);
    if (wire_refuses) {
        return false;
    }
    leaving_t *leaves = &leaving[leaving_count++];
    assert_true(leaving_count <= PIECES_MAX && piece->block_count <= 16);
    *leaves = (leaving_t){.peer = peer, .piece = *piece};
    memcpy(leaves->slots, piece->slots, piece->block_count * sizeof leaves->slots[0]);
    assert_int_equal(piece->first_block, said[number_of(peer)].came); /* in order, without gaps */
    said[number_of(peer)].came += piece->block_count;
    return true;
}

void kv_mover_cancel(kv_mover_t *mover, kv_link_t link, uint64_t transfer_id)
{
    (void)mover;
    assert_true(transfer_id >= TRANSFER);
    said[link - 1].cancels++;
}

/* ---- asking ---- */

static void ask(kv_peer_t *peer, uint64_t transfer_id, uint32_t first_block, uint32_t block_count)
{
    Kvist__Wire__Fetch message = KVIST__WIRE__FETCH__INIT;
    message.request_id = "request-1";
    message.transfer_id = transfer_id;
    message.first_block = first_block;
    message.block_count = block_count;
    message.name_space = (ProtobufCBinaryData){KVIST_KEY_BYTES, bench.name_space.bytes};
    message.n_tokens = (size_t)(first_block + block_count) * BLOCK_TOKENS;
    message.tokens = tokens;
    kv_source_t *source = kv_source_create(&holder, ++last_id, peer, &message, NULL, &sources);
    assert_non_null(source);
    kv_requests_add(&sources, source);
}

static void turn(void)
{
    bench_turn(&bench);
    kv_requests_tick(&sources, 0);
}

/* The wire takes the oldest piece: its bytes are the context's until then. */
static void give_sent(kv_status_t status, uint32_t first_block)
{
    assert_true(leaving_count > 0);
    leaving_t oldest = leaving[0];
    for (uint32_t i = 0; i < oldest.piece.block_count; i++) {
        char expected[4096];
        fill_block(
            &keys[first_block + oldest.piece.first_block + i], expected, block_bytes(&bench));
        assert_memory_equal(
            kv_bounce_block(holder.bounce, oldest.slots[i]), expected, block_bytes(&bench));
    }
    memmove(leaving, leaving + 1, --leaving_count * sizeof *leaving);
    kv_mover_event_t event = {.kind = KV_MOVED_SENT, .tag = oldest.piece.tag, .status = status};
    assert_true(kv_requests_moved(&sources, &event));
}

static void serve_all(uint32_t first_block)
{
    for (int turns = 0; sources.count > 0; turns++) {
        assert_true(turns < 5000);
        if (leaving_count > 0) {
            give_sent(KV_OK, first_block);
        }
        turn();
    }
}

static void expect_nothing_left(void)
{
    for (int turns = 0; sources.count > 0; turns++) {
        assert_true(turns < 5000);
        turn();
    }
    bench_turn(&bench);
    assert_int_equal(bench_stats(&bench).leases, 0);
    assert_int_equal(kv_bounce_free_count(holder.bounce), kv_bounce_count(holder.bounce));
    assert_int_equal(kv_bounce_share(holder.bounce), kv_bounce_count(holder.bounce));
}

/* ---- set-up ---- */

static void note_stored(void *context, kvist_lease_t *lease, kv_status_t status, uint32_t count)
{
    (void)lease;
    assert_int_equal(status, KV_OK);
    assert_int_equal(count, BLOCKS);
    ((outcome_t *)context)->ended = true;
}

static void store_context(void)
{
    kvist_match_t match;
    kvist_lease_t *lease = match_tokens(&bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    char *bytes = malloc(BLOCKS * block_bytes(&bench));
    for (uint32_t block = 0; block < BLOCKS; block++) {
        fill_block(&keys[block], bytes + block * block_bytes(&bench), block_bytes(&bench));
    }
    kvist_piece_t piece = {bytes, BLOCKS * block_bytes(&bench)};
    kvist_put_t put = {.block_count = BLOCKS,
        .arithmetic = "test/plain",
        .deadline_ns = kv_clock_now_ns() + 20ull * KV_NS_PER_S};
    outcome_t outcome = {0};
    assert_int_equal(kvist_lease_store(lease, &put, &piece, 1, note_stored, &outcome), KV_OK);
    wait_for(&bench, &outcome);
    kvist_lease_release(lease);
    free(bytes);
}

static void begin(uint32_t bounce_blocks, bool disk)
{
    bench_init(&bench, "courier", 0);
    bench.params.device = NULL;
    bench_with_host(&bench, disk ? BLOCKS + 8 : BLOCKS);
    if (disk) {
        bench_with_disk(&bench, 8);
    }
    bench_open(&bench);
    make_tokens(CONTEXT, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_keys(&bench.name_space, tokens, NULL, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS, keys);
    store_context();
    kv_error_t error;
    holder = (kv_holder_t){.store = bench.store,
        .block_bytes = block_bytes(&bench),
        .block_tokens = BLOCK_TOKENS,
        .context_tokens_max = BLOCKS * BLOCK_TOKENS};
    assert_int_equal(kv_bounce_create(block_bytes(&bench), bounce_blocks * block_bytes(&bench),
                         &holder.bounce, &error),
        KV_OK);
    sources = (kv_requests_t){.ops = &KV_SOURCE_OPS};
    memset(said, 0, sizeof said);
    leaving_count = 0;
    wire_refuses = false;
}

static int end(void **state)
{
    (void)state;
    kv_bounce_destroy(holder.bounce);
    bench_end(&bench);
    return 0;
}

/* ---- the tests ---- */

static void host_memory_is_sent_in_order(void **state)
{
    (void)state;
    begin(20, false);
    ask(PEER, TRANSFER, 3, BLOCKS - 3);
    serve_all(3);
    assert_int_equal(said[0].begins_count, BLOCKS - 3);
    assert_int_equal(said[0].came, BLOCKS - 3);
    assert_int_equal(said[0].fetched, 1);
    assert_int_equal(said[0].status, KV_OK);
    assert_int_equal(said[0].fetched_count, BLOCKS - 3);
    expect_nothing_left();
}

static void the_disk_is_sent_as_well(void **state)
{
    (void)state;
    begin(20, true);
    assert_int_equal(flush(&bench), KV_OK);
    bench_close(&bench);
    bench_open(&bench);
    holder.store = bench.store;
    ask(PEER, TRANSFER, 0, BLOCKS);
    serve_all(0);
    assert_int_equal(said[0].came, BLOCKS);
    assert_int_equal(said[0].status, KV_OK);
    assert_true(bench_stats(&bench).tiers[KVIST_TIER_DISK].hit_blocks >= BLOCKS);
    expect_nothing_left();
}

static void two_share_few_blocks(void **state)
{
    (void)state;
    begin(KV_BOUNCE_BLOCKS_MIN, false);
    ask(PEER, TRANSFER, 0, BLOCKS);
    ask(OTHER, TRANSFER + 1, 0, BLOCKS - 5);
    serve_all(0);
    assert_int_equal(said[0].came, BLOCKS);
    assert_int_equal(said[1].came, BLOCKS - 5);
    assert_int_equal(said[0].status, KV_OK);
    assert_int_equal(said[1].status, KV_OK);
    expect_nothing_left();
}

/* A bit flips in host memory: what lies before it is sent, nothing behind it. */
static void a_damaged_block_ends_it_early(void **state)
{
    (void)state;
    static const uint32_t BAD[] = {0, 1, 15, 16, 21, BLOCKS - 1};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        begin(64, false);
        uint32_t number = kv_table_find(bench.store->table, &keys[BAD[i]]);
        uint32_t slot = kv_table_at(bench.store->table, number)->host_slot;
        kv_group_host_bytes(&bench.store->groups[0], slot)[100] ^= 4;
        ask(PEER, TRANSFER, 0, BLOCKS);
        serve_all(0);
        assert_int_equal(said[0].begins_count, BLOCKS);
        assert_int_equal(said[0].came, BAD[i]);
        assert_int_equal(said[0].fetched, 1);
        assert_int_equal(said[0].status, BAD[i] > 0 ? KV_OK : KV_MISSING);
        assert_int_equal(said[0].fetched_count, BAD[i]);
        expect_nothing_left();
        end(NULL);
    }
    begin(20, false); /* for the tear-down */
}

static void run_until_leaving(void)
{
    for (int turns = 0; leaving_count == 0; turns++) {
        assert_true(turns < 1000);
        turn();
    }
}

static void what_is_taken_back_ends_when_nothing_reads_it(void **state)
{
    (void)state;
    begin(20, false);
    ask(PEER, TRANSFER, 0, BLOCKS);
    run_until_leaving();
    Kvist__Wire__Unfetch unfetch = KVIST__WIRE__UNFETCH__INIT;
    unfetch.transfer_id = TRANSFER;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_UNFETCH;
    envelope.unfetch = &unfetch;
    kv_requests_message(&sources, PEER, &envelope);
    assert_int_equal(said[0].cancels, 1);
    uint32_t left = leaving_count;
    for (int turns = 0; turns < 5; turns++) {
        turn();
    }
    assert_int_equal(leaving_count, left); /* nothing new */
    assert_int_equal(sources.count, 1);    /* while the wire reads */
    assert_int_equal(bench_stats(&bench).leases, 1);
    while (leaving_count > 0) {
        give_sent(KV_CANCELLED, 0);
    }
    expect_nothing_left();
    assert_int_equal(said[0].fetched, 0);
}

static void a_lost_peer_ends_it(void **state)
{
    (void)state;
    begin(20, false);
    ask(PEER, TRANSFER, 0, BLOCKS);
    run_until_leaving();
    kv_requests_peer_down(&sources, PEER);
    while (leaving_count > 0) {
        give_sent(KV_PEER_LOST, 0);
    }
    expect_nothing_left();
    assert_int_equal(said[0].fetched, 0);
}

static void a_wire_that_refuses_is_told(void **state)
{
    (void)state;
    begin(20, false);
    wire_refuses = true;
    ask(PEER, TRANSFER, 0, BLOCKS);
    expect_nothing_left();
    assert_int_equal(said[0].fetched, 1);
    assert_int_equal(said[0].status, KV_PEER_LOST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(host_memory_is_sent_in_order, end),
        cmocka_unit_test_teardown(the_disk_is_sent_as_well, end),
        cmocka_unit_test_teardown(two_share_few_blocks, end),
        cmocka_unit_test_teardown(a_damaged_block_ends_it_early, end),
        cmocka_unit_test_teardown(what_is_taken_back_ends_when_nothing_reads_it, end),
        cmocka_unit_test_teardown(a_lost_peer_ends_it, end),
        cmocka_unit_test_teardown(a_wire_that_refuses_is_told, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
