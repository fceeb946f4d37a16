/* The wire over UCX 1.13: eager active messages between workers whose addresses were exchanged over
 * a plain socket, the *front*; over shared memory the large ones are read where they were built
 * (ucx_share.c).
 *
 * Why not UCX's own listener: its connection manager stops the whole process (an assertion) when
 * anybody sends a few hundred bytes of rubbish to its port. The front is read by this file instead:
 *
 *   connector   "KVU1" id[8] length[4] worker address   ->
 *   acceptor                                            <-  "KVU1" 0[8] length[4] worker address
 *
 * The acceptor answers only an id that the mover expects. The front then stays open, as the sign
 * that the other process lives: shared memory says nothing about that by itself.
 *
 * Every pipe has a ucp_worker of its own. Destroying the worker is the only thing that ends an
 * endpoint in every state: UCX refuses a forced close in error mode NONE, which shared memory
 * needs, and a flush waits for a peer that may be stopped. Once ucp_worker_destroy returned, every
 * request's callback has fired and no message can arrive: that is the fence.
 *
 * Error mode PEER puts every lane on TCP; NONE lets posix shared memory in. */
#include "base/address.h"
#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "transport/mover/data_message.h"
#include "transport/ucx/ucx_internal.h"

#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    PROGRESS_ROUNDS = 16,
    FRONTS_MAX = 64, /* accepted, and their request not read yet */
    FRONT_BYTES_MAX = KV_DATA_FRONT_BYTES + KV_DATA_ADDRESS_BYTES_MAX,
    EVENTS_MAX = 16,
    SEGMENT_HEAD_BYTES = 4 << 10, /* UCX's own, and to spare */
    SEGMENT_BYTES_MAX = 1 << 20,
};

/* A message that came as a rendezvous, on its way into memory of its own. */
typedef struct {
    kv_wire_pipe_t *pipe;
    size_t count;
    uint8_t bytes[];
} rendezvous_t;

kv_status_t status_from_ucs(ucs_status_t status)
{
    switch (status) {
    case UCS_OK:
        return KV_OK;
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_NO_RESOURCE:
        return KV_NO_SPACE;
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
        return KV_INVALID;
    case UCS_ERR_CANCELED:
        return KV_CANCELLED;
    case UCS_ERR_REJECTED:
        return KV_REFUSED;
    case UCS_ERR_IO_ERROR:
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_BUSY:
        return KV_IO;
    default:
        return KV_PEER_LOST;
    }
}

static kv_status_t fail_ucs(kv_error_t *error, ucs_status_t status, const char *what)
{
    return kv_fail(error, status_from_ucs(status), "%s: %s", what, ucs_status_string(status));
}

/* ---- workers ---- */

static kv_status_t worker_open(
    kv_wire_side_t *side, ucp_worker_h *worker_out, int *fd_out, kv_error_t *error)
{
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    ucp_worker_h worker;
    ucs_status_t status = ucp_worker_create(side->context, &params, &worker);
    if (status != UCS_OK) {
        return fail_ucs(error, status, "cannot make a UCX worker");
    }
    int fd;
    status = ucp_worker_get_efd(worker, &fd);
    if (status != UCS_OK) {
        fail_ucs(error, status, "cannot wait on a UCX worker");
        goto destroy;
    }
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(side->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        kv_fail_errno(error, errno, "cannot wait on a UCX worker");
        status = UCS_ERR_IO_ERROR;
        goto destroy;
    }
    *worker_out = worker;
    *fd_out = fd;
    return KV_OK;

destroy:
    ucp_worker_destroy(worker);
    return status_from_ucs(status);
}

static void rendezvous_done(void *request, ucs_status_t status, size_t count, void *user_data)
{
    rendezvous_t *message = user_data;
    kv_wire_pipe_t *pipe = message->pipe;
    if (status == UCS_OK && !pipe->broken && pipe->owner != NULL) {
        pipe->side->params.upcalls.received(pipe->owner, message->bytes, count);
    }
    free(message);
    if (request != NULL) {
        ucp_request_free(request);
    }
}

/* Kvist's own senders never offer a rendezvous; one that comes all the same is received beside the
 * slots, so that what is written into a slot was always validated first. */
