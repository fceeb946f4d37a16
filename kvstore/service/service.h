/* The store of a host, served to its clients: other processes open it with
 * kvist_store_params_t.attach and find the API that an embedded store has (kvstore/attach).
 *
 * One embedded store for each *domain* (a trust domain: users who may share what is cached). A
 * domain's layout is its first client's; where the domain has a folder it is remembered there (file
 * `layout`), and the store opens with the service from then on. A client of another layout is
 * refused.
 *
 * What a client holds, its leases, loads, stores and staging memory, ends with the client: when its
 * socket or its process ends, whichever is noticed first.
 *
 * Owns: the listening socket and its file, connections, descriptors, the domains' stores.
 * Borrows: every string and array of the parameters, until close.
 * Threads: one, which makes every call. Bytes are copied by the stores' own workers. The stores are
 * polled by kv_service_poll, not by whoever got them from kv_service_store.
 * Errors: what a client sends is checked against bounds; a client that breaks one is told which
 * (store.proto, Ended) and its connection ends. It can harm nobody else.
 * Limits: kv_service_limits_t. */
#ifndef KV_KVSTORE_SERVICE_SERVICE_H
#define KV_KVSTORE_SERVICE_SERVICE_H

#include "kvstore/kvist.h"

#include <sys/types.h>

enum { KV_SERVICE_DOMAINS_MAX = 64, KV_SERVICE_DOMAIN_NAME_BYTES_MAX = 63 };

typedef struct kv_service kv_service_t;

typedef struct {
    const char *name;   /* what clients ask for: 1 to 63 printable characters without spaces */
    const uid_t *users; /* [user_count] who may attach, beside root and the user of this process */
    uint32_t user_count;
    /* What its store is opened with. layout: NULL, or what it must be. device: NULL. */
    kvist_store_params_t store;
} kv_service_domain_t;

/* 0: the default. */
typedef struct {
    uint32_t clients;       /* of all domains; 64 */
    uint32_t leases;        /* of one client; 4,096 */
    uint32_t requests;      /* of one client, not answered yet; 1,024 */
    uint64_t staging_bytes; /* of one client; 256 MiB */
    uint64_t answer_bytes;  /* for one client, not read by it yet; 32 MiB */
    uint32_t still_ms;      /* a client that stores nothing for so long is not waited for; 1,000 */
    uint32_t silent_ms;     /* answers that a client leaves unread so long end it; 5,000 */
} kv_service_limits_t;

typedef struct {
    const char *path; /* of the socket; its folder is made when absent, with mode 0700 */
    const kv_service_domain_t *domains;
    uint32_t domain_count; /* 1 to KV_SERVICE_DOMAINS_MAX */
    kv_service_limits_t limits;
    /* Called when a domain's store opens, within kv_service_open or kv_service_poll; or NULL. */
    void (*opened)(void *context, uint32_t domain, kvist_store_t *store);
    void *context;
} kv_service_params_t;

/* KV_BUSY: a living process serves the path. */
kv_status_t kv_service_open(
    const kv_service_params_t *params, kv_service_t **service_out, kv_error_t *error);

/* Ends every client, then closes the stores, which makes durable what they have. */
void kv_service_close(kv_service_t *service);

int kv_service_fd(const kv_service_t *service); /* readable when a poll has something to do */
void kv_service_poll(kv_service_t *service);    /* never blocks */

/* NULL: no client has said its layout yet. */
kvist_store_t *kv_service_store(const kv_service_t *service, uint32_t domain);
const kvist_layout_t *kv_service_layout(const kv_service_t *service, uint32_t domain);

typedef struct {
    uint32_t clients, leases;
    uint32_t mapped;                         /* staging memories */
    uint64_t staging_bytes;                  /* of them */
    uint64_t refused_clients, ended_clients; /* ended: by the service, for what they did */
    uint64_t staged_bytes;                   /* taken out of staging memory, ever */
} kv_service_stats_t;

void kv_service_stats(const kv_service_t *service, kv_service_stats_t *stats_out);

/* One attached client. */
typedef struct {
    char name[KVIST_ORIGIN_BYTES_MAX + 1];
    uint32_t domain;
    pid_t process;
    uid_t user;
    uint32_t leases, requests;
    uint64_t staging_bytes;
} kv_service_client_t;

void kv_service_visit(const kv_service_t *service,
    void (*visit)(void *context, const kv_service_client_t *client), void *context);

#endif
