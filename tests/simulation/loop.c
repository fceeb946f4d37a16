/* libuv, as far as Kvist's nodes use it, over the simulated network and clock: loops, timers, TCP,
 * descriptors to poll, signals. Callbacks run as events of the process whose loop it is. */
#include "base/memory.h"
#include "kvstore/store_internal.h"
#include "simulation/network.h"
#include "transport/mover/mover_internal.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

typedef struct handle handle_t;

typedef struct write write_t;
struct write {
    write_t *next;
    handle_t *handle;
    uv_write_t *request;
    uv_write_cb done;
};

typedef struct offer offer_t;
struct offer {
    offer_t *next;
    stream_t *stream;
};

struct handle {
    handle_t *next; /* in its loop */
    loop_t *loop;
    uv_handle_t *uv; /* NULL once closed */
    bool closing, referenced;
    uv_close_cb closed;
    /* timers */
    uv_timer_cb fires;
    uint64_t repeat_ms, epoch;
    bool active;
    /* TCP */
    stream_t *stream;
    uint16_t port;
    uv_alloc_cb allocates;
    uv_read_cb reads;
    uv_connect_t *connect;
    uv_connect_cb connects;
    uv_connection_cb accepts;
    offer_t *offers, **offers_tail;
    write_t *writes;
    /* descriptors */
    int fd;
    uv_poll_cb polls;
    bool polled; /* an event for it is in the queue */
    /* signals */
    uv_signal_cb signals;
    int signal_number;
};

struct loop {
    uv_loop_t *uv;
    process_t *process;
    handle_t *handles;
    bool stops, waits, closing_due;
};

static handle_t *of(const void *uv)
{
    return ((const uv_handle_t *)uv)->u.reserved[0];
}

static loop_t *of_loop(const uv_loop_t *uv)
{
    return uv->watcher_queue[0];
}

static handle_t *handle_create(uv_loop_t *uv_loop, void *uv, uv_handle_type type)
{
    handle_t *handle = world_allocate(sizeof *handle);
    handle->loop = of_loop(uv_loop);
    handle->uv = uv;
    handle->uv->loop = uv_loop;
    handle->uv->type = type;
    handle->uv->u.reserved[0] = handle;
    handle->offers_tail = &handle->offers;
    handle->referenced = true;
    handle->fd = -1;
    handle->next = handle->loop->handles;
    handle->loop->handles = handle;
    return handle;
}

/* ---- loops ---- */

int uv_loop_init(uv_loop_t *uv)
{
    loop_t *loop = world_allocate(sizeof *loop);
    loop->uv = uv;
    loop->process = process_current();
    loop->process->loop = loop;
    uv->watcher_queue[0] = loop;
    return 0;
}

int uv_loop_close(uv_loop_t *uv)
{
    loop_t *loop = of_loop(uv);
    loop->process->loop = NULL;
    return loop->handles == NULL ? 0 : UV_EBUSY;
}

static void cancel_writes(handle_t *handle)
{
    while (handle->writes != NULL) {
        write_t *write = handle->writes;
        handle->writes = write->next;
        write->handle = NULL;
        write->done(write->request, UV_ECANCELED);
    }
}

static bool close_one(loop_t *loop)
{
    handle_t **at = &loop->handles;
    while (*at != NULL && !(*at)->closing) {
        at = &(*at)->next;
    }
    handle_t *handle = *at;
    if (handle == NULL) {
        return false;
    }
    cancel_writes(handle);
    if (handle->connect != NULL) {
        uv_connect_t *request = handle->connect;
        handle->connect = NULL;
        handle->connects(request, UV_ECANCELED);
    }
    at = &loop->handles; /* what was called may have made handles */
    while (*at != handle) {
        at = &(*at)->next;
    }
    *at = handle->next;
    uv_handle_t *uv = handle->uv;
    handle->uv = NULL;
    if (handle->closed != NULL) {
        handle->closed(uv);
    }
    return true;
}

static void run_closing(void *subject, uint64_t detail)
{
    loop_t *loop = subject;
    (void)detail;
    loop->closing_due = false;
    while (close_one(loop)) {
    }
}

int uv_run(uv_loop_t *uv, uv_run_mode mode)
{
    loop_t *loop = of_loop(uv);
    if (mode == UV_RUN_DEFAULT) {
        loop->waits = true;
        if (!loop->stops) {
            process_wait();
        }
        loop->waits = loop->stops = false;
        return 0;
    }
    run_closing(loop, 0);
    int alive = 0;
    for (handle_t *handle = loop->handles; handle != NULL; handle = handle->next) {
        alive |= handle->referenced;
    }
    return alive;
}

void uv_stop(uv_loop_t *uv)
{
    loop_t *loop = of_loop(uv);
    if (loop->waits && !loop->stops) {
        process_wake(loop->process);
    }
    loop->stops = true;
}

void uv_update_time(uv_loop_t *uv)
{
    (void)uv;
}

