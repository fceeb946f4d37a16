/* Anthropic's answers as pure functions: answers, usage, the order of a stream's events, errors;
 * each in its exact shape. */
#include "testing/testing.h"

#include "gateway/anthropic/anthropic.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- answers ---- */

static const kv_api_request_t PLAIN = {.kind = KV_API_CHAT, .max_tokens = 9};

static kv_answer_t answer_of(const kv_api_request_t *request, const kv_choice_t *choice)
{
    return (kv_answer_t){.request = request,
        .variant = KV_ANTHROPIC_MESSAGES,
        .id = "msg_1",
        .model = "tiny",
        .usage = {.prompt_tokens = 100, .generated_tokens = 7},
        .choices = choice,
        .choice_count = choice == NULL ? 0 : 1};
}

static void drop_extension(json_t *document)
{
    json_t *message = json_object_get(document, "message");
    json_t *usage = json_object_get(message != NULL ? message : document, "usage");
    if (usage != NULL) {
        assert_true(json_is_object(json_object_get(usage, "kvist")));
        json_object_del(usage, "kvist");
    }
}

/* The document, but for Kvist's own part of its usage. Takes the text. */
static void assert_json(char *text, size_t bytes, const char *wanted)
{
    assert_int_equal(strlen(text), bytes);
    json_t *document = json_loads(text, 0, NULL);
    assert_non_null(document);
    drop_extension(document);
    char *plain = json_dumps(document, JSON_COMPACT);
    assert_string_equal(plain, wanted);
    free(plain);
    json_decref(document);
    free(text);
}

/* Events as "NAME DATA" lines, without Kvist's own; takes the text. */
static void collect_events(char *text, size_t bytes, char *lines, size_t room)
{
    assert_int_equal(strlen(text), bytes);
    for (char *at = text; *at != '\0';) {
        char name[64];
        int head = 0;
        assert_int_equal(sscanf(at, "event: %63s\ndata: %n", name, &head), 1);
        assert_true(head > 0);
        char *end = strstr(at, "\n\n");
        assert_non_null(end);
        json_t *document = json_loadb(at + head, (size_t)(end - at) - (size_t)head, 0, NULL);
        assert_non_null(document);
        assert_string_equal(name, json_string_value(json_object_get(document, "type")));
        drop_extension(document);
        char *plain = json_dumps(document, JSON_COMPACT);
        size_t used = strlen(lines);
        snprintf(lines + used, room - used, "%s\n", plain);
        free(plain);
        json_decref(document);
        at = end + 2;
    }
    free(text);
}

#define NO_CACHE(output)                                                                           \
    "\"usage\":{\"input_tokens\":100,\"cache_creation_input_tokens\":0,"                           \
    "\"cache_read_input_tokens\":0,\"cache_creation\":{\"ephemeral_5m_input_tokens\":0,"           \
    "\"ephemeral_1h_input_tokens\":0},\"output_tokens\":" output ",\"service_tier\":\"standard\"}"

static void an_answer_has_its_shape(void **state)
{
    (void)state;
    size_t bytes;
    kv_choice_t choice = {
        .text = "Hi \xc3\xa9!", .text_bytes = 6, .finish = KV_FINISH_STOP, .token_count = 7};
    kv_answer_t answer = answer_of(&PLAIN, &choice);
    char *text = kv_anthropic_whole(&answer, &bytes);
    assert_json(text, bytes,
        "{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"tiny\","
        "\"content\":[{\"type\":\"text\",\"text\":\"Hi \xc3\xa9!\"}],\"stop_reason\":\"end_turn\","
        "\"stop_sequence\":null," NO_CACHE("7") "}");

    const kv_tool_call_t calls[] = {
        {.id = "c1", .name = "f", .arguments = "{\"x\": 0.30000000000000004, \"y\": [\"z\"]}"},
        {.index = 1, .id = "c2", .name = "g", .arguments = "{}"}};
    choice = (kv_choice_t){
        .text = "", .tool_calls = calls, .tool_call_count = 2, .finish = KV_FINISH_TOOL_CALLS};
    text = kv_anthropic_whole(&answer, &bytes);
    assert_json(text, bytes,
        "{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"tiny\","
        "\"content\":[{\"type\":\"tool_use\",\"id\":\"toolu_c1\",\"name\":\"f\",\"input\":{\"x\":"
        "0.30000000000000004,\"y\":[\"z\"]}},{\"type\":\"tool_use\",\"id\":\"toolu_c2\",\"name\":"
        "\"g\","
        "\"input\":{}}],\"stop_reason\":\"tool_use\",\"stop_sequence\":null," NO_CACHE("7") "}");
}

