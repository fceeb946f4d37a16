/* Control connections: the handshake, what is refused, silence, and coming back. */
#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "testing/testing.h"
#include "transport/peers.h"
#include "transport/peers/handshake.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static const char KEY[] = "a key that only this test knows";
static const uint8_t MODEL[KV_DIGEST_BYTES] = {1}, OTHER_MODEL[KV_DIGEST_BYTES] = {2};

typedef struct {
    kv_peers_t *peers;
    int up, down, messages;
    kv_peer_t *peer;
    kv_status_t status;
    char reason[256], name[64];
    uint32_t last_running;
    bool greets; /* sends a message inside up() */
} node_t;

static Kvist__Wire__Envelope cancel_envelope(Kvist__Wire__Cancel *cancel)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CANCEL;
    envelope.cancel = cancel;
    return envelope;
}

static void on_up(void *context, kv_peer_t *peer)
{
    node_t *node = context;
    node->up++;
    node->peer = peer;
    snprintf(node->name, sizeof node->name, "%s", kv_peer_name(peer));
    if (node->greets) {
        Kvist__Wire__Cancel cancel = KVIST__WIRE__CANCEL__INIT;
        cancel.request_id = (char *)"greeting";
        Kvist__Wire__Envelope envelope = cancel_envelope(&cancel);
        assert_int_equal(kv_peer_send(peer, &envelope), KV_OK);
    }
}

static void on_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    node_t *node = context;
    assert_true(peer == node->peer);
    node->down++;
    node->peer = NULL;
    node->status = status;
    snprintf(node->reason, sizeof node->reason, "%s", reason);
}

/* Of a node with several peers. */
static void count_up(void *context, kv_peer_t *peer)
{
    (void)peer;
    ((node_t *)context)->up++;
}

static void count_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    (void)peer;
    (void)status;
    (void)reason;
    ((node_t *)context)->down++;
}

static void on_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    node_t *node = context;
    assert_true(peer == node->peer); /* never before up(), never after down() */
    assert_int_equal(message->body_case, KVIST__WIRE__ENVELOPE__BODY_CANCEL);
    node->messages++;
}

static kv_peers_params_t params_of(node_t *node, uv_loop_t *loop, const char *name, bool listens)
{
    return (kv_peers_params_t){
        .loop = loop,
        .name = name,
        .role = KVIST__WIRE__ROLE__ROLE_DECODE,
        .listen_host = listens ? "127.0.0.1" : NULL,
        .cluster_key = KEY,
        .cluster_key_bytes = sizeof KEY,
        .data_port = 4711,
        .model = MODEL,
        .callbacks = {node, on_up, on_down, on_message},
    };
}

