#include "kvstore/policy/ghosts.h"

#include "base/memory.h"

#include <stdlib.h>

enum { BUCKET_PLACES = 8 };

void kv_ghosts_init(kv_ghosts_t *ghosts, uint32_t capacity)
{
    *ghosts = (kv_ghosts_t){
        .capacity = capacity,
        .bucket_count = capacity / (BUCKET_PLACES * 3 / 4) + 1, /* a few are crowded out early */
    };
}

void kv_ghosts_destroy(kv_ghosts_t *ghosts)
{
    free(ghosts->places);
    ghosts->places = NULL;
}

size_t kv_ghosts_bytes(const kv_ghosts_t *ghosts)
{
    size_t places = (size_t)ghosts->bucket_count * BUCKET_PLACES;
    return ghosts->places != NULL ? places * sizeof *ghosts->places : 0;
}

static kv_ghost_t *bucket_of(const kv_ghosts_t *ghosts, uint32_t hash)
{
    uint64_t bucket = ((uint64_t)hash * ghosts->bucket_count) >> 32;
    return ghosts->places + bucket * BUCKET_PLACES;
}

static bool is_there(const kv_ghosts_t *ghosts, const kv_ghost_t *place)
{
    return place->number != 0 && ghosts->newest - place->number < ghosts->capacity;
}

void kv_ghosts_add(kv_ghosts_t *ghosts, uint32_t hash, uint32_t note)
{
    if (ghosts->places == NULL) {
        ghosts->places =
            kv_allocate_array((size_t)ghosts->bucket_count * BUCKET_PLACES, sizeof *ghosts->places);
    }
    kv_ghost_t *bucket = bucket_of(ghosts, hash), *oldest = bucket;
    for (int i = 0; i < BUCKET_PLACES; i++) {
        kv_ghost_t *place = &bucket[i];
        if (!is_there(ghosts, place)) {
            oldest = place;
            break;
        }
        if (ghosts->newest - place->number > ghosts->newest - oldest->number) {
            oldest = place;
        }
    }
    ghosts->newest += ghosts->newest == UINT32_MAX ? 2 : 1; /* never 0 */
    *oldest = (kv_ghost_t){(hash & ~(uint32_t)KV_GHOST_NOTE_MAX) | note, ghosts->newest};
}

bool kv_ghosts_take(kv_ghosts_t *ghosts, uint32_t hash, uint32_t *note_out)
{
    if (ghosts->places == NULL) {
        return false;
    }
    kv_ghost_t *bucket = bucket_of(ghosts, hash);
    for (int i = 0; i < BUCKET_PLACES; i++) {
        bool same = (bucket[i].hash ^ hash) <= KV_GHOST_NOTE_MAX;
        if (same && is_there(ghosts, &bucket[i])) {
            *note_out = bucket[i].hash & KV_GHOST_NOTE_MAX;
            bucket[i].number = 0;
            return true;
        }
    }
    return false;
}
