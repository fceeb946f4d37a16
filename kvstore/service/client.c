/* One connection: who it is, messages in and out, its end.
 *
 *   accepted --attach--> attached --(socket or process ends, or it breaks a bound)--> ended
 *     --(nothing of it is under way any more)--> gone */
#include "kvstore/service/service_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

enum {
    ATTACH_LIMIT_MS = 2000,
    STRANGER_BYTES_MAX = 4096,  /* before it is attached */
    UNREAD_BYTES_MAX = 1 << 20, /* of answers: more is not asked for until it reads some */
    RECEIVES_AT_ONCE = 4,
    SMALL_MESSAGE_BYTES = 16 << 10,
};

/* ---- the list ---- */

static void link_to(kv_service_conn_t **list, kv_service_conn_t *client)
{
    client->previous = NULL;
    client->next = *list;
    if (*list != NULL) {
        (*list)->previous = client;
    }
    *list = client;
}

static void unlink_from(kv_service_conn_t **list, kv_service_conn_t *client)
{
    if (client->previous != NULL) {
        client->previous->next = client->next;
    } else {
        *list = client->next;
    }
    if (client->next != NULL) {
        client->next->previous = client->previous;
    }
}

/* ---- who it is ---- */

/* A descriptor that is readable when the process that connected has ended, whoever has its socket
 * by then; -1: there is none to be had, as for a process of another container. */
static int process_fd_of(int fd, pid_t process)
{
    int process_fd;
    socklen_t bytes = sizeof process_fd;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &process_fd, &bytes) == 0) {
        return process_fd;
    }
    return process > 0 ? (int)syscall(SYS_pidfd_open, process, 0) : -1;
}

void kv_conn_accept(kv_service_t *service, int fd)
{
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    kv_service_conn_t *client = kv_allocate(sizeof *client);
    *client = (kv_service_conn_t){
        .service = service,
        .events = EPOLLIN,
        .process_fd = -1,
        .since_ns = kv_clock_now_ns(),
    };
    kv_channel_init(&client->channel, fd, 1);
    client->watch = (kv_service_watch_t){KV_WATCH_SOCKET, client};
    client->process_watch = (kv_service_watch_t){KV_WATCH_PROCESS, client};
    link_to(&service->clients, client);
    service->stats.clients++;
    kv_error_t error;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0 ||
        kv_service_watch(service, fd, EPOLLIN, &client->watch, &error) != KV_OK) {
        kv_conn_end(client, KV_NO_SPACE, "no descriptors are left for the service");
        return;
    }
    client->process = peer.pid;
    client->user = peer.uid;
    if (service->stats.clients > service->limits.clients) {
        kv_conn_end(client, KV_BUSY, "%u clients are attached already", service->limits.clients);
        return;
    }
    client->process_fd = process_fd_of(fd, peer.pid);
    if (client->process_fd >= 0 && kv_service_watch(service, client->process_fd, EPOLLIN,
                                       &client->process_watch, &error) != KV_OK) {
        kv_conn_end(client, KV_NO_SPACE, "no descriptors are left for the service");
        return;
    }
    kv_service_set_timer(service);
}

/* ---- the end ---- */

static void say_end(kv_service_conn_t *client, kv_status_t status, char *text)
{
    Kvist__Store__Ended ended = KVIST__STORE__ENDED__INIT;
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    ended.code = status;
    ended.text = text;
    answer.body_case = KVIST__STORE__ANSWER__BODY_ENDED;
    answer.ended = &ended;
    if (kv_channel_queue(&client->channel, &answer.base, NULL, 0, NULL) == KV_OK) {
        kv_channel_send(&client->channel); /* as far as it goes */
    }
}

