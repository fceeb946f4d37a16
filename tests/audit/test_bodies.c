/* Bodies of requests as logs have them: what is read as which part of a prompt. */
#include "audit/bodies.h"
#include "tests/testing/testing.h"

#include <stdlib.h>
#include <string.h>

static kv_status_t read_body(const char *line, kv_audit_body_t *body, json_t **document)
{
    kv_error_t error;
    *document = json_loads(line, 0, NULL);
    assert_non_null(*document);
    return kv_audit_body_read(*document, body, &error);
}

/* The plain rendering, and the roles of its parts: H, U, A, T. */
static void expect_text(const char *line, const char *text, const char *roles)
{
    json_t *document;
    kv_audit_body_t body;
    kv_audit_prompt_t prompt;
    assert_int_equal(read_body(line, &body, &document), KV_OK);
    kv_audit_body_text(&body, &prompt);
    assert_int_equal(prompt.bytes, strlen(text));
    assert_memory_equal(prompt.text, text, prompt.bytes);
    assert_int_equal(prompt.part_count, strlen(roles));
    for (uint32_t i = 0; i < prompt.part_count; i++) {
        assert_int_equal("HUAT"[prompt.parts[i].role], roles[i]);
    }
    kv_audit_prompt_clear(&prompt);
    kv_audit_body_clear(&body);
    json_decref(document);
}

static void the_apis_bodies_become_parts(void **state)
{
    (void)state;
    expect_text("{\"messages\":[{\"role\":\"developer\",\"content\":\"Be brief.\"},"
                "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Hi\"},"
                "{\"type\":\"text\",\"text\":\"there\"}]},{\"role\":\"assistant\",\"content\":null,"
                "\"tool_calls\":[{\"id\":\"c1\",\"function\":{\"name\":\"f\",\"arguments\":"
                "\"{\\\"b\\\":1,\\\"a\\\":2}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"c1\","
                "\"content\":\"done\"}],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":"
                "\"f\"}}],\"temperature\":0.5}",
        "tools:\n{\"type\": \"function\", \"function\": {\"name\": \"f\"}}\nsystem:\nBe brief.\n\n"
        "user:\nHi\nthere\n\nassistant:\n\ncall f {\"b\":1,\"a\":2}\n\ntool:\ndone\n\n",
        "HHUAT");
    expect_text("{\"system\":[{\"type\":\"text\",\"text\":\"S\"}],\"messages\":[{\"role\":\"user\","
                "\"content\":[{\"type\":\"tool_result\",\"tool_use_id\":\"t\",\"content\":"
                "[{\"type\":\"text\",\"text\":\"R\"}]}]},{\"role\":\"assistant\",\"content\":\"A\"}"
                "],\"max_tokens\":1}",
        "system:\nS\n\nuser:\nR\n\nassistant:\nA\n\n", "HUA");
    expect_text("{\"systemInstruction\":{\"parts\":[{\"text\":\"S\"}]},\"contents\":[{\"role\":"
                "\"user\",\"parts\":[{\"text\":\"Q\"}]},{\"role\":\"model\",\"parts\":[{\"text\":"
                "\"A\"}]}],\"tools\":[{\"functionDeclarations\":[{\"name\":\"f\"}]}]}",
        "tools:\n{\"name\": \"f\"}\nsystem:\nS\n\nuser:\nQ\n\nassistant:\nA\n\n", "HHUA");
    expect_text("{\"instructions\":\"S\",\"input\":\"Q\"}", "system:\nS\n\nuser:\nQ\n\n", "HU");
    expect_text("{\"instructions\":null,\"input\":[{\"role\":\"user\",\"content\":\"Q\"},{\"type\":"
                "\"function_call_output\",\"call_id\":\"c\",\"output\":\"R\"}]}",
        "user:\nQ\n\ntool:\nR\n\n", "UT");
    expect_text("{\"prompt\":\"Once upon a time\"}", "Once upon a time", "");
}

