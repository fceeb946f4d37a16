/* Calls of tools in text, however the text comes in pieces: no byte is lost, none is told twice. */
#include "testing/testing.h"

#include "gateway/tool_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char text[1024];  /* all plain text */
    char calls[1024]; /* "NAME(ARGUMENTS)" one after the other */
} told_t;

static void add(char *text, const char *more, size_t bytes)
{
    assert_true(strlen(text) + bytes < 1024);
    strncat(text, more, bytes);
}

/* step: bytes of a piece; 0: pieces of random length. */
static told_t parse(const char *answer, size_t step, uint64_t *seed)
{
    told_t told = {0};
    kv_tool_parser_t *parser = kv_tool_parser_create();
    const char *text;
    size_t bytes, count, length = strlen(answer);
    for (size_t at = 0; at < length;) {
        size_t piece = step > 0 ? step : 1 + kv_test_random(seed) % 20;
        piece = piece < length - at ? piece : length - at;
        kv_tool_parser_push(parser, answer + at, piece, &text, &bytes);
        add(told.text, text, bytes);
        at += piece;
    }
    kv_tool_parser_finish(parser, &text, &bytes);
    add(told.text, text, bytes);
    const kv_parsed_call_t *calls = kv_tool_parser_calls(parser, &count);
    for (size_t i = 0; i < count; i++) {
        char call[512];
        int printed = snprintf(call, sizeof call, "%s(%s)", calls[i].name, calls[i].arguments);
        add(told.calls, call, (size_t)printed);
    }
    kv_tool_parser_destroy(parser);
    return told;
}

static void expect(const char *answer, const char *text, const char *calls)
{
    uint64_t seed = kv_test_seed();
    for (size_t round = 0; round < 24; round++) {
        told_t told = parse(answer, round < 16 ? round + 1 : 0, &seed);
        if (strcmp(told.text, text) != 0 || strcmp(told.calls, calls) != 0) {
            fail_msg("%s\n in steps of %zu gave \"%s\" and %s", answer, round + 1, told.text,
                told.calls);
        }
    }
}

#define CALL(body) "<tool_call>\n" body "\n</tool_call>"

static void test_calls(void **state)
{
    (void)state;
    expect("plain text, 1 < 2\n", "plain text, 1 < 2\n", "");
    expect(CALL("{\"name\": \"add\", \"arguments\": {\"x\":1,  \"y\": [2, \"}\"]}}"), "",
        "add({\"x\":1,  \"y\": [2, \"}\"]})");
    expect("I look.\n\n" CALL("{\"arguments\": {}, \"name\": \"look\"}") "\n" CALL(
               "{\"name\": \"go.to:it\", \"id\": 5, \"arguments\": {\"a\": \"\\\"</tool_call>\"}}"),
        "I look.", "look({})go.to:it({\"a\": \"\\\"</tool_call>\"})");
    expect(CALL("{\"name\": \"now\"}") " Done. ", " Done. ", "now({})");
    expect("<tool_call>{\"name\":\"f\",\"arguments\":{\"arguments\":{}}}</tool_call>", "",
        "f({\"arguments\":{}})");
    /* The answer ended before the call was closed, but the call is whole. */
    expect("<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n", "", "f({})");
}

static void test_what_is_none_stays_text(void **state)
{
    (void)state;
    static const char *const ANSWERS[] = {"a \n<tool_cal", "a <tool_call> b", "<tool_call>",
        CALL("not JSON") " after", " " CALL("{\"arguments\": {}}"),
        CALL("{\"name\": \"\", \"arguments\": {}}"), CALL("{\"name\": \"a b\", \"arguments\": {}}"),
        CALL("{\"name\": \"f\", \"arguments\": []}"),
        CALL("{\"name\": \"f\", \"arguments\": {}, \"name\": \"g\"}"),
        CALL("{\"name\": \"f\", \"arguments\": {\"x\": 1}"), "<tool_call>{\"name\": \"f",
        CALL("{\"name\": \"f\", \"\\u0061rguments\": {}}"), "</tool_call> \n", "x  \n "};
    for (size_t i = 0; i < sizeof ANSWERS / sizeof ANSWERS[0]; i++) {
        expect(ANSWERS[i], ANSWERS[i], "");
    }
    expect(CALL("bad") "\n" CALL("{\"name\": \"f\"}") "!", CALL("bad") "!", "f({})");
}

static void test_names_and_arguments(void **state)
{
    (void)state;
    char name[KV_TOOL_NAME_BYTES_MAX + 2];
    memset(name, 'a', sizeof name);
    name[KV_TOOL_NAME_BYTES_MAX + 1] = '\0';
    assert_false(kv_tool_name_is_valid(name));
    name[KV_TOOL_NAME_BYTES_MAX] = '\0';
    assert_true(kv_tool_name_is_valid(name));
    assert_false(kv_tool_name_is_valid("a\"b"));
    assert_true(kv_tool_arguments_are_valid("{\"a\": {}} "));
    assert_false(kv_tool_arguments_are_valid("[]"));
    assert_false(kv_tool_arguments_are_valid("{} {}"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_what_is_none_stays_text),
        cmocka_unit_test(test_names_and_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
