#include "gateway/openai/openai.h"

#include "base/clock.h"
#include "base/memory.h"
#include "gateway/json.h"
#include "gateway/routing/router.h"
#include "gateway/tool_calls.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    STOPS_MAX = 4, /* as documented */
    TOOLS_MAX = 128,
    CACHE_KEY_BYTES_MAX = 4096,
};

/* ---- what is not supported ---- */

/* Fields that would change the answer; asking for what happens anyway is no harm. */
static bool refuse_unsupported(const json_t *document, kv_api_error_t *error)
{
    static const char *const FIELDS[] = {"logit_bias", "functions", "function_call",
        "presence_penalty", "frequency_penalty", "audio", "prediction", "web_search_options",
        "suffix", "echo", "min_p", "logit_processors", "guided_json", "repetition_penalty"};
    for (size_t i = 0; i < sizeof FIELDS / sizeof FIELDS[0]; i++) {
        const json_t *value = kv_json_field(document, FIELDS[i]);
        bool harmless = value == NULL || kv_json_is_nothing(value);
        if (!harmless && strcmp(FIELDS[i], "repetition_penalty") == 0) {
            harmless = json_is_number(value) && json_number_value(value) == 1;
        }
        if (!harmless) {
            return kv_api_fail(error, 400, FIELDS[i], "unsupported_parameter",
                "%s: not supported by this server", FIELDS[i]);
        }
    }
    const json_t *best_of = kv_json_field(document, "best_of");
    if (best_of != NULL && !(json_is_number(best_of) && json_number_value(best_of) == 1)) {
        return kv_api_fail(error, 400, "best_of", "unsupported_parameter",
            "best_of: only 1 is supported; n asks for several answers");
    }
    const json_t *modalities = kv_json_field(document, "modalities");
    const char *modality = json_string_value(json_array_get(modalities, 0));
    if (modalities != NULL &&
        (json_array_size(modalities) != 1 || modality == NULL || strcmp(modality, "text") != 0)) {
        return kv_api_fail(error, 400, "modalities", "unsupported_parameter",
            "modalities: only [\"text\"] is supported");
    }
    const json_t *format = kv_json_field(document, "response_format");
    const char *type = json_string_value(json_object_get(format, "type"));
    if (format != NULL && (type == NULL || strcmp(type, "text") != 0)) {
        return kv_api_fail(error, 400, "response_format", "unsupported_parameter",
            "response_format: only {\"type\": \"text\"} is supported: nothing here holds a model "
            "to "
            "a form");
    }
    return true;
}

/* ---- messages ---- */

/* Text parts one after the other. */
static bool join_parts(kv_api_request_t *request, const json_t *parts, const char *param,
    kv_chat_message_t *message, kv_api_error_t *error)
{
    size_t index, bytes = 0;
    json_t *part;
    json_array_foreach(parts, index, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_object_get(part, "text");
        if (type == NULL || strcmp(type, "text") != 0 || !json_is_string(text)) {
            return KV_API_REFUSE(error, param,
                "%s[%zu]: only {\"type\": \"text\", \"text\": string} is supported", param, index);
        }
        bytes += json_string_length(text);
    }
    char *joined = kv_api_keep(request, bytes + 1);
    message->content = joined;
    message->content_bytes = bytes;
    json_array_foreach(parts, index, part)
    {
        const json_t *text = json_object_get(part, "text");
        memcpy(joined, json_string_value(text), json_string_length(text));
        joined += json_string_length(text);
    }
    return true;
}

/* A call of an assistant's message, as an earlier answer had it. */
static bool take_call(
    const json_t *value, const char *param, kv_chat_call_t *call, kv_api_error_t *error)
{
    const char *type = json_string_value(json_object_get(value, "type"));
    const json_t *function = json_object_get(value, "function");
    call->name = json_string_value(json_object_get(function, "name"));
    call->arguments = json_string_value(json_object_get(function, "arguments"));
    if (type == NULL || strcmp(type, "function") != 0 || call->name == NULL ||
        call->arguments == NULL) {
        return KV_API_REFUSE(error, param,
            "%s: must be {\"id\": string, \"type\": \"function\", \"function\": {\"name\": string, "
            "\"arguments\": string}}",
            param);
    }
    if (!kv_tool_name_is_valid(call->name)) {
        return KV_API_REFUSE(error, param,
            "%s.function.name: must be 1 to %d letters, digits, \"_\", \"-\", \".\" or \":\"",
            param, KV_TOOL_NAME_BYTES_MAX);
    }
    call->arguments = call->arguments[0] == '\0' ? "{}" : call->arguments;
    return kv_tool_arguments_are_valid(call->arguments) ||
           KV_API_REFUSE(
               error, param, "%s.function.arguments: must be the text of a JSON object", param);
}

