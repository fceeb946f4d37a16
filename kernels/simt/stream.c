#include "kernels/simt/stream.h"

#include "base/check.h"
#include "base/memory.h"
#include "kernels/simt/block_internal.h"
#include "kernels/simt/calls.h"
#include "kernels/simt/memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct kv_simt_stream {
    struct kv_simt_stream *next; /* of all */
    pthread_t thread;
    kv_simt_operation_t *first, *last;
    uint64_t enqueued, done;
    uint64_t awaited;    /* who waits is told when done reaches it; UINT64_MAX: nobody waits */
    pthread_cond_t work; /* its thread waits for it */
    bool closing;
};

struct kv_simt_event {
    struct kv_simt_event *next; /* of all */
    uint64_t recorded, reached; /* numbers of its records: the last enqueued, the last passed */
    uint64_t time_ns;           /* of the last one passed */
    size_t marks;               /* operations that name it */
    bool destroyed;
    bool timed;
};

/* Everything here is guarded by the one lock, but for an operation while its stream runs it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER; /* for those that wait for events, ends */
static size_t event_waiters;
static struct kv_simt_stream *streams, *default_stream;
static struct kv_simt_event *events;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

kv_simt_operation_t *kv_simt_operation_create(kv_simt_operation_kind_t kind, size_t body_bytes)
{
    kv_simt_operation_t *operation = kv_allocate(sizeof *operation + body_bytes);
    operation->kind = kind;
    return operation;
}

static void check_pinned(const void *memory, size_t bytes)
{
    if (!kv_simt_memory_is_pinned(memory, bytes)) {
        kv_simt_find(KV_SIMT_MISUSE,
            "%zu bytes of host memory at %p were unregistered while a copy was under way", bytes,
            memory);
    }
}

static size_t span(size_t pitch, size_t width, size_t height)
{
    return height == 0 ? 0 : pitch * (height - 1) + width;
}

static void copy(const kv_simt_moved_t *moved)
{
    if (moved->host_to) {
        check_pinned(moved->to, span(moved->to_pitch, moved->width, moved->height));
    }
    if (moved->host_from) {
        check_pinned(moved->from, span(moved->from_pitch, moved->width, moved->height));
    }
    for (size_t row = 0; row < moved->height; row++) {
        memcpy((char *)moved->to + row * moved->to_pitch,
            (const char *)moved->from + row * moved->from_pitch, moved->width);
    }
}

/* One bit, somewhere amid what arrived. */
static void damage(const kv_simt_moved_t *moved)
{
    if (moved->width > 0 && moved->height > 0 && kv_simt_happens("damage")) {
        ((char *)moved->to)[moved->width / 2] ^= 4;
    }
}

static void delay(void)
{
    uint32_t delay_us = kv_simt_next_delay_us();
    if (delay_us > 0) {
        usleep(delay_us);
    }
}

/* Runs without the lock; 0 or what breaks the device. */
static int run(kv_simt_operation_t *operation)
{
    cudaError_t error = cudaSuccess;
    switch (operation->kind) {
    case KV_SIMT_RUN_LAUNCH:
        error = kv_simt_operation("run launch");
        operation->of.launch.body = operation->body;
        return error != cudaSuccess ? (int)error : kv_simt_grid_run(&operation->of.launch);
    case KV_SIMT_RUN_COPY:
        error = kv_simt_operation("run copy");
        if (error == cudaSuccess) {
            copy(&operation->of.copy);
            damage(&operation->of.copy);
        }
        break;
    case KV_SIMT_RUN_SET:
        error = kv_simt_operation("run set");
        if (error == cudaSuccess) {
            memset(operation->of.set.memory, operation->of.set.value, operation->of.set.bytes);
        }
        break;
    case KV_SIMT_RUN_WORK:
        error = kv_simt_operation("run work");
        return error != cudaSuccess ? (int)error : operation->of.work(operation->body);
    case KV_SIMT_RUN_HOST:
        operation->of.host.function(operation->of.host.argument);
        break;
    case KV_SIMT_RUN_RECORD:
    case KV_SIMT_RUN_WAIT:
        break;
    }
    return (int)error;
}

/* With the lock: the operation no longer names its event. */
static void unmark(struct kv_simt_event *event)
{
    event->marks--;
    if (event->destroyed && event->marks == 0) {
        free(event);
    }
}

