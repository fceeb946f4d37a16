/* The seam of an API. A dialect turns calls into neutral requests, and answers and errors into its
 * API's JSON; nothing else knows that JSON. gateway.c holds the list of route tables.
 *
 * Pure functions all of them but commit; every text is allocated, free() by the caller.
 * Threads: parse and commit run on a parse thread, the others on the reactor's; nothing is shared.
 * Errors: parse, settle and commit fill in a kv_api_error_t; the others do not fail. */
#ifndef KV_GATEWAY_DIALECT_H
#define KV_GATEWAY_DIALECT_H

#include "gateway/api.h"
#include "proto/wire.pb-c.h"

typedef struct kv_gateway kv_gateway_t;
typedef struct kv_exchange kv_exchange_t;

/* ---- what an answer is, as renderers see it ---- */

typedef enum {
    KV_FINISH_NONE, /* it goes on */
    KV_FINISH_STOP, /* the model's end token */
    KV_FINISH_STOP_STRING,
    KV_FINISH_LENGTH,
    KV_FINISH_TOOL_CALLS,
} kv_finish_t;

enum { KV_TIER_DEVICE, KV_TIER_HOST, KV_TIER_DISK, KV_TIER_REMOTE, KV_TIERS };

/* What became of a breakpoint. */
typedef struct {
    uint32_t token_count;    /* kept up to here: whole blocks */
    uint32_t created_tokens; /* of those, not stored before */
    uint64_t until_unix_ms;  /* 0: not promised */
    const char *why_not;     /* or NULL */
} kv_grant_t;

typedef struct {
    uint32_t prompt_tokens; /* of all prompts; a prompt with several answers counts once */
    uint32_t cached_tokens[KV_TIERS];
    uint32_t generated_tokens;                 /* of all choices */
    kv_grant_t grants[KV_API_BREAKPOINTS_MAX]; /* as the request's breakpoints */
    const Kvist__Wire__Usage *node;            /* of the first choice's node, or NULL */
} kv_usage_t;

/* Prompt tokens that were not recomputed, in all tiers. */
static inline uint32_t kv_usage_cached_tokens(const kv_usage_t *usage)
{
    uint32_t count = 0;
    for (int i = 0; i < KV_TIERS; i++) {
        count += usage->cached_tokens[i];
    }
    return count;
}

typedef struct {
    const char *text; /* the token's own, not terminated; it may be no UTF-8 */
    size_t bytes;
    uint32_t token;
    float logprob;
} kv_token_chance_t;

typedef struct {
    kv_token_chance_t chosen;
    const kv_token_chance_t *tops; /* best first */
    size_t top_count;
    size_t text_at; /* so many characters of the choice's text begin before it */
} kv_token_logprob_t;

/* A call of a tool; in events too it comes whole. */
typedef struct {
    uint32_t index; /* among the choice's calls */
    const char *id; /* unique; without the prefix that an API gives it */
    const char *name;
    const char *arguments; /* a JSON object, as the model wrote it */
} kv_tool_call_t;

/* Of a whole answer: all of a choice. Of an event: what is new in it. */
typedef struct {
    uint32_t index;
    bool first;       /* an event: the choice's first */
    const char *text; /* not terminated */
    size_t text_bytes;
    const kv_tool_call_t *tool_calls;
    size_t tool_call_count;
    const kv_token_logprob_t *logprobs; /* NULL where none were asked for */
    size_t logprob_count;
    const uint32_t *tokens; /* [told_count], where the request returns them */
    size_t told_count;
    kv_finish_t finish;      /* in events it comes alone, last */
    const char *stop_string; /* of KV_FINISH_STOP_STRING */
    uint32_t token_count;    /* generated so far */
    /* The dialect's own between the events of a choice; zero at first. */
    uint32_t *scratch; /* KV_DIALECT_SCRATCH words */
} kv_choice_t;

enum { KV_DIALECT_SCRATCH = 4 };

typedef struct {
    const kv_api_request_t *request;
    unsigned variant; /* of the route */
    const char *id, *model;
    uint64_t created_unix_s;
    kv_usage_t usage; /* in events before the end: of the prompt, as it is known by then */
    const kv_choice_t *choices; /* whole answers, and the end of a stream */
    size_t choice_count;
} kv_answer_t;

/* ---- the dialect ---- */

typedef struct {
    const char *name;
    const char *request_id_header;

    /* false: *error says why, and there is nothing to clear. */
    bool (*parse)(const kv_call_t *call, const kv_api_limits_t *limits,
        kv_api_request_t *request_out, kv_api_error_t *error);
    void (*release)(void *own); /* NULL: a request has nothing of its own */

    /* Once an answer that is no stream is complete, before whole. false: *error is answered
     * instead. settle: NULL, or whether it may be told as it is. commit: of requests that say
     * commits; what the dialect keeps of it, on a disk say. */
    bool (*settle)(const kv_answer_t *answer, kv_api_error_t *error);
    bool (*commit)(kv_api_request_t *request, kv_api_error_t *error);
    char *(*whole)(const kv_answer_t *answer, size_t *bytes_out);

    /* A stream: begin once (NULL: nothing), events for each choice, end once. */
    char *(*begin)(const kv_answer_t *answer, size_t *bytes_out);
    char *(*event)(const kv_answer_t *answer, const kv_choice_t *choice, size_t *bytes_out);
    char *(*end)(const kv_answer_t *answer, size_t *bytes_out);

    /* id: of the request, or NULL; in_stream: an event of a stream that has begun. */
    char *(*error)(const kv_api_error_t *error, const char *id, bool in_stream, size_t *bytes_out);
} kv_dialect_t;

/* ---- routes ---- */

typedef struct {
    const char *path;            /* the whole path; or its beginning, ending in "*" */
    const char *methods;         /* as Allow names them: "POST", "GET, HEAD" */
    const char *name;            /* in metrics and logs */
    const kv_dialect_t *dialect; /* of its requests, and of all its errors */
    /* Answers at once, on the reactor's thread (kv_gateway_reply, kv_gateway_reply_error); NULL:
     * the call is a request. */
    void (*serve)(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call);
    /* NULL, or whether a call of this path is meant for this route: where two APIs share a path. */
    bool (*wants)(const kv_call_t *call);
    unsigned variant;
    const char *id_prefix; /* of requests */
    bool is_open;          /* asks for no API key */
} kv_route_t;

typedef struct {
    const kv_route_t *routes;
    size_t count;
} kv_route_table_t;

#endif
