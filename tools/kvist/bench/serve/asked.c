#include "tools/kvist/bench/serve/asked.h"

#include "base/memory.h"
#include "tools/kvist/completion.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum {
    TOKEN_LOWEST = 256,  /* below lie special tokens and single bytes */
    TOKEN_RANGE = 16384, /* every vocabulary has more */
    ANSWER_BYTES_MAX = 1 << 24,
    PROBE_TOKENS = 16,
    PROBE_LIMIT_MS = 60000,
    URL_BYTES = 1024,
    CONNECT_LIMIT_MS = 20000,
};

const char *const KV_PROMPTS_NAMES[KV_PROMPTS_COUNT] = {"ids", "text", "chat"};

/* Words that are one token each in every vocabulary of English; a prompt of text is a row of them.
 * 16 of them, a block, have 2^96 rows. */
static const char *const WORDS[] = {"time", "year", "people", "way", "day", "man", "thing", "woman",
    "life", "child", "world", "school", "state", "family", "student", "group", "country", "problem",
    "hand", "part", "place", "case", "week", "company", "system", "program", "question", "work",
    "number", "night", "point", "home", "water", "room", "mother", "area", "money", "story", "fact",
    "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side",
    "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end",
    "member", "law", "car"};

/* ---- fetching ---- */

typedef struct {
    bool ended;
    kv_status_t status;
    long code;
    char *text;
} fetch_t;

static void on_fetched(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    (void)bytes;
    fetch_t *fetch = context;
    *fetch = (fetch_t){true, status, code, kv_duplicate_string(text)};
}

kv_status_t kv_asked_fetch(kv_asked_t *endpoint, const char *path, const char *body,
    char **text_out, long *code_out, kv_error_t *error)
{
    char url[URL_BYTES];
    fetch_t fetch = {0};
    snprintf(url, sizeof url, "%s%s", endpoint->params.url, path);
    const kv_http_call_params_t params = {.url = url,
        .body = body,
        .ca_file = endpoint->params.ca_file,
        .key = endpoint->params.key,
        .limit_ms = PROBE_LIMIT_MS,
        .connect_ms_max = CONNECT_LIMIT_MS,
        .answer_bytes_max = ANSWER_BYTES_MAX,
        .context = &fetch,
        .ended = on_fetched};
    kv_http_call_t *call;
    kv_status_t status = kv_http_start(endpoint->client, &params, &call, error);
    while (status == KV_OK && !fetch.ended) {
        uv_run(endpoint->loop, UV_RUN_ONCE);
    }
    if (status == KV_OK && fetch.status != KV_OK) {
        status = kv_fail(error, fetch.status, "%s: %s", url, fetch.text);
    }
    if (status != KV_OK) {
        free(fetch.text);
        return status;
    }
    *text_out = fetch.text;
    *code_out = fetch.code;
    return KV_OK;
}

/* ---- bodies ---- */

const char *kv_asked_path(const kv_asked_t *endpoint)
{
    return endpoint->prompts == KV_PROMPTS_CHAT ? "/v1/chat/completions" : "/v1/completions";
}

/* Ids behind commas, or words behind blanks; "number" is at most ten digits. */
static size_t write_symbols(
    const kv_asked_t *endpoint, const uint32_t *symbols, size_t count, char *at)
{
    char *begin = at;
    for (size_t i = 0; i < count; i++) {
        if (endpoint->prompts == KV_PROMPTS_IDS) {
            at += snprintf(at, 12, i == 0 ? "%" PRIu32 : ",%" PRIu32, symbols[i]);
        } else {
            at += snprintf(at, 12, i == 0 ? "%s" : " %s", WORDS[symbols[i]]);
        }
    }
    return (size_t)(at - begin);
}

char *kv_asked_body(
    const kv_asked_t *endpoint, const uint32_t *symbols, size_t count, uint32_t answer_tokens)
{
    static const char *const BEFORE[] = {
        "\"prompt\":[", "\"prompt\":\"", "\"messages\":[{\"role\":\"user\",\"content\":\""};
    static const char *const AFTER[] = {"]", "\"", "\"}]"};
    const char *fields = endpoint->params.fields != NULL ? endpoint->params.fields : "{}";
    size_t room = 512 + strlen(endpoint->model_json) + strlen(fields) + count * 11;
    char *body = kv_allocate(room);
    int at =
        snprintf(body, room, "{\"model\":%s,%s", endpoint->model_json, BEFORE[endpoint->prompts]);
    at += (int)write_symbols(endpoint, symbols, count, body + at);
    snprintf(body + at, room - (size_t)at,
        "%s,\"max_tokens\":%" PRIu32 ",\"temperature\":0,\"stream\":true,"
        "\"stream_options\":{\"include_usage\":true}%s%s%s",
        AFTER[endpoint->prompts], answer_tokens,
        endpoint->takes_extras ? ",\"ignore_eos\":true,\"return_token_ids\":true" : "",
        strcmp(fields, "{}") != 0 ? "," : "", fields + 1);
    return body;
}