static void open_node(node_t *node, const kv_peers_params_t *params)
{
    kv_error_t error = {0};
    if (kv_peers_create(params, &node->peers, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
}

static void connect_to(node_t *node, uint16_t port)
{
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%u", port);
    assert_int_equal(kv_peers_connect(node->peers, address, NULL), KV_OK);
}

/* Runs the loop until *value is at least wanted, or the time is over. */
static bool run_until(uv_loop_t *loop, const int *value, int wanted, int limit_ms)
{
    uint64_t end_ns = kv_clock_now_ns() + (uint64_t)limit_ms * KV_NS_PER_MS;
    while (*value < wanted && kv_clock_now_ns() < end_ns) {
        uv_run(loop, UV_RUN_NOWAIT);
        usleep(500);
    }
    return *value >= wanted;
}

static void run_for(uv_loop_t *loop, int duration_ms)
{
    static const int never = 0;
    run_until(loop, &never, 1, duration_ms);
}

static void close_loop(uv_loop_t *loop)
{
    uv_run(loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(loop), 0);
}

static void peers_meet_and_talk(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    node_t a = {.greets = true}, b = {.greets = true};
    kv_peers_params_t pa = params_of(&a, &loop, "a", true), pb = params_of(&b, &loop, "b", false);
    open_node(&a, &pa);
    open_node(&b, &pb);
    kv_peers_set_load(a.peers, 3, 2);
    connect_to(&b, kv_peers_port(a.peers));
    assert_int_equal(a.up + b.up, 0); /* no callback before the call returns */
    assert_true(run_until(&loop, &a.messages, 1, 2000));
    assert_true(run_until(&loop, &b.messages, 1, 2000));
    assert_string_equal(a.name, "b");
    assert_string_equal(b.name, "a");
    assert_true(kv_peers_find(a.peers, "b") == a.peer);
    assert_null(kv_peers_find(a.peers, "c"));

    kv_link_params_t la, lb;
    assert_true(kv_peer_link_params(a.peer, &la) && kv_peer_link_params(b.peer, &lb));
    assert_memory_equal(la.token, lb.token, KV_DATA_TOKEN_BYTES);
    assert_true(lb.connects && !la.connects && la.same_host && lb.same_host);
    assert_int_equal(lb.port, 4711);
    assert_string_equal(lb.host, "127.0.0.1");

    run_for(&loop, 300);
    assert_int_equal(kv_peer_queued_requests(b.peer), 3);
    assert_int_equal(kv_peer_running_requests(b.peer), 2);

    kv_peer_close(a.peer, KV_REFUSED, "not wanted");
    assert_int_equal(a.down, 0);
    assert_true(run_until(&loop, &a.down, 1, 500) && run_until(&loop, &b.down, 1, 500));
    assert_int_equal(a.status, KV_REFUSED);
    assert_int_equal(b.status, KV_PEER_LOST);
    assert_true(run_until(&loop, &b.up, 2, 1000)); /* and again, by itself */
    kv_peers_destroy(a.peers);
    kv_peers_destroy(b.peers);
    close_loop(&loop);
    assert_int_equal(a.down, 1); /* none after destroy */
}

static void a_peer_that_differs_is_refused(void **state)
{
    (void)state;
    static const char OTHER_KEY[] = "a key that nobody here knows....";
    for (int which = 0; which < 6; which++) {
        uv_loop_t loop;
        uv_loop_init(&loop);
        node_t a = {0}, b = {0};
        kv_peers_params_t pa = params_of(&a, &loop, "a", true),
                          pb = params_of(&b, &loop, "b", false);
        pb.cluster_key = which == 0 ? OTHER_KEY : KEY;
        pb.model = which == 1 ? OTHER_MODEL : which == 4 ? NULL : MODEL;
        pa.layout = which == 2 || which == 5 ? MODEL : NULL;
        pb.layout = which == 2 ? OTHER_MODEL : NULL; /* 5: computes, and does not say with what */
        pb.name = which == 3 ? "a" : "b";
        open_node(&a, &pa);
        open_node(&b, &pb);
        connect_to(&b, kv_peers_port(a.peers));
        assert_false(run_until(&loop, &a.up, 1, 300));
        assert_int_equal(b.up, 0);
        kv_peers_destroy(a.peers);
        kv_peers_destroy(b.peers);
        close_loop(&loop);
    }
    node_t node = {0};
    kv_error_t error;
    uv_loop_t loop;
    uv_loop_init(&loop);
    kv_peers_params_t params = params_of(&node, &loop, "a", false);
    params.cluster_key_bytes = 8;
    assert_int_equal(kv_peers_create(&params, &node.peers, &error), KV_INVALID);
    params.cluster_key_bytes = sizeof KEY;
    params.listen_host = "example.org";
    assert_int_equal(kv_peers_create(&params, &node.peers, &error), KV_INVALID);
    params.listen_host = NULL;
    open_node(&node, &params);
    static const char *const WRONG[] = {"", ":1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0",
        "127.0.0.1:65536", "127.0.0.1:1x", "host:1", "[::1:1"};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        assert_int_equal(kv_peers_connect(node.peers, WRONG[i], &error), KV_INVALID);
    }
    kv_peers_destroy(node.peers);
    close_loop(&loop);
}

/* ---- the handshake's own rules, without sockets ---- */

typedef struct {
    kv_handshake_t opener, acceptor;
    uint8_t opener_proof[KV_HELLO_BYTES_MAX], acceptor_proof[KV_HELLO_BYTES_MAX];
    size_t opener_bytes, acceptor_bytes;
} pair_t;

static const kv_identity_t OPENER = {.name = "o",
    .role = KVIST__WIRE__ROLE__ROLE_DECODE,
    .version = 1,
    .version_min = 1,
    .cluster_key = KEY,
    .cluster_key_bytes = sizeof KEY};
static const kv_identity_t ACCEPTOR = {.name = "a",
    .role = KVIST__WIRE__ROLE__ROLE_PREFILL,
    .version = 1,
    .version_min = 1,
    .cluster_key = KEY,
    .cluster_key_bytes = sizeof KEY};

static void shake_hellos(pair_t *pair, const kv_identity_t *opener, const kv_identity_t *acceptor)
{
    size_t none;
    assert_int_equal(kv_handshake_begin(&pair->opener, opener, true, NULL), KV_OK);
    assert_int_equal(kv_handshake_begin(&pair->acceptor, acceptor, false, NULL), KV_OK);
    assert_int_equal(kv_handshake_receive(&pair->acceptor, pair->opener.own_hello,
                         pair->opener.own_hello_bytes, pair->acceptor_proof, &none, NULL),
        KV_OK);
    assert_int_equal(none, 0); /* an acceptor says nothing of the key before the opener proved it */
    assert_int_equal(
        kv_handshake_receive(&pair->opener, pair->acceptor.own_hello,
            pair->acceptor.own_hello_bytes, pair->opener_proof, &pair->opener_bytes, NULL),
        KV_OK);
}

static void neighbouring_versions_talk(void **state)
{
    (void)state;
    pair_t *pair = calloc(1, sizeof *pair);
    kv_identity_t newer = OPENER;
    newer.version = 2;
    shake_hellos(pair, &newer, &ACCEPTOR);
    assert_int_equal(pair->opener.facts.version, 1);
    assert_int_equal(pair->acceptor.facts.version, 1);

    newer.version = 3;
    newer.version_min = 2;
    uint8_t reply[KV_HELLO_BYTES_MAX];
    size_t bytes;
    kv_error_t error;
    assert_int_equal(kv_handshake_begin(&pair->opener, &newer, true, NULL), KV_OK);
    assert_int_equal(kv_handshake_begin(&pair->acceptor, &ACCEPTOR, false, NULL), KV_OK);
    assert_int_equal(kv_handshake_receive(&pair->acceptor, pair->opener.own_hello,
                         pair->opener.own_hello_bytes, reply, &bytes, &error),
        KV_REFUSED);
    assert_non_null(strstr(error.text, "1 to 1"));
    assert_non_null(strstr(error.text, "2 to 3"));
    assert_int_equal(kv_handshake_receive(&pair->opener, pair->acceptor.own_hello,
                         pair->acceptor.own_hello_bytes, reply, &bytes, &error),
        KV_REFUSED);
    assert_non_null(strstr(error.text, "2 to 3"));
    free(pair);
}

/* What does not know of stores reads its Hello's role alone. */
static void a_store_is_a_gateway_to_older_nodes(void **state)
{
    (void)state;
    pair_t *pair = calloc(1, sizeof *pair);
    kv_identity_t store = OPENER;
    store.role = KVIST__WIRE__ROLE__ROLE_STORE;
    store.data_port = 4711;
    kv_identity_t engine = ACCEPTOR;
    engine.model = MODEL;
    shake_hellos(pair, &store, &engine);
    assert_int_equal(pair->acceptor.facts.role, KVIST__WIRE__ROLE__ROLE_STORE);
    assert_int_equal(pair->opener.facts.role, KVIST__WIRE__ROLE__ROLE_PREFILL);
    Kvist__Wire__Envelope *hello =
        kvist__wire__envelope__unpack(NULL, pair->opener.own_hello_bytes, pair->opener.own_hello);
    assert_non_null(hello);
    assert_int_equal(hello->hello->role, KVIST__WIRE__ROLE__ROLE_GATEWAY);
    kvist__wire__envelope__free_unpacked(hello, NULL);

    store.role = KVIST__WIRE__ROLE__ROLE_GATEWAY; /* a true one is none */
    shake_hellos(pair, &store, &engine);
    assert_int_equal(pair->acceptor.facts.role, KVIST__WIRE__ROLE__ROLE_GATEWAY);
    free(pair);
}

static void a_layout_that_differs_is_named(void **state)
{
    (void)state;
    pair_t *pair = calloc(1, sizeof *pair);
    kv_identity_t ours = ACCEPTOR, theirs = OPENER;
    ours.layout = MODEL;
    ours.layout_text = "blocks of 16 tokens";
    theirs.layout = OTHER_MODEL;
    const struct {
        const char *said, *told;
    } CASES[] = {{"blocks of 32 tokens", "blocks of 32 tokens there: model.block_tokens"},
        {"blocks of \n32", "first 8 bytes"}, {NULL, "first 8 bytes"}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        theirs.layout_text = CASES[i].said;
        uint8_t reply[KV_HELLO_BYTES_MAX];
        size_t bytes;
        kv_error_t error;
        assert_int_equal(kv_handshake_begin(&pair->opener, &theirs, true, NULL), KV_OK);
        assert_int_equal(kv_handshake_begin(&pair->acceptor, &ours, false, NULL), KV_OK);
        assert_int_equal(kv_handshake_receive(&pair->acceptor, pair->opener.own_hello,
                             pair->opener.own_hello_bytes, reply, &bytes, &error),
            KV_REFUSED);
        assert_non_null(strstr(error.text, CASES[i].told));
    }
    free(pair);
}

static void a_proof_serves_once_and_one_way(void **state)
{
    (void)state;
    pair_t *one = calloc(1, sizeof *one), *two = calloc(1, sizeof *two);
    uint8_t reply[KV_HELLO_BYTES_MAX];
    size_t bytes;
    kv_error_t error;
    shake_hellos(one, &OPENER, &ACCEPTOR);
    shake_hellos(two, &OPENER, &ACCEPTOR);
    /* Replayed from another connection. */
    assert_int_equal(kv_handshake_receive(&two->acceptor, one->opener_proof, one->opener_bytes,
                         reply, &bytes, &error),
        KV_REFUSED);
    assert_non_null(strstr(error.text, "wrong cluster key"));
    /* Reflected: the opener's own proof comes back. */
    assert_int_equal(kv_handshake_receive(
                         &one->opener, one->opener_proof, one->opener_bytes, reply, &bytes, &error),
        KV_REFUSED);
    /* Every byte of the proof counts. */
    for (size_t at = 0; at < two->opener_bytes; at++) {
        pair_t *pair = calloc(1, sizeof *pair);
        shake_hellos(pair, &OPENER, &ACCEPTOR);
        pair->opener_proof[at] ^= 0x10;
        assert_int_not_equal(kv_handshake_receive(&pair->acceptor, pair->opener_proof,
                                 pair->opener_bytes, reply, &bytes, &error),
            KV_OK);
        free(pair);
    }
    /* The token is bound too. */
    pair_t *three = calloc(1, sizeof *three);
    shake_hellos(three, &OPENER, &ACCEPTOR);
    assert_int_equal(kv_handshake_receive(&three->acceptor, three->opener_proof,
                         three->opener_bytes, three->acceptor_proof, &three->acceptor_bytes, NULL),
        KV_OK);
    assert_int_equal(three->acceptor.state, KV_HANDSHAKE_DONE);
    three->acceptor_proof[three->acceptor_bytes - 1] ^= 1;
    assert_int_equal(kv_handshake_receive(&three->opener, three->acceptor_proof,
                         three->acceptor_bytes, reply, &bytes, &error),
        KV_REFUSED);
    free(one);
    free(two);
    free(three);
}

static void garbage_never_passes_the_handshake(void **state)
{
    (void)state;
    uint64_t seed = kv_test_seed();
    uint8_t reply[KV_HELLO_BYTES_MAX];
    size_t bytes;
    kv_error_t error;
    pair_t *pair = calloc(1, sizeof *pair);
    for (int round = 0; round < (kv_test_long() ? 200000 : 5000); round++) {
        assert_int_equal(kv_handshake_begin(&pair->opener, &OPENER, true, NULL), KV_OK);
        assert_int_equal(kv_handshake_begin(&pair->acceptor, &ACCEPTOR, false, NULL), KV_OK);
        uint8_t message[256];
        size_t length = pair->opener.own_hello_bytes;
        memcpy(message, pair->opener.own_hello, length);
        for (uint64_t flips = 1 + kv_test_random(&seed) % 4; flips > 0; flips--) {
            message[kv_test_random(&seed) % length] ^= (uint8_t)(1 << kv_test_random(&seed) % 8);
        }
        length -= kv_test_random(&seed) % 3;
        if (kv_handshake_receive(&pair->acceptor, message, length, reply, &bytes, &error) !=
            KV_OK) {
            assert_true(strlen(error.text) > 0);
            continue;
        }
        /* The damaged Hello may say something sensible; the proof over the true one is then wrong.
         * */
        kv_handshake_receive(&pair->opener, pair->acceptor.own_hello,
            pair->acceptor.own_hello_bytes, pair->opener_proof, &pair->opener_bytes, &error);
        if (memcmp(message, pair->opener.own_hello, length) != 0 ||
            length != pair->opener.own_hello_bytes) {
            assert_int_equal(kv_handshake_receive(&pair->acceptor, pair->opener_proof,
                                 pair->opener_bytes, reply, &bytes, &error),
                KV_REFUSED);
        }
    }
    free(pair);
}

/* ---- the control port ---- */

static int raw_connection(uint16_t port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

/* true when the other side closed within the time. */
static bool is_closed(uv_loop_t *loop, int fd, int limit_ms)
{
    uint64_t end_ns = kv_clock_now_ns() + (uint64_t)limit_ms * KV_NS_PER_MS;
    while (kv_clock_now_ns() < end_ns) {
        uv_run(loop, UV_RUN_NOWAIT);
        char bytes[4096];
        ssize_t count = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (count == 0 || (count < 0 && errno != EAGAIN)) {
            return true;
        }
        usleep(1000);
    }
    return false;
}

static void garbage_on_the_port_is_closed(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    node_t a = {0};
    kv_peers_params_t pa = params_of(&a, &loop, "a", true);
    open_node(&a, &pa);
    uint16_t port = kv_peers_port(a.peers);
    static const struct {
        uint32_t length;
        size_t sent;
    } CASES[] = {{0, 4}, {UINT32_MAX, 4}, {4097, 4}, {100, 104}, {4096, 4100}, {1, 5}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        uint8_t bytes[8192];
        memset(bytes, 0xa5, sizeof bytes);
        kv_put_u32(bytes, CASES[i].length);
        int fd = raw_connection(port);
        assert_int_equal(send(fd, bytes, CASES[i].sent, MSG_NOSIGNAL), CASES[i].sent);
        assert_true(is_closed(&loop, fd, 1000));
        close(fd);
    }
    /* Silent, and truncated: closed when the time is over. */
    int silent = raw_connection(port), truncated = raw_connection(port);
    uint8_t part[] = {200, 0, 0, 0, 10};
    assert_int_equal(send(truncated, part, sizeof part, MSG_NOSIGNAL), sizeof part);
    assert_false(is_closed(&loop, silent, 1500));
    assert_true(is_closed(&loop, silent, 1500));
    assert_true(is_closed(&loop, truncated, 500));
    close(silent);
    close(truncated);
    assert_int_equal(a.up, 0);
    kv_peers_destroy(a.peers);
    close_loop(&loop);
}

/* Strangers who take every place and say nothing: the one who was silent for longest makes room,
 * and whoever has the key is in at once. */
static void strangers_keep_nobody_out(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    node_t a = {0}, b = {0};
    kv_peers_params_t pa = params_of(&a, &loop, "a", true), pb = params_of(&b, &loop, "b", false);
    open_node(&a, &pa);
    open_node(&b, &pb);
    int fds[KV_PEERS_PENDING_MAX + 4];
    size_t count = sizeof fds / sizeof fds[0];
    for (size_t i = 0; i < count; i++) {
        fds[i] = raw_connection(kv_peers_port(a.peers));
        run_for(&loop, 2);
    }
    assert_true(is_closed(&loop, fds[0], 200));
    assert_false(is_closed(&loop, fds[count - 1], 10));
    connect_to(&b, kv_peers_port(a.peers));
    assert_true(run_until(&loop, &b.up, 1, 500));
    for (size_t i = 0; i < count; i++) {
        close(fds[i]);
    }
    kv_peers_destroy(a.peers);
    kv_peers_destroy(b.peers);
    close_loop(&loop);
}

/* ---- death, sleep, return: another process ---- */

static pid_t start_node(uint16_t port)
{
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        uv_loop_t loop;
        uv_loop_init(&loop);
        node_t b = {0};
        kv_peers_params_t pb = params_of(&b, &loop, "b", true);
        pb.listen_port = port;
        open_node(&b, &pb);
        for (;;) {
            uv_run(&loop, UV_RUN_DEFAULT);
        }
    }
    return pid;
}

static void a_dead_or_stopped_peer_is_noticed_and_comes_back(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    node_t a = {0};
    kv_peers_params_t pa = params_of(&a, &loop, "a", false);
    uint16_t port = (uint16_t)(20000 + getpid() % 10000);
    pid_t pid = start_node(port);
    open_node(&a, &pa);
    connect_to(&a, port);
    assert_true(run_until(&loop, &a.up, 1, 3000));
    run_for(&loop, 700);
    assert_int_equal(a.down, 0);

    kill(pid, SIGKILL);
    uint64_t begin_ns = kv_clock_now_ns();
    assert_true(run_until(&loop, &a.down, 1, 3000));
    print_message("kill -9 noticed after %.1f ms\n", (double)(kv_clock_now_ns() - begin_ns) / 1e6);
    assert_int_equal(a.status, KV_PEER_LOST);
    waitpid(pid, NULL, 0);

    pid = start_node(port);
    assert_true(run_until(&loop, &a.up, 2, 2000)); /* within 2 s of its return */

    kill(pid, SIGSTOP);
    begin_ns = kv_clock_now_ns();
    assert_true(run_until(&loop, &a.down, 2, 3000)); /* within 3 s, though its socket lives */
    print_message("SIGSTOP noticed after %.1f ms: %s\n",
        (double)(kv_clock_now_ns() - begin_ns) / 1e6, a.reason);
    assert_non_null(strstr(a.reason, "silent"));
    kill(pid, SIGCONT);
    assert_true(run_until(&loop, &a.up, 3, 5000));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    kv_peers_destroy(a.peers);
    close_loop(&loop);
}

/* Two nodes of one name: the one that was first keeps its connection, and goes on undisturbed. */
static void a_name_belongs_to_one_node(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    node_t a = {0}, first = {0}, second = {0};
    kv_peers_params_t pa = params_of(&a, &loop, "a", true),
                      pf = params_of(&first, &loop, "b", false),
                      ps = params_of(&second, &loop, "b", false);
    open_node(&a, &pa);
    open_node(&first, &pf);
    connect_to(&first, kv_peers_port(a.peers));
    assert_true(run_until(&loop, &first.up, 1, 2000));
    open_node(&second, &ps);
    connect_to(&second, kv_peers_port(a.peers));
    assert_false(run_until(&loop, &second.up, 1, 1500));
    assert_int_equal(a.up, 1);
    assert_int_equal(a.down + first.down, 0);
    kv_peers_destroy(first.peers);
    assert_true(run_until(&loop, &second.up, 1, 2500)); /* the name is free again */
    assert_int_equal(a.down, 1);
    kv_peers_destroy(a.peers);
    kv_peers_destroy(second.peers);
    close_loop(&loop);
}

static void a_full_queue_answers_busy(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    node_t a = {0}, b = {0};
    kv_peers_params_t pa = params_of(&a, &loop, "a", true), pb = params_of(&b, &loop, "b", false);
    open_node(&a, &pa);
    open_node(&b, &pb);
    connect_to(&b, kv_peers_port(a.peers));
    assert_true(run_until(&loop, &b.up, 1, 2000) && run_until(&loop, &a.up, 1, 2000));
    char *text = malloc(1 << 20);
    memset(text, 'x', 1 << 20);
    text[(1 << 20) - 1] = '\0';
    Kvist__Wire__Cancel cancel = KVIST__WIRE__CANCEL__INIT;
    cancel.request_id = text;
    Kvist__Wire__Envelope envelope = cancel_envelope(&cancel);
    int sent = 0;
    while (kv_peer_send(b.peer, &envelope) == KV_OK) {
        sent++;
        assert_true(sent <= 200);
    }
    assert_int_equal(kv_peer_send(b.peer, &envelope), KV_BUSY);
    assert_true(run_until(&loop, &a.messages, sent, 10000));
    assert_int_equal(kv_peer_send(b.peer, &envelope), KV_OK);
    free(text);
    kv_peers_destroy(a.peers);
    kv_peers_destroy(b.peers);
    close_loop(&loop);
}

/* ---- many nodes that are told of each other ---- */

static double refused_count(void)
{
    static const char *const KINDS[] = {
        "reason=\"handshake\"", "reason=\"malformed\"", "reason=\"lost\""};
    double count = 0;
    for (size_t i = 0; i < 3; i++) {
        count +=
            kv_metric_value(kv_metric_counter("kvist_peers_refused_total", KINDS[i], "refused"));
    }
    return count;
}

/* Both open at about once, many times over, with their steps interleaved at random: one connection
 * comes up on both sides, nothing comes down, nobody is refused, and nothing more happens. */
static void two_that_open_to_each_other_keep_one(void **state)
{
    (void)state;
    uint64_t seed = kv_test_seed();
    double refused = refused_count();
    int by_larger = 0;
    for (int round = 0; round < (kv_test_long() ? 1000 : 100); round++) {
        uv_loop_t loops[2]; /* of their own, so that their steps interleave as they come */
        node_t nodes[2] = {{0}, {0}};
        for (int i = 0; i < 2; i++) {
            uv_loop_init(&loops[i]);
            kv_peers_params_t params = params_of(&nodes[i], &loops[i], i == 0 ? "a" : "b", true);
            open_node(&nodes[i], &params);
        }
        int first = round % 2;
        connect_to(&nodes[first], kv_peers_port(nodes[!first].peers));
        for (uint64_t step = kv_test_random(&seed) % 12; step > 0; step--) {
            uv_run(&loops[kv_test_random(&seed) % 2], UV_RUN_NOWAIT);
        }
        connect_to(&nodes[!first], kv_peers_port(nodes[first].peers));
        uint64_t end_ns = kv_clock_now_ns() + 5 * (uint64_t)KV_NS_PER_S;
        while ((nodes[0].up == 0 || nodes[1].up == 0) && kv_clock_now_ns() < end_ns) {
            uv_run(&loops[kv_test_random(&seed) % 2], UV_RUN_NOWAIT);
        }
        for (int turn = 0; turn < (round % 50 == 0 ? 700 : 20); turn++) {
            uv_run(&loops[turn % 2], UV_RUN_NOWAIT);
            usleep(1000);
        }
        kv_link_params_t links[2];
        for (int i = 0; i < 2; i++) {
            assert_int_equal(nodes[i].up, 1);
            assert_int_equal(nodes[i].down, 0);
            assert_true(kv_peer_link_params(nodes[i].peer, &links[i]));
        }
        assert_int_equal(links[0].connects + links[1].connects, 1); /* the same one */
        assert_memory_equal(links[0].token, links[1].token, KV_DATA_TOKEN_BYTES);
        by_larger += links[1].connects;
        for (int i = 0; i < 2; i++) {
            kv_peers_destroy(nodes[i].peers);
            close_loop(&loops[i]);
        }
    }
    print_message("opened by the larger name: %d\n", by_larger);
    assert_true(by_larger > 0); /* where it came first */
    assert_true(refused_count() == refused);
}

/* Three, each with the whole list, itself included; one leaves and comes back. */
static void a_mesh_of_one_list(void **state)
{
    (void)state;
    enum { COUNT = 3 };
    uv_loop_t loop;
    uv_loop_init(&loop);
    double refused = refused_count();
    node_t nodes[COUNT] = {{0}};
    kv_peers_params_t params[COUNT];
    uint16_t ports[COUNT];
    static const char *const NAMES[COUNT] = {"n1", "n2", "n3"};
    for (int i = 0; i < COUNT; i++) {
        params[i] = params_of(&nodes[i], &loop, NAMES[i], true);
        params[i].callbacks.up = count_up;
        params[i].callbacks.down = count_down;
        open_node(&nodes[i], &params[i]);
        ports[i] = kv_peers_port(nodes[i].peers);
    }
    for (int i = 0; i < COUNT; i++) {
        for (int j = 0; j < COUNT; j++) {
            connect_to(&nodes[i], ports[j]);
        }
    }
    for (int i = 0; i < COUNT; i++) {
        assert_true(run_until(&loop, &nodes[i].up, COUNT - 1, 3000));
    }
    run_for(&loop, 1500);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(nodes[i].up, COUNT - 1);
        assert_int_equal(nodes[i].down, 0);
    }
    assert_true(refused_count() == refused); /* itself was left alone without a word */

    kv_peers_destroy(nodes[2].peers);
    assert_true(run_until(&loop, &nodes[0].down, 1, 500));
    assert_true(run_until(&loop, &nodes[1].down, 1, 500));
    run_for(&loop, 2500); /* the others' pauses are at their longest */
    params[2].listen_port = ports[2];
    nodes[2] = (node_t){0};
    open_node(&nodes[2], &params[2]);
    uint64_t begin_ns = kv_clock_now_ns();
    assert_true(run_until(&loop, &nodes[2].up, COUNT - 1, 2000)); /* it has opened to nobody */
    print_message("back after %.0f ms\n", (double)(kv_clock_now_ns() - begin_ns) / 1e6);
    run_for(&loop, 300);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(nodes[i].up - nodes[i].down, COUNT - 1);
        kv_peers_destroy(nodes[i].peers);
    }
    close_loop(&loop);
}