void uv_unref(uv_handle_t *uv)
{
    of(uv)->referenced = false;
}

void uv_close(uv_handle_t *uv, uv_close_cb closed)
{
    handle_t *handle = of(uv);
    handle->closing = true;
    handle->closed = closed;
    handle->epoch++;
    if (handle->stream != NULL) {
        network_close(handle->stream);
    }
    while (handle->offers != NULL) {
        network_close(handle->offers->stream);
        handle->offers = handle->offers->next;
    }
    if (!handle->loop->closing_due) {
        handle->loop->closing_due = true;
        world_after(process_delay(handle->loop->process, 10 * US), handle->loop->process,
            run_closing, handle->loop, 0);
    }
}

/* ---- timers ---- */

int uv_timer_init(uv_loop_t *loop, uv_timer_t *uv)
{
    handle_create(loop, uv, UV_TIMER);
    return 0;
}

static void timer_fires(void *subject, uint64_t epoch)
{
    handle_t *handle = subject;
    if (handle->closing || !handle->active || handle->epoch != epoch) {
        return;
    }
    handle->active = handle->repeat_ms > 0;
    if (handle->active) {
        world_after(handle->repeat_ms * MS, handle->loop->process, timer_fires, handle, epoch);
    }
    handle->fires((uv_timer_t *)handle->uv);
}

int uv_timer_start(uv_timer_t *uv, uv_timer_cb fires, uint64_t delay_ms, uint64_t repeat_ms)
{
    handle_t *handle = of(uv);
    handle->fires = fires;
    handle->repeat_ms = repeat_ms;
    handle->active = true;
    world_after(delay_ms * MS, handle->loop->process, timer_fires, handle, ++handle->epoch);
    return 0;
}

int uv_timer_stop(uv_timer_t *uv)
{
    of(uv)->active = false;
    return 0;
}

/* ---- TCP ---- */

int uv_tcp_init(uv_loop_t *loop, uv_tcp_t *uv)
{
    handle_create(loop, uv, UV_TCP);
    return 0;
}

int uv_tcp_nodelay(uv_tcp_t *uv, int enable)
{
    (void)uv;
    (void)enable;
    return 0;
}

static uint16_t port_of(const struct sockaddr *address)
{
    return ntohs(((const struct sockaddr_in *)(const void *)address)->sin_port);
}

static int give_address(uint16_t port, struct sockaddr *address_out, int *bytes)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    memcpy(address_out, &address, sizeof address);
    *bytes = sizeof address;
    return 0;
}

int uv_tcp_bind(uv_tcp_t *uv, const struct sockaddr *address, unsigned flags)
{
    (void)flags;
    of(uv)->port = port_of(address);
    return 0;
}

int uv_listen(uv_stream_t *uv, int backlog, uv_connection_cb accepts)
{
    (void)backlog;
    of(uv)->accepts = accepts;
    return 0;
}

int uv_tcp_getsockname(const uv_tcp_t *uv, struct sockaddr *address_out, int *bytes)
{
    return give_address(of(uv)->port, address_out, bytes);
}

int uv_tcp_getpeername(const uv_tcp_t *uv, struct sockaddr *address_out, int *bytes)
{
    return give_address(
        (uint16_t)(CONTROL_PORT + network_other_node(of(uv)->stream)), address_out, bytes);
}

static handle_t *listener(const process_t *process, uint16_t port)
{
    handle_t *handle = process->loop != NULL ? process->loop->handles : NULL;
    while (handle != NULL && (handle->accepts == NULL || handle->closing || handle->port != port)) {
        handle = handle->next;
    }
    return handle;
}

bool loop_listens(const process_t *process, uint16_t port)
{
    return listener(process, port) != NULL;
}

static void offered(void *subject, uint64_t detail)
{
    handle_t *handle = subject;
    (void)detail;
    if (!handle->closing && handle->offers != NULL) {
        handle->accepts((uv_stream_t *)handle->uv, 0);
    }
}

bool loop_offer(process_t *process, uint16_t port, stream_t *stream)
{
    handle_t *handle = listener(process, port);
    offer_t *offer = world_allocate(sizeof *offer);
    offer->stream = stream;
    *handle->offers_tail = offer;
    handle->offers_tail = &offer->next;
    world_after(process_delay(process, 20 * US), process, offered, handle, 0);
    return true;
}

int uv_accept(uv_stream_t *server, uv_stream_t *client)
{
    handle_t *from = of(server), *handle = of(client);
    offer_t *offer = from->offers;
    if (offer == NULL) {
        return UV_EAGAIN;
    }
    from->offers = offer->next;
    if (from->offers == NULL) {
        from->offers_tail = &from->offers;
    }
    handle->stream = offer->stream;
    network_set_handle(handle->stream, handle);
    return 0;
}

int uv_tcp_connect(
    uv_connect_t *request, uv_tcp_t *uv, const struct sockaddr *address, uv_connect_cb connects)
{
    handle_t *handle = of(uv);
    handle->connect = request;
    handle->connects = connects;
    handle->stream = network_connect(handle->loop->process, port_of(address), handle);
    return 0;
}