static ucs_status_t rendezvous_begin(kv_wire_pipe_t *pipe, void *descriptor, size_t count)
{
    pipe->side->rendezvous_count++;
    if (count > pipe->side->params.message_bytes_max) {
        return UCS_OK; /* refuses the offer */
    }
    rendezvous_t *message = kv_allocate(sizeof *message + count);
    *message = (rendezvous_t){.pipe = pipe, .count = count};
    ucp_request_param_t params = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
        .cb.recv_am = rendezvous_done,
        .user_data = message,
    };
    ucs_status_ptr_t request =
        ucp_am_recv_data_nbx(pipe->worker, descriptor, message->bytes, count, &params);
    if (UCS_PTR_IS_ERR(request)) {
        free(message);
        return UCS_OK;
    }
    return UCS_INPROGRESS;
}

static ucs_status_t on_message(void *argument, const void *header, size_t header_bytes, void *data,
    size_t count, const ucp_am_recv_param_t *params)
{
    (void)header;
    (void)header_bytes;
    kv_wire_pipe_t *pipe = argument;
    if (pipe->broken || pipe->owner == NULL) {
        return UCS_OK;
    }
    if (params->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) {
        return rendezvous_begin(pipe, data, count);
    }
    pipe->side->params.upcalls.received(pipe->owner, data, count);
    return UCS_OK;
}

void pipe_break(kv_wire_pipe_t *pipe, kv_status_t status, const char *reason)
{
    if (!pipe->broken) {
        pipe->broken = true;
        pipe->broken_status = status;
        snprintf(pipe->broken_reason, sizeof pipe->broken_reason, "%.95s", reason);
    }
}

static void on_endpoint_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    (void)endpoint;
    pipe_break(argument, status_from_ucs(status), ucs_status_string(status));
}

/* ---- pipes ---- */

static void front_close(front_t *front)
{
    kv_wire_side_t *side = front->side;
    front_t **at = &side->fronts;
    while (*at != front) {
        at = &(*at)->next;
    }
    *at = front->next;
    side->request_count -= front->pipe == NULL;
    /* By hand: a child process that still holds the socket would keep its events coming. */
    epoll_ctl(side->front_epoll_fd, EPOLL_CTL_DEL, front->fd, NULL);
    close(front->fd);
    free(front->in);
    free(front->out);
    free(front);
}

/* Takes the socket. */
static kv_status_t front_open(
    kv_wire_side_t *side, int fd, kv_wire_pipe_t *pipe, front_t **front_out, kv_error_t *error)
{
    front_t *front = kv_allocate(sizeof *front);
    *front = (front_t){
        .side = side,
        .pipe = pipe,
        .fd = fd,
        .in = kv_allocate(FRONT_BYTES_MAX),
        .out = kv_allocate(FRONT_BYTES_MAX),
    };
    front->next = side->fronts;
    side->fronts = front;
    side->request_count += pipe == NULL;
    struct epoll_event event = {
        .events = EPOLLIN | (pipe != NULL ? EPOLLOUT : 0), .data.ptr = front};
    if (epoll_ctl(side->front_epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        kv_status_t status = kv_fail_errno(error, errno, "cannot wait on a data connection");
        front_close(front);
        return status;
    }
    *front_out = front;
    return KV_OK;
}

static void pipe_destroy(kv_wire_pipe_t *pipe)
{
    if (pipe->worker != NULL) {
        epoll_ctl(pipe->side->epoll_fd, EPOLL_CTL_DEL, pipe->worker_fd, NULL);
        if (direct_end_reads(pipe)) {
            ucp_worker_destroy(pipe->worker);
        } else {
            kv_log_error(
                "transport", "a read of a peer's memory does not end: its UCX worker stays");
        }
    }
    direct_close(pipe);
    share_close(pipe);
    if (pipe->front != NULL) {
        front_close(pipe->front);
    }
    free(pipe);
}

static kv_status_t pipe_open(
    kv_wire_side_t *side, bool shm, void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    kv_wire_pipe_t *pipe = kv_allocate(sizeof *pipe);
    *pipe = (kv_wire_pipe_t){.side = side, .owner = owner, .shm = shm};
    kv_status_t result = worker_open(side, &pipe->worker, &pipe->worker_fd, error);
    if (result != KV_OK) {
        goto destroy;
    }
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS,
        .id = MESSAGE_ID,
        .cb = on_message,
        .arg = pipe,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
    };
    ucs_status_t status = ucp_worker_set_am_recv_handler(pipe->worker, &handler);
    if (status != UCS_OK) {
        result = fail_ucs(error, status, "cannot receive UCX messages");
        goto destroy;
    }
    result = direct_open(pipe, error);
    if (result != KV_OK) {
        goto destroy;
    }
    if (shm) {
        share_open(pipe);
    }
    *pipe_out = pipe;
    return KV_OK;

destroy:
    pipe_destroy(pipe);
    return result;
}

