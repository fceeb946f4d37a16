/* The mover as a carrier: a group's runs are the pieces of one transfer. Everything is as in a
 * node: reservation before the first piece, checksums, scattering, LANDED as an event. */
#include "base/clock.h"
#include "base/memory.h"
#include "tools/kvist/bench/wire.h"
#include "transport/mover.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    STALL_LIMIT_MS = 20000,
    UNIT_BYTES = 16 << 10, /* of whole objects: one layer of a larger model */
};

typedef struct {
    kv_mover_t *mover;
    kv_link_t link;
    uint64_t *ids; /* [KV_MOVER_EXPECTATIONS_MAX] transfers of the batch */
} state_t;

static kv_status_t wait_event(state_t *state, kv_mover_event_t *event_out, kv_error_t *error)
{
    while (!kv_mover_poll(state->mover, event_out)) {
        struct pollfd fd = {.fd = kv_mover_fd(state->mover), .events = POLLIN};
        if (poll(&fd, 1, STALL_LIMIT_MS) == 0) {
            return kv_fail(error, KV_PEER_LOST, "the mover said nothing for %d ms", STALL_LIMIT_MS);
        }
    }
    if (event_out->kind == KV_MOVED_LINK_DOWN || event_out->kind == KV_MOVED_FAILED ||
        event_out->status != KV_OK) {
        return kv_fail(
            error, KV_IO, "the mover: %s %s", kv_status_name(event_out->status), event_out->text);
    }
    return KV_OK;
}

static kv_status_t open_link(kv_lane_t *lane, state_t *state, kv_error_t *error)
{
    kv_link_params_t params = {.name = "bench",
        .host = "127.0.0.1",
        .connects = lane->end->sends,
        .same_host = true,
        .token = "kvist bench wire"};
    kv_status_t status = KV_OK;
    uint16_t port = kv_mover_port(state->mover);
    if (lane->end->sends) {
        status = kv_end_hear(lane->end, &params.port, sizeof params.port, error);
    }
    if (status == KV_OK) {
        status = kv_mover_link_open(state->mover, &params, &state->link, error);
    }
    if (status == KV_OK && !lane->end->sends) {
        status = kv_end_say(lane->end, &port, sizeof port, error);
    }
    kv_mover_event_t event;
    return status == KV_OK ? wait_event(state, &event, error) : status;
}

static void close_mover(kv_lane_t *lane)
{
    state_t *state = lane->state;
    kv_mover_destroy(state->mover);
    free(state->ids);
    free(state);
}

static kv_status_t open_mover(kv_lane_t *lane, kv_error_t *error)
{
    state_t *state = kv_allocate(sizeof *state);
    state->ids = kv_allocate_array(KV_MOVER_EXPECTATIONS_MAX, sizeof *state->ids);
    lane->state = state;
    kv_mover_params_t params = {
        .device = lane->end->device,
        .arena = lane->end->arena,
        .slot_count = lane->slot_count,
        .slot_bytes = kv_lane_slot_bytes(lane),
        .unit_bytes = lane->route.shape.ranges > 1 ? lane->route.shape.range_bytes : UNIT_BYTES,
        .host = "127.0.0.1",
        .wire = lane->route.shm ? KV_WIRE_SHM : KV_WIRE_TCP,
        .busy_poll_ns = lane->route.busy_poll_ns,
    };
    kv_status_t status = kv_mover_create(&params, &state->mover, error);
    if (status == KV_OK) {
        status = open_link(lane, state, error);
    }
    if (status != KV_OK) {
        close_mover(lane);
    }
    return status;
}

/* ---- moving ---- */

static kv_status_t expect_all(kv_lane_t *lane, state_t *state, const kv_batch_t *batch,
    uint32_t group_count, kv_error_t *error)
{
    const kv_shape_t *shape = &lane->route.shape;
    const kv_range_t last =
        kv_range_alike((shape->ranges - 1) * shape->range_bytes, shape->range_bytes);
    kv_status_t status = KV_OK;
    for (uint32_t group = 0; group < group_count && status == KV_OK; group++) {
        size_t offset; /* not looked at: all of the slots is expected, or all of the last range */
        const kv_expectation_t expectation = {
            .transfer_id = state->ids[group] = kv_mover_transfer_id(state->mover),
            .block_count = shape->run_blocks,
            .slots = kv_lane_run(lane, group * shape->ranges, &offset),
            .ranges = &last,
            .range_count = batch->last_alone,
        };
        status = kv_mover_expect(state->mover, state->link, &expectation, error);
    }
    return status == KV_OK
               ? kv_end_say(lane->end, state->ids, group_count * sizeof *state->ids, error)
               : status;
}

