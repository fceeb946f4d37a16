#include "gateway/tool_calls.h"

#include "base/memory.h"

#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const char OPEN[] = "<tool_call>";
static const char CLOSE[] = "</tool_call>";
enum { OPEN_BYTES = sizeof OPEN - 1, CLOSE_BYTES = sizeof CLOSE - 1 };

typedef struct {
    char *bytes;
    size_t count, capacity;
} text_t;

struct kv_tool_parser {
    text_t held; /* not decided: text that may begin a call, or a call from its OPEN on */
    text_t told; /* plain text of this push */
    bool in_call;
    /* Of a call: how far its end was looked for, and whether that is inside a JSON string. */
    size_t scanned;
    bool in_string, escaped;
    kv_parsed_call_t *calls;
    size_t call_count;
};

kv_tool_parser_t *kv_tool_parser_create(void)
{
    return kv_allocate(sizeof(kv_tool_parser_t));
}

void kv_tool_parser_destroy(kv_tool_parser_t *parser)
{
    if (parser == NULL) {
        return;
    }
    for (size_t i = 0; i < parser->call_count; i++) {
        free(parser->calls[i].name);
        free(parser->calls[i].arguments);
    }
    free(parser->calls);
    free(parser->held.bytes);
    free(parser->told.bytes);
    free(parser);
}

static void append(text_t *text, const char *bytes, size_t count)
{
    if (count > text->capacity - text->count) {
        text->capacity = 2 * (text->count + count) + 64;
        text->bytes = kv_reallocate(text->bytes, text->capacity, 1);
    }
    if (count > 0) {
        memcpy(text->bytes + text->count, bytes, count);
        text->count += count;
    }
}

static void drop_front(text_t *text, size_t count)
{
    if (count > 0) {
        text->count -= count;
        memmove(text->bytes, text->bytes + count, text->count);
    }
}

static bool is_space(char byte)
{
    return byte == ' ' || byte == '\n' || byte == '\r' || byte == '\t';
}

/* ---- one call ---- */

bool kv_tool_name_is_valid(const char *name)
{
    size_t bytes =
        strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:");
    return bytes > 0 && bytes <= KV_TOOL_NAME_BYTES_MAX && name[bytes] == '\0';
}

bool kv_tool_arguments_are_valid(const char *arguments)
{
    json_t *document = json_loads(arguments, JSON_REJECT_DUPLICATES, NULL);
    bool valid = json_is_object(document);
    json_decref(document);
    return valid;
}

/* Behind the string that begins at `at`, in text that is JSON. */
static size_t skip_string(const char *text, size_t at)
{
    for (at++; text[at] != '"'; at++) {
        at += text[at] == '\\';
    }
    return at + 1;
}

/* Behind the object that begins at `at`, in text that is JSON. */
static size_t skip_object(const char *text, size_t at)
{
    size_t depth = 0;
    do {
        if (text[at] == '"') {
            at = skip_string(text, at);
            continue;
        }
        depth += text[at] == '{' || text[at] == '[';
        depth -= text[at] == '}' || text[at] == ']';
        at++;
    } while (depth > 0);
    return at;
}

/* The text of the object's own field of this name, whose value is an object; text is JSON. NULL:
 * its name is spelled with escapes. */
static char *copy_object_field(const char *text, size_t bytes, const char *name)
{
    size_t depth = 0, name_bytes = strlen(name);
    for (size_t at = 0; at < bytes;) {
        if (text[at] != '"') {
            depth += text[at] == '{' || text[at] == '[';
            depth -= text[at] == '}' || text[at] == ']';
            at++;
            continue;
        }
        size_t begin = at;
        at = skip_string(text, at);
        bool named =
            at - begin == name_bytes + 2 && memcmp(text + begin + 1, name, name_bytes) == 0;
        while (at < bytes && is_space(text[at])) {
            at++;
        }
        if (depth != 1 || !named || text[at] != ':') {
            continue;
        }
        at++;
        while (is_space(text[at])) {
            at++;
        }
        size_t end = skip_object(text, at);
        char *copy = kv_allocate(end - at + 1);
        memcpy(copy, text + at, end - at);
        return copy;
    }
    return NULL;
}

/* {"name": ..., "arguments": {...}}; false: it is none. */
static bool take_call(kv_tool_parser_t *parser, const char *text, size_t bytes)
{
    json_t *document = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    const char *name = json_string_value(json_object_get(document, "name"));
    const json_t *arguments = json_object_get(document, "arguments");
    char *copy = NULL;
    if (name != NULL && kv_tool_name_is_valid(name)) {
        copy = arguments == NULL           ? kv_duplicate_string("{}")
               : json_is_object(arguments) ? copy_object_field(text, bytes, "arguments")
                                           : NULL;
    }
    if (copy != NULL) {
        parser->calls = kv_reallocate(parser->calls, parser->call_count + 1, sizeof *parser->calls);
        parser->calls[parser->call_count++] = (kv_parsed_call_t){kv_duplicate_string(name), copy};
    }
    json_decref(document);
    return copy != NULL;
}

