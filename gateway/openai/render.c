#include "gateway/openai/openai.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/memory.h"
#include "gateway/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *error_object(const kv_api_error_t *error)
{
    const char *type = error->http_code == 429   ? "rate_limit_error"
                       : error->http_code >= 500 ? "server_error"
                       : error->http_code == 401 ? "authentication_error"
                       : error->http_code == 403 ? "permission_error"
                                                 : "invalid_request_error";
    return json_pack("{s:{s:s,s:s,s:o,s:s?}}", "error", "message", error->message, "type", type,
        "param",
        error->param[0] != '\0' ? kv_json_text_or_null(error->param, strlen(error->param))
                                : json_null(),
        "code", error->code);
}

char *kv_openai_error(
    const kv_api_error_t *error, const char *id, bool in_stream, size_t *bytes_out)
{
    (void)id;
    return in_stream ? kv_json_dump_event(NULL, error_object(error), bytes_out)
                     : kv_json_dump(error_object(error), bytes_out);
}

static json_t *usage_object(const kv_usage_t *usage)
{
    return json_pack("{s:I,s:I,s:I,s:{s:I},s:o}", "prompt_tokens", (json_int_t)usage->prompt_tokens,
        "completion_tokens", (json_int_t)usage->generated_tokens, "total_tokens",
        (json_int_t)usage->prompt_tokens + usage->generated_tokens, "prompt_tokens_details",
        "cached_tokens", (json_int_t)kv_usage_cached_tokens(usage), "kvist", kv_json_usage(usage));
}

/* The head of an answer or event, with its choices. */
static json_t *answer_object(const kv_answer_t *answer, const char *object, json_t *choices)
{
    return json_pack("{s:s,s:s,s:I,s:s,s:o}", "id", answer->id, "object", object, "created",
        (json_int_t)answer->created_unix_s, "model", answer->model, "choices", choices);
}

static const char *finish_name(kv_finish_t finish)
{
    static const char *const NAMES[] = {[KV_FINISH_NONE] = NULL,
        [KV_FINISH_STOP] = "stop",
        [KV_FINISH_STOP_STRING] = "stop",
        [KV_FINISH_LENGTH] = "length",
        [KV_FINISH_TOOL_CALLS] = "tool_calls"};
    return NAMES[finish];
}

/* ---- logprobs ---- */

/* A token's text; bytes that are no UTF-8 as "\\xNN". */
static json_t *token_text(const kv_token_chance_t *chance, const char *prefix)
{
    json_t *text = json_stringn(chance->text, chance->bytes);
    if (text != NULL) {
        return text;
    }
    size_t at = strlen(prefix);
    char *escaped = kv_allocate(at + 4 * chance->bytes + 1);
    memcpy(escaped, prefix, at);
    for (size_t i = 0; i < chance->bytes; i++) {
        unsigned char byte = (unsigned char)chance->text[i];
        at += (size_t)snprintf(escaped + at, 5, "\\x%02x", byte);
    }
    text = json_stringn(escaped, at);
    free(escaped);
    return text;
}

static json_t *chance_object(const kv_token_chance_t *chance)
{
    json_t *bytes = json_array();
    for (size_t i = 0; i < chance->bytes; i++) {
        json_array_append_new(bytes, json_integer((unsigned char)chance->text[i]));
    }
    return json_pack("{s:o,s:f,s:o}", "token", token_text(chance, ""), "logprob",
        (double)chance->logprob, "bytes", bytes);
}

static json_t *chat_logprobs(const kv_choice_t *choice)
{
    json_t *content = json_array();
    for (size_t i = 0; i < choice->logprob_count; i++) {
        const kv_token_logprob_t *logprob = &choice->logprobs[i];
        json_t *tops = json_array();
        for (size_t k = 0; k < logprob->top_count; k++) {
            json_array_append_new(tops, chance_object(&logprob->tops[k]));
        }
        json_t *object = chance_object(&logprob->chosen);
        json_object_set_new(object, "top_logprobs", tops);
        json_array_append_new(content, object);
    }
    return json_pack("{s:o,s:n}", "content", content, "refusal");
}

