/* Two parts: the objects, in chunks that never move, and the index, from keys to numbers.
 *
 * The index is an array of buckets of one cache line each. A key has a home bucket; where that is
 * full its entry goes to the next one with room, and every bucket that it passed counts it, so that
 * a search ends at the first bucket that nothing passed, and nothing is left behind by removals.
 *
 *   bucket: | 12 tags, a byte of the key each | passed | 12 numbers |
 *
 * Homes are in the order of the keys, in an index of any size. A growing index is therefore two:
 * each insert moves the keys of a few homes, in order, and one comparison says where a key is now.
 *
 *   old   |.... moved ....|---- not yet ----|       memory behind the mark is given back
 *   index |------------------|..... empty .....|
 *
 * No insert waits for the whole, and both together stay within 8 bytes an object. */
#include "kvstore/objects/table.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"
#include "kvstore/identity.h"

#include <stdlib.h>
#include <sys/mman.h>

enum {
    BUCKET_SLOTS = 12,
    BUCKETS_MIN = 16,
    SIBLINGS_LOOKED_AT = 2,  /* then the index is faster */
    AHEAD_OBJECTS = 12,      /* a walk along a chain asks for memory so far ahead */
    HOMES_MOVED = 2,         /* by each insert, while the index grows */
    CHUNK_OBJECTS = 1 << 18, /* a whole number of huge pages */
    CHUNKS_MAX = 1 << 14,
    HUGE_PAGE_BYTES = 2 << 20,
    RELEASED_AT_ONCE_BYTES = 64 << 10,
};

#define ABSENT_FIRST (UINT32_C(1) << 31) /* numbers of absent objects; the others are below */

_Static_assert(sizeof(kv_object_t) == 88, "with the index an object must stay within 96 bytes");
_Static_assert(CHUNK_OBJECTS * sizeof(kv_object_t) % HUGE_PAGE_BYTES == 0, "no page is shared");

typedef struct {
    uint8_t tags[BUCKET_SLOTS]; /* 0: empty */
    uint32_t passed;            /* entries that are farther on because this bucket was full */
    uint32_t numbers[BUCKET_SLOTS];
} bucket_t;

_Static_assert(sizeof(bucket_t) == 64, "a bucket is a cache line");

typedef struct {
    kv_region_t region;
    bucket_t *items;
    uint32_t count;
} buckets_t;

/* Numbers from `first` on, in chunks that are mapped as they are needed. */
typedef struct {
    uint32_t first, bound, end;
    uint32_t free_head;
} numbers_t;

struct kv_table {
    kv_region_t *chunks; /* [CHUNKS_MAX], of CHUNK_OBJECTS objects each */
    numbers_t present;
    numbers_t absent; /* so that all their memory goes back once there are none */
    uint32_t count, absent_count;
    buckets_t index;
    buckets_t old; /* the index grows: homes of `old` from `moved` on are still there */
    uint32_t moved;
    size_t released_bytes; /* of old */
};

/* ---- objects ---- */

kv_object_t *kv_table_at(const kv_table_t *table, uint32_t number)
{
    KV_DCHECK(table->chunks[number / CHUNK_OBJECTS].base != NULL);
    return (kv_object_t *)table->chunks[number / CHUNK_OBJECTS].base + number % CHUNK_OBJECTS;
}

/* count new numbers in a row; the first, or KV_OBJECT_NONE. */
static uint32_t extend(kv_table_t *table, numbers_t *numbers, uint32_t count)
{
    kv_error_t error;
    if (count > numbers->end - numbers->bound) {
        return KV_OBJECT_NONE;
    }
    uint32_t last_chunk = (numbers->bound + count - 1) / CHUNK_OBJECTS;
    for (uint32_t i = numbers->bound / CHUNK_OBJECTS; count > 0 && i <= last_chunk; i++) {
        if (table->chunks[i].base == NULL && kv_region_map(CHUNK_OBJECTS * sizeof(kv_object_t),
                                                 &table->chunks[i], &error) != KV_OK) {
            return KV_OBJECT_NONE;
        }
    }
    numbers->bound += count;
    return numbers->bound - count;
}

