/* cachedContents. One is created, and its end is moved, by a request like any other: its prompt is
 * computed with the new limit, one token is drawn and thrown away, and only then the content is
 * there, or its new time counts (commit). To delete one nothing is computed; nodes that hold its KV
 * are told that its time is over. */
#include "gateway/gemini/gemini_internal.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"
#include "gateway/gemini/times.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_MAX = 1000, PAGE_DEFAULT = 50 };

static const uint64_t TTL_DEFAULT_NS = 3600ULL * KV_NS_PER_S;

static const kv_gemini_field_t CREATE_FIELDS[] = {{"model", KV_GEMINI_TAKEN},
    {"contents", KV_GEMINI_TAKEN}, {"systemInstruction", KV_GEMINI_TAKEN},
    {"tools", KV_GEMINI_TAKEN}, {"toolConfig", KV_GEMINI_TAKEN}, {"ttl", KV_GEMINI_TAKEN},
    {"expireTime", KV_GEMINI_TAKEN}, {"displayName", KV_GEMINI_TAKEN}, {"name", KV_GEMINI_OUTPUT},
    {"createTime", KV_GEMINI_OUTPUT}, {"updateTime", KV_GEMINI_OUTPUT},
    {"usageMetadata", KV_GEMINI_OUTPUT}};

/* What it does not change may be there, as a GET answered it. */
static const kv_gemini_field_t PATCH_FIELDS[] = {{"ttl", KV_GEMINI_TAKEN},
    {"expireTime", KV_GEMINI_TAKEN}, {"name", KV_GEMINI_OUTPUT}, {"model", KV_GEMINI_OUTPUT},
    {"displayName", KV_GEMINI_OUTPUT}, {"createTime", KV_GEMINI_OUTPUT},
    {"updateTime", KV_GEMINI_OUTPUT}, {"usageMetadata", KV_GEMINI_OUTPUT}};

/* ---- names ---- */

const char *kv_gemini_tenant(const kv_call_t *call)
{
    return call->tenant != NULL ? call->tenant : "";
}

bool kv_gemini_content_id(const char *name, char id_out[KV_CONTENT_ID_BYTES + 1])
{
    static const char PREFIX[] = "cachedContents/";
    const char *id =
        strncmp(name, PREFIX, sizeof PREFIX - 1) == 0 ? name + sizeof PREFIX - 1 : name;
    bool good = strlen(id) == KV_CONTENT_ID_BYTES;
    snprintf(id_out, KV_CONTENT_ID_BYTES + 1, "%s", good ? id : "");
    return good;
}

bool kv_gemini_no_content(kv_api_error_t *error)
{
    return kv_api_fail(error, 403, "cachedContent", "not_found",
        "the cached content does not exist, has expired, or is another caller's");
}

/* ---- times ---- */

/* ttl or expireTime; neither: *expires_out as it is. */
static bool take_expiry(
    const json_t *document, uint64_t now, uint64_t *expires_out, kv_api_error_t *error)
{
    const char *ttl = NULL, *time = NULL;
    uint64_t duration_ns = 0;
    if (!kv_json_take_string(document, "ttl", "ttl", 64, &ttl, error) ||
        !kv_json_take_string(document, "expireTime", "expireTime", 64, &time, error)) {
        return false;
    }
    if (ttl != NULL && time != NULL) {
        return KV_API_REFUSE(error, "expireTime", "expireTime: not beside ttl: name one of them");
    }
    if (ttl != NULL && (!kv_gemini_duration_parse(ttl, &duration_ns) || duration_ns == 0)) {
        return KV_API_REFUSE(error, "ttl",
            "ttl: must be seconds like \"3600s\", above 0 and at most %ds",
            KV_GEMINI_DURATION_S_MAX);
    }
    if (time != NULL && !kv_gemini_time_parse(time, expires_out)) {
        return KV_API_REFUSE(error, "expireTime",
            "expireTime: must be a time like \"2026-11-22T06:10:11Z\", before the year 2100");
    }
    if (time != NULL && *expires_out <= now) {
        return KV_API_REFUSE(error, "expireTime", "expireTime: must be in the future");
    }
    if (ttl != NULL) {
        *expires_out = now / KV_NS_PER_US * KV_NS_PER_US + duration_ns;
    }
    return true;
}

/* ---- a document ---- */

