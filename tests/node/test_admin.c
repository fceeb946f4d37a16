/* The reactor and the admin socket: a node on a thread of its own, asked from here. */
#include "testing/testing.h"

#include "base/clock.h"
#include "base/queue.h"
#include "node/admin.h"
#include "node/admin_client.h"
#include "node/notify.h"
#include "node/reactor.h"
#include "proto/frame.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
    kv_reactor_t *reactor;
    kv_admin_t *admin;
    kv_queue_t *queue; /* what the test asks the reactor thread to do */
    kv_watch_t *watch;
    kv_timer_t *timer;
    kv_admin_call_t *flush_call;
    pthread_t thread;
    char path[108];
    int stops, drains;
    bool ended;
} node_t;

static void on_status(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    (void)context;
    (void)request;
    Kvist__Admin__Status status = KVIST__ADMIN__STATUS__INIT;
    status.name = (char *)"node-under-test";
    status.pid = 42;
    kv_admin_reply_status(call, &status);
}

static void on_timer(void *context)
{
    node_t *node = context;
    kv_admin_reply_done(node->flush_call);
    node->flush_call = NULL;
}

/* Answered later, from a timer. */
static void on_flush(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    (void)request;
    node_t *node = context;
    node->flush_call = call;
    kv_timer_start(node->timer, 50, 0);
}

static const kv_admin_handlers_t HANDLERS = {.status = on_status, .flush = on_flush};

static void on_queue(void *context)
{
    node_t *node = context;
    int item;
    while (kv_queue_pop(node->queue, &item) == KV_OK) {
        kv_reactor_begin_stop(node->reactor);
    }
}

static void on_stop(void *context)
{
    node_t *node = context;
    node->stops++;
    kv_reactor_end(node->reactor);
}

static void on_drain(void *context)
{
    ((node_t *)context)->drains++;
}

static void *run(void *context)
{
    kv_reactor_run(((node_t *)context)->reactor);
    return NULL;
}

static int start_with(void **state, uint64_t drain_limit_ns)
{
    node_t *node = calloc(1, sizeof *node);
    kv_error_t error;
    snprintf(node->path, sizeof node->path, "%s/n/admin.sock", kv_test_folder());
    assert_int_equal(kv_reactor_create(&node->reactor, &error), KV_OK);
    node->queue = kv_queue_create(4, sizeof(int));
    node->watch = kv_reactor_attach(node->reactor, kv_queue_fd(node->queue), on_queue, node);
    node->timer = kv_timer_create(node->reactor, on_timer, node);
    kv_reactor_on_stop(node->reactor, on_stop, node);
    kv_reactor_on_drain(node->reactor, on_drain, node, drain_limit_ns);
    if (kv_admin_open(node->reactor, node->path, &HANDLERS, node, &node->admin, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    pthread_create(&node->thread, NULL, run, node);
    *state = node;
    return 0;
}

static int start(void **state)
{
    return start_with(state, (uint64_t)600 * KV_NS_PER_S);
}

static int start_impatient(void **state)
{
    return start_with(state, 50 * KV_NS_PER_MS);
}

static int stop(void **state)
{
    node_t *node = *state;
    int item = 0;
    if (!node->ended) {
        kv_queue_push(node->queue, &item);
        pthread_join(node->thread, NULL);
    }
    assert_int_equal(node->stops, 1);
    kv_admin_close(node->admin);
    kv_watch_detach(node->watch);
    kv_timer_destroy(node->timer);
    kv_reactor_destroy(node->reactor);
    kv_queue_destroy(node->queue);
    struct stat info;
    assert_int_not_equal(stat(node->path, &info), 0);
    free(node);
    return 0;
}

static kv_status_t ask(node_t *node, Kvist__Admin__Request__BodyCase what, uint64_t limit_ms,
    Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    static Kvist__Admin__StatusRequest status = KVIST__ADMIN__STATUS_REQUEST__INIT;
    static Kvist__Admin__FlushRequest flush = KVIST__ADMIN__FLUSH_REQUEST__INIT;
    static Kvist__Admin__ListRequest list = KVIST__ADMIN__LIST_REQUEST__INIT;
    static Kvist__Admin__MetricsRequest metrics = KVIST__ADMIN__METRICS_REQUEST__INIT;
    static Kvist__Admin__StopRequest stop_request = KVIST__ADMIN__STOP_REQUEST__INIT;
    static Kvist__Admin__DrainRequest drain_request = KVIST__ADMIN__DRAIN_REQUEST__INIT;
    Kvist__Admin__Request request = KVIST__ADMIN__REQUEST__INIT;
    request.body_case = what;
    switch (what) {
    case KVIST__ADMIN__REQUEST__BODY_STATUS:
        request.status = &status;
        break;
    case KVIST__ADMIN__REQUEST__BODY_FLUSH:
        request.flush = &flush;
        break;
    case KVIST__ADMIN__REQUEST__BODY_LIST:
        request.list = &list;
        break;
    case KVIST__ADMIN__REQUEST__BODY_STOP:
        request.stop = &stop_request;
        break;
    case KVIST__ADMIN__REQUEST__BODY_DRAIN:
        request.drain = &drain_request;
        break;
    default:
        request.metrics = &metrics;
    }
    return kv_admin_ask(node->path, &request, limit_ms, reply_out, error);
}

static void test_questions(void **state)
{
    node_t *node = *state;
    Kvist__Admin__Reply *reply;
    kv_error_t error = {0};
    assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_STATUS, 2000, &reply, &error), KV_OK);
    assert_string_equal(reply->status->name, "node-under-test");
    kvist__admin__reply__free_unpacked(reply, NULL);
    assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_FLUSH, 2000, &reply, &error), KV_OK);
    kvist__admin__reply__free_unpacked(reply, NULL);
    assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_METRICS, 2000, &reply, &error), KV_OK);
    assert_int_equal(reply->body_case, KVIST__ADMIN__REPLY__BODY_METRICS);
    kvist__admin__reply__free_unpacked(reply, NULL);
    assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_LIST, 2000, &reply, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "not served"));
    assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_STOP, 2000, &reply, &error), KV_OK);
    kvist__admin__reply__free_unpacked(reply, NULL);
}