static void assert_stop(
    const kv_api_request_t *request, kv_finish_t finish, const char *reason, const char *sequence)
{
    size_t bytes;
    kv_choice_t choice = {.text = "x", .text_bytes = 1, .finish = finish, .stop_string = "END"};
    kv_answer_t answer = answer_of(request, &choice);
    char *text = kv_anthropic_whole(&answer, &bytes);
    json_t *document = json_loads(text, 0, NULL);
    const char *said = json_string_value(json_object_get(document, "stop_sequence"));
    assert_string_equal(json_string_value(json_object_get(document, "stop_reason")), reason);
    assert_true((said == NULL) == (sequence == NULL));
    if (said != NULL) {
        assert_string_equal(said, sequence);
    }
    json_decref(document);
    free(text);
}

static void every_end_has_its_reason(void **state)
{
    (void)state;
    kv_api_request_t cut = PLAIN;
    cut.max_tokens_cut = true;
    assert_stop(&PLAIN, KV_FINISH_STOP, "end_turn", NULL);
    assert_stop(&PLAIN, KV_FINISH_STOP_STRING, "stop_sequence", "END");
    assert_stop(&PLAIN, KV_FINISH_LENGTH, "max_tokens", NULL);
    assert_stop(&PLAIN, KV_FINISH_TOOL_CALLS, "tool_use", NULL);
    assert_stop(&cut, KV_FINISH_LENGTH, "model_context_window_exceeded", NULL);
    assert_stop(&cut, KV_FINISH_STOP, "end_turn", NULL);
}

/* A request that generates nothing. */
static kv_api_request_t warm_up(void)
{
    static const kv_api_limits_t LIMITS = {.model = "tiny",
        .vocabulary_count = 1000,
        .context_tokens_max = 64,
        .default_max_tokens = 16};
    static const kv_field_t VERSION = {"anthropic-version", "2023-06-01"};
    static const char BODY[] = "{\"model\":\"tiny\",\"max_tokens\":0,"
                               "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
    const kv_call_t call = {.method = "POST",
        .path = "/v1/messages",
        .variant = KV_ANTHROPIC_MESSAGES,
        .headers = {&VERSION, 1},
        .body = BODY,
        .body_bytes = strlen(BODY)};
    kv_api_request_t request;
    kv_api_error_t error;
    assert_true(kv_anthropic_parse(&call, &LIMITS, &request, &error));
    return request;
}

static void other_answers_have_their_shapes(void **state)
{
    (void)state;
    size_t bytes;
    kv_answer_t answer = answer_of(&PLAIN, NULL);
    answer.variant = KV_ANTHROPIC_COUNT_TOKENS;
    char *text = kv_anthropic_whole(&answer, &bytes);
    assert_string_equal(text, "{\"input_tokens\":100}");
    free(text);

    kv_api_request_t warm = warm_up();
    kv_choice_t choice = {.text = "x", .text_bytes = 1, .finish = KV_FINISH_STOP};
    answer = answer_of(&warm, &choice);
    answer.usage.generated_tokens = 1;
    text = kv_anthropic_whole(&answer, &bytes);
    assert_json(text, bytes,
        "{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"tiny\","
        "\"content\":[],\"stop_reason\":\"max_tokens\",\"stop_sequence\":null," NO_CACHE("0") "}");
    kv_api_request_clear(&warm);

    const kv_anthropic_model_t model = {"tiny", 1700000000, 2048};
#define MODEL                                                                                      \
    "{\"type\":\"model\",\"id\":\"tiny\",\"display_name\":\"tiny\",\"created_at\":"                \
    "\"2023-11-14T22:13:20Z\",\"lifecycle\":\"active\",\"max_input_tokens\":2048,"                 \
    "\"max_tokens\":2048}"
    text = kv_anthropic_models(&model, true, &bytes);
    assert_string_equal(text,
        "{\"data\":[" MODEL "],\"has_more\":false,\"first_id\":\"tiny\",\"last_id\":\"tiny\"}");
    free(text);
    text = kv_anthropic_models(&model, false, &bytes);
    assert_string_equal(
        text, "{\"data\":[],\"has_more\":false,\"first_id\":null,\"last_id\":null}");
    free(text);
    text = kv_anthropic_model(&model, &bytes);
    assert_string_equal(text, MODEL);
    free(text);
}

