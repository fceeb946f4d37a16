/* Answers in Gemini's JSON. A stream is server-sent events, or one JSON array that comes in pieces:
 * every piece but the last ends with its comma. The last piece has the finish of every candidate
 * and the whole usage. */
#include "gateway/gemini/gemini_internal.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"
#include "gateway/gemini/times.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- texts ---- */

/* A token's text may be a part of a character: what is no UTF-8 becomes U+FFFD. */
static json_t *make_text(const char *text, size_t bytes)
{
    json_t *string = json_stringn(text, bytes);
    if (string != NULL) {
        return string;
    }
    char *valid = kv_allocate(3 * bytes + 1);
    size_t count = 0;
    for (size_t i = 0, length; i<bytes; i += length> 0 ? length : 1) {
        length = kv_utf8_length(text + i, bytes - i);
        memcpy(valid + count, length > 0 ? text + i : "\xef\xbf\xbd", length > 0 ? length : 3);
        count += length > 0 ? length : 3;
    }
    string = json_stringn(valid, count);
    free(valid);
    return string;
}

/* ---- usage ---- */

static json_t *details(uint32_t count)
{
    return json_pack("[{s:s,s:I}]", "modality", "TEXT", "tokenCount", (json_int_t)count);
}

/* Of the cached prompt tokens what was not computed again: of a named content, and of what hit
 * without being named. */
static json_t *usage_object(const kv_usage_t *usage)
{
    uint32_t cached = 0;
    for (int i = 0; i < KV_TIERS; i++) {
        cached += usage->cached_tokens[i];
    }
    json_t *object =
        json_pack("{s:I,s:I,s:I,s:o}", "promptTokenCount", (json_int_t)usage->prompt_tokens,
            "candidatesTokenCount", (json_int_t)usage->generated_tokens, "totalTokenCount",
            (json_int_t)usage->prompt_tokens + usage->generated_tokens, "promptTokensDetails",
            details(usage->prompt_tokens));
    if (usage->generated_tokens > 0) {
        json_object_set_new(object, "candidatesTokensDetails", details(usage->generated_tokens));
    }
    if (cached > 0) {
        json_object_set_new(object, "cachedContentTokenCount", json_integer(cached));
        json_object_set_new(object, "cacheTokensDetails", details(cached));
    }
    return object;
}

/* ---- candidates ---- */

static const char *finish_name(kv_finish_t finish)
{
    return finish == KV_FINISH_LENGTH ? "MAX_TOKENS" : "STOP";
}

/* JSON has no infinity: a token that could not come has the least number. */
static double finite_logprob(float logprob)
{
    return isfinite(logprob) ? (double)logprob : -FLT_MAX;
}

static json_t *chance_object(const kv_token_chance_t *chance)
{
    return json_pack("{s:o,s:I,s:f}", "token", make_text(chance->text, chance->bytes), "tokenId",
        (json_int_t)chance->token, "logProbability", finite_logprob(chance->logprob));
}

static json_t *logprobs_object(const kv_choice_t *choice, double *sum_out)
{
    json_t *chosen = json_array(), *tops = json_array();
    *sum_out = 0;
    for (size_t i = 0; i < choice->logprob_count; i++) {
        const kv_token_logprob_t *place = &choice->logprobs[i];
        json_t *candidates = json_array();
        for (size_t k = 0; k < place->top_count; k++) {
            json_array_append_new(candidates, chance_object(&place->tops[k]));
        }
        json_array_append_new(tops, json_pack("{s:o}", "candidates", candidates));
        json_array_append_new(chosen, chance_object(&place->chosen));
        *sum_out += finite_logprob(place->chosen.logprob);
    }
    return json_pack("{s:o,s:o}", "topCandidates", tops, "chosenCandidates", chosen);
}

static void add_logprobs(json_t *candidate, const kv_choice_t *choice)
{
    double sum;
    if (choice->logprobs == NULL || choice->logprob_count == 0) {
        return;
    }
    json_object_set_new(candidate, "logprobsResult", logprobs_object(choice, &sum));
    json_object_set_new(candidate, "avgLogprobs", json_real(sum / (double)choice->logprob_count));
}

