#include "kvstore/disk/budget.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { REMEMBERED_MAX = 1 << 16, LOW_SHARE = 4 };
#define DAY_NS (86400.0 * KV_NS_PER_S)

struct kv_budget {
    uint64_t bytes_per_day;
    double left_bytes;                   /* then; a short time brings less than a byte */
    uint64_t at_ns;                      /* unix */
    uint64_t promised_count;             /* objects that are admitted and not on disk yet */
    uint64_t remembered[REMEMBERED_MAX]; /* the keys' first bytes, each at its own place; 0: none */
};

static kv_budget_t *budget_of(const kvist_store_t *store)
{
    return store->disk != NULL ? store->disk->budget : NULL;
}

/* ---- the bucket ---- */

static double left_now(const kv_budget_t *budget, uint64_t now_ns)
{
    double most = (double)budget->bytes_per_day;
    double passed_ns = now_ns > budget->at_ns ? (double)(now_ns - budget->at_ns) : 0;
    double left = budget->left_bytes + most * (passed_ns / DAY_NS);
    return left < most ? left : most;
}

/* A clock that was set back takes nothing away. */
static void fill_up(kvist_store_t *store, kv_budget_t *budget)
{
    uint64_t now_ns = store->clock->unix_ns(store->clock);
    budget->left_bytes = left_now(budget, now_ns);
    budget->at_ns = now_ns;
}

void kv_budget_open(kvist_store_t *store, uint64_t bytes_per_day)
{
    if (bytes_per_day == 0) {
        return;
    }
    kv_budget_t *budget = kv_allocate(sizeof *budget);
    budget->bytes_per_day = bytes_per_day;
    budget->left_bytes = (double)bytes_per_day;
    budget->at_ns = store->clock->unix_ns(store->clock);
    store->disk->budget = budget;
}

void kv_budget_close(kvist_store_t *store)
{
    free(store->disk->budget);
    store->disk->budget = NULL;
}

void kv_budget_restore(kvist_store_t *store, const kv_budget_entry_t *entry)
{
    kv_budget_t *budget = budget_of(store);
    if (budget == NULL) {
        return;
    }
    double left = (double)entry->left_bytes;
    budget->left_bytes = left < budget->left_bytes ? left : budget->left_bytes;
    budget->at_ns = entry->unix_ns < budget->at_ns ? entry->unix_ns : budget->at_ns;
}

void kv_budget_note(kvist_store_t *store)
{
    kv_budget_t *budget = budget_of(store);
    if (budget != NULL) {
        fill_up(store, budget);
        kv_budget_entry_put(&store->disk->filling,
            &(kv_budget_entry_t){(int64_t)budget->left_bytes, budget->at_ns});
    }
}

void kv_budget_spend(kvist_store_t *store, uint64_t bytes)
{
    kv_budget_t *budget = budget_of(store);
    store->stats.segment_written_bytes += bytes;
    if (budget != NULL) {
        fill_up(store, budget);
        budget->left_bytes -= (double)bytes;
    }
}

/* ---- what was refused ---- */

static uint64_t digest(const kvist_key_t *key)
{
    uint64_t value;
    memcpy(&value, key->bytes, sizeof value);
    return value != 0 ? value : 1;
}

void kv_budget_object_gone(kvist_store_t *store, const kv_object_t *object)
{
    kv_budget_t *budget = budget_of(store);
    if (budget != NULL && (object->disk_flags & KV_DISK_REFUSED) != 0 &&
        !kv_object_expired(object, kv_store_now_s(store))) {
        uint64_t value = digest(&object->key);
        budget->remembered[value % REMEMBERED_MAX] = value;
    }
}

bool kv_budget_remembers(const kvist_store_t *store, const kvist_key_t *key)
{
    const kv_budget_t *budget = budget_of(store);
    uint64_t value = digest(key);
    return budget != NULL && budget->remembered[value % REMEMBERED_MAX] == value;
}