static bool take_calls(kv_api_request_t *request, const json_t *value, size_t index,
    kv_chat_message_t *message, kv_api_error_t *error)
{
    char param[80];
    snprintf(param, sizeof param, "messages[%zu].tool_calls", index);
    const json_t *calls = kv_json_field(value, "tool_calls");
    if (calls != NULL && !json_is_array(calls)) {
        return kv_json_wrong_type(param, "an array", calls, error);
    }
    if (json_array_size(calls) == 0) {
        return true;
    }
    if (strcmp(message->role, "assistant") != 0) {
        return KV_API_REFUSE(error, param, "%s: only an assistant's message has them", param);
    }
    message->call_count = json_array_size(calls);
    kv_chat_call_t *taken = kv_api_keep(request, message->call_count * sizeof *taken);
    message->calls = taken;
    for (size_t i = 0; i < message->call_count; i++) {
        snprintf(param, sizeof param, "messages[%zu].tool_calls[%zu]", index, i);
        if (!take_call(json_array_get(calls, i), param, &taken[i], error)) {
            return false;
        }
    }
    return true;
}

static bool take_content(kv_api_request_t *request, const json_t *value, size_t index,
    kv_chat_message_t *message, kv_api_error_t *error)
{
    char param[64];
    snprintf(param, sizeof param, "messages[%zu].content", index);
    const json_t *content = json_object_get(value, "content");
    if (json_is_string(content)) {
        message->content = json_string_value(content);
        message->content_bytes = json_string_length(content);
        return true;
    }
    if (json_is_array(content)) {
        return join_parts(request, content, param, message, error);
    }
    if ((content == NULL || json_is_null(content)) &&
        json_array_size(json_object_get(value, "tool_calls")) > 0) {
        message->content = "";
        return true; /* calls are all that it says */
    }
    return content == NULL
               ? KV_API_REFUSE(error, param, "%s: is missing", param)
               : kv_json_wrong_type(param, "a string or an array of parts", content, error);
}

static bool take_message(
    kv_api_request_t *request, const json_t *value, size_t index, kv_api_error_t *error)
{
    static const char *const ROLES[] = {"system", "developer", "user", "assistant", "tool"};
    kv_chat_message_t *message = &request->messages[index];
    char param[64];
    snprintf(param, sizeof param, "messages[%zu]", index);
    if (!json_is_object(value)) {
        return kv_json_wrong_type(param, "an object", value, error);
    }
    const json_t *role = json_object_get(value, "role");
    for (size_t i = 0; json_is_string(role) && i < sizeof ROLES / sizeof ROLES[0]; i++) {
        if (strcmp(json_string_value(role), ROLES[i]) == 0) {
            message->role = i == 1 ? ROLES[0] : ROLES[i];
        }
    }
    if (message->role == NULL) {
        snprintf(param, sizeof param, "messages[%zu].role", index);
        return KV_API_REFUSE(
            error, param, "%s: must be one of system, developer, user, assistant, tool", param);
    }
    return take_content(request, value, index, message, error) &&
           take_calls(request, value, index, message, error);
}

static bool take_messages(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    const json_t *messages = kv_json_field(document, "messages");
    if (messages == NULL) {
        return KV_API_REFUSE(error, "messages", "messages: is missing");
    }
    if (!json_is_array(messages)) {
        return kv_json_wrong_type("messages", "an array", messages, error);
    }
    size_t count = json_array_size(messages);
    if (count == 0 || count > KV_CHAT_MESSAGES_MAX) {
        return KV_API_REFUSE(error, "messages", "messages: %zu of them: must be 1 to %d", count,
            KV_CHAT_MESSAGES_MAX);
    }
    request->messages = kv_allocate_array(count, sizeof *request->messages);
    request->message_count = count;
    for (size_t i = 0; i < count; i++) {
        if (!take_message(request, json_array_get(messages, i), i, error)) {
            return false;
        }
    }
    return true;
}