static void add_calls(json_t *parts, const kv_choice_t *choice)
{
    for (size_t i = 0; i < choice->tool_call_count; i++) {
        const kv_tool_call_t *call = &choice->tool_calls[i];
        json_t *args = json_loads(call->arguments, 0, NULL);
        if (!json_is_object(args)) {
            json_decref(args);
            args = json_object();
        }
        json_t *object = json_pack("{s:s,s:o}", "name", call->name, "args", args);
        if (call->id != NULL) {
            json_object_set_new(object, "id", json_string(call->id));
        }
        json_array_append_new(parts, json_pack("{s:o}", "functionCall", object));
    }
}

static json_t *candidate_object(const kv_choice_t *choice)
{
    json_t *parts = json_array();
    if (choice->text_bytes > 0 || choice->tool_call_count == 0) {
        json_array_append_new(
            parts, json_pack("{s:o}", "text", make_text(choice->text, choice->text_bytes)));
    }
    add_calls(parts, choice);
    json_t *candidate = json_pack("{s:{s:o,s:s},s:I}", "content", "parts", parts, "role", "model",
        "index", (json_int_t)choice->index);
    if (choice->finish != KV_FINISH_NONE) {
        json_object_set_new(candidate, "finishReason", json_string(finish_name(choice->finish)));
    }
    add_logprobs(candidate, choice);
    return candidate;
}

/* Consumes the candidates. */
static json_t *response_object(const kv_answer_t *answer, json_t *candidates)
{
    return json_pack("{s:o,s:o,s:s,s:s}", "candidates", candidates, "usageMetadata",
        usage_object(&answer->usage), "modelVersion", answer->model, "responseId", answer->id);
}

/* ---- whole answers ---- */

static json_t *count_object(const kv_answer_t *answer)
{
    const kv_api_request_t *request = answer->request;
    json_t *object = json_pack("{s:I,s:o}", "totalTokens", (json_int_t)answer->usage.prompt_tokens,
        "promptTokensDetails", details(answer->usage.prompt_tokens));
    if (request->breakpoint_count > 0) {
        uint32_t cached = request->breakpoints[0].token_count;
        json_object_set_new(object, "cachedContentTokenCount", json_integer(cached));
        json_object_set_new(object, "cacheTokensDetails", details(cached));
    }
    return object;
}

json_t *kv_gemini_content_object(const kv_content_t *content)
{
    char created[KV_GEMINI_TIME_BYTES], updated[KV_GEMINI_TIME_BYTES],
        expires[KV_GEMINI_TIME_BYTES], name[32];
    kv_gemini_time_format(content->created_unix_ns, created);
    kv_gemini_time_format(content->updated_unix_ns, updated);
    kv_gemini_time_format(content->expires_unix_ns, expires);
    snprintf(name, sizeof name, "cachedContents/%s", content->id);
    json_t *object = json_pack("{s:s,s:o,s:s,s:s,s:s,s:s,s:{s:I}}", "name", name, "model",
        json_sprintf("models/%s", content->model), "displayName", content->display_name,
        "createTime", created, "updateTime", updated, "expireTime", expires, "usageMetadata",
        "totalTokenCount", (json_int_t)content->token_count);
    KV_CHECK(object != NULL);
    return object;
}

char *kv_gemini_whole(const kv_answer_t *answer, size_t *bytes_out)
{
    const kv_gemini_own_t *own = answer->request->own;
    if (own->kind == KV_GEMINI_COUNT) {
        return kv_json_dump(count_object(answer), bytes_out);
    }
    if (own->kind == KV_GEMINI_CREATE || own->kind == KV_GEMINI_PATCH) {
        return kv_json_dump(kv_gemini_content_object(&own->content), bytes_out);
    }
    if (own->kind == KV_GEMINI_DELETE) {
        return kv_json_dump(json_object(), bytes_out);
    }
    json_t *candidates = json_array();
    for (size_t i = 0; i < answer->choice_count; i++) {
        json_array_append_new(candidates, candidate_object(&answer->choices[i]));
    }
    return kv_json_dump(response_object(answer, candidates), bytes_out);
}

/* ---- streams ---- */

static bool is_array(const kv_answer_t *answer)
{
    return ((const kv_gemini_own_t *)answer->request->own)->kind == KV_GEMINI_ARRAY;
}

/* Consumes the document. ending: what follows it in an array. */
static char *dump_piece(
    const kv_answer_t *answer, json_t *document, const char *ending, size_t *bytes_out)
{
    if (!is_array(answer)) {
        return kv_json_dump_event(NULL, document, bytes_out);
    }
    char *text = kv_json_dump(document, bytes_out), *piece;
    int bytes = asprintf(&piece, "%s%s", text, ending);
    KV_CHECK(bytes > 0);
    free(text);
    *bytes_out = (size_t)bytes;
    return piece;
}

