/* What nodes are told by the gateway, over real connections: what a Generate says of class, mode
 * and session, and what becomes of contexts between requests. */
#include "wired.h"

#include "base/clock.h"

static decode_t decode;

/* ---- what was heard ---- */

typedef struct {
    Kvist__Wire__Priority priority;
    Kvist__Wire__CacheMode cache_mode;
    uint64_t expected_next_use_unix_ms;
} told_t;

typedef struct {
    unsigned count;
    uint64_t expected_next_use_unix_ms;
} asked_t;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static told_t told;                                                     /* by the last Generate */
static asked_t asked[KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMISE + 1]; /* of contexts */

/* Whatever it is, it is done. */
static void take_context(kv_peer_t *peer, const Kvist__Wire__Context *context)
{
    Kvist__Wire__ContextDone done = KVIST__WIRE__CONTEXT_DONE__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    asked_t *of = &asked[context->action];
    of->count++;
    of->expected_next_use_unix_ms = context->expected_next_use_unix_ms;
    done.id = context->id;
    done.token_count = (uint32_t)context->n_tokens;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CONTEXT_DONE;
    envelope.context_done = &done;
    kv_peer_send(peer, &envelope);
}

static void on_heard(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    pthread_mutex_lock(&mutex);
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_GENERATE) {
        const Kvist__Wire__Generate *generate = message->generate;
        told = (told_t){.priority = generate->priority,
            .cache_mode = generate->cache_mode,
            .expected_next_use_unix_ms = generate->expected_next_use_unix_ms};
    } else if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_CONTEXT) {
        take_context(peer, message->context);
    }
    pthread_mutex_unlock(&mutex);
}

static told_t heard(void)
{
    pthread_mutex_lock(&mutex);
    told_t copy = told;
    pthread_mutex_unlock(&mutex);
    return copy;
}

/* What was asked by then, of that action. */
static asked_t wait_for(Kvist__Wire__ContextAction action, unsigned count)
{
    for (int i = 0; i < 30000; i++) {
        pthread_mutex_lock(&mutex);
        asked_t copy = asked[action];
        pthread_mutex_unlock(&mutex);
        if (copy.count >= count) {
            return copy;
        }
        usleep(1000);
    }
    fail_msg("action %d was asked for fewer than %u times", (int)action, count);
    return (asked_t){0};
}

/* ---- the client ---- */

static void start(fixture_t *fixture)
{
    decode.token = token_of(" tree");
    decode.heard = on_heard;
    memset(asked, 0, sizeof asked);
    gateway_start(fixture, decode_start(&decode, KEY, 0));
    assert_true(becomes(fixture, 200, 30000));
}

static void stop(fixture_t *fixture)
{
    gateway_end(fixture);
    decode_end(&decode);
}

static void complete(const fixture_t *fixture, const char *kvist)
{
    char body[512], answer[8192];
    snprintf(body, sizeof body, "{\"prompt\":[1,2,3],\"max_tokens\":1,\"kvist\":{%s}}", kvist);
    if (ask(fixture, "POST", "/v1/completions", body, answer) != 200) {
        fail_msg("%s: %s", body, answer);
    }
}

/* Its id. */
static void open_session(const fixture_t *fixture, const char *body, char id_out[64])
{
    char answer[8192];
    assert_int_equal(ask(fixture, "POST", "/v1/sessions", body, answer), 200);
    const char *at = strstr(answer, "\"id\":\"");
    assert_non_null(at);
    snprintf(id_out, 64, "%.*s", (int)strcspn(at + 6, "\""), at + 6);
}

/* ---- tests ---- */

static void test_class_of_a_request(void **state)
{
    (void)state;
    fixture_t fixture;
    start(&fixture);
    complete(&fixture, "");
    assert_int_equal(heard().priority, KVIST__WIRE__PRIORITY__PRIORITY_INTERACTIVE);
    complete(&fixture, "\"priority\":\"batch\"");
    assert_int_equal(heard().priority, KVIST__WIRE__PRIORITY__PRIORITY_BATCH);
    assert_int_equal(heard().cache_mode, KVIST__WIRE__CACHE_MODE__CACHE_READWRITE);
    complete(&fixture, "\"priority\":\"background\"");
    assert_int_equal(heard().priority, KVIST__WIRE__PRIORITY__PRIORITY_BACKGROUND);
    assert_int_equal(heard().cache_mode, KVIST__WIRE__CACHE_MODE__CACHE_BYPASS);
    stop(&fixture);
}

/* The less important class of the two; its context is stored whatever its class; figures have its
 * agent where the request names none. */
static void test_class_of_a_session(void **state)
{
    (void)state;
    fixture_t fixture;
    char id[64], kvist[256], answer[65536];
    start(&fixture);
    open_session(&fixture, "{\"priority\":\"background\",\"agent\":\"planner-7\"}", id);
    snprintf(kvist, sizeof kvist, "\"session\":\"%s\",\"priority\":\"batch\"", id);
    complete(&fixture, kvist);
    assert_int_equal(heard().priority, KVIST__WIRE__PRIORITY__PRIORITY_BACKGROUND);
    assert_int_equal(heard().cache_mode, KVIST__WIRE__CACHE_MODE__CACHE_READWRITE);
    ask_all(&fixture, "GET", "/metrics", "", answer, sizeof answer);
    assert_non_null(strstr(answer, "kvist_gateway_agent_answers_total{agent=\"planner-7\"} 1\n"));

    open_session(&fixture, "{\"priority\":\"interactive\"}", id);
    snprintf(kvist, sizeof kvist, "\"session\":\"%s\",\"priority\":\"batch\"", id);
    complete(&fixture, kvist);
    assert_int_equal(heard().priority, KVIST__WIRE__PRIORITY__PRIORITY_BATCH);
    stop(&fixture);
}

/* Whoever asks for a pin says how soon it will be back; nobody else says anything. */
static void test_next_use(void **state)
{
    (void)state;
    fixture_t fixture;
    char id[64], kvist[256], path[128], answer[8192];
    start(&fixture);
    complete(&fixture, "");
    assert_int_equal(heard().expected_next_use_unix_ms, 0);
    open_session(&fixture, "{\"ttl\":1000}", id);
    snprintf(kvist, sizeof kvist, "\"session\":\"%s\"", id);
    uint64_t now_ms = kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_MS;
    complete(&fixture, kvist);
    assert_in_range(heard().expected_next_use_unix_ms, now_ms + 1000000, now_ms + 1100000);

    /* A time to be back: what is brought back by then is kept for then. */
    snprintf(path, sizeof path, "/v1/sessions/%s/suspend", id);
    assert_int_equal(ask(&fixture, "POST", path, "{\"resume_by\":2}", answer), 200);
    asked_t spilled = wait_for(KVIST__WIRE__CONTEXT_ACTION__CONTEXT_SPILL, 1);
    assert_int_equal(spilled.expected_next_use_unix_ms, 0);
    asked_t promoted = wait_for(KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMOTE, 1);
    assert_in_range(promoted.expected_next_use_unix_ms, now_ms + 1000, now_ms + 600000);
    stop(&fixture);
}

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_class_of_a_request),
        cmocka_unit_test(test_class_of_a_session),
        cmocka_unit_test(test_next_use),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
