/* The only file that knows libmicrohttpd. An exchange has two holders: the connection, until
 * libmicrohttpd says that the request is completed, and the reactor, until release. What both touch
 * is guarded by the exchange's mutex; libmicrohttpd's suspend and resume are called under it, so
 * that a resume never overtakes its suspend. Lock order: list, then exchange; nothing blocks under
 * either. */
#include "gateway/http/http.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/http/heads.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    HEADER_BYTES_MAX = 32 << 10,
    STREAM_BLOCK_BYTES = 16 << 10,
    SMALL_BODY_BYTES = 64 << 10, /* what needs no more has room whoever else holds all of it */
    DRAINED_BYTES_MAX =
        256 << 20, /* of a body that is too large, read so that the client hears why */
    BACKLOG = 512,
    SEND_BUFFER_BYTES = 128 << 10,
    FORMER_MAX = 8,
};

typedef enum {
    EXCHANGE_READING,   /* the body comes in */
    EXCHANGE_WAITING,   /* whole; the reactor has it */
    EXCHANGE_ANSWERED,  /* whole answer is there */
    EXCHANGE_STREAMING, /* answer comes in pieces */
} exchange_state_t;

struct kv_exchange {
    kv_http_t *http;
    struct MHD_Connection *connection; /* NULL once completed */
    int socket;
    pthread_mutex_t mutex;
    exchange_state_t state;
    unsigned holders;
    bool suspended;
    bool gone;  /* the client, or the wish to serve it */
    bool ended; /* no more pieces */
    bool whole; /* and none is missing */

    kv_call_t call;
    char *texts; /* what the call points into */
    char *body;
    size_t body_bytes, body_capacity, drained_bytes;
    bool too_large, crowded;
    bool ambiguous; /* where its body ends */
    uint64_t started_ns;

    kv_http_head_t head;
    char *answer;
    size_t answer_bytes, answer_capacity, answer_taken;

    kv_exchange_t *next, *previous; /* guarded by the list's mutex */
};

struct kv_http {
    struct MHD_Daemon *daemon;
    struct MHD_Daemon *former[FORMER_MAX]; /* of earlier certificates, without the listener */
    size_t former_count;
    kv_http_params_t params;
    uint16_t port;
    int listener;
    kv_heads_t *heads;
    size_t bodies_bytes_max;
    atomic_size_t bodies_bytes;
    atomic_bool closing;
    pthread_mutex_t list_mutex;
    kv_exchange_t *exchanges; /* whose connection is alive */
};

/* ---- holders ---- */

/* What a body counts of the room that all of them share. */
static size_t counted_bytes(size_t capacity)
{
    return capacity > SMALL_BODY_BYTES ? capacity : 0;
}

static void drop(kv_exchange_t *exchange)
{
    pthread_mutex_lock(&exchange->mutex);
    bool last = --exchange->holders == 0;
    pthread_mutex_unlock(&exchange->mutex);
    if (!last) {
        return;
    }
    atomic_fetch_sub(&exchange->http->bodies_bytes, counted_bytes(exchange->body_capacity));
    pthread_mutex_destroy(&exchange->mutex);
    free((kv_field_t *)exchange->call.headers.items);
    free(exchange->texts);
    free(exchange->body);
    free(exchange->answer);
    free(exchange);
}

/* Called under the exchange's mutex. */
static void wake(kv_exchange_t *exchange)
{
    if (exchange->suspended && exchange->connection != NULL) {
        exchange->suspended = false;
        MHD_resume_connection(exchange->connection);
    }
}

/* Called under the exchange's mutex, on the HTTP thread. */
static void sleep_connection(kv_exchange_t *exchange)
{
    exchange->suspended = true;
    MHD_suspend_connection(exchange->connection);
}

/* ---- what was asked ---- */

typedef struct {
    char *texts; /* NULL: only counts */
    kv_field_t *fields;
    size_t bytes, count;
} copier_t;

static const char *copy_text(copier_t *copier, const char *text)
{
    text = text != NULL ? text : "";
    size_t bytes = strlen(text) + 1;
    char *copy = NULL;
    if (copier->texts != NULL) {
        copy = copier->texts + copier->bytes;
        memcpy(copy, text, bytes);
    }
    copier->bytes += bytes;
    return copy;
}

