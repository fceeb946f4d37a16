/* The gateway's HTTP server over a real connection: the input is what one client sends. First byte:
 * how its requests are answered (whole, in pieces, broken off, not at all) and whether the client
 * waits for the answer; second byte: how many bytes it sends at once. Whatever comes, a request
 * that reaches the reactor is one, and the server says HTTP or nothing. A request that is not whole
 * would be waited for: the client hangs up once the server is quiet. */
#include "fuzz.h"

#include "base/log.h"
#include "gateway/http/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    QUIET_MS = 3, /* the client has enough */
    BODY_BYTES_MAX = 1024,
    STREAM_BUFFER_BYTES = 8192,
    PIECES = 5,
    HEAD_BYTES_MAX = 32 << 10,
    QUEUE_LENGTH = 64
};

static kv_http_t *http;
static kv_queue_t *queue;
static struct sockaddr_in address = {.sin_family = AF_INET};

static void close_server(void)
{
    kv_http_close(http);
    kv_queue_destroy(queue);
}

static void open_server(void)
{
    kv_log_setup("fuzz", KV_LOG_ERROR);
    queue = kv_queue_create(QUEUE_LENGTH, sizeof(kv_exchange_t *));
    const kv_tls_t tls = {0}; /* plain HTTP */
    const kv_http_params_t params = {.host = "127.0.0.1",
        .body_bytes_max = BODY_BYTES_MAX,
        .stream_buffer_bytes = STREAM_BUFFER_BYTES,
        .connections_max = QUEUE_LENGTH - 1,
        .connection_limit_ns = 1000000000,
        .queue = queue,
        .tls = &tls};
    kv_error_t error;
    FUZZ_CHECK(kv_http_open(&params, &http, &error) == KV_OK);
    address.sin_port = htons(kv_http_port(http));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    atexit(close_server);
}

static void look_at_fields(const kv_fields_t *fields)
{
    for (size_t i = 0; i < fields->count; i++) {
        FUZZ_CHECK(fields->items[i].name != NULL && fields->items[i].value != NULL);
        FUZZ_CHECK(strlen(fields->items[i].name) + strlen(fields->items[i].value) < HEAD_BYTES_MAX);
    }
}

/* What the reactor relies on. */
static void look_at(kv_exchange_t *exchange)
{
    const kv_call_t *call = kv_exchange_call(exchange);
    FUZZ_CHECK(call->method[0] != '\0' && call->path != NULL && call->body != NULL);
    FUZZ_CHECK(call->body_bytes <= BODY_BYTES_MAX);
    FUZZ_CHECK(strnlen(call->body, call->body_bytes) <= call->body_bytes);
    FUZZ_CHECK(call->body_bytes == 0 || !kv_exchange_too_large(exchange));
    look_at_fields(&call->headers);
    look_at_fields(&call->query);
}

static void answer(kv_exchange_t *exchange, uint8_t how)
{
    kv_http_head_t head = {.code = 200, .content_type = "text/plain"};
    look_at(exchange);
    if (how % 4 == 0) {
        char *body = strdup("whole");
        FUZZ_CHECK(body != NULL);
        kv_exchange_reply(exchange, &head, body, strlen(body));
    } else if (how % 4 < 3) {
        static char piece[STREAM_BUFFER_BYTES / 4];
        memset(piece, 'x', sizeof piece);
        kv_exchange_begin(exchange, &head);
        kv_status_t status = KV_OK;
        for (int i = 0; i < PIECES && status == KV_OK; i++) {
            status = kv_exchange_write(exchange, piece, sizeof piece);
        }
        kv_exchange_end(exchange, status == KV_OK && how % 4 == 1);
    }
    kv_exchange_release(exchange);
}

static void answer_all(uint8_t how)
{
    kv_exchange_t *exchange;
    while (kv_queue_pop(queue, &exchange) == KV_OK) {
        answer(exchange, how);
    }
}

/* Sends the next bytes; false: there are none left, or the server takes no more. */
static bool send_some(int fd, fuzz_input_t *input, size_t step)
{
    size_t count = step < input->count ? step : input->count;
    ssize_t sent = send(fd, input->bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
        input->bytes += sent;
        input->count -= (size_t)sent;
    }
    if (sent >= 0 && input->count > 0) {
        return true;
    }
    return false;
}

/* false: the server ended the connection. */
static bool receive_some(int fd, bool *first)
{
    static char bytes[STREAM_BUFFER_BYTES];
    ssize_t count = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (*first && count >= 7) {
        FUZZ_CHECK(memcmp(bytes, "HTTP/1.", 7) == 0);
    }
    *first = *first && count <= 0;
    return count > 0 || (count < 0 && errno == EAGAIN);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (http == NULL) {
        open_server();
    }
    fuzz_input_t input = {bytes, count};
    uint8_t how = fuzz_u8(&input);
    size_t step = 1 + (size_t)fuzz_u8(&input) * 16;
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    FUZZ_CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    bool sending = true, waits = (how & 4) == 0, first = true, open = true;
    while (open && (sending || waits)) {
        struct pollfd wanted[2] = {{.fd = fd, .events = (short)(POLLIN | (sending ? POLLOUT : 0))},
            {.fd = kv_queue_fd(queue), .events = POLLIN}};
        int ready = poll(wanted, 2, sending ? -1 : QUIET_MS);
        FUZZ_CHECK(ready >= 0 || errno == EINTR); /* libFuzzer's alarm */
        if (ready == 0) {
            break;
        }
        answer_all(how);
        if ((wanted[0].revents & POLLOUT) != 0) {
            sending = send_some(fd, &input, step);
        }
        if ((wanted[0].revents & ~POLLOUT) != 0) {
            open = receive_some(fd, &first);
        }
    }
    /* A port is not to wait for its last packets, or there are none left after some inputs. */
    struct linger at_once = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
    answer_all(how);
    return 0;
}
