/* Calls of tools in an answer's text, as it comes: what stands between <tool_call> and </tool_call>
 * and is a call becomes one; everything else is text, not a byte of it lost.
 *
 * White space before a call is not told: models put their calls on lines of their own. What begins
 * like a call and is none (not JSON, no name, never closed) is told as the text that it is. A call
 * that the answer's end leaves unclosed counts where it is whole.
 * Owns: texts and calls.
 * Threads: one at a time. */
#ifndef KV_GATEWAY_TOOL_CALLS_H
#define KV_GATEWAY_TOOL_CALLS_H

#include <stdbool.h>
#include <stddef.h>

enum { KV_TOOL_NAME_BYTES_MAX = 128 };

/* arguments: the object as the model wrote it. */
typedef struct {
    char *name, *arguments;
} kv_parsed_call_t;

typedef struct kv_tool_parser kv_tool_parser_t;

kv_tool_parser_t *kv_tool_parser_create(void);
void kv_tool_parser_destroy(kv_tool_parser_t *parser);

/* More of the answer's text; it is UTF-8. text_out: what of it is plain text, perhaps none, valid
 * until the next call. */
void kv_tool_parser_push(kv_tool_parser_t *parser, const char *text, size_t bytes,
    const char **text_out, size_t *bytes_out);

/* After the last push: what was waiting. */
void kv_tool_parser_finish(kv_tool_parser_t *parser, const char **text_out, size_t *bytes_out);

/* All calls so far; valid until the next call of push or finish. */
const kv_parsed_call_t *kv_tool_parser_calls(const kv_tool_parser_t *parser, size_t *count_out);

/* Letters, digits, "_", "-", "." and ":", 1 to KV_TOOL_NAME_BYTES_MAX: a name that may stand in a
 * prompt as it is. */
bool kv_tool_name_is_valid(const char *name);

/* A terminated text that is a JSON object and nothing else. */
bool kv_tool_arguments_are_valid(const char *arguments);

#endif
