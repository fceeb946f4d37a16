/* What every holder checks in a peer's message before anything is made of it.
 *
 * Threads: any; free of state.
 * Errors: KV_INVALID with the field and its bound. */
#ifndef KV_HOLDER_MESSAGE_H
#define KV_HOLDER_MESSAGE_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

enum { KV_MESSAGE_ID_BYTES_MAX = 127 };

/* Each of them is in the vocabulary; vocabulary_count 0: it is not known, any will do. */
kv_status_t kv_message_check_tokens(
    const uint32_t *tokens, size_t token_count, uint32_t vocabulary_count, kv_error_t *error);

#endif
