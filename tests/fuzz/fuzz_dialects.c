/* What clients ask, in every API that the gateway speaks: a call of a route, from its JSON to a
 * neutral request, to tokens, to answers of every form. First byte: the route; then what headers
 * and a query come along (each a byte that says which, a length, the text; 0 ends them), what the
 * path has in the place of its "*", and the body.
 *
 * A refusal is a sentence with a code of its own; what is accepted keeps to every bound of api.h;
 * what is rendered is JSON, or events, in UTF-8. */
#include "fuzz.h"

#include "../engine/byte_model.h"
#include "gateway/anthropic/anthropic.h"
#include "gateway/dialect.h"
#include "gateway/gemini/gemini.h"
#include "gateway/openai/openai.h"

#include <jansson.h>
#include <math.h>

enum { ROUTES_MAX = 32, FIELDS_MAX = 8, FIELD_BYTES_MAX = 96, TEXT_BYTES_MAX = 256 };

static const kv_route_table_t *const TABLES[] = {
    &kv_openai_routes, &kv_anthropic_routes, &kv_gemini_routes};

static const char *const HEADERS[] = {"x-kvist-agent", "x-kvist-template", "x-kvist-tool-mode",
    "x-kvist-step", "x-kvist-release", "x-kvist-session", "x-kvist-priority", "x-kvist-cache-mode",
    "x-kvist-cache-ttl", "x-kvist-tier", "authorization", "x-api-key", "anthropic-version",
    "anthropic-beta", "x-goog-api-key", "content-type"};
static const char *const QUERIES[] = {"key", "alt", "pageSize", "pageToken", "updateMask", "limit"};
enum {
    HEADER_KINDS = sizeof HEADERS / sizeof *HEADERS,
    QUERY_KINDS = sizeof QUERIES / sizeof *QUERIES
};

static const kv_route_t *routes[ROUTES_MAX]; /* of requests: the others need a gateway */
static size_t route_count;
static kv_tokenizer_t *tokenizer;
static kv_api_limits_t limits = {
    .model = "tiny", .context_tokens_max = 100000, .default_max_tokens = 16};

static void set_up(void)
{
    kv_error_t error;
    const char *path = byte_model_write(&(byte_model_t){.chat_template = "<|im_start|> + role"});
    FUZZ_CHECK(kv_tokenizer_open(path, &tokenizer, &error) == KV_OK);
    limits.vocabulary_count = kv_tokenizer_vocabulary_count(tokenizer);
    for (size_t i = 0; i < sizeof TABLES / sizeof *TABLES; i++) {
        for (size_t k = 0; k < TABLES[i]->count; k++) {
            if (TABLES[i]->routes[k].serve == NULL) {
                FUZZ_CHECK(route_count < ROUTES_MAX);
                routes[route_count++] = &TABLES[i]->routes[k];
            }
        }
    }
}

/* ---- the call ---- */

typedef struct {
    kv_field_t headers[FIELDS_MAX], query[FIELDS_MAX];
    char texts[2 * FIELDS_MAX + 1][FIELD_BYTES_MAX];
    char method[16], path[2 * FIELD_BYTES_MAX];
    size_t text_count;
    uint8_t *body;
    kv_call_t call;
} told_t;

/* As libmicrohttpd gives them: terminated. */
static const char *take_text(told_t *told, fuzz_input_t *input)
{
    size_t count;
    uint8_t *bytes = fuzz_take(input, fuzz_u8(input) % FIELD_BYTES_MAX, &count);
    char *text = told->texts[told->text_count++];
    memcpy(text, bytes, count);
    text[count] = '\0';
    free(bytes);
    return text;
}

