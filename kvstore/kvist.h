/* libkvist: a tiered store for the KV of language models.
 *
 * A context's KV is kept as a chain of blocks, each keyed by everything before it. The store holds
 * blocks in device memory, host memory and on disk, finds the longest stored prefix of a prompt,
 * brings it to where it is needed, and keeps what was computed after it, across restarts. It never
 * returns bytes that it did not verify: a block is as it was stored, or it is a miss with a reason.
 *
 * There are two ways to the bytes, over the same leases. An engine whose block tables point into
 * the store's device tier prepares and seals slots of it (kvist_lease_prepare, kvist_lease_seal).
 * Any other engine moves bytes between the store and memory of its own (kvist_lease_load,
 * kvist_lease_store). docs/example.c stores, restarts and loads.
 *
 * Owns: the host tier, the disk tier's directory, the index, its worker threads.
 * Borrows: the device and its arena, for the store's life; a caller's pieces, from the call that
 * names them until its callback ran.
 * Threads: a store belongs to one thread, which makes every call but kvist_keys, kvist_namespace
 * and kvist_layout_* (pure functions, any thread). Callbacks run only inside kvist_store_poll, on
 * that thread, never before the call that asked returns. kvist_store_fd is readable when a poll has
 * something to do.
 * Errors: kv_status_t (base/status.h). A cache may miss; KV_CORRUPT and KV_IO never leave the store
 * as an answer to a reader: they shorten a match, with a reason, and are counted.
 * Limits: 2^32 - 1 objects; chains of up to KVIST_CHAIN_BLOCKS_MAX blocks; the device tier holds
 * layouts of one group. */
#ifndef KVIST_H
#define KVIST_H

#include "base/clock.h"
#include "base/status.h"
#include "kernels/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    KVIST_KEY_BYTES = 32,
    KVIST_ARITHMETIC_BYTES_MAX = 47,
    KVIST_ORIGIN_BYTES_MAX = 31,
    KVIST_TENANT_BYTES_MAX = 31,
    KVIST_CHAIN_BLOCKS_MAX = 1 << 20,
    KVIST_GROUPS_MAX = 8,
    KVIST_PARTS_MAX = 4,
    KVIST_LAYERS_MAX = 1024,
};

/* ---- layouts: what a block's bytes are ---- */

typedef enum {
    KVIST_PART_K,
    KVIST_PART_V,
    KVIST_PART_LATENT, /* MLA */
    KVIST_PART_ROPE,   /* MLA */
    KVIST_PART_STATE,  /* a recurrent layer's snapshot at the block's end */
    KVIST_PART_OPAQUE, /* another engine's packed bytes */
} kvist_part_kind_t;

/* Of each layer of a group: `heads` units, one after the other. A unit is the smallest part that
 * can be read and verified alone: [block_tokens][dims] elements, or [dims] for state and opaque. */
typedef struct {
    kvist_part_kind_t kind;
    uint32_t heads, dims, element_bytes;
} kvist_part_t;

typedef enum {
    KVIST_GROUP_FULL,   /* a hit at n tokens needs the objects of all blocks before n */
    KVIST_GROUP_WINDOW, /* ... of those that the last window_tokens - 1 tokens before n lie in */
    KVIST_GROUP_STATE,  /* ... of the block that ends at n */
} kvist_group_kind_t;

/* Layers whose blocks live and die alike. An object (one block of one group) is, for each layer in
 * order, for each part in order, for each head in order, one unit, without gaps. */
typedef struct {
    kvist_group_kind_t kind;
    uint32_t window_tokens;                 /* of a windowed group; else 0 */
    uint64_t layers[KVIST_LAYERS_MAX / 64]; /* bit l % 64 of word l / 64: the model's layer l */
    uint32_t part_count;
    kvist_part_t parts[KVIST_PARTS_MAX];
} kvist_group_t;

/* The first group is full: it is the spine that chains are made of. */
typedef struct {
    uint32_t block_tokens; /* 1 to 1024 */
    uint32_t group_count;
    kvist_group_t groups[KVIST_GROUPS_MAX];
} kvist_layout_t;

/* One full group of K and V in all layers, as kernels/device.h lays a block out. */
kvist_layout_t kvist_layout_plain(const kv_block_shape_t *shape);

/* Bytes of one object of the group; 0 where the layout is not valid. */
size_t kvist_layout_object_bytes(const kvist_layout_t *layout, uint32_t group);

/* KV_INVALID with the field and its bound. */
kv_status_t kvist_layout_check(const kvist_layout_t *layout, kv_error_t *error);

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
    const kvist_layout_t *layout;
    kvist_dtype_t dtype;
    kvist_codec_class_t codec_class;
    const void *salt; /* the tenant's: two salts share nothing */
    size_t salt_bytes;
    const char *adapter; /* "" for none */
} kvist_namespace_params_t;

kvist_key_t kvist_namespace(const kvist_namespace_params_t *params);

/* Keys of the whole blocks of a token array: token_count / block_tokens of them, into keys_out.
 *
 * extras, here and below: for each block an *extra key*, which is part of its key beside its
 * tokens: a digest of whatever else its KV depends on (images that stand behind placeholder tokens,
 * say). Zeros, or NULL for the array: it has none. */
