/* An Anthropic body's options. */
#include "gateway/anthropic/parse_internal.h"

#include "gateway/anthropic/anthropic.h"

#include <stdio.h>
#include <string.h>

enum { USER_ID_BYTES_MAX = 512, MODEL_BYTES_MAX = 256 };

static char warm_up; /* its address marks a request */

/* ---- what is not supported ---- */

/* Fields that would change the answer; asking for what happens anyway is no harm. */
static bool refuse_unsupported(const json_t *document, kv_api_error_t *error)
{
    static const char *const FIELDS[] = {"container", "mcp_servers", "context_management",
        "output_format", "compaction", "thread", "prefill", "fallbacks", "kvist"};
    /* One value of a field is what happens anyway. */
    static const char *const VALUES[][3] = {
        {"thinking", "type", "disabled"}, {"speed", NULL, "standard"}};
    for (size_t i = 0; i < sizeof FIELDS / sizeof FIELDS[0]; i++) {
        const json_t *value = kv_json_field(document, FIELDS[i]);
        if (value != NULL && !kv_json_is_nothing(value)) {
            return KV_API_REFUSE(error, FIELDS[i], "%s: not supported by this server", FIELDS[i]);
        }
    }
    for (size_t i = 0; i < sizeof VALUES / sizeof VALUES[0]; i++) {
        const json_t *value = kv_json_field(document, VALUES[i][0]);
        const char *said =
            json_string_value(VALUES[i][1] != NULL ? json_object_get(value, VALUES[i][1]) : value);
        if (value != NULL && (said == NULL || strcmp(said, VALUES[i][2]) != 0)) {
            return KV_API_REFUSE(error, VALUES[i][0],
                "%s: not supported by this server: leave it out, or say \"%s\"", VALUES[i][0],
                VALUES[i][2]);
        }
    }
    const json_t *output = kv_json_field(document, "output_config");
    if (kv_json_field(output, "format") != NULL) {
        return KV_API_REFUSE(error, "output_config.format",
            "output_config.format: not supported by this server: answers are text");
    }
    if (kv_json_field(kv_json_field(document, "diagnostics"), "previous_message_id") != NULL) {
        return KV_API_REFUSE(error, "diagnostics.previous_message_id",
            "diagnostics.previous_message_id: not supported by this server: `kvist explain` says "
            "why a prompt was not found");
    }
    return true;
}

/* ---- options ---- */

static bool take_model(const json_t *document, const kv_api_limits_t *limits, kv_api_error_t *error)
{
    const char *model = NULL;
    if (!kv_json_take_string(document, "model", "model", MODEL_BYTES_MAX, &model, error)) {
        return false;
    }
    if (model == NULL) {
        return KV_API_REFUSE(error, "model", "model: is missing");
    }
    return strcmp(model, limits->model) == 0 ||
           kv_api_fail(error, 404, "model", NULL,
               "model: \"%.100s\" is not served here; \"%.100s\" is", model, limits->model);
}

/* 0 asks for the prompt to be stored, and for no answer. */
static bool take_max_tokens(
    kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    json_int_t count = -1;
    if (!kv_json_take_integer(document, "max_tokens", "max_tokens", 0, INT32_MAX, &count, error)) {
        return false;
    }
    if (count < 0) {
        return KV_API_REFUSE(error, "max_tokens", "max_tokens: is missing");
    }
    if (count == 0 && request->stream) {
        return KV_API_REFUSE(error, "max_tokens",
            "max_tokens: 0 only without \"stream\": there is nothing to stream");
    }
    if (count == 0) {
        request->own = &warm_up;
    }
    request->max_tokens = count == 0 ? 1 : (uint32_t)count;
    return true;
}

static bool take_sampling(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    json_int_t top_k = 0;
    request->temperature = 1;
    request->top_p = 1;
    bool good =
        kv_json_take_number(
            document, "temperature", "temperature", 0, false, 1, &request->temperature, error) &&
        kv_json_take_number(document, "top_p", "top_p", 0, true, 1, &request->top_p, error) &&
        kv_json_take_integer(document, "top_k", "top_k", 0, KV_API_TOP_K_MAX, &top_k, error);
    request->top_k = (uint32_t)top_k;
    return good;
}

