/* The mover on a GPU, between two processes: their arenas are device memory. On the stand-in, whose
 * memory UCX reaches as it would a GPU's, slots are sealed, gathered, read by the peer's UCX,
 * scattered and proved by the device's own kernels; calls of CUDA's that this takes fail once, and
 * then the GPU is lost. */
#include "transport/toy.h"

#include "kernels/plugin.h"
#include "kernels/simt/control.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>

enum { SLOTS = 12, LAYERS = 4, UNIT = 8 << 10, SLOT = LAYERS * UNIT, ARENA = SLOTS * SLOT };
enum { OUT_OF_MEMORY = 2, ILLEGAL_ADDRESS = 700 }; /* cudaError_t: passes; stays */

static const uint32_t ALL[SLOTS] = {11, 0, 1, 2, 10, 9, 8, 3, 4, 5, 6, 7};

/* ---- a node ---- */

typedef struct {
    kv_device_t *device;
    kv_mover_t *mover;
    void *arena;
    uint8_t *copy; /* [ARENA], of this process: what lies, or shall lie, in the arena */
} gpu_node_t;

static void fill(uint8_t *bytes)
{
    for (size_t i = 0; i < ARENA; i++) {
        bytes[i] = (uint8_t)(3 * (i ^ i >> 8 ^ i >> 13));
    }
}

static void write_arena(gpu_node_t *node)
{
    kv_error_t error;
    assert_int_equal(
        node->device->ops->copy_in(node->device, node->arena, node->copy, ARENA, &error), KV_OK);
}

static void open_node(gpu_node_t *node, kv_wire_t wire)
{
    kv_error_t error = {0};
    *node = (gpu_node_t){.copy = calloc(1, ARENA)};
    if (kv_device_open("simt", 1, &node->device, NULL, &error) != KV_OK ||
        node->device->ops->allocate(node->device, ARENA, &node->arena, &error) != KV_OK) {
        fail_msg("no device: %s", error.text);
    }
    const kv_mover_params_t params = {
        .device = node->device,
        .arena = node->arena,
        .slot_count = SLOTS,
        .slot_bytes = SLOT,
        .unit_bytes = UNIT,
        .host = "127.0.0.1",
        .wire = wire,
    };
    if (kv_mover_create(&params, &node->mover, &error) != KV_OK) {
        fail_msg("mover: %s", error.text);
    }
}

static void close_node(gpu_node_t *node)
{
    kv_mover_destroy(node->mover);
    node->device->ops->release(node->device, node->arena, ARENA);
    kv_device_close(node->device);
    free(node->copy);
}

static kv_link_t open_link(gpu_node_t *node, uint16_t port)
{
    toy_node_t toy = {.mover = node->mover};
    return toy_link(&toy, port, port != 0, 0x5a);
}

static kv_mover_event_t expect_event(gpu_node_t *node, kv_moved_t kind)
{
    toy_node_t toy = {.mover = node->mover};
    return toy_expect_event(&toy, kind);
}

/* ---- the sender, a process of its own ---- */

static void send_piece(
    gpu_node_t *node, kv_link_t link, uint64_t id, const kv_range_t *ranges, uint32_t range_count)
{
    const kv_piece_t piece = {.transfer_id = id,
        .block_count = SLOTS,
        .ranges = ranges,
        .range_count = range_count,
        .slots = ALL};
    assert_int_equal(kv_mover_send(node->mover, link, &piece, NULL), KV_OK);
}

/* Each transfer that it is asked for: two layers, and two that change places. */
static void child_sends(kv_wire_t wire, int fd)
{
    const kv_range_t first = kv_range_alike(0, 2 * UNIT),
                     crossed[] = {{3 * UNIT, 2 * UNIT, UNIT}, {2 * UNIT, 3 * UNIT, UNIT}};
    gpu_node_t node;
    uint16_t port;
    uint64_t id;
    open_node(&node, wire);
    fill(node.copy);
    write_arena(&node);
    assert_int_equal(recv(fd, &port, sizeof port, MSG_WAITALL), sizeof port);
    kv_link_t link = open_link(&node, port);
    expect_event(&node, KV_MOVED_LINK_UP);
    while (recv(fd, &id, sizeof id, MSG_WAITALL) == sizeof id) {
        send_piece(&node, link, id, &first, 1);
        send_piece(&node, link, id, crossed, 2);
        expect_event(&node, KV_MOVED_SENT);
        expect_event(&node, KV_MOVED_SENT);
    }
    close_node(&node);
}

typedef struct {
    gpu_node_t node;
    kv_link_t link;
    pid_t pid;
    int fd;
} receiver_t;

static void open_receiver(receiver_t *receiver, kv_wire_t wire)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    receiver->pid = fork();
    if (receiver->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        child_sends(wire, pair[1]);
        _exit(0);
    }
    close(pair[1]);
    receiver->fd = pair[0];
    open_node(&receiver->node, wire);
    receiver->link = open_link(&receiver->node, 0);
    const uint16_t port = kv_mover_port(receiver->node.mover);
    assert_int_equal(write(receiver->fd, &port, sizeof port), sizeof port);
    expect_event(&receiver->node, KV_MOVED_LINK_UP);
}

