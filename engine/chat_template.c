#include "engine/chat_template.h"

#include "base/memory.h"
#include "engine/bpe.h"

#include <stdlib.h>
#include <string.h>

/* SmolLM2's template puts this first where a conversation has no system message of its own. */
static const char SMOLLM2_SYSTEM[] =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

typedef struct {
    const kv_tokenizer_t *tokenizer;
    uint32_t start, end;        /* the markers' tokens */
    const char *default_system; /* NULL for none */
    kv_token_list_t list;
} chat_t;

/* A template is known by what it says, not executed. */
static kv_status_t choose_template(chat_t *chat, kv_error_t *error)
{
    const char *template = kv_tokenizer_chat_template(chat->tokenizer);
    if (template == NULL) {
        return kv_fail(error, KV_INVALID,
            "the model %s has no tokenizer.chat_template: it completes text, it does not chat",
            kv_tokenizer_model_name(chat->tokenizer));
    }
    if (strstr(template, SMOLLM2_SYSTEM) != NULL) {
        chat->default_system = SMOLLM2_SYSTEM;
    } else if (strstr(template, "<|im_start|>") == NULL || strstr(template, "system") != NULL) {
        return kv_fail(error, KV_INVALID,
            "tokenizer.chat_template of %s is none of those known: SmolLM2's, plain ChatML",
            kv_tokenizer_model_name(chat->tokenizer));
    }
    if (kv_tokenizer_special(chat->tokenizer, "<|im_start|>", &chat->start) != KV_OK ||
        kv_tokenizer_special(chat->tokenizer, "<|im_end|>", &chat->end) != KV_OK) {
        return kv_fail(error, KV_INVALID,
            "tokenizer.ggml.tokens of %s lacks <|im_start|> or <|im_end|>, which its template uses",
            kv_tokenizer_model_name(chat->tokenizer));
    }
    return KV_OK;
}

static kv_status_t append_text(chat_t *chat, const char *text, size_t bytes, kv_error_t *error)
{
    uint32_t *tokens = NULL;
    size_t count = 0;
    kv_tokenizer_mode_t plain = {.add_special = false, .parse_special = false};
    kv_status_t status =
        kv_tokenizer_encode(chat->tokenizer, text, bytes, plain, &tokens, &count, error);
    for (size_t i = 0; status == KV_OK && i < count; i++) {
        kv_token_list_append(&chat->list, tokens[i]);
    }
    free(tokens);
    return status;
}

/* "ROLE\nTEXT" is one text between two markers: line break and text may share a token. */
static kv_status_t append_message(
    chat_t *chat, const char *role, const char *content, size_t bytes, kv_error_t *error)
{
    size_t head = strlen(role) + 1;
    char *text = kv_allocate(head + bytes + 1);
    memcpy(text, role, head - 1);
    text[head - 1] = '\n';
    if (bytes > 0) {
        memcpy(text + head, content, bytes);
    }
    kv_token_list_append(&chat->list, chat->start);
    kv_status_t status = append_text(chat, text, head + bytes, error);
    kv_token_list_append(&chat->list, chat->end);
    free(text);
    return status == KV_OK ? append_text(chat, "\n", 1, error) : status;
}

static kv_status_t check_messages(
    const kv_chat_message_t *messages, size_t count, kv_error_t *error)
{
    static const char *const ROLES[] = {"system", "user", "assistant", "tool"};
    size_t left = KV_TOKENIZER_TEXT_BYTES_MAX - 16; /* the longest role and its line break */
    if (count == 0 || count > KV_CHAT_MESSAGES_MAX) {
        return kv_fail(
            error, KV_INVALID, "messages: there are %zu, not 1 to %d", count, KV_CHAT_MESSAGES_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        bool known = false;
        for (size_t k = 0; k < sizeof ROLES / sizeof ROLES[0]; k++) {
            known |= strcmp(messages[i].role, ROLES[k]) == 0;
        }
        if (!known) {
            return kv_fail(error, KV_INVALID,
                "messages[%zu].role is \"%.32s\", not system, user, assistant or tool", i,
                messages[i].role);
        }
        if (messages[i].content_bytes > left) {
            return kv_fail(error, KV_INVALID,
                "messages[%zu].content has %zu bytes; all together have at most %d", i,
                messages[i].content_bytes, KV_TOKENIZER_TEXT_BYTES_MAX - 16);
        }
        left -= messages[i].content_bytes;
    }
    return KV_OK;
}

static kv_status_t append_conversation(
    chat_t *chat, const kv_chat_message_t *messages, size_t count, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    if (chat->default_system != NULL && strcmp(messages[0].role, "system") != 0) {
        status = append_message(
            chat, "system", chat->default_system, strlen(chat->default_system), error);
    }
    for (size_t i = 0; i < count && status == KV_OK; i++) {
        kv_error_t cause;
        status = append_message(
            chat, messages[i].role, messages[i].content, messages[i].content_bytes, &cause);
        if (status != KV_OK) {
            kv_fail(error, status, "messages[%zu].content: %.400s", i, cause.text);
        }
    }
    return status;
}

kv_status_t kv_chat_encode(const kv_tokenizer_t *tokenizer, const kv_chat_message_t *messages,
    size_t count, bool add_generation_prompt, uint32_t **tokens_out, size_t *count_out,
    kv_error_t *error)
{
    chat_t chat = {.tokenizer = tokenizer};
    kv_status_t status = choose_template(&chat, error);
    if (status == KV_OK) {
        status = check_messages(messages, count, error);
    }
    if (status == KV_OK) {
        status = append_conversation(&chat, messages, count, error);
    }
    if (status == KV_OK && add_generation_prompt) {
        kv_token_list_append(&chat.list, chat.start);
        status = append_text(&chat, "assistant\n", strlen("assistant\n"), error);
    }
    if (status != KV_OK) {
        free(chat.list.tokens);
        return status;
    }
    *tokens_out = chat.list.tokens;
    *count_out = chat.list.count;
    return KV_OK;
}
