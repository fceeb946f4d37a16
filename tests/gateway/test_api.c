/* Requests as pure functions: what is taken, and every refusal with its code and field. */
#include "testing/testing.h"

#include "base/bytes.h"
#include "gateway/api.h"
#include "gateway/openai/openai.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const kv_api_limits_t LIMITS = {
    .model = "tiny", .vocabulary_count = 1000, .context_tokens_max = 64, .default_max_tokens = 16};

static bool parse(
    kv_api_kind_t kind, const char *body, kv_api_request_t *request, kv_api_error_t *error)
{
    const kv_call_t call = {.variant = kind, .body = body, .body_bytes = strlen(body)};
    return kv_openai_parse(&call, &LIMITS, request, error);
}

static void expect_error(kv_api_kind_t kind, const char *body, unsigned http_code,
    const char *param, const char *message)
{
    kv_api_request_t request;
    kv_api_error_t error;
    if (parse(kind, body, &request, &error)) {
        kv_api_request_clear(&request);
        fail_msg("%s was taken", body);
    }
    if (error.http_code != http_code || strcmp(error.param, param) != 0 ||
        strstr(error.message, message) == NULL) {
        fail_msg("%s gave %u \"%s\": %s", body, error.http_code, error.param, error.message);
    }
}

#define CHAT(more) "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]" more "}"
#define COMPLETION(more) "{\"prompt\":\"hi\"" more "}"
#define CALL_OF(arguments)                                                                         \
    "{\"id\":\"c\",\"type\":\"function\",\"function\":{\"name\":\"add\",\"arguments\":"            \
    "\"" arguments "\"}}"
#define TOOL_OF(name, more) "{\"type\":\"function\",\"function\":{\"name\":\"" name "\"" more "}}"

static void test_chat(void **state)
{
    (void)state;
    kv_api_request_t request;
    kv_api_error_t error;
    const char *body =
        "{\"model\":\"tiny\",\"messages\":[{\"role\":\"developer\",\"content\":\"be brief\"},"
        "{\"role\":\"user\",\"name\":\"x\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
        "{\"type\":\"text\",\"text\":\"b\\u00e9\"}]},{\"role\":\"assistant\",\"content\":\"\"}],"
        "\"max_completion_tokens\":7,\"temperature\":0,\"top_p\":0.5,\"top_k\":3,\"seed\":-1,"
        "\"stop\":[\"x\",\"yy\"],\"stream\":true,\"stream_options\":{\"include_usage\":true},"
        "\"ignore_eos\":true,\"n\":1,\"logprobs\":false,\"user\":\"u\",\"whatever\":{\"a\":[1]},"
        "\"presence_penalty\":0,\"tools\":[],\"response_format\":{\"type\":\"text\"},"
        "\"prompt_cache_key\":\"k\","
        "\"kvist\":{\"cache_mode\":\"bypass\",\"salt\":\"s1\",\"session\":\"s-2\"}}";
    if (!parse(KV_API_CHAT, body, &request, &error)) {
        fail_msg("%s", error.message);
    }
    assert_int_equal(request.message_count, 3);
    assert_string_equal(request.messages[0].role, "system");
    assert_int_equal(request.messages[1].content_bytes, 4);
    assert_memory_equal(request.messages[1].content, "ab\xc3\xa9", 4);
    assert_int_equal(request.messages[2].content_bytes, 0);
    assert_int_equal(request.max_tokens, 7);
    assert_true(request.temperature == 0 && request.top_p == 0.5f);
    assert_int_equal(request.top_k, 3);
    assert_true(request.has_seed && request.seed == UINT64_MAX);
    assert_int_equal(request.stop_count, 2);
    assert_string_equal(request.stops[1], "yy");
    assert_true(request.stream && request.include_usage && request.ignore_eos);
    assert_int_equal(request.cache_mode, KVIST__WIRE__CACHE_MODE__CACHE_BYPASS);
    assert_int_equal(request.salt_bytes, 2);
    assert_string_equal(request.session, "s-2");
    kv_api_request_clear(&request);

    assert_true(parse(
        KV_API_CHAT, CHAT(",\"stop\":null,\"seed\":null,\"max_tokens\":null"), &request, &error));
    assert_true(request.temperature == 1 && request.top_p == 1 && !request.stream);
    assert_false(request.has_seed);
    assert_int_equal(request.max_tokens, 0);
    kv_api_request_clear(&request);

    /* Clients without integers write them so. */
    assert_true(parse(KV_API_COMPLETION, "{\"prompt\":[1.0,2],\"max_tokens\":8.0,\"seed\":-3e2}",
        &request, &error));
    assert_int_equal(request.prompts[0].tokens[0], 1);
    assert_int_equal(request.max_tokens, 8);
    assert_true(request.seed == (uint64_t)-300);
    kv_api_request_clear(&request);
}

