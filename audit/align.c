#include "audit/align.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum {
    BLOCK_BYTES = 16,
    CANDIDATES_MAX = 4,
    LONG_RUN_BYTES =
        128, /* unlikely to be chance; these are found first, the others between them */
    SURE_RUN_BYTES = 256, /* taken, wherever it is */
    JUMP_SHARE = 256,     /* a shorter run that skips so many bytes has to be a byte longer */
    WORK_BYTES_MAX = 16 * KV_AUDIT_BYTES_MAX, /* compared in vain; no text makes it take longer */
};

#define NONE UINT32_MAX

static const uint64_t MULTIPLIER = 0x9e3779b97f4a7c15;

/* Blocks of `was` by hash; those of one hash in their order. */
typedef struct {
    uint32_t *heads, *nexts, *positions;
    uint64_t *hashes;
    uint32_t mask;
} blocks_t;

/* A stretch of both texts, and what of it is settled. */
typedef struct {
    const char *was, *is;
    uint32_t was_at, is_at, was_end, is_end;
    uint32_t run_min;
    blocks_t blocks;
} stretch_t;

typedef struct {
    kv_audit_run_t *runs;
    uint32_t count, capacity;
    uint32_t work;
} aligning_t;

static uint64_t hash_of(const char *text)
{
    uint64_t hash = 0;
    for (int i = 0; i < BLOCK_BYTES; i++) {
        hash = hash * MULTIPLIER + (uint8_t)text[i] + 1;
    }
    return hash;
}

static uint32_t slot_of(const blocks_t *blocks, uint64_t hash)
{
    return (uint32_t)((hash ^ hash >> 32) * MULTIPLIER >> 33) & blocks->mask;
}

static void open_blocks(stretch_t *stretch)
{
    blocks_t *blocks = &stretch->blocks;
    uint32_t count = (stretch->was_end - stretch->was_at) / BLOCK_BYTES, slots = 64;
    while (slots < 2 * count) {
        slots *= 2;
    }
    *blocks = (blocks_t){.heads = kv_allocate_array(slots, sizeof(uint32_t)),
        .nexts = kv_allocate_array(count + 1, sizeof(uint32_t)),
        .positions = kv_allocate_array(count + 1, sizeof(uint32_t)),
        .hashes = kv_allocate_array(count + 1, sizeof(uint64_t)),
        .mask = slots - 1};
    memset(blocks->heads, 0xff, slots * sizeof(uint32_t));
    for (uint32_t i = count; i-- > 0;) {
        blocks->positions[i] = stretch->was_at + i * BLOCK_BYTES;
        blocks->hashes[i] = hash_of(stretch->was + blocks->positions[i]);
        uint32_t *head = &blocks->heads[slot_of(blocks, blocks->hashes[i])];
        blocks->nexts[i] = *head;
        *head = i;
    }
}

static void close_blocks(blocks_t *blocks)
{
    free(blocks->heads);
    free(blocks->nexts);
    free(blocks->positions);
    free(blocks->hashes);
}

/* The run through these two places, as far as it goes to both sides. */
static kv_audit_run_t grow(const stretch_t *stretch, uint32_t was, uint32_t is)
{
    const char *one = stretch->was, *other = stretch->is;
    uint32_t bytes = 0;
    while (was + bytes < stretch->was_end && is + bytes < stretch->is_end &&
           one[was + bytes] == other[is + bytes]) {
        bytes++;
    }
    while (was > stretch->was_at && is > stretch->is_at && one[was - 1] == other[is - 1]) {
        was--;
        is--;
        bytes++;
    }
    return (kv_audit_run_t){was, is, bytes};
}

