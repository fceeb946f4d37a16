/* Tools, system and messages of an Anthropic body.
 *
 * A turn is a list of blocks; a neutral message is one text, and of an assistant the calls behind
 * it. A turn's texts are put together as they are; a tool_result is a message of role "tool".
 * Messages of one role that follow each other are one turn.
 *
 *   assistant: text text tool_use tool_use                      (one neutral message)
 *   user:      text text | tool_result | tool_result | text     (one for each part)
 *
 * A breakpoint lies behind a block: behind so many messages, and so many bytes of the next one.
 * Behind a message's last block, or one of its calls, it lies behind the message, with the
 * template's end of it. */
#include "gateway/anthropic/parse_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/memory.h"
#include "gateway/anthropic/anthropic.h"
#include "gateway/tool_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PLACE_BYTES = 96, /* of kv_api_error_t.param */
    OPEN_CALLS_MAX = 1024,
    TOOLS_MAX = 1024,
    NAME_BYTES_MAX = 128,
    MARKS_MAX = 4,
};

/* One body that is being read. */
typedef struct {
    kv_api_request_t *request;
    kv_api_error_t *error;
    size_t message_capacity;

    /* The neutral message that is being put together; role NULL: none. */
    const char *role;
    char *text;
    size_t text_bytes, text_capacity;
    kv_chat_call_t *calls;
    size_t call_count, call_capacity;
    bool begins; /* a message of the body, and nothing of it was taken yet */

    const char *open_calls[OPEN_CALLS_MAX]; /* ids of calls that have no result yet */
    size_t open_call_count;

    unsigned mark_count; /* also those beyond the bound */
    bool has_short_ttl;
    bool has_last; /* the last block that may have a mark, for the body's own cache_control */
    kv_api_breakpoint_t last; /* ttl_ns 0: it has none */
} body_t;

#define REFUSE(body, place, ...) KV_API_REFUSE((body)->error, place, __VA_ARGS__)

/* "PLACE.NAME", or the name alone in the body itself. */
static const char *place_of(const char *place, const char *name, char text[PLACE_BYTES])
{
    int bytes = snprintf(text, PLACE_BYTES, "%s%s%s", place, place[0] == '\0' ? "" : ".", name);
    KV_CHECK(bytes < PLACE_BYTES);
    return text;
}

static const char *place_at(const char *place, size_t index, char text[PLACE_BYTES])
{
    char number[24];
    snprintf(number, sizeof number, "%zu", index);
    return place_of(place, number, text);
}

/* ---- the message that is being put together ---- */

static void append(body_t *body, const char *bytes, size_t count)
{
    if (body->text_bytes + count > body->text_capacity) {
        body->text_capacity = 2 * (body->text_bytes + count);
        body->text = kv_reallocate(body->text, body->text_capacity, 1);
    }
    if (count > 0) {
        memcpy(body->text + body->text_bytes, bytes, count);
    }
    body->text_bytes += count;
}

/* What lies behind the last byte of the message that ends, or behind a call (SIZE_MAX), lies behind
 * the message. */
static void end_place(const body_t *body, kv_api_breakpoint_t *place)
{
    bool at_end = place->content_bytes > 0 && place->content_bytes == body->text_bytes &&
                  body->call_count == 0;
    if (place->message_count == body->request->message_count &&
        (at_end || place->content_bytes == SIZE_MAX)) {
        place->message_count++;
        place->content_bytes = 0;
    }
}