static void test_tools(void **state)
{
    (void)state;
    kv_api_request_t request;
    kv_api_error_t error;
    static const char BODY[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"1+1?\"},{\"role\":\"assistant\","
        "\"content\":null,\"tool_calls\":[" CALL_OF("{\\\"x\\\":1}") "," CALL_OF(
            "") "]},"
                "{\"role\":\"tool\",\"tool_call_id\":\"c\",\"content\":\"2\"}],\"tools\":[" TOOL_OF(
                    "add",
                    ",\"parameters\":{\"type\":\"object\",\"minimum\":0.1,\"x\":[1,\"é\"]}") "]%s}";
    char body[1024];
    snprintf(body, sizeof body, BODY, ",\"parallel_tool_calls\":false,\"tool_choice\":\"auto\"");
    if (!parse(KV_API_CHAT, body, &request, &error)) {
        fail_msg("%s", error.message);
    }
    assert_true(request.has_tools && request.single_tool_call);
    assert_int_equal(request.tool_count, 1);
    assert_string_equal(request.tools[0],
        "{\"type\": \"function\", \"function\": {\"name\": \"add\", \"parameters\": {\"type\": "
        "\"object\", \"minimum\": 0.1, \"x\": [1, \"é\"]}}}");
    assert_int_equal(request.messages[1].call_count, 2);
    assert_int_equal(request.messages[1].content_bytes, 0);
    assert_string_equal(request.messages[1].calls[0].name, "add");
    assert_string_equal(request.messages[1].calls[0].arguments, "{\"x\":1}");
    assert_string_equal(request.messages[1].calls[1].arguments, "{}");
    kv_api_request_clear(&request);
    snprintf(body, sizeof body, BODY, ",\"tool_choice\":\"none\"");
    assert_true(parse(KV_API_CHAT, body, &request, &error));
    assert_true(!request.has_tools && request.tool_count == 0);
    kv_api_request_clear(&request);
}

static void test_cache_fields(void **state)
{
    (void)state;
    kv_api_request_t request;
    kv_api_error_t error;
    assert_true(parse(KV_API_CHAT,
        CHAT(",\"prompt_cache_key\":\"team-7\",\"prompt_cache_retention\":\"24h\",\"service_tier\":"
             "\"flex\",\"store\":true,\"metadata\":{\"a\":\"b\"},\"modalities\":[\"text\"]"),
        &request, &error));
    assert_string_equal(request.session, "key:team-7");
    assert_int_equal(request.breakpoint_count, 1);
    assert_true(request.breakpoints[0].whole_prompt && !request.breakpoints[0].limit);
    assert_true(request.breakpoints[0].ttl_ns == UINT64_C(86400000000000));
    assert_int_equal(request.priority, KV_API_BATCH);
    kv_api_request_clear(&request);
    /* A key that is no label is known by its hash: the same for the same, and plain. */
    char sessions[2][KV_API_SESSION_BYTES_MAX + 1];
    for (int i = 0; i < 2; i++) {
        assert_true(parse(KV_API_COMPLETION,
            i == 0 ? COMPLETION(
                         ",\"prompt_cache_key\":\"a\\n\",\"prompt_cache_retention\":\"in_memory\"")
                   : COMPLETION(
                         ",\"prompt_cache_key\":\"b\\n\",\"prompt_cache_retention\":\"in-memory\""),
            &request, &error));
        assert_int_equal(strlen(request.session), 20);
        assert_true(request.breakpoints[0].ttl_ns == UINT64_C(300000000000));
        memcpy(sessions[i], request.session, sizeof sessions[i]);
        kv_api_request_clear(&request);
    }
    assert_string_not_equal(sessions[0], sessions[1]);
    expect_error(KV_API_CHAT, CHAT(",\"prompt_cache_key\":5"), 400, "prompt_cache_key", "a string");
    expect_error(KV_API_CHAT, CHAT(",\"prompt_cache_retention\":\"1h\""), 400,
        "prompt_cache_retention", "\"24h\"");
    expect_error(
        KV_API_CHAT, CHAT(",\"modalities\":[\"text\",\"audio\"]"), 400, "modalities", "only");
    expect_error(KV_API_CHAT, CHAT(",\"service_tier\":1"), 400, "service_tier", "a string");
}

static void test_completion(void **state)
{
    (void)state;
    kv_api_request_t request;
    kv_api_error_t error;
    assert_true(parse(KV_API_COMPLETION, "{\"prompt\":[0,999,5]}", &request, &error));
    assert_int_equal(request.prompts[0].token_count, 3);
    assert_int_equal(request.prompts[0].tokens[1], 999);
    kv_api_request_clear(&request);
    assert_true(parse(KV_API_COMPLETION, "{\"prompt\":[[1,2]]}", &request, &error));
    assert_int_equal(request.prompts[0].token_count, 2);
    kv_api_request_clear(&request);
    assert_true(parse(KV_API_COMPLETION, "{\"prompt\":[\"hi\"],\"stop\":\".\"}", &request, &error));
    assert_int_equal(request.prompts[0].text_bytes, 2);
    kv_api_request_clear(&request);
}

static void test_wrong_json(void **state)
{
    (void)state;
    expect_error(KV_API_CHAT, "", 400, "", "not valid JSON: line 1");
    expect_error(KV_API_CHAT, "{\"a\":\n 1,}", 400, "", "line 2, column");
    expect_error(KV_API_CHAT, "[]", 400, "", "must be a JSON object, but got an array");
    expect_error(KV_API_CHAT, "7", 400, "", "JSON");
    expect_error(KV_API_CHAT, "{} x", 400, "", "not valid JSON");
    expect_error(
        KV_API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}", 400, "", "UTF-8");
    expect_error(KV_API_CHAT, "{\"messages\":\"\xed\xa0\x80\"}", 400, "", "UTF-8");
    expect_error(KV_API_CHAT, "{\"messages\":\"\\ud800\"}", 400, "", "not valid JSON");
    expect_error(KV_API_CHAT, "{\"messages\":\"\\u0000\"}", 400, "", "not valid JSON");
    expect_error(KV_API_CHAT, "{\"seed\":99999999999999999999}", 400, "", "integer");
    size_t depth = 100000;
    char *deep = malloc(depth + 1);
    memset(deep, '[', depth);
    deep[depth] = '\0';
    expect_error(KV_API_CHAT, deep, 400, "", "depth");
    free(deep);
}

static void test_wrong_messages(void **state)
{
    (void)state;
    expect_error(KV_API_CHAT, "{}", 400, "messages", "is missing");
    expect_error(KV_API_CHAT, "{\"messages\":null}", 400, "messages", "is missing");
    expect_error(KV_API_CHAT, "{\"messages\":\"hi\"}", 400, "messages", "must be an array");
    expect_error(KV_API_CHAT, "{\"messages\":[]}", 400, "messages", "0 of them: must be 1 to 4096");
    expect_error(KV_API_CHAT, "{\"messages\":[1]}", 400, "messages[0]", "but got an integer");
    expect_error(KV_API_CHAT, "{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}", 400,
        "messages[0].role", "must be one of system");
    expect_error(KV_API_CHAT, "{\"messages\":[{\"content\":\"x\"}]}", 400, "messages[0].role", "");
    expect_error(KV_API_CHAT, "{\"messages\":[{\"role\":\"user\"}]}", 400, "messages[0].content",
        "is missing");
    expect_error(KV_API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":5}]}", 400,
        "messages[0].content", "a string or an array of parts");
    expect_error(KV_API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":null}]}", 400,
        "messages[0].content", "but got null");
    expect_error(KV_API_CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", 400,
        "messages[0].content", "[0]: only");
    expect_error(KV_API_CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},5]}]}",
        400, "messages[0].content", "[1]: only");
    expect_error(KV_API_CHAT,
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]}]}", 400,
        "messages[0].tool_calls[0]", "must be {\"id\"");
    expect_error(KV_API_CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"\",\"tool_calls\":[" CALL_OF("{}") "]}]}",
        400, "messages[0].tool_calls", "only an assistant's");
    expect_error(KV_API_CHAT,
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":false}]}", 400,
        "messages[0].tool_calls", "an array, but got false");
    expect_error(KV_API_CHAT,
        "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[" CALL_OF("[1]") "]}]}", 400,
        "messages[0].tool_calls[0]", "the text of a JSON object");
}