void kv_conn_end(kv_service_conn_t *client, kv_status_t status, const char *format, ...)
{
    kv_service_t *service = client->service;
    if (client->ended) {
        return;
    }
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    client->ended = true;
    if (status != KV_OK) {
        say_end(client, status, text);
    }
    if (status != KV_OK && status != KV_CANCELLED) {
        kv_log_warn("service", "client ended: %s name %s process %d user %u", text,
            client->domain != NULL ? client->name : "-", (int)client->process,
            (unsigned)client->user);
        if (client->domain != NULL) {
            service->stats.ended_clients++;
        } else {
            service->stats.refused_clients++;
        }
    } else {
        kv_log_debug("service", "client ended: %s process %d", text, (int)client->process);
    }
    /* A child of this process may have these open too: closing alone would not end the watch. */
    epoll_ctl(service->epoll_fd, EPOLL_CTL_DEL, client->channel.fd, NULL);
    if (client->process_fd >= 0) {
        epoll_ctl(service->epoll_fd, EPOLL_CTL_DEL, client->process_fd, NULL);
        close(client->process_fd);
    }
    /* The client learns of the end before anything that it leased can have another life. */
    shutdown(client->channel.fd, SHUT_RDWR);
    kv_channel_clear(&client->channel);
    kv_conn_release_all(client);
    unlink_from(&service->clients, client);
    service->stats.clients--;
    link_to(&service->ended, client);
}

bool kv_conn_reap(kv_service_conn_t *client)
{
    KV_CHECK(client->ended);
    if (client->requests > 0) {
        return false;
    }
    unlink_from(&client->service->ended, client);
    kv_conn_unmap(client);
    free(client->leases);
    free(client);
    return true;
}

void kv_conn_check_time(kv_service_conn_t *client, uint64_t now_ns)
{
    bool unread = client->channel.out_bytes > 0;
    if (client->domain != NULL && !unread) {
        return;
    }
    uint64_t limit_ms = unread ? client->service->limits.silent_ms : ATTACH_LIMIT_MS;
    if (now_ns - client->since_ns > limit_ms * KV_NS_PER_MS) {
        kv_conn_end(client, unread ? KV_PEER_LOST : KV_REFUSED,
            unread ? "it has read no answer for %ju ms" : "it has not attached within %ju ms",
            (uintmax_t)limit_ms);
        return;
    }
    kv_service_set_timer(client->service);
}

/* ---- messages out ---- */

/* What the socket is watched for, from how things are. */
static void set_events(kv_service_conn_t *client)
{
    const kv_service_t *service = client->service;
    bool takes_more =
        client->requests < service->limits.requests && client->channel.out_bytes < UNREAD_BYTES_MAX;
    uint32_t events = (takes_more ? (uint32_t)EPOLLIN : 0) |
                      (client->channel.out_bytes > 0 ? (uint32_t)EPOLLOUT : 0);
    if (events != client->events && !client->ended) {
        struct epoll_event event = {.events = events, .data.ptr = &client->watch};
        KV_CHECK(epoll_ctl(service->epoll_fd, EPOLL_CTL_MOD, client->channel.fd, &event) == 0);
        client->events = events;
    }
}

static void send_out(kv_service_conn_t *client)
{
    size_t before = client->channel.out_bytes;
    kv_status_t status = kv_channel_send(&client->channel);
    if (status == KV_PEER_LOST) {
        kv_conn_end(client, KV_OK, "its socket is closed");
        return;
    }
    if (client->domain != NULL && client->channel.out_bytes < before) {
        client->since_ns = kv_clock_now_ns();
    }
    if (status == KV_BUSY) {
        kv_service_set_timer(client->service);
    }
    set_events(client);
}

void kv_conn_answer_fds(kv_service_conn_t *client, const Kvist__Store__Answer *answer,
    const int *fds, uint32_t fd_count)
{
    kv_error_t error;
    if (client->ended) {
        return;
    }
    if (client->channel.out_bytes == 0) {
        client->since_ns = kv_clock_now_ns();
    }
    kv_status_t status = kv_channel_queue(&client->channel, &answer->base, fds, fd_count, &error);
    if (status != KV_OK) {
        kv_conn_end(client, status, "%s", error.text);
    } else if (client->channel.out_bytes > client->service->limits.answer_bytes) {
        kv_conn_end(client, KV_PEER_LOST, "it leaves %zu bytes of answers unread",
            client->channel.out_bytes);
    } else {
        send_out(client);
    }
}

void kv_conn_answer(kv_service_conn_t *client, const Kvist__Store__Answer *answer)
{
    kv_conn_answer_fds(client, answer, NULL, 0);
}

void kv_conn_done(
    kv_service_conn_t *client, uint64_t id, kv_status_t status, uint64_t count, const char *text)
{
    Kvist__Store__Done done = KVIST__STORE__DONE__INIT;
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    done.id = id;
    done.code = status;
    done.count = count;
    done.text = (char *)text;
    answer.body_case = KVIST__STORE__ANSWER__BODY_DONE;
    answer.done = &done;
    kv_conn_answer(client, &answer);
}

