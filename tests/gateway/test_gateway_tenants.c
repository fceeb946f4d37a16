/* Keys, classes, modes, rates and the queue, as clients meet them over real HTTP. */
#include "played.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void test_keys(void **state)
{
    (void)state;
    fixture_t fixture;
    write_tenants("");
    start_with(&fixture, 1, (const char *[]){tenants_option, NULL});
    static const char *const WRONG[] = {"", "Authorization: Bearer key-gamma\r\n",
        "Authorization: key-alpha\r\n", "Authorization: Bearer \r\n", "x-api-key:\r\n",
        "x-goog-api-key: KEY-ALPHA\r\n"};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        expect_with(&fixture, CHAT, WRONG[i], PLAIN, 401, "\"code\":\"invalid_api_key\"");
        expect_with(&fixture, "/v1/models", WRONG[i], NULL, 401, "WWW-Authenticate: Bearer");
    }
    assert_int_equal(atomic_load(&generates), 0);
    expect_with(&fixture, "/v1/models?key=nobody", "", NULL, 401, "is wrong");
    expect_with(&fixture, "/v1/models?key=key-beta", "", NULL, 200, "tiny");
    expect_with(&fixture, "/v1/models", "x-goog-api-key: key-beta\r\n", NULL, 200, "tiny");
    for (int i = 0; i < 2; i++) {
        expect_with(&fixture, i == 0 ? "/v1/models" : "/v1/models/tiny",
            "x-api-key: key-beta\r\nanthropic-version: 1999\r\n", NULL, 400,
            "2023-06-01 and 2026-10-21");
    }
    expect_with(&fixture, CHAT, ALPHA, PLAIN, 200, STORY);
    assert_int_equal(atomic_load(&generates), 1);
    assert_string_equal(last_tenant, "alpha");
    assert_string_equal(last_salt, "alphaalphaalphaalphaalphaalphaal");
    expect_with(&fixture, CHAT, BETA, PLAIN, 200, STORY);
    assert_int_equal(atomic_load(&generates), 2);
    assert_string_equal(last_tenant, "beta");
    assert_string_equal(last_salt, "betabetabetabetabetabetabetabeta");
    expect_with(&fixture, CHAT, ALPHA,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"kvist\":{\"salt\":\"x\"}}", 400,
        "kvist.salt");
    expect_with(&fixture, "/metrics", "", NULL, 200,
        "kvist_gateway_refused_total{why=\"key\",tenant=\"none\"}");
    expect_with(&fixture, "/metrics", "", NULL, 200,
        "kvist_gateway_tenant_answers_total{tenant=\"alpha\"} 1\n");
    stop(&fixture);
}

static void test_classes_and_modes(void **state)
{
    (void)state;
    fixture_t fixture;
    write_tenants("    priority: batch\n    cache_modes: [read, bypass]\n    host_bytes: 1GiB\n");
    atomic_store(&last_quota_bytes, 0);
    start_with(&fixture, 1, (const char *[]){tenants_option, NULL});
    assert_true(atomic_load(&last_quota_bytes) == (uint64_t)1 << 30);
    expect_with(&fixture, CHAT, ALPHA, PLAIN, 200, STORY);
    assert_int_equal(atomic_load(&last_priority), KVIST__WIRE__PRIORITY__PRIORITY_BATCH);
    assert_int_equal(atomic_load(&last_cache_mode), KVIST__WIRE__CACHE_MODE__CACHE_READ);
    char headers[128];
    snprintf(headers, sizeof headers, "%sx-kvist-priority: background\r\n", ALPHA);
    expect_with(&fixture, CHAT, headers, PLAIN, 200, STORY);
    assert_int_equal(atomic_load(&last_priority), KVIST__WIRE__PRIORITY__PRIORITY_BACKGROUND);
    assert_int_equal(atomic_load(&last_cache_mode), KVIST__WIRE__CACHE_MODE__CACHE_BYPASS);
    snprintf(headers, sizeof headers, "%sx-kvist-cache-mode: write\r\n", ALPHA);
    expect_with(&fixture, CHAT, headers, PLAIN, 403, "cache_mode");
    expect_with(&fixture, CHAT, BETA,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
        "\"kvist\":{\"priority\":\"background\",\"cache_mode\":\"readwrite\"}}",
        200, STORY);
    assert_int_equal(atomic_load(&last_priority), KVIST__WIRE__PRIORITY__PRIORITY_BACKGROUND);
    assert_int_equal(atomic_load(&last_cache_mode), KVIST__WIRE__CACHE_MODE__CACHE_READWRITE);
    stop(&fixture);
}

