/* Two stages, each of which sees one byte or character after the other, so that the result can't
 * depend on how they came:
 *
 *   token bytes -> characters: a byte that continues no character makes what waited U+FFFD
 *   characters -> text: the first stop string to be completed ends it; of several completed by the
 *   same character the longest, which begins first
 */
#include "engine/detokenizer.h"

#include "base/bytes.h"
#include "base/memory.h"

#include <stdlib.h>

typedef struct {
    char *text;
    size_t bytes;
} stop_t;

typedef struct {
    char *bytes;
    size_t count, capacity;
} buffer_t;

struct kv_detokenizer {
    const kv_tokenizer_t *tokenizer;
    stop_t stops[KV_STOPS_MAX];
    size_t stop_count, stop_bytes_max;
    char character[4]; /* the beginning of a character */
    size_t character_bytes;
    buffer_t text; /* handed_bytes that the last call handed out, then the waiting text */
    size_t handed_bytes;
    bool stopped;
    const char *stopped_by;
};

kv_status_t kv_detokenizer_create(const kv_tokenizer_t *tokenizer, const char *const *stops,
    size_t stop_count, kv_detokenizer_t **detokenizer_out, kv_error_t *error)
{
    if (stop_count > KV_STOPS_MAX) {
        return kv_fail(
            error, KV_INVALID, "stop: there are %zu strings, at most %d", stop_count, KV_STOPS_MAX);
    }
    for (size_t i = 0; i < stop_count; i++) {
        size_t bytes = strlen(stops[i]);
        if (bytes == 0 || bytes > KV_STOP_BYTES_MAX) {
            return kv_fail(error, KV_INVALID, "stop[%zu] has %zu bytes, not 1 to %d", i, bytes,
                KV_STOP_BYTES_MAX);
        }
        if (!kv_utf8_valid(stops[i], bytes)) {
            return kv_fail(error, KV_INVALID, "stop[%zu] is no UTF-8", i);
        }
    }
    kv_detokenizer_t *detokenizer = kv_allocate(sizeof *detokenizer);
    detokenizer->tokenizer = tokenizer;
    for (size_t i = 0; i < stop_count; i++) {
        size_t bytes = strlen(stops[i]);
        detokenizer->stops[i] = (stop_t){kv_duplicate_string(stops[i]), bytes};
        if (bytes > detokenizer->stop_bytes_max) {
            detokenizer->stop_bytes_max = bytes;
        }
    }
    detokenizer->stop_count = stop_count;
    *detokenizer_out = detokenizer;
    return KV_OK;
}

void kv_detokenizer_destroy(kv_detokenizer_t *detokenizer)
{
    if (detokenizer == NULL) {
        return;
    }
    for (size_t i = 0; i < detokenizer->stop_count; i++) {
        free(detokenizer->stops[i].text);
    }
    free(detokenizer->text.bytes);
    free(detokenizer);
}

const char *kv_detokenizer_stopped_by(const kv_detokenizer_t *detokenizer)
{
    return detokenizer->stopped_by;
}

static void append(buffer_t *buffer, const char *bytes, size_t count)
{
    if (buffer->capacity - buffer->count < count) {
        buffer->capacity = 2 * (buffer->count + count) + 64;
        buffer->bytes = kv_reallocate(buffer->bytes, buffer->capacity, 1);
    }
    memcpy(buffer->bytes + buffer->count, bytes, count);
    buffer->count += count;
}

/* A whole character: the second stage. */
static void take_character(kv_detokenizer_t *detokenizer, const char *character, size_t bytes)
{
    buffer_t *text = &detokenizer->text;
    append(text, character, bytes);
    size_t matched = 0;
    for (size_t i = 0; i < detokenizer->stop_count; i++) {
        const stop_t *stop = &detokenizer->stops[i];
        if (stop->bytes > matched && stop->bytes <= text->count &&
            memcmp(text->bytes + text->count - stop->bytes, stop->text, stop->bytes) == 0) {
            matched = stop->bytes;
            detokenizer->stopped_by = stop->text;
        }
    }
    text->count -= matched;
    detokenizer->stopped = matched > 0;
}

