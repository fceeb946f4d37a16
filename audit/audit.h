/* Two prompts that ought to share a prefix: where they part, what kind of difference that is, what
 * it cost.
 *
 * A finding is a difference after which both say the same again: had it stood behind that, or not
 * at all, what is the same would have been a prefix of both, and a hit. A prompt that goes on where
 * the other ended, a fork, an edited last message and a new context are none.
 *
 *   the place       what is judged there
 *   the head        everything: a template is the same for all who use it
 *   a middle turn   everything, if the answers after it stayed what they were
 *   an answer       ids, JSON, blanks: what a client that sends it back may change unasked
 *   the last turn   times, ids, orders; other differences are what was asked
 *
 * Threads: any; pure. Errors: none.
 * Limits: prompts are compared as far as prompt.h keeps them. */
#ifndef KV_AUDIT_AUDIT_H
#define KV_AUDIT_AUDIT_H

#include "audit/prompt.h"

typedef enum {
    KV_AUDIT_NONE,
    KV_AUDIT_TIMESTAMP,
    KV_AUDIT_UUID,
    KV_AUDIT_COUNTER,
    KV_AUDIT_JSON_KEYS,
    KV_AUDIT_TOOLS,
    KV_AUDIT_WHITESPACE,
    KV_AUDIT_SUMMARY,
    KV_AUDIT_HISTORY, /* turns left out at the beginning */
    KV_AUDIT_TEMPLATE,
    KV_AUDIT_OTHER,
    KV_AUDIT_KINDS,
} kv_audit_kind_t;

/* How the two are known to belong together. */
typedef enum {
    KV_AUDIT_SAME_SESSION,
    KV_AUDIT_SAME_TEMPLATE, /* and not the same session: only the head is expected to be shared */
    KV_AUDIT_LIKENESS,      /* by nothing but what they say */
} kv_audit_relation_t;

/* What stands between two places of a prompt. */
typedef struct {
    uint32_t from, end;
} kv_audit_span_t;

typedef struct {
    kv_audit_kind_t kind;
    uint32_t byte;  /* of both: the first that differs */
    uint32_t token; /* of the later one; without tokens the byte */
    uint32_t cost;  /* tokens of the later one that the earlier one had too; without tokens bytes */
    kv_audit_span_t was, is; /* what differs, in whole words */
    uint32_t place;          /* what stands before it, hashed: the same place in other prompts */
} kv_audit_finding_t;

enum { KV_AUDIT_COST_TOKENS_MIN = 64, KV_AUDIT_COST_BYTES_MIN = 256 };

/* false: there is no finding, or it costs less than the minimum. */
bool kv_audit_compare(const kv_audit_prompt_t *was, const kv_audit_prompt_t *is,
    kv_audit_relation_t relation, kv_audit_finding_t *finding_out);

/* "timestamp", as metrics and answers name it. */
const char *kv_audit_kind_name(kv_audit_kind_t kind);

/* What to do about it: a sentence or two. */
const char *kv_audit_advice(kv_audit_kind_t kind);

#endif
