/* Gemini's dialect as functions: what each request becomes, every refusal with its code and field,
 * and answers to the byte. */
#include "testing/testing.h"

#include "base/memory.h"
#include "gateway/gemini/gemini_internal.h"
#include "gateway/gemini/times.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t START = 1795000000ULL * KV_NS_PER_S; /* 2026-11-18T11:06:40Z */
static const uint64_t HOUR = 3600ULL * KV_NS_PER_S;

typedef struct {
    kv_virtual_clock_t clock;
    kv_api_limits_t limits;
    kv_field_t query[2];
    const char *tenant;
} bench_t;

static bench_t *make_bench(void)
{
    bench_t *bench = kv_allocate(sizeof *bench);
    kv_virtual_clock_init(&bench->clock, START);
    bench->limits = (kv_api_limits_t){.model = "tiny",
        .vocabulary_count = 1000,
        .context_tokens_max = 64,
        .default_max_tokens = 16,
        .block_tokens = 4};
    const kv_contents_params_t params = {
        .clock = &bench->clock.clock, .count_max = 16, .bytes_max = 8192};
    kv_error_t error;
    assert_int_equal(kv_contents_open(&params, &bench->limits.contents, &error), KV_OK);
    return bench;
}

static void end_bench(bench_t *bench)
{
    kv_contents_close(bench->limits.contents);
    free(bench);
}

static kv_call_t make_call(
    const bench_t *bench, kv_gemini_kind_t variant, const char *rest, const char *body)
{
    size_t count = 0;
    while (count < 2 && bench->query[count].name != NULL) {
        count++;
    }
    return (kv_call_t){.method = "POST",
        .path = rest,
        .rest = rest,
        .variant = variant,
        .tenant = bench->tenant,
        .query = {bench->query, count},
        .body = body,
        .body_bytes = strlen(body)};
}

static bool parse(bench_t *bench, kv_gemini_kind_t variant, const char *rest, const char *body,
    kv_api_request_t *request, kv_api_error_t *error)
{
    kv_call_t call = make_call(bench, variant, rest, body);
    return kv_gemini_parse(&call, &bench->limits, request, error);
}

static void clear(kv_api_request_t *request)
{
    kv_gemini_release(request->own);
    kv_api_request_clear(request);
}

static kv_api_request_t take(
    bench_t *bench, kv_gemini_kind_t variant, const char *rest, const char *body)
{
    kv_api_request_t request;
    kv_api_error_t error;
    if (!parse(bench, variant, rest, body, &request, &error)) {
        fail_msg("%s was refused: %s", body, error.message);
    }
    return request;
}

static void expect_error(bench_t *bench, kv_gemini_kind_t variant, const char *rest,
    const char *body, unsigned http_code, const char *param, const char *message)
{
    kv_api_request_t request;
    kv_api_error_t error;
    if (parse(bench, variant, rest, body, &request, &error)) {
        clear(&request);
        fail_msg("%s was taken", body);
    }
    if (error.http_code != http_code || strcmp(error.param, param) != 0 ||
        strstr(error.message, message) == NULL) {
        fail_msg("%s gave %u \"%s\": %s", body, error.http_code, error.param, error.message);
    }
}

static void expect_text(char *text, size_t bytes, const char *wanted)
{
    if (bytes != strlen(wanted) || memcmp(text, wanted, bytes) != 0) {
        fail_msg("got\n%.*s\nnot\n%s", (int)bytes, text, wanted);
    }
    free(text);
}

static void expect_message(
    const kv_api_request_t *request, size_t at, const char *role, const char *content)
{
    const kv_chat_message_t *message = &request->messages[at];
    assert_true(at < request->message_count);
    assert_string_equal(message->role, role);
    assert_int_equal(message->content_bytes, strlen(content));
    assert_memory_equal(message->content, content, message->content_bytes);
}

#define GENERATE "tiny:generateContent"
#define CONTENTS "\"contents\":[{\"parts\":[{\"text\":\"hi\"}]}]"
#define BODY(more) "{" CONTENTS more "}"
#define CONFIG(more) BODY(",\"generationConfig\":{" more "}")

/* ---- requests ---- */