/* With the lock, which it gives up while it waits. */
static void wait_for_event(void)
{
    event_waiters++;
    pthread_cond_wait(&changed, &lock);
    event_waiters--;
}

/* With the lock, which it gives up while it waits: until the stream has done so many operations, or
 * something else has changed. */
static void wait_for_stream(struct kv_simt_stream *stream, uint64_t count)
{
    stream->awaited = count < stream->awaited ? count : stream->awaited;
    pthread_cond_wait(&changed, &lock);
}

/* With the lock, which it gives up while it waits. */
static void mark(kv_simt_operation_t *operation)
{
    struct kv_simt_event *event = operation->of.mark.event;
    uint64_t number = operation->of.mark.number;
    if (operation->kind == KV_SIMT_RUN_RECORD) {
        event->reached = event->reached > number ? event->reached : number;
        event->time_ns = now_ns();
        if (event_waiters > 0) {
            pthread_cond_broadcast(&changed);
        }
    }
    while (event->reached < number) {
        wait_for_event();
    }
    unmark(event);
}

/* Events are passed on a broken device too: nobody waits for ever. */
static void do_operation(kv_simt_operation_t *operation)
{
    if (operation->kind == KV_SIMT_RUN_RECORD || operation->kind == KV_SIMT_RUN_WAIT) {
        mark(operation);
        return;
    }
    pthread_mutex_unlock(&lock);
    delay();
    int error = kv_simt_broken() == cudaSuccess ? run(operation) : 0;
    if (error != 0) {
        kv_simt_break((cudaError_t)error);
    }
    pthread_mutex_lock(&lock);
}

