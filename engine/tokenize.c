#include "engine/tokenize.h"

#include "base/memory.h"
#include "engine/tokenizer.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Escapes make a text up to six times as long. */
#define LINE_BYTES_MAX ((size_t)6 * KV_TOKENIZER_TEXT_BYTES_MAX + 65536)

typedef struct {
    json_t *id; /* borrowed */
    const char *text;
    size_t text_bytes;
    kv_tokenizer_mode_t mode;
} request_t;

static kv_status_t read_flag(
    const json_t *object, const char *field, size_t line, bool *value_out, kv_error_t *error)
{
    const json_t *value = json_object_get(object, field);
    if (value != NULL && !json_is_boolean(value)) {
        return kv_fail(error, KV_INVALID, "line %zu: %s is not true or false", line, field);
    }
    *value_out = json_is_true(value);
    return KV_OK;
}

static kv_status_t read_request(
    const json_t *object, size_t line, request_t *request_out, kv_error_t *error)
{
    if (!json_is_object(object)) {
        return kv_fail(error, KV_INVALID, "line %zu is no JSON object", line);
    }
    const json_t *text = json_object_get(object, "text");
    request_t request = {.id = json_object_get(object, "id")};
    if (request.id == NULL) {
        return kv_fail(error, KV_INVALID, "line %zu: id is missing", line);
    }
    if (!json_is_string(text)) {
        return kv_fail(error, KV_INVALID, "line %zu: text is %s", line,
            text == NULL ? "missing" : "not a string");
    }
    request.text = json_string_value(text);
    request.text_bytes = json_string_length(text);
    kv_status_t status = read_flag(object, "add_special", line, &request.mode.add_special, error);
    if (status == KV_OK) {
        status = read_flag(object, "parse_special", line, &request.mode.parse_special, error);
    }
    if (status == KV_OK) {
        *request_out = request;
    }
    return status;
}

static kv_status_t write_answer(
    FILE *out, json_t *id, const uint32_t *tokens, size_t count, kv_error_t *error)
{
    json_t *answer = json_object(), *ids = json_array();
    bool failed = answer == NULL || ids == NULL || json_object_set(answer, "id", id) != 0;
    for (size_t i = 0; i < count && !failed; i++) {
        failed = json_array_append_new(ids, json_integer(tokens[i])) != 0;
    }
    failed = failed || json_object_set(answer, "ids", ids) != 0;
    json_decref(ids);
    if (failed) {
        json_decref(answer);
        return kv_fail(error, KV_NO_SPACE, "no memory for an answer of %zu ids", count);
    }
    failed = json_dumpf(answer, out, JSON_COMPACT | JSON_PRESERVE_ORDER) != 0 ||
             fputc('\n', out) == EOF || fflush(out) != 0;
    json_decref(answer);
    return failed ? kv_fail_errno(error, errno, "cannot write an answer") : KV_OK;
}

static kv_status_t answer_line(const kv_tokenizer_t *tokenizer, const char *line, size_t bytes,
    size_t number, FILE *out, kv_error_t *error)
{
    json_error_t problem;
    json_t *object = json_loadb(line, bytes, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &problem);
    if (object == NULL) {
        return kv_fail(
            error, KV_INVALID, "line %zu, column %d: %s", number, problem.column, problem.text);
    }
    request_t request = {0};
    kv_error_t cause;
    uint32_t *tokens = NULL;
    size_t count = 0;
    kv_status_t status = read_request(object, number, &request, error);
    if (status == KV_OK) {
        status = kv_tokenizer_encode(
            tokenizer, request.text, request.text_bytes, request.mode, &tokens, &count, &cause);
        if (status != KV_OK) {
            kv_fail(error, status, "line %zu: text: %.400s", number, cause.text);
        }
    }
    if (status == KV_OK) {
        status = write_answer(out, request.id, tokens, count, error);
        free(tokens);
    }
    json_decref(object);
    return status;
}

typedef struct {
    char *bytes;
    size_t count, capacity;
} line_t;

/* The next line without its end; KV_MISSING at the end of the file. */
static kv_status_t read_line(FILE *in, size_t number, line_t *line, kv_error_t *error)
{
    int byte = EOF;
    line->count = 0;
    while ((byte = getc_unlocked(in)) != EOF && byte != '\n') {
        if (line->count == LINE_BYTES_MAX) {
            return kv_fail(
                error, KV_INVALID, "line %zu has more than %zu bytes", number, LINE_BYTES_MAX);
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
        if (strchr(" \t\r", line->bytes[i]) == NULL || line->bytes[i] == '\0') {
            return false;
        }
    }
    return true;
}

kv_status_t kv_tokenize_run(FILE *in, FILE *out, const char *model_path, kv_error_t *error)
{
    kv_tokenizer_t *tokenizer;
    kv_status_t status = kv_tokenizer_open(model_path, &tokenizer, error);
    if (status != KV_OK) {
        return status;
    }
    line_t line = {0};
    for (size_t number = 1; status == KV_OK; number++) {
        status = read_line(in, number, &line, error);
        if (status == KV_OK && !is_blank(&line)) {
            status = answer_line(tokenizer, line.bytes, line.count, number, out, error);
        }
    }
    free(line.bytes);
    kv_tokenizer_close(tokenizer);
    return status == KV_MISSING ? KV_OK : status;
}
