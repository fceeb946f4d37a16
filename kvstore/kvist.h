/* libkvist: a tiered store for the KV of language models.
 *
 * A context's KV is kept as a chain of blocks, each keyed by everything before it. The store holds
 * blocks in device memory, host memory and on disk, finds the longest stored prefix of a prompt,
 * brings it into device memory, and keeps what was computed after it, across restarts. It never
 * returns bytes that it did not verify: a block is as it was stored, or it is a miss with a reason.
 *
 * Owns: the host tier, the disk tier's directory, the index, its worker threads.
 * Borrows: the device and its arena, for the store's life.
 * Threads: a store belongs to one thread, which makes every call but kvist_keys and
 * kvist_namespace_* (pure functions, any thread). Callbacks run only inside kvist_store_poll, on
 * that thread, never before the call that asked returns. kvist_store_fd is readable when a poll has
 * something to do.
 * Errors: kv_status_t (base/status.h). A cache may miss; KV_CORRUPT and KV_IO never leave the store
 * as an answer: they shorten a match, with a reason, and are counted.
 * Limits: one layer group; 2^32 - 1 objects; chains of up to KVIST_CHAIN_BLOCKS_MAX blocks. */
#ifndef KVIST_H
#define KVIST_H

#include "base/clock.h"
#include "base/status.h"
#include "kernels/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KVIST_KEY_BYTES = 32, KVIST_ARITHMETIC_BYTES_MAX = 47, KVIST_CHAIN_BLOCKS_MAX = 1 << 20 };

/* ---- identity ---- */

/* A namespace's id, or the key of a block: SHA-256; the encoding is in docs/formats.md. */
typedef struct {
    uint8_t bytes[KVIST_KEY_BYTES];
} kvist_key_t;

typedef enum { KVIST_DTYPE_BF16, KVIST_DTYPE_F32 } kvist_dtype_t;
typedef enum { KVIST_CODEC_CLASS_LOSSLESS } kvist_codec_class_t;

/* What must be equal before two blocks may be compared at all. */
typedef struct {
    kvist_key_t model; /* kvist_fingerprint_file(), or any digest of weights and hyperparameters */
    kv_block_shape_t shape; /* geometry of a block, with block_tokens */
    kvist_dtype_t dtype;
    kvist_codec_class_t codec_class;
    const void *salt; /* the tenant's: two salts share nothing */
    size_t salt_bytes;
    const char *adapter; /* "" for none */
} kvist_namespace_params_t;

kvist_key_t kvist_namespace(const kvist_namespace_params_t *params);

/* Keys of the whole blocks of a token array: token_count / block_tokens of them, into keys_out. */
void kvist_keys(const kvist_key_t *name_space, const uint32_t *tokens, size_t token_count,
    uint32_t block_tokens, kvist_key_t *keys_out);

/* SHA-256 of a model file. Remembered by device, inode, size and mtime in cache_folder (NULL: not
 * remembered). */
kv_status_t kvist_fingerprint_file(
    const char *path, const char *cache_folder, kvist_key_t *key_out, kv_error_t *error);

/* ---- the store ---- */

typedef enum {
    KVIST_TIER_DEVICE,
    KVIST_TIER_HOST,
    KVIST_TIER_DISK,
    KVIST_TIER_REMOTE, /* held by another node; the store itself never answers with it */
    KVIST_TIER_COUNT,
} kvist_tier_t;

const char *kvist_tier_name(kvist_tier_t tier); /* "device", "host", "disk", "remote" */

/* Why a match ended where it did: the one list, docs/ARCHITECTURE.md. */
typedef enum {
    KVIST_MISS_NONE,     /* everything that was asked for was found */
    KVIST_MISS_NEW,      /* the next block was never stored */
    KVIST_MISS_SHORT,    /* what is left is less than a block */
    KVIST_MISS_DAMAGED,  /* held, but the bytes are not what was stored; it and its descendants were
                            dropped */
    KVIST_MISS_FAILED,   /* could not be read now; it stays */
    KVIST_MISS_BYPASSED, /* the request did not want the cache */
    KVIST_MISS_COUNT,
} kvist_miss_t;

