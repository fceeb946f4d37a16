#include "kvstore/table.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"
#include "kvstore/identity.h"

#include <stdlib.h>

/* Chunks keep entries where they are while the table grows. */
enum { CHUNK_OBJECTS = 4096, INDEX_MIN = 1024 };

_Static_assert(sizeof(kv_object_t) == 88, "with the index an object must stay within 96 bytes");

struct kv_table {
    kv_object_t **chunks;
    uint32_t chunk_count, bound, free_head, count;
    uint32_t *index; /* linear probing over numbers; at most three quarters full */
    uint32_t index_capacity;
};

kv_table_t *kv_table_create(void)
{
    kv_table_t *table = kv_allocate(sizeof *table);
    table->free_head = KV_OBJECT_NONE;
    table->index_capacity = INDEX_MIN;
    table->index = kv_allocate_array(table->index_capacity, sizeof *table->index);
    memset(table->index, 0xff, table->index_capacity * sizeof *table->index);
    return table;
}

void kv_table_destroy(kv_table_t *table)
{
    if (table == NULL) {
        return;
    }
    for (uint32_t i = 0; i < table->chunk_count; i++) {
        free(table->chunks[i]);
    }
    free(table->chunks);
    free(table->index);
    free(table);
}

kv_object_t *kv_table_at(const kv_table_t *table, uint32_t number)
{
    KV_DCHECK(number < table->bound);
    return &table->chunks[number / CHUNK_OBJECTS][number % CHUNK_OBJECTS];
}

/* Keys are SHA-256: any eight bytes of them are spread evenly. */
static uint32_t home(const kv_table_t *table, const kvist_key_t *key)
{
    return (uint32_t)(((unsigned __int128)kv_get_u64(key->bytes) * table->index_capacity) >> 64);
}

static uint32_t next_place(const kv_table_t *table, uint32_t place)
{
    return place + 1 == table->index_capacity ? 0 : place + 1;
}

/* Where the key is, or the empty place where it would go. */
static uint32_t place_of(const kv_table_t *table, const kvist_key_t *key)
{
    uint32_t place = home(table, key);
    while (table->index[place] != KV_OBJECT_NONE &&
           !kv_key_equal(&kv_table_at(table, table->index[place])->key, key)) {
        place = next_place(table, place);
    }
    return place;
}

uint32_t kv_table_find(const kv_table_t *table, const kvist_key_t *key)
{
    return table->index[place_of(table, key)];
}

static void grow_index(kv_table_t *table)
{
    uint32_t *old = table->index, old_capacity = table->index_capacity;
    table->index_capacity = old_capacity + old_capacity / 2;
    table->index = kv_allocate_array(table->index_capacity, sizeof *table->index);
    memset(table->index, 0xff, table->index_capacity * sizeof *table->index);
    for (uint32_t i = 0; i < old_capacity; i++) {
        if (old[i] != KV_OBJECT_NONE) {
            table->index[place_of(table, &kv_table_at(table, old[i])->key)] = old[i];
        }
    }
    free(old);
}

static uint32_t take_number(kv_table_t *table)
{
    if (table->free_head != KV_OBJECT_NONE) {
        uint32_t number = table->free_head;
        table->free_head = kv_table_at(table, number)->segment_next;
        return number;
    }
    if (table->bound == table->chunk_count * CHUNK_OBJECTS) {
        if (table->chunk_count == KV_OBJECT_NONE / CHUNK_OBJECTS / 2) {
            return KV_OBJECT_NONE;
        }
        table->chunks = kv_reallocate(table->chunks, table->chunk_count + 1, sizeof *table->chunks);
        table->chunks[table->chunk_count++] = kv_allocate_array(CHUNK_OBJECTS, sizeof(kv_object_t));
    }
    return table->bound++;
}

uint32_t kv_table_insert(kv_table_t *table, const kvist_key_t *key, uint32_t parent)
{
    uint32_t number = take_number(table);
    if (number == KV_OBJECT_NONE) {
        return KV_OBJECT_NONE;
    }
    if ((uint64_t)(table->count + 1) * 4 > (uint64_t)table->index_capacity * 3) {
        grow_index(table);
    }
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
        .flags = KV_OBJECT_USED,
    };
    uint32_t place = place_of(table, key);
    KV_CHECK(table->index[place] == KV_OBJECT_NONE);
    table->index[place] = number;
    table->count++;
    if (parent != KV_OBJECT_NONE) {
        kv_table_adopt(table, parent, number);
    }
    return number;
}

void kv_table_adopt(kv_table_t *table, uint32_t parent, uint32_t child)
{
    kv_object_t *object = kv_table_at(table, child), *above = kv_table_at(table, parent);
    KV_CHECK(object->parent == KV_OBJECT_NONE && (above->flags & KV_OBJECT_DEAD) == 0);
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

void kv_table_unlink(kv_table_t *table, uint32_t number)
{
    kv_object_t *object = kv_table_at(table, number);
    KV_CHECK((object->flags & KV_OBJECT_USED) != 0 && (object->flags & KV_OBJECT_DEAD) == 0);
    KV_CHECK(object->first_child == KV_OBJECT_NONE);
    leave_parent(table, object);
    uint32_t hole = place_of(table, &object->key);
    KV_CHECK(table->index[hole] == number);
    /* Close the gap: move back what would no longer be reached from its home. */
    for (uint32_t at = next_place(table, hole); table->index[at] != KV_OBJECT_NONE;
         at = next_place(table, at)) {
        uint32_t wanted = home(table, &kv_table_at(table, table->index[at])->key);
        bool stays = hole <= at ? hole < wanted && wanted <= at : hole < wanted || wanted <= at;
        if (!stays) {
            table->index[hole] = table->index[at];
            hole = at;
        }
    }
    table->index[hole] = KV_OBJECT_NONE;
    object->flags |= KV_OBJECT_DEAD;
    table->count--;
}

void kv_table_free(kv_table_t *table, uint32_t number)
{
    kv_object_t *object = kv_table_at(table, number);
    KV_CHECK((object->flags & KV_OBJECT_DEAD) != 0 && object->reference_count == 0);
    object->flags = 0;
    object->segment_next = table->free_head;
    table->free_head = number;
}

uint32_t kv_table_bound(const kv_table_t *table)
{
    return table->bound;
}

uint32_t kv_table_count(const kv_table_t *table)
{
    return table->count;
}

size_t kv_table_memory_bytes(const kv_table_t *table)
{
    return (size_t)table->chunk_count * CHUNK_OBJECTS * sizeof(kv_object_t) +
           (size_t)table->index_capacity * sizeof *table->index;
}
