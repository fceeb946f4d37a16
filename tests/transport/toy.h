/* What the transport's tests share: a device that is this process's memory, arenas with a pattern,
 * a mover beside them, and a second process. */
#ifndef KV_TESTS_TRANSPORT_TOY_H
#define KV_TESTS_TRANSPORT_TOY_H

#include "base/clock.h"
#include "kernels/device.h"
#include "testing/testing.h"
#include "transport/mover.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static inline kv_status_t toy_copy_in(
    kv_device_t *device, void *device_to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(device_to, from, bytes);
    return KV_OK;
}

static inline kv_status_t toy_copy_out(
    kv_device_t *device, void *to, const void *device_from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(to, device_from, bytes);
    return KV_OK;
}

static const kv_device_ops_t TOY_OPS = {
    .name = "toy", .host = true, .copy_in = toy_copy_in, .copy_out = toy_copy_out};

/* The same, and it hides that its memory is this process's: everything goes through its copies. */
static const kv_device_ops_t TOY_REMOTE_OPS = {
    .name = "toy, remote", .copy_in = toy_copy_in, .copy_out = toy_copy_out};

static inline kv_status_t toy_allocate(
    kv_device_t *device, size_t bytes, void **memory_out, kv_error_t *error)
{
    (void)device;
    (void)error;
    *memory_out = calloc(1, bytes);
    assert_non_null(*memory_out);
    return KV_OK;
}

static inline void toy_release(kv_device_t *device, void *memory, size_t bytes)
{
    (void)device;
    (void)bytes;
    free(memory);
}

/* The same, and a network reaches it. */
static const kv_device_ops_t TOY_REACHED_OPS = {.name = "toy, reached",
    .network = KV_NETWORK_HOST,
    .allocate = toy_allocate,
    .release = toy_release,
    .copy_in = toy_copy_in,
    .copy_out = toy_copy_out};
static kv_device_t toy_device = {&TOY_OPS};
static uint64_t toy_busy_poll_ns; /* of movers that are opened from now on */

typedef struct {
    kv_mover_t *mover;
    uint8_t *arena;
    uint32_t slot_count;
    size_t slot_bytes, unit_bytes;
} toy_node_t;

static inline kv_status_t toy_open(toy_node_t *node, kv_wire_t wire, const kv_wire_driver_t *driver,
    uint32_t slot_count, size_t slot_bytes, size_t unit_bytes)
{
    *node = (toy_node_t){NULL, calloc(slot_count, slot_bytes), slot_count, slot_bytes, unit_bytes};
    assert_non_null(node->arena);
    kv_mover_params_t params = {
        .device = &toy_device,
        .arena = node->arena,
        .slot_count = slot_count,
        .slot_bytes = slot_bytes,
        .unit_bytes = unit_bytes,
        .host = "127.0.0.1",
        .wire = wire,
        .busy_poll_ns = toy_busy_poll_ns,
        .driver = driver,
    };
    kv_error_t error = {0};
    kv_status_t status = kv_mover_create(&params, &node->mover, &error);
    if (status != KV_OK) {
        print_message("mover: %s\n", error.text);
    }
    return status;
}

static inline void toy_close(toy_node_t *node)
{
    kv_mover_destroy(node->mover);
    free(node->arena);
}

static inline void toy_fill(toy_node_t *node, uint64_t seed)
{
    for (size_t at = 0; at + 8 <= node->slot_count * node->slot_bytes; at += 8) {
        uint64_t value = (at + seed) * 0x9e3779b97f4a7c15u;
        memcpy(node->arena + at, &value, 8);
    }
}

/* All of the slots, from this link. */
static inline kv_status_t toy_expect(toy_node_t *node, kv_link_t link, uint64_t transfer_id,
    const uint32_t *slots, uint32_t block_count)
{
    kv_expectation_t expectation = {
        .transfer_id = transfer_id, .block_count = block_count, .slots = slots};
    return kv_mover_expect(node->mover, link, &expectation, NULL);
}

/* The next event, within the limit; false where none came. */
static inline bool toy_wait(toy_node_t *node, kv_mover_event_t *event_out, int limit_ms)
{
    uint64_t end_ns = kv_clock_now_ns() + (uint64_t)limit_ms * KV_NS_PER_MS;
    for (;;) {
        if (kv_mover_poll(node->mover, event_out)) {
            return true;
        }
        uint64_t now_ns = kv_clock_now_ns();
        if (now_ns >= end_ns) {
            return false;
        }
        struct pollfd fd = {.fd = kv_mover_fd(node->mover), .events = POLLIN};
        poll(&fd, 1, (int)((end_ns - now_ns) / KV_NS_PER_MS) + 1);
    }
}

static inline kv_mover_event_t toy_expect_event(toy_node_t *node, kv_moved_t kind)
{
    kv_mover_event_t event = {0};
    if (!toy_wait(node, &event, 10000)) {
        fail_msg("no event within 10 s; expected kind %d", kind);
    }
    if (event.kind != kind) {
        fail_msg("event %d (%s: %s), expected %d", event.kind, kv_status_name(event.status),
            event.text, kind);
    }
    return event;
}

static inline kv_link_t toy_link(toy_node_t *node, uint16_t port, bool connects, uint8_t token)
{
    kv_link_params_t params = {
        .name = "toy", .host = "127.0.0.1", .port = port, .connects = connects, .same_host = true};
    memset(params.token, token, sizeof params.token);
    kv_link_t link = 0;
    assert_int_equal(kv_mover_link_open(node->mover, &params, &link, NULL), KV_OK);
    return link;
}

#endif
