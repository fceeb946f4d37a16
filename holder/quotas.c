#include "holder/quotas.h"

#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>

_Static_assert((int)KV_OPTION_TENANT_NAME_BYTES_MAX == (int)KVIST_TENANT_BYTES_MAX, "any fits");

kvist_quota_t *kv_quotas_read(const kv_options_t *options, uint32_t *count_out)
{
    const kv_string_list_t *list = &options->store.tenants;
    *count_out = list->count;
    if (list->count == 0) {
        return NULL;
    }
    kvist_quota_t *quotas = kv_allocate_array(list->count, sizeof *quotas);
    for (uint32_t i = 0; i < list->count; i++) {
        kv_option_tenant_t tenant;
        KV_CHECK(kv_options_tenant(list->items[i], &tenant) == KV_OK);
        quotas[i] = (kvist_quota_t){
            .tenant = kv_duplicate_string(tenant.name),
            .host_bytes = tenant.host_bytes,
            .disk_bytes = tenant.disk_bytes,
        };
    }
    return quotas;
}

void kv_quotas_clear(const kvist_quota_t *quotas, uint32_t count)
{
    for (uint32_t i = 0; quotas != NULL && i < count; i++) {
        free((void *)(uintptr_t)quotas[i].tenant);
    }
    free((void *)(uintptr_t)quotas);
}
