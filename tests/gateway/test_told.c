/* What nodes are told by the gateway, over real connections: what a Generate says of class, mode
 * and session. */
#include "wired.h"

#include "base/clock.h"

static decode_t decode;

/* ---- what was heard ---- */

typedef struct {
    Kvist__Wire__Priority priority;
    Kvist__Wire__CacheMode cache_mode;
} told_t;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static told_t told; /* by the last Generate */

static void on_heard(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    (void)peer;
    pthread_mutex_lock(&mutex);
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_GENERATE) {
        const Kvist__Wire__Generate *generate = message->generate;
        told = (told_t){.priority = generate->priority, .cache_mode = generate->cache_mode};
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

/* ---- the client ---- */

static void start(fixture_t *fixture)
{
    decode.token = token_of(" tree");
    decode.heard = on_heard;
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

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_class_of_a_request),
        cmocka_unit_test(test_class_of_a_session),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
