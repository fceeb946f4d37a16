/* How soon blocks come back: learnt from a sample of them, for kinds of blocks that are told apart.
 *
 * Of all keys a fixed share is watched (those whose hash ends in zeros), whether their blocks are
 * held or not: so what is learnt does not depend on what is kept. For each kind and each age the
 * share that comes back at that age is counted, older counts fading. From that follows what room
 * for a block of that kind and age is worth: the most returns for each unit of time that waiting
 * until any later time would bring,
 *
 *     max over T of  P(it comes back within T) / E(time that it is kept, at most T)
 *
 * (Gittins' index). It falls with age where most come back soon, and rises where they come back
 * after a while. What little is known of a kind is filled up with what is known of the others.
 *
 * Blocks of which somebody said when they will be used count for their kind as all do, and besides
 * for a kind of their own, whose ages are in parts of the time that was said: so it is learnt what
 * such words are worth.
 *
 * Owns: 256 KiB for what is watched, once something is; the counts.
 * Threads: the store's. */
#ifndef KV_KVSTORE_POLICY_RETURNS_H
#define KV_KVSTORE_POLICY_RETURNS_H

#include <stddef.h>
#include <stdint.h>

enum {
    KV_RETURNS_KINDS = 8,
    KV_RETURNS_FORETOLD = KV_RETURNS_KINDS - 1,
    KV_RETURNS_AGES = 48, /* two for each doubling, of age + 1 */
};

typedef struct {
    uint32_t hash, since_s;
    float unit_s; /* 0: nothing was said */
    uint8_t kind, taken;
} kv_returns_watched_t;

typedef struct {
    double came[KV_RETURNS_AGES];  /* back at this age */
    double ended[KV_RETURNS_AGES]; /* watched no longer, at this age */
    double value[KV_RETURNS_AGES]; /* returns in one unit of time */
} kv_returns_kind_t;

typedef struct {
    uint32_t share; /* one key in so many is watched: a power of two */
    kv_returns_watched_t *watched;
    uint32_t events, events_wanted; /* since the values were worked out; until they are again */
    kv_returns_kind_t kinds[KV_RETURNS_KINDS];
} kv_returns_t;

/* slot_count: of the pool; what comes back within several times of what fills it is seen. */
void kv_returns_init(kv_returns_t *returns, uint32_t slot_count);
void kv_returns_destroy(kv_returns_t *returns);

/* The block with this key hash was used; from now on it is of this kind (below
 * KV_RETURNS_FORETOLD). unit_s: a part of the time after which it is said to be used next; 0:
 * nobody said so. */
void kv_returns_use(
    kv_returns_t *returns, uint32_t hash, uint32_t kind, double unit_s, uint32_t now_s);

/* Returns per second; 0 while nothing is known. */
double kv_returns_value(const kv_returns_t *returns, uint32_t kind, double age_s);
double kv_returns_value_foretold(const kv_returns_t *returns, double unit_s, double age_s);
size_t kv_returns_bytes(const kv_returns_t *returns);

#endif
