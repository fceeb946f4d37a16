/* An etcd that a test holds in its hand: HTTP on the test's own loop, with the calls that Kvist
 * makes, one client's worth of keys, and a switch to answer any of them wrongly.
 *
 * Owns: its sockets, until fake_close and a turn of the loop.
 * Threads: the loop's. */
#ifndef KV_TESTS_FAKE_ETCD_H
#define KV_TESTS_FAKE_ETCD_H

#include "testing/testing.h"

#include <arpa/inet.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum { FAKE_GRANT, FAKE_KEEPALIVE, FAKE_PUT, FAKE_RANGE, FAKE_WATCH, FAKE_REVOKE, FAKE_CALLS };
enum { FAKE_KEYS_MAX = 8, FAKE_CONNECTIONS_MAX = 64 };

static const char *const FAKE_PATHS[FAKE_CALLS] = {"/v3/lease/grant", "/v3/lease/keepalive",
    "/v3/kv/put", "/v3/kv/range", "/v3/watch", "/v3/lease/revoke"};

typedef struct fake_etcd fake_etcd_t;

typedef struct {
    uv_tcp_t socket;
    fake_etcd_t *etcd;
    char text[65536]; /* the request so far */
    size_t bytes;
    bool watches, ends, closing; /* ends: with what is being written */
} fake_connection_t;

struct fake_etcd {
    uv_loop_t *loop;
    uv_tcp_t listener;
    uint16_t port;
    fake_connection_t *connections[FAKE_CONNECTIONS_MAX];
    int counts[FAKE_CALLS]; /* calls so far */
    const char
        *wrong[FAKE_CALLS]; /* answered instead, whole with its head; "": closed; NULL: well */
    char key[FAKE_KEYS_MAX][256], value[FAKE_KEYS_MAX][512]; /* base64 as it came; "": none */
    char watch_body[1024];
    long revision, lease;
    bool lease_is_dead;
};

static inline void fake_encode(const char *text, char *out)
{
    EVP_EncodeBlock((unsigned char *)out, (const unsigned char *)text, (int)strlen(text));
}

static inline void fake_freed(uv_handle_t *handle)
{
    free(handle->data);
}

static inline void fake_drop(fake_connection_t *connection)
{
    if (connection->closing) {
        return;
    }
    connection->closing = true;
    for (int i = 0; i < FAKE_CONNECTIONS_MAX; i++) {
        if (connection->etcd->connections[i] == connection) {
            connection->etcd->connections[i] = NULL;
        }
    }
    uv_close((uv_handle_t *)&connection->socket, fake_freed);
}

static inline void fake_written(uv_write_t *write, int result)
{
    fake_connection_t *connection = write->handle->data;
    if (result == 0 && connection->ends) {
        fake_drop(connection);
    }
    free(write->data);
    free(write);
}

static inline void fake_send(fake_connection_t *connection, const char *text)
{
    uv_write_t *write = calloc(1, sizeof *write);
    write->data = strdup(text);
    uv_buf_t buffer = uv_buf_init(write->data, (unsigned)strlen(text));
    uv_write(write, (uv_stream_t *)&connection->socket, &buffer, 1, fake_written);
}

static inline void fake_answer(fake_connection_t *connection, const char *body)
{
    char *text = malloc(strlen(body) + 256);
    sprintf(text,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
        strlen(body), body);
    fake_send(connection, text);
    free(text);
}

/* A line of the stream, to every watch. */
static inline void fake_stream(fake_etcd_t *etcd, const char *line)
{
    char chunk[4096];
    snprintf(chunk, sizeof chunk, "%zx\r\n%s\n\r\n", strlen(line) + 1, line);
    for (int i = 0; i < FAKE_CONNECTIONS_MAX; i++) {
        if (etcd->connections[i] != NULL && etcd->connections[i]->watches) {
            fake_send(etcd->connections[i], chunk);
        }
    }
}

