/* Entries (a key at one holder) lie in one array; an index by open addressing finds them; a list
 * through them says which is the oldest.
 *
 *   index:   | fingerprint, number + 1 |  linear probing, at most 3 in 4 taken, no tombstones
 *   entry:   | 48 bits of the key | previous, next | holder's place, tiers |   16 bytes
 *
 * An entry's home follows from the key's bits and its holder, so that a key that many hold makes no
 * crowd. Two keys that agree in 48 bits are taken for one, now and then one in 10^8: asked in vain.
 *
 * A holder that is forgotten is dead at once: its place is not found any more. Its entries are
 * swept one by one, by later calls, and before any living entry has to leave. */
#include "cluster/holdings.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum {
    PLACES = 1024, /* living holders, and dead ones whose entries are being swept */
    PLACE_NONE = PLACES,
    SWEPT_AT_ONCE = 4, /* entries looked at for each key that is stored or removed */
    TIER_COUNT = 3,
};

#define NONE UINT32_MAX

typedef struct {
    uint32_t key_low;
    uint16_t key_high;
    uint16_t place : 13;
    uint16_t tiers : 3;      /* 0: free, or swept */
    uint32_t previous, next; /* older, younger; next: also the list of free entries */
} entry_t;

_Static_assert(sizeof(entry_t) == 16, "with the index an entry stays within 24 bytes");
_Static_assert(PLACES <= 1 << 13, "a place has 13 bits");

typedef struct {
    uint64_t holder; /* 0: dead */
    uint32_t count;  /* entries */
} place_t;

struct kv_holdings {
    entry_t *entries; /* [capacity] */
    uint32_t *index;  /* [index_count], 0: empty */
    uint32_t capacity, index_count, number_bits;
    uint32_t used, free_head; /* entries [used, capacity) were never taken */
    uint32_t oldest, youngest;
    uint32_t living, dead; /* entries */
    uint32_t swept_to;
    uint32_t place_count; /* places [place_count, PLACES) were never taken */
    place_t places[PLACES];
};

typedef struct {
    uint64_t key; /* 48 bits */
    uint32_t place;
} name_t;

/* ---- the index ---- */

static name_t name_of(const uint8_t *key, uint32_t place)
{
    return (name_t){kv_get_u64(key) & 0xffffffffffff, place};
}

static name_t name_at(const kv_holdings_t *holdings, uint32_t number)
{
    const entry_t *entry = &holdings->entries[number];
    return (name_t){entry->key_low | (uint64_t)entry->key_high << 32, entry->place};
}

/* The upper half says the home, bits of the lower one the fingerprint. */
static uint64_t mix(name_t name)
{
    uint64_t bits = (name.key | (uint64_t)name.place << 48) * 0x9e3779b97f4a7c15;
    return (bits ^ bits >> 32) * 0xd6e8feb86659fd93;
}

static uint32_t home(const kv_holdings_t *holdings, uint64_t mixed)
{
    return (uint32_t)((mixed >> 32) * holdings->index_count >> 32);
}

static uint32_t fingerprint(const kv_holdings_t *holdings, uint64_t mixed)
{
    return (uint32_t)mixed << holdings->number_bits;
}

static uint32_t number_of(const kv_holdings_t *holdings, uint32_t slot)
{
    return (slot & ((UINT32_C(1) << holdings->number_bits) - 1)) - 1;
}

static uint32_t after(const kv_holdings_t *holdings, uint32_t at)
{
    return at + 1 == holdings->index_count ? 0 : at + 1;
}

/* Where the entry is noted, or the empty slot at which the search ended. */
static uint32_t find_slot(const kv_holdings_t *holdings, name_t name, uint64_t mixed)
{
    uint32_t marked = fingerprint(holdings, mixed);
    uint32_t mask = ~((UINT32_C(1) << holdings->number_bits) - 1);
    uint32_t at = home(holdings, mixed);
    for (; holdings->index[at] != 0; at = after(holdings, at)) {
        if ((holdings->index[at] & mask) == marked) {
            name_t found = name_at(holdings, number_of(holdings, holdings->index[at]));
            if (found.key == name.key && found.place == name.place) {
                break;
            }
        }
    }
    return at;
}

