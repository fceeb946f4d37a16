#include "holder/store_admin.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/memory.h"
#include "holder/holder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_TEXT_BYTES = 2 * KVIST_KEY_BYTES + 1, LIST_DEFAULT = 100, LIST_MAX = 10000 };

/* A node that is attached is of one domain. */
static bool is_of_domain(const kv_holder_t *holder, const char *domain)
{
    const kv_options_t *options = holder->options;
    return options->store.attach[0] != '\0' && strcmp(options->store.domain, domain) == 0;
}

kvist_store_t *kv_store_admin_store(
    void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    const kv_holder_t *holder = context;
    const kv_holder_owner_t *owner = &holder->owner;
    kvist_store_t *store = holder->store;
    if (request->domain[0] != '\0' && !is_of_domain(holder, request->domain)) {
        store =
            owner->store_named != NULL ? owner->store_named(owner->context, request->domain) : NULL;
    }
    if (store == NULL) {
        kv_admin_fail(call, KV_MISSING,
            request->domain[0] != '\0'
                ? "no such domain, or no client has attached to it yet: kvist status shows them"
                : "the store is not open: no client has attached to it yet");
    }
    return store;
}

const char *kv_priority_name(kvist_priority_t priority)
{
    static const char *const NAMES[KVIST_PRIORITY_COUNT] = {"interactive", "batch", "background"};
    return (unsigned)priority < KVIST_PRIORITY_COUNT ? NAMES[priority] : "unknown";
}

/* ---- list ---- */

typedef struct {
    Kvist__Admin__Context entry;
    kvist_context_t from; /* holds the texts */
    char key[KEY_TEXT_BYTES];
} listed_t;

typedef struct {
    listed_t *items;
    size_t count;
} listing_t;

static void list_context(void *context, const kvist_context_t *from)
{
    listing_t *listing = context;
    listed_t *item = &listing->items[listing->count++];
    item->from = *from;
    kv_hex_encode(from->key.bytes, KVIST_KEY_BYTES, item->key);
    kvist__admin__context__init(&item->entry);
    item->entry.key = item->key;
    item->entry.token_count = from->token_count;
    item->entry.bytes = from->bytes;
    item->entry.tier = (char *)kvist_tier_name(from->tier);
    item->entry.used_unix_ns = from->used_unix_ns;
    item->entry.expires_unix_ns = from->expires_unix_ns;
    item->entry.pin_until_unix_ns = from->pin_until_unix_ns;
    item->entry.priority = (char *)kv_priority_name(from->priority);
    item->entry.origin = item->from.origin;
    item->entry.tenant = item->from.tenant;
}

static void on_list(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    kvist_store_t *store = kv_store_admin_store(context, request, call);
    if (store == NULL) {
        return;
    }
    size_t wanted = request->list->count_max > 0 ? request->list->count_max : LIST_DEFAULT;
    size_t count = wanted < LIST_MAX ? wanted : LIST_MAX;
    listing_t listing = {kv_allocate_array(count, sizeof *listing.items), 0};
    kvist_store_list(store, count, list_context, &listing);
    Kvist__Admin__Context **pointers = kv_allocate_array(count, sizeof(Kvist__Admin__Context *));
    for (size_t i = 0; i < listing.count; i++) {
        pointers[i] = &listing.items[i].entry;
    }
    Kvist__Admin__List list = KVIST__ADMIN__LIST__INIT;
    list.n_contexts = listing.count;
    list.contexts = pointers;
    list.total = listing.count;
    kv_admin_reply_list(call, &list);
    free(listing.items);
    free(pointers);
}

/* ---- flush ---- */

static void flushed(void *context, kv_status_t status)
{
    kv_admin_call_t *call = context;
    if (status == KV_OK) {
        kv_admin_reply_done(call);
    } else {
        kv_admin_fail(call, status, "not everything could be made durable; see the node's log");
    }
}

static void on_flush(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    kvist_store_t *store = kv_store_admin_store(context, request, call);
    if (store != NULL) {
        kvist_store_flush(store, flushed, call);
    }
}

/* ---- one block ---- */

/* The key that the text means; false: the call has been answered with why there is none. */
static bool find_key(
    kvist_store_t *store, const char *text, kv_admin_call_t *call, kvist_key_t *key_out)
{
    kv_error_t error;
    kv_status_t status = kvist_store_find(store, text, key_out, &error);
    if (status != KV_OK) {
        kv_admin_fail(call, status, error.text);
    }
    return status == KV_OK;
}

