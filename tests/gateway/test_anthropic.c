/* Anthropic's bodies as pure functions: requests with their breakpoints, every refusal with its
 * place. */
#include "testing/testing.h"

#include "gateway/anthropic/anthropic.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MINUTES_NS(n) ((n)*UINT64_C(60000000000))

static const kv_api_limits_t LIMITS = {
    .model = "tiny", .vocabulary_count = 1000, .context_tokens_max = 64, .default_max_tokens = 16};

static bool parse_as(unsigned variant, const char *version, const char *body,
    kv_api_request_t *request, kv_api_error_t *error)
{
    const kv_field_t header = {"Anthropic-Version", version};
    const kv_call_t call = {.method = "POST",
        .path = "/v1/messages",
        .variant = variant,
        .headers = {&header, version == NULL ? 0 : 1},
        .body = body,
        .body_bytes = strlen(body)};
    return kv_anthropic_parse(&call, &LIMITS, request, error);
}

static void take(const char *body, kv_api_request_t *request)
{
    kv_api_error_t error;
    if (!parse_as(KV_ANTHROPIC_MESSAGES, "2023-06-01", body, request, &error)) {
        fail_msg("%s\ngave %u \"%s\": %s", body, error.http_code, error.param, error.message);
    }
}

static void refuse(const char *body, unsigned http_code, const char *param, const char *message)
{
    kv_api_request_t request;
    kv_api_error_t error;
    if (parse_as(KV_ANTHROPIC_MESSAGES, "2023-06-01", body, &request, &error)) {
        kv_api_request_clear(&request);
        fail_msg("%s was taken", body);
    }
    if (error.http_code != http_code || strcmp(error.param, param) != 0 ||
        strstr(error.message, message) == NULL) {
        fail_msg("%s\ngave %u \"%s\": %s", body, error.http_code, error.param, error.message);
    }
}

#define HEAD "{\"model\":\"tiny\",\"max_tokens\":9,"
#define ASK(more) HEAD "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]" more "}"
#define TALK(messages) HEAD "\"messages\":[" messages "]}"
#define USER(content) "{\"role\":\"user\",\"content\":" content "}"
#define ASSISTANT(content) "{\"role\":\"assistant\",\"content\":" content "}"
#define TEXT(text) "{\"type\":\"text\",\"text\":\"" text "\"}"
#define MARKED(text, ttl)                                                                          \
    "{\"type\":\"text\",\"text\":\"" text "\",\"cache_control\":" MARK(ttl) "}"
#define MARK(ttl) "{\"type\":\"ephemeral\",\"ttl\":\"" ttl "\"}"
#define SHORT_MARK "{\"type\":\"ephemeral\"}"
#define CALL(id) "{\"type\":\"tool_use\",\"id\":\"" id "\",\"name\":\"f\",\"input\":{}}"
#define RESULT(id) "{\"type\":\"tool_result\",\"tool_use_id\":\"" id "\"}"

static void assert_message(
    const kv_api_request_t *request, size_t index, const char *role, const char *content)
{
    assert_true(index < request->message_count);
    const kv_chat_message_t *message = &request->messages[index];
    assert_string_equal(message->role, role);
    if (message->content_bytes != strlen(content) ||
        memcmp(message->content, content, message->content_bytes) != 0) {
        fail_msg("message %zu is \"%.*s\", not \"%s\"", index, (int)message->content_bytes,
            message->content, content);
    }
}

static void assert_mark(const kv_api_request_t *request, size_t index, uint32_t message_count,
    size_t content_bytes, unsigned minutes)
{
    assert_true(index < request->breakpoint_count);
    const kv_api_breakpoint_t *mark = &request->breakpoints[index];
    assert_int_equal(mark->message_count, message_count);
    assert_int_equal(mark->content_bytes, content_bytes);
    assert_true(mark->ttl_ns == MINUTES_NS(minutes));
    assert_false(mark->limit);
}

/* ---- bodies ---- */

#define TURNS                                                                                      \
    USER("\"hi\"") "," ASSISTANT("[" TEXT("a") "," TEXT("b\\u00e9") "]") "," USER("\"more\"")