static uint32_t find(const kv_holdings_t *holdings, name_t name)
{
    uint32_t slot = holdings->index[find_slot(holdings, name, mix(name))];
    return slot != 0 ? number_of(holdings, slot) : NONE;
}

/* Empties a slot; what was pushed past it moves up, so that no search ends too early. */
static void empty_slot(kv_holdings_t *holdings, uint32_t hole)
{
    uint32_t count = holdings->index_count;
    for (uint32_t at = after(holdings, hole); holdings->index[at] != 0; at = after(holdings, at)) {
        uint32_t number = number_of(holdings, holdings->index[at]);
        uint32_t from = home(holdings, mix(name_at(holdings, number)));
        uint32_t distance = at >= from ? at - from : at + count - from;
        uint32_t to_hole = at >= hole ? at - hole : at + count - hole;
        if (distance >= to_hole) {
            holdings->index[hole] = holdings->index[at];
            hole = at;
        }
    }
    holdings->index[hole] = 0;
}

/* ---- entries ---- */

static void link_youngest(kv_holdings_t *holdings, uint32_t number)
{
    entry_t *entry = &holdings->entries[number];
    entry->previous = holdings->youngest;
    entry->next = NONE;
    if (holdings->youngest != NONE) {
        holdings->entries[holdings->youngest].next = number;
    } else {
        holdings->oldest = number;
    }
    holdings->youngest = number;
}

static void unlink_entry(kv_holdings_t *holdings, const entry_t *entry)
{
    if (entry->previous != NONE) {
        holdings->entries[entry->previous].next = entry->next;
    } else {
        holdings->oldest = entry->next;
    }
    if (entry->next != NONE) {
        holdings->entries[entry->next].previous = entry->previous;
    } else {
        holdings->youngest = entry->previous;
    }
}

static void drop_entry(kv_holdings_t *holdings, uint32_t number)
{
    entry_t *entry = &holdings->entries[number];
    place_t *place = &holdings->places[entry->place];
    name_t name = name_at(holdings, number);
    empty_slot(holdings, find_slot(holdings, name, mix(name)));
    unlink_entry(holdings, entry);
    place->count--;
    if (place->holder != 0) {
        holdings->living--;
    } else {
        holdings->dead--;
    }
    entry->tiers = 0;
    entry->next = holdings->free_head;
    holdings->free_head = number;
}

static bool is_dead(const kv_holdings_t *holdings, const entry_t *entry)
{
    return entry->tiers != 0 && holdings->places[entry->place].holder == 0;
}

static void sweep_one(kv_holdings_t *holdings)
{
    uint32_t number = holdings->swept_to;
    holdings->swept_to = number + 1 >= holdings->used ? 0 : number + 1;
    if (is_dead(holdings, &holdings->entries[number])) {
        drop_entry(holdings, number);
    }
}

/* Looks at so many entries for dead ones. */
static void sweep(kv_holdings_t *holdings, uint32_t count)
{
    for (uint32_t i = 0; i < count && holdings->dead > 0; i++) {
        sweep_one(holdings);
    }
}

static uint32_t take_entry(kv_holdings_t *holdings)
{
    sweep(holdings, SWEPT_AT_ONCE);
    if (holdings->free_head == NONE && holdings->used < holdings->capacity) {
        return holdings->used++;
    }
    while (holdings->free_head == NONE && holdings->dead > 0) {
        sweep_one(holdings);
    }
    if (holdings->free_head == NONE) {
        drop_entry(holdings, holdings->oldest);
    }
    uint32_t number = holdings->free_head;
    holdings->free_head = holdings->entries[number].next;
    return number;
}

static void add_entry(kv_holdings_t *holdings, name_t name, uint32_t tier)
{
    uint32_t number = take_entry(holdings);
    entry_t *entry = &holdings->entries[number];
    entry->key_low = (uint32_t)name.key;
    entry->key_high = (uint16_t)(name.key >> 32);
    entry->place = (uint16_t)(name.place & (PLACES - 1));
    entry->tiers = (uint16_t)(1 << tier & 7);
    link_youngest(holdings, number);
    uint64_t mixed = mix(name);
    holdings->index[find_slot(holdings, name, mixed)] = fingerprint(holdings, mixed) | (number + 1);
    holdings->places[name.place].count++;
    holdings->living++;
}

