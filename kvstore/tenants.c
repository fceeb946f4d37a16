#include "kvstore/tenants.h"

#include "base/memory.h"
#include "kvstore/embedded.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ON_ITS_WAY_SHARE = 8, ON_ITS_WAY_BYTES_MIN = 1 << 20 };

/* ---- accounts ---- */

kv_tenant_t *kv_tenants_at(kvist_store_t *store, uint32_t number)
{
    kv_tenants_t *tenants = store->accounts;
    if (number >= tenants->count) {
        uint32_t count = 2 * tenants->count > number + 1 ? 2 * tenants->count : number + 1;
        tenants->items = kv_reallocate(tenants->items, count, sizeof *tenants->items);
        memset(
            tenants->items + tenants->count, 0, (count - tenants->count) * sizeof *tenants->items);
        tenants->count = count;
    }
    return &tenants->items[number];
}

static uint32_t tenant_of(const kvist_store_t *store, const kv_object_t *object)
{
    return kv_object_family(store, object)->tenant;
}

static uint64_t pool_bytes(const kv_pool_t *pool, uint32_t number, size_t object_bytes)
{
    return number < pool->tenant_count ? (uint64_t)pool->tenants[number].object_count * object_bytes
                                       : 0;
}

uint64_t kv_tenants_host_bytes(const kvist_store_t *store, uint32_t number)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < store->group_count; i++) {
        const kv_store_group_t *group = &store->groups[i];
        bytes += pool_bytes(&group->host_pool, number, group->layout.object_bytes);
    }
    return bytes;
}

/* NULL: the tenant has no quota. */
static const kv_tenant_t *bounded(const kvist_store_t *store, uint32_t number)
{
    const kv_tenants_t *tenants = store->accounts;
    bool known = tenants->quota_count > 0 && number < tenants->count;
    return known ? &tenants->items[number] : NULL;
}

bool kv_tenants_host_full(const kvist_store_t *store, const kv_family_t *family)
{
    const kv_tenant_t *tenant = bounded(store, family->tenant);
    return tenant != NULL && tenant->host_quota_bytes > 0 &&
           kv_tenants_host_bytes(store, family->tenant) +
                   store->groups[family->group].layout.object_bytes >
               tenant->host_quota_bytes;
}

void kv_tenants_note_disk(kvist_store_t *store, const kv_object_t *object, bool stored)
{
    kv_tenant_t *tenant = kv_tenants_at(store, tenant_of(store, object));
    uint64_t bytes = (uint64_t)object->length_pages * KV_PAGE_BYTES;
    if (!stored) {
        tenant->disk_bytes -= bytes;
        tenant->disk_objects--;
        return;
    }
    tenant->disk_bytes += bytes;
    tenant->disk_objects++;
    if (tenant->disk_quota_bytes > 0 && tenant->disk_bytes > tenant->disk_quota_bytes) {
        store->accounts->disk_over = true;
        kv_store_kick(store);
    }
}

/* What has to leave for it goes when it is there: some may be on their way at a time. What left the
 * disk for its quota, and nobody asked for since, comes back only where there is room. */
bool kv_tenants_admits(kvist_store_t *store, const kv_object_t *object)
{
    const kv_tenant_t *tenant = bounded(store, tenant_of(store, object));
    if (tenant == NULL || tenant->disk_quota_bytes == 0) {
        return true;
    }
    const kv_layout_t *layout = &store->groups[kv_object_family(store, object)->group].layout;
    uint64_t room = tenant->disk_quota_bytes, over = tenant->disk_quota_bytes / ON_ITS_WAY_SHARE;
    bool stuck = tenant->stuck_until_s > kv_store_now_s(store);
    if (!stuck && (object->disk_flags & KV_DISK_GIVEN_UP) == 0) {
        room += over > ON_ITS_WAY_BYTES_MIN ? over : ON_ITS_WAY_BYTES_MIN;
    }
    return tenant->disk_bytes + kv_record_bytes_max(layout) <= room;
}

/* ---- pins ---- */

void kv_pins_clear(kvist_store_t *store, kv_pins_t pins)
{
    for (uint32_t i = 0; i < store->accounts->count; i++) {
        store->accounts->items[i].pins[pins] = 0;
    }
}

void kv_pins_add(kvist_store_t *store, const kv_object_t *object, kv_pins_t pins, uint64_t bytes)
{
    kv_tenants_at(store, tenant_of(store, object))->pins[pins] += bytes;
}