static void test_wrong_prompt(void **state)
{
    (void)state;
    expect_error(KV_API_COMPLETION, "{}", 400, "prompt", "is missing");
    expect_error(
        KV_API_COMPLETION, "{\"prompt\":{}}", 400, "prompt", "must be a string or an array");
    expect_error(KV_API_COMPLETION, "{\"prompt\":[1,1000]}", 400, "prompt[1]",
        "1000 is out of bounds: must be 0 to 999");
    expect_error(KV_API_COMPLETION, "{\"prompt\":[-1]}", 400, "prompt[0]", "-1 is out of bounds");
    expect_error(KV_API_COMPLETION, "{\"prompt\":[1,\"a\"]}", 400, "prompt[1]", "a token id");
    expect_error(KV_API_COMPLETION, "{\"prompt\":[1.5]}", 400, "prompt[0]", "a token id");
    expect_error(KV_API_COMPLETION, "{\"prompt\":[\"a\",5]}", 400, "prompt[1]",
        "must be a string or an array of token ids");
    expect_error(KV_API_COMPLETION, "{\"prompt\":[[1],[2,1000]]}", 400, "prompt[1][1]",
        "1000 is out of bounds");
    expect_error(KV_API_COMPLETION, "{\"prompt\":[[1],[2]],\"n\":65}", 400, "n",
        "65 answers to each of 2 prompts: at most 128 in all");
    char body[512] = "{\"prompt\":[1";
    for (int i = 0; i < 64; i++) {
        strcat(body, ",1");
    }
    strcat(body, "]}");
    expect_error(
        KV_API_COMPLETION, body, 400, "prompt", "65 tokens, but the model's context holds 64");
}