const char *kvist_miss_name(kvist_miss_t miss); /* "new", "short", ... */

typedef enum { KVIST_PERSIST_EAGER, KVIST_PERSIST_SPILL } kvist_persist_t;
typedef enum { KVIST_CODEC_NONE, KVIST_CODEC_LZ4 } kvist_codec_t;
typedef enum { KVIST_IO_AUTO, KVIST_IO_URING, KVIST_IO_THREADS } kvist_io_t;

typedef struct {
    kv_block_shape_t shape; /* of every object; fixes the slot size */
    kv_device_t *device;    /* borrowed */
    void *device_arena;     /* borrowed: device_slot_count slots of kv_block_bytes(&shape) */
    uint32_t device_slot_count;
    uint64_t host_bytes; /* of the host tier; 0: none */
    const char
        *directory;      /* of the disk tier; made when absent; NULL: none. One process at a time */
    uint64_t disk_bytes; /* quota of the disk tier, segments and all */
    uint64_t segment_bytes; /* 0: 64 MiB */
    kvist_persist_t
        persist; /* eager: written behind as sealed; spill: written when evicted from host memory */
    kvist_codec_t codec; /* of records on disk */
    kvist_io_t io;       /* auto: io_uring, or pread/pwrite threads where the kernel forbids it */
    const char *origin;  /* this node's name, kept with each object (at most 31 bytes) */
    const kv_clock_t *clock; /* NULL: the machine's */
} kvist_store_params_t;

typedef struct kvist_store kvist_store_t;

/* Opens the directory and reads its index; everything durable is found. KV_BUSY: another process
 * has the directory. */
kv_status_t kvist_store_open(
    const kvist_store_params_t *params, kvist_store_t **store_out, kv_error_t *error);

/* Makes everything sealed durable (persist eager and spill alike), then closes. Leases must have
 * been released. */
void kvist_store_close(kvist_store_t *store);

int kvist_store_fd(const kvist_store_t *store);
void kvist_store_poll(kvist_store_t *store); /* never blocks */

/* The callback runs when all that was sealed before the call is durable, or could not be made so
 * (its status). */
void kvist_store_flush(
    kvist_store_t *store, void (*done)(void *context, kv_status_t status), void *context);

/* ---- leases: a sequence's hold on its blocks ----
 *
 *            match              prepare              callback             seal (per block)
 *   (none) ---------> matched ----------> preparing ----------> ready ----------------------> ready
 *                        |                    |                   |
 *                        +-------- release ---+------ release ----+--> gone
 *
 * A lease is one sequence's block table in the making: first the blocks that were found (sealed,
 * shared, read-only), then private slots into which the caller computes, receives or generates.
 * While a lease lives none of its blocks is evicted, moved or reused. */

typedef struct kvist_lease kvist_lease_t;

typedef enum {
    KVIST_MODE_READWRITE,
    KVIST_MODE_READ,
    KVIST_MODE_WRITE,
    KVIST_MODE_BYPASS
} kvist_mode_t;

typedef struct {
    kvist_key_t name_space;
    const uint32_t *tokens; /* [token_count], copied */
    size_t token_count;     /* whole blocks of it are looked for: the caller leaves off what it must
                               compute anyway */
    kvist_mode_t mode;      /* bypass and write match nothing; read and bypass store nothing */
} kvist_query_t;

typedef struct {
    uint32_t block_count;                   /* found: blocks 0 .. block_count - 1 of the query */
    uint32_t tier_blocks[KVIST_TIER_COUNT]; /* of those, by the fastest tier that holds each */
    kvist_miss_t miss;                      /* why it is not more */
} kvist_match_t;

