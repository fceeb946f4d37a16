/* The model's vocabulary and special tokens; splitting is split.c's, merging bpe.c's. */
#include "engine/tokenizer.h"

#include "base/bytes.h"
#include "base/memory.h"
#include "engine/bpe.h"
#include "engine/gguf.h"
#include "engine/split.h"

#include <stdio.h>
#include <stdlib.h>

enum { VOCABULARY_MAX = 1 << 21 };

/* tokenizer.ggml.token_type; others are plain. */
enum { TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4 };

typedef struct {
    const char *text; /* in pieces */
    size_t bytes;
    uint32_t token;
} special_t;

struct kv_tokenizer {
    kv_bpe_t *bpe;
    kv_split_t *split;
    uint32_t vocabulary_count;
    char *pieces;          /* the bytes of all tokens, one after the other */
    size_t *piece_offsets; /* [vocabulary_count + 1] */
    bool *hidden;          /* [vocabulary_count]: control tokens, no text unless asked for */
    special_t *specials;   /* sorted by text */
    size_t special_count;
    bool special_begins[256]; /* by the first byte of a special token */
    bool add_begin;
    uint32_t begin_token, end_token, context_tokens_max;
    char *model_name, *chat_template;
};

static int compare_specials(const void *left, const void *right)
{
    const special_t *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->bytes < b->bytes ? a->bytes : b->bytes);
    if (order == 0) {
        order = (a->bytes > b->bytes) - (a->bytes < b->bytes);
    }
    return order != 0 ? order : (a->token > b->token) - (a->token < b->token);
}

/* Specials are spelled as they are, plain tokens one character a byte. */
static kv_status_t read_pieces(kv_tokenizer_t *tokenizer, const kv_gguf_string_t *tokens,
    const uint8_t *types, kv_error_t *error)
{
    size_t bytes = 0;
    for (size_t i = 0; i < tokenizer->vocabulary_count; i++) {
        bytes += tokens[i].bytes; /* their sum is less than the file */
    }
    tokenizer->pieces = kv_allocate(bytes);
    tokenizer->piece_offsets =
        kv_allocate_array((size_t)tokenizer->vocabulary_count + 1, sizeof(size_t));
    tokenizer->hidden = kv_allocate_array(tokenizer->vocabulary_count, sizeof(bool));
    tokenizer->specials = kv_allocate_array(tokenizer->vocabulary_count, sizeof(special_t));
    size_t offset = 0;
    for (uint32_t i = 0; i < tokenizer->vocabulary_count; i++) {
        const kv_gguf_string_t *token = &tokens[i];
        uint32_t type = kv_get_u32(types + 4 * (size_t)i);
        char *piece = tokenizer->pieces + offset;
        size_t count = token->bytes;
        bool special = type >= TYPE_UNKNOWN && type <= TYPE_USER_DEFINED;
        if (special || !kv_bpe_unspell(token->text, token->bytes, piece, &count)) {
            memcpy(piece, token->text, count = token->bytes);
        }
        /* A special token that cuts a character in two would leave halves to the split pattern. */
        if (special && (count == 0 || !kv_utf8_valid(piece, count))) {
            return kv_fail(
                error, KV_INVALID, "tokenizer.ggml.tokens[%u] is special and empty or no UTF-8", i);
        }
        if (special) {
            tokenizer->specials[tokenizer->special_count++] = (special_t){piece, count, i};
            tokenizer->special_begins[(unsigned char)piece[0]] = true;
        }
        tokenizer->hidden[i] = special && type != TYPE_USER_DEFINED;
        offset += count;
        tokenizer->piece_offsets[i + 1] = offset;
    }
    qsort(tokenizer->specials, tokenizer->special_count, sizeof(special_t), compare_specials);
    return KV_OK;
}

