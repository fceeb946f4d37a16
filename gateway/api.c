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
    snprintf(error->param, sizeof error->param, "%s", param);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    make_valid(error->message);
    make_valid(error->param);
    return false;
}

void *kv_api_keep(kv_api_request_t *request, size_t bytes)
{
    request->kept = kv_reallocate(request->kept, request->kept_count + 1, sizeof *request->kept);
    return request->kept[request->kept_count++] = kv_allocate(bytes);
}

/* ---- Kvist's own headers ---- */

bool kv_api_cache_mode(const char *name, uint32_t *mode_out)
{
    static const char *const MODES[] = {[KVIST__WIRE__CACHE_MODE__CACHE_READWRITE] = "readwrite",
        [KVIST__WIRE__CACHE_MODE__CACHE_READ] = "read",
        [KVIST__WIRE__CACHE_MODE__CACHE_WRITE] = "write",
        [KVIST__WIRE__CACHE_MODE__CACHE_BYPASS] = "bypass"};
    for (uint32_t mode = 0; mode < 4; mode++) {
        if (strcmp(name, MODES[mode]) == 0) {
            *mode_out = mode;
            return true;
        }
    }
    return false;
}

bool kv_api_is_label(const char *value, size_t bytes_max)
{
    size_t bytes = strlen(value);
    for (size_t i = 0; i < bytes; i++) {
        if (value[i] < ' ' || value[i] > '~' || value[i] == '"' || value[i] == '\\') {
            return false;
        }
    }
    return bytes <= bytes_max;
}

static bool take_label(const kv_call_t *call, const char *name, size_t bytes_max, char *value_out,
    kv_api_error_t *error)
{
    const char *value = kv_call_header(call, name);
    if (value == NULL) {
        return true;
    }
    if (!kv_api_is_label(value, bytes_max)) {
        return KV_API_REFUSE(error, name,
            "%s: %zu bytes: must be at most %zu printable ASCII characters, without quotes and "
            "backslashes",
            name, strlen(value), bytes_max);
    }
    snprintf(value_out, bytes_max + 1, "%s", value);
    return true;
}

static bool take_labels(const kv_call_t *call, kv_api_request_t *request, kv_api_error_t *error)
{
    kv_api_labels_t *labels = &request->labels;
    const struct {
        const char *name;
        char *value;
    } headers[] = {{"x-kvist-agent", labels->agent}, {"x-kvist-template", labels->template_name},
        {"x-kvist-tool-mode", labels->tool_mode}, {"x-kvist-step", labels->step},
        {"x-kvist-release", labels->release}};
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        if (!take_label(call, headers[i].name, KV_API_LABEL_BYTES_MAX, headers[i].value, error)) {
            return false;
        }
    }
    return take_label(call, "x-kvist-session", KV_API_SESSION_BYTES_MAX, request->session, error);
}

bool kv_api_priority(const char *name, kv_api_priority_t *priority_out)
{
    static const char *const NAMES[] = {[KV_API_INTERACTIVE] = "interactive",
        [KV_API_BATCH] = "batch",
        [KV_API_BACKGROUND] = "background"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, NAMES[i]) == 0) {
            *priority_out = (kv_api_priority_t)i;
            return true;
        }
    }
    return false;
}

static bool take_priority(const kv_call_t *call, kv_api_request_t *request, kv_api_error_t *error)
{
    const char *value = kv_call_header(call, "x-kvist-priority");
    return value == NULL || kv_api_priority(value, &request->priority) ||
           KV_API_REFUSE(error, "x-kvist-priority",
               "x-kvist-priority: must be one of interactive, batch, background");
}

bool kv_api_take_headers(const kv_call_t *call, kv_api_request_t *request, kv_api_error_t *error)
{
    const char *mode = kv_call_header(call, "x-kvist-cache-mode");
    if (mode != NULL && !kv_api_cache_mode(mode, &request->cache_mode)) {
        return KV_API_REFUSE(error, "x-kvist-cache-mode",
            "x-kvist-cache-mode: must be one of readwrite, read, write, bypass");
    }
    request->has_cache_mode |= mode != NULL;
    return take_labels(call, request, error) && take_priority(call, request, error);
}

/* ---- tokens ---- */

static void release_texts(kv_api_request_t *request)
{
    for (size_t i = 0; i < request->kept_count; i++) {
        free(request->kept[i]);
    }
    free(request->kept);
    free(request->messages);
    free(request->tools);
    json_decref(request->document);
    request->kept = NULL;
    request->messages = NULL;
    request->tools = NULL;
    request->kept_count = request->message_count = request->tool_count = 0;
    request->document = NULL;
}

