/* Terms: until when a block is promised (pin) or allowed (expiry) to stay, and its priority.
 *
 * Rules:
 *  1. A block is pinned at least as long as its descendants, and of at least as good a priority:
 *     whoever stores or renews one raises its ancestors.
 *  2. Expiry is exact to the second and a limit: from then on a block is a miss. What descends from
 *     an expired block goes with it.
 *  3. A record says the terms that held when it was written; what changed since stands in an entry
 *     of the index of its own, for as long as the record lives.
 *
 * Threads: the store's. */
#ifndef KV_KVSTORE_TERMS_H
#define KV_KVSTORE_TERMS_H

#include "kvstore/index/entry.h"

/* Whole seconds: a limit is not exceeded, a promise is kept. 0 stays 0. */
uint32_t kv_terms_expiry_s(uint64_t unix_ns);
uint32_t kv_terms_pin_s(uint64_t unix_ns);

/* Rule 1, for the ancestors of a block whose terms are set. */
void kv_terms_inherit(kvist_store_t *store, uint32_t object);

/* Expiry and pin of `like`, where they are later than what holds; with rule 1. */
void kv_terms_renew(kvist_store_t *store, uint32_t object, const kv_record_t *like);

/* Just these, whatever held before. */
void kv_terms_set(kvist_store_t *store, uint32_t object, uint32_t expires_s, uint32_t pin_until_s);

/* The object came to the disk with a record that says `written`: what differs goes to the index. */
void kv_terms_settle(kvist_store_t *store, uint32_t object, const kv_record_t *written);

#endif
