/* Filling the table with what the disk holds, while the store is in use already.
 *
 *   opened --> PLACING --> SORTING --> TAKING ----------+--> ENDING --> gone
 *      |    (index: places of all records, in order)    |
 *      |                   (index: entries)             |
 *      +---(no index, or a damaged one)--> SCANNING ----+
 *                                          (records)
 *
 * The index thread reads entries in batches, or threads of their own the segments; each poll takes
 * a bounded number of them into the table. Meanwhile a match looks up in the index what the table
 * lacks, so that it finds what it would find later.
 *
 * What is read is as old as the opening of the store. Rules:
 *  1. What the table knows is younger: an entry whose key it has gives at most a place.
 *  2. What was dropped since the opening, and what descends from that, stays dropped.
 *  3. A place counts only in the present life of its segment.
 *  4. A record that is no object's place in the end gets a mark (mark.c), its entry is deleted.
 *  5. A child may come before its parent, which is then *absent* (table.h). Only when all is read
 *     has what has no parent none, and is dropped.
 *
 * Owns: a cursor, threads, batches of entries.
 * Threads: the store's; batches are filled by one thread each.
 * Errors: an index that cannot be read is completed from the records. */
#ifndef KV_KVSTORE_INDEX_FILL_H
#define KV_KVSTORE_INDEX_FILL_H

#include "kvstore/index/scan.h"

/* rebuild: the index knows nothing; read all records. at_once: entries taken in by one poll; 0: as
 * many as are good. Nothing is read before kv_fill_start. */
void kv_fill_open(kvist_store_t *store, bool rebuild, uint32_t at_once);

/* An object from a record that the index does not know. Puts its entry. */
void kv_fill_take_record(kvist_store_t *store, const kv_entry_t *entry);

/* What a crash left of a record gets a mark: it must not be taken for one later, when headers alone
 * are read. */
void kv_fill_mark_torn(kvist_store_t *store, const kv_entry_t *entry);

/* A segment was scanned from where the index knew it to its end. */
void kv_fill_end_scan(kvist_store_t *store, const kv_scan_t *scan);
/* Records of what has no parent are left alone: it may be there again. */
void kv_fill_spare(kvist_store_t *store);
bool kv_fill_unread(const kvist_store_t *store); /* something could not be read now */

/* From here on the segments in their present state are what is to be read. */
void kv_fill_start(kvist_store_t *store);

#endif
