/* Many clients at once, among them ones that leave, read nothing, send what is no request or too
 * much of it: whoever asks rightly gets the whole answer, and nothing is left of the others. The
 * node says nothing before it has all requests, so that they are in work together. */
#include "wired.h"

#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>

enum {
    STREAMS = 500,
    LEAVING = 60,
    SLOW = 40,
    WRONG = 60,
    LARGE = 8,
    CLIENTS = STREAMS + LEAVING + SLOW + WRONG + LARGE,
    ASKING = STREAMS + LEAVING + SLOW, /* of whom the node hears */
    ANSWER_TOKENS = 40,
    LARGE_BYTES = 3 << 20,
    LIMIT_MS = 240000,
};

typedef enum { KIND_STREAM, KIND_LEAVES, KIND_SLOW, KIND_WRONG, KIND_LARGE } client_kind_t;

typedef struct {
    client_kind_t kind;
    int fd; /* -1: done */
    char *request;
    size_t request_bytes, sent;
    char *answer;
    size_t answer_bytes;
} client_t;

static decode_t decode;
static client_t clients[CLIENTS];

static client_kind_t kind_of(size_t i)
{
    return i < STREAMS             ? KIND_STREAM
           : i < STREAMS + LEAVING ? KIND_LEAVES
           : i < ASKING            ? KIND_SLOW
           : i < ASKING + WRONG    ? KIND_WRONG
                                   : KIND_LARGE;
}

static void write_request(client_t *client, size_t number)
{
    static const char *const BODIES[] = {"{\"prompt\":[1,2", "{\"prompt\":\"\xff\"}", "[]",
        "{\"prompt\":[1],\"max_tokens\":-1}", "{\"messages\":[]}", ""};
    char body[256];
    if (client->kind == KIND_WRONG) {
        snprintf(body, sizeof body, "%s", BODIES[number % (sizeof BODIES / sizeof BODIES[0])]);
    } else {
        snprintf(body, sizeof body, "{\"prompt\":[1,%zu,3],\"max_tokens\":%d,\"stream\":true}",
            number % 1000, ANSWER_TOKENS);
    }
    size_t bytes = client->kind == KIND_LARGE ? LARGE_BYTES : strlen(body);
    client->request = kv_allocate(bytes + 256);
    int head = snprintf(client->request, 256,
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        "Content-Length: %zu\r\n\r\n",
        bytes);
    memset(client->request + head, 'x', bytes);
    memcpy(client->request + head, body, strlen(body));
    client->request_bytes = (size_t)head + bytes;
}