/* An address that does not even answer (its packets are lost), for as long as a pause can grow: a
 * node that appears there is up within 2 s, whatever the attempt before it was doing. */
static void a_return_out_of_silence_takes_2_s_at_most(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    node_t a = {0}, b = {0};
    kv_peers_params_t pa = params_of(&a, &loop, "a", false), pb = params_of(&b, &loop, "b", true);
    /* A full backlog: the kernel drops what else comes. */
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, bytes), 0);
    assert_int_equal(listen(listener, 0), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &bytes), 0);
    int fillers[4];
    for (int i = 0; i < 4; i++) {
        fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        (void)!connect(fillers[i], (struct sockaddr *)&address, sizeof address);
    }
    open_node(&a, &pa);
    connect_to(&a, ntohs(address.sin_port));
    run_for(&loop, 4100); /* in the middle of an attempt */
    assert_int_equal(a.up, 0);
    for (int i = 0; i < 4; i++) {
        close(fillers[i]);
    }
    close(listener);
    pb.listen_port = ntohs(address.sin_port);
    open_node(&b, &pb);
    uint64_t begin_ns = kv_clock_now_ns();
    assert_true(run_until(&loop, &a.up, 1, 2000));
    print_message("out of silence after %.0f ms\n", (double)(kv_clock_now_ns() - begin_ns) / 1e6);
    kv_peers_destroy(a.peers);
    kv_peers_destroy(b.peers);
    close_loop(&loop);
}