static void test_wrong_options(void **state)
{
    (void)state;
    expect_error(
        KV_API_CHAT, CHAT(",\"model\":\"other\""), 404, "model", "\"other\" is not served");
    expect_error(KV_API_CHAT, CHAT(",\"model\":5"), 400, "model", "must be a string");
    expect_error(
        KV_API_CHAT, CHAT(",\"temperature\":-0.1"), 400, "temperature", "at least 0, at most 2");
    expect_error(KV_API_CHAT, CHAT(",\"temperature\":2.01"), 400, "temperature", "at most 2");
    expect_error(
        KV_API_CHAT, CHAT(",\"temperature\":\"1\""), 400, "temperature", "must be a number");
    expect_error(KV_API_CHAT, CHAT(",\"temperature\":1e400"), 400, "", "JSON");
    expect_error(KV_API_CHAT, CHAT(",\"top_p\":0"), 400, "top_p", "above 0");
    expect_error(KV_API_CHAT, CHAT(",\"top_p\":1e-60"), 400, "top_p", "above 0");
    expect_error(KV_API_CHAT, CHAT(",\"top_p\":1.1"), 400, "top_p", "at most 1");
    expect_error(KV_API_CHAT, CHAT(",\"top_k\":-1"), 400, "top_k", "-1 is out of bounds");
    expect_error(KV_API_CHAT, CHAT(",\"top_k\":2.5"), 400, "top_k", "must be an integer");
    expect_error(KV_API_CHAT, CHAT(",\"seed\":1e17"), 400, "seed", "must be an integer");
    expect_error(KV_API_CHAT, CHAT(",\"max_tokens\":65.0"), 400, "max_tokens", "must be 1 to 64");
    expect_error(KV_API_CHAT, CHAT(",\"seed\":9223372036854775808"), 400, "", "beyond 64 bits");
    expect_error(
        KV_API_CHAT, CHAT(",\"user\":\"a\\u0000b\""), 400, "", "holds the character \\u0000");
    expect_error(KV_API_CHAT, CHAT(",\"a\\u0000b\":1"), 400, "", "holds the character \\u0000");
    expect_error(KV_API_CHAT, CHAT(",\"seed\":true"), 400, "seed", "must be an integer");
    expect_error(KV_API_CHAT, CHAT(",\"max_tokens\":0"), 400, "max_tokens", "must be 1 to 64");
    expect_error(KV_API_CHAT, CHAT(",\"max_tokens\":65"), 400, "max_tokens", "65 is out of bounds");
    expect_error(KV_API_CHAT, CHAT(",\"max_completion_tokens\":\"9\""), 400,
        "max_completion_tokens", "integer");
    expect_error(KV_API_CHAT, CHAT(",\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]"), 400, "stop",
        "5 strings: at most 4");
    expect_error(KV_API_CHAT, CHAT(",\"stop\":\"\""), 400, "stop", "0 bytes: must be 1 to");
    expect_error(KV_API_CHAT, CHAT(",\"stop\":[7]"), 400, "stop[0]", "must be a string");
    expect_error(KV_API_CHAT, CHAT(",\"stop\":{}"), 400, "stop", "must be a string");
    expect_error(KV_API_CHAT, CHAT(",\"stream\":1"), 400, "stream", "true or false");
    expect_error(KV_API_CHAT, CHAT(",\"stream_options\":{}"), 400, "stream_options", "only with");
    expect_error(KV_API_CHAT, CHAT(",\"stream\":true,\"stream_options\":[]"), 400, "stream_options",
        "an object");
    expect_error(KV_API_CHAT, CHAT(",\"ignore_eos\":0"), 400, "ignore_eos", "true or false");
    expect_error(KV_API_CHAT, CHAT(",\"n\":0"), 400, "n", "0 is out of bounds: must be 1 to 128");
    expect_error(KV_API_CHAT, CHAT(",\"n\":129"), 400, "n", "129 is out of bounds");
    expect_error(KV_API_CHAT, CHAT(",\"n\":\"1\""), 400, "n", "must be an integer");
    expect_error(KV_API_CHAT, CHAT(",\"logprobs\":1"), 400, "logprobs", "true or false");
    expect_error(KV_API_CHAT, CHAT(",\"top_logprobs\":2"), 400, "top_logprobs", "only with");
    expect_error(KV_API_CHAT, CHAT(",\"logprobs\":true,\"top_logprobs\":21"), 400, "top_logprobs",
        "21 is out of bounds: must be 0 to 20");
    expect_error(
        KV_API_COMPLETION, COMPLETION(",\"logprobs\":true"), 400, "logprobs", "an integer");
    expect_error(
        KV_API_COMPLETION, COMPLETION(",\"logprobs\":-1"), 400, "logprobs", "-1 is out of bounds");
    expect_error(KV_API_COMPLETION, COMPLETION(",\"echo\":true"), 400, "echo", "not supported");
    expect_error(KV_API_COMPLETION, COMPLETION(",\"best_of\":3"), 400, "best_of", "only 1");
    expect_error(KV_API_CHAT, CHAT(",\"tools\":{}"), 400, "tools", "must be an array");
    expect_error(KV_API_CHAT, CHAT(",\"tools\":[{}]"), 400, "tools[0]", "only {\"type\"");
    expect_error(KV_API_CHAT, CHAT(",\"tools\":[" TOOL_OF("a b", "") "]"), 400, "tools[0]",
        "function.name: must be");
    expect_error(KV_API_CHAT, CHAT(",\"tools\":[" TOOL_OF("f", ",\"strict\":true") "]"), 400,
        "tools[0]", "function.strict");
    expect_error(KV_API_CHAT, CHAT(",\"tools\":[" TOOL_OF("f", ",\"parameters\":5") "]"), 400,
        "tools[0]", "parameters are an object");
    expect_error(KV_API_CHAT,
        CHAT(",\"tools\":[" TOOL_OF("f", "") "],\"tool_choice\":\"required\""), 400, "tool_choice",
        "only \"auto\" and \"none\"");
    expect_error(KV_API_CHAT, CHAT(",\"parallel_tool_calls\":1"), 400, "parallel_tool_calls",
        "true or false");
    expect_error(
        KV_API_CHAT, CHAT(",\"frequency_penalty\":0.5"), 400, "frequency_penalty", "not supported");
    expect_error(
        KV_API_CHAT, CHAT(",\"logit_bias\":{\"1\":5}"), 400, "logit_bias", "not supported");
    expect_error(KV_API_CHAT, CHAT(",\"response_format\":{\"type\":\"json_object\"}"), 400,
        "response_format", "only");
    expect_error(KV_API_CHAT, CHAT(",\"kvist\":5"), 400, "kvist", "an object");
    expect_error(
        KV_API_CHAT, CHAT(",\"kvist\":{\"slat\":\"x\"}"), 400, "kvist", "\"slat\" is no field");
    expect_error(KV_API_CHAT, CHAT(",\"kvist\":{\"salt\":5}"), 400, "kvist.salt", "a string");
    expect_error(KV_API_CHAT, CHAT(",\"kvist\":{\"session\":\"a\\\"b\"}"), 400, "kvist.session",
        "without quotes");
    expect_error(
        KV_API_CHAT, CHAT(",\"kvist\":{\"session\":5}"), 400, "kvist.session", "at most 128");
    expect_error(
        KV_API_CHAT, CHAT(",\"kvist\":{\"cache_mode\":\"rw\"}"), 400, "kvist.cache_mode", "one of");
    char body[1024], stop[600];
    memset(stop, 'x', 300);
    stop[300] = '\0';
    snprintf(body, sizeof body, CHAT(",\"stop\":\"%s\""), stop);
    expect_error(KV_API_CHAT, body, 400, "stop", "300 bytes: must be 1 to 256");
    snprintf(body, sizeof body, CHAT(",\"kvist\":{\"salt\":\"%s\"}"), stop);
    expect_error(KV_API_CHAT, body, 400, "kvist.salt", "300 bytes: at most 256");
    /* An error that quotes and cuts is still text. */
    strcpy(body, "{\"model\":\"x");
    for (int i = 0; i < 60; i++) {
        strcat(body, "\xf0\x9f\x8c\xb1");
    }
    strcat(body, "\"}");
    kv_api_request_t request;
    kv_api_error_t error;
    assert_false(parse(KV_API_CHAT, body, &request, &error));
    assert_true(kv_utf8_valid(error.message, strlen(error.message)));
}

