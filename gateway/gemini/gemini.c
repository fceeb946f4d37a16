#include "gateway/gemini/gemini.h"

#include "gateway/gateway_internal.h"
#include "gateway/gemini/gemini_internal.h"

#include <string.h>

#define DIALECT(its_error)                                                                         \
    {                                                                                              \
        .name = "gemini", .request_id_header = "x-request-id", .parse = kv_gemini_parse,           \
        .release = kv_gemini_release, .settle = kv_gemini_settle, .commit = kv_gemini_commit,      \
        .whole = kv_gemini_whole, .begin = kv_gemini_begin, .event = kv_gemini_event,              \
        .end = kv_gemini_end, .error = its_error                                                   \
    }

const kv_dialect_t kv_gemini = DIALECT(kv_gemini_error);

/* Its errors are an array's elements. */
static const kv_dialect_t GEMINI_ARRAY = DIALECT(kv_gemini_array_error);

/* ---- what is answered at once ---- */

static void serve_models(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    (void)call;
    size_t bytes;
    char *body = kv_gemini_models(&gateway->limits, &bytes);
    kv_gateway_reply(exchange, "models", 200, "application/json", body, bytes);
}

static void serve_model(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    kv_api_error_t error;
    size_t bytes;
    bool known = kv_gemini_check_model(call->rest, &gateway->limits, &error);
    char *body = known ? kv_gemini_model(&gateway->limits, &bytes)
                       : kv_gemini_error(&error, NULL, false, &bytes);
    kv_gateway_reply(
        exchange, "models", known ? 200 : error.http_code, "application/json", body, bytes);
}

static void serve_contents(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    size_t bytes;
    char *body;
    unsigned code = kv_gemini_serve_contents(call, gateway->limits.contents, &body, &bytes);
    kv_gateway_reply(exchange, "cached_contents", code, "application/json", body, bytes);
}

static void serve_nothing(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    (void)gateway;
    kv_api_error_t error;
    size_t bytes;
    kv_api_fail(&error, 404, "", "not_found", "%.200s: no such path", call->path);
    char *body = kv_gemini_error(&error, NULL, false, &bytes);
    kv_gateway_reply(exchange, "other", 404, "application/json", body, bytes);
}

/* ---- routes ---- */

static bool wants_array(const kv_call_t *call)
{
    static const char METHOD[] = ":streamGenerateContent";
    const char *form = kv_call_query(call, "alt");
    size_t bytes = strlen(call->path);
    return bytes >= sizeof METHOD - 1 &&
           strcmp(call->path + bytes - (sizeof METHOD - 1), METHOD) == 0 &&
           (form == NULL || strcmp(form, "sse") != 0);
}

/* /v1/models is OpenAI's too: who shows a key as Gemini's clients do, or is one of them, means this
 * one. */
static bool wants_gemini(const kv_call_t *call)
{
    return kv_call_header(call, "x-goog-api-key") != NULL ||
           kv_call_header(call, "x-goog-api-client") != NULL || kv_call_query(call, "key") != NULL;
}

#define REQUEST(where, allowed, called, what, when, kind)                                          \
    {                                                                                              \
        .path = where, .methods = allowed, .name = called, .dialect = what, .wants = when,         \
        .variant = kind, .id_prefix = "gen-"                                                       \
    }

#define ANSWER(where, allowed, called, with, when)                                                 \
    {                                                                                              \
        .path = where, .methods = allowed, .name = called, .dialect = &kv_gemini, .serve = with,   \
        .wants = when                                                                              \
    }

/* of_models: who wants GETs of models. */
#define VERSION(version, of_models)                                                                \
    REQUEST(version "models/*", "POST", "generate_content", &GEMINI_ARRAY, wants_array,            \
        KV_GEMINI_GENERATE),                                                                       \
        REQUEST(                                                                                   \
            version "models/*", "POST", "generate_content", &kv_gemini, NULL, KV_GEMINI_GENERATE), \
        ANSWER(version "models", "GET, HEAD", "models", serve_models, of_models),                  \
        ANSWER(version "models/*", "GET, HEAD", "models", serve_model, of_models),                 \
        REQUEST(version "cachedContents", "POST", "cached_contents", &kv_gemini, NULL,             \
            KV_GEMINI_CREATE),                                                                     \
        ANSWER(version "cachedContents", "GET, HEAD", "cached_contents", serve_contents, NULL),    \
        REQUEST(version "cachedContents/*", "PATCH", "cached_contents", &kv_gemini, NULL,          \
            KV_GEMINI_PATCH),                                                                      \
        REQUEST(version "cachedContents/*", "DELETE", "cached_contents", &kv_gemini, NULL,         \
            KV_GEMINI_DELETE),                                                                     \
        ANSWER(version "cachedContents/*", "GET, HEAD", "cached_contents", serve_contents, NULL)

static const kv_route_t ROUTES[] = {VERSION("/v1beta/", NULL), VERSION("/v1/", wants_gemini),
    ANSWER("/v1beta/*", "GET, HEAD, POST, PUT, PATCH, DELETE", "other", serve_nothing, NULL)};

const kv_route_table_t kv_gemini_routes = {ROUTES, sizeof ROUTES / sizeof ROUTES[0]};