static void on_told(void *context, const Kvist__Admin__Reply *reply)
{
    char *text = context;
    bool has_status = reply->body_case == KVIST__ADMIN__REPLY__BODY_STATUS;
    snprintf(text, 64, "%s", has_status ? reply->status->name : reply->error);
}

/* The handlers without the socket; those that were called here need no reactor. */
static void test_asked_from_elsewhere(void **state)
{
    node_t *node = *state;
    char text[64];
    Kvist__Admin__Request request = KVIST__ADMIN__REQUEST__INIT;
    Kvist__Admin__StatusRequest status = KVIST__ADMIN__STATUS_REQUEST__INIT;
    request.body_case = KVIST__ADMIN__REQUEST__BODY_STATUS;
    request.status = &status;
    kv_admin_answer(node->admin, &request, on_told, text);
    assert_string_equal(text, "node-under-test");
    request.body_case = KVIST__ADMIN__REQUEST__BODY_LIST;
    kv_admin_answer(node->admin, &request, on_told, text);
    assert_non_null(strstr(text, "not served"));
}

static void test_client_gone_before_the_answer(void **state)
{
    node_t *node = *state;
    Kvist__Admin__Reply *reply;
    kv_error_t error;
    assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_FLUSH, 5, &reply, &error), KV_PEER_LOST);
    usleep(100000);
    assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_STATUS, 2000, &reply, &error), KV_OK);
    kvist__admin__reply__free_unpacked(reply, NULL);
}

static int connect_to(node_t *node)
{
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, node->path);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    struct timeval limit = {.tv_sec = 2};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

/* A stream that is no stream of requests is answered with an error and closed. */
static void test_broken_frames(void **state)
{
    node_t *node = *state;
    static const struct {
        const char *bytes;
        size_t count;
    } STREAMS[] = {{"\xff\xff\xff\xff", 4}, {"\0\0\0\0", 4}, {"\2\0\0\0\xff\xff", 6},
        {"GET / HTTP/1.1\r\n\r\n", 18}};
    for (size_t i = 0; i < sizeof STREAMS / sizeof STREAMS[0]; i++) {
        int fd = connect_to(node);
        assert_int_equal(write(fd, STREAMS[i].bytes, STREAMS[i].count), STREAMS[i].count);
        char buffer[1024];
        assert_true(recv(fd, buffer, sizeof buffer, 0) > 4);
        assert_int_equal(recv(fd, buffer, sizeof buffer, 0), 0);
        close(fd);
    }
    /* A frame that is announced and never comes holds nobody up, nor do too many connections. */
    int fds[KV_ADMIN_CONNECTIONS_MAX + 8];
    for (size_t i = 0; i < KV_ADMIN_CONNECTIONS_MAX + 8; i++) {
        fds[i] = connect_to(node);
        (void)!send(fds[i], "\x10\0\0\0x", 5, MSG_NOSIGNAL);
    }
    for (size_t i = 0; i < KV_ADMIN_CONNECTIONS_MAX + 8; i++) {
        close(fds[i]);
    }
    usleep(50000);
    Kvist__Admin__Reply *reply;
    kv_error_t error;
    assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_STATUS, 2000, &reply, &error), KV_OK);
    kvist__admin__reply__free_unpacked(reply, NULL);
}

