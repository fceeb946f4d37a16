/* A bounded queue of fixed-size elements between threads, with a descriptor to wait on.
 *
 * Owns: the ring and an eventfd. Elements are copied in and out.
 * Threads: any number of producers and consumers; the mutex guards the ring alone and is held for
 * one copy.
 * Errors: push answers KV_BUSY at the bound and never blocks; pop answers KV_MISSING when empty.
 * The descriptor is readable while the queue may hold something: a consumer in an event loop pops
 * until KV_MISSING (which clears it); a consumer with a thread of its own calls
 * kv_queue_pop_wait. */
#ifndef KV_BASE_QUEUE_H
#define KV_BASE_QUEUE_H

#include "base/status.h"

#include <stddef.h>

typedef struct kv_queue kv_queue_t;

kv_queue_t *kv_queue_create(size_t capacity, size_t element_bytes);
void kv_queue_destroy(kv_queue_t *queue);

kv_status_t kv_queue_push(kv_queue_t *queue, const void *element);
kv_status_t kv_queue_pop(kv_queue_t *queue, void *element_out);

/* Blocks until an element is there; KV_CANCELLED once the queue is closed and empty. */
kv_status_t kv_queue_pop_wait(kv_queue_t *queue, void *element_out);

/* No more pushes are accepted (KV_CANCELLED); waiting consumers drain what is left and return. */
void kv_queue_close(kv_queue_t *queue);

int kv_queue_fd(const kv_queue_t *queue);
size_t kv_queue_count(kv_queue_t *queue);

#endif