/* ---- calls ---- */

kv_service_call_t *kv_conn_begin_call(kv_service_conn_t *client, uint64_t id)
{
    kv_service_call_t *call = kv_allocate(sizeof *call);
    *call = (kv_service_call_t){client, id};
    client->requests++;
    return call;
}

kv_service_conn_t *kv_conn_end_call(kv_service_call_t *call, uint64_t *id_out)
{
    kv_service_conn_t *client = call->client;
    *id_out = call->id;
    free(call);
    client->requests--;
    if (client->ended) {
        return NULL;
    }
    set_events(client);
    return client;
}

/* ---- messages in ---- */

static void dispatch(kv_service_conn_t *client, const Kvist__Store__Request *request)
{
    if ((client->domain == NULL) != (request->body_case == KVIST__STORE__REQUEST__BODY_ATTACH)) {
        kv_conn_end(client, KV_INVALID, "request: attach comes first, and once");
        return;
    }
    switch (request->body_case) {
    case KVIST__STORE__REQUEST__BODY_ATTACH:
        kv_conn_attach(client, request->attach);
        break;
    case KVIST__STORE__REQUEST__BODY_MATCH:
        kv_conn_match(client, request->match);
        break;
    case KVIST__STORE__REQUEST__BODY_RELEASE:
        kv_conn_release(client, request->release);
        break;
    case KVIST__STORE__REQUEST__BODY_CANCEL_PUTS:
        kv_conn_cancel_puts(client, request->cancel_puts);
        break;
    case KVIST__STORE__REQUEST__BODY_LOAD:
        kv_conn_load(client, request->load);
        break;
    case KVIST__STORE__REQUEST__BODY_PUT:
        kv_conn_put(client, request->put);
        break;
    default:
        kv_conn_forward(client, request);
        break;
    }
}

/* Memory for one message: fields that nobody knows could cost many times their own bytes. */
static void *take_memory(void *left, size_t bytes)
{
    size_t *left_bytes = left;
    if (bytes > *left_bytes) {
        return NULL;
    }
    *left_bytes -= bytes;
    return malloc(bytes);
}

static void give_memory(void *left, void *memory)
{
    (void)left;
    free(memory);
}

static void take_message(kv_service_conn_t *client, const uint8_t *message, size_t bytes)
{
    size_t left_bytes = 2 * bytes + SMALL_MESSAGE_BYTES;
    ProtobufCAllocator allocator = {take_memory, give_memory, &left_bytes};
    Kvist__Store__Request *request = kvist__store__request__unpack(&allocator, bytes, message);
    if (request == NULL) {
        kv_conn_end(client, KV_INVALID, "request: not a frame of kvist.store.Request");
        return;
    }
    dispatch(client, request);
    kvist__store__request__free_unpacked(request, &allocator);
}

static void take_messages(kv_service_conn_t *client)
{
    const uint8_t *message;
    size_t bytes;
    kv_error_t error;
    while (!client->ended) {
        if (client->domain == NULL && client->channel.reader.count > STRANGER_BYTES_MAX) {
            kv_conn_end(
                client, KV_INVALID, "more than %d bytes before attach", (int)STRANGER_BYTES_MAX);
            return;
        }
        kv_status_t status = kv_channel_next(&client->channel, &message, &bytes, &error);
        if (status == KV_MISSING) {
            return;
        }
        if (status != KV_OK) {
            kv_conn_end(client, status, "%s", error.text);
            return;
        }
        take_message(client, message, bytes);
    }
}

void kv_conn_ready(kv_service_conn_t *client, uint32_t events)
{
    kv_error_t error;
    if ((events & EPOLLOUT) != 0) {
        send_out(client);
    }
    bool more = (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0;
    for (int i = 0; more && !client->ended && i < RECEIVES_AT_ONCE; i++) {
        kv_status_t status = kv_channel_receive(&client->channel, &error);
        if (status == KV_BUSY) {
            break;
        }
        if (status == KV_PEER_LOST) {
            kv_conn_end(client, KV_OK, "its socket is closed");
        } else if (status != KV_OK) {
            kv_conn_end(client, status, "%s", error.text);
        } else {
            take_messages(client);
        }
        more = (client->events & EPOLLIN) != 0;
    }
    set_events(client);
}
