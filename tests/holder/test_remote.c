/* The remote tier's glue: stores of several nodes, told over real connections, and whom one of them
 * would ask. The test stands for the holder: it sends, and says which data links are up. */
#include "kvstore/harness.h"

#include "base/metrics.h"
#include "holder/remote.h"

#include <uv.h>

enum { BLOCKS = 8, DEVICE_SLOTS = 4096 };

typedef struct {
    kv_holder_t holder; /* first */
    kv_options_t options;
    bench_t bench;
    char name[8];
} node_t;

static kv_reactor_t *reactor;
static node_t asker, nodes[2];
static const char *link_down; /* name of a peer */

bool kv_holder_link_up(const kv_peer_t *peer)
{
    return link_down == NULL || strcmp(kv_peer_name(peer), link_down) != 0;
}

void kv_holder_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kv_peer_send(peer, message);
}

/* ---- nodes ---- */

static void on_up(void *context, kv_peer_t *peer)
{
    kv_remote_peer_up(((node_t *)context)->holder.remote, peer);
}

static void on_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    (void)status;
    (void)reason;
    kv_remote_peer_down(((node_t *)context)->holder.remote, peer);
}

static void on_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    assert_true(kv_remote_message(((node_t *)context)->holder.remote, peer, message));
}

static void open_node(node_t *node, const char *name, bool listens)
{
    static const uint8_t DIGEST[KV_DIGEST_BYTES] = {1};
    static const char KEY[] = "a key that only this test knows";
    memset(node, 0, sizeof *node);
    snprintf(node->name, sizeof node->name, "%s", name);
    bench_init(&node->bench, name, DEVICE_SLOTS);
    bench_open(&node->bench);
    node->options.node.name = node->name;
    node->options.store.remote = true;
    node->options.store.remote_bytes = 1 << 20;
    node->options.store.events_bytes = 64 << 10;
    node->holder.options = &node->options;
    node->holder.reactor = reactor;
    node->holder.store = node->bench.store;
    node->holder.remote = kv_remote_create(&node->holder);
    kv_peers_params_t params = {
        .loop = kv_reactor_loop(reactor),
        .name = node->name,
        .role = KVIST__WIRE__ROLE__ROLE_PREFILL,
        .listen_host = listens ? "127.0.0.1" : NULL,
        .cluster_key = KEY,
        .cluster_key_bytes = sizeof KEY,
        .data_port = 4711,
        .model = DIGEST,
        .layout = DIGEST,
        .callbacks = {node, on_up, on_down, on_message},
    };
    kv_error_t error;
    assert_int_equal(kv_peers_create(&params, &node->holder.peers, &error), KV_OK);
}

static void close_node(node_t *node)
{
    if (node->holder.peers != NULL) {
        kv_peers_destroy(node->holder.peers);
        kv_remote_destroy(node->holder.remote);
        bench_end(&node->bench);
        node->holder.peers = NULL;
    }
}

static void turn(void)
{
    uv_run(kv_reactor_loop(reactor), UV_RUN_NOWAIT);
    node_t *const all[] = {&asker, &nodes[0], &nodes[1]};
    for (int i = 0; i < 3; i++) {
        if (all[i]->holder.peers != NULL) {
            kvist_store_poll(all[i]->bench.store);
        }
    }
    usleep(200);
}

/* Whom the asker would ask for the context; "" for nobody. */
static const char *source(uint32_t context, uint64_t excluded, uint32_t *block_count_out)
{
    kvist_key_t keys[BLOCKS];
    kv_peer_t *peer;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        keys[block] = block_key(&nodes[0].bench, context, block);
    }
    *block_count_out = 0;
    bool found = kv_remote_find(&asker.holder, keys, BLOCKS, &excluded, 1, &peer, block_count_out);
    return found ? kv_peer_name(peer) : "";
}

