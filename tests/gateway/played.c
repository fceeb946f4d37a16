#include "played.h"

#include "base/bytes.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the gateway on a thread ---- */

static kv_tokenizer_t *tokenizer;

void tell(const char *text)
{
    kv_error_t error;
    uint32_t *tokens;
    size_t count;
    kv_tokenizer_mode_t mode = {0};
    assert_int_equal(
        kv_tokenizer_encode(tokenizer, text, strlen(text), mode, &tokens, &count, &error), KV_OK);
    assert_true(count <= TOKENS_MAX);
    memcpy(story, tokens, count * sizeof *tokens);
    story_count = (uint32_t)count;
    free(tokens);
}

int open_model(void **state)
{
    (void)state;
    kv_error_t error;
    const char *path = kv_test_model();
    if (kv_tokenizer_open(path, &tokenizer, &error) != KV_OK) {
        return -1;
    }
    tell(STORY);
    return 0;
}

int close_model(void **state)
{
    (void)state;
    kv_tokenizer_close(tokenizer);
    return 0;
}

static void on_stopped(void *context)
{
    kv_reactor_end(((fixture_t *)context)->reactor);
}

static void on_stop(void *context)
{
    fixture_t *fixture = context;
    int item;
    while (kv_queue_pop(fixture->stop_queue, &item) == KV_OK) {
        if (item == DRAIN) {
            kv_gateway_begin_drain(fixture->gateway);
        } else {
            kv_gateway_begin_stop(fixture->gateway, on_stopped, fixture);
        }
    }
}

static void *run(void *context)
{
    kv_reactor_run(((fixture_t *)context)->reactor);
    return NULL;
}

void play(int node, play_t how)
{
    atomic_store(&nodes[node].play, how);
}