void kvist_keys(const kvist_key_t *name_space, const uint32_t *tokens, const kvist_key_t *extras,
    size_t token_count, uint32_t block_tokens, kvist_key_t *keys_out);

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
    KVIST_MISS_NONE,         /* everything that was asked for was found */
    KVIST_MISS_NEW,          /* the next block was never stored */
    KVIST_MISS_SHORT,        /* what is left is less than a block */
    KVIST_MISS_EXPIRED,      /* held until its limit, which has passed */
    KVIST_MISS_NOT_ADMITTED, /* stored, kept off the disk by its write budget, and gone by now */
    KVIST_MISS_PENDING,      /* another lease is storing the next block now: ask again */
    KVIST_MISS_DAMAGED,  /* held, but the bytes are not what was stored; it and its descendants were
                            dropped */
    KVIST_MISS_FAILED,   /* could not be read now; it stays */
    KVIST_MISS_BYPASSED, /* the request did not want the cache */
    KVIST_MISS_EVICTED,  /* its last copy left a tier for want of room, or was dropped on request */
    KVIST_MISS_DIVERGED, /* never stored, but contexts are that go on otherwise from there */
    KVIST_MISS_NAMESPACE, /* stored under another namespace alone; said by kvist_why only */
    /* Of nodes; a store never ends a match for these. */
    KVIST_MISS_ELSEWHERE, /* held by a node that was not asked */
    KVIST_MISS_CHEAPER,   /* held by another node, but computing it was thought to be quicker */
    KVIST_MISS_CANCELLED, /* the request ended before that was known */
    KVIST_MISS_COUNT,
} kvist_miss_t;

const char *kvist_miss_name(kvist_miss_t miss); /* "new", "short", ... */

typedef enum { KVIST_PERSIST_EAGER, KVIST_PERSIST_SPILL } kvist_persist_t;

/* Lossless encodings of units. bf16 is for KV in bf16: it makes other elements no smaller. */
typedef enum {
    KVIST_CODEC_NONE,
    KVIST_CODEC_LZ4,
    KVIST_CODEC_BF16,
    KVIST_CODEC_COUNT,
} kvist_codec_t;
typedef enum { KVIST_IO_AUTO, KVIST_IO_URING, KVIST_IO_THREADS } kvist_io_t;

/* Which blocks leave device and host memory first, within a class: those that were used longest
 * ago; those that were not used again soon after they came; those that are worth least: uses times
 * what having them again costs, for each byte; those that are least likely to be used soon, as far
 * as others like them tell. A block always goes before what it goes on from. */
typedef enum {
    KVIST_POLICY_LRU,
    KVIST_POLICY_S3_FIFO,
    KVIST_POLICY_GDSF,
    KVIST_POLICY_FORECAST,
    KVIST_POLICY_COUNT,
} kvist_policy_t;

const char *kvist_policy_name(kvist_policy_t policy); /* "lru", "s3-fifo", ... */

/* What a tenant may have of host memory and disk; 0: as much as there is. A block counts for the
 * tenant that stored it first. Who is at a quota gives up blocks of its own for new ones, and
 * nobody else's: in host memory as the policy ranks them; on disk by last use, durably, in the
 * moments after a new one came. What is pinned or leased stays: where a tenant has nothing else,
 * its stores end with KV_NO_SPACE, its blocks do not go to the disk, and pins beyond its quota of
 * the last tier are refused with KV_NO_SPACE. */
typedef struct {
    const char *tenant; /* 1 to KVIST_TENANT_BYTES_MAX printable characters but blank " \ = : , */
    uint64_t host_bytes, disk_bytes;
} kvist_quota_t;

enum { KVIST_DISKS_MAX = 7 };

/* A further disk of the disk tier. */
typedef struct {
    const char *folder; /* made when absent, copied; of this store alone */
    uint64_t bytes;     /* quota: at least two segments */
} kvist_disk_params_t;

