/* The reactor: the one thread that owns a node's state, as a libuv loop.
 *
 * Owns: the loop, its signal handlers while it runs (SIGPIPE is ignored), watches and timers.
 * Borrows: attached descriptors, until their watch is detached.
 * Threads: one, the thread that runs it; other threads reach it through a kv_queue_t whose
 * descriptor is attached. Callbacks run only inside kv_reactor_run.
 * Errors: create fails with KV_NO_SPACE; attaching a descriptor that cannot be polled breaks an
 * invariant. */
#ifndef KV_NODE_REACTOR_H
#define KV_NODE_REACTOR_H

#include "base/status.h"

#include <stdint.h>

typedef struct kv_reactor kv_reactor_t;
typedef struct uv_loop_s uv_loop_t;

kv_status_t kv_reactor_create(kv_reactor_t **reactor_out, kv_error_t *error);

/* Closes what is left on the loop, then frees it. */
void kv_reactor_destroy(kv_reactor_t *reactor);

/* For modules that put their own handles on the loop (transport's peers). They close them before
 * destroy. */
uv_loop_t *kv_reactor_loop(kv_reactor_t *reactor);

/* Until kv_reactor_end. Signals are the reactor's from here on: before, they end the process. */
void kv_reactor_run(kv_reactor_t *reactor);
void kv_reactor_end(kv_reactor_t *reactor);

/* Orderly stop. The admin socket and kv_reactor_begin_stop call the callback once; the node ends
 * its requests and calls kv_reactor_end. Without a callback the loop just ends. */
void kv_reactor_on_stop(kv_reactor_t *reactor, void (*stop)(void *context), void *context);
void kv_reactor_begin_stop(kv_reactor_t *reactor);

/* SIGHUP calls back, each time: what stands in files is read again. Before kv_reactor_run; without
 * a callback the signal ends the process, as it does any other program. */
void kv_reactor_on_reload(kv_reactor_t *reactor, void (*reload)(void *context), void *context);

/* Drain: before the stop the node takes nothing new and finishes what it has. SIGTERM, SIGINT, the
 * admin socket and kv_reactor_begin_drain call the callback once, unless the stop has begun; the
 * node calls kv_reactor_begin_stop when it has nothing left, and after limit_ns the reactor does.
 * Without a callback, or with limit_ns 0, it is a stop. A second SIGTERM or SIGINT ends the process
 * at once: what is durable stays so. */
void kv_reactor_on_drain(
    kv_reactor_t *reactor, void (*drain)(void *context), void *context, uint64_t limit_ns);
void kv_reactor_begin_drain(kv_reactor_t *reactor);

/* Calls ready whenever the descriptor is readable (level-triggered: ready must drain it). */
typedef struct kv_watch kv_watch_t;
kv_watch_t *kv_reactor_attach(
    kv_reactor_t *reactor, int fd, void (*ready)(void *context), void *context);
void kv_watch_detach(kv_watch_t *watch);

/* A timer calls back once after delay_ms and then every repeat_ms (0: once only). Starting one that
 * runs sets it anew. */
typedef struct kv_timer kv_timer_t;
kv_timer_t *kv_timer_create(kv_reactor_t *reactor, void (*fire)(void *context), void *context);
void kv_timer_start(kv_timer_t *timer, uint64_t delay_ms, uint64_t repeat_ms);
void kv_timer_stop(kv_timer_t *timer);
void kv_timer_destroy(kv_timer_t *timer);

#endif
