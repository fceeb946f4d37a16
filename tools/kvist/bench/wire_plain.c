/* What the mover is compared with: bare UCX and a plain socket over the same slots, and
 * ucx_perftest, which goes over one buffer again and again. */
#include "base/clock.h"
#include "base/memory.h"
#include "tools/kvist/bench/wire.h"
#include "tools/kvist/program.h"
#include "transport/ucx/ucx_bare.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- bare UCX ---- */

static void bare_run_at(void *context, uint32_t index, kv_bare_run_t *run_out)
{
    kv_lane_t *lane = context;
    *run_out = (kv_bare_run_t){.block_count = lane->route.shape.run_blocks,
        .slot_bytes = kv_lane_slot_bytes(lane),
        .range_bytes = lane->route.shape.range_bytes};
    run_out->slots = kv_lane_run(lane, index, &run_out->offset_bytes);
}

static kv_status_t open_bare(kv_lane_t *lane, kv_error_t *error)
{
    kv_bare_params_t params = {
        .operation = (kv_bare_operation_t)lane->route.operation,
        .shm = lane->route.shm,
        .sends = lane->end->sends,
        .arena = lane->end->arena,
        .arena_bytes = lane->end->arena_bytes,
        .fd = lane->end->fd,
    };
    kv_bare_t *bare;
    kv_status_t status = kv_bare_open(&params, &bare, error);
    if (status == KV_OK) {
        lane->state = bare;
        lane->landing = kv_bare_arena(bare);
    }
    return status;
}

static kv_status_t move_bare(
    kv_lane_t *lane, const kv_batch_t *batch, uint64_t *times_ns, kv_error_t *error)
{
    const kv_bare_batch_t bare_batch = {
        .run_count = batch->run_count,
        .depth = batch->depth,
        .turns = batch->turns,
        .run_at = bare_run_at,
        .context = lane,
        .times_ns = times_ns,
    };
    return kv_bare_move(lane->state, &bare_batch, error);
}

static void close_bare(kv_lane_t *lane)
{
    kv_bare_close(lane->state);
}

const kv_carrier_ops_t kv_carrier_bare = {open_bare, move_bare, close_bare};

/* ---- a socket ---- */

enum { RANGES_AT_ONCE = 64 };

typedef struct {
    int fd;
} socket_state_t;

static kv_status_t listen_loopback(int *fd_out, uint16_t *port_out, kv_error_t *error)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, bytes) != 0 || listen(fd, 1) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &bytes) != 0) {
        kv_status_t status = kv_fail_errno(error, errno, "no socket to listen on");
        if (fd >= 0) {
            close(fd);
        }
        return status;
    }
    *fd_out = fd;
    *port_out = address.sin_port;
    return KV_OK;
}

static kv_status_t connect_loopback(uint16_t port, int *fd_out, kv_error_t *error)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        kv_status_t status = kv_fail_errno(error, errno, "no connection over loopback");
        if (fd >= 0) {
            close(fd);
        }
        return status;
    }
    *fd_out = fd;
    return KV_OK;
}

static kv_status_t open_tcp(kv_lane_t *lane, int *fd_out, kv_error_t *error)
{
    uint16_t port;
    if (lane->end->sends) {
        kv_status_t status = kv_end_hear(lane->end, &port, sizeof port, error);
        return status == KV_OK ? connect_loopback(port, fd_out, error) : status;
    }
    int listen_fd = -1;
    kv_status_t status = listen_loopback(&listen_fd, &port, error);
    if (status != KV_OK) {
        return status;
    }
    status = kv_end_say(lane->end, &port, sizeof port, error);
    if (status == KV_OK) {
        *fd_out = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        status = *fd_out >= 0 ? KV_OK : kv_fail_errno(error, errno, "nobody connects");
    }
    close(listen_fd);
    return status;
}

/* Where shared memory is the wire, the kernel's way beside it is a Unix socket: the one that the
 * two talk over, since nothing else is said while a batch moves. */
static kv_status_t open_socket(kv_lane_t *lane, kv_error_t *error)
{
    int fd = lane->end->fd;
    kv_status_t status = lane->route.shm ? KV_OK : open_tcp(lane, &fd, error);
    if (status == KV_OK) {
        const int yes = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        socket_state_t *state = kv_allocate(sizeof *state);
        state->fd = fd;
        lane->state = state;
    }
    return status;
}

static void close_socket(kv_lane_t *lane)
{
    socket_state_t *state = lane->state;
    if (!lane->route.shm) {
        close(state->fd);
    }
    free(state);
}

static kv_status_t pass_ranges(
    int fd, bool sends, struct iovec *ranges, uint32_t count, kv_error_t *error)
{
    uint32_t first = 0;
    while (first < count) {
        ssize_t moved = sends ? writev(fd, ranges + first, (int)(count - first))
                              : readv(fd, ranges + first, (int)(count - first));
        if (moved <= 0) {
            return kv_fail(error, KV_PEER_LOST, "the socket's other end is gone");
        }
        size_t left = (size_t)moved;
        while (first < count && left >= ranges[first].iov_len) {
            left -= ranges[first++].iov_len;
        }
        if (left > 0) {
            ranges[first].iov_base = (uint8_t *)ranges[first].iov_base + left;
            ranges[first].iov_len -= left;
        }
    }
    return KV_OK;
}

