/* Whether a vLLM server is there, serves the gateway's model, and how much it has to do.
 *
 *   down:  /health --> /v1/models --> /tokenize --> up
 *             ^ any failure: again after a pause that doubles
 *   up:    /health --> /metrics, each second; a failed /health: down
 *
 * A server that answers but is not the gateway's model is never up: its token ids would be read
 * with another vocabulary. */
#include "gateway/engines/vllm_internal.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { UP_PERIOD_MS = 1000 };

static const uint64_t PAUSE_MAX_NS = 4 * (uint64_t)KV_NS_PER_S;

/* Words, numbers, code, spaces, other scripts: where tokenizers of one family part, they do so in
 * how they split these. The model's special tokens follow. */
static const char PROBE[] =
    "Hello, world!  The year 2024 had 366 days; it's 1,234.5 km.\n\n"
    "def area(r):\n\treturn 3.14159 * r**2  # r\xc2\xb2\n"
    "na\xc3\xafve caf\xc3\xa9 \xd0\x9c\xd0\xb8\xd1\x80 \xe4\xbd\xa0\xe5\xa5\xbd "
    "\xd9\x85\xd8\xb1\xd8\xad\xd8\xa8\xd8\xa7 {\"key\": [1, 2]} don't DON'T";

kv_status_t kv_vllm_prepare_probe(kv_vllm_engine_t *engine, kv_error_t *error)
{
    const kv_tokenizer_t *tokenizer = engine->params.tokenizer;
    const char *end_text;
    size_t end_bytes;
    kv_status_t status = kv_tokenizer_piece(
        tokenizer, kv_tokenizer_end_token(tokenizer), true, &end_text, &end_bytes);
    if (status != KV_OK) {
        return kv_fail(error, status, "model.path: the model's end token is not in its vocabulary");
    }
    engine->probe_text = kv_allocate(sizeof PROBE + end_bytes);
    memcpy(engine->probe_text, PROBE, sizeof PROBE - 1);
    memcpy(engine->probe_text + sizeof PROBE - 1, end_text, end_bytes);
    return kv_tokenizer_encode(tokenizer, engine->probe_text, strlen(engine->probe_text),
        (kv_tokenizer_mode_t){.parse_special = true}, &engine->probe_tokens, &engine->probe_count,
        error);
}

/* ---- up and down ---- */

static void come_up(kv_vllm_node_t *node)
{
    kv_vllm_engine_t *engine = node->engine;
    node->up = true;
    node->reason[0] = '\0';
    node->pause_ns = KV_VLLM_PAUSE_MIN_NS;
    node->running = node->waiting = 0;
    node->base.id = ++engine->id_count;
    node->step = KV_VLLM_ASK_LOAD;
    kv_log_info("gateway", "vllm node %s serves %s with a context of %u tokens", node->address,
        node->model, node->context_tokens_max);
    engine->base.callbacks.up(engine->base.callbacks.context, &node->base);
}

/* It is asked again from the start, after a pause. */
static void fail_node(kv_vllm_node_t *node, kv_status_t status, const char *reason)
{
    kv_vllm_engine_t *engine = node->engine;
    bool was_up = node->up;
    node->up = false;
    node->step = KV_VLLM_ASK_HEALTH;
    node->next_ns = kv_clock_now_ns() + node->pause_ns;
    node->pause_ns = 2 * node->pause_ns > PAUSE_MAX_NS ? PAUSE_MAX_NS : 2 * node->pause_ns;
    if (!was_up && strcmp(node->reason, reason) != 0) {
        kv_log_warn("gateway", "vllm node %s is not used: %s", node->address, reason);
    }
    snprintf(node->reason, sizeof node->reason, "%s", reason);
    if (was_up) {
        kv_vllm_drop_calls(node);
        engine->base.callbacks.down(
            engine->base.callbacks.context, &node->base, status, node->reason);
    }
}

static void fail_answer(kv_vllm_node_t *node, const char *door, kv_status_t status, long code,
    const char *text, size_t bytes)
{
    char reason[KV_VLLM_REASON_BYTES], said[KV_VLLM_TEXT_BYTES];
    if (status != KV_OK) {
        snprintf(reason, sizeof reason, "GET %s: %s", door, text);
        fail_node(node, KV_PEER_LOST, reason);
        return;
    }
    kv_vllm_read_error(text, bytes, said);
    snprintf(reason, sizeof reason, "%s answers HTTP %ld: %s%s", door, code, said,
        code == 401 || code == 403 ? " (a server with --api-key is not supported)" : "");
    fail_node(node, KV_REFUSED, reason);
}

/* ---- answers ---- */

static void take_step(kv_vllm_node_t *node, kv_vllm_step_t step, uint64_t delay_ms)
{
    node->step = step;
    node->next_ns = kv_clock_now_ns() + delay_ms * KV_NS_PER_MS;
}

