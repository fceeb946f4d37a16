/* Answers, events, errors and models as Anthropic's API has them.
 *
 *   message_start
 *   content_block_start, (ping,) content_block_delta..., content_block_stop    for each block
 *   message_delta: stop_reason, usage
 *   message_stop */
#include "gateway/anthropic/anthropic.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/memory.h"
#include "gateway/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The words of kv_choice_t.scratch. */
enum { BLOCKS_BEGUN, OPEN_BLOCK };
enum { NO_BLOCK, TEXT_BLOCK, CALL_BLOCK };

/* ---- usage ---- */

static const uint64_t LONG_TTL_NS = KV_ANTHROPIC_LONG_TTL_S * (uint64_t)KV_NS_PER_S;

/* The prompt's tokens: input + read + created_short + created_long. */
typedef struct {
    uint32_t input, read, created_short, created_long;
} split_t;

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* As documented: A is what was read, B what lies before the last breakpoint of an hour, C before
 * the last one; A was read, B - A is stored for an hour, C - B for five minutes. Here C and B are
 * those that were granted, and count what was not there before. */
static split_t split_usage(const kv_answer_t *answer)
{
    const kv_api_request_t *request = answer->request;
    const kv_usage_t *usage = &answer->usage;
    uint32_t hit = kv_usage_cached_tokens(usage), asked = 0, created = 0, created_long = 0;
    for (size_t i = 0; i < request->breakpoint_count; i++) {
        const kv_api_breakpoint_t *breakpoint = &request->breakpoints[i];
        const kv_grant_t *grant = &usage->grants[i];
        asked = breakpoint->token_count > asked ? breakpoint->token_count : asked;
        if (grant->until_unix_ms != 0 && grant->created_tokens > created) {
            created = grant->created_tokens;
        }
        if (grant->until_unix_ms != 0 && breakpoint->ttl_ns == LONG_TTL_NS &&
            grant->created_tokens > created_long) {
            created_long = grant->created_tokens;
        }
    }
    uint32_t prompt = usage->prompt_tokens, read = smaller(smaller(hit, asked), prompt);
    created = smaller(created, prompt - read);
    created_long = smaller(created_long, created);
    return (split_t){.input = prompt - read - created,
        .read = read,
        .created_short = created - created_long,
        .created_long = created_long};
}

/* Also Kvist's own: what was hit wherever it lies, and what became of each breakpoint. */
static json_t *breakpoints_array(const kv_answer_t *answer)
{
    json_t *array = json_array();
    for (size_t i = 0; i < answer->request->breakpoint_count; i++) {
        const kv_grant_t *grant = &answer->usage.grants[i];
        json_array_append_new(
            array, json_pack("{s:I,s:I,s:I,s:o}", "asked_tokens",
                       (json_int_t)answer->request->breakpoints[i].token_count, "granted_tokens",
                       (json_int_t)(grant->until_unix_ms != 0 ? grant->token_count : 0),
                       "until_unix_ms", (json_int_t)grant->until_unix_ms, "why_not",
                       kv_json_text_or_null(
                           grant->why_not, grant->why_not == NULL ? 0 : strlen(grant->why_not))));
    }
    return array;
}

static uint32_t output_tokens(const kv_answer_t *answer)
{
    return kv_anthropic_is_warm_up(answer->request) ? 0 : answer->usage.generated_tokens;
}

/* known: what became of the breakpoints. Clients keep a stream's first cache_creation, so it has
 * none before. */
static json_t *usage_object(const kv_answer_t *answer, bool known)
{
    split_t split = split_usage(answer);
    json_t *extension = kv_json_usage(&answer->usage), *creation = json_null();
    json_object_set_new(extension, "breakpoints", breakpoints_array(answer));
    if (known || answer->request->breakpoint_count == 0) {
        creation =
            json_pack("{s:I,s:I}", "ephemeral_5m_input_tokens", (json_int_t)split.created_short,
                "ephemeral_1h_input_tokens", (json_int_t)split.created_long);
    }
    return json_pack("{s:I,s:I,s:I,s:o,s:I,s:s,s:o}", "input_tokens", (json_int_t)split.input,
        "cache_creation_input_tokens", (json_int_t)split.created_short + split.created_long,
        "cache_read_input_tokens", (json_int_t)split.read, "cache_creation", creation,
        "output_tokens", (json_int_t)output_tokens(answer), "service_tier", "standard", "kvist",
        extension);
}

/* ---- whole answers ---- */

