/* The gateway in front of vLLM servers: real HTTP on both sides, servers that are played.
 *
 * A server here has vLLM's doors and tells a story: it goes on where the end of the prompt is the
 * story's beginning, so an answer that was continued in another place than it ended shows. The next
 * few completions go wrong where a test wants it, whichever server gets them. */
#include "testing/testing.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/queue.h"
#include "gateway/gateway.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

static kv_tokenizer_t *tokenizer;
static const char STORY[] = "The quick brown fox jumps over the lazy d\xc3\xb6g and sleeps.";
static uint32_t *story;
static size_t story_count;

/* ---- servers ---- */

typedef enum {
    FAULT_NONE,
    FAULT_CLOSES,     /* after two tokens, in the middle of a chunk */
    FAULT_NO_DONE,    /* ends after two tokens as if that were all */
    FAULT_WRONG_JSON, /* after two tokens */
    FAULT_NO_IDS,     /* text without token ids */
    FAULT_EVENT,      /* an error in the stream, after two tokens */
    FAULT_ABORTS,     /* finish_reason abort, after two tokens */
    FAULT_STOPS,      /* a stop string that nobody else sees, after two tokens */
    FAULT_500,
    FAULT_503,
    FAULT_400,
    FAULT_EMPTY,    /* a success that says nothing */
    FAULT_HTML,     /* a success of another kind */
    FAULT_SILENT,   /* nothing after two tokens, and nothing on /health */
    FAULT_TOO_MANY, /* more tokens than were asked for */
} fault_t;

/* What a server does besides, and what changes no text. */
typedef enum {
    ODDITY_NONE,
    ODDITY_EMPTY_LINES, /* millions of them before the first event */
    ODDITY_NULL_ERROR,  /* each event says that there is no error */
    ODDITY_USAGE,       /* more tokens were cached than the prompt has */
} oddity_t;

enum { SERVERS = 2, BODY_BYTES = 1 << 20 };

typedef struct {
    int listener;
    uint16_t port;
    pthread_t thread;
    atomic_bool down;   /* closes whatever comes */
    atomic_bool silent; /* answers no more */
    atomic_bool other_tokenizer;
} server_t;

static server_t servers[SERVERS];
static atomic_int oddity, fault, faults_left, completions, connections, token_pause_ms;
static atomic_bool no_details, closing;
static pthread_mutex_t body_mutex = PTHREAD_MUTEX_INITIALIZER;
static char last_body[BODY_BYTES];

static bool send_text(int fd, const char *text)
{
    size_t bytes = strlen(text);
    return send(fd, text, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static bool send_whole(int fd, int code, const char *body)
{
    char head[160];
    snprintf(head, sizeof head,
        "HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", code,
        strlen(body));
    return send_text(fd, head) && send_text(fd, body);
}

static bool send_event(int fd, const char *data)
{
    char head[32];
    snprintf(head, sizeof head, "%zx\r\n", strlen(data) + 8);
    return send_text(fd, head) && send_text(fd, "data: ") && send_text(fd, data) &&
           send_text(fd, "\n\n\r\n");
}

/* With logprobs: the chosen token's, and one alternative more than was asked for. */
static bool send_token(
    int fd, uint32_t token, const char *finish, const char *stop_reason, bool logprobs)
{
    char event[512], tops[256] = "null";
    if (logprobs) {
        snprintf(tops, sizeof tops,
            "{\"tokens\":[\"token_id:%u\"],\"token_logprobs\":[-0.5],\"top_logprobs\":["
            "{\"token_id:%u\":-0.5,\"token_id:51\":-3.5,\"token_id:52\":-1.25}]}",
            token, token);
    }
    snprintf(event, sizeof event,
        "{\"id\":\"cmpl-1\",\"choices\":[{\"index\":0,\"text\":\"?\",\"token_ids\":[%u],"
        "\"finish_reason\":%s,\"stop_reason\":%s,\"logprobs\":%s}]%s}",
        token, finish, stop_reason, tops,
        atomic_load(&oddity) == ODDITY_NULL_ERROR ? ",\"error\":null" : "");
    return send_event(fd, event);
}

/* Megabytes of lines that say nothing, in one chunk. */
static bool send_empty_lines(int fd)
{
    enum { CHUNK_BYTES = 64 << 10, CHUNKS = 48 };
    char lines[CHUNK_BYTES + 1], head[32];
    memset(lines, '\n', CHUNK_BYTES);
    lines[CHUNK_BYTES] = '\0';
    snprintf(head, sizeof head, "%x\r\n", CHUNK_BYTES * CHUNKS);
    bool sent = send_text(fd, head);
    for (int i = 0; sent && i < CHUNKS; i++) {
        sent = send_text(fd, lines);
    }
    return sent && send_text(fd, "\r\n");
}

static bool send_end(int fd, size_t prompt_tokens, size_t generated)
{
    char event[256], details[64] = "";
    if (atomic_load(&oddity) == ODDITY_USAGE) {
        return send_event(fd, "{\"choices\":[],\"usage\":{\"prompt_tokens\":4294967295,"
                              "\"prompt_tokens_details\":{\"cached_tokens\":4294967295}}}") &&
               send_event(fd, "[DONE]") && send_text(fd, "0\r\n\r\n");
    }
    if (!atomic_load(&no_details)) {
        snprintf(details, sizeof details, ",\"prompt_tokens_details\":{\"cached_tokens\":%zu}",
            prompt_tokens / 2);
    }
    snprintf(event, sizeof event,
        "{\"choices\":[],\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":%zu%s}}",
        prompt_tokens, generated, details);
    return send_event(fd, event) && send_event(fd, "[DONE]") && send_text(fd, "0\r\n\r\n");
}

