/* What goes to a vLLM server and what comes from it, as texts. */
#include "testing/testing.h"

#include "gateway/engines/vllm_messages.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static kv_vllm_event_t read_one(const char *line)
{
    kv_vllm_event_t event;
    kv_error_t error;
    if (kv_vllm_read_line(line, strlen(line), &event, &error) != KV_OK) {
        fail_msg("%s\n gave: %s", line, error.text);
    }
    return event;
}

static void expect_invalid(const char *line, const char *field)
{
    kv_vllm_event_t event;
    kv_error_t error = {.text = ""};
    kv_status_t status = kv_vllm_read_line(line, strlen(line), &event, &error);
    if (status != KV_INVALID || strstr(error.text, field) == NULL) {
        fail_msg("%s\n gave: %s", line, error.text);
    }
    assert_null(event.tokens); /* nothing is left to clear */
}

/* ---- bodies ---- */

static void test_body(void **state)
{
    (void)state;
    static const uint32_t TOKENS[] = {0, 7, 49151, UINT32_MAX};
    static const char *const STOPS[] = {"\n\n", "\"end\""};
    kv_vllm_ask_t ask = {.model = "tiny \"one\"",
        .request_id = "a-1",
        .tokens = TOKENS,
        .token_count = 4,
        .max_tokens = 16,
        .temperature = 0.5f,
        .top_p = 1,
        .top_k = 40,
        .seed = UINT64_MAX,
        .has_seed = true,
        .logprob_count = 3,
        .cache_salt = "abc",
        .priority = 2,
        .stops = STOPS,
        .stop_count = 2};
    char *body = kv_vllm_write_ask(&ask);
    static const char *const PARTS[] = {"{\"prompt\":[0,7,49151,4294967295],\"",
        "\"model\":\"tiny \\\"one\\\"\"", "\"max_tokens\":16", "\"temperature\":0.5",
        "\"top_k\":40", "\"seed\":9223372036854775807", "\"logprobs\":3",
        "\"return_tokens_as_token_ids\":true", "\"cache_salt\":\"abc\"", "\"priority\":2",
        "\"stop\":[\"\\n\\n\",\"\\\"end\\\"\"]", "\"stream\":true", "\"return_token_ids\":true",
        "\"repetition_penalty\":1.0", "\"stream_options\":{\"include_usage\":true}",
        "\"ignore_eos\":false"};
    for (size_t i = 0; i < sizeof PARTS / sizeof PARTS[0]; i++) {
        if (strstr(body, PARTS[i]) == NULL) {
            fail_msg("%s is not in %s", PARTS[i], body);
        }
    }
    free(body);
    ask = (kv_vllm_ask_t){.model = "m", .request_id = "r", .logprob_count = -1, .ignore_end = true};
    body = kv_vllm_write_ask(&ask);
    assert_non_null(strstr(body, "{\"prompt\":[],"));
    assert_non_null(strstr(body, "\"ignore_eos\":true"));
    assert_null(strstr(body, "seed"));
    assert_null(strstr(body, "logprobs"));
    assert_null(strstr(body, "salt"));
    assert_null(strstr(body, "priority"));
    assert_null(strstr(body, "\"stop\":"));
    free(body);
}

/* ---- events ---- */

static void test_tokens(void **state)
{
    (void)state;
    kv_vllm_event_t event = read_one("data: {\"choices\":[{\"index\":0,\"text\":\" a\","
                                     "\"token_ids\":[5,6],\"finish_reason\":null}]}\r");
    assert_int_equal(event.kind, KV_VLLM_TOKENS);
    assert_int_equal(event.token_count, 2);
    assert_int_equal(event.tokens[1], 6);
    assert_int_equal(event.finish, KV_VLLM_GOES_ON);
    assert_null(event.logprobs);
    kv_vllm_event_clear(&event);
    static const struct {
        const char *line;
        kv_vllm_finish_t finish;
    } ENDS[] = {
        {"data:{\"choices\":[{\"text\":\"\",\"token_ids\":[2],\"finish_reason\":\"stop\"}]}",
            KV_VLLM_END_TOKEN},
        {"data: {\"choices\":[{\"text\":\"\",\"token_ids\":[],\"finish_reason\":\"stop\","
         "\"stop_reason\":7}]}",
            KV_VLLM_END_TOKEN},
        {"data: {\"choices\":[{\"text\":\"\",\"token_ids\":[9],\"finish_reason\":\"stop\","
         "\"stop_reason\":\"x\"}]}",
            KV_VLLM_STOP_STRING},
        {"data: {\"choices\":[{\"text\":\"\",\"token_ids\":[9],\"finish_reason\":\"length\"}]}",
            KV_VLLM_LENGTH},
        {"data: {\"choices\":[{\"text\":\"\",\"token_ids\":[],\"finish_reason\":\"abort\"}]}",
            KV_VLLM_GAVE_UP},
    };
    for (size_t i = 0; i < sizeof ENDS / sizeof ENDS[0]; i++) {
        event = read_one(ENDS[i].line);
        assert_int_equal(event.finish, ENDS[i].finish);
        kv_vllm_event_clear(&event);
    }
}

