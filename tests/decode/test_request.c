/* A decode request over a real store, from one prefill node to the next. The test stands for the
 * peers, the mover and the compute thread. */
#include "kvstore/harness.h"

#include "decode/request.h"

enum { SLOTS = 64, PROMPT = 5 * BLOCK_TOKENS + 3, WHOLE = 5, PREFILLS = 2, STORE = 3 };

/* Handles that nothing looks into: a gateway, then prefill nodes, then a kvist-store. */
static max_align_t peer_memory[STORE + 1];
static bool up[STORE + 1];
static bool alike;          /* the prefill nodes are as idle as each other */
static int holds, attached; /* who is thought to hold most; who is attached to the store; 0: none */

static bench_t bench;
static kv_options_t options;
static kv_engine_info_t info;
static kv_core_t core;
static uint32_t tokens[PROMPT];

/* What was asked for last. */
static struct {
    int prefill; /* peer that Prefill was sent to; 0: none */
    uint32_t prefills, held_blocks;
    uint64_t transfer_id, revoked;
    uint32_t slots[SLOTS];
    uint32_t computed_count, submits;
    Kvist__Wire__Granted granted[3]; /* as the first token's usage says them */
    size_t granted_count;
} seen;

static Kvist__Wire__Promise *promises[3]; /* of the Generate */
static size_t promise_count;

static kv_peer_t *peer_at(int index)
{
    return (kv_peer_t *)&peer_memory[index];
}

static int index_of(const kv_peer_t *peer)
{
    return (int)((const max_align_t *)peer - peer_memory);
}

/* ---- what is wrapped ---- */

void __wrap_kv_holder_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message);
kv_link_t __wrap_kv_holder_link(const kv_peer_t *peer);
bool __wrap_kv_holder_link_up(const kv_peer_t *peer);
kvist_key_t __wrap_kv_core_namespace(const kv_core_t *of, const void *salt, size_t salt_bytes);
uint64_t __wrap_kv_mover_transfer_id(kv_mover_t *mover);
kv_status_t __wrap_kv_mover_expect(
    kv_mover_t *mover, kv_link_t link, const kv_expectation_t *expectation, kv_error_t *error);
void __wrap_kv_mover_revoke(kv_mover_t *mover, uint64_t transfer_id);
void __wrap_kv_peers_visit(
    kv_peers_t *peers, void (*visit)(void *context, kv_peer_t *peer), void *context);
Kvist__Wire__Role __wrap_kv_peer_role(const kv_peer_t *peer);
uint64_t __wrap_kv_peer_id(const kv_peer_t *peer);
const char *__wrap_kv_peer_attached_to(const kv_peer_t *peer);
const char *__wrap_kv_peer_name(const kv_peer_t *peer);
bool __wrap_kv_peer_draining(const kv_peer_t *peer);
uint32_t __wrap_kv_peer_version(const kv_peer_t *peer);
uint32_t __wrap_kv_peer_queued_requests(const kv_peer_t *peer);
uint32_t __wrap_kv_peer_running_requests(const kv_peer_t *peer);
bool __wrap_kv_remote_find(kv_holder_t *of, const kvist_key_t *keys, uint32_t key_count,
    const uint64_t *excluded_peers, size_t excluded_count, kv_peer_t **peer_out,
    uint32_t *block_count_out);
kv_status_t __wrap_kv_compute_submit(
    kv_compute_t *compute, const kv_compute_sequence_t *sequence, kv_error_t *error);

void __wrap_kv_holder_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_PREFILL) {
        seen.prefill = index_of(peer);
        seen.prefills++;
        seen.held_blocks = message->prefill->held_blocks;
        assert_true(message->prefill->transfer_id == seen.transfer_id);
        assert_int_equal(message->prefill->n_promises, promise_count);
        assert_int_equal(message->prefill->priority, KVIST__WIRE__PRIORITY__PRIORITY_BATCH);
        assert_string_equal(message->prefill->tenant, "tenant-1");
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_TOKENS &&
        message->tokens->usage != NULL) {
        seen.granted_count = message->tokens->usage->n_granted;
        for (size_t i = 0; i < seen.granted_count; i++) {
            seen.granted[i] = *message->tokens->usage->granted[i];
        }
    }
}