/* The prompt's ids; how many were counted. */
static size_t read_prompt(const char *body, uint32_t *tokens, size_t most)
{
    const char *at = strstr(body, "\"prompt\":[");
    size_t count = 0;
    assert_non_null(at);
    at += strlen("\"prompt\":[");
    while (*at != ']' && count < most) {
        char *end;
        tokens[count++] = (uint32_t)strtoul(at, &end, 10);
        at = *end == ',' ? end + 1 : end;
    }
    return count;
}

/* How much of the story the prompt's end holds already. */
static size_t told_by(const uint32_t *prompt, size_t count)
{
    for (size_t told = story_count < count ? story_count : count; told > 0; told--) {
        if (memcmp(prompt + count - told, story, told * sizeof *story) == 0) {
            return told;
        }
    }
    return 0;
}

/* What goes wrong with this completion before its head; false: the connection is over. */
static bool refuse(int fd, fault_t how)
{
    switch (how) {
    case FAULT_500:
        return send_whole(fd, 500, "{\"error\":{\"message\":\"broken\",\"code\":500}}");
    case FAULT_503:
        return send_whole(fd, 503, "{\"error\":{\"message\":\"full\",\"code\":503}}");
    case FAULT_400:
        return send_whole(fd, 400,
            "{\"error\":{\"message\":\"This model's maximum context length is 7 tokens\","
            "\"type\":\"BadRequestError\",\"code\":400}}");
    case FAULT_EMPTY:
        return send_whole(fd, 200, "");
    default:
        return send_whole(fd, 200, "<html>a page</html>\n");
    }
}

/* What goes wrong after two tokens; false: the connection is over. */
static bool break_off(server_t *server, int fd, fault_t how)
{
    switch (how) {
    case FAULT_CLOSES:
        send_text(fd, "f0\r\ndata: {\"cho");
        return false;
    case FAULT_NO_DONE:
        return send_text(fd, "0\r\n\r\n");
    case FAULT_WRONG_JSON:
        send_event(fd, "{\"choices\":[{");
        return false;
    case FAULT_EVENT:
        return send_event(fd, "{\"error\":{\"message\":\"engine died\",\"code\":500}}") &&
               send_event(fd, "[DONE]") && send_text(fd, "0\r\n\r\n");
    case FAULT_SILENT:
        atomic_store(&server->silent, true);
        while (atomic_load(&server->silent) && !atomic_load(&closing)) {
            usleep(2000);
        }
        return false;
    default:
        send_event(fd, "{\"choices\":[{\"index\":0,\"text\":\" a\"}]}");
        return false;
    }
}

static bool complete(server_t *server, int fd, const char *body)
{
    static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n";
    uint32_t prompt[4096];
    size_t prompt_count = read_prompt(body, prompt, 4096), told = told_by(prompt, prompt_count);
    size_t most = strtoul(strstr(body, "\"max_tokens\":") + 13, NULL, 10), sent = 0;
    bool logprobs = strstr(body, "\"logprobs\":2") != NULL;
    fault_t how = FAULT_NONE;
    atomic_fetch_add(&completions, 1);
    if (atomic_fetch_sub(&faults_left, 1) > 0) {
        how = (fault_t)atomic_load(&fault);
    }
    if (how >= FAULT_500 && how <= FAULT_HTML) {
        return refuse(fd, how);
    }
    if (!send_text(fd, HEAD) ||
        (atomic_load(&oddity) == ODDITY_EMPTY_LINES && !send_empty_lines(fd))) {
        return false;
    }
    if (how == FAULT_TOO_MANY) {
        most++;
    }
    while (sent < most && told + sent < story_count) {
        const char *finish = "null", *stop_reason = "null";
        if (sent == 2 && how == FAULT_ABORTS) {
            finish = "\"abort\"";
        } else if (sent == 2 && how == FAULT_STOPS) {
            finish = "\"stop\"";
            stop_reason = "\"fox\"";
        } else if (sent == 2 && how != FAULT_NONE && how != FAULT_TOO_MANY) {
            return break_off(server, fd, how);
        } else if (sent + 1 == most) {
            finish = "\"length\"";
        } else if (told + sent + 1 == story_count) {
            finish = "\"stop\"";
        }
        usleep((useconds_t)atomic_load(&token_pause_ms) * 1000);
        if (!send_token(fd, story[told + sent++], finish, stop_reason, logprobs)) {
            return false;
        }
        if (strcmp(finish, "null") != 0) {
            break;
        }
    }
    return send_end(fd, prompt_count, sent);
}