static void expect_source(uint32_t context, uint64_t excluded, const char *name, uint32_t blocks)
{
    uint32_t count;
    uint64_t end_ns = kv_clock_now_ns() + 10ull * KV_NS_PER_S;
    while ((strcmp(source(context, excluded, &count), name) != 0 || count != blocks) &&
           kv_clock_now_ns() < end_ns) {
        turn();
    }
    assert_string_equal(source(context, excluded, &count), name);
    assert_int_equal(count, blocks);
}

static uint64_t id_of(const char *name)
{
    return kv_peer_id(kv_peers_find(asker.holder.peers, name));
}

static int open_cluster(void **state)
{
    (void)state;
    kv_error_t error;
    link_down = NULL;
    assert_int_equal(kv_reactor_create(&reactor, &error), KV_OK);
    open_node(&asker, "asker", false);
    for (int i = 0; i < 2; i++) {
        char address[32];
        open_node(&nodes[i], i == 0 ? "one" : "two", true);
        snprintf(address, sizeof address, "127.0.0.1:%u", kv_peers_port(nodes[i].holder.peers));
        assert_int_equal(kv_peers_connect(asker.holder.peers, address, &error), KV_OK);
    }
    return 0;
}

static int close_cluster(void **state)
{
    (void)state;
    close_node(&asker);
    close_node(&nodes[0]);
    close_node(&nodes[1]);
    kv_reactor_destroy(reactor);
    return 0;
}

static double metric(const char *name, const char *labels)
{
    return kv_metric_value(kv_metric_counter(name, labels, ""));
}

/* ---- the tests ---- */

static const char *attached_to_one(const kvist_store_t *store)
{
    (void)store;
    return "one";
}

static void the_best_source_is_found(void **state)
{
    (void)state;
    request_context(&nodes[0].bench, 1, BLOCKS); /* before it is followed: of the snapshot */
    request_context(&nodes[1].bench, 1, 3);
    expect_source(1, 0, "one", BLOCKS);
    expect_source(1, id_of("one"), "two", 3);
    expect_source(2, 0, "", 0);
    request_context(&nodes[1].bench, 2, 5); /* while it is followed */
    expect_source(2, 0, "two", 5);
    link_down = "one";
    expect_source(1, 0, "two", 3);
    link_down = NULL;
    expect_source(1, 0, "one", BLOCKS);
    kv_peers_set_draining(nodes[0].holder.peers, true);
    expect_source(1, 0, "two", 3);
    kv_peers_set_draining(nodes[0].holder.peers, false);
    expect_source(1, 0, "one", BLOCKS);
    kv_store_ops_t attached = *asker.bench.store->ops;
    attached.attached_to = attached_to_one; /* whatever that one holds, the asker's store has */
    asker.bench.store->ops = &attached;
    expect_source(1, 0, "two", 3);
    asker.bench.store->ops = &KV_EMBEDDED_OPS;
    expect_source(1, 0, "one", BLOCKS);
    assert_int_equal(drop(&nodes[0].bench, 1, 2, false).status, KV_OK);
    expect_source(1, id_of("two"), "one", 2);
    close_node(&nodes[0]);
    expect_source(1, id_of("two"), "", 0);
    expect_source(1, 0, "two", 3);
}

static void of_equal_ones_the_idler_is_asked(void **state)
{
    (void)state;
    request_context(&nodes[0].bench, 1, 4);
    request_context(&nodes[1].bench, 1, 4);
    kv_peers_set_load(nodes[0].holder.peers, 3, 1);
    kv_peers_set_load(nodes[1].holder.peers, 0, 1);
    expect_source(1, 0, "two", 4);
    kv_peers_set_load(nodes[0].holder.peers, 0, 0);
    expect_source(1, 0, "one", 4);
}