static bool end_message(body_t *body)
{
    kv_api_request_t *request = body->request;
    if (body->role == NULL) {
        return true;
    }
    if (request->message_count == KV_CHAT_MESSAGES_MAX) {
        return REFUSE(body, "messages", "messages: more than %d, counted with tool results",
            KV_CHAT_MESSAGES_MAX);
    }
    for (size_t i = 0; i < request->breakpoint_count; i++) {
        end_place(body, &request->breakpoints[i]);
    }
    end_place(body, &body->last);
    if (request->message_count == body->message_capacity) {
        body->message_capacity = 2 * body->message_capacity + 16;
        request->messages =
            kv_reallocate(request->messages, body->message_capacity, sizeof *request->messages);
    }
    char *content = kv_api_keep(request, body->text_bytes + 1);
    kv_chat_call_t *calls = kv_api_keep(request, (body->call_count + 1) * sizeof *calls);
    if (body->text_bytes > 0) {
        memcpy(content, body->text, body->text_bytes);
    }
    if (body->call_count > 0) {
        memcpy(calls, body->calls, body->call_count * sizeof *calls);
    }
    request->messages[request->message_count++] = (kv_chat_message_t){.role = body->role,
        .content = content,
        .content_bytes = body->text_bytes,
        .calls = calls,
        .call_count = body->call_count};
    body->call_count = 0;
    body->role = NULL;
    body->text_bytes = 0;
    return true;
}

/* What comes now is of this role. Messages that are one turn are parted by a line break. */
static bool be_role(body_t *body, const char *role)
{
    bool begins = body->begins;
    body->begins = false;
    if (body->role != NULL && strcmp(body->role, role) == 0) {
        if (begins && body->text_bytes > 0) {
            append(body, "\n", 1);
        }
        return true;
    }
    if (!end_message(body)) {
        return false;
    }
    body->role = role;
    return true;
}

/* ---- breakpoints ---- */

/* The ttl that a cache_control asks for. */
static bool read_ttl(const body_t *body, const json_t *control, const char *place, uint64_t *ttl_ns)
{
    char here[PLACE_BYTES], field[PLACE_BYTES];
    place_of(place, "cache_control", here);
    if (!json_is_object(control)) {
        return kv_json_wrong_type(here, "an object", control, body->error);
    }
    const char *type = NULL, *ttl = "5m";
    if (!kv_json_take_string(
            control, "type", place_of(here, "type", field), SIZE_MAX, &type, body->error)) {
        return false;
    }
    if (type == NULL || strcmp(type, "ephemeral") != 0) {
        return REFUSE(body, field, "%s: must be \"ephemeral\"", field);
    }
    if (!kv_json_take_string(
            control, "ttl", place_of(here, "ttl", field), SIZE_MAX, &ttl, body->error)) {
        return false;
    }
    bool is_short = strcmp(ttl, "5m") == 0;
    if (!is_short && strcmp(ttl, "1h") != 0) {
        return REFUSE(body, field, "%s: must be \"5m\" or \"1h\"", field);
    }
    *ttl_ns =
        (is_short ? KV_ANTHROPIC_SHORT_TTL_S : KV_ANTHROPIC_LONG_TTL_S) * (uint64_t)KV_NS_PER_S;
    return true;
}

/* Keeps a breakpoint at *at. */
static bool add_mark(
    body_t *body, const json_t *control, const char *place, kv_api_breakpoint_t *at)
{
    kv_api_request_t *request = body->request;
    if (!read_ttl(body, control, place, &at->ttl_ns)) {
        return false;
    }
    bool is_short = at->ttl_ns == KV_ANTHROPIC_SHORT_TTL_S * (uint64_t)KV_NS_PER_S;
    if (!is_short && body->has_short_ttl) {
        char here[PLACE_BYTES], field[PLACE_BYTES];
        place_of(place_of(place, "cache_control", here), "ttl", field);
        return REFUSE(body, field,
            "%s: \"1h\" after a breakpoint of \"5m\": the longer ttl comes first, in the order "
            "tools, system, messages",
            field);
    }
    body->has_short_ttl |= is_short;
    if (++body->mark_count <= MARKS_MAX) {
        request->breakpoints[request->breakpoint_count++] = *at;
    }
    return true;
}