static uint32_t take_number(kv_table_t *table, numbers_t *numbers)
{
    if (numbers->free_head == KV_OBJECT_NONE) {
        return extend(table, numbers, 1);
    }
    uint32_t number = numbers->free_head;
    numbers->free_head = kv_table_at(table, number)->segment_next;
    return number;
}

static void give_number(kv_table_t *table, numbers_t *numbers, uint32_t number)
{
    kv_object_t *object = kv_table_at(table, number);
    object->flags = KV_OBJECT_FREE;
    object->segment_next = numbers->free_head;
    numbers->free_head = number;
}

static void give_absent(kv_table_t *table, uint32_t number)
{
    give_number(table, &table->absent, number);
    table->absent_count--;
}

uint32_t kv_table_set_apart(kv_table_t *table, uint32_t count)
{
    return extend(table, &table->present, count);
}

void kv_table_give_back(kv_table_t *table, uint32_t first, uint32_t count)
{
    for (uint32_t number = first + count; number-- > first;) {
        if (kv_table_at(table, number)->flags == 0) { /* it was never taken */
            give_number(table, &table->present, number);
        }
    }
}

void kv_table_touch(kv_table_t *table, uint32_t first, uint32_t count)
{
    enum { PAGE_OBJECTS = 32 }; /* fewer than fit a page */
    for (uint32_t i = 0; i < count; i += PAGE_OBJECTS) {
        *(volatile uint16_t *)&kv_table_at(table, first + i)->reference_count = 0;
    }
}

void kv_table_release_absent(kv_table_t *table)
{
    KV_CHECK(table->absent_count == 0);
    numbers_t *numbers = &table->absent;
    for (uint32_t i = numbers->first / CHUNK_OBJECTS; i < CHUNKS_MAX; i++) {
        kv_region_unmap(&table->chunks[i]);
    }
    numbers->bound = numbers->first;
    numbers->free_head = KV_OBJECT_NONE;
}

/* ---- buckets ---- */

/* Keys are SHA-256: any of their bytes are spread evenly. */
static uint32_t home(const buckets_t *buckets, const kvist_key_t *key)
{
    return (uint32_t)(((unsigned __int128)kv_get_u64(key->bytes) * buckets->count) >> 64);
}

static uint8_t tag_of(const kvist_key_t *key)
{
    return key->bytes[8] != 0 ? key->bytes[8] : 1;
}

static uint32_t next_bucket(const buckets_t *buckets, uint32_t at)
{
    return at + 1 == buckets->count ? 0 : at + 1;
}

/* The highest bit of each zero byte. */
static uint64_t zero_bytes(uint64_t word)
{
    const uint64_t low_bits = 0x7f7f7f7f7f7f7f7full;
    return ~(((word & low_bits) + low_bits) | word | low_bits);
}

/* A bit for each slot with this tag. */
static uint32_t slots_tagged(const bucket_t *bucket, uint8_t tag)
{
    const uint64_t all = tag * 0x0101010101010101ull, not_there = 0xffffffff00000000ull;
    const uint64_t side_by_side = 0x0102040810204080ull; /* moves bit 8 i to bit 56 + i */
    uint64_t first = zero_bytes(kv_get_u64(bucket->tags) ^ all) >> 7;
    uint64_t last = zero_bytes((kv_get_u32(bucket->tags + 8) ^ (uint32_t)all) | not_there) >> 7;
    return (uint32_t)(first * side_by_side >> 56) | (uint32_t)(last * side_by_side >> 56) << 8;
}

static kv_status_t make_buckets(uint32_t count, buckets_t *buckets_out)
{
    kv_error_t error;
    kv_region_t region;
    kv_status_t status = kv_region_map((size_t)count * sizeof(bucket_t), &region, &error);
    if (status == KV_OK) {
        *buckets_out = (buckets_t){region, region.base, count};
    }
    return status;
}

/* Where the key is: its slot, and its bucket in *at_out; NULL: it is not there. Of few buckets all
 * may have been passed at some time: one round ends the search. */
