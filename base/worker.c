#include "base/worker.h"

#include "base/check.h"
#include "base/memory.h"
#include "base/queue.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct kv_workers {
    kv_queue_t *queue;
    pthread_t *threads;
    size_t thread_count;
};

static void *work(void *argument)
{
    kv_workers_t *workers = argument;
    kv_job_t job;
    while (kv_queue_pop_wait(workers->queue, &job) == KV_OK) {
        job.run(job.argument);
    }
    return NULL;
}

kv_workers_t *kv_workers_create(const char *name, size_t thread_count, size_t queue_capacity)
{
    kv_workers_t *workers = kv_allocate(sizeof *workers);
    workers->queue = kv_queue_create(queue_capacity, sizeof(kv_job_t));
    workers->threads = kv_allocate_array(thread_count, sizeof *workers->threads);
    workers->thread_count = thread_count;
    for (size_t i = 0; i < thread_count; i++) {
        char thread_name[16];
        snprintf(thread_name, sizeof thread_name, "%.12s-%zu", name, i % 100);
        KV_CHECK(pthread_create(&workers->threads[i], NULL, work, workers) == 0);
        pthread_setname_np(workers->threads[i], thread_name);
    }
    return workers;
}

void kv_workers_destroy(kv_workers_t *workers)
{
    if (workers == NULL) {
        return;
    }
    kv_queue_close(workers->queue);
    for (size_t i = 0; i < workers->thread_count; i++) {
        pthread_join(workers->threads[i], NULL);
    }
    kv_queue_destroy(workers->queue);
    free(workers->threads);
    free(workers);
}

kv_status_t kv_workers_submit(kv_workers_t *workers, kv_job_t job)
{
    if (workers->thread_count == 0) {
        job.run(job.argument);
        return KV_OK;
    }
    return kv_queue_push(workers->queue, &job);
}
