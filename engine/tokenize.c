#include "engine/tokenize.h"

#include "engine/json_lines.h"
#include "engine/tokenizer.h"

#include <stdlib.h>

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
    bool failed = ids == NULL || json_object_set(answer, "id", id) != 0;
    for (size_t i = 0; i < count && !failed; i++) {
        failed = json_array_append_new(ids, json_integer(tokens[i])) != 0;
    }
    failed = failed || json_object_set(answer, "ids", ids) != 0;
    json_decref(ids);
    if (failed) {
        json_decref(answer);
        answer = NULL;
    }
    return kv_json_lines_write(out, answer, error);
}

typedef struct {
    kv_tokenizer_t *tokenizer;
    FILE *out;
} run_t;

static kv_status_t answer_line(void *context, json_t *object, size_t number, kv_error_t *error)
{
    const run_t *run = context;
    request_t request = {0};
    kv_error_t cause;
    uint32_t *tokens = NULL;
    size_t count = 0;
    kv_status_t status = read_request(object, number, &request, error);
    if (status != KV_OK) {
        return status;
    }
    status = kv_tokenizer_encode(
        run->tokenizer, request.text, request.text_bytes, request.mode, &tokens, &count, &cause);
    if (status != KV_OK) {
        return kv_fail(error, status, "line %zu: text: %.400s", number, cause.text);
    }
    status = write_answer(run->out, request.id, tokens, count, error);
    free(tokens);
    return status;
}

kv_status_t kv_tokenize_run(FILE *in, FILE *out, const char *model_path, kv_error_t *error)
{
    run_t run = {.out = out};
    kv_status_t status = kv_tokenizer_open(model_path, &run.tokenizer, error);
    if (status == KV_OK) {
        status = kv_json_lines_read(in, LINE_BYTES_MAX, answer_line, &run, error);
        kv_tokenizer_close(run.tokenizer);
    }
    return status;
}
