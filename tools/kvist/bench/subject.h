/* A store of its own under load, for `kvist bench store`: puts and gets of runs.
 *
 * A run is one operation: a chain of run_blocks objects, stored or loaded by one call between the
 * store and this process' memory; of one block it is a random object. Runs have numbers; a put
 * stores the next number, a get loads one of the last run_count in an order that jumps: from disk
 * one of those before the newest, which may still lie in memory, and none that has come up to
 * memory since. Sources and destinations rotate over the whole of their regions, so that no side of
 * a copy lies in a processor's cache.
 *
 * Owns: the store; its directory is left as it is.
 * Borrows: the two regions.
 * Threads: one.
 * Errors: KV_FATAL: a get brought other bytes than were put; KV_MISSING: what was put is not there,
 * or not in that tier: then the figure says nothing. */
#ifndef KV_TOOLS_BENCH_SUBJECT_H
#define KV_TOOLS_BENCH_SUBJECT_H

#include "base/memory.h"
#include "kvstore/kvist.h"

enum { KV_SUBJECT_DEPTH_MAX = 64, KV_SUBJECT_BLOCK_TOKENS = 16 };

typedef struct {
    size_t object_bytes; /* a multiple of 4 KiB */
    uint32_t run_blocks;
    uint32_t run_count;    /* the working set */
    uint64_t host_bytes;   /* of the store's host tier */
    const char *directory; /* NULL: no disk tier, and gets must come from memory, else from disk */
    uint64_t disk_bytes;
    kvist_codec_t codec;  /* of records on disk */
    const char *key_file; /* NULL: in clear */
    bool filled;        /* another subject of the same parameters put the working set, and lives */
    uint64_t first_get; /* where in the order of gets this one begins */
    const kv_region_t *source, *destination; /* each at least a run for each operation in flight */
} kv_subject_params_t;

typedef struct kv_subject kv_subject_t;

/* What opens the store: kvist_store_open, or another way into it. */
typedef kv_status_t (*kv_subject_opener_t)(
    const kvist_store_params_t *params, kvist_store_t **store_out, kv_error_t *error);

kv_status_t kv_subject_open(const kv_subject_params_t *params, kv_subject_opener_t opener,
    kv_subject_t **subject_out, kv_error_t *error);
void kv_subject_close(kv_subject_t *subject);

/* Stores count new runs, depth of them in flight; durable: the time ends when all of them are. */
kv_status_t kv_subject_put(kv_subject_t *subject, uint32_t count, uint32_t depth, bool durable,
    uint64_t *ns_out, kv_error_t *error);

/* Loads count runs, depth of them in flight; one of them is compared, outside the time. */
kv_status_t kv_subject_get(
    kv_subject_t *subject, uint32_t count, uint32_t depth, uint64_t *ns_out, kv_error_t *error);

/* Matches the whole of count runs, without loading them. */
kv_status_t kv_subject_match(
    kv_subject_t *subject, uint32_t count, uint64_t *ns_out, kv_error_t *error);

/* Puts the working set, so that there is what to get. */
kv_status_t kv_subject_fill(kv_subject_t *subject, kv_error_t *error);

kvist_stats_t kv_subject_stats(const kv_subject_t *subject);

#endif