static bool tokenize(server_t *server, int fd, const char *body)
{
    /* Its own tokenizer is the gateway's: the probe is known there, and asked for by its text. */
    char *answer = malloc(BODY_BYTES), *text = malloc(BODY_BYTES);
    uint32_t *tokens;
    size_t count, used = 0;
    kv_error_t error;
    const char *at = strstr(body, "\"prompt\":\"") + strlen("\"prompt\":\"");
    for (; *at != '"'; at++) { /* JSON's escapes, as far as the probe has them */
        if (*at == '\\') {
            at++;
            text[used++] = *at == 'n' ? '\n' : *at == 't' ? '\t' : *at;
        } else {
            text[used++] = *at;
        }
    }
    assert_int_equal(kv_tokenizer_encode(tokenizer, text, used,
                         (kv_tokenizer_mode_t){.parse_special = true}, &tokens, &count, &error),
        KV_OK);
    tokens[3] += atomic_load(&server->other_tokenizer);
    int bytes =
        snprintf(answer, BODY_BYTES, "{\"count\":%zu,\"max_model_len\":8192,\"tokens\":[", count);
    for (size_t i = 0; i < count; i++) {
        bytes += snprintf(
            answer + bytes, BODY_BYTES - (size_t)bytes, "%s%u", i > 0 ? "," : "", tokens[i]);
    }
    snprintf(answer + bytes, BODY_BYTES - (size_t)bytes, "]}");
    bool sent = send_whole(fd, 200, answer);
    free(tokens);
    free(text);
    free(answer);
    return sent;
}

static bool answer_request(server_t *server, int fd, const char *path, const char *body)
{
    if (atomic_load(&server->down)) {
        return false;
    }
    if (atomic_load(&server->silent)) {
        usleep(20000);
        return atomic_load(&closing) ? false : answer_request(server, fd, path, body);
    }
    if (strcmp(path, "/health") == 0) {
        return send_whole(fd, 200, "");
    }
    if (strcmp(path, "/metrics") == 0) {
        return send_whole(fd, 200,
            "# HELP x\nvllm:num_requests_running{engine=\"0\"} 3.0\n"
            "vllm:num_requests_waiting{engine=\"0\"} 4.0\n");
    }
    if (strcmp(path, "/v1/models") == 0) {
        return send_whole(fd, 200,
            "{\"object\":\"list\",\"data\":[{\"id\":\"/models/tiny\",\"max_model_len\":8192}]}");
    }
    if (strcmp(path, "/tokenize") == 0) {
        return tokenize(server, fd, body);
    }
    pthread_mutex_lock(&body_mutex);
    snprintf(last_body, sizeof last_body, "%s", body);
    pthread_mutex_unlock(&body_mutex);
    return complete(server, fd, body);
}

/* One request's head and body, which point into text; false: there is none any more. */
static bool receive_request(int fd, char *text, char *path, const char **body_out)
{
    size_t count = 0, wanted = 0;
    char *end = NULL;
    while (end == NULL || count < wanted) {
        ssize_t some = recv(fd, text + count, BODY_BYTES - 1 - count, 0);
        if (some <= 0) {
            return false;
        }
        count += (size_t)some;
        text[count] = '\0';
        if (end == NULL && (end = strstr(text, "\r\n\r\n")) != NULL) {
            const char *length = strcasestr(text, "content-length:");
            wanted =
                (size_t)(end + 4 - text) + (length != NULL ? strtoul(length + 15, NULL, 10) : 0);
        }
    }
    sscanf(text, "%*s %63s", path);
    *body_out = end + 4;
    return true;
}

typedef struct {
    server_t *server;
    int fd;
} connection_t;

