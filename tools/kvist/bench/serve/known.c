#include "tools/kvist/bench/serve/known.h"

#include "base/memory.h"

#include <stdlib.h>

enum { BITS_FIRST = 12 };

/* Linear probing, at most half full. */
struct kv_known {
    uint32_t block_tokens;
    uint64_t *keys; /* 0: free. The lowest bit says whether the block was computed */
    size_t count;
    uint32_t bits;
};

kv_known_t *kv_known_create(uint32_t block_tokens)
{
    kv_known_t *known = kv_allocate(sizeof *known);
    known->block_tokens = block_tokens;
    known->bits = BITS_FIRST;
    known->keys = kv_allocate_array((size_t)1 << known->bits, sizeof *known->keys);
    return known;
}

void kv_known_destroy(kv_known_t *known)
{
    if (known != NULL) {
        free(known->keys);
        free(known);
    }
}

static size_t place_of(const kv_known_t *known, uint64_t key)
{
    size_t mask = ((size_t)1 << known->bits) - 1;
    size_t at = (size_t)(key >> (64 - known->bits));
    while (known->keys[at] != 0 && known->keys[at] >> 1 != key >> 1) {
        at = (at + 1) & mask;
    }
    return at;
}

static void grow(kv_known_t *known)
{
    kv_known_t larger = {.bits = known->bits + 1};
    larger.keys = kv_allocate_array((size_t)1 << larger.bits, sizeof *larger.keys);
    for (size_t i = 0; i < (size_t)1 << known->bits; i++) {
        if (known->keys[i] != 0) {
            larger.keys[place_of(&larger, known->keys[i])] = known->keys[i];
        }
    }
    free(known->keys);
    known->keys = larger.keys;
    known->bits = larger.bits;
}

/* The number of a block: of what lies before it and of its own symbols. Never 0 or 1. */
static uint64_t next_key(const kv_known_t *known, uint64_t before, const uint32_t *symbols)
{
    uint64_t key = before ^ UINT64_C(0x2545f4914f6cdd1d);
    for (uint32_t i = 0; i < known->block_tokens; i++) {
        key = (key ^ symbols[i]) * UINT64_C(0x9e3779b97f4a7c15);
        key ^= key >> 29;
    }
    key *= UINT64_C(0xbf58476d1ce4e5b9);
    key = (key ^ key >> 32) & ~UINT64_C(1);
    return key != 0 ? key : 2;
}

void kv_known_add(kv_known_t *known, const uint32_t *symbols, size_t count, bool computed)
{
    uint64_t key = 0;
    for (size_t at = 0; at + known->block_tokens <= count; at += known->block_tokens) {
        key = next_key(known, key, symbols + at);
        if (2 * (known->count + 1) > (size_t)1 << known->bits) {
            grow(known);
        }
        size_t place = place_of(known, key);
        if (known->keys[place] == 0) {
            known->keys[place] = key;
            known->count++;
        }
        known->keys[place] |= computed;
    }
}

kv_known_run_t kv_known_look(const kv_known_t *known, const uint32_t *symbols, size_t count)
{
    kv_known_run_t run = {0, 0};
    uint64_t key = 0;
    for (size_t at = 0; at + known->block_tokens <= count; at += known->block_tokens) {
        key = next_key(known, key, symbols + at);
        uint64_t found = known->keys[place_of(known, key)];
        if (found == 0) {
            break;
        }
        run.sent += known->block_tokens;
        bool computed = (found & 1) != 0 && run.computed + known->block_tokens == run.sent;
        run.computed += computed ? known->block_tokens : 0;
    }
    return run;
}