typedef struct {
    const kvist_layout_t *layout; /* of every object; copied */
    /* Path of the client socket of this host's kvist-store: host and disk tier are that one's,
     * shared with its other clients; NULL: they are this process's own. "An attached store", below.
     */
    const char *attach;
    const char *domain;  /* attached: whose memory is shared; NULL: "default" */
    kv_device_t *device; /* borrowed; NULL: no device tier */
    void *device_arena;  /* borrowed: device_slot_count slots of one object each */
    uint32_t device_slot_count;
    uint64_t host_bytes; /* of the host tier; 0: none. Groups share it by their objects' sizes */
    bool host_shared;    /* it lies in memory that other processes can map to read (kvist-store), is
                            made ready and locked in chunks while the store serves, and where memory
                            is short stays smaller; else it is there as it is used */
    const char
        *directory;      /* of the disk tier; made when absent; NULL: none. One process at a time */
    uint64_t disk_bytes; /* quota of the disk tier, segments and all; of `directory` alone */
    /* Further disks: [disk_count], at most KVIST_DISKS_MAX, in the same order at every opening; new
     * ones at the end. Blocks are spread over all. A disk that is not there is no error: what it
     * holds, and what goes on from that, are misses until an opening that finds it. */
    const kvist_disk_params_t *disks;
    uint32_t disk_count;
    uint64_t segment_bytes; /* 0: 64 MiB */

    /* Of the disk tier, for the drive's endurance; 0: no bound. It comes back evenly, and what is
     * not used is kept up to one day's: in the long run no more than this a day, after a quiet day
     * at most twice this within one. All that is written to segment files counts: records, those
     * moved on when a segment is reclaimed, markers, headers. The index does not (about 300 bytes a
     * block, several times as its files are merged), and new files are not filled ahead.
     * What nobody looked for again is admitted while more than a quarter of a day's is left, what a
     * second request asked for or stored while there is any. That is decided where a chain's new
     * part begins, and what follows goes with it; pinned blocks are always admitted. What is not
     * admitted is kept in memory, is judged again when it is asked for, flushed or must go, and is
     * dropped when nothing takes it. What is left outlives a restart; what was spent between the
     * last flush and a power loss is forgotten. */
    uint64_t write_bytes_per_day;
    kvist_persist_t
        persist; /* eager: written behind as sealed; spill: written when evicted from host memory */
    kvist_codec_t codec; /* of new records on disk; those of any codec are read */

    /* What is written to disk is encrypted with keys of its tenants, wrapped with the key in this
     * file; NULL: nothing is. Beside it the store keeps a file of its own for these. See
     * kvist_key_file_new, kvist_store_drop_tenant, docs/security.md. */
    const char *key_file;
    kvist_policy_t policy;
    const kvist_quota_t *quotas; /* [quota_count], copied: kvist_store_set_quota */
    uint32_t quota_count;
    /* What it takes to compute a token at position p of its context: compute_token_ns +
     * p x compute_distance_ns, for policies that weigh costs. 0 and 0: as a model of 8 billion
     * weights takes on a data centre's GPU. */
    double compute_token_ns, compute_distance_ns;
    kvist_io_t io;      /* auto: io_uring, or pread/pwrite threads where the kernel forbids it */
    const char *origin; /* this node's name, kept with each object: KVIST_ORIGIN_BYTES_MAX */
    const kv_clock_t *clock; /* NULL: the machine's */
    uint64_t history_bytes;  /* for what went and why, 40 bytes a block, at most 1 GiB; 0: 4 MiB */
} kvist_store_params_t;

typedef struct kvist_store kvist_store_t;

/* ---- An attached store ----
 *
 * With params.attach, host and disk tier are those of the host's kvist-store, whose other clients
 * find what this one stores and outlive it; the device tier is this process's own, and what is
 * sealed there is written through behind. host_bytes, directory and all else about host and disk
 * must be 0 or NULL (KV_INVALID with the field). Calls are the same; what differs:
 *
 * - Bytes in the host tier are copied straight out of its memory, which is mapped read-only. Every
 *   rule about verified bytes holds: the service is believed about what is stored, not about bytes.
 * - A match waits for the service, for at most a quarter of a second; calls that answer at once
 *   (keep, find, show, list, set_disk_bytes) for at most two. Where it does not answer, is stopped
 *   or gone, everything goes on with the device tier: matches find what is there and end with
 *   failed, at once until the service speaks again; stores, flushes and drops end with
 *   KV_PEER_LOST. The store attaches again within half a second of the service's return; it also
 *   opens without it. Leases of before then load what they found in host memory; the rest of their
 *   blocks is failed.
 * - Stores and loads that are under way when it ends are called back in the polls that follow, as
 *   soon as what workers copy at that moment is through (a few blocks of each). Where it stops
 *   instead and stays connected that begins 2.5 seconds after it last said anything. So a caller's
 *   memory comes back within three seconds, on a machine that has time, as long as it polls.
 * - Opening: KV_REFUSED: not this user's domain, or the domain has another layout (the error names
 *   the field). KV_INVALID: what kvist-store says of the parameters.
 * - A query has at most 2^20 tokens and 2^17 blocks (2^16 with extra keys), a client as many leases
 *   as kvist-store allows it (KV_BUSY; 4,096).
 * - What another client is storing right now is not copied: the store ends when that is stored, or
 *   that client has given up.
 * - kvist_store_drop returns KV_OK where it was asked; KV_MISSING and KV_BUSY come with the
 *   callback (KV_BUSY of an erasure: dropped elsewhere, but a lease holds it on the device). A copy
 *   in another client's device tier stays until it is evicted there or expires, and is stored again
 *   when that client uses it: who means it for good drops it at every client (kvist drop does). A
 *   lease that holds a dropped block in host memory still loads it.
 * - kvist_store_close waits for what is still to be written through, for at most five seconds.
 * - kvist_store_listen and kvist_store_held tell of the device tier alone, kvist_why of other
 *   namespaces what that one holds (kvist-store's own admin socket tells the rest). Statistics of
 *   host and disk are up to a quarter of a second old, but for hit_blocks and read_bytes: those are
 *   what this process loaded.
 * - kvist_lease_arithmetic is "" for blocks that the lease stored from the caller's memory. */

/* Opens the directory. Everything durable is found from the first match on, while polls go on to
 * read the index (kvist_stats_t.index_loading); where it must be made anew from the records,
 * matches find what is read so far. KV_BUSY: another process has the directory. KV_REFUSED: a
 * disk's folder is another store's, or another disk's; key_file holds another key than the one that
 * blocks there were encrypted with, is not named, or may be read by others. KV_MISSING: key_file,
 * or the store's keys beside it, is not there. */
kv_status_t kvist_store_open(
    const kvist_store_params_t *params, kvist_store_t **store_out, kv_error_t *error);

/* A key file with a new random key, for its owner alone; KV_REFUSED: there is a file. */
kv_status_t kvist_key_file_new(const char *path, kv_error_t *error);

/* Gives the key file a new key, before the one that it has: a store that is opened with it wraps
 * its keys anew. When all were, the later lines can be deleted. */
