#include "gateway/api.h"

#include "base/bytes.h"
#include "base/memory.h"
#include "proto/wire.pb-c.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What was cut, or quoted from a body that is no UTF-8, must still be text. */
static void make_valid(char *text)
{
    size_t bytes = strlen(text);
    for (size_t i = 0; i < bytes;) {
        size_t length = kv_utf8_length(text + i, bytes - i);
        if (length == 0) {
            text[i] = '?';
        }
        i += length == 0 ? 1 : length;
    }
}

bool kv_api_fail(kv_api_error_t *error, unsigned http_code, const char *param, const char *code,
    const char *format, ...)
{
    *error = (kv_api_error_t){.http_code = http_code, .code = code};
    error->type = http_code == 429   ? "rate_limit_error"
                  : http_code >= 500 ? "server_error"
                                     : "invalid_request_error";
    snprintf(error->param, sizeof error->param, "%s", param);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    make_valid(error->message);
    make_valid(error->param);
    return false;
}

#define REFUSE(param, ...) kv_api_fail(error, 400, param, NULL, __VA_ARGS__)

static const char *kind_name(const json_t *value)
{
    static const char *const NAMES[] = {
        "an object", "an array", "a string", "an integer", "a number", "true", "false", "null"};
    return NAMES[json_typeof(value)];
}

static bool wrong_type(
    const char *param, const char *wanted, const json_t *value, kv_api_error_t *error)
{
    return kv_api_fail(error, 400, param, "invalid_type", "%s: must be %s, but got %s", param,
        wanted, kind_name(value));
}