/* A block ended here, with or without a cache_control. */
static bool end_block(body_t *body, const json_t *block, const char *place)
{
    kv_api_breakpoint_t at = {.message_count = (uint32_t)body->request->message_count,
        .content_bytes = body->role == NULL     ? 0
                         : body->call_count > 0 ? SIZE_MAX
                                                : body->text_bytes};
    const json_t *control = kv_json_field(block, "cache_control");
    if (control != NULL && !add_mark(body, control, place, &at)) {
        return false;
    }
    body->has_last = true;
    body->last = at;
    return true;
}

/* The body's own cache_control marks its last block. */
static bool take_automatic_mark(body_t *body, const json_t *document)
{
    const json_t *control = kv_json_field(document, "cache_control");
    uint64_t ttl_ns = 0;
    if (control == NULL) {
        return true;
    }
    if (!read_ttl(body, control, "", &ttl_ns)) {
        return false;
    }
    if (body->has_last && body->last.ttl_ns != 0 && body->last.ttl_ns != ttl_ns) {
        return REFUSE(body, "cache_control.ttl",
            "cache_control.ttl: the last block, which it marks, has a cache_control with another "
            "ttl");
    }
    return !body->has_last || body->last.ttl_ns != 0 || add_mark(body, control, "", &body->last);
}

static bool check_marks(const body_t *body)
{
    return body->mark_count <= MARKS_MAX ||
           REFUSE(body, "cache_control", "cache_control: on %u blocks: at most %d",
               body->mark_count, MARKS_MAX);
}

/* ---- blocks ---- */

static const char *block_type(const json_t *block)
{
    const char *type = json_string_value(json_object_get(block, "type"));
    return type != NULL ? type : "";
}

static bool refuse_block(
    const body_t *body, const json_t *block, const char *place, const char *supported)
{
    char field[PLACE_BYTES];
    if (!json_is_object(block)) {
        return kv_json_wrong_type(place, "an object", block, body->error);
    }
    return REFUSE(body, place_of(place, "type", field),
        "%s: \"%.40s\" is not supported here: only %s", field, block_type(block), supported);
}

/* A text block's text, put behind what is there. */
static bool take_text(body_t *body, const json_t *block, const char *place)
{
    char field[PLACE_BYTES];
    const json_t *text = json_object_get(block, "text");
    place_of(place, "text", field);
    if (!json_is_string(text)) {
        return text == NULL ? REFUSE(body, field, "%s: is missing", field)
                            : kv_json_wrong_type(field, "a string", text, body->error);
    }
    append(body, json_string_value(text), json_string_length(text));
    if (json_string_length(text) == 0) {
        return kv_json_field(block, "cache_control") == NULL ||
               REFUSE(body, field, "%s: is empty: it can have no cache_control", field);
    }
    return end_block(body, block, place);
}

/* A string, or blocks that must be texts. */
static bool take_texts(body_t *body, const json_t *content, const char *place)
{
    size_t index;
    json_t *block;
    if (json_is_string(content)) {
        append(body, json_string_value(content), json_string_length(content));
        return json_string_length(content) == 0 || end_block(body, NULL, place);
    }
    if (!json_is_array(content)) {
        return kv_json_wrong_type(place, "a string or an array of blocks", content, body->error);
    }
    json_array_foreach(content, index, block)
    {
        char here[PLACE_BYTES];
        place_at(place, index, here);
        if (strcmp(block_type(block), "text") != 0) {
            return refuse_block(body, block, here, "\"text\"");
        }
        if (!take_text(body, block, here)) {
            return false;
        }
    }
    return true;
}

/* A string that must be there, of 1 to bytes_max bytes. */
static bool need_string(const body_t *body, const json_t *object, const char *name,
    const char *place, size_t bytes_max, const char **value_out)
{
    char field[PLACE_BYTES];
    const char *value = NULL;
    place_of(place, name, field);
    if (!kv_json_take_string(object, name, field, bytes_max, &value, body->error)) {
        return false;
    }
    if (value == NULL || value[0] == '\0') {
        return REFUSE(body, field, "%s: %s", field, value == NULL ? "is missing" : "is empty");
    }
    *value_out = value;
    return true;
}

