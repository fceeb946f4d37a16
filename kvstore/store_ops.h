/* What a store is to its callers: a table of functions behind each call of kvist.h.
 *
 *   kvist.c      the public calls, which go through the table
 *   embedded     this process holds the tiers: KV_EMBEDDED_OPS (store.c)
 *   attach/      this host's kvist-store holds host and disk tier: KV_ATTACHED_OPS
 *
 * Every kind of store is a struct whose first member is its table, every kind of lease one whose
 * first member is its store.
 *
 * Threads, errors: kvist.h says them for each call; store_open has an entry of its own in each. */
#ifndef KV_KVSTORE_STORE_OPS_H
#define KV_KVSTORE_STORE_OPS_H

#include "kvstore/kvist.h"

typedef struct {
    void (*close)(kvist_store_t *store);
    int (*fd)(const kvist_store_t *store);
    void (*poll)(kvist_store_t *store);
    void (*flush)(
        kvist_store_t *store, void (*done)(void *context, kv_status_t status), void *context);

    kv_status_t (*match)(kvist_store_t *store, const kvist_query_t *query,
        kvist_lease_t **lease_out, kvist_match_t *match_out);
    size_t (*runs)(const kvist_lease_t *lease, kvist_run_t *runs_out, size_t count_max);
    kv_status_t (*load)(kvist_lease_t *lease, const kvist_selection_t *selection,
        const kvist_piece_t *pieces, size_t piece_count, kvist_loaded_t done, void *context);
    kv_status_t (*store)(kvist_lease_t *lease, const kvist_put_t *put, const kvist_piece_t *pieces,
        size_t piece_count, kvist_stored_t done, void *context);
    kv_status_t (*prepare)(kvist_lease_t *lease, uint32_t slot_count, uint64_t deadline_ns,
        kvist_prepared_t done, void *context);
    /* NULL: a lease is ready when all is there. */
    kv_status_t (*prepare_layers)(kvist_lease_t *lease, uint32_t slot_count, uint64_t deadline_ns,
        kvist_prepared_t done, kvist_layers_t layers, void *context);
    bool (*is_loading)(const kvist_lease_t *lease);
    const uint32_t *(*slots)(const kvist_lease_t *lease);
    uint32_t (*sealed_count)(const kvist_lease_t *lease);
    kv_status_t (*seal)(kvist_lease_t *lease, const uint32_t *tokens, const kvist_key_t *extra,
        const char *arithmetic);
    const char *(*arithmetic)(const kvist_lease_t *lease, uint32_t block);
    void (*release)(kvist_lease_t *lease);

    kv_status_t (*keep)(kvist_store_t *store, const kvist_key_t *key, const kvist_terms_t *terms);
    bool (*promise)(kvist_store_t *store, const kvist_key_t *key, const kvist_terms_t *terms,
        kvist_promised_t done, void *context, kvist_promise_t *promise_out);
    void (*spill)(
        kvist_store_t *store, const kvist_key_t *key, kvist_spilled_t done, void *context);
    kv_status_t (*drop)(kvist_store_t *store, const kvist_key_t *key, bool erase,
        kvist_dropped_t done, void *context);
    kv_status_t (*drop_tenant)(
        kvist_store_t *store, const char *tenant, kvist_dropped_t done, void *context);
    kv_status_t (*verify)(kvist_store_t *store,
        void (*progress)(void *context, const kvist_verify_t *state),
        void (*done)(void *context, kv_status_t status, const kvist_verify_t *state),
        void *context);
    kv_status_t (*set_disk_bytes)(kvist_store_t *store, uint64_t disk_bytes, kv_error_t *error);
    kv_status_t (*set_quota)(kvist_store_t *store, const kvist_quota_t *quota, kv_error_t *error);
    void (*tenants)(const kvist_store_t *store,
        void (*visit)(void *context, const kvist_tenant_t *tenant), void *context);

    void (*stats)(const kvist_store_t *store, kvist_stats_t *stats_out);
    const char *(*attached_to)(const kvist_store_t *store); /* NULL: never attached */
    kv_status_t (*find)(
        const kvist_store_t *store, const char *digits, kvist_key_t *key_out, kv_error_t *error);
    kv_status_t (*show)(
        const kvist_store_t *store, const kvist_key_t *key, kvist_object_t *object_out);
    void (*list)(const kvist_store_t *store, size_t count_max,
        void (*visit)(void *context, const kvist_context_t *entry), void *context);
    void (*describe)(kvist_store_t *store, const kvist_namespace_params_t *params);
    kv_status_t (*why)(kvist_store_t *store, const kvist_why_query_t *query, kvist_why_t *why_out);
    kv_status_t (*tokens)(
        kvist_store_t *store, const kvist_key_t *key, uint32_t *tokens_out, kvist_key_t *extra_out);
    void (*listen)(kvist_store_t *store, kvist_changed_t changed, void *context);
    bool (*held)(kvist_store_t *store, uint32_t *cursor, uint32_t object_count_max,
        kvist_changed_t visit, void *context);
} kv_store_ops_t;

extern const kv_store_ops_t KV_EMBEDDED_OPS, KV_ATTACHED_OPS;

#endif