static uint32_t *find_in(
    const kv_table_t *table, const buckets_t *buckets, const kvist_key_t *key, uint32_t *at_out)
{
    uint8_t tag = tag_of(key);
    uint32_t at = home(buckets, key);
    for (uint32_t left = buckets->count; left > 0; left--, at = next_bucket(buckets, at)) {
        bucket_t *bucket = &buckets->items[at];
        for (uint32_t slots = slots_tagged(bucket, tag); slots != 0; slots &= slots - 1) {
            uint32_t *number = &bucket->numbers[__builtin_ctz(slots)];
            if (kv_key_equal(&kv_table_at(table, *number)->key, key)) {
                *at_out = at;
                return number;
            }
        }
        if (bucket->passed == 0) {
            break;
        }
    }
    return NULL;
}

static void put_in(buckets_t *buckets, const kvist_key_t *key, uint32_t number)
{
    uint32_t at = home(buckets, key), slots;
    while ((slots = slots_tagged(&buckets->items[at], 0)) == 0) {
        buckets->items[at].passed++;
        at = next_bucket(buckets, at);
    }
    buckets->items[at].tags[__builtin_ctz(slots)] = tag_of(key);
    buckets->items[at].numbers[__builtin_ctz(slots)] = number;
}

/* Empties the slot of a key whose home is `from`. */
static void take_out(buckets_t *buckets, uint32_t from, uint32_t at, const uint32_t *number)
{
    buckets->items[at].tags[number - buckets->items[at].numbers] = 0;
    for (uint32_t passed = from; passed != at; passed = next_bucket(buckets, passed)) {
        buckets->items[passed].passed--;
    }
}

/* ---- a growing index ---- */

/* At most seven slots in eight are taken. */
static uint64_t entries_max(const buckets_t *buckets)
{
    return (uint64_t)buckets->count * BUCKET_SLOTS * 7 / 8;
}

static bool growing(const kv_table_t *table)
{
    return table->old.items != NULL;
}

/* The one of the two that has the key, if any has. */
static buckets_t *side_of(const kv_table_t *table, const kvist_key_t *key)
{
    bool waits = growing(table) && home(&table->old, key) >= table->moved;
    return (buckets_t *)(waits ? &table->old : &table->index);
}

/* Moves the keys of one home. */
static void move_home(kv_table_t *table, uint32_t from)
{
    buckets_t *old = &table->old;
    uint32_t left = old->count;
    for (uint32_t at = from; left > 0; at = next_bucket(old, at)) {
        bucket_t *bucket = &old->items[at];
        left = bucket->passed > 0 ? left - 1 : 0;
        for (int slot = 0; slot < BUCKET_SLOTS; slot++) {
            if (bucket->tags[slot] == 0) {
                continue;
            }
            uint32_t number = bucket->numbers[slot];
            const kvist_key_t *key = &kv_table_at(table, number)->key;
            if (home(old, key) == from) {
                take_out(old, from, at, &bucket->numbers[slot]);
                put_in(&table->index, key, number);
            }
        }
    }
}

/* Gives back what lies behind the mark; but not the front, where the last homes go on. */
static void release_moved(kv_table_t *table)
{
    const size_t front = RELEASED_AT_ONCE_BYTES;
    size_t moved_bytes = (size_t)table->moved * sizeof(bucket_t);
    size_t start = table->released_bytes + front;
    if (moved_bytes >= start + RELEASED_AT_ONCE_BYTES) {
        madvise((char *)table->old.region.base + start, RELEASED_AT_ONCE_BYTES, MADV_DONTNEED);
        table->released_bytes += RELEASED_AT_ONCE_BYTES;
    }
}

static void move_homes(kv_table_t *table, uint32_t count)
{
    while (growing(table) && count-- > 0) {
        move_home(table, table->moved++);
        release_moved(table);
        if (table->moved == table->old.count) {
            kv_region_unmap(&table->old.region);
            table->old = (buckets_t){0};
            table->released_bytes = 0;
        }
    }
}

