/* The store whose tiers this process holds: what kvist.h promises, by name. Only the table
 * (KV_EMBEDDED_OPS), and a store that is built on this one, call these. */
#ifndef KV_KVSTORE_EMBEDDED_H
#define KV_KVSTORE_EMBEDDED_H

#include "kvstore/kvist.h"
#include "kvstore/objects/arena.h"

void kv_embedded_store_close(kvist_store_t *store);
int kv_embedded_store_fd(const kvist_store_t *store);
void kv_embedded_store_poll(kvist_store_t *store);
void kv_embedded_store_flush(
    kvist_store_t *store, void (*done)(void *context, kv_status_t status), void *context);
kv_status_t kv_embedded_match(kvist_store_t *store, const kvist_query_t *query,
    kvist_lease_t **lease_out, kvist_match_t *match_out);
size_t kv_embedded_lease_runs(const kvist_lease_t *lease, kvist_run_t *runs_out, size_t count_max);
kv_status_t kv_embedded_lease_load(kvist_lease_t *lease, const kvist_selection_t *selection,
    const kvist_piece_t *pieces, size_t piece_count, kvist_loaded_t done, void *context);
kv_status_t kv_embedded_lease_store(kvist_lease_t *lease, const kvist_put_t *put,
    const kvist_piece_t *pieces, size_t piece_count, kvist_stored_t done, void *context);
kv_status_t kv_embedded_lease_prepare(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, void *context);
kv_status_t kv_embedded_lease_prepare_layers(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, kvist_layers_t layers, void *context);
bool kv_embedded_lease_is_loading(const kvist_lease_t *lease);
const uint32_t *kv_embedded_lease_slots(const kvist_lease_t *lease);
uint32_t kv_embedded_lease_sealed_count(const kvist_lease_t *lease);
kv_status_t kv_embedded_lease_seal(
    kvist_lease_t *lease, const uint32_t *tokens, const kvist_key_t *extra, const char *arithmetic);
const char *kv_embedded_lease_arithmetic(const kvist_lease_t *lease, uint32_t block);
void kv_embedded_lease_release(kvist_lease_t *lease);
kv_status_t kv_embedded_store_keep(
    kvist_store_t *store, const kvist_key_t *key, const kvist_terms_t *terms);
bool kv_embedded_store_promise(kvist_store_t *store, const kvist_key_t *key,
    const kvist_terms_t *terms, kvist_promised_t done, void *context, kvist_promise_t *promise_out);
void kv_embedded_store_spill(
    kvist_store_t *store, const kvist_key_t *key, kvist_spilled_t done, void *context);
kv_status_t kv_embedded_store_drop(
    kvist_store_t *store, const kvist_key_t *key, bool erase, kvist_dropped_t done, void *context);
kv_status_t kv_embedded_store_drop_tenant(
    kvist_store_t *store, const char *tenant, kvist_dropped_t done, void *context);
kv_status_t kv_embedded_store_verify(kvist_store_t *store,
    void (*progress)(void *context, const kvist_verify_t *state),
    void (*done)(void *context, kv_status_t status, const kvist_verify_t *state), void *context);
kv_status_t kv_embedded_store_set_disk_bytes(
    kvist_store_t *store, uint64_t disk_bytes, kv_error_t *error);
kv_status_t kv_embedded_store_set_quota(
    kvist_store_t *store, const kvist_quota_t *quota, kv_error_t *error);
void kv_embedded_store_tenants(const kvist_store_t *store,
    void (*visit)(void *context, const kvist_tenant_t *tenant), void *context);
void kv_embedded_store_stats(const kvist_store_t *store, kvist_stats_t *stats_out);
kv_status_t kv_embedded_store_find(
    const kvist_store_t *store, const char *digits, kvist_key_t *key_out, kv_error_t *error);
kv_status_t kv_embedded_store_show(
    const kvist_store_t *store, const kvist_key_t *key, kvist_object_t *object_out);
void kv_embedded_store_list(const kvist_store_t *store, size_t count_max,
    void (*visit)(void *context, const kvist_context_t *entry), void *context);
void kv_embedded_store_describe(kvist_store_t *store, const kvist_namespace_params_t *params);
kv_status_t kv_embedded_why(
    kvist_store_t *store, const kvist_why_query_t *query, kvist_why_t *why_out);
kv_status_t kv_embedded_store_tokens(
    kvist_store_t *store, const kvist_key_t *key, uint32_t *tokens_out, kvist_key_t *extra_out);
void kv_embedded_store_listen(kvist_store_t *store, kvist_changed_t changed, void *context);
bool kv_embedded_store_held(kvist_store_t *store, uint32_t *cursor, uint32_t object_count_max,
    kvist_changed_t visit, void *context);

/* The group's part of the host tier, to be handed to other processes (its plan and its descriptor);
 * NULL: there is none, or it is not shared. Lives as long as the store. */
const kv_arena_t *kv_embedded_store_arena(const kvist_store_t *store, uint32_t group);

#endif
