/* What was promised at which node: the pins that requests of this gateway asked for and nodes
 * granted. A request that reads such a prompt's beginning again renews its promise, whether it asks
 * for one itself or not; the time counts from the last read.
 *
 * A promise is about the leading tokens of a prompt, known by a key of this table's own: a chain of
 * digests over blocks of tokens, beginning with the tenant's salt, so that tenants share nothing.
 * Nodes keep promises by themselves: what is forgotten here is kept there to its end, and only no
 * longer renewed by reads that do not ask for it.
 *
 * Owns: the entries. Borrows: the clock.
 * Threads: one.
 * Errors: none. Limits: entry_count_max promises; the one that ends first makes room. */
#ifndef KV_GATEWAY_PROMISES_H
#define KV_GATEWAY_PROMISES_H

#include "base/clock.h"
#include "kvstore/kvist.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Of a renewal by whoever reads it. */
#define KV_PROMISE_OWNER_AS_IT_IS UINT64_MAX

typedef struct kv_promise_table kv_promise_table_t;

typedef struct {
    const kv_clock_t *clock; /* NULL: the machine's */
    uint32_t block_tokens;   /* of the nodes */
    uint32_t entry_count_max;
} kv_promise_table_params_t;

kv_promise_table_t *kv_promise_table_create(const kv_promise_table_params_t *params);
void kv_promise_table_destroy(kv_promise_table_t *table);

bool kv_promise_table_is_empty(const kv_promise_table_t *table);

/* Keys of a prompt's whole blocks: [*count_out], free() by the caller. */
kvist_key_t *kv_promise_keys(const kv_promise_table_t *table, const void *salt, size_t salt_bytes,
    const uint32_t *tokens, size_t token_count, size_t *count_out);

/* A pin of the prompt's leading tokens that a node granted. */
typedef struct {
    uint64_t node;          /* kv_peer_id */
    uint32_t token_count;   /* whole blocks */
    uint64_t ttl_ns;        /* that each read gives it */
    uint64_t until_unix_ms; /* as granted */
    uint64_t owner;         /* a session's number; 0: nobody's in particular */
} kv_promise_entry_t;

/* keys: of the prompt that it is about. One that is there already ends at the later of both times,
 * has the longer ttl, and is its owner's only as long as nobody else asked for it. */
void kv_promise_table_note(kv_promise_table_t *table, const kvist_key_t *keys, size_t key_count,
    const kv_promise_entry_t *entry);

/* Promises at the node that a prompt with these keys reads, the longest first: at most count_max.
 * Those that a longer one covers for as long are left out. */
size_t kv_promise_table_read(kv_promise_table_t *table, uint64_t node, const kvist_key_t *keys,
    size_t key_count, kv_promise_entry_t *entries_out, size_t count_max);

/* What holds now. Tokens count for each promise and node that has them. */
typedef struct {
    uint64_t promise_count, token_count;
} kv_promise_sums_t;
kv_promise_sums_t kv_promise_table_sums(const kv_promise_table_t *table);

/* The owner lets go; what others asked for too stays. */
void kv_promise_table_let_go(kv_promise_table_t *table, uint64_t owner);

/* The node is gone, and what it had promised with it. */
void kv_promise_table_forget_node(kv_promise_table_t *table, uint64_t node);

#endif