static void test_generate(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    kv_api_request_t request = take(bench, KV_GEMINI_GENERATE, GENERATE,
        "{\"model\":\"models/tiny\",\"system_instruction\":{\"role\":\"user\",\"parts\":["
        "{\"text\":\"be \"},{\"text\":\"brief\"}]},\"contents\":[{\"role\":\"user\",\"parts\":["
        "{\"text\":\"a\"},{\"text\":\"b\\u00e9\"}]},{\"role\":\"model\",\"parts\":["
        "{\"text\":\"hmm\",\"thought\":true},{\"text\":\"c\"}]},{\"parts\":[{\"text\":\"\"}]}],"
        "\"safetySettings\":[{\"category\":\"x\",\"threshold\":\"y\"}],\"labels\":{\"a_b\":\"c\"},"
        "\"generation_config\":{\"temperature\":0,\"top_p\":0.5,\"topK\":40.0,"
        "\"maxOutputTokens\":7,\"stopSequences\":[\"x\",\"yy\"],\"candidateCount\":2,\"seed\":-1,"
        "\"responseLogprobs\":true,\"logprobs\":3,\"presencePenalty\":0,"
        "\"responseMimeType\":\"text/plain\",\"responseModalities\":[\"TEXT\"],"
        "\"thinkingConfig\":{\"thinkingBudget\":0}}}");
    assert_int_equal(request.kind, KV_API_CHAT);
    assert_int_equal(request.message_count, 4);
    expect_message(&request, 0, "system", "be brief");
    expect_message(&request, 1, "user", "ab\xc3\xa9");
    expect_message(&request, 2, "assistant", "c");
    expect_message(&request, 3, "user", "");
    assert_true(request.temperature == 0 && request.top_p == 0.5f);
    assert_int_equal(request.top_k, 40);
    assert_int_equal(request.max_tokens, 7);
    assert_int_equal(request.stop_count, 2);
    assert_string_equal(request.stops[1], "yy");
    assert_int_equal(request.choice_count, 2);
    assert_true(request.has_seed && request.seed == UINT64_MAX);
    assert_true(request.has_logprobs && request.top_logprobs == 3);
    assert_false(request.stream || request.count_only || request.has_tools);
    assert_int_equal(request.breakpoint_count, 0);
    clear(&request);

    request = take(bench, KV_GEMINI_GENERATE, GENERATE, BODY(",\"tools\":null"));
    assert_true(request.temperature == 1 && request.top_p == 1 && !request.has_seed);
    assert_true(request.max_tokens == 0 && request.choice_count == 1 && !request.has_logprobs);
    clear(&request);
    end_bench(bench);
}

static void test_streams(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    kv_api_request_t request =
        take(bench, KV_GEMINI_GENERATE, "tiny:streamGenerateContent", BODY(""));
    assert_true(request.stream);
    assert_string_equal(request.stream_content_type, "application/json");
    clear(&request);
    bench->query[0] = (kv_field_t){"alt", "sse"};
    request = take(bench, KV_GEMINI_GENERATE, "tiny:streamGenerateContent", BODY(""));
    assert_true(request.stream && request.stream_content_type == NULL);
    clear(&request);
    bench->query[0] = (kv_field_t){"alt", "proto"};
    expect_error(bench, KV_GEMINI_GENERATE, GENERATE, BODY(""), 400, "alt", "must be json");
    end_bench(bench);
}

