/* What is known of nodes' prefixes: keys, namings, events that are lost on their way.
 *
 * This program defines what it needs of transport/peers.h itself: peers are played. */
#include "testing/testing.h"

#include "cluster/events_log.h"
#include "gateway/routing/prefixes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PEERS = 3,
    CONTEXTS = 24,
    BLOCKS = 12,
    BLOCK_TOKENS = 16,
    TIERS = 3,
    STEPS = 1500,
    MAP_BYTES = 4 << 20,
};

static const kv_naming_t NAMING = {.shape = {2, 2, 8, BLOCK_TOKENS, 2}};

/* ---- played peers ---- */

struct kv_peer {
    uint64_t id;
    const char *name, *attached_to;
    Kvist__Wire__Role role;
    uint32_t version;
    bool closed;
    char reason[300];
    /* A node behind it. */
    bool held[CONTEXTS][BLOCKS][TIERS];
    kv_events_log_t *log;
    kv_events_place_t place;
    bool subscribed, asked;
};

static kv_status_t subscribe_status;

kv_status_t kv_peer_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    assert_int_equal(message->body_case, KVIST__WIRE__ENVELOPE__BODY_SUBSCRIBE);
    if (subscribe_status != KV_OK) {
        return subscribe_status;
    }
    kv_error_t error;
    if (peer->log != NULL) {
        assert_int_equal(
            kv_events_log_subscribe(peer->log, message->subscribe, &peer->place, &error), KV_OK);
    }
    peer->subscribed = peer->asked = true;
    return KV_OK;
}

void kv_peer_close(kv_peer_t *peer, kv_status_t status, const char *reason)
{
    (void)status;
    peer->closed = true;
    snprintf(peer->reason, sizeof peer->reason, "%s", reason);
}

const char *kv_peer_name(const kv_peer_t *peer)
{
    return peer->name;
}

Kvist__Wire__Role kv_peer_role(const kv_peer_t *peer)
{
    return peer->role;
}

uint64_t kv_peer_id(const kv_peer_t *peer)
{
    return peer->id;
}

uint32_t kv_peer_version(const kv_peer_t *peer)
{
    return peer->version;
}

static struct kv_peer make_peer(uint64_t id, const char *name, Kvist__Wire__Role role)
{
    return (struct kv_peer){.id = id, .name = name, .attached_to = "", .role = role, .version = 2};
}

/* ---- prompts ---- */

/* All tokens of a context are its number: contexts share nothing. */
static void fill_tokens(uint32_t context, uint32_t *tokens, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        tokens[i] = context * 1000 + i;
    }
}

static void make_keys(uint32_t context, kv_prompt_keys_t *keys)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS + 3];
    fill_tokens(context, tokens, sizeof tokens / sizeof *tokens);
    const kv_namings_t namings = {.items = {NAMING}, .count = 1};
    kv_prompt_keys_make(&namings, "salt", 4, tokens, sizeof tokens / sizeof *tokens, keys);
    assert_int_equal(keys->of[0].block_count, BLOCKS);
}

/* ---- keys ---- */

static void keys_are_the_stores(void **state)
{
    (void)state;
    uint32_t tokens[40];
    fill_tokens(1, tokens, 40);
    kv_naming_t other = NAMING;
    other.shape.block_tokens = 32;
    const kv_namings_t namings = {.items = {NAMING, other}, .count = 2};
    kv_prompt_keys_t keys;
    kv_prompt_keys_make(&namings, "s", 1, tokens, 40, &keys);
    assert_int_equal(keys.of[0].block_count, 2);
    assert_int_equal(keys.of[1].block_count, 1);
    kvist_layout_t layout = kvist_layout_plain(&NAMING.shape);
    const kvist_namespace_params_t params = {
        .layout = &layout, .salt = "s", .salt_bytes = 1, .adapter = ""};
    kvist_key_t name_space = kvist_namespace(&params), wanted[2];
    kvist_keys(&name_space, tokens, NULL, 40, BLOCK_TOKENS, wanted);
    assert_memory_equal(keys.of[0].keys, wanted, sizeof wanted);
    kv_prompt_keys_clear(&keys);
    kv_prompt_keys_make(&namings, "", 0, tokens, 15, &keys);
    assert_int_equal(keys.of[0].block_count, 0);
    kv_prompt_keys_clear(&keys);
}

