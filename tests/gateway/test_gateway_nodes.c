/* What becomes of requests whose nodes are busy, lost, older or draining: each comes whole from
 * another one, or ends with a clear word. */
#include "played.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void test_nodes_fail(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 0, NULL);
    expect(&fixture, "/healthz", NULL, 503, "no decode node", NULL);
    expect(&fixture, CHAT, PLAIN, 503, "Retry-After: 1", "no decode node is up");
    atomic_store(&wanted_up[0], true);
    atomic_store(&wanted_up[1], true);
    wait_for_nodes(&fixture, 2);

    play(0, PLAY_BUSY);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    play(1, PLAY_BUSY);
    expect(&fixture, CHAT, PLAIN, 429, "Retry-After: 1", "is busy");

    play(0, PLAY_LOST);
    play(1, PLAY_ANSWER);
    expect(&fixture, CHAT, STREAM, 200, " lazy", "[DONE]");
    wait_for_nodes(&fixture, 1);
    play(1, PLAY_LOST_LATER);
    expect(&fixture, CHAT, PLAIN, 502, "was lost", NULL);
    stop(&fixture);
}

/* A node that is lost takes some choices with it: all of them come whole. */
static void test_choices_go_on_at_another_node(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    play(0, PLAY_LOST_LATER);
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"n\":5}", &code);
    assert_int_equal(code, 200);
    assert_int_equal(count_of(answer, STORY), 5);
    assert_false(atomic_load(&story_went_wrong));
    free(answer);
    stop(&fixture);
}

/* Asks for a stream and puts its pieces together again; the answer is the raw one. */
static char *stream_text(const fixture_t *fixture, const char *body, char *text_out)
{
    static const char MARK[] = "\"delta\":{";
    unsigned code;
    char *answer = ask(fixture, "POST", CHAT, body, &code);
    assert_int_equal(code, 200);
    *text_out = '\0';
    for (const char *at = answer; (at = strstr(at, MARK)) != NULL; at++) {
        const char *from = strstr(at, "\"content\":\"");
        if (from != NULL && from < strchr(at, '}')) {
            from += strlen("\"content\":\"");
            strncat(text_out, from, (size_t)(strchr(from, '"') - from));
        }
    }
    return answer;
}

/* The stream of an undisturbed request, whatever became of its first node; two tokens were there.
 */
static void expect_continued(const fixture_t *fixture)
{
    char text[512];
    char *answer = stream_text(fixture, STREAM, text);
    assert_string_equal(text, STORY);
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    char usage[64];
    snprintf(usage, sizeof usage, "\"completion_tokens\":%u", story_count);
    assert_non_null(strstr(answer, usage));
    assert_non_null(strstr(answer, "\"cached_tokens\":1}")); /* the first node's word */
    assert_int_equal(atomic_load(&last_generated_count), 2);
    assert_false(atomic_load(&story_went_wrong));
    free(answer);
}

static void test_text_goes_on_at_another_node(void **state)
{
    (void)state;
    static const play_t PLAYS[] = {PLAY_LOST_LATER, PLAY_FAILS_LATER, PLAY_GIVES_UP};
    for (size_t i = 0; i < sizeof PLAYS / sizeof PLAYS[0]; i++) {
        fixture_t fixture;
        start_with(&fixture, 2, NULL);
        play(0, PLAYS[i]);
        expect_continued(&fixture);
        assert_int_equal(atomic_load(&generates), 2);
        stop(&fixture);
    }
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    play(0, PLAY_LOST_LATER);
    expect(&fixture, CHAT, PLAIN, 200, STORY, "\"cached_tokens\":1}");
    stop(&fixture);
    /* A stop string that the two nodes made together. */
    start_with(&fixture, 2, NULL);
    play(0, PLAY_LOST_LATER);
    expect(&fixture, "/v1/completions", "{\"prompt\":\"once\",\"stop\":[\"quick brown\"]}", 200,
        "\"text\":\"The \"", "\"finish_reason\":\"stop\"");
    stop(&fixture);
}

/* A node of version 1 would take what was generated for the prompt: it gets whole requests only. */
static void test_begun_text_stays_from_an_older_node(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    atomic_store(&nodes[1].version, 1);
    play(0, PLAY_LOST_LATER);
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT, STREAM, &code);
    assert_int_equal(code, 200);
    assert_non_null(
        strstr(answer, "data: {\"error\":{\"message\":\"decode node decode-0 was lost"));
    assert_int_equal(atomic_load(&generates), 1);
    free(answer);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    stop(&fixture);
    /* A node that drains finishes what no other one could go on with. */
    start_with(&fixture, 2, NULL);
    atomic_store(&nodes[1].version, 1);
    play(0, PLAY_SLOW);
    int fd = connect_client(&fixture);
    send_request(fd, "POST", CHAT, STREAM, strlen(STREAM));
    wait_for_generates(1);
    wait_for_tokens(2);
    atomic_store(&nodes[0].draining, true);
    atomic_store(&slow_goes_on, true);
    answer = receive_all(fd, &code);
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    assert_int_equal(atomic_load(&generates), 1);
    assert_int_equal(atomic_load(&cancels), 0);
    free(answer);
    close(fd);
    stop(&fixture);
}

