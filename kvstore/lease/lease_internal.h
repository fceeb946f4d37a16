/* What the files of a lease share: the lease itself.
 *
 *   match.c   what is found, and how         lease_load.c   bytes into the caller's memory
 *   load.c    into device slots, whole;      load_layers.c  layer by layer
 *   lease.c   device slots, release          lease_store.c  bytes from the caller's memory
 *   seal.c    new objects                    pieces.c       the caller's scatter lists */
#ifndef KV_KVSTORE_LEASE_LEASE_INTERNAL_H
#define KV_KVSTORE_LEASE_LEASE_INTERNAL_H

#include "kvstore/store_internal.h"

typedef enum {
    KV_LEASE_MATCHED,
    KV_LEASE_WAITING, /* for device slots */
    KV_LEASE_LOADING,
    KV_LEASE_ANSWERED, /* the callback is to run in the next poll */
    KV_LEASE_READY,
    KV_LEASE_FAILED, /* the prepare ended without slots */
} kv_lease_state_t;

/* A load or a store of a lease whose callback is to run in the next poll. */
struct kv_transfer {
    void (*tell)(kv_transfer_t *transfer); /* runs the callback and frees the transfer */
    kvist_lease_t *lease;
    kv_transfer_t *next;
};

struct kvist_lease {
    kvist_store_t *store; /* first */
    kvist_mode_t mode;
    kv_lease_state_t state;
    bool released;    /* by its owner; goes when all that is under way is through */
    bool try_again;   /* a load found damage, and another copy is left */
    bool yielded;     /* it let its blocks go while it waited: they are to be found again */
    bool storing;     /* what is sealed becomes objects */
    kv_record_t like; /* namespace, terms, tenant and origin of what it stores */
    bool renew;
    uint32_t expected_s; /* when its blocks are expected to be used next; 0: who knows */
    bool quiet;          /* it looks and leaves nothing behind: nothing is held, noted or dropped */
    uint64_t request;    /* kvist_query_t.request */
    uint32_t *words;     /* [query_blocks][block_words] */
    kvist_key_t last_key;     /* of the last sealed block; the namespace before the first */
    uint32_t *objects;        /* [block_max]: of sealed blocks; KV_OBJECT_NONE: not an object */
    kvist_key_t *stored_keys; /* [stored_max]: of blocks that are not held, from held_count on */
    uint8_t *tiers;           /* [found at match]: the fastest that held it */
    uint32_t *slots;          /* [slot_count] */
    uint32_t *others;         /* [other_count]: objects of other groups, held */
    uint32_t query_blocks, block_max, slot_count, found_count, sealed_count, other_count;
    uint32_t held_count, stored_max; /* held: of the sealed blocks, but for those it copied in */
    uint32_t found_before;           /* yielded: what it had */
    kvist_match_t match;
    uint32_t loads_out;
    uint64_t deadline_ns;
    kv_status_t status;
    kvist_prepared_t done;
    void *context;

    /* Layers of found blocks that come one after the other. */
    kvist_layers_t layers; /* NULL: all at once */
    uint32_t layered_out;  /* of loads_out: those that do, and are not about to end */
    uint32_t layers_there;
    kv_status_t layers_status;
    bool early;  /* it was answered while they came */
    bool broken; /* and one of them did not: what it has found is not all there */
    bool news;   /* its owner is to hear of layers in the next poll */
    kvist_lease_t *next_news;

    kvist_lease_t *next; /* waiting or answered */

    kvist_key_t next_key; /* of the block that it stores next, while announced */
    bool announced;
    kvist_lease_t *newer_announced, *older_announced;

    uint32_t transfers_out; /* loads and stores whose callbacks have not run */
    kv_put_t *first_put, *last_put;
};

/* ---- match.c ---- */

/* Looks for the first block_count blocks of the query, anew. */
void kv_match_prefix(kvist_lease_t *lease, uint32_t block_count);

/* Whether the object's block has these words, where they are in memory: a key is believed, equality
 * is checked. */
bool kv_match_words(const kvist_store_t *store, const kv_object_t *object, const uint32_t *words);

