/* Byte pair encoding with a linked list of symbols and a heap of candidate pairs.
 *
 * 1. A symbol is a token and its neighbours; merging keeps the left one and unlinks the right one.
 * 2. A candidate is (rank << 32 | left symbol): the heap's least is the lowest rank, and of equal
 *    ranks the leftmost. Candidates are not removed when a merge makes them untrue; a popped one
 *    counts only where both symbols still are the tokens of its merge.
 * 3. So a word of n bytes costs O(n log n), whatever it is. */
#include "engine/bpe.h"

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/memory.h"

#include <stdlib.h>

#define NONE UINT32_MAX

typedef struct {
    uint32_t left, right, merged; /* tokens */
} merge_t;

struct kv_bpe {
    uint32_t byte_tokens[256]; /* NONE where the vocabulary lacks the byte */
    merge_t *merges;           /* by rank */
    uint32_t *slots;           /* ranks by hash of (left, right), NONE where free; linear probing */
    size_t slot_count;         /* a power of two, at least twice the merges */
};

struct kv_bpe_symbol {
    uint32_t token; /* NONE when unlinked */
    uint32_t previous, next;
};

/* Tokens by spelling, while the table is built. */
typedef struct {
    const kv_gguf_string_t *tokens;
    uint32_t *slots;
    size_t slot_count;
} vocabulary_t;

/* The character (code point) that spells a byte: itself where it is printable, else 256 and up, in
 * order. */