void kv_pins_end_sweep(kvist_store_t *store)
{
    for (uint32_t i = 0; i < store->accounts->count; i++) {
        uint64_t *pins = store->accounts->items[i].pins;
        pins[KV_PINS_KNOWN] = pins[KV_PINS_SWEPT];
    }
}

void kv_pins_give(kvist_store_t *store)
{
    for (uint32_t i = 0; i < store->accounts->count; i++) {
        uint64_t *pins = store->accounts->items[i].pins;
        pins[KV_PINS_KNOWN] += pins[KV_PINS_ASKED];
    }
}

/* Of the last tier that there is: pins keep blocks there. */
bool kv_pins_fit(const kvist_store_t *store)
{
    for (uint32_t i = 0; i < store->accounts->count; i++) {
        const kv_tenant_t *tenant = &store->accounts->items[i];
        uint64_t quota = store->disk != NULL ? tenant->disk_quota_bytes : tenant->host_quota_bytes;
        if (quota > 0 && tenant->pins[KV_PINS_ASKED] > 0 &&
            tenant->pins[KV_PINS_KNOWN] + tenant->pins[KV_PINS_ASKED] > quota) {
            return false;
        }
    }
    return true;
}

/* ---- figures ---- */

static void figures_of(const kvist_store_t *store, uint32_t number, uint64_t *figures_out)
{
    const kv_tenant_t *tenant = &store->accounts->items[number];
    figures_out[0] = kv_tenants_host_bytes(store, number);
    figures_out[1] = tenant->disk_bytes;
    figures_out[2] = tenant->host_quota_bytes;
    figures_out[3] = tenant->disk_quota_bytes;
}

static void tell(kv_tenant_t *tenant, const uint64_t *now)
{
    for (int i = 0; i < KV_TENANT_METRICS; i++) {
        kv_metric_add(tenant->metrics[i], (double)now[i] - (double)tenant->published[i]);
        tenant->published[i] = now[i];
    }
}

/* Gauges are sums of all stores of the process. */
void kv_tenants_publish(kvist_store_t *store)
{
    kv_tenants_t *tenants = store->accounts;
    for (uint32_t i = 0; i < tenants->metered_count; i++) {
        uint64_t now[KV_TENANT_METRICS];
        figures_of(store, tenants->metered[i], now);
        tell(&tenants->items[tenants->metered[i]], now);
    }
}

static void begin_metrics(kvist_store_t *store, uint32_t number)
{
    static const char *const TIERS[] = {"host", "disk"};
    kv_tenants_t *tenants = store->accounts;
    kv_tenant_t *tenant = kv_tenants_at(store, number);
    if (tenant->metrics[0] != NULL || tenants->metered_count == KV_METERED_TENANTS_MAX) {
        return;
    }
    tenants->metered[tenants->metered_count++] = number;
    for (int i = 0; i < KV_TENANT_METRICS; i++) {
        char labels[96];
        snprintf(labels, sizeof labels, "tenant=\"%s\",tier=\"%s\"",
            kv_names_at(&store->tenants, number), TIERS[i % 2]);
        tenant->metrics[i] =
            i < 2 ? kv_metric_gauge("kvist_store_tenant_bytes", labels,
                        "Bytes of a tenant's objects; of tenants with a quota, 64 at most.")
                  : kv_metric_gauge("kvist_store_tenant_quota_bytes", labels,
                        "What a tenant may have; 0: as much as there is.");
    }
}

static void end_metrics(kv_tenants_t *tenants)
{
    static const uint64_t NOTHING[KV_TENANT_METRICS];
    for (uint32_t i = 0; i < tenants->metered_count; i++) {
        tell(&tenants->items[tenants->metered[i]], NOTHING);
    }
}

/* ---- quotas ---- */

static kv_status_t check_quota(
    const kvist_store_t *store, const kvist_quota_t *quota, kv_error_t *error)
{
    const char *name = quota->tenant != NULL ? quota->tenant : "";
    bool good = name[0] != '\0' && strlen(name) <= KVIST_TENANT_BYTES_MAX;
    for (const char *at = name; *at != '\0'; at++) {
        good = good && *at > ' ' && *at < 127 && strchr("\"\\=:,", *at) == NULL;
    }
    if (!good) {
        return kv_fail(error, KV_INVALID,
            "tenant is \"%.40s\": a quota is for a name of 1 to %d printable characters without "
            "blanks and \" \\ = : ,",
            name, KVIST_TENANT_BYTES_MAX);
    }
    uint64_t block_bytes = 0;
    for (uint32_t i = 0; i < store->group_count; i++) {
        block_bytes += store->groups[i].layout.object_bytes;
    }
    if (quota->host_bytes > 0 && quota->host_bytes < block_bytes) {
        return kv_fail(error, KV_INVALID, "host_bytes of %s is %ju: it must be 0, or a block (%ju)",
            name, (uintmax_t)quota->host_bytes, (uintmax_t)block_bytes);
    }
    if (quota->disk_bytes > 0 && quota->disk_bytes < store->record_bytes_max) {
        return kv_fail(error, KV_INVALID,
            "disk_bytes of %s is %ju: it must be 0, or a record (%ju)", name,
            (uintmax_t)quota->disk_bytes, (uintmax_t)store->record_bytes_max);
    }
    return KV_OK;
}