static kv_status_t pass_run(kv_lane_t *lane, int fd, uint32_t run, kv_error_t *error)
{
    const kv_shape_t *shape = &lane->route.shape;
    size_t offset;
    const uint32_t *slots = kv_lane_run(lane, run, &offset);
    kv_status_t status = KV_OK;
    for (uint32_t first = 0; first < shape->run_blocks && status == KV_OK;
         first += RANGES_AT_ONCE) {
        struct iovec ranges[RANGES_AT_ONCE];
        uint32_t count = shape->run_blocks - first;
        count = count < RANGES_AT_ONCE ? count : RANGES_AT_ONCE;
        for (uint32_t i = 0; i < count; i++) {
            ranges[i] = (struct iovec){
                lane->end->arena + slots[first + i] * kv_lane_slot_bytes(lane) + offset,
                shape->range_bytes};
        }
        status = pass_ranges(fd, lane->end->sends, ranges, count, error);
    }
    return status;
}

static kv_status_t move_socket(
    kv_lane_t *lane, const kv_batch_t *batch, uint64_t *times_ns, kv_error_t *error)
{
    const socket_state_t *state = lane->state;
    kv_status_t status = KV_OK;
    for (uint32_t run = 0; run < batch->run_count && status == KV_OK; run++) {
        if (lane->end->sends) {
            times_ns[run] = kv_clock_now_ns();
        }
        status = pass_run(lane, state->fd, run, error);
        if (!lane->end->sends) {
            times_ns[run] = kv_clock_now_ns();
        }
        if (batch->turns && status == KV_OK) {
            uint8_t byte = 0;
            status = lane->end->sends ? kv_end_hear(lane->end, &byte, 1, error)
                                      : kv_end_say(lane->end, &byte, 1, error);
        }
    }
    return status;
}

const kv_carrier_ops_t kv_carrier_socket = {open_socket, move_socket, close_socket};

/* ---- ucx_perftest ---- */

enum { PERFTEST_PORT = 13377, PERFTEST_LIMIT_MS = 30000, WARM_UPS = 20, ITERATIONS = 400 };

/* The last line of "ucx_perftest -f": iterations, then latencies and MB/s (of 2^20 bytes), average
 * and overall. */
static bool read_rate(const char *text, double *gb_per_s_out)
{
    double rate = 0;
    for (const char *line = text; line != NULL && *line != '\0';) {
        double overall;
        if (sscanf(line, " %*u %*f %*f %*f %*f %lf", &overall) == 1) {
            rate = overall;
        }
        line = strchr(line, '\n');
        line += line != NULL;
    }
    *gb_per_s_out = rate * (1 << 20) / 1e9;
    return rate > 0;
}

kv_status_t kv_perftest_run(bool shm, size_t message_bytes, double *gb_per_s_out, kv_error_t *error)
{
    char size[24], count[24], warm_ups[24], port[24];
    snprintf(size, sizeof size, "%zu", message_bytes);
    snprintf(count, sizeof count, "%d", ITERATIONS);
    snprintf(warm_ups, sizeof warm_ups, "%d", WARM_UPS);
    snprintf(port, sizeof port, "%d", PERFTEST_PORT);
    char *transports = shm ? "UCX_TLS=posix,cma" : "UCX_TLS=tcp";
    char *const server[] = {"env", transports, "ucx_perftest", "-p", port, NULL};
    char *const client[] = {"env", transports, "ucx_perftest", "127.0.0.1", "-p", port, "-t",
        "ucp_am_bw", "-s", size, "-n", count, "-w", warm_ups, "-f", NULL};
    kv_program_t serving, asking;
    kv_status_t status = kv_program_start(server, &serving, error);
    if (status != KV_OK) {
        return status;
    }
    usleep(300000); /* it says nothing when it listens */
    char *text = NULL;
    status = kv_program_start(client, &asking, error);
    if (status == KV_OK) {
        status = kv_program_hear_all(&asking, PERFTEST_LIMIT_MS, &text, error);
        int code = kv_program_end(&asking, status == KV_OK ? PERFTEST_LIMIT_MS : 0);
        if (status == KV_OK && code == 127) {
            status = kv_fail(error, KV_MISSING, "ucx_perftest is not installed");
        } else if (status == KV_OK && !read_rate(text, gb_per_s_out)) {
            status = kv_fail(error, KV_IO, "ucx_perftest ended with %d and no rate", code);
        }
        free(text);
    }
    kv_program_end(&serving, status == KV_OK ? PERFTEST_LIMIT_MS : 0);
    return status;
}