#define OPTIONS                                                                                    \
    "\"temperature\":0.5,\"top_p\":0.25,\"top_k\":3,\"stop_sequences\":[\"x\",\"yy\"],"            \
    "\"stream\":true,\"metadata\":{\"user_id\":\"u\"},\"thinking\":{\"type\":\"disabled\"},"       \
    "\"service_tier\":\"auto\",\"tools\":[],\"speed\":\"standard\",\"mcp_servers\":[],"            \
    "\"output_config\":{\"effort\":\"high\"},\"diagnostics\":{\"previous_message_id\":null},"      \
    "\"inference_geo\":null,\"whatever\":[1]"

static void a_body_becomes_a_request(void **state)
{
    (void)state;
    kv_api_request_t request;
    static const char BODY[] = HEAD
        "\"system\":[" TEXT("Be ") "," TEXT("brief.") "],\"messages\":[" TURNS "]," OPTIONS "}";
    take(BODY, &request);
    assert_int_equal(request.kind, KV_API_CHAT);
    assert_int_equal(request.message_count, 4);
    assert_message(&request, 0, "system", "Be brief.");
    assert_message(&request, 1, "user", "hi");
    assert_message(&request, 2, "assistant", "ab\xc3\xa9");
    assert_message(&request, 3, "user", "more");
    assert_int_equal(request.max_tokens, 9);
    assert_true(request.cut_max_tokens);
    assert_true(request.temperature == 0.5F && request.top_p == 0.25F);
    assert_int_equal(request.top_k, 3);
    assert_int_equal(request.stop_count, 2);
    assert_string_equal(request.stops[1], "yy");
    assert_true(request.stream);
    assert_false(request.has_tools || request.count_only || kv_anthropic_is_warm_up(&request));
    assert_int_equal(request.breakpoint_count, 0);
    kv_api_request_clear(&request);

    take(ASK(""), &request);
    assert_true(request.temperature == 1 && request.top_p == 1 && !request.stream);
    assert_int_equal(request.message_count, 1);
    kv_api_request_clear(&request);

    take(ASK(",\"system\":\"\",\"cache_control\":null,\"tools\":null,\"tool_choice\":null"),
        &request);
    assert_int_equal(request.message_count, 1);
    kv_api_request_clear(&request);
}

static void nothing_is_generated_where_nothing_is_asked(void **state)
{
    (void)state;
    kv_api_request_t request;
    kv_api_error_t error;
    take("{\"model\":\"tiny\",\"max_tokens\":0,\"messages\":[" USER("\"hi\"") "]}", &request);
    assert_true(kv_anthropic_is_warm_up(&request));
    assert_int_equal(request.max_tokens, 1);
    kv_api_request_clear(&request);
    refuse(
        "{\"model\":\"tiny\",\"max_tokens\":0,\"stream\":true,\"messages\":[" USER("\"hi\"") "]}",
        400, "max_tokens", "only without \"stream\"");

    assert_true(parse_as(KV_ANTHROPIC_COUNT_TOKENS, "2023-06-01",
        "{\"model\":\"tiny\",\"messages\":[" USER("\"hi\"") "]}", &request, &error));
    assert_true(request.count_only);
    kv_api_request_clear(&request);
}

static void one_turn_is_one_message(void **state)
{
    (void)state;
    kv_api_request_t request;
    take(TALK(USER("\"a\"") "," USER("[" TEXT("b") "," TEXT("c") "]") "," ASSISTANT(
             "\"d\"") "," ASSISTANT("\"e\"") "," USER("\"f\"") ",{\"role\":\"system\",\"content\":"
                                                               "\"g\"}," USER("\"h\"")),
        &request);
    assert_int_equal(request.message_count, 5);
    assert_message(&request, 0, "user", "a\nbc");
    assert_message(&request, 1, "assistant", "d\ne");
    assert_message(&request, 2, "user", "f");
    assert_message(&request, 3, "system", "g");
    assert_message(&request, 4, "user", "h");
    kv_api_request_clear(&request);
}