uint32_t __wrap_kv_peer_version(const kv_peer_t *peer)
{
    (void)peer;
    return KV_WIRE_VERSION;
}

kv_link_t __wrap_kv_holder_link(const kv_peer_t *peer)
{
    return (kv_link_t)index_of(peer);
}

bool __wrap_kv_holder_link_up(const kv_peer_t *peer)
{
    return up[index_of(peer)];
}

kvist_key_t __wrap_kv_core_namespace(const kv_core_t *of, const void *salt, size_t salt_bytes)
{
    (void)of;
    (void)salt;
    (void)salt_bytes;
    return bench.name_space;
}

uint64_t __wrap_kv_mover_transfer_id(kv_mover_t *mover)
{
    static uint64_t last;
    (void)mover;
    return ++last;
}

kv_status_t __wrap_kv_mover_expect(
    kv_mover_t *mover, kv_link_t link, const kv_expectation_t *expectation, kv_error_t *error)
{
    (void)mover;
    (void)error;
    assert_true(up[link]);
    seen.transfer_id = expectation->transfer_id;
    memcpy(seen.slots, expectation->slots, expectation->block_count * sizeof seen.slots[0]);
    return KV_OK;
}

void __wrap_kv_mover_revoke(kv_mover_t *mover, uint64_t transfer_id)
{
    (void)mover;
    seen.revoked = transfer_id;
}

void __wrap_kv_peers_visit(
    kv_peers_t *peers, void (*visit)(void *context, kv_peer_t *peer), void *context)
{
    (void)peers;
    for (int i = 0; i <= STORE; i++) {
        if (up[i]) {
            visit(context, peer_at(i));
        }
    }
}

Kvist__Wire__Role __wrap_kv_peer_role(const kv_peer_t *peer)
{
    return index_of(peer) == 0       ? KVIST__WIRE__ROLE__ROLE_GATEWAY
           : index_of(peer) == STORE ? KVIST__WIRE__ROLE__ROLE_STORE
                                     : KVIST__WIRE__ROLE__ROLE_PREFILL;
}

uint64_t __wrap_kv_peer_id(const kv_peer_t *peer)
{
    return 100 + (uint64_t)index_of(peer);
}

bool __wrap_kv_peer_draining(const kv_peer_t *peer)
{
    (void)peer;
    return false;
}

/* The first prefill node is the idler one, unless they are alike. */
uint32_t __wrap_kv_peer_queued_requests(const kv_peer_t *peer)
{
    return alike ? 0 : (uint32_t)index_of(peer);
}

uint32_t __wrap_kv_peer_running_requests(const kv_peer_t *peer)
{
    (void)peer;
    return 0;
}

bool __wrap_kv_remote_find(kv_holder_t *of, const kvist_key_t *keys, uint32_t key_count,
    const uint64_t *excluded_peers, size_t excluded_count, kv_peer_t **peer_out,
    uint32_t *block_count_out)
{
    (void)of;
    (void)keys;
    for (size_t i = 0; i < excluded_count; i++) {
        if (excluded_peers[i] == kv_peer_id(peer_at(holds))) {
            return false;
        }
    }
    *peer_out = peer_at(holds);
    *block_count_out = key_count;
    return holds != 0;
}

const char *__wrap_kv_peer_attached_to(const kv_peer_t *peer)
{
    return attached != 0 && index_of(peer) == attached ? "store" : "";
}

const char *__wrap_kv_peer_name(const kv_peer_t *peer)
{
    return index_of(peer) == STORE ? "store" : "other";
}

kv_status_t __wrap_kv_compute_submit(
    kv_compute_t *compute, const kv_compute_sequence_t *sequence, kv_error_t *error)
{
    (void)compute;
    (void)error;
    seen.submits++;
    seen.computed_count = sequence->computed_count;
    return KV_OK;
}