static void what_prompts_share(void **state)
{
    (void)state;
    const kv_namings_t namings = {.items = {NAMING}, .count = 1};
    uint32_t one[160], other[160];
    fill_tokens(1, one, 160);
    for (uint32_t differs = 0; differs <= 160; differs++) {
        fill_tokens(1, other, 160);
        if (differs < 160) {
            other[differs]++;
        }
        kv_prompt_keys_t left, right;
        kv_prompt_keys_make(&namings, "", 0, one, 160, &left);
        kv_prompt_keys_make(&namings, "", 0, other, 160 - differs % 33, &right);
        uint32_t whole = (160 - differs % 33) / BLOCK_TOKENS, same = differs / BLOCK_TOKENS;
        assert_int_equal(kv_prompt_keys_shared(&left, &right, 0), same < whole ? same : whole);
        assert_int_equal(kv_prompt_keys_shared(&left, &right, KV_NAMING_NONE), 0);
        assert_int_equal(kv_prompt_keys_shared(&left, &right, 1), 0);
        kv_prompt_keys_clear(&left);
        kv_prompt_keys_clear(&right);
    }
}

/* ---- namings ---- */

static Kvist__Wire__Naming message_of(const kv_naming_t *naming, kvist_key_t *name_space)
{
    Kvist__Wire__Naming message = KVIST__WIRE__NAMING__INIT;
    *name_space = kv_naming_name_space(naming, NULL, 0);
    message.model = (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)naming->model.bytes};
    message.layer_count = naming->shape.layer_count;
    message.kv_head_count = naming->shape.kv_head_count;
    message.head_dim = naming->shape.head_dim;
    message.block_tokens = naming->shape.block_tokens;
    message.element_bytes = naming->shape.element_bytes;
    message.name_space = (ProtobufCBinaryData){KVIST_KEY_BYTES, name_space->bytes};
    return message;
}

static void say_naming(kv_prefixes_t *prefixes, kv_peer_t *peer, Kvist__Wire__Naming *message)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_NAMING;
    envelope.naming = message;
    assert_true(kv_prefixes_message(prefixes, peer, &envelope));
}

static void namings_are_checked(void **state)
{
    (void)state;
    kv_prefixes_t *prefixes = kv_prefixes_create(MAP_BYTES);
    kvist_key_t name_space;
    struct kv_peer peer = make_peer(1, "decode-0", KVIST__WIRE__ROLE__ROLE_DECODE);
    kv_prefixes_peer_up(prefixes, &peer);
    assert_int_equal(kv_prefixes_naming_of(prefixes, &peer), KV_NAMING_NONE);
    Kvist__Wire__Naming message = message_of(&NAMING, &name_space);
    say_naming(prefixes, &peer, &message);
    assert_int_equal(kv_prefixes_naming_of(prefixes, &peer), 0);
    message.block_tokens = 0;
    say_naming(prefixes, &peer, &message);
    assert_true(peer.closed && strstr(peer.reason, "block_tokens") != NULL);
    message = message_of(&NAMING, &name_space);
    message.model.len = 31;
    say_naming(prefixes, &peer, &message);
    assert_non_null(strstr(peer.reason, "model has 31 bytes"));
    message = message_of(&NAMING, &name_space);
    message.element_bytes = 3;
    say_naming(prefixes, &peer, &message);
    assert_non_null(strstr(peer.reason, "element_bytes"));
    message = message_of(&NAMING, &name_space);
    message.layer_count = 1 << 30;
    say_naming(prefixes, &peer, &message);
    assert_non_null(strstr(peer.reason, "layer_count"));
    kv_prefixes_destroy(prefixes);
}