void loop_connected(void *subject, uint64_t result)
{
    handle_t *handle = subject;
    uv_connect_t *request = handle->connect;
    if (request != NULL && !handle->closing) {
        handle->connect = NULL;
        handle->connects(request, -(int)result);
    }
}

int uv_read_start(uv_stream_t *uv, uv_alloc_cb allocates, uv_read_cb reads)
{
    handle_t *handle = of(uv);
    handle->allocates = allocates;
    handle->reads = reads;
    network_set_handle(handle->stream, handle); /* what is there already */
    return 0;
}

void loop_readable(void *subject, uint64_t detail)
{
    handle_t *handle = subject;
    (void)detail;
    if (handle->closing || handle->reads == NULL) {
        return;
    }
    uv_buf_t buffer = {0};
    handle->allocates(handle->uv, 65536, &buffer);
    int end = 0;
    size_t count = network_receive(handle->stream, buffer.base, buffer.len, &end);
    if (count > 0 || end != 0) {
        handle->reads((uv_stream_t *)handle->uv, count > 0 ? (ssize_t)count : end, &buffer);
    }
}

static void written(void *subject, uint64_t detail)
{
    write_t *write = subject;
    (void)detail;
    if (write->handle == NULL) {
        return; /* it was closed, and this one answered */
    }
    write_t **at = &write->handle->writes;
    while (*at != write) {
        at = &(*at)->next;
    }
    *at = write->next;
    write->done(write->request, 0);
}

int uv_write(uv_write_t *request, uv_stream_t *uv, const uv_buf_t buffers[], unsigned count,
    uv_write_cb done)
{
    handle_t *handle = of(uv);
    for (unsigned i = 0; i < count; i++) {
        network_send(handle->stream, buffers[i].base, buffers[i].len);
    }
    write_t *write = world_allocate(sizeof *write);
    *write = (write_t){handle->writes, handle, request, done};
    handle->writes = write;
    world_after(
        process_delay(handle->loop->process, 20 * US), handle->loop->process, written, write, 0);
    return 0;
}

uv_buf_t uv_buf_init(char *base, unsigned bytes)
{
    return (uv_buf_t){.base = base, .len = bytes};
}

const char *uv_strerror(int code)
{
    return code == UV_ECONNREFUSED ? "connection refused"
           : code == UV_ECONNRESET ? "connection reset by peer"
                                   : "simulated error";
}

/* ---- descriptors ---- */

int uv_poll_init(uv_loop_t *loop, uv_poll_t *uv, int fd)
{
    handle_create(loop, uv, UV_POLL)->fd = fd;
    return 0;
}

int uv_poll_start(uv_poll_t *uv, int events, uv_poll_cb polls)
{
    (void)events;
    of(uv)->polls = polls;
    return 0;
}

static bool readable(process_t *process, int fd)
{
    if (process->store != NULL && fd == kvist_store_fd(process->store)) {
        return process->store_ready;
    }
    if (process->mover != NULL && fd == kv_mover_fd(process->mover)) {
        return !mailbox_is_empty(&process->mover->events);
    }
    return process->compute != NULL && fd == kv_compute_fd(process->compute) &&
           compute_has_events(process->compute);
}

static void poll_fires(void *subject, uint64_t detail)
{
    handle_t *handle = subject;
    (void)detail;
    handle->polled = false;
    process_t *process = handle->loop->process;
    if (handle->closing || !readable(process, handle->fd)) {
        return;
    }
    if (process->store != NULL && handle->fd == kvist_store_fd(process->store)) {
        process->store_ready = false;
    }
    handle->polls((uv_poll_t *)handle->uv, 0, UV_READABLE);
}

void loop_look(process_t *process)
{
    for (handle_t *handle = process->loop->handles; handle != NULL; handle = handle->next) {
        if (handle->polls != NULL && !handle->polled && !handle->closing &&
            readable(process, handle->fd)) {
            handle->polled = true;
            world_after(process_delay(process, 20 * US), process, poll_fires, handle, 0);
        }
    }
}

/* ---- signals ---- */

int uv_signal_init(uv_loop_t *loop, uv_signal_t *uv)
{
    handle_create(loop, uv, UV_SIGNAL);
    return 0;
}

int uv_signal_start(uv_signal_t *uv, uv_signal_cb signals, int number)
{
    of(uv)->signals = signals;
    of(uv)->signal_number = number;
    return 0;
}

void loop_signal(process_t *process)
{
    handle_t *handle = process->loop != NULL ? process->loop->handles : NULL;
    while (handle != NULL && (handle->signals == NULL || handle->signal_number != SIGTERM)) {
        handle = handle->next;
    }
    if (handle != NULL && !process->terminated) { /* a second one would end it at once */
        process->terminated = true;
        handle->signals((uv_signal_t *)handle->uv, SIGTERM);
    }
}
