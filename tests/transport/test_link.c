/* Peers and movers together, as a node wires them: a control connection comes up, its data link
 * follows; the peer is killed in the middle of a transfer, and a new one takes its place. */
#include "toy.h"

#include "transport/peers.h"

#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>

enum { SLOTS = 64, UNIT = 12 << 10, SLOT = 30 * UNIT };

static const char KEY[] = "a key that only this test knows";

typedef struct {
    toy_node_t node;
    kv_peers_t *peers;
    kv_peer_t *peer;
    kv_link_t link;
    int down;
} both_t;

static void on_up(void *context, kv_peer_t *peer)
{
    both_t *both = context;
    kv_link_params_t params;
    assert_true(kv_peer_link_params(peer, &params));
    assert_int_equal(kv_mover_link_open(both->node.mover, &params, &both->link, NULL), KV_OK);
    both->peer = peer;
}

static void on_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    (void)peer;
    (void)status;
    (void)reason;
    both_t *both = context;
    kv_mover_link_close(both->node.mover, both->link);
    both->peer = NULL;
    both->down++;
}

/* The message carries a transfer id: the peer streams the whole arena into it. */
static void on_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    (void)peer;
    both_t *both = context;
    assert_int_equal(message->body_case, KVIST__WIRE__ENVELOPE__BODY_FETCH);
    uint32_t slots[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++) {
        slots[i] = i;
    }
    for (uint32_t layer = 0; layer < 30; layer++) {
        kv_range_t range = kv_range_alike((size_t)layer * UNIT, UNIT);
        kv_piece_t piece = {.transfer_id = message->fetch->transfer_id,
            .block_count = SLOTS,
            .ranges = &range,
            .range_count = 1,
            .slots = slots};
        assert_int_equal(kv_mover_send(both->node.mover, both->link, &piece, NULL), KV_OK);
        usleep(3000); /* so that the middle of a transfer can be met on a busy machine */
    }
}

static void open_both(
    both_t *both, uv_loop_t *loop, const char *name, const char *host, kv_wire_t wire)
{
    uv_loop_init(loop);
    assert_int_equal(toy_open(&both->node, wire, NULL, SLOTS, SLOT, UNIT), KV_OK);
    kv_peers_params_t params = {
        .loop = loop,
        .name = name,
        .role = KVIST__WIRE__ROLE__ROLE_PREFILL,
        .listen_host = host,
        .cluster_key = KEY,
        .cluster_key_bytes = sizeof KEY,
        .data_port = kv_mover_port(both->node.mover),
        .callbacks = {both, on_up, on_down, on_message},
    };
    assert_int_equal(kv_peers_create(&params, &both->peers, NULL), KV_OK);
}

/* The other process: this program once more, since UCX's threads do not survive a fork. */
static int run_peer(const char *address, kv_wire_t wire)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    both_t both = {.link = 0};
    uv_loop_t loop;
    open_both(&both, &loop, "child", NULL, wire);
    toy_fill(&both.node, 3);
    assert_int_equal(kv_peers_connect(both.peers, address, NULL), KV_OK);
    return uv_run(&loop, UV_RUN_DEFAULT);
}

static pid_t start_peer(uint16_t port, kv_wire_t wire)
{
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%u", port);
    pid_t pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "test_link", "peer", address, wire == KV_WIRE_TCP ? "tcp" : "shm",
            (char *)NULL);
        _exit(127);
    }
    return pid;
}

/* Turns the loop until the mover's next event; it must be of that kind. */
static kv_mover_event_t await(both_t *both, uv_loop_t *loop, kv_moved_t kind)
{
    kv_mover_event_t event;
    for (int i = 0; i < 5000; i++) {
        uv_run(loop, UV_RUN_NOWAIT);
        if (kv_mover_poll(both->node.mover, &event)) {
            if (event.kind != kind) {
                fail_msg("event %d (%s), expected %d", event.kind, event.text, kind);
            }
            return event;
        }
        usleep(1000);
    }
    fail_msg("no event within 5 s; expected %d", kind);
    abort();
}

static uint64_t ask(both_t *both)
{
    uint32_t slots[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++) {
        slots[i] = i;
    }
    uint64_t id = kv_mover_transfer_id(both->node.mover);
    assert_int_equal(toy_expect(&both->node, both->link, id, slots, SLOTS), KV_OK);
    Kvist__Wire__Fetch fetch = KVIST__WIRE__FETCH__INIT;
    fetch.transfer_id = id;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_FETCH;
    envelope.fetch = &fetch;
    assert_int_equal(kv_peer_send(both->peer, &envelope), KV_OK);
    return id;
}

static void a_link_follows_its_control_connection(void **state)
{
    kv_wire_t wire = *(const kv_wire_t *)*state;
    both_t both = {.link = 0};
    uv_loop_t loop;
    open_both(&both, &loop, "parent", "127.0.0.1", wire);
    uint16_t port = kv_peers_port(both.peers);
    for (int life = 0; life < 3; life++) {
        pid_t pid = start_peer(port, wire);
        kv_mover_event_t event = await(&both, &loop, KV_MOVED_LINK_UP);
        assert_string_equal(event.text, wire == KV_WIRE_TCP ? "tcp" : "shm");
        uint64_t id = ask(&both);
        assert_true(await(&both, &loop, KV_MOVED_LANDED).transfer_id == id);

        id = ask(&both);
        kv_mover_stats_t stats, before;
        kv_mover_stats(both.node.mover, &before);
        do { /* in the middle, or nearly */
            uv_run(&loop, UV_RUN_NOWAIT);
            kv_mover_stats(both.node.mover, &stats);
        } while (stats.received_bytes < before.received_bytes + (1 << 20));
        kill(pid, life == 2 ? SIGSTOP : SIGKILL);
        uint64_t begin_ns = kv_clock_now_ns();
        event = await(&both, &loop, KV_MOVED_FAILED);
        assert_int_equal(event.status, KV_PEER_LOST);
        await(&both, &loop, KV_MOVED_LINK_DOWN);
        print_message("%s noticed after %.1f ms\n", life == 2 ? "SIGSTOP" : "kill -9",
            (double)(kv_clock_now_ns() - begin_ns) / 1e6);
        assert_true(kv_clock_now_ns() - begin_ns < 3 * (uint64_t)KV_NS_PER_S);
        kv_mover_revoke(both.node.mover, id);
        await(&both, &loop, KV_MOVED_REVOKED);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        while (both.peer != NULL) {
            uv_run(&loop, UV_RUN_ONCE);
        }
        assert_int_equal(both.down, life + 1);
    }
    kv_peers_destroy(both.peers);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    toy_close(&both.node);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "peer") == 0) {
        return run_peer(argv[2], strcmp(argv[3], "tcp") == 0 ? KV_WIRE_TCP : KV_WIRE_SHM);
    }
    static kv_wire_t shm = KV_WIRE_SHM, tcp = KV_WIRE_TCP;
    const struct CMUnitTest tests[] = {
        {"shm: a_link_follows_its_control_connection", a_link_follows_its_control_connection, NULL,
            NULL, &shm},
        {"tcp: a_link_follows_its_control_connection", a_link_follows_its_control_connection, NULL,
            NULL, &tcp},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
