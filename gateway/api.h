/* The neutral request: what every API's body becomes. Dialects fill it in (dialect.h); nothing
 * behind them knows which API was called.
 *
 * Pure: nothing is kept between calls. Until it is tokenized a request owns its JSON document and
 * the texts it was given to keep; the prompts' texts point into them.
 * Threads: any.
 * Errors: a kv_api_error_t, which the dialect words in its API's shape. */
#ifndef KV_GATEWAY_API_H
#define KV_GATEWAY_API_H

#include "engine/chat_template.h"
#include "engine/detokenizer.h"
#include "engine/tokenizer.h"
#include "gateway/http/call.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_API_STOPS_MAX = 8,
    KV_API_SALT_BYTES_MAX = 256,
    KV_API_TOP_K_MAX = 1 << 20,
    KV_API_CHOICES_MAX = 128, /* of all prompts together */
    KV_API_TOP_LOGPROBS_MAX = 20,
    KV_API_BREAKPOINTS_MAX = 5,
    KV_API_LABEL_BYTES_MAX = 64,
    KV_API_SESSION_BYTES_MAX = 128,
};

typedef enum { KV_API_CHAT, KV_API_COMPLETION } kv_api_kind_t;

/* As kvist_priority_t: who comes first, in queues and under pressure. */
typedef enum { KV_API_INTERACTIVE, KV_API_BATCH, KV_API_BACKGROUND } kv_api_priority_t;

/* What the gateway serves. */
typedef struct {
    const char *model; /* the name that requests give */
    uint32_t vocabulary_count;
    uint32_t context_tokens_max;
    uint32_t default_max_tokens;
    uint32_t block_tokens;        /* what is stored is whole blocks */
    struct kv_contents *contents; /* Gemini's cachedContents */
    const char *promises_nothing; /* why its nodes keep nothing on request; NULL: they do */
} kv_api_limits_t;

typedef struct {
    const char *text; /* or NULL where ids were given */
    size_t text_bytes;
    uint32_t *tokens; /* given, or made by kv_api_tokenize; owned */
    size_t token_count;
} kv_api_prompt_t;

/* A place in a chat's prompt up to which the client wants it kept; of a completion it is the end of
 * its (first) prompt. */
typedef struct {
    /* After so many messages; 0: after the tools and the system message, however those came. */
    uint32_t message_count;
    /* And so many bytes of the next message's content; 0: none of it. */
    size_t content_bytes;
    bool whole_prompt;    /* instead: after all of it, what asks for the answer included */
    uint32_t token_count; /* filled in by kv_api_tokenize */
    uint64_t ttl_ns;
    bool limit; /* the ttl is an expiry, not a pin */
} kv_api_breakpoint_t;

/* What tells requests apart in figures; "" where a header was not there. */
typedef struct {
    char agent[KV_API_LABEL_BYTES_MAX + 1];
    char template_name[KV_API_LABEL_BYTES_MAX + 1];
    char tool_mode[KV_API_LABEL_BYTES_MAX + 1];
    char step[KV_API_LABEL_BYTES_MAX + 1];
    char release[KV_API_LABEL_BYTES_MAX + 1];
} kv_api_labels_t;

typedef struct {
    kv_api_kind_t kind;
    kv_chat_message_t *messages; /* chat, until it is tokenized */
    size_t message_count;
    const char **tools; /* chat, until it is tokenized: each a function as one line of JSON */
    size_t tool_count;
    bool has_tools;           /* answers may hold calls of them */
    bool single_tool_call;    /* an answer ends after its first one */
    kv_api_prompt_t *prompts; /* a chat has one, once it is tokenized */
    size_t prompt_count;
    uint32_t choice_count; /* answers to each prompt; 0 is 1 */

    uint32_t max_tokens; /* 0: not said; never after kv_api_tokenize */
    float temperature, top_p;
    uint32_t top_k; /* 0: no limit */
    uint64_t seed;
    bool has_seed;
    char stops[KV_API_STOPS_MAX][KV_STOP_BYTES_MAX + 1];
    size_t stop_count;
    bool has_logprobs;
    uint32_t top_logprobs; /* with it: so many alternatives at each place */
    bool stream, include_usage, ignore_eos;
    bool returns_tokens; /* choices say which tokens they are made of */
    bool count_only;     /* answered once it is tokenized: the usage has the prompts' tokens */
    bool commits;        /* the dialect has something to do before it is answered */
    bool commit_only;    /* and nothing is computed before that */
    bool continue_last;  /* a chat's last message is an answer that was begun, and goes on */
    bool cut_max_tokens; /* beyond the context: less, instead of an error */
    bool max_tokens_cut; /* it was; filled in by kv_api_tokenize */
    const char *stream_content_type; /* a literal; NULL: text/event-stream */

    uint32_t cache_mode; /* Kvist__Wire__CacheMode */
    bool has_cache_mode; /* the client said so */
    kv_api_priority_t priority;
    char salt[KV_API_SALT_BYTES_MAX];
    size_t salt_bytes;
    /* Requests that share it belong together: they go where the others went. "": none. */
    char session[KV_API_SESSION_BYTES_MAX + 1];
    kv_api_labels_t labels;
    kv_api_breakpoint_t breakpoints[KV_API_BREAKPOINTS_MAX];
    size_t breakpoint_count;
    /* Said by commit: every node is to let go of what it has up to the breakpoints by then, whoever
     * reads it; 0: none is told. */
    uint64_t limit_unix_ms;

    void *own; /* the dialect's; kv_dialect_t.release */

    /* Until kv_api_tokenize. */
    struct json_t *document;
    void **kept;
    size_t kept_count;
} kv_api_request_t;

typedef struct {
    unsigned http_code;
    const char *code;       /* or NULL */
    uint32_t retry_after_s; /* of 429 and 503; 0: a second */
    char param[96];         /* "" for none */
    char message[400];
} kv_api_error_t;

/* Fills *error and answers false. */
bool kv_api_fail(kv_api_error_t *error, unsigned http_code, const char *param, const char *code,
    const char *format, ...) __attribute__((format(printf, 5, 6)));

#define KV_API_REFUSE(error, param, ...) kv_api_fail(error, 400, param, NULL, __VA_ARGS__)

/* Zeroed memory that lives as long as the request's texts. */
void *kv_api_keep(kv_api_request_t *request, size_t bytes);

/* What Kvist's own headers say (x-kvist-agent, -template, -tool-mode, -step, -release, -session,
 * -priority, -cache-mode), whichever API was called; to be called after the dialect's parse. A
 * header goes before a field of the body. */
bool kv_api_take_headers(const kv_call_t *call, kv_api_request_t *request, kv_api_error_t *error);

/* The class of this name, or false. */
bool kv_api_priority(const char *name, kv_api_priority_t *priority_out);

/* Labels end up in metrics and logs: printable ASCII without quotes and backslashes. */
bool kv_api_is_label(const char *value, size_t bytes_max);

/* The mode's number, or false. */
bool kv_api_cache_mode(const char *name, uint32_t *mode_out);

/* Makes the prompts' tokens, settles max_tokens against the context, places the breakpoints, and
 * lets go of the texts. */
bool kv_api_tokenize(kv_api_request_t *request, const kv_tokenizer_t *tokenizer,
    const kv_api_limits_t *limits, kv_api_error_t *error);

/* Whether what is stored is of use to it; whether what it computes is kept, for others. */
bool kv_api_reads(const kv_api_request_t *request);
bool kv_api_writes(const kv_api_request_t *request);

/* All but own. */
void kv_api_request_clear(kv_api_request_t *request);

#endif
