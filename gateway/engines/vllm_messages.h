/* What is said to a vLLM server and what it answers, as pure functions: bodies out, lines and
 * documents in. The server's door is its OpenAI one; prompts go as token ids and answers come back
 * as token ids (return_token_ids), so nothing is tokenized or detokenized twice.
 *
 * Owns: nothing between calls. Texts out are allocated, free() by the caller; an event that was
 * read is released with kv_vllm_event_clear.
 * Threads: any.
 * Errors: KV_INVALID for what does not have the documented shape, with the field. Fields that are
 * not known are ignored. Bytes that a server sends are bounded before (http_client.h). */
#ifndef KV_GATEWAY_VLLM_MESSAGES_H
#define KV_GATEWAY_VLLM_MESSAGES_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_VLLM_TEXT_BYTES = 256, KV_VLLM_MODEL_BYTES = 256, KV_VLLM_TOPS_MAX = 20 };

/* ---- POST /v1/completions ---- */

typedef struct {
    const char *model;      /* by the server's name for it */
    const char *request_id; /* for its log */
    const uint32_t *tokens; /* the prompt, and what was generated before */
    size_t token_count;
    uint32_t max_tokens;
    float temperature, top_p;
    uint32_t top_k; /* 0: no limit */
    uint64_t seed;
    bool has_seed, ignore_end;
    int32_t logprob_count;  /* -1: none; 0: of the chosen token; else so many likeliest, too */
    const char *cache_salt; /* NULL: none */
    int32_t priority;       /* lower goes first; 0: not said */
    const char *const *stops;
    size_t stop_count;
} kv_vllm_ask_t;

/* A body that asks for a stream with usage at its end. Whatever the model's generation
 * configuration would set, the body says. */
char *kv_vllm_write_ask(const kv_vllm_ask_t *ask);

/* ---- its answer, line by line ---- */

typedef enum {
    KV_VLLM_NOTHING, /* a comment, an empty line, an event without news */
    KV_VLLM_TOKENS,
    KV_VLLM_USAGE,
    KV_VLLM_ERROR,
    KV_VLLM_DONE, /* the stream is whole */
} kv_vllm_event_kind_t;

typedef enum {
    KV_VLLM_GOES_ON,
    KV_VLLM_END_TOKEN,
    KV_VLLM_STOP_STRING,
    KV_VLLM_LENGTH,
    KV_VLLM_GAVE_UP, /* aborted, or ended for a reason that nobody asked for */
} kv_vllm_finish_t;

typedef struct {
    uint32_t token;
    float logprob;
} kv_vllm_top_t;

typedef struct {
    kv_vllm_event_kind_t kind;

    uint32_t *tokens; /* KV_VLLM_TOKENS; perhaps none, with a finish */
    size_t token_count;
    float *logprobs;     /* [token_count], or NULL */
    kv_vllm_top_t *tops; /* [token_count][top_capacity], likeliest first, or NULL */
    uint32_t *top_counts;
    size_t top_capacity;
    kv_vllm_finish_t finish;

    uint32_t prompt_tokens; /* KV_VLLM_USAGE */
    uint32_t cached_tokens;
    bool has_cached; /* the server says (--enable-prompt-tokens-details) */

    unsigned error_code; /* KV_VLLM_ERROR */
    char error_text[KV_VLLM_TEXT_BYTES];
} kv_vllm_event_t;

/* One line without its end. With KV_OK there is an event to clear. */
kv_status_t kv_vllm_read_line(
    const char *line, size_t bytes, kv_vllm_event_t *event_out, kv_error_t *error);
void kv_vllm_event_clear(kv_vllm_event_t *event);

/* ---- the other doors ---- */

/* error.message of an answer that is no success, or as much of the text as fits. */
void kv_vllm_read_error(const char *text, size_t bytes, char text_out[KV_VLLM_TEXT_BYTES]);

/* GET /v1/models: the one of this name, or the only one. KV_MISSING names those that it has. */
kv_status_t kv_vllm_read_models(const char *text, size_t bytes, const char *wanted,
    char name_out[KV_VLLM_MODEL_BYTES], uint32_t *context_tokens_max_out, kv_error_t *error);

/* POST /tokenize, and whether it gives these ids: KV_REFUSED says where they differ. */
char *kv_vllm_write_tokenize(const char *model, const char *text);
kv_status_t kv_vllm_check_tokenized(const char *text, size_t bytes, const uint32_t *expected,
    size_t expected_count, kv_error_t *error);

/* A line of GET /metrics: adds its value where it is one of the two gauges of load. */
void kv_vllm_read_metric(
    const char *line, size_t bytes, double *running_inout, double *waiting_inout);

#endif