static void pipe_link(kv_wire_pipe_t *pipe)
{
    pipe->next = pipe->side->pipes;
    pipe->side->pipes = pipe;
}

static kv_status_t endpoint_open(kv_wire_pipe_t *pipe, const uint8_t *address, kv_error_t *error)
{
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = (const ucp_address_t *)address,
        .err_mode = pipe->shm ? UCP_ERR_HANDLING_MODE_NONE : UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {on_endpoint_error, pipe},
    };
    ucs_status_t status = ucp_ep_create(pipe->worker, &params, &pipe->endpoint);
    if (status != UCS_OK) {
        return fail_ucs(error, status, "cannot make a UCX endpoint");
    }
    share_offer(pipe);
    return KV_OK;
}

/* ---- fronts ---- */

/* Our worker's address, behind a header, into the front's out. */
static kv_status_t front_fill(front_t *front, uint64_t id, kv_error_t *error)
{
    ucp_address_t *address;
    size_t bytes;
    ucs_status_t status = ucp_worker_get_address(front->pipe->worker, &address, &bytes);
    if (status != UCS_OK) {
        return fail_ucs(error, status, "cannot ask for a UCX worker's address");
    }
    kv_status_t result = KV_OK;
    if (bytes > KV_DATA_ADDRESS_BYTES_MAX) {
        result = kv_fail(error, KV_NO_SPACE, "a UCX worker's address of %zu bytes", bytes);
    } else {
        kv_data_front_encode(front->out, id, (uint32_t)bytes);
        memcpy(front->out + KV_DATA_FRONT_BYTES, address, bytes);
        front->out_count = KV_DATA_FRONT_BYTES + bytes;
    }
    ucp_worker_release_address(front->pipe->worker, address);
    return result;
}

/* false: the connection ended. */
static bool front_write(front_t *front)
{
    while (front->out_done < front->out_count) {
        ssize_t count = send(front->fd, front->out + front->out_done,
            front->out_count - front->out_done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count < 0) {
            return errno == EAGAIN || errno == EINTR || errno == EINPROGRESS || errno == ENOTCONN;
        }
        front->out_done += (size_t)count;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = front};
    epoll_ctl(front->side->front_epoll_fd, EPOLL_CTL_MOD, front->fd, &event);
    return true;
}

/* Reads no further than the message's end. KV_OK: it is whole; KV_BUSY: not yet. */
static kv_status_t front_read(front_t *front)
{
    for (;;) {
        size_t expected = kv_data_front_bytes(front->in, front->in_count);
        if (expected == 0) {
            return KV_INVALID;
        }
        if (front->in_count == expected) {
            return KV_OK;
        }
        ssize_t count =
            recv(front->fd, front->in + front->in_count, expected - front->in_count, MSG_DONTWAIT);
        if (count == 0) {
            return KV_PEER_LOST;
        }
        if (count < 0) {
            return errno == EAGAIN || errno == EINTR ? KV_BUSY : KV_PEER_LOST;
        }
        front->in_count += (size_t)count;
    }
}