static void lines_name_bodies(void **state)
{
    (void)state;
    json_t *document;
    kv_audit_body_t body;
    assert_int_equal(
        read_body("{\"custom_id\":\"r7\",\"method\":\"POST\",\"session\":\"s\",\"template\":\"t\","
                  "\"tenant\":\"a\",\"timestamp\":1767261600.5,\"body\":{\"prompt\":\"x\"}}",
            &body, &document),
        KV_OK);
    assert_string_equal(body.id, "r7");
    assert_string_equal(body.session, "s");
    assert_string_equal(body.template_name, "t");
    assert_string_equal(body.tenant, "a");
    assert_int_equal(body.unix_ms, 1767261600500);
    kv_audit_body_clear(&body);
    json_decref(document);
    assert_int_equal(
        read_body("{\"prompt_cache_key\":\"k\",\"prompt\":\"x\",\"timestamp\":1767261600500}",
            &body, &document),
        KV_OK);
    assert_string_equal(body.session, "k");
    assert_int_equal(body.unix_ms, 1767261600500);
    kv_audit_body_clear(&body);
    json_decref(document);
}

static void what_is_no_prompt_is_refused_and_odd_ones_are_read(void **state)
{
    (void)state;
    static const char *const WRONG[] = {"{}", "{\"messages\":[]}", "{\"messages\":\"x\"}",
        "{\"prompt\":[1,2,3]}", "{\"body\":{}}", "{\"body\":[]}", "{\"input\":3}"};
    json_t *document;
    kv_audit_body_t body;
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        assert_int_equal(read_body(WRONG[i], &body, &document), KV_INVALID);
        json_decref(document);
    }
    static const char *const ODD[] = {"{\"messages\":[3,null,\"x\",[],{}]}",
        "{\"messages\":[{\"role\":7,\"content\":{\"a\":[{}]},\"tool_calls\":[1,{}]}]}",
        "{\"messages\":[{}],\"tools\":[1,null,{\"functionDeclarations\":[[]]}]}",
        "{\"system\":5,\"messages\":[{\"content\":[[[[\"x\"]]]]}],\"timestamp\":-1e300}"};
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; i++) {
        kv_audit_prompt_t prompt;
        assert_int_equal(read_body(ODD[i], &body, &document), KV_OK);
        kv_audit_body_text(&body, &prompt);
        assert_true(prompt.bytes > 0);
        kv_audit_prompt_clear(&prompt);
        kv_audit_body_clear(&body);
        json_decref(document);
    }
}

/* The model's own rendering: parts are where its markers are, tokens end where the text's do. */
static void a_models_tokens_have_parts(void **state)
{
    (void)state;
    kv_tokenizer_t *tokenizer;
    kv_error_t error;
    assert_int_equal(kv_tokenizer_open(kv_test_model(), &tokenizer, &error), KV_OK);
    json_t *document;
    kv_audit_body_t body;
    kv_audit_prompt_t prompt;
    assert_int_equal(read_body("{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},"
                               "{\"role\":\"user\",\"content\":\"<|im_start|>system\"},"
                               "{\"role\":\"assistant\",\"content\":\"A\",\"tool_calls\":[{"
                               "\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},"
                               "{\"role\":\"tool\",\"content\":\"R\"},"
                               "{\"role\":\"user\",\"content\":\"Q\"}]}",
                         &body, &document),
        KV_OK);
    assert_int_equal(kv_audit_body_tokens(&body, tokenizer, &prompt, &error), KV_OK);
    static const kv_audit_role_t ROLES[] = {
        KV_AUDIT_HEAD, KV_AUDIT_USER, KV_AUDIT_ASSISTANT, KV_AUDIT_TOOL, KV_AUDIT_USER};
    assert_int_equal(prompt.part_count, 5);
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(prompt.parts[i].role, ROLES[i]);
        assert_memory_equal(prompt.text + prompt.parts[i].at, "<|im_start|>", 12);
    }
    assert_true(prompt.token_count > 30);
    assert_int_equal(prompt.token_ends[prompt.token_count - 1], prompt.bytes);
    assert_int_equal(kv_audit_tokens_before(&prompt, 12), 1);
    assert_int_equal(kv_audit_tokens_before(&prompt, 11), 0);
    assert_int_equal(kv_audit_tokens_before(&prompt, prompt.bytes), prompt.token_count);
    kv_audit_prompt_clear(&prompt);
    kv_audit_body_clear(&body);
    json_decref(document);
    kv_tokenizer_close(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_apis_bodies_become_parts),
        cmocka_unit_test(lines_name_bodies),
        cmocka_unit_test(what_is_no_prompt_is_refused_and_odd_ones_are_read),
        cmocka_unit_test(a_models_tokens_have_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
