#include "gateway/engines/vllm_messages.h"

#include "base/check.h"
#include "base/memory.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- bodies ---- */

/* "[1,2,3]": prompts have many thousand ids, and each would be an allocation as a JSON value. */
static char *write_ids(const uint32_t *tokens, size_t count, size_t *bytes_out)
{
    char *text = kv_allocate(count * 11 + 3), *at = text;
    *at++ = '[';
    for (size_t i = 0; i < count; i++) {
        char digits[10];
        int length = 0;
        uint32_t rest = tokens[i];
        do {
            digits[length++] = (char)('0' + rest % 10);
            rest /= 10;
        } while (rest > 0);
        while (length > 0) {
            *at++ = digits[--length];
        }
        *at++ = i + 1 < count ? ',' : ']';
    }
    if (count == 0) {
        *at++ = ']';
    }
    *bytes_out = (size_t)(at - text);
    return text;
}

static void set_when(json_t *body, bool wanted, const char *name, json_t *value)
{
    if (wanted) {
        KV_CHECK(json_object_set_new(body, name, value) == 0);
    } else {
        json_decref(value);
    }
}

static json_t *stop_list(const kv_vllm_ask_t *ask)
{
    json_t *list = json_array();
    for (size_t i = 0; i < ask->stop_count; i++) {
        KV_CHECK(json_array_append_new(list, json_string(ask->stops[i])) == 0);
    }
    return list;
}

char *kv_vllm_write_ask(const kv_vllm_ask_t *ask)
{
    /* What a model's generation_config.json may set is said as well, or vLLM takes it from there:
     * the same request would draw other tokens than at a kvist node. */
    json_t *body = json_pack("{s:s, s:s, s:I, s:f, s:f, s:I, s:f, s:f, s:f, s:f, s:b, s:b, s:b, "
                             "s:{s:b}}",
        "model", ask->model, "request_id", ask->request_id, "max_tokens",
        (json_int_t)ask->max_tokens, "temperature", (double)ask->temperature, "top_p",
        (double)ask->top_p, "top_k", (json_int_t)ask->top_k, "min_p", 0.0, "repetition_penalty",
        1.0, "presence_penalty", 0.0, "frequency_penalty", 0.0, "ignore_eos", ask->ignore_end,
        "stream", true, "return_token_ids", true, "stream_options", "include_usage", true);
    KV_CHECK(body != NULL);
    bool logprobs = ask->logprob_count >= 0;
    set_when(body, ask->has_seed, "seed", json_integer((json_int_t)(ask->seed & INT64_MAX)));
    set_when(body, logprobs, "logprobs", json_integer(ask->logprob_count));
    set_when(body, logprobs, "return_tokens_as_token_ids", json_true());
    set_when(body, ask->priority != 0, "priority", json_integer(ask->priority));
    set_when(body, ask->stop_count > 0, "stop", stop_list(ask));
    if (ask->cache_salt != NULL) {
        set_when(body, true, "cache_salt", json_string(ask->cache_salt));
    }
    char *rest = json_dumps(body, JSON_COMPACT | JSON_REAL_PRECISION(9));
    KV_CHECK(rest != NULL);
    json_decref(body);
    size_t id_bytes, rest_bytes = strlen(rest);
    char *ids = write_ids(ask->tokens, ask->token_count, &id_bytes);
    static const char HEAD[] = "{\"prompt\":";
    char *text = kv_allocate(sizeof HEAD + id_bytes + rest_bytes + 1);
    memcpy(text, HEAD, sizeof HEAD - 1);
    memcpy(text + sizeof HEAD - 1, ids, id_bytes);
    memcpy(text + sizeof HEAD - 1 + id_bytes, rest, rest_bytes);
    text[sizeof HEAD - 1 + id_bytes] = ','; /* in place of the object's "{" */
    free(ids);
    free(rest);
    return text;
}

