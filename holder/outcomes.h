/* Outcomes: what became of this node's latest requests, and why no more of their prompts was found.
 *
 * A role notes each of its requests when it ends; the admin socket answers from it.
 *
 * Owns: the outcomes and copies of what they point to.
 * Threads: the reactor's.
 * Errors: none.
 * Limits: the latest KV_OUTCOMES_MAX, about 0.7 MiB; of two with one id the later is found. */
#ifndef KV_HOLDER_OUTCOMES_H
#define KV_HOLDER_OUTCOMES_H

#include "base/status.h"
#include "kvstore/kvist.h"
#include "proto/wire.pb-c.h"

#include <stdint.h>

enum {
    KV_OUTCOMES_MAX = 1024,
    KV_OUTCOME_ID_BYTES = 65,
    KV_OUTCOME_NAME_BYTES = 64,
    KV_OUTCOME_SAID_BYTES = 32,
};

typedef struct {
    char id[KV_OUTCOME_ID_BYTES]; /* as the client knows it */
    kv_status_t status;           /* KV_OK: it was answered */
    uint64_t ended_unix_ns;
    kvist_key_t name_space;
    uint32_t prompt_tokens;
    uint32_t cached_tokens[KVIST_TIER_COUNT];
    kvist_match_t match; /* in this node's store */
    /* Why no more was cached in the end: as matched, or what came of asking others. */
    kvist_miss_t miss;
    /* Elsewhere, cheaper, failed: who holds more, and how many blocks; "": nobody is known. */
    char holder[KV_OUTCOME_NAME_BYTES];
    uint32_t holder_blocks;
    /* Of a decode node: who computed the prompt, and what reason it gave. */
    char prefilled_by[KV_OUTCOME_NAME_BYTES], said[KV_OUTCOME_SAID_BYTES];
    /* Of the first block that was not found in the store; NULL: none, or it is not whole. */
    uint32_t *tokens;
    uint32_t token_count;
} kv_outcome_t;

/* Zero-initialise to begin. */
typedef struct {
    kv_outcome_t *items; /* [KV_OUTCOMES_MAX] once there is one */
    uint32_t next, count;
} kv_outcomes_t;

/* Takes it. prompt: [prompt_tokens], of which the block where the match ended is copied. */
void kv_outcomes_add(kv_outcomes_t *outcomes, const kv_outcome_t *outcome, const uint32_t *prompt,
    uint32_t block_tokens);
void kv_outcomes_clear(kv_outcomes_t *outcomes);

/* The latest of that id; NULL: there is none (any more). */
const kv_outcome_t *kv_outcomes_find(const kv_outcomes_t *outcomes, const char *id);

/* The id of the request that a store knows by this number; NULL: it is too long ago, or was another
 * node's. */
const char *kv_outcomes_id(const kv_outcomes_t *outcomes, uint64_t request);

/* What a store knows a request by: the same at every node. */
uint64_t kv_outcome_request(const char *id);

/* "evicted:host", "new", ... */
const char *kv_outcome_miss_text(kvist_miss_t miss, const kvist_miss_detail_t *detail);

/* Of such a text; KVIST_MISS_FAILED: it is none. */
kvist_miss_t kv_outcome_miss_named(const char *text);

/* The same for the client: how far its prompt is like another's, token by token, is not told. */
const char *kv_outcome_miss_told(kvist_miss_t miss, const kvist_miss_detail_t *detail);

#endif
