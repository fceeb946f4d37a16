#include "tools/kvist/completion.h"

#include "base/clock.h"
#include "base/memory.h"
#include "tools/kvist/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EVENT_BYTES_MAX = 1 << 20, FIRST_CAPACITY = 64 };

const char *const KV_SEEN_NAMES[KV_SEEN_COUNT] = {"device", "host", "disk", "remote"};

/* A stream of server-sent events in the making. */
typedef struct {
    char *bytes; /* what came and is no whole line yet; or the whole body of an error */
    size_t count, capacity;
    bool is_stream, done; /* an event was seen; "[DONE]" was seen */
    bool ended;           /* by the listener */
    kv_listener_t listener;
    void *context;
    kv_answer_t *answer;
    char failure[KV_ERROR_TEXT_BYTES]; /* of an error event within the stream */
} stream_t;

static void copy_text(char *target, size_t bytes, const char *source)
{
    snprintf(target, bytes, "%s", source != NULL ? source : "");
}

static uint64_t count_of(const json_t *object, const char *name)
{
    json_int_t value = json_integer_value(json_object_get(object, name));
    return value > 0 ? (uint64_t)value : 0;
}

void kv_answer_take_usage(kv_answer_t *answer, const json_t *usage)
{
    const json_t *own = json_object_get(usage, "kvist"), *cached = json_object_get(own, "cached");
    const json_t *details = json_object_get(usage, "prompt_tokens_details");
    answer->has_usage = true;
    answer->has_cached = json_is_integer(json_object_get(details, "cached_tokens"));
    answer->prompt_tokens = count_of(usage, "prompt_tokens");
    answer->answer_tokens = count_of(usage, "completion_tokens");
    answer->cached_tokens = count_of(details, "cached_tokens");
    for (int tier = 0; tier < KV_SEEN_COUNT; tier++) {
        answer->seen_tokens[tier] = count_of(cached, KV_SEEN_NAMES[tier]);
    }
    answer->loaded_bytes = count_of(own, "loaded_bytes");
    answer->streamed_bytes = count_of(own, "streamed_bytes");
    answer->load_ms = json_number_value(json_object_get(own, "load_ms"));
    answer->compute_ms = json_number_value(json_object_get(own, "compute_ms"));
    answer->node_first_ms = json_number_value(json_object_get(own, "ttft_ms"));
    answer->decode_kv_reused = json_is_true(json_object_get(own, "decode_kv_reused"));
    copy_text(answer->miss, sizeof answer->miss, json_string_value(json_object_get(own, "miss")));
    copy_text(answer->prefilled_by, sizeof answer->prefilled_by,
        json_string_value(json_object_get(own, "prefilled_by")));
}

static void take_text(stream_t *stream, const char *text)
{
    kv_answer_t *answer = stream->answer;
    size_t bytes = strlen(text);
    if (bytes == 0) {
        return;
    }
    uint64_t now_ns = kv_clock_now_ns();
    if (answer->arrival_count == 0) {
        answer->first_ns = now_ns - answer->begun_ns;
    }
    /* Grown by doubling: at every power of two from FIRST_CAPACITY on. */
    size_t count = answer->arrival_count;
    if (count == 0 || (count >= FIRST_CAPACITY && (count & (count - 1)) == 0)) {
        answer->arrivals_ns = kv_reallocate(answer->arrivals_ns,
            count < FIRST_CAPACITY ? FIRST_CAPACITY : 2 * count, sizeof *answer->arrivals_ns);
    }
    answer->arrivals_ns[answer->arrival_count++] = now_ns;
    answer->text = kv_reallocate(answer->text, answer->text_bytes + bytes + 1, 1);
    memcpy(answer->text + answer->text_bytes, text, bytes + 1);
    answer->text_bytes += bytes;
    if (stream->listener != NULL && !stream->listener(stream->context, text)) {
        stream->ended = true;
    }
}

void kv_describe_failure(const char *body, char *text_out, size_t text_bytes)
{
    json_t *answer = json_loads(body, 0, NULL);
    const char *message =
        json_string_value(json_object_get(json_object_get(answer, "error"), "message"));
    copy_text(text_out, text_bytes, message != NULL ? message : body);
    json_decref(answer);
}

void kv_stream_event_parse(const char *data, kv_stream_event_t *event_out)
{
    *event_out = (kv_stream_event_t){.is_done = strcmp(data, "[DONE]") == 0};
    if (event_out->is_done) {
        return;
    }
    json_t *event = json_loads(data, 0, NULL);
    event_out->document = event;
    if (json_object_get(event, "error") != NULL) {
        kv_describe_failure(data, event_out->failure, sizeof event_out->failure);
    }
    const json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    event_out->text =
        json_string_value(json_object_get(json_object_get(choice, "delta"), "content"));
    if (event_out->text == NULL) {
        event_out->text = json_string_value(json_object_get(choice, "text"));
    }
    event_out->finish = json_string_value(json_object_get(choice, "finish_reason"));
    const json_t *ids = json_object_get(choice, "token_ids");
    event_out->token_ids = json_is_array(ids) ? ids : NULL;
    const json_t *usage = json_object_get(event, "usage");
    event_out->usage = json_is_object(usage) ? usage : NULL;
}

void kv_stream_event_clear(kv_stream_event_t *event)
{
    json_decref(event->document);
}

static void take_event(stream_t *stream, const char *data)
{
    kv_stream_event_t event;
    kv_stream_event_parse(data, &event);
    stream->is_stream = true;
    stream->done |= event.is_done;
    if (event.failure[0] != '\0') {
        copy_text(stream->failure, sizeof stream->failure, event.failure);
    }
    if (event.text != NULL) {
        take_text(stream, event.text);
    }
    if (event.finish != NULL) {
        copy_text(stream->answer->finish, sizeof stream->answer->finish, event.finish);
    }
    if (event.usage != NULL) {
        kv_answer_take_usage(stream->answer, event.usage);
    }
    kv_stream_event_clear(&event);
}