static inline int fake_find(fake_etcd_t *etcd, const char *key)
{
    int at = 0;
    while (at < FAKE_KEYS_MAX && strcmp(etcd->key[at], key) != 0) {
        at++;
    }
    assert_true(at < FAKE_KEYS_MAX);
    return at;
}

/* Both in base64. value NULL: deleted. */
static inline void fake_change(fake_etcd_t *etcd, const char *key, const char *value)
{
    char line[2048];
    etcd->revision++;
    bool held = false;
    for (int i = 0; i < FAKE_KEYS_MAX; i++) {
        held = held || strcmp(etcd->key[i], key) == 0;
    }
    int at = fake_find(etcd, held ? key : "");
    snprintf(etcd->key[at], sizeof etcd->key[at], "%s", value != NULL ? key : "");
    snprintf(etcd->value[at], sizeof etcd->value[at], "%s", value != NULL ? value : "");
    snprintf(line, sizeof line,
        "{\"result\":{\"header\":{\"revision\":\"%ld\"},\"events\":[{%s\"kv\":{\"key\":\"%s\","
        "\"mod_revision\":\"%ld\"%s%s%s}}]}}",
        etcd->revision, value != NULL ? "" : "\"type\":\"DELETE\",", key, etcd->revision,
        value != NULL ? ",\"value\":\"" : "", value != NULL ? value : "",
        value != NULL ? "\"" : "");
    fake_stream(etcd, line);
}

/* As another client would. value NULL: deleted. */
static inline void fake_set(fake_etcd_t *etcd, const char *key, const char *value)
{
    char encoded_key[256], encoded_value[512];
    fake_encode(key, encoded_key);
    fake_encode(value != NULL ? value : "", encoded_value);
    fake_change(etcd, encoded_key, value != NULL ? encoded_value : NULL);
}

/* The text of a field in a request's body. */
static inline void fake_field(const char *body, const char *name, char *out, size_t bytes)
{
    char pattern[64];
    snprintf(pattern, sizeof pattern, "\"%s\":\"", name);
    const char *at = strstr(body, pattern);
    assert_non_null(at);
    at += strlen(pattern);
    snprintf(out, bytes, "%.*s", (int)strcspn(at, "\""), at);
}

static inline void fake_range(fake_connection_t *connection)
{
    fake_etcd_t *etcd = connection->etcd;
    char body[8192];
    int used =
        snprintf(body, sizeof body, "{\"header\":{\"revision\":\"%ld\"},\"kvs\":[", etcd->revision);
    const char *comma = "";
    for (int i = 0; i < FAKE_KEYS_MAX; i++) {
        if (etcd->key[i][0] != '\0') {
            used += snprintf(body + used, sizeof body - (size_t)used,
                "%s{\"key\":\"%s\",\"value\":\"%s\",\"mod_revision\":\"%ld\"}", comma, etcd->key[i],
                etcd->value[i], etcd->revision);
            comma = ",";
        }
    }
    snprintf(body + used, sizeof body - (size_t)used, "]}");
    fake_answer(connection, body);
}

