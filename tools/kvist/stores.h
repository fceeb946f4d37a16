/* The nodes of a cluster that store KV, as the commands about stored blocks visit them.
 *
 * Owns: the cluster that was read, until kv_stores_close.
 * Threads: any. */
#ifndef KV_TOOLS_STORES_H
#define KV_TOOLS_STORES_H

#include "tools/kvist/cluster.h"

enum { KV_STORES_KEY_BYTES = 65 };

/* Those that a command visits. */
typedef struct {
    const char *command; /* for messages */
    kv_cluster_t cluster;
    const kv_member_t *members[KV_CLUSTER_MEMBERS_MAX];
    size_t count;
} kv_stores_t;

/* All members that store, or the one that is named (NULL: all). KV_EXIT_DONE, or the exit code:
 * there is no cluster, or no such node; said on standard error. */
int kv_stores_open(
    const char *command, const char *folder, const char *node, kv_stores_t *stores_out);
void kv_stores_close(kv_stores_t *stores);

/* What the command does at each node, and what the nodes said together. */
typedef struct {
    size_t done_count, missing_count, failed_count;
} kv_stores_tally_t;

/* Counts one node's answer; a failure is said, but for KV_MISSING: the key is not stored there. */
void kv_stores_tally(const kv_stores_t *stores, const kv_member_t *member, kv_status_t status,
    const char *text, kv_stores_tally_t *tally);

/* Asks every store for the block whose key begins so, and leaves those that have it. key_out: the
 * whole key. KV_EXIT_DONE, or the exit code: no node has it, one failed, or they have different
 * ones; said on standard error. */
int kv_stores_find(kv_stores_t *stores, const char *key, char key_out[KV_STORES_KEY_BYTES]);

/* The exit code of a command about one key; says so where no node has it. */
int kv_stores_answer(const kv_stores_t *stores, const char *key, const kv_stores_tally_t *tally);

#endif