/* ---- holders ---- */

static uint32_t find_place(const kv_holdings_t *holdings, uint64_t holder)
{
    for (uint32_t i = 0; i < holdings->place_count; i++) {
        if (holdings->places[i].holder == holder) {
            return i;
        }
    }
    return PLACE_NONE;
}

static uint32_t living_holders(const kv_holdings_t *holdings)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < holdings->place_count; i++) {
        count += holdings->places[i].holder != 0;
    }
    return count;
}

/* A place without entries; where all have some, the dead ones' are swept first. */
static uint32_t take_place(kv_holdings_t *holdings, uint64_t holder)
{
    if (living_holders(holdings) >= KV_HOLDERS_MAX) {
        return PLACE_NONE;
    }
    for (int round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < PLACES; i++) {
            if (holdings->places[i].holder == 0 && holdings->places[i].count == 0) {
                holdings->places[i].holder = holder;
                holdings->place_count = i < holdings->place_count ? holdings->place_count : i + 1;
                return i;
            }
        }
        sweep(holdings, holdings->used);
    }
    return PLACE_NONE;
}

/* ---- the public part ---- */

kv_holdings_t *kv_holdings_create(size_t capacity)
{
    KV_CHECK(capacity > 0 && capacity <= KV_HOLDINGS_CAPACITY_MAX);
    kv_holdings_t *holdings = kv_allocate(sizeof *holdings);
    holdings->capacity = (uint32_t)capacity;
    holdings->index_count = (uint32_t)(capacity + capacity / 3 + 2);
    while (UINT64_C(1) << holdings->number_bits < capacity + 1) {
        holdings->number_bits++;
    }
    holdings->entries = kv_allocate_array(capacity, sizeof *holdings->entries);
    holdings->index = kv_allocate_array(holdings->index_count, sizeof *holdings->index);
    holdings->free_head = holdings->oldest = holdings->youngest = NONE;
    return holdings;
}

void kv_holdings_destroy(kv_holdings_t *holdings)
{
    if (holdings != NULL) {
        free(holdings->entries);
        free(holdings->index);
        free(holdings);
    }
}

size_t kv_holdings_bytes(size_t capacity)
{
    return sizeof(kv_holdings_t) + capacity * sizeof(entry_t) +
           (capacity + capacity / 3 + 2) * sizeof(uint32_t);
}

size_t kv_holdings_count(const kv_holdings_t *holdings)
{
    return holdings->living;
}

void kv_holdings_stored(kv_holdings_t *holdings, uint64_t holder, const uint8_t *keys, size_t count,
    Kvist__Events__Tier tier)
{
    uint32_t place = find_place(holdings, holder);
    if (place == PLACE_NONE) {
        place = take_place(holdings, holder);
    }
    if (place == PLACE_NONE || (unsigned)tier >= TIER_COUNT) {
        return;
    }
    for (size_t i = 0; i < count; i++) {
        name_t name = name_of(keys + i * KV_HOLDINGS_KEY_BYTES, place);
        uint32_t number = find(holdings, name);
        if (number == NONE) {
            add_entry(holdings, name, tier);
        } else {
            entry_t *entry = &holdings->entries[number];
            entry->tiers |= (uint16_t)(1 << tier & 7);
            unlink_entry(holdings, entry);
            link_youngest(holdings, number);
        }
    }
}

void kv_holdings_removed(kv_holdings_t *holdings, uint64_t holder, const uint8_t *keys,
    size_t count, Kvist__Events__Tier tier)
{
    uint32_t place = find_place(holdings, holder);
    if (place == PLACE_NONE || (unsigned)tier >= TIER_COUNT) {
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t number = find(holdings, name_of(keys + i * KV_HOLDINGS_KEY_BYTES, place));
        sweep(holdings, SWEPT_AT_ONCE);
        if (number == NONE) {
            continue;
        }
        entry_t *entry = &holdings->entries[number];
        if (entry->tiers == 1U << tier) {
            drop_entry(holdings, number);
        } else {
            entry->tiers &= (uint16_t)(~(1U << tier) & 7);
        }
    }
}