static inline void fake_serve(fake_connection_t *connection, int call, const char *body)
{
    fake_etcd_t *etcd = connection->etcd;
    char answer[256], key[256], value[512];
    switch (call) {
    case FAKE_GRANT:
        etcd->lease_is_dead = false;
        snprintf(answer, sizeof answer, "{\"ID\":\"%ld\",\"TTL\":\"2\"}", ++etcd->lease);
        fake_answer(connection, answer);
        break;
    case FAKE_KEEPALIVE:
        snprintf(answer, sizeof answer, "{\"result\":{\"ID\":\"%ld\"%s}}\n", etcd->lease,
            etcd->lease_is_dead ? "" : ",\"TTL\":\"2\"");
        fake_answer(connection, answer);
        break;
    case FAKE_PUT:
        fake_field(body, "key", key, sizeof key);
        fake_field(body, "value", value, sizeof value);
        fake_answer(connection, "{\"header\":{}}");
        fake_change(etcd, key, value);
        break;
    case FAKE_RANGE:
        fake_range(connection);
        break;
    case FAKE_WATCH:
        connection->watches = true;
        snprintf(etcd->watch_body, sizeof etcd->watch_body, "%s", body);
        fake_send(connection, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        fake_stream(etcd, "{\"result\":{\"header\":{},\"created\":true}}");
        break;
    default:
        fake_answer(connection, "{}");
        break;
    }
}

static inline void fake_take(fake_connection_t *connection)
{
    char *end = strstr(connection->text, "\r\n\r\n");
    const char *length = strstr(connection->text, "Content-Length: ");
    if (end == NULL || length == NULL) {
        return;
    }
    size_t body_bytes = strtoul(length + 16, NULL, 10);
    size_t head_bytes = (size_t)(end + 4 - connection->text);
    if (connection->bytes < head_bytes + body_bytes) {
        return;
    }
    char path[64];
    assert_int_equal(sscanf(connection->text, "POST %63s HTTP/1.1", path), 1);
    connection->bytes = 0; /* no second request comes before the first was answered */
    int call = 0;
    while (call < FAKE_CALLS && strcmp(path, FAKE_PATHS[call]) != 0) {
        call++;
    }
    assert_true(call < FAKE_CALLS);
    fake_etcd_t *etcd = connection->etcd;
    etcd->counts[call]++;
    const char *wrong = etcd->wrong[call];
    if (wrong == NULL) {
        fake_serve(connection, call, end + 4);
    } else if (wrong[0] == '\0') {
        fake_drop(connection);
    } else {
        connection->ends = strstr(wrong, "Connection: close") != NULL;
        fake_send(connection, wrong);
    }
}

static inline void fake_allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer_out)
{
    (void)suggested;
    fake_connection_t *connection = handle->data;
    *buffer_out = uv_buf_init(connection->text + connection->bytes,
        (unsigned)(sizeof connection->text - 1 - connection->bytes));
}

static inline void fake_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
    (void)buffer;
    fake_connection_t *connection = stream->data;
    if (count < 0) {
        fake_drop(connection);
    } else if (count > 0) {
        connection->bytes += (size_t)count;
        connection->text[connection->bytes] = '\0';
        fake_take(connection);
    }
}

static inline void fake_connected(uv_stream_t *listener, int result)
{
    assert_int_equal(result, 0);
    fake_etcd_t *etcd = listener->data;
    fake_connection_t *connection = calloc(1, sizeof *connection);
    connection->etcd = etcd;
    uv_tcp_init(etcd->loop, &connection->socket);
    connection->socket.data = connection;
    assert_int_equal(uv_accept(listener, (uv_stream_t *)&connection->socket), 0);
    int at = 0;
    while (etcd->connections[at] != NULL) {
        assert_true(++at < FAKE_CONNECTIONS_MAX);
    }
    etcd->connections[at] = connection;
    uv_read_start((uv_stream_t *)&connection->socket, fake_allocate, fake_read);
}

/* Binds its port; fake_listen lets clients in. */
static inline void fake_open(fake_etcd_t *etcd, uv_loop_t *loop)
{
    *etcd = (fake_etcd_t){.loop = loop, .revision = 10, .lease = 100};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int bytes = sizeof address;
    uv_tcp_init(loop, &etcd->listener);
    etcd->listener.data = etcd;
    assert_int_equal(uv_tcp_bind(&etcd->listener, (struct sockaddr *)&address, 0), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&etcd->listener, 16, fake_connected), 0);
    uv_tcp_getsockname(&etcd->listener, (struct sockaddr *)&address, &bytes);
    etcd->port = ntohs(address.sin_port);
}

/* Every connection ends. */
static inline void fake_cut(fake_etcd_t *etcd)
{
    for (int i = 0; i < FAKE_CONNECTIONS_MAX; i++) {
        if (etcd->connections[i] != NULL) {
            fake_drop(etcd->connections[i]);
        }
    }
}

static inline void fake_close(fake_etcd_t *etcd)
{
    fake_cut(etcd);
    uv_close((uv_handle_t *)&etcd->listener, NULL);
}

#endif