static void test_tools(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    kv_api_request_t request = take(bench, KV_GEMINI_GENERATE, GENERATE,
        "{\"contents\":[{\"role\":\"user\",\"parts\":[{\"text\":\"q\"}]},{\"role\":\"model\","
        "\"parts\":[{\"text\":\"so\"},{\"functionCall\":{\"name\":\"f\",\"args\":{\"a_b\":1.5,"
        "\"c\":[\"d\"]},\"id\":\"1\"}},{\"function_call\":{\"name\":\"g\"}}]},{\"role\":\"user\","
        "\"parts\":[{\"functionResponse\":{\"name\":\"f\",\"id\":\"1\",\"response\":{\"output\":2}"
        "}},{\"function_response\":{\"name\":\"g\",\"response\":{}}},{\"text\":\"more\"}]}],"
        "\"tools\":[{\"functionDeclarations\":[{\"name\":\"f\",\"description\":\"does\","
        "\"parameters\":{\"type\":\"OBJECT\",\"properties\":{\"type\":{\"type\":\"STRING\","
        "\"enum\":[\"UP\"]},\"list\":{\"type\":\"ARRAY\",\"items\":{\"type\":\"INTEGER\"}}},"
        "\"required\":[\"type\"]}},{\"name\":\"g\"},{\"name\":\"h\",\"parametersJsonSchema\":"
        "{\"type\":\"object\"}}]}],\"toolConfig\":{\"functionCallingConfig\":{\"mode\":\"AUTO\"}}"
        "}");
    assert_int_equal(request.message_count, 5);
    expect_message(&request, 0, "user", "q");
    expect_message(&request, 1, "assistant", "so");
    assert_int_equal(request.messages[1].call_count, 2);
    assert_string_equal(request.messages[1].calls[0].name, "f");
    assert_string_equal(request.messages[1].calls[0].arguments, "{\"a_b\": 1.5, \"c\": [\"d\"]}");
    assert_string_equal(request.messages[1].calls[1].arguments, "{}");
    expect_message(&request, 2, "tool", "{\"output\": 2}");
    expect_message(&request, 3, "tool", "{}");
    expect_message(&request, 4, "user", "more");
    assert_true(request.has_tools);
    assert_int_equal(request.tool_count, 3);
    assert_string_equal(request.tools[0],
        "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"does\", "
        "\"parameters\": {\"type\": \"object\", \"properties\": {\"type\": {\"type\": \"string\", "
        "\"enum\": [\"UP\"]}, \"list\": {\"type\": \"array\", \"items\": {\"type\": \"integer\"}}}"
        ", \"required\": [\"type\"]}}}");
    assert_string_equal(request.tools[1],
        "{\"type\": \"function\", \"function\": {\"name\": \"g\", \"parameters\": "
        "{\"type\": \"object\", \"properties\": {}}}}");
    clear(&request);

    /* NONE is as if there were none. */
    request = take(bench, KV_GEMINI_GENERATE, GENERATE,
        BODY(",\"tools\":[{\"functionDeclarations\":[{\"name\":\"f\"}]}],\"toolConfig\":"
             "{\"functionCallingConfig\":{\"mode\":\"NONE\"}}"));
    assert_int_equal(request.tool_count, 0);
    assert_false(request.has_tools);
    clear(&request);
    end_bench(bench);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        unsigned code;
        const char *param, *message;
    } CASES[] = {
        {"", 400, "", "not valid JSON"},
        {"[]", 400, "", "must be a JSON object"},
        {"{}", 400, "contents", "must not be empty"},
        {"{\"contents\":\"hi\"}", 400, "contents", "must be an array"},
        {BODY(",\"model\":\"other\""), 404, "model", "models/tiny is"},
        {BODY(",\"what\":1"), 400, "what", "unknown name \"what\""},
        {BODY(",\"generationConfig\":{},\"generation_config\":{}"), 400, "", "said twice"},
        {"{\"contents\":[{\"parts\":[]}]}", 400, "contents[0]", "contents[0].parts"},
        {"{\"contents\":[{\"parts\":[{}]}]}", 400, "contents[0].parts[0]", "must have one of text"},
        {"{\"contents\":[{\"parts\":[{\"text\":1}]}]}", 400, "contents[0].parts[0]", "string"},
        {"{\"contents\":[1]}", 400, "contents[0]", "must be an object"},
        {"{\"contents\":[{\"role\":\"system\",\"parts\":[{\"text\":\"a\"}]}]}", 400, "contents[0]",
            "must be user or model"},
        {"{\"contents\":[{\"parts\":[{\"inlineData\":{\"mimeType\":\"image/png\"}}]}]}", 400,
            "contents[0].parts[0].inlineData", "not supported"},
        {"{\"contents\":[{\"parts\":[{\"functionCall\":{\"name\":\"f\"}}]}]}", 400,
            "contents[0].parts[0].functionCall", "only in a content of the role model"},
        {"{\"contents\":[{\"role\":\"model\",\"parts\":[{\"functionCall\":{\"name\":\"f\\n\"}}]}]}",
            400, "contents[0].parts[0].functionCall", "1 to 128 of a-z"},
        {"{\"contents\":[{\"parts\":[{\"functionResponse\":{\"name\":\"f\"}}]}]}", 400,
            "contents[0].parts[0].functionResponse", "response: must be an object, but is missing"},
        {BODY(",\"tools\":[{\"googleSearch\":{}}]"), 400, "tools[0]", "googleSearch"},
        {BODY(",\"tools\":[{\"functionDeclarations\":[{\"name\":\"1\"}]}]"), 400,
            "tools[0].functionDeclarations[0]", "begin with a letter"},
        {BODY(",\"tools\":[{\"functionDeclarations\":[{\"name\":\"f\",\"parameters\":{},"
              "\"parametersJsonSchema\":{}}]}]"),
            400, "tools[0].functionDeclarations[0]", "exclude each other"},
        {BODY(",\"toolConfig\":{\"functionCallingConfig\":{\"mode\":\"ANY\"}}"), 400,
            "toolConfig.functionCallingConfig", "must be AUTO or NONE"},
        {BODY(",\"cachedContent\":\"cachedContents/none\""), 403, "cachedContent",
            "does not exist"},
        {BODY(",\"continuationToken\":\"x\""), 400, "continuationToken", "not supported"},
        {CONFIG("\"temperature\":2.1"), 400, "generationConfig.temperature", "at most 2"},
        {CONFIG("\"topK\":1.5"), 400, "generationConfig.topK", "whole number"},
        {CONFIG("\"topP\":0"), 400, "generationConfig.topP", "above 0"},
        {CONFIG("\"maxOutputTokens\":65"), 400, "generationConfig.maxOutputTokens", "1 to 64"},
        {CONFIG("\"candidateCount\":9"), 400, "generationConfig.candidateCount", "1 to 8"},
        {CONFIG("\"stopSequences\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\"]"), 400,
            "generationConfig.stopSequences", "at most 5"},
        {CONFIG("\"stopSequences\":[\"\"]"), 400, "generationConfig.stopSequences[0]", "1 to 256"},
        {CONFIG("\"logprobs\":3"), 400, "generationConfig.logprobs", "only with"},
        {CONFIG("\"responseLogprobs\":true,\"logprobs\":21"), 400, "generationConfig.logprobs",
            "0 to 20"},
        {CONFIG("\"frequencyPenalty\":1"), 400, "generationConfig.frequencyPenalty",
            "not supported"},
        {CONFIG("\"responseMimeType\":\"application/json\""), 400,
            "generationConfig.responseMimeType", "text/plain"},
        {CONFIG("\"responseModalities\":[\"IMAGE\"]"), 400, "generationConfig.responseModalities",
            "only TEXT"},
        {CONFIG("\"thinkingConfig\":{\"thinkingBudget\":100}"), 400,
            "generationConfig.thinkingConfig", "no thoughts"},
        {CONFIG("\"nothing\":1"), 400, "generationConfig.nothing", "at generationConfig"},
    };
    bench_t *bench = make_bench();
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        expect_error(bench, KV_GEMINI_GENERATE, GENERATE, CASES[i].body, CASES[i].code,
            CASES[i].param, CASES[i].message);
    }
    expect_error(bench, KV_GEMINI_GENERATE, "other:generateContent", BODY(""), 404, "model",
        "models/other is not served");
    expect_error(bench, KV_GEMINI_GENERATE, "tiny:embedContent", BODY(""), 404, "", "no such path");
    expect_error(bench, KV_GEMINI_GENERATE, "tiny", BODY(""), 404, "", "no such path");
    end_bench(bench);
}

/* ---- cachedContents ---- */