static void calls_and_results_become_what_the_model_knows(void **state)
{
    (void)state;
    kv_api_request_t request;
    take(HEAD "\"tools\":[{\"name\":\"get_weather\",\"description\":\"d\",\"input_schema\":"
              "{\"type\":\"object\",\"properties\":{\"b\":{\"type\":\"number\",\"minimum\":0.1},"
              "\"a\":{}}}},{\"type\":\"custom\",\"name\":\"f\",\"input_schema\":{},"
              "\"allowed_callers\":[\"direct\"],\"strict\":false}],\"tool_choice\":{\"type\":"
              "\"auto\"},\"messages\":[" USER("\"hi\"") "," ASSISTANT("[" TEXT(
                  "Let me see.") ","
                                 "{\"type\":\"tool_use\",\"id\":\"t1\",\"name\":\"get_weather\","
                                 "\"input\":"
                                 "{\"city\":\"Z\\u00fcrich\",\"at\":[1,2.5]}}," CALL(
                                     "t2") "]") "," USER("[{\"type\":\"tool_result\",\"tool_use_"
                                                         "id\":\"t1\",\"content\":\"15 degrees\"},"
                                                         "{\"type\":\"tool_result\",\"tool_use_"
                                                         "id\":\"t2\",\"is_error\":true,"
                                                         "\"content\":[" TEXT("x") "," TEXT(
                                                             "y") "]}," TEXT("well?") "]") "]}",
        &request);
    assert_true(request.has_tools);
    assert_int_equal(request.tool_count, 2);
    assert_string_equal(request.tools[0],
        "{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"description\": "
        "\"d\", \"parameters\": {\"type\": \"object\", \"properties\": {\"b\": {\"type\": "
        "\"number\", \"minimum\": 0.1}, \"a\": {}}}}}");
    assert_string_equal(request.tools[1],
        "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {}}}");
    assert_int_equal(request.message_count, 5);
    assert_message(&request, 1, "assistant", "Let me see.");
    const kv_chat_message_t *calling = &request.messages[1];
    assert_int_equal(calling->call_count, 2);
    assert_string_equal(calling->calls[0].name, "get_weather");
    assert_string_equal(
        calling->calls[0].arguments, "{\"city\": \"Z\xc3\xbcrich\", \"at\": [1, 2.5]}");
    assert_string_equal(calling->calls[1].name, "f");
    assert_string_equal(calling->calls[1].arguments, "{}");
    assert_message(&request, 2, "tool", "15 degrees");
    assert_message(&request, 3, "tool", "xy");
    assert_message(&request, 4, "user", "well?");
    kv_api_request_clear(&request);

    take(ASK(",\"tool_choice\":{\"type\":\"none\"},\"tools\":[{\"name\":\"f\",\"input_schema\":{}}"
             "]"),
        &request);
    assert_int_equal(request.tool_count, 1); /* the prompt stays the same */
    assert_false(request.has_tools || request.single_tool_call);
    kv_api_request_clear(&request);

    take(ASK(",\"tool_choice\":{\"type\":\"auto\",\"disable_parallel_tool_use\":true},"
             "\"tools\":[{\"name\":\"f\",\"input_schema\":{}}]"),
        &request);
    assert_true(request.has_tools && request.single_tool_call);
    kv_api_request_clear(&request);
}

/* ---- breakpoints ---- */