char *kv_vllm_write_tokenize(const char *model, const char *text)
{
    json_t *body =
        json_pack("{s:s, s:s, s:b}", "model", model, "prompt", text, "add_special_tokens", false);
    KV_CHECK(body != NULL);
    char *dumped = json_dumps(body, JSON_COMPACT);
    KV_CHECK(dumped != NULL);
    json_decref(body);
    return dumped;
}

/* ---- reading ---- */

static bool read_u32(const json_t *value, uint32_t *number_out)
{
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < 0 || number > UINT32_MAX) {
        return false;
    }
    *number_out = (uint32_t)number;
    return true;
}

static void copy_text(char text_out[KV_VLLM_TEXT_BYTES], const char *text, size_t bytes)
{
    size_t kept = bytes < KV_VLLM_TEXT_BYTES - 1 ? bytes : KV_VLLM_TEXT_BYTES - 1;
    /* Not in the middle of a character: what is shown goes into JSON again. */
    while (kept > 0 && kept < bytes && ((unsigned char)text[kept] & 0xc0) == 0x80) {
        kept--;
    }
    memcpy(text_out, text, kept);
    text_out[kept] = '\0';
    for (char *at = text_out; *at != '\0'; at++) {
        *at = (unsigned char)*at < ' ' ? ' ' : *at;
    }
}

static void copy_json_text(char text_out[KV_VLLM_TEXT_BYTES], const json_t *text)
{
    copy_text(text_out, json_string_value(text), json_string_length(text));
}

/* {"error": {"message", "code"}}; false: it is none, as is "error": null. */
static bool read_error_object(const json_t *document, kv_vllm_event_t *event)
{
    const json_t *error = json_object_get(document, "error");
    const json_t *message = json_object_get(error, "message");
    uint32_t code = 500;
    if (error == NULL || json_is_null(error)) {
        return false;
    }
    read_u32(json_object_get(error, "code"), &code);
    event->kind = KV_VLLM_ERROR;
    event->error_code = code;
    if (json_is_string(message)) {
        copy_json_text(event->error_text, message);
    } else {
        snprintf(event->error_text, sizeof event->error_text, "an error without a message");
    }
    return true;
}

void kv_vllm_read_error(const char *text, size_t bytes, char text_out[KV_VLLM_TEXT_BYTES])
{
    json_t *document = json_loadb(text, bytes, 0, NULL);
    kv_vllm_event_t event = {0};
    if (document != NULL && read_error_object(document, &event)) {
        memcpy(text_out, event.error_text, sizeof event.error_text);
    } else if (document != NULL || bytes == 0) {
        snprintf(text_out, KV_VLLM_TEXT_BYTES, "no reason given");
    } else {
        size_t i = 0;
        for (; i < bytes && i < 120 && text[i] >= ' ' && text[i] <= '~'; i++) {
        }
        copy_text(text_out, text, i);
    }
    json_decref(document);
}

/* ---- a stream's events ---- */

/* "token_id:17" */
static bool read_token_name(const char *name, uint32_t *token_out)
{
    static const char HEAD[] = "token_id:";
    const char *digits = name + sizeof HEAD - 1;
    char *end;
    if (strncmp(name, HEAD, sizeof HEAD - 1) != 0 || *digits < '0' || *digits > '9') {
        return false;
    }
    errno = 0;
    unsigned long long number = strtoull(digits, &end, 10);
    *token_out = (uint32_t)number;
    return errno == 0 && *end == '\0' && number <= UINT32_MAX;
}

static int compare_tops(const void *left, const void *right)
{
    const kv_vllm_top_t *first = left, *second = right;
    if (first->logprob != second->logprob) {
        return first->logprob > second->logprob ? -1 : 1;
    }
    return first->token < second->token ? -1 : first->token > second->token;
}

