#include "gateway/json.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/clock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *kv_json_kind_name(const json_t *value)
{
    static const char *const NAMES[] = {
        "an object", "an array", "a string", "an integer", "a number", "true", "false", "null"};
    return NAMES[json_typeof(value)];
}

/* Words of the gateway's for what its JSON library does not take, though JSON has it. */
static const char *describe_error(const json_error_t *place)
{
    switch (json_error_code(place)) {
    case json_error_null_character:
    case json_error_null_byte_in_key:
        return "a text holds the character \\u0000, which is not taken here: leave it out";
    case json_error_numeric_overflow:
        return "an integer is beyond 64 bits, or a number beyond what a double holds";
    default:
        return place->text;
    }
}

json_t *kv_json_parse_body(const kv_call_t *call, kv_api_error_t *error)
{
    json_error_t place;
    for (size_t i = 0, length; i < call->body_bytes; i += length) {
        length = kv_utf8_length(call->body + i, call->body_bytes - i);
        if (length == 0) {
            kv_api_fail(
                error, 400, "", "invalid_utf8", "the body is not valid UTF-8 at byte %zu", i);
            return NULL;
        }
    }
    json_t *document = json_loadb(call->body, call->body_bytes, 0, &place);
    if (document == NULL) {
        kv_api_fail(error, 400, "", "invalid_json",
            "the body is not valid JSON: line %d, column %d, byte %d: %s", place.line, place.column,
            place.position, describe_error(&place));
        return NULL;
    }
    if (!json_is_object(document)) {
        kv_api_fail(error, 400, "", "invalid_type", "the body must be a JSON object, but got %s",
            kv_json_kind_name(document));
        json_decref(document);
        return NULL;
    }
    return document;
}

json_t *kv_json_field(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

bool kv_json_wrong_type(
    const char *param, const char *wanted, const json_t *value, kv_api_error_t *error)
{
    return kv_api_fail(error, 400, param, "invalid_type", "%s: must be %s, but got %s", param,
        wanted, kv_json_kind_name(value));
}

bool kv_json_take_bool(const json_t *object, const char *name, const char *param, bool *value_out,
    kv_api_error_t *error)
{
    const json_t *value = kv_json_field(object, name);
    if (value != NULL && !json_is_boolean(value)) {
        return kv_json_wrong_type(param, "true or false", value, error);
    }
    *value_out = value != NULL ? json_is_true(value) : *value_out;
    return true;
}

bool kv_json_whole(const json_t *value, json_int_t *number_out)
{
    static const double EXACT_MAX = 9007199254740992; /* 2^53 */
    if (json_is_integer(value)) {
        *number_out = json_integer_value(value);
        return true;
    }
    double number = json_real_value(value);
    bool whole = json_is_real(value) && fabs(number) <= EXACT_MAX && number == floor(number);
    *number_out = whole ? (json_int_t)number : *number_out;
    return whole;
}

bool kv_json_take_integer(const json_t *object, const char *name, const char *param, json_int_t min,
    json_int_t max, json_int_t *value_out, kv_api_error_t *error)
{
    const json_t *value = kv_json_field(object, name);
    json_int_t number;
    if (value == NULL) {
        return true;
    }
    if (!kv_json_whole(value, &number)) {
        return kv_json_wrong_type(param, "an integer", value, error);
    }
    if (number < min || number > max) {
        return KV_API_REFUSE(error, param, "%s: %lld is out of bounds: must be %lld to %lld", param,
            (long long)number, (long long)min, (long long)max);
    }
    *value_out = number;
    return true;
}

bool kv_json_take_number(const json_t *object, const char *name, const char *param, double min,
    bool min_excluded, double max, float *value_out, kv_api_error_t *error)
{
    const json_t *value = kv_json_field(object, name);
    if (value == NULL) {
        return true;
    }
    if (!json_is_number(value)) {
        return kv_json_wrong_type(param, "a number", value, error);
    }
    double number = json_number_value(value);
    if (!(number >= min && number <= max) || (min_excluded && !((float)number > min))) {
        return KV_API_REFUSE(error, param, "%s: %g is out of bounds: must be %s%g, at most %g",
            param, number, min_excluded ? "above " : "at least ", min, max);
    }
    *value_out = (float)number;
    return true;
}

bool kv_json_take_string(const json_t *object, const char *name, const char *param,
    size_t bytes_max, const char **value_out, kv_api_error_t *error)
{
    const json_t *value = kv_json_field(object, name);
    if (value == NULL) {
        return true;
    }
    if (!json_is_string(value)) {
        return kv_json_wrong_type(param, "a string", value, error);
    }
    if (json_string_length(value) > bytes_max) {
        return KV_API_REFUSE(error, param, "%s: %zu bytes: at most %zu", param,
            json_string_length(value), bytes_max);
    }
    *value_out = json_string_value(value);
    return true;
}

bool kv_json_take_stop(
    kv_api_request_t *request, const json_t *stop, const char *param, kv_api_error_t *error)
{
    if (!json_is_string(stop)) {
        return kv_json_wrong_type(param, "a string", stop, error);
    }
    size_t bytes = json_string_length(stop);
    if (bytes == 0 || bytes > KV_STOP_BYTES_MAX) {
        return KV_API_REFUSE(
            error, param, "%s: %zu bytes: must be 1 to %d", param, bytes, KV_STOP_BYTES_MAX);
    }
    KV_CHECK(request->stop_count < KV_API_STOPS_MAX);
    memcpy(request->stops[request->stop_count++], json_string_value(stop), bytes);
    return true;
}

bool kv_json_is_nothing(const json_t *value)
{
    return json_is_false(value) || (json_is_number(value) && json_number_value(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_string(value) &&
               (json_string_length(value) == 0 || strcmp(json_string_value(value), "none") == 0));
}

/* ---- writing ---- */

static unsigned real_digits(double number)
{
    char text[64];
    unsigned digits = 15;
    for (; digits < 17; digits++) {
        snprintf(text, sizeof text, "%.*g", (int)digits, number);
        if (strtod(text, NULL) == number) {
            break;
        }
    }
    return digits;
}

unsigned kv_json_digits(const json_t *value)
{
    unsigned digits = 15, inner;
    size_t index;
    const char *name;
    json_t *item;
    if (json_is_real(value)) {
        return real_digits(json_real_value(value));
    }
    json_array_foreach(value, index, item)
    {
        inner = kv_json_digits(item);
        digits = inner > digits ? inner : digits;
    }
    json_object_foreach((json_t *)value, name, item)
    {
        inner = kv_json_digits(item);
        digits = inner > digits ? inner : digits;
    }
    return digits;
}

const char *kv_json_line(kv_api_request_t *request, const json_t *value)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(kv_json_digits(value)));
    KV_CHECK(text != NULL);
    size_t bytes = strlen(text) + 1;
    char *line = kv_api_keep(request, bytes);
    memcpy(line, text, bytes);
    free(text);
    return line;
}

