/* Prompts that part early from their predecessors, at the gateway: found, counted, told to whom. */
#include "played.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char RULES[] =
    "Answer in one sentence. Name the file that you changed. Never guess a path: look for it "
    "first. When a test fails, say which one and why before you mend anything. Leave what works "
    "as it is. Ask when two readings are possible. Keep to the style of what is there already. "
    "Run the tests of what you touched, and say what you did not run. Write short sentences.";

/* A chat whose system message begins so. */
static void chat(const fixture_t *fixture, const char *headers, const char *front)
{
    char body[2048];
    snprintf(body, sizeof body,
        "{\"messages\":[{\"role\":\"system\",\"content\":\"%s%s\"},{\"role\":\"user\",\"content\":"
        "\"hi\"}]}",
        front, RULES);
    expect_with(fixture, CHAT, headers, body, 200, STORY);
}

static json_t *look(const fixture_t *fixture, const char *headers)
{
    unsigned code;
    char *answer = ask_with(fixture, "/v1/audit", headers, NULL, &code);
    assert_int_equal(code, 200);
    json_t *document = json_loads(strstr(answer, "\r\n\r\n"), 0, NULL);
    assert_non_null(document);
    free(answer);
    return document;
}

static size_t row_count(const json_t *document)
{
    return json_array_size(json_object_get(document, "data"));
}

static const json_t *in_row(const json_t *document, const char *name)
{
    const json_t *row = json_array_get(json_object_get(document, "data"), 0);
    const json_t *value = json_object_get(row, name);
    assert_non_null(value);
    return value;
}

static const char *text_in_row(const json_t *document, const char *name)
{
    return json_string_value(in_row(document, name));
}

/* Of the prompts' tokens that no cache could have had. */
static unsigned long long unseen(const fixture_t *fixture, const char *kind)
{
    unsigned code;
    char line[80], *page = ask(fixture, "GET", "/metrics", NULL, &code);
    snprintf(line, sizeof line, "kvist_gateway_unseen_tokens_total{kind=\"%s\"} ", kind);
    const char *found = strstr(page, line);
    assert_non_null(found);
    unsigned long long count = strtoull(found + strlen(line), NULL, 10);
    free(page);
    return count;
}

static void test_a_changed_time_is_found_and_priced(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    json_t *found = look(&fixture, "");
    assert_int_equal(row_count(found), 0);
    assert_true(json_is_true(json_object_get(found, "enabled")));
    json_decref(found);
    chat(&fixture, "x-kvist-template: rules\r\n", "Now: 2026-11-23 10:05. ");
    chat(&fixture, "x-kvist-template: rules\r\n", "Now: 2026-11-23 10:05. ");
    chat(&fixture, "x-kvist-template: rules\r\n", "Now: 2026-11-23 10:06. ");
    chat(&fixture, "x-kvist-template: others\r\n", "Now: 2026-11-23 10:07. ");
    found = look(&fixture, "");
    assert_int_equal(row_count(found), 1);
    assert_string_equal(text_in_row(found, "kind"), "timestamp");
    assert_string_equal(text_in_row(found, "template"), "rules");
    assert_string_equal(text_in_row(found, "unit"), "tokens");
    assert_string_equal(text_in_row(found, "was"), "2026-11-23 10:05");
    assert_string_equal(text_in_row(found, "is"), "2026-11-23 10:06");
    assert_int_equal(json_integer_value(in_row(found, "count")), 1);
    json_int_t cost = json_integer_value(in_row(found, "cost"));
    assert_true(cost >= 64 && cost < 200);
    json_decref(found);
    char line[80];
    snprintf(line, sizeof line, "kvist_gateway_audit_tokens_total{kind=\"timestamp\"} %lld",
        (long long)cost);
    expect(&fixture, "/metrics", NULL, 200, line, NULL);
    /* Nobody had seen what it cost: it is told apart from what is new. */
    assert_int_equal(unseen(&fixture, "diverged"), cost);
    stop(&fixture);
}

static void test_what_fails_is_no_predecessor(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    play(0, PLAY_INVALID);
    char body[1024];
    snprintf(body, sizeof body, "{\"prompt\":\"Turn 1. %s\"}", RULES);
    unsigned code;
    free(ask(&fixture, "POST", "/v1/completions", body, &code));
    assert_true(code >= 400);
    play(0, PLAY_ANSWER);
    chat(&fixture, "x-kvist-cache-mode: bypass\r\n", "Turn 1. ");
    chat(&fixture, "", "Turn 2. ");
    json_t *found = look(&fixture, "");
    assert_int_equal(row_count(found), 0);
    const json_t *totals = json_object_get(found, "totals");
    assert_int_equal(json_integer_value(json_object_get(totals, "prompts")), 1);
    json_decref(found);
    chat(&fixture, "", "Turn 3. ");
    found = look(&fixture, "");
    assert_string_equal(text_in_row(found, "kind"), "counter");
    json_decref(found);
    expect(&fixture, "/v1/audit?limit=1", NULL, 200, "\"counter\"", NULL);
    expect(
        &fixture, "/v1/audit?limit=0", NULL, 400, "limit: must be a whole number, 1 to 256", NULL);
    expect(&fixture, "/v1/audit", "{}", 405, "this path takes GET, HEAD", NULL);
    stop(&fixture);
}

static void test_it_can_be_turned_off(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, (const char *[]){"--gateway.audit_bytes=0", NULL});
    chat(&fixture, "", "Turn 1. ");
    chat(&fixture, "", "Turn 2. ");
    json_t *found = look(&fixture, "");
    assert_int_equal(row_count(found), 0);
    assert_true(json_is_false(json_object_get(found, "enabled")));
    json_decref(found);
    stop(&fixture);
}

static void test_each_tenant_sees_its_own(void **state)
{
    (void)state;
    fixture_t fixture;
    write_tenants("    operator: yes\n");
    start_with(&fixture, 1, (const char *[]){tenants_option, NULL});
    chat(&fixture, ALPHA, "Turn 1. ");
    chat(&fixture, BETA, "Turn 2. "); /* nothing of alpha's is its predecessor */
    chat(&fixture, BETA, "Turn 3. ");
    chat(&fixture, ALPHA, "Turn 4. ");
    expect_with(&fixture, "/v1/audit", "", NULL, 401, "an API key is needed");
    json_t *all = look(&fixture, ALPHA), *own = look(&fixture, BETA);
    assert_int_equal(row_count(all), 2);
    assert_int_equal(row_count(own), 1);
    assert_string_equal(text_in_row(own, "tenant"), "beta");
    assert_string_equal(text_in_row(own, "was"), "2");
    assert_null(json_object_get(own, "totals"));
    assert_non_null(json_object_get(all, "totals"));
    json_decref(all);
    json_decref(own);
    stop(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_changed_time_is_found_and_priced),
        cmocka_unit_test(test_what_fails_is_no_predecessor),
        cmocka_unit_test(test_it_can_be_turned_off),
        cmocka_unit_test(test_each_tenant_sees_its_own),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
