#include "tools/kvist/sim/reference.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

/* Held blocks as a binary heap: the one with the least key goes first. */
typedef struct {
    uint64_t *keys;   /* [blocks] */
    uint32_t *places; /* [blocks] in the heap; KV_TRACE_NONE: not held */
    uint32_t *heap;   /* [capacity] */
    uint32_t count;
} held_t;

const char *kv_reference_name(kv_reference_t kind)
{
    static const char *const NAMES[KV_REFERENCE_COUNT] = {"fifo (flat)", "lru (flat)", "belady"};
    return NAMES[kind];
}

/* ---- the heap ---- */

static void put(held_t *held, uint32_t place, uint32_t block)
{
    held->heap[place] = block;
    held->places[block] = place;
}

static void sift_up(held_t *held, uint32_t place)
{
    uint32_t block = held->heap[place];
    while (place > 0 && held->keys[held->heap[(place - 1) / 2]] > held->keys[block]) {
        put(held, place, held->heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    put(held, place, block);
}

static void sift_down(held_t *held, uint32_t place)
{
    uint32_t block = held->heap[place];
    for (;;) {
        uint32_t least = 2 * place + 1;
        if (least >= held->count) {
            break;
        }
        if (least + 1 < held->count &&
            held->keys[held->heap[least + 1]] < held->keys[held->heap[least]]) {
            least++;
        }
        if (held->keys[held->heap[least]] >= held->keys[block]) {
            break;
        }
        put(held, place, held->heap[least]);
        place = least;
    }
    put(held, place, block);
}

static void set_key(held_t *held, uint32_t block, uint64_t key)
{
    bool lower = key < held->keys[block];
    held->keys[block] = key;
    if (lower) {
        sift_up(held, held->places[block]);
    } else {
        sift_down(held, held->places[block]);
    }
}

static void add(held_t *held, uint32_t block, uint64_t key)
{
    held->keys[block] = key;
    put(held, held->count++, block);
    sift_up(held, held->places[block]);
}

static void remove_first(held_t *held)
{
    held->places[held->heap[0]] = KV_TRACE_NONE;
    if (--held->count > 0) {
        put(held, 0, held->heap[held->count]);
        sift_down(held, 0);
    }
}

/* ---- the replays ---- */

/* For each block that is asked for, where it is asked for next; the trace's end: never. */
static size_t *find_next_uses(const kv_trace_t *trace)
{
    size_t *next = kv_allocate_array(trace->asked_count + 1, sizeof *next);
    size_t *last = kv_allocate_array(trace->block_count, sizeof *last);
    for (uint32_t i = 0; i < trace->block_count; i++) {
        last[i] = trace->asked_count;
    }
    for (size_t i = trace->asked_count; i-- > 0;) {
        next[i] = last[trace->blocks[i]];
        last[trace->blocks[i]] = i;
    }
    free(last);
    return next;
}

static void use(held_t *held, kv_reference_t kind, uint32_t capacity, uint32_t block, uint64_t key)
{
    if (held->places[block] != KV_TRACE_NONE) {
        if (kind != KV_REFERENCE_FIFO) {
            set_key(held, block, key);
        }
        return;
    }
    if (held->count == capacity) {
        if (kind == KV_REFERENCE_BELADY && held->keys[held->heap[0]] >= key) {
            return;
        }
        remove_first(held);
    }
    add(held, block, key);
}

static void replay(const kv_trace_t *trace, kv_reference_t kind, uint32_t capacity, held_t *held,
    const size_t *next_uses, uint32_t *hits_out)
{
    for (uint32_t i = 0; i < trace->request_count; i++) {
        const kv_trace_request_t *request = &trace->requests[i];
        const uint32_t *blocks = trace->blocks + request->first_block;
        uint32_t hits = 0;
        while (hits < request->block_count && held->places[blocks[hits]] != KV_TRACE_NONE) {
            hits++;
        }
        hits_out[i] = hits;
        for (uint32_t j = 0; j < request->block_count; j++) {
            size_t at = request->first_block + j;
            uint64_t key =
                kind == KV_REFERENCE_BELADY ? (uint64_t)(trace->asked_count - next_uses[at]) : at;
            use(held, kind, capacity, blocks[j], key);
        }
    }
}

void kv_reference_replay(
    const kv_trace_t *trace, kv_reference_t kind, uint32_t capacity_blocks, uint32_t *hits_out)
{
    held_t held = {
        .keys = kv_allocate_array(trace->block_count + 1, sizeof *held.keys),
        .places = kv_allocate_array(trace->block_count + 1, sizeof *held.places),
        .heap = kv_allocate_array(capacity_blocks, sizeof *held.heap),
    };
    size_t *next_uses = find_next_uses(trace);
    memset(held.places, 0xff, (trace->block_count + 1) * sizeof *held.places);
    replay(trace, kind, capacity_blocks, &held, next_uses, hits_out);
    free(next_uses);
    free(held.keys);
    free(held.places);
    free(held.heap);
}