static enum MHD_Result copy_field(
    void *context, enum MHD_ValueKind kind, const char *name, const char *value)
{
    (void)kind;
    copier_t *copier = context;
    kv_field_t field = {copy_text(copier, name), copy_text(copier, value)};
    if (copier->fields != NULL) {
        copier->fields[copier->count] = field;
    }
    copier->count++;
    return MHD_YES;
}

/* Headers, then the query's fields; the connection's memory bounds them. */
static void copy_call(copier_t *copier, struct MHD_Connection *connection, const char *method,
    const char *path, kv_call_t *call_out)
{
    call_out->method = copy_text(copier, method);
    call_out->path = copy_text(copier, path);
    call_out->rest = copy_text(copier, "");
    MHD_get_connection_values(connection, MHD_HEADER_KIND, copy_field, copier);
    call_out->headers = (kv_fields_t){copier->fields, copier->count};
    MHD_get_connection_values(connection, MHD_GET_ARGUMENT_KIND, copy_field, copier);
    call_out->query.count = copier->count - call_out->headers.count;
    if (copier->fields != NULL) {
        call_out->query.items = copier->fields + call_out->headers.count;
    }
}

/* Something in front of the gateway may hold another one for the body's length, and what follows
 * for the next caller's request. */
static bool has_two_lengths(const kv_fields_t *headers)
{
    unsigned count = 0;
    for (size_t i = 0; i < headers->count; i++) {
        const char *name = headers->items[i].name;
        count +=
            strcasecmp(name, "content-length") == 0 || strcasecmp(name, "transfer-encoding") == 0;
    }
    return count > 1;
}

static void take_call(kv_exchange_t *exchange, struct MHD_Connection *connection,
    const char *method, const char *path)
{
    copier_t copier = {0};
    copy_call(&copier, connection, method, path, &exchange->call);
    copier.texts = exchange->texts = kv_allocate(copier.bytes);
    copier.fields = kv_allocate_array(copier.count + 1, sizeof *copier.fields);
    copier.bytes = copier.count = 0;
    copy_call(&copier, connection, method, path, &exchange->call);
    exchange->call.body = "";
    exchange->ambiguous = has_two_lengths(&exchange->call.headers);
}

static kv_exchange_t *exchange_create(
    kv_http_t *http, struct MHD_Connection *connection, const char *method, const char *path)
{
    kv_exchange_t *exchange = kv_allocate(sizeof *exchange);
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    *exchange = (kv_exchange_t){.http = http,
        .connection = connection,
        .socket = info != NULL ? info->connect_fd : -1,
        .holders = 1,
        .started_ns = kv_clock_now_ns()};
    take_call(exchange, connection, method, path);
    pthread_mutex_init(&exchange->mutex, NULL);
    pthread_mutex_lock(&http->list_mutex);
    exchange->next = http->exchanges;
    if (http->exchanges != NULL) {
        http->exchanges->previous = exchange;
    }
    http->exchanges = exchange;
    pthread_mutex_unlock(&http->list_mutex);
    return exchange;
}

static void unlist(kv_exchange_t *exchange)
{
    kv_http_t *http = exchange->http;
    pthread_mutex_lock(&http->list_mutex);
    if (exchange->previous != NULL) {
        exchange->previous->next = exchange->next;
    } else {
        http->exchanges = exchange->next;
    }
    if (exchange->next != NULL) {
        exchange->next->previous = exchange->previous;
    }
    pthread_mutex_unlock(&http->list_mutex);
}

/* ---- the HTTP thread: reading ---- */

static void forget_body(kv_exchange_t *exchange)
{
    atomic_fetch_sub(&exchange->http->bodies_bytes, counted_bytes(exchange->body_capacity));
    free(exchange->body);
    exchange->body = NULL;
    exchange->body_bytes = exchange->body_capacity = 0;
}

/* What does not fit is read and thrown away: a connection closed on a client that still sends would
 * often lose the answer that says why. */