static void grant(const kv_api_request_t *request, kv_answer_t *answer, const char *why_not)
{
    *answer = (kv_answer_t){.request = request, .id = "gen-1", .model = "tiny"};
    answer->usage.grants[0].why_not = why_not;
}

/* Creates it as a request would; answers its id. */
static char *create(bench_t *bench, const char *body, uint32_t token_count)
{
    kv_api_request_t request = take(bench, KV_GEMINI_CREATE, "", body);
    kv_api_error_t error;
    kv_answer_t answer;
    assert_int_equal(request.max_tokens, 1);
    assert_int_equal(request.breakpoint_count, 1);
    assert_true(request.breakpoints[0].limit);
    request.breakpoints[0].token_count = token_count;
    grant(&request, &answer, NULL);
    assert_true(request.commits && !request.commit_only);
    if (!kv_gemini_settle(&answer, &error) || !kv_gemini_commit(&request, &error)) {
        fail_msg("%s", error.message);
    }
    char *id = kv_duplicate_string(((kv_gemini_own_t *)request.own)->content.id);
    clear(&request);
    return id;
}

#define CACHED                                                                                     \
    "\"model\":\"models/tiny\",\"systemInstruction\":{\"parts\":[{\"text\":\"sys\"}]},"            \
    "\"contents\":[{\"role\":\"user\",\"parts\":[{\"text\":\"long\"}]}],"                          \
    "\"tools\":[{\"functionDeclarations\":[{\"name\":\"f\"}]}]"

static void test_cached(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    char *id = create(bench, "{" CACHED "}", 33), body[512];
    kv_virtual_clock_advance(&bench->clock, HOUR / 4);
    snprintf(body, sizeof body, BODY(",\"cachedContent\":\"cachedContents/%s\""), id);
    kv_api_request_t request = take(bench, KV_GEMINI_GENERATE, GENERATE, body);
    assert_int_equal(request.message_count, 3);
    expect_message(&request, 0, "system", "sys");
    expect_message(&request, 1, "user", "long");
    expect_message(&request, 2, "user", "hi");
    assert_int_equal(request.tool_count, 1);
    assert_true(request.has_tools);
    assert_int_equal(request.breakpoint_count, 1);
    assert_int_equal(request.breakpoints[0].message_count, 2);
    assert_true(request.breakpoints[0].limit && request.breakpoints[0].ttl_ns == 3 * HOUR / 4);
    clear(&request);

    /* What the content has, the request must not have. */
    static const char *const ALONE[] = {"systemInstruction", "tools", "toolConfig"};
    for (int i = 0; i < 3; i++) {
        snprintf(body, sizeof body, BODY(",\"cachedContent\":\"%s\",\"%s\":%s"), id, ALONE[i],
            i == 0   ? "{\"parts\":[{\"text\":\"x\"}]}"
            : i == 1 ? "[{\"functionDeclarations\":[]}]"
                     : "{\"functionCallingConfig\":{}}");
        expect_error(
            bench, KV_GEMINI_GENERATE, GENERATE, body, 400, ALONE[i], "must not be set beside");
    }
    snprintf(body, sizeof body, BODY(",\"cachedContent\":\"%s\""), id);
    bench->tenant = "another";
    expect_error(bench, KV_GEMINI_GENERATE, GENERATE, body, 403, "cachedContent", "does not exist");
    bench->tenant = NULL;
    bench->limits.model = "larger";
    expect_error(bench, KV_GEMINI_GENERATE, "larger:generateContent", body, 400, "cachedContent",
        "was made for models/tiny");
    bench->limits.model = "tiny";
    kv_virtual_clock_advance(&bench->clock, 3 * HOUR / 4);
    expect_error(bench, KV_GEMINI_GENERATE, GENERATE, body, 403, "cachedContent", "has expired");
    free(id);
    end_bench(bench);
}

static void test_create(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    kv_api_request_t request = take(bench, KV_GEMINI_CREATE, "",
        "{" CACHED ",\"ttl\":\"90.5s\",\"displayName\":\"d \\u00e9\",\"name\":\"ignored\"}");
    kv_api_error_t error;
    kv_answer_t answer;
    size_t bytes;
    char wanted[600];
    assert_int_equal(request.message_count, 2);
    assert_int_equal(request.breakpoints[0].message_count, 2);
    assert_true(request.breakpoints[0].ttl_ns == 90500ULL * KV_NS_PER_MS);
    assert_false(request.stream || request.has_tools);
    request.breakpoints[0].token_count = 42;
    kv_virtual_clock_advance(&bench->clock, KV_NS_PER_S);
    grant(&request, &answer, NULL);
    assert_true(kv_gemini_settle(&answer, &error));
    assert_true(kv_gemini_commit(&request, &error));
    char *text = kv_gemini_whole(&answer, &bytes);
    snprintf(wanted, sizeof wanted,
        "{\"name\":\"cachedContents/%s\",\"model\":\"models/tiny\",\"displayName\":\"d \xc3\xa9\","
        "\"createTime\":\"2026-11-18T11:06:41Z\",\"updateTime\":\"2026-11-18T11:06:41Z\","
        "\"expireTime\":\"2026-11-18T11:08:10.500Z\",\"usageMetadata\":{\"totalTokenCount\":42}}",
        ((kv_gemini_own_t *)request.own)->content.id);
    expect_text(text, bytes, wanted);
    clear(&request);

    /* Tools alone; a time of its own; and what the nodes could not store is not there. */
    request = take(bench, KV_GEMINI_CREATE, "",
        "{\"model\":\"tiny\",\"tools\":[{\"functionDeclarations\":[{\"name\":\"f\"}]}],"
        "\"expireTime\":\"2026-11-18T13:06:41+01:00\"}");
    assert_int_equal(request.message_count, 1);
    assert_int_equal(request.breakpoints[0].message_count, 0);
    assert_true(request.breakpoints[0].ttl_ns == HOUR);
    request.breakpoints[0].token_count = 3;
    grant(&request, &answer, NULL);
    assert_false(kv_gemini_settle(&answer, &error));
    assert_int_equal(error.http_code, 400);
    assert_non_null(strstr(error.message, "total_token_count=3, min_total_token_count=4"));
    request.breakpoints[0].token_count = 4;
    grant(&request, &answer, "no room");
    assert_false(kv_gemini_settle(&answer, &error));
    assert_int_equal(error.http_code, 503);
    assert_non_null(strstr(error.message, "no room"));
    grant(&request, &answer, NULL);
    request.cache_mode = KVIST__WIRE__CACHE_MODE__CACHE_BYPASS;
    assert_false(kv_gemini_settle(&answer, &error));
    assert_string_equal(error.param, "x-kvist-cache-mode");
    clear(&request);
    assert_int_equal(kv_contents_account(bench->limits.contents, "").content_count, 1);
    end_bench(bench);
}