json_t *kv_gemini_load_content(const char *name, const char *tenant, kv_contents_t *contents,
    const kv_api_limits_t *limits, kv_content_t *content_out, kv_api_error_t *error)
{
    char id[KV_CONTENT_ID_BYTES + 1], *text = NULL;
    size_t bytes = 0;
    if (!kv_gemini_content_id(name, id) ||
        kv_contents_get(contents, tenant, id, content_out, &text, &bytes) != KV_OK) {
        kv_gemini_no_content(error);
        return NULL;
    }
    json_t *document = json_loadb(text, bytes, 0, NULL);
    free(text);
    KV_CHECK(document != NULL);
    if (strcmp(content_out->model, limits->model) != 0) {
        KV_API_REFUSE(error, "cachedContent",
            "cachedContent: was made for models/%.100s; models/%.100s is served now",
            content_out->model, limits->model);
        json_decref(document);
        return NULL;
    }
    return document;
}

/* The request that computes it: its tokens end where the breakpoint is, one is drawn. */
static bool take_document(kv_api_request_t *request, json_t *document, uint64_t now,
    uint64_t expires_unix_ns, kv_api_error_t *error)
{
    size_t most = kv_gemini_messages_max(document) + 1;
    request->messages = kv_allocate_array(most, sizeof *request->messages);
    if (!kv_gemini_take_tools(request, document, error) ||
        !kv_gemini_take_messages(request, document, false, error)) {
        return false;
    }
    request->breakpoints[request->breakpoint_count++] =
        (kv_api_breakpoint_t){.message_count = (uint32_t)request->message_count,
            .ttl_ns = expires_unix_ns > now ? expires_unix_ns - now : 1,
            .limit = true};
    if (request->message_count == 0) {
        /* Tools alone: a template needs a message to stand before. */
        request->messages[request->message_count++] =
            (kv_chat_message_t){.role = "user", .content = ""};
    }
    request->has_tools = false;
    request->commits = true;
    request->max_tokens = 1;
    request->top_p = 1;
    request->choice_count = 1;
    return true;
}

/* ---- create ---- */

static bool take_display_name(const json_t *document, kv_content_t *content, kv_api_error_t *error)
{
    const char *name = NULL;
    size_t letters = 0;
    if (!kv_json_take_string(
            document, "displayName", "displayName", KV_CONTENT_NAME_BYTES_MAX, &name, error)) {
        return false;
    }
    for (const char *at = name; at != NULL && *at != '\0'; at++) {
        letters += ((unsigned char)*at & 0xc0) != 0x80;
    }
    if (letters > KV_GEMINI_DISPLAY_NAME_LETTERS_MAX) {
        return KV_API_REFUSE(error, "displayName", "displayName: %zu characters: at most %d",
            letters, KV_GEMINI_DISPLAY_NAME_LETTERS_MAX);
    }
    snprintf(content->display_name, sizeof content->display_name, "%s", name != NULL ? name : "");
    return true;
}

/* What is cached of the document, as text to be kept. */
static char *keep_document(const json_t *document)
{
    static const char *const FIELDS[] = {"systemInstruction", "contents", "tools", "toolConfig"};
    json_t *kept = json_object();
    for (int i = 0; i < 4; i++) {
        json_t *value = kv_json_field(document, FIELDS[i]);
        if (value != NULL) {
            json_object_set(kept, FIELDS[i], value);
        }
    }
    char *text = json_dumps(kept, JSON_COMPACT);
    KV_CHECK(text != NULL);
    json_decref(kept);
    return text;
}

static bool check_nodes(const kv_api_limits_t *limits, kv_api_error_t *error)
{
    return limits->promises_nothing == NULL ||
           kv_api_fail(error, 503, "", "unavailable", "there are no cached contents here: %s",
               limits->promises_nothing);
}

static bool make_draft(const json_t *document, kv_gemini_own_t *own, kv_api_error_t *error)
{
    kv_error_t cause;
    char *text = keep_document(document);
    kv_status_t status = kv_content_draft(
        own->contents, own->tenant, &own->content, text, strlen(text), &own->draft, &cause);
    free(text);
    return status == KV_OK ||
           kv_api_fail(error, status == KV_NO_SPACE ? 429 : 500, "", NULL, "%s", cause.text);
}

bool kv_gemini_parse_create(json_t *document, kv_gemini_own_t *own, const kv_api_limits_t *limits,
    kv_api_request_t *request, kv_api_error_t *error)
{
    const char *model = NULL;
    uint64_t now = kv_contents_now_unix_ns(own->contents);
    own->content.expires_unix_ns = now / KV_NS_PER_US * KV_NS_PER_US + TTL_DEFAULT_NS;
    if (!KV_GEMINI_CHECK_FIELDS(document, CREATE_FIELDS, "", error) ||
        !check_nodes(limits, error) ||
        !kv_json_take_string(
            document, "model", "model", KV_CONTENT_MODEL_BYTES_MAX, &model, error)) {
        return false;
    }
    if (model == NULL) {
        return KV_API_REFUSE(error, "model", "model: is missing: models/%.100s", limits->model);
    }
    if (!kv_gemini_check_model(model, limits, error) ||
        !take_expiry(document, now, &own->content.expires_unix_ns, error) ||
        !take_display_name(document, &own->content, error) ||
        !take_document(request, document, now, own->content.expires_unix_ns, error)) {
        return false;
    }
    if (request->breakpoints[0].message_count == 0 && request->tool_count == 0) {
        return KV_API_REFUSE(
            error, "contents", "there is nothing to cache: contents, systemInstruction or tools");
    }
    snprintf(own->content.model, sizeof own->content.model, "%s", limits->model);
    return make_draft(document, own, error);
}

