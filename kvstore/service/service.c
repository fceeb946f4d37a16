/* The listening socket, polling, who is there. */
#include "kvstore/service/service_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/local_socket.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { EVENTS_AT_ONCE = 64, BACKLOG = 64, TIMER_MS = 250 };

static const kv_service_limits_t DEFAULTS = {
    .clients = 64,
    .leases = 4096,
    .requests = 1024,
    .staging_bytes = (uint64_t)256 << 20,
    .answer_bytes = (uint64_t)32 << 20,
    .still_ms = 1000,
    .silent_ms = 5000,
};

/* ---- descriptors ---- */

kv_status_t kv_service_watch(
    kv_service_t *service, int fd, uint32_t events, kv_service_watch_t *watch, kv_error_t *error)
{
    struct epoll_event event = {.events = events, .data.ptr = watch};
    if (fd < 0 || epoll_ctl(service->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        return kv_fail(error, KV_NO_SPACE, "no descriptors are left for the service");
    }
    return KV_OK;
}

void kv_service_set_timer(kv_service_t *service)
{
    if (!service->timer_set) {
        struct itimerspec timer = {.it_value.tv_nsec = (long)TIMER_MS * KV_NS_PER_MS};
        timerfd_settime(service->timer_fd, 0, &timer, NULL);
        service->timer_set = true;
    }
}

static void timer_fired(kv_service_t *service)
{
    uint64_t count, now_ns = kv_clock_now_ns();
    ssize_t ignored = read(service->timer_fd, &count, sizeof count);
    (void)ignored;
    service->timer_set = false;
    for (kv_service_conn_t *client = service->clients, *next; client != NULL; client = next) {
        next = client->next;
        kv_conn_check_time(client, now_ns);
    }
    for (uint32_t i = 0; i < service->domain_count; i++) {
        kv_offers_check_time(&service->domains[i]);
    }
}

static void accept_one(kv_service_t *service)
{
    int fd = accept4(service->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        kv_conn_accept(service, fd);
    }
}

static void handle(kv_service_t *service, const kv_service_watch_t *watch, uint32_t events)
{
    switch (watch->kind) {
    case KV_WATCH_LISTENER:
        accept_one(service);
        break;
    case KV_WATCH_TIMER:
        timer_fired(service);
        break;
    case KV_WATCH_STORE:
        kvist_store_poll(((kv_domain_t *)watch->owner)->store);
        break;
    case KV_WATCH_SOCKET:
        kv_conn_ready(watch->owner, events);
        break;
    case KV_WATCH_PROCESS:
        kv_conn_end(watch->owner, KV_OK, "its process has ended");
        break;
    }
}

static void reap(kv_service_t *service)
{
    for (kv_service_conn_t *client = service->ended, *next; client != NULL; client = next) {
        next = client->next;
        kv_conn_reap(client);
    }
}

void kv_service_poll(kv_service_t *service)
{
    struct epoll_event event;
    /* One at a time: what one event does may be the end of whom the next is about. */
    for (int i = 0; i < EVENTS_AT_ONCE && epoll_wait(service->epoll_fd, &event, 1, 0) == 1; i++) {
        handle(service, event.data.ptr, event.events);
    }
    reap(service);
}

int kv_service_fd(const kv_service_t *service)
{
    return service->epoll_fd;
}

/* ---- open and close ---- */

static void take_limits(kv_service_limits_t *limits, const kv_service_limits_t *given)
{
    *limits = (kv_service_limits_t){
        .clients = given->clients > 0 ? given->clients : DEFAULTS.clients,
        .leases = given->leases > 0 ? given->leases : DEFAULTS.leases,
        .requests = given->requests > 0 ? given->requests : DEFAULTS.requests,
        .staging_bytes = given->staging_bytes > 0 ? given->staging_bytes : DEFAULTS.staging_bytes,
        .answer_bytes = given->answer_bytes > 0 ? given->answer_bytes : DEFAULTS.answer_bytes,
        .still_ms = given->still_ms > 0 ? given->still_ms : DEFAULTS.still_ms,
        .silent_ms = given->silent_ms > 0 ? given->silent_ms : DEFAULTS.silent_ms,
    };
}

static kv_status_t open_domains(
    kv_service_t *service, const kv_service_params_t *params, kv_error_t *error)
{
    if (params->domain_count < 1 || params->domain_count > KV_SERVICE_DOMAINS_MAX) {
        return kv_fail(error, KV_INVALID, "domain_count is %u: it must be 1 to %d",
            params->domain_count, KV_SERVICE_DOMAINS_MAX);
    }
    service->domains = kv_allocate_array(params->domain_count, sizeof *service->domains);
    for (uint32_t i = 0; i < params->domain_count; i++) {
        kv_status_t status =
            kv_domain_init(service, &params->domains[i], i, &service->domains[i], error);
        service->domain_count++;
        if (status != KV_OK) {
            return status;
        }
    }
    return KV_OK;
}

/* Whoever may attach to any domain must reach the socket; who may is checked when they do. */
static mode_t mode_of(const kv_service_params_t *params)
{
    for (uint32_t i = 0; i < params->domain_count; i++) {
        if (params->domains[i].user_count > 0) {
            return 0666;
        }
    }
    return 0600;
}

static kv_status_t open_descriptors(
    kv_service_t *service, const kv_service_params_t *params, kv_error_t *error)
{
    service->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    service->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    service->timer_watch = (kv_service_watch_t){KV_WATCH_TIMER, service};
    service->listen_watch = (kv_service_watch_t){KV_WATCH_LISTENER, service};
    kv_status_t status =
        kv_service_watch(service, service->timer_fd, EPOLLIN, &service->timer_watch, error);
    if (status == KV_OK) {
        status = kv_local_listen(
            params->path, "store.socket", mode_of(params), BACKLOG, &service->listen_fd, error);
    }
    return status == KV_OK ? kv_service_watch(service, service->listen_fd, EPOLLIN,
                                 &service->listen_watch, error)
                           : status;
}

kv_status_t kv_service_open(
    const kv_service_params_t *params, kv_service_t **service_out, kv_error_t *error)
{
    if (params->path == NULL) {
        return kv_fail(error, KV_INVALID, "path must be given");
    }
    kv_service_t *service = kv_allocate(sizeof *service);
    *service = (kv_service_t){
        .path = kv_duplicate_string(params->path),
        .epoll_fd = -1,
        .listen_fd = -1,
        .timer_fd = -1,
        .opened = params->opened,
        .context = params->context,
    };
    take_limits(&service->limits, &params->limits);
    KV_CHECK(getrandom(service->instance, sizeof service->instance, 0) ==
             (ssize_t)sizeof service->instance);
    /* The socket first: it tells whether another process serves the same domains. */
    kv_status_t status = open_descriptors(service, params, error);
    if (status == KV_OK) {
        status = open_domains(service, params, error);
    }
    if (status != KV_OK) {
        kv_service_close(service);
        return status;
    }
    *service_out = service;
    return KV_OK;
}

void kv_service_close(kv_service_t *service)
{
    if (service == NULL) {
        return;
    }
    if (service->listen_fd >= 0) {
        unlink(service->path);
        close(service->listen_fd);
    }
    while (service->clients != NULL) {
        kv_conn_end(service->clients, KV_CANCELLED, "the store stops");
    }
    /* What is under way for clients ends while the stores close. */
    for (uint32_t i = 0; i < service->domain_count; i++) {
        kv_domain_close(&service->domains[i]);
    }
    reap(service);
    KV_CHECK(service->ended == NULL);
    free(service->domains);
    if (service->timer_fd >= 0) {
        close(service->timer_fd);
    }
    if (service->epoll_fd >= 0) {
        close(service->epoll_fd);
    }
    free(service->path);
    free(service);
}

/* ---- looking in ---- */

kvist_store_t *kv_service_store(const kv_service_t *service, uint32_t domain)
{
    return domain < service->domain_count ? service->domains[domain].store : NULL;
}

const kvist_layout_t *kv_service_layout(const kv_service_t *service, uint32_t domain)
{
    bool open = kv_service_store(service, domain) != NULL;
    return open ? &service->domains[domain].layout : NULL;
}

void kv_service_stats(const kv_service_t *service, kv_service_stats_t *stats_out)
{
    *stats_out = service->stats;
    for (const kv_service_conn_t *client = service->clients; client != NULL;
         client = client->next) {
        stats_out->leases += client->lease_count;
    }
}

void kv_service_visit(const kv_service_t *service,
    void (*visit)(void *context, const kv_service_client_t *client), void *context)
{
    for (const kv_service_conn_t *client = service->clients; client != NULL;
         client = client->next) {
        if (client->domain == NULL) {
            continue;
        }
        kv_service_client_t seen = {
            .domain = client->domain->number,
            .process = client->process,
            .user = client->user,
            .leases = client->lease_count,
            .requests = client->requests,
            .staging_bytes = client->staging_bytes,
        };
        __builtin_memcpy(seen.name, client->name, sizeof seen.name);
        visit(context, &seen);
    }
}
