/* Policies: which of the blocks that may go from a tier goes first.
 *
 * The pool of a tier (objects/pool.h) says which slots may go at all, and keeps them in order: only
 * those of objects that nobody holds and from which nothing in the same tier goes on. So chains
 * have no hole under any policy. It also puts classes and pins before everything else, and knows
 * whose blocks they are. What is left to a policy is a number for each slot, its *rank*, given when
 * its object comes and whenever it was used: the lowest of a class goes first. A policy may keep
 * several lists in a class and say each time from which of them one goes; and it may give the one
 * that would go now another rank, and so another chance.
 *
 * A policy is a table of functions. Each pool makes one of each class, from the same table.
 *
 * Owns: what a policy remembers beyond its slots (of blocks that are gone, say); of a bounded size.
 * Borrows: costs, for the policy's life.
 * Threads: the store's. Errors: none: running out of memory at create stops the process.
 * Limits: every call but create and destroy takes O(1) or O(log n) time. */
#ifndef KV_KVSTORE_POLICY_POLICY_H
#define KV_KVSTORE_POLICY_POLICY_H

#include "kvstore/kvist.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_POLICY_LISTS = 32 };

/* What it costs to have a block of this pool again. */
typedef struct {
    uint64_t bytes; /* of one */
    /* To compute a block at position p (its number in the chain): block_ns + p x distance_ns. */
    double block_ns, distance_ns;
    const double *reload_ns_per_byte; /* from the tier below, as measured; NULL: there is none */
} kv_policy_costs_t;

/* What is known of a slot besides its use. */
typedef struct {
    uint32_t key_hash;   /* of the object's key: the same whenever it comes again */
    uint32_t position;   /* of the block in its chain */
    uint32_t expected_s; /* unix: when somebody said it would be used next; 0: nobody did */
} kv_policy_about_t;

typedef struct {
    const kv_policy_about_t *about;
    uint64_t used;  /* number of its last use among all uses of the pool's slots */
    uint64_t now;   /* number of the newest use */
    uint32_t uses;  /* since it came to the tier, at most KV_POLICY_USES_MAX */
    uint32_t now_s; /* unix */
} kv_policy_slot_t;

enum { KV_POLICY_USES_MAX = 255 };

typedef struct {
    uint64_t rank; /* the lowest goes first; of equal ones the one that was used longest ago */
    uint8_t list;  /* below KV_POLICY_LISTS */
} kv_policy_place_t;

/* Of each list the rank of the one that would go first. */
typedef struct {
    uint32_t present; /* bit l: list l has one */
    uint32_t now_s;
    uint64_t ranks[KV_POLICY_LISTS];
} kv_policy_heads_t;

typedef struct {
    uint32_t slot_count; /* of the pool: the most that a class can have */
    const kv_policy_costs_t *costs;
} kv_policy_params_t;

typedef struct kv_policy kv_policy_t;

typedef struct {
    const char *name; /* as options say it */
    kv_policy_t *(*create)(const kv_policy_params_t *params);
    void (*destroy)(kv_policy_t *policy);

    /* Its object came to the tier; it was used again. In the second case *place is where it is. */
    void (*enter)(kv_policy_t *policy, const kv_policy_slot_t *slot, kv_policy_place_t *place_out);
    void (*use)(kv_policy_t *policy, const kv_policy_slot_t *slot, kv_policy_place_t *place);

    /* It would go now. true: not yet: *place is another one, and slot->uses perhaps. In a row this
     * is true at most a bounded number of times for each slot. NULL: never. */
    bool (*spare)(kv_policy_t *policy, kv_policy_slot_t *slot, kv_policy_place_t *place);

    /* Its object left the tier: evicted for want of room, or for another reason (dropped, damaged,
     * of another class now). */
    void (*leave)(kv_policy_t *policy, const kv_policy_slot_t *slot, const kv_policy_place_t *place,
        bool evicted);

    uint8_t (*first_list)(const kv_policy_t *policy); /* NULL: there is only list 0, or: */
    /* One of the lists that are present: its first goes. */
    uint8_t (*choose)(const kv_policy_t *policy, const kv_policy_heads_t *heads);
    size_t (*memory_bytes)(const kv_policy_t *policy);
} kv_policy_ops_t;

const kv_policy_ops_t *kv_policy_at(kvist_policy_t policy);

/* The cheaper of computing the block again and loading it from the tier below. What is measured
 * counts by its power of two, so that its noise does not reorder blocks. */
double kv_policy_cost_ns(const kv_policy_costs_t *costs, uint32_t position);

extern const kv_policy_ops_t KV_POLICY_LRU, KV_POLICY_S3_FIFO, KV_POLICY_GDSF, KV_POLICY_FORECAST;

#endif