static void who_names_otherwise_is_left_alone(void **state)
{
    (void)state;
    kv_prefixes_t *prefixes = kv_prefixes_create(MAP_BYTES);
    kvist_key_t name_space;
    struct kv_peer peer = make_peer(1, "decode-0", KVIST__WIRE__ROLE__ROLE_DECODE);
    kv_prefixes_peer_up(prefixes, &peer);
    Kvist__Wire__Naming message = message_of(&NAMING, &name_space);
    name_space.bytes[0] ^= 1;
    say_naming(prefixes, &peer, &message);
    assert_false(peer.closed);
    assert_int_equal(kv_prefixes_naming_of(prefixes, &peer), KV_NAMING_NONE);
    for (int i = 0; i <= KV_NAMINGS_MAX; i++) {
        kv_naming_t other = NAMING;
        other.shape.head_dim += (uint32_t)i;
        message = message_of(&other, &name_space);
        say_naming(prefixes, &peer, &message);
        assert_int_equal(
            kv_prefixes_naming_of(prefixes, &peer), i < KV_NAMINGS_MAX ? i : KV_NAMING_NONE);
    }
    assert_int_equal(kv_prefixes_add_naming(prefixes, &NAMING), 0);
    kv_prefixes_destroy(prefixes);
}

static void an_older_node_is_not_asked(void **state)
{
    (void)state;
    kv_prefixes_t *prefixes = kv_prefixes_create(MAP_BYTES);
    struct kv_peer peer = make_peer(1, "decode-0", KVIST__WIRE__ROLE__ROLE_DECODE);
    peer.version = 1;
    kv_prefixes_peer_up(prefixes, &peer);
    assert_false(peer.subscribed);
    kv_prefixes_peer_down(prefixes, &peer);
    kv_prefixes_destroy(prefixes);
}

/* ---- events ---- */

static kv_prompt_keys_t context_keys[CONTEXTS];

static void visit_held(void *context, uint32_t number, kv_event_visit_t visit, void *visit_context)
{
    const struct kv_peer *peer = context;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        for (unsigned tier = 0; tier < TIERS; tier++) {
            const kvist_key_t *keys = context_keys[number].of[0].keys;
            static const uint8_t ROOT[KV_EVENT_KEY_BYTES];
            const kv_event_t event = {.tier = (Kvist__Events__Tier)tier,
                .stored = true,
                .key_count = 1,
                .keys = keys[block].bytes,
                .first_block = block,
                .name_space = ROOT,
                .parent = block > 0 ? keys[block - 1].bytes : ROOT};
            if (peer->held[number][block][tier]) {
                visit(visit_context, &event);
            }
        }
    }
}

static bool held(void *context, uint32_t *cursor, kv_event_visit_t visit, void *visit_context)
{
    if (*cursor < CONTEXTS) {
        visit_held(context, (*cursor)++, visit, visit_context);
    }
    return *cursor < CONTEXTS;
}

/* A block comes to a tier or leaves it. */
static void change(struct kv_peer *peer, uint32_t context, uint32_t block, unsigned tier)
{
    static const uint8_t ROOT[KV_EVENT_KEY_BYTES];
    const kvist_key_t *keys = context_keys[context].of[0].keys;
    bool *at = &peer->held[context][block][tier];
    *at = !*at;
    const kv_event_t event = {.tier = (Kvist__Events__Tier)tier,
        .stored = *at,
        .key_count = 1,
        .keys = keys[block].bytes,
        .first_block = block,
        .name_space = ROOT,
        .parent = block > 0 ? keys[block - 1].bytes : ROOT};
    kv_events_log_add(peer->log, &event);
}

