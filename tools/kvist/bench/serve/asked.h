/* The endpoint that is measured: what it is, how it takes prompts, and requests' bodies for it.
 *
 * Prompts are sent as token ids to /v1/completions where the endpoint takes them (then what two
 * prompts share is known to the token), else as words to /v1/completions, else as one user's
 * message to /v1/chat/completions. Which of them it takes is found out with one short request each.
 *
 * Owns: the model's name, the loop's client.
 * Borrows: the texts of params.
 * Threads: one.
 * Errors: KV_REFUSED without a key or with a wrong one; KV_PEER_LOST; KV_INVALID with the
 * endpoint's words where it takes no way of asking. */
#ifndef KV_TOOLS_SERVE_ASKED_H
#define KV_TOOLS_SERVE_ASKED_H

#include "base/status.h"
#include "node/http_client.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum { KV_PROMPTS_IDS, KV_PROMPTS_TEXT, KV_PROMPTS_CHAT, KV_PROMPTS_COUNT } kv_prompts_t;

extern const char *const KV_PROMPTS_NAMES[KV_PROMPTS_COUNT];

typedef struct {
    const char *url;                   /* "http://127.0.0.1:8080", without "/v1" */
    const char *key, *ca_file, *model; /* NULL: none; the system's; the first that is served */
    const char *fields;                /* JSON of an object, for every request; NULL: none */
    kv_prompts_t prompts;              /* KV_PROMPTS_COUNT: what it takes */
    uint64_t limit_ms;                 /* of a request */
} kv_asked_params_t;

typedef struct {
    kv_asked_params_t params;
    uv_loop_t *loop;
    kv_http_client_t *client;
    char *model_json; /* its name, as a JSON text */
    char *model;
    kv_prompts_t prompts;
    uint32_t context_tokens; /* 0: it does not say */
    bool takes_extras;       /* "ignore_eos": answers have the length that is asked for */
    uint32_t symbol_lowest, symbol_range; /* of prompts' symbols */
} kv_asked_t;

kv_status_t kv_asked_open(
    const kv_asked_params_t *params, uv_loop_t *loop, kv_asked_t *endpoint_out, kv_error_t *error);
void kv_asked_close(kv_asked_t *endpoint);

/* What GET (body: NULL) or POST answers; text_out: release with free(). Runs the loop until then.
 */
kv_status_t kv_asked_fetch(kv_asked_t *endpoint, const char *path, const char *body,
    char **text_out, long *code_out, kv_error_t *error);

/* Where completions are asked for; its body, which is the caller's. */
const char *kv_asked_path(const kv_asked_t *endpoint);
char *kv_asked_body(
    const kv_asked_t *endpoint, const uint32_t *symbols, size_t count, uint32_t answer_tokens);

#endif
