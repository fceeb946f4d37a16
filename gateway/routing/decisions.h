/* Decisions: which node each request went to, and the numbers from which that was decided, for
 * `kvist explain`.
 *
 * Owns: the latest ones.
 * Threads: the reactor's.
 * Errors: none. Limits: KV_DECISIONS_MAX decisions, the oldest goes first; of each
 * KV_DECISION_CANDIDATES_MAX nodes, the one that was chosen among them. */
#ifndef KV_GATEWAY_DECISIONS_H
#define KV_GATEWAY_DECISIONS_H

#include "gateway/routing/router.h"
#include "node/admin.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_DECISIONS_MAX = 1024, KV_DECISION_CANDIDATES_MAX = 16, KV_DECISION_NAME_BYTES = 64 };

typedef struct kv_decisions kv_decisions_t;

/* What is decided about: strings are copied. */
typedef struct {
    const char *request_id; /* as the client was told */
    uint32_t choice_index;  /* of the request's answers */
    uint32_t attempt;       /* from 1 */
    uint64_t unix_ns;
    uint32_t generated_tokens; /* it goes on after so many */
    const kv_router_request_t *request;
    const kv_router_node_t *nodes; /* [count], as the names and the scores */
    const char *const *names;
    const kv_router_score_t *scores;
    size_t count;
    kv_router_choice_t choice;
} kv_decision_params_t;

kv_decisions_t *kv_decisions_create(void);
void kv_decisions_destroy(kv_decisions_t *decisions);

void kv_decisions_add(kv_decisions_t *decisions, const kv_decision_params_t *params);

/* Answers with all that is kept of the request, the oldest first; KV_MISSING: nothing is. */
void kv_decisions_explain(
    const kv_decisions_t *decisions, const char *request_id, kv_admin_call_t *call);

/* The same in a sentence, for people: "decode-1 holds 960 of 1,024 tokens, ...". */
enum { KV_DECISION_WORDS_BYTES = 320 };
void kv_decision_words(const kv_decision_params_t *params, char words_out[KV_DECISION_WORDS_BYTES]);

#endif
