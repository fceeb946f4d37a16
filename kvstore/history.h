/* The history: what is stored no more, why, since when, and who needed its room.
 *
 * An object that goes leaves an entry of 32 bytes, found by 12 bytes of its key; two keys that
 * agree in those are taken for one, which may cost a wrong reason and nothing else. What went
 * longest ago is forgotten first. It lies in memory alone: what went before the start is not known,
 * and kv_history_since says from when on it is.
 *
 * Owns: its memory, 40 bytes an entry, taken when it is created and never more.
 * Threads: the store's.
 * Errors: none.
 * Limits: 2^31 entries. */
#ifndef KV_KVSTORE_HISTORY_H
#define KV_KVSTORE_HISTORY_H

#include "kvstore/kvist.h"

enum { KV_HISTORY_KEY_BYTES = 12, KV_HISTORY_ENTRY_BYTES = 40 };

/* How an object goes for good; out of a tier: as the last copy, for want of room there. */
typedef enum {
    KV_GONE_FROM_DEVICE,
    KV_GONE_FROM_HOST,
    KV_GONE_FROM_DISK,
    KV_GONE_EXPIRED,
    KV_GONE_DAMAGED,
    KV_GONE_DROPPED,      /* somebody asked for that */
    KV_GONE_NOT_ADMITTED, /* out of memory, and the write budget had kept it off the disk */
} kv_gone_t;

/* For whom room is made: numbers of the store's names. */
typedef struct {
    uint64_t request; /* kvist_query_t.request */
    uint16_t tenant;  /* KV_HISTORY_NOBODY: none that is known */
    uint8_t origin, priority;
} kv_maker_t;

#define KV_HISTORY_NOBODY UINT16_MAX

typedef struct {
    uint64_t request; /* for whom, as kv_maker_t; of what went for want of room */
    uint8_t key[KV_HISTORY_KEY_BYTES];
    uint32_t gone_s; /* unix */
    uint16_t tenant;
    uint8_t origin, priority;
    uint8_t gone; /* kv_gone_t */
} kv_history_entry_t;

typedef struct kv_history kv_history_t;

/* Of as many entries as so many bytes hold, but at least one. */
kv_history_t *kv_history_create(uint64_t bytes, uint32_t now_s);
void kv_history_destroy(kv_history_t *history);

/* The object with this key is gone, from now on for this reason. */
void kv_history_note(kv_history_t *history, const kvist_key_t *key, kv_gone_t gone,
    const kv_maker_t *maker, uint32_t now_s);

/* The latest entry of the key, until the next note; NULL: none is kept. */
const kv_history_entry_t *kv_history_find(const kv_history_t *history, const kvist_key_t *key);

/* Whatever went from then on is known. unix */
uint32_t kv_history_since(const kv_history_t *history);

uint64_t kv_history_count(const kv_history_t *history);     /* entries */
uint64_t kv_history_forgotten(const kv_history_t *history); /* those that made room for others */

#endif