/* More than the log keeps, at once: the follower lacks some, and is told everything. */
static void who_falls_behind_is_told_anew(void **state)
{
    (void)state;
    enum { MANY = 1000 };
    request_context(&nodes[0].bench, 1, 1);
    expect_source(1, 0, "one", 1);
    double snapshots = metric("kvist_events_snapshots_total", "direction=\"received\"");
    for (uint32_t context = 2; context < 2 + MANY; context++) {
        request_context(&nodes[0].bench, context, 2);
        kvist_store_poll(nodes[0].bench.store); /* an event each */
    }
    expect_source(1 + MANY, 0, "one", 2);
    expect_source(2, 0, "one", 2);
    assert_true(metric("kvist_events_snapshots_total", "direction=\"received\"") == snapshots + 1);
    assert_true(metric("kvist_events_gaps_total", "") == 0);
}

static void who_sends_rubbish_is_closed(void **state)
{
    (void)state;
    request_context(&nodes[0].bench, 1, 4);
    expect_source(1, 0, "one", 4);
    uint64_t before = id_of("one");
    uint8_t bytes[32] = {0};
    Kvist__Events__Removed removed = KVIST__EVENTS__REMOVED__INIT;
    Kvist__Events__Event event = KVIST__EVENTS__EVENT__INIT, *events = &event;
    Kvist__Events__Batch batch = KVIST__EVENTS__BATCH__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    removed.keys = (ProtobufCBinaryData){31, bytes};
    event.body_case = KVIST__EVENTS__EVENT__BODY_REMOVED;
    event.removed = &removed;
    batch.instance = (ProtobufCBinaryData){16, bytes};
    batch.first_sequence = 1;
    batch.events = &events;
    batch.n_events = 1;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_EVENTS;
    envelope.events = &batch;
    kv_peer_t *peer = kv_peers_find(nodes[0].holder.peers, "asker");
    assert_int_equal(kv_peer_send(peer, &envelope), KV_OK);
    uint64_t end_ns = kv_clock_now_ns() + 10ull * KV_NS_PER_S;
    kv_peer_t *again;
    do {
        turn();
        again = kv_peers_find(asker.holder.peers, "one");
    } while ((again == NULL || kv_peer_id(again) == before) && kv_clock_now_ns() < end_ns);
    assert_non_null(again); /* the connection is made again, and what it holds is told again */
    assert_int_not_equal(kv_peer_id(again), before);
    expect_source(1, 0, "one", 4);
}

static bool held(uint32_t context, const char **name_out, uint32_t *block_count_out)
{
    kvist_key_t keys[BLOCKS];
    for (uint32_t block = 0; block < BLOCKS; block++) {
        keys[block] = block_key(&nodes[0].bench, context, block);
    }
    return kv_remote_holder(&asker.holder, keys, BLOCKS, name_out, block_count_out);
}

/* For whoever asks why a prompt was computed that another node had. */
static void who_cannot_be_asked_is_named(void **state)
{
    (void)state;
    const char *name;
    uint32_t count;
    assert_false(held(1, &name, &count));
    request_context(&nodes[0].bench, 1, BLOCKS);
    request_context(&nodes[1].bench, 1, 3);
    expect_source(1, 0, "one", BLOCKS);
    link_down = "one";
    expect_source(1, 0, "two", 3);
    assert_true(held(1, &name, &count));
    assert_string_equal(name, "one");
    assert_int_equal(count, BLOCKS);
    link_down = NULL;
    kv_store_ops_t attached = *asker.bench.store->ops;
    attached.attached_to = attached_to_one;
    asker.bench.store->ops = &attached;
    assert_true(held(1, &name, &count));
    assert_string_equal(name, "two");
    asker.bench.store->ops = &KV_EMBEDDED_OPS;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_best_source_is_found, open_cluster, close_cluster),
        cmocka_unit_test_setup_teardown(
            of_equal_ones_the_idler_is_asked, open_cluster, close_cluster),
        cmocka_unit_test_setup_teardown(who_falls_behind_is_told_anew, open_cluster, close_cluster),
        cmocka_unit_test_setup_teardown(who_sends_rubbish_is_closed, open_cluster, close_cluster),
        cmocka_unit_test_setup_teardown(who_cannot_be_asked_is_named, open_cluster, close_cluster),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