kv_status_t kvist_key_file_rotate(const char *path, kv_error_t *error);

/* Makes everything sealed durable (persist eager and spill alike) that the write budget admits,
 * then closes. Leases must have been released. */
void kvist_store_close(kvist_store_t *store);

int kvist_store_fd(const kvist_store_t *store);
void kvist_store_poll(kvist_store_t *store); /* never blocks */

/* The callback runs when all that was sealed before the call is durable, or could not be made so
 * (its status). Under a write budget KV_OK says so of what is admitted; what is not stays as it is,
 * among kvist_stats_t.unsaved_objects. */
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

/* Under pressure background blocks go first, then batch, then interactive ones. */
typedef enum {
    KVIST_PRIORITY_INTERACTIVE,
    KVIST_PRIORITY_BATCH,
    KVIST_PRIORITY_BACKGROUND,
    KVIST_PRIORITY_COUNT,
} kvist_priority_t;

/* What blocks are kept under. Times are unix, in nanoseconds, kept to the second: rounded down for
 * expiry, up for pins. A chain is kept as a whole: a block lives no longer than its ancestors, and
 * ancestors are pinned, and of a class, at least as its descendants are. */
typedef struct {
    kvist_priority_t priority;
    uint64_t expires_unix_ns;   /* a limit: a miss from then on; 0: none */
    uint64_t pin_until_unix_ns; /* a promise: not evicted before; 0: none */
    const char
        *tenant; /* whose they are, for accounting (NULL: nobody's); identity is the salt's */
    /* A hint, of an agent framework say: when what the lease holds and stores will be asked for
     * next; 0: none. Kept with the copies in memory, until then or until they go. */
    uint64_t expected_next_use_unix_ns;
} kvist_terms_t;

typedef struct {
    kvist_key_t name_space;
    const uint32_t *tokens;    /* [token_count], copied */
    const kvist_key_t *extras; /* [token_count / block_tokens], copied; or NULL */
    size_t token_count;  /* whole blocks of it are looked for: the caller leaves off what it must
                           compute anyway */
    kvist_mode_t mode;   /* bypass and write match nothing; read and bypass store nothing */
    kvist_terms_t terms; /* of the blocks that the lease stores */
    bool renew;          /* found blocks get expiry and pin of these terms, where those are later */
    uint64_t
        request;    /* what the caller knows its request by; told of blocks that go for its sake */
    bool uncounted; /* the request was looked up before, through another lease (in another process,
                       say): kvist_stats_t.miss_count does not count this match */
} kvist_query_t;

/* What is known of the first block that was not found, without anything being read. */
typedef struct {
    uint32_t block;    /* its number in the query */
    kvist_tier_t tier; /* evicted: out of which, as the last copy */
    bool dropped;      /* evicted: kvist_store_drop asked for that */
    /* Evicted, expired, damaged, not admitted: it went then (0: not known). New, diverged: it may
     * have been there before this time, of which nothing is known (the start, or the oldest that
     * the history keeps). Else 0. */
    uint64_t when_unix_ns;
    /* Evicted: for whom room was made. Out of the disk: who had a record written last. */
    bool maker_known;
    kvist_priority_t priority;
    uint64_t request; /* its kvist_query_t.request */
    char tenant[KVIST_TENANT_BYTES_MAX + 1], origin[KVIST_ORIGIN_BYTES_MAX + 1];
    /* Diverged: the stored block that goes on from the found ones and shares most with the query,
     * of those that were looked at (a few, in memory). */
    bool token_known; /* false: there are more, or such as are on disk alone: kvist_why reads */
    uint32_t token;   /* of the query: the first that differs, or the earliest that may */
    kvist_key_t other;
    bool extra_differs; /* that block's tokens are equal, its extra key is not; token: its first */
} kvist_miss_detail_t;

/* A hit where miss is none or short, pending where miss is pending, else a miss for that reason:
 * each about what is asked for beyond the found blocks. */
typedef struct {
    uint32_t block_count; /* found: blocks 0 .. block_count - 1 of the query, in all groups */
    uint32_t tier_blocks[KVIST_TIER_COUNT]; /* of those, by the fastest tier that holds each (of
                                               several groups: the slowest of them) */
    kvist_miss_t miss;                      /* why it is not more */
    kvist_miss_detail_t detail;             /* where miss is neither none nor short */
} kvist_match_t;

/* The longest stored prefix that all groups can serve, held by a new lease (of zero blocks where
 * nothing is stored). Never blocks and reads nothing, but in the first seconds after the start,
 * while the index is still being read, when it looks up what is not known yet. Token ids are
 * compared where they are at hand (device, host), and again when a record is read. KV_INVALID: a
 * query longer than KVIST_CHAIN_BLOCKS_MAX blocks, or terms out of bounds (priority, a pin beyond
 * the expiry, a tenant's name too long). KV_BUSY: 65,534 leases are open. */
kv_status_t kvist_match(kvist_store_t *store, const kvist_query_t *query, kvist_lease_t **lease_out,
    kvist_match_t *match_out);

/* status: KV_OK: every slot is there; *match is what was found after reading (a block that proved
 * damaged or could not be read ended it early: the good prefix stays, the rest became private
 * slots). KV_BUSY: the deadline passed before enough slots were free; KV_CANCELLED: released first.
 * In the last two cases the lease holds no slots. */
typedef void (*kvist_prepared_t)(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match);