static void test_tokenize(void **state)
{
    (void)state;
    kv_tokenizer_t *tokenizer;
    kv_error_t cause;
    kv_api_request_t request;
    kv_api_error_t error;
    assert_int_equal(kv_tokenizer_open(kv_test_model(), &tokenizer, &cause), KV_OK);
    assert_true(parse(KV_API_CHAT, CHAT(""), &request, &error));
    assert_true(kv_api_tokenize(&request, tokenizer, &LIMITS, &error));
    assert_true(request.prompts[0].token_count > 5 && request.max_tokens == 16);
    kv_api_request_clear(&request);
    /* The default shrinks to what the context leaves; a wish that does not fit is refused. */
    const char *long_prompt =
        "{\"prompt\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,"
        "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]%s}";
    char body[512];
    snprintf(body, sizeof body, long_prompt, "");
    assert_true(parse(KV_API_COMPLETION, body, &request, &error));
    assert_true(kv_api_tokenize(&request, tokenizer, &LIMITS, &error));
    assert_int_equal(request.max_tokens, 4);
    kv_api_request_clear(&request);
    snprintf(body, sizeof body, long_prompt, ",\"max_tokens\":5");
    assert_true(parse(KV_API_COMPLETION, body, &request, &error));
    assert_false(kv_api_tokenize(&request, tokenizer, &LIMITS, &error));
    assert_string_equal(error.code, "context_length_exceeded");
    assert_string_equal(error.param, "max_tokens");
    kv_api_request_clear(&request);
    char text[2048];
    memset(text, 'q', sizeof text);
    snprintf(body, sizeof body, "{\"prompt\":\"%.300s\"}", text);
    assert_true(parse(KV_API_COMPLETION, body, &request, &error));
    assert_false(kv_api_tokenize(&request, tokenizer, &LIMITS, &error));
    assert_non_null(strstr(error.message, "tokens, but the model's context holds 64"));
    kv_api_request_clear(&request);
    assert_true(parse(KV_API_COMPLETION, "{\"prompt\":[]}", &request, &error));
    assert_false(kv_api_tokenize(&request, tokenizer, &LIMITS, &error));
    assert_string_equal(error.param, "prompt");
    kv_api_request_clear(&request);
    kv_tokenizer_close(tokenizer);
}

