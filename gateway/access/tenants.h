/* Tenants: who may ask, by API key; what each may have; and the salt that keeps what they cached
 * apart.
 *
 * The file (gateway.tenants_file) is YAML:
 *
 *   tenants:
 *     - name: team-a
 *       salt: 64 hexadecimal digits        # kvist tenant new makes salt and key
 *       key_sha256: [64 digits, ...]       # of each key; several while one replaces another
 *       priority: interactive              # the best class it may ask for
 *       cache_modes: [readwrite, read, write, bypass]
 *       requests_per_minute: 600
 *       tokens_per_minute: 1000000
 *       concurrent: 32                     # places at nodes at once
 *       host_bytes: 4GiB                   # quotas, told to nodes
 *       disk_bytes: 100GiB
 *       operator: yes                      # sees every tenant's requests and contexts
 *
 * Without a file there is one tenant without a name: no key is asked for, nothing is bounded.
 * A tenant lives as long as a request of it, also when the file no longer names it; its rates and
 * its place in the queue outlive a new file.
 *
 * Owns: the tenants. Borrows: the path.
 * Threads: one at a time.
 * Errors: a file that is wrong is refused as a whole, with record and field; what was in force
 * stays. No key and no salt is ever part of an error.
 * Limits: KV_TENANTS_MAX tenants, KV_TENANT_KEYS_MAX keys each, a file of 1 MiB. */
#ifndef KV_GATEWAY_TENANTS_H
#define KV_GATEWAY_TENANTS_H

#include "base/status.h"
#include "gateway/access/admission.h"
#include "gateway/access/limits.h"
#include "node/options.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_TENANTS_MAX = 1024,
    KV_TENANT_KEYS_MAX = 8,
    KV_TENANT_KEY_BYTES_MAX = 256,
    KV_TENANT_HASH_BYTES = 32,
    KV_TENANT_SALT_BYTES = 32,
};

typedef struct kv_tenants kv_tenants_t;

typedef struct {
    char name[KV_OPTION_TENANT_NAME_BYTES_MAX + 1]; /* "": the nameless one */
    uint8_t salt[KV_TENANT_SALT_BYTES];
    uint8_t hashes[KV_TENANT_KEYS_MAX][KV_TENANT_HASH_BYTES];
    uint32_t hash_count;
    kvist_priority_t priority_best;
    unsigned cache_modes;            /* bits of 1 << kvist_mode_t */
    uint64_t host_bytes, disk_bytes; /* 0: no bound */
    bool has_quota;                  /* one of them is there, or was */
    bool is_operator;
    kv_bucket_t requests, tokens;
    kv_share_t share;
    uint32_t holder_count; /* the table, and requests */
} kv_tenant_t;

/* path: "" for none. */
kv_status_t kv_tenants_open(const char *path, kv_tenants_t **tenants_out, kv_error_t *error);
void kv_tenants_close(kv_tenants_t *tenants); /* NULL is fine */

/* Reads the file again; on an error everything stays as it was. Without a file: KV_OK. */
kv_status_t kv_tenants_reload(kv_tenants_t *tenants, kv_error_t *error);

/* Whether a key is needed. */
bool kv_tenants_named(const kv_tenants_t *tenants);

/* Whose key this is, held for the caller; NULL: nobody's (or none was given: key NULL). Its hash is
 * compared with every hash of every tenant, whichever agrees: time tells nothing of a key. Where no
 * key is needed the nameless tenant, whatever the key. */
kv_tenant_t *kv_tenants_find(kv_tenants_t *tenants, const char *key);
void kv_tenant_release(kv_tenant_t *tenant); /* NULL is fine */

/* Calls visit for each tenant of the file. */
void kv_tenants_visit(const kv_tenants_t *tenants,
    void (*visit)(void *context, const kv_tenant_t *tenant), void *context);

#endif