/* The longest stored prefix, held by a new lease (of zero blocks where nothing is stored). Never
 * blocks: nothing is read. Token ids are compared where they are at hand (device, host), and again
 * when a record is read. */
kv_status_t kvist_match(kvist_store_t *store, const kvist_query_t *query, kvist_lease_t **lease_out,
    kvist_match_t *match_out);

/* status: KV_OK: every slot is there; *match is what was found after reading (a block that proved
 * damaged or could not be read ended it early: the good prefix stays, the rest became private
 * slots). KV_BUSY: the deadline passed before enough slots were free; KV_CANCELLED: released first.
 * In the last two cases the lease holds no slots. */
typedef void (*kvist_prepared_t)(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match);

/* Brings the leased blocks into device memory and reserves private slots after them, slot_count in
 * all (at least the matched blocks): all or nothing, first come first served, until deadline_ns
 * (monotonic clock of the store). More slots than the device tier has: KV_INVALID at once. */
kv_status_t kvist_lease_prepare(kvist_lease_t *lease, uint32_t slot_count, uint64_t deadline_ns,
    kvist_prepared_t done, void *context);

/* The block table: slot_count device slots in the order of the context. Valid until release; the
 * array does not move. */
const uint32_t *kvist_lease_slots(const kvist_lease_t *lease);

/* Blocks that are sealed: found ones plus those sealed through this lease. */
uint32_t kvist_lease_sealed_count(const kvist_lease_t *lease);

/* The next private block (number kvist_lease_sealed_count) is complete and will not change: it
 * becomes an object. tokens: the block_tokens ids of that block. arithmetic: which kernels made it
 * (copied; at most KVIST_ARITHMETIC_BYTES_MAX). parent blocks decide the key. Does nothing but
 * advance for leases of mode read and bypass. */
kv_status_t kvist_lease_seal(kvist_lease_t *lease, const uint32_t *tokens, const char *arithmetic);

/* The arithmetic id of a sealed block, owned by the store while the lease lives. */
const char *kvist_lease_arithmetic(const kvist_lease_t *lease, uint32_t block);

/* Gives everything back: sealed blocks stay in the store, private slots are free again. Also
 * cancels a prepare. */
void kvist_lease_release(kvist_lease_t *lease);

/* ---- looking in ---- */

typedef struct {
    uint64_t capacity_bytes, used_bytes; /* used: by objects, counted, never scanned */
    uint64_t object_count;
    uint64_t hit_blocks; /* blocks served from this tier */
    uint64_t read_bytes, written_bytes, evicted_objects;
} kvist_tier_stats_t;

typedef struct {
    kvist_tier_stats_t tiers[KVIST_TIER_COUNT];
    uint64_t miss_count[KVIST_MISS_COUNT]; /* matches that ended for that reason */
    uint64_t leases, slots_free, slots_private;
    uint64_t unsaved_objects; /* sealed, not durable yet */
    uint64_t damaged_objects, failed_reads, failed_writes;
    bool disk_offline; /* repeated write failures: the disk tier takes nothing more until the node
                          restarts */
    const char *io;    /* "io_uring" or "threads"; "none" without a disk tier */
} kvist_stats_t;

void kvist_store_stats(const kvist_store_t *store, kvist_stats_t *stats_out);

/* One stored context: a chain's last block. */
typedef struct {
    kvist_key_t key, name_space;
    uint64_t token_count; /* from the context's start to the block's end */
    uint64_t bytes;       /* of the whole chain, blocks shared with other contexts included */
    kvist_tier_t tier;    /* the slowest tier that any block needs */
    uint64_t created_unix_ns, used_unix_ns;
    char origin[32];
} kvist_context_t;

/* Calls visit for every stored context (leaf), newest use first, at most count_max times. */
void kvist_store_list(const kvist_store_t *store, size_t count_max,
    void (*visit)(void *context, const kvist_context_t *entry), void *context);

#endif