static void a_breakpoint_lies_behind_its_block(void **state)
{
    (void)state;
    kv_api_request_t request;
    take(HEAD
        "\"tools\":[{\"name\":\"f\",\"input_schema\":{},\"cache_control\":" MARK(
            "1h") "}],"
                  "\"system\":[" MARKED("abc", "1h") "," MARKED("de", "5m") "],\"messages\":[" USER(
                      "[" TEXT("one ") ",{\"type\":\"text\",\"text\":\"two\",\"cache_"
                                       "control\":" SHORT_MARK "}," TEXT(" three") "]") "]}",
        &request);
    assert_int_equal(request.breakpoint_count, 4);
    assert_mark(&request, 0, 0, 0, 60);
    assert_mark(&request, 1, 0, 3, 60);
    assert_mark(&request, 2, 1, 0, 5);
    assert_mark(&request, 3, 1, 7, 5);
    kv_api_request_clear(&request);

    /* At the end of a message, of a call, of a result, inside a result. */
    take(TALK(USER("[" MARKED("hi", "5m") "]") "," ASSISTANT("[" TEXT(
             "so") ",{\"type\":\"tool_use\","
                   "\"id\":\"t\",\"name\":\"f\",\"input\":{},\"cache_control\":" SHORT_MARK
                   "}]") "," USER("[{\"type\":\"tool_result\",\"tool_use_id\":\"t\","
                                  "\"content\":[" MARKED("r", "5m") "," TEXT(
                                      "s") "],\"cache_control\":" SHORT_MARK "}," TEXT("go") "]")),
        &request);
    assert_int_equal(request.breakpoint_count, 4);
    assert_mark(&request, 0, 1, 0, 5);
    assert_mark(&request, 1, 2, 0, 5);
    assert_mark(&request, 2, 2, 1, 5);
    assert_mark(&request, 3, 3, 0, 5);
    kv_api_request_clear(&request);

    /* Behind a text that calls follow, and behind the first call of two. */
    take(TALK(USER("\"x\"") "," ASSISTANT("[" MARKED(
             "so", "5m") ",{\"type\":\"tool_use\",\"id\":"
                         "\"t\",\"name\":\"f\",\"input\":{},\"cache_control\":" SHORT_MARK
                         "}," CALL("u") "]") "," USER("[" RESULT("t") "," RESULT("u") "]")),
        &request);
    assert_mark(&request, 0, 1, 2, 5);
    assert_mark(&request, 1, 2, 0, 5);
    kv_api_request_clear(&request);

    /* Behind what is a turn's first half. */
    take(TALK(USER("[" MARKED("hi", "5m") "]") "," USER("\"there\"")), &request);
    assert_mark(&request, 0, 0, 2, 5);
    assert_message(&request, 0, "user", "hi\nthere");
    kv_api_request_clear(&request);

    /* A name as a model may write it. */
    take(TALK(USER("\"x\"") "," ASSISTANT("[{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"a.b:c\","
                                          "\"input\":{}}]") "," USER("[" RESULT("t") "]")),
        &request);
    assert_string_equal(request.messages[1].calls[0].name, "a.b:c");
    kv_api_request_clear(&request);

    /* Behind a result without text. */
    take(
        TALK(USER("\"x\"") "," ASSISTANT("[" CALL("t") "]") "," USER(
            "[{\"type\":\"tool_result\",\"tool_use_id\":\"t\",\"cache_control\":" SHORT_MARK "}]")),
        &request);
    assert_mark(&request, 0, 3, 0, 5);
    kv_api_request_clear(&request);
}

static void the_bodys_own_mark_is_on_its_last_block(void **state)
{
    (void)state;
    kv_api_request_t request;
    take(ASK(",\"cache_control\":" MARK("1h")), &request);
    assert_int_equal(request.breakpoint_count, 1);
    assert_mark(&request, 0, 1, 0, 60);
    kv_api_request_clear(&request);

    take(HEAD "\"cache_control\":" SHORT_MARK
              ",\"messages\":[" USER("[" TEXT("ab") "," TEXT("") "]") "]}",
        &request);
    assert_int_equal(request.breakpoint_count, 1);
    assert_mark(&request, 0, 1, 0, 5);
    kv_api_request_clear(&request);

    /* One that is there already is it. */
    take(HEAD "\"cache_control\":" SHORT_MARK
              ",\"messages\":[" USER("[" MARKED("ab", "5m") "]") "]}",
        &request);
    assert_int_equal(request.breakpoint_count, 1);
    kv_api_request_clear(&request);
    refuse(HEAD "\"cache_control\":" SHORT_MARK
                ",\"messages\":[" USER("[" MARKED("ab", "1h") "]") "]}",
        400, "cache_control.ttl", "another ttl");
    refuse(HEAD "\"cache_control\":" MARK("1h") ",\"messages\":[" USER(
               "[" MARKED("ab", "5m") "," TEXT("c") "]") "]}",
        400, "cache_control.ttl", "the longer ttl comes first");
}