/* ---- tools ---- */

static bool take_tool(
    kv_api_request_t *request, const json_t *tool, size_t index, kv_api_error_t *error)
{
    char param[48];
    snprintf(param, sizeof param, "tools[%zu]", index);
    const char *type = json_string_value(json_object_get(tool, "type"));
    const json_t *function = json_object_get(tool, "function");
    const char *name = json_string_value(json_object_get(function, "name"));
    const json_t *parameters = kv_json_field(function, "parameters");
    if (type == NULL || strcmp(type, "function") != 0 || name == NULL) {
        return KV_API_REFUSE(error, param,
            "%s: only {\"type\": \"function\", \"function\": {\"name\": string, ...}} is supported",
            param);
    }
    if (!kv_tool_name_is_valid(name)) {
        return KV_API_REFUSE(error, param,
            "%s.function.name: must be 1 to %d letters, digits, \"_\", \"-\", \".\" or \":\"",
            param, KV_TOOL_NAME_BYTES_MAX);
    }
    if (parameters != NULL && !json_is_object(parameters)) {
        return kv_json_wrong_type(
            param, "a function whose parameters are an object", parameters, error);
    }
    if (json_is_true(json_object_get(function, "strict"))) {
        return kv_api_fail(error, 400, param, "unsupported_parameter",
            "%s.function.strict: nothing here holds a model to a schema: leave it out", param);
    }
    request->tools[request->tool_count++] = kv_json_line(request, tool);
    return true;
}

static bool take_tool_choice(
    kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    const json_t *choice = kv_json_field(document, "tool_choice");
    const char *name = choice == NULL ? "auto" : json_string_value(choice);
    if (name != NULL && strcmp(name, "none") == 0) {
        request->tool_count = 0; /* what is not in the prompt is not called */
    } else if (name == NULL || strcmp(name, "auto") != 0) {
        return kv_api_fail(error, 400, "tool_choice", "unsupported_parameter",
            "tool_choice: only \"auto\" and \"none\" are supported: nothing here makes a model "
            "call, or this tool: ask for it in the prompt");
    }
    request->has_tools = request->tool_count > 0;
    bool parallel = true;
    if (!kv_json_take_bool(
            document, "parallel_tool_calls", "parallel_tool_calls", &parallel, error)) {
        return false;
    }
    request->single_tool_call = !parallel;
    return true;
}

static bool take_tools(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    const json_t *tools = kv_json_field(document, "tools");
    if (tools != NULL && !json_is_array(tools)) {
        return kv_json_wrong_type("tools", "an array", tools, error);
    }
    size_t count = json_array_size(tools);
    if (count > TOOLS_MAX) {
        return KV_API_REFUSE(error, "tools", "tools: %zu of them: at most %d", count, TOOLS_MAX);
    }
    request->tools = kv_allocate_array(count + 1, sizeof *request->tools);
    for (size_t i = 0; i < count; i++) {
        if (!take_tool(request, json_array_get(tools, i), i, error)) {
            return false;
        }
    }
    return take_tool_choice(request, document, error);
}

/* ---- prompts ---- */

static bool take_token_ids(kv_api_prompt_t *prompt, const json_t *ids, const char *param,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    size_t count = json_array_size(ids);
    if (count > limits->context_tokens_max) {
        return kv_api_fail(error, 400, param, "context_length_exceeded",
            "%s: %zu tokens, but the model's context holds %u", param, count,
            limits->context_tokens_max);
    }
    prompt->tokens = kv_allocate_array(count + 1, sizeof *prompt->tokens);
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(ids, i);
        char place[64];
        snprintf(place, sizeof place, "%s[%zu]", param, i);
        json_int_t number;
        if (!kv_json_whole(id, &number)) {
            return kv_json_wrong_type(place, "a token id", id, error);
        }
        if (number < 0 || number >= limits->vocabulary_count) {
            return KV_API_REFUSE(error, place,
                "%s: token id %lld is out of bounds: must be 0 to %u", place, (long long)number,
                limits->vocabulary_count - 1);
        }
        prompt->tokens[prompt->token_count++] = (uint32_t)number;
    }
    return true;
}