static kv_status_t read_vocabulary(
    kv_tokenizer_t *tokenizer, const kv_gguf_t *gguf, kv_error_t *error)
{
    kv_gguf_string_t *tokens = NULL, *merges = NULL;
    size_t token_count = 0, type_count = 0, merge_count = 0;
    const void *types = NULL;
    kv_status_t status =
        kv_gguf_strings(gguf, "tokenizer.ggml.tokens", &tokens, &token_count, error);
    if (status == KV_OK && (token_count == 0 || token_count > VOCABULARY_MAX)) {
        status = kv_fail(error, KV_INVALID, "tokenizer.ggml.tokens has %zu tokens, not 1 to %d",
            token_count, VOCABULARY_MAX);
    }
    if (status == KV_OK) {
        status = kv_gguf_integers(gguf, "tokenizer.ggml.token_type", &types, &type_count, error);
    }
    if (status == KV_OK && type_count != token_count) {
        status = kv_fail(error, KV_INVALID,
            "tokenizer.ggml.token_type has %zu types for %zu tokens", type_count, token_count);
    }
    if (status == KV_OK) {
        status = kv_gguf_strings(gguf, "tokenizer.ggml.merges", &merges, &merge_count, error);
    }
    if (status == KV_OK && merge_count > VOCABULARY_MAX) {
        status = kv_fail(error, KV_INVALID, "tokenizer.ggml.merges has %zu merges, more than %d",
            merge_count, VOCABULARY_MAX);
    }
    if (status == KV_OK) {
        status = kv_bpe_create(tokens, token_count, merges, merge_count, &tokenizer->bpe, error);
    }
    if (status == KV_OK) {
        tokenizer->vocabulary_count = (uint32_t)token_count;
        status = read_pieces(tokenizer, tokens, types, error);
    }
    free(tokens);
    free(merges);
    return status;
}

static kv_status_t read_token_id(const kv_tokenizer_t *tokenizer, const kv_gguf_t *gguf,
    const char *key, uint32_t *token_out, kv_error_t *error)
{
    uint32_t token = 0;
    kv_status_t status = kv_gguf_u32(gguf, key, &token, error);
    if (status == KV_OK && token >= tokenizer->vocabulary_count) {
        status = kv_fail(error, KV_INVALID, "%s is %u, the vocabulary has %u tokens", key, token,
            tokenizer->vocabulary_count);
    }
    if (status == KV_OK) {
        *token_out = token;
    }
    return status;
}

/* A copy of an optional text; *text_out stays NULL when the key is absent. */
static kv_status_t read_text(
    const kv_gguf_t *gguf, const char *key, char **text_out, kv_error_t *error)
{
    kv_gguf_string_t text = {0};
    kv_status_t status = kv_gguf_string(gguf, key, &text, error);
    if (status != KV_OK) {
        return status == KV_MISSING ? KV_OK : status;
    }
    if (!kv_utf8_valid(text.text, text.bytes) || memchr(text.text, '\0', text.bytes) != NULL) {
        return kv_fail(error, KV_INVALID, "%s is no UTF-8 text", key);
    }
    *text_out = kv_allocate(text.bytes + 1);
    memcpy(*text_out, text.text, text.bytes);
    return KV_OK;
}

static kv_status_t read_context(kv_tokenizer_t *tokenizer, const kv_gguf_t *gguf, kv_error_t *error)
{
    kv_gguf_string_t architecture = {0};
    kv_status_t status = kv_gguf_string(gguf, "general.architecture", &architecture, error);
    if (status != KV_OK) {
        return status;
    }
    char key[128];
    int length = snprintf(key, sizeof key, "%.*s.context_length",
        architecture.bytes < 64 ? (int)architecture.bytes : 64, architecture.text);
    if (length >= (int)sizeof key) {
        return kv_fail(error, KV_INVALID, "general.architecture has %zu bytes", architecture.bytes);
    }
    return kv_gguf_u32(gguf, key, &tokenizer->context_tokens_max, error);
}

static kv_status_t read_split(kv_tokenizer_t *tokenizer, const kv_gguf_t *gguf, kv_error_t *error)
{
    kv_gguf_string_t model = {0}, pre = {0};
    kv_status_t status = kv_gguf_string(gguf, "tokenizer.ggml.model", &model, error);
    if (status == KV_OK && (model.bytes != 4 || memcmp(model.text, "gpt2", 4) != 0)) {
        status = kv_fail(error, KV_INVALID,
            "tokenizer.ggml.model is \"%.*s\"; only \"gpt2\" (byte-level BPE) is read",
            model.bytes < 64 ? (int)model.bytes : 64, model.text);
    }
    if (status == KV_OK) {
        status = kv_gguf_string(gguf, "tokenizer.ggml.pre", &pre, error);
    }
    return status == KV_OK ? kv_split_create(pre.text, pre.bytes, &tokenizer->split, error)
                           : status;
}