static void test_create_refused(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        unsigned code;
        const char *param, *message;
    } CASES[] = {
        {BODY(""), 400, "model", "is missing"},
        {BODY(",\"model\":\"models/x\""), 404, "model", "not served"},
        {"{\"model\":\"tiny\"}", 400, "contents", "nothing to cache"},
        {BODY(",\"model\":\"tiny\",\"ttl\":\"0s\""), 400, "ttl", "above 0"},
        {BODY(",\"model\":\"tiny\",\"ttl\":\"1h\""), 400, "ttl", "3600s"},
        {BODY(",\"model\":\"tiny\",\"ttl\":\"1s\",\"expireTime\":\"2030-01-01T00:00:00Z\""), 400,
            "expireTime", "not beside ttl"},
        {BODY(",\"model\":\"tiny\",\"expireTime\":\"2020-01-01T00:00:00Z\""), 400, "expireTime",
            "in the future"},
        {BODY(",\"model\":\"tiny\",\"expireTime\":\"soon\""), 400, "expireTime", "must be a time"},
        {BODY(",\"model\":\"tiny\",\"generationConfig\":{}"), 400, "generationConfig", "unknown"},
        {BODY(",\"model\":\"tiny\",\"displayName\":\""
              "0123456789012345678901234567890123456789012345678901234567890123"
              "0123456789012345678901234567890123456789012345678901234567890123-\""),
            400, "displayName", "129 characters"},
    };
    bench_t *bench = make_bench();
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        expect_error(bench, KV_GEMINI_CREATE, "", CASES[i].body, CASES[i].code, CASES[i].param,
            CASES[i].message);
    }
    /* No more than there is room for; a request that goes nowhere gives its room back. */
    kv_api_request_t requests[16];
    for (int i = 0; i < 16; i++) {
        requests[i] = take(bench, KV_GEMINI_CREATE, "", BODY(",\"model\":\"tiny\""));
    }
    expect_error(bench, KV_GEMINI_CREATE, "", BODY(",\"model\":\"tiny\""), 429, "", "delete some");
    for (int i = 0; i < 16; i++) {
        clear(&requests[i]);
    }
    requests[0] = take(bench, KV_GEMINI_CREATE, "", BODY(",\"model\":\"tiny\""));
    clear(&requests[0]);
    end_bench(bench);
}

static void test_patch(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    char *id = create(bench, "{" CACHED "}", 33), wanted[600];
    kv_api_error_t error;
    kv_answer_t answer;
    size_t bytes;
    kv_virtual_clock_advance(&bench->clock, HOUR / 2);
    bench->query[0] = (kv_field_t){"updateMask", "ttl,expire_time"};
    kv_api_request_t request = take(bench, KV_GEMINI_PATCH, id, "{\"ttl\":\"7200s\"}");
    assert_int_equal(request.message_count, 2);
    assert_int_equal(request.breakpoints[0].message_count, 2);
    assert_true(request.breakpoints[0].limit && request.breakpoints[0].ttl_ns == 2 * HOUR);
    request.breakpoints[0].token_count = 33;
    grant(&request, &answer, NULL);
    assert_true(kv_gemini_settle(&answer, &error));
    assert_true(kv_gemini_commit(&request, &error));
    char *text = kv_gemini_whole(&answer, &bytes);
    snprintf(wanted, sizeof wanted,
        "{\"name\":\"cachedContents/%s\",\"model\":\"models/tiny\",\"displayName\":\"\","
        "\"createTime\":\"2026-11-18T11:06:40Z\",\"updateTime\":\"2026-11-18T11:36:40Z\","
        "\"expireTime\":\"2026-11-18T13:36:40Z\",\"usageMetadata\":{\"totalTokenCount\":33}}",
        id);
    expect_text(text, bytes, wanted);
    /* Whichever node holds it is to hear of the new time. */
    assert_true(request.limit_unix_ms == (START + HOUR / 2 + 2 * HOUR) / KV_NS_PER_MS);
    clear(&request);

    expect_error(bench, KV_GEMINI_PATCH, id, "{}", 400, "ttl", "is missing");
    expect_error(bench, KV_GEMINI_PATCH, id, "{" CONTENTS ",\"ttl\":\"1s\"}", 400, "contents",
        "unknown name");
    expect_error(bench, KV_GEMINI_PATCH, "aaaaaaaaaaaaaaaa", "{\"ttl\":\"1s\"}", 403,
        "cachedContent", "does not exist");
    bench->query[0] = (kv_field_t){"updateMask", "ttl,displayName"};
    expect_error(
        bench, KV_GEMINI_PATCH, id, "{\"ttl\":\"1s\"}", 400, "updateMask", "\"displayName\"");
    free(id);
    end_bench(bench);
}