/* Whether the bytes can still become a character: the least and the greatest continuation bytes
 * decide, whatever the range of the second byte is. */
static bool may_become_character(const char *bytes, size_t count)
{
    for (int filler = 0x80; filler <= 0xbf; filler += 0x3f) {
        char whole[4];
        memset(whole, filler, sizeof whole);
        memcpy(whole, bytes, count);
        if (kv_utf8_length(whole, sizeof whole) >= count) {
            return true;
        }
    }
    return false;
}

static void take_replacement(kv_detokenizer_t *detokenizer)
{
    detokenizer->character_bytes = 0;
    take_character(detokenizer, "\xef\xbf\xbd", 3);
}

/* The first stage. */
static void take_byte(kv_detokenizer_t *detokenizer, char byte)
{
    detokenizer->character[detokenizer->character_bytes++] = byte;
    size_t bytes = detokenizer->character_bytes;
    if (kv_utf8_length(detokenizer->character, bytes) == bytes) {
        detokenizer->character_bytes = 0;
        take_character(detokenizer, detokenizer->character, bytes);
    } else if (!may_become_character(detokenizer->character, bytes)) {
        take_replacement(detokenizer);
        if (bytes > 1 && !detokenizer->stopped) {
            take_byte(detokenizer, byte); /* it may begin a character itself; once deep */
        }
    }
}

/* The length of the text's longest end that begins a stop string. */
static size_t waiting_bytes(const kv_detokenizer_t *detokenizer)
{
    const buffer_t *text = &detokenizer->text;
    size_t most = detokenizer->stop_bytes_max > 0 ? detokenizer->stop_bytes_max - 1 : 0;
    for (size_t bytes = most < text->count ? most : text->count; bytes > 0; bytes--) {
        const char *end = text->bytes + text->count - bytes;
        for (size_t i = 0; i < detokenizer->stop_count; i++) {
            if (detokenizer->stops[i].bytes > bytes &&
                memcmp(end, detokenizer->stops[i].text, bytes) == 0) {
                return bytes;
            }
        }
    }
    return 0;
}

static void forget_handed(kv_detokenizer_t *detokenizer)
{
    buffer_t *text = &detokenizer->text;
    text->count -= detokenizer->handed_bytes;
    if (text->count > 0) {
        memmove(text->bytes, text->bytes + detokenizer->handed_bytes, text->count);
    }
    detokenizer->handed_bytes = 0;
}

static void hand_out(
    kv_detokenizer_t *detokenizer, size_t bytes, const char **text_out, size_t *bytes_out)
{
    detokenizer->handed_bytes = bytes;
    *text_out = bytes > 0 ? detokenizer->text.bytes : "";
    *bytes_out = bytes;
}

kv_status_t kv_detokenizer_push(kv_detokenizer_t *detokenizer, uint32_t token,
    const char **text_out, size_t *bytes_out, bool *stopped_out)
{
    const char *piece;
    size_t count;
    kv_status_t status = kv_tokenizer_piece(detokenizer->tokenizer, token, false, &piece, &count);
    if (status != KV_OK) {
        return status;
    }
    forget_handed(detokenizer);
    for (size_t i = 0; i < count && !detokenizer->stopped; i++) {
        take_byte(detokenizer, piece[i]);
    }
    size_t waiting = detokenizer->stopped ? 0 : waiting_bytes(detokenizer);
    hand_out(detokenizer, detokenizer->text.count - waiting, text_out, bytes_out);
    *stopped_out = detokenizer->stopped;
    return KV_OK;
}

void kv_detokenizer_finish(kv_detokenizer_t *detokenizer, const char **text_out, size_t *bytes_out)
{
    forget_handed(detokenizer);
    if (detokenizer->character_bytes > 0 && !detokenizer->stopped) {
        take_replacement(detokenizer);
    }
    hand_out(detokenizer, detokenizer->text.count, text_out, bytes_out);
}