static json_t *completion_logprobs(const kv_answer_t *answer, const kv_choice_t *choice)
{
    static const char PREFIX[] = "bytes:";
    json_t *tokens = json_array(), *logprobs = json_array();
    json_t *tops = json_array(), *offsets = json_array();
    for (size_t i = 0; i < choice->logprob_count; i++) {
        const kv_token_logprob_t *logprob = &choice->logprobs[i];
        json_array_append_new(tokens, token_text(&logprob->chosen, PREFIX));
        json_array_append_new(logprobs, json_real((double)logprob->chosen.logprob));
        json_array_append_new(offsets, json_integer((json_int_t)logprob->text_at));
        json_t *object = json_object();
        for (size_t k = logprob->top_count; k-- > 0;) { /* the likelier of equal texts stays */
            json_t *text = token_text(&logprob->tops[k], PREFIX);
            json_object_set_new(
                object, json_string_value(text), json_real((double)logprob->tops[k].logprob));
            json_decref(text);
        }
        json_array_append_new(tops, object);
    }
    if (answer->request->top_logprobs == 0) {
        json_decref(tops);
        tops = json_null();
    }
    return json_pack("{s:o,s:o,s:o,s:o}", "tokens", tokens, "token_logprobs", logprobs,
        "top_logprobs", tops, "text_offset", offsets);
}

/* in_event: null where nothing is new. */
static json_t *logprobs_object(const kv_answer_t *answer, const kv_choice_t *choice, bool in_event)
{
    if (!answer->request->has_logprobs || (in_event && choice->logprob_count == 0)) {
        return json_null();
    }
    return answer->request->kind == KV_API_CHAT ? chat_logprobs(choice)
                                                : completion_logprobs(answer, choice);
}

/* ---- choices ---- */

/* Under vLLM's name, where it was asked for. */
static json_t *with_tokens(const kv_answer_t *answer, const kv_choice_t *choice, json_t *object)
{
    if (!answer->request->returns_tokens) {
        return object;
    }
    json_t *ids = json_array();
    for (size_t i = 0; i < choice->told_count; i++) {
        json_array_append_new(ids, json_integer(choice->tokens[i]));
    }
    json_object_set_new(object, "token_ids", ids);
    return object;
}

/* in_event: with their places, as pieces of a stream have them. */
static json_t *calls_array(const kv_choice_t *choice, bool in_event)
{
    json_t *calls = json_array();
    for (size_t i = 0; i < choice->tool_call_count; i++) {
        const kv_tool_call_t *call = &choice->tool_calls[i];
        json_t *object = json_pack("{s:o,s:s,s:{s:s,s:s}}", "id", json_sprintf("call_%s", call->id),
            "type", "function", "function", "name", call->name, "arguments", call->arguments);
        if (in_event) {
            json_object_set_new(object, "index", json_integer(call->index));
        }
        json_array_append_new(calls, object);
    }
    return calls;
}

static json_t *choice_object(const kv_answer_t *answer, const kv_choice_t *choice)
{
    json_t *text = json_stringn(choice->text, choice->text_bytes);
    if (answer->request->kind == KV_API_CHAT) {
        bool calls_only = choice->tool_call_count > 0 && choice->text_bytes == 0;
        json_t *message =
            json_pack("{s:s,s:O,s:n}", "role", "assistant", "content", text, "refusal");
        if (calls_only) {
            json_object_set_new(message, "content", json_null());
        }
        json_decref(text);
        if (choice->tool_call_count > 0) {
            json_object_set_new(message, "tool_calls", calls_array(choice, false));
        }
        return json_pack("{s:i,s:o,s:o,s:s}", "index", (int)choice->index, "message", message,
            "logprobs", logprobs_object(answer, choice, false), "finish_reason",
            finish_name(choice->finish));
    }
    return json_pack("{s:i,s:o,s:o,s:s}", "index", (int)choice->index, "text", text, "logprobs",
        logprobs_object(answer, choice, false), "finish_reason", finish_name(choice->finish));
}