static void test_logprobs(void **state)
{
    (void)state;
    kv_vllm_event_t event =
        read_one("data: {\"choices\":[{\"text\":\"ab\",\"token_ids\":[5,6],\"logprobs\":{"
                 "\"tokens\":[\"token_id:5\",\"token_id:6\"],\"token_logprobs\":[-1.5,null],"
                 "\"top_logprobs\":[{\"token_id:5\":-1.5,\"token_id:8\":-0.25,\"token_id:3\":-1.5},"
                 "null]}}]}");
    assert_float_equal(event.logprobs[0], -1.5, 0);
    assert_true(isinf(event.logprobs[1]));
    assert_int_equal(event.top_counts[0], 3);
    assert_int_equal(event.tops[0].token, 8);
    assert_int_equal(event.tops[1].token, 3);
    assert_int_equal(event.tops[2].token, 5);
    assert_int_equal(event.top_counts[1], 0);
    kv_vllm_event_clear(&event);
}

static void test_usage_errors_and_end(void **state)
{
    (void)state;
    kv_vllm_event_t event =
        read_one("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":40,\"completion_tokens\":2,"
                 "\"prompt_tokens_details\":{\"cached_tokens\":32}}}");
    assert_int_equal(event.kind, KV_VLLM_USAGE);
    assert_int_equal(event.prompt_tokens, 40);
    assert_int_equal(event.cached_tokens, 32);
    assert_true(event.has_cached);
    event = read_one("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":40}}");
    assert_false(event.has_cached);
    event = read_one("data: {\"error\":{\"message\":\"engine\\ndied\",\"code\":500}}");
    assert_int_equal(event.kind, KV_VLLM_ERROR);
    assert_int_equal(event.error_code, 500);
    assert_string_equal(event.error_text, "engine died");
    assert_int_equal(read_one("data: [DONE]").kind, KV_VLLM_DONE);
    assert_int_equal(read_one("").kind, KV_VLLM_NOTHING);
    assert_int_equal(read_one(": a comment").kind, KV_VLLM_NOTHING);
    assert_int_equal(read_one("event: ping").kind, KV_VLLM_NOTHING);
    assert_int_equal(read_one("data: {\"choices\":[]}").kind, KV_VLLM_NOTHING);
}

static void test_wrong_events(void **state)
{
    (void)state;
    expect_invalid("data: {", "no JSON");
    expect_invalid("data: ", "no JSON");
    expect_invalid("data: [1,2]", "choices");
    expect_invalid("data: {\"choices\":5}", "choices");
    expect_invalid("data: {\"choices\":[{\"text\":\"a\"}]}", "token_ids");
    expect_invalid("data: {\"choices\":[{\"text\":\"a\",\"token_ids\":[-1]}]}", "token_ids[0]");
    expect_invalid("data: {\"choices\":[{\"token_ids\":[1,4294967296]}]}", "token_ids[1]");
    expect_invalid("data: {\"choices\":[{\"token_ids\":[1,\"2\"]}]}", "token_ids[1]");
    expect_invalid("data: {\"choices\":[{\"token_ids\":[1],\"logprobs\":{\"token_logprobs\":[]}}]}",
        "logprobs");
    expect_invalid("data: {\"choices\":[{\"token_ids\":[1],\"logprobs\":{\"token_logprobs\":[-1],"
                   "\"top_logprobs\":[{\"a\":-1}]}}]}",
        "logprobs");
    expect_invalid("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":-4}}", "usage");
    expect_invalid("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4,"
                   "\"prompt_tokens_details\":{\"cached_tokens\":5}}}",
        "usage");
}

/* As many candidates as a server may send, and one more. */
static void test_too_many_candidates(void **state)
{
    (void)state;
    for (int count = KV_VLLM_TOPS_MAX + 1; count <= KV_VLLM_TOPS_MAX + 2; count++) {
        char line[2048] = "data: {\"choices\":[{\"token_ids\":[1],\"logprobs\":{\"token_logprobs\":"
                          "[-1],\"top_logprobs\":[{";
        for (int i = 0; i < count; i++) {
            char one[32];
            snprintf(one, sizeof one, "%s\"token_id:%d\":-%d", i > 0 ? "," : "", i, i);
            strcat(line, one);
        }
        strcat(line, "}]}}]}");
        if (count > KV_VLLM_TOPS_MAX + 1) {
            expect_invalid(line, "logprobs");
        } else {
            kv_vllm_event_t event = read_one(line);
            assert_int_equal(event.top_counts[0], count);
            kv_vllm_event_clear(&event);
        }
    }
}

/* ---- the other doors ---- */

