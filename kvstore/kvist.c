/* The public calls: each goes through its store's table. */
#include "kvstore/kvist.h"

#include "kvstore/store_ops.h"

static const kv_store_ops_t *store_ops(const kvist_store_t *store)
{
    return *(const kv_store_ops_t *const *)(const void *)store;
}

static const kv_store_ops_t *lease_ops(const kvist_lease_t *lease)
{
    return store_ops(*(kvist_store_t *const *)(const void *)lease);
}

void kvist_store_close(kvist_store_t *store)
{
    if (store != NULL) {
        store_ops(store)->close(store);
    }
}

int kvist_store_fd(const kvist_store_t *store)
{
    return store_ops(store)->fd(store);
}

void kvist_store_poll(kvist_store_t *store)
{
    store_ops(store)->poll(store);
}

void kvist_store_flush(
    kvist_store_t *store, void (*done)(void *context, kv_status_t status), void *context)
{
    store_ops(store)->flush(store, done, context);
}

kv_status_t kvist_match(kvist_store_t *store, const kvist_query_t *query, kvist_lease_t **lease_out,
    kvist_match_t *match_out)
{
    return store_ops(store)->match(store, query, lease_out, match_out);
}

size_t kvist_lease_runs(const kvist_lease_t *lease, kvist_run_t *runs_out, size_t count_max)
{
    return lease_ops(lease)->runs(lease, runs_out, count_max);
}

kv_status_t kvist_lease_load(kvist_lease_t *lease, const kvist_selection_t *selection,
    const kvist_piece_t *pieces, size_t piece_count, kvist_loaded_t done, void *context)
{
    return lease_ops(lease)->load(lease, selection, pieces, piece_count, done, context);
}

kv_status_t kvist_lease_store(kvist_lease_t *lease, const kvist_put_t *put,
    const kvist_piece_t *pieces, size_t piece_count, kvist_stored_t done, void *context)
{
    return lease_ops(lease)->store(lease, put, pieces, piece_count, done, context);
}

kv_status_t kvist_lease_prepare(kvist_lease_t *lease, uint32_t slot_count, uint64_t deadline_ns,
    kvist_prepared_t done, void *context)
{
    return lease_ops(lease)->prepare(lease, slot_count, deadline_ns, done, context);
}

kv_status_t kvist_lease_prepare_layers(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, kvist_layers_t layers, void *context)
{
    const kv_store_ops_t *ops = lease_ops(lease);
    return ops->prepare_layers != NULL
               ? ops->prepare_layers(lease, slot_count, deadline_ns, done, layers, context)
               : ops->prepare(lease, slot_count, deadline_ns, done, context);
}

bool kvist_lease_is_loading(const kvist_lease_t *lease)
{
    const kv_store_ops_t *ops = lease_ops(lease);
    return ops->is_loading != NULL && ops->is_loading(lease);
}

const uint32_t *kvist_lease_slots(const kvist_lease_t *lease)
{
    return lease_ops(lease)->slots(lease);
}

uint32_t kvist_lease_sealed_count(const kvist_lease_t *lease)
{
    return lease_ops(lease)->sealed_count(lease);
}

kv_status_t kvist_lease_seal(
    kvist_lease_t *lease, const uint32_t *tokens, const kvist_key_t *extra, const char *arithmetic)
{
    return lease_ops(lease)->seal(lease, tokens, extra, arithmetic);
}

const char *kvist_lease_arithmetic(const kvist_lease_t *lease, uint32_t block)
{
    return lease_ops(lease)->arithmetic(lease, block);
}

void kvist_lease_release(kvist_lease_t *lease)
{
    lease_ops(lease)->release(lease);
}

kv_status_t kvist_store_keep(
    kvist_store_t *store, const kvist_key_t *key, const kvist_terms_t *terms)
{
    return store_ops(store)->keep(store, key, terms);
}

bool kvist_store_promise(kvist_store_t *store, const kvist_key_t *key, const kvist_terms_t *terms,
    kvist_promised_t done, void *context, kvist_promise_t *promise_out)
{
    return store_ops(store)->promise(store, key, terms, done, context, promise_out);
}

void kvist_store_spill(
    kvist_store_t *store, const kvist_key_t *key, kvist_spilled_t done, void *context)
{
    store_ops(store)->spill(store, key, done, context);
}

kv_status_t kvist_store_drop(
    kvist_store_t *store, const kvist_key_t *key, bool erase, kvist_dropped_t done, void *context)
{
    return store_ops(store)->drop(store, key, erase, done, context);
}

kv_status_t kvist_store_drop_tenant(
    kvist_store_t *store, const char *tenant, kvist_dropped_t done, void *context)
{
    return store_ops(store)->drop_tenant(store, tenant, done, context);
}

kv_status_t kvist_store_verify(kvist_store_t *store,
    void (*progress)(void *context, const kvist_verify_t *state),
    void (*done)(void *context, kv_status_t status, const kvist_verify_t *state), void *context)
{
    return store_ops(store)->verify(store, progress, done, context);
}

kv_status_t kvist_store_set_disk_bytes(kvist_store_t *store, uint64_t disk_bytes, kv_error_t *error)
{
    return store_ops(store)->set_disk_bytes(store, disk_bytes, error);
}

kv_status_t kvist_store_set_quota(
    kvist_store_t *store, const kvist_quota_t *quota, kv_error_t *error)
{
    return store_ops(store)->set_quota(store, quota, error);
}

void kvist_store_tenants(const kvist_store_t *store,
    void (*visit)(void *context, const kvist_tenant_t *tenant), void *context)
{
    store_ops(store)->tenants(store, visit, context);
}

void kvist_store_stats(const kvist_store_t *store, kvist_stats_t *stats_out)
{
    store_ops(store)->stats(store, stats_out);
}

const char *kvist_store_attached_to(const kvist_store_t *store)
{
    const kv_store_ops_t *ops = store_ops(store);
    return ops->attached_to != NULL ? ops->attached_to(store) : NULL;
}

kv_status_t kvist_store_find(
    const kvist_store_t *store, const char *digits, kvist_key_t *key_out, kv_error_t *error)
{
    return store_ops(store)->find(store, digits, key_out, error);
}

kv_status_t kvist_store_show(
    const kvist_store_t *store, const kvist_key_t *key, kvist_object_t *object_out)
{
    return store_ops(store)->show(store, key, object_out);
}

void kvist_store_list(const kvist_store_t *store, size_t count_max,
    void (*visit)(void *context, const kvist_context_t *entry), void *context)
{
    store_ops(store)->list(store, count_max, visit, context);
}

void kvist_store_describe(kvist_store_t *store, const kvist_namespace_params_t *params)
{
    store_ops(store)->describe(store, params);
}

kv_status_t kvist_why(kvist_store_t *store, const kvist_why_query_t *query, kvist_why_t *why_out)
{
    return store_ops(store)->why(store, query, why_out);
}

kv_status_t kvist_store_tokens(
    kvist_store_t *store, const kvist_key_t *key, uint32_t *tokens_out, kvist_key_t *extra_out)
{
    return store_ops(store)->tokens(store, key, tokens_out, extra_out);
}

void kvist_store_listen(kvist_store_t *store, kvist_changed_t changed, void *context)
{
    store_ops(store)->listen(store, changed, context);
}

bool kvist_store_held(kvist_store_t *store, uint32_t *cursor, uint32_t object_count_max,
    kvist_changed_t visit, void *context)
{
    return store_ops(store)->held(store, cursor, object_count_max, visit, context);
}
