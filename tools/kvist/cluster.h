/* A cluster on one machine: its folder, its processes, their start and stop.
 *
 *   FOLDER/cluster.json      what runs: endpoint, model, and of each node its command, pid, start
 *   FOLDER/cluster.key       the cluster's key (mode 0600, made once)
 *   FOLDER/logs/NAME.log     what a node said
 *   FOLDER/run/NAME.sock     a node's admin socket
 *   FOLDER/run/clients.sock  where nodes attach to kvist-store
 *   FOLDER/store/NAME/       a node's disk tier
 *
 * Owns: the strings of a kv_cluster_t, until kv_cluster_clear.
 * Threads: one; two commands on one folder exclude each other by FOLDER/lock.
 * Errors: KV_MISSING when no cluster was ever started in the folder. */
#ifndef KV_TOOLS_CLUSTER_H
#define KV_TOOLS_CLUSTER_H

#include "base/status.h"
#include "tools/kvist/child.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_CLUSTER_NODES_MAX = 16, /* of one role */
    KV_CLUSTER_MEMBERS_MAX = 2 * KV_CLUSTER_NODES_MAX + 2,
    KV_PATH_BYTES = 4096,
};

typedef struct {
    char *name; /* "prefill-0" */
    char *admin, *log;
    char **argv; /* NULL-terminated: how it is started (again) */
    kv_child_t child;
    bool stores; /* no gateway, and not attached to a store that is a member */
    bool engine; /* has a model: a prefill or a decode node */
} kv_member_t;

typedef struct {
    char *folder;
    char *model;
    char *endpoint;                              /* "http://127.0.0.1:8080" */
    kv_member_t members[KV_CLUSTER_MEMBERS_MAX]; /* in the order of their start */
    size_t member_count;
} kv_cluster_t;

typedef struct {
    const char *folder;
    const char *model;                        /* NULL: the one that tools/fetch-model fetched */
    const char *config;                       /* a YAML file for all nodes, or NULL */
    uint64_t http_port;                       /* 0: the one it had, 8080, or any that is free */
    uint64_t prefill_count, decode_count;     /* 0: one */
    uint64_t prefill_threads, decode_threads; /* of each; 0: half of the cores for all of a role */
    bool colocated;                           /* no prefill node: decode nodes compute prompts */
    bool embedded;                            /* no kvist-store: each node has tiers of its own */
    const char **extras; /* "--section.name=value" for the nodes that know it */
    size_t extra_count;
} kv_cluster_params_t;

/* The folder where a command was given none: $XDG_STATE_HOME/kvist/default; "" when there is no
 * home. The text lives as long as the process. */
const char *kv_cluster_default_folder(void);

/* Reads cluster.json. */
kv_status_t kv_cluster_load(const char *folder, kv_cluster_t *cluster_out, kv_error_t *error);
void kv_cluster_clear(kv_cluster_t *cluster);
size_t kv_cluster_alive_count(const kv_cluster_t *cluster);

/* Brings the cluster up. Whole and alive: nothing is done but a word. Some nodes dead: they are
 * started again as they were; that params are not used is said. All dead: a new start with params.
 * Waits until all nodes are healthy and know each other; when one dies first, what it said last is
 * shown. *cluster_out is set only with KV_OK. */
kv_status_t kv_cluster_start(
    const kv_cluster_params_t *params, kv_cluster_t *cluster_out, kv_error_t *error);

/* Stops the nodes, the gateway first: it drains, which takes as long as its requests (at most
 * node.drain_limit), unless `now`. Each is asked to stop, then SIGTERM, then SIGKILL. KV_FATAL when
 * one outlives it. */
kv_status_t kv_cluster_stop(kv_cluster_t *cluster, bool now, kv_error_t *error);

/* Stops all nodes and starts them again as they were. */
kv_status_t kv_cluster_restart(kv_cluster_t *cluster, kv_error_t *error);

#endif
