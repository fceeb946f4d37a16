/* Why a prompt was not cached further, in words: what a node answered, what it means, what to do.
 *
 * Borrows: the answer.
 * Threads: any. */
#ifndef KV_TOOLS_WHY_TEXT_H
#define KV_TOOLS_WHY_TEXT_H

#include "engine/tokenizer.h"
#include "proto/admin.pb-c.h"

#include <jansson.h>

enum { KV_WHY_REASON_BYTES = 96 };

/* The reason with what belongs to it: "evicted:host", "diverged@327", "namespace:salt". */
char *kv_why_reason(const Kvist__Admin__Why *why, char reason_out[KV_WHY_REASON_BYTES]);

/* tokenizer: for the text of tokens; NULL: their ids alone. */
void kv_why_print(const char *node, const Kvist__Admin__Why *why, const kv_tokenizer_t *tokenizer);
json_t *kv_why_pack(
    const char *node, const Kvist__Admin__Why *why, const kv_tokenizer_t *tokenizer);

#endif