/* ---- usage ---- */

typedef struct {
    uint32_t position, ttl_s, created; /* created: so far; UINT32_MAX: not granted */
} mark_t;

static void assert_split(uint32_t hit, const mark_t *marks, size_t count, unsigned input,
    unsigned read, unsigned created_short, unsigned created_long)
{
    size_t bytes;
    kv_api_request_t request = PLAIN;
    kv_choice_t choice = {.text = "x", .text_bytes = 1, .finish = KV_FINISH_STOP};
    kv_answer_t answer = answer_of(&request, &choice);
    answer.usage.cached_tokens[KV_TIER_HOST] = hit / 2;
    answer.usage.cached_tokens[KV_TIER_REMOTE] = hit - hit / 2;
    request.breakpoint_count = count;
    for (size_t i = 0; i < count; i++) {
        request.breakpoints[i] = (kv_api_breakpoint_t){
            .token_count = marks[i].position, .ttl_ns = marks[i].ttl_s * UINT64_C(1000000000)};
        answer.usage.grants[i] = marks[i].created == UINT32_MAX
                                     ? (kv_grant_t){.why_not = "no space"}
                                     : (kv_grant_t){.token_count = marks[i].position / 16 * 16,
                                           .created_tokens = marks[i].created,
                                           .until_unix_ms = 5};
    }
    char *text = kv_anthropic_whole(&answer, &bytes);
    json_t *document = json_loads(text, 0, NULL), *told;
    unsigned all[5] = {0};
    int unpacked = json_unpack(document, "{s:{s:i,s:i,s:i,s:{s:i,s:i},s:{s:o}}}", "usage",
        "input_tokens", &all[0], "cache_creation_input_tokens", &all[1], "cache_read_input_tokens",
        &all[2], "cache_creation", "ephemeral_5m_input_tokens", &all[3],
        "ephemeral_1h_input_tokens", &all[4], "kvist", "breakpoints", &told);
    assert_int_equal(unpacked, 0);
    assert_int_equal(all[0], input);
    assert_int_equal(all[2], read);
    assert_int_equal(all[3], created_short);
    assert_int_equal(all[4], created_long);
    assert_int_equal(all[1], created_short + created_long);
    assert_int_equal(all[0] + all[1] + all[2], 100);
    assert_int_equal(json_array_size(told), count);
    for (size_t i = 0; i < count; i++) {
        const json_t *why = json_object_get(json_array_get(told, i), "why_not");
        assert_true(json_is_string(why) == (marks[i].created == UINT32_MAX));
    }
    json_decref(document);
    free(text);
}