/* Names stand in the prompt as they are, and come back as the model wrote them. */
static bool check_name(const body_t *body, const char *name, const char *place)
{
    char field[PLACE_BYTES];
    place_of(place, "name", field);
    return kv_tool_name_is_valid(name) ||
           REFUSE(body, field,
               "%s: must be of letters, digits, \"_\", \"-\", \".\" and \":\", at most %d", field,
               KV_TOOL_NAME_BYTES_MAX);
}

static bool take_tool_use(body_t *body, const json_t *block, const char *place)
{
    const char *id, *name;
    const json_t *input = json_object_get(block, "input");
    char field[PLACE_BYTES];
    place_of(place, "input", field);
    if (!need_string(body, block, "id", place, NAME_BYTES_MAX, &id) ||
        !need_string(body, block, "name", place, NAME_BYTES_MAX, &name) ||
        !check_name(body, name, place)) {
        return false;
    }
    if (!json_is_object(input)) {
        return input == NULL ? REFUSE(body, field, "%s: is missing", field)
                             : kv_json_wrong_type(field, "an object", input, body->error);
    }
    if (body->open_call_count == OPEN_CALLS_MAX) {
        return REFUSE(body, place, "%s: more than %d calls in one turn", place, OPEN_CALLS_MAX);
    }
    body->open_calls[body->open_call_count++] = id;
    if (body->call_count == body->call_capacity) {
        body->call_capacity = 2 * body->call_capacity + 8;
        body->calls = kv_reallocate(body->calls, body->call_capacity, sizeof *body->calls);
    }
    body->calls[body->call_count++] =
        (kv_chat_call_t){.name = name, .arguments = kv_json_line(body->request, input)};
    return end_block(body, block, place);
}

/* Takes the id from the calls that wait for a result. */
static bool close_call(body_t *body, const char *id, const char *place)
{
    for (size_t i = 0; i < body->open_call_count; i++) {
        if (strcmp(body->open_calls[i], id) == 0) {
            body->open_calls[i] = body->open_calls[--body->open_call_count];
            return true;
        }
    }
    char field[PLACE_BYTES];
    return REFUSE(body, place_of(place, "tool_use_id", field),
        "%s: \"%.64s\" is the id of no tool_use in the assistant's turn before, or has its result "
        "already",
        field, id);
}

static bool take_tool_result(body_t *body, const json_t *block, const char *place)
{
    const char *id;
    char field[PLACE_BYTES];
    if (!need_string(body, block, "tool_use_id", place, NAME_BYTES_MAX, &id) ||
        !close_call(body, id, place) || !end_message(body) || !be_role(body, "tool")) {
        return false;
    }
    const json_t *content = kv_json_field(block, "content");
    if (content != NULL && !take_texts(body, content, place_of(place, "content", field))) {
        return false;
    }
    /* Behind the result lies behind its message, also where that has no text. */
    return end_message(body) && end_block(body, block, place);
}

/* One block of a turn. */
static bool take_block(body_t *body, const char *role, const json_t *block, const char *place)
{
    bool is_user = strcmp(role, "user") == 0, is_assistant = strcmp(role, "assistant") == 0;
    const char *type = block_type(block);
    if (is_user && strcmp(type, "tool_result") == 0) {
        return take_tool_result(body, block, place);
    }
    bool is_call = is_assistant && strcmp(type, "tool_use") == 0;
    if (!is_call && strcmp(type, "text") != 0) {
        return refuse_block(body, block, place,
            is_user        ? "\"text\" and \"tool_result\""
            : is_assistant ? "\"text\" and \"tool_use\""
                           : "\"text\"");
    }
    return be_role(body, role) &&
           (is_call ? take_tool_use(body, block, place) : take_text(body, block, place));
}

/* ---- turns ---- */

