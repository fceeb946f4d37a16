#include "store/node.h"

#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "holder/bounce.h"
#include "holder/holder.h"
#include "holder/shape.h"
#include "kvstore/service/service.h"
#include "node/notify.h"
#include "store/domains.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SHOWN_CLIENTS_MAX = 256 };

/* What a status points to. */
typedef struct {
    Kvist__Admin__Domain domains[KV_SERVICE_DOMAINS_MAX];
    Kvist__Admin__Domain *domain_pointers[KV_SERVICE_DOMAINS_MAX];
    Kvist__Admin__Tier tiers[KV_SERVICE_DOMAINS_MAX][KVIST_TIER_REMOTE];
    Kvist__Admin__Tier *tier_pointers[KV_SERVICE_DOMAINS_MAX][KVIST_TIER_REMOTE];
    Kvist__Admin__Client clients[SHOWN_CLIENTS_MAX];
    Kvist__Admin__Client *client_pointers[SHOWN_CLIENTS_MAX];
    char client_names[SHOWN_CLIENTS_MAX][KVIST_ORIGIN_BYTES_MAX + 1];
    size_t client_count;
} view_t;

typedef struct {
    kv_holder_t holder;
    kv_domains_t domains;
    kv_service_t *service;
    kv_watch_t *service_watch;
    kv_bounce_t *bounce;
    bool running, has_peers; /* has_peers: there is a cluster's key */
    kv_metric_t *clients, *refused_clients, *ended_clients;
    kv_service_stats_t told; /* on /metrics */
    view_t view;
} node_t;

/* ---- the admin socket ---- */

static void show_domain(node_t *node, uint32_t number)
{
    view_t *view = &node->view;
    Kvist__Admin__Domain *domain = &view->domains[number];
    const kvist_store_t *store = kv_service_store(node->service, number);
    kvist__admin__domain__init(domain);
    view->domain_pointers[number] = domain;
    domain->name = (char *)(uintptr_t)node->domains.items[number].name;
    domain->open = store != NULL;
    if (store != NULL) {
        kvist_stats_t stats;
        kvist_store_stats(store, &stats);
        kv_holder_fill_tiers(&stats, view->tiers[number], view->tier_pointers[number]);
        domain->n_tiers = KVIST_TIER_REMOTE;
        domain->tiers = view->tier_pointers[number];
        domain->unsaved_objects = stats.unsaved_objects;
        domain->leases = stats.leases;
    }
}

static void show_client(void *context, const kv_service_client_t *client)
{
    node_t *node = context;
    view_t *view = &node->view;
    if (view->client_count == SHOWN_CLIENTS_MAX) {
        return;
    }
    size_t number = view->client_count++;
    Kvist__Admin__Client *entry = &view->clients[number];
    kvist__admin__client__init(entry);
    view->client_pointers[number] = entry;
    snprintf(view->client_names[number], sizeof view->client_names[number], "%s", client->name);
    entry->name = view->client_names[number];
    entry->domain = (char *)(uintptr_t)node->domains.items[client->domain].name;
    entry->pid = (uint64_t)client->process;
    entry->user = client->user;
    entry->leases = client->leases;
    entry->requests = client->requests;
    entry->staging_bytes = client->staging_bytes;
}

static void describe(void *context, Kvist__Admin__Status *status)
{
    node_t *node = context;
    for (uint32_t i = 0; i < node->domains.count; i++) {
        show_domain(node, i);
    }
    status->n_domains = node->domains.count;
    status->domains = node->view.domain_pointers;
    node->view.client_count = 0;
    kv_service_visit(node->service, show_client, node);
    status->n_clients = node->view.client_count;
    status->clients = node->view.client_pointers;
}

static kvist_store_t *store_named(void *context, const char *name)
{
    const node_t *node = context;
    for (uint32_t i = 0; i < node->domains.count; i++) {
        if (strcmp(node->domains.items[i].name, name) == 0) {
            return kv_service_store(node->service, i);
        }
    }
    return NULL;
}

/* ---- clients ---- */

static void tell_metrics(node_t *node)
{
    kv_service_stats_t now;
    kv_service_stats(node->service, &now);
    kv_metric_set(node->clients, now.clients);
    kv_metric_add(
        node->refused_clients, (double)(now.refused_clients - node->told.refused_clients));
    kv_metric_add(node->ended_clients, (double)(now.ended_clients - node->told.ended_clients));
    node->told = now;
}

static void service_ready(void *context)
{
    node_t *node = context;
    kv_service_poll(node->service);
    tell_metrics(node);
}

static void open_metrics(node_t *node)
{
    node->clients = kv_metric_gauge("kvist_store_clients", "", "processes that are attached");
    node->refused_clients =
        kv_metric_counter("kvist_store_clients_refused_total", "", "clients that were not let in");
    node->ended_clients = kv_metric_counter(
        "kvist_store_clients_ended_total", "", "clients that were ended for what they did");
}