static void usage_adds_up(void **state)
{
    (void)state;
    const uint32_t none = UINT32_MAX;
    /* What is hit without a breakpoint is said by Kvist's own part only. */
    assert_split(64, NULL, 0, 100, 0, 0, 0);
    /* Whole blocks are kept: the rest is input, with what lies behind the breakpoint. */
    assert_split(0, (mark_t[]){{90, 300, 80}}, 1, 20, 0, 80, 0);
    assert_split(0, (mark_t[]){{90, 3600, 80}}, 1, 20, 0, 0, 80);
    assert_split(80, (mark_t[]){{90, 300, 0}}, 1, 20, 80, 0, 0);
    assert_split(32, (mark_t[]){{90, 300, 48}}, 1, 20, 32, 48, 0);
    /* A hit goes on behind the last breakpoint. */
    assert_split(96, (mark_t[]){{90, 300, 0}}, 1, 10, 90, 0, 0);
    /* As documented: up to the last hour's an hour, from there five minutes. */
    assert_split(16, (mark_t[]){{40, 3600, 16}, {70, 3600, 48}, {90, 300, 64}}, 3, 20, 16, 16, 48);
    assert_split(48, (mark_t[]){{40, 3600, 0}, {90, 300, 32}}, 2, 20, 48, 32, 0);
    /* The tools' breakpoint lies behind the system's, whose order is another. */
    assert_split(0, (mark_t[]){{40, 3600, 32}, {20, 300, 16}}, 2, 68, 0, 0, 32);
    /* Not promised, not counted. */
    assert_split(16, (mark_t[]){{90, 300, none}}, 1, 84, 16, 0, 0);
    assert_split(0, (mark_t[]){{40, 3600, 32}, {90, 300, none}}, 2, 68, 0, 0, 32);
    /* A node that tells too much breaks no sum. */
    assert_split(500, (mark_t[]){{90, 300, 400}}, 1, 0, 90, 10, 0);
}

/* ---- streams ---- */

static void add_part(
    const kv_answer_t *answer, uint32_t *scratch, kv_choice_t part, char *lines, size_t room)
{
    size_t bytes;
    part.scratch = scratch;
    char *text = kv_anthropic_event(answer, &part, &bytes);
    collect_events(text, bytes, lines, room);
}

static void a_stream_has_its_order(void **state)
{
    (void)state;
    char lines[4096] = "";
    uint32_t scratch[KV_DIALECT_SCRATCH] = {0};
    size_t bytes;
    kv_choice_t last = {.finish = KV_FINISH_STOP_STRING, .stop_string = "END"};
    kv_answer_t answer = answer_of(&PLAIN, &last);
    answer.usage.generated_tokens = 0;
    char *text = kv_anthropic_begin(&answer, &bytes);
    collect_events(text, bytes, lines, sizeof lines);
    kv_choice_t first = {.first = true, .text = "Hel", .text_bytes = 3};
    add_part(&answer, scratch, first, lines, sizeof lines);
    add_part(&answer, scratch, (kv_choice_t){.text = "lo", .text_bytes = 2}, lines, sizeof lines);
    add_part(&answer, scratch, last, lines, sizeof lines);
    answer.usage.generated_tokens = 7;
    text = kv_anthropic_end(&answer, &bytes);
    collect_events(text, bytes, lines, sizeof lines);
    assert_string_equal(lines,
        "{\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":"
        "\"assistant\",\"model\":\"tiny\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":"
        "null," NO_CACHE(
            "0") "}}\n"
                 "{\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":"
                 "\"text\","
                 "\"text\":\"\"}}\n"
                 "{\"type\":\"ping\"}\n"
                 "{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\","
                 "\"text\":"
                 "\"Hel\"}}\n"
                 "{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\","
                 "\"text\":"
                 "\"lo\"}}\n"
                 "{\"type\":\"content_block_stop\",\"index\":0}\n"
                 "{\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"stop_sequence\","
                 "\"stop_sequence\":\"END\"}," NO_CACHE("7") "}\n"
                                                             "{\"type\":\"message_stop\"}\n");
}

/* What was created is known at the end: a client must not keep what the first event says of it. */
static void a_marked_stream_begins_without_what_was_created(void **state)
{
    (void)state;
    char lines[2048] = "";
    size_t bytes;
    kv_api_request_t request = PLAIN;
    request.breakpoint_count = 1;
    request.breakpoints[0] = (kv_api_breakpoint_t){
        .token_count = 90, .ttl_ns = KV_ANTHROPIC_SHORT_TTL_S * 1000000000ull};
    kv_choice_t last = {.finish = KV_FINISH_STOP};
    kv_answer_t answer = answer_of(&request, &last);
    answer.usage.grants[0].why_not = "the node has not said";
    char *text = kv_anthropic_begin(&answer, &bytes);
    collect_events(text, bytes, lines, sizeof lines);
    assert_non_null(strstr(lines, "\"cache_creation\":null"));
    lines[0] = '\0';
    answer.usage.grants[0] =
        (kv_grant_t){.token_count = 80, .created_tokens = 80, .until_unix_ms = 5};
    text = kv_anthropic_end(&answer, &bytes);
    collect_events(text, bytes, lines, sizeof lines);
    assert_non_null(strstr(lines, "\"cache_creation\":{\"ephemeral_5m_input_tokens\":80,"));
    assert_non_null(strstr(lines, "\"input_tokens\":20,"));
}

