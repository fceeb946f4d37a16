#include "engine/split.h"

#include "base/memory.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/* White space as Unicode defines it: PCRE2's own \s has U+180E too, which the models' tools have
 * not. */
#define SPACE "\\x{9}-\\x{d}\\x{85}\\p{Z}"

/* GPT-2: contractions; letters, digits or signs, each with at most one space before; spaces, the
 * last of which goes to the word that follows. */
#define CONTRACTION "'(?:[stmd]|re|ve|ll)"
#define LETTERS " ?\\p{L}++"
#define SIGNS " ?[^" SPACE "\\p{L}\\p{N}]++"
#define SPACES "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]++"

static const struct {
    const char *name, *pattern;
} PRE_TOKENIZERS[] = {
    {"gpt-2", CONTRACTION "|" LETTERS "| ?\\p{N}++|" SIGNS "|" SPACES},
    /* Each digit is cut out first and GPT-2's pattern sees the parts between: a part ends before a
     * digit as at the end of the text, so that spaces before a digit stay together. */
    {"smollm", "\\p{N}|" CONTRACTION "|" LETTERS "|" SIGNS "|[" SPACE "]++(?=\\p{N}|\\z)|" SPACES},
};

enum { MATCH_LIMIT = 1000000, DEPTH_LIMIT = 1000, HEAP_LIMIT_KIB = 1024 };

struct kv_split {
    pcre2_code *code;
    pcre2_match_context *context;
};

static kv_status_t compile(kv_split_t *split, const char *pattern, kv_error_t *error)
{
    int code;
    PCRE2_SIZE at;
    split->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
        PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &code, &at, NULL);
    split->context = pcre2_match_context_create(NULL);
    if (split->code == NULL || split->context == NULL) {
        return kv_fail(error, KV_FATAL, "cannot compile the split pattern: pcre2 error %d", code);
    }
    /* Without a compiler for this processor the pattern is interpreted: slower, with equal words.
     */
    pcre2_jit_compile(split->code, PCRE2_JIT_COMPLETE);
    pcre2_set_match_limit(split->context, MATCH_LIMIT);
    pcre2_set_depth_limit(split->context, DEPTH_LIMIT);
    pcre2_set_heap_limit(split->context, HEAP_LIMIT_KIB);
    return KV_OK;
}

kv_status_t kv_split_create(
    const char *name, size_t bytes, kv_split_t **split_out, kv_error_t *error)
{
    const char *pattern = NULL;
    for (size_t i = 0; i < sizeof PRE_TOKENIZERS / sizeof PRE_TOKENIZERS[0]; i++) {
        const char *known = PRE_TOKENIZERS[i].name;
        if (strlen(known) == bytes && memcmp(known, name, bytes) == 0) {
            pattern = PRE_TOKENIZERS[i].pattern;
        }
    }
    if (pattern == NULL) {
        return kv_fail(error, KV_INVALID,
            "tokenizer.ggml.pre is \"%.*s\"; known are \"smollm\" and \"gpt-2\"",
            bytes < 64 ? (int)bytes : 64, name);
    }
    kv_split_t *split = kv_allocate(sizeof *split);
    kv_status_t status = compile(split, pattern, error);
    if (status != KV_OK) {
        kv_split_destroy(split);
        return status;
    }
    *split_out = split;
    return KV_OK;
}

void kv_split_destroy(kv_split_t *split)
{
    if (split != NULL) {
        pcre2_match_context_free(split->context);
        pcre2_code_free(split->code);
        free(split);
    }
}

kv_status_t kv_split_run(const kv_split_t *split, const char *text, size_t bytes,
    void (*word)(void *context, const char *text, size_t bytes), void *context, kv_error_t *error)
{
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (match == NULL) {
        return kv_fail(error, KV_NO_SPACE, "no memory to match the split pattern");
    }
    kv_status_t status = KV_OK;
    size_t at = 0;
    while (at < bytes && status == KV_OK) {
        /* The caller has checked the text: a check here would read all that is left, each time. */
        int code = pcre2_match(split->code, (PCRE2_SPTR)(text + at), bytes - at, 0,
            PCRE2_NO_UTF_CHECK, match, split->context);
        PCRE2_SIZE length = code > 0 ? pcre2_get_ovector_pointer(match)[1] : 0;
        if (length == 0) {
            status = kv_fail(error, KV_INVALID,
                "the text cannot be split at byte %zu: pcre2 error %d", at, code);
        } else {
            word(context, text + at, length);
            at += length;
        }
    }
    pcre2_match_data_free(match);
    return status;
}