/* One batch on its way: most come, some are lost, some come twice. */
static bool carry(kv_prefixes_t *prefixes, struct kv_peer *peer, uint64_t *random)
{
    const Kvist__Events__Batch *batch = kv_events_log_take(peer->log, &peer->place);
    if (batch == NULL) {
        return false;
    }
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_EVENTS;
    envelope.events = (Kvist__Events__Batch *)(uintptr_t)batch;
    /* What answers a subscription comes, or the connection ends: nobody asks twice. */
    bool numbered = batch->part == KVIST__EVENTS__PART__PART_NONE && !peer->asked;
    uint64_t fate = random != NULL ? kv_test_random(random) % 8 : 2;
    if (numbered && fate == 0) {
        return true; /* lost */
    }
    peer->asked = false;
    if (numbered && fate == 1) {
        assert_true(kv_prefixes_message(prefixes, peer, &envelope));
    }
    assert_true(kv_prefixes_message(prefixes, peer, &envelope));
    return true;
}

/* The plain answer. */
static kv_holding_t run_of(const struct kv_peer *one, const struct kv_peer *store, uint32_t context)
{
    kv_holding_t run = {.holder = one->id};
    for (uint32_t block = 0; block < BLOCKS; block++) {
        unsigned tier = 0;
        while (tier < TIERS && !one->held[context][block][tier] &&
               !(store != NULL && store->held[context][block][tier])) {
            tier++;
        }
        if (tier == TIERS) {
            break;
        }
        run.block_count++;
        run.tier_blocks[tier]++;
    }
    return run;
}

static void compare(kv_prefixes_t *prefixes, struct kv_peer *peers)
{
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        for (int i = 0; i < PEERS; i++) {
            for (int attached = 0; attached <= 1; attached++) {
                kv_holding_t wanted =
                    run_of(&peers[i], attached ? &peers[PEERS - 1] : NULL, context);
                kv_holding_t got = kv_prefixes_run(
                    prefixes, peers[i].id, attached ? "store-0" : "", &context_keys[context], 0);
                assert_int_equal(got.block_count, wanted.block_count);
                assert_memory_equal(got.tier_blocks, wanted.tier_blocks, sizeof got.tier_blocks);
            }
        }
    }
}

static void settle(kv_prefixes_t *prefixes, struct kv_peer *peers)
{
    for (int i = 0; i < PEERS; i++) {
        change(&peers[i], 0, 0, 0); /* so that what was lost last is noticed */
        for (int turn = 0; turn < 1000 && carry(prefixes, &peers[i], NULL); turn++) {
        }
    }
    compare(prefixes, peers);
}

static void events_that_are_lost_are_made_good(void **state)
{
    (void)state;
    uint64_t random = kv_test_seed();
    print_message("seed %ju (KVIST_SEED replays it)\n", (uintmax_t)random);
    struct kv_peer peers[PEERS] = {make_peer(1, "decode-0", KVIST__WIRE__ROLE__ROLE_DECODE),
        make_peer(2, "decode-1", KVIST__WIRE__ROLE__ROLE_DECODE),
        make_peer(3, "store-0", KVIST__WIRE__ROLE__ROLE_STORE)};
    for (uint32_t i = 0; i < CONTEXTS; i++) {
        make_keys(i, &context_keys[i]);
    }
    kv_prefixes_t *prefixes = kv_prefixes_create(MAP_BYTES);
    for (int i = 0; i < PEERS; i++) {
        const kv_events_log_params_t params = {
            peers[i].name, KV_EVENTS_LOG_BYTES_MIN, held, &peers[i]};
        peers[i].log = kv_events_log_create(&params);
        kv_prefixes_peer_up(prefixes, &peers[i]);
    }
    for (int step = 0; step < STEPS; step++) {
        struct kv_peer *peer = &peers[kv_test_random(&random) % PEERS];
        change(peer, (uint32_t)(kv_test_random(&random) % CONTEXTS),
            (uint32_t)(kv_test_random(&random) % BLOCKS), (unsigned)(kv_test_random(&random) % 3));
        if (kv_test_random(&random) % 3 == 0) {
            carry(prefixes, peer, &random);
        }
        if (step % 250 == 249) {
            settle(prefixes, peers);
        }
    }
    kv_prefixes_peer_down(prefixes, &peers[0]);
    assert_int_equal(kv_prefixes_run(prefixes, 1, "", &context_keys[1], 0).block_count, 0);
    for (int i = 0; i < PEERS; i++) {
        assert_false(peers[i].closed);
        kv_events_log_destroy(peers[i].log);
    }
    kv_prefixes_destroy(prefixes);
    for (uint32_t i = 0; i < CONTEXTS; i++) {
        kv_prompt_keys_clear(&context_keys[i]);
    }
}