static kv_status_t grow(kv_table_t *table, uint32_t bucket_count)
{
    buckets_t larger;
    KV_CHECK(!growing(table));
    kv_status_t status = make_buckets(bucket_count, &larger);
    if (status == KV_OK) {
        table->old = table->index;
        table->index = larger;
        table->moved = 0;
    }
    return status;
}

void kv_table_reserve(kv_table_t *table, uint32_t object_count)
{
    uint64_t wanted = (uint64_t)object_count * 8 / (7 * BUCKET_SLOTS) + 1;
    if (wanted <= table->index.count) {
        return;
    }
    move_homes(table, UINT32_MAX);
    if (grow(table, (uint32_t)wanted) == KV_OK) { /* else it grows as it fills */
        move_homes(table, UINT32_MAX);
    }
}

static kv_status_t make_room(kv_table_t *table)
{
    move_homes(table, HOMES_MOVED);
    if (table->count + (uint64_t)table->absent_count < entries_max(&table->index)) {
        return KV_OK;
    }
    return grow(table, table->index.count + table->index.count / 8);
}

/* ---- the table ---- */

kv_table_t *kv_table_create(void)
{
    kv_table_t *table = kv_allocate(sizeof *table);
    table->chunks = kv_allocate_array(CHUNKS_MAX, sizeof *table->chunks);
    table->present = (numbers_t){0, 0, ABSENT_FIRST, KV_OBJECT_NONE};
    table->absent = (numbers_t){ABSENT_FIRST, ABSENT_FIRST, KV_OBJECT_NONE, KV_OBJECT_NONE};
    KV_CHECK(make_buckets(BUCKETS_MIN, &table->index) == KV_OK);
    return table;
}

void kv_table_destroy(kv_table_t *table)
{
    if (table == NULL) {
        return;
    }
    for (uint32_t i = 0; i < CHUNKS_MAX; i++) {
        kv_region_unmap(&table->chunks[i]);
    }
    kv_region_unmap(&table->index.region);
    kv_region_unmap(&table->old.region);
    free(table->chunks);
    free(table);
}

uint32_t kv_table_find(const kv_table_t *table, const kvist_key_t *key)
{
    uint32_t at;
    const uint32_t *number = find_in(table, side_of(table, key), key, &at);
    bool absent = number != NULL && (kv_table_at(table, *number)->flags & KV_OBJECT_ABSENT) != 0;
    return number != NULL && !absent ? *number : KV_OBJECT_NONE;
}

static const bucket_t *home_bucket(const kv_table_t *table, const kvist_key_t *key)
{
    const buckets_t *buckets = side_of(table, key);
    return &buckets->items[home(buckets, key)];
}

/* An object takes two lines, or three. */
static void approach_number(const kv_table_t *table, uint32_t number)
{
    if (table->chunks[number / CHUNK_OBJECTS].base != NULL) {
        const kv_object_t *object = kv_table_at(table, number);
        __builtin_prefetch(object, 1);
        __builtin_prefetch((const char *)(object + 1) - 1, 1);
    }
}

uint32_t kv_table_find_child(const kv_table_t *table, uint32_t parent, const kvist_key_t *key)
{
    if (parent != KV_OBJECT_NONE) {
        uint32_t child = kv_table_at(table, parent)->first_child;
        for (int looked = 0; child != KV_OBJECT_NONE && looked < SIBLINGS_LOOKED_AT; looked++) {
            const kv_object_t *object = kv_table_at(table, child);
            if (kv_key_equal(&object->key, key)) {
                approach_number(table, child + AHEAD_OBJECTS);
                return child;
            }
            child = object->next_sibling;
        }
    }
    return kv_table_find(table, key);
}

void kv_table_approach_next(const kv_table_t *table, uint32_t number, uint32_t count)
{
    uint32_t room = CHUNK_OBJECTS - 1 - number % CHUNK_OBJECTS; /* in the chunk, behind it */
    const char *at = (const char *)kv_table_at(table, number);
    size_t bytes = (size_t)(count < room ? count : room) * sizeof(kv_object_t);
    for (size_t offset = sizeof(kv_object_t); offset < sizeof(kv_object_t) + bytes; offset += 64) {
        __builtin_prefetch(at + offset, 0, 2);
    }
}