static bool take_body(kv_exchange_t *exchange, const char *bytes, size_t count)
{
    kv_http_t *http = exchange->http;
    if (!exchange->too_large && exchange->body_bytes + count > http->params.body_bytes_max) {
        exchange->too_large = true;
        forget_body(exchange);
    }
    if (exchange->too_large || exchange->crowded) {
        exchange->drained_bytes += count;
        return exchange->drained_bytes <= DRAINED_BYTES_MAX;
    }
    if (exchange->body_bytes + count > exchange->body_capacity) {
        size_t capacity = 2 * (exchange->body_bytes + count);
        size_t more = counted_bytes(capacity) - counted_bytes(exchange->body_capacity);
        if (atomic_fetch_add(&http->bodies_bytes, more) + more > http->bodies_bytes_max) {
            atomic_fetch_sub(&http->bodies_bytes, more);
            exchange->crowded = true;
            forget_body(exchange);
            return true;
        }
        exchange->body = kv_reallocate(exchange->body, capacity, 1);
        exchange->body_capacity = capacity;
    }
    memcpy(exchange->body + exchange->body_bytes, bytes, count);
    exchange->body_bytes += count;
    return true;
}

/* ---- the HTTP thread: answering ---- */

static ssize_t read_answer(void *context, uint64_t position, char *buffer, size_t capacity)
{
    (void)position;
    kv_exchange_t *exchange = context;
    ssize_t count = 0;
    pthread_mutex_lock(&exchange->mutex);
    size_t waiting = exchange->answer_bytes - exchange->answer_taken;
    if (exchange->gone) {
        count = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (waiting > 0) {
        count = (ssize_t)(waiting < capacity ? waiting : capacity);
        memcpy(buffer, exchange->answer + exchange->answer_taken, (size_t)count);
        exchange->answer_taken += (size_t)count;
    } else if (exchange->ended) {
        count =
            exchange->whole ? MHD_CONTENT_READER_END_OF_STREAM : MHD_CONTENT_READER_END_WITH_ERROR;
    } else {
        sleep_connection(exchange);
    }
    pthread_mutex_unlock(&exchange->mutex);
    return count;
}

/* Called under the exchange's mutex. */
static struct MHD_Response *make_response(kv_exchange_t *exchange)
{
    struct MHD_Response *response;
    if (exchange->state == EXCHANGE_STREAMING) {
        response = MHD_create_response_from_callback(
            MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, read_answer, exchange, NULL);
    } else {
        response = MHD_create_response_from_buffer(
            exchange->answer_bytes, exchange->answer, MHD_RESPMEM_PERSISTENT);
    }
    if (response == NULL) {
        return NULL;
    }
    const kv_http_head_t *head = &exchange->head;
    MHD_add_response_header(response, "Content-Type", head->content_type);
    for (size_t i = 0; i < head->header_count; i++) {
        MHD_add_response_header(response, head->headers[i].name, head->headers[i].value);
    }
    if (exchange->ambiguous) {
        MHD_add_response_header(response, "Connection", "close");
    }
    return response;
}

static enum MHD_Result queue_response(kv_exchange_t *exchange, struct MHD_Connection *connection)
{
    pthread_mutex_lock(&exchange->mutex);
    struct MHD_Response *response = exchange->gone ? NULL : make_response(exchange);
    unsigned code = exchange->head.code;
    pthread_mutex_unlock(&exchange->mutex);
    if (response == NULL) {
        return MHD_NO;
    }
    /* Not under the mutex: libmicrohttpd calls read_answer under a lock of the response's. */
    enum MHD_Result result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

/* The request is whole: the reactor's turn. */
static enum MHD_Result hand_over(kv_exchange_t *exchange)
{
    kv_http_t *http = exchange->http;
    enum MHD_Result result = MHD_NO;
    pthread_mutex_lock(&exchange->mutex);
    if (!atomic_load(&http->closing)) {
        exchange->call.body = exchange->body != NULL ? exchange->body : "";
        exchange->call.body_bytes = exchange->body_bytes;
        exchange->state = EXCHANGE_WAITING;
        exchange->holders++;
        sleep_connection(exchange);
        if (kv_queue_push(http->params.queue, &exchange) == KV_OK) {
            result = MHD_YES;
        } else {
            /* It has room for one of each connection: the reactor is far behind. */
            exchange->holders--;
            exchange->gone = true;
            wake(exchange);
            result = MHD_YES;
        }
    }
    pthread_mutex_unlock(&exchange->mutex);
    return result;
}

static kv_head_wait_t *head_wait_of(struct MHD_Connection *connection)
{
    return MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
}

static void on_connection(void *context, struct MHD_Connection *connection, void **wait_slot,
    enum MHD_ConnectionNotificationCode code)
{
    kv_http_t *http = context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        *wait_slot = kv_heads_open(http->heads, info->connect_fd, kv_clock_now_ns());
    } else {
        kv_heads_close(http->heads, *wait_slot);
    }
}

static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *url,
    const char *method, const char *version, const char *upload, size_t *upload_bytes,
    void **exchange_slot)
{
    (void)version;
    kv_http_t *http = context;
    kv_exchange_t *exchange = *exchange_slot;
    if (exchange == NULL) {
        kv_heads_arrived(http->heads, head_wait_of(connection));
        *exchange_slot = exchange_create(http, connection, method, url);
        return MHD_YES;
    }
    if (exchange->state != EXCHANGE_READING) {
        return queue_response(exchange, connection);
    }
    if (*upload_bytes > 0) {
        bool in_time =
            kv_clock_now_ns() - exchange->started_ns <= 2 * http->params.connection_limit_ns;
        bool taken = take_body(exchange, upload, *upload_bytes);
        *upload_bytes = 0;
        return in_time && taken ? MHD_YES : MHD_NO;
    }
    return hand_over(exchange);
}

