/* Entries lie in one array in the order of time, over and over; an index by open addressing finds
 * them.
 *
 *   entries:  | newest .. | next: the oldest, to be forgotten | .. |
 *   index:    | number + 1 |  linear probing, at most half full, no tombstones
 *
 * A key that goes again gets a new entry, and the index means that one: the old one is found by
 * nobody any more, and leaves in its turn. */
#include "kvstore/history.h"

#include "base/bytes.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(kv_history_entry_t) == 32, "with the index an entry takes 40 bytes");
_Static_assert(sizeof(kv_history_entry_t) + 2 * sizeof(uint32_t) == KV_HISTORY_ENTRY_BYTES, "same");

enum { KEY_OFFSET = KVIST_KEY_BYTES - KV_HISTORY_KEY_BYTES }; /* its end tells groups apart */

struct kv_history {
    kv_history_entry_t *entries; /* [capacity] */
    uint32_t *index;             /* [index_count], 0: empty */
    uint32_t capacity, index_count;
    uint32_t next, count; /* entries [0, count) are used */
    uint32_t begun_s;
    uint64_t forgotten;
};

kv_history_t *kv_history_create(uint64_t bytes, uint32_t now_s)
{
    uint64_t capacity = bytes / KV_HISTORY_ENTRY_BYTES;
    capacity = capacity < 1 ? 1 : capacity < INT32_MAX ? capacity : INT32_MAX;
    kv_history_t *history = kv_allocate(sizeof *history);
    *history = (kv_history_t){
        .entries = kv_allocate_array(capacity, sizeof *history->entries),
        .index = kv_allocate_array(2 * capacity, sizeof *history->index),
        .capacity = (uint32_t)capacity,
        .index_count = (uint32_t)(2 * capacity),
        .begun_s = now_s,
    };
    return history;
}

void kv_history_destroy(kv_history_t *history)
{
    if (history != NULL) {
        free(history->entries);
        free(history->index);
        free(history);
    }
}

/* ---- the index ---- */

/* Keys are SHA-256: any of their bytes are spread evenly. */
static uint32_t home_of(const kv_history_t *history, const uint8_t *key)
{
    return (uint32_t)((unsigned __int128)kv_get_u64(key) * history->index_count >> 64);
}

static uint32_t after(const kv_history_t *history, uint32_t at)
{
    return at + 1 == history->index_count ? 0 : at + 1;
}

/* Where the key is, or the empty place where it would be. */
static uint32_t place_of(const kv_history_t *history, const uint8_t *key)
{
    uint32_t at = home_of(history, key);
    while (history->index[at] != 0 &&
           memcmp(history->entries[history->index[at] - 1].key, key, KV_HISTORY_KEY_BYTES) != 0) {
        at = after(history, at);
    }
    return at;
}

/* Whether an entry whose home is there may move back to `hole` from `at`: the hole lies on its way.
 */
static bool passes(uint32_t home, uint32_t hole, uint32_t at)
{
    return hole <= at ? home <= hole || home > at : home <= hole && home > at;
}

/* Empties a place; what had to pass it moves up. */
static void empty_place(kv_history_t *history, uint32_t hole)
{
    for (uint32_t at = after(history, hole); history->index[at] != 0; at = after(history, at)) {
        uint32_t home = home_of(history, history->entries[history->index[at] - 1].key);
        if (passes(home, hole, at)) {
            history->index[hole] = history->index[at];
            hole = at;
        }
    }
    history->index[hole] = 0;
}

/* ---- entries ---- */

static void forget_oldest(kv_history_t *history)
{
    uint32_t place = place_of(history, history->entries[history->next].key);
    if (history->index[place] == history->next + 1) { /* else the key went again since */
        empty_place(history, place);
    }
    history->forgotten++;
}

void kv_history_note(kv_history_t *history, const kvist_key_t *key, kv_gone_t gone,
    const kv_maker_t *maker, uint32_t now_s)
{
    if (history->count == history->capacity) {
        forget_oldest(history);
    } else {
        history->count++;
    }
    kv_history_entry_t *entry = &history->entries[history->next];
    *entry = (kv_history_entry_t){
        .request = maker->request,
        .gone_s = now_s,
        .tenant = maker->tenant,
        .origin = maker->origin,
        .priority = maker->priority,
        .gone = (uint8_t)gone,
    };
    memcpy(entry->key, key->bytes + KEY_OFFSET, sizeof entry->key);
    history->index[place_of(history, entry->key)] = history->next + 1;
    history->next = history->next + 1 == history->capacity ? 0 : history->next + 1;
}

const kv_history_entry_t *kv_history_find(const kv_history_t *history, const kvist_key_t *key)
{
    uint32_t number = history->index[place_of(history, key->bytes + KEY_OFFSET)];
    return number != 0 ? &history->entries[number - 1] : NULL;
}

/* ---- figures ---- */

uint32_t kv_history_since(const kv_history_t *history)
{
    bool whole = history->forgotten == 0;
    return whole ? history->begun_s : history->entries[history->next].gone_s;
}

uint64_t kv_history_count(const kv_history_t *history)
{
    return history->count;
}

uint64_t kv_history_forgotten(const kv_history_t *history)
{
    return history->forgotten;
}