static bool take_prompt(kv_api_prompt_t *prompt, const json_t *value, const char *param,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    if (json_is_string(value)) {
        prompt->text = json_string_value(value);
        prompt->text_bytes = json_string_length(value);
        return true;
    }
    return json_is_array(value)
               ? take_token_ids(prompt, value, param, limits, error)
               : kv_json_wrong_type(param, "a string or an array of token ids", value, error);
}

static bool take_prompts(kv_api_request_t *request, const json_t *document,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    const json_t *prompt = kv_json_field(document, "prompt");
    const json_t *first = json_array_get(prompt, 0);
    if (prompt == NULL) {
        return KV_API_REFUSE(error, "prompt", "prompt: is missing");
    }
    bool several = json_is_string(first) || json_is_array(first);
    size_t count = several ? json_array_size(prompt) : 1;
    if (count > KV_API_CHOICES_MAX) {
        return KV_API_REFUSE(error, "prompt", "prompt: %zu prompts in one request: at most %d",
            count, KV_API_CHOICES_MAX);
    }
    request->prompts = kv_allocate_array(count, sizeof *request->prompts);
    request->prompt_count = count;
    for (size_t i = 0; i < count; i++) {
        char param[32] = "prompt";
        if (count > 1) {
            snprintf(param, sizeof param, "prompt[%zu]", i);
        }
        if (!take_prompt(&request->prompts[i], several ? json_array_get(prompt, i) : prompt, param,
                limits, error)) {
            return false;
        }
    }
    return true;
}

/* n, after the prompts. */
static bool take_choices(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    json_int_t count = 1;
    if (!kv_json_take_integer(document, "n", "n", 1, KV_API_CHOICES_MAX, &count, error)) {
        return false;
    }
    if (count * (json_int_t)request->prompt_count > KV_API_CHOICES_MAX) {
        return KV_API_REFUSE(error, "n",
            "n: %lld answers to each of %zu prompts: at most %d in all", (long long)count,
            request->prompt_count, KV_API_CHOICES_MAX);
    }
    request->choice_count = (uint32_t)count;
    return true;
}

/* ---- options ---- */

static bool take_stops(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    const json_t *stop = kv_json_field(document, "stop");
    if (stop == NULL || !json_is_array(stop)) {
        return stop == NULL || kv_json_take_stop(request, stop, "stop", error);
    }
    if (json_array_size(stop) > STOPS_MAX) {
        return KV_API_REFUSE(
            error, "stop", "stop: %zu strings: at most %d", json_array_size(stop), STOPS_MAX);
    }
    for (size_t i = 0; i < json_array_size(stop); i++) {
        char param[32];
        snprintf(param, sizeof param, "stop[%zu]", i);
        if (!kv_json_take_stop(request, json_array_get(stop, i), param, error)) {
            return false;
        }
    }
    return true;
}

static bool take_sampling(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    json_int_t top_k = 0, seed = 0;
    request->temperature = 1;
    request->top_p = 1;
    request->has_seed = kv_json_field(document, "seed") != NULL;
    bool good =
        kv_json_take_number(
            document, "temperature", "temperature", 0, false, 2, &request->temperature, error) &&
        kv_json_take_number(document, "top_p", "top_p", 0, true, 1, &request->top_p, error) &&
        kv_json_take_integer(document, "top_k", "top_k", 0, KV_API_TOP_K_MAX, &top_k, error) &&
        kv_json_take_integer(document, "seed", "seed", INT64_MIN, INT64_MAX, &seed, error) &&
        kv_json_take_bool(document, "ignore_eos", "ignore_eos", &request->ignore_eos, error) &&
        kv_json_take_bool(
            document, "return_token_ids", "return_token_ids", &request->returns_tokens, error);
    request->top_k = (uint32_t)top_k;
    request->seed = (uint64_t)seed;
    return good;
}