/* A field that is there and not null. */
static json_t *field(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

/* ---- scalars: absent leaves *value_out as it is ---- */

static bool take_bool(
    const json_t *object, const char *name, bool *value_out, kv_api_error_t *error)
{
    const json_t *value = field(object, name);
    if (value != NULL && !json_is_boolean(value)) {
        return wrong_type(name, "true or false", value, error);
    }
    *value_out = value != NULL ? json_is_true(value) : *value_out;
    return true;
}

static bool take_integer(const json_t *object, const char *name, json_int_t min, json_int_t max,
    json_int_t *value_out, kv_api_error_t *error)
{
    const json_t *value = field(object, name);
    if (value == NULL) {
        return true;
    }
    if (!json_is_integer(value)) {
        return wrong_type(name, "an integer", value, error);
    }
    if (json_integer_value(value) < min || json_integer_value(value) > max) {
        return REFUSE(name, "%s: %lld is out of bounds: must be %lld to %lld", name,
            (long long)json_integer_value(value), (long long)min, (long long)max);
    }
    *value_out = json_integer_value(value);
    return true;
}

/* min_excluded: the bound itself is out. */
static bool take_number(const json_t *object, const char *name, double min, bool min_excluded,
    double max, float *value_out, kv_api_error_t *error)
{
    const json_t *value = field(object, name);
    if (value == NULL) {
        return true;
    }
    if (!json_is_number(value)) {
        return wrong_type(name, "a number", value, error);
    }
    double number = json_number_value(value);
    if (!(number >= min && number <= max) || (min_excluded && !((float)number > min))) {
        return REFUSE(name, "%s: %g is out of bounds: must be %s%g, at most %g", name, number,
            min_excluded ? "above " : "at least ", min, max);
    }
    *value_out = (float)number;
    return true;
}

/* ---- what is not supported ---- */

/* Fields that would change the answer; asking for what happens anyway is no harm. */
static bool is_harmless(const json_t *value)
{
    return json_is_false(value) || (json_is_number(value) && json_number_value(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_string(value) &&
               (json_string_length(value) == 0 || strcmp(json_string_value(value), "none") == 0));
}

static bool refuse_unsupported(kv_api_kind_t kind, const json_t *document, kv_api_error_t *error)
{
    static const char *const FIELDS[] = {"logprobs", "top_logprobs", "logit_bias", "tools",
        "functions", "tool_choice", "function_call", "presence_penalty", "frequency_penalty",
        "audio", "prediction", "web_search_options", "suffix", "echo", "min_p", "logit_processors",
        "guided_json", "repetition_penalty"};
    for (size_t i = 0; i < sizeof FIELDS / sizeof FIELDS[0]; i++) {
        const json_t *value = field(document, FIELDS[i]);
        bool harmless = value == NULL || is_harmless(value);
        if (!harmless && strcmp(FIELDS[i], "repetition_penalty") == 0) {
            harmless = json_is_number(value) && json_number_value(value) == 1;
        } else if (!harmless && strcmp(FIELDS[i], "tool_choice") == 0) {
            harmless = json_is_string(value) && strcmp(json_string_value(value), "auto") == 0;
        }
        /* In a completion logprobs is a number, and 0 asks for the chosen token's. */
        if (kind == KV_API_COMPLETION && strcmp(FIELDS[i], "logprobs") == 0) {
            harmless = value == NULL || json_is_false(value);
        }
        if (!harmless) {
            return kv_api_fail(error, 400, FIELDS[i], "unsupported_parameter",
                "%s: not supported by this server", FIELDS[i]);
        }
    }
    static const char *const COUNTS[] = {"n", "best_of"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = field(document, COUNTS[i]);
        if (value != NULL && !(json_is_integer(value) && json_integer_value(value) == 1)) {
            return kv_api_fail(error, 400, COUNTS[i], "unsupported_parameter",
                "%s: only 1 is supported", COUNTS[i]);
        }
    }
    const json_t *format = field(document, "response_format");
    const char *type = json_string_value(json_object_get(format, "type"));
    if (format != NULL && (type == NULL || strcmp(type, "text") != 0)) {
        return kv_api_fail(error, 400, "response_format", "unsupported_parameter",
            "response_format: only {\"type\": \"text\"} is supported");
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
            return REFUSE(param,
                "%s[%zu]: only {\"type\": \"text\", \"text\": string} is supported", param, index);
        }
        bytes += json_string_length(text);
    }
    char *joined = kv_allocate(bytes + 1);
    request->joined[request->joined_count++] = joined;
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

static bool take_message(
    kv_api_request_t *request, const json_t *value, size_t index, kv_api_error_t *error)
{
    static const char *const ROLES[] = {"system", "developer", "user", "assistant", "tool"};
    kv_chat_message_t *message = &request->messages[index];
    char param[64];
    snprintf(param, sizeof param, "messages[%zu]", index);
    if (!json_is_object(value)) {
        return wrong_type(param, "an object", value, error);
    }
    const json_t *role = json_object_get(value, "role");
    for (size_t i = 0; json_is_string(role) && i < sizeof ROLES / sizeof ROLES[0]; i++) {
        if (strcmp(json_string_value(role), ROLES[i]) == 0) {
            message->role = i == 1 ? ROLES[0] : ROLES[i];
        }
    }
    if (message->role == NULL) {
        snprintf(param, sizeof param, "messages[%zu].role", index);
        return REFUSE(param, "%s: must be one of system, developer, user, assistant, tool", param);
    }
    snprintf(param, sizeof param, "messages[%zu].tool_calls", index);
    const json_t *calls = field(value, "tool_calls");
    if (calls != NULL && !is_harmless(calls)) {
        return kv_api_fail(
            error, 400, param, "unsupported_parameter", "%s: not supported by this server", param);
    }
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
    return content == NULL ? REFUSE(param, "%s: is missing", param)
                           : wrong_type(param, "a string or an array of parts", content, error);
}

static bool take_messages(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    const json_t *messages = field(document, "messages");
    if (messages == NULL) {
        return REFUSE("messages", "messages: is missing");
    }
    if (!json_is_array(messages)) {
        return wrong_type("messages", "an array", messages, error);
    }
    size_t count = json_array_size(messages);
    if (count == 0 || count > KV_CHAT_MESSAGES_MAX) {
        return REFUSE(
            "messages", "messages: %zu of them: must be 1 to %d", count, KV_CHAT_MESSAGES_MAX);
    }
    request->messages = kv_allocate_array(count, sizeof *request->messages);
    request->joined = kv_allocate_array(count, sizeof *request->joined);
    request->message_count = count;
    for (size_t i = 0; i < count; i++) {
        if (!take_message(request, json_array_get(messages, i), i, error)) {
            return false;
        }
    }
    return true;
}

/* ---- prompt ---- */

static bool take_token_ids(kv_api_request_t *request, const json_t *ids,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    size_t count = json_array_size(ids);
    if (count > limits->context_tokens_max) {
        return kv_api_fail(error, 400, "prompt", "context_length_exceeded",
            "prompt: %zu tokens, but the model's context holds %u", count,
            limits->context_tokens_max);
    }
    request->tokens = kv_allocate_array(count + 1, sizeof *request->tokens);
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(ids, i);
        char param[48];
        snprintf(param, sizeof param, "prompt[%zu]", i);
        if (!json_is_integer(id)) {
            return wrong_type(param, "a token id", id, error);
        }
        if (json_integer_value(id) < 0 || json_integer_value(id) >= limits->vocabulary_count) {
            return REFUSE(param, "%s: token id %lld is out of bounds: must be 0 to %u", param,
                (long long)json_integer_value(id), limits->vocabulary_count - 1);
        }
        request->tokens[request->token_count++] = (uint32_t)json_integer_value(id);
    }
    return true;
}

static bool take_prompt(kv_api_request_t *request, const json_t *document,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    const json_t *prompt = field(document, "prompt");
    if (prompt == NULL) {
        return REFUSE("prompt", "prompt: is missing");
    }
    const json_t *first = json_array_get(prompt, 0);
    if (json_array_size(prompt) == 1 && (json_is_string(first) || json_is_array(first))) {
        prompt = first; /* a batch of one */
        first = json_array_get(prompt, 0);
    }
    if (json_is_string(prompt)) {
        request->prompt = json_string_value(prompt);
        request->prompt_bytes = json_string_length(prompt);
        return true;
    }
    if (!json_is_array(prompt)) {
        return wrong_type("prompt", "a string or an array of token ids", prompt, error);
    }
    if (json_is_string(first) || json_is_array(first)) {
        return kv_api_fail(error, 400, "prompt", "unsupported_parameter",
            "prompt: %zu prompts in one request: only 1 is supported", json_array_size(prompt));
    }
    return take_token_ids(request, prompt, limits, error);
}

/* ---- options ---- */

static bool take_stop(
    kv_api_request_t *request, const json_t *stop, const char *param, kv_api_error_t *error)
{
    if (!json_is_string(stop)) {
        return wrong_type(param, "a string", stop, error);
    }
    size_t bytes = json_string_length(stop);
    if (bytes == 0 || bytes > KV_STOP_BYTES_MAX) {
        return REFUSE(param, "%s: %zu bytes: must be 1 to %d", param, bytes, KV_STOP_BYTES_MAX);
    }
    memcpy(request->stops[request->stop_count++], json_string_value(stop), bytes);
    return true;
}

static bool take_stops(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    const json_t *stop = field(document, "stop");
    if (stop == NULL || !json_is_array(stop)) {
        return stop == NULL || take_stop(request, stop, "stop", error);
    }
    if (json_array_size(stop) > KV_API_STOPS_MAX) {
        return REFUSE(
            "stop", "stop: %zu strings: at most %d", json_array_size(stop), KV_API_STOPS_MAX);
    }
    for (size_t i = 0; i < json_array_size(stop); i++) {
        char param[32];
        snprintf(param, sizeof param, "stop[%zu]", i);
        if (!take_stop(request, json_array_get(stop, i), param, error)) {
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
    request->has_seed = field(document, "seed") != NULL;
    bool good = take_number(document, "temperature", 0, false, 2, &request->temperature, error) &&
                take_number(document, "top_p", 0, true, 1, &request->top_p, error) &&
                take_integer(document, "top_k", 0, KV_API_TOP_K_MAX, &top_k, error) &&
                take_integer(document, "seed", INT64_MIN, INT64_MAX, &seed, error) &&
                take_bool(document, "ignore_eos", &request->ignore_eos, error);
    request->top_k = (uint32_t)top_k;
    request->seed = (uint64_t)seed;
    return good;
}

static bool take_max_tokens(kv_api_request_t *request, const json_t *document,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    json_int_t count = 0, newer = 0;
    if (!take_integer(document, "max_tokens", 1, limits->context_tokens_max, &count, error) ||
        !take_integer(
            document, "max_completion_tokens", 1, limits->context_tokens_max, &newer, error)) {
        return false;
    }
    request->max_tokens = (uint32_t)(newer != 0 ? newer : count);
    return true;
}

static bool take_stream(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    if (!take_bool(document, "stream", &request->stream, error)) {
        return false;
    }
    const json_t *options = field(document, "stream_options");
    if (options == NULL) {
        return true;
    }
    if (!json_is_object(options)) {
        return wrong_type("stream_options", "an object", options, error);
    }
    if (!request->stream) {
        return REFUSE("stream_options", "stream_options: only with \"stream\": true");
    }
    return take_bool(options, "include_usage", &request->include_usage, error);
}

/* Kvist's own: here a field that is not known is an error, since a mistyped salt would not part
 * what should be apart. */
static bool take_extension(kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    static const char *const MODES[] = {[KVIST__WIRE__CACHE_MODE__CACHE_READWRITE] = "readwrite",
        [KVIST__WIRE__CACHE_MODE__CACHE_READ] = "read",
        [KVIST__WIRE__CACHE_MODE__CACHE_WRITE] = "write",
        [KVIST__WIRE__CACHE_MODE__CACHE_BYPASS] = "bypass"};
    json_t *extension = field(document, "kvist"), *value;
    const char *name;
    if (extension != NULL && !json_is_object(extension)) {
        return wrong_type("kvist", "an object", extension, error);
    }
    json_object_foreach(extension, name, value)
    {
        if (strcmp(name, "salt") == 0) {
            if (!json_is_string(value)) {
                return wrong_type("kvist.salt", "a string", value, error);
            }
            if (json_string_length(value) > KV_API_SALT_BYTES_MAX) {
                return REFUSE("kvist.salt", "kvist.salt: %zu bytes: at most %d",
                    json_string_length(value), KV_API_SALT_BYTES_MAX);
            }
            request->salt_bytes = json_string_length(value);
            memcpy(request->salt, json_string_value(value), request->salt_bytes);
        } else if (strcmp(name, "cache_mode") == 0) {
            uint32_t mode = 0;
            while (mode < 4 &&
                   (!json_is_string(value) || strcmp(json_string_value(value), MODES[mode]) != 0)) {
                mode++;
            }
            if (mode == 4) {
                return REFUSE("kvist.cache_mode",
                    "kvist.cache_mode: must be one of readwrite, read, write, bypass");
            }
            request->cache_mode = mode;
        } else {
            return REFUSE("kvist", "kvist: \"%.64s\" is no field of it: cache_mode, salt", name);
        }
    }
    return true;
}

static bool check_model(
    const json_t *document, const kv_api_limits_t *limits, kv_api_error_t *error)
{
    const json_t *model = field(document, "model");
    if (model == NULL) {
        return true; /* there is but one */
    }
    if (!json_is_string(model)) {
        return wrong_type("model", "a string", model, error);
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
    return check_model(document, limits, error) &&
           refuse_unsupported(request->kind, document, error) &&
           (request->kind == KV_API_CHAT ? take_messages(request, document, error)
                                         : take_prompt(request, document, limits, error)) &&
           take_sampling(request, document, error) &&
           take_max_tokens(request, document, limits, error) &&
           take_stops(request, document, error) && take_stream(request, document, error) &&
           take_extension(request, document, error);
}

bool kv_api_parse(kv_api_kind_t kind, const char *body, size_t bytes, const kv_api_limits_t *limits,
    kv_api_request_t *request_out, kv_api_error_t *error)
{
    json_error_t place;
    for (size_t i = 0, length; i < bytes; i += length) {
        length = kv_utf8_length(body + i, bytes - i);
        if (length == 0) {
            return kv_api_fail(
                error, 400, "", "invalid_utf8", "the body is not valid UTF-8 at byte %zu", i);
        }
    }
    json_t *document = json_loadb(body, bytes, 0, &place);
    if (document == NULL) {
        return kv_api_fail(error, 400, "", "invalid_json",
            "the body is not valid JSON: line %d, column %d, byte %d: %s", place.line, place.column,
            place.position, place.text);
    }
    kv_api_request_t request = {.kind = kind, .document = document};
    bool good = json_is_object(document)
                    ? take_document(&request, document, limits, error)
                    : kv_api_fail(error, 400, "", "invalid_type",
                          "the body must be a JSON object, but got %s", kind_name(document));
    if (!good) {
        kv_api_request_clear(&request);
        return false;
    }
    *request_out = request;
    return true;
}

static void release_texts(kv_api_request_t *request)
{
    for (size_t i = 0; i < request->joined_count; i++) {
        free(request->joined[i]);
    }
    free(request->joined);
    free(request->messages);
    json_decref(request->document);
    request->joined = NULL;
    request->joined_count = request->message_count = 0;
    request->messages = NULL;
    request->prompt = NULL;
    request->document = NULL;
}

bool kv_api_tokenize(kv_api_request_t *request, const kv_tokenizer_t *tokenizer,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    const char *param = request->kind == KV_API_CHAT ? "messages" : "prompt";
    kv_error_t cause;
    kv_status_t status = KV_OK;
    if (request->kind == KV_API_CHAT) {
        status = kv_chat_encode(tokenizer, request->messages, request->message_count, true,
            &request->tokens, &request->token_count, &cause);
    } else if (request->prompt != NULL) {
        kv_tokenizer_mode_t mode = {.add_special = true, .parse_special = true};
        status = kv_tokenizer_encode(tokenizer, request->prompt, request->prompt_bytes, mode,
            &request->tokens, &request->token_count, &cause);
    }
    if (status != KV_OK) {
        return REFUSE(param, "%s: %s", param, cause.text);
    }
    release_texts(request);
    size_t count = request->token_count, most = limits->context_tokens_max;
    if (count == 0) {
        return REFUSE(param, "%s: holds no token", param);
    }
    if (count >= most) {
        return kv_api_fail(error, 400, param, "context_length_exceeded",
            "%s: %zu tokens, but the model's context holds %zu with the answer", param, count,
            most);
    }
    if (request->max_tokens > most - count) {
        return kv_api_fail(error, 400, "max_tokens", "context_length_exceeded",
            "max_tokens: %u after a prompt of %zu tokens is beyond the model's context of %zu",
            request->max_tokens, count, most);
    }
    if (request->max_tokens == 0) {
        request->max_tokens = limits->default_max_tokens < most - count ? limits->default_max_tokens
                                                                        : (uint32_t)(most - count);
    }
    return true;
}

void kv_api_request_clear(kv_api_request_t *request)
{
    release_texts(request);
    free(request->tokens);
    request->tokens = NULL;
}
