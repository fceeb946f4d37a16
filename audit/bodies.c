#include "audit/bodies.h"

#include "audit/tokens.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- texts that the body's parts are made into ---- */

static void *kept(kv_audit_body_t *body, void *memory)
{
    body->kept = kv_reallocate(body->kept, body->kept_count + 1, sizeof *body->kept);
    return body->kept[body->kept_count++] = memory;
}

static const char *line_of(kv_audit_body_t *body, const json_t *value)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    return text != NULL ? kept(body, text) : "";
}

static const char *string_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

static void write_content(FILE *out, const json_t *content);

/* A part of a content: its text; a tool's answer or a call; of anything else the JSON. */
static void write_part(FILE *out, const json_t *part)
{
    const json_t *text = json_object_get(part, "text");
    const json_t *inner = json_object_get(part, "content");
    if (json_is_string(text)) {
        fputs(json_string_value(text), out);
    } else if (json_is_string(part) || inner != NULL) {
        write_content(out, inner != NULL ? inner : part);
    } else {
        char *dumped = json_dumps(part, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
        fputs(dumped != NULL ? dumped : "", out);
        free(dumped);
    }
}

static void write_content(FILE *out, const json_t *content)
{
    if (json_is_string(content)) {
        fputs(json_string_value(content), out);
    } else if (json_is_array(content)) {
        for (size_t i = 0; i < json_array_size(content); i++) {
            fputs(i > 0 ? "\n" : "", out);
            write_part(out, json_array_get(content, i));
        }
    } else if (json_is_object(content)) {
        write_part(out, content);
    }
}

static void add_message(kv_audit_body_t *body, const char *role, const json_t *content)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) {
        return;
    }
    write_content(out, content);
    fclose(out);
    body->messages = kv_reallocate(body->messages, body->message_count + 1, sizeof *body->messages);
    body->messages[body->message_count++] =
        (kv_chat_message_t){.role = role, .content = kept(body, text), .content_bytes = bytes};
}

/* ---- messages and tools of the APIs ---- */

static const char *role_of(const json_t *message)
{
    static const struct {
        const char *told, *role;
    } ROLES[] = {{"system", "system"}, {"developer", "system"}, {"assistant", "assistant"},
        {"model", "assistant"}, {"tool", "tool"}, {"function", "tool"}};
    const char *told = string_of(message, "role"), *type = string_of(message, "type");
    for (size_t i = 0; i < sizeof ROLES / sizeof ROLES[0]; i++) {
        if (strcmp(told, ROLES[i].told) == 0) {
            return ROLES[i].role;
        }
    }
    /* Responses: items that are no message. */
    return strcmp(type, "function_call_output") == 0 ? "tool"
           : strcmp(type, "function_call") == 0      ? "assistant"
                                                     : "user";
}

/* An assistant's calls, OpenAI's way: arguments stand as they were sent. */
static void add_calls(kv_audit_body_t *body, const json_t *message)
{
    const json_t *calls = json_object_get(message, "tool_calls");
    size_t count = json_array_size(calls);
    if (count == 0) {
        return;
    }
    kv_chat_call_t *made = kept(body, kv_allocate_array(count, sizeof *made));
    for (size_t i = 0; i < count; i++) {
        const json_t *function = json_object_get(json_array_get(calls, i), "function");
        const json_t *arguments = json_object_get(function, "arguments");
        made[i].name = string_of(function, "name");
        made[i].arguments = json_is_string(arguments) ? json_string_value(arguments)
                            : arguments != NULL       ? line_of(body, arguments)
                                                      : "{}";
    }
    body->messages[body->message_count - 1].calls = made;
    body->messages[body->message_count - 1].call_count = count;
}

static void add_messages(kv_audit_body_t *body, const json_t *messages)
{
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *message = json_array_get(messages, i);
        const json_t *content = json_object_get(message, "content");
        content = content != NULL ? content : json_object_get(message, "parts");
        content = content != NULL ? content : json_object_get(message, "output");
        bool called = json_object_get(message, "tool_calls") != NULL;
        add_message(body, role_of(message), content != NULL || called ? content : message);
        add_calls(body, message);
    }
}

/* A list of tools; Gemini's has lists of functions in it. */
static void add_tools(kv_audit_body_t *body, const json_t *tools)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        const json_t *functions = json_object_get(tool, "functionDeclarations");
        if (json_is_array(functions)) {
            add_tools(body, functions);
            continue;
        }
        body->tools = kv_reallocate(body->tools, body->tool_count + 1, sizeof *body->tools);
        body->tools[body->tool_count++] = line_of(body, tool);
    }
}

/* ---- the line ---- */

static const json_t *body_in(const json_t *line)
{
    static const char *const NAMES[] = {"body", "request"};
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        const json_t *inner = json_object_get(line, NAMES[i]);
        if (json_is_object(inner)) {
            return inner;
        }
    }
    return line;
}

static const char *name_in(const json_t *line, const json_t *body, const char *const *names)
{
    const char *found = "";
    for (int i = 0; names[i] != NULL && found[0] == '\0'; i++) {
        found = string_of(line, names[i]);
        found = found[0] == '\0' ? string_of(body, names[i]) : found;
    }
    return found;
}

