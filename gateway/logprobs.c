#include "gateway/logprobs.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What JSON has no number for: as good as never. */
static const float LEAST = -9999;

/* A token: chances[first], and its alternatives after it. */
typedef struct {
    size_t first, text_at;
    uint32_t top_count;
} place_t;

struct kv_logprobs {
    const kv_tokenizer_t *tokenizer;
    uint32_t tops_max;
    place_t *places;
    size_t count, capacity;
    kv_token_chance_t *chances;
    size_t chance_count, chance_capacity;
    size_t text_characters;
};

kv_logprobs_t *kv_logprobs_create(const kv_tokenizer_t *tokenizer, uint32_t tops_max)
{
    kv_logprobs_t *logprobs = kv_allocate(sizeof *logprobs);
    logprobs->tokenizer = tokenizer;
    logprobs->tops_max = tops_max;
    return logprobs;
}

void kv_logprobs_destroy(kv_logprobs_t *logprobs)
{
    if (logprobs != NULL) {
        free(logprobs->places);
        free(logprobs->chances);
        free(logprobs);
    }
}

/* false: there is no such token. */
static bool add_chance(kv_logprobs_t *logprobs, uint32_t token, float logprob)
{
    const char *text;
    size_t bytes;
    if (kv_tokenizer_piece(logprobs->tokenizer, token, true, &text, &bytes) != KV_OK) {
        return false;
    }
    if (logprobs->chance_count == logprobs->chance_capacity) {
        logprobs->chance_capacity = 2 * logprobs->chance_capacity + 64;
        logprobs->chances =
            kv_reallocate(logprobs->chances, logprobs->chance_capacity, sizeof *logprobs->chances);
    }
    logprobs->chances[logprobs->chance_count++] = (kv_token_chance_t){.text = text,
        .bytes = bytes,
        .token = token,
        .logprob = isfinite(logprob) ? logprob : LEAST};
    return true;
}

/* How many characters begin in the token's text. */
static size_t characters_of(const kv_logprobs_t *logprobs, uint32_t token)
{
    const char *text;
    size_t bytes, count = 0;
    if (kv_tokenizer_piece(logprobs->tokenizer, token, false, &text, &bytes) != KV_OK) {
        return 0;
    }
    for (size_t i = 0; i < bytes; i++) {
        count += ((unsigned char)text[i] & 0xc0) != 0x80;
    }
    return count;
}

void kv_logprobs_add(
    kv_logprobs_t *logprobs, uint32_t token, float logprob, const Kvist__Wire__TopLogprobs *tops)
{
    place_t place = {.first = logprobs->chance_count, .text_at = logprobs->text_characters};
    if (!add_chance(logprobs, token, logprob)) {
        return;
    }
    for (size_t i = 0; tops != NULL && i < tops->n_tokens && i < tops->n_logprobs &&
                       place.top_count < logprobs->tops_max;
         i++) {
        place.top_count += add_chance(logprobs, tops->tokens[i], tops->logprobs[i]);
    }
    if (logprobs->count == logprobs->capacity) {
        logprobs->capacity = 2 * logprobs->capacity + 64;
        logprobs->places =
            kv_reallocate(logprobs->places, logprobs->capacity, sizeof *logprobs->places);
    }
    logprobs->places[logprobs->count++] = place;
    logprobs->text_characters += characters_of(logprobs, token);
}

size_t kv_logprobs_count(const kv_logprobs_t *logprobs)
{
    return logprobs == NULL ? 0 : logprobs->count;
}

kv_token_logprob_t *kv_logprobs_view(const kv_logprobs_t *logprobs, size_t first)
{
    if (first >= kv_logprobs_count(logprobs)) {
        return NULL;
    }
    size_t count = logprobs->count - first;
    kv_token_logprob_t *views = kv_allocate_array(count, sizeof *views);
    for (size_t i = 0; i < count; i++) {
        const place_t *place = &logprobs->places[first + i];
        const kv_token_chance_t *chances = &logprobs->chances[place->first];
        views[i] = (kv_token_logprob_t){.chosen = chances[0],
            .tops = chances + 1,
            .top_count = place->top_count,
            .text_at = place->text_at};
    }
    return views;
}
