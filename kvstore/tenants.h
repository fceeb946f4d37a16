/* Tenants: what each holds of host memory and disk, and how much it may.
 *
 * Rules:
 *  1. A block counts for whose it is: for the tenant of the terms that it was stored under first,
 *     whoever uses it later.
 *  2. Bytes are counted as blocks come and go, never by looking through the table; but for those of
 *     pins, which are seconds old and are counted anew before anything is refused for them.
 *  3. A tenant that would exceed its quota gives up blocks of its own, and nobody else's: in host
 *     memory before the new one gets a slot, in the policy's order; on disk as soon as the new one
 *     is there (trim.c), by last use. So the disk's is exceeded, for moments, by what comes.
 *  4. What is pinned or held is not given up. Where nothing else is left, the new block is not
 *     stored (host memory) or stays in memory (disk).
 *
 * Owns: the accounts. Threads: the store's.
 * Limits: figures of KV_METERED_TENANTS_MAX tenants with a quota are published as metrics. */
#ifndef KV_KVSTORE_TENANTS_H
#define KV_KVSTORE_TENANTS_H

#include "kvstore/store_internal.h"

enum {
    KV_TENANT_METRICS = 4, /* host and disk, used and quota */
    KV_METERED_TENANTS_MAX = 64,
};

/* Bytes of pins: that are known, that the sweep has come across so far, that a call asks for. */
typedef enum { KV_PINS_KNOWN, KV_PINS_SWEPT, KV_PINS_ASKED, KV_PINS_COUNT } kv_pins_t;

typedef struct kv_trim kv_trim_t;

typedef struct {
    uint64_t host_quota_bytes, disk_quota_bytes; /* 0: none */
    uint64_t disk_bytes, disk_objects;
    uint64_t pins[KV_PINS_COUNT]; /* bytes */
    bool host_over;               /* its quota was lowered: it gives up blocks until it fits */
    kv_trim_t *trim;              /* who goes next from the disk; NULL: that is not known */
    uint32_t stuck_until_s;       /* nothing of it could leave the disk */
    kv_metric_t *metrics[KV_TENANT_METRICS];
    uint64_t published[KV_TENANT_METRICS];
} kv_tenant_t;

struct kv_tenants {
    kv_tenant_t *items; /* [count] by the number of the tenant's name */
    uint32_t count;
    uint32_t quota_count;
    uint32_t metered[KV_METERED_TENANTS_MAX], metered_count; /* those with metrics */
    bool host_over, disk_over; /* some tenant may be over its quota of it */
};

kv_status_t kv_tenants_open(
    kvist_store_t *store, const kvist_store_params_t *params, kv_error_t *error);
void kv_tenants_close(kvist_store_t *store);

/* The account of the tenant with this number; it stays where it is until the next call. */
kv_tenant_t *kv_tenants_at(kvist_store_t *store, uint32_t number);

uint64_t kv_tenants_host_bytes(const kvist_store_t *store, uint32_t number);

/* Whether one more object of the family would exceed its tenant's quota of host memory. */
bool kv_tenants_host_full(const kvist_store_t *store, const kv_family_t *family);

/* The object came to the disk, or leaves it. */
void kv_tenants_note_disk(kvist_store_t *store, const kv_object_t *object, bool stored);

/* Whether the tenant's quota lets the object go to the disk. */
bool kv_tenants_admits(kvist_store_t *store, const kv_object_t *object);

/* Pins: of all tenants to none; more of the object's tenant; what the sweep found is what is known;
 * what is asked for is given, and counts. */
void kv_pins_clear(kvist_store_t *store, kv_pins_t pins);
void kv_pins_add(kvist_store_t *store, const kv_object_t *object, kv_pins_t pins, uint64_t bytes);
void kv_pins_end_sweep(kvist_store_t *store);
void kv_pins_give(kvist_store_t *store);

/* Whether what is asked for fits every tenant's quota. */
bool kv_pins_fit(const kvist_store_t *store);

void kv_tenants_advance(kvist_store_t *store);
void kv_tenants_publish(kvist_store_t *store);

/* ---- trim.c ---- */

void kv_trim_advance(kvist_store_t *store);
void kv_trim_destroy(kv_trim_t *trim); /* NULL is fine */

#endif