void kv_table_approach(const kv_table_t *table, const kvist_key_t *key)
{
    __builtin_prefetch(home_bucket(table, key));
}

void kv_table_approach_object(const kv_table_t *table, const kvist_key_t *key)
{
    const bucket_t *bucket = home_bucket(table, key);
    uint32_t slots = slots_tagged(bucket, tag_of(key));
    if (slots != 0) {
        approach_number(table, bucket->numbers[__builtin_ctz(slots)]);
    }
}

static kv_object_t *begin_object(
    kv_table_t *table, uint32_t number, const kvist_key_t *key, unsigned flags)
{
    kv_object_t *object = kv_table_at(table, number);
    *object = (kv_object_t){
        .key = *key,
        .parent = KV_OBJECT_NONE,
        .first_child = KV_OBJECT_NONE,
        .next_sibling = KV_OBJECT_NONE,
        .previous_sibling = KV_OBJECT_NONE,
        .device_slot = UINT32_MAX,
        .host_slot = UINT32_MAX,
        .segment_next = KV_OBJECT_NONE,
        .segment = KV_SEGMENT_NONE,
        .flags = flags & (KV_OBJECT_USED | KV_OBJECT_DEAD | KV_OBJECT_ABSENT),
    };
    return object;
}

/* What waits for the absent object becomes the new one's; its number is free again. */
static void take_children(kv_table_t *table, uint32_t number, uint32_t absent)
{
    uint32_t first_child = kv_table_at(table, absent)->first_child;
    kv_table_at(table, number)->first_child = first_child;
    for (uint32_t child = first_child; child != KV_OBJECT_NONE;
         child = kv_table_at(table, child)->next_sibling) {
        kv_table_at(table, child)->parent = number;
    }
    give_absent(table, absent);
}

uint32_t kv_table_insert_at(kv_table_t *table, const kvist_key_t *key, uint32_t wanted)
{
    if (make_room(table) != KV_OK) {
        return KV_OBJECT_NONE;
    }
    bool apart = wanted != KV_OBJECT_NONE && kv_table_at(table, wanted)->flags == 0;
    uint32_t number = apart ? wanted : take_number(table, &table->present), at;
    if (number == KV_OBJECT_NONE) {
        return KV_OBJECT_NONE;
    }
    buckets_t *buckets = side_of(table, key);
    uint32_t *place = find_in(table, buckets, key, &at);
    begin_object(table, number, key, KV_OBJECT_USED);
    if (place != NULL) {
        KV_CHECK((kv_table_at(table, *place)->flags & KV_OBJECT_ABSENT) != 0);
        take_children(table, number, *place);
        *place = number;
    } else {
        put_in(buckets, key, number);
    }
    table->count++;
    return number;
}

uint32_t kv_table_insert(kv_table_t *table, const kvist_key_t *key, uint32_t parent)
{
    uint32_t number = kv_table_insert_at(table, key, KV_OBJECT_NONE);
    if (number != KV_OBJECT_NONE && parent != KV_OBJECT_NONE) {
        kv_table_adopt(table, parent, number);
    }
    return number;
}

uint32_t kv_table_expect(kv_table_t *table, const kvist_key_t *key)
{
    uint32_t at, *place = find_in(table, side_of(table, key), key, &at);
    if (place != NULL) {
        return *place;
    }
    uint32_t number =
        make_room(table) == KV_OK ? take_number(table, &table->absent) : KV_OBJECT_NONE;
    if (number != KV_OBJECT_NONE) {
        begin_object(table, number, key, KV_OBJECT_USED | KV_OBJECT_DEAD | KV_OBJECT_ABSENT);
        put_in(side_of(table, key), key, number);
        table->absent_count++;
    }
    return number;
}

/* ---- the tree ---- */