static void wrong_breakpoints_are_refused(void **state)
{
    (void)state;
    refuse(HEAD "\"system\":[" MARKED("a", "5m") "],\"messages\":[" USER(
               "[" TEXT("x") "," MARKED("b", "1h") "]") "]}",
        400, "messages.0.content.1.cache_control.ttl",
        "the longer ttl comes first, in the order tools, system, messages");
    refuse(HEAD "\"system\":[" MARKED("a", "1h") "],\"tools\":[{\"name\":\"f\",\"input_schema\":{},"
                                                 "\"cache_control\":" SHORT_MARK
                                                 "}],\"messages\":[" USER("\"x\"") "]}",
        400, "system.0.cache_control.ttl", "the longer ttl");
    refuse(TALK(USER("[" MARKED("a", "5m") "," MARKED("b", "5m") "," MARKED("c", "5m") "," MARKED(
               "d", "5m") "," MARKED("e", "5m") "]")),
        400, "cache_control", "on 5 blocks: at most 4");
    refuse(HEAD "\"cache_control\":" SHORT_MARK
                ",\"messages\":[" USER("[" MARKED("a", "5m") "," MARKED("b", "5m") "," MARKED(
                    "c", "5m") "," MARKED("d", "5m") "," TEXT("e") "]") "]}",
        400, "cache_control", "on 5 blocks: at most 4");
    refuse(TALK(USER("[" MARKED("", "5m") "]")), 400, "messages.0.content.0.text", "is empty");
    refuse(TALK(USER("[" MARKED("a", "10m") "]")), 400, "messages.0.content.0.cache_control.ttl",
        "must be \"5m\" or \"1h\"");
    refuse(ASK(",\"cache_control\":{\"type\":\"persistent\"}"), 400, "cache_control.type",
        "must be \"ephemeral\"");
    refuse(ASK(",\"cache_control\":{}"), 400, "cache_control.type", "must be \"ephemeral\"");
    refuse(ASK(",\"cache_control\":true"), 400, "cache_control", "must be an object");
    refuse(ASK(",\"cache_control\":{\"type\":\"ephemeral\",\"ttl\":300}"), 400, "cache_control.ttl",
        "must be a string");
}

/* The first tokens of the prompt up to a breakpoint, as text. */
static void assert_before(const kv_tokenizer_t *tokenizer, const kv_api_request_t *request,
    size_t index, const char *wanted)
{
    char text[512] = "";
    size_t at = 0;
    const kv_api_breakpoint_t *mark = &request->breakpoints[index];
    for (uint32_t i = 0; i < mark->token_count; i++) {
        const char *piece;
        size_t bytes;
        assert_int_equal(
            kv_tokenizer_piece(tokenizer, request->prompts[0].tokens[i], true, &piece, &bytes),
            KV_OK);
        assert_true(at + bytes < sizeof text);
        memcpy(text + at, piece, bytes);
        at += bytes;
    }
    assert_string_equal(text, wanted);
}

static const kv_api_limits_t WIDE = {.model = "tiny",
    .vocabulary_count = 50000,
    .context_tokens_max = 100,
    .default_max_tokens = 16};

static void breakpoints_are_places_in_the_prompt(void **state)
{
    (void)state;
    kv_tokenizer_t *tokenizer;
    kv_error_t cause;
    kv_api_request_t request, unmarked;
    kv_api_error_t error;
    assert_int_equal(kv_tokenizer_open(kv_test_model(), &tokenizer, &cause), KV_OK);
    take(HEAD "\"system\":[" MARKED("Be", "1h") "," MARKED(" brief.", "1h") "],\"messages\":[" USER(
             "[" TEXT("One") "," MARKED(" two", "5m") "," TEXT(
                 " three") "]") "," ASSISTANT("\"Four\"") "," USER("[" MARKED("Five",
             "5m") "]") "]}",
        &request);
    take(HEAD "\"system\":\"Be brief.\",\"messages\":[" USER("\"One two three\"") "," ASSISTANT(
             "\"Four\"") "," USER("\"Five\"") "]}",
        &unmarked);
    assert_true(kv_api_tokenize(&request, tokenizer, &WIDE, &error));
    assert_true(kv_api_tokenize(&unmarked, tokenizer, &WIDE, &error));
    /* A mark changes no prompt: what one marked is found by one that is not. */
    assert_int_equal(request.prompts[0].token_count, unmarked.prompts[0].token_count);
    assert_memory_equal(request.prompts[0].tokens, unmarked.prompts[0].tokens,
        request.prompts[0].token_count * sizeof *request.prompts[0].tokens);
#define SYSTEM "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert_before(tokenizer, &request, 0, "<|im_start|>system\nBe");
    assert_before(tokenizer, &request, 1, SYSTEM);
    assert_before(tokenizer, &request, 2, SYSTEM "<|im_start|>user\nOne two");
    assert_before(tokenizer, &request, 3,
        SYSTEM "<|im_start|>user\nOne two three<|im_end|>\n<|im_start|>assistant\nFour<|im_end|>\n"
               "<|im_start|>user\nFive<|im_end|>\n");
    kv_api_request_clear(&request);
    kv_api_request_clear(&unmarked);
    kv_tokenizer_close(tokenizer);
}