char *kv_openai_whole(const kv_answer_t *answer, size_t *bytes_out)
{
    json_t *choices = json_array();
    for (size_t i = 0; i < answer->choice_count; i++) {
        const kv_choice_t *choice = &answer->choices[i];
        json_array_append_new(choices, with_tokens(answer, choice, choice_object(answer, choice)));
    }
    bool chat = answer->request->kind == KV_API_CHAT;
    json_t *document = answer_object(answer, chat ? "chat.completion" : "text_completion", choices);
    json_object_set_new(document, "usage", usage_object(&answer->usage));
    return kv_json_dump(document, bytes_out);
}

static const char *event_name(const kv_answer_t *answer)
{
    return answer->request->kind == KV_API_CHAT ? "chat.completion.chunk" : "text_completion";
}

char *kv_openai_event(const kv_answer_t *answer, const kv_choice_t *choice, size_t *bytes_out)
{
    json_t *object;
    json_t *text = json_stringn(choice->text, choice->text_bytes);
    if (answer->request->kind == KV_API_CHAT) {
        json_t *delta = json_object();
        if (choice->first) {
            json_object_set_new(delta, "role", json_string("assistant"));
        }
        if (choice->first || choice->text_bytes > 0) {
            json_object_set(delta, "content", text);
        }
        if (choice->tool_call_count > 0) {
            json_object_set_new(delta, "tool_calls", calls_array(choice, true));
        }
        json_decref(text);
        object = json_pack("{s:i,s:o,s:o,s:s?}", "index", (int)choice->index, "delta", delta,
            "logprobs", logprobs_object(answer, choice, true), "finish_reason",
            finish_name(choice->finish));
    } else {
        object = json_pack("{s:i,s:o,s:o,s:s?}", "index", (int)choice->index, "text", text,
            "logprobs", logprobs_object(answer, choice, true), "finish_reason",
            finish_name(choice->finish));
    }
    json_t *document = answer_object(
        answer, event_name(answer), json_pack("[o]", with_tokens(answer, choice, object)));
    if (answer->request->include_usage) {
        json_object_set_new(document, "usage", json_null());
    }
    return kv_json_dump_event(NULL, document, bytes_out);
}

char *kv_openai_end(const kv_answer_t *answer, size_t *bytes_out)
{
    static const char DONE[] = "data: [DONE]\n\n";
    if (!answer->request->include_usage) {
        *bytes_out = strlen(DONE);
        return kv_duplicate_string(DONE);
    }
    json_t *document = answer_object(answer, event_name(answer), json_array());
    json_object_set_new(document, "usage", usage_object(&answer->usage));
    char *event = kv_json_dump_event(NULL, document, bytes_out);
    event = kv_reallocate(event, *bytes_out + sizeof DONE, 1);
    memcpy(event + *bytes_out, DONE, sizeof DONE);
    *bytes_out += strlen(DONE);
    return event;
}

static json_t *model_object(const char *model, uint64_t created_unix_s, uint32_t context_tokens_max)
{
    return json_pack("{s:s,s:s,s:I,s:s,s:I}", "id", model, "object", "model", "created",
        (json_int_t)created_unix_s, "owned_by", "kvist", "max_model_len",
        (json_int_t)context_tokens_max);
}

char *kv_openai_model(
    const char *model, uint64_t created_unix_s, uint32_t context_tokens_max, size_t *bytes_out)
{
    return kv_json_dump(model_object(model, created_unix_s, context_tokens_max), bytes_out);
}

char *kv_openai_models(
    const char *model, uint64_t created_unix_s, uint32_t context_tokens_max, size_t *bytes_out)
{
    return kv_json_dump(json_pack("{s:s,s:[o]}", "object", "list", "data",
                            model_object(model, created_unix_s, context_tokens_max)),
        bytes_out);
}