void kv_table_adopt(kv_table_t *table, uint32_t parent, uint32_t child)
{
    kv_object_t *object = kv_table_at(table, child), *above = kv_table_at(table, parent);
    KV_CHECK(object->parent == KV_OBJECT_NONE &&
             (above->flags & (KV_OBJECT_DEAD | KV_OBJECT_ABSENT)) != KV_OBJECT_DEAD);
    object->parent = parent;
    object->next_sibling = above->first_child;
    if (above->first_child != KV_OBJECT_NONE) {
        kv_table_at(table, above->first_child)->previous_sibling = child;
    }
    above->first_child = child;
}

static void leave_parent(kv_table_t *table, kv_object_t *object)
{
    if (object->parent == KV_OBJECT_NONE) {
        return;
    }
    if (object->previous_sibling != KV_OBJECT_NONE) {
        kv_table_at(table, object->previous_sibling)->next_sibling = object->next_sibling;
    } else {
        kv_table_at(table, object->parent)->first_child = object->next_sibling;
    }
    if (object->next_sibling != KV_OBJECT_NONE) {
        kv_table_at(table, object->next_sibling)->previous_sibling = object->previous_sibling;
    }
    object->parent = KV_OBJECT_NONE;
}

static void leave_index(kv_table_t *table, uint32_t number)
{
    const kvist_key_t *key = &kv_table_at(table, number)->key;
    buckets_t *buckets = side_of(table, key);
    uint32_t at, *place = find_in(table, buckets, key, &at);
    KV_CHECK(place != NULL && *place == number);
    take_out(buckets, home(buckets, key), at, place);
}

void kv_table_unlink(kv_table_t *table, uint32_t number)
{
    kv_object_t *object = kv_table_at(table, number);
    KV_CHECK((object->flags & KV_OBJECT_USED) != 0 && (object->flags & KV_OBJECT_DEAD) == 0);
    KV_CHECK(object->first_child == KV_OBJECT_NONE);
    leave_parent(table, object);
    leave_index(table, number);
    object->flags |= KV_OBJECT_DEAD;
    table->count--;
}

void kv_table_forget_absent(kv_table_t *table, uint32_t number)
{
    const kv_object_t *object = kv_table_at(table, number);
    KV_CHECK((object->flags & KV_OBJECT_ABSENT) != 0 && object->first_child == KV_OBJECT_NONE);
    leave_index(table, number);
    give_absent(table, number);
}

void kv_table_free(kv_table_t *table, uint32_t number)
{
    kv_object_t *object = kv_table_at(table, number);
    KV_CHECK((object->flags & KV_OBJECT_DEAD) != 0 && object->reference_count == 0);
    give_number(table, &table->present, number);
}

uint32_t kv_table_bound(const kv_table_t *table)
{
    return table->present.bound;
}

uint32_t kv_table_next_absent(const kv_table_t *table, uint32_t from)
{
    uint32_t number = from != KV_OBJECT_NONE ? from : table->absent.first;
    while (number < table->absent.bound &&
           (kv_table_at(table, number)->flags & KV_OBJECT_ABSENT) == 0) {
        number++;
    }
    return number < table->absent.bound ? number : KV_OBJECT_NONE;
}

uint32_t kv_table_count(const kv_table_t *table)
{
    return table->count;
}

size_t kv_table_memory_bytes(const kv_table_t *table)
{
    size_t index_bytes = (size_t)table->index.count * sizeof(bucket_t), old_bytes = 0;
    if (growing(table)) {
        old_bytes = (size_t)table->old.count * sizeof(bucket_t);
        index_bytes = (size_t)((double)index_bytes * table->moved / table->old.count);
    }
    return kv_round_up((size_t)table->present.bound * sizeof(kv_object_t), HUGE_PAGE_BYTES) +
           kv_round_up((size_t)(table->absent.bound - table->absent.first) * sizeof(kv_object_t),
               HUGE_PAGE_BYTES) +
           kv_round_up(index_bytes, HUGE_PAGE_BYTES) + kv_round_up(old_bytes, HUGE_PAGE_BYTES) -
           table->released_bytes;
}