/* All nodes gone for a moment, as in a restart. */
static void test_waits_for_a_node(void **state)
{
    (void)state;
    const char *const more[] = {"--gateway.node_wait=20s", NULL};
    fixture_t fixture;
    start_with(&fixture, 1, more);
    play(0, PLAY_LOST_LATER);
    int fd = connect_client(&fixture);
    send_request(fd, "POST", CHAT, STREAM, strlen(STREAM));
    wait_for_nodes(&fixture, 0);
    play(0, PLAY_ANSWER);
    atomic_store(&returning, true);
    unsigned code;
    char *answer = receive_all(fd, &code);
    atomic_store(&returning, false);
    assert_int_equal(code, 200);
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    assert_int_equal(atomic_load(&last_generated_count), 2);
    free(answer);
    close(fd);
    stop(&fixture);
}

/* Nobody comes back in time: the stream ends with what happened and without [DONE]. */
static void test_no_node_comes_back(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    play(0, PLAY_LOST_LATER);
    play(1, PLAY_LOST);
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT, STREAM, &code);
    assert_int_equal(code, 200);
    assert_non_null(
        strstr(answer, "data: {\"error\":{\"message\":\"decode node decode-1 was lost"));
    assert_null(strstr(answer, "[DONE]"));
    free(answer);
    stop(&fixture);
}

/* The last token came, Finished did not: nothing is left to ask for. */
static void test_complete_without_finished(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    play(0, PLAY_END_LOST);
    expect(&fixture, "/v1/completions", "{\"prompt\":\"once\",\"max_tokens\":2}", 200,
        "\"text\":\"The quick\"", "\"finish_reason\":\"length\"");
    assert_int_equal(atomic_load(&generates), 1);
    stop(&fixture);
}

/* A request that breaks every node it comes to ends after a few. */
static void test_attempts_are_bounded(void **state)
{
    (void)state;
    fixture_t fixture;
    const char *const more[] = {"--gateway.node_wait=20s", NULL};
    start_with(&fixture, 2, more);
    play(0, PLAY_LOST_LATER);
    play(1, PLAY_LOST);
    atomic_store(&returning, true);
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT, STREAM, &code);
    assert_non_null(strstr(answer, "was lost"));
    assert_null(strstr(answer, "[DONE]"));
    assert_int_equal(atomic_load(&generates), 4);
    free(answer);
    atomic_store(&returning, false);
    stop(&fixture);
}

static void test_leaves_a_draining_node(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    play(0, PLAY_SLOW);
    play(1, PLAY_SLOW);
    int fd = connect_client(&fixture);
    send_request(fd, "POST", CHAT, STREAM, strlen(STREAM));
    wait_for_generates(1);
    wait_for_tokens(2);
    atomic_store(&nodes[0].draining, true);
    wait_for_cancel(1);
    atomic_store(&slow_goes_on, true);
    unsigned code;
    char *answer = receive_all(fd, &code);
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    assert_int_equal(atomic_load(&generates), 2);
    assert_false(atomic_load(&story_went_wrong));
    free(answer);
    close(fd);
    /* New ones go to the other; with both draining they wait for one, then end. */
    expect(&fixture, CHAT, PLAIN, 200, STORY, "\"cached_tokens\":16");
    atomic_store(&nodes[1].draining, true);
    expect(&fixture, CHAT, PLAIN, 503, "Retry-After: 1", "no decode node is up");
    stop(&fixture);
}

/* The gateway itself drains: what runs is finished, what comes is sent elsewhere, then it ends. */
static void test_gateway_drains(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    play(0, PLAY_SLOW);
    int fd = connect_client(&fixture);
    send_request(fd, "POST", CHAT, STREAM, strlen(STREAM));
    wait_for_generates(1);
    ask_to(&fixture, DRAIN);
    wait_for_health(&fixture, "\"status\":\"draining\"");
    expect(&fixture, "/healthz", NULL, 503, "draining", NULL);
    expect(&fixture, CHAT, PLAIN, 503, "Retry-After: 1", "draining");
    atomic_store(&slow_goes_on, true);
    unsigned code;
    char *answer = receive_all(fd, &code);
    assert_int_equal(code, 200);
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    free(answer);
    close(fd);
    finish(&fixture);
}

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices_go_on_at_another_node),
        cmocka_unit_test(test_nodes_fail),
        cmocka_unit_test(test_text_goes_on_at_another_node),
        cmocka_unit_test(test_begun_text_stays_from_an_older_node),
        cmocka_unit_test(test_waits_for_a_node),
        cmocka_unit_test(test_no_node_comes_back),
        cmocka_unit_test(test_complete_without_finished),
        cmocka_unit_test(test_attempts_are_bounded),
        cmocka_unit_test(test_leaves_a_draining_node),
        cmocka_unit_test(test_gateway_drains),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