static bool read_tops(const json_t *candidates, kv_vllm_top_t *tops, uint32_t *count_out)
{
    const char *name;
    json_t *logprob;
    uint32_t count = 0;
    json_object_foreach((json_t *)candidates, name, logprob)
    {
        if (count > KV_VLLM_TOPS_MAX || !json_is_number(logprob) ||
            !read_token_name(name, &tops[count].token)) {
            return false;
        }
        tops[count++].logprob = (float)json_number_value(logprob);
    }
    if (count > 0) {
        qsort(tops, count, sizeof *tops, compare_tops);
    }
    *count_out = count;
    return true;
}

/* The chosen tokens' logprobs and the likeliest beside them. */
static bool read_logprobs(const json_t *logprobs, kv_vllm_event_t *event)
{
    const json_t *chosen = json_object_get(logprobs, "token_logprobs");
    const json_t *tops = json_object_get(logprobs, "top_logprobs");
    size_t count = event->token_count;
    if (json_array_size(chosen) != count ||
        (tops != NULL && !json_is_null(tops) && json_array_size(tops) != count)) {
        return false;
    }
    event->top_capacity = KV_VLLM_TOPS_MAX + 1; /* the chosen one may come beside them */
    event->logprobs = kv_allocate_array(count + 1, sizeof *event->logprobs);
    event->top_counts = kv_allocate_array(count + 1, sizeof *event->top_counts);
    event->tops = kv_allocate_array((count + 1) * event->top_capacity, sizeof *event->tops);
    for (size_t i = 0; i < count; i++) {
        const json_t *logprob = json_array_get(chosen, i), *candidates = json_array_get(tops, i);
        if (!json_is_number(logprob) && !json_is_null(logprob)) {
            return false;
        }
        event->logprobs[i] =
            json_is_number(logprob) ? (float)json_number_value(logprob) : -INFINITY;
        if (json_is_object(candidates) &&
            !read_tops(candidates, &event->tops[i * event->top_capacity], &event->top_counts[i])) {
            return false;
        }
    }
    return true;
}

static kv_vllm_finish_t read_finish(const json_t *choice)
{
    const char *reason = json_string_value(json_object_get(choice, "finish_reason"));
    if (reason == NULL) {
        return KV_VLLM_GOES_ON;
    } else if (strcmp(reason, "length") == 0) {
        return KV_VLLM_LENGTH;
    } else if (strcmp(reason, "stop") != 0) {
        return KV_VLLM_GAVE_UP;
    }
    return json_is_string(json_object_get(choice, "stop_reason")) ? KV_VLLM_STOP_STRING
                                                                  : KV_VLLM_END_TOKEN;
}

static kv_status_t read_choice(const json_t *choice, kv_vllm_event_t *event, kv_error_t *error)
{
    const json_t *ids = json_object_get(choice, "token_ids");
    const json_t *logprobs = json_object_get(choice, "logprobs");
    const json_t *text = json_object_get(choice, "text");
    event->finish = read_finish(choice);
    if (!json_is_array(ids)) {
        return json_string_length(text) == 0 && event->finish != KV_VLLM_GOES_ON
                   ? KV_OK
                   : kv_fail(error, KV_INVALID,
                         "choices[0].token_ids: is missing: the server is too old for "
                         "return_token_ids");
    }
    event->token_count = json_array_size(ids);
    event->tokens = kv_allocate_array(event->token_count + 1, sizeof *event->tokens);
    for (size_t i = 0; i < event->token_count; i++) {
        if (!read_u32(json_array_get(ids, i), &event->tokens[i])) {
            return kv_fail(error, KV_INVALID, "choices[0].token_ids[%zu]: is no token id", i);
        }
    }
    if (json_is_object(logprobs) && !read_logprobs(logprobs, event)) {
        return kv_fail(error, KV_INVALID,
            "choices[0].logprobs: has not one logprob for each of %zu tokens", event->token_count);
    }
    return KV_OK;
}