/* Good bodies with bytes changed, cut, doubled: an answer each time, and nothing else. */
static void test_random_bodies(void **state)
{
    (void)state;
    static const char *const BODIES[] = {
        CHAT(",\"model\":\"tiny\",\"temperature\":0.5,\"stop\":[\"a\",\"b\"],\"stream\":true,"
             "\"stream_options\":{\"include_usage\":true},\"max_tokens\":5,\"n\":1"),
        "{\"prompt\":[1,2,3,[4]],\"seed\":12,\"top_p\":0.1,\"kvist\":{\"salt\":\"a\"},\"best_of\":"
        "1}",
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"\xc3\xa9\"}]}"
        "]}"};
    static const char BYTES[] = "{}[]\",:0129-.eEtruefalsn\\u\xff\xc3 \n";
    uint64_t seed = kv_test_seed();
    for (int round = 0; round < (kv_test_long() ? 2000000 : 60000); round++) {
        char body[512];
        size_t bytes = strlen(BODIES[round % 3]);
        memcpy(body, BODIES[round % 3], bytes);
        for (uint64_t i = kv_test_random(&seed) % 4; i > 0 && bytes > 0; i--) {
            size_t at = kv_test_random(&seed) % bytes;
            switch (kv_test_random(&seed) % 3) {
            case 0:
                body[at] = BYTES[kv_test_random(&seed) % (sizeof BYTES - 1)];
                break;
            case 1:
                bytes = at;
                break;
            default:
                memmove(body + at, body + at + 1, bytes - at - 1);
                bytes--;
            }
        }
        kv_api_request_t request;
        kv_api_error_t error;
        kv_api_kind_t kind = round % 3 == 1 ? KV_API_COMPLETION : KV_API_CHAT;
        const kv_call_t call = {.variant = kind, .body = body, .body_bytes = bytes};
        if (kv_openai_parse(&call, &LIMITS, &request, &error)) {
            kv_api_request_clear(&request);
        } else {
            assert_true(error.http_code == 400 || error.http_code == 404);
            size_t count;
            char *text = kv_openai_error(&error, NULL, false, &count);
            free(text);
        }
    }
}