/* Consecutive found blocks of one tier. */
typedef struct {
    uint32_t first_block, block_count;
    kvist_tier_t tier;
    uint64_t bytes; /* of all groups' objects */
    uint64_t
        cost_ns; /* estimate of loading just this run now, from rates that the store measured */
} kvist_run_t;

/* The runs of what was found, in order; at most count_max are written. Returns how many there are.
 */
size_t kvist_lease_runs(const kvist_lease_t *lease, kvist_run_t *runs_out, size_t count_max);

/* ---- bytes in the caller's memory ---- */

/* A scatter list: pieces are filled, or read, one after the other. */
typedef struct {
    void *base;
    size_t bytes;
} kvist_piece_t;

/* Which bytes: for each block in order, the selected units of the group's object in their order.
 * Counts of 0: all that there are. A selection of one layer, or of a range of heads, is read and
 * verified alone. */
typedef struct {
    uint32_t group;
    uint32_t first_block, block_count;
    uint32_t first_layer, layer_count; /* of the group's layers, by number in the group */
    uint32_t first_head, head_count;   /* of each part */
} kvist_selection_t;

/* Bytes of a selection; 0: it is not one of this layout. */
size_t kvist_selection_bytes(const kvist_layout_t *layout, const kvist_selection_t *selection);

/* status KV_OK: the first block_count blocks of the selection are in the caller's memory, verified;
 * miss says why it is not all of them (damaged, failed). What lies in the pieces after them is
 * not KV. KV_CANCELLED: the lease was released first. */
typedef void (*kvist_loaded_t)(void *context, kvist_lease_t *lease, kv_status_t status,
    uint32_t block_count, kvist_miss_t miss);

/* Copies found blocks out, from whatever tier they are in. pieces: [piece_count], copied; their
 * memory is borrowed until the callback ran, and together has just the selection's bytes. Several
 * loads of a lease may be under way. KV_INVALID: the selection is not one of this layout, is not
 * found blocks, or the pieces' size differs; a group's object that the match did not need is not
 * found. */
kv_status_t kvist_lease_load(kvist_lease_t *lease, const kvist_selection_t *selection,
    const kvist_piece_t *pieces, size_t piece_count, kvist_loaded_t done, void *context);

/* status KV_OK: all blocks are stored (in host memory; durable after kvist_store_flush, or behind).
 * Otherwise the first block_count are: KV_BUSY: the deadline passed before there was room;
 * KV_NO_SPACE: there is none to be had (no host tier, all is pinned or leased; without a disk: what
 * they go on from had to go); KV_MISSING: what they go on from was not stored, or is gone;
 * KV_REFUSED: another block has that key; KV_CANCELLED: released first. Modes read and bypass store
 * nothing: KV_OK with 0. */
typedef void (*kvist_stored_t)(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count);

typedef struct {
    uint32_t group;
    uint32_t first_block, block_count;
    const uint32_t *tokens; /* [block_count][block_tokens], copied; may be NULL where the blocks are
                               in the query, whose extra keys they then have */
    const kvist_key_t *extras; /* [block_count], copied, of these tokens; or NULL */
    const char
        *arithmetic;      /* which kernels made them (copied); at most KVIST_ARITHMETIC_BYTES_MAX */
    uint64_t deadline_ns; /* to wait for room; monotonic clock of the store */
} kvist_put_t;

/* Copies whole objects in, as the lease's next blocks: of the first group, after those that are
 * sealed or asked to be stored; of another group, any blocks that will be sealed when its turn
 * comes. Each block is published when its bytes are in and checksummed, in order; one that is
 * stored already stays as it is, under the later of both terms. pieces: as for loading, read only.
 * Stores of one lease are carried out in the order of their calls. What it stored a lease does not
 * hold. KV_INVALID: any field is out of bounds, or the lease was prepared. */
kv_status_t kvist_lease_store(kvist_lease_t *lease, const kvist_put_t *put,
    const kvist_piece_t *pieces, size_t piece_count, kvist_stored_t done, void *context);

/* ---- slots of the device tier ---- */

/* Brings the leased blocks into device memory and reserves private slots after them, slot_count in
 * all (at least the matched blocks): all or nothing, first come first served, until deadline_ns
 * (monotonic clock of the store). More slots than the device tier has: KV_INVALID at once. */
kv_status_t kvist_lease_prepare(kvist_lease_t *lease, uint32_t slot_count, uint64_t deadline_ns,
    kvist_prepared_t done, void *context);

/* status KV_OK: the first layer_count layers of the found blocks are in their slots, proved; more
 * calls follow until it is all of them. KV_CORRUPT, KV_IO: one of the others is damaged, or did not
 * come, and what is in the slots beyond the layers that were told is not KV: compute with no more
 * of it, release the lease, match anew. */
typedef void (*kvist_layers_t)(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t layer_count);

/* As kvist_lease_prepare, but done may run as soon as all that is still to come comes layer by
 * layer, the first layer of all found blocks first: kvist_lease_is_loading then says so, and
 * `layers` runs as they come, after done and never after the release. Until the last one came, only
 * layers that were told may be read, nothing can be sealed, and private slots may be written. A
 * device that does not move bytes by itself gains nothing: there, and where little is loaded, it is
 * kvist_lease_prepare. */
kv_status_t kvist_lease_prepare_layers(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, kvist_layers_t layers, void *context);

/* Whether layers of found blocks have still to come, or one of them did not. */
bool kvist_lease_is_loading(const kvist_lease_t *lease);

