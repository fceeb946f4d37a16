/* Scanning: the records of a segment, one after the other, from their headers.
 *
 * Small records are read by the megabyte; of large ones only the headers. What is no record is
 * passed page by page: a crash may have left records behind one that it lost, and a damaged header
 * costs its own record alone.
 *
 * Owns: a buffer and an open file.
 * Borrows: the store's layouts and files, until it is released.
 * Threads: one at a time; it looks at nothing in the store that changes.
 * Errors: what cannot be read has no records: errno_value says so. */
#ifndef KV_KVSTORE_INDEX_SCAN_H
#define KV_KVSTORE_INDEX_SCAN_H

#include "kvstore/store_internal.h"

typedef struct {
    const kvist_store_t *store;
    kv_region_t region; /* what was read last: */
    uint64_t read_from, read_to;
    char *scratch;
    uint32_t *words;
    size_t header_bytes; /* of any group's record */

    int file; /* -1: none is open */
    uint32_t segment;
    uint64_t generation, offset;
    uint64_t known_to;   /* behind the last record */
    uint64_t step_bytes; /* length of the last record */
    int errno_value;     /* why something could not be read; 0: everything was */
    bool whole, failed;  /* failed: the last read */
} kv_scan_t;

typedef enum {
    KV_SCAN_RECORD,
    KV_SCAN_TORN,  /* a record whose header is whole, but not the rest of it */
    KV_SCAN_PAUSE, /* a long way without a record; call again */
    KV_SCAN_END,
} kv_scan_outcome_t;

kv_status_t kv_scan_init(const kvist_store_t *store, kv_scan_t *scan_out, kv_error_t *error);
void kv_scan_release(kv_scan_t *scan);

/* The segment's records from `offset` on. whole: every byte of a record is proved, not only its
 * header. */
void kv_scan_begin(
    kv_scan_t *scan, uint32_t segment, uint64_t generation, uint64_t offset, bool whole);

/* *entry_out: with a record, and a torn one. */
kv_scan_outcome_t kv_scan_next(kv_scan_t *scan, kv_entry_t *entry_out);

#endif