/* ---- the text ---- */

/* How much of the held text's end may still become white space and OPEN. */
static size_t undecided_bytes(const text_t *held)
{
    size_t begun = held->count < OPEN_BYTES ? held->count : OPEN_BYTES - 1;
    while (begun > 0 && memcmp(held->bytes + held->count - begun, OPEN, begun) != 0) {
        begun--;
    }
    while (begun < held->count && is_space(held->bytes[held->count - begun - 1])) {
        begun++;
    }
    return begun;
}

/* Plain text up to a call, if there is one. Whether to look on. */
static bool step_text(kv_tool_parser_t *parser)
{
    text_t *held = &parser->held;
    const char *open = held->count > 0 ? memmem(held->bytes, held->count, OPEN, OPEN_BYTES) : NULL;
    if (open == NULL) {
        size_t told = held->count - undecided_bytes(held);
        append(&parser->told, held->bytes, told);
        drop_front(held, told);
        return false;
    }
    size_t before = (size_t)(open - held->bytes), told = before;
    while (told > 0 && is_space(held->bytes[told - 1])) {
        told--;
    }
    append(&parser->told, held->bytes, told);
    /* The white space stays, in case the call is none. */
    drop_front(held, told);
    parser->in_call = true;
    parser->scanned = before - told + OPEN_BYTES;
    parser->in_string = parser->escaped = false;
    return true;
}

/* CLOSE outside of a JSON string, or SIZE_MAX; goes on where it stopped. */
static size_t find_close(kv_tool_parser_t *parser)
{
    const text_t *held = &parser->held;
    for (; parser->scanned < held->count; parser->scanned++) {
        char byte = held->bytes[parser->scanned];
        if (parser->in_string) {
            parser->in_string = parser->escaped || byte != '"';
            parser->escaped = !parser->escaped && byte == '\\';
        } else if (byte == '<') {
            size_t left = held->count - parser->scanned;
            size_t known = left < CLOSE_BYTES ? left : CLOSE_BYTES;
            if (memcmp(held->bytes + parser->scanned, CLOSE, known) != 0) {
                continue;
            }
            return known == CLOSE_BYTES ? parser->scanned : SIZE_MAX;
        } else {
            parser->in_string = byte == '"';
        }
    }
    return SIZE_MAX;
}

/* The held text up to `end` is white space, OPEN and a body; behind says how much of it CLOSE adds.
 */
static void end_call(kv_tool_parser_t *parser, size_t end, size_t behind)
{
    text_t *held = &parser->held;
    size_t body =
        (size_t)((const char *)memmem(held->bytes, held->count, OPEN, OPEN_BYTES) - held->bytes) +
        OPEN_BYTES;
    if (!take_call(parser, held->bytes + body, end - body)) {
        append(&parser->told, held->bytes, end + behind);
    }
    drop_front(held, end + behind);
    parser->in_call = false;
}

static bool step_call(kv_tool_parser_t *parser)
{
    size_t close = find_close(parser);
    if (close == SIZE_MAX) {
        return false;
    }
    end_call(parser, close, CLOSE_BYTES);
    return true;
}

static void hand_out(const kv_tool_parser_t *parser, const char **text_out, size_t *bytes_out)
{
    *text_out = parser->told.count > 0 ? parser->told.bytes : "";
    *bytes_out = parser->told.count;
}

void kv_tool_parser_push(kv_tool_parser_t *parser, const char *text, size_t bytes,
    const char **text_out, size_t *bytes_out)
{
    parser->told.count = 0;
    append(&parser->held, text, bytes);
    while (parser->in_call ? step_call(parser) : step_text(parser)) {
    }
    hand_out(parser, text_out, bytes_out);
}

void kv_tool_parser_finish(kv_tool_parser_t *parser, const char **text_out, size_t *bytes_out)
{
    parser->told.count = 0;
    if (parser->in_call) {
        /* Nothing closes it any more: it is a call if it is whole, and text otherwise. */
        end_call(parser, parser->held.count, 0);
    }
    append(&parser->told, parser->held.bytes, parser->held.count);
    parser->held.count = 0;
    hand_out(parser, text_out, bytes_out);
}

const kv_parsed_call_t *kv_tool_parser_calls(const kv_tool_parser_t *parser, size_t *count_out)
{
    *count_out = parser->call_count;
    return parser->calls;
}
