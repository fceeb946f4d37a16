#include "node/reactor.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/notify.h"

#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>
#include <uv.h>

enum { SIGNAL_COUNT = 2 };

struct kv_reactor {
    uv_loop_t loop;
    uv_signal_t signals[SIGNAL_COUNT];
    uv_timer_t drain_limit;
    uint64_t drain_limit_ns;
    uv_signal_t hangup;
    bool draining, stopping;
    void (*stop)(void *context);
    void (*drain)(void *context);
    void (*reload)(void *context);
    void *context, *drain_context, *reload_context;
};

struct kv_watch {
    uv_poll_t poll;
    void (*ready)(void *context);
    void *context;
};

struct kv_timer {
    uv_timer_t timer;
    void (*fire)(void *context);
    void *context;
};

static void on_signal(uv_signal_t *handle, int signal_number)
{
    kv_reactor_t *reactor = handle->data;
    if (reactor->draining || reactor->stopping) {
        kv_log_warn("node", "second signal %d: ends at once", signal_number);
        _exit(128 + signal_number);
    }
    kv_log_info("node", "signal %d", signal_number);
    kv_reactor_begin_drain(reactor);
}

static void on_hangup(uv_signal_t *handle, int signal_number)
{
    (void)signal_number;
    kv_reactor_t *reactor = handle->data;
    kv_log_info("node", "signal 1: reads its files again");
    reactor->reload(reactor->reload_context);
}

kv_status_t kv_reactor_create(kv_reactor_t **reactor_out, kv_error_t *error)
{
    /* A peer that goes away is an error of one write, not the end of the process. */
    signal(SIGPIPE, SIG_IGN);
    kv_reactor_t *reactor = kv_allocate(sizeof *reactor);
    int code = uv_loop_init(&reactor->loop);
    if (code != 0) {
        free(reactor);
        return kv_fail(error, KV_NO_SPACE, "event loop: %s", uv_strerror(code));
    }
    for (int i = 0; i < SIGNAL_COUNT; i++) {
        KV_CHECK(uv_signal_init(&reactor->loop, &reactor->signals[i]) == 0);
        reactor->signals[i].data = reactor;
    }
    KV_CHECK(uv_signal_init(&reactor->loop, &reactor->hangup) == 0);
    reactor->hangup.data = reactor;
    KV_CHECK(uv_timer_init(&reactor->loop, &reactor->drain_limit) == 0);
    reactor->drain_limit.data = reactor;
    *reactor_out = reactor;
    return KV_OK;
}

void kv_reactor_destroy(kv_reactor_t *reactor)
{
    if (reactor == NULL) {
        return;
    }
    for (int i = 0; i < SIGNAL_COUNT; i++) {
        uv_close((uv_handle_t *)&reactor->signals[i], NULL);
    }
    uv_close((uv_handle_t *)&reactor->hangup, NULL);
    uv_close((uv_handle_t *)&reactor->drain_limit, NULL);
    /* Handles in the middle of closing get their callbacks. A handle still open has an owner that
     * forgot it: its memory would be used after the loop is gone. */
    for (int i = 0; i < 1000 && uv_run(&reactor->loop, UV_RUN_NOWAIT) != 0; i++) {
    }
    KV_CHECK(uv_loop_close(&reactor->loop) == 0);
    free(reactor);
}

uv_loop_t *kv_reactor_loop(kv_reactor_t *reactor)
{
    return &reactor->loop;
}

void kv_reactor_run(kv_reactor_t *reactor)
{
    static const int SIGNALS[SIGNAL_COUNT] = {SIGTERM, SIGINT};
    for (int i = 0; i < SIGNAL_COUNT; i++) {
        KV_CHECK(uv_signal_start(&reactor->signals[i], on_signal, SIGNALS[i]) == 0);
        /* The loop lives by what the node attached, not by its signal handlers. */
        uv_unref((uv_handle_t *)&reactor->signals[i]);
    }
    if (reactor->reload != NULL) {
        KV_CHECK(uv_signal_start(&reactor->hangup, on_hangup, SIGHUP) == 0);
        uv_unref((uv_handle_t *)&reactor->hangup);
    }
    uv_run(&reactor->loop, UV_RUN_DEFAULT);
}

void kv_reactor_end(kv_reactor_t *reactor)
{
    uv_stop(&reactor->loop);
}