/* A front whose pipe is open has nothing more to say: anything, its end too, ends the pipe. */
static void front_watch(front_t *front)
{
    uint8_t byte;
    ssize_t count = recv(front->fd, &byte, 1, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    front->closed = true;
    pipe_break(front->pipe, KV_PEER_LOST,
        count == 0 ? "it closed the data connection" : "its data connection broke");
}

static void front_advance_pipe(front_t *front)
{
    kv_wire_pipe_t *pipe = front->pipe;
    if (pipe->endpoint != NULL) {
        front_watch(front);
        return;
    }
    if (!front_write(front)) {
        front->closed = true;
        pipe_break(pipe, KV_PEER_LOST, "cannot reach its data port");
        return;
    }
    kv_status_t status = front_read(front);
    kv_error_t error;
    if (status == KV_OK) {
        status = endpoint_open(pipe, front->in + KV_DATA_FRONT_BYTES, &error);
        if (status == KV_OK) {
            pipe->side->params.upcalls.opened(pipe->owner);
        } else {
            pipe_break(pipe, status, error.text);
        }
    } else if (status != KV_BUSY) {
        front->closed = true;
        pipe_break(pipe, KV_PEER_LOST, "its data port closed the connection");
    }
}

static void front_advance_request(front_t *front)
{
    kv_wire_side_t *side = front->side;
    kv_status_t status = front_read(front);
    if (status == KV_OK) {
        side->params.upcalls.requested(
            side->params.upcalls.context, front, kv_data_front_id(front->in));
    } else if (status != KV_BUSY) {
        kv_log_debug("transport", "a stranger's data connection ends: %s", kv_status_name(status));
        front_close(front);
    }
}

static void accept_fronts(kv_wire_side_t *side)
{
    int fd;
    while ((fd = accept4(side->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (side->request_count >= FRONTS_MAX) {
            /* Who knows an id needs its place for a moment only: the oldest makes room. */
            front_t *oldest = NULL;
            for (front_t *front = side->fronts; front != NULL; front = front->next) {
                oldest = front->pipe == NULL ? front : oldest;
            }
            front_close(oldest);
        }
        front_t *front;
        kv_error_t error;
        if (front_open(side, fd, NULL, &front, &error) != KV_OK) {
            kv_log_warn("transport", "%s", error.text);
        }
    }
}

static unsigned progress_fronts(kv_wire_side_t *side)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(side->front_epoll_fd, events, EVENTS_MAX, 0);
    bool arrived = false;
    for (int i = 0; i < count; i++) {
        front_t *front = events[i].data.ptr;
        if (front == NULL) {
            arrived = true;
        } else if (front->pipe != NULL && !front->closed) {
            front_advance_pipe(front);
        } else if (front->pipe == NULL) {
            front_advance_request(front);
        }
    }
    if (arrived) { /* last: it may close fronts that the events name */
        accept_fronts(side);
    }
    return count > 0 ? (unsigned)count : 0;
}

static kv_status_t ucx_connect(kv_wire_side_t *side, const char *host, uint16_t port, uint64_t id,
    bool shm, void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    struct sockaddr_storage address;
    kv_status_t status = kv_address_from_parts(host, port, &address, error);
    if (status != KV_OK) {
        return status;
    }
    kv_wire_pipe_t *pipe;
    status = pipe_open(side, shm, owner, &pipe, error);
    if (status != KV_OK) {
        return status;
    }
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        status = kv_fail_errno(error, errno, "cannot make a socket");
        goto destroy;
    }
    if (connect(fd, (struct sockaddr *)&address, kv_address_bytes(&address)) != 0 &&
        errno != EINPROGRESS) {
        status = kv_fail_errno(error, errno, "cannot connect to %s port %u", host, port);
        close(fd);
        goto destroy;
    }
    status = front_open(side, fd, pipe, &pipe->front, error);
    if (status == KV_OK) {
        status = front_fill(pipe->front, id, error);
    }
    if (status != KV_OK) {
        goto destroy;
    }
    pipe_link(pipe);
    *pipe_out = pipe;
    return KV_OK;

destroy:
    pipe_destroy(pipe);
    return status;
}

static kv_status_t ucx_accept(kv_wire_side_t *side, kv_wire_request_t *front, bool shm, void *owner,
    kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    kv_wire_pipe_t *pipe;
    kv_status_t status = pipe_open(side, shm, owner, &pipe, error);
    if (status != KV_OK) {
        front_close(front);
        return status;
    }
    side->request_count--;
    front->pipe = pipe;
    pipe->front = front;
    status = endpoint_open(pipe, front->in + KV_DATA_FRONT_BYTES, error);
    if (status == KV_OK) {
        status = front_fill(front, 0, error);
    }
    if (status == KV_OK && (!front_write(front) || front->out_done < front->out_count)) {
        status = kv_fail(error, KV_PEER_LOST, "its data connection broke");
    }
    if (status != KV_OK) {
        pipe_destroy(pipe);
        return status;
    }
    pipe_link(pipe);
    *pipe_out = pipe;
    return KV_OK;
}

static void ucx_reject(kv_wire_side_t *side, kv_wire_request_t *front)
{
    (void)side;
    front_close(front);
}

static void ucx_drop(kv_wire_pipe_t *pipe)
{
    kv_wire_pipe_t **link = &pipe->side->pipes;
    while (*link != pipe) {
        link = &(*link)->next;
    }
    *link = pipe->next;
    /* Requests that are still out complete inside and reach their owner; messages do not. */
    pipe->broken = true;
    pipe_destroy(pipe);
}

/* ---- messages ---- */

typedef struct {
    kv_wire_pipe_t *pipe;
    void *tag;
} sending_t;

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    sending_t sending = *(sending_t *)user_data;
    free(user_data);
    ucp_request_free(request);
    sending.pipe->side->params.upcalls.sent(
        sending.pipe->owner, sending.tag, status_from_ucs(status));
}