static kv_status_t receive_all(kv_lane_t *lane, state_t *state, const kv_batch_t *batch,
    uint32_t group_count, uint64_t *times_ns, kv_error_t *error)
{
    const uint32_t ranges = lane->route.shape.ranges;
    kv_status_t status = KV_OK;
    for (uint32_t landed = 0; landed < group_count && status == KV_OK; landed++) {
        kv_mover_event_t event;
        status = wait_event(state, &event, error);
        /* Nobody else takes ids of this mover: they follow each other. */
        const uint64_t group = status == KV_OK ? event.transfer_id - state->ids[0] : 0;
        if (status == KV_OK && group < group_count) {
            times_ns[(group + 1) * ranges - 1] = kv_clock_now_ns();
        }
        if (status == KV_OK && batch->turns) {
            status = kv_end_say(lane->end, "", 1, error);
        }
    }
    return status;
}

static void sleep_until(uint64_t time_ns)
{
    struct timespec time = {
        .tv_sec = (time_t)(time_ns / KV_NS_PER_S), .tv_nsec = (long)(time_ns % KV_NS_PER_S)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

static kv_status_t send_run(kv_lane_t *lane, state_t *state, uint32_t run, kv_error_t *error)
{
    const kv_shape_t *shape = &lane->route.shape;
    size_t offset;
    const uint32_t *slots = kv_lane_run(lane, run, &offset);
    const kv_range_t range = kv_range_alike(offset, shape->range_bytes);
    const kv_piece_t piece = {
        .transfer_id = state->ids[run / shape->ranges],
        .block_count = shape->run_blocks,
        .ranges = &range,
        .range_count = 1,
        .slots = slots,
    };
    return kv_mover_send(state->mover, state->link, &piece, error);
}

static kv_status_t send_all(
    kv_lane_t *lane, state_t *state, const kv_batch_t *batch, uint64_t *times_ns, kv_error_t *error)
{
    const uint32_t ranges = lane->route.shape.ranges;
    kv_mover_event_t event;
    kv_status_t status = KV_OK;
    uint32_t in_flight = 0;
    const uint64_t begin_ns = kv_clock_now_ns();
    for (uint32_t run = batch->last_alone ? ranges - 1 : 0;
         run < batch->run_count && status == KV_OK; run += batch->last_alone ? ranges : 1) {
        if (batch->pace_ns > 0) {
            sleep_until(begin_ns + (run + 1) * batch->pace_ns);
        }
        for (; in_flight >= batch->depth && status == KV_OK; in_flight--) {
            status = wait_event(state, &event, error);
        }
        times_ns[run] = kv_clock_now_ns();
        status = status == KV_OK ? send_run(lane, state, run, error) : status;
        in_flight++;
        if (status == KV_OK && batch->turns && (run + 1) % ranges == 0) {
            uint8_t byte;
            status = kv_end_hear(lane->end, &byte, 1, error);
        }
    }
    for (; in_flight > 0 && status == KV_OK; in_flight--) {
        status = wait_event(state, &event, error);
    }
    return status;
}

static kv_status_t move(
    kv_lane_t *lane, const kv_batch_t *batch, uint64_t *times_ns, kv_error_t *error)
{
    state_t *state = lane->state;
    const uint32_t group_count = batch->run_count / lane->route.shape.ranges;
    if (group_count > KV_MOVER_EXPECTATIONS_MAX) {
        return kv_fail(error, KV_INVALID, "%u transfers at once; the mover takes %d", group_count,
            KV_MOVER_EXPECTATIONS_MAX);
    }
    if (!lane->end->sends) {
        kv_status_t status = expect_all(lane, state, batch, group_count, error);
        return status == KV_OK ? receive_all(lane, state, batch, group_count, times_ns, error)
                               : status;
    }
    kv_status_t status =
        kv_end_hear(lane->end, state->ids, group_count * sizeof *state->ids, error);
    return status == KV_OK ? send_all(lane, state, batch, times_ns, error) : status;
}

const kv_carrier_ops_t kv_carrier_mover = {open_mover, move, close_mover};