kv_status_t kv_embedded_store_set_quota(
    kvist_store_t *store, const kvist_quota_t *quota, kv_error_t *error)
{
    kv_status_t status = check_quota(store, quota, error);
    if (status != KV_OK) {
        return status;
    }
    char name[KV_TENANT_BYTES] = {0};
    memcpy(name, quota->tenant, strlen(quota->tenant));
    int number = kv_names_number(&store->tenants, name);
    if (number == KV_NAMES_FULL) {
        return kv_fail(error, KV_NO_SPACE, "as many tenants are known as can be");
    }
    kv_tenant_t *tenant = kv_tenants_at(store, (uint32_t)number);
    bool was = tenant->host_quota_bytes > 0 || tenant->disk_quota_bytes > 0;
    bool is = quota->host_bytes > 0 || quota->disk_bytes > 0;
    store->accounts->quota_count += is;
    store->accounts->quota_count -= was;
    tenant->host_quota_bytes = quota->host_bytes;
    tenant->disk_quota_bytes = quota->disk_bytes;
    tenant->host_over = quota->host_bytes > 0;
    store->accounts->host_over |= tenant->host_over;
    tenant->stuck_until_s = 0;
    store->accounts->disk_over |= quota->disk_bytes > 0;
    begin_metrics(store, (uint32_t)number);
    kv_store_kick(store);
    return KV_OK;
}

void kv_embedded_store_tenants(const kvist_store_t *store,
    void (*visit)(void *context, const kvist_tenant_t *tenant), void *context)
{
    for (uint32_t i = 0; i < store->tenants.count; i++) {
        static const kv_tenant_t NOTHING;
        const kv_tenant_t *tenant =
            i < store->accounts->count ? &store->accounts->items[i] : &NOTHING;
        kvist_tenant_t told = {
            .quota = {.tenant = kv_names_at(&store->tenants, i),
                .host_bytes = tenant->host_quota_bytes,
                .disk_bytes = tenant->disk_quota_bytes},
            .bytes = {pool_bytes(&store->device_pool, i, store->groups[0].layout.object_bytes),
                kv_tenants_host_bytes(store, i), tenant->disk_bytes},
            .pinned_bytes = tenant->pins[KV_PINS_KNOWN],
        };
        visit(context, &told);
    }
}

/* ---- going on ---- */

/* A quota that was lowered: what is too much goes, a part at a time. */
static void fit_host(kvist_store_t *store, uint32_t number)
{
    bool more = true;
    for (uint32_t group = 0; more && group < store->group_count; group++) {
        more = kv_evict_own(store, group, number);
    }
    store->accounts->items[number].host_over = more;
}

void kv_tenants_advance(kvist_store_t *store)
{
    kv_tenants_t *tenants = store->accounts;
    bool over = false;
    for (uint32_t i = 0; tenants->host_over && i < tenants->count; i++) {
        if (tenants->items[i].host_over) {
            fit_host(store, i);
            over |= tenants->items[i].host_over;
        }
    }
    tenants->host_over = over;
    if (store->disk != NULL && tenants->disk_over) {
        kv_trim_advance(store);
    }
}

kv_status_t kv_tenants_open(
    kvist_store_t *store, const kvist_store_params_t *params, kv_error_t *error)
{
    store->accounts = kv_allocate(sizeof *store->accounts);
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; status == KV_OK && i < params->quota_count; i++) {
        status = kv_embedded_store_set_quota(store, &params->quotas[i], error);
    }
    return status;
}

void kv_tenants_close(kvist_store_t *store)
{
    kv_tenants_t *tenants = store->accounts;
    if (tenants == NULL) {
        return;
    }
    end_metrics(tenants);
    for (uint32_t i = 0; i < tenants->count; i++) {
        kv_trim_destroy(tenants->items[i].trim);
    }
    free(tenants->items);
    free(tenants);
}