static kv_status_t ucx_send(kv_wire_pipe_t *pipe, const void *bytes, size_t count, void *tag)
{
    if (pipe->broken || pipe->endpoint == NULL) {
        return KV_PEER_LOST;
    }
    if (share_send(pipe, bytes, count, tag)) {
        return KV_BUSY;
    }
    sending_t *sending = kv_allocate(sizeof *sending);
    *sending = (sending_t){pipe, tag};
    ucp_request_param_t params = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
        .cb.send = on_sent,
        .user_data = sending,
        .flags = UCP_AM_SEND_FLAG_EAGER,
    };
    ucs_status_ptr_t request =
        ucp_am_send_nbx(pipe->endpoint, MESSAGE_ID, NULL, 0, bytes, count, &params);
    if (UCS_PTR_IS_PTR(request)) {
        return KV_BUSY;
    }
    free(sending);
    return status_from_ucs(UCS_PTR_RAW_STATUS(request));
}

/* UCX 1.13 has no call that names an endpoint's lanes; what it prints does:
 *     "#   lane[1]:  2:posix/memory.0 md[1]   -> md[1]/posix/sysdev[255] am am_bw#0"
 * The lane with the word "am" carries eager active messages. */
static kv_status_t ucx_describe(
    kv_wire_pipe_t *pipe, kv_wire_t *wire_out, char *text_out, size_t text_bytes)
{
    char *page = NULL;
    size_t page_bytes = 0;
    FILE *stream = open_memstream(&page, &page_bytes);
    if (stream == NULL) {
        return KV_NO_SPACE;
    }
    ucp_ep_print_info(pipe->endpoint, stream);
    fclose(stream);
    kv_status_t status = KV_MISSING;
    char *rest = page, *line;
    while (status != KV_OK && (line = strsep(&rest, "\n")) != NULL) {
        char name[64];
        size_t length = strlen(line);
        bool carries =
            strstr(line, " am ") != NULL || (length >= 3 && strcmp(line + length - 3, " am") == 0);
        if (carries && sscanf(line, "# lane[%*d]: %*d:%63s", name) == 1) {
            *wire_out = strncmp(name, "tcp/", 4) == 0 ? KV_WIRE_TCP : KV_WIRE_SHM;
            snprintf(text_out, text_bytes, "%s", name);
            status = KV_OK;
        }
    }
    free(page);
    return status;
}

/* ---- the side ---- */

static unsigned worker_progress(ucp_worker_h worker)
{
    unsigned happened = 0;
    for (int round = 0; round < PROGRESS_ROUNDS; round++) {
        unsigned now = ucp_worker_progress(worker);
        if (now == 0) {
            break;
        }
        happened += now;
    }
    return happened;
}

static unsigned ucx_progress(kv_wire_side_t *side)
{
    unsigned happened = progress_fronts(side);
    for (kv_wire_pipe_t *pipe = side->pipes; pipe != NULL; pipe = pipe->next) {
        happened += worker_progress(pipe->worker) + direct_progress(pipe);
        if (pipe->broken && !pipe->reported) {
            pipe->reported = true;
            happened++;
            side->params.upcalls.lost(pipe->owner, pipe->broken_status, pipe->broken_reason);
        }
    }
    return happened;
}

static bool worker_arm(ucp_worker_h worker)
{
    return ucp_worker_arm(worker) == UCS_OK;
}