/* ---- what happens ---- */

static void begin(void)
{
    Kvist__Wire__Generate generate = KVIST__WIRE__GENERATE__INIT;
    Kvist__Wire__Sampling sampling = KVIST__WIRE__SAMPLING__INIT;
    generate.request_id = "request-1";
    generate.n_tokens = PROMPT;
    generate.tokens = tokens;
    generate.max_tokens = 4;
    generate.sampling = &sampling;
    generate.priority = KVIST__WIRE__PRIORITY__PRIORITY_BATCH;
    generate.tenant = "tenant-1";
    generate.n_promises = promise_count;
    generate.promises = promises;
    kv_requests_add(
        &core.holder.requests, kv_decode_request_create(&core, 1, peer_at(0), &generate));
    for (int turn = 0; seen.prefills == 0; turn++) {
        assert_true(turn < 1000);
        bench_turn(&bench);
    }
}

/* The prefill node says who makes the blocks. */
static void say_makers(void)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Prefilling prefilling = KVIST__WIRE__PREFILLING__INIT;
    prefilling.request_id = "request-1";
    prefilling.transfer_id = seen.transfer_id;
    prefilling.computed_arithmetic = "test/prefill";
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PREFILLING;
    envelope.prefilling = &prefilling;
    kv_requests_message(&core.holder.requests, peer_at(seen.prefill), &envelope);
}

static void say_failed(int prefill)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Prefilled prefilled = KVIST__WIRE__PREFILLED__INIT;
    prefilled.request_id = "request-1";
    prefilled.transfer_id = seen.transfer_id;
    prefilled.status = KV_BUSY;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PREFILLED;
    envelope.prefilled = &prefilled;
    kv_requests_message(&core.holder.requests, peer_at(prefill), &envelope);
}

static void move(kv_moved_t kind, uint64_t transfer_id, uint32_t landed_blocks)
{
    kv_mover_event_t event = {
        .kind = kind, .transfer_id = transfer_id, .landed_blocks = landed_blocks};
    assert_true(kv_requests_moved(&core.holder.requests, &event));
}

static void lose(int prefill)
{
    up[prefill] = false;
    kv_requests_peer_down(&core.holder.requests, peer_at(prefill));
}

/* ---- set-up ---- */

static int open_node(void **state)
{
    (void)state;
    memset(&seen, 0, sizeof seen);
    memset(up, true, sizeof up);
    up[STORE] = alike = false;
    holds = attached = 0;
    promise_count = 0;
    bench_init(&bench, "decode", SLOTS);
    bench_open(&bench);
    memset(&options, 0, sizeof options);
    options.node.name = "decode-0";
    options.decode.reserve_limit_ns = 2 * KV_NS_PER_S;
    options.decode.transfer_limit_ns = 60ull * KV_NS_PER_S;
    info = (kv_engine_info_t){.shape = {2, 2, 8, BLOCK_TOKENS, 2},
        .context_tokens_max = 1000,
        .vocabulary_count = 50000,
        .slot_count = SLOTS,
        .prefill_arithmetic = "here/prefill",
        .decode_arithmetic = "here/decode"};
    core = (kv_core_t){.holder = {.options = &options,
                           .store = bench.store,
                           .requests.ops = &KV_DECODE_REQUEST_OPS},
        .info = &info};
    make_tokens(1, 0, tokens, PROMPT);
    return 0;
}

static int close_node(void **state)
{
    (void)state;
    assert_int_equal(seen.submits, 1);
    kv_compute_event_t ended = {.type = KV_COMPUTE_ENDED, .id = 1, .status = KV_OK};
    kv_requests_computed(&core.holder.requests, &ended);
    assert_int_equal(core.holder.requests.count, 0);
    kv_outcomes_clear(&core.holder.outcomes);
    bench_turn(&bench);
    assert_int_equal(bench_stats(&bench).leases, 0);
    bench_end(&bench);
    return 0;
}

/* ---- the tests ---- */

