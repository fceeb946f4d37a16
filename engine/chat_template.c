#include "engine/chat_template.h"

#include "base/memory.h"
#include "engine/bpe.h"

#include <stdlib.h>
#include <string.h>

/* SmolLM2's template puts this first where a conversation has no system message of its own. */
static const char SMOLLM2_SYSTEM[] =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

/* The words around the signatures, as the models of this family know them. */
static const char TOOLS_HEAD[] =
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
static const char TOOLS_TAIL[] =
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, "
    "\"arguments\": <args-json-object>}\n</tool_call>";

typedef struct {
    const kv_tokenizer_t *tokenizer;
    const kv_chat_conversation_t *told;
    uint32_t start, end;        /* the markers' tokens */
    const char *default_system; /* NULL for none */
    bool has_tools;             /* calls and their answers come in the tools' form */
    kv_token_list_t list;
    char *text; /* since the last marker */
    size_t text_bytes, text_capacity;
    size_t mark_at[KV_CHAT_MARKS_MAX]; /* where marks are in that text; SIZE_MAX: elsewhere */
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

/* ---- text between markers ---- */

static void add(chat_t *chat, const char *text, size_t bytes)
{
    if (bytes > chat->text_capacity - chat->text_bytes) {
        chat->text_capacity = 2 * (chat->text_bytes + bytes) + 64;
        chat->text = kv_reallocate(chat->text, chat->text_capacity, 1);
    }
    if (bytes > 0) {
        memcpy(chat->text + chat->text_bytes, text, bytes);
        chat->text_bytes += bytes;
    }
}

static void add_string(chat_t *chat, const char *text)
{
    add(chat, text, strlen(text));
}

/* Marks after so many messages and bytes of the next one are `at` bytes into the text. */
static void set_marks(chat_t *chat, size_t message_count, size_t content_bytes, size_t at)
{
    for (size_t i = 0; i < chat->told->mark_count; i++) {
        const kv_chat_mark_t *mark = &chat->told->marks[i];
        if (mark->message_count == message_count && mark->content_bytes == content_bytes) {
            chat->mark_at[i] = at;
        }
    }
}

/* Whole tokens that end before each mark of the text. */
static void place_marks(chat_t *chat, const uint32_t *tokens, size_t count)
{
    size_t before = chat->list.count - count, bytes = 0, piece_bytes;
    const char *piece;
    for (size_t k = 0; k < chat->told->mark_count; k++) {
        if (chat->mark_at[k] != SIZE_MAX) {
            chat->told->marks[k].token_count = before;
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (kv_tokenizer_piece(chat->tokenizer, tokens[i], true, &piece, &piece_bytes) != KV_OK) {
            return;
        }
        bytes += piece_bytes;
        for (size_t k = 0; k < chat->told->mark_count; k++) {
            if (chat->mark_at[k] != SIZE_MAX && bytes <= chat->mark_at[k]) {
                chat->told->marks[k].token_count = before + i + 1;
            }
        }
    }
}

/* The text so far becomes tokens. */
static kv_status_t flush(chat_t *chat, kv_error_t *error)
{
    uint32_t *tokens = NULL;
    size_t count = 0;
    kv_tokenizer_mode_t plain = {.add_special = false, .parse_special = false};
    kv_status_t status = kv_tokenizer_encode(chat->tokenizer, chat->text != NULL ? chat->text : "",
        chat->text_bytes, plain, &tokens, &count, error);
    for (size_t i = 0; status == KV_OK && i < count; i++) {
        kv_token_list_append(&chat->list, tokens[i]);
    }
    if (status == KV_OK) {
        place_marks(chat, tokens, count);
    }
    for (size_t i = 0; i < KV_CHAT_MARKS_MAX; i++) {
        chat->mark_at[i] = SIZE_MAX;
    }
    chat->text_bytes = 0;
    free(tokens);
    return status;
}

/* ---- messages ---- */

/* "ROLE\nTEXT" is one text between two markers: line break and text may share a token. */
static void open_turn(chat_t *chat, const char *role)
{
    kv_token_list_append(&chat->list, chat->start);
    add_string(chat, role);
}

static kv_status_t close_turn(chat_t *chat, size_t message_count, kv_error_t *error)
{
    kv_status_t status = flush(chat, error);
    kv_token_list_append(&chat->list, chat->end);
    add_string(chat, "\n");
    set_marks(chat, message_count, 0, 1);
    return status == KV_OK ? flush(chat, error) : status;
}

static void add_content(chat_t *chat, size_t index)
{
    const kv_chat_message_t *message = &chat->told->messages[index];
    for (size_t i = 0; i < chat->told->mark_count; i++) {
        const kv_chat_mark_t *mark = &chat->told->marks[i];
        if (mark->message_count == index && mark->content_bytes > 0) {
            chat->mark_at[i] = chat->text_bytes + (mark->content_bytes < message->content_bytes
                                                          ? mark->content_bytes
                                                          : message->content_bytes);
        }
    }
    add(chat, message->content, message->content_bytes);
}

static void add_tools(chat_t *chat, bool after_text)
{
    if (chat->told->tool_count == 0) {
        return;
    }
    add_string(chat, after_text ? "\n\n" : "");
    add_string(chat, TOOLS_HEAD);
    for (size_t i = 0; i < chat->told->tool_count; i++) {
        add_string(chat, "\n");
        add_string(chat, chat->told->tools[i]);
    }
    add_string(chat, TOOLS_TAIL);
}

static void add_calls(chat_t *chat, const kv_chat_message_t *message)
{
    for (size_t i = 0; i < message->call_count; i++) {
        add_string(chat, "\n<tool_call>\n{\"name\": \"");
        add_string(chat, message->calls[i].name);
        add_string(chat, "\", \"arguments\": ");
        add_string(chat, message->calls[i].arguments);
        add_string(chat, "}\n</tool_call>");
    }
}

static bool is_role(const kv_chat_conversation_t *told, size_t index, const char *role)
{
    return index < told->message_count && strcmp(told->messages[index].role, role) == 0;
}

/* The system message and the tools, whether the conversation has a system message or not. */
static kv_status_t append_head(chat_t *chat, kv_error_t *error)
{
    bool own = is_role(chat->told, 0, "system");
    const char *standard = chat->default_system != NULL ? chat->default_system : "";
    bool has_text = own ? chat->told->messages[0].content_bytes > 0 : standard[0] != '\0';
    set_marks(chat, 0, 0, 0);
    if (!own && chat->default_system == NULL && chat->told->tool_count == 0) {
        return flush(chat, error);
    }
    open_turn(chat, "system\n");
    if (own) {
        add_content(chat, 0);
    } else {
        add_string(chat, standard);
    }
    add_tools(chat, has_text);
    kv_status_t status = close_turn(chat, 0, error);
    for (size_t i = 0; own && i < chat->told->mark_count; i++) {
        kv_chat_mark_t *mark = &chat->told->marks[i];
        if (mark->message_count == 1 && mark->content_bytes == 0) {
            mark->token_count = chat->list.count;
        }
    }
    return status;
}

static kv_status_t append_message(chat_t *chat, size_t index, kv_error_t *error)
{
    const kv_chat_conversation_t *told = chat->told;
    const kv_chat_message_t *message = &told->messages[index];
    if (chat->has_tools && is_role(told, index, "tool")) {
        /* What tools answered, one after the other, is one turn. */
        if (index == 0 || !is_role(told, index - 1, "tool")) {
            open_turn(chat, "user");
        }
        add_string(chat, "\n<tool_response>\n");
        add_content(chat, index);
        add_string(chat, "\n</tool_response>");
        set_marks(chat, index + 1, 0, chat->text_bytes);
        return is_role(told, index + 1, "tool") ? KV_OK : close_turn(chat, index + 1, error);
    }
    open_turn(chat, message->role);
    if (message->content_bytes > 0 || message->call_count == 0) {
        add_string(chat, "\n");
    }
    add_content(chat, index);
    if (told->continue_last && index + 1 == told->message_count) {
        set_marks(chat, index + 1, 0, chat->text_bytes);
        return flush(chat, error);
    }
    add_calls(chat, message);
    return close_turn(chat, index + 1, error);
}

static kv_status_t check_conversation(const kv_chat_conversation_t *told, kv_error_t *error)
{
    const kv_chat_message_t *messages = told->messages;
    size_t count = told->message_count;
    static const char *const ROLES[] = {"system", "user", "assistant", "tool"};
    size_t left = KV_TOKENIZER_TEXT_BYTES_MAX - 16; /* the longest role and its line break */
    if (count == 0 || count > KV_CHAT_MESSAGES_MAX) {
        return kv_fail(
            error, KV_INVALID, "messages: there are %zu, not 1 to %d", count, KV_CHAT_MESSAGES_MAX);
    }
    if (told->mark_count > KV_CHAT_MARKS_MAX) {
        return kv_fail(error, KV_INVALID, "breakpoints: there are %zu, at most %d",
            told->mark_count, KV_CHAT_MARKS_MAX);
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

static kv_status_t append_conversation(chat_t *chat, kv_error_t *error)
{
    kv_error_t cause;
    kv_status_t status = append_head(chat, &cause);
    size_t i = is_role(chat->told, 0, "system");
    for (; status == KV_OK && i < chat->told->message_count; i++) {
        status = append_message(chat, i, &cause);
    }
    if (status != KV_OK) {
        kv_fail(error, status, "messages[%zu].content: %.400s", i > 0 ? i - 1 : 0, cause.text);
    } else if (chat->told->add_generation_prompt) {
        open_turn(chat, "assistant\n");
        status = flush(chat, error);
    }
    return status;
}

/* Whether calls of tools play a part; then their answers come in the same form. */
static bool plays_tools(const kv_chat_conversation_t *told)
{
    bool plays = told->tool_count > 0;
    for (size_t i = 0; i < told->message_count; i++) {
        plays |= told->messages[i].call_count > 0;
    }
    return plays;
}

kv_status_t kv_chat_encode(const kv_tokenizer_t *tokenizer, const kv_chat_conversation_t *told,
    uint32_t **tokens_out, size_t *count_out, kv_error_t *error)
{
    chat_t chat = {.tokenizer = tokenizer, .told = told, .has_tools = plays_tools(told)};
    for (size_t i = 0; i < KV_CHAT_MARKS_MAX; i++) {
        chat.mark_at[i] = SIZE_MAX;
    }
    kv_status_t status = choose_template(&chat, error);
    if (status == KV_OK) {
        status = check_conversation(told, error);
    }
    if (status == KV_OK) {
        status = append_conversation(&chat, error);
    }
    free(chat.text);
    if (status != KV_OK) {
        free(chat.list.tokens);
        return status;
    }
    *tokens_out = chat.list.tokens;
    *count_out = chat.list.count;
    return KV_OK;
}