static void reply_object(kvist_store_t *store, const kvist_key_t *key, kv_admin_call_t *call)
{
    kvist_object_t from;
    if (kvist_store_show(store, key, &from) != KV_OK) {
        kv_admin_fail(call, KV_MISSING, "the block is no longer stored");
        return;
    }
    char key_text[KEY_TEXT_BYTES], parent[KEY_TEXT_BYTES], name_space[KEY_TEXT_BYTES];
    kv_hex_encode(from.key.bytes, KVIST_KEY_BYTES, key_text);
    kv_hex_encode(from.parent.bytes, KVIST_KEY_BYTES, parent);
    kv_hex_encode(from.name_space.bytes, KVIST_KEY_BYTES, name_space);
    char *tiers[KVIST_TIER_COUNT];
    Kvist__Admin__Object object = KVIST__ADMIN__OBJECT__INIT;
    object.key = key_text;
    object.parent = parent;
    object.name_space = name_space;
    object.position = from.position;
    object.token_count = from.token_count;
    object.children = from.children;
    object.groups = from.groups;
    object.tiers = tiers;
    for (int tier = 0; tier < KVIST_TIER_COUNT; tier++) {
        if (from.tiers[tier]) {
            tiers[object.n_tiers++] = (char *)kvist_tier_name((kvist_tier_t)tier);
        }
    }
    object.bytes = from.bytes;
    object.segment = from.segment;
    object.segment_offset = from.segment_offset;
    object.stored_bytes = from.stored_bytes;
    object.created_unix_ns = from.created_unix_ns;
    object.used_unix_ns = from.used_unix_ns;
    object.expires_unix_ns = from.expires_unix_ns;
    object.pin_until_unix_ns = from.pin_until_unix_ns;
    object.priority = (char *)kv_priority_name(from.priority);
    object.leases = from.leases;
    object.origin = from.origin;
    object.tenant = from.tenant;
    object.arithmetic = from.arithmetic;
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    reply.body_case = KVIST__ADMIN__REPLY__BODY_OBJECT;
    reply.object = &object;
    kv_admin_reply(call, &reply);
}

static void on_show(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    kvist_store_t *store = kv_store_admin_store(context, request, call);
    kvist_key_t key;
    if (store != NULL && find_key(store, request->show->key, call, &key)) {
        reply_object(store, &key, call);
    }
}

/* ---- drop ---- */

static const char *why_not_dropped(kv_status_t status)
{
    switch (status) {
    case KV_MISSING:
        return "the block is no longer stored";
    case KV_BUSY:
        return "a request is using the block or one that goes on from it, or a disk is missing "
               "that "
               "could bring it back: drop it again later";
    case KV_PEER_LOST:
        return "the kvist-store that this node is attached to does not answer: drop it again when "
               "it is back";
    default:
        return "dropped from memory, but not durably: the disk refuses writes (see the node's "
               "log); a restart may bring the blocks back: drop them again then";
    }
}

static void dropped(void *context, kv_status_t status, uint64_t object_count)
{
    kv_admin_call_t *call = context;
    if (status != KV_OK) {
        kv_admin_fail(call, status, why_not_dropped(status));
        return;
    }
    Kvist__Admin__Dropped body = KVIST__ADMIN__DROPPED__INIT;
    body.object_count = object_count;
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    reply.body_case = KVIST__ADMIN__REPLY__BODY_DROPPED;
    reply.dropped = &body;
    kv_admin_reply(call, &reply);
}

static void drop_tenant(kvist_store_t *store, const char *tenant, kv_admin_call_t *call)
{
    char text[160];
    kv_status_t status = kvist_store_drop_tenant(store, tenant, dropped, call);
    if (status == KV_BUSY) {
        kv_admin_fail(call, status,
            "a disk of the store is missing, and could bring blocks back: start the node with all "
            "of them");
    } else if (status == KV_INVALID) {
        snprintf(text, sizeof text, "the tenant's name is too long: at most %d bytes",
            KVIST_TENANT_BYTES_MAX);
        kv_admin_fail(call, status, text);
    } else if (status != KV_OK) {
        kv_admin_fail(call, status, "nothing is stored of this tenant, and it has no key");
    }
}

static void on_drop(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    kvist_store_t *store = kv_store_admin_store(context, request, call);
    kvist_key_t key;
    if (store != NULL && request->drop->of_tenant) {
        drop_tenant(store, request->drop->tenant, call);
        return;
    }
    if (store == NULL || !find_key(store, request->drop->key, call, &key)) {
        return;
    }
    kv_status_t status = kvist_store_drop(store, &key, request->drop->erase, dropped, call);
    if (status == KV_BUSY) {
        kv_admin_fail(call, status,
            "a request is using the block or one that goes on from it: erase it when that has "
            "ended, or drop it without erasing");
    } else if (status != KV_OK) {
        kv_admin_fail(call, status, why_not_dropped(status));
    }
}