static void an_address_is_taken_away(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    node_t a = {0}, b = {0};
    kv_peers_params_t pa = params_of(&a, &loop, "a", true), pb = params_of(&b, &loop, "b", true);
    open_node(&a, &pa);
    open_node(&b, &pb);
    uint16_t port = kv_peers_port(a.peers);
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%u", port);
    connect_to(&b, port);
    connect_to(&b, port); /* of two sources: one connection */
    assert_true(run_until(&loop, &b.up, 1, 2000));
    kv_peers_disconnect(b.peers, address);
    kv_peer_close(b.peer, KV_CANCELLED, "try");
    assert_true(run_until(&loop, &b.up, 2, 1000)); /* one of the two still wants it */

    kv_peers_disconnect(b.peers, address);
    run_for(&loop, 300);
    assert_int_equal(b.down, 1); /* what is up stays */
    kv_peer_close(b.peer, KV_CANCELLED, "try");
    assert_true(run_until(&loop, &b.down, 2, 500));
    assert_false(run_until(&loop, &b.up, 3, 1500));
    kv_peers_disconnect(b.peers, address); /* of what is not there: nothing */
    connect_to(&b, port);
    assert_true(run_until(&loop, &b.up, 3, 500));
    kv_peers_destroy(a.peers);
    kv_peers_destroy(b.peers);
    close_loop(&loop);
}

