/* OpenAI's requests: a body's JSON to a checked request, or the error that names what is wrong.
 *
 * Pure: nothing is kept between calls. Until it is tokenized a request owns its JSON document, and
 * the prompt's texts point into it.
 * Threads: any.
 * Errors: a kv_api_error_t in OpenAI's terms. Fields that are not known are ignored; known ones
 * that are not supported are refused, unless they ask for what happens anyway (n: 1). */
#ifndef KV_GATEWAY_API_H
#define KV_GATEWAY_API_H

#include "engine/chat_template.h"
#include "engine/detokenizer.h"
#include "engine/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_API_STOPS_MAX = 4, KV_API_SALT_BYTES_MAX = 256, KV_API_TOP_K_MAX = 1 << 20 };

typedef enum { KV_API_CHAT, KV_API_COMPLETION } kv_api_kind_t;

/* What the gateway serves. */
typedef struct {
    const char *model; /* the name that requests give */
    uint32_t vocabulary_count;
    uint32_t context_tokens_max;
    uint32_t default_max_tokens;
} kv_api_limits_t;

typedef struct {
    kv_api_kind_t kind;
    kv_chat_message_t *messages; /* chat */
    size_t message_count;
    const char *prompt; /* completion: a text, or NULL where ids were given */
    size_t prompt_bytes;
    uint32_t *tokens; /* given, or made by kv_api_tokenize; owned */
    size_t token_count;
    uint32_t max_tokens; /* 0: not said; never after kv_api_tokenize */
    float temperature, top_p;
    uint32_t top_k; /* 0: no limit */
    uint64_t seed;
    bool has_seed;
    char stops[KV_API_STOPS_MAX][KV_STOP_BYTES_MAX + 1];
    size_t stop_count;
    bool stream, include_usage, ignore_eos;
    uint32_t cache_mode; /* Kvist__Wire__CacheMode */
    char salt[KV_API_SALT_BYTES_MAX];
    size_t salt_bytes;

    /* Until kv_api_tokenize. */
    struct json_t *document;
    char **joined; /* contents that were given in parts */
    size_t joined_count;
} kv_api_request_t;

typedef struct {
    unsigned http_code;
    const char *type; /* "invalid_request_error", ... */
    const char *code; /* or NULL */
    char param[96];   /* "" for none */
    char message[400];
} kv_api_error_t;

/* Fills *error and answers false. */
bool kv_api_fail(kv_api_error_t *error, unsigned http_code, const char *param, const char *code,
    const char *format, ...) __attribute__((format(printf, 5, 6)));

/* false: *error says why, and there is nothing to clear. */
bool kv_api_parse(kv_api_kind_t kind, const char *body, size_t bytes, const kv_api_limits_t *limits,
    kv_api_request_t *request_out, kv_api_error_t *error);

/* Makes the prompt's tokens, settles max_tokens against the context, and lets go of the texts. */
bool kv_api_tokenize(kv_api_request_t *request, const kv_tokenizer_t *tokenizer,
    const kv_api_limits_t *limits, kv_api_error_t *error);

void kv_api_request_clear(kv_api_request_t *request);

#endif