/* ---- answers ---- */

static json_t *read_back(char *text, size_t bytes, const char *prefix, const char *suffix)
{
    assert_int_equal(strlen(text), bytes);
    assert_memory_equal(text, prefix, strlen(prefix));
    assert_string_equal(text + bytes - strlen(suffix), suffix);
    json_t *document =
        json_loadb(text + strlen(prefix), bytes - strlen(prefix) - strlen(suffix), 0, NULL);
    assert_non_null(document);
    free(text);
    return document;
}

static const char *string_at(json_t *document, const char *name)
{
    return json_string_value(json_object_get(document, name));
}

static void test_answers(void **state)
{
    (void)state;
    Kvist__Wire__Usage node = KVIST__WIRE__USAGE__INIT;
    node.miss = (char *)"short";
    node.prefilled_by = (char *)"p\xff"; /* a peer's text */
    node.ttft_ns = 1500000;
    kv_api_request_t request = {.kind = KV_API_CHAT, .include_usage = true};
    kv_choice_t choices[2] = {{.text = "a\"b", .text_bytes = 3, .finish = KV_FINISH_STOP},
        {.index = 1, .text = "", .finish = KV_FINISH_LENGTH}};
    kv_answer_t answer = {.request = &request,
        .id = "chatcmpl-1",
        .model = "tiny",
        .created_unix_s = 5,
        .usage = {.prompt_tokens = 60,
            .generated_tokens = 7,
            .cached_tokens = {[KV_TIER_DEVICE] = 16, [KV_TIER_DISK] = 32},
            .node = &node},
        .choices = choices,
        .choice_count = 2};
    size_t bytes;
    char *text = kv_openai_whole(&answer, &bytes);
    json_t *document = read_back(text, bytes, "", "");
    assert_string_equal(string_at(document, "object"), "chat.completion");
    json_t *choice = json_array_get(json_object_get(document, "choices"), 0);
    assert_string_equal(string_at(json_object_get(choice, "message"), "content"), "a\"b");
    choice = json_array_get(json_object_get(document, "choices"), 1);
    assert_string_equal(string_at(choice, "finish_reason"), "length");
    json_t *told = json_object_get(document, "usage");
    int total, hits, disk;
    assert_int_equal(
        json_unpack(told, "{s:i,s:{s:i},s:{s:{s:i}}}", "total_tokens", &total,
            "prompt_tokens_details", "cached_tokens", &hits, "kvist", "cached", "disk", &disk),
        0);
    assert_int_equal(total, 67);
    assert_int_equal(hits, 48);
    assert_int_equal(disk, 32);
    json_decref(document);

    kv_choice_t piece = {.index = 1, .first = true, .text = ""};
    text = kv_openai_event(&answer, &piece, &bytes);
    document = read_back(text, bytes, "data: ", "\n\n");
    choice = json_array_get(json_object_get(document, "choices"), 0);
    assert_string_equal(string_at(json_object_get(choice, "delta"), "role"), "assistant");
    assert_int_equal(json_integer_value(json_object_get(choice, "index")), 1);
    assert_true(json_is_null(json_object_get(document, "usage")));
    json_decref(document);

    text = kv_openai_end(&answer, &bytes);
    document = read_back(text, bytes, "data: ", "\n\ndata: [DONE]\n\n");
    assert_int_equal(json_array_size(json_object_get(document, "choices")), 0);
    json_decref(document);
    request.include_usage = false;
    text = kv_openai_end(&answer, &bytes);
    assert_string_equal(text, "data: [DONE]\n\n");
    assert_int_equal(bytes, strlen(text));
    free(text);

    kv_api_error_t error;
    kv_api_fail(&error, 429, "", "overloaded", "line\n\"quoted\"");
    text = kv_openai_error(&error, NULL, false, &bytes);
    document = read_back(text, bytes, "", "");
    json_t *inner = json_object_get(document, "error");
    assert_string_equal(string_at(inner, "type"), "rate_limit_error");
    assert_string_equal(string_at(inner, "message"), "line\n\"quoted\"");
    assert_true(json_is_null(json_object_get(inner, "param")));
    json_decref(document);
}