static kv_status_t load(kv_tokenizer_t *tokenizer, const kv_gguf_t *gguf, kv_error_t *error)
{
    kv_status_t status = read_split(tokenizer, gguf, error);
    if (status == KV_OK) {
        status = read_vocabulary(tokenizer, gguf, error);
    }
    if (status == KV_OK) {
        status = read_token_id(
            tokenizer, gguf, "tokenizer.ggml.eos_token_id", &tokenizer->end_token, error);
    }
    if (status == KV_OK) {
        status = kv_gguf_bool(gguf, "tokenizer.ggml.add_bos_token", &tokenizer->add_begin, error);
        status = status == KV_MISSING ? KV_OK : status;
    }
    if (status == KV_OK && tokenizer->add_begin) {
        status = read_token_id(
            tokenizer, gguf, "tokenizer.ggml.bos_token_id", &tokenizer->begin_token, error);
    }
    if (status == KV_OK) {
        status = read_context(tokenizer, gguf, error);
    }
    if (status == KV_OK) {
        status = read_text(gguf, "general.name", &tokenizer->model_name, error);
    }
    if (status == KV_OK && tokenizer->model_name == NULL) {
        tokenizer->model_name = kv_duplicate_string("unnamed");
    }
    if (status == KV_OK) {
        status = read_text(gguf, "tokenizer.chat_template", &tokenizer->chat_template, error);
    }
    return status;
}

kv_status_t kv_tokenizer_open(
    const char *model_path, kv_tokenizer_t **tokenizer_out, kv_error_t *error)
{
    kv_gguf_t *gguf;
    kv_status_t status = kv_gguf_open(model_path, &gguf, error);
    if (status != KV_OK) {
        return status;
    }
    kv_tokenizer_t *tokenizer = kv_allocate(sizeof *tokenizer);
    status = load(tokenizer, gguf, error);
    kv_gguf_close(gguf);
    if (status != KV_OK) {
        kv_tokenizer_close(tokenizer);
        return status;
    }
    *tokenizer_out = tokenizer;
    return KV_OK;
}

void kv_tokenizer_close(kv_tokenizer_t *tokenizer)
{
    if (tokenizer == NULL) {
        return;
    }
    kv_bpe_destroy(tokenizer->bpe);
    kv_split_destroy(tokenizer->split);
    free(tokenizer->pieces);
    free(tokenizer->piece_offsets);
    free(tokenizer->hidden);
    free(tokenizer->specials);
    free(tokenizer->model_name);
    free(tokenizer->chat_template);
    free(tokenizer);
}

/* Of the specials [low, high), which all have more than depth bytes and agree on the first depth:
 * the index of the first whose byte at depth is at least wanted. */
static size_t lower_bound(
    const special_t *specials, size_t low, size_t high, size_t depth, unsigned wanted)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((unsigned char)specials[middle].text[depth] < wanted) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The longest special token that the text begins with, or NULL. The range of candidates narrows
 * byte by byte, so that many specials cost no more than few. */
static const special_t *match_special(
    const kv_tokenizer_t *tokenizer, const char *text, size_t bytes)
{
    const special_t *specials = tokenizer->specials, *best = NULL;
    size_t low = 0, high = tokenizer->special_count;
    for (size_t depth = 0; depth < bytes && low < high; depth++) {
        unsigned wanted = (unsigned char)text[depth];
        low = lower_bound(specials, low, high, depth, wanted);
        high = lower_bound(specials, low, high, depth, wanted + 1);
        if (low < high && specials[low].bytes == depth + 1) {
            best = &specials[low];
        }
        while (low < high && specials[low].bytes == depth + 1) {
            low++;
        }
    }
    return best;
}

typedef struct {
    const kv_bpe_t *bpe;
    kv_bpe_scratch_t scratch;
    kv_token_list_t list;
} encoder_t;

static void encode_word(void *context, const char *text, size_t bytes)
{
    encoder_t *encoder = context;
    kv_bpe_encode(encoder->bpe, &encoder->scratch, text, bytes, &encoder->list);
}