static bool ucx_arm(kv_wire_side_t *side)
{
    for (kv_wire_pipe_t *pipe = side->pipes; pipe != NULL; pipe = pipe->next) {
        if (!worker_arm(pipe->worker)) {
            return false;
        }
    }
    return true;
}

static bool is_wildcard(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET6
               ? IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)address)->sin6_addr)
               : ((const struct sockaddr_in *)address)->sin_addr.s_addr == htonl(INADDR_ANY);
}

/* All of 127.0.0.0/8 is loopback's, and only one address of it is listed. */
static bool is_loopback(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET &&
           ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

static bool has_address(const struct ifaddrs *interface, const struct sockaddr_storage *wanted)
{
    const struct sockaddr *held = interface->ifa_addr;
    if (held == NULL || held->sa_family != wanted->ss_family) {
        return false;
    }
    if (held->sa_family == AF_INET6) {
        return memcmp(&((const struct sockaddr_in6 *)held)->sin6_addr,
                   &((const struct sockaddr_in6 *)wanted)->sin6_addr, sizeof(struct in6_addr)) == 0;
    }
    return ((const struct sockaddr_in *)held)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)wanted)->sin_addr.s_addr ||
           (is_loopback(wanted) && (interface->ifa_flags & IFF_LOOPBACK) != 0);
}

/* The network interface that has the address; "all" for the wildcard alone: UCX listens on what it
 * is given. */
static kv_status_t device_of(const char *host, char *name_out, size_t name_bytes, kv_error_t *error)
{
    struct sockaddr_storage wanted;
    kv_status_t status = kv_address_from_parts(host, 0, &wanted, error);
    if (status != KV_OK) {
        return status;
    }
    if (is_wildcard(&wanted)) {
        snprintf(name_out, name_bytes, "all");
        return KV_OK;
    }
    struct ifaddrs *all;
    if (getifaddrs(&all) != 0) {
        return kv_fail_errno(error, errno, "cannot list the network interfaces");
    }
    struct ifaddrs *at = all;
    while (at != NULL && !has_address(at, &wanted)) {
        at = at->ifa_next;
    }
    if (at != NULL) {
        snprintf(name_out, name_bytes, "%s", at->ifa_name);
    } else {
        status = kv_fail(error, KV_INVALID, "no network interface has the address %s", host);
    }
    freeifaddrs(all);
    return status;
}

/* UCX's TCP segments, for sending and receiving (8 KiB and 64 KiB are its defaults): a message that
 * fits into one is handed over where it was received, a larger one is first put together in memory
 * of its own. */
static void choose_segments(size_t message_bytes, char send_out[24], char receive_out[24])
{
    size_t bytes = message_bytes + SEGMENT_HEAD_BYTES;
    bytes = bytes < SEGMENT_BYTES_MAX ? bytes : SEGMENT_BYTES_MAX;
    snprintf(send_out, 24, "%zu", bytes);
    snprintf(receive_out, 24, "%zu", 2 * bytes);
}

/* What UCX shall use, whatever its environment says: the network that the listener is on; large TCP
 * segments, since eager messages alone move KV (the names carry no "TCP_" here); no zero-copy
 * sends, which stop the process when the peer resets the connection between two halves of one;
 * connecting without waiting, or a peer that is not reached would stop the thread (README.md);
 * direct messages are read by who receives them (ucx_direct.c). */
static kv_status_t context_open(
    const kv_wire_params_t *wire, ucp_context_h *context_out, kv_error_t *error)
{
    char device[IF_NAMESIZE + 1], send_bytes[24], receive_bytes[24];
    choose_segments(wire->message_bytes_max, send_bytes, receive_bytes);
    kv_status_t known = device_of(wire->host, device, sizeof device, error);
    if (known != KV_OK) {
        return known;
    }
    const bool cuda = wire->network == KV_NETWORK_CUDA;
    const char *const settings[][2] = {
        {"TLS", !wire->shm ? "tcp"
                : cuda     ? "posix,cma,tcp,cuda"
                           : "posix,cma,tcp"},
        {"NET_DEVICES", device},
        {"TX_SEG_SIZE", send_bytes},
        {"RX_SEG_SIZE", receive_bytes},
        {"ZCOPY_THRESH", "inf"},
        {"RNDV_SCHEME", "get_zcopy"},
        {"CONN_NB", "y"},
    };
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK) {
        return fail_ucs(error, status, "cannot read UCX's configuration");
    }
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        status = ucp_config_modify(config, settings[i][0], settings[i][1]);
        if (status != UCS_OK) {
            ucp_config_release(config);
            return fail_ucs(error, status, settings[i][0]);
        }
    }
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME,
        .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
        .name = "kvist",
    };
    status = ucp_init(&params, config, context_out);
    ucp_config_release(config);
    return status == UCS_OK ? KV_OK : fail_ucs(error, status, "cannot start UCX");
}