/* Kvist's own headers, whichever API. */
static void test_headers(void **state)
{
    (void)state;
    const kv_field_t fields[] = {{"X-Kvist-Agent", "planner"}, {"x-kvist-session", "s-1"},
        {"x-kvist-priority", "background"}, {"x-kvist-cache-mode", "read"}};
    const kv_call_t call = {.headers = {fields, 4}};
    kv_api_request_t request = {.cache_mode = KVIST__WIRE__CACHE_MODE__CACHE_BYPASS};
    kv_api_error_t error;
    assert_true(kv_api_take_headers(&call, &request, &error));
    assert_string_equal(request.labels.agent, "planner");
    assert_string_equal(request.labels.step, "");
    assert_string_equal(request.session, "s-1");
    assert_int_equal(request.priority, KV_API_BACKGROUND);
    assert_true(request.has_cache_mode);
    assert_int_equal(request.cache_mode, KVIST__WIRE__CACHE_MODE__CACHE_READ);
    static const kv_field_t WRONG[] = {{"x-kvist-agent", "a\"b"},
        {"x-kvist-step", "0123456789012345678901234567890123456789012345678901234567890123456789"},
        {"x-kvist-priority", "high"}, {"x-kvist-cache-mode", "rw"}};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        const kv_call_t wrong = {.headers = {&WRONG[i], 1}};
        kv_api_request_t other = {0};
        assert_false(kv_api_take_headers(&wrong, &other, &error));
        assert_int_equal(error.http_code, 400);
        assert_string_equal(error.param, WRONG[i].name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat),
        cmocka_unit_test(test_tools),
        cmocka_unit_test(test_cache_fields),
        cmocka_unit_test(test_completion),
        cmocka_unit_test(test_wrong_json),
        cmocka_unit_test(test_wrong_messages),
        cmocka_unit_test(test_wrong_prompt),
        cmocka_unit_test(test_wrong_options),
        cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_random_bodies),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_headers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