static void take_call(told_t *told, const kv_route_t *route, fuzz_input_t *input)
{
    uint8_t which;
    kv_call_t *call = &told->call;
    while ((which = fuzz_u8(input)) != 0 && call->headers.count < FIELDS_MAX &&
           call->query.count < FIELDS_MAX) {
        size_t kind = (which - 1u) % (HEADER_KINDS + QUERY_KINDS);
        if (kind < HEADER_KINDS) {
            told->headers[call->headers.count++] =
                (kv_field_t){HEADERS[kind], take_text(told, input)};
        } else {
            told->query[call->query.count++] =
                (kv_field_t){QUERIES[kind - HEADER_KINDS], take_text(told, input)};
        }
    }
    call->headers.items = told->headers;
    call->query.items = told->query;
    snprintf(told->method, sizeof told->method, "%.*s", (int)strcspn(route->methods, ","),
        route->methods);
    call->method = told->method;
    call->variant = route->variant;
    snprintf(told->path, sizeof told->path, "%s", route->path);
    size_t bytes = strlen(told->path);
    call->rest = told->path + bytes;
    if (told->path[bytes - 1] == '*') {
        snprintf(told->path + bytes - 1, FIELD_BYTES_MAX, "%s", take_text(told, input));
        call->rest = told->path + bytes - 1;
    }
    call->path = told->path;
    told->body = fuzz_take(input, input->count, &call->body_bytes);
    call->body = (const char *)told->body;
}

/* ---- what must hold ---- */

static void check_refusal(const kv_dialect_t *dialect, const kv_api_error_t *error, unsigned most)
{
    FUZZ_CHECK(error->http_code >= 400 && error->http_code <= most);
    FUZZ_CHECK(error->message[0] != '\0' && kv_utf8_valid(error->message, strlen(error->message)));
    for (int in_stream = 0; in_stream < 2; in_stream++) {
        size_t bytes;
        char *text = dialect->error(error, "id-1", in_stream, &bytes);
        FUZZ_CHECK(text != NULL && bytes > 0 && kv_utf8_valid(text, bytes));
        json_t *document = in_stream ? NULL : json_loadb(text, bytes, 0, NULL);
        FUZZ_CHECK(in_stream || document != NULL);
        json_decref(document);
        free(text);
    }
}

static void check_request(const kv_api_request_t *request)
{
    FUZZ_CHECK(request->temperature >= 0 && request->temperature <= 2);
    FUZZ_CHECK(request->top_p > 0 && request->top_p <= 1);
    FUZZ_CHECK(request->top_k <= KV_API_TOP_K_MAX && request->stop_count <= KV_API_STOPS_MAX);
    FUZZ_CHECK(request->choice_count <= KV_API_CHOICES_MAX);
    FUZZ_CHECK(request->top_logprobs <= KV_API_TOP_LOGPROBS_MAX);
    FUZZ_CHECK(request->breakpoint_count <= KV_API_BREAKPOINTS_MAX);
    FUZZ_CHECK(request->salt_bytes <= KV_API_SALT_BYTES_MAX && request->cache_mode <= 3);
    for (size_t i = 0; i < request->stop_count; i++) {
        size_t bytes = strlen(request->stops[i]);
        FUZZ_CHECK(bytes > 0 && kv_utf8_valid(request->stops[i], bytes));
    }
    for (size_t i = 0; i < request->message_count; i++) {
        const kv_chat_message_t *message = &request->messages[i];
        FUZZ_CHECK(message->role != NULL);
        FUZZ_CHECK(
            message->content_bytes == 0 || kv_utf8_valid(message->content, message->content_bytes));
    }
    FUZZ_CHECK(request->message_count <= KV_CHAT_MESSAGES_MAX);
    FUZZ_CHECK((request->kind == KV_API_CHAT) == (request->message_count > 0));
}

static void check_tokens(const kv_api_request_t *request)
{
    FUZZ_CHECK(request->prompt_count >= 1 && request->max_tokens >= 1);
    for (size_t i = 0; i < request->prompt_count; i++) {
        const kv_api_prompt_t *prompt = &request->prompts[i];
        FUZZ_CHECK(prompt->token_count >= 1);
        FUZZ_CHECK(prompt->token_count + request->max_tokens <= limits.context_tokens_max);
        for (size_t k = 0; k < prompt->token_count; k++) {
            FUZZ_CHECK(prompt->tokens[k] < limits.vocabulary_count);
        }
    }
    for (size_t i = 0; i < request->breakpoint_count; i++) {
        FUZZ_CHECK(request->breakpoints[i].token_count <= request->prompts[0].token_count);
    }
}

static void check_event(char *text, size_t bytes)
{
    if (text != NULL) {
        FUZZ_CHECK(kv_utf8_valid(text, bytes));
        free(text);
    }
}

/* ---- answers ---- */