static bool take_stops(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    const json_t *stops = kv_json_field(document, "stop_sequences");
    if (stops == NULL) {
        return true;
    }
    if (!json_is_array(stops)) {
        return kv_json_wrong_type("stop_sequences", "an array of strings", stops, error);
    }
    if (json_array_size(stops) > KV_API_STOPS_MAX) {
        return KV_API_REFUSE(error, "stop_sequences", "stop_sequences: %zu strings: at most %d",
            json_array_size(stops), KV_API_STOPS_MAX);
    }
    for (size_t i = 0; i < json_array_size(stops); i++) {
        char param[48];
        snprintf(param, sizeof param, "stop_sequences.%zu", i);
        if (!kv_json_take_stop(request, json_array_get(stops, i), param, error)) {
            return false;
        }
    }
    return true;
}

/* With "none" the tools stay in the prompt, so that it is the one that was stored. */
static bool take_tool_choice(
    kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    const json_t *choice = kv_json_field(document, "tool_choice");
    const char *type = json_string_value(json_object_get(choice, "type"));
    if (choice == NULL) {
        return true;
    }
    if (!json_is_object(choice)) {
        return kv_json_wrong_type("tool_choice", "an object", choice, error);
    }
    if (type == NULL || (strcmp(type, "auto") != 0 && strcmp(type, "none") != 0)) {
        return KV_API_REFUSE(error, "tool_choice.type",
            "tool_choice.type: must be \"auto\" or \"none\": this server does not force calls");
    }
    request->has_tools = request->has_tools && strcmp(type, "auto") == 0;
    return kv_json_take_bool(choice, "disable_parallel_tool_use",
        "tool_choice.disable_parallel_tool_use", &request->single_tool_call, error);
}

/* What is read and checked, and changes nothing. */
static bool check_ignored(const json_t *document, kv_api_error_t *error)
{
    const json_t *metadata = kv_json_field(document, "metadata");
    const char *text = NULL;
    if (metadata != NULL && !json_is_object(metadata)) {
        return kv_json_wrong_type("metadata", "an object", metadata, error);
    }
    if (!kv_json_take_string(
            metadata, "user_id", "metadata.user_id", USER_ID_BYTES_MAX, &text, error) ||
        !kv_json_take_string(document, "service_tier", "service_tier", SIZE_MAX, &text, error)) {
        return false;
    }
    return true;
}

/* What tells the API's versions apart is not done here (citations), or done in each (sampling). */
bool kv_anthropic_check_version(const kv_call_t *call, kv_api_error_t *error)
{
    const char *version = kv_call_header(call, "anthropic-version");
    return version == NULL || strcmp(version, "2023-06-01") == 0 ||
           strcmp(version, "2026-10-21") == 0 ||
           KV_API_REFUSE(error, "anthropic-version",
               "anthropic-version: \"%.40s\" is not known here: 2023-06-01 and 2026-10-21 are",
               version);
}

static bool take_document(const kv_call_t *call, kv_api_request_t *request, const json_t *document,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    if (!take_model(document, limits, error) || !refuse_unsupported(document, error) ||
        !kv_anthropic_take_content(request, document, error) ||
        !take_tool_choice(request, document, error)) {
        return false;
    }
    if (call->variant == KV_ANTHROPIC_COUNT_TOKENS) {
        request->count_only = true;
        return true;
    }
    return kv_json_take_bool(document, "stream", "stream", &request->stream, error) &&
           take_max_tokens(request, document, error) && take_sampling(request, document, error) &&
           take_stops(request, document, error) && check_ignored(document, error);
}

bool kv_anthropic_is_warm_up(const kv_api_request_t *request)
{
    return request->own == &warm_up;
}

bool kv_anthropic_parse(const kv_call_t *call, const kv_api_limits_t *limits,
    kv_api_request_t *request_out, kv_api_error_t *error)
{
    if (!kv_anthropic_check_version(call, error)) {
        return false;
    }
    kv_api_request_t request = {
        .kind = KV_API_CHAT, .document = kv_json_parse_body(call, error), .cut_max_tokens = true};
    if (request.document == NULL) {
        return false;
    }
    if (!take_document(call, &request, request.document, limits, error)) {
        kv_api_request_clear(&request);
        return false;
    }
    *request_out = request;
    return true;
}