static void an_answer_that_was_begun_goes_on(void **state)
{
    (void)state;
    kv_tokenizer_t *tokenizer;
    kv_error_t cause;
    kv_api_request_t request;
    kv_api_error_t error;
    assert_int_equal(kv_tokenizer_open(kv_test_model(), &tokenizer, &cause), KV_OK);
    take(HEAD "\"system\":\"Be brief.\",\"messages\":[" USER("\"One?\"") "," ASSISTANT(
             "[" MARKED("It is (", "5m") "]") "]}",
        &request);
    assert_true(request.continue_last);
    assert_true(kv_api_tokenize(&request, tokenizer, &WIDE, &error));
    assert_int_equal(request.breakpoints[0].token_count, request.prompts[0].token_count);
    assert_before(tokenizer, &request, 0,
        SYSTEM "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nIt is (");
    kv_api_request_clear(&request);
    kv_tokenizer_close(tokenizer);
}

static void what_the_context_does_not_hold_is_cut_and_counted(void **state)
{
    (void)state;
    kv_tokenizer_t *tokenizer;
    kv_error_t cause;
    kv_api_request_t request;
    kv_api_error_t error;
    kv_api_limits_t narrow = WIDE;
    assert_int_equal(kv_tokenizer_open(kv_test_model(), &tokenizer, &cause), KV_OK);
    take("{\"model\":\"tiny\",\"max_tokens\":100000,\"messages\":[" USER("\"hi\"") "]}", &request);
    assert_true(kv_api_tokenize(&request, tokenizer, &WIDE, &error));
    assert_true(request.max_tokens_cut);
    assert_int_equal(request.max_tokens + request.prompts[0].token_count, 100);
    narrow.context_tokens_max = (uint32_t)request.prompts[0].token_count;
    kv_api_request_clear(&request);
    take(ASK(""), &request);
    assert_true(kv_api_tokenize(&request, tokenizer, &WIDE, &error));
    assert_false(request.max_tokens_cut);
    assert_int_equal(request.max_tokens, 9);
    kv_api_request_clear(&request);
    /* A prompt that fills the context is refused, and can be counted. */
    take(ASK(""), &request);
    assert_false(kv_api_tokenize(&request, tokenizer, &narrow, &error));
    assert_string_equal(error.param, "messages");
    kv_api_request_clear(&request);
    assert_true(parse_as(KV_ANTHROPIC_COUNT_TOKENS, NULL, ASK(""), &request, &error));
    assert_true(kv_api_tokenize(&request, tokenizer, &narrow, &error));
    assert_int_equal(request.prompts[0].token_count, narrow.context_tokens_max);
    kv_api_request_clear(&request);
    kv_tokenizer_close(tokenizer);
}

/* ---- refusals ---- */

static void wrong_messages_are_refused(void **state)
{
    (void)state;
    refuse("", 400, "", "not valid JSON");
    refuse("[]", 400, "", "must be a JSON object");
    refuse("{\"messages\":\"\xff\"}", 400, "", "UTF-8");
    refuse(HEAD "\"messages\":[]}", 400, "messages", "is empty");
    refuse("{\"model\":\"tiny\",\"max_tokens\":9}", 400, "messages", "is missing");
    refuse(HEAD "\"messages\":\"hi\"}", 400, "messages", "must be an array");
    refuse(TALK("1"), 400, "messages.0", "must be an object");
    refuse(
        TALK("{\"role\":\"king\",\"content\":\"x\"}"), 400, "messages.0.role", "must be \"user\"");
    refuse(TALK("{\"role\":\"user\"}"), 400, "messages.0.content", "is missing");
    refuse(TALK(USER("5")), 400, "messages.0.content", "a string or an array of blocks");
    refuse(TALK(USER("[]")), 400, "messages.0.content", "is empty");
    refuse(TALK(USER("\"\"")), 400, "messages.0.content", "is empty");
    refuse(TALK(USER("[1]")), 400, "messages.0.content.0", "must be an object");
    refuse(TALK(USER("[{\"type\":\"text\"}]")), 400, "messages.0.content.0.text", "is missing");
    refuse(TALK(USER("[{\"type\":\"text\",\"text\":1}]")), 400, "messages.0.content.0.text",
        "must be a string");
    refuse(TALK(USER("\"a\"") "," ASSISTANT("\"b \"")), 400, "messages",
        "does not end with white space");
    refuse(
        TALK(USER("\"a\"") "," ASSISTANT("[" TEXT("") "]")), 400, "messages", "must have a text");
    refuse(
        HEAD "\"system\":7,\"messages\":[" USER("\"x\"") "]}", 400, "system", "must be a string");
    refuse(HEAD "\"system\":[{\"type\":\"image\"}],\"messages\":[" USER("\"x\"") "]}", 400,
        "system.0.type", "\"image\" is not supported here");
    static const char *const TYPES[] = {
        "image", "document", "thinking", "search_result", "tool_use", "server_tool_use"};
    for (size_t i = 0; i < sizeof TYPES / sizeof TYPES[0]; i++) {
        char body[256];
        snprintf(body, sizeof body, TALK(USER("[" TEXT("a") ",{\"type\":\"%s\"}]")), TYPES[i]);
        refuse(body, 400, "messages.0.content.1.type", "only \"text\" and \"tool_result\"");
    }
    refuse(TALK(USER("\"a\"") "," ASSISTANT("[" RESULT("t") "]")), 400, "messages.1.content.0.type",
        "only \"text\" and \"tool_use\"");
}