static void expect_served(
    bench_t *bench, const char *method, const char *rest, unsigned code, const char *wanted)
{
    size_t bytes;
    char *text;
    kv_call_t call = make_call(bench, KV_GEMINI_GENERATE, rest, "");
    call.method = method;
    assert_int_equal(kv_gemini_serve_contents(&call, bench->limits.contents, &text, &bytes), code);
    expect_text(text, bytes, wanted);
}

#define GONE                                                                                       \
    "{\"error\":{\"code\":403,\"message\":\"the cached content does not exist, has expired, or "   \
    "is "                                                                                          \
    "another caller's\",\"status\":\"PERMISSION_DENIED\"}}"

static void test_served(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    char *id = create(bench, "{" CACHED ",\"displayName\":\"one\"}", 33), one[600], wanted[800];
    snprintf(one, sizeof one,
        "{\"name\":\"cachedContents/%s\",\"model\":\"models/tiny\",\"displayName\":\"one\","
        "\"createTime\":\"2026-11-18T11:06:40Z\",\"updateTime\":\"2026-11-18T11:06:40Z\","
        "\"expireTime\":\"2026-11-18T12:06:40Z\",\"usageMetadata\":{\"totalTokenCount\":33}}",
        id);
    expect_served(bench, "GET", id, 200, one);
    snprintf(wanted, sizeof wanted, "{\"cachedContents\":[%s]}", one);
    expect_served(bench, "GET", "", 200, wanted);
    kv_virtual_clock_advance(&bench->clock, 1000);
    free(create(bench, "{" CACHED "}", 4));
    bench->query[0] = (kv_field_t){"pageSize", "1"};
    snprintf(wanted, sizeof wanted, "{\"cachedContents\":[%s],\"nextPageToken\":\"%s%s\"}", one,
        "0080d35bfd1ee918", id);
    expect_served(bench, "GET", "", 200, wanted);
    bench->query[1] = (kv_field_t){"pageToken", "x"};
    expect_served(bench, "GET", "", 400,
        "{\"error\":{\"code\":400,\"message\":\"pageToken: is none that this server gave\","
        "\"status\":\"INVALID_ARGUMENT\",\"details\":[{\"@type\":\"type.googleapis.com/"
        "google.rpc.BadRequest\",\"fieldViolations\":[{\"field\":\"pageToken\",\"description\":"
        "\"pageToken: is none that this server gave\"}]}]}}");
    bench->query[0] = (kv_field_t){NULL, NULL};
    bench->tenant = "another";
    expect_served(bench, "GET", id, 403, GONE);
    expect_error(bench, KV_GEMINI_DELETE, id, "", 403, "cachedContent", "does not exist");
    expect_served(bench, "GET", "", 200, "{\"cachedContents\":[]}");
    bench->tenant = NULL;
    expect_served(bench, "GET", "no name", 403, GONE);
    free(id);
    end_bench(bench);
}

/* Its prompt is made once more, for nodes to know whose time is over; nothing is computed. */
static void test_delete(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    char *id = create(bench, "{" CACHED "}", 33);
    kv_api_request_t request = take(bench, KV_GEMINI_DELETE, id, "");
    kv_api_request_t twice = take(bench, KV_GEMINI_DELETE, id, "not even JSON");
    kv_api_error_t error;
    kv_answer_t answer;
    size_t bytes;
    assert_true(request.commits && request.commit_only);
    assert_int_equal(request.message_count, 2);
    assert_int_equal(request.breakpoint_count, 1);
    assert_int_equal(request.breakpoints[0].message_count, 2);
    kv_virtual_clock_advance(&bench->clock, KV_NS_PER_S);
    assert_true(kv_gemini_commit(&request, &error));
    assert_true(request.limit_unix_ms == (START + KV_NS_PER_S) / KV_NS_PER_MS);
    grant(&request, &answer, NULL);
    char *text = kv_gemini_whole(&answer, &bytes);
    expect_text(text, bytes, "{}");
    expect_served(bench, "GET", id, 403, GONE);
    assert_false(kv_gemini_commit(&twice, &error));
    assert_int_equal(error.http_code, 403);
    clear(&request);
    clear(&twice);

    /* One of a model that was served before: there is nothing to tell nodes. */
    free(id);
    id = create(bench, "{" CACHED "}", 33);
    bench->limits.model = "another";
    request = take(bench, KV_GEMINI_DELETE, id, "");
    assert_int_equal(request.message_count + request.breakpoint_count, 0);
    assert_true(kv_gemini_commit(&request, &error));
    clear(&request);
    expect_served(bench, "GET", id, 403, GONE);
    free(id);
    end_bench(bench);
}

