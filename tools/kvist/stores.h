/* The nodes of a cluster that store KV, as the commands about stored blocks visit them.
 *
 * Owns: the cluster that was read, until kv_stores_close.
 * Threads: any. */
#ifndef KV_TOOLS_STORES_H
#define KV_TOOLS_STORES_H

#include "tools/kvist/cluster.h"

#include <jansson.h>

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

/* What a command about one block was asked. */
typedef struct {
    const char *command, *folder, *node, *key;
    bool json;
    bool attached; /* also nodes that are attached to a kvist-store: they have device memory */
} kv_stores_request_t;

/* At one node that has the block: prints, or adds to rows where they are not NULL. */
typedef kv_status_t (*kv_stores_visit_t)(const kv_member_t *member, const char *key, json_t *rows,
    const void *context, kv_error_t *error);

/* Finds the block whose key begins so, the same one at every node that has one, and visits those
 * nodes with its whole key. Prints the rows. The command's exit code. */
int kv_stores_visit_key(
    const kv_stores_request_t *request, kv_stores_visit_t visit, const void *context);

#endif
