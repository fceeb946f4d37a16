#include "cluster/discovery.h"

#include "base/address.h"
#include "base/log.h"
#include "base/memory.h"
#include "cluster/etcd.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kv_discovery {
    kv_peers_t *peers;
    uint32_t useful_roles; /* 0: all */
    kv_etcd_t *etcd;       /* NULL: static only */
};

uint32_t kv_discovery_useful_roles(Kvist__Wire__Role role)
{
    switch (role) {
    case KVIST__WIRE__ROLE__ROLE_GATEWAY:
        return 1u << KVIST__WIRE__ROLE__ROLE_DECODE | 1u << KVIST__WIRE__ROLE__ROLE_STORE;
    case KVIST__WIRE__ROLE__ROLE_STORE: /* which asks nobody: those who may ask it */
        return 1u << KVIST__WIRE__ROLE__ROLE_PREFILL | 1u << KVIST__WIRE__ROLE__ROLE_DECODE;
    default:
        return 0;
    }
}

bool kv_discovery_is_configured(const kv_options_t *options)
{
    return options->cluster.nodes.count > 0 || options->cluster.etcd.count > 0;
}

/* ---- members ---- */

static bool is_useful(const kv_discovery_t *discovery, const kv_member_t *member)
{
    return discovery->useful_roles == 0 || (discovery->useful_roles & 1u << member->role) != 0;
}

static void came(void *context, const kv_member_t *member)
{
    kv_discovery_t *discovery = context;
    kv_error_t error;
    kv_log_info("cluster", "member %s came address %s version %s", member->name, member->address,
        member->version);
    if (is_useful(discovery, member) &&
        kv_peers_connect(discovery->peers, member->address, &error) != KV_OK) {
        kv_log_warn("cluster", "member %s: %s", member->name, error.text);
    }
}

static void went(void *context, const kv_member_t *member)
{
    kv_discovery_t *discovery = context;
    kv_log_info("cluster", "member %s went address %s%s", member->name, member->address,
        kv_peers_find(discovery->peers, member->name) != NULL ? " (its connection is up and stays)"
                                                              : "");
    if (is_useful(discovery, member)) {
        kv_peers_disconnect(discovery->peers, member->address);
    }
}

/* ---- sources ---- */

static kv_status_t connect_list(
    const kv_discovery_t *discovery, const kv_string_list_t *list, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; status == KV_OK && list != NULL && i < list->count; i++) {
        status = kv_peers_connect(discovery->peers, list->items[i], error);
    }
    return status;
}

/* What others are told of this node. */
static kv_status_t describe_self(
    const kv_discovery_params_t *params, kv_member_t *member_out, kv_error_t *error)
{
    const kv_options_t *options = params->options;
    struct sockaddr_storage address;
    kv_status_t status;
    if (options->node.advertise[0] != '\0') {
        status = kv_address_parse(options->node.advertise, &address, error);
    } else {
        status = kv_address_from_parts(
            options->node.host, kv_peers_port(params->peers), &address, error);
    }
    if (status != KV_OK) {
        return status;
    }
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)&address;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&address;
    bool any = address.ss_family == AF_INET6 ? IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr)
                                             : v4->sin_addr.s_addr == htonl(INADDR_ANY);
    if (any) {
        return kv_fail(error, KV_INVALID,
            "node.advertise: must be the host:port that others reach this node at: with %s it "
            "would "
            "be any address",
            options->node.advertise[0] != '\0' ? options->node.advertise : options->node.host);
    }
    *member_out = (kv_member_t){.role = params->role};
    snprintf(member_out->name, sizeof member_out->name, "%s", options->node.name);
    snprintf(member_out->version, sizeof member_out->version, "%s", KVIST_VERSION);
    kv_address_text(&address, member_out->address);
    return KV_OK;
}

static kv_status_t open_etcd(
    kv_discovery_t *discovery, const kv_discovery_params_t *params, kv_error_t *error)
{
    const kv_options_t *options = params->options;
    kv_member_t self;
    bool registers = params->role != KVIST__WIRE__ROLE__ROLE_GATEWAY; /* nobody connects to one */
    kv_status_t status = registers ? describe_self(params, &self, error) : KV_OK;
    if (status != KV_OK) {
        return status;
    }
    kv_etcd_params_t etcd = {
        .loop = params->loop,
        .endpoints = (const char *const *)options->cluster.etcd.items,
        .endpoint_count = options->cluster.etcd.count,
        .ca_file = options->cluster.etcd_ca_file[0] != '\0' ? options->cluster.etcd_ca_file : NULL,
        .prefix = options->cluster.etcd_prefix,
        .cluster = options->cluster.name,
        .ttl_ns = options->cluster.etcd_ttl_ns,
        .name = options->node.name,
        .self = registers ? &self : NULL,
        .callbacks = {discovery, came, went},
    };
    return kv_etcd_open(&etcd, &discovery->etcd, error);
}

/* ---- life ---- */

kv_status_t kv_discovery_open(
    const kv_discovery_params_t *params, kv_discovery_t **discovery_out, kv_error_t *error)
{
    kv_discovery_t *discovery = kv_allocate(sizeof *discovery);
    discovery->peers = params->peers;
    discovery->useful_roles = kv_discovery_useful_roles(params->role);
    kv_status_t status = connect_list(discovery, params->list, error);
    if (status == KV_OK) {
        status = connect_list(discovery, &params->options->cluster.nodes, error);
    }
    if (status == KV_OK && params->options->cluster.etcd.count > 0) {
        status = open_etcd(discovery, params, error);
    }
    if (status != KV_OK) {
        kv_discovery_close(discovery);
        return status;
    }
    *discovery_out = discovery;
    return KV_OK;
}

void kv_discovery_leave(kv_discovery_t *discovery)
{
    if (discovery != NULL && discovery->etcd != NULL) {
        kv_etcd_leave(discovery->etcd);
    }
}

bool kv_discovery_has_left(const kv_discovery_t *discovery)
{
    return discovery == NULL || discovery->etcd == NULL || kv_etcd_has_left(discovery->etcd);
}

void kv_discovery_close(kv_discovery_t *discovery)
{
    if (discovery != NULL) {
        kv_etcd_close(discovery->etcd);
        free(discovery);
    }
}