static bool take_turn(body_t *body, const char *role, const json_t *content, const char *place)
{
    size_t index;
    json_t *block;
    body->begins = true;
    if (content == NULL) {
        return REFUSE(body, place, "%s: is missing", place);
    }
    if ((json_is_string(content) && json_string_length(content) == 0) ||
        (json_is_array(content) && json_array_size(content) == 0)) {
        return REFUSE(body, place, "%s: is empty", place);
    }
    if (!json_is_array(content)) {
        return be_role(body, role) && take_texts(body, content, place);
    }
    json_array_foreach(content, index, block)
    {
        char here[PLACE_BYTES];
        place_at(place, index, here);
        if (!take_block(body, role, block, here)) {
            return false;
        }
    }
    return true;
}

/* Every call has its result before the assistant speaks again. */
static bool check_calls(const body_t *body, const char *place)
{
    return body->open_call_count == 0 ||
           REFUSE(body, place, "%s: the tool_use \"%.64s\" before it has no tool_result", place,
               body->open_calls[0]);
}

static bool take_message(body_t *body, const json_t *value, const char *place, const char **role)
{
    static const char *const ROLES[] = {"user", "assistant", "system"};
    char field[PLACE_BYTES];
    if (!json_is_object(value)) {
        return kv_json_wrong_type(place, "an object", value, body->error);
    }
    const char *name = json_string_value(json_object_get(value, "role")), *before = *role;
    *role = NULL;
    for (size_t i = 0; name != NULL && i < sizeof ROLES / sizeof ROLES[0]; i++) {
        *role = strcmp(name, ROLES[i]) == 0 ? ROLES[i] : *role;
    }
    if (*role == NULL) {
        place_of(place, "role", field);
        return REFUSE(body, field, "%s: must be \"user\", \"assistant\" or \"system\"", field);
    }
    if (*role == ROLES[1] && *role != before && !check_calls(body, place)) {
        return false;
    }
    return take_turn(
        body, *role, kv_json_field(value, "content"), place_of(place, "content", field));
}

/* The last turn is the assistant's: the answer begins with it. Models write white space together
 * with the word behind it, so that none must end what was begun. */
static bool take_beginning(body_t *body)
{
    char last = body->text_bytes > 0 ? body->text[body->text_bytes - 1] : ' ';
    if (last == ' ' || last == '\n' || last == '\t' || last == '\r') {
        return REFUSE(body, "messages",
            "messages: the assistant's last turn, with which the answer begins, must have a text "
            "that does not end with white space");
    }
    body->request->continue_last = true;
    return true;
}

static bool take_messages(body_t *body, const json_t *document)
{
    const json_t *messages = kv_json_field(document, "messages");
    const char *role = "";
    if (messages == NULL) {
        return REFUSE(body, "messages", "messages: is missing");
    }
    if (!json_is_array(messages)) {
        return kv_json_wrong_type("messages", "an array", messages, body->error);
    }
    if (json_array_size(messages) == 0) {
        return REFUSE(body, "messages", "messages: is empty: there must be at least one");
    }
    for (size_t i = 0; i < json_array_size(messages); i++) {
        char place[PLACE_BYTES];
        place_at("messages", i, place);
        if (!take_message(body, json_array_get(messages, i), place, &role)) {
            return false;
        }
    }
    return check_calls(body, "messages") &&
           (strcmp(role, "assistant") != 0 || take_beginning(body)) && end_message(body);
}

static bool take_system(body_t *body, const json_t *document)
{
    const json_t *system = kv_json_field(document, "system");
    if (system == NULL || (json_is_string(system) && json_string_length(system) == 0) ||
        (json_is_array(system) && json_array_size(system) == 0)) {
        return true;
    }
    return be_role(body, "system") && take_texts(body, system, "system") && end_message(body);
}

/* ---- tools ---- */