/* Of bytes of the body, made UTF-8 as a detokenizer's is. */
static size_t make_text(const kv_call_t *call, char *text_out)
{
    size_t bytes = call->body_bytes < TEXT_BYTES_MAX ? call->body_bytes : TEXT_BYTES_MAX;
    memcpy(text_out, call->body, bytes);
    for (size_t i = 0, length; i < bytes; i += length) {
        length = kv_utf8_length(text_out + i, bytes - i);
        if (length == 0) {
            text_out[i] = '?';
            length = 1;
        }
    }
    return bytes;
}

static void render(const kv_dialect_t *dialect, const kv_route_t *route, const kv_call_t *call,
    const kv_api_request_t *request)
{
    char text[TEXT_BYTES_MAX];
    uint32_t scratch[KV_DIALECT_SCRATCH] = {0};
    kv_token_chance_t top = {.text = "\xc3", .bytes = 1, .token = 3, .logprob = -INFINITY};
    kv_token_logprob_t logprob = {.chosen = top, .tops = &top, .top_count = 1};
    kv_tool_call_t tool_call = {.id = "call-1", .name = "look", .arguments = "{\"x\":1}"};
    kv_choice_t choice = {.first = true,
        .text = text,
        .text_bytes = make_text(call, text),
        .tool_calls = &tool_call,
        .tool_call_count = request->has_tools,
        .logprobs = request->has_logprobs ? &logprob : NULL,
        .logprob_count = request->has_logprobs,
        .token_count = 3,
        .scratch = scratch};
    kv_answer_t answer = {.request = request,
        .variant = route->variant,
        .id = "id-1",
        .model = limits.model,
        .usage = {.prompt_tokens = 40, .cached_tokens = {16}, .generated_tokens = 3},
        .choices = &choice,
        .choice_count = 1};
    size_t bytes = 0;
    check_event(dialect->begin != NULL ? dialect->begin(&answer, &bytes) : NULL, bytes);
    check_event(dialect->event(&answer, &choice, &bytes), bytes);
    kv_choice_t end = {.finish = request->has_tools ? KV_FINISH_TOOL_CALLS : KV_FINISH_STOP_STRING,
        .stop_string = request->stop_count > 0 ? request->stops[0] : NULL,
        .text = "",
        .token_count = 3,
        .scratch = scratch};
    check_event(dialect->event(&answer, &end, &bytes), bytes);
    choice.finish = end.finish;
    choice.stop_string = end.stop_string;
    check_event(dialect->end(&answer, &bytes), bytes);
    kv_api_error_t error = {0};
    if (dialect->settle != NULL && !dialect->settle(&answer, &error)) {
        check_refusal(dialect, &error, 503); /* nothing is kept here: no promise was given */
        return;
    }
    char *whole = dialect->whole(&answer, &bytes);
    json_t *document = json_loadb(whole, bytes, 0, NULL);
    FUZZ_CHECK(document != NULL);
    json_decref(document);
    free(whole);
}

static void ask(fuzz_input_t *input)
{
    const kv_route_t *route = routes[fuzz_u8(input) % route_count];
    const kv_dialect_t *dialect = route->dialect;
    told_t told = {0};
    kv_api_request_t request = {0};
    kv_api_error_t error = {0};
    take_call(&told, route, input);
    if (!dialect->parse(&told.call, &limits, &request, &error)) {
        check_refusal(dialect, &error, 499);
        free(told.body);
        return;
    }
    check_request(&request);
    if (!kv_api_take_headers(&told.call, &request, &error) ||
        !kv_api_tokenize(&request, tokenizer, &limits, &error)) {
        check_refusal(dialect, &error, 499);
    } else {
        check_tokens(&request);
        render(dialect, route, &told.call, &request);
    }
    if (dialect->release != NULL) {
        dialect->release(request.own);
    }
    kv_api_request_clear(&request);
    free(told.body);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (tokenizer == NULL) {
        set_up();
    }
    const kv_contents_params_t contents = {
        .clock = kv_clock_real(), .count_max = 8, .bytes_max = 1 << 16};
    FUZZ_CHECK(kv_contents_open(&contents, &limits.contents, NULL) == KV_OK);
    ask(&(fuzz_input_t){bytes, count});
    kv_contents_close(limits.contents);
    return 0;
}
