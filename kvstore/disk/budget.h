/* The write budget: how many bytes may go to segment files in a day, and whose.
 *
 * A bucket that fills evenly and holds one day's. Chains are judged, not blocks: where a new part
 * of one begins, for all of it that is not judged yet, and what is stored behind that in the same
 * request goes with it as long as anything is left.
 *
 * Owns: the bucket, the keys of what was refused and is gone (the newest 65,536 or so).
 * Threads: the store's.
 * Limits: what was admitted is written though the bucket be empty by then, and so are survivors and
 * markers: it is then overdrawn, and fills from there. */
#ifndef KV_KVSTORE_DISK_BUDGET_H
#define KV_KVSTORE_DISK_BUDGET_H

#include "kvstore/store_internal.h"

/* bytes_per_day 0: there is no bound. */
void kv_budget_open(kvist_store_t *store, uint64_t bytes_per_day);
void kv_budget_close(kvist_store_t *store);

/* What an earlier life left; and for the next life, into the changes that wait for the index. */
void kv_budget_restore(kvist_store_t *store, const kv_budget_entry_t *entry);
void kv_budget_note(kvist_store_t *store);

/* So many bytes go to a segment file. */
void kv_budget_spend(kvist_store_t *store, uint64_t bytes);

/* Whether the object, which is not on disk, may go there. */
bool kv_budget_admits(kvist_store_t *store, uint32_t number);

/* An object that was not on disk is there now, or will never be. */
void kv_budget_settle(kvist_store_t *store, const kv_object_t *object);

/* An object leaves the store: its key is remembered if the budget kept it off the disk. */
void kv_budget_object_gone(kvist_store_t *store, const kv_object_t *object);
bool kv_budget_remembers(const kvist_store_t *store, const kvist_key_t *key);

/* A new object: one that was refused before, and is stored again, counts as asked for. */
void kv_budget_object_new(kvist_store_t *store, kv_object_t *object);

void kv_budget_stats(const kvist_store_t *store, kvist_stats_t *stats);

#endif