static kv_status_t read_usage(const json_t *usage, kv_vllm_event_t *event, kv_error_t *error)
{
    const json_t *details = json_object_get(usage, "prompt_tokens_details");
    const json_t *cached = json_object_get(details, "cached_tokens");
    event->kind = KV_VLLM_USAGE;
    event->has_cached = json_is_integer(cached);
    if (!read_u32(json_object_get(usage, "prompt_tokens"), &event->prompt_tokens) ||
        (event->has_cached && (!read_u32(cached, &event->cached_tokens) ||
                                  event->cached_tokens > event->prompt_tokens))) {
        return kv_fail(error, KV_INVALID,
            "usage: prompt_tokens, or cached_tokens of its details, is no number of tokens");
    }
    return KV_OK;
}

static kv_status_t read_event(const json_t *document, kv_vllm_event_t *event, kv_error_t *error)
{
    const json_t *choices = json_object_get(document, "choices");
    const json_t *usage = json_object_get(document, "usage");
    if (read_error_object(document, event)) {
        return KV_OK;
    }
    if (!json_is_array(choices)) {
        return kv_fail(error, KV_INVALID, "choices: is missing");
    }
    if (json_array_size(choices) > 0) {
        event->kind = KV_VLLM_TOKENS;
        return read_choice(json_array_get(choices, 0), event, error);
    }
    return json_is_object(usage) ? read_usage(usage, event, error) : KV_OK;
}

kv_status_t kv_vllm_read_line(
    const char *line, size_t bytes, kv_vllm_event_t *event_out, kv_error_t *error)
{
    static const char HEAD[] = "data:", DONE[] = "[DONE]";
    *event_out = (kv_vllm_event_t){.kind = KV_VLLM_NOTHING};
    if (bytes > 0 && line[bytes - 1] == '\r') {
        bytes--;
    }
    if (bytes < sizeof HEAD - 1 || memcmp(line, HEAD, sizeof HEAD - 1) != 0) {
        return KV_OK;
    }
    line += sizeof HEAD - 1;
    bytes -= sizeof HEAD - 1;
    while (bytes > 0 && *line == ' ') {
        line++;
        bytes--;
    }
    if (bytes == sizeof DONE - 1 && memcmp(line, DONE, bytes) == 0) {
        event_out->kind = KV_VLLM_DONE;
        return KV_OK;
    }
    json_error_t where;
    json_t *document = json_loadb(line, bytes, 0, &where);
    kv_status_t status;
    if (document == NULL) {
        status = kv_fail(error, KV_INVALID, "an event is no JSON: %.160s", where.text);
    } else {
        status = read_event(document, event_out, error);
    }
    json_decref(document);
    if (status != KV_OK) {
        kv_vllm_event_clear(event_out);
    }
    return status;
}

void kv_vllm_event_clear(kv_vllm_event_t *event)
{
    free(event->tokens);
    free(event->logprobs);
    free(event->tops);
    free(event->top_counts);
    *event = (kv_vllm_event_t){.kind = KV_VLLM_NOTHING};
}

/* ---- the other doors ---- */

/* "a, b, c": as many as fit. */
static void list_models(const json_t *data, char *text_out, size_t text_bytes)
{
    size_t used = 0;
    text_out[0] = '\0';
    for (size_t i = 0; i < json_array_size(data) && used < text_bytes; i++) {
        const char *id = json_string_value(json_object_get(json_array_get(data, i), "id"));
        used += (size_t)snprintf(
            text_out + used, text_bytes - used, "%s%s", i > 0 ? ", " : "", id != NULL ? id : "?");
    }
}

static const json_t *find_model(const json_t *data, const char *wanted)
{
    for (size_t i = 0; i < json_array_size(data); i++) {
        const json_t *model = json_array_get(data, i);
        const char *id = json_string_value(json_object_get(model, "id"));
        if (id != NULL && strcmp(id, wanted) == 0) {
            return model;
        }
    }
    return json_array_size(data) == 1 ? json_array_get(data, 0) : NULL;
}

