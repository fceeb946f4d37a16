#include "gateway/render.h"

#include "base/check.h"
#include "base/clock.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t kv_usage_cached_tokens(const Kvist__Wire__Usage *usage)
{
    const Kvist__Wire__CachedTokens *cached = usage->cached;
    return cached == NULL ? 0 : cached->device + cached->host + cached->disk + cached->remote;
}

/* Consumes the document. */
static char *dump(json_t *document, size_t *bytes_out)
{
    KV_CHECK(document != NULL);
    char *text = json_dumps(document, JSON_COMPACT | JSON_REAL_PRECISION(9));
    KV_CHECK(text != NULL);
    json_decref(document);
    *bytes_out = strlen(text);
    return text;
}

static char *dump_event(json_t *document, size_t *bytes_out)
{
    char *text = dump(document, bytes_out), *event;
    int bytes = asprintf(&event, "data: %s\n\n", text);
    KV_CHECK(bytes > 0);
    free(text);
    *bytes_out = (size_t)bytes;
    return event;
}

/* What comes from a node is text of a peer: bytes that are no UTF-8 must not stop the answer. */
static json_t *string_or_null(const char *text, size_t bytes)
{
    json_t *string = text == NULL ? NULL : json_stringn(text, bytes);
    return string != NULL ? string : json_null();
}

static json_t *error_object(const kv_api_error_t *error)
{
    return json_pack("{s:{s:s,s:s,s:o,s:s?}}", "error", "message", error->message, "type",
        error->type, "param",
        error->param[0] != '\0' ? string_or_null(error->param, strlen(error->param)) : json_null(),
        "code", error->code);
}

char *kv_render_error(const kv_api_error_t *error, size_t *bytes_out)
{
    return dump(error_object(error), bytes_out);
}

char *kv_render_error_event(const kv_api_error_t *error, size_t *bytes_out)
{
    return dump_event(error_object(error), bytes_out);
}

static json_t *usage_object(const Kvist__Wire__Usage *usage, uint32_t completion_tokens)
{
    static const Kvist__Wire__CachedTokens NONE = KVIST__WIRE__CACHED_TOKENS__INIT;
    const Kvist__Wire__CachedTokens *cached = usage->cached != NULL ? usage->cached : &NONE;
    json_t *tiers = json_pack("{s:I,s:I,s:I,s:I}", "device", (json_int_t)cached->device, "host",
        (json_int_t)cached->host, "disk", (json_int_t)cached->disk, "remote",
        (json_int_t)cached->remote);
    json_t *extension = json_pack("{s:o,s:o,s:f,s:f,s:f,s:f,s:I,s:I,s:o,s:b}", "cached", tiers,
        "miss", string_or_null(usage->miss, strlen(usage->miss)), "ttft_ms",
        (double)usage->ttft_ns / KV_NS_PER_MS, "load_ms", (double)usage->load_ns / KV_NS_PER_MS,
        "compute_ms", (double)usage->compute_ns / KV_NS_PER_MS, "match_ms",
        (double)usage->match_ns / KV_NS_PER_MS, "loaded_bytes", (json_int_t)usage->loaded_bytes,
        "streamed_bytes", (json_int_t)usage->streamed_bytes, "prefilled_by",
        string_or_null(usage->prefilled_by, strlen(usage->prefilled_by)), "decode_kv_reused",
        (int)usage->decode_kv_reused);
    return json_pack("{s:I,s:I,s:I,s:{s:I},s:o}", "prompt_tokens", (json_int_t)usage->prompt_tokens,
        "completion_tokens", (json_int_t)completion_tokens, "total_tokens",
        (json_int_t)usage->prompt_tokens + completion_tokens, "prompt_tokens_details",
        "cached_tokens", (json_int_t)kv_usage_cached_tokens(usage), "kvist", extension);
}

/* The head of an answer or event, with its choices. */
static json_t *answer_object(const kv_answer_t *answer, const char *object, json_t *choices)
{
    return json_pack("{s:s,s:s,s:I,s:s,s:o}", "id", answer->id, "object", object, "created",
        (json_int_t)answer->created_unix_s, "model", answer->model, "choices", choices);
}

char *kv_render_answer(const kv_answer_t *answer, const char *text, size_t text_bytes,
    const char *finish_reason, const Kvist__Wire__Usage *usage, uint32_t completion_tokens,
    size_t *bytes_out)
{
    json_t *string = json_stringn(text, text_bytes), *choice;
    if (answer->kind == KV_API_CHAT) {
        choice = json_pack("{s:i,s:{s:s,s:o,s:n},s:n,s:s}", "index", 0, "message", "role",
            "assistant", "content", string, "refusal", "logprobs", "finish_reason", finish_reason);
    } else {
        choice = json_pack("{s:i,s:o,s:n,s:s}", "index", 0, "text", string, "logprobs",
            "finish_reason", finish_reason);
    }
    json_t *document =
        answer_object(answer, answer->kind == KV_API_CHAT ? "chat.completion" : "text_completion",
            json_pack("[o]", choice));
    json_object_set_new(document, "usage", usage_object(usage, completion_tokens));
    return dump(document, bytes_out);
}

static const char *event_name(const kv_answer_t *answer)
{
    return answer->kind == KV_API_CHAT ? "chat.completion.chunk" : "text_completion";
}

char *kv_render_event(const kv_answer_t *answer, bool first, const char *text, size_t text_bytes,
    const char *finish_reason, size_t *bytes_out)
{
    json_t *choice;
    if (answer->kind == KV_API_CHAT) {
        json_t *delta = json_object();
        if (first) {
            json_object_set_new(delta, "role", json_string("assistant"));
        }
        if (first || text_bytes > 0) {
            json_object_set_new(delta, "content", json_stringn(text, text_bytes));
        }
        choice = json_pack("{s:i,s:o,s:n,s:s?}", "index", 0, "delta", delta, "logprobs",
            "finish_reason", finish_reason);
    } else {
        choice = json_pack("{s:i,s:o,s:n,s:s?}", "index", 0, "text", json_stringn(text, text_bytes),
            "logprobs", "finish_reason", finish_reason);
    }
    json_t *document = answer_object(answer, event_name(answer), json_pack("[o]", choice));
    if (answer->include_usage) {
        json_object_set_new(document, "usage", json_null());
    }
    return dump_event(document, bytes_out);
}

char *kv_render_usage_event(const kv_answer_t *answer, const Kvist__Wire__Usage *usage,
    uint32_t completion_tokens, size_t *bytes_out)
{
    json_t *document = answer_object(answer, event_name(answer), json_array());
    json_object_set_new(document, "usage", usage_object(usage, completion_tokens));
    return dump_event(document, bytes_out);
}

char *kv_render_models(
    const char *model, uint64_t created_unix_s, uint32_t context_tokens_max, size_t *bytes_out)
{
    return dump(json_pack("{s:s,s:[{s:s,s:s,s:I,s:s,s:I}]}", "object", "list", "data", "id", model,
                    "object", "model", "created", (json_int_t)created_unix_s, "owned_by", "kvist",
                    "max_model_len", (json_int_t)context_tokens_max),
        bytes_out);
}