/* A chat has a switch and a number of alternatives, a completion the number alone. */
static bool take_logprobs(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    json_int_t count = 0;
    if (request->kind == KV_API_COMPLETION) {
        const json_t *value = kv_json_field(document, "logprobs");
        request->has_logprobs = value != NULL && !json_is_false(value);
        if (request->has_logprobs && !kv_json_take_integer(document, "logprobs", "logprobs", 0,
                                         KV_API_TOP_LOGPROBS_MAX, &count, error)) {
            return false;
        }
    } else if (!kv_json_take_bool(
                   document, "logprobs", "logprobs", &request->has_logprobs, error) ||
               !kv_json_take_integer(document, "top_logprobs", "top_logprobs", 0,
                   KV_API_TOP_LOGPROBS_MAX, &count, error)) {
        return false;
    }
    if (count > 0 && !request->has_logprobs) {
        return KV_API_REFUSE(error, "top_logprobs", "top_logprobs: only with \"logprobs\": true");
    }
    request->top_logprobs = (uint32_t)count;
    return true;
}

static bool take_max_tokens(kv_api_request_t *request, const json_t *document,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    json_int_t count = 0, newer = 0;
    if (!kv_json_take_integer(
            document, "max_tokens", "max_tokens", 1, limits->context_tokens_max, &count, error) ||
        !kv_json_take_integer(document, "max_completion_tokens", "max_completion_tokens", 1,
            limits->context_tokens_max, &newer, error)) {
        return false;
    }
    request->max_tokens = (uint32_t)(newer != 0 ? newer : count);
    return true;
}

static bool take_stream(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    if (!kv_json_take_bool(document, "stream", "stream", &request->stream, error)) {
        return false;
    }
    const json_t *options = kv_json_field(document, "stream_options");
    if (options == NULL) {
        return true;
    }
    if (!json_is_object(options)) {
        return kv_json_wrong_type("stream_options", "an object", options, error);
    }
    if (!request->stream) {
        return KV_API_REFUSE(error, "stream_options", "stream_options: only with \"stream\": true");
    }
    return kv_json_take_bool(
        options, "include_usage", "include_usage", &request->include_usage, error);
}

/* What belongs together goes where the rest went. Any text may be a key; one that is no label is
 * known by its hash. */
static bool take_cache_key(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    const char *key = NULL;
    if (!kv_json_take_string(
            document, "prompt_cache_key", "prompt_cache_key", CACHE_KEY_BYTES_MAX, &key, error)) {
        return false;
    }
    if (key == NULL || key[0] == '\0') {
        return true;
    }
    if (kv_api_is_label(key, KV_API_SESSION_BYTES_MAX - strlen("key:"))) {
        snprintf(request->session, sizeof request->session, "key:%s", key);
    } else {
        snprintf(request->session, sizeof request->session, "key:%016" PRIx64,
            kv_router_hash(key, strlen(key)));
    }
    return true;
}

/* How long the prompt is to be kept after it was used last. */
static bool take_cache_retention(
    kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    static const struct {
        const char *name;
        uint64_t ttl_ns;
    } RETENTIONS[] = {{"in_memory", UINT64_C(5) * 60 * KV_NS_PER_S},
        {"in-memory", UINT64_C(5) * 60 * KV_NS_PER_S}, {"24h", UINT64_C(24) * 3600 * KV_NS_PER_S}};
    const json_t *value = kv_json_field(document, "prompt_cache_retention");
    for (size_t i = 0; value != NULL && i < sizeof RETENTIONS / sizeof RETENTIONS[0]; i++) {
        const char *name = json_string_value(value);
        if (name != NULL && strcmp(name, RETENTIONS[i].name) == 0) {
            request->breakpoints[request->breakpoint_count++] =
                (kv_api_breakpoint_t){.whole_prompt = true, .ttl_ns = RETENTIONS[i].ttl_ns};
            return true;
        }
    }
    return value == NULL ||
           KV_API_REFUSE(error, "prompt_cache_retention",
               "prompt_cache_retention: must be \"in_memory\" (5 minutes) or \"24h\"");
}

/* "flex" is slower and cheaper: others go first. The rest asks for what there is. */
static bool take_service_tier(
    kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    const char *tier = NULL;
    if (!kv_json_take_string(document, "service_tier", "service_tier", 64, &tier, error)) {
        return false;
    }
    if (tier != NULL && strcmp(tier, "flex") == 0) {
        request->priority = KV_API_BATCH;
    }
    return true;
}