static void on_health(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    kv_vllm_node_t *node = context;
    node->probe = NULL;
    if (status != KV_OK || code != 200) {
        fail_answer(node, "/health", status, code, text, bytes);
    } else {
        take_step(node, node->up ? KV_VLLM_ASK_LOAD : KV_VLLM_ASK_MODELS, 0);
    }
}

/* All nodes of a gateway have the model by one name: they are taken for the same. */
static bool is_same_model(const kv_vllm_node_t *node, kv_error_t *error)
{
    const kv_vllm_engine_t *engine = node->engine;
    for (size_t i = 0; i < engine->node_count; i++) {
        const kv_vllm_node_t *other = &engine->nodes[i];
        if (other != node && other->up && strcmp(other->model, node->model) != 0) {
            kv_fail(error, KV_REFUSED,
                "it serves %.100s, but %s serves %.100s: a gateway's nodes serve one model by one "
                "name (vLLM's --served-model-name)",
                node->model, other->address, other->model);
            return false;
        }
    }
    return true;
}

static void on_models(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    kv_vllm_node_t *node = context;
    kv_error_t error;
    node->probe = NULL;
    if (status != KV_OK || code != 200) {
        fail_answer(node, "/v1/models", status, code, text, bytes);
    } else if (kv_vllm_read_models(text, bytes, node->engine->params.model, node->model,
                   &node->context_tokens_max, &error) != KV_OK ||
               !is_same_model(node, &error)) {
        fail_node(node, KV_REFUSED, error.text);
    } else {
        take_step(node, KV_VLLM_ASK_TOKENIZE, 0);
    }
}

static void on_tokenized(
    void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    kv_vllm_node_t *node = context;
    const kv_vllm_engine_t *engine = node->engine;
    kv_error_t error;
    node->probe = NULL;
    if (status != KV_OK || code != 200) {
        fail_answer(node, "/tokenize", status, code, text, bytes);
    } else if (kv_vllm_check_tokenized(
                   text, bytes, engine->probe_tokens, engine->probe_count, &error) != KV_OK ||
               !is_same_model(node, &error)) {
        fail_node(node, KV_REFUSED, error.text);
    } else {
        come_up(node);
    }
}

static void on_metric_line(void *context, const char *text, size_t bytes)
{
    kv_vllm_node_t *node = context;
    kv_vllm_read_metric(text, bytes, &node->running_sum, &node->waiting_sum);
}

/* A server that tells no metrics is used all the same: the gateway counts what it sent there. */
static void on_load(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    kv_vllm_node_t *node = context;
    (void)text;
    (void)bytes;
    node->probe = NULL;
    if (status == KV_OK && code == 200) {
        node->running = fmin(node->running_sum, 1e6);
        node->waiting = fmin(node->waiting_sum, 1e6);
    }
    take_step(node, KV_VLLM_ASK_HEALTH, UP_PERIOD_MS);
}

/* ---- asking ---- */

static void ask(kv_vllm_node_t *node, const char *door, kv_http_call_params_t params)
{
    char url[KV_VLLM_URL_BYTES];
    kv_error_t error;
    snprintf(url, sizeof url, "http://%s%s", node->address, door);
    params.url = url;
    params.context = node;
    params.limit_ms = node->engine->params.options->gateway.vllm_limit_ns / KV_NS_PER_MS;
    params.answer_bytes_max = KV_VLLM_LINE_BYTES_MAX;
    if (kv_http_start(node->engine->http, &params, &node->probe, &error) != KV_OK) {
        node->probe = NULL;
        fail_node(node, KV_NO_SPACE, error.text);
    }
}

static void ask_tokenize(kv_vllm_node_t *node)
{
    char *body = kv_vllm_write_tokenize(node->model, node->engine->probe_text);
    ask(node, "/tokenize", (kv_http_call_params_t){.body = body, .ended = on_tokenized});
    free(body);
}

void kv_vllm_check_node(kv_vllm_node_t *node, uint64_t now_ns)
{
    if (node->probe != NULL || now_ns < node->next_ns) {
        return;
    }
    switch (node->step) {
    case KV_VLLM_ASK_HEALTH:
        ask(node, "/health", (kv_http_call_params_t){.ended = on_health});
        break;
    case KV_VLLM_ASK_MODELS:
        ask(node, "/v1/models", (kv_http_call_params_t){.ended = on_models});
        break;
    case KV_VLLM_ASK_TOKENIZE:
        ask_tokenize(node);
        break;
    case KV_VLLM_ASK_LOAD:
        node->running_sum = node->waiting_sum = 0;
        ask(node, "/metrics", (kv_http_call_params_t){.line = on_metric_line, .ended = on_load});
        break;
    }
}

void kv_vllm_suspect(kv_vllm_node_t *node)
{
    if (node->up && node->probe == NULL) {
        take_step(node, KV_VLLM_ASK_HEALTH, 0);
    }
}