static void calls_are_streamed_as_blocks(void **state)
{
    (void)state;
    char lines[4096] = "";
    uint32_t scratch[KV_DIALECT_SCRATCH] = {0};
    kv_answer_t answer = answer_of(&PLAIN, NULL);
    const kv_tool_call_t calls[] = {{.id = "c1", .name = "f", .arguments = "{\"a\": 1}"},
        {.index = 1, .id = "c2", .name = "g", .arguments = "{}"}};
    add_part(&answer, scratch, (kv_choice_t){.first = true, .text = ""}, lines, sizeof lines);
    assert_string_equal(lines, "");
    add_part(&answer, scratch, (kv_choice_t){.text = "So", .text_bytes = 2}, lines, sizeof lines);
    add_part(&answer, scratch, (kv_choice_t){.tool_calls = calls, .tool_call_count = 2}, lines,
        sizeof lines);
    add_part(&answer, scratch, (kv_choice_t){.finish = KV_FINISH_TOOL_CALLS}, lines, sizeof lines);
    assert_string_equal(lines,
        "{\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\","
        "\"text\":\"\"}}\n"
        "{\"type\":\"ping\"}\n"
        "{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":"
        "\"So\"}}\n"
        "{\"type\":\"content_block_stop\",\"index\":0}\n"
        "{\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\","
        "\"id\":\"toolu_c1\",\"name\":\"f\",\"input\":{}}}\n"
        "{\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\","
        "\"partial_json\":\"{\\\"a\\\": 1}\"}}\n"
        "{\"type\":\"content_block_stop\",\"index\":1}\n"
        "{\"type\":\"content_block_start\",\"index\":2,\"content_block\":{\"type\":\"tool_use\","
        "\"id\":\"toolu_c2\",\"name\":\"g\",\"input\":{}}}\n"
        "{\"type\":\"content_block_delta\",\"index\":2,\"delta\":{\"type\":\"input_json_delta\","
        "\"partial_json\":\"{}\"}}\n"
        "{\"type\":\"content_block_stop\",\"index\":2}\n");
}

static void errors_have_their_shapes(void **state)
{
    (void)state;
    static const struct {
        unsigned code;
        const char *type;
    } TYPES[] = {{400, "invalid_request_error"}, {401, "authentication_error"},
        {403, "permission_error"}, {404, "not_found_error"}, {405, "invalid_request_error"},
        {413, "request_too_large"}, {429, "rate_limit_error"}, {500, "api_error"},
        {502, "api_error"}, {503, "overloaded_error"}, {504, "timeout_error"}};
    size_t bytes;
    kv_api_error_t error;
    for (size_t i = 0; i < sizeof TYPES / sizeof TYPES[0]; i++) {
        char wanted[256];
        kv_api_fail(&error, TYPES[i].code, "model", NULL, "model: \"%s\" is wrong", "x");
        snprintf(wanted, sizeof wanted,
            "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":\"model: \\\"x\\\" is "
            "wrong\"},\"request_id\":\"req_1\"}",
            TYPES[i].type);
        char *text = kv_anthropic_error(&error, "req_1", false, &bytes);
        assert_json(text, bytes, wanted);
    }
    char *text = kv_anthropic_error(&error, NULL, true, &bytes);
    assert_string_equal(text,
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"timeout_error\",\"message\":"
        "\"model: \\\"x\\\" is wrong\"},\"request_id\":null}\n\n");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_has_its_shape),
        cmocka_unit_test(every_end_has_its_reason),
        cmocka_unit_test(other_answers_have_their_shapes),
        cmocka_unit_test(usage_adds_up),
        cmocka_unit_test(a_stream_has_its_order),
        cmocka_unit_test(a_marked_stream_begins_without_what_was_created),
        cmocka_unit_test(calls_are_streamed_as_blocks),
        cmocka_unit_test(errors_have_their_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