static bool take_salt(const json_t *value, kv_api_request_t *request, kv_api_error_t *error)
{
    if (!json_is_string(value)) {
        return kv_json_wrong_type("kvist.salt", "a string", value, error);
    }
    size_t bytes = json_string_length(value);
    if (bytes > KV_API_SALT_BYTES_MAX) {
        return KV_API_REFUSE(
            error, "kvist.salt", "kvist.salt: %zu bytes: at most %d", bytes, KV_API_SALT_BYTES_MAX);
    }
    request->salt_bytes = bytes;
    memcpy(request->salt, json_string_value(value), bytes);
    return true;
}

static bool take_session(const char *value, kv_api_request_t *request, kv_api_error_t *error)
{
    if (value == NULL || !kv_api_is_label(value, KV_API_SESSION_BYTES_MAX)) {
        return KV_API_REFUSE(error, "kvist.session",
            "kvist.session: must be at most %d printable ASCII characters, without quotes and "
            "backslashes",
            KV_API_SESSION_BYTES_MAX);
    }
    snprintf(request->session, sizeof request->session, "%s", value);
    return true;
}

/* Kvist's own: here a field that is not known is an error, since a mistyped salt would not part
 * what should be apart. */
static bool take_own_field(
    const char *name, const json_t *value, kv_api_request_t *request, kv_api_error_t *error)
{
    const char *text = json_string_value(value);
    if (strcmp(name, "salt") == 0) {
        return take_salt(value, request, error);
    }
    if (strcmp(name, "session") == 0) {
        return take_session(text, request, error);
    }
    if (strcmp(name, "cache_mode") == 0) {
        request->has_cache_mode = true;
        return (text != NULL && kv_api_cache_mode(text, &request->cache_mode)) ||
               KV_API_REFUSE(error, "kvist.cache_mode",
                   "kvist.cache_mode: must be one of readwrite, read, write, bypass");
    }
    if (strcmp(name, "priority") == 0) {
        return (text != NULL && kv_api_priority(text, &request->priority)) ||
               KV_API_REFUSE(error, "kvist.priority",
                   "kvist.priority: must be one of interactive, batch, background");
    }
    return KV_API_REFUSE(error, "kvist",
        "kvist: \"%.64s\" is no field of it: cache_mode, priority, salt, session", name);
}

static bool take_extension(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    json_t *extension = kv_json_field(document, "kvist"), *value;
    const char *name;
    if (extension != NULL && !json_is_object(extension)) {
        return kv_json_wrong_type("kvist", "an object", extension, error);
    }
    json_object_foreach(extension, name, value)
    {
        if (!take_own_field(name, value, request, error)) {
            return false;
        }
    }
    return true;
}

static bool check_model(
    const json_t *document, const kv_api_limits_t *limits, kv_api_error_t *error)
{
    const json_t *model = kv_json_field(document, "model");
    if (model == NULL) {
        return true; /* there is but one */
    }
    if (!json_is_string(model)) {
        return kv_json_wrong_type("model", "a string", model, error);
    }
    if (strcmp(json_string_value(model), limits->model) != 0) {
        return kv_api_fail(error, 404, "model", "model_not_found",
            "model: \"%.100s\" is not served here; \"%.100s\" is", json_string_value(model),
            limits->model);
    }
    return true;
}

static bool take_document(kv_api_request_t *request, const json_t *document,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    return check_model(document, limits, error) && refuse_unsupported(document, error) &&
           (request->kind == KV_API_CHAT
                   ? take_messages(request, document, error) && take_tools(request, document, error)
                   : take_prompts(request, document, limits, error)) &&
           take_choices(request, document, error) && take_sampling(request, document, error) &&
           take_logprobs(request, document, error) &&
           take_max_tokens(request, document, limits, error) &&
           take_stops(request, document, error) && take_stream(request, document, error) &&
           take_cache_key(request, document, error) &&
           take_cache_retention(request, document, error) &&
           take_service_tier(request, document, error) && take_extension(request, document, error);
}

bool kv_openai_parse(const kv_call_t *call, const kv_api_limits_t *limits,
    kv_api_request_t *request_out, kv_api_error_t *error)
{
    json_t *document = kv_json_parse_body(call, error);
    if (document == NULL) {
        return false;
    }
    kv_api_request_t request = {.kind = (kv_api_kind_t)call->variant, .document = document};
    if (!take_document(&request, document, limits, error)) {
        kv_api_request_clear(&request);
        return false;
    }
    *request_out = request;
    return true;
}
