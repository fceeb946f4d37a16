/* The two processes of `kvist bench wire`. The child does what commands say; each command is
 * answered with a status and, where it failed, its text. */
#include "base/clock.h"
#include "base/memory.h"
#include "tools/kvist/bench/wire.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const kv_carrier_ops_t *const CARRIERS[KV_CARRIERS] = {
    &kv_carrier_mover, &kv_carrier_bare, &kv_carrier_socket};

typedef enum { OPEN, MOVE, CLOSE } command_kind_t;

typedef struct {
    command_kind_t kind;
    uint32_t lane;
    kv_route_t route;
    kv_batch_t batch;
    uint64_t block;
} command_t;

typedef struct {
    kv_status_t status;
    kv_error_t error;
    uint64_t cpu_ns; /* that the command cost this process */
} answer_t;

/* ---- talking ---- */

kv_status_t kv_end_say(const kv_end_t *end, const void *bytes, size_t count, kv_error_t *error)
{
    return send(end->fd, bytes, count, MSG_NOSIGNAL) == (ssize_t)count
               ? KV_OK
               : kv_fail(error, KV_PEER_LOST, "the other process has ended");
}

kv_status_t kv_end_hear(const kv_end_t *end, void *bytes, size_t count, kv_error_t *error)
{
    return recv(end->fd, bytes, count, MSG_WAITALL) == (ssize_t)count
               ? KV_OK
               : kv_fail(error, KV_PEER_LOST, "the other process has ended");
}

/* ---- slots ---- */

static uint32_t common_divisor(uint32_t a, uint32_t b)
{
    return b == 0 ? a : common_divisor(b, a % b);
}

static void choose_slots(kv_lane_t *lane)
{
    lane->slot_count = (uint32_t)(lane->end->arena_bytes / kv_lane_slot_bytes(lane));
    /* Neighbours in a run are far apart in the arena, and every slot has its turn. */
    lane->stride = (uint32_t)(0.618 * lane->slot_count) | 1;
    while (common_divisor(lane->slot_count, lane->stride) != 1) {
        lane->stride += 2;
    }
    lane->slots = kv_allocate_array(lane->route.shape.run_blocks, sizeof *lane->slots);
}

const uint32_t *kv_lane_run(kv_lane_t *lane, uint32_t run, size_t *offset_out)
{
    const kv_shape_t *shape = &lane->route.shape;
    uint64_t first = lane->end->block + (uint64_t)(run / shape->ranges) * shape->run_blocks;
    for (uint32_t i = 0; i < shape->run_blocks; i++) {
        lane->slots[i] =
            (uint32_t)((first + i) % lane->slot_count * lane->stride % lane->slot_count);
    }
    *offset_out = run % shape->ranges * shape->range_bytes;
    return lane->slots;
}

/* ---- the proof: a word's value follows from its place ---- */

static uint64_t word_at(size_t index)
{
    uint64_t word = (index + 1) * 0x9e3779b97f4a7c15u;
    return word ^ word >> 29;
}

static void fill(kv_end_t *end)
{
    uint64_t *words = (uint64_t *)end->arena;
    for (size_t i = 0; i < end->arena_bytes / sizeof *words; i++) {
        words[i] = end->sends ? word_at(i) : 0;
    }
}

static void clear_run(kv_lane_t *lane, uint32_t run)
{
    size_t offset;
    const uint32_t *slots = kv_lane_run(lane, run, &offset);
    for (uint32_t i = 0; i < lane->route.shape.run_blocks; i++) {
        memset(lane->landing + slots[i] * kv_lane_slot_bytes(lane) + offset, 0,
            lane->route.shape.range_bytes);
    }
}

static kv_status_t prove_run(kv_lane_t *lane, uint32_t run, kv_error_t *error)
{
    size_t offset;
    const uint32_t *slots = kv_lane_run(lane, run, &offset);
    const uint64_t *words = (const uint64_t *)lane->landing;
    for (uint32_t i = 0; i < lane->route.shape.run_blocks; i++) {
        size_t first = (slots[i] * kv_lane_slot_bytes(lane) + offset) / sizeof *words;
        for (size_t at = first; at < first + lane->route.shape.range_bytes / sizeof *words; at++) {
            if (words[at] != word_at(at)) {
                return kv_fail(
                    error, KV_FATAL, "run %u: slot %u does not hold what was sent", run, slots[i]);
            }
        }
    }
    return KV_OK;
}

/* ---- the processes ---- */

static uint64_t cpu_now_ns(void)
{
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * KV_NS_PER_S + (uint64_t)used.tv_nsec;
}

static kv_status_t end_open(kv_end_t *end, size_t arena_bytes, kv_error_t *error)
{
    kv_status_t status = kv_device_cpu_open(1, &end->device, error);
    void *memory = NULL;
    if (status == KV_OK) {
        status = end->device->ops->allocate(end->device, arena_bytes, &memory, error);
    }
    if (status == KV_OK) {
        end->arena = memory;
        end->arena_bytes = arena_bytes;
        fill(end);
    }
    return status;
}

static kv_status_t lane_open(kv_lane_t *lane, kv_error_t *error)
{
    choose_slots(lane);
    kv_status_t status = CARRIERS[lane->route.carrier]->open(lane, error);
    if (status != KV_OK) {
        free(lane->slots);
    }
    return status;
}

static void obey(kv_end_t *end, const command_t *command, uint64_t *times_ns, answer_t *answer_out)
{
    kv_lane_t *lane = &end->lanes[command->lane];
    answer_out->status = KV_OK;
    end->block = command->block;
    switch (command->kind) {
    case OPEN:
        *lane = (kv_lane_t){.end = end, .route = command->route, .landing = end->arena};
        answer_out->status = lane_open(lane, &answer_out->error);
        return;
    case MOVE:
        answer_out->status = CARRIERS[lane->route.carrier]->move(
            lane, &command->batch, times_ns, &answer_out->error);
        return;
    case CLOSE:
        CARRIERS[lane->route.carrier]->close(lane);
        free(lane->slots);
        return;
    }
}

