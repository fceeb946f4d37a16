/* What nodes say they have, for people to look at: their status and the contexts that they store.
 *
 *   somebody looks --kv_told_look--> Ask to each node and store, and through them to prefill nodes
 *                                    Told --kv_told_message--> the answer, kept until the next one
 *
 * Nobody is asked while nobody looks, and nobody again while an answer is waited for (10 s) or is
 * young enough: an answer that took long may be a hundred times as old, so that telling takes no
 * node more than a hundredth of its time.
 *
 * Owns: the answers. Borrows: peers, while they are up.
 * Threads: the reactor's.
 * Errors: kept beside the answer of before, in words.
 * Limits: KV_TOLD_NODES_MAX nodes; KV_TOLD_CONTEXTS_MAX contexts of each. */
#ifndef KV_GATEWAY_TOLD_H
#define KV_GATEWAY_TOLD_H

#include "proto/admin.pb-c.h"
#include "transport/peers.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_TOLD_NODES_MAX = 256, KV_TOLD_CONTEXTS_MAX = 10000, KV_TOLD_NAME_BYTES = 64 };

typedef enum { KV_TOLD_STATUS, KV_TOLD_LIST, KV_TOLD_KINDS } kv_told_kind_t;

typedef struct {
    char name[KV_TOLD_NAME_BYTES];
    const char *role; /* a literal */
    kv_peer_t *peer;  /* that is asked: the node itself, or who asks it in turn */
    bool is_relayed;
    Kvist__Admin__Reply *replies[KV_TOLD_KINDS]; /* NULL: none yet */
    uint64_t told_ns[KV_TOLD_KINDS];             /* when; 0: never */
    uint64_t asked_ns[KV_TOLD_KINDS];            /* 0: no answer is waited for */
    uint64_t asked_ids[KV_TOLD_KINDS];
    uint64_t took_ns[KV_TOLD_KINDS]; /* the last answer */
    char error[KV_TOLD_KINDS][128];  /* of the last answer; "": there was none */
} kv_told_node_t;

typedef struct kv_told kv_told_t;

kv_told_t *kv_told_create(void);
void kv_told_destroy(kv_told_t *told); /* NULL is fine */

/* Decode nodes and stores; others are left alone. */
void kv_told_peer_up(kv_told_t *told, kv_peer_t *peer);
void kv_told_peer_down(kv_told_t *told, const kv_peer_t *peer);

/* false: the message is no Told. */
bool kv_told_message(
    kv_told_t *told, kv_peer_t *peer, const Kvist__Wire__Envelope *message, uint64_t now_ns);

/* Somebody looks: asks whoever's answer of the kind is older than age_ns. */
void kv_told_look(kv_told_t *told, kv_told_kind_t kind, uint64_t age_ns, uint64_t now_ns);

/* Every node that is known, in no order; valid until the next call of this header. */
const kv_told_node_t *kv_told_nodes(const kv_told_t *told, size_t *count_out);

/* The kvist-store that it is attached to, where that tells too: host and disk tiers, and what is
 * stored there, are the store's to tell. NULL: none. */
const kv_told_node_t *kv_told_store_of(const kv_told_t *told, const kv_told_node_t *node);

static inline const Kvist__Admin__Status *kv_told_status(const kv_told_node_t *node)
{
    return node->replies[KV_TOLD_STATUS] != NULL ? node->replies[KV_TOLD_STATUS]->status : NULL;
}

static inline const Kvist__Admin__List *kv_told_list(const kv_told_node_t *node)
{
    return node->replies[KV_TOLD_LIST] != NULL ? node->replies[KV_TOLD_LIST]->list : NULL;
}

#endif