json_t *kv_json_text_or_null(const char *text, size_t bytes)
{
    json_t *string = text == NULL ? NULL : json_stringn(text, bytes);
    return string != NULL ? string : json_null();
}

char *kv_json_dump(json_t *document, size_t *bytes_out)
{
    KV_CHECK(document != NULL);
    char *text = json_dumps(document, JSON_COMPACT | JSON_REAL_PRECISION(9));
    KV_CHECK(text != NULL);
    json_decref(document);
    *bytes_out = strlen(text);
    return text;
}

char *kv_json_dump_event(const char *name, json_t *document, size_t *bytes_out)
{
    char *text = kv_json_dump(document, bytes_out), *event;
    int bytes = name != NULL ? asprintf(&event, "event: %s\ndata: %s\n\n", name, text)
                             : asprintf(&event, "data: %s\n\n", text);
    KV_CHECK(bytes > 0);
    free(text);
    *bytes_out = (size_t)bytes;
    return event;
}

json_t *kv_json_usage(const kv_usage_t *told)
{
    static const Kvist__Wire__Usage NONE = KVIST__WIRE__USAGE__INIT;
    const Kvist__Wire__Usage *usage = told->node != NULL ? told->node : &NONE;
    json_t *tiers =
        json_pack("{s:I,s:I,s:I,s:I}", "device", (json_int_t)told->cached_tokens[KV_TIER_DEVICE],
            "host", (json_int_t)told->cached_tokens[KV_TIER_HOST], "disk",
            (json_int_t)told->cached_tokens[KV_TIER_DISK], "remote",
            (json_int_t)told->cached_tokens[KV_TIER_REMOTE]);
    return json_pack("{s:o,s:o,s:f,s:f,s:f,s:f,s:I,s:I,s:o,s:b}", "cached", tiers, "miss",
        kv_json_text_or_null(usage->miss, strlen(usage->miss)), "ttft_ms",
        (double)usage->ttft_ns / KV_NS_PER_MS, "load_ms", (double)usage->load_ns / KV_NS_PER_MS,
        "compute_ms", (double)usage->compute_ns / KV_NS_PER_MS, "match_ms",
        (double)usage->match_ns / KV_NS_PER_MS, "loaded_bytes", (json_int_t)usage->loaded_bytes,
        "streamed_bytes", (json_int_t)usage->streamed_bytes, "prefilled_by",
        kv_json_text_or_null(usage->prefilled_by, strlen(usage->prefilled_by)), "decode_kv_reused",
        (int)usage->decode_kv_reused);
}