static kv_status_t encode(const kv_tokenizer_t *tokenizer, encoder_t *encoder, const char *text,
    size_t bytes, bool parse_special, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    size_t start = 0; /* of the plain text before at */
    for (size_t at = 0; parse_special && at < bytes && status == KV_OK;) {
        const special_t *special = tokenizer->special_begins[(unsigned char)text[at]]
                                       ? match_special(tokenizer, text + at, bytes - at)
                                       : NULL;
        if (special == NULL) {
            at++;
            continue;
        }
        status =
            kv_split_run(tokenizer->split, text + start, at - start, encode_word, encoder, error);
        kv_token_list_append(&encoder->list, special->token);
        start = at += special->bytes;
    }
    return status == KV_OK ? kv_split_run(tokenizer->split, text + start, bytes - start,
                                 encode_word, encoder, error)
                           : status;
}

static kv_status_t check_text(const char *text, size_t bytes, kv_error_t *error)
{
    if (bytes > KV_TOKENIZER_TEXT_BYTES_MAX) {
        return kv_fail(error, KV_INVALID, "the text has %zu bytes, more than %d", bytes,
            KV_TOKENIZER_TEXT_BYTES_MAX);
    }
    for (size_t at = 0; at < bytes;) {
        size_t length = kv_utf8_length(text + at, bytes - at);
        if (length == 0) {
            return kv_fail(error, KV_INVALID, "the text is no UTF-8 at byte %zu (0x%02x)", at,
                (unsigned char)text[at]);
        }
        at += length;
    }
    return KV_OK;
}

kv_status_t kv_tokenizer_encode(const kv_tokenizer_t *tokenizer, const char *text, size_t bytes,
    kv_tokenizer_mode_t mode, uint32_t **tokens_out, size_t *count_out, kv_error_t *error)
{
    kv_status_t status = check_text(text, bytes, error);
    if (status != KV_OK) {
        return status;
    }
    encoder_t encoder = {.bpe = tokenizer->bpe};
    if (mode.add_special && tokenizer->add_begin) {
        kv_token_list_append(&encoder.list, tokenizer->begin_token);
    }
    status = encode(tokenizer, &encoder, text, bytes, mode.parse_special, error);
    kv_bpe_scratch_free(&encoder.scratch);
    if (status != KV_OK) {
        free(encoder.list.tokens);
        return status;
    }
    *tokens_out = encoder.list.tokens;
    *count_out = encoder.list.count;
    return KV_OK;
}

kv_status_t kv_tokenizer_piece(const kv_tokenizer_t *tokenizer, uint32_t token, bool with_special,
    const char **bytes_out, size_t *count_out)
{
    if (token >= tokenizer->vocabulary_count) {
        return KV_INVALID;
    }
    size_t start = tokenizer->piece_offsets[token];
    bool silent = tokenizer->hidden[token] && !with_special;
    *bytes_out = tokenizer->pieces + start;
    *count_out = silent ? 0 : tokenizer->piece_offsets[token + 1] - start;
    return KV_OK;
}

kv_status_t kv_tokenizer_special(
    const kv_tokenizer_t *tokenizer, const char *text, uint32_t *token_out)
{
    const special_t *special = match_special(tokenizer, text, strlen(text));
    if (special == NULL || special->bytes != strlen(text)) {
        return KV_MISSING;
    }
    *token_out = special->token;
    return KV_OK;
}

uint32_t kv_tokenizer_vocabulary_count(const kv_tokenizer_t *tokenizer)
{
    return tokenizer->vocabulary_count;
}

uint32_t kv_tokenizer_end_token(const kv_tokenizer_t *tokenizer)
{
    return tokenizer->end_token;
}

uint32_t kv_tokenizer_context_tokens_max(const kv_tokenizer_t *tokenizer)
{
    return tokenizer->context_tokens_max;
}

const char *kv_tokenizer_model_name(const kv_tokenizer_t *tokenizer)
{
    return tokenizer->model_name;
}

const char *kv_tokenizer_chat_template(const kv_tokenizer_t *tokenizer)
{
    return tokenizer->chat_template;
}
