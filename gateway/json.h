/* JSON as the dialects read and write it: a body's checks with errors that name field and bound.
 *
 * param: how the error names the field, where it is not its bare name.
 * A field that is absent or null leaves *value_out as it is.
 * Threads: any. */
#ifndef KV_GATEWAY_JSON_H
#define KV_GATEWAY_JSON_H

#include "gateway/dialect.h"

#include <jansson.h>

/* The body as an object; NULL: *error says what is wrong with it. The caller's to release. */
json_t *kv_json_parse_body(const kv_call_t *call, kv_api_error_t *error);

/* A field that is there and not null, or NULL. */
json_t *kv_json_field(const json_t *object, const char *name);

const char *kv_json_kind_name(const json_t *value);

/* A whole number, which clients may write as 40.0 too; false: it is none, or not exact. */
bool kv_json_whole(const json_t *value, json_int_t *number_out);

/* Answers false. */
bool kv_json_wrong_type(
    const char *param, const char *wanted, const json_t *value, kv_api_error_t *error);

bool kv_json_take_bool(const json_t *object, const char *name, const char *param, bool *value_out,
    kv_api_error_t *error);
bool kv_json_take_integer(const json_t *object, const char *name, const char *param, json_int_t min,
    json_int_t max, json_int_t *value_out, kv_api_error_t *error);

/* min_excluded: the bound itself is out. */
bool kv_json_take_number(const json_t *object, const char *name, const char *param, double min,
    bool min_excluded, double max, float *value_out, kv_api_error_t *error);

/* Points into the document; terminated. *value_out as it is where there is none. */
bool kv_json_take_string(const json_t *object, const char *name, const char *param,
    size_t bytes_max, const char **value_out, kv_api_error_t *error);

/* A text to be one of the request's stop strings. */
bool kv_json_take_stop(
    kv_api_request_t *request, const json_t *stop, const char *param, kv_api_error_t *error);

/* Asks for nothing: false, 0, "", "none", [], {}. */
bool kv_json_is_nothing(const json_t *value);

/* ---- writing ---- */

/* The fewest digits, but at least 15, that keep every number in it: for JSON_REAL_PRECISION. */
unsigned kv_json_digits(const json_t *value);

/* One line, spaced as models see JSON in their prompts; lives as long as the request's texts. */
const char *kv_json_line(kv_api_request_t *request, const json_t *value);

/* Bytes that are no UTF-8 become null: what comes from a peer must not stop an answer. */
json_t *kv_json_text_or_null(const char *text, size_t bytes);

/* Consumes the document. dump_event: as "data: ...\n\n", with "event: NAME\n" before it where name
 * is not NULL. */
char *kv_json_dump(json_t *document, size_t *bytes_out);
char *kv_json_dump_event(const char *name, json_t *document, size_t *bytes_out);

/* What Kvist tells in every API's usage, beyond the API's own fields: "kvist". */
json_t *kv_json_usage(const kv_usage_t *usage);

#endif
