/* Calls of tools in an answer's text. First byte: how the text is cut. However it is cut the same
 * text and the same calls come out; what comes is what a model wrote, or some of it: no more bytes
 * than there were, names that may stand in a prompt, arguments that are JSON. */
#include "fuzz.h"

#include "gateway/tool_calls.h"

#include <string.h>

typedef struct {
    char *text;
    size_t bytes, calls;
    uint64_t sum; /* of the calls' texts */
} seen_t;

static void take_text(seen_t *seen, const char *text, size_t bytes)
{
    seen->text = realloc(seen->text, seen->bytes + bytes + 1);
    FUZZ_CHECK(seen->text != NULL && (text != NULL || bytes == 0));
    if (bytes > 0) {
        memcpy(seen->text + seen->bytes, text, bytes);
    }
    seen->bytes += bytes;
}

static void add_sum(seen_t *seen, const char *text)
{
    for (; *text != '\0'; text++) {
        seen->sum = seen->sum * 31 + (uint8_t)*text;
    }
    seen->sum = seen->sum * 31 + 1000;
}

/* Of valid UTF-8, as a detokenizer's text is, in pieces of step bytes at least. */
static seen_t parse(const char *text, size_t count, size_t step)
{
    seen_t seen = {0};
    kv_tool_parser_t *parser = kv_tool_parser_create();
    const char *out;
    size_t bytes;
    for (size_t at = 0, end; at < count; at = end) {
        end = count - at < step ? count : at + step;
        while (end < count && ((uint8_t)text[end] & 0xc0) == 0x80) {
            end++; /* whole characters */
        }
        kv_tool_parser_push(parser, text + at, end - at, &out, &bytes);
        take_text(&seen, out, bytes);
    }
    kv_tool_parser_finish(parser, &out, &bytes);
    take_text(&seen, out, bytes);
    const kv_parsed_call_t *calls = kv_tool_parser_calls(parser, &seen.calls);
    for (size_t i = 0; i < seen.calls; i++) {
        FUZZ_CHECK(kv_tool_name_is_valid(calls[i].name));
        FUZZ_CHECK(kv_tool_arguments_are_valid(calls[i].arguments));
        add_sum(&seen, calls[i].name);
        add_sum(&seen, calls[i].arguments);
    }
    kv_tool_parser_destroy(parser);
    return seen;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    fuzz_input_t input = {bytes, count};
    size_t step = 1 + (size_t)fuzz_u8(&input) % 64, length;
    char *text = (char *)fuzz_take(&input, input.count, &length);
    if (kv_utf8_valid(text, length)) {
        seen_t whole = parse(text, length, length + 1), cut = parse(text, length, step);
        FUZZ_CHECK(whole.bytes <= length && whole.bytes == cut.bytes);
        FUZZ_CHECK(whole.bytes == 0 || memcmp(whole.text, cut.text, whole.bytes) == 0);
        FUZZ_CHECK(whole.calls == cut.calls && whole.sum == cut.sum);
        FUZZ_CHECK(whole.calls > 0 || whole.bytes == length);
        free(whole.text);
        free(cut.text);
    }
    free(text);
    return 0;
}