static void *serve(void *argument)
{
    struct kv_simt_stream *stream = argument;
    pthread_mutex_lock(&lock);
    while (!stream->closing || stream->first != NULL) {
        kv_simt_operation_t *operation = stream->first;
        if (operation == NULL) {
            pthread_cond_wait(&stream->work, &lock);
            continue;
        }
        do_operation(operation);
        stream->first = operation->next;
        stream->done++;
        free(operation);
        if (stream->done >= stream->awaited) {
            stream->awaited = UINT64_MAX;
            pthread_cond_broadcast(&changed);
        }
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* With the lock; NULL: no thread to be had. */
static struct kv_simt_stream *open_stream(void)
{
    struct kv_simt_stream *stream = kv_allocate(sizeof *stream);
    stream->awaited = UINT64_MAX;
    KV_CHECK(pthread_cond_init(&stream->work, NULL) == 0);
    if (pthread_create(&stream->thread, NULL, serve, stream) != 0) {
        pthread_cond_destroy(&stream->work);
        free(stream);
        return NULL;
    }
    stream->next = streams;
    streams = stream;
    return stream;
}

/* With the lock: the stream of a handle, or NULL for one that is none. */
static struct kv_simt_stream *find_stream(cudaStream_t handle)
{
    if (handle == NULL) {
        if (default_stream == NULL) {
            default_stream = open_stream();
        }
        return default_stream;
    }
    for (struct kv_simt_stream *stream = streams; stream != NULL; stream = stream->next) {
        if (stream == handle) {
            return stream;
        }
    }
    return NULL;
}

static struct kv_simt_event *find_event(cudaEvent_t handle)
{
    for (struct kv_simt_event *event = events; event != NULL; event = event->next) {
        if (event == handle) {
            return event;
        }
    }
    return NULL;
}

static void append(struct kv_simt_stream *stream, kv_simt_operation_t *operation)
{
    operation->next = NULL;
    if (stream->first == NULL) {
        stream->first = operation;
    } else {
        stream->last->next = operation;
    }
    stream->last = operation;
    stream->enqueued++;
    pthread_cond_signal(&stream->work);
}

cudaError_t kv_simt_stream_enqueue(cudaStream_t handle, kv_simt_operation_t *operation)
{
    pthread_mutex_lock(&lock);
    struct kv_simt_stream *stream = find_stream(handle);
    if (stream != NULL) {
        append(stream, operation);
    }
    pthread_mutex_unlock(&lock);
    if (stream == NULL) {
        free(operation);
        return kv_simt_answer(cudaErrorInvalidResourceHandle);
    }
    return cudaSuccess;
}

cudaError_t kv_simt_stream_finish(cudaStream_t handle)
{
    pthread_mutex_lock(&lock);
    struct kv_simt_stream *stream = find_stream(handle);
    uint64_t enqueued = stream == NULL ? 0 : stream->enqueued;
    while (stream != NULL && stream->done < enqueued) {
        wait_for_stream(stream, enqueued);
        stream = find_stream(handle); /* it may have been destroyed meanwhile */
    }
    pthread_mutex_unlock(&lock);
    return stream == NULL ? kv_simt_answer(cudaErrorInvalidResourceHandle) : cudaSuccess;
}

void kv_simt_streams_finish(void)
{
    pthread_mutex_lock(&lock);
    struct kv_simt_stream *stream = streams;
    while (stream != NULL) {
        if (stream->done < stream->enqueued) {
            wait_for_stream(stream, stream->enqueued);
            stream = streams; /* the list may have changed */
        } else {
            stream = stream->next;
        }
    }
    pthread_mutex_unlock(&lock);
}

/* With the lock, which it gives up while the thread ends. */
static void close_stream(struct kv_simt_stream *stream)
{
    struct kv_simt_stream **link = &streams;
    while (*link != stream) {
        link = &(*link)->next;
    }
    *link = stream->next;
    stream->closing = true;
    pthread_cond_signal(&stream->work);
    pthread_cond_broadcast(&changed); /* who waits for it finds it gone */
    pthread_mutex_unlock(&lock);
    pthread_join(stream->thread, NULL);
    pthread_cond_destroy(&stream->work);
    free(stream);
    pthread_mutex_lock(&lock);
}

/* With the lock. */
static void close_event(struct kv_simt_event *event)
{
    struct kv_simt_event **link = &events;
    while (*link != event) {
        link = &(*link)->next;
    }
    *link = event->next;
    event->destroyed = true;
    if (event->marks == 0) {
        free(event);
    }
}

void kv_simt_streams_reset(void)
{
    pthread_mutex_lock(&lock);
    while (streams != NULL) {
        close_stream(streams);
    }
    default_stream = NULL;
    while (events != NULL) {
        close_event(events);
    }
    pthread_mutex_unlock(&lock);
}

void kv_simt_streams_count(size_t *streams_out, size_t *events_out)
{
    size_t stream_count = 0, event_count = 0;
    pthread_mutex_lock(&lock);
    for (struct kv_simt_stream *stream = streams; stream != NULL; stream = stream->next) {
        stream_count += stream != default_stream;
    }
    for (struct kv_simt_event *event = events; event != NULL; event = event->next) {
        event_count++;
    }
    pthread_mutex_unlock(&lock);
    *streams_out = stream_count;
    *events_out = event_count;
}

/* CUDA's functions. */

static cudaError_t create_stream(cudaStream_t *stream_out)
{
    pthread_mutex_lock(&lock);
    struct kv_simt_stream *stream = open_stream();
    pthread_mutex_unlock(&lock);
    if (stream == NULL) {
        return kv_simt_answer(cudaErrorMemoryAllocation);
    }
    *stream_out = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream_out)
{
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused : create_stream(stream_out);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream_out, unsigned int flags)
{
    (void)flags;
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused : create_stream(stream_out);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream_out, unsigned int flags, int priority)
{
    (void)flags;
    (void)priority;
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused : create_stream(stream_out);
}

/* Whatever the call answers, what is given back is given back (runtime.c), here and below. */
cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    cudaError_t error = kv_simt_call(__func__);
    pthread_mutex_lock(&lock);
    struct kv_simt_stream *stream = handle == NULL ? NULL : find_stream(handle);
    if (stream != NULL) {
        close_stream(stream);
    }
    pthread_mutex_unlock(&lock);
    return stream == NULL ? kv_simt_answer(cudaErrorInvalidResourceHandle) : error;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    cudaError_t error = kv_simt_stream_finish(handle);
    return error != cudaSuccess ? error : kv_simt_answer(kv_simt_broken());
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    pthread_mutex_lock(&lock);
    struct kv_simt_stream *stream = find_stream(handle);
    bool idle = stream != NULL && stream->done == stream->enqueued;
    pthread_mutex_unlock(&lock);
    if (stream == NULL) {
        return kv_simt_answer(cudaErrorInvalidResourceHandle);
    }
    return idle ? kv_simt_answer(kv_simt_broken()) : cudaErrorNotReady;
}

/* With the lock: an operation that makes or waits for the event's record of that number. */
static void append_mark(struct kv_simt_stream *stream, struct kv_simt_event *event,
    kv_simt_operation_kind_t kind, uint64_t number)
{
    kv_simt_operation_t *operation = kv_simt_operation_create(kind, 0);
    operation->of.mark.event = event;
    operation->of.mark.number = number;
    event->marks++;
    append(stream, operation);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned int flags)
{
    (void)flags;
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    pthread_mutex_lock(&lock);
    struct kv_simt_stream *stream = find_stream(handle);
    struct kv_simt_event *event = find_event(event_handle);
    bool valid = stream != NULL && event != NULL;
    if (valid) {
        append_mark(stream, event, KV_SIMT_RUN_WAIT, event->recorded);
    }
    pthread_mutex_unlock(&lock);
    return valid ? cudaSuccess : kv_simt_answer(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventRecord(cudaEvent_t event_handle, cudaStream_t handle)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    pthread_mutex_lock(&lock);
    struct kv_simt_stream *stream = find_stream(handle);
    struct kv_simt_event *event = find_event(event_handle);
    bool valid = stream != NULL && event != NULL;
    if (valid) {
        append_mark(stream, event, KV_SIMT_RUN_RECORD, ++event->recorded);
    }
    pthread_mutex_unlock(&lock);
    return valid ? cudaSuccess : kv_simt_answer(cudaErrorInvalidResourceHandle);
}

static cudaError_t create_event(cudaEvent_t *event_out, bool timed)
{
    struct kv_simt_event *event = kv_allocate(sizeof *event);
    event->timed = timed;
    pthread_mutex_lock(&lock);
    event->next = events;
    events = event;
    pthread_mutex_unlock(&lock);
    *event_out = event;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event_out)
{
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused : create_event(event_out, true);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event_out, unsigned int flags)
{
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused
                                  : create_event(event_out, (flags & cudaEventDisableTiming) == 0);
}

cudaError_t cudaEventDestroy(cudaEvent_t handle)
{
    cudaError_t error = kv_simt_call(__func__);
    pthread_mutex_lock(&lock);
    struct kv_simt_event *event = find_event(handle);
    if (event != NULL) {
        close_event(event);
    }
    pthread_mutex_unlock(&lock);
    return event == NULL ? kv_simt_answer(cudaErrorInvalidResourceHandle) : error;
}

static cudaError_t event_state(cudaEvent_t handle, bool wait)
{
    pthread_mutex_lock(&lock);
    struct kv_simt_event *event = find_event(handle);
    uint64_t number = event == NULL ? 0 : event->recorded;
    while (wait && event != NULL && event->reached < number) {
        wait_for_event();
        event = find_event(handle);
    }
    bool passed = event != NULL && event->reached >= number;
    pthread_mutex_unlock(&lock);
    if (event == NULL) {
        return kv_simt_answer(cudaErrorInvalidResourceHandle);
    }
    return passed ? kv_simt_answer(kv_simt_broken()) : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle)
{
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused : event_state(handle, true);
}

cudaError_t cudaEventQuery(cudaEvent_t handle)
{
    cudaError_t refused = kv_simt_call(__func__);
    return refused != cudaSuccess ? refused : event_state(handle, false);
}

cudaError_t cudaEventElapsedTime(float *elapsed_ms_out, cudaEvent_t begin, cudaEvent_t end)
{
    cudaError_t refused = kv_simt_call(__func__);
    if (refused != cudaSuccess) {
        return refused;
    }
    cudaError_t error = cudaErrorInvalidResourceHandle;
    pthread_mutex_lock(&lock);
    const struct kv_simt_event *first = find_event(begin), *second = find_event(end);
    if (first != NULL && second != NULL && first->timed && second->timed && first->recorded > 0 &&
        second->recorded > 0) {
        bool passed = first->reached == first->recorded && second->reached == second->recorded;
        error = passed ? cudaSuccess : cudaErrorNotReady;
        *elapsed_ms_out = (float)((double)(int64_t)(second->time_ns - first->time_ns) * 1e-6);
    }
    pthread_mutex_unlock(&lock);
    return kv_simt_answer(error);
}