static void what_landed_whole_is_not_asked_for_again(void **state)
{
    (void)state;
    begin();
    assert_int_equal(seen.prefill, 1);
    assert_int_equal(seen.held_blocks, 0);
    uint64_t first = seen.transfer_id;
    say_makers();
    lose(1);
    assert_true(seen.revoked == first);
    move(KV_MOVED_REVOKED, first, 2);
    assert_int_equal(seen.prefill, 2);
    assert_int_equal(seen.held_blocks, 2);
    say_failed(2); /* and nobody is left */
    move(KV_MOVED_REVOKED, seen.transfer_id, 0);
    assert_int_equal(seen.prefills, 2);
    assert_int_equal(seen.computed_count, 2 * BLOCK_TOKENS);
}

static void blocks_without_a_maker_are_not_kept(void **state)
{
    (void)state;
    begin();
    uint64_t first = seen.transfer_id;
    lose(1);
    move(KV_MOVED_REVOKED, first, 3);
    assert_int_equal(seen.held_blocks, 0);
    say_makers();
    lose(2);
    move(KV_MOVED_REVOKED, seen.transfer_id, 1);
    assert_int_equal(seen.computed_count, BLOCK_TOKENS);
}

/* All had landed and nobody had said who made it: the loss itself chooses the next node, which must
 * be heard. */
static void the_next_node_is_heard(void **state)
{
    (void)state;
    begin();
    move(KV_MOVED_LANDED, seen.transfer_id, WHOLE + 1);
    lose(1);
    assert_int_equal(seen.prefill, 2);
    say_makers();
    say_failed(2);
    assert_true(seen.revoked == seen.transfer_id);
    move(KV_MOVED_REVOKED, seen.transfer_id, 4);
    assert_int_equal(seen.computed_count, 4 * BLOCK_TOKENS);
}

/* The last token is always computed, also where all blocks are here. */
static void the_last_block_is_computed(void **state)
{
    (void)state;
    begin();
    say_makers();
    move(KV_MOVED_LANDED, seen.transfer_id, WHOLE + 1);
    lose(1);
    assert_int_equal(seen.prefills, 1); /* not worth another node */
    assert_int_equal(seen.computed_count, WHOLE * BLOCK_TOKENS);
}

static void a_node_that_is_silent_is_given_up(void **state)
{
    (void)state;
    begin();
    kv_requests_tick(&core.holder.requests, kv_clock_now_ns() + 61ull * KV_NS_PER_S);
    assert_true(seen.revoked == seen.transfer_id);
    move(KV_MOVED_REVOKED, seen.transfer_id, 0);
    assert_int_equal(seen.prefill, 2);
    say_failed(1); /* not its word any more */
    kv_requests_tick(&core.holder.requests, kv_clock_now_ns() + 122ull * KV_NS_PER_S);
    move(KV_MOVED_REVOKED, seen.transfer_id, 0);
    assert_int_equal(seen.computed_count, 0);
}

static void who_has_its_store_is_asked(void **state)
{
    (void)state;
    alike = up[STORE] = true;
    holds = STORE;
    attached = 2;
    begin();
    assert_int_equal(seen.prefill, 2);
    lose(2);
    move(KV_MOVED_REVOKED, seen.transfer_id, 0);
    assert_int_equal(seen.prefill, 1); /* the store is not asked to compute */
    lose(1);
    move(KV_MOVED_REVOKED, seen.transfer_id, 0);
}

/* ---- promises ---- */

static uint64_t in_s_ms(uint64_t seconds)
{
    const kv_clock_t *clock = kv_clock_real();
    return (clock->unix_ns(clock) / KV_NS_PER_S + seconds) * 1000;
}

/* Nobody computes the prompt but this node, whose first token comes. */
static void compute_here(void)
{
    lose(1);
    move(KV_MOVED_REVOKED, seen.transfer_id, 0);
    lose(2);
    move(KV_MOVED_REVOKED, seen.transfer_id, 0);
    kv_compute_event_t event = {.type = KV_COMPUTE_CHUNK, .id = 1, .count = PROMPT};
    kv_requests_computed(&core.holder.requests, &event);
    event = (kv_compute_event_t){.type = KV_COMPUTE_TOKEN, .id = 1, .token = 7};
    kv_requests_computed(&core.holder.requests, &event);
}

