#include "tools/kvist/running.h"

#include "base/clock.h"
#include "base/memory.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum {
    LIMIT_MS = 600000,
    TOKENS_BEFORE = 48, /* until it counts as running: caches, batch and clocks are warm */
    START_LIMIT_S = 60,
};

struct kv_running {
    const char *endpoint, *model;
    pthread_t thread;
    bool joined;
    atomic_uint token_count;
    atomic_bool enough, ended;
    kv_answer_t answer; /* the thread's until it is joined */
    kv_status_t status;
    kv_error_t error;
};

static bool count_token(void *context, const char *text)
{
    (void)text;
    kv_running_t *running = context;
    atomic_fetch_add(&running->token_count, 1);
    return !atomic_load(&running->enough);
}

static void *run(void *argument)
{
    kv_running_t *running = argument;
    json_t *request =
        json_pack("{s:s, s:s, s:i, s:i, s:b, s:{s:s}}", "model", running->model, "prompt",
            "The numbers in order: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18,",
            "max_tokens", KV_RUNNING_TOKENS_MAX, "temperature", 0, "ignore_eos", 1, "kvist",
            "cache_mode", "bypass");
    const kv_endpoint_t endpoint = {.url = running->endpoint};
    running->status = kv_complete(&endpoint, "/v1/completions", request, LIMIT_MS, count_token,
        running, &running->answer, &running->error);
    json_decref(request);
    atomic_store(&running->ended, true);
    return NULL;
}

kv_status_t kv_running_start(
    const char *endpoint, const char *model, kv_running_t **running_out, kv_error_t *error)
{
    kv_running_t *running = kv_allocate(sizeof *running);
    running->endpoint = endpoint;
    running->model = model;
    if (pthread_create(&running->thread, NULL, run, running) != 0) {
        free(running);
        return kv_fail(error, KV_NO_SPACE, "no thread can be started");
    }
    *running_out = running;
    return KV_OK;
}

kv_status_t kv_running_await_pace(kv_running_t *running, kv_error_t *error)
{
    uint64_t deadline_ns = kv_clock_now_ns() + (uint64_t)START_LIMIT_S * KV_NS_PER_S;
    while (atomic_load(&running->token_count) < TOKENS_BEFORE) {
        if (atomic_load(&running->ended)) {
            kv_status_t status = kv_running_end(running, error);
            return status != KV_OK ? status
                                   : kv_fail(error, KV_FATAL, "a running decode ended at once");
        }
        if (kv_clock_now_ns() > deadline_ns) {
            return kv_fail(error, KV_FATAL,
                "a running decode did not get its pace (%u tokens in %d s); the machine is too "
                "busy to measure",
                atomic_load(&running->token_count), START_LIMIT_S);
        }
        nanosleep(&(struct timespec){.tv_nsec = 5 * KV_NS_PER_MS}, NULL);
    }
    return KV_OK;
}

kv_status_t kv_running_end(kv_running_t *running, kv_error_t *error)
{
    bool early = atomic_load(&running->ended);
    atomic_store(&running->enough, true);
    if (!running->joined) {
        pthread_join(running->thread, NULL);
        running->joined = true;
    }
    if (early && running->status != KV_OK) {
        return kv_fail(error, running->status, "a running decode: %s", running->error.text);
    }
    if (early) {
        return kv_fail(error, KV_FATAL,
            "a running decode came to its end (%zu tokens) before the measurement did",
            running->answer.arrival_count);
    }
    return KV_OK;
}

const kv_answer_t *kv_running_answer(const kv_running_t *running)
{
    return &running->answer;
}

void kv_running_free(kv_running_t *running)
{
    if (running != NULL) {
        kv_running_end(running, NULL);
        kv_answer_clear(&running->answer);
        free(running);
    }
}

/* ---- gaps ---- */

void kv_gaps_add(kv_gaps_t *gaps, const kv_answer_t *answer, uint64_t from_ns, uint64_t to_ns)
{
    if (answer->arrival_count == 0) {
        return;
    }
    gaps->ns = kv_reallocate(gaps->ns, gaps->count + answer->arrival_count, sizeof *gaps->ns);
    for (size_t i = 1; i < answer->arrival_count; i++) {
        if (answer->arrivals_ns[i] >= from_ns && answer->arrivals_ns[i - 1] <= to_ns) {
            gaps->ns[gaps->count++] = answer->arrivals_ns[i] - answer->arrivals_ns[i - 1];
        }
    }
}

static int compare(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

uint64_t kv_gaps_quantile(kv_gaps_t *gaps, unsigned percent)
{
    if (gaps->count == 0) {
        return 0;
    }
    qsort(gaps->ns, gaps->count, sizeof *gaps->ns, compare);
    return gaps->ns[(gaps->count - 1) * percent / 100];
}

void kv_gaps_clear(kv_gaps_t *gaps)
{
    free(gaps->ns);
    *gaps = (kv_gaps_t){0};
}
