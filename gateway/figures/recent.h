/* The latest requests, each with what became of its prompt (gap.h) and where its time went. Of
 * prompts and answers it keeps nothing but numbers.
 *
 * Owns: its ring. Threads: one at a time. Errors: none.
 * Limits: KV_RECENT_MAX requests; the oldest leaves. Texts are cut at their fields' ends. */
#ifndef KV_GATEWAY_RECENT_H
#define KV_GATEWAY_RECENT_H

#include "gateway/figures/gap.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_RECENT_MAX = 2048, KV_RECENT_TEXT_BYTES = 64 };

/* Where a request's time went, in this order and without gaps: arrival to its last token. */
typedef enum {
    KV_SPAN_QUEUE,    /* parsing, and waiting for a place at a node */
    KV_SPAN_MATCH,    /* looking for its prefix */
    KV_SPAN_LOAD,     /* bringing what was found into device memory */
    KV_SPAN_COMPUTE,  /* computing the rest of the prompt */
    KV_SPAN_TRANSFER, /* the rest of the time to the first token: moving KV, waiting at nodes */
    KV_SPAN_DECODE,   /* first token to the last */
    KV_SPAN_COUNT,
} kv_span_t;

typedef struct {
    uint64_t number; /* from 1, in the order in which requests ended */
    char id[KV_RECENT_TEXT_BYTES], tenant[KV_RECENT_TEXT_BYTES], agent[KV_RECENT_TEXT_BYTES];
    char node[KV_RECENT_TEXT_BYTES], prefilled_by[KV_RECENT_TEXT_BYTES];
    char said[KV_RECENT_TEXT_BYTES]; /* why no more was found, as the node says it */
    const char *route;               /* a literal */
    uint64_t arrived_unix_ms, ended_unix_ms;
    unsigned code; /* as HTTP; 200: complete */
    uint32_t generated_tokens;
    kv_partition_t parts;
    uint64_t spans_ns[KV_SPAN_COUNT];
    uint64_t tpot_ns; /* time per token after the first; 0: fewer than two */
} kv_recent_t;

/* What nodes said of the time to the first token, which the gateway measured. */
typedef struct {
    uint64_t queue_ns, first_token_ns; /* arrival to its turn; arrival to the first token */
    uint64_t match_ns, load_ns, compute_ns;
    uint64_t decode_ns;
} kv_recent_times_t;

/* Fills the spans in, so that those up to the first token add up to it, whatever nodes said. */
void kv_recent_span(const kv_recent_times_t *times, uint64_t spans_out[KV_SPAN_COUNT]);

typedef struct kv_recents kv_recents_t;

kv_recents_t *kv_recents_create(void);
void kv_recents_destroy(kv_recents_t *recents); /* NULL is fine */

/* Its number is set here. */
void kv_recents_add(kv_recents_t *recents, const kv_recent_t *request);

/* Calls visit from the newest to the oldest, while it answers true. */
void kv_recents_visit(const kv_recents_t *recents,
    bool (*visit)(void *context, const kv_recent_t *request), void *context);

/* "queue", "match", ... */
const char *kv_span_name(kv_span_t span);

#endif