/* The block table: slot_count device slots in the order of the context. Valid until release; the
 * array does not move. */
const uint32_t *kvist_lease_slots(const kvist_lease_t *lease);

/* Blocks that are sealed: found ones plus those sealed through this lease. */
uint32_t kvist_lease_sealed_count(const kvist_lease_t *lease);

/* The next private block (number kvist_lease_sealed_count) is complete and will not change: it
 * becomes an object. tokens: the block_tokens ids of that block. extra: its extra key, or NULL.
 * arithmetic: which kernels made it (copied; at most KVIST_ARITHMETIC_BYTES_MAX). Parent blocks
 * decide the key. Does nothing but advance for leases of mode read and bypass. */
kv_status_t kvist_lease_seal(
    kvist_lease_t *lease, const uint32_t *tokens, const kvist_key_t *extra, const char *arithmetic);

/* The arithmetic id of a sealed block, owned by the store while the lease lives. */
const char *kvist_lease_arithmetic(const kvist_lease_t *lease, uint32_t block);

/* Gives everything back: sealed blocks stay in the store, private slots are free again. Also
 * cancels what is under way: each callback still runs, with KV_CANCELLED; until then the memory of
 * its pieces stays borrowed. The lease must not be used in calls after this one. */
void kvist_lease_release(kvist_lease_t *lease);

/* ---- what is kept, until when ---- */

/* key: of a block; the call is about its whole chain, from the root to it. Of the terms, expiry and
 * pin are taken as they are (also earlier, also none); priority and tenant are not changed. Blocks
 * that other contexts share keep an expiry or a pin of their own that is later.
 * KV_MISSING: not stored; KV_INVALID: a pin in the past, or beyond the expiry (of this block, or of
 * one that goes on from it); KV_NO_SPACE: pins would take more than nine tenths of the last tier
 * (the disk, of which two segments stay free too; without one, host memory; without that, device
 * memory); KV_BUSY: the index is still
 * being read after the start. Survives a restart once a later flush is done. */
kv_status_t kvist_store_keep(
    kvist_store_t *store, const kvist_key_t *key, const kvist_terms_t *terms);

/* What became of a promise. */
typedef struct {
    kv_status_t status;                          /* KV_OK: it holds */
    uint64_t expires_unix_ns, pin_until_unix_ns; /* KV_OK: that hold for the block now; 0: none */
} kvist_promise_t;

typedef void (*kvist_promised_t)(void *context, const kvist_promise_t *promise);

/* As kvist_store_keep, for whoever serves requests: each of them may ask for the same block, and
 * none takes from another what it was promised. A pin that holds for longer stays as it is, so that
 * a read renews and never shortens; an expiry of 0 leaves the one that there is, and a pin beyond
 * that is KV_INVALID. What is sealed may be promised at once, also while it is still on its way to
 * the kvist-store.
 *
 * true: *promise_out is what became of it, done is not called. false (attached): done runs once,
 * in a later poll; KV_PEER_LOST: kvist-store did not answer, or did not get the block; KV_REFUSED:
 * it is of an older version, which knows no promises. */
bool kvist_store_promise(kvist_store_t *store, const kvist_key_t *key, const kvist_terms_t *terms,
    kvist_promised_t done, void *context, kvist_promise_t *promise_out);

/* What became of a spill. status KV_OK: what could leave has left; KV_NO_SPACE: the disk took not
 * all of it, or there is none: what it did not take stays; KV_MISSING: not stored. object_count,
 * bytes: that left memory. */
typedef void (*kvist_spilled_t)(
    void *context, kv_status_t status, uint64_t object_count, uint64_t bytes);

/* Brings a block and its ancestors out of device and host memory, to the disk, now. What a lease
 * holds stays, and so does what something in the same memory goes on from: of branches with one
 * prefix the prefix leaves with the last one. Whoever asks for it finds it on disk; to have it back
 * before anybody asks: match, prepare, release. Of an attached store: device memory here, host
 * memory of kvist-store (KV_REFUSED: that is of an older version). */
void kvist_store_spill(
    kvist_store_t *store, const kvist_key_t *key, kvist_spilled_t done, void *context);

/* status KV_OK: gone from every tier, durably: no restart brings it back. */
typedef void (*kvist_dropped_t)(void *context, kv_status_t status, uint64_t object_count);

/* Drops a block and all its descendants, of all groups, pinned or not; while the index is still
 * being read, as soon as that has ended. Slots that leases
 * prepared keep their bytes until released; nobody finds the blocks any more, and loads of leases
 * that hold them end before them (damaged). erase: their bytes are overwritten, in
 * memory and on disk, before the callback; KV_BUSY at once where a lease holds one. KV_MISSING: not
 * stored; KV_BUSY: a disk is missing, and could bring it back. */
kv_status_t kvist_store_drop(
    kvist_store_t *store, const kvist_key_t *key, bool erase, kvist_dropped_t done, void *context);

/* Drops what is stored of a tenant (its name in the terms that it was stored under; "": nobody's)
 * and what goes on from that, of all groups, pinned or not. Its bytes are overwritten in memory,
 * and on disk where they are in clear; where they are encrypted the tenant's key is destroyed: no
 * copy of the directory, of whatever age, can be read again. The callback runs when all of this is
 * done, durably, which waits for leases that hold such blocks; what is stored of the tenant after
 * that stays, with a new key. KV_MISSING: nothing is known of it; KV_BUSY: a disk is missing, and
 * could bring it back; KV_INVALID: the name is too long. Of an
 * attached store: what its device tier holds; the rest is asked of kvist-store itself. */