/* The first block whose object of the group a hit of block_count blocks needs. */
uint32_t kv_match_first_needed(const kvist_store_t *store, uint32_t group, uint32_t block_count);

/* Whether mode and terms are within bounds. */
bool kv_match_asks_well(const kvist_query_t *query);

/* Whether a lease of another request is about to store the block with this key: nodes that share a
 * store look for one prompt's blocks together. */
bool kv_match_is_pending(const kvist_store_t *store, const kvist_key_t *key, uint64_t request);

/* What a match would find, without a trace. */
kvist_match_t kv_match_quietly(kvist_store_t *store, const kvist_why_query_t *query);

/* The object of a key, if it has not expired. */
uint32_t kv_match_live(kvist_store_t *store, const kvist_key_t *key);

/* What the lease stores from now on comes from there, not from the store's own process. */
void kv_lease_set_origin(kvist_lease_t *lease, const char *origin);

/* What the lease stores next is known to others from now on as pending; or not any more. */
void kv_match_announce(kvist_lease_t *lease);
void kv_match_withdraw(kvist_lease_t *lease);

/* ---- seal.c ---- */

/* The family of what the lease stores, made by these kernels; KV_NAMES_FULL: none is left. */
int kv_seal_family(const kvist_lease_t *lease, uint32_t group, const char *arithmetic);

/* A new object, in no tier yet; its chain is kept as long, and in as good a class, as it is.
 * KV_OBJECT_NONE: there can be no more. */
uint32_t kv_seal_new(kvist_lease_t *lease, const kvist_key_t *key, uint32_t parent,
    uint32_t position, uint32_t family);

/* The next block of the lease is this object; KV_OBJECT_NONE: it is none. */
void kv_seal_append(kvist_lease_t *lease, const kvist_key_t *key, uint32_t object);

/* As kvist_lease_seal. */
kv_status_t kv_seal_words(kvist_lease_t *lease, const uint32_t *words, const char *arithmetic);

/* Likewise, of a block that another store holds under these terms: it becomes an object whatever
 * the lease's mode. */
void kv_seal_found(kvist_lease_t *lease, const uint32_t *words, const char *arithmetic,
    kvist_priority_t priority, uint32_t expires_s);

/* To be written behind, if that is the store's way. */
void kv_seal_queue(kvist_store_t *store, uint32_t object);

/* Of a sealed block that is an object: its key, and whether it was dropped since. */
kvist_key_t kv_lease_key(const kvist_lease_t *lease, uint32_t block);
bool kv_lease_gone(const kvist_lease_t *lease, uint32_t block);

/* ---- lease_load.c ---- */

/* As kvist_lease_load. checksums_out: NULL, or where the selected units' checksums go, block by
 * block; borrowed until the callback ran. */
kv_status_t kv_lease_load_summed(kvist_lease_t *lease, const kvist_selection_t *selection,
    const kvist_piece_t *pieces, size_t piece_count, uint64_t *checksums_out, kvist_loaded_t done,
    void *context);

/* ---- lease_store.c ---- */

/* As kvist_lease_store, of memory that others may write to meanwhile: each object must have the
 * checksum that is said of it (copied; [block_count]) once it is copied. KV_CORRUPT: one has not;
 * those before it are stored. */
kv_status_t kv_lease_store_summed(kvist_lease_t *lease, const kvist_put_t *put,
    const kvist_piece_t *pieces, size_t piece_count, const uint64_t *checksums, kvist_stored_t done,
    void *context);

/* Without bytes: those of the leading blocks that are stored already become the lease's. KV_MISSING
 * in the callback where that is not all of them. */
kv_status_t kv_lease_store_present(
    kvist_lease_t *lease, const kvist_put_t *put, kvist_stored_t done, void *context);

void kv_put_cancel(kvist_lease_t *lease); /* its stores end as soon as they can */

/* ---- lease.c ---- */

void kv_lease_free(kvist_lease_t *lease); /* that holds nothing */

/* A lease whose owner released it goes when nothing of it is under way any more. */
void kv_lease_settle(kvist_lease_t *lease);

/* The transfer's callback runs in the next poll. */
void kv_transfer_end(kv_transfer_t *transfer);

#endif