/* ---- pin ---- */

/* A pin that waits to be durable. */
typedef struct {
    kvist_store_t *store;
    kvist_key_t key;
    kv_admin_call_t *call;
} pinning_t;

static void pinned(void *context, kv_status_t status)
{
    pinning_t *pinning = context;
    if (status == KV_OK || status == KV_MISSING) { /* missing: there is no disk to write it to */
        reply_object(pinning->store, &pinning->key, pinning->call);
    } else {
        kv_admin_fail(pinning->call, status,
            "in force now, but a restart forgets it: it could not be made durable (see the node's "
            "log)");
    }
    free(pinning);
}

static void refuse_pin(
    kv_status_t status, const kvist_object_t *object, uint64_t until_ns, kv_admin_call_t *call)
{
    if (status == KV_NO_SPACE) {
        kv_admin_fail(call, status,
            "pins would take more than nine tenths of the store: remove other pins (kvist ls shows "
            "them) or raise the quota (kvist quota)");
    } else if (status == KV_BUSY) {
        kv_admin_fail(call, status, "the store has not read its whole index yet: ask again");
    } else if (object->expires_unix_ns != 0 && until_ns > object->expires_unix_ns) {
        kv_admin_fail(call, status, "the block expires before that: pin it for a shorter time");
    } else {
        kv_admin_fail(call, status, "the time has passed already: name a later one");
    }
}

static void on_pin(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    kvist_store_t *store = kv_store_admin_store(context, request, call);
    kvist_key_t key;
    if (store == NULL || !find_key(store, request->pin->key, call, &key)) {
        return;
    }
    kvist_object_t object;
    kv_status_t status = kvist_store_show(store, &key, &object);
    if (status != KV_OK) {
        kv_admin_fail(call, status, "the block is no longer stored");
        return;
    }
    kvist_terms_t terms = {
        .priority = object.priority,
        .expires_unix_ns = object.expires_unix_ns,
        .pin_until_unix_ns = request->pin->until_unix_ns,
    };
    status = kvist_store_keep(store, &key, &terms);
    if (status != KV_OK) {
        refuse_pin(status, &object, terms.pin_until_unix_ns, call);
        return;
    }
    pinning_t *pinning = kv_allocate(sizeof *pinning);
    *pinning = (pinning_t){store, key, call};
    kvist_store_flush(store, pinned, pinning);
}

/* ---- verify ---- */

static void verify_progress(void *context, const kvist_verify_t *state)
{
    ((kv_holder_t *)context)->verification.state = *state;
}

static void verify_done(void *context, kv_status_t status, const kvist_verify_t *state)
{
    kv_verification_t *verification = &((kv_holder_t *)context)->verification;
    verification->running = false;
    verification->status = status;
    verification->state = *state;
    verification->ended_ns = kv_clock_now_ns();
}

static void reply_verification(const kv_verification_t *verification, kv_admin_call_t *call)
{
    const kvist_verify_t *state = &verification->state;
    Kvist__Admin__Verification body = KVIST__ADMIN__VERIFICATION__INIT;
    body.running = verification->running;
    body.object_count = state->object_count;
    body.object_total = state->object_total;
    body.bytes = state->bytes;
    body.bytes_total = state->bytes_total;
    body.damaged_objects = state->damaged_objects;
    body.failed_objects = state->failed_objects;
    uint64_t until_ns = verification->running ? kv_clock_now_ns() : verification->ended_ns;
    body.elapsed_ns = until_ns - verification->begun_ns;
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    reply.body_case = KVIST__ADMIN__REPLY__BODY_VERIFICATION;
    reply.verification = &body;
    kv_admin_reply(call, &reply);
}

static void on_verify(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    kv_holder_t *holder = context;
    kv_verification_t *verification = &holder->verification;
    kvist_store_t *store = kv_store_admin_store(context, request, call);
    if (store == NULL) {
        return;
    }
    if (verification->running && verification->store != store) {
        kv_admin_fail(call, KV_BUSY, "another domain is being verified: ask again later");
        return;
    }
    if (request->verify->start && !verification->running) {
        kv_status_t status = kvist_store_verify(store, verify_progress, verify_done, holder);
        if (status != KV_OK) {
            kv_admin_fail(call, status, "another verification is under way: ask again later");
            return;
        }
        *verification =
            (kv_verification_t){.store = store, .running = true, .begun_ns = kv_clock_now_ns()};
    }
    if (verification->begun_ns == 0 || verification->store != store) {
        kv_admin_fail(call, KV_MISSING, "no verification was begun since the node started");
        return;
    }
    reply_verification(verification, call);
}

/* ---- quota ---- */