static void on_completed(void *context, struct MHD_Connection *connection, void **exchange_slot,
    enum MHD_RequestTerminationCode code)
{
    (void)code;
    const kv_http_t *http = context;
    kv_exchange_t *exchange = *exchange_slot;
    if (exchange == NULL) {
        return;
    }
    kv_heads_await(http->heads, head_wait_of(connection), kv_clock_now_ns());
    *exchange_slot = NULL;
    unlist(exchange);
    pthread_mutex_lock(&exchange->mutex);
    exchange->connection = NULL;
    exchange->gone = true;
    pthread_mutex_unlock(&exchange->mutex);
    drop(exchange);
}

static void on_server_log(void *context, const char *format, va_list arguments)
{
    (void)context;
    char text[256];
    vsnprintf(text, sizeof text, format, arguments);
    text[strcspn(text, "\n")] = '\0';
    kv_log_debug("gateway", "http: %s", text);
}

/* ---- the reactor's side ---- */

const kv_call_t *kv_exchange_call(const kv_exchange_t *exchange)
{
    return &exchange->call;
}

bool kv_exchange_too_large(const kv_exchange_t *exchange)
{
    return exchange->too_large;
}

bool kv_exchange_crowded(const kv_exchange_t *exchange)
{
    return exchange->crowded;
}

bool kv_exchange_ambiguous(const kv_exchange_t *exchange)
{
    return exchange->ambiguous;
}

/* A suspended connection is not polled by libmicrohttpd: its end is looked for here. The descriptor
 * is open as long as the connection is set, which the mutex holds still. */