/* The best run through this place of `is`, or one of no bytes. */
static kv_audit_run_t find(stretch_t *stretch, aligning_t *aligning, uint32_t is, uint64_t hash)
{
    blocks_t *blocks = &stretch->blocks;
    uint32_t *head = &blocks->heads[slot_of(blocks, hash)];
    while (*head != NONE && blocks->positions[*head] < stretch->was_at) {
        *head = blocks->nexts[*head]; /* settled: nobody asks for it again */
    }
    kv_audit_run_t best = {0};
    int looked = 0;
    for (uint32_t i = *head; i != NONE && looked < CANDIDATES_MAX; i = blocks->nexts[i]) {
        if (blocks->hashes[i] != hash) {
            continue;
        }
        looked++;
        kv_audit_run_t run = grow(stretch, blocks->positions[i], is);
        uint32_t wanted = stretch->run_min + (run.was - stretch->was_at) / JUMP_SHARE;
        bool enough = run.bytes >= wanted || run.bytes >= SURE_RUN_BYTES;
        if (enough && run.bytes > best.bytes) {
            best = run;
        }
        aligning->work += enough ? 0 : run.bytes;
        if (best.bytes >= SURE_RUN_BYTES) {
            break;
        }
    }
    return best;
}

static void keep(aligning_t *aligning, const kv_audit_run_t *run)
{
    if (aligning->count == aligning->capacity) {
        aligning->capacity = aligning->capacity > 0 ? 2 * aligning->capacity : 16;
        aligning->runs = kv_reallocate(aligning->runs, aligning->capacity, sizeof *aligning->runs);
    }
    aligning->runs[aligning->count++] = *run;
}

/* The short runs of what lies before this one, which is to follow them. */
static void align_between(
    const stretch_t *around, aligning_t *aligning, uint32_t was_end, uint32_t is_end);

static void align_stretch(stretch_t *stretch, aligning_t *aligning)
{
    uint64_t leaving = 1, hash = 0;
    for (int i = 1; i < BLOCK_BYTES; i++) {
        leaving *= MULTIPLIER;
    }
    open_blocks(stretch);
    bool fresh = true;
    for (uint32_t at = stretch->is_at;
         at + BLOCK_BYTES <= stretch->is_end && aligning->work < WORK_BYTES_MAX;) {
        hash = fresh ? hash_of(stretch->is + at) : hash;
        kv_audit_run_t run = find(stretch, aligning, at, hash);
        fresh = run.bytes > 0;
        if (fresh) {
            align_between(stretch, aligning, run.was, run.is);
            keep(aligning, &run);
            stretch->was_at = run.was + run.bytes;
            at = stretch->is_at = run.is + run.bytes;
        } else if (at + BLOCK_BYTES < stretch->is_end) {
            hash = (hash - leaving * ((uint64_t)(uint8_t)stretch->is[at] + 1)) * MULTIPLIER +
                   (uint8_t)stretch->is[at + BLOCK_BYTES] + 1;
            at++;
        } else {
            break;
        }
    }
    close_blocks(&stretch->blocks);
    align_between(stretch, aligning, stretch->was_end, stretch->is_end);
}

static void align_between(
    const stretch_t *around, aligning_t *aligning, uint32_t was_end, uint32_t is_end)
{
    bool empty =
        was_end - around->was_at < KV_AUDIT_RUN_MIN || is_end - around->is_at < KV_AUDIT_RUN_MIN;
    if (around->run_min > KV_AUDIT_RUN_MIN && !empty) {
        stretch_t between = *around;
        between.was_end = was_end;
        between.is_end = is_end;
        between.run_min = KV_AUDIT_RUN_MIN;
        align_stretch(&between, aligning);
    }
}

uint32_t kv_audit_align(const kv_audit_prompt_t *was, const kv_audit_prompt_t *is, uint32_t from,
    kv_audit_run_t **runs_out)
{
    aligning_t aligning = {0};
    stretch_t all = {.was = was->text,
        .is = is->text,
        .was_at = from,
        .is_at = from,
        .was_end = was->bytes,
        .is_end = is->bytes,
        .run_min = LONG_RUN_BYTES};
    align_stretch(&all, &aligning);
    *runs_out = aligning.runs;
    return aligning.count;
}
