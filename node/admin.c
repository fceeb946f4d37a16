#include "node/admin.h"

#include "base/check.h"
#include "base/local_socket.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "proto/frame.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

enum { REQUEST_BYTES_MAX = 4 << 20 }; /* a prompt of a million tokens */

typedef struct connection connection_t;

struct kv_admin {
    uv_pipe_t listener;
    kv_reactor_t *reactor;
    kv_admin_handlers_t handlers;
    void *context;
    char *path;
    connection_t *connections;
    uint32_t connection_count;
};

/* One request at a time: reading stops while a call waits for its answer. */
struct connection {
    uv_pipe_t pipe;
    kv_admin_t *admin; /* NULL once closing */
    kv_frame_reader_t reader;
    kv_admin_call_t *call;
    bool close_when_written;
    connection_t *next, *previous;
    char buffer[4096];
};

struct kv_admin_call {
    connection_t *connection; /* NULL: gone, or the request came from elsewhere */
    void (*told)(void *context, const Kvist__Admin__Reply *reply);
    void *context;
};

typedef struct {
    uv_write_t write;
    uint8_t *frame;
} write_t;

static void serve(connection_t *connection);

/* ---- connections ---- */

static void on_closed(uv_handle_t *handle)
{
    connection_t *connection = handle->data;
    kv_frame_reader_clear(&connection->reader);
    free(connection);
}

static void close_connection(connection_t *connection)
{
    kv_admin_t *admin = connection->admin;
    if (admin == NULL) {
        return;
    }
    connection->admin = NULL;
    if (connection->call != NULL) {
        connection->call->connection = NULL;
    }
    if (connection->previous != NULL) {
        connection->previous->next = connection->next;
    } else {
        admin->connections = connection->next;
    }
    if (connection->next != NULL) {
        connection->next->previous = connection->previous;
    }
    admin->connection_count--;
    uv_close((uv_handle_t *)&connection->pipe, on_closed);
}

static void on_allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    (void)suggested;
    connection_t *connection = handle->data;
    *buffer = uv_buf_init(connection->buffer, sizeof connection->buffer);
}

static void on_read(uv_stream_t *stream, ssize_t bytes, const uv_buf_t *buffer)
{
    connection_t *connection = stream->data;
    if (bytes < 0) {
        close_connection(connection);
        return;
    }
    kv_frame_reader_push(&connection->reader, buffer->base, (size_t)bytes);
    if (connection->call == NULL) {
        serve(connection);
    }
}

static void on_connect(uv_stream_t *listener, int status)
{
    kv_admin_t *admin = listener->data;
    if (status != 0) {
        return;
    }
    connection_t *connection = kv_allocate(sizeof *connection);
    KV_CHECK(uv_pipe_init(listener->loop, &connection->pipe, 0) == 0);
    connection->pipe.data = connection;
    if (uv_accept(listener, (uv_stream_t *)&connection->pipe) != 0 ||
        admin->connection_count >= KV_ADMIN_CONNECTIONS_MAX) {
        uv_close((uv_handle_t *)&connection->pipe, on_closed);
        return;
    }
    connection->admin = admin;
    connection->next = admin->connections;
    if (admin->connections != NULL) {
        admin->connections->previous = connection;
    }
    admin->connections = connection;
    admin->connection_count++;
    uv_read_start((uv_stream_t *)&connection->pipe, on_allocate, on_read);
}

/* ---- answers ---- */

static void on_written(uv_write_t *request, int status)
{
    write_t *write = (write_t *)request;
    connection_t *connection = request->handle->data;
    free(write->frame);
    free(write);
    if (status != 0 || connection->close_when_written) {
        close_connection(connection);
    } else if (connection->admin != NULL && connection->call == NULL) {
        uv_read_start((uv_stream_t *)&connection->pipe, on_allocate, on_read);
        serve(connection);
    }
}

void kv_admin_reply(kv_admin_call_t *call, const Kvist__Admin__Reply *reply)
{
    connection_t *connection = call->connection;
    if (call->told != NULL) {
        call->told(call->context, reply);
    }
    free(call);
    if (connection == NULL) {
        return;
    }
    connection->call = NULL;
    write_t *write = kv_allocate(sizeof *write);
    size_t bytes;
    kv_error_t error;
    if (kv_frame_pack(&reply->base, &write->frame, &bytes, &error) != KV_OK) {
        kv_log_error("node", "admin reply: %s", error.text);
        free(write);
        close_connection(connection);
        return;
    }
    uv_buf_t buffer = uv_buf_init((char *)write->frame, (unsigned)bytes);
    KV_CHECK(
        uv_write(&write->write, (uv_stream_t *)&connection->pipe, &buffer, 1, on_written) == 0);
}

void kv_admin_reply_status(kv_admin_call_t *call, Kvist__Admin__Status *status)
{
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    reply.body_case = KVIST__ADMIN__REPLY__BODY_STATUS;
    reply.status = status;
    kv_admin_reply(call, &reply);
}

void kv_admin_reply_list(kv_admin_call_t *call, Kvist__Admin__List *list)
{
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    reply.body_case = KVIST__ADMIN__REPLY__BODY_LIST;
    reply.list = list;
    kv_admin_reply(call, &reply);
}

void kv_admin_reply_done(kv_admin_call_t *call)
{
    /* An empty list, because a frame is never empty and a reply of defaults only would be. */
    Kvist__Admin__List nothing = KVIST__ADMIN__LIST__INIT;
    kv_admin_reply_list(call, &nothing);
}