static kv_status_t listener_open(kv_wire_side_t *side, kv_error_t *error)
{
    struct sockaddr_storage address;
    kv_status_t status =
        kv_address_from_parts(side->params.host, side->params.port, &address, error);
    if (status != KV_OK) {
        return status;
    }
    int yes = 1;
    socklen_t bytes = kv_address_bytes(&address);
    struct epoll_event event = {.events = EPOLLIN};
    side->listen_fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (side->listen_fd < 0 ||
        setsockopt(side->listen_fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
        bind(side->listen_fd, (struct sockaddr *)&address, bytes) != 0 ||
        listen(side->listen_fd, FRONTS_MAX) != 0 ||
        getsockname(side->listen_fd, (struct sockaddr *)&address, &bytes) != 0 ||
        epoll_ctl(side->front_epoll_fd, EPOLL_CTL_ADD, side->listen_fd, &event) != 0) {
        return kv_fail_errno(error, errno, "cannot listen for data on %s port %u",
            side->params.host, side->params.port);
    }
    side->port = kv_address_port(&address);
    return KV_OK;
}

static void ucx_close(kv_wire_side_t *side)
{
    while (side->pipes != NULL) {
        ucx_drop(side->pipes);
    }
    while (side->fronts != NULL) {
        front_close(side->fronts);
    }
    direct_unmap(side);
    if (side->context != NULL) {
        ucp_cleanup(side->context);
    }
    int fds[] = {side->listen_fd, side->front_epoll_fd, side->epoll_fd};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    free(side);
}

static kv_status_t epolls_open(kv_wire_side_t *side, kv_error_t *error)
{
    side->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    side->front_epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (side->epoll_fd < 0 || side->front_epoll_fd < 0 ||
        epoll_ctl(side->epoll_fd, EPOLL_CTL_ADD, side->front_epoll_fd, &event) != 0) {
        return kv_fail_errno(error, errno, "cannot make an epoll descriptor");
    }
    return KV_OK;
}

static kv_status_t ucx_open(
    const kv_wire_params_t *params, kv_wire_side_t **side_out, kv_error_t *error)
{
    kv_wire_side_t *side = kv_allocate(sizeof *side);
    side->params = *params;
    side->epoll_fd = side->front_epoll_fd = side->listen_fd = -1;
    kv_status_t status = epolls_open(side, error);
    if (status == KV_OK) {
        status = listener_open(side, error);
    }
    if (status == KV_OK) {
        status = context_open(params, &side->context, error);
    }
    if (status != KV_OK) {
        ucx_close(side);
        return status;
    }
    side->params.host = NULL; /* borrowed for the call alone */
    *side_out = side;
    return KV_OK;
}

static uint16_t ucx_port(const kv_wire_side_t *side)
{
    return side->port;
}

static int ucx_fd(const kv_wire_side_t *side)
{
    return side->epoll_fd;
}

static uint64_t ucx_rendezvous_count(const kv_wire_side_t *side)
{
    return side->rendezvous_count;
}

const kv_wire_driver_t kv_wire_ucx = {
    .name = "ucx",
    .open = ucx_open,
    .close = ucx_close,
    .port = ucx_port,
    .connect = ucx_connect,
    .accept = ucx_accept,
    .reject = ucx_reject,
    .buffer = share_buffer,
    .send = ucx_send,
    .map = direct_map,
    .reach = direct_reach,
    .reaches = direct_reaches,
    .send_direct = direct_send,
    .describe = ucx_describe,
    .drop = ucx_drop,
    .progress = ucx_progress,
    .arm = ucx_arm,
    .fd = ucx_fd,
    .rendezvous_count = ucx_rendezvous_count,
};
