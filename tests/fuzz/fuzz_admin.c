/* The admin socket as it is: kv_admin_open on a real Unix socket, one client a run that sends the
 * input and hangs up. First byte: how many bytes go between two turns of the loop. Every answer is
 * a whole frame with a kvist.admin.Reply, and no call stays without its end. */
#include "fuzz.h"

#include "base/log.h"
#include "node/admin.h"
#include "proto/frame.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

enum { KEPT_MAX = KV_ADMIN_CONNECTIONS_MAX, TURNS_MAX = 10000 };

static kv_reactor_t *reactor;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static kv_admin_call_t *kept[KEPT_MAX];
static int kept_count;

static void answer_at_once(
    void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    (void)context, (void)request;
    kv_admin_reply_done(call);
}

static void answer_key(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    (void)context;
    kv_admin_fail(call, KV_MISSING, request->show->key);
}

/* Answered when the client may be gone already. */
static void answer_later(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    (void)context, (void)request;
    FUZZ_CHECK(kept_count < KEPT_MAX);
    kept[kept_count++] = call;
}

static void on_stop(void *context)
{
    (void)context;
}

static void remove_socket(void)
{
    unlink(address.sun_path);
    *strrchr(address.sun_path, '/') = '\0';
    rmdir(address.sun_path);
}

static void open_server(void)
{
    static const kv_admin_handlers_t HANDLERS = {
        .status = answer_at_once,
        .list = answer_later,
        .flush = answer_later,
        .show = answer_key,
        .drop = answer_at_once,
    };
    kv_admin_t *admin;
    kv_error_t error;
    char folder[] = "/tmp/kvist-fuzz-XXXXXX";
    kv_log_setup("fuzz", KV_LOG_ERROR);
    FUZZ_CHECK(mkdtemp(folder) != NULL && kv_reactor_create(&reactor, &error) == KV_OK);
    kv_reactor_on_stop(reactor, on_stop, NULL);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/admin", folder);
    FUZZ_CHECK(kv_admin_open(reactor, address.sun_path, &HANDLERS, NULL, &admin, &error) == KV_OK);
    FUZZ_CHECK(atexit(remove_socket) == 0);
}

static void turn(void)
{
    uv_run(kv_reactor_loop(reactor), UV_RUN_NOWAIT);
}

/* Takes what the server said; false: it hung up. */
static bool take_replies(int fd, kv_frame_reader_t *reader)
{
    uint8_t buffer[4096];
    ssize_t got = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
        return false;
    }
    kv_frame_reader_push(reader, buffer, got > 0 ? (size_t)got : 0);
    const uint8_t *message;
    size_t bytes;
    kv_error_t error;
    kv_status_t status;
    while ((status = kv_frame_reader_next(reader, &message, &bytes, &error)) == KV_OK) {
        Kvist__Admin__Reply *reply = kvist__admin__reply__unpack(NULL, bytes, message);
        FUZZ_CHECK(reply != NULL);
        kvist__admin__reply__free_unpacked(reply, NULL);
    }
    FUZZ_CHECK(status == KV_MISSING);
    return true;
}

static void send_all(int fd, fuzz_input_t *input, size_t step, kv_frame_reader_t *reader)
{
    for (int turns = 0; input->count > 0 && turns < TURNS_MAX; turns++) {
        size_t count = step < input->count ? step : input->count;
        ssize_t sent = send(fd, input->bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            return;
        }
        input->bytes += sent > 0 ? sent : 0;
        input->count -= sent > 0 ? (size_t)sent : 0;
        turn();
        if (!take_replies(fd, reader)) {
            return;
        }
        if (sent < 0 && kept_count > 0) { /* it reads no more until it has answered */
            kv_admin_reply_done(kept[--kept_count]);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (reactor == NULL) {
        open_server();
    }
    fuzz_input_t input = {bytes, count};
    size_t step = 1 + (size_t)fuzz_u8(&input) * 64;
    kv_frame_reader_t reader = {0};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    FUZZ_CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    turn();
    send_all(fd, &input, step, &reader);
    shutdown(fd, SHUT_WR);
    int turns = 0;
    while (take_replies(fd, &reader)) {
        FUZZ_CHECK(++turns < TURNS_MAX);
        if (kept_count > 0) {
            kv_admin_reply_done(kept[--kept_count]);
        }
        turn();
    }
    close(fd);
    while (kept_count > 0) {
        kv_admin_reply_done(kept[--kept_count]);
    }
    turn();
    kv_frame_reader_clear(&reader);
    return 0;
}