bool kv_exchange_gone(kv_exchange_t *exchange)
{
    pthread_mutex_lock(&exchange->mutex);
    if (!exchange->gone && exchange->suspended && exchange->connection != NULL) {
        struct pollfd wanted = {.fd = exchange->socket, .events = POLLRDHUP};
        if (poll(&wanted, 1, 0) > 0 && (wanted.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0) {
            exchange->gone = true;
            wake(exchange);
        }
    }
    bool gone = exchange->gone;
    pthread_mutex_unlock(&exchange->mutex);
    return gone;
}

void kv_exchange_reply(
    kv_exchange_t *exchange, const kv_http_head_t *head, char *body, size_t bytes)
{
    pthread_mutex_lock(&exchange->mutex);
    KV_CHECK(exchange->state == EXCHANGE_WAITING);
    exchange->state = EXCHANGE_ANSWERED;
    exchange->head = *head;
    exchange->answer = body;
    exchange->answer_bytes = bytes;
    wake(exchange);
    pthread_mutex_unlock(&exchange->mutex);
}

void kv_exchange_begin(kv_exchange_t *exchange, const kv_http_head_t *head)
{
    pthread_mutex_lock(&exchange->mutex);
    KV_CHECK(exchange->state == EXCHANGE_WAITING);
    exchange->state = EXCHANGE_STREAMING;
    exchange->head = *head;
    wake(exchange);
    pthread_mutex_unlock(&exchange->mutex);
}

kv_status_t kv_exchange_write(kv_exchange_t *exchange, const char *bytes, size_t count)
{
    kv_status_t status = KV_OK;
    pthread_mutex_lock(&exchange->mutex);
    KV_CHECK(exchange->state == EXCHANGE_STREAMING && !exchange->ended);
    size_t waiting = exchange->answer_bytes - exchange->answer_taken;
    if (exchange->gone) {
        status = KV_CANCELLED;
    } else if (waiting + count > exchange->http->params.stream_buffer_bytes) {
        status = KV_BUSY;
    } else if (count > 0) { /* before the first byte there may be no buffer */
        if (exchange->answer_taken > 0) {
            memmove(exchange->answer, exchange->answer + exchange->answer_taken, waiting);
        }
        if (waiting + count > exchange->answer_capacity) {
            exchange->answer_capacity = 2 * (waiting + count);
            exchange->answer = kv_reallocate(exchange->answer, exchange->answer_capacity, 1);
        }
        memcpy(exchange->answer + waiting, bytes, count);
        exchange->answer_bytes = waiting + count;
        exchange->answer_taken = 0;
        wake(exchange);
    }
    pthread_mutex_unlock(&exchange->mutex);
    return status;
}

void kv_exchange_end(kv_exchange_t *exchange, bool whole)
{
    pthread_mutex_lock(&exchange->mutex);
    KV_CHECK(exchange->state == EXCHANGE_STREAMING);
    exchange->ended = true;
    exchange->whole = whole;
    wake(exchange);
    pthread_mutex_unlock(&exchange->mutex);
}

void kv_exchange_release(kv_exchange_t *exchange)
{
    pthread_mutex_lock(&exchange->mutex);
    if (exchange->state == EXCHANGE_WAITING ||
        (exchange->state == EXCHANGE_STREAMING && !exchange->ended)) {
        exchange->gone = true;
        wake(exchange);
    }
    pthread_mutex_unlock(&exchange->mutex);
    drop(exchange);
}

/* ---- the server ---- */

static const char TLS_PRIORITIES[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";

static int listen_on(const struct addrinfo *address, uint16_t *port_out)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int yes = 1;
    struct sockaddr_storage bound = {0};
    socklen_t bytes = sizeof bound;
    if (fd < 0) {
        return -1;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    /* Connections inherit it: what waits for a slow reader is bounded in the kernel too. */
    int send_bytes = SEND_BUFFER_BYTES;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
    if (bind(fd, address->ai_addr, address->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0 ||
        getsockname(fd, (struct sockaddr *)&bound, &bytes) != 0) {
        int code = errno;
        close(fd);
        errno = code;
        return -1;
    }
    *port_out = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                  : ((struct sockaddr_in *)&bound)->sin_port);
    return fd;
}

static kv_status_t open_listener(kv_http_t *http, kv_error_t *error)
{
    const kv_http_params_t *params = &http->params;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *addresses = NULL;
    char port[8];
    snprintf(port, sizeof port, "%u", params->port);
    int code = getaddrinfo(params->host, port, &hints, &addresses);
    if (code != 0) {
        return kv_fail(
            error, KV_INVALID, "gateway.http_host: %s: %s", params->host, gai_strerror(code));
    }
    http->listener = listen_on(addresses, &http->port);
    int errno_value = errno;
    freeaddrinfo(addresses);
    if (http->listener < 0) {
        return kv_fail_errno(error, errno_value, "gateway.http_port: %s:%s", params->host, port);
    }
    return KV_OK;
}

/* libmicrohttpd reads the texts while it starts, and never again. */
static struct MHD_Daemon *start_server(kv_http_t *http, const kv_tls_t *tls)
{
    const kv_http_params_t *params = &http->params;
    bool secure = tls->certificate != NULL;
    struct MHD_OptionItem items[] = {{MHD_OPTION_HTTPS_MEM_CERT, 0, tls->certificate},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, tls->key},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t)TLS_PRIORITIES},
        {MHD_OPTION_END, 0, NULL}};
    unsigned flags =
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | MHD_USE_ITC;
    return MHD_start_daemon(flags | (secure ? MHD_USE_TLS : 0), 0, NULL, NULL, on_request, http,
        MHD_OPTION_EXTERNAL_LOGGER, on_server_log, NULL, MHD_OPTION_LISTEN_SOCKET, http->listener,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, http, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, http, MHD_OPTION_CONNECTION_LIMIT, params->connections_max,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADER_BYTES_MAX, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)((params->connection_limit_ns + KV_NS_PER_S - 1) / KV_NS_PER_S), MHD_OPTION_ARRAY,
        secure ? items : &items[3], MHD_OPTION_END);
}