static _Noreturn void be_child(kv_end_t *end, size_t arena_bytes, uint64_t *sent_ns)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    answer_t answer = {.status = KV_OK};
    command_t command;
    answer.status = end_open(end, arena_bytes, &answer.error);
    while (kv_end_say(end, &answer, sizeof answer, NULL) == KV_OK &&
           kv_end_hear(end, &command, sizeof command, NULL) == KV_OK) {
        const uint64_t begin_ns = cpu_now_ns();
        obey(end, &command, sent_ns, &answer);
        answer.cpu_ns = cpu_now_ns() - begin_ns;
    }
    _exit(0);
}

/* Its CPU time is added to what is there. */
static kv_status_t hear_answer(kv_ends_t *ends, kv_error_t *error)
{
    answer_t answer = {.cpu_ns = 0};
    kv_status_t status = kv_end_hear(&ends->end, &answer, sizeof answer, error);
    ends->cpu_ns += answer.cpu_ns;
    return status != KV_OK || answer.status == KV_OK
               ? status
               : kv_fail(error, answer.status, "the sending process: %s", answer.error.text);
}

kv_status_t kv_ends_start(size_t arena_bytes, kv_ends_t *ends, kv_error_t *error)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        return kv_fail_errno(error, errno, "no pair of sockets");
    }
    const size_t shared_bytes = 2 * KV_BENCH_RUNS_MAX * sizeof(uint64_t);
    uint64_t *shared =
        mmap(NULL, shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        close(pair[0]);
        close(pair[1]);
        return kv_fail_errno(error, errno, "no shared memory");
    }
    *ends = (kv_ends_t){
        .end = {.fd = pair[0]}, .sent_ns = shared, .landed_ns = shared + KV_BENCH_RUNS_MAX};
    ends->child = fork();
    if (ends->child == 0) {
        close(pair[0]);
        be_child(&(kv_end_t){.sends = true, .fd = pair[1]}, arena_bytes, shared);
    }
    close(pair[1]);
    kv_status_t status = ends->child > 0 ? end_open(&ends->end, arena_bytes, error)
                                         : kv_fail_errno(error, errno, "no second process");
    if (status == KV_OK) {
        status = hear_answer(ends, error);
    }
    if (status != KV_OK) {
        kv_ends_stop(ends);
    }
    return status;
}

void kv_ends_stop(kv_ends_t *ends)
{
    kv_end_t *end = &ends->end;
    for (uint32_t lane = 0; lane < KV_LANES_MAX; lane++) {
        kv_ends_close(ends, lane);
    }
    close(end->fd);
    if (ends->child > 0) {
        kill(ends->child, SIGKILL);
        waitpid(ends->child, NULL, 0);
    }
    if (end->arena != NULL) {
        end->device->ops->release(end->device, end->arena, end->arena_bytes);
    }
    if (end->device != NULL) {
        kv_device_close(end->device);
    }
    munmap(ends->sent_ns, 2 * KV_BENCH_RUNS_MAX * sizeof(uint64_t));
}

/* Both ends do it. This end's failure is what is said: the other one's often follows from it. */
static kv_status_t command_both(kv_ends_t *ends, const command_t *command, kv_error_t *error)
{
    kv_status_t status = kv_end_say(&ends->end, command, sizeof *command, error);
    if (status == KV_OK) {
        answer_t own;
        const uint64_t begin_ns = cpu_now_ns();
        obey(&ends->end, command, ends->landed_ns, &own);
        ends->cpu_ns = cpu_now_ns() - begin_ns;
        status = own.status == KV_OK ? hear_answer(ends, error)
                                     : kv_fail(error, own.status, "%s", own.error.text);
    }
    ends->failed |= status != KV_OK;
    return status;
}

kv_status_t kv_ends_open(kv_ends_t *ends, uint32_t lane, const kv_route_t *route, kv_error_t *error)
{
    kv_ends_close(ends, lane);
    const command_t command = {.kind = OPEN, .lane = lane, .route = *route};
    kv_status_t status = command_both(ends, &command, error);
    ends->opened[lane] = status == KV_OK;
    return status;
}

kv_status_t kv_ends_move(kv_ends_t *ends, uint32_t lane, const kv_batch_t *batch, kv_error_t *error)
{
    kv_end_t *end = &ends->end;
    const kv_shape_t *shape = &end->lanes[lane].route.shape;
    const command_t command = {.kind = MOVE, .lane = lane, .batch = *batch, .block = end->block};
    const uint32_t proved =
        batch->last_alone ? batch->run_count - 1 : (uint32_t)(end->block % batch->run_count);
    clear_run(&end->lanes[lane], proved);
    kv_status_t status = command_both(ends, &command, error);
    if (status == KV_OK) {
        status = prove_run(&end->lanes[lane], proved, error);
    }
    end->block += (uint64_t)batch->run_count / shape->ranges * shape->run_blocks;
    return status;
}

void kv_ends_close(kv_ends_t *ends, uint32_t lane)
{
    if (!ends->opened[lane]) {
        return;
    }
    ends->opened[lane] = false;
    const command_t command = {.kind = CLOSE, .lane = lane, .block = ends->end.block};
    if (!ends->failed) {
        command_both(ends, &command, NULL);
    } else { /* the other end may be in the middle of something, for ever */
        answer_t own;
        obey(&ends->end, &command, ends->landed_ns, &own);
    }
}