static void spell_bytes(uint16_t spelling_out[256])
{
    uint16_t next = 256;
    for (int byte = 0; byte < 256; byte++) {
        bool printable =
            (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
        spelling_out[byte] = printable ? (uint16_t)byte : next++;
    }
}

static size_t write_utf8(uint16_t character, char *text_out)
{
    if (character < 0x80) {
        text_out[0] = (char)character;
        return 1;
    }
    text_out[0] = (char)(0xc0 | character >> 6); /* all are below 0x800 */
    text_out[1] = (char)(0x80 | (character & 0x3f));
    return 2;
}

bool kv_bpe_unspell(const char *text, size_t bytes, char *bytes_out, size_t *count_out)
{
    uint16_t spelling[256];
    int16_t meaning[512];
    memset(meaning, -1, sizeof meaning);
    spell_bytes(spelling);
    for (int byte = 0; byte < 256; byte++) {
        meaning[spelling[byte]] = (int16_t)byte;
    }
    size_t count = 0;
    for (size_t i = 0; i < bytes;) {
        size_t length = kv_utf8_length(text + i, bytes - i);
        unsigned character = (unsigned char)text[i];
        if (length == 2) {
            character = (character & 0x1f) << 6 | ((unsigned char)text[i + 1] & 0x3f);
        }
        if (length == 0 || length > 2 || character >= 512 || meaning[character] < 0) {
            return false;
        }
        bytes_out[count++] = (char)meaning[character];
        i += length;
    }
    *count_out = count;
    return true;
}

static size_t table_size(size_t count)
{
    size_t slots = 16;
    while (slots < 2 * count) {
        slots *= 2;
    }
    return slots;
}

static uint32_t *free_slots(size_t count)
{
    uint32_t *slots = kv_allocate_array(count, sizeof *slots);
    memset(slots, 0xff, count * sizeof *slots);
    return slots;
}

/* The slot of the spelling, or the free one where it belongs. */
static uint32_t *vocabulary_slot(const vocabulary_t *vocabulary, const char *text, size_t bytes)
{
    size_t at = kv_checksum(text, bytes) & (vocabulary->slot_count - 1);
    for (;; at = (at + 1) & (vocabulary->slot_count - 1)) {
        uint32_t *slot = &vocabulary->slots[at];
        if (*slot == NONE) {
            return slot;
        }
        const kv_gguf_string_t *token = &vocabulary->tokens[*slot];
        if (token->bytes == bytes && memcmp(token->text, text, bytes) == 0) {
            return slot;
        }
    }
}

static vocabulary_t index_vocabulary(const kv_gguf_string_t *tokens, size_t count)
{
    vocabulary_t vocabulary = {tokens, NULL, table_size(count)};
    vocabulary.slots = free_slots(vocabulary.slot_count);
    for (size_t i = 0; i < count; i++) {
        uint32_t *slot = vocabulary_slot(&vocabulary, tokens[i].text, tokens[i].bytes);
        *slot = *slot == NONE ? (uint32_t)i : *slot;
    }
    return vocabulary;
}

/* The slot of the pair's rank, or the free one where it belongs. */
static uint32_t *merge_slot(const kv_bpe_t *bpe, uint32_t left, uint32_t right)
{
    uint64_t hash = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    size_t at = (hash ^ hash >> 32) & (bpe->slot_count - 1);
    for (;; at = (at + 1) & (bpe->slot_count - 1)) {
        uint32_t *slot = &bpe->slots[at];
        if (*slot == NONE ||
            (bpe->merges[*slot].left == left && bpe->merges[*slot].right == right)) {
            return slot;
        }
    }
}

/* "LEFT RIGHT": spellings without spaces. */
static kv_status_t read_merge(const vocabulary_t *vocabulary, const kv_gguf_string_t *text,
    size_t rank, merge_t *merge_out, kv_error_t *error)
{
    char joined[512];
    const char *space = text->bytes > 0 ? memchr(text->text, ' ', text->bytes) : NULL;
    if (space == NULL || text->bytes > sizeof joined) {
        return kv_fail(error, KV_INVALID,
            "tokenizer.ggml.merges[%zu] is not two spellings of at most %zu bytes with a space "
            "between",
            rank, sizeof joined);
    }
    size_t left = (size_t)(space - text->text), right = text->bytes - left - 1;
    memcpy(joined, text->text, left);
    memcpy(joined + left, space + 1, right);
    *merge_out = (merge_t){*vocabulary_slot(vocabulary, text->text, left),
        *vocabulary_slot(vocabulary, space + 1, right),
        *vocabulary_slot(vocabulary, joined, left + right)};
    if (merge_out->left == NONE || merge_out->right == NONE || merge_out->merged == NONE) {
        return kv_fail(error, KV_INVALID,
            "tokenizer.ggml.merges[%zu]: a part or the whole is not in tokenizer.ggml.tokens",
            rank);
    }
    return KV_OK;
}

static kv_status_t read_merges(kv_bpe_t *bpe, const vocabulary_t *vocabulary,
    const kv_gguf_string_t *merges, size_t count, kv_error_t *error)
{
    for (size_t i = 0; i < count; i++) {
        kv_status_t status = read_merge(vocabulary, &merges[i], i, &bpe->merges[i], error);
        if (status != KV_OK) {
            return status;
        }
        /* A pair that comes twice keeps its first rank. */
        uint32_t *slot = merge_slot(bpe, bpe->merges[i].left, bpe->merges[i].right);
        *slot = *slot == NONE ? (uint32_t)i : *slot;
    }
    return KV_OK;
}

kv_status_t kv_bpe_create(const kv_gguf_string_t *tokens, size_t token_count,
    const kv_gguf_string_t *merges, size_t merge_count, kv_bpe_t **bpe_out, kv_error_t *error)
{
    kv_bpe_t *bpe = kv_allocate(sizeof *bpe);
    vocabulary_t vocabulary = index_vocabulary(tokens, token_count);
    uint16_t spelling[256];
    spell_bytes(spelling);
    for (int byte = 0; byte < 256; byte++) {
        char text[2];
        size_t bytes = write_utf8(spelling[byte], text);
        bpe->byte_tokens[byte] = *vocabulary_slot(&vocabulary, text, bytes);
    }
    bpe->merges = kv_allocate_array(merge_count, sizeof *bpe->merges);
    bpe->slot_count = table_size(merge_count);
    bpe->slots = free_slots(bpe->slot_count);
    kv_status_t status = read_merges(bpe, &vocabulary, merges, merge_count, error);
    free(vocabulary.slots);
    if (status != KV_OK) {
        kv_bpe_destroy(bpe);
        return status;
    }
    *bpe_out = bpe;
    return KV_OK;
}

void kv_bpe_destroy(kv_bpe_t *bpe)
{
    if (bpe != NULL) {
        free(bpe->merges);
        free(bpe->slots);
        free(bpe);
    }
}

void kv_token_list_append(kv_token_list_t *list, uint32_t token)
{
    if (list->count == list->capacity) {
        list->capacity = list->capacity > 0 ? 2 * list->capacity : 64;
        list->tokens = kv_reallocate(list->tokens, list->capacity, sizeof *list->tokens);
    }
    list->tokens[list->count++] = token;
}

void kv_bpe_scratch_free(kv_bpe_scratch_t *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    *scratch = (kv_bpe_scratch_t){0};
}

static void heap_push(kv_bpe_scratch_t *scratch, uint64_t candidate)
{
    if (scratch->heap_count == scratch->heap_capacity) {
        scratch->heap_capacity = scratch->heap_capacity > 0 ? 2 * scratch->heap_capacity : 64;
        scratch->heap = kv_reallocate(scratch->heap, scratch->heap_capacity, sizeof *scratch->heap);
    }
    size_t at = scratch->heap_count++;
    while (at > 0 && scratch->heap[(at - 1) / 2] > candidate) {
        scratch->heap[at] = scratch->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    scratch->heap[at] = candidate;
}

static uint64_t heap_pop(kv_bpe_scratch_t *scratch)
{
    uint64_t *heap = scratch->heap, least = heap[0], moved = heap[--scratch->heap_count];
    size_t at = 0, count = scratch->heap_count;
    for (size_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && heap[child + 1] < heap[child]) {
            child++;
        }
        if (heap[child] >= moved) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
    return least;
}

static void consider(const kv_bpe_t *bpe, kv_bpe_scratch_t *scratch, uint32_t left)
{
    const struct kv_bpe_symbol *symbols = scratch->symbols;
    if (left == NONE || symbols[left].next == NONE) {
        return;
    }
    uint32_t rank = *merge_slot(bpe, symbols[left].token, symbols[symbols[left].next].token);
    if (rank != NONE) {
        heap_push(scratch, (uint64_t)rank << 32 | left);
    }
}

static void apply(const kv_bpe_t *bpe, kv_bpe_scratch_t *scratch, uint64_t candidate)
{
    struct kv_bpe_symbol *symbols = scratch->symbols;
    const merge_t *merge = &bpe->merges[candidate >> 32];
    uint32_t left = (uint32_t)candidate, right = symbols[left].next;
    if (symbols[left].token != merge->left || right == NONE ||
        symbols[right].token != merge->right) {
        return;
    }
    symbols[left].token = merge->merged;
    symbols[left].next = symbols[right].next;
    symbols[right].token = NONE;
    if (symbols[left].next != NONE) {
        symbols[symbols[left].next].previous = left;
    }
    consider(bpe, scratch, symbols[left].previous);
    consider(bpe, scratch, left);
}

static size_t link_bytes(
    const kv_bpe_t *bpe, kv_bpe_scratch_t *scratch, const char *word, size_t bytes)
{
    if (scratch->symbol_capacity < bytes) {
        scratch->symbol_capacity = bytes + 64;
        scratch->symbols =
            kv_reallocate(scratch->symbols, scratch->symbol_capacity, sizeof *scratch->symbols);
    }
    struct kv_bpe_symbol *symbols = scratch->symbols;
    uint32_t count = 0;
    for (size_t i = 0; i < bytes; i++) {
        uint32_t token = bpe->byte_tokens[(unsigned char)word[i]];
        if (token != NONE) {
            symbols[count] = (struct kv_bpe_symbol){token, count > 0 ? count - 1 : NONE, count + 1};
            count++;
        }
    }
    if (count > 0) {
        symbols[count - 1].next = NONE;
    }
    return count;
}

void kv_bpe_encode(const kv_bpe_t *bpe, kv_bpe_scratch_t *scratch, const char *word, size_t bytes,
    kv_token_list_t *list)
{
    size_t count = link_bytes(bpe, scratch, word, bytes);
    if (count == 0) {
        return;
    }
    scratch->heap_count = 0;
    for (uint32_t i = 0; i + 1 < count; i++) {
        consider(bpe, scratch, i);
    }
    while (scratch->heap_count > 0) {
        apply(bpe, scratch, heap_pop(scratch));
    }
    for (uint32_t i = 0; i != NONE; i = scratch->symbols[i].next) {
        kv_token_list_append(list, scratch->symbols[i].token);
    }
}