enum { TENANTS_MAX = 1000 };

typedef struct {
    Kvist__Admin__Tenant rows[TENANTS_MAX], *pointers[TENANTS_MAX];
    char names[TENANTS_MAX][KVIST_TENANT_BYTES_MAX + 1];
    size_t count;
    const char *wanted; /* whose quota is looked for; NULL: rows are made */
    kvist_quota_t quota;
} tenants_t;

static void visit_tenant(void *context, const kvist_tenant_t *tenant)
{
    tenants_t *tenants = context;
    const kvist_quota_t *quota = &tenant->quota;
    if (tenants->wanted != NULL) {
        if (strcmp(quota->tenant, tenants->wanted) == 0) {
            tenants->quota = *quota;
        }
        return;
    }
    uint64_t all = quota->host_bytes + quota->disk_bytes + tenant->bytes[KVIST_TIER_DEVICE] +
                   tenant->bytes[KVIST_TIER_HOST] + tenant->bytes[KVIST_TIER_DISK];
    if (all == 0 || tenants->count == TENANTS_MAX) {
        return;
    }
    Kvist__Admin__Tenant *row = &tenants->rows[tenants->count];
    char *name = tenants->names[tenants->count];
    kvist__admin__tenant__init(row);
    memcpy(name, quota->tenant, strlen(quota->tenant) + 1);
    row->name = name;
    row->host_quota_bytes = quota->host_bytes;
    row->disk_quota_bytes = quota->disk_bytes;
    row->device_bytes = tenant->bytes[KVIST_TIER_DEVICE];
    row->host_bytes = tenant->bytes[KVIST_TIER_HOST];
    row->disk_bytes = tenant->bytes[KVIST_TIER_DISK];
    row->pinned_bytes = tenant->pinned_bytes;
    tenants->pointers[tenants->count++] = row;
}

static kv_status_t set_tenant(
    kvist_store_t *store, const Kvist__Admin__TenantQuota *asked, kv_error_t *error)
{
    tenants_t *tenants = kv_allocate(sizeof *tenants);
    tenants->wanted = asked->name;
    kvist_store_tenants(store, visit_tenant, tenants);
    kvist_quota_t quota = tenants->quota;
    free(tenants);
    quota.tenant = asked->name;
    quota.host_bytes = asked->set_host ? asked->host_bytes : quota.host_bytes;
    quota.disk_bytes = asked->set_disk ? asked->disk_bytes : quota.disk_bytes;
    return kvist_store_set_quota(store, &quota, error);
}

static kv_status_t set_quotas(
    kvist_store_t *store, const Kvist__Admin__QuotaRequest *asked, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    if (asked->disk_bytes != 0) {
        status = kvist_store_set_disk_bytes(store, asked->disk_bytes, error);
    }
    if (status == KV_OK && asked->tenant != NULL) {
        status = set_tenant(store, asked->tenant, error);
    }
    return status;
}

static void on_quota(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    kvist_store_t *store = kv_store_admin_store(context, request, call);
    if (store == NULL) {
        return;
    }
    kv_error_t error;
    kv_status_t status = set_quotas(store, request->quota, &error);
    if (status != KV_OK) {
        kv_admin_fail(call, status, error.text);
        return;
    }
    tenants_t *tenants = kv_allocate(sizeof *tenants);
    kvist_store_tenants(store, visit_tenant, tenants);
    kvist_stats_t stats;
    kvist_store_stats(store, &stats);
    const kvist_tier_stats_t *disk = &stats.tiers[KVIST_TIER_DISK];
    Kvist__Admin__Quota body = KVIST__ADMIN__QUOTA__INIT;
    body.capacity_bytes = disk->capacity_bytes;
    body.used_bytes = disk->used_bytes;
    body.object_count = disk->object_count;
    body.pinned_bytes = stats.pinned_bytes;
    body.written_bytes = disk->written_bytes;
    body.write_budget_bytes = stats.write_budget_bytes;
    body.write_left_bytes = stats.write_left_bytes;
    body.segment_written_bytes = stats.segment_written_bytes;
    body.not_admitted_objects = stats.not_admitted_objects;
    body.tenants = tenants->pointers;
    body.n_tenants = tenants->count;
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    reply.body_case = KVIST__ADMIN__REPLY__BODY_QUOTA;
    reply.quota = &body;
    kv_admin_reply(call, &reply);
    free(tenants);
}

kv_admin_handlers_t kv_store_admin_handlers(void)
{
    return (kv_admin_handlers_t){
        .list = on_list,
        .flush = on_flush,
        .show = on_show,
        .drop = on_drop,
        .pin = on_pin,
        .verify = on_verify,
        .quota = on_quota,
    };
}