char *kv_gemini_begin(const kv_answer_t *answer, size_t *bytes_out)
{
    *bytes_out = is_array(answer) ? 1 : 0;
    return kv_duplicate_string(is_array(answer) ? "[" : "");
}

/* The finish waits for the end: a piece has text, calls, or both. */
char *kv_gemini_event(const kv_answer_t *answer, const kv_choice_t *choice, size_t *bytes_out)
{
    kv_choice_t piece = *choice;
    piece.finish = KV_FINISH_NONE;
    if (piece.text_bytes == 0 && piece.tool_call_count == 0 && piece.logprob_count == 0) {
        *bytes_out = 0;
        return kv_duplicate_string("");
    }
    json_t *candidates = json_pack("[o]", candidate_object(&piece));
    return dump_piece(answer, response_object(answer, candidates), ",\n", bytes_out);
}

char *kv_gemini_end(const kv_answer_t *answer, size_t *bytes_out)
{
    json_t *candidates = json_array();
    for (size_t i = 0; i < answer->choice_count; i++) {
        const kv_choice_t *all = &answer->choices[i];
        const kv_choice_t last = {.index = all->index, .text = "", .finish = all->finish};
        json_array_append_new(candidates, candidate_object(&last));
    }
    return dump_piece(answer, response_object(answer, candidates), "]\n", bytes_out);
}

/* ---- errors ---- */

static const char *status_name(unsigned http_code)
{
    switch (http_code) {
    case 401:
        return "UNAUTHENTICATED";
    case 403:
        return "PERMISSION_DENIED";
    case 404:
        return "NOT_FOUND";
    case 405:
        return "UNIMPLEMENTED";
    case 409:
        return "ABORTED";
    case 429:
        return "RESOURCE_EXHAUSTED";
    case 499:
        return "CANCELLED";
    case 502:
    case 503:
        return "UNAVAILABLE";
    case 504:
        return "DEADLINE_EXCEEDED";
    default:
        return http_code >= 500 ? "INTERNAL" : "INVALID_ARGUMENT";
    }
}

static json_t *error_object(const kv_api_error_t *error)
{
    json_t *object = json_pack("{s:i,s:s,s:s}", "code", (int)error->http_code, "message",
        error->message, "status", status_name(error->http_code));
    if (error->http_code == 400 && error->param[0] != '\0') {
        json_object_set_new(object, "details",
            json_pack("[{s:s,s:[{s:s,s:s}]}]", "@type", "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations", "field", error->param, "description", error->message));
    }
    return json_pack("{s:o}", "error", object);
}

char *kv_gemini_error(
    const kv_api_error_t *error, const char *id, bool in_stream, size_t *bytes_out)
{
    (void)id;
    return in_stream ? kv_json_dump_event(NULL, error_object(error), bytes_out)
                     : kv_json_dump(error_object(error), bytes_out);
}

char *kv_gemini_array_error(
    const kv_api_error_t *error, const char *id, bool in_stream, size_t *bytes_out)
{
    (void)id;
    char *text = kv_json_dump(error_object(error), bytes_out), *piece;
    int bytes = asprintf(&piece, "%s%s]\n", in_stream ? "" : "[", text);
    KV_CHECK(bytes > 0);
    free(text);
    *bytes_out = (size_t)bytes;
    return piece;
}

/* ---- models ---- */

static json_t *model_object(const kv_api_limits_t *limits)
{
    return json_pack("{s:o,s:s,s:s,s:s,s:I,s:I,s:[s,s,s,s],s:f,s:f,s:f}", "name",
        json_sprintf("models/%s", limits->model), "version", "1", "displayName", limits->model,
        "description", "served by Kvist", "inputTokenLimit", (json_int_t)limits->context_tokens_max,
        "outputTokenLimit", (json_int_t)limits->context_tokens_max, "supportedGenerationMethods",
        "generateContent", "streamGenerateContent", "countTokens", "createCachedContent",
        "temperature", 1.0, "maxTemperature", 2.0, "topP", 1.0);
}

char *kv_gemini_models(const kv_api_limits_t *limits, size_t *bytes_out)
{
    return kv_json_dump(json_pack("{s:[o]}", "models", model_object(limits)), bytes_out);
}

char *kv_gemini_model(const kv_api_limits_t *limits, size_t *bytes_out)
{
    return kv_json_dump(model_object(limits), bytes_out);
}