kv_status_t kv_http_open(const kv_http_params_t *params, kv_http_t **http_out, kv_error_t *error)
{
    kv_http_t *http = kv_allocate(sizeof *http);
    http->params = *params;
    http->bodies_bytes_max = 16 * params->body_bytes_max;
    if (http->bodies_bytes_max < 64 << 20) {
        http->bodies_bytes_max = 64 << 20;
    }
    kv_status_t status = open_listener(http, error);
    if (status != KV_OK) {
        free(http);
        return status;
    }
    pthread_mutex_init(&http->list_mutex, NULL);
    http->heads = kv_heads_create(2 * params->connection_limit_ns);
    http->daemon = start_server(http, params->tls);
    if (http->daemon == NULL) {
        close(http->listener);
        kv_heads_destroy(http->heads);
        pthread_mutex_destroy(&http->list_mutex);
        free(http);
        bool secure = params->tls->certificate != NULL;
        return kv_fail(error, secure ? KV_INVALID : KV_NO_SPACE,
            "http server: libmicrohttpd does not start%s",
            secure ? " with gateway.tls_certificate" : "");
    }
    *http_out = http;
    return KV_OK;
}

uint16_t kv_http_port(const kv_http_t *http)
{
    return http->port;
}

/* Those of earlier certificates whose connections have all ended. */
static void stop_former(kv_http_t *http)
{
    size_t kept = 0;
    for (size_t i = 0; i < http->former_count; i++) {
        const union MHD_DaemonInfo *info =
            MHD_get_daemon_info(http->former[i], MHD_DAEMON_INFO_CURRENT_CONNECTIONS);
        if (info != NULL && info->num_connections == 0) {
            MHD_stop_daemon(http->former[i]);
        } else {
            http->former[kept++] = http->former[i];
        }
    }
    http->former_count = kept;
}

kv_status_t kv_http_renew(kv_http_t *http, const kv_tls_t *tls, kv_error_t *error)
{
    stop_former(http);
    if (http->former_count == FORMER_MAX) {
        return kv_fail(error, KV_BUSY,
            "http server: connections of %d earlier certificates are open: try again later",
            FORMER_MAX);
    }
    /* Both listen for a moment: no connection is refused in between. */
    struct MHD_Daemon *daemon = start_server(http, tls);
    if (daemon == NULL) {
        return kv_fail(
            error, KV_INVALID, "http server: libmicrohttpd does not start with the certificate");
    }
    MHD_quiesce_daemon(http->daemon);
    http->former[http->former_count++] = http->daemon;
    http->daemon = daemon;
    return KV_OK;
}

void kv_http_sweep(kv_http_t *http)
{
    size_t count = kv_heads_sweep(http->heads, kv_clock_now_ns());
    if (count > 0) {
        kv_log_info("gateway", "http: %zu connections closed: no request came whole", count);
    }
}

/* The last answers are on their way: gives them a moment to be read. */
static void wait_for_answers(kv_http_t *http)
{
    bool busy = true;
    for (int i = 0; busy && i < 100; i++) {
        pthread_mutex_lock(&http->list_mutex);
        busy = http->exchanges != NULL;
        pthread_mutex_unlock(&http->list_mutex);
        if (busy) {
            usleep(5000);
        }
    }
}

void kv_http_close(kv_http_t *http)
{
    if (http == NULL) {
        return;
    }
    atomic_store(&http->closing, true);
    kv_exchange_t *exchange;
    while (kv_queue_pop(http->params.queue, &exchange) == KV_OK) {
        kv_exchange_release(exchange);
    }
    wait_for_answers(http);
    /* libmicrohttpd does not end while a connection is suspended. */
    pthread_mutex_lock(&http->list_mutex);
    for (exchange = http->exchanges; exchange != NULL; exchange = exchange->next) {
        pthread_mutex_lock(&exchange->mutex);
        if (exchange->suspended) {
            exchange->gone = true;
            wake(exchange);
        }
        pthread_mutex_unlock(&exchange->mutex);
    }
    pthread_mutex_unlock(&http->list_mutex);
    MHD_stop_daemon(http->daemon);
    for (size_t i = 0; i < http->former_count; i++) {
        MHD_stop_daemon(http->former[i]);
    }
    kv_heads_destroy(http->heads);
    pthread_mutex_destroy(&http->list_mutex);
    free(http);
}