static void *serve(void *argument)
{
    connection_t connection = *(connection_t *)argument;
    char *text = malloc(BODY_BYTES), path[64];
    const char *body;
    free(argument);
    while (receive_request(connection.fd, text, path, &body) &&
           answer_request(connection.server, connection.fd, path, body)) {
    }
    close(connection.fd);
    free(text);
    atomic_fetch_sub(&connections, 1);
    return NULL;
}

static void *accept_all(void *argument)
{
    server_t *server = argument;
    int fd;
    while ((fd = accept(server->listener, NULL, NULL)) >= 0) {
        connection_t *connection = malloc(sizeof *connection);
        pthread_t thread;
        struct timeval limit = {.tv_sec = 30};
        int on = 1;
        *connection = (connection_t){server, fd};
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        atomic_fetch_add(&connections, 1);
        assert_int_equal(pthread_create(&thread, NULL, serve, connection), 0);
        pthread_detach(thread);
    }
    return NULL;
}

static void start_server(server_t *server)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t bytes = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    atomic_store(&server->down, false);
    atomic_store(&server->silent, false);
    atomic_store(&server->other_tokenizer, false);
    server->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(server->listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(server->listener, 64), 0);
    assert_int_equal(getsockname(server->listener, (struct sockaddr *)&address, &bytes), 0);
    server->port = ntohs(address.sin_port);
    pthread_create(&server->thread, NULL, accept_all, server);
}

static void stop_server(server_t *server)
{
    shutdown(server->listener, SHUT_RDWR);
    pthread_join(server->thread, NULL);
    close(server->listener);
}

/* ---- the gateway on a thread ---- */

typedef struct {
    kv_options_t options;
    kv_reactor_t *reactor;
    kv_gateway_t *gateway;
    kv_queue_t *queue;
    kv_watch_t *watch;
    pthread_t thread;
    uint16_t port;
} fixture_t;

static void on_stopped(void *context)
{
    kv_reactor_end(((fixture_t *)context)->reactor);
}

static void on_stop(void *context)
{
    fixture_t *fixture = context;
    int item;
    while (kv_queue_pop(fixture->queue, &item) == KV_OK) {
        kv_gateway_begin_stop(fixture->gateway, on_stopped, fixture);
    }
}

static void *run(void *context)
{
    kv_reactor_run(((fixture_t *)context)->reactor);
    return NULL;
}

/* While no server is up a request waits: long where it should, not where it is to fail. */
static const char *wait_limit = "60s";