void kv_holdings_forget(kv_holdings_t *holdings, uint64_t holder)
{
    uint32_t place = find_place(holdings, holder);
    if (place != PLACE_NONE) {
        holdings->living -= holdings->places[place].count;
        holdings->dead += holdings->places[place].count;
        holdings->places[place].holder = 0;
    }
}

/* ---- find ---- */

/* How much of the keys the place's holder has, one after the other. */
static kv_holding_t measure(
    const kv_holdings_t *holdings, uint32_t place, const uint8_t *keys, uint32_t key_count)
{
    enum { AHEAD = 8 }; /* what a search waits for is memory: asked for some keys ahead */
    kv_holding_t holding = {.holder = holdings->places[place].holder};
    for (uint32_t i = 0; i < key_count; i++) {
        if (i + AHEAD < key_count) {
            name_t later = name_of(keys + (size_t)(i + AHEAD) * KV_HOLDINGS_KEY_BYTES, place);
            __builtin_prefetch(&holdings->index[home(holdings, mix(later))]);
        }
        uint32_t number = find(holdings, name_of(keys + (size_t)i * KV_HOLDINGS_KEY_BYTES, place));
        if (number == NONE) {
            break;
        }
        holding.block_count++;
        holding.tier_blocks[__builtin_ctz(holdings->entries[number].tiers)]++;
    }
    return holding;
}

static bool is_better(const kv_holding_t *left, const kv_holding_t *right)
{
    if (left->block_count != right->block_count) {
        return left->block_count > right->block_count;
    }
    if (left->tier_blocks[0] != right->tier_blocks[0]) {
        return left->tier_blocks[0] > right->tier_blocks[0];
    }
    return left->tier_blocks[1] > right->tier_blocks[1];
}

size_t kv_holdings_find(const kv_holdings_t *holdings, const uint8_t *keys, uint32_t key_count,
    kv_holding_t *holders_out, size_t count_max)
{
    size_t count = 0;
    for (uint32_t place = 0; place < holdings->place_count; place++) {
        if (holdings->places[place].count == 0 || holdings->places[place].holder == 0) {
            continue;
        }
        kv_holding_t holding = measure(holdings, place, keys, key_count);
        size_t at = count;
        while (at > 0 && is_better(&holding, &holders_out[at - 1])) {
            at--;
        }
        if (holding.block_count == 0 || at == count_max) {
            continue;
        }
        size_t moved = count < count_max ? count - at : count_max - 1 - at;
        memmove(&holders_out[at + 1], &holders_out[at], moved * sizeof *holders_out);
        holders_out[at] = holding;
        count += count < count_max;
    }
    return count;
}

/* Bits of the tiers in which any of the places has the key; 0: none has it. */
static unsigned tiers_together(
    const kv_holdings_t *holdings, const uint32_t *places, size_t count, const uint8_t *key)
{
    unsigned tiers = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t number = find(holdings, name_of(key, places[i]));
        tiers |= number != NONE ? holdings->entries[number].tiers : 0;
    }
    return tiers;
}

kv_holding_t kv_holdings_run(const kv_holdings_t *holdings, const uint64_t *holders,
    size_t holder_count, const uint8_t *keys, uint32_t key_count)
{
    KV_CHECK(holder_count > 0 && holder_count <= KV_HOLDINGS_TOGETHER_MAX);
    kv_holding_t holding = {.holder = holders[0]};
    uint32_t places[KV_HOLDINGS_TOGETHER_MAX];
    size_t count = 0;
    for (size_t i = 0; i < holder_count; i++) {
        places[count] = find_place(holdings, holders[i]);
        count += places[count] != PLACE_NONE;
    }
    for (uint32_t i = 0; i < key_count; i++) {
        unsigned tiers =
            tiers_together(holdings, places, count, keys + (size_t)i * KV_HOLDINGS_KEY_BYTES);
        if (tiers == 0) {
            break;
        }
        holding.block_count++;
        holding.tier_blocks[__builtin_ctz(tiers)]++;
    }
    return holding;
}