static void open_client(client_t *client, size_t number, uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *client = (client_t){.kind = kind_of(number)};
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(client->fd >= 0);
    assert_int_equal(connect(client->fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(fcntl(client->fd, F_SETFL, O_NONBLOCK), 0);
    write_request(client, number);
}

static void close_client(client_t *client)
{
    close(client->fd);
    client->fd = -1;
}

static void send_some(client_t *client)
{
    ssize_t sent = send(client->fd, client->request + client->sent,
        client->request_bytes - client->sent, MSG_NOSIGNAL);
    if (sent > 0) {
        client->sent += (size_t)sent;
    } else if (sent < 0 && errno != EAGAIN) {
        client->sent = client->request_bytes; /* it was refused before its end: what it was told? */
    }
}

static void receive_some(client_t *client)
{
    char bytes[16384];
    ssize_t count = recv(client->fd, bytes, sizeof bytes, 0);
    if (count > 0) {
        client->answer = kv_reallocate(client->answer, client->answer_bytes + (size_t)count + 1, 1);
        memcpy(client->answer + client->answer_bytes, bytes, (size_t)count);
        client->answer_bytes += (size_t)count;
        client->answer[client->answer_bytes] = '\0';
    }
    bool over = count == 0 || (count < 0 && errno != EAGAIN);
    if (over || (client->kind == KIND_LEAVES && client->answer_bytes > 0)) {
        close_client(client);
    }
}

/* One turn; the number of clients that go on, without those that are asleep. */
static size_t turn(bool slow_read)
{
    struct pollfd wanted[CLIENTS];
    client_t *polled[CLIENTS];
    size_t count = 0;
    for (client_t *client = clients; client < clients + CLIENTS; client++) {
        bool sends = client->sent < client->request_bytes;
        if (client->fd >= 0 && (sends || slow_read || client->kind != KIND_SLOW)) {
            polled[count] = client;
            wanted[count++] = (struct pollfd){
                .fd = client->fd, .events = (short)(sends ? POLLIN | POLLOUT : POLLIN)};
        }
    }
    if (count > 0) {
        assert_true(poll(wanted, count, LIMIT_MS) > 0); /* or nothing moves any more */
    }
    for (size_t i = 0; i < count; i++) {
        if ((wanted[i].revents & POLLOUT) != 0) {
            send_some(polled[i]);
        } else if (wanted[i].revents != 0) {
            receive_some(polled[i]);
        }
    }
    return count;
}

static size_t occurrences(const char *text, const char *wanted)
{
    size_t count = 0;
    while (text != NULL && (text = strstr(text, wanted)) != NULL) {
        count++;
        text += strlen(wanted);
    }
    return count;
}

static void check_client(const client_t *client)
{
    const char *answer = client->answer != NULL ? client->answer : "";
    unsigned code = client->answer_bytes > 12 ? (unsigned)strtoul(answer + 9, NULL, 10) : 0;
    switch (client->kind) {
    case KIND_STREAM:
    case KIND_SLOW:
        if (code != 200 || occurrences(answer, "\"text\":\" tree\"") != ANSWER_TOKENS ||
            occurrences(answer, "data: [DONE]") != 1 || strstr(answer, "\"error\"") != NULL) {
            fail_msg("a stream is not whole: %s", answer);
        }
        break;
    case KIND_LEAVES:
        assert_int_equal(code, 200);
        break;
    case KIND_WRONG:
        assert_int_equal(code, 400);
        assert_non_null(strstr(answer, "\"message\""));
        break;
    case KIND_LARGE:
        assert_int_equal(code, 413);
        break;
    }
}

/* Whoever left is noticed when the gateway next looks. */
static void wait_until_idle(const fixture_t *fixture)
{
    char text[65536];
    for (int i = 0; i < LIMIT_MS / 20; i++) {
        ask_all(fixture, "GET", "/metrics", "", text, sizeof text);
        if (strstr(text, "kvist_gateway_requests_running 0\n") != NULL &&
            atomic_load(&decode.job_count) == 0) {
            return;
        }
        usleep(20000);
    }
    fail_msg("requests of clients that are gone are still in work");
}

/* Both ends of each connection are this process's. */
static bool has_descriptors(void)
{
    struct rlimit limit;
    rlim_t wanted = 2 * CLIENTS + 200;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_max < wanted) {
        return false;
    }
    limit.rlim_cur = limit.rlim_cur > wanted ? limit.rlim_cur : wanted;
    return setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

static void test_streams_among_others(void **state)
{
    (void)state;
    fixture_t fixture;
    if (!has_descriptors()) {
        print_message("skipped: fewer than %d files may be open here\n", 2 * CLIENTS + 200);
        skip();
    }
    decode.token = token_of(" tree");
    atomic_store(&decode.wait_for, ASKING);
    uint16_t port = decode_start(&decode, KEY, 0);
    gateway_start(&fixture, port);
    assert_true(becomes(&fixture, 200, 20000));
    for (size_t i = 0; i < CLIENTS; i++) {
        open_client(&clients[i], i, kv_gateway_http_port(fixture.gateway));
    }
    while (turn(false) > 0) {
    }
    while (turn(true) > 0) {
    }
    for (size_t i = 0; i < CLIENTS; i++) {
        check_client(&clients[i]);
        free(clients[i].request);
        free(clients[i].answer);
    }
    wait_until_idle(&fixture);
    gateway_end(&fixture);
    decode_end(&decode);
}

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_streams_among_others)};
    return cmocka_run_group_tests(tests, open_model, close_model);
}