static void test_count(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    size_t bytes;
    kv_api_request_t request = take(bench, KV_GEMINI_GENERATE, "tiny:countTokens", BODY(""));
    kv_answer_t answer = {.request = &request, .usage = {.prompt_tokens = 12}};
    assert_true(request.count_only);
    char *text = kv_gemini_whole(&answer, &bytes);
    expect_text(text, bytes,
        "{\"totalTokens\":12,\"promptTokensDetails\":[{\"modality\":\"TEXT\",\"tokenCount\":12}]}");
    clear(&request);
    char *id = create(bench, "{" CACHED "}", 33), body[512];
    snprintf(body, sizeof body,
        "{\"generateContentRequest\":" BODY(",\"cachedContent\":\"%s\"") "}", id);
    request = take(bench, KV_GEMINI_GENERATE, "tiny:countTokens", body);
    request.breakpoints[0].token_count = 5;
    assert_int_equal(request.message_count, 3);
    text = kv_gemini_whole(&answer, &bytes);
    expect_text(text, bytes,
        "{\"totalTokens\":12,\"promptTokensDetails\":[{\"modality\":\"TEXT\",\"tokenCount\":12}],"
        "\"cachedContentTokenCount\":5,\"cacheTokensDetails\":[{\"modality\":\"TEXT\","
        "\"tokenCount\":5}]}");
    clear(&request);
    expect_error(bench, KV_GEMINI_GENERATE, "tiny:countTokens",
        "{" CONTENTS ",\"generateContentRequest\":{}}", 400, "contents", "not beside");
    expect_error(bench, KV_GEMINI_GENERATE, "tiny:countTokens", BODY(",\"tools\":[]"), 400, "tools",
        "unknown name");
    free(id);
    end_bench(bench);
}

/* ---- answers ---- */

#define USAGE                                                                                      \
    "\"usageMetadata\":{\"promptTokenCount\":20,\"candidatesTokenCount\":3,"                       \
    "\"totalTokenCount\":23,\"promptTokensDetails\":[{\"modality\":\"TEXT\",\"tokenCount\":20}],"  \
    "\"candidatesTokensDetails\":[{\"modality\":\"TEXT\",\"tokenCount\":3}],"                      \
    "\"cachedContentTokenCount\":16,\"cacheTokensDetails\":[{\"modality\":\"TEXT\","               \
    "\"tokenCount\":16}]},\"modelVersion\":\"tiny\",\"responseId\":\"gen-1\""

static kv_answer_t make_answer(const kv_api_request_t *request)
{
    return (kv_answer_t){.request = request,
        .id = "gen-1",
        .model = "tiny",
        .usage = {.prompt_tokens = 20, .cached_tokens = {10, 6, 0, 0}, .generated_tokens = 3}};
}

static void test_whole(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    size_t bytes;
    kv_api_request_t request = take(bench, KV_GEMINI_GENERATE, GENERATE, BODY(""));
    kv_answer_t answer = make_answer(&request);
    const kv_token_chance_t tops[] = {{.text = "a", .bytes = 1, .token = 5, .logprob = -0.5f},
        {.text = "\xc3", .bytes = 1, .token = 6, .logprob = -INFINITY}};
    const kv_token_logprob_t place = {.chosen = tops[0], .tops = tops, .top_count = 2};
    const kv_tool_call_t call = {.id = "c1", .name = "f", .arguments = "{\"a\":1}"};
    const kv_choice_t choices[] = {{.text = "a\"\n",
                                       .text_bytes = 3,
                                       .finish = KV_FINISH_LENGTH,
                                       .logprobs = &place,
                                       .logprob_count = 1},
        {.index = 1,
            .text = "",
            .finish = KV_FINISH_TOOL_CALLS,
            .tool_calls = &call,
            .tool_call_count = 1},
        {.index = 2, .text = "", .finish = KV_FINISH_STOP}};
    answer.choices = choices;
    answer.choice_count = 3;
    char *text = kv_gemini_whole(&answer, &bytes);
    expect_text(text, bytes,
        "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\\\"\\n\"}],\"role\":\"model\"},"
        "\"index\":0,\"finishReason\":\"MAX_TOKENS\",\"logprobsResult\":{\"topCandidates\":["
        "{\"candidates\":[{\"token\":\"a\",\"tokenId\":5,\"logProbability\":-0.5},"
        "{\"token\":\"\xef\xbf\xbd\",\"tokenId\":6,\"logProbability\":-3.40282347e38}]}],"
        "\"chosenCandidates\":[{\"token\":\"a\",\"tokenId\":5,\"logProbability\":-0.5}]},"
        "\"avgLogprobs\":-0.5},{\"content\":{\"parts\":[{\"functionCall\":{\"name\":\"f\","
        "\"args\":{\"a\":1},\"id\":\"c1\"}}],\"role\":\"model\"},\"index\":1,"
        "\"finishReason\":\"STOP\"},{\"content\":{\"parts\":[{\"text\":\"\"}],\"role\":\"model\"},"
        "\"index\":2,\"finishReason\":\"STOP\"}]," USAGE "}");
    clear(&request);
    end_bench(bench);
}

#define PIECE                                                                                      \
    "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"ab\"}],\"role\":\"model\"},"            \
    "\"index\":0}]," USAGE "}"