static void wrong_calls_are_refused(void **state)
{
    (void)state;
    refuse(TALK(USER("[" RESULT("t") "]")), 400, "messages.0.content.0.tool_use_id",
        "\"t\" is the id of no tool_use");
    refuse(TALK(USER("\"a\"") "," ASSISTANT("[" CALL("t") "]") "," USER(
               "[" RESULT("t") "," RESULT("t") "]")),
        400, "messages.2.content.1.tool_use_id", "has its result already");
    refuse(TALK(USER("\"a\"") "," ASSISTANT("[" CALL("t") "]") "," USER("\"b\"")), 400, "messages",
        "\"t\" before it has no tool_result");
    refuse(TALK(USER("\"a\"") "," ASSISTANT("[" CALL("t") "]") "," USER("\"b\"") "," ASSISTANT(
               "\"c\"") "," USER("\"d\"")),
        400, "messages.3", "has no tool_result");
    refuse(
        TALK(USER("\"a\"") "," ASSISTANT("[{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"f\"}]")),
        400, "messages.1.content.0.input", "is missing");
    refuse(TALK(USER("\"a\"") "," ASSISTANT("[{\"type\":\"tool_use\",\"name\":\"f\"}]")), 400,
        "messages.1.content.0.id", "is missing");
    refuse(
        TALK(USER("\"a\"") "," ASSISTANT("[" CALL("t") "]") "," USER(
            "[{\"type\":\"tool_result\",\"tool_use_id\":\"t\",\"content\":[{\"type\":\"image\"}]}"
            "]")),
        400, "messages.2.content.0.content.0.type", "\"image\" is not supported");
#define TOOL(more) ASK(",\"tools\":[{\"name\":\"f\",\"input_schema\":{}" more "}]")
    refuse(TOOL(",\"type\":\"web_search_20250305\""), 400, "tools.0.type", "only \"custom\"");
    refuse(TOOL(",\"strict\":true"), 400, "tools.0.strict", "not supported");
    refuse(TOOL(",\"allowed_callers\":[\"code_execution_20250825\"]"), 400,
        "tools.0.allowed_callers", "only [\"direct\"]");
    refuse(TOOL(",\"description\":1"), 400, "tools.0.description", "must be a string");
    refuse(ASK(",\"tools\":[{\"name\":\"f\"}]"), 400, "tools.0.input_schema", "is missing");
    refuse(ASK(",\"tools\":[{\"input_schema\":{}}]"), 400, "tools.0.name", "is missing");
    refuse(ASK(",\"tools\":[{\"name\":\"f g\",\"input_schema\":{}}]"), 400, "tools.0.name",
        "must be of letters");
    refuse(TALK(USER("\"a\"") "," ASSISTANT(
               "[{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"f\\\"\",\"input\":{}}]")),
        400, "messages.1.content.0.name", "must be of letters");
    refuse(ASK(",\"tools\":{}"), 400, "tools", "must be an array");
    refuse(ASK(",\"tool_choice\":{\"type\":\"any\"}"), 400, "tool_choice.type", "\"auto\" or");
    refuse(ASK(",\"tool_choice\":{\"type\":\"tool\",\"name\":\"f\"}"), 400, "tool_choice.type", "");
    refuse(ASK(",\"tool_choice\":\"auto\""), 400, "tool_choice", "must be an object");
    refuse(ASK(",\"tool_choice\":{\"type\":\"auto\",\"disable_parallel_tool_use\":1}"), 400,
        "tool_choice.disable_parallel_tool_use", "must be true or false");
}

