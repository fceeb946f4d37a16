/* What the two halves of the engine of vLLM servers share: engine_vllm.c (generations) and
 * vllm_health.c (whether a server is there, serves the model, and how much it has to do). */
#ifndef KV_GATEWAY_VLLM_INTERNAL_H
#define KV_GATEWAY_VLLM_INTERNAL_H

#include "gateway/engines/engine.h"
#include "gateway/engines/vllm_messages.h"
#include "node/http_client.h"

enum {
    KV_VLLM_URL_BYTES = 160,
    KV_VLLM_LINE_BYTES_MAX = 1 << 20,
    KV_VLLM_REASON_BYTES = 512,
    KV_VLLM_PAUSE_MIN_NS = 250 * 1000000, /* between attempts to reach a server that is down */
};

typedef struct kv_vllm_engine kv_vllm_engine_t;
typedef struct kv_vllm_call kv_vllm_call_t;

/* What a server is asked next. It is up once it answered the first three. */
typedef enum {
    KV_VLLM_ASK_HEALTH,
    KV_VLLM_ASK_MODELS,
    KV_VLLM_ASK_TOKENIZE,
    KV_VLLM_ASK_LOAD,
} kv_vllm_step_t;

typedef struct {
    kv_node_t base;
    kv_vllm_engine_t *engine;
    char address[KV_VLLM_URL_BYTES / 2];
    kv_vllm_step_t step;
    kv_http_call_t *probe; /* NULL: none is under way */
    uint64_t next_ns;      /* of the next probe */
    uint64_t pause_ns;     /* the next one, while it is not up */
    bool up;
    bool warned;                     /* that it does not tell cached tokens */
    char model[KV_VLLM_MODEL_BYTES]; /* by the server's name */
    double running, waiting;         /* requests, as its metrics last said */
    double running_sum, waiting_sum; /* of the answer that is being read */
    uint32_t context_tokens_max;
    char reason[KV_VLLM_REASON_BYTES]; /* why it is not up; "": it is, or was never asked */
} kv_vllm_node_t;

struct kv_vllm_engine {
    kv_nodes_t base;
    kv_nodes_params_t params;
    kv_http_client_t *http;
    kv_timer_t *timer;
    kv_vllm_node_t *nodes; /* [node_count] */
    size_t node_count;
    uint64_t id_count;
    kv_vllm_call_t *calls;
    char *probe_text; /* terminated: both tokenizers are asked for its ids */
    uint32_t *probe_tokens;
    size_t probe_count;
    char why_none[KV_VLLM_REASON_BYTES];
};

/* ---- vllm_health.c ---- */

/* The text that both tokenizers must see alike, and its ids here. */
kv_status_t kv_vllm_prepare_probe(kv_vllm_engine_t *engine, kv_error_t *error);

/* At each tick. */
void kv_vllm_check_node(kv_vllm_node_t *node, uint64_t now_ns);

/* A generation there broke off: it is asked at once. */
void kv_vllm_suspect(kv_vllm_node_t *node);

/* ---- engine_vllm.c ---- */

/* Lets go of what the node has, without a word; down() says it. */
void kv_vllm_drop_calls(kv_vllm_node_t *node);

#endif