static void test_rates(void **state)
{
    (void)state;
    fixture_t fixture;
    write_tenants("    requests_per_minute: 3\n    tokens_per_minute: 600\n");
    start_with(&fixture, 1, (const char *[]){tenants_option, NULL});
    static const char FEW[] = "{\"prompt\":[1,2,3],\"max_tokens\":10}";
    expect_with(&fixture, "/v1/completions", ALPHA, FEW, 200, "x-ratelimit-limit-requests: 3\r\n");
    expect_with(
        &fixture, "/v1/completions", ALPHA, FEW, 200, "x-ratelimit-remaining-requests: 1\r\n");
    expect_with(&fixture, "/v1/completions", ALPHA, "{\"prompt\":[1,2,3],\"max_tokens\":900}", 400,
        "max_tokens");
    expect_with(&fixture, "/v1/completions", ALPHA, FEW, 429, "requests a minute");
    unsigned code;
    char *answer = ask_with(&fixture, "/v1/completions", ALPHA, FEW, &code);
    const char *after = strstr(answer, "Retry-After: ");
    assert_non_null(after);
    int seconds = atoi(after + strlen("Retry-After: "));
    assert_true(seconds >= 1 && seconds <= 20);
    free(answer);
    expect_with(&fixture, "/v1/completions", BETA, FEW, 200, "The quick");
    stop(&fixture);
}

/* One place at the node: the second waits, and begins when the first is through; with nobody
 * through in time it is told to come later. */
static void test_the_queue(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1,
        (const char *[]){"--gateway.node_requests=1", "--gateway.queue_wait=20s", NULL});
    play(0, PLAY_SILENT);
    int first = connect_client(&fixture);
    send_request(first, "POST", CHAT, PLAIN, strlen(PLAIN));
    wait_for_generates(1);
    int second = connect_client(&fixture);
    send_request(second, "POST", CHAT, PLAIN, strlen(PLAIN));
    wait_for_line(&fixture, "kvist_gateway_requests_waiting{priority=\"interactive\"} 1\n");
    assert_int_equal(atomic_load(&generates), 1);
    play(0, PLAY_ANSWER);
    close(first); /* the client goes away: its place is free */
    unsigned code;
    char *answer = receive_all(second, &code);
    assert_int_equal(code, 200);
    free(answer);
    close(second);
    wait_for_line(&fixture, "kvist_gateway_requests_waiting{priority=\"interactive\"} 0\n");
    stop(&fixture);
}

static void test_the_queue_has_an_end(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, (const char *[]){"--gateway.node_requests=1", NULL});
    play(0, PLAY_SILENT);
    int first = connect_client(&fixture);
    send_request(first, "POST", CHAT, PLAIN, strlen(PLAIN));
    wait_for_generates(1);
    expect(&fixture, CHAT, PLAIN, 429, "Retry-After: ", "waited 300 ms");
    close(first);
    wait_for_cancel(1);
    stop(&fixture);
}

static void test_the_queue_is_full(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1,
        (const char *[]){"--gateway.node_requests=1", "--gateway.queue_max=2",
            "--gateway.queue_wait=100s", NULL});
    play(0, PLAY_SILENT);
    int first = connect_client(&fixture), second = connect_client(&fixture);
    int third = connect_client(&fixture);
    send_request(first, "POST", CHAT, PLAIN, strlen(PLAIN));
    wait_for_generates(1);
    /* A background request that waits makes room for an interactive one; that waits, and for the
     * next one there is none. */
    static const char BACKGROUND[] = "{\"prompt\":\"x\",\"kvist\":{\"priority\":\"background\"}}";
    send_request(second, "POST", "/v1/completions", BACKGROUND, strlen(BACKGROUND));
    wait_for_line(&fixture, "kvist_gateway_requests_waiting{priority=\"background\"} 1\n");
    send_request(third, "POST", CHAT, PLAIN, strlen(PLAIN));
    unsigned code;
    char *answer = receive_all(second, &code);
    assert_int_equal(code, 429);
    free(answer);
    wait_for_line(&fixture, "kvist_gateway_requests_waiting{priority=\"interactive\"} 1\n");
    expect(&fixture, CHAT, PLAIN, 429, "Retry-After: ", "2 requests are in work");
    play(0, PLAY_ANSWER);
    close(first);
    answer = receive_all(third, &code);
    assert_int_equal(code, 200);
    free(answer);
    close(second);
    close(third);
    stop(&fixture);
}

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_classes_and_modes),
        cmocka_unit_test(test_rates),
        cmocka_unit_test(test_the_queue),
        cmocka_unit_test(test_the_queue_has_an_end),
        cmocka_unit_test(test_the_queue_is_full),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
