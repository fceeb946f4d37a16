/* The mover over UCX, between two processes. The child is forked before UCX is touched. */
#include "toy.h"

#include "transport/wire.h"

#include <signal.h>

enum { SLOTS = 256, LAYERS = 30, UNIT_BYTES = 12 << 10, SLOT_BYTES = LAYERS * UNIT_BYTES };

typedef struct {
    kv_wire_t wire;
    const char *name;
} wire_case_t;

static void put(int fd, const void *bytes, size_t count)
{
    assert_int_equal(write(fd, bytes, count), count);
}

static void get(int fd, void *bytes, size_t count)
{
    assert_int_equal(recv(fd, bytes, count, MSG_WAITALL), count);
}

/* Sends what it is asked for: {transfer id, rounds}; each round is the whole arena, layer by layer. */
static void child_sends(kv_wire_t wire, int fd)
{
    toy_node_t node;
    uint16_t port;
    get(fd, &port, sizeof port);
    assert_int_equal(toy_open(&node, wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    toy_fill(&node, 7);
    kv_link_t link = toy_link(&node, port, true, 0x5a);
    toy_expect_event(&node, KV_MOVED_LINK_UP);
    uint32_t slots[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++) {
        slots[i] = SLOTS - 1 - i;
    }
    uint64_t transfer_id;
    while (recv(fd, &transfer_id, sizeof transfer_id, MSG_WAITALL) == sizeof transfer_id) {
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            kv_piece_t piece = {.transfer_id = transfer_id,
                .tag = layer,
                .block_count = SLOTS,
                .offset_bytes = layer * UNIT_BYTES,
                .range_bytes = UNIT_BYTES,
                .slots = slots};
            assert_int_equal(kv_mover_send(node.mover, link, &piece, NULL), KV_OK);
        }
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_SENT);
            assert_int_equal(event.status, KV_OK);
            assert_int_equal(event.tag, layer);
        }
    }
    toy_close(&node);
}

static pid_t start_child(void (*child)(kv_wire_t, int), kv_wire_t wire, int *fd_out)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(pair[0]);
        child(wire, pair[1]);
        _exit(0);
    }
    close(pair[1]);
    *fd_out = pair[0];
    return pid;
}

static void end_child(pid_t pid, int fd, bool killed)
{
    close(fd);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!killed) {
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

static void assert_arrived(const toy_node_t *node)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        const uint8_t *bytes = node->arena + (size_t)slot * SLOT_BYTES;
        size_t source = (size_t)(SLOTS - 1 - slot) * SLOT_BYTES;
        for (size_t at = 0; at < SLOT_BYTES; at += 8) {
            uint64_t value, expected = (source + at + 7) * 0x9e3779b97f4a7c15u;
            memcpy(&value, bytes + at, 8);
            if (value != expected) {
                fail_msg("slot %u differs at %zu", slot, at);
            }
        }
    }
}

static void blocks_arrive_layer_by_layer(void **state)
{
    const wire_case_t *wire = *state;
    int fd;
    pid_t pid = start_child(child_sends, wire->wire, &fd);
    toy_node_t node;
    assert_int_equal(toy_open(&node, wire->wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    kv_link_t link = toy_link(&node, 0, false, 0x5a);
    uint16_t port = kv_mover_port(node.mover);
    put(fd, &port, sizeof port);
    assert_string_equal(toy_expect_event(&node, KV_MOVED_LINK_UP).text, wire->name);

    uint32_t slots[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++) {
        slots[i] = i;
    }
    enum { ROUNDS = 4 };
    uint64_t begin_ns = kv_clock_now_ns();
    for (int round = 0; round < ROUNDS; round++) {
        memset(node.arena, 0, (size_t)SLOTS * SLOT_BYTES);
        uint64_t id = kv_mover_transfer_id(node.mover);
        assert_int_equal(kv_mover_expect(node.mover, link, id, slots, SLOTS, NULL), KV_OK);
        put(fd, &id, sizeof id);
        kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_LANDED);
        assert_true(event.transfer_id == id);
        assert_int_equal(event.bytes, SLOTS * SLOT_BYTES);
    }
    double seconds = (double)(kv_clock_now_ns() - begin_ns) / KV_NS_PER_S;
    assert_arrived(&node);
    kv_mover_stats_t stats;
    kv_mover_stats(node.mover, &stats);
    assert_int_equal(stats.rendezvous_messages, 0); /* the operation: eager active messages */
    assert_int_equal(stats.dropped_messages, 0);
    assert_int_equal(stats.received_bytes, (uint64_t)ROUNDS * SLOTS * SLOT_BYTES);
    print_message("wire %s: %d MiB in pieces of %d KiB, %.2f GB/s\n", wire->name,
        ROUNDS * (SLOTS * SLOT_BYTES >> 20), UNIT_BYTES >> 10,
        (double)stats.received_bytes / seconds / 1e9);
    end_child(pid, fd, false);
    kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_LINK_DOWN);
    assert_true(event.status != KV_OK);
    toy_close(&node);
}

int main(void)
{
    static wire_case_t shm = {KV_WIRE_SHM, "shm"}, tcp = {KV_WIRE_TCP, "tcp"},
                       automatic = {KV_WIRE_AUTO, "shm"};
    const struct CMUnitTest tests[] = {
        {"shm: blocks_arrive_layer_by_layer", blocks_arrive_layer_by_layer, NULL, NULL, &shm},
        {"tcp: blocks_arrive_layer_by_layer", blocks_arrive_layer_by_layer, NULL, NULL, &tcp},
        {"auto: blocks_arrive_layer_by_layer", blocks_arrive_layer_by_layer, NULL, NULL,
            &automatic},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