void kv_admin_fail(kv_admin_call_t *call, kv_status_t status, const char *text)
{
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    reply.code = status;
    reply.error = (char *)text;
    kv_admin_reply(call, &reply);
}

/* ---- requests ---- */

static void reply_metrics(kv_admin_call_t *call)
{
    size_t bytes;
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    reply.body_case = KVIST__ADMIN__REPLY__BODY_METRICS;
    reply.metrics = kv_metrics_render(&bytes);
    kv_admin_reply(call, &reply);
    free(reply.metrics);
}

static kv_admin_handler_t handler_of(
    const kv_admin_handlers_t *handlers, Kvist__Admin__Request__BodyCase kind)
{
    switch (kind) {
    case KVIST__ADMIN__REQUEST__BODY_STATUS:
        return handlers->status;
    case KVIST__ADMIN__REQUEST__BODY_LIST:
        return handlers->list;
    case KVIST__ADMIN__REQUEST__BODY_FLUSH:
        return handlers->flush;
    case KVIST__ADMIN__REQUEST__BODY_SHOW:
        return handlers->show;
    case KVIST__ADMIN__REQUEST__BODY_DROP:
        return handlers->drop;
    case KVIST__ADMIN__REQUEST__BODY_PIN:
        return handlers->pin;
    case KVIST__ADMIN__REQUEST__BODY_VERIFY:
        return handlers->verify;
    case KVIST__ADMIN__REQUEST__BODY_QUOTA:
        return handlers->quota;
    case KVIST__ADMIN__REQUEST__BODY_EVENTS:
        return handlers->events;
    case KVIST__ADMIN__REQUEST__BODY_WHY:
        return handlers->why;
    case KVIST__ADMIN__REQUEST__BODY_EXPLAIN:
        return handlers->explain;
    default:
        return NULL;
    }
}

static void dispatch(kv_admin_t *admin, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    kv_admin_handler_t handler = handler_of(&admin->handlers, request->body_case);
    if (handler != NULL) {
        handler(admin->context, request, call);
    } else if (request->body_case == KVIST__ADMIN__REQUEST__BODY_METRICS) {
        reply_metrics(call);
    } else if (request->body_case == KVIST__ADMIN__REQUEST__BODY_STOP) {
        kv_admin_reply_done(call);
        kv_log_info("node", "stop asked for on the admin socket");
        kv_reactor_begin_stop(admin->reactor);
    } else if (request->body_case == KVIST__ADMIN__REQUEST__BODY_DRAIN) {
        kv_admin_reply_done(call);
        kv_log_info("node", "drain asked for on the admin socket");
        kv_reactor_begin_drain(admin->reactor);
    } else {
        kv_admin_fail(call, KV_INVALID, "request: not served by this node");
    }
}

void kv_admin_answer(kv_admin_t *admin, const Kvist__Admin__Request *request,
    void (*told)(void *context, const Kvist__Admin__Reply *reply), void *context)
{
    kv_admin_call_t *call = kv_allocate(sizeof *call);
    *call = (kv_admin_call_t){.told = told, .context = context};
    dispatch(admin, request, call);
}

/* Takes the next whole request, if there is one. */
static void serve(connection_t *connection)
{
    const uint8_t *message;
    size_t bytes;
    kv_error_t error;
    kv_status_t status = kv_frame_reader_next(&connection->reader, &message, &bytes, &error);
    if (status == KV_MISSING &&
        connection->reader.count - connection->reader.taken <= REQUEST_BYTES_MAX) {
        return;
    }
    uv_read_stop((uv_stream_t *)&connection->pipe);
    kv_admin_call_t *call = kv_allocate(sizeof *call);
    call->connection = connection;
    connection->call = call;
    Kvist__Admin__Request *request =
        status == KV_OK ? kvist__admin__request__unpack(NULL, bytes, message) : NULL;
    if (request == NULL) {
        connection->close_when_written = true;
        kv_admin_fail(call, KV_INVALID, "request: not a frame of kvist.admin.Request");
        return;
    }
    dispatch(connection->admin, request, call);
    kvist__admin__request__free_unpacked(request, NULL);
}

/* ---- the socket ---- */

kv_status_t kv_admin_open(kv_reactor_t *reactor, const char *path,
    const kv_admin_handlers_t *handlers, void *context, kv_admin_t **admin_out, kv_error_t *error)
{
    int fd = -1;
    kv_status_t status =
        kv_local_listen(path, "node.admin", 0600, KV_ADMIN_CONNECTIONS_MAX, &fd, error);
    if (status != KV_OK) {
        return status;
    }
    kv_admin_t *admin = kv_allocate(sizeof *admin);
    *admin = (kv_admin_t){.reactor = reactor,
        .handlers = *handlers,
        .context = context,
        .path = kv_duplicate_string(path)};
    KV_CHECK(uv_pipe_init(kv_reactor_loop(reactor), &admin->listener, 0) == 0);
    admin->listener.data = admin;
    KV_CHECK(uv_pipe_open(&admin->listener, fd) == 0);
    KV_CHECK(uv_listen((uv_stream_t *)&admin->listener, KV_ADMIN_CONNECTIONS_MAX, on_connect) == 0);
    *admin_out = admin;
    return KV_OK;
}

static void on_listener_closed(uv_handle_t *handle)
{
    kv_admin_t *admin = handle->data;
    free(admin->path);
    free(admin);
}

void kv_admin_close(kv_admin_t *admin)
{
    if (admin == NULL) {
        return;
    }
    unlink(admin->path);
    while (admin->connections != NULL) {
        close_connection(admin->connections);
    }
    uv_close((uv_handle_t *)&admin->listener, on_listener_closed);
}