/* A gateway that is told of every node opens to those of one role. */
static void only_useful_roles_are_opened(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    double refused = refused_count();
    node_t decode = {0}, prefill = {0}, gateway = {0};
    kv_peers_params_t pd = params_of(&decode, &loop, "d", true),
                      pp = params_of(&prefill, &loop, "p", true),
                      pg = params_of(&gateway, &loop, "g", false);
    pp.role = KVIST__WIRE__ROLE__ROLE_PREFILL;
    pg.role = KVIST__WIRE__ROLE__ROLE_GATEWAY;
    pg.model = NULL;
    pg.useful_roles = 1u << KVIST__WIRE__ROLE__ROLE_DECODE;
    open_node(&decode, &pd);
    open_node(&prefill, &pp);
    open_node(&gateway, &pg);
    connect_to(&gateway, kv_peers_port(prefill.peers));
    connect_to(&gateway, kv_peers_port(decode.peers));
    assert_true(run_until(&loop, &gateway.up, 1, 2000));
    assert_string_equal(gateway.name, "d");
    run_for(&loop, 1000);
    assert_int_equal(gateway.up, 1);
    assert_int_equal(prefill.up, 0);
    assert_true(refused_count() == refused);
    kv_peers_destroy(decode.peers);
    kv_peers_destroy(prefill.peers);
    kv_peers_destroy(gateway.peers);
    close_loop(&loop);
}