/* ---- patch ---- */

/* Only what is named in it is changed; nothing else can be. */
static bool check_mask(const kv_call_t *call, kv_api_error_t *error)
{
    static const char *const NAMES[] = {"ttl", "expireTime", "expire_time", "expiration"};
    const char *mask = kv_call_query(call, "updateMask");
    while (mask != NULL && *mask != '\0') {
        size_t bytes = strcspn(mask, ",");
        bool known = false;
        for (int i = 0; i < 4; i++) {
            known |= strlen(NAMES[i]) == bytes && strncmp(mask, NAMES[i], bytes) == 0;
        }
        if (!known) {
            return KV_API_REFUSE(error, "updateMask",
                "updateMask: \"%.*s\" cannot be changed: only ttl or expireTime",
                bytes > 64 ? 64 : (int)bytes, mask);
        }
        mask += bytes + (mask[bytes] == ',');
    }
    return true;
}

bool kv_gemini_parse_patch(const kv_call_t *call, json_t *document, kv_gemini_own_t *own,
    const kv_api_limits_t *limits, kv_api_request_t *request, kv_api_error_t *error)
{
    uint64_t now = kv_contents_now_unix_ns(own->contents), expires_unix_ns = 0;
    if (!check_mask(call, error) || !KV_GEMINI_CHECK_FIELDS(document, PATCH_FIELDS, "", error) ||
        !check_nodes(limits, error) || !take_expiry(document, now, &expires_unix_ns, error)) {
        return false;
    }
    if (expires_unix_ns == 0) {
        return KV_API_REFUSE(error, "ttl", "ttl: is missing, and so is expireTime: name one");
    }
    json_t *cached = kv_gemini_load_content(
        call->rest, own->tenant, own->contents, limits, &own->content, error);
    if (cached == NULL) {
        return false;
    }
    json_decref(document);
    request->document = cached;
    own->content.expires_unix_ns = expires_unix_ns;
    return take_document(request, cached, now, expires_unix_ns, error);
}

/* ---- delete ---- */

bool kv_gemini_parse_delete(const kv_call_t *call, kv_gemini_own_t *own,
    const kv_api_limits_t *limits, kv_api_request_t *request, kv_api_error_t *error)
{
    char *text = NULL;
    size_t bytes = 0;
    request->commits = request->commit_only = true;
    if (!kv_gemini_content_id(call->rest, own->content.id) ||
        kv_contents_get(
            own->contents, own->tenant, own->content.id, &own->content, &text, &bytes) != KV_OK) {
        return kv_gemini_no_content(error);
    }
    json_t *document = json_loadb(text, bytes, 0, NULL);
    free(text);
    KV_CHECK(document != NULL);
    json_decref(request->document);
    request->document = document;
    if (strcmp(own->content.model, limits->model) == 0) {
        return take_document(request, document, 0, 0, error);
    }
    request->kind = KV_API_COMPLETION; /* of a model that nodes here know nothing of: no prompt */
    return true;
}

/* ---- settle and commit ---- */

bool kv_gemini_settle(const kv_answer_t *answer, kv_api_error_t *error)
{
    kv_gemini_own_t *own = answer->request->own;
    if (own->kind != KV_GEMINI_CREATE && own->kind != KV_GEMINI_PATCH) {
        return true;
    }
    if (answer->request->cache_mode != KVIST__WIRE__CACHE_MODE__CACHE_READWRITE &&
        answer->request->cache_mode != KVIST__WIRE__CACHE_MODE__CACHE_WRITE) {
        return KV_API_REFUSE(error, "x-kvist-cache-mode",
            "x-kvist-cache-mode: what stores nothing cannot make a cached content");
    }
    const kv_grant_t *grant = &answer->usage.grants[0];
    uint32_t token_count = answer->request->breakpoints[0].token_count;
    if (token_count < own->tokens_min) {
        return KV_API_REFUSE(error, "contents",
            "the cached content is too small: total_token_count=%u, min_total_token_count=%u",
            token_count, own->tokens_min);
    }
    if (grant->why_not != NULL) {
        return kv_api_fail(
            error, 503, "", NULL, "the cached content could not be stored: %.200s", grant->why_not);
    }
    return true;
}

