#include "tools/kvist/tour_protect.h"

#include "base/clock.h"
#include "tools/kvist/tour_text.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    LIMIT_MS = 600000,
    TOKENS_BEFORE = 48, /* of the running decode before the prefill is sent */
    TOKENS_SKIPPED = 8, /* the first ones: the caches of the processor are cold */
    TOKENS_LONGEST = 4096,
    START_LIMIT_S = 60,
};

/* The running decode: a request that is read on a thread of its own until it is told to end. */
typedef struct {
    const char *endpoint, *model;
    atomic_uint token_count;
    atomic_bool enough, ended;
    kv_answer_t answer; /* the thread's until it is joined */
    kv_status_t status;
    kv_error_t error;
} running_t;

static bool count_token(void *context, const char *text)
{
    (void)text;
    running_t *running = context;
    atomic_fetch_add(&running->token_count, 1);
    return !atomic_load(&running->enough);
}

static void *run_decode(void *argument)
{
    running_t *running = argument;
    /* Whatever the model says, it goes on until it is told to end. */
    json_t *request =
        json_pack("{s:s, s:s, s:i, s:i, s:b, s:{s:s}}", "model", running->model, "prompt",
            "The numbers in order: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18,",
            "max_tokens", TOKENS_LONGEST, "temperature", 0, "ignore_eos", 1, "kvist", "cache_mode",
            "bypass");
    running->status = kv_complete(running->endpoint, "/v1/completions", request, LIMIT_MS,
        count_token, running, &running->answer, &running->error);
    json_decref(request);
    atomic_store(&running->ended, true);
    return NULL;
}

static int compare(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* The gaps between tokens that touch [from_ns, to_ns], sorted; allocated. */
static uint64_t *gaps_within(
    const kv_answer_t *answer, uint64_t from_ns, uint64_t to_ns, size_t *count_out)
{
    uint64_t *gaps = calloc(answer->arrival_count + 1, sizeof *gaps);
    size_t count = 0;
    for (size_t i = 1; gaps != NULL && i < answer->arrival_count; i++) {
        if (answer->arrivals_ns[i] >= from_ns && answer->arrivals_ns[i - 1] <= to_ns) {
            gaps[count++] = answer->arrivals_ns[i] - answer->arrivals_ns[i - 1];
        }
    }
    if (gaps != NULL) {
        qsort(gaps, count, sizeof *gaps, compare);
    }
    *count_out = count;
    return gaps;
}

static uint64_t quantile(const uint64_t *sorted, size_t count, unsigned percent)
{
    return count == 0 ? 0 : sorted[(count - 1) * percent / 100];
}

static void fill(
    const kv_answer_t *answer, uint64_t begun_ns, uint64_t ended_ns, kv_tour_layout_t *layout)
{
    size_t count;
    uint64_t *gaps = gaps_within(answer, answer->arrivals_ns[TOKENS_SKIPPED], begun_ns - 1, &count);
    layout->alone_p50_ns = quantile(gaps, count, 50);
    free(gaps);
    gaps = gaps_within(answer, begun_ns, ended_ns, &count);
    layout->p50_ns = quantile(gaps, count, 50);
    layout->p99_ns = quantile(gaps, count, 99);
    layout->max_ns = quantile(gaps, count, 100);
    layout->token_count = count;
    layout->prefill_ns = ended_ns - begun_ns;
    free(gaps);
}

static kv_status_t send_long_prompt(
    const char *endpoint, const char *model, const char *session, kv_error_t *error)
{
    json_t *request = json_pack("{s:s, s:o, s:i, s:i, s:{s:s}}", "model", model, "messages",
        kv_tour_messages(session, "What happened?"), "max_tokens", 1, "temperature", 0, "kvist",
        "cache_mode", "bypass");
    kv_answer_t answer;
    kv_status_t status = kv_complete(
        endpoint, "/v1/chat/completions", request, LIMIT_MS, NULL, NULL, &answer, error);
    kv_answer_clear(&answer);
    json_decref(request);
    return status;
}

/* Until the running decode has its pace; false when it ended or did not start in time. */
static bool wait_for_pace(running_t *running)
{
    uint64_t deadline_ns = kv_clock_now_ns() + (uint64_t)START_LIMIT_S * KV_NS_PER_S;
    while (atomic_load(&running->token_count) < TOKENS_BEFORE) {
        if (atomic_load(&running->ended) || kv_clock_now_ns() > deadline_ns) {
            return false;
        }
        nanosleep(&(struct timespec){.tv_nsec = 5 * KV_NS_PER_MS}, NULL);
    }
    return true;
}

kv_status_t kv_tour_protect(const char *endpoint, const char *model, const char *session,
    kv_tour_layout_t *layout, kv_error_t *error)
{
    running_t running = {.endpoint = endpoint, .model = model};
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_decode, &running) != 0) {
        return kv_fail(error, KV_NO_SPACE, "no thread can be started");
    }
    kv_status_t status = KV_OK;
    uint64_t begun_ns = 0, ended_ns = 0;
    bool paced = wait_for_pace(&running);
    if (paced) {
        begun_ns = kv_clock_now_ns();
        status = send_long_prompt(endpoint, model, session, error);
        ended_ns = kv_clock_now_ns();
    }
    bool ended_early = atomic_load(&running.ended);
    atomic_store(&running.enough, true);
    pthread_join(thread, NULL);
    if (ended_early && running.status != KV_OK) {
        status = kv_fail(error, running.status, "the running decode: %s", running.error.text);
    } else if (ended_early || !paced) {
        status = kv_fail(error, KV_FATAL,
            "the running decode %s (%zu tokens); the machine is too busy to measure",
            paced ? "ended before the prefill did" : "did not get its pace",
            running.answer.arrival_count);
    } else if (status == KV_OK) {
        fill(&running.answer, begun_ns, ended_ns, layout);
    }
    kv_answer_clear(&running.answer);
    return status;
}