#define CALL                                                                                       \
    "{\"candidates\":[{\"content\":{\"parts\":[{\"functionCall\":{\"name\":\"f\",\"args\":{},"     \
    "\"id\":\"c1\"}}],\"role\":\"model\"},\"index\":0}]," USAGE "}"
#define LAST                                                                                       \
    "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\"}],\"role\":\"model\"},\"index\":0,"  \
    "\"finishReason\":\"STOP\"}]," USAGE "}"

static void check_stream(bench_t *bench, const char *const wanted[4])
{
    kv_api_request_t request =
        take(bench, KV_GEMINI_GENERATE, "tiny:streamGenerateContent", BODY(""));
    kv_answer_t answer = make_answer(&request);
    size_t bytes;
    kv_choice_t choice = {.first = true, .text = "ab", .text_bytes = 2};
    char *text = kv_gemini_begin(&answer, &bytes);
    expect_text(text, bytes, wanted[0]);
    text = kv_gemini_event(&answer, &choice, &bytes);
    expect_text(text, bytes, wanted[1]);
    const kv_tool_call_t call = {.id = "c1", .name = "f", .arguments = "{}"};
    choice = (kv_choice_t){.text = "", .tool_calls = &call, .tool_call_count = 1};
    text = kv_gemini_event(&answer, &choice, &bytes);
    expect_text(text, bytes, wanted[2]);
    /* The finish comes with the end, and what was told does not come again. */
    choice = (kv_choice_t){.text = "", .finish = KV_FINISH_STOP};
    text = kv_gemini_event(&answer, &choice, &bytes);
    expect_text(text, bytes, "");
    choice = (kv_choice_t){.text = "ab",
        .text_bytes = 2,
        .tool_calls = &call,
        .tool_call_count = 1,
        .finish = KV_FINISH_STOP};
    answer.choices = &choice;
    answer.choice_count = 1;
    text = kv_gemini_end(&answer, &bytes);
    expect_text(text, bytes, wanted[3]);
    clear(&request);
}

static void test_streamed(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    check_stream(bench, (const char *const[]){"[", PIECE ",\n", CALL ",\n", LAST "]\n"});
    bench->query[0] = (kv_field_t){"alt", "sse"};
    check_stream(bench, (const char *const[]){
                            "", "data: " PIECE "\n\n", "data: " CALL "\n\n", "data: " LAST "\n\n"});
    end_bench(bench);
}

static void test_errors(void **state)
{
    (void)state;
    static const struct {
        unsigned code;
        const char *status;
    } CODES[] = {{400, "INVALID_ARGUMENT"}, {401, "UNAUTHENTICATED"}, {403, "PERMISSION_DENIED"},
        {404, "NOT_FOUND"}, {413, "INVALID_ARGUMENT"}, {429, "RESOURCE_EXHAUSTED"},
        {500, "INTERNAL"}, {502, "UNAVAILABLE"}, {503, "UNAVAILABLE"}, {504, "DEADLINE_EXCEEDED"}};
    kv_api_error_t error;
    char wanted[200];
    size_t bytes;
    for (size_t i = 0; i < sizeof CODES / sizeof *CODES; i++) {
        kv_api_fail(&error, CODES[i].code, "", NULL, "why");
        snprintf(wanted, sizeof wanted,
            "{\"error\":{\"code\":%u,\"message\":\"why\",\"status\":\"%s\"}}", CODES[i].code,
            CODES[i].status);
        char *text = kv_gemini_error(&error, "gen-1", false, &bytes);
        expect_text(text, bytes, wanted);
    }
#define WHY "{\"error\":{\"code\":504,\"message\":\"why\",\"status\":\"DEADLINE_EXCEEDED\"}}"
    char *text = kv_gemini_error(&error, NULL, true, &bytes);
    expect_text(text, bytes, "data: " WHY "\n\n");
    text = kv_gemini_array_error(&error, NULL, true, &bytes);
    expect_text(text, bytes, WHY "]\n");
    text = kv_gemini_array_error(&error, NULL, false, &bytes);
    expect_text(text, bytes, "[" WHY "]\n");
}

static void test_models(void **state)
{
    (void)state;
    bench_t *bench = make_bench();
    size_t bytes;
#define MODEL                                                                                      \
    "{\"name\":\"models/tiny\",\"version\":\"1\",\"displayName\":\"tiny\",\"description\":"        \
    "\"served by Kvist\",\"inputTokenLimit\":64,\"outputTokenLimit\":64,"                          \
    "\"supportedGenerationMethods\":[\"generateContent\",\"streamGenerateContent\","               \
    "\"countTokens\",\"createCachedContent\"],\"temperature\":1.0,\"maxTemperature\":2.0,"         \
    "\"topP\":1.0}"
    char *text = kv_gemini_models(&bench->limits, &bytes);
    expect_text(text, bytes, "{\"models\":[" MODEL "]}");
    text = kv_gemini_model(&bench->limits, &bytes);
    expect_text(text, bytes, MODEL);
    end_bench(bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_generate),
        cmocka_unit_test(test_streams), cmocka_unit_test(test_tools),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_cached),
        cmocka_unit_test(test_create), cmocka_unit_test(test_create_refused),
        cmocka_unit_test(test_patch), cmocka_unit_test(test_served), cmocka_unit_test(test_delete),
        cmocka_unit_test(test_count), cmocka_unit_test(test_whole), cmocka_unit_test(test_streamed),
        cmocka_unit_test(test_errors), cmocka_unit_test(test_models)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