static kv_status_t commit_create(
    kv_gemini_own_t *own, const kv_api_request_t *request, kv_error_t *cause)
{
    kv_content_draft_t *draft = own->draft;
    own->draft = NULL;
    return kv_content_commit(draft, request->breakpoints[0].token_count, &own->content, cause);
}

/* Other nodes may hold it with the limit of before. */
static kv_status_t commit_patch(kv_gemini_own_t *own, kv_api_request_t *request, kv_error_t *cause)
{
    request->limit_unix_ms = own->content.expires_unix_ns / KV_NS_PER_MS;
    return kv_contents_expire_at(own->contents, own->tenant, own->content.id,
        own->content.expires_unix_ns, &own->content, cause);
}

static kv_status_t commit_delete(kv_gemini_own_t *own, kv_api_request_t *request, kv_error_t *cause)
{
    request->limit_unix_ms = kv_contents_now_unix_ns(own->contents) / KV_NS_PER_MS;
    return kv_contents_remove(own->contents, own->tenant, own->content.id, cause);
}

bool kv_gemini_commit(kv_api_request_t *request, kv_api_error_t *error)
{
    kv_gemini_own_t *own = request->own;
    kv_error_t cause;
    kv_status_t status = own->kind == KV_GEMINI_CREATE  ? commit_create(own, request, &cause)
                         : own->kind == KV_GEMINI_PATCH ? commit_patch(own, request, &cause)
                                                        : commit_delete(own, request, &cause);
    if (status == KV_MISSING && own->kind != KV_GEMINI_CREATE) {
        return kv_gemini_no_content(error);
    }
    return status == KV_OK || kv_api_fail(error, status == KV_MISSING ? 400 : 500, "", NULL,
                                  "the cached content: %s", cause.text);
}

/* ---- get, list ---- */

static bool take_page(
    const kv_call_t *call, const char **token_out, size_t *count_out, kv_api_error_t *error)
{
    const char *size = kv_call_query(call, "pageSize"), *token = kv_call_query(call, "pageToken");
    char *end = NULL;
    long count = size != NULL && size[0] != '\0' ? strtol(size, &end, 10) : 0;
    if ((end != NULL && *end != '\0') || count < 0) {
        return KV_API_REFUSE(error, "pageSize", "pageSize: must be 0 to %d", PAGE_MAX);
    }
    *count_out = count == 0 ? PAGE_DEFAULT : count > PAGE_MAX ? PAGE_MAX : (size_t)count;
    *token_out = token != NULL ? token : "";
    return true;
}

static json_t *list_contents(
    const kv_call_t *call, const char *tenant, kv_contents_t *contents, kv_api_error_t *error)
{
    char next[KV_CONTENTS_TOKEN_BYTES];
    const char *token = "";
    size_t count_max = 0, count = 0;
    if (!take_page(call, &token, &count_max, error)) {
        return NULL;
    }
    kv_content_t *page = kv_allocate_array(count_max, sizeof *page);
    json_t *document = NULL;
    if (kv_contents_list(contents, tenant, token, count_max, page, &count, next) != KV_OK) {
        KV_API_REFUSE(error, "pageToken", "pageToken: is none that this server gave");
    } else {
        document = json_object();
        json_t *array = json_array();
        for (size_t i = 0; i < count; i++) {
            json_array_append_new(array, kv_gemini_content_object(&page[i]));
        }
        json_object_set_new(document, "cachedContents", array);
        if (next[0] != '\0') {
            json_object_set_new(document, "nextPageToken", json_string(next));
        }
    }
    free(page);
    return document;
}

static json_t *serve_one(
    const kv_call_t *call, const char *tenant, kv_contents_t *contents, kv_api_error_t *error)
{
    char id[KV_CONTENT_ID_BYTES + 1];
    kv_content_t content;
    if (kv_gemini_content_id(call->rest, id) &&
        kv_contents_get(contents, tenant, id, &content, NULL, NULL) == KV_OK) {
        return kv_gemini_content_object(&content);
    }
    kv_gemini_no_content(error);
    return NULL;
}

unsigned kv_gemini_serve_contents(
    const kv_call_t *call, kv_contents_t *contents, char **body_out, size_t *bytes_out)
{
    const char *tenant = kv_gemini_tenant(call);
    kv_api_error_t error;
    json_t *document = call->rest == NULL || call->rest[0] == '\0'
                           ? list_contents(call, tenant, contents, &error)
                           : serve_one(call, tenant, contents, &error);
    *body_out = document != NULL ? kv_json_dump(document, bytes_out)
                                 : kv_gemini_error(&error, NULL, false, bytes_out);
    return document != NULL ? 200 : error.http_code;
}