static const char *stop_reason(const kv_answer_t *answer, const kv_choice_t *choice)
{
    static const char *const NAMES[] = {[KV_FINISH_NONE] = NULL,
        [KV_FINISH_STOP] = "end_turn",
        [KV_FINISH_STOP_STRING] = "stop_sequence",
        [KV_FINISH_LENGTH] = "max_tokens",
        [KV_FINISH_TOOL_CALLS] = "tool_use"};
    if (kv_anthropic_is_warm_up(answer->request)) {
        return NAMES[KV_FINISH_LENGTH];
    }
    return choice->finish == KV_FINISH_LENGTH && answer->request->max_tokens_cut
               ? "model_context_window_exceeded"
               : NAMES[choice->finish];
}

static const char *stop_sequence(const kv_choice_t *choice)
{
    return choice->finish == KV_FINISH_STOP_STRING ? choice->stop_string : NULL;
}

static json_t *text_block(const char *text, size_t bytes)
{
    return json_pack("{s:s,s:o}", "type", "text", "text", json_stringn(text, bytes));
}

static json_t *call_block(const kv_tool_call_t *call, json_t *input)
{
    char id[96];
    snprintf(id, sizeof id, "toolu_%s", call->id);
    return json_pack(
        "{s:s,s:s,s:s,s:o}", "type", "tool_use", "id", id, "name", call->name, "input", input);
}

static json_t *content_array(const kv_answer_t *answer, const kv_choice_t *choice)
{
    json_t *content = json_array();
    if (kv_anthropic_is_warm_up(answer->request)) {
        return content;
    }
    if (choice->text_bytes > 0) {
        json_array_append_new(content, text_block(choice->text, choice->text_bytes));
    }
    for (size_t i = 0; i < choice->tool_call_count; i++) {
        const kv_tool_call_t *call = &choice->tool_calls[i];
        json_t *input = json_loads(call->arguments, 0, NULL);
        json_array_append_new(content, call_block(call, input != NULL ? input : json_object()));
    }
    return content;
}

static json_t *message_object(const kv_answer_t *answer, json_t *content, const char *reason,
    const char *sequence, json_t *usage)
{
    return json_pack("{s:s,s:s,s:s,s:s,s:o,s:s?,s:s?,s:o}", "id", answer->id, "type", "message",
        "role", "assistant", "model", answer->model, "content", content, "stop_reason", reason,
        "stop_sequence", sequence, "usage", usage);
}

char *kv_anthropic_whole(const kv_answer_t *answer, size_t *bytes_out)
{
    if (answer->variant == KV_ANTHROPIC_COUNT_TOKENS) {
        return kv_json_dump(
            json_pack("{s:I}", "input_tokens", (json_int_t)answer->usage.prompt_tokens), bytes_out);
    }
    const kv_choice_t *choice = &answer->choices[0];
    json_t *document = message_object(answer, content_array(answer, choice),
        stop_reason(answer, choice), stop_sequence(choice), usage_object(answer, true));
    unsigned digits = kv_json_digits(json_object_get(document, "content"));
    char *text = json_dumps(document, JSON_COMPACT | JSON_REAL_PRECISION(digits));
    KV_CHECK(text != NULL);
    json_decref(document);
    *bytes_out = strlen(text);
    return text;
}

/* ---- streams ---- */

/* Events one after the other. */
typedef struct {
    char *text;
    size_t bytes;
} events_t;

/* Consumes the document; its type is the event's name. */
static void add_event(events_t *events, json_t *document)
{
    char name[32];
    size_t bytes;
    snprintf(name, sizeof name, "%s", json_string_value(json_object_get(document, "type")));
    char *event = kv_json_dump_event(name, document, &bytes);
    events->text = kv_reallocate(events->text, events->bytes + bytes + 1, 1);
    memcpy(events->text + events->bytes, event, bytes + 1);
    events->bytes += bytes;
    free(event);
}

static void close_block(events_t *events, uint32_t *scratch)
{
    if (scratch[OPEN_BLOCK] != NO_BLOCK) {
        add_event(events, json_pack("{s:s,s:I}", "type", "content_block_stop", "index",
                              (json_int_t)scratch[BLOCKS_BEGUN] - 1));
    }
    scratch[OPEN_BLOCK] = NO_BLOCK;
}

/* Consumes the block. */
static void open_block(events_t *events, uint32_t *scratch, uint32_t kind, json_t *block)
{
    close_block(events, scratch);
    add_event(events, json_pack("{s:s,s:I,s:o}", "type", "content_block_start", "index",
                          (json_int_t)scratch[BLOCKS_BEGUN], "content_block", block));
    if (scratch[BLOCKS_BEGUN]++ == 0) {
        add_event(events, json_pack("{s:s}", "type", "ping"));
    }
    scratch[OPEN_BLOCK] = kind;
}

/* Consumes the delta. */
static void add_delta(events_t *events, const uint32_t *scratch, json_t *delta)
{
    add_event(events, json_pack("{s:s,s:I,s:o}", "type", "content_block_delta", "index",
                          (json_int_t)scratch[BLOCKS_BEGUN] - 1, "delta", delta));
}