static bool encode_chat(
    kv_api_request_t *request, const kv_tokenizer_t *tokenizer, kv_api_error_t *error)
{
    kv_error_t cause;
    kv_api_prompt_t prompt = {0};
    kv_chat_mark_t marks[KV_API_BREAKPOINTS_MAX];
    kv_api_breakpoint_t *breakpoints = request->breakpoints;
    for (size_t i = 0; i < request->breakpoint_count; i++) {
        marks[i] = (kv_chat_mark_t){breakpoints[i].message_count, breakpoints[i].content_bytes, 0};
    }
    const kv_chat_conversation_t told = {.messages = request->messages,
        .message_count = request->message_count,
        .tools = request->tools,
        .tool_count = request->tool_count,
        .add_generation_prompt = !request->continue_last,
        .continue_last = request->continue_last,
        .marks = marks,
        .mark_count = request->breakpoint_count};
    if (kv_chat_encode(tokenizer, &told, &prompt.tokens, &prompt.token_count, &cause) != KV_OK) {
        return KV_API_REFUSE(error, "messages", "messages: %s", cause.text);
    }
    for (size_t i = 0; i < request->breakpoint_count; i++) {
        breakpoints[i].token_count = breakpoints[i].whole_prompt ? (uint32_t)prompt.token_count
                                                                 : (uint32_t)marks[i].token_count;
    }
    request->prompts = kv_allocate_array(1, sizeof *request->prompts);
    request->prompts[0] = prompt;
    request->prompt_count = 1;
    return true;
}

static bool encode_prompt(
    kv_api_prompt_t *prompt, const kv_tokenizer_t *tokenizer, kv_api_error_t *error)
{
    kv_error_t cause;
    kv_tokenizer_mode_t mode = {.add_special = true, .parse_special = true};
    if (prompt->text != NULL && kv_tokenizer_encode(tokenizer, prompt->text, prompt->text_bytes,
                                    mode, &prompt->tokens, &prompt->token_count, &cause) != KV_OK) {
        return KV_API_REFUSE(error, "prompt", "prompt: %s", cause.text);
    }
    prompt->text = NULL;
    return true;
}

static bool settle_lengths(kv_api_request_t *request, const char *param,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    size_t longest = 0, most = limits->context_tokens_max;
    for (size_t i = 0; i < request->prompt_count; i++) {
        size_t count = request->prompts[i].token_count;
        if (count == 0) {
            return KV_API_REFUSE(error, param, "%s: holds no token", param);
        }
        longest = count > longest ? count : longest;
    }
    if (request->count_only) {
        return true;
    }
    if (longest >= most) {
        return kv_api_fail(error, 400, param, "context_length_exceeded",
            "%s: %zu tokens, but the model's context holds %zu with the answer", param, longest,
            most);
    }
    if (request->cut_max_tokens && request->max_tokens > most - longest) {
        request->max_tokens = (uint32_t)(most - longest);
        request->max_tokens_cut = true;
    }
    if (request->max_tokens > most - longest) {
        return kv_api_fail(error, 400, "max_tokens", "context_length_exceeded",
            "max_tokens: %u after a prompt of %zu tokens is beyond the model's context of %zu",
            request->max_tokens, longest, most);
    }
    if (request->max_tokens == 0) {
        request->max_tokens = limits->default_max_tokens < most - longest
                                  ? limits->default_max_tokens
                                  : (uint32_t)(most - longest);
    }
    return true;
}

bool kv_api_tokenize(kv_api_request_t *request, const kv_tokenizer_t *tokenizer,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    bool chat = request->kind == KV_API_CHAT;
    if (chat && !encode_chat(request, tokenizer, error)) {
        return false;
    }
    for (size_t i = 0; !chat && i < request->prompt_count; i++) {
        if (!encode_prompt(&request->prompts[i], tokenizer, error)) {
            return false;
        }
    }
    release_texts(request);
    for (size_t i = 0; !chat && i < request->breakpoint_count; i++) {
        request->breakpoints[i].token_count = (uint32_t)request->prompts[0].token_count;
    }
    request->choice_count = request->choice_count == 0 ? 1 : request->choice_count;
    return settle_lengths(request, chat ? "messages" : "prompt", limits, error);
}

bool kv_api_reads(const kv_api_request_t *request)
{
    return request->cache_mode == KVIST__WIRE__CACHE_MODE__CACHE_READWRITE ||
           request->cache_mode == KVIST__WIRE__CACHE_MODE__CACHE_READ;
}

bool kv_api_writes(const kv_api_request_t *request)
{
    return request->cache_mode == KVIST__WIRE__CACHE_MODE__CACHE_READWRITE ||
           request->cache_mode == KVIST__WIRE__CACHE_MODE__CACHE_WRITE;
}

void kv_api_request_clear(kv_api_request_t *request)
{
    release_texts(request);
    for (size_t i = 0; i < request->prompt_count; i++) {
        free(request->prompts[i].tokens);
    }
    free(request->prompts);
    request->prompts = NULL;
    request->prompt_count = 0;
}