static void wrong_options_are_refused(void **state)
{
    (void)state;
    refuse("{\"max_tokens\":9,\"messages\":[" USER("\"a\"") "]}", 400, "model", "is missing");
    refuse("{\"model\":\"big\",\"max_tokens\":9,\"messages\":[" USER("\"a\"") "]}", 404, "model",
        "\"big\" is not served here");
    refuse(
        "{\"model\":\"tiny\",\"messages\":[" USER("\"a\"") "]}", 400, "max_tokens", "is missing");
    refuse("{\"model\":\"tiny\",\"max_tokens\":-1,\"messages\":[" USER("\"a\"") "]}", 400,
        "max_tokens", "out of bounds");
    refuse(ASK(",\"temperature\":1.5"), 400, "temperature", "at most 1");
    refuse(ASK(",\"top_p\":0"), 400, "top_p", "above 0");
    refuse(ASK(",\"top_k\":-1"), 400, "top_k", "out of bounds");
    refuse(ASK(",\"stop_sequences\":\"x\""), 400, "stop_sequences", "an array of strings");
    refuse(ASK(",\"stop_sequences\":[\"\"]"), 400, "stop_sequences.0", "0 bytes");
    refuse(ASK(",\"stop_sequences\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]"), 400,
        "stop_sequences", "9 strings: at most 8");
    refuse(ASK(",\"stream\":1"), 400, "stream", "true or false");
    refuse(ASK(",\"metadata\":{\"user_id\":1}"), 400, "metadata.user_id", "must be a string");
    refuse(ASK(",\"thinking\":{\"type\":\"enabled\",\"budget_tokens\":1024}"), 400, "thinking",
        "not supported");
    refuse(ASK(",\"thinking\":{\"type\":\"adaptive\"}"), 400, "thinking", "\"disabled\"");
    refuse(ASK(",\"speed\":\"fast\""), 400, "speed", "\"standard\"");
    refuse(ASK(",\"mcp_servers\":[{\"url\":\"x\"}]"), 400, "mcp_servers", "not supported");
    refuse(ASK(",\"kvist\":{\"salt\":\"s\"}"), 400, "kvist", "not supported");
    refuse(ASK(",\"container\":\"c\""), 400, "container", "not supported");
    refuse(ASK(",\"output_config\":{\"format\":{\"type\":\"json_schema\"}}"), 400,
        "output_config.format", "not supported");
    refuse(ASK(",\"diagnostics\":{\"previous_message_id\":\"msg_1\"}"), 400,
        "diagnostics.previous_message_id", "kvist explain");
    kv_api_request_t request;
    kv_api_error_t error;
    assert_false(parse_as(KV_ANTHROPIC_MESSAGES, "2019-01-01", ASK(""), &request, &error));
    assert_string_equal(error.param, "anthropic-version");
    static const char *const VERSIONS[] = {NULL, "2023-06-01", "2026-10-21"};
    for (size_t i = 0; i < sizeof VERSIONS / sizeof VERSIONS[0]; i++) {
        assert_true(parse_as(
            KV_ANTHROPIC_MESSAGES, VERSIONS[i], ASK(",\"temperature\":0"), &request, &error));
        assert_true(request.temperature == 0);
        kv_api_request_clear(&request);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_body_becomes_a_request),
        cmocka_unit_test(nothing_is_generated_where_nothing_is_asked),
        cmocka_unit_test(one_turn_is_one_message),
        cmocka_unit_test(calls_and_results_become_what_the_model_knows),
        cmocka_unit_test(a_breakpoint_lies_behind_its_block),
        cmocka_unit_test(the_bodys_own_mark_is_on_its_last_block),
        cmocka_unit_test(wrong_breakpoints_are_refused),
        cmocka_unit_test(breakpoints_are_places_in_the_prompt),
        cmocka_unit_test(an_answer_that_was_begun_goes_on),
        cmocka_unit_test(what_the_context_does_not_hold_is_cut_and_counted),
        cmocka_unit_test(wrong_messages_are_refused),
        cmocka_unit_test(wrong_calls_are_refused),
        cmocka_unit_test(wrong_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