/* Takes the whole lines; those that are no "data:" are comments, names of events or blank. */
static bool arrive(void *context, const char *bytes, size_t count)
{
    stream_t *stream = context;
    if (count > EVENT_BYTES_MAX - stream->count) {
        copy_text(stream->failure, sizeof stream->failure, "an event of the stream is over 1 MiB");
        return false;
    }
    if (stream->count + count + 1 > stream->capacity) {
        stream->capacity = 2 * (stream->count + count + 1);
        stream->bytes = kv_reallocate(stream->bytes, stream->capacity, 1);
    }
    memcpy(stream->bytes + stream->count, bytes, count);
    stream->count += count;
    stream->bytes[stream->count] = '\0';
    char *line = stream->bytes;
    for (char *end; !stream->ended && (end = strchr(line, '\n')) != NULL; line = end + 1) {
        if (strncmp(line, "data:", 5) != 0) {
            if (!stream->is_stream && line[0] != ':' && line[0] != '\n' && line[0] != '\r') {
                break; /* no event stream: an error's body, kept whole */
            }
            continue;
        }
        *end = '\0';
        if (end > line && end[-1] == '\r') {
            end[-1] = '\0';
        }
        take_event(stream, line + 5 + (line[5] == ' '));
    }
    stream->count -= (size_t)(line - stream->bytes);
    memmove(stream->bytes, line, stream->count + 1);
    return !stream->ended;
}

static kv_status_t fail_with_answer(long code, const char *body, kv_error_t *error)
{
    char text[KV_ERROR_TEXT_BYTES - 32];
    kv_describe_failure(body, text, sizeof text);
    return kv_fail(error,
        code == 429                  ? KV_BUSY
        : code == 401 || code == 403 ? KV_REFUSED
        : code < 500                 ? KV_INVALID
                                     : KV_FATAL,
        "HTTP %ld: %s", code, text);
}

kv_status_t kv_complete(const kv_endpoint_t *endpoint, const char *path, json_t *request,
    uint64_t limit_ms, kv_listener_t listener, void *context, kv_answer_t *answer_out,
    kv_error_t *error)
{
    json_object_set_new(request, "stream", json_true());
    json_object_set_new(request, "stream_options", json_pack("{s:b}", "include_usage", 1));
    char url[512], *body = json_dumps(request, JSON_COMPACT);
    snprintf(url, sizeof url, "%s%s", endpoint->url, path);
    *answer_out = (kv_answer_t){.text = kv_duplicate_string(""), .begun_ns = kv_clock_now_ns()};
    stream_t stream = {.bytes = kv_duplicate_string(""),
        .capacity = 1,
        .listener = listener,
        .context = context,
        .answer = answer_out};
    long code = 0;
    kv_status_t status =
        kv_http_request(url, &endpoint->credentials, body, limit_ms, arrive, &stream, &code, error);
    answer_out->total_ns = kv_clock_now_ns() - answer_out->begun_ns;
    if (status == KV_OK && code != 200) {
        status = fail_with_answer(code, stream.bytes, error);
    } else if (stream.failure[0] != '\0') {
        status = kv_fail(error, KV_FATAL, "%s", stream.failure);
    } else if (status == KV_OK && !stream.done) {
        status = kv_fail(error, KV_PEER_LOST, "the answer broke off");
    }
    free(stream.bytes);
    free(body);
    return status;
}

void kv_answer_clear(kv_answer_t *answer)
{
    free(answer->text);
    free(answer->arrivals_ns);
    *answer = (kv_answer_t){0};
}

kv_status_t kv_first_model(const kv_endpoint_t *endpoint, char **model_out, kv_error_t *error)
{
    char url[512], *text;
    long code;
    snprintf(url, sizeof url, "%s/v1/models", endpoint->url);
    kv_status_t status =
        kv_http_fetch(url, &endpoint->credentials, NULL, 10000, &text, &code, error);
    if (status != KV_OK) {
        return status;
    }
    json_t *answer = json_loads(text, 0, NULL);
    const char *model = json_string_value(
        json_object_get(json_array_get(json_object_get(answer, "data"), 0), "id"));
    if (code != 200) {
        status = fail_with_answer(code, text, error);
    } else if (model == NULL) {
        status = kv_fail(error, KV_INVALID, "%s names no model", url);
    } else {
        *model_out = kv_duplicate_string(model);
    }
    json_decref(answer);
    free(text);
    return status;
}

char *kv_describe_cache(const kv_answer_t *answer, char *text_out, size_t text_bytes)
{
    char cached[KV_TEXT_BYTES], prompt[KV_TEXT_BYTES], tokens[KV_TEXT_BYTES];
    int length = snprintf(text_out, text_bytes, "%s of %s cached",
        kv_text_count(answer->cached_tokens, cached), kv_text_count(answer->prompt_tokens, prompt));
    const char *separator = " (";
    for (int tier = 0; tier < KV_SEEN_COUNT; tier++) {
        if (answer->seen_tokens[tier] > 0 && length >= 0 && (size_t)length < text_bytes) {
            length += snprintf(text_out + length, text_bytes - (size_t)length, "%s%s %s", separator,
                KV_SEEN_NAMES[tier], kv_text_count(answer->seen_tokens[tier], tokens));
            separator = ", ";
        }
    }
    if (separator[0] == ',' && (size_t)length + 1 < text_bytes) {
        snprintf(text_out + length, text_bytes - (size_t)length, ")");
    }
    return text_out;
}