static void what_is_promised_comes_with_the_first_token(void **state)
{
    (void)state;
    Kvist__Wire__Promise of_two = KVIST__WIRE__PROMISE__INIT, all = of_two, little = of_two;
    of_two.token_count = 3 * BLOCK_TOKENS - 1;
    of_two.pin_until_unix_ms = in_s_ms(3600);
    all.token_count = PROMPT;
    all.pin_until_unix_ms = in_s_ms(300);
    little.token_count = BLOCK_TOKENS - 1;
    little.pin_until_unix_ms = in_s_ms(300);
    promises[0] = &of_two;
    promises[1] = &all;
    promises[2] = &little;
    promise_count = 3;
    begin();
    compute_here();
    assert_int_equal(seen.granted_count, 3);
    assert_int_equal(seen.granted[0].token_count, 2 * BLOCK_TOKENS); /* whole blocks */
    assert_true(seen.granted[0].pin_until_unix_ms == of_two.pin_until_unix_ms);
    assert_int_equal(seen.granted[1].token_count, WHOLE * BLOCK_TOKENS);
    assert_true(seen.granted[1].pin_until_unix_ms == all.pin_until_unix_ms);
    assert_int_equal(seen.granted[2].token_count, 0);
    assert_string_equal(seen.granted[2].why_not, "it is less than a block");
    kvist_object_t object;
    for (uint32_t block = 0; block < WHOLE; block++) {
        kvist_key_t key = block_key(&bench, 1, block);
        assert_int_equal(kvist_store_show(bench.store, &key, &object), KV_OK);
        assert_int_equal(object.priority, KVIST_PRIORITY_BATCH);
        assert_string_equal(object.tenant, "tenant-1");
        assert_true(object.pin_until_unix_ns / KV_NS_PER_MS ==
                    (block < 2 ? of_two : all).pin_until_unix_ms);
    }
}

/* Of 64 blocks in memory, the last tier, nine tenths may be pinned. */
static void what_cannot_be_promised_is_said(void **state)
{
    (void)state;
    for (uint32_t context = 2; context < 8; context++) {
        request_context(&bench, context, 9);
        kvist_key_t key = block_key(&bench, context, 8);
        kvist_terms_t terms = {.pin_until_unix_ns = in_s_ms(600) * KV_NS_PER_MS};
        assert_int_equal(kvist_store_keep(bench.store, &key, &terms), KV_OK);
    }
    Kvist__Wire__Promise all = KVIST__WIRE__PROMISE__INIT;
    all.token_count = PROMPT;
    all.pin_until_unix_ms = in_s_ms(300);
    promises[0] = &all;
    promise_count = 1;
    begin();
    compute_here();
    assert_int_equal(seen.granted_count, 1);
    assert_int_equal(seen.granted[0].token_count, 0);
    assert_non_null(strstr(seen.granted[0].why_not, "all the room"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(who_has_its_store_is_asked, open_node, close_node),
        cmocka_unit_test_setup_teardown(
            what_landed_whole_is_not_asked_for_again, open_node, close_node),
        cmocka_unit_test_setup_teardown(blocks_without_a_maker_are_not_kept, open_node, close_node),
        cmocka_unit_test_setup_teardown(the_next_node_is_heard, open_node, close_node),
        cmocka_unit_test_setup_teardown(the_last_block_is_computed, open_node, close_node),
        cmocka_unit_test_setup_teardown(a_node_that_is_silent_is_given_up, open_node, close_node),
        cmocka_unit_test_setup_teardown(
            what_is_promised_comes_with_the_first_token, open_node, close_node),
        cmocka_unit_test_setup_teardown(what_cannot_be_promised_is_said, open_node, close_node),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
