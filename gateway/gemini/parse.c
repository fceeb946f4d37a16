#include "gateway/gemini/gemini_internal.h"

#include "base/clock.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const kv_gemini_field_t GENERATE_FIELDS[] = {{"model", KV_GEMINI_TAKEN},
    {"contents", KV_GEMINI_TAKEN}, {"systemInstruction", KV_GEMINI_TAKEN},
    {"tools", KV_GEMINI_TAKEN}, {"toolConfig", KV_GEMINI_TAKEN},
    {"generationConfig", KV_GEMINI_TAKEN}, {"cachedContent", KV_GEMINI_TAKEN},
    {"safetySettings", KV_GEMINI_IGNORED}, {"labels", KV_GEMINI_IGNORED},
    {"serviceTier", KV_GEMINI_IGNORED}, {"store", KV_GEMINI_IGNORED},
    {"continuationToken", KV_GEMINI_REFUSED}};

static const kv_gemini_field_t COUNT_FIELDS[] = {{"model", KV_GEMINI_IGNORED},
    {"contents", KV_GEMINI_TAKEN}, {"generateContentRequest", KV_GEMINI_TAKEN}};

/* ---- what is called ---- */

/* "NAME:generateContent" in the path's rest; false: no such path. */
static bool take_path(const kv_call_t *call, const kv_api_limits_t *limits,
    kv_gemini_kind_t *kind_out, kv_api_error_t *error)
{
    static const struct {
        const char *name;
        kv_gemini_kind_t kind;
    } METHODS[] = {{":generateContent", KV_GEMINI_GENERATE},
        {":streamGenerateContent", KV_GEMINI_STREAM}, {":countTokens", KV_GEMINI_COUNT}};
    char model[512];
    const char *colon = strrchr(call->rest, ':'), *form = kv_call_query(call, "alt");
    size_t i = 0;
    while (colon != NULL && i < 3 && strcmp(colon, METHODS[i].name) != 0) {
        i++;
    }
    if (colon == NULL || i == 3) {
        return kv_api_fail(error, 404, "", "not_found",
            "%.200s: no such path: models/NAME:generateContent, :streamGenerateContent or "
            ":countTokens",
            call->path);
    }
    *kind_out = METHODS[i].kind;
    if (form != NULL && strcmp(form, "sse") != 0 && strcmp(form, "json") != 0) {
        return KV_API_REFUSE(error, "alt", "alt: must be json, or sse for a stream of events");
    }
    if (*kind_out == KV_GEMINI_STREAM && (form == NULL || strcmp(form, "sse") != 0)) {
        *kind_out = KV_GEMINI_ARRAY;
    }
    snprintf(model, sizeof model, "%.*s", (int)(colon - call->rest), call->rest);
    return kv_gemini_check_model(model, limits, error);
}

/* ---- a prompt: what was cached, and what comes after it ---- */

/* The cached content's document, which comes first and keeps system and tools to itself. */
static bool take_cached(kv_api_request_t *request, const kv_gemini_own_t *own,
    const kv_api_limits_t *limits, json_t *document, json_t **cached_out, kv_content_t *content_out,
    kv_api_error_t *error)
{
    static const char *const ALONE[] = {"systemInstruction", "tools", "toolConfig"};
    const char *name = NULL;
    *cached_out = NULL;
    if (!kv_json_take_string(document, "cachedContent", "cachedContent", 256, &name, error)) {
        return false;
    }
    if (name == NULL || name[0] == '\0') {
        return true;
    }
    for (int i = 0; i < 3; i++) {
        const json_t *value = kv_json_field(document, ALONE[i]);
        if (value != NULL && !kv_json_is_nothing(value)) {
            return KV_API_REFUSE(error, ALONE[i],
                "%s: must not be set beside cachedContent: it belongs into the cached content",
                ALONE[i]);
        }
    }
    *cached_out =
        kv_gemini_load_content(name, own->tenant, own->contents, limits, content_out, error);
    if (*cached_out == NULL) {
        return false;
    }
    /* It lives as long as the request's own document: the messages point into both. */
    request->document = json_pack("[oo]", document, *cached_out);
    return true;
}