static void take_names(kv_audit_body_t *made, const json_t *line, const json_t *body)
{
    static const char *const SESSIONS[] = {"session", "session_id", "prompt_cache_key", NULL};
    static const char *const TEMPLATES[] = {"template", NULL}, *const TENANTS[] = {"tenant", NULL};
    static const char *const IDS[] = {"id", "custom_id", NULL};
    const json_t *time = json_object_get(line, "timestamp");
    double value = json_is_number(time) ? json_number_value(time) : 0.0;
    made->session = name_in(line, body, SESSIONS);
    made->template_name = name_in(line, body, TEMPLATES);
    made->tenant = name_in(line, body, TENANTS);
    made->id = name_in(line, body, IDS);
    /* Seconds, or milliseconds as traces have them. */
    value = value > 0.0 && value < 1e11 ? value * 1000.0 : value;
    made->unix_ms = value > 0.0 && value < 1e15 ? (uint64_t)value : 0;
}

kv_status_t kv_audit_body_read(const json_t *line, kv_audit_body_t *body_out, kv_error_t *error)
{
    const json_t *body = body_in(line), *prompt = json_object_get(body, "prompt");
    *body_out = (kv_audit_body_t){0};
    take_names(body_out, line, body);
    add_tools(body_out, json_object_get(body, "tools"));
    static const char *const SYSTEMS[] = {
        "system", "instructions", "systemInstruction", "system_instruction"};
    for (size_t i = 0; i < sizeof SYSTEMS / sizeof SYSTEMS[0]; i++) {
        const json_t *system = json_object_get(body, SYSTEMS[i]);
        const json_t *parts = json_object_get(system, "parts");
        if (system != NULL && !json_is_null(system)) {
            add_message(body_out, "system", parts != NULL ? parts : system);
        }
    }
    const json_t *input = json_object_get(body, "input");
    add_messages(body_out, json_object_get(body, "messages"));
    add_messages(body_out, json_object_get(body, "contents"));
    add_messages(body_out, json_is_array(input) ? input : NULL);
    if (json_is_string(input)) {
        add_message(body_out, "user", input);
    }
    body_out->text = body_out->message_count == 0 ? json_string_value(prompt) : NULL;
    if (body_out->message_count == 0 && body_out->text == NULL) {
        kv_audit_body_clear(body_out);
        return kv_fail(error, KV_INVALID,
            "holds no prompt: none of \"messages\", \"input\", \"contents\" and \"prompt\" (a "
            "string)");
    }
    return KV_OK;
}

void kv_audit_body_clear(kv_audit_body_t *body)
{
    for (size_t i = 0; i < body->kept_count; i++) {
        free(body->kept[i]);
    }
    free(body->kept);
    free(body->messages);
    free(body->tools);
    *body = (kv_audit_body_t){0};
}

/* ---- prompts ---- */

static void say(kv_audit_prompt_t *prompt, const char *text)
{
    kv_audit_prompt_add(prompt, text, strlen(text));
}

static void say_message(kv_audit_prompt_t *prompt, const kv_chat_message_t *message)
{
    kv_audit_role_t role = strcmp(message->role, "system") == 0      ? KV_AUDIT_HEAD
                           : strcmp(message->role, "assistant") == 0 ? KV_AUDIT_ASSISTANT
                           : strcmp(message->role, "tool") == 0      ? KV_AUDIT_TOOL
                                                                     : KV_AUDIT_USER;
    kv_audit_prompt_part(prompt, role);
    say(prompt, message->role);
    say(prompt, ":\n");
    kv_audit_prompt_add(prompt, message->content, message->content_bytes);
    for (size_t i = 0; i < message->call_count; i++) {
        say(prompt, "\ncall ");
        say(prompt, message->calls[i].name);
        say(prompt, " ");
        say(prompt, message->calls[i].arguments);
    }
    say(prompt, "\n\n");
}

void kv_audit_body_text(const kv_audit_body_t *body, kv_audit_prompt_t *prompt_out)
{
    *prompt_out = (kv_audit_prompt_t){0};
    if (body->text != NULL) {
        say(prompt_out, body->text);
    }
    if (body->tool_count > 0) {
        kv_audit_prompt_part(prompt_out, KV_AUDIT_HEAD);
        say(prompt_out, "tools:\n");
    }
    for (size_t i = 0; i < body->tool_count; i++) {
        say(prompt_out, body->tools[i]);
        say(prompt_out, "\n");
    }
    for (size_t i = 0; i < body->message_count; i++) {
        say_message(prompt_out, &body->messages[i]);
    }
    kv_audit_prompt_finish(prompt_out);
}

kv_status_t kv_audit_body_tokens(const kv_audit_body_t *body, const kv_tokenizer_t *tokenizer,
    kv_audit_prompt_t *prompt_out, kv_error_t *error)
{
    uint32_t *tokens = NULL;
    size_t count = 0;
    const kv_chat_conversation_t told = {.messages = body->messages,
        .message_count = body->message_count,
        .tools = body->tools,
        .tool_count = body->tool_count,
        .add_generation_prompt = true};
    const kv_tokenizer_mode_t mode = {.add_special = true, .parse_special = true};
    kv_status_t status = body->text != NULL
                             ? kv_tokenizer_encode(tokenizer, body->text, strlen(body->text), mode,
                                   &tokens, &count, error)
                             : kv_chat_encode(tokenizer, &told, &tokens, &count, error);
    if (status == KV_OK) {
        kv_audit_prompt_of_tokens(tokenizer, tokens, count, prompt_out);
    }
    free(tokens);
    return status;
}
