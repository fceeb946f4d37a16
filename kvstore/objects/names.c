#include "kvstore/objects/names.h"

#include "base/check.h"
#include "base/checksum.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { CAPACITY_MIN = 8 };

void kv_names_init(kv_names_t *names, size_t name_bytes, uint32_t count_max)
{
    *names = (kv_names_t){
        .bytes = kv_allocate_array(CAPACITY_MIN, name_bytes),
        .index = kv_allocate_array(2 * CAPACITY_MIN, sizeof(uint32_t)),
        .name_bytes = name_bytes,
        .capacity = CAPACITY_MIN,
        .count_max = count_max,
    };
}

void kv_names_destroy(kv_names_t *names)
{
    free(names->bytes);
    free(names->index);
    *names = (kv_names_t){0};
}

const char *kv_names_at(const kv_names_t *names, uint32_t number)
{
    KV_CHECK(number < names->count);
    return names->bytes + number * names->name_bytes;
}

/* Where the name is in the index, or the empty place for it. */
static uint32_t *place_of(const kv_names_t *names, const void *name)
{
    uint32_t capacity = 2 * names->capacity;
    uint32_t at = (uint32_t)(kv_checksum(name, names->name_bytes) % capacity);
    while (names->index[at] != 0 &&
           memcmp(kv_names_at(names, names->index[at] - 1), name, names->name_bytes) != 0) {
        at = (at + 1) % capacity;
    }
    return &names->index[at];
}

static void grow(kv_names_t *names)
{
    names->capacity *= 2;
    names->bytes = kv_reallocate(names->bytes, names->capacity, names->name_bytes);
    free(names->index);
    names->index = kv_allocate_array((size_t)2 * names->capacity, sizeof(uint32_t));
    for (uint32_t number = 0; number < names->count; number++) {
        *place_of(names, kv_names_at(names, number)) = number + 1;
    }
}

int kv_names_number(kv_names_t *names, const void *name)
{
    if (names->count > 0 && memcmp(kv_names_at(names, names->last), name, names->name_bytes) == 0) {
        return (int)names->last;
    }
    uint32_t *place = place_of(names, name);
    if (*place == 0) {
        if (names->count == names->count_max) {
            return KV_NAMES_FULL;
        }
        if (names->count == names->capacity) {
            grow(names);
            place = place_of(names, name);
        }
        memcpy(names->bytes + names->count * names->name_bytes, name, names->name_bytes);
        *place = ++names->count;
    }
    names->last = *place - 1;
    return (int)names->last;
}

int kv_names_find(const kv_names_t *names, const void *name)
{
    return (int)*place_of(names, name) - 1;
}
