/* The mover over UCX, between two processes. The child is forked before UCX is touched. */
#include "toy.h"

#include "transport/mover/wire.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <time.h>

enum { SLOTS = 256, LAYERS = 30, UNIT_BYTES = 12 << 10, SLOT_BYTES = LAYERS * UNIT_BYTES };

typedef struct {
    kv_wire_t wire;
    const char *name;
    uint64_t busy_poll_ns;
    const kv_device_ops_t *here, *there; /* the devices of this process and the other; NULL: toy */
} wire_case_t;

static bool is_direct(const wire_case_t *wire)
{
    return wire->here == &TOY_REACHED_OPS && wire->there == &TOY_REACHED_OPS;
}

static void put(int fd, const void *bytes, size_t count)
{
    assert_int_equal(write(fd, bytes, count), count);
}

static void get(int fd, void *bytes, size_t count)
{
    assert_int_equal(recv(fd, bytes, count, MSG_WAITALL), count);
}

/* Between layers, so that the middle of a transfer can be met on a busy machine. */
static useconds_t pause_us;

/* Sends what it is asked for: {transfer id, rounds}; each round is the whole arena, layer by
 * layer. */
static void child_sends(kv_wire_t wire, int fd)
{
    toy_node_t node;
    uint16_t port;
    assert_int_equal(toy_open(&node, wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    toy_fill(
        &node, 7); /* takes a while under ThreadSanitizer; once the port is told, it must not */
    get(fd, &port, sizeof port);
    kv_link_t link = toy_link(&node, port, true, 0x5a);
    toy_expect_event(&node, KV_MOVED_LINK_UP);
    uint32_t slots[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++) {
        slots[i] = SLOTS - 1 - i;
    }
    uint64_t transfer_id;
    while (recv(fd, &transfer_id, sizeof transfer_id, MSG_WAITALL) == sizeof transfer_id) {
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            kv_range_t range = kv_range_alike((size_t)layer * UNIT_BYTES, UNIT_BYTES);
            kv_piece_t piece = {.transfer_id = transfer_id,
                .tag = layer,
                .block_count = SLOTS,
                .ranges = &range,
                .range_count = 1,
                .slots = slots};
            assert_int_equal(kv_mover_send(node.mover, link, &piece, NULL), KV_OK);
            if (pause_us > 0) {
                usleep(pause_us);
            }
        }
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            kv_mover_event_t event;
            if (!toy_wait(&node, &event, 120000) || event.kind != KV_MOVED_SENT ||
                event.status != KV_OK || event.tag != layer) {
                _exit(1); /* a test that wants an end in peace looks at this */
            }
        }
    }
    toy_close(&node);
}

static pid_t start_child(void (*child)(kv_wire_t, int), const wire_case_t *wire, int *fd_out)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    pid_t pid = fork();
    const kv_device_ops_t *ops = pid == 0 ? wire->there : wire->here;
    toy_device.ops = ops != NULL ? ops : &TOY_OPS;
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        child(wire->wire, pair[1]);
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

/* Whether this process reads messages where another one built them. */
static bool reads_shared_memory(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    bool found = false;
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        found |= strstr(line, " r--s ") != NULL && strstr(line, "/memfd:kvist-wire") != NULL;
    }
    if (maps != NULL) {
        fclose(maps);
    }
    return found;
}

static void blocks_arrive_layer_by_layer(void **state)
{
    const wire_case_t *wire = *state;
    int fd;
    pid_t pid = start_child(child_sends, wire, &fd);
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
        assert_int_equal(toy_expect(&node, link, id, slots, SLOTS), KV_OK);
        put(fd, &id, sizeof id);
        kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_LANDED);
        assert_true(event.transfer_id == id);
        assert_int_equal(event.bytes, SLOTS * SLOT_BYTES);
    }
    double seconds = (double)(kv_clock_now_ns() - begin_ns) / KV_NS_PER_S;
    assert_arrived(&node);
    kv_mover_stats_t stats;
    kv_mover_stats(node.mover, &stats);
    /* The operations: messages that are read in place over shared memory, eager ones over TCP. */
    assert_int_equal(stats.rendezvous_messages, 0);
    assert_true(reads_shared_memory() == (strcmp(wire->name, "shm") == 0));
    assert_true((stats.received_direct_messages > 0) == is_direct(wire));
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

/* ---- what goes wrong ---- */

