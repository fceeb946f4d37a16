#include "gateway/anthropic/anthropic.h"

#include "gateway/gateway_internal.h"
#include "gateway/json.h"

#include <stdlib.h>
#include <string.h>

const kv_dialect_t kv_anthropic = {.name = "anthropic",
    .request_id_header = "request-id",
    .parse = kv_anthropic_parse,
    .whole = kv_anthropic_whole,
    .begin = kv_anthropic_begin,
    .event = kv_anthropic_event,
    .end = kv_anthropic_end,
    .error = kv_anthropic_error};

static void serve_models(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call);
static void serve_model(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call);
static void serve_nothing(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call);

/* /v1/models is also OpenAI's. */
static bool has_version(const kv_call_t *call)
{
    return kv_call_header(call, "anthropic-version") != NULL;
}

static const kv_route_t ROUTES[] = {
    {.path = "/v1/messages",
        .methods = "POST",
        .name = "messages",
        .dialect = &kv_anthropic,
        .variant = KV_ANTHROPIC_MESSAGES,
        .id_prefix = "msg_"},
    {.path = "/v1/messages/count_tokens",
        .methods = "POST",
        .name = "count_tokens",
        .dialect = &kv_anthropic,
        .variant = KV_ANTHROPIC_COUNT_TOKENS,
        .id_prefix = "req_"},
    {.path = "/v1/messages/*",
        .methods = "GET, HEAD, POST, DELETE",
        .name = "messages_other",
        .dialect = &kv_anthropic,
        .serve = serve_nothing},
    {.path = "/v1/models",
        .methods = "GET, HEAD",
        .name = "models",
        .dialect = &kv_anthropic,
        .serve = serve_models,
        .wants = has_version},
    {.path = "/v1/models/*",
        .methods = "GET, HEAD",
        .name = "model",
        .dialect = &kv_anthropic,
        .serve = serve_model,
        .wants = has_version},
};
enum { OTHER_ROUTE = 2, MODELS_ROUTE, MODEL_ROUTE };

const kv_route_table_t kv_anthropic_routes = {ROUTES, sizeof ROUTES / sizeof ROUTES[0]};

static kv_anthropic_model_t model_of(const kv_gateway_t *gateway)
{
    return (kv_anthropic_model_t){.name = gateway->limits.model,
        .created_unix_s = gateway->started_unix_s,
        .context_tokens_max = gateway->limits.context_tokens_max};
}

/* Whether the page holds the only model: it is neither before nor behind itself. */
static bool is_on_page(const kv_call_t *call)
{
    bool filtered = false, wanted = false;
    for (size_t i = 0; i < call->query.count; i++) {
        const kv_field_t *item = &call->query.items[i];
        if (strcmp(item->name, "lifecycle") == 0 || strcmp(item->name, "lifecycle[]") == 0) {
            filtered = true;
            wanted |= strcmp(item->value, "active") == 0;
        }
    }
    return kv_call_query(call, "after_id") == NULL && kv_call_query(call, "before_id") == NULL &&
           (wanted || !filtered);
}

static void serve_models(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    const char *limit = kv_call_query(call, "limit");
    char *end = NULL;
    long count = limit != NULL ? strtol(limit, &end, 10) : 20;
    bool bounded =
        count >= 1 && count <= 1000 && (limit == NULL || (*limit != '\0' && *end == '\0'));
    kv_api_error_t error;
    if (!kv_anthropic_check_version(call, &error) ||
        (!bounded && !KV_API_REFUSE(&error, "limit", "limit: must be 1 to 1000"))) {
        kv_gateway_reply_error(exchange, &ROUTES[MODELS_ROUTE], NULL, &error);
        return;
    }
    kv_anthropic_model_t model = model_of(gateway);
    size_t bytes;
    char *body = kv_anthropic_models(&model, is_on_page(call), &bytes);
    kv_gateway_reply(exchange, "models", 200, "application/json", body, bytes);
}

static void serve_model(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    kv_anthropic_model_t model = model_of(gateway);
    kv_api_error_t error;
    if (!kv_anthropic_check_version(call, &error) ||
        (strcmp(call->rest, model.name) != 0 &&
            !kv_api_fail(&error, 404, "model_id", NULL,
                "model_id: \"%.100s\" is not served here; \"%.100s\" is", call->rest,
                model.name))) {
        kv_gateway_reply_error(exchange, &ROUTES[MODEL_ROUTE], NULL, &error);
        return;
    }
    size_t bytes;
    char *body = kv_anthropic_model(&model, &bytes);
    kv_gateway_reply(exchange, "model", 200, "application/json", body, bytes);
}

/* What else the API has below /v1/messages. */
static void serve_nothing(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    (void)gateway;
    kv_api_error_t error;
    kv_api_fail(&error, 404, "", NULL,
        "%.200s: no such path: this server has /v1/messages and /v1/messages/count_tokens",
        call->path);
    kv_gateway_reply_error(exchange, &ROUTES[OTHER_ROUTE], NULL, &error);
}
