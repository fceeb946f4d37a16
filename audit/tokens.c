#include "audit/tokens.h"

#include <string.h>

enum { ROLE_TOKENS_MAX = 8, ROLE_BYTES_MAX = 64, ASK_TOKENS = 4 };

/* What follows a start marker, as far as it takes to know whose turn begins. */
static size_t text_after(const kv_tokenizer_t *tokenizer, const uint32_t *tokens, size_t count,
    char text_out[ROLE_BYTES_MAX])
{
    size_t bytes = 0, piece_bytes;
    const char *piece;
    for (size_t i = 0; i < count && i < ROLE_TOKENS_MAX; i++) {
        if (kv_tokenizer_piece(tokenizer, tokens[i], false, &piece, &piece_bytes) != KV_OK ||
            bytes + piece_bytes > ROLE_BYTES_MAX) {
            break;
        }
        memcpy(text_out + bytes, piece, piece_bytes);
        bytes += piece_bytes;
    }
    return bytes;
}

static bool begins(const char *text, size_t bytes, const char *with)
{
    size_t count = strlen(with);
    return bytes >= count && memcmp(text, with, count) == 0;
}

static kv_audit_role_t role_of(const char *text, size_t bytes)
{
    return begins(text, bytes, "system")                    ? KV_AUDIT_HEAD
           : begins(text, bytes, "assistant")               ? KV_AUDIT_ASSISTANT
           : begins(text, bytes, "tool")                    ? KV_AUDIT_TOOL
           : begins(text, bytes, "user\n<tool_response>\n") ? KV_AUDIT_TOOL
                                                            : KV_AUDIT_USER;
}

void kv_audit_prompt_of_tokens(const kv_tokenizer_t *tokenizer, const uint32_t *tokens,
    size_t token_count, kv_audit_prompt_t *prompt_out)
{
    uint32_t start, end;
    bool marked = kv_tokenizer_special(tokenizer, "<|im_start|>", &start) == KV_OK &&
                  kv_tokenizer_special(tokenizer, "<|im_end|>", &end) == KV_OK;
    *prompt_out = (kv_audit_prompt_t){0};
    for (size_t i = 0; i < token_count; i++) {
        /* The last marker asks for an answer; a turn that has an end is one. */
        bool turn = marked && tokens[i] == start && i + ASK_TOKENS < token_count;
        if (turn) {
            char text[ROLE_BYTES_MAX];
            size_t bytes = text_after(tokenizer, tokens + i + 1, token_count - i - 1, text);
            kv_audit_prompt_part(prompt_out, role_of(text, bytes));
        }
        const char *piece = "";
        size_t bytes = 0;
        if (kv_tokenizer_piece(tokenizer, tokens[i], true, &piece, &bytes) != KV_OK) {
            bytes = 0;
        }
        kv_audit_prompt_token(prompt_out, piece, bytes);
    }
    kv_audit_prompt_finish(prompt_out);
}
