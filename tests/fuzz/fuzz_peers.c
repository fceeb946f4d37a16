/* The control port as it is: kv_peers on a real TCP socket, one client a run. First byte:
 *
 *   bit 0       1: the client proves itself, then sends the input; 0: it sends it at once
 *   bits 1..7   how many bytes go between two turns of the loop
 *
 * Nobody comes up without the key, messages come only while a peer is up, and every up has its
 * down. */
#include "fuzz.h"

#include "base/log.h"
#include "proto/frame.h"
#include "transport/peers.h"
#include "transport/peers/handshake.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TURNS_MAX = 20000 };

static const char KEY[] = "a key that only this fuzzer has";
static const kv_identity_t CLIENT = {
    .name = "client",
    .role = KVIST__WIRE__ROLE__ROLE_DECODE,
    .version = KV_WIRE_VERSION,
    .version_min = KV_WIRE_VERSION_MIN,
    .cluster_key = KEY,
    .cluster_key_bytes = sizeof KEY,
};

static uv_loop_t loop;
static kv_peers_t *peers;
static kv_peer_t *up_peer;
static uint32_t up_count, down_count;
static bool has_key;

static void on_up(void *context, kv_peer_t *peer)
{
    (void)context;
    FUZZ_CHECK(has_key && up_peer == NULL && strcmp(kv_peer_name(peer), "client") == 0);
    up_peer = peer;
    up_count++;
}

static void on_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    (void)context, (void)status;
    FUZZ_CHECK(up_peer == peer && reason[0] != '\0');
    up_peer = NULL;
    down_count++;
}

static void on_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    (void)context;
    FUZZ_CHECK(peer == up_peer && message->body_case != KVIST__WIRE__ENVELOPE__BODY_HELLO);
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_CANCEL) {
        kv_peer_close(peer, KV_REFUSED, "asked for"); /* in the middle of what it sent */
    }
}

static void open_peers(void)
{
    kv_log_setup("fuzz", KV_LOG_ERROR);
    FUZZ_CHECK(uv_loop_init(&loop) == 0);
    kv_peers_params_t params = {
        .loop = &loop,
        .name = "server",
        .role = KVIST__WIRE__ROLE__ROLE_PREFILL,
        .listen_host = "127.0.0.1",
        .cluster_key = KEY,
        .cluster_key_bytes = sizeof KEY,
        .callbacks = {NULL, on_up, on_down, on_message},
    };
    kv_error_t error;
    FUZZ_CHECK(kv_peers_create(&params, &peers, &error) == KV_OK);
}

static int connect_client(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
        .sin_port = htons(kv_peers_port(peers)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger at_once = {1, 0}; /* else the ports of loopback are used up in a minute */
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    FUZZ_CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    FUZZ_CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
    int yes = 1;
    FUZZ_CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0);
    return fd;
}

/* false: the server hung up. */
static bool hear(int fd, kv_frame_reader_t *reader)
{
    uint8_t buffer[4096];
    ssize_t got = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    kv_frame_reader_push(reader, buffer, got > 0 ? (size_t)got : 0);
    return got > 0 || (got < 0 && errno == EAGAIN);
}

static void say(int fd, const uint8_t *message, size_t count)
{
    uint8_t frame[KV_FRAME_HEADER_BYTES + KV_HELLO_BYTES_MAX];
    kv_put_u32(frame, (uint32_t)count);
    memcpy(frame + KV_FRAME_HEADER_BYTES, message, count);
    count += KV_FRAME_HEADER_BYTES;
    FUZZ_CHECK(send(fd, frame, count, MSG_NOSIGNAL) == (ssize_t)count);
}

static void prove(int fd, kv_frame_reader_t *reader)
{
    static kv_handshake_t handshake;
    FUZZ_CHECK(kv_handshake_begin(&handshake, &CLIENT, true, NULL) == KV_OK);
    say(fd, handshake.own_hello, handshake.own_hello_bytes);
    for (int turns = 0; handshake.state != KV_HANDSHAKE_DONE; turns++) {
        const uint8_t *message;
        uint8_t reply[KV_HELLO_BYTES_MAX];
        size_t count, reply_bytes;
        kv_error_t error;
        uv_run(&loop, UV_RUN_NOWAIT);
        FUZZ_CHECK(turns < TURNS_MAX && hear(fd, reader));
        if (kv_frame_reader_next(reader, &message, &count, &error) == KV_OK) {
            FUZZ_CHECK(kv_handshake_receive(
                           &handshake, message, count, reply, &reply_bytes, &error) == KV_OK);
            if (reply_bytes > 0) {
                say(fd, reply, reply_bytes);
            }
        }
    }
    FUZZ_CHECK(up_peer != NULL);
}

static void send_all(int fd, fuzz_input_t *input, size_t step, kv_frame_reader_t *reader)
{
    while (input->count > 0) {
        size_t count = step < input->count ? step : input->count;
        ssize_t sent = send(fd, input->bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            return;
        }
        input->bytes += sent > 0 ? sent : 0;
        input->count -= sent > 0 ? (size_t)sent : 0;
        uv_run(&loop, UV_RUN_NOWAIT);
        if (!hear(fd, reader)) {
            return;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (peers == NULL) {
        open_peers();
    }
    fuzz_input_t input = {bytes, count};
    uint8_t choice = fuzz_u8(&input);
    has_key = choice & 1;
    kv_frame_reader_t reader = {0};
    int fd = connect_client();
    if (has_key) {
        prove(fd, &reader);
    }
    send_all(fd, &input, 1 + (size_t)(choice >> 1) * 16, &reader);
    for (int i = 0; i < 2; i++) { /* what is still on its way */
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    close(fd);
    for (int turns = 0; up_count != down_count; turns++) {
        uv_run(&loop, UV_RUN_NOWAIT);
        FUZZ_CHECK(turns < TURNS_MAX);
    }
    uv_run(&loop, UV_RUN_NOWAIT); /* the handle's end */
    kv_frame_reader_clear(&reader);
    return 0;
}
