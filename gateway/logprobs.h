/* The logarithms of probabilities of an answer's tokens, as its nodes told them.
 *
 * Owns: what it keeps; the texts of tokens are the tokenizer's.
 * Threads: one at a time.
 * Errors: alternatives that name no token are left out. */
#ifndef KV_GATEWAY_LOGPROBS_H
#define KV_GATEWAY_LOGPROBS_H

#include "engine/tokenizer.h"
#include "gateway/dialect.h"

typedef struct kv_logprobs kv_logprobs_t;

kv_logprobs_t *kv_logprobs_create(const kv_tokenizer_t *tokenizer, uint32_t tops_max);
void kv_logprobs_destroy(kv_logprobs_t *logprobs);

/* The answer's next token. tops: or NULL. */
void kv_logprobs_add(
    kv_logprobs_t *logprobs, uint32_t token, float logprob, const Kvist__Wire__TopLogprobs *tops);

size_t kv_logprobs_count(const kv_logprobs_t *logprobs);

/* Those from `first` on, free() by the caller; valid until the next add. NULL where there are none.
 */
kv_token_logprob_t *kv_logprobs_view(const kv_logprobs_t *logprobs, size_t first);

#endif