kv_status_t kvist_store_drop_tenant(
    kvist_store_t *store, const char *tenant, kvist_dropped_t done, void *context);

/* Reads everything in host memory and on disk, and forgets what is damaged, as a load would.
 * progress (may be NULL) runs every now and then; done once at the end, with KV_OK, or
 * KV_CANCELLED where the store was closed. KV_BUSY: one is under way. */
typedef struct {
    uint64_t object_count, object_total;
    uint64_t bytes, bytes_total;
    uint64_t damaged_objects; /* with the descendants that were dropped with them */
    uint64_t failed_objects;  /* could not be read: they stay */
} kvist_verify_t;

kv_status_t kvist_store_verify(kvist_store_t *store,
    void (*progress)(void *context, const kvist_verify_t *state),
    void (*done)(void *context, kv_status_t status, const kvist_verify_t *state), void *context);

/* The disk tier's quota, from now on: more makes room, less reclaims the oldest segments, as soon
 * as nobody reads them. Several disks share it as they shared what the store was opened with.
 * KV_INVALID: less than two segments for a disk, more than fits, or less than pins need;
 * KV_REFUSED: the store is attached, and this is neither root nor the user of kvist-store. */
kv_status_t kvist_store_set_disk_bytes(
    kvist_store_t *store, uint64_t disk_bytes, kv_error_t *error);

/* From now on, until the store is closed; what is too much goes as soon as it can. KV_INVALID: the
 * name, or less than a block; KV_REFUSED: the store is attached to a kvist-store, which has the
 * quotas. */
kv_status_t kvist_store_set_quota(
    kvist_store_t *store, const kvist_quota_t *quota, kv_error_t *error);

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
    uint64_t unsaved_objects;   /* sealed, not durable yet */
    uint64_t barriers;          /* of durability, that the disk was asked for */
    uint64_t host_coming_bytes; /* of a shared host tier: not ready yet (capacity_bytes is) */
    uint64_t host_locked_bytes; /* and of what is ready: locked in memory */
    uint64_t damaged_objects, failed_reads, failed_writes;
    uint64_t keyless_objects;   /* met on disk without their tenant's key, and forgotten */
    uint64_t encrypted_objects; /* on disk, of those that are there */
    uint64_t device_packed_objects,
        device_unpacked_objects; /* on their way to and from disk: by the
                                                                device's codec, not the host's */
    bool encrypting;             /* what is written to disk is */
    uint64_t moved_objects;      /* on disk, out of a segment that was reclaimed */
    uint64_t write_budget_bytes, write_left_bytes; /* a day's; of it, now. 0 and 0: there is none */
    uint64_t segment_written_bytes; /* all that the budget counts, since the store was opened */
    uint64_t not_admitted_objects;  /* that the budget had no room for */
    uint64_t pinned_bytes;          /* of objects with a pin; counted now and then: seconds old */
    uint64_t history_entries, history_forgotten; /* blocks that went: known why, and no longer */
    uint64_t index_loaded, index_total; /* objects known, and about how many there are: equal once
                                            all that is on disk is known */
    bool index_loading; /* since the start; matches find everything that the index has, the list and
                            the tiers' figures say what is known */
    bool disk_offline;  /* repeated write failures: the disk tier takes nothing more until the node
                          restarts; of several disks each goes on its own: all have */
    const char *io;     /* "io_uring" or "threads"; "none" without a disk tier */
} kvist_stats_t;

void kvist_store_stats(const kvist_store_t *store, kvist_stats_t *stats_out);

/* Of an attached store: the name of the kvist-store, while it is there; valid until the next poll.
 * NULL: it is away, or the store is not attached. */
const char *kvist_store_attached_to(const kvist_store_t *store);

/* What one tenant has. Device and host memory, disk: bytes of its objects; pins: as in
 * kvist_stats_t. */
typedef struct {
    kvist_quota_t quota; /* tenant: "" for what is nobody's */
    uint64_t bytes[KVIST_TIER_COUNT];
    uint64_t pinned_bytes;
} kvist_tenant_t;

/* Calls visit for every tenant that stored anything since the store was opened, that has anything
 * stored or that has a quota. Of an attached store: about its device tier alone. */
void kvist_store_tenants(const kvist_store_t *store,
    void (*visit)(void *context, const kvist_tenant_t *tenant), void *context);

/* One stored block. */
typedef struct {
    kvist_key_t key, parent, name_space;
    uint32_t position;            /* number of the block in its context */
    uint64_t token_count;         /* from the context's start to the block's end */
    uint32_t children;            /* blocks that go on from it */
    uint32_t groups;              /* bit g: its object of group g is stored */
    bool tiers[KVIST_TIER_COUNT]; /* of its object of group 0 */
    uint64_t bytes;
    uint32_t segment; /* on disk: number of the segment file, and where in it */
    uint64_t segment_offset, stored_bytes;
    uint64_t created_unix_ns; /* 0: known once it is on disk */
    uint64_t used_unix_ns, expires_unix_ns, pin_until_unix_ns;
    kvist_priority_t priority;
    uint32_t leases; /* that hold it now */
    char origin[KVIST_ORIGIN_BYTES_MAX + 1], tenant[KVIST_TENANT_BYTES_MAX + 1];
    char arithmetic[KVIST_ARITHMETIC_BYTES_MAX + 1];
} kvist_object_t;

