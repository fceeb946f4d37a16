/* Worker threads: jobs that copy, hash or encode run here, so that the reactor handles descriptors
 * and never bytes.
 *
 * A job is borrowed from submission until its run() returns; run() hands the result back itself, as
 * a rule by pushing onto the owner's queue. Jobs start in the order of submission.
 * Without threads (a count of 0) a job runs inside submit: for tests that must be repeatable.
 * Errors: submit answers KV_BUSY at the bound. Destroy lets queued jobs finish, then joins. */
#ifndef KV_BASE_WORKER_H
#define KV_BASE_WORKER_H

#include "base/status.h"

#include <stddef.h>

typedef struct kv_workers kv_workers_t;
typedef struct {
    void (*run)(void *argument);
    void *argument;
} kv_job_t;

kv_workers_t *kv_workers_create(const char *name, size_t thread_count, size_t queue_capacity);
void kv_workers_destroy(kv_workers_t *workers);
kv_status_t kv_workers_submit(kv_workers_t *workers, kv_job_t job);

#endif