/* What would make a tool another than its schema says. */
static bool check_tool_options(const body_t *body, const json_t *tool, const char *place)
{
    static const char *const FLAGS[] = {"strict", "defer_loading", "input_examples"};
    char field[PLACE_BYTES];
    const json_t *type = kv_json_field(tool, "type");
    if (type != NULL && (!json_is_string(type) || strcmp(json_string_value(type), "custom") != 0)) {
        return REFUSE(body, place_of(place, "type", field),
            "%s: only \"custom\", a tool with an input_schema, is supported", field);
    }
    for (size_t i = 0; i < sizeof FLAGS / sizeof FLAGS[0]; i++) {
        const json_t *flag = kv_json_field(tool, FLAGS[i]);
        if (flag != NULL && !kv_json_is_nothing(flag)) {
            return REFUSE(
                body, place_of(place, FLAGS[i], field), "%s: not supported by this server", field);
        }
    }
    const json_t *callers = kv_json_field(tool, "allowed_callers");
    const char *caller = json_string_value(json_array_get(callers, 0));
    if (callers != NULL &&
        !(json_array_size(callers) == 1 && caller != NULL && strcmp(caller, "direct") == 0)) {
        return REFUSE(body, place_of(place, "allowed_callers", field),
            "%s: only [\"direct\"] is supported", field);
    }
    return true;
}

/* The tool as the template has it: one line, as for a function of OpenAI's API. */
static bool take_tool(body_t *body, const json_t *tool, const char *place)
{
    kv_api_request_t *request = body->request;
    char field[PLACE_BYTES];
    const char *name, *description = NULL;
    if (!json_is_object(tool)) {
        return kv_json_wrong_type(place, "an object", tool, body->error);
    }
    if (!check_tool_options(body, tool, place) ||
        !need_string(body, tool, "name", place, NAME_BYTES_MAX, &name) ||
        !check_name(body, name, place) ||
        !kv_json_take_string(tool, "description", place_of(place, "description", field), SIZE_MAX,
            &description, body->error)) {
        return false;
    }
    json_t *schema = json_object_get(tool, "input_schema");
    if (!json_is_object(schema)) {
        place_of(place, "input_schema", field);
        return schema == NULL ? REFUSE(body, field, "%s: is missing", field)
                              : kv_json_wrong_type(field, "an object", schema, body->error);
    }
    json_t *function = json_pack("{s:s}", "name", name);
    if (description != NULL) {
        json_object_set_new(function, "description", json_string(description));
    }
    json_object_set(function, "parameters", schema);
    json_t *wrapped = json_pack("{s:s,s:o}", "type", "function", "function", function);
    request->tools[request->tool_count++] = kv_json_line(request, wrapped);
    json_decref(wrapped);
    return end_block(body, tool, place);
}

static bool take_tools(body_t *body, const json_t *document)
{
    const json_t *tools = kv_json_field(document, "tools");
    size_t index;
    json_t *tool;
    if (tools == NULL) {
        return true;
    }
    if (!json_is_array(tools)) {
        return kv_json_wrong_type("tools", "an array", tools, body->error);
    }
    if (json_array_size(tools) > TOOLS_MAX) {
        return REFUSE(
            body, "tools", "tools: %zu of them: at most %d", json_array_size(tools), TOOLS_MAX);
    }
    body->request->tools =
        kv_allocate_array(json_array_size(tools) + 1, sizeof *body->request->tools);
    json_array_foreach(tools, index, tool)
    {
        char place[PLACE_BYTES];
        place_at("tools", index, place);
        if (!take_tool(body, tool, place)) {
            return false;
        }
    }
    body->request->has_tools = body->request->tool_count > 0;
    return true;
}

bool kv_anthropic_take_content(
    kv_api_request_t *request, const json_t *document, kv_api_error_t *error)
{
    body_t *body = kv_allocate(sizeof *body);
    *body = (body_t){.request = request, .error = error};
    bool good = take_tools(body, document) && take_system(body, document) &&
                take_messages(body, document) && take_automatic_mark(body, document) &&
                check_marks(body);
    free(body->text);
    free(body->calls);
    free(body);
    return good;
}