/* The key of the one stored block whose key begins with these hexadecimal digits, 8 to 64 of them.
 * KV_INVALID: they are none, or more than one key begins so; KV_MISSING: none does; KV_BUSY: who
 * knows, the index is still being read. */
kv_status_t kvist_store_find(
    const kvist_store_t *store, const char *digits, kvist_key_t *key_out, kv_error_t *error);

/* KV_MISSING: not stored. Reads the block's record where it is on disk (for created_unix_ns): it
 * may block. */
kv_status_t kvist_store_show(
    const kvist_store_t *store, const kvist_key_t *key, kvist_object_t *object_out);

/* One stored context: a chain's last block. */
typedef struct {
    kvist_key_t key, name_space;
    uint64_t token_count; /* from the context's start to the block's end */
    uint64_t bytes;       /* of the whole chain, blocks shared with other contexts included */
    kvist_tier_t tier;    /* the slowest tier that any block needs */
    uint64_t used_unix_ns, expires_unix_ns, pin_until_unix_ns;
    kvist_priority_t priority;
    char origin[KVIST_ORIGIN_BYTES_MAX + 1], tenant[KVIST_TENANT_BYTES_MAX + 1];
} kvist_context_t;

/* Calls visit for every stored context (leaf), newest use first, at most count_max times. While the
 * index is still being read (kvist_stats_t.index_loading) the list is not complete. */
void kvist_store_list(const kvist_store_t *store, size_t count_max,
    void (*visit)(void *context, const kvist_context_t *entry), void *context);

/* ---- why ---- */

/* What a namespace of this store's blocks is made of, so that kvist_why can tell what two of them
 * differ in; kept until the store is closed, for KVIST_NAMESPACES_MAX of them. */
enum { KVIST_NAMESPACES_MAX = 1024, KVIST_FIELDS_BYTES_MAX = 63 };
void kvist_store_describe(kvist_store_t *store, const kvist_namespace_params_t *params);

typedef struct {
    kvist_key_t name_space;
    const uint32_t *tokens;
    const kvist_key_t *extras; /* [token_count / block_tokens], or NULL */
    size_t token_count;
    bool all_name_spaces; /* also look under all others: what that tells is for whoever runs the
                             store alone */
} kvist_why_query_t;

typedef struct {
    kvist_match_t match;
    uint32_t block_tokens; /* of the store's layout */
    /* Miss is namespace: the other one, how many blocks are found there, and what differs, such as
     * "salt" or "model,dtype" (of model, layout, dtype, codec, salt, adapter); "unknown": one of
     * the two was not described since the store was opened. */
    kvist_key_t other_name_space;
    uint32_t other_block_count;
    char fields[KVIST_FIELDS_BYTES_MAX + 1];
} kvist_why_t;

/* What kvist_match would find now, and why not more, as exactly as can be known: nothing is leased,
 * counted or changed, and records are read (a few) to compare tokens: it may block. KV_INVALID:
 * more blocks than KVIST_CHAIN_BLOCKS_MAX. */
kv_status_t kvist_why(kvist_store_t *store, const kvist_why_query_t *query, kvist_why_t *why_out);

/* The token ids of a stored block, [block_tokens], and its extra key (extra_out may be NULL; zeros:
 * it has none); may read its record. KV_MISSING: it is not stored; KV_IO: it cannot be read now. */
kv_status_t kvist_store_tokens(
    kvist_store_t *store, const kvist_key_t *key, uint32_t *tokens_out, kvist_key_t *extra_out);

/* ---- what the tiers hold, as it changes ---- */

enum { KVIST_CHANGE_BLOCKS_MAX = 128 };

/* Blocks of one group that a tier holds from now on, or no longer; on disk: durably. */
typedef struct {
    kvist_tier_t tier;
    bool stored;
    uint32_t group;
    uint32_t block_count;    /* 1 to KVIST_CHANGE_BLOCKS_MAX */
    const kvist_key_t *keys; /* [block_count] the blocks' (of every group), valid during the call.
                                Stored: in the order of their chain, without gaps; else in any */
    /* Of stored blocks only. */
    kvist_key_t name_space;
    uint32_t first_block; /* position of keys[0] in its chain */
    kvist_key_t parent;   /* of group 0: the key before keys[0]; the namespace at position 0 */
} kvist_change_t;

/* Must not call the store. */
typedef void (*kvist_changed_t)(void *context, const kvist_change_t *change);

/* Every change from now on, in order for each tier, by the end of the next poll; a block that is
 * told as stored was not held by that tier before, one that is told as removed was. What is held
 * already is not told: kvist_store_held. NULL: nobody listens any more. */
void kvist_store_listen(kvist_store_t *store, kvist_changed_t changed, void *context);

/* All that the tiers hold now, a part at a time: begins at *cursor = 0, looks at object_count_max
 * objects, visits what they are held by, moves the cursor; false: that was the end. Whoever listens
 * meanwhile and takes parts and changes in the order in which they come has the whole at the end:
 * changes that are not told yet are told before the part, so a part is newer than what came before
 * it. While the index is still being read (kvist_stats_t.index_loading), what is read later comes
 * as changes. */
bool kvist_store_held(kvist_store_t *store, uint32_t *cursor, uint32_t object_count_max,
    kvist_changed_t visit, void *context);

#ifdef __cplusplus
}
#endif

#endif