static bool take_prompt(kv_api_request_t *request, const kv_gemini_own_t *own,
    const kv_api_limits_t *limits, json_t *document, kv_api_error_t *error)
{
    json_t *cached;
    kv_content_t content;
    if (!take_cached(request, own, limits, document, &cached, &content, error)) {
        return false;
    }
    size_t most = kv_gemini_messages_max(document) + kv_gemini_messages_max(cached);
    request->messages = kv_allocate_array(most, sizeof *request->messages);
    if (cached == NULL) {
        return kv_gemini_take_tools(request, document, error) &&
               kv_gemini_take_messages(request, document, true, error);
    }
    if (!kv_gemini_take_tools(request, cached, error) ||
        !kv_gemini_take_messages(request, cached, false, error)) {
        return false;
    }
    uint64_t now = kv_contents_now_unix_ns(own->contents);
    request->breakpoints[request->breakpoint_count++] =
        (kv_api_breakpoint_t){.message_count = (uint32_t)request->message_count,
            .ttl_ns = content.expires_unix_ns > now ? content.expires_unix_ns - now : 1,
            .limit = true};
    return kv_gemini_take_messages(request, document, true, error);
}

static bool parse_generate(kv_api_request_t *request, const kv_gemini_own_t *own,
    const kv_api_limits_t *limits, json_t *document, kv_api_error_t *error)
{
    const char *model = NULL;
    if (!KV_GEMINI_CHECK_FIELDS(document, GENERATE_FIELDS, "", error) ||
        !kv_json_take_string(document, "model", "model", 512, &model, error) ||
        (model != NULL && !kv_gemini_check_model(model, limits, error))) {
        return false;
    }
    request->stream = own->kind == KV_GEMINI_STREAM || own->kind == KV_GEMINI_ARRAY;
    if (own->kind == KV_GEMINI_ARRAY) {
        request->stream_content_type = "application/json";
    }
    return take_prompt(request, own, limits, document, error) &&
           kv_gemini_take_config(request, document, limits, error);
}

/* contents, or a whole request: what either would be as a prompt. */
static bool parse_count(kv_api_request_t *request, const kv_gemini_own_t *own,
    const kv_api_limits_t *limits, json_t *document, kv_api_error_t *error)
{
    if (!KV_GEMINI_CHECK_FIELDS(document, COUNT_FIELDS, "", error)) {
        return false;
    }
    request->count_only = true;
    json_t *whole = kv_json_field(document, "generateContentRequest");
    if (whole == NULL) {
        return take_prompt(request, own, limits, document, error) &&
               kv_gemini_take_config(request, document, limits, error);
    }
    if (kv_json_field(document, "contents") != NULL) {
        return KV_API_REFUSE(
            error, "contents", "contents: not beside generateContentRequest, which has its own");
    }
    json_incref(whole);
    json_decref(document);
    request->document = whole;
    return parse_generate(request, own, limits, whole, error);
}

/* ---- the whole ---- */

static kv_gemini_own_t *make_own(const kv_call_t *call, const kv_api_limits_t *limits)
{
    kv_gemini_own_t *own = kv_allocate(sizeof *own);
    own->contents = limits->contents;
    own->tokens_min = limits->block_tokens;
    snprintf(own->tenant, sizeof own->tenant, "%s", kv_gemini_tenant(call));
    return own;
}

static bool parse_kind(const kv_call_t *call, kv_gemini_own_t *own, const kv_api_limits_t *limits,
    kv_api_request_t *request, kv_api_error_t *error)
{
    json_t *document = request->document;
    switch (own->kind) {
    case KV_GEMINI_CREATE:
        return kv_gemini_parse_create(document, own, limits, request, error);
    case KV_GEMINI_PATCH:
        return kv_gemini_parse_patch(call, document, own, limits, request, error);
    case KV_GEMINI_DELETE:
        return kv_gemini_parse_delete(call, own, limits, request, error);
    case KV_GEMINI_COUNT:
        return parse_count(request, own, limits, document, error);
    default:
        return parse_generate(request, own, limits, document, error);
    }
}

bool kv_gemini_parse(const kv_call_t *call, const kv_api_limits_t *limits,
    kv_api_request_t *request_out, kv_api_error_t *error)
{
    kv_gemini_kind_t kind = (kv_gemini_kind_t)call->variant;
    if (kind == KV_GEMINI_GENERATE && !take_path(call, limits, &kind, error)) {
        return false;
    }
    json_t *document = kind != KV_GEMINI_DELETE ? kv_json_parse_body(call, error) : json_object();
    if (document == NULL) {
        return false;
    }
    kv_gemini_own_t *own = make_own(call, limits);
    own->kind = kind;
    kv_api_request_t request = {.kind = KV_API_CHAT, .document = document, .own = own};
    if (!parse_kind(call, own, limits, &request, error)) {
        kv_api_request_clear(&request);
        kv_gemini_release(own);
        return false;
    }
    *request_out = request;
    return true;
}

void kv_gemini_release(void *memory)
{
    kv_gemini_own_t *own = memory;
    kv_content_discard(own->draft);
    free(own);
}