static void load_options(fixture_t *fixture, const char *more)
{
    static const kv_options_program_t PROGRAM = {"kvist-gateway", "gateway", "",
        KV_SECTION_CLUSTER | KV_SECTION_NODE | KV_SECTION_MODEL | KV_SECTION_GATEWAY};
    char admin[256], list[128], node_wait[64], queue_wait[64];
    kv_error_t error;
    kv_options_action_t action;
    snprintf(admin, sizeof admin, "--node.admin=%s/gateway.sock", kv_test_folder());
    snprintf(list, sizeof list, "--gateway.vllm_nodes=127.0.0.1:%u,127.0.0.1:%u", servers[0].port,
        servers[1].port);
    snprintf(node_wait, sizeof node_wait, "--gateway.node_wait=%s", wait_limit);
    snprintf(queue_wait, sizeof queue_wait, "--gateway.queue_wait=%s", wait_limit);
    char *arguments[] = {(char *)"kvist-gateway", admin, list, node_wait, queue_wait,
        (char *)"--gateway.http_port=0", (char *)"--gateway.model_name=tiny",
        (char *)"--node.log_level=error", (char *)more};
    if (kv_options_load(&PROGRAM, more != NULL ? 9 : 8, arguments, &fixture->options, &action,
            &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
}

static char *ask(const fixture_t *fixture, const char *path, const char *body, unsigned *code_out);

static void wait_for_health(const fixture_t *fixture, const char *expected)
{
    for (int i = 0; i < 4000; i++) {
        unsigned code;
        char *answer = ask(fixture, "/healthz", NULL, &code);
        bool there = strstr(answer, expected) != NULL;
        if (i == 3999) {
            fail_msg("never %s: %s", expected, answer);
        }
        free(answer);
        if (there) {
            return;
        }
        usleep(5000);
    }
}

static void start_gateway(fixture_t *fixture, const char *more)
{
    kv_error_t error;
    for (int i = 0; i < SERVERS; i++) {
        start_server(&servers[i]);
    }
    atomic_store(&closing, false);
    atomic_store(&faults_left, 0);
    atomic_store(&oddity, ODDITY_NONE);
    atomic_store(&completions, 0);
    atomic_store(&token_pause_ms, 0);
    atomic_store(&no_details, false);
    load_options(fixture, more);
    assert_int_equal(kv_reactor_create(&fixture->reactor, &error), KV_OK);
    fixture->queue = kv_queue_create(2, sizeof(int));
    fixture->watch =
        kv_reactor_attach(fixture->reactor, kv_queue_fd(fixture->queue), on_stop, fixture);
    if (kv_gateway_open(
            fixture->reactor, &fixture->options, tokenizer, &fixture->gateway, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    fixture->port = kv_gateway_http_port(fixture->gateway);
    pthread_create(&fixture->thread, NULL, run, fixture);
}

static void start(fixture_t *fixture, const char *more)
{
    start_gateway(fixture, more);
    wait_for_health(fixture, "\"decode_nodes\":2");
}

static void stop(fixture_t *fixture)
{
    int item = 0;
    kv_queue_push(fixture->queue, &item);
    pthread_join(fixture->thread, NULL);
    kv_gateway_close(fixture->gateway);
    kv_watch_detach(fixture->watch);
    kv_reactor_destroy(fixture->reactor);
    kv_queue_destroy(fixture->queue);
    kv_options_clear(&fixture->options);
    atomic_store(&closing, true);
    for (int i = 0; i < SERVERS; i++) {
        stop_server(&servers[i]);
    }
    while (atomic_load(&connections) > 0) { /* all close: nobody is there to ask them */
        usleep(2000);
    }
}

/* ---- a client ---- */

static char *ask(const fixture_t *fixture, const char *path, const char *body, unsigned *code_out)
{
    size_t capacity = 1 << 16, count = 0;
    char *text = malloc(capacity);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(fixture->port)};
    struct timeval limit = {.tv_sec = 60};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    snprintf(text, capacity,
        "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
        body != NULL ? "POST" : "GET", path, body != NULL ? strlen(body) : 0,
        body != NULL ? body : "");
    assert_true(send_text(fd, text));
    for (ssize_t some;
         count + 1 < capacity && (some = recv(fd, text + count, capacity - count - 1, 0)) > 0;) {
        count += (size_t)some;
    }
    close(fd);
    text[count] = '\0';
    *code_out = count > 12 ? (unsigned)atoi(text + 9) : 0;
    return text;
}

/* Asks and checks the code and that the answer holds each of the texts. */
static void expect(const fixture_t *fixture, const char *path, const char *body, unsigned code,
    const char *first, const char *second)
{
    unsigned got;
    char *answer = ask(fixture, path, body, &got);
    if (got != code || strstr(answer, first) == NULL ||
        (second != NULL && strstr(answer, second) == NULL)) {
        fail_msg("%s %s\n gave %s", path, body != NULL ? body : "", answer);
    }
    free(answer);
}

static void expect_in_last_body(const char *part, bool there)
{
    pthread_mutex_lock(&body_mutex);
    bool found = strstr(last_body, part) != NULL;
    pthread_mutex_unlock(&body_mutex);
    if (found != there) {
        fail_msg("%s %s %s", part, there ? "is not in" : "is in", last_body);
    }
}

static const char COMPLETION[] = "/v1/completions";
static const char PLAIN[] = "{\"prompt\":[5,6,7,8],\"temperature\":0}";

/* A stream's text: its pieces one after the other. */
static void stream_text(const fixture_t *fixture, char *text_out, size_t bytes)
{
    unsigned code;
    char *answer =
        ask(fixture, COMPLETION, "{\"prompt\":[5,6,7,8],\"temperature\":0,\"stream\":true}", &code);
    assert_int_equal(code, 200);
    text_out[0] = '\0';
    for (char *at = answer; (at = strstr(at, "\"text\":\"")) != NULL;) {
        at += strlen("\"text\":\"");
        char *end = strchr(at, '"');
        strncat(text_out, at, (size_t)(end - at) < bytes ? (size_t)(end - at) : 0);
        at = end;
    }
    if (strstr(answer, "data: [DONE]") == NULL) {
        fail_msg("an unfinished stream: %s", answer);
    }
    free(answer);
}

/* ---- tests ---- */

static void test_answers(void **state)
{
    (void)state;
    fixture_t fixture;
    char text[512];
    start(&fixture, NULL);
    expect(&fixture, COMPLETION, PLAIN, 200, STORY, "\"finish_reason\":\"stop\"");
    expect(&fixture, COMPLETION, PLAIN, 200, "x-kvist-hit-tokens: 2", "\"prompt_tokens\":4");
    expect(&fixture, COMPLETION, "{\"prompt\":[5,6,7,8],\"max_tokens\":2}", 200,
        "\"text\":\"The quick\"", "\"finish_reason\":\"length\"");
    expect(&fixture, "/v1/chat/completions",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", 200, STORY, "\"cached_tokens\"");
    stream_text(&fixture, text, sizeof text);
    assert_string_equal(text, STORY);
    expect(&fixture, "/metrics", NULL, 200, "kvist_gateway_decode_nodes 2", NULL);
    expect(&fixture, "/v1/overview", NULL, 200, "\"role\":\"vllm\"", "\"answers\":5");
    expect(&fixture, "/v1/contexts", NULL, 200, "\"nodes\":0", "\"data\":[]");
    stop(&fixture);
}

static void test_what_servers_are_told(void **state)
{
    (void)state;
    fixture_t fixture;
    start(&fixture, NULL);
    expect(&fixture, COMPLETION, PLAIN, 200, STORY, NULL);
    expect_in_last_body("{\"prompt\":[5,6,7,8],", true);
    expect_in_last_body("\"model\":\"/models/tiny\"", true);
    expect_in_last_body("\"return_token_ids\":true", true);
    expect_in_last_body("seed", false);
    expect_in_last_body("cache_salt", false);
    expect(&fixture, COMPLETION,
        "{\"prompt\":[5],\"seed\":11,\"temperature\":0.5,\"kvist\":{\"salt\":\"team a\"}}", 200,
        STORY, NULL);
    expect_in_last_body("\"seed\":11,", true);
    expect_in_last_body("\"temperature\":0.5", true);
    expect_in_last_body("\"cache_salt\":\"", true);
    expect_in_last_body("team a", false);
    expect(&fixture, COMPLETION, "{\"prompt\":[5],\"kvist\":{\"cache_mode\":\"bypass\"}}", 200,
        STORY, NULL);
    expect_in_last_body("\"cache_salt\":\"", true);
    expect(&fixture, COMPLETION, "{\"prompt\":[5],\"kvist\":{\"cache_mode\":\"read\"}}", 400,
        "cache_mode read: vLLM always reads and keeps", NULL);
    expect(&fixture, COMPLETION, "{\"prompt\":[5],\"kvist\":{\"cache_mode\":\"write\"}}", 400,
        "cache_mode write", NULL);
    stop(&fixture);
}

/* What no server keeps on request is refused before anything is computed. */
static void test_no_cached_contents(void **state)
{
    (void)state;
    fixture_t fixture;
    start(&fixture, NULL);
    int before = atomic_load(&completions);
    expect(&fixture, "/v1beta/cachedContents",
        "{\"model\":\"models/tiny\",\"contents\":[{\"parts\":[{\"text\":\"hi\"}]}]}", 503,
        "there are no cached contents here: the nodes are vLLM servers", "\"UNAVAILABLE\"");
    assert_int_equal(atomic_load(&completions), before);
    stop(&fixture);
}

/* The text ends where the gateway says; the usage comes all the same. */
static void test_stop_strings(void **state)
{
    (void)state;
    fixture_t fixture;
    start(&fixture, NULL);
    expect(&fixture, COMPLETION, "{\"prompt\":[5,6,7,8],\"stop\":[\"fox\"]}", 200,
        "\"text\":\"The quick brown \"", "x-kvist-hit-tokens: 2");
    expect_in_last_body("\"stop\":[\"fox\"]", true);
    /* One that goes on for long is not waited for. */
    atomic_store(&token_pause_ms, 400);
    expect(&fixture, COMPLETION, "{\"prompt\":[5,6,7,8],\"stop\":[\"quick\"]}", 200,
        "\"text\":\"The \"", "\"finish_reason\":\"stop\"");
    stop(&fixture);
}

/* Whatever breaks after two tokens: the text is whole, from the other server or from the same. */
static void test_goes_on(void **state)
{
    (void)state;
    static const fault_t FAULTS[] = {FAULT_CLOSES, FAULT_NO_DONE, FAULT_WRONG_JSON, FAULT_NO_IDS,
        FAULT_EVENT, FAULT_ABORTS, FAULT_STOPS, FAULT_500, FAULT_503, FAULT_EMPTY, FAULT_HTML};
    fixture_t fixture;
    char text[512];
    start(&fixture, NULL);
    for (size_t i = 0; i < sizeof FAULTS / sizeof FAULTS[0]; i++) {
        atomic_store(&fault, (int)FAULTS[i]);
        atomic_store(&completions, 0);
        atomic_store(&faults_left, 1);
        stream_text(&fixture, text, sizeof text);
        assert_string_equal(text, STORY);
        assert_int_equal(atomic_load(&completions), 2);
        /* What one server had cached of a text that both made is not claimed. */
        atomic_store(&faults_left, 1);
        expect(&fixture, COMPLETION, PLAIN, 200, STORY,
            FAULTS[i] >= FAULT_500 ? "x-kvist-hit-tokens: 2" : "x-kvist-hit-tokens: 0");
    }
    stop(&fixture);
}

/* Servers that say more than they should: the first answer is whole, and what it cached is what it
 * can have been. */
static void test_oddities(void **state)
{
    (void)state;
    static const struct {
        oddity_t oddity;
        const char *cached;
    } ODDITIES[] = {{ODDITY_EMPTY_LINES, "x-kvist-hit-tokens: 2"},
        {ODDITY_NULL_ERROR, "x-kvist-hit-tokens: 2"}, {ODDITY_USAGE, "x-kvist-hit-tokens: 0"}};
    fixture_t fixture;
    start(&fixture, NULL);
    for (size_t i = 0; i < sizeof ODDITIES / sizeof ODDITIES[0]; i++) {
        atomic_store(&oddity, (int)ODDITIES[i].oddity);
        atomic_store(&completions, 0);
        expect(&fixture, COMPLETION, PLAIN, 200, STORY, ODDITIES[i].cached);
        assert_int_equal(atomic_load(&completions), 1);
    }
    stop(&fixture);
}

static void test_gives_up(void **state)
{
    (void)state;
    fixture_t fixture;
    wait_limit = "300ms";
    start(&fixture, NULL);
    wait_limit = "60s";
    static const struct {
        fault_t fault;
        unsigned code;
        const char *said;
    } ENDS[] = {
        {FAULT_400, 400, "This model's maximum context length is 7 tokens"},
        {FAULT_500, 500, "HTTP 500: broken"},
        {FAULT_503, 429, "HTTP 503: full"},
        {FAULT_HTML, 502, "was lost"},
        {FAULT_TOO_MANY, 502, "sent token"},
    };
    for (size_t i = 0; i < sizeof ENDS / sizeof ENDS[0]; i++) {
        atomic_store(&fault, (int)ENDS[i].fault);
        atomic_store(&faults_left, 1000);
        expect(&fixture, COMPLETION, "{\"prompt\":[5,6,7,8],\"max_tokens\":3}", ENDS[i].code,
            ENDS[i].said, NULL);
        atomic_store(&faults_left, 0);
        expect(&fixture, COMPLETION, PLAIN, 200, STORY, NULL);
    }
    stop(&fixture);
}

/* A server that hangs in a stream is found by its /health, and the stream goes on elsewhere. */
static void test_silent_server(void **state)
{
    (void)state;
    fixture_t fixture;
    char text[512];
    start(&fixture, "--gateway.vllm_limit=1s");
    atomic_store(&fault, FAULT_SILENT);
    atomic_store(&faults_left, 1);
    stream_text(&fixture, text, sizeof text);
    assert_string_equal(text, STORY);
    wait_for_health(&fixture, "\"decode_nodes\":1");
    for (int i = 0; i < SERVERS; i++) {
        atomic_store(&servers[i].silent, false);
    }
    wait_for_health(&fixture, "\"decode_nodes\":2");
    stop(&fixture);
}

static void test_down_and_back(void **state)
{
    (void)state;
    fixture_t fixture;
    wait_limit = "300ms";
    start(&fixture, NULL);
    wait_limit = "60s";
    atomic_store(&servers[0].down, true);
    wait_for_health(&fixture, "\"decode_nodes\":1");
    expect(&fixture, COMPLETION, PLAIN, 200, STORY, NULL);
    atomic_store(&servers[1].down, true);
    wait_for_health(&fixture, "\"decode_nodes\":0");
    expect(&fixture, COMPLETION, PLAIN, 503, "no decode node is up", "/health");
    atomic_store(&servers[1].down, false);
    wait_for_health(&fixture, "\"decode_nodes\":1");
    expect(&fixture, COMPLETION, PLAIN, 200, STORY, NULL);
    stop(&fixture);
}

static void test_another_tokenizer(void **state)
{
    (void)state;
    fixture_t fixture;
    wait_limit = "300ms";
    start(&fixture, NULL);
    wait_limit = "60s";
    for (int i = 0; i < SERVERS; i++) {
        atomic_store(&servers[i].down, true);
        atomic_store(&servers[i].other_tokenizer, true);
    }
    wait_for_health(&fixture, "\"decode_nodes\":0");
    for (int i = 0; i < SERVERS; i++) {
        atomic_store(&servers[i].down, false);
    }
    wait_for_health(&fixture, "its tokenizer is not that of model.path: token 3 of a probe");
    expect(&fixture, COMPLETION, PLAIN, 503, "its tokenizer is not that of model.path", NULL);
    assert_int_equal(atomic_load(&completions), 0);
    stop(&fixture);
}

static void test_logprobs(void **state)
{
    (void)state;
    fixture_t fixture;
    unsigned code;
    start(&fixture, NULL);
    char *answer =
        ask(&fixture, COMPLETION, "{\"prompt\":[5,6,7,8],\"max_tokens\":2,\"logprobs\":2}", &code);
    assert_int_equal(code, 200);
    if (strstr(answer, "\"token_logprobs\":[-0.5,-0.5]") == NULL ||
        strstr(answer, "-1.25") == NULL || strstr(answer, "-3.5") != NULL) {
        fail_msg("%s", answer);
    }
    free(answer);
    expect_in_last_body("\"return_tokens_as_token_ids\":true", true);
    stop(&fixture);
}

/* vLLM gives no reasons: what it has let go is what was sent there, and is not cached any more. */
static void test_gap(void **state)
{
    (void)state;
    fixture_t fixture;
    char body[1024];
    int bytes = snprintf(body, sizeof body, "{\"prompt\":[1");
    for (int token = 2; token <= 68; token++) {
        bytes += snprintf(body + bytes, sizeof body - (size_t)bytes, ",%d", token);
    }
    snprintf(body + bytes, sizeof body - (size_t)bytes, "]}");
    start(&fixture, NULL);
    expect(&fixture, COMPLETION, body, 200, STORY, "x-kvist-hit-tokens: 34");
    expect(&fixture, "/metrics", NULL, 200, "kvist_gateway_gap_tokens_total{reason=\"untold\"} 0\n",
        "kvist_gateway_unseen_tokens_total{kind=\"new\"} 30\n");
    expect(&fixture, COMPLETION, body, 200, STORY, "x-kvist-hit-tokens: 34");
    expect(&fixture, "/metrics", NULL, 200,
        "kvist_gateway_gap_tokens_total{reason=\"untold\"} 30\n",
        "kvist_gateway_unseen_tokens_total{kind=\"new\"} 30\n");
    expect(&fixture, "/metrics", NULL, 200, "kvist_gateway_prompt_tokens_total 136\n",
        "kvist_gateway_unseen_tokens_total{kind=\"short\"} 8\n");
    stop(&fixture);
}

static void test_without_details(void **state)
{
    (void)state;
    fixture_t fixture;
    start(&fixture, NULL);
    atomic_store(&no_details, true);
    expect(&fixture, COMPLETION, PLAIN, 200, STORY, "x-kvist-hit-tokens: 0");
    stop(&fixture);
}

/* The gateway stops, and a client goes, while answers are under way: nothing is left behind. */
static void test_ends_in_the_middle(void **state)
{
    (void)state;
    fixture_t fixture;
    start(&fixture, NULL);
    atomic_store(&token_pause_ms, 50);
    for (int i = 0; i < 2; i++) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(fixture.port)};
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        char byte;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
        assert_true(send_text(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                                  "Content-Length: 35\r\n\r\n"
                                  "{\"prompt\":[5,6,7],\"stream\":true   }"));
        assert_int_equal(recv(fd, &byte, 1, 0), 1);
        close(fd);
    }
    stop(&fixture);
}

static void test_two_engines(void **state)
{
    (void)state;
    fixture_t fixture = {0};
    kv_error_t error;
    servers[0].port = servers[1].port = 9;
    load_options(&fixture, "--gateway.decode_nodes=127.0.0.1:1");
    assert_int_equal(kv_reactor_create(&fixture.reactor, &error), KV_OK);
    assert_int_equal(
        kv_gateway_open(fixture.reactor, &fixture.options, tokenizer, &fixture.gateway, &error),
        KV_INVALID);
    assert_non_null(strstr(error.text, "gateway.vllm_nodes: is given beside gateway.decode_nodes"));
    kv_reactor_destroy(fixture.reactor);
    kv_options_clear(&fixture.options);
}

static int open_tokenizer(void **state)
{
    (void)state;
    kv_error_t error;
    if (kv_tokenizer_open(kv_test_model(), &tokenizer, &error) != KV_OK ||
        kv_tokenizer_encode(tokenizer, STORY, strlen(STORY), (kv_tokenizer_mode_t){0}, &story,
            &story_count, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    return 0;
}

static int close_tokenizer(void **state)
{
    (void)state;
    free(story);
    kv_tokenizer_close(tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_what_servers_are_told),
        cmocka_unit_test(test_no_cached_contents),
        cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_goes_on),
        cmocka_unit_test(test_oddities),
        cmocka_unit_test(test_gives_up),
        cmocka_unit_test(test_silent_server),
        cmocka_unit_test(test_down_and_back),
        cmocka_unit_test(test_another_tokenizer),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_gap),
        cmocka_unit_test(test_without_details),
        cmocka_unit_test(test_ends_in_the_middle),
        cmocka_unit_test(test_two_engines),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
