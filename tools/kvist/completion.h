/* One completion from the endpoint, streamed: what a client sees and what the cache did.
 *
 * Owns: an answer's text and arrival times, until kv_answer_clear.
 * Threads: any number at once.
 * Errors: what the endpoint answered, in its words; KV_CANCELLED when the listener ended it (the
 * answer then holds what had arrived). */
#ifndef KV_TOOLS_COMPLETION_H
#define KV_TOOLS_COMPLETION_H

#include "base/status.h"
#include "node/http_client.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Tiers in the order in which they are shown. */
typedef enum {
    KV_SEEN_DEVICE,
    KV_SEEN_HOST,
    KV_SEEN_DISK,
    KV_SEEN_REMOTE,
    KV_SEEN_COUNT
} kv_seen_tier_t;

extern const char *const KV_SEEN_NAMES[KV_SEEN_COUNT];

/* Whom to ask, and as whom. */
typedef struct {
    const char *url; /* "http://127.0.0.1:8080", without a path */
    kv_http_credentials_t credentials;
} kv_endpoint_t;

typedef struct {
    char *text;
    size_t text_bytes;
    uint64_t *arrivals_ns; /* when each piece of text came (monotonic clock) */
    size_t arrival_count;
    uint64_t begun_ns;           /* when the request was sent */
    uint64_t first_ns, total_ns; /* from then: the first piece of text, the end */
    bool has_usage;              /* the rest came; */
    bool has_cached;             /* cached_tokens among it: not every server tells */
    uint64_t prompt_tokens, answer_tokens, cached_tokens;
    uint64_t seen_tokens[KV_SEEN_COUNT];   /* cached_tokens by the tier they came from */
    uint64_t loaded_bytes, streamed_bytes; /* read from a tier or node; sent prefill to decode */
    double load_ms, compute_ms;
    double node_first_ms; /* at the decode node: from the request's arrival to the first token */
    bool decode_kv_reused;
    char miss[64], prefilled_by[64], finish[32];
} kv_answer_t;

/* One event of a stream, parsed: what stands behind "data:". Its texts live until it is cleared. */
typedef struct {
    bool is_done;                      /* "[DONE]", and nothing else */
    const char *text;                  /* the first choice's; NULL: none */
    const char *finish;                /* the same */
    const json_t *token_ids, *usage;   /* NULL: none */
    char failure[KV_ERROR_TEXT_BYTES]; /* of an error event; "": it is none */
    json_t *document;
} kv_stream_event_t;

void kv_stream_event_parse(const char *data, kv_stream_event_t *event_out);
void kv_stream_event_clear(kv_stream_event_t *event);

/* The figures that an event's usage has. */
void kv_answer_take_usage(kv_answer_t *answer, const json_t *usage);

/* The message of an OpenAI-style error body, or the body itself. */
void kv_describe_failure(const char *body, char *text_out, size_t text_bytes);

/* Hears each piece of text as it comes; false ends the request. */
typedef bool (*kv_listener_t)(void *context, const char *text);

/* path: "/v1/chat/completions" or "/v1/completions"; request: without "stream", which is added
 * (borrowed, changed). answer_out: also set, as far as it came, with KV_CANCELLED and KV_PEER_LOST;
 * clear it in any case. */
kv_status_t kv_complete(const kv_endpoint_t *endpoint, const char *path, json_t *request,
    uint64_t limit_ms, kv_listener_t listener, void *context, kv_answer_t *answer_out,
    kv_error_t *error);
void kv_answer_clear(kv_answer_t *answer);

/* The endpoint's first model id; release with free(). KV_REFUSED: the key is missing or wrong. */
kv_status_t kv_first_model(const kv_endpoint_t *endpoint, char **model_out, kv_error_t *error);

/* "5,984 of 6,012 cached (device 5,984)" of an answer. */
char *kv_describe_cache(const kv_answer_t *answer, char *text_out, size_t text_bytes);

#endif
