#include "holder/message.h"

kv_status_t kv_message_check_tokens(
    const uint32_t *tokens, size_t token_count, uint32_t vocabulary_count, kv_error_t *error)
{
    for (size_t i = 0; vocabulary_count > 0 && i < token_count; i++) {
        if (tokens[i] >= vocabulary_count) {
            return kv_fail(error, KV_INVALID, "tokens[%zu] is %u, the vocabulary has %u", i,
                tokens[i], vocabulary_count);
        }
    }
    return KV_OK;
}
