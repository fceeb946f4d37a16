#include "audit/summary.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

enum { HEADING_BYTES_MAX = 160 };

static const char *const WORDS[] = {"summar", "recap", "so far", "condensed", "compacted", "memory",
    "memories", "earlier in this conversation", "previous conversation", "conversation history",
    "earlier conversation", "progress notes"};

static bool has_word(const char *text, uint32_t bytes)
{
    for (size_t k = 0; k < sizeof WORDS / sizeof WORDS[0]; k++) {
        size_t length = strlen(WORDS[k]);
        for (uint32_t i = 0; i + length <= bytes; i++) {
            if (strncasecmp(text + i, WORDS[k], length) == 0) {
                return true;
            }
        }
    }
    return false;
}

static const char *trimmed(const char *line, uint32_t *bytes)
{
    while (*bytes > 0 && isspace((unsigned char)*line)) {
        line++;
        (*bytes)--;
    }
    while (*bytes > 0 && isspace((unsigned char)line[*bytes - 1])) {
        (*bytes)--;
    }
    return line;
}

/* alone: it is the first line, or a blank one stands before it. */
static bool is_heading(const char *line, uint32_t bytes, bool alone)
{
    return bytes > 0 && bytes <= HEADING_BYTES_MAX &&
           (strchr("#<[=", line[0]) != NULL || (alone && line[bytes - 1] == ':') ||
               (bytes > 4 && line[0] == '*' && line[1] == '*' && line[bytes - 1] == '*'));
}

/* "Summary of the conversation: ...", a heading and its text in one line. */
static bool leads_in(const char *line, uint32_t bytes)
{
    uint32_t look = bytes < HEADING_BYTES_MAX ? bytes : HEADING_BYTES_MAX;
    const char *colon = memchr(line, ':', look), *tag = NULL;
    if (line[0] == '<' || line[0] == '[') {
        tag = memchr(line, line[0] == '<' ? '>' : ']', look);
    }
    return (colon != NULL && has_word(line, (uint32_t)(colon - line))) ||
           (tag != NULL && has_word(line, (uint32_t)(tag - line)));
}

/* From the place upwards, line by line, until something is a heading. */
bool kv_summary_governs(const char *text, uint32_t bytes)
{
    for (uint32_t end = bytes; end > 0;) {
        uint32_t from = end;
        while (from > 0 && text[from - 1] != '\n') {
            from--;
        }
        uint32_t count = end - from;
        const char *line = trimmed(text + from, &count);
        if (count > 0 && leads_in(line, count)) {
            return true;
        }
        bool alone = from < 2 || text[from - 2] == '\n';
        if (end != bytes && is_heading(line, count, alone)) {
            return has_word(line, count);
        }
        end = from > 0 ? from - 1 : 0;
    }
    return false;
}

bool kv_summary_opens(const char *text, uint32_t bytes)
{
    for (uint32_t from = 0; from < bytes;) {
        const char *line_end = memchr(text + from, '\n', bytes - from);
        uint32_t end = line_end != NULL ? (uint32_t)(line_end - text) : bytes, count = end - from;
        const char *line = trimmed(text + from, &count);
        if (count > 0 &&
            (leads_in(line, count) || (is_heading(line, count, true) && has_word(line, count)))) {
            return true;
        }
        from = end + 1;
    }
    return false;
}
