#include "base/queue.h"

#include "base/check.h"
#include "base/memory.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct kv_queue {
    pthread_mutex_t mutex; /* guards everything below but the descriptor */
    pthread_cond_t filled;
    char *ring; /* capacity x element_bytes */
    size_t capacity, element_bytes;
    size_t head, count;
    bool closed, signalled; /* signalled: the descriptor is readable */
    int event_fd;
};

kv_queue_t *kv_queue_create(size_t capacity, size_t element_bytes)
{
    KV_CHECK(capacity > 0 && element_bytes > 0);
    kv_queue_t *queue = kv_allocate(sizeof *queue);
    pthread_mutex_init(&queue->mutex, NULL);
    pthread_cond_init(&queue->filled, NULL);
    queue->ring = kv_allocate_array(capacity, element_bytes);
    queue->capacity = capacity;
    queue->element_bytes = element_bytes;
    queue->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    KV_CHECK(queue->event_fd >= 0);
    return queue;
}

void kv_queue_destroy(kv_queue_t *queue)
{
    if (queue == NULL) {
        return;
    }
    close(queue->event_fd);
    pthread_cond_destroy(&queue->filled);
    pthread_mutex_destroy(&queue->mutex);
    free(queue->ring);
    free(queue);
}

/* With the mutex held. */
static void signal_fd(kv_queue_t *queue)
{
    uint64_t one = 1;
    if (queue->signalled) {
        return;
    }
    queue->signalled = true;
    while (write(queue->event_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

kv_status_t kv_queue_push(kv_queue_t *queue, const void *element)
{
    pthread_mutex_lock(&queue->mutex);
    if (queue->closed || queue->count == queue->capacity) {
        kv_status_t status = queue->closed ? KV_CANCELLED : KV_BUSY;
        pthread_mutex_unlock(&queue->mutex);
        return status;
    }
    size_t tail = (queue->head + queue->count) % queue->capacity;
    memcpy(queue->ring + tail * queue->element_bytes, element, queue->element_bytes);
    queue->count++;
    signal_fd(queue);
    pthread_cond_signal(&queue->filled);
    pthread_mutex_unlock(&queue->mutex);
    return KV_OK;
}

/* With the mutex held and an element present. */
static void take_first(kv_queue_t *queue, void *element_out)
{
    memcpy(element_out, queue->ring + queue->head * queue->element_bytes, queue->element_bytes);
    queue->head = (queue->head + 1) % queue->capacity;
    queue->count--;
}

/* With the mutex held and the ring empty: the next push signals again. */
static void clear_fd(kv_queue_t *queue)
{
    uint64_t value;
    if (queue->signalled) {
        ssize_t got = read(queue->event_fd, &value, sizeof value);
        (void)got;
        queue->signalled = false;
    }
}

kv_status_t kv_queue_pop(kv_queue_t *queue, void *element_out)
{
    pthread_mutex_lock(&queue->mutex);
    kv_status_t status = KV_OK;
    if (queue->count > 0) {
        take_first(queue, element_out);
    } else {
        clear_fd(queue);
        status = KV_MISSING;
    }
    pthread_mutex_unlock(&queue->mutex);
    return status;
}

kv_status_t kv_queue_pop_wait(kv_queue_t *queue, void *element_out)
{
    pthread_mutex_lock(&queue->mutex);
    while (queue->count == 0 && !queue->closed) {
        pthread_cond_wait(&queue->filled, &queue->mutex);
    }
    kv_status_t status = queue->count > 0 ? KV_OK : KV_CANCELLED;
    if (status == KV_OK) {
        take_first(queue, element_out);
    }
    pthread_mutex_unlock(&queue->mutex);
    return status;
}

void kv_queue_close(kv_queue_t *queue)
{
    pthread_mutex_lock(&queue->mutex);
    queue->closed = true;
    signal_fd(queue);
    pthread_cond_broadcast(&queue->filled);
    pthread_mutex_unlock(&queue->mutex);
}

int kv_queue_fd(const kv_queue_t *queue)
{
    return queue->event_fd;
}

size_t kv_queue_count(kv_queue_t *queue)
{
    pthread_mutex_lock(&queue->mutex);
    size_t count = queue->count;
    pthread_mutex_unlock(&queue->mutex);
    return count;
}