/* Whoever only claims a name, where this side connects to, does not keep the name's owner out. */
static void a_false_name_keeps_nobody_out(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    node_t a = {0}, b = {0};
    kv_peers_params_t pa = params_of(&a, &loop, "a", true), pb = params_of(&b, &loop, "b", false);
    open_node(&a, &pa);
    open_node(&b, &pb);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    assert_int_equal(bind(listener, (struct sockaddr *)&address, bytes), 0);
    assert_int_equal(listen(listener, 8), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &bytes), 0);
    connect_to(&a, ntohs(address.sin_port));
    run_for(&loop, 20);
    int liar = accept(listener, NULL, NULL);
    kv_handshake_t hello;
    kv_identity_t claimed = ACCEPTOR;
    claimed.name = "b";
    claimed.role = KVIST__WIRE__ROLE__ROLE_GATEWAY;
    assert_int_equal(kv_handshake_begin(&hello, &claimed, false, NULL), KV_OK);
    uint8_t frame[4 + KV_HELLO_BYTES_MAX];
    kv_put_u32(frame, (uint32_t)hello.own_hello_bytes);
    memcpy(frame + 4, hello.own_hello, hello.own_hello_bytes);
    ssize_t length = (ssize_t)(4 + hello.own_hello_bytes);
    assert_int_equal(send(liar, frame, (size_t)length, MSG_NOSIGNAL), length);
    run_for(&loop, 20); /* a has proved itself there, and waits */

    connect_to(&b, kv_peers_port(a.peers));
    run_for(&loop, 200);
    assert_int_equal(a.up + b.up, 0); /* held: the liar may be the true one */
    assert_true(run_until(&loop, &b.up, 1, 2500));
    assert_int_equal(a.up, 1);
    assert_string_equal(kv_peer_name(a.peer), "b");
    close(liar);
    close(listener);
    kv_peers_destroy(a.peers);
    kv_peers_destroy(b.peers);
    close_loop(&loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(peers_meet_and_talk),
        cmocka_unit_test(a_peer_that_differs_is_refused),
        cmocka_unit_test(neighbouring_versions_talk),
        cmocka_unit_test(a_store_is_a_gateway_to_older_nodes),
        cmocka_unit_test(a_layout_that_differs_is_named),
        cmocka_unit_test(a_proof_serves_once_and_one_way),
        cmocka_unit_test(garbage_never_passes_the_handshake),
        cmocka_unit_test(garbage_on_the_port_is_closed),
        cmocka_unit_test(strangers_keep_nobody_out),
        cmocka_unit_test(a_dead_or_stopped_peer_is_noticed_and_comes_back),
        cmocka_unit_test(a_name_belongs_to_one_node),
        cmocka_unit_test(a_full_queue_answers_busy),
        cmocka_unit_test(two_that_open_to_each_other_keep_one),
        cmocka_unit_test(a_mesh_of_one_list),
        cmocka_unit_test(a_return_out_of_silence_takes_2_s_at_most),
        cmocka_unit_test(an_address_is_taken_away),
        cmocka_unit_test(only_useful_roles_are_opened),
        cmocka_unit_test(a_false_name_keeps_nobody_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
