/* Slots in the order of their keys: the first one, and the next after any key, in O(log n).
 *
 * A treap over arrays: node n is slot n's. What makes the tree even is a hash of the slot's number,
 * so that the same slots make the same tree whatever the order they came in.
 *
 * Borrows: nodes and keys, [slot count] each; the key of a slot stays as it is while it is in.
 * Threads: the store's. */
#ifndef KV_KVSTORE_POLICY_RANKING_H
#define KV_KVSTORE_POLICY_RANKING_H

#include <stdbool.h>
#include <stdint.h>

#define KV_RANKING_NONE UINT32_MAX

/* By rank, then by last use, then by slot. */
typedef struct {
    uint64_t rank, used;
} kv_rank_t;

typedef struct {
    uint32_t left, right;
} kv_ranking_node_t;

/* A ranking is a number, that of its root: KV_RANKING_NONE while it is empty. Any number of them
 * may share nodes, as a slot is in one of them at a time. */
typedef struct {
    kv_ranking_node_t *nodes;
    const kv_rank_t *keys;
} kv_ranking_memory_t;

void kv_ranking_add(const kv_ranking_memory_t *memory, uint32_t *root, uint32_t slot);
void kv_ranking_remove(const kv_ranking_memory_t *memory, uint32_t *root, uint32_t slot);

/* The first slot, or the first one behind (key, slot); KV_RANKING_NONE: there is none. */
uint32_t kv_ranking_first(const kv_ranking_memory_t *memory, uint32_t root);
uint32_t kv_ranking_after(
    const kv_ranking_memory_t *memory, uint32_t root, kv_rank_t key, uint32_t slot);

#endif