static void test_two_requests_in_one_write(void **state)
{
    node_t *node = *state;
    Kvist__Admin__StatusRequest status = KVIST__ADMIN__STATUS_REQUEST__INIT;
    Kvist__Admin__Request request = KVIST__ADMIN__REQUEST__INIT;
    request.body_case = KVIST__ADMIN__REQUEST__BODY_STATUS;
    request.status = &status;
    uint8_t *frame, both[64], answers[4096];
    size_t bytes, count = 0;
    kv_error_t error;
    assert_int_equal(kv_frame_pack(&request.base, &frame, &bytes, &error), KV_OK);
    memcpy(both, frame, bytes);
    memcpy(both + bytes, frame, bytes);
    free(frame);
    int fd = connect_to(node);
    assert_int_equal(write(fd, both, 2 * bytes), 2 * bytes);
    kv_frame_reader_t reader = {0};
    for (int found = 0; found < 2;) {
        ssize_t got = recv(fd, answers, sizeof answers, 0);
        assert_true(got > 0);
        kv_frame_reader_push(&reader, answers, (size_t)got);
        const uint8_t *message;
        while (kv_frame_reader_next(&reader, &message, &count, &error) == KV_OK) {
            found++;
        }
    }
    kv_frame_reader_clear(&reader);
    close(fd);
}

static void test_socket_file(void **state)
{
    node_t *node = *state;
    struct stat info;
    assert_int_equal(stat(node->path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    kv_reactor_t *other;
    kv_admin_t *admin;
    kv_error_t error;
    char expected[64], path[108];
    assert_int_equal(kv_reactor_create(&other, &error), KV_OK);
    assert_int_equal(kv_admin_open(other, node->path, &HANDLERS, NULL, &admin, &error), KV_BUSY);
    snprintf(expected, sizeof expected, "process %d", (int)getpid());
    assert_non_null(strstr(error.text, expected));

    /* Left by a dead process. */
    snprintf(path, sizeof path, "%s/n/stale.sock", kv_test_folder());
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    assert_int_equal(kv_admin_open(other, path, &HANDLERS, NULL, &admin, &error), KV_OK);
    kv_admin_close(admin);

    snprintf(path, sizeof path, "%s/n/file", kv_test_folder());
    fclose(fopen(path, "w"));
    assert_int_equal(kv_admin_open(other, path, &HANDLERS, NULL, &admin, &error), KV_INVALID);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(
        kv_admin_open(other, "/nowhere/at/all.sock", &HANDLERS, NULL, &admin, &error), KV_MISSING);

    /* A folder in which others could put a socket of theirs in its place. */
    snprintf(path, sizeof path, "%s/open", kv_test_folder());
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(chmod(path, 0777), 0);
    snprintf(path, sizeof path, "%s/open/a.sock", kv_test_folder());
    assert_int_equal(kv_admin_open(other, path, &HANDLERS, NULL, &admin, &error), KV_REFUSED);
    assert_non_null(strstr(error.text, "777"));
    snprintf(path, sizeof path, "%s/open", kv_test_folder());
    assert_int_equal(chmod(path, 01777), 0); /* as /tmp is */
    snprintf(path, sizeof path, "%s/open/a.sock", kv_test_folder());
    assert_int_equal(kv_admin_open(other, path, &HANDLERS, NULL, &admin, &error), KV_OK);
    kv_admin_close(admin);
    kv_reactor_destroy(other);

    Kvist__Admin__Reply *reply;
    snprintf(node->path, sizeof node->path, "%s/n/nobody.sock", kv_test_folder());
    assert_int_equal(
        ask(node, KVIST__ADMIN__REQUEST__BODY_STATUS, 100, &reply, &error), KV_MISSING);
}

/* The node has this and answers meanwhile; the loop that answers has the signals, too. */
static void expect_alive(node_t *node)
{
    Kvist__Admin__Reply *reply;
    kv_error_t error;
    assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_STATUS, 2000, &reply, &error), KV_OK);
    kvist__admin__reply__free_unpacked(reply, NULL);
}

/* A drain that nothing ends is a stop at its limit. */
static void test_signal_drains_then_stops(void **state)
{
    node_t *node = *state;
    expect_alive(node);
    kill(getpid(), SIGTERM);
    pthread_join(node->thread, NULL);
    assert_int_equal(node->drains, 1);
    assert_int_equal(node->stops, 1);
    node->ended = true;
}