static void expect_all(toy_node_t *node, kv_link_t link, uint64_t id)
{
    uint32_t slots[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++) {
        slots[i] = i;
    }
    assert_int_equal(toy_expect(node, link, id, slots, SLOTS), KV_OK);
}

static bool arena_is_clear(const toy_node_t *node)
{
    const uint64_t *words = (const uint64_t *)node->arena;
    for (size_t i = 0; i < (size_t)SLOTS * SLOT_BYTES / 8; i++) {
        if (words[i] != 0) {
            return false;
        }
    }
    return true;
}

/* The sender is stopped in the middle, its slots are given a new life, and it goes on. */
static void a_late_sender_writes_nowhere(void **state)
{
    const wire_case_t *wire = *state;
    int fd;
    pause_us = 10000;
    pid_t pid = start_child(child_sends, wire, &fd);
    pause_us = 0;
    toy_node_t node;
    assert_int_equal(toy_open(&node, wire->wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    kv_link_t link = toy_link(&node, 0, false, 0x5a);
    uint16_t port = kv_mover_port(node.mover);
    put(fd, &port, sizeof port);
    toy_expect_event(&node, KV_MOVED_LINK_UP);
    uint64_t id = kv_mover_transfer_id(node.mover);
    expect_all(&node, link, id);
    put(fd, &id, sizeof id);
    kv_mover_stats_t stats;
    do {
        kv_mover_stats(node.mover, &stats);
    } while (stats.received_bytes < 4 << 20);
    kill(pid, SIGSTOP);
    kv_mover_revoke(node.mover, id);
    toy_expect_event(&node, KV_MOVED_REVOKED);
    memset(node.arena, 0, (size_t)SLOTS * SLOT_BYTES);
    kill(pid, SIGCONT);
    usleep(400000);
    assert_true(arena_is_clear(&node));
    kv_mover_stats(node.mover, &stats);
    assert_true(stats.dropped_messages > 0);

    /* Once more, and now the link is closed as well, as the control connection's loss does it. */
    id = kv_mover_transfer_id(node.mover);
    expect_all(&node, link, id);
    uint64_t received = stats.received_bytes;
    put(fd, &id, sizeof id);
    do {
        kv_mover_stats(node.mover, &stats);
    } while (stats.received_bytes < received + (4 << 20));
    kill(pid, SIGSTOP);
    kv_mover_link_close(node.mover, link);
    kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_FAILED);
    assert_int_equal(event.status, KV_PEER_LOST);
    toy_expect_event(&node, KV_MOVED_LINK_DOWN);
    kv_mover_revoke(node.mover, id);
    toy_expect_event(&node, KV_MOVED_REVOKED);
    memset(node.arena, 0, (size_t)SLOTS * SLOT_BYTES);
    kill(pid, SIGCONT);
    usleep(400000);
    assert_true(arena_is_clear(&node));
    kill(pid, SIGKILL);
    end_child(pid, fd, true);
    toy_close(&node);
}

/* Listens, says its port, and takes whatever comes. */
static void child_receives(kv_wire_t wire, int fd)
{
    toy_node_t node;
    assert_int_equal(toy_open(&node, wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    toy_link(&node, 0, false, 0x5a);
    uint16_t port = kv_mover_port(node.mover);
    put(fd, &port, sizeof port);
    char byte;
    assert_int_equal(recv(fd, &byte, 1, MSG_WAITALL), 0);
    toy_close(&node);
}

static void send_to_child(toy_node_t *node, kv_link_t link, uint32_t piece_count)
{
    uint32_t slots[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++) {
        slots[i] = i;
    }
    for (uint32_t i = 0; i < piece_count; i++) {
        kv_range_t range = kv_range_alike(0, SLOT_BYTES);
        kv_piece_t piece = {.transfer_id = 1,
            .tag = i,
            .block_count = SLOTS,
            .ranges = &range,
            .range_count = 1,
            .slots = slots};
        assert_int_equal(kv_mover_send(node->mover, link, &piece, NULL), KV_OK);
    }
}

/* The receiver is killed (or stopped, which no wire notices: the link is closed by us) while
 * messages are in flight: every piece gets its SENT, the link one LINK_DOWN. */
static void a_receiver_dies(const wire_case_t *wire, bool stop)
{
    enum { PIECES = 8 };
    int fd;
    pid_t pid = start_child(child_receives, wire, &fd);
    toy_node_t node;
    uint16_t port;
    get(fd, &port, sizeof port);
    assert_int_equal(toy_open(&node, wire->wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    kv_link_t link = toy_link(&node, port, true, 0x5a);
    assert_string_equal(toy_expect_event(&node, KV_MOVED_LINK_UP).text, wire->name);
    send_to_child(&node, link, PIECES);
    kv_mover_stats_t stats;
    do {
        kv_mover_stats(node.mover, &stats);
    } while (stats.sent_bytes < 8 << 20);
    kill(pid, stop ? SIGSTOP : SIGKILL);
    if (stop) {
        usleep(100000);
        kv_mover_link_close(node.mover, link);
    }
    uint64_t begin_ns = kv_clock_now_ns();
    int lost = 0;
    for (int i = 0; i < PIECES; i++) {
        lost += toy_expect_event(&node, KV_MOVED_SENT).status == KV_PEER_LOST;
    }
    assert_true(lost > 0);
    toy_expect_event(&node, KV_MOVED_LINK_DOWN);
    print_message("wire %s: %s, %d of %d pieces lost, link down after %.1f ms\n", wire->name,
        stop ? "stopped and closed" : "kill -9", lost, PIECES,
        (double)(kv_clock_now_ns() - begin_ns) / 1e6);
    send_to_child(&node, link, 1); /* into the link that was */
    assert_int_equal(toy_expect_event(&node, KV_MOVED_SENT).status, KV_PEER_LOST);
    kill(pid, SIGKILL);
    end_child(pid, fd, true);
    toy_close(&node);
}

/* The sender is killed while its memory is read, again and again: what it was about fails, nothing
 * of this process does, and the next one is read as well. */
static void a_killed_sender_fails_its_transfer(void **state)
{
    enum { ROUNDS = 4 };
    const wire_case_t *wire = *state;
    int fds[ROUNDS];
    pid_t pids[ROUNDS];
    pause_us = 1000;
    for (int round = 0; round < ROUNDS; round++) { /* before UCX is touched here */
        pids[round] = start_child(child_sends, wire, &fds[round]);
    }
    pause_us = 0;
    toy_node_t node;
    assert_int_equal(toy_open(&node, wire->wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    uint16_t port = kv_mover_port(node.mover);
    kv_mover_stats_t stats;
    for (int round = 0; round < ROUNDS; round++) {
        kv_link_t link = toy_link(&node, 0, false, 0x5a);
        put(fds[round], &port, sizeof port);
        toy_expect_event(&node, KV_MOVED_LINK_UP);
        uint64_t id = kv_mover_transfer_id(node.mover);
        expect_all(&node, link, id);
        kv_mover_stats(node.mover, &stats);
        const uint64_t received = stats.received_bytes;
        put(fds[round], &id, sizeof id);
        do {
            kv_mover_stats(node.mover, &stats);
        } while (stats.received_bytes < received + ((uint64_t)(round + 1) << 20));
        kill(pids[round], SIGKILL);
        kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_FAILED);
        assert_int_equal(event.status, KV_PEER_LOST);
        toy_expect_event(&node, KV_MOVED_LINK_DOWN);
        kv_mover_revoke(node.mover, id);
        toy_expect_event(&node, KV_MOVED_REVOKED);
        end_child(pids[round], fds[round], true);
    }
    toy_close(&node);
}

static void a_killed_receiver_frees_every_piece(void **state)
{
    a_receiver_dies(*state, false);
}

static void a_stopped_receiver_frees_every_piece(void **state)
{
    a_receiver_dies(*state, true);
}

/* The same, and nobody closes anything: a network that leads nowhere looks like this too. */
static void a_stalled_link_ends_by_itself(void **state)
{
    const wire_case_t *wire = *state;
    int fd;
    pid_t pid = start_child(child_receives, wire, &fd);
    toy_node_t node;
    uint16_t port;
    get(fd, &port, sizeof port);
    assert_int_equal(toy_open(&node, wire->wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    kv_link_t link = toy_link(&node, port, true, 0x5a);
    toy_expect_event(&node, KV_MOVED_LINK_UP);
    kill(pid, SIGSTOP);
    uint64_t begin_ns = kv_clock_now_ns();
    send_to_child(&node, link, 1);
    assert_int_equal(toy_expect_event(&node, KV_MOVED_SENT).status, KV_PEER_LOST);
    assert_non_null(strstr(toy_expect_event(&node, KV_MOVED_LINK_DOWN).text, "has left"));
    assert_true(kv_clock_now_ns() - begin_ns >= (uint64_t)KV_MOVER_STALL_MS * KV_NS_PER_MS);
    kill(pid, SIGKILL);
    end_child(pid, fd, true);
    toy_close(&node);
}

/* ---- who may not in ---- */

static void child_with_wrong_token(kv_wire_t wire, int fd)
{
    uint16_t port;
    get(fd, &port, sizeof port);
    toy_node_t node;
    assert_int_equal(toy_open(&node, wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    for (int which = 0; which < 2; which++) {
        kv_link_params_t params = {
            .name = "toy", .host = "127.0.0.1", .port = port, .connects = true, .same_host = true};
        memset(params.token, which == 0 ? 0x11 : 0x5a, sizeof params.token);
        params.token[15] ^= which == 1; /* the right id, the wrong rest */
        kv_link_t link;
        assert_int_equal(kv_mover_link_open(node.mover, &params, &link, NULL), KV_OK);
        kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_LINK_DOWN);
        assert_true(event.status != KV_OK);
    }
    toy_close(&node);
}

static void only_the_expected_peer_gets_a_link(void **state)
{
    const wire_case_t *wire = *state;
    int fd;
    pid_t pid = start_child(child_with_wrong_token, wire, &fd);
    toy_node_t node;
    assert_int_equal(toy_open(&node, wire->wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    toy_link(&node, 0, false, 0x5a);
    uint16_t port = kv_mover_port(node.mover);
    put(fd, &port, sizeof port);
    kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_LINK_DOWN);
    assert_int_equal(event.status, KV_REFUSED);
    end_child(pid, fd, false);
    kv_mover_stats_t stats;
    kv_mover_stats(node.mover, &stats);
    assert_int_equal(stats.refused_endpoints, 2);
    assert_int_equal(stats.links_up, 0);
    toy_close(&node);
}

typedef struct {
    uint32_t address; /* as in the packet: the first byte is the lowest */
    uint16_t port;
} listening_t;

/* Where this process listens on TCP, UCX's own ports included. */
static size_t listening(listening_t *places_out, size_t count_max)
{
    size_t count = 0;
    FILE *table = fopen("/proc/net/tcp", "re");
    char line[512];
    while (table != NULL && fgets(line, sizeof line, table) != NULL) {
        unsigned address, port, status;
        unsigned long inode;
        if (sscanf(line, " %*d: %8x:%4x %*8s:%*4x %2x %*s %*s %*s %*s %*s %lu", &address, &port,
                &status, &inode) != 4 ||
            status != 0x0a) {
            continue;
        }
        char wanted[64], path[64], target[64];
        snprintf(wanted, sizeof wanted, "socket:[%lu]", inode);
        for (int fd = 0; fd < 256 && count < count_max; fd++) {
            snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
            ssize_t length = readlink(path, target, sizeof target - 1);
            if (length > 0 && (target[length] = '\0', strcmp(target, wanted) == 0)) {
                places_out[count++] = (listening_t){address, (uint16_t)port};
            }
        }
    }
    if (table != NULL) {
        fclose(table);
    }
    return count;
}

static int knock(uint16_t port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void garbage_on_the_data_port_does_no_harm(void **state)
{
    const wire_case_t *wire = *state;
    int fd;
    pid_t pid = start_child(child_sends, wire, &fd);
    toy_node_t node;
    assert_int_equal(toy_open(&node, wire->wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    uint16_t port = kv_mover_port(node.mover);
    uint64_t seed = kv_test_seed();
    int fds[16];
    uint8_t bytes[600];
    for (size_t at = 0; at < sizeof bytes; at++) {
        bytes[at] = (uint8_t)kv_test_random(&seed);
    }
    for (int i = 0; i < 16; i++) {
        fds[i] = knock(port);
        assert_true(fds[i] >= 0);
        if (i % 4 != 0) { /* every fourth stays silent */
            memcpy(bytes, i % 2 ? "KVU1" : "GET ", 4);
            assert_true(send(fds[i], bytes, i % 3 == 0 ? 5 : sizeof bytes, MSG_NOSIGNAL) > 0);
        }
        if (i % 2 == 0) {
            close(fds[i]);
        }
    }
    usleep(200000);
    kv_link_t link = toy_link(&node, 0, false, 0x5a);
    put(fd, &port, sizeof port);
    assert_string_equal(toy_expect_event(&node, KV_MOVED_LINK_UP).text, wire->name);
    listening_t places[16];
    size_t place_count = listening(places, 16);
    assert_true(place_count >= 2); /* the front and UCX's */
    for (size_t i = 0; i < place_count; i++) {
        int stranger = knock(places[i].port);
        assert_true(stranger < 0 || send(stranger, bytes, sizeof bytes, MSG_NOSIGNAL) > 0);
        close(stranger);
    }
    usleep(100000);
    uint64_t id = kv_mover_transfer_id(node.mover);
    expect_all(&node, link, id);
    put(fd, &id, sizeof id);
    toy_expect_event(&node, KV_MOVED_LANDED);
    for (int i = 1; i < 16; i += 2) {
        close(fds[i]);
    }
    end_child(pid, fd, false);
    toy_close(&node);
}

static void strangers_at_the_data_port_keep_nobody_out(void **state)
{
    const wire_case_t *wire = *state;
    enum { STRANGERS = 70 }; /* more than there are places */
    int fd, fds[STRANGERS];
    pid_t pid = start_child(child_sends, wire, &fd);
    toy_node_t node;
    assert_int_equal(toy_open(&node, wire->wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    uint16_t port = kv_mover_port(node.mover);
    for (int i = 0; i < STRANGERS; i++) {
        fds[i] = knock(port);
        assert_true(fds[i] >= 0);
    }
    usleep(100000);
    toy_link(&node, 0, false, 0x5a);
    put(fd, &port, sizeof port);
    assert_string_equal(toy_expect_event(&node, KV_MOVED_LINK_UP).text, wire->name);
    for (int i = 0; i < STRANGERS; i++) {
        close(fds[i]);
    }
    end_child(pid, fd, false);
    toy_close(&node);
}

/* How many ports of a mover that is bound to this loopback address are elsewhere. */
static int listens_elsewhere(const char *host)
{
    toy_node_t node = {NULL, calloc(1, UNIT_BYTES), 1, UNIT_BYTES, UNIT_BYTES};
    kv_mover_params_t params = {
        .device = &toy_device,
        .arena = node.arena,
        .slot_count = 1,
        .slot_bytes = UNIT_BYTES,
        .unit_bytes = UNIT_BYTES,
        .host = host,
        .wire = KV_WIRE_TCP,
    };
    kv_error_t error;
    if (kv_mover_create(&params, &node.mover, &error) != KV_OK) {
        print_message("%s: %s\n", host, error.text);
        return -1;
    }
    for (int connects = 0; connects < 2; connects++) { /* a link to itself */
        kv_link_params_t link = {
            .name = "self", .host = host, .port = kv_mover_port(node.mover), .connects = connects};
        kv_link_t id;
        kv_mover_link_open(node.mover, &link, &id, &error);
    }
    kv_mover_event_t event;
    if (!toy_wait(&node, &event, 5000) || event.kind != KV_MOVED_LINK_UP) {
        return -2;
    }
    listening_t places[16];
    size_t count = listening(places, 16);
    int elsewhere = count < 2; /* the front and UCX's */
    for (size_t i = 0; i < count; i++) {
        elsewhere += (places[i].address & 0xff) != 127;
    }
    toy_close(&node);
    return elsewhere;
}

/* UCX's own ports are on the network that the data listener is on, however its address is written.
 * (Where a machine has nothing but loopback this shows nothing.) */
static void ucx_listens_where_it_was_told(void **state)
{
    (void)state;
    static const char *const HOSTS[] = {"127.0.0.1", "localhost", "127.0.0.2"};
    for (size_t i = 0; i < sizeof HOSTS / sizeof HOSTS[0]; i++) {
        pid_t pid = fork(); /* a context that was made for one host stays as it was */
        if (pid == 0) {
            _exit(listens_elsewhere(HOSTS[i]));
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            fail_msg("%s: ports elsewhere than on loopback: status %d", HOSTS[i], status);
        }
    }
}

static void nobody_comes(void **state)
{
    (void)state;
    toy_node_t node;
    assert_int_equal(toy_open(&node, KV_WIRE_TCP, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    kv_link_t accepts = toy_link(&node, 0, false, 1);
    kv_link_t connects = toy_link(&node, 1, true, 2); /* nobody listens there */
    kv_mover_event_t event = toy_expect_event(&node, KV_MOVED_LINK_DOWN);
    assert_true(event.link == connects);
    event = toy_expect_event(&node, KV_MOVED_LINK_DOWN);
    assert_true(event.link == accepts);
    assert_int_equal(event.status, KV_PEER_LOST);
    toy_close(&node);
}

enum { IDLE_MS = 500 };

/* Of all threads of this process. */
static double cpu_ms_while_idle(void)
{
    struct timespec begin, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    usleep(IDLE_MS * 1000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    return (double)(end.tv_sec - begin.tv_sec) * 1e3 + (double)(end.tv_nsec - begin.tv_nsec) / 1e6;
}

static void an_idle_mover_uses_no_cpu(void **state)
{
    const wire_case_t *wire = *state;
    toy_busy_poll_ns = wire->busy_poll_ns;
    int fd;
    pid_t pid = start_child(child_sends, wire, &fd);
    toy_node_t node;
    assert_int_equal(toy_open(&node, wire->wire, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    toy_link(&node, 0, false, 0x5a);
    uint16_t port = kv_mover_port(node.mover);
    put(fd, &port, sizeof port);
    toy_expect_event(&node, KV_MOVED_LINK_UP);
    /* One that polls never has a quiet while; what a busy machine adds, it does not always add. */
    double used_ms = IDLE_MS;
    for (int while_number = 0; used_ms >= IDLE_MS / 100.0; while_number++) {
        assert_true(while_number < 20);
        used_ms = cpu_ms_while_idle();
        print_message("wire %s: idle for %d ms, %.2f ms of CPU\n", wire->name, IDLE_MS, used_ms);
    }
    toy_busy_poll_ns = 0;
    end_child(pid, fd, false);
    toy_close(&node);
}

#define ON(wire, test)                                                                             \
    {                                                                                              \
#wire ": " #test, test, NULL, NULL, &wire                                                  \
    }

int main(void)
{
    static wire_case_t shm = {.wire = KV_WIRE_SHM, .name = "shm"},
                       tcp = {.wire = KV_WIRE_TCP, .name = "tcp"},
                       automatic = {.wire = KV_WIRE_AUTO, .name = "shm"},
                       polling = {.wire = KV_WIRE_TCP, .name = "tcp", .busy_poll_ns = KV_NS_PER_MS},
                       direct = {.wire = KV_WIRE_SHM,
                           .name = "shm",
                           .here = &TOY_REACHED_OPS,
                           .there = &TOY_REACHED_OPS},
                       into = {.wire = KV_WIRE_SHM, .name = "shm", .here = &TOY_REACHED_OPS},
                       out_of = {.wire = KV_WIRE_SHM, .name = "shm", .there = &TOY_REACHED_OPS};
    const struct CMUnitTest tests[] = {
        ON(shm, blocks_arrive_layer_by_layer),
        ON(tcp, blocks_arrive_layer_by_layer),
        ON(automatic, blocks_arrive_layer_by_layer),
        ON(direct, blocks_arrive_layer_by_layer),
        ON(into, blocks_arrive_layer_by_layer),
        ON(out_of, blocks_arrive_layer_by_layer),
        ON(shm, a_late_sender_writes_nowhere),
        ON(direct, a_late_sender_writes_nowhere),
        ON(tcp, a_late_sender_writes_nowhere),
        ON(direct, a_killed_sender_fails_its_transfer),
        ON(shm, a_killed_receiver_frees_every_piece),
        ON(direct, a_killed_receiver_frees_every_piece),
        ON(tcp, a_killed_receiver_frees_every_piece),
        ON(shm, a_stopped_receiver_frees_every_piece),
        ON(direct, a_stopped_receiver_frees_every_piece),
        ON(tcp, a_stopped_receiver_frees_every_piece),
        ON(shm, a_stalled_link_ends_by_itself),
        ON(tcp, a_stalled_link_ends_by_itself),
        ON(shm, only_the_expected_peer_gets_a_link),
        ON(tcp, only_the_expected_peer_gets_a_link),
        ON(shm, garbage_on_the_data_port_does_no_harm),
        ON(tcp, garbage_on_the_data_port_does_no_harm),
        ON(shm, strangers_at_the_data_port_keep_nobody_out),
        ON(tcp, strangers_at_the_data_port_keep_nobody_out),
        cmocka_unit_test(ucx_listens_where_it_was_told),
        ON(shm, an_idle_mover_uses_no_cpu),
        ON(tcp, an_idle_mover_uses_no_cpu),
        ON(polling, an_idle_mover_uses_no_cpu),
        cmocka_unit_test(nobody_comes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