kv_status_t kv_vllm_read_models(const char *text, size_t bytes, const char *wanted,
    char name_out[KV_VLLM_MODEL_BYTES], uint32_t *context_tokens_max_out, kv_error_t *error)
{
    json_t *document = json_loadb(text, bytes, 0, NULL);
    const json_t *data = json_object_get(document, "data");
    const json_t *model = find_model(data, wanted);
    const char *id = json_string_value(json_object_get(model, "id"));
    kv_status_t status = KV_OK;
    char names[128];
    if (!json_is_array(data)) {
        status = kv_fail(error, KV_INVALID, "/v1/models: is no list of models: no vLLM?");
    } else if (model == NULL) {
        list_models(data, names, sizeof names);
        status = kv_fail(error, KV_MISSING,
            "it has not the model %.100s, but: %s; name one with gateway.model_name", wanted,
            names);
    } else if (id == NULL || id[0] == '\0' || strlen(id) >= KV_VLLM_MODEL_BYTES) {
        status = kv_fail(error, KV_INVALID, "/v1/models: data[].id: 1 to %d bytes are taken",
            KV_VLLM_MODEL_BYTES - 1);
    } else if (!read_u32(json_object_get(model, "max_model_len"), context_tokens_max_out)) {
        status = kv_fail(error, KV_INVALID, "/v1/models: max_model_len of %.100s is missing", id);
    } else {
        snprintf(name_out, KV_VLLM_MODEL_BYTES, "%s", id);
    }
    json_decref(document);
    return status;
}

kv_status_t kv_vllm_check_tokenized(const char *text, size_t bytes, const uint32_t *expected,
    size_t expected_count, kv_error_t *error)
{
    json_t *document = json_loadb(text, bytes, 0, NULL);
    const json_t *tokens = json_object_get(document, "tokens");
    kv_status_t status = KV_OK;
    size_t count = json_array_size(tokens), i = 0;
    uint32_t token = 0;
    if (!json_is_array(tokens)) {
        json_decref(document);
        return kv_fail(error, KV_INVALID, "/tokenize: tokens: is missing: no vLLM?");
    }
    while (i < count && i < expected_count && read_u32(json_array_get(tokens, i), &token) &&
           token == expected[i]) {
        i++;
    }
    if (i < count || i < expected_count) {
        char theirs[24] = "none", ours[24] = "none";
        if (i < count) {
            snprintf(theirs, sizeof theirs, "%" JSON_INTEGER_FORMAT,
                json_integer_value(json_array_get(tokens, i)));
        }
        if (i < expected_count) {
            snprintf(ours, sizeof ours, "%" PRIu32, expected[i]);
        }
        status = kv_fail(error, KV_REFUSED,
            "its tokenizer is not that of model.path: token %zu of a probe is %s there and %s "
            "here; model.path must be the GGUF of the same model",
            i, theirs, ours);
    }
    json_decref(document);
    return status;
}

void kv_vllm_read_metric(
    const char *line, size_t bytes, double *running_inout, double *waiting_inout)
{
    static const char *const NAMES[2] = {"vllm:num_requests_running", "vllm:num_requests_waiting"};
    double *const values[2] = {running_inout, waiting_inout};
    char text[512];
    if (bytes >= sizeof text || bytes == 0 || line[0] == '#') {
        return;
    }
    memcpy(text, line, bytes);
    text[bytes] = '\0';
    for (int i = 0; i < 2; i++) {
        size_t name_bytes = strlen(NAMES[i]);
        if (strncmp(text, NAMES[i], name_bytes) != 0 ||
            (text[name_bytes] != '{' && text[name_bytes] != ' ')) {
            continue;
        }
        const char *labels_end = strrchr(text, '}');
        const char *number = labels_end != NULL ? labels_end + 1 : text + name_bytes;
        double value = strtod(number, NULL);
        *values[i] += isfinite(value) && value > 0 ? value : 0;
    }
}