static kv_status_t read_models(
    const char *text, const char *wanted, char *name_out, uint32_t *context_out)
{
    kv_error_t error;
    return kv_vllm_read_models(text, strlen(text), wanted, name_out, context_out, &error);
}

static void test_models(void **state)
{
    (void)state;
    static const char ONE[] = "{\"data\":[{\"id\":\"/models/x\",\"max_model_len\":2048}]}";
    static const char TWO[] = "{\"data\":[{\"id\":\"a\",\"max_model_len\":1},"
                              "{\"id\":\"b\",\"max_model_len\":2}]}";
    char name[KV_VLLM_MODEL_BYTES];
    uint32_t context = 0;
    assert_int_equal(read_models(ONE, "tiny", name, &context), KV_OK);
    assert_string_equal(name, "/models/x");
    assert_int_equal(context, 2048);
    assert_int_equal(read_models(TWO, "b", name, &context), KV_OK);
    assert_int_equal(context, 2);
    assert_int_equal(read_models(TWO, "c", name, &context), KV_MISSING);
    assert_int_equal(read_models("{\"data\":[]}", "c", name, &context), KV_MISSING);
    assert_int_equal(read_models("{}", "c", name, &context), KV_INVALID);
    assert_int_equal(read_models("no JSON", "c", name, &context), KV_INVALID);
    assert_int_equal(read_models("{\"data\":[{\"id\":\"a\"}]}", "a", name, &context), KV_INVALID);
    assert_int_equal(
        read_models("{\"data\":[{\"id\":7,\"max_model_len\":1}]}", "a", name, &context),
        KV_INVALID);
}

static void test_tokenizer_check(void **state)
{
    (void)state;
    static const uint32_t IDS[] = {4, 5, 6};
    static const struct {
        const char *text;
        kv_status_t status;
        const char *said;
    } CASES[] = {
        {"{\"tokens\":[4,5,6]}", KV_OK, NULL},
        {"{\"tokens\":[4,9,6]}", KV_REFUSED, "token 1 of a probe is 9 there and 5 here"},
        {"{\"tokens\":[4,5]}", KV_REFUSED, "token 2 of a probe is none there and 6 here"},
        {"{\"tokens\":[4,5,6,7]}", KV_REFUSED, "token 3 of a probe is 7 there and none here"},
        {"{\"tokens\":7}", KV_INVALID, "tokens"},
        {"<html>", KV_INVALID, "tokens"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        kv_error_t error = {.text = ""};
        assert_int_equal(
            kv_vllm_check_tokenized(CASES[i].text, strlen(CASES[i].text), IDS, 3, &error),
            CASES[i].status);
        if (CASES[i].said != NULL && strstr(error.text, CASES[i].said) == NULL) {
            fail_msg("%s: %s", CASES[i].text, error.text);
        }
    }
}

static void test_metrics(void **state)
{
    (void)state;
    static const char *const LINES[] = {"# HELP vllm:num_requests_running Running.",
        "vllm:num_requests_running{engine=\"0\",model_name=\"a } b\"} 3.0",
        "vllm:num_requests_running{engine=\"1\"} 2", "vllm:num_requests_waiting 4.0",
        "vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 100.0",
        "vllm:num_requests_running{} NaN", "vllm:num_requests_running{", "x 5", ""};
    double running = 0, waiting = 0;
    for (size_t i = 0; i < sizeof LINES / sizeof LINES[0]; i++) {
        kv_vllm_read_metric(LINES[i], strlen(LINES[i]), &running, &waiting);
    }
    assert_float_equal(running, 5, 0);
    assert_float_equal(waiting, 4, 0);
}

static void test_error_texts(void **state)
{
    (void)state;
    char text[KV_VLLM_TEXT_BYTES], longer[600];
    static const char ERROR[] = "{\"error\":{\"message\":\"too long\",\"code\":400}}";
    kv_vllm_read_error(ERROR, strlen(ERROR), text);
    assert_string_equal(text, "too long");
    kv_vllm_read_error("Bad Gateway\n<html>", 18, text);
    assert_string_equal(text, "Bad Gateway");
    kv_vllm_read_error("", 0, text);
    assert_string_equal(text, "no reason given");
    kv_vllm_read_error("{\"detail\":1}", 12, text);
    assert_string_equal(text, "no reason given");
    /* Cut at a character's end. */
    int used = snprintf(longer, sizeof longer, "{\"error\":{\"message\":\"");
    for (int i = 0; i < 200; i++) {
        used += snprintf(longer + used, sizeof longer - (size_t)used, "\xc3\xa9");
    }
    snprintf(longer + used, sizeof longer - (size_t)used, "\"}}");
    kv_vllm_read_error(longer, strlen(longer), text);
    assert_int_equal(strlen(text), 254);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_body),
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_usage_errors_and_end),
        cmocka_unit_test(test_wrong_events),
        cmocka_unit_test(test_too_many_candidates),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_tokenizer_check),
        cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_error_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