/* ---- finding out ---- */

static kv_status_t fail_with(
    const char *what, long code, const char *text, kv_status_t status, kv_error_t *error)
{
    char words[KV_ERROR_TEXT_BYTES / 2];
    kv_describe_failure(text, words, sizeof words);
    if (code == 401 || code == 403) {
        return kv_fail(error, KV_REFUSED, "%s: HTTP %ld: %s; --key gives a key", what, code, words);
    }
    return kv_fail(error, status, "%s: HTTP %ld: %s", what, code, words);
}

static kv_status_t find_model(kv_asked_t *endpoint, kv_error_t *error)
{
    char *text;
    long code;
    const char *wanted = endpoint->params.model;
    kv_status_t status = kv_asked_fetch(endpoint, "/v1/models", NULL, &text, &code, error);
    if (status != KV_OK) {
        return status;
    }
    json_t *answer = json_loads(text, 0, NULL);
    const json_t *models = json_object_get(answer, "data"), *model = NULL;
    for (size_t i = 0; i < json_array_size(models) && model == NULL; i++) {
        const json_t *entry = json_array_get(models, i);
        const char *id = json_string_value(json_object_get(entry, "id"));
        model = id != NULL && (wanted == NULL || strcmp(id, wanted) == 0) ? entry : NULL;
    }
    if (code != 200) {
        status = fail_with("/v1/models", code, text, KV_INVALID, error);
    } else if (model == NULL && wanted == NULL) {
        status = kv_fail(error, KV_INVALID, "%s/v1/models names no model; --model names one",
            endpoint->params.url);
    } else {
        json_int_t context = json_integer_value(json_object_get(model, "max_model_len"));
        endpoint->context_tokens = context > 0 && context < INT32_MAX ? (uint32_t)context : 0;
        json_t *name =
            model != NULL ? json_incref(json_object_get(model, "id")) : json_string(wanted);
        endpoint->model = kv_duplicate_string(json_string_value(name));
        endpoint->model_json = json_dumps(name, JSON_ENCODE_ANY);
        json_decref(name);
    }
    json_decref(answer);
    free(text);
    return status;
}

/* One request, asked in this way; KV_INVALID: not in this one. */
static kv_status_t try_way(
    kv_asked_t *endpoint, kv_prompts_t prompts, bool extras, kv_error_t *error)
{
    uint32_t symbols[PROBE_TOKENS];
    endpoint->prompts = prompts;
    endpoint->takes_extras = extras;
    endpoint->symbol_lowest = prompts == KV_PROMPTS_IDS ? TOKEN_LOWEST : 0;
    endpoint->symbol_range = prompts == KV_PROMPTS_IDS ? TOKEN_RANGE : sizeof WORDS / sizeof *WORDS;
    for (uint32_t i = 0; i < PROBE_TOKENS; i++) { /* the highest one among them */
        symbols[i] = endpoint->symbol_lowest + (i + 1) * endpoint->symbol_range / PROBE_TOKENS - 1;
    }
    char *body = kv_asked_body(endpoint, symbols, PROBE_TOKENS, 1), *text;
    long code;
    kv_status_t status =
        kv_asked_fetch(endpoint, kv_asked_path(endpoint), body, &text, &code, error);
    free(body);
    if (status != KV_OK) {
        return status;
    }
    if (code != 200) {
        bool refused = code == 400 || code == 404 || code == 405 || code == 422 || code == 501;
        status =
            fail_with(kv_asked_path(endpoint), code, text, refused ? KV_INVALID : KV_FATAL, error);
    }
    free(text);
    return status;
}

/* With extras first. */
static kv_status_t find_way(kv_asked_t *endpoint, kv_error_t *error)
{
    kv_prompts_t wanted = endpoint->params.prompts;
    kv_status_t status = KV_INVALID;
    for (int i = 0; i < 2 * KV_PROMPTS_COUNT && status == KV_INVALID; i++) {
        kv_prompts_t prompts = (kv_prompts_t)(i / 2);
        if (wanted == KV_PROMPTS_COUNT || wanted == prompts) {
            status = try_way(endpoint, prompts, i % 2 == 0, error);
        }
    }
    return status;
}

kv_status_t kv_asked_open(
    const kv_asked_params_t *params, uv_loop_t *loop, kv_asked_t *endpoint_out, kv_error_t *error)
{
    kv_asked_t endpoint = {.params = *params, .loop = loop};
    kv_status_t status = kv_http_client_create(loop, &endpoint.client, error);
    if (status != KV_OK) {
        return status;
    }
    status = find_model(&endpoint, error);
    if (status == KV_OK) {
        status = find_way(&endpoint, error);
    }
    if (status != KV_OK) {
        kv_asked_close(&endpoint);
        return status;
    }
    *endpoint_out = endpoint;
    return KV_OK;
}

void kv_asked_close(kv_asked_t *endpoint)
{
    kv_http_client_destroy(endpoint->client);
    free(endpoint->model);
    free(endpoint->model_json);
    *endpoint = (kv_asked_t){0};
}