void kv_budget_object_new(kvist_store_t *store, kv_object_t *object)
{
    if (kv_budget_remembers(store, &object->key)) {
        object->disk_flags |= KV_DISK_ASKED;
        budget_of(store)->remembered[digest(&object->key) % REMEMBERED_MAX] = 0;
    }
}

/* ---- who is admitted ---- */

static bool is_admitted(const kvist_store_t *store, uint32_t number)
{
    return (kv_table_at(store->table, number)->disk_flags & KV_DISK_ADMITTED) != 0;
}

static void admit(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    object->disk_flags |= KV_DISK_ADMITTED;
    object->disk_flags &= ~KV_DISK_REFUSED;
    store->disk->budget->promised_count++;
}

void kv_budget_settle(kvist_store_t *store, const kv_object_t *object)
{
    kv_budget_t *budget = budget_of(store);
    if (budget != NULL && (object->disk_flags & KV_DISK_ADMITTED) != 0) {
        budget->promised_count--;
    }
}

/* What goes on from it would be lost with it. */
static bool has_admitted_child(const kvist_store_t *store, const kv_object_t *object)
{
    uint32_t child = object->first_child;
    while (child != KV_OBJECT_NONE && !is_admitted(store, child)) {
        child = kv_table_at(store->table, child)->next_sibling;
    }
    return child != KV_OBJECT_NONE;
}

/* Stored behind a block whose chain was refused a moment ago. One that was refused itself is judged
 * anew: much may have come back since. */
static bool follows_refused(const kvist_store_t *store, const kv_object_t *object)
{
    return object->parent != KV_OBJECT_NONE &&
           (object->disk_flags & (KV_DISK_REFUSED | KV_DISK_ASKED)) == 0 &&
           (kv_table_at(store->table, object->parent)->disk_flags & KV_DISK_REFUSED) != 0;
}

/* Stored behind an admitted block that nobody has asked for since: by the same request. */
static bool continues(const kvist_store_t *store, const kv_object_t *object)
{
    return object->parent != KV_OBJECT_NONE &&
           (kv_table_at(store->table, object->parent)->disk_flags &
               (KV_DISK_ADMITTED | KV_DISK_ASKED)) == KV_DISK_ADMITTED;
}

/* Whether there is room for all of the chain, up to here, that is not admitted yet. */
static bool has_room(kvist_store_t *store, uint32_t number)
{
    kv_budget_t *budget = store->disk->budget;
    const kv_object_t *object = kv_table_at(store->table, number);
    fill_up(store, budget);
    double record = (double)store->record_bytes_max;
    double room = budget->left_bytes - (double)budget->promised_count * record;
    if ((object->disk_flags & KV_DISK_ASKED) == 0 && !continues(store, object)) {
        room -= (double)budget->bytes_per_day / LOW_SHARE;
    }
    for (uint32_t at = number; at != KV_OBJECT_NONE && !is_admitted(store, at) && room >= 0;
         at = kv_table_at(store->table, at)->parent) {
        room -= record;
    }
    return room >= 0;
}

bool kv_budget_admits(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    if (budget_of(store) == NULL || is_admitted(store, number)) {
        return true;
    }
    if (object->pin_until_s > kv_store_now_s(store) || has_admitted_child(store, object)) {
        admit(store, number);
        return true;
    }
    if (follows_refused(store, object) || !has_room(store, number)) {
        store->stats.not_admitted_objects += (object->disk_flags & KV_DISK_REFUSED) == 0;
        object->disk_flags |= KV_DISK_REFUSED;
        return false;
    }
    for (uint32_t at = number; at != KV_OBJECT_NONE && !is_admitted(store, at);
         at = kv_table_at(store->table, at)->parent) {
        admit(store, at);
    }
    return true;
}

/* ---- figures ---- */

void kv_budget_stats(const kvist_store_t *store, kvist_stats_t *stats)
{
    const kv_budget_t *budget = budget_of(store);
    if (budget != NULL) {
        double left = left_now(budget, store->clock->unix_ns(store->clock));
        stats->write_budget_bytes = budget->bytes_per_day;
        stats->write_left_bytes = left > 0 ? (uint64_t)left : 0;
    }
}
