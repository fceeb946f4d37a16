#include "audit/prompt.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 24, SAMPLE_MASK = 15 };

static const uint64_t MULTIPLIER = 0x9e3779b97f4a7c15;

/* Room for one more of an array that grows by doubling. */
static void *grown(void *items, uint32_t count, uint32_t *capacity, size_t bytes)
{
    if (count < *capacity) {
        return items;
    }
    *capacity = *capacity > 0 ? 2 * *capacity : 16;
    return kv_reallocate(items, *capacity, bytes);
}

void kv_audit_prompt_part(kv_audit_prompt_t *prompt, kv_audit_role_t role)
{
    if (prompt->full) {
        return;
    }
    prompt->parts =
        grown(prompt->parts, prompt->part_count, &prompt->part_capacity, sizeof *prompt->parts);
    prompt->parts[prompt->part_count++] = (kv_audit_part_t){prompt->bytes, role};
}

void kv_audit_prompt_add(kv_audit_prompt_t *prompt, const char *text, size_t bytes)
{
    prompt->full |= bytes > KV_AUDIT_BYTES_MAX - prompt->bytes;
    if (prompt->full || bytes == 0) {
        return;
    }
    uint32_t needed = prompt->bytes + (uint32_t)bytes;
    if (needed > prompt->text_capacity) {
        prompt->text_capacity = needed + needed / 2 + 64;
        prompt->text = kv_reallocate(prompt->text, prompt->text_capacity, 1);
    }
    memcpy(prompt->text + prompt->bytes, text, bytes);
    prompt->bytes = needed;
}

void kv_audit_prompt_token(kv_audit_prompt_t *prompt, const char *text, size_t bytes)
{
    kv_audit_prompt_add(prompt, text, bytes);
    if (prompt->full) {
        return;
    }
    prompt->token_ends =
        grown(prompt->token_ends, prompt->token_count, &prompt->token_capacity, sizeof(uint32_t));
    prompt->token_ends[prompt->token_count++] = prompt->bytes;
}

/* ---- the sketch ---- */

static uint64_t mixed(uint64_t value)
{
    value ^= value >> 31;
    value *= 0xd6e8feb86659fd93;
    return value ^ value >> 29;
}

/* Keeps the smallest, in order, each once. */
static void sketch_take(kv_audit_sketch_t *sketch, uint64_t hash)
{
    uint32_t count = sketch->count, at = count;
    while (at > 0 && sketch->hashes[at - 1] >= hash) {
        at--;
    }
    if (at == KV_AUDIT_SKETCH || (at < count && sketch->hashes[at] == hash)) {
        return;
    }
    uint32_t kept = count < KV_AUDIT_SKETCH ? count : KV_AUDIT_SKETCH - 1;
    memmove(&sketch->hashes[at + 1], &sketch->hashes[at], (kept - at) * sizeof hash);
    sketch->hashes[at] = hash;
    sketch->count = kept + 1;
}

void kv_audit_prompt_finish(kv_audit_prompt_t *prompt)
{
    uint64_t hash = 0, leaving = 1;
    uint32_t head = kv_audit_head_bytes(prompt);
    for (int i = 0; i < PIECE_BYTES; i++) {
        leaving *= MULTIPLIER;
    }
    prompt->whole.count = prompt->head.count = 0;
    for (uint32_t i = 0; i < prompt->bytes; i++) {
        hash = hash * MULTIPLIER + (uint8_t)prompt->text[i] + 1;
        if (i >= PIECE_BYTES) {
            hash -= leaving * ((uint64_t)(uint8_t)prompt->text[i - PIECE_BYTES] + 1);
        }
        uint64_t sample = i + 1 >= PIECE_BYTES ? mixed(hash) : 1;
        if ((sample & SAMPLE_MASK) == 0) {
            sketch_take(&prompt->whole, sample);
            if (i < head) {
                sketch_take(&prompt->head, sample);
            }
        }
    }
}

static double likeness_of(const kv_audit_sketch_t *one, const kv_audit_sketch_t *other)
{
    uint32_t shared = 0, i = 0, k = 0;
    while (i < one->count && k < other->count) {
        if (one->hashes[i] == other->hashes[k]) {
            shared++;
            i++;
            k++;
        } else if (one->hashes[i] < other->hashes[k]) {
            i++;
        } else {
            k++;
        }
    }
    uint32_t looked = i + k - shared;
    return looked == 0 ? 0.0 : (double)shared / looked;
}

double kv_audit_likeness(const kv_audit_prompt_t *one, const kv_audit_prompt_t *other)
{
    double whole = likeness_of(&one->whole, &other->whole);
    double head = likeness_of(&one->head, &other->head);
    return whole > head ? whole : head;
}

void kv_audit_prompt_clear(kv_audit_prompt_t *prompt)
{
    free(prompt->text);
    free(prompt->token_ends);
    free(prompt->parts);
    *prompt = (kv_audit_prompt_t){0};
}

/* ---- places ---- */

uint32_t kv_audit_shared_bytes(const kv_audit_prompt_t *one, const kv_audit_prompt_t *other)
{
    enum { STEP = 4096 };
    uint32_t most = one->bytes < other->bytes ? one->bytes : other->bytes, at = 0;
    while (most - at >= STEP && memcmp(one->text + at, other->text + at, STEP) == 0) {
        at += STEP;
    }
    while (at < most && one->text[at] == other->text[at]) {
        at++;
    }
    return at;
}

uint32_t kv_audit_part_of(const kv_audit_prompt_t *prompt, uint32_t byte)
{
    uint32_t low = 0, high = prompt->part_count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (prompt->parts[middle].at <= byte) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

uint32_t kv_audit_part_end(const kv_audit_prompt_t *prompt, uint32_t part)
{
    return part + 1 < prompt->part_count ? prompt->parts[part + 1].at : prompt->bytes;
}

uint32_t kv_audit_head_bytes(const kv_audit_prompt_t *prompt)
{
    for (uint32_t i = 0; i < prompt->part_count; i++) {
        if (prompt->parts[i].role != KV_AUDIT_HEAD) {
            return prompt->parts[i].at;
        }
    }
    return prompt->part_count > 0 ? prompt->bytes : 0;
}

uint32_t kv_audit_tokens_before(const kv_audit_prompt_t *prompt, uint32_t byte)
{
    if (prompt->token_count == 0) {
        return byte;
    }
    uint32_t low = 0, high = prompt->token_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (prompt->token_ends[middle] <= byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}
