#include "tools/kvist/tour/protect.h"

#include "base/clock.h"
#include "tools/kvist/running.h"
#include "tools/kvist/tour/text.h"

enum {
    LIMIT_MS = 600000,
    TOKENS_SKIPPED = 8, /* the first ones: the caches of the processor are cold */
};

static void fill(
    const kv_answer_t *answer, uint64_t begun_ns, uint64_t ended_ns, kv_tour_layout_t *layout)
{
    kv_gaps_t gaps = {0};
    kv_gaps_add(&gaps, answer, answer->arrivals_ns[TOKENS_SKIPPED], begun_ns - 1);
    layout->alone_p50_ns = kv_gaps_quantile(&gaps, 50);
    kv_gaps_clear(&gaps);
    kv_gaps_add(&gaps, answer, begun_ns, ended_ns);
    layout->p50_ns = kv_gaps_quantile(&gaps, 50);
    layout->p99_ns = kv_gaps_quantile(&gaps, 99);
    layout->max_ns = kv_gaps_quantile(&gaps, 100);
    layout->token_count = gaps.count;
    layout->prefill_ns = ended_ns - begun_ns;
    kv_gaps_clear(&gaps);
}

static kv_status_t send_long_prompt(
    const char *endpoint, const char *model, const char *session, kv_error_t *error)
{
    json_t *request = json_pack("{s:s, s:o, s:i, s:i, s:{s:s}}", "model", model, "messages",
        kv_tour_messages(session, "What happened?"), "max_tokens", 1, "temperature", 0, "kvist",
        "cache_mode", "bypass");
    const kv_endpoint_t asked = {.url = endpoint};
    kv_answer_t answer;
    kv_status_t status =
        kv_complete(&asked, "/v1/chat/completions", request, LIMIT_MS, NULL, NULL, &answer, error);
    kv_answer_clear(&answer);
    json_decref(request);
    return status;
}

kv_status_t kv_tour_protect(const char *endpoint, const char *model, const char *session,
    kv_tour_layout_t *layout, kv_error_t *error)
{
    kv_running_t *running;
    kv_status_t status = kv_running_start(endpoint, model, &running, error);
    if (status != KV_OK) {
        return status;
    }
    uint64_t begun_ns = 0, ended_ns = 0;
    status = kv_running_await_pace(running, error);
    if (status == KV_OK) {
        begun_ns = kv_clock_now_ns();
        status = send_long_prompt(endpoint, model, session, error);
        ended_ns = kv_clock_now_ns();
    }
    status = status == KV_OK ? kv_running_end(running, error) : status;
    if (status == KV_OK) {
        fill(kv_running_answer(running), begun_ns, ended_ns, layout);
    }
    kv_running_free(running);
    return status;
}
