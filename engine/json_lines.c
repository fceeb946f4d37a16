#include "engine/json_lines.h"

#include "base/memory.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *bytes;
    size_t count, capacity, bytes_max;
} line_t;

/* The next line without its end; KV_MISSING at the end of the file. */
static kv_status_t read_line(FILE *in, size_t number, line_t *line, kv_error_t *error)
{
    int byte = EOF;
    line->count = 0;
    while ((byte = getc_unlocked(in)) != EOF && byte != '\n') {
        if (line->count == line->bytes_max) {
            return kv_fail(
                error, KV_INVALID, "line %zu has more than %zu bytes", number, line->bytes_max);
        }
        if (line->count == line->capacity) {
            line->capacity = line->capacity > 0 ? 2 * line->capacity : 4096;
            line->bytes = kv_reallocate(line->bytes, line->capacity, 1);
        }
        line->bytes[line->count++] = (char)byte;
    }
    if (ferror(in)) {
        return kv_fail_errno(error, errno, "cannot read line %zu", number);
    }
    return byte == EOF && line->count == 0 ? KV_MISSING : KV_OK;
}

static bool is_blank(const line_t *line)
{
    for (size_t i = 0; i < line->count; i++) {
        if (line->bytes[i] == '\0' || strchr(" \t\r", line->bytes[i]) == NULL) {
            return false;
        }
    }
    return true;
}

static kv_status_t handle_line(
    const line_t *line, size_t number, kv_json_line_t handle, void *context, kv_error_t *error)
{
    json_error_t problem;
    json_t *object =
        json_loadb(line->bytes, line->count, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &problem);
    if (object == NULL) {
        return kv_fail(
            error, KV_INVALID, "line %zu, column %d: %s", number, problem.column, problem.text);
    }
    kv_status_t status = json_is_object(object)
                             ? handle(context, object, number, error)
                             : kv_fail(error, KV_INVALID, "line %zu is no JSON object", number);
    json_decref(object);
    return status;
}

kv_status_t kv_json_lines_read(
    FILE *in, size_t line_bytes_max, kv_json_line_t handle, void *context, kv_error_t *error)
{
    line_t line = {.bytes_max = line_bytes_max};
    kv_status_t status = KV_OK;
    for (size_t number = 1; status == KV_OK; number++) {
        status = read_line(in, number, &line, error);
        if (status == KV_OK && !is_blank(&line)) {
            status = handle_line(&line, number, handle, context, error);
        }
    }
    free(line.bytes);
    return status == KV_MISSING ? KV_OK : status;
}

kv_status_t kv_json_lines_write(FILE *out, json_t *value, kv_error_t *error)
{
    if (value == NULL) {
        return kv_fail(error, KV_NO_SPACE, "no memory for an answer");
    }
    bool failed = json_dumpf(value, out, JSON_COMPACT | JSON_PRESERVE_ORDER) != 0 ||
                  fputc('\n', out) == EOF || fflush(out) != 0;
    json_decref(value);
    return failed ? kv_fail_errno(error, errno, "cannot write an answer") : KV_OK;
}