void start_with(fixture_t *fixture, int node_count, const char *const *more)
{
    static const kv_options_program_t PROGRAM = {"kvist-gateway", "gateway", "",
        KV_SECTION_CLUSTER | KV_SECTION_NODE | KV_SECTION_MODEL | KV_SECTION_GATEWAY};
    char admin[256];
    kv_error_t error;
    kv_options_action_t action;
    snprintf(admin, sizeof admin, "--node.admin=%s/gateway.sock", kv_test_folder());
    char *arguments[20] = {(char *)"kvist-gateway", admin, (char *)"--cluster.key=0123456789abcdef",
        (char *)"--gateway.http_port=0", (char *)"--gateway.decode_nodes=127.0.0.1:1,127.0.0.1:2",
        (char *)"--gateway.model_name=tiny", (char *)"--gateway.body_bytes_max=1MiB",
        (char *)"--gateway.node_wait=300ms", (char *)"--gateway.queue_wait=300ms",
        (char *)"--node.log_level=error"};
    int count = 10;
    for (; more != NULL && *more != NULL; more++) {
        arguments[count++] = (char *)*more;
    }
    if (kv_options_load(&PROGRAM, count, arguments, &fixture->options, &action, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    for (int i = 0; i < NODES; i++) {
        nodes[i].wanted = true;
        atomic_store(&wanted_up[i], i < node_count);
        play(i, PLAY_ANSWER);
        atomic_store(&nodes[i].draining, false);
        atomic_store(&nodes[i].version, 3);
    }
    atomic_store(&generates, 0);
    atomic_store(&cancels, 0);
    atomic_store(&tokens_said, 0);
    atomic_store(&slow_goes_on, false);
    assert_int_equal(kv_reactor_create(&fixture->reactor, &error), KV_OK);
    fixture->stop_queue = kv_queue_create(2, sizeof(int));
    fixture->watch =
        kv_reactor_attach(fixture->reactor, kv_queue_fd(fixture->stop_queue), on_stop, fixture);
    if (kv_gateway_open(
            fixture->reactor, &fixture->options, tokenizer, &fixture->gateway, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    fixture->port = kv_gateway_http_port(fixture->gateway);
    pthread_create(&fixture->thread, NULL, run, fixture);
    wait_for_nodes(fixture, node_count);
}

void ask_to(fixture_t *fixture, int what)
{
    kv_queue_push(fixture->stop_queue, &what);
}

void finish(fixture_t *fixture)
{
    pthread_join(fixture->thread, NULL);
    kv_gateway_close(fixture->gateway);
    kv_watch_detach(fixture->watch);
    kv_reactor_destroy(fixture->reactor);
    kv_queue_destroy(fixture->stop_queue);
    kv_options_clear(&fixture->options);
}

void stop(fixture_t *fixture)
{
    ask_to(fixture, STOP);
    finish(fixture);
}

/* ---- a client ---- */

int connect_client(const fixture_t *fixture)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(fixture->port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    struct timeval limit = {.tv_sec = 120};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

void send_request(int fd, const char *method, const char *path, const char *body, size_t bytes)
{
    char head[256];
    int count = snprintf(head, sizeof head,
        "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n", method,
        path, bytes);
    assert_int_equal(send(fd, head, (size_t)count, MSG_NOSIGNAL), count);
    for (size_t sent = 0; sent < bytes;) {
        ssize_t some = send(fd, body + sent, bytes - sent, MSG_NOSIGNAL);
        if (some <= 0) {
            return;
        }
        sent += (size_t)some;
    }
}

char *receive_all(int fd, unsigned *code_out)
{
    size_t capacity = 1 << 16, count = 0;
    char *answer = malloc(capacity);
    ssize_t some;
    while ((some = recv(fd, answer + count, capacity - count - 1, 0)) > 0) {
        count += (size_t)some;
        if (count + 1 == capacity) {
            answer = realloc(answer, capacity *= 2);
        }
    }
    answer[count] = '\0';
    *code_out = count > 12 ? (unsigned)atoi(answer + 9) : 0;
    return answer;
}

char *ask(const fixture_t *fixture, const char *method, const char *path, const char *body,
    unsigned *code_out)
{
    int fd = connect_client(fixture);
    send_request(fd, method, path, body, body != NULL ? strlen(body) : 0);
    char *answer = receive_all(fd, code_out);
    close(fd);
    return answer;
}

void expect(const fixture_t *fixture, const char *path, const char *body, unsigned code,
    const char *first, const char *second)
{
    unsigned got;
    char *answer = ask(fixture, body != NULL ? "POST" : "GET", path, body, &got);
    if (got != code || strstr(answer, first) == NULL ||
        (second != NULL && strstr(answer, second) == NULL)) {
        fail_msg("%s %s\n gave %s", path, body != NULL ? body : "", answer);
    }
    free(answer);
}

char *ask_with(const fixture_t *fixture, const char *path, const char *headers, const char *body,
    unsigned *code_out)
{
    char head[1024];
    int fd = connect_client(fixture);
    int count = snprintf(head, sizeof head,
        "%s %s HTTP/1.1\r\nHost: x\r\n%sConnection: close\r\nContent-Length: %zu\r\n\r\n",
        body != NULL ? "POST" : "GET", path, headers, body != NULL ? strlen(body) : 0);
    assert_int_equal(send(fd, head, (size_t)count, MSG_NOSIGNAL), count);
    if (body != NULL) {
        assert_int_equal(send(fd, body, strlen(body), MSG_NOSIGNAL), strlen(body));
    }
    char *answer = receive_all(fd, code_out);
    close(fd);
    return answer;
}

void expect_with(const fixture_t *fixture, const char *path, const char *headers, const char *body,
    unsigned code, const char *text)
{
    unsigned got;
    char *answer = ask_with(fixture, path, headers, body, &got);
    if (got != code || strstr(answer, text) == NULL) {
        fail_msg("%s with %s\n gave %s\n not %u and %s", path, headers, answer, code, text);
    }
    free(answer);
}

size_t count_of(const char *answer, const char *text)
{
    size_t count = 0;
    for (const char *at = answer; (at = strstr(at, text)) != NULL; at++) {
        count++;
    }
    return count;
}

/* ---- tenants ---- */

char tenants_option[400];
static const char *tenants_path = tenants_option + sizeof "--gateway.tenants_file=" - 1;

/* Salts that are texts: "alphaalpha...", "betabeta...". */
#define SALT_ALPHA "616c706861616c706861616c706861616c706861616c706861616c706861616c"
#define SALT_BETA "6265746162657461626574616265746162657461626574616265746162657461"

static void hash_key(const char *key, char text_out[65])
{
    uint8_t hash[32];
    assert_int_equal(EVP_Digest(key, strlen(key), hash, NULL, EVP_sha256(), NULL), 1);
    kv_hex_encode(hash, sizeof hash, text_out);
}

void write_tenants(const char *fields)
{
    char alpha[65], beta[65];
    hash_key("key-alpha", alpha);
    hash_key("key-beta", beta);
    snprintf(tenants_option, sizeof tenants_option, "--gateway.tenants_file=%s/tenants.yaml",
        kv_test_folder());
    FILE *file = fopen(tenants_path, "w");
    assert_non_null(file);
    fprintf(file,
        "tenants:\n  - name: alpha\n    salt: %s\n    key_sha256: [%s]\n%s"
        "  - name: beta\n    salt: %s\n    key_sha256: [%s]\n",
        SALT_ALPHA, alpha, fields, SALT_BETA, beta);
    fclose(file);
    assert_int_equal(chmod(tenants_path, 0600), 0);
}

/* ---- what is waited for ---- */

/* Long enough for a machine that has other things to do. */
enum { WAITS_MAX = 12000, WAIT_US = 5000 };

/* Until what is said there has the text. */
static void wait_for_text(const fixture_t *fixture, const char *path, const char *text)
{
    for (int i = 0; i < WAITS_MAX; i++) {
        unsigned code;
        char *answer = ask(fixture, "GET", path, NULL, &code);
        bool there = strstr(answer, text) != NULL;
        free(answer);
        if (there) {
            return;
        }
        usleep(WAIT_US);
    }
    fail_msg("never %s", text);
}

void wait_for_health(const fixture_t *fixture, const char *expected)
{
    wait_for_text(fixture, "/healthz", expected);
}

void wait_for_nodes(const fixture_t *fixture, int count)
{
    char expected[32];
    snprintf(expected, sizeof expected, "\"decode_nodes\":%d", count);
    wait_for_health(fixture, expected);
}

void wait_for_line(const fixture_t *fixture, const char *line)
{
    wait_for_text(fixture, "/metrics", line);
}

static void wait_for_count(atomic_int *value, int count)
{
    for (int i = 0; i < WAITS_MAX && atomic_load(value) < count; i++) {
        usleep(WAIT_US);
    }
}

void wait_for_generates(int count)
{
    wait_for_count(&generates, count);
    assert_int_equal(atomic_load(&generates), count);
}

void wait_for_cancel(int count)
{
    wait_for_count(&cancels, count);
    assert_int_equal(atomic_load(&cancels), count);
}

void wait_for_tokens(int count)
{
    wait_for_count(&tokens_said, count);
    assert_true(atomic_load(&tokens_said) >= count);
}