/* ---- peers ---- */

static kv_status_t join(node_t *node, const kvist_layout_t *layout, kv_error_t *error)
{
    kv_block_shape_t shape;
    if (!kv_shape_of_layout(layout, &shape)) {
        kv_log_warn("store",
            "the first domain's blocks are not K and V of all layers in one group: served to "
            "clients here, not to peers");
        return KV_OK;
    }
    kv_status_t status =
        kv_bounce_create(kv_block_bytes(&shape), KV_BOUNCE_BYTES, &node->bounce, error);
    if (status != KV_OK) {
        return status;
    }
    kvist_key_t digest = kv_shape_digest(&shape);
    char text[KV_SHAPE_TEXT_BYTES];
    kv_shape_text(&shape, text);
    kv_holding_params_t params = {
        .bounce = node->bounce,
        .block_bytes = kv_block_bytes(&shape),
        .unit_bytes = kv_block_layer_bytes(&shape),
        .block_tokens = shape.block_tokens,
        .context_tokens_max = KVIST_CHAIN_BLOCKS_MAX, /* of which a message holds fewer */
        .layout = digest.bytes,
        .layout_text = text,
    };
    status = kv_holder_join(&node->holder, &params, error);
    if (status == KV_OK) {
        kv_log_info("store", "joined its peers: %s, listening on %s:%u", text,
            node->holder.options->node.host, kv_peers_port(node->holder.peers));
    }
    return status;
}

/* The first domain's store is there, and what its blocks are is known. */
static kv_status_t share(node_t *node, kv_error_t *error)
{
    kvist_store_t *store = kv_service_store(node->service, 0);
    if (store == NULL || node->holder.store != NULL) {
        return KV_OK;
    }
    node->holder.store = store;
    return !node->has_peers ? KV_OK : join(node, kv_service_layout(node->service, 0), error);
}

static void opened(void *context, uint32_t domain, kvist_store_t *store)
{
    node_t *node = context;
    (void)store;
    kv_error_t error;
    kv_log_info("store", "domain %s is open", node->domains.items[domain].name);
    if (node->running && domain == 0 && share(node, &error) != KV_OK) {
        kv_log_error("store", "%s: clients here are served, peers are not", error.text);
    }
}

/* ---- life ---- */

/* Without a key it serves clients alone; a key that cannot be read is an error now, not later. */
static kv_status_t look_for_key(node_t *node, kv_error_t *error)
{
    uint8_t key[KV_CLUSTER_KEY_BYTES_MAX];
    size_t bytes;
    kv_status_t status = kv_options_cluster_key(node->holder.options, key, &bytes, error);
    explicit_bzero(key, sizeof key);
    node->has_peers = status == KV_OK;
    if (status == KV_MISSING && node->holder.options->cluster.key_file[0] == '\0') {
        kv_log_info("store", "no cluster.key_file: serves clients of this machine, no peers");
        return KV_OK;
    }
    return status;
}

static kv_status_t open_all(node_t *node, kv_error_t *error)
{
    kv_status_t status = look_for_key(node, error);
    if (status == KV_OK) {
        status = kv_domains_read(node->holder.options, &node->domains, error);
    }
    if (status == KV_OK) {
        status = kv_holder_begin(&node->holder, error);
    }
    if (status == KV_OK) {
        /* In which several domains have theirs; an error shows when the first one opens. */
        mkdir(node->holder.options->store.directory, 0700);
        kv_service_params_t params = {
            .path = node->holder.options->store.socket,
            .domains = node->domains.items,
            .domain_count = node->domains.count,
            .opened = opened,
            .context = node,
        };
        status = kv_service_open(&params, &node->service, error);
    }
    if (status == KV_OK) {
        open_metrics(node);
        node->service_watch = kv_reactor_attach(
            node->holder.reactor, kv_service_fd(node->service), service_ready, node);
        status = share(node, error);
    }
    if (status == KV_OK) {
        status = kv_holder_serve(&node->holder, error);
    }
    return status;
}

static void close_all(node_t *node)
{
    kv_holder_leave(&node->holder);
    kv_watch_detach(node->service_watch);
    kv_service_close(node->service);
    kv_bounce_destroy(node->bounce);
    kv_holder_end(&node->holder);
    kv_domains_clear(&node->domains);
}

kv_status_t kv_store_node_run(const kv_options_t *options, kv_error_t *error)
{
    node_t *node = kv_allocate(sizeof *node);
    node->holder.options = options;
    node->holder.role = KVIST__WIRE__ROLE__ROLE_STORE;
    node->holder.owner =
        (kv_holder_owner_t){.context = node, .describe = describe, .store_named = store_named};
    kv_status_t status = open_all(node, error);
    if (status == KV_OK) {
        node->running = true;
        kv_log_info("store", "ready: clients attach at %s", options->store.socket);
        kv_notify_ready();
        kv_holder_run(&node->holder);
    }
    close_all(node);
    free(node);
    return status;
}