static void test_drain_then_stop_on_the_socket(void **state)
{
    node_t *node = *state;
    Kvist__Admin__Reply *reply;
    kv_error_t error;
    for (int i = 0; i < 2; i++) { /* the second changes nothing */
        assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_DRAIN, 2000, &reply, &error), KV_OK);
        kvist__admin__reply__free_unpacked(reply, NULL);
    }
    expect_alive(node);
    assert_int_equal(ask(node, KVIST__ADMIN__REQUEST__BODY_STOP, 2000, &reply, &error), KV_OK);
    kvist__admin__reply__free_unpacked(reply, NULL);
    pthread_join(node->thread, NULL);
    assert_int_equal(node->drains, 1);
    node->ended = true;
}

/* What the service manager is told: a drain, or a stop, once. */
static void test_service_manager_is_told(void **state)
{
    node_t *node = *state;
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/notify.sock", kv_test_folder());
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    setenv("NOTIFY_SOCKET", address.sun_path, 1);
    kv_notify_ready();
    int item = 0;
    kv_queue_push(node->queue, &item);
    pthread_join(node->thread, NULL);
    node->ended = true;
    static const char *const TOLD[] = {"READY=1", "STOPPING=1"};
    char text[64];
    for (int i = 0; i < 2; i++) {
        ssize_t bytes = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
        assert_true(bytes > 0);
        text[bytes] = '\0';
        assert_string_equal(text, TOLD[i]);
    }
    assert_int_equal(recv(fd, text, sizeof text, MSG_DONTWAIT), -1);
    unlink(address.sun_path);
    close(fd);
    /* A name of the abstract space, and one that nobody serves. */
    fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    address.sun_path[0] = '\0';
    snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "kvist-notify-%d", (int)getpid());
    socklen_t bytes =
        (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(address.sun_path + 1));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, bytes), 0);
    char name[128];
    snprintf(name, sizeof name, "@%s", address.sun_path + 1);
    setenv("NOTIFY_SOCKET", name, 1);
    kv_notify_ready();
    assert_int_equal(recv(fd, text, sizeof text, MSG_DONTWAIT), strlen(TOLD[0]));
    close(fd);
    kv_notify_ready();
    unsetenv("NOTIFY_SOCKET");
}

/* Listens at the path as another user, until it is killed. */
static pid_t start_impostor(const char *path, uid_t user)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        bool good = setuid(user) == 0 &&
                    bind(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
                    chmod(path, 0666) == 0 && listen(fd, 4) == 0;
        if (write(ends[1], good ? "g" : "b", 1) == 1) {
            pause();
        }
        _exit(1);
    }
    char told = 0;
    assert_true(read(ends[0], &told, 1) == 1 && told == 'g');
    close(ends[0]);
    close(ends[1]);
    return pid;
}

static void test_impostor(void **state)
{
    (void)state;
    enum { IMPOSTOR = 65533, VICTIM = 65534 };
    if (geteuid() != 0) {
        print_message("skipped: only root can be two users\n");
        skip();
    }
    char folder[96], path[108];
    assert_int_equal(chmod(kv_test_folder(), 0711), 0);
    snprintf(folder, sizeof folder, "%s/shared", kv_test_folder());
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(chmod(folder, 01777), 0);
    snprintf(path, sizeof path, "%s/a.sock", folder);
    pid_t impostor = start_impostor(path, IMPOSTOR), victim = fork();
    if (victim == 0) {
        Kvist__Admin__StatusRequest status = KVIST__ADMIN__STATUS_REQUEST__INIT;
        Kvist__Admin__Request request = KVIST__ADMIN__REQUEST__INIT;
        request.body_case = KVIST__ADMIN__REQUEST__BODY_STATUS;
        request.status = &status;
        Kvist__Admin__Reply *reply;
        kv_error_t error;
        bool refused = setuid(VICTIM) == 0 &&
                       kv_admin_ask(path, &request, 200, &reply, &error) == KV_REFUSED &&
                       strstr(error.text, "65533") != NULL;
        _exit(refused ? 0 : 1);
    }
    int code;
    assert_int_equal(waitpid(victim, &code, 0), victim);
    kill(impostor, SIGKILL);
    waitpid(impostor, NULL, 0);
    assert_int_equal(code, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_questions, start, stop),
        cmocka_unit_test_setup_teardown(test_asked_from_elsewhere, start, stop),
        cmocka_unit_test_setup_teardown(test_client_gone_before_the_answer, start, stop),
        cmocka_unit_test_setup_teardown(test_broken_frames, start, stop),
        cmocka_unit_test_setup_teardown(test_two_requests_in_one_write, start, stop),
        cmocka_unit_test_setup_teardown(test_socket_file, start, stop),
        cmocka_unit_test(test_impostor),
        cmocka_unit_test_setup_teardown(test_signal_drains_then_stops, start_impatient, stop),
        cmocka_unit_test_setup_teardown(test_drain_then_stop_on_the_socket, start, stop),
        cmocka_unit_test_setup_teardown(test_service_manager_is_told, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