static void add_call(events_t *events, uint32_t *scratch, const kv_tool_call_t *call)
{
    open_block(events, scratch, CALL_BLOCK, call_block(call, json_object()));
    add_delta(events, scratch,
        json_pack("{s:s,s:s}", "type", "input_json_delta", "partial_json", call->arguments));
}

char *kv_anthropic_begin(const kv_answer_t *answer, size_t *bytes_out)
{
    events_t events = {0};
    add_event(&events,
        json_pack("{s:s,s:o}", "type", "message_start", "message",
            message_object(answer, json_array(), NULL, NULL, usage_object(answer, false))));
    *bytes_out = events.bytes;
    return events.text;
}

char *kv_anthropic_event(const kv_answer_t *answer, const kv_choice_t *choice, size_t *bytes_out)
{
    (void)answer;
    events_t events = {.text = kv_duplicate_string("")};
    if (choice->text_bytes > 0) {
        if (choice->scratch[OPEN_BLOCK] != TEXT_BLOCK) {
            open_block(&events, choice->scratch, TEXT_BLOCK, text_block("", 0));
        }
        add_delta(&events, choice->scratch,
            json_pack("{s:s,s:o}", "type", "text_delta", "text",
                json_stringn(choice->text, choice->text_bytes)));
    }
    for (size_t i = 0; i < choice->tool_call_count; i++) {
        add_call(&events, choice->scratch, &choice->tool_calls[i]);
    }
    if (choice->finish != KV_FINISH_NONE) {
        close_block(&events, choice->scratch);
    }
    *bytes_out = events.bytes;
    return events.text;
}

char *kv_anthropic_end(const kv_answer_t *answer, size_t *bytes_out)
{
    const kv_choice_t *choice = &answer->choices[0];
    events_t events = {0};
    add_event(&events, json_pack("{s:s,s:{s:s?,s:s?},s:o}", "type", "message_delta", "delta",
                           "stop_reason", stop_reason(answer, choice), "stop_sequence",
                           stop_sequence(choice), "usage", usage_object(answer, true)));
    add_event(&events, json_pack("{s:s}", "type", "message_stop"));
    *bytes_out = events.bytes;
    return events.text;
}

/* ---- errors ---- */

static const char *error_type(unsigned http_code)
{
    static const struct {
        unsigned code;
        const char *type;
    } TYPES[] = {{401, "authentication_error"}, {402, "billing_error"}, {403, "permission_error"},
        {404, "not_found_error"}, {413, "request_too_large"}, {429, "rate_limit_error"},
        {503, "overloaded_error"}, {504, "timeout_error"}};
    for (size_t i = 0; i < sizeof TYPES / sizeof TYPES[0]; i++) {
        if (TYPES[i].code == http_code) {
            return TYPES[i].type;
        }
    }
    return http_code >= 500 ? "api_error" : "invalid_request_error";
}

char *kv_anthropic_error(
    const kv_api_error_t *error, const char *id, bool in_stream, size_t *bytes_out)
{
    events_t events = {0};
    json_t *document = json_pack("{s:s,s:{s:s,s:s},s:s?}", "type", "error", "error", "type",
        error_type(error->http_code), "message", error->message, "request_id", id);
    if (!in_stream) {
        return kv_json_dump(document, bytes_out);
    }
    add_event(&events, document);
    *bytes_out = events.bytes;
    return events.text;
}

/* ---- models ---- */

static json_t *model_object(const kv_anthropic_model_t *model)
{
    char created[32];
    time_t seconds = (time_t)model->created_unix_s;
    struct tm broken;
    KV_CHECK(gmtime_r(&seconds, &broken) != NULL);
    strftime(created, sizeof created, "%Y-%m-%dT%H:%M:%SZ", &broken);
    return json_pack("{s:s,s:s,s:s,s:s,s:s,s:I,s:I}", "type", "model", "id", model->name,
        "display_name", model->name, "created_at", created, "lifecycle", "active",
        "max_input_tokens", (json_int_t)model->context_tokens_max, "max_tokens",
        (json_int_t)model->context_tokens_max);
}

char *kv_anthropic_model(const kv_anthropic_model_t *model, size_t *bytes_out)
{
    return kv_json_dump(model_object(model), bytes_out);
}

char *kv_anthropic_models(const kv_anthropic_model_t *model, bool on_page, size_t *bytes_out)
{
    json_t *data = json_array();
    const char *name = on_page ? model->name : NULL;
    if (on_page) {
        json_array_append_new(data, model_object(model));
    }
    return kv_json_dump(json_pack("{s:o,s:b,s:s?,s:s?}", "data", data, "has_more", 0, "first_id",
                            name, "last_id", name),
        bytes_out);
}