static void close_receiver(receiver_t *receiver)
{
    int status;
    close(receiver->fd);
    assert_int_equal(waitpid(receiver->pid, &status, 0), receiver->pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close_node(&receiver->node);
}

static uint64_t ask(receiver_t *receiver)
{
    const uint64_t id = kv_mover_transfer_id(receiver->node.mover);
    const kv_expectation_t all = {.transfer_id = id, .block_count = SLOTS, .slots = ALL};
    assert_int_equal(kv_mover_expect(receiver->node.mover, receiver->link, &all, NULL), KV_OK);
    assert_int_equal(write(receiver->fd, &id, sizeof id), sizeof id);
    return id;
}

static void assert_arrived(gpu_node_t *node)
{
    kv_error_t error;
    uint8_t *wanted = malloc(ARENA);
    fill(wanted);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        uint8_t *third = wanted + (size_t)slot * SLOT + 2 * UNIT;
        for (size_t at = 0; at < UNIT; at++) {
            const uint8_t byte = third[at];
            third[at] = third[UNIT + at];
            third[UNIT + at] = byte;
        }
    }
    assert_int_equal(
        node->device->ops->copy_out(node->device, node->copy, node->arena, ARENA, &error), KV_OK);
    assert_memory_equal(node->copy, wanted, ARENA);
    free(wanted);
}

/* Another life of the slots: nothing of what has come is left. */
static void clear_arena(gpu_node_t *node)
{
    memset(node->copy, 0, ARENA);
    write_arena(node);
}

static void land(receiver_t *receiver)
{
    clear_arena(&receiver->node);
    (void)ask(receiver);
    expect_event(&receiver->node, KV_MOVED_LANDED);
    assert_arrived(&receiver->node);
}

static uint64_t direct_count(const receiver_t *receiver)
{
    kv_mover_stats_t stats;
    kv_mover_stats(receiver->node.mover, &stats);
    return stats.received_direct_messages;
}

/* ---- tests ---- */

static void kv_goes_from_device_to_device(void **state)
{
    (void)state;
    receiver_t receiver;
    open_receiver(&receiver, KV_WIRE_AUTO);
    for (int round = 0; round < 3; round++) {
        land(&receiver);
    }
    assert_true(direct_count(&receiver) > 0);
    close_receiver(&receiver);
}

static void kv_goes_through_pinned_memory(void **state)
{
    (void)state;
    receiver_t receiver;
    open_receiver(&receiver, KV_WIRE_TCP);
    for (int round = 0; round < 3; round++) {
        land(&receiver);
    }
    assert_int_equal(direct_count(&receiver), 0);
    close_receiver(&receiver);
}

static void *control(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/libkvist-simt.so", getenv("KVIST_PLUGINS"));
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL), *found = NULL;
    if (library == NULL || (found = dlsym(library, name)) == NULL) {
        fail_msg("no %s in %s", name, path);
    }
    return found;
}

static void fail_transfer(receiver_t *receiver)
{
    const uint64_t id = ask(receiver);
    const kv_mover_event_t event = expect_event(&receiver->node, KV_MOVED_FAILED);
    assert_true(event.status != KV_OK);
    assert_true(event.landed_blocks < SLOTS);
    kv_mover_revoke(receiver->node.mover, id);
    expect_event(&receiver->node, KV_MOVED_REVOKED);
}

/* What the receiver's device refuses fails one transfer; a device that is lost, all of them. The
 * link lives on: the sender has done nothing wrong. */
static void what_fails_on_the_device_fails_a_transfer(void **state)
{
    (void)state;
    static const char *const CALLS[] = {"launch", "cudaMemcpyAsync", "cudaEventRecord"};
    bool (*fail_call)(const char *, uint64_t, int);
    const kv_wire_t wires[] = {KV_WIRE_AUTO, KV_WIRE_TCP};
    for (int wire = 0; wire < 2; wire++) {
        receiver_t receiver;
        open_receiver(&receiver, wires[wire]);
        *(void **)&fail_call = control("kv_simt_fail");
        for (size_t i = 0; i < sizeof CALLS / sizeof *CALLS; i++) {
            assert_true(fail_call(CALLS[i], 1, OUT_OF_MEMORY));
            fail_transfer(&receiver);
            land(&receiver);
        }
        assert_true(fail_call("run launch", 1, ILLEGAL_ADDRESS));
        fail_transfer(&receiver);
        fail_transfer(&receiver);
        close_receiver(&receiver);
        void (*reset)(void);
        *(void **)&reset = control("kv_simt_reset");
        reset(); /* the next one has a GPU again */
    }
}

int main(void)
{
    setenv("KVIST_SIMT_DELAY", "200", 1); /* whoever does not wait is found out */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kv_goes_from_device_to_device),
        cmocka_unit_test(kv_goes_through_pinned_memory),
        cmocka_unit_test(what_fails_on_the_device_fails_a_transfer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