static void malformed_events_end_the_connection(void **state)
{
    (void)state;
    kv_prefixes_t *prefixes = kv_prefixes_create(MAP_BYTES);
    struct kv_peer peer = make_peer(1, "decode-0", KVIST__WIRE__ROLE__ROLE_DECODE);
    Kvist__Events__Batch batch = KVIST__EVENTS__BATCH__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_EVENTS;
    envelope.events = &batch;
    assert_true(kv_prefixes_message(prefixes, &peer, &envelope)); /* of nobody that is followed */
    assert_false(peer.closed);
    kv_prefixes_peer_up(prefixes, &peer);
    assert_true(kv_prefixes_message(prefixes, &peer, &envelope));
    assert_true(peer.closed && strstr(peer.reason, "events.instance") != NULL);
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_TOKENS;
    assert_false(kv_prefixes_message(prefixes, &peer, &envelope));
    peer.closed = false;
    kv_prefixes_peer_down(prefixes, &peer);
    subscribe_status = KV_BUSY; /* its queue is full */
    kv_prefixes_peer_up(prefixes, &peer);
    subscribe_status = KV_OK;
    assert_true(peer.closed);
    kv_prefixes_destroy(prefixes);
}

/* ---- what was sent ---- */

static void what_was_sent_is_remembered(void **state)
{
    (void)state;
    enum { HOLDER = 77 };
    kv_prefixes_t *prefixes = kv_prefixes_create(MAP_BYTES);
    kv_prompt_keys_t keys;
    make_keys(5, &keys);
    int naming = kv_prefixes_add_naming(prefixes, &NAMING);
    assert_int_equal(kv_prefixes_run(prefixes, HOLDER, "", &keys, naming).block_count, 0);
    kv_prefixes_sent(prefixes, HOLDER, &keys, naming);
    kv_prefixes_sent(prefixes, HOLDER, &keys, KV_NAMING_NONE);
    kv_prefixes_sent(prefixes, HOLDER, &keys, 3);
    kv_holding_t run = kv_prefixes_run(prefixes, HOLDER, "", &keys, naming);
    assert_int_equal(run.block_count, BLOCKS);
    assert_int_equal(run.tier_blocks[0], BLOCKS);
    assert_int_equal(kv_prefixes_entry_count(prefixes), BLOCKS);
    kv_prefixes_forget(prefixes, HOLDER);
    assert_int_equal(kv_prefixes_run(prefixes, HOLDER, "", &keys, naming).block_count, 0);
    kv_prompt_keys_clear(&keys);
    kv_prefixes_destroy(prefixes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_the_stores),
        cmocka_unit_test(what_prompts_share),
        cmocka_unit_test(namings_are_checked),
        cmocka_unit_test(who_names_otherwise_is_left_alone),
        cmocka_unit_test(an_older_node_is_not_asked),
        cmocka_unit_test(events_that_are_lost_are_made_good),
        cmocka_unit_test(malformed_events_end_the_connection),
        cmocka_unit_test(what_was_sent_is_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
