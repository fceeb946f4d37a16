#include "gateway/openai/openai.h"

#include "gateway/gateway_internal.h"

#include <string.h>

const kv_dialect_t kv_openai = {.name = "openai",
    .request_id_header = "x-request-id",
    .parse = kv_openai_parse,
    .whole = kv_openai_whole,
    .event = kv_openai_event,
    .end = kv_openai_end,
    .error = kv_openai_error};

static void serve_models(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    (void)call;
    size_t bytes;
    char *body = kv_openai_models(
        gateway->limits.model, gateway->started_unix_s, gateway->limits.context_tokens_max, &bytes);
    kv_gateway_reply(exchange, "models", 200, "application/json", body, bytes);
}

static void serve_model(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    if (strcmp(call->rest, gateway->limits.model) != 0) {
        static const kv_route_t ROUTE = {.name = "models", .dialect = &kv_openai};
        kv_api_error_t error;
        kv_api_fail(&error, 404, "model", "model_not_found",
            "model: \"%.100s\" is not served here; \"%.100s\" is", call->rest,
            gateway->limits.model);
        kv_gateway_reply_error(exchange, &ROUTE, NULL, &error);
        return;
    }
    size_t bytes;
    char *body = kv_openai_model(
        gateway->limits.model, gateway->started_unix_s, gateway->limits.context_tokens_max, &bytes);
    kv_gateway_reply(exchange, "models", 200, "application/json", body, bytes);
}

static const kv_route_t ROUTES[] = {
    {.path = "/v1/chat/completions",
        .methods = "POST",
        .name = "chat",
        .dialect = &kv_openai,
        .variant = KV_API_CHAT,
        .id_prefix = "chatcmpl-"},
    {.path = "/v1/completions",
        .methods = "POST",
        .name = "completions",
        .dialect = &kv_openai,
        .variant = KV_API_COMPLETION,
        .id_prefix = "cmpl-"},
    {.path = "/v1/models",
        .methods = "GET, HEAD",
        .name = "models",
        .dialect = &kv_openai,
        .serve = serve_models},
    {.path = "/v1/models/*",
        .methods = "GET, HEAD",
        .name = "models",
        .dialect = &kv_openai,
        .serve = serve_model},
};

const kv_route_table_t kv_openai_routes = {ROUTES, sizeof ROUTES / sizeof ROUTES[0]};