void kv_reactor_on_stop(kv_reactor_t *reactor, void (*stop)(void *context), void *context)
{
    reactor->stop = stop;
    reactor->context = context;
}

void kv_reactor_on_reload(kv_reactor_t *reactor, void (*reload)(void *context), void *context)
{
    reactor->reload = reload;
    reactor->reload_context = context;
}

void kv_reactor_begin_stop(kv_reactor_t *reactor)
{
    if (reactor->stopping) {
        return;
    }
    reactor->stopping = true;
    if (!reactor->draining) {
        kv_notify_stopping();
    }
    uv_timer_stop(&reactor->drain_limit);
    if (reactor->stop != NULL) {
        reactor->stop(reactor->context);
    } else {
        kv_reactor_end(reactor);
    }
}

void kv_reactor_on_drain(
    kv_reactor_t *reactor, void (*drain)(void *context), void *context, uint64_t limit_ns)
{
    reactor->drain = drain;
    reactor->drain_context = context;
    reactor->drain_limit_ns = limit_ns;
}

static void on_drain_limit(uv_timer_t *handle)
{
    kv_reactor_t *reactor = handle->data;
    kv_log_warn("node", "drained for %llu ms (node.drain_limit): what is left is given up",
        (unsigned long long)(reactor->drain_limit_ns / KV_NS_PER_MS));
    kv_reactor_begin_stop(reactor);
}

void kv_reactor_begin_drain(kv_reactor_t *reactor)
{
    if (reactor->draining || reactor->stopping) {
        return;
    }
    if (reactor->drain == NULL || reactor->drain_limit_ns == 0) {
        kv_reactor_begin_stop(reactor);
        return;
    }
    reactor->draining = true;
    kv_notify_stopping();
    uv_update_time(&reactor->loop);
    uint64_t limit_ms = (reactor->drain_limit_ns + KV_NS_PER_MS - 1) / KV_NS_PER_MS;
    KV_CHECK(uv_timer_start(&reactor->drain_limit, on_drain_limit, limit_ms, 0) == 0);
    reactor->drain(reactor->drain_context);
}

static void on_ready(uv_poll_t *handle, int status, int events)
{
    (void)status; /* an error on the descriptor is the reader's to find */
    (void)events;
    kv_watch_t *watch = handle->data;
    watch->ready(watch->context);
}

kv_watch_t *kv_reactor_attach(
    kv_reactor_t *reactor, int fd, void (*ready)(void *context), void *context)
{
    kv_watch_t *watch = kv_allocate(sizeof *watch);
    *watch = (kv_watch_t){.ready = ready, .context = context};
    KV_CHECK(uv_poll_init(&reactor->loop, &watch->poll, fd) == 0);
    watch->poll.data = watch;
    KV_CHECK(uv_poll_start(&watch->poll, UV_READABLE, on_ready) == 0);
    return watch;
}

static void free_handle_owner(uv_handle_t *handle)
{
    free(handle->data);
}

void kv_watch_detach(kv_watch_t *watch)
{
    if (watch != NULL) {
        uv_close((uv_handle_t *)&watch->poll, free_handle_owner);
    }
}

static void on_timer(uv_timer_t *handle)
{
    kv_timer_t *timer = handle->data;
    timer->fire(timer->context);
}

kv_timer_t *kv_timer_create(kv_reactor_t *reactor, void (*fire)(void *context), void *context)
{
    kv_timer_t *timer = kv_allocate(sizeof *timer);
    *timer = (kv_timer_t){.fire = fire, .context = context};
    KV_CHECK(uv_timer_init(&reactor->loop, &timer->timer) == 0);
    timer->timer.data = timer;
    return timer;
}

void kv_timer_start(kv_timer_t *timer, uint64_t delay_ms, uint64_t repeat_ms)
{
    uv_update_time(timer->timer.loop);
    KV_CHECK(uv_timer_start(&timer->timer, on_timer, delay_ms, repeat_ms) == 0);
}

void kv_timer_stop(kv_timer_t *timer)
{
    uv_timer_stop(&timer->timer);
}

void kv_timer_destroy(kv_timer_t *timer)
{
    if (timer != NULL) {
        uv_close((uv_handle_t *)&timer->timer, free_handle_owner);
    }
}
