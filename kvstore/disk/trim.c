/* Tenants over their quota of the disk: blocks of their own leave it, by last use, leaves first.
 *
 *   over --(who goes next is not known)--> looking through the table, a part in each poll
 *     ^                                        |
 *     +-------- the next ones go <-------------+--(nothing may go)--> stuck for a second
 *
 * Looking finds as many as a sixteenth of the tenant's blocks at once, so that what a block costs
 * does not grow with the table. The place on disk is given back with its segment. */
#include "kvstore/tenants.h"

#include "base/memory.h"

#include <stdlib.h>

enum {
    LOOK_AT = 8192, /* objects, in one poll */
    FOUND_MIN = 64,
    FOUND_MAX = 16384,
    FOUND_SHARE = 16, /* of the tenant's blocks */
    STUCK_S = 1,
};

typedef struct {
    uint32_t object, used_s, position;
} found_t;

struct kv_trim {
    uint32_t next; /* object to look at */
    bool complete; /* found is all there is to be had; it is sorted */
    uint32_t count, capacity, at;
    bool any_left; /* some of found left the disk */
    found_t found[];
};

void kv_trim_destroy(kv_trim_t *trim)
{
    free(trim);
}

/* ---- who goes ---- */

/* Used longest ago; of one chain that was used at one time, the last first. */
static bool goes_before(const found_t *left, const found_t *right)
{
    return left->used_s != right->used_s ? left->used_s < right->used_s
                                         : left->position > right->position;
}

static int by_turn(const void *left, const void *right)
{
    return goes_before(left, right) ? -1 : goes_before(right, left);
}

/* A heap: what goes last of those that were found is at its top. */
static void sift_down(kv_trim_t *trim, uint32_t at)
{
    for (;;) {
        uint32_t last = at;
        for (uint32_t child = 2 * at + 1; child <= 2 * at + 2 && child < trim->count; child++) {
            last = goes_before(&trim->found[last], &trim->found[child]) ? child : last;
        }
        if (last == at) {
            return;
        }
        found_t moved = trim->found[at];
        trim->found[at] = trim->found[last];
        trim->found[last] = moved;
        at = last;
    }
}

static void note_found(kv_trim_t *trim, found_t found)
{
    if (trim->count < trim->capacity) {
        trim->found[trim->count++] = found;
        for (uint32_t at = trim->count / 2; trim->count == trim->capacity && at-- > 0;) {
            sift_down(trim, at);
        }
    } else if (goes_before(&found, &trim->found[0])) {
        trim->found[0] = found;
        sift_down(trim, 0);
    }
}

static bool is_own(const kvist_store_t *store, const kv_object_t *object, uint32_t tenant)
{
    return (object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) == KV_OBJECT_USED &&
           kv_object_on_disk(object) && kv_object_family(store, object)->tenant == tenant;
}

static bool may_go(const kvist_store_t *store, const kv_object_t *object)
{
    return object->reference_count == 0 && (object->flags & KV_OBJECT_BUSY) == 0 &&
           object->pin_until_s <= kv_store_now_s(store);
}

/* Nothing on disk goes on from it; from a block that is only there, nothing at all. */
static bool is_leaf(const kvist_store_t *store, const kv_object_t *object)
{
    bool in_memory = kv_object_on_device(store, object) || kv_object_on_host(object);
    return in_memory ? !kv_object_has_child_on_disk(store, object)
                     : object->first_child == KV_OBJECT_NONE;
}

/* ---- looking ---- */

static void begin(kv_tenant_t *tenant)
{
    uint64_t count = tenant->disk_objects / FOUND_SHARE;
    count = count < FOUND_MIN ? FOUND_MIN : count < FOUND_MAX ? count : FOUND_MAX;
    kv_trim_destroy(tenant->trim);
    tenant->trim = kv_allocate(sizeof *tenant->trim + count * sizeof tenant->trim->found[0]);
    tenant->trim->capacity = (uint32_t)count;
}

static void look(kvist_store_t *store, kv_trim_t *trim, uint32_t tenant)
{
    uint32_t bound = kv_table_bound(store->table);
    uint32_t end = bound - trim->next < LOOK_AT ? bound : trim->next + LOOK_AT;
    for (; trim->next < end; trim->next++) {
        const kv_object_t *object = kv_table_at(store->table, trim->next);
        if (is_own(store, object, tenant) && may_go(store, object) && is_leaf(store, object)) {
            note_found(trim, (found_t){trim->next, object->used_s, object->position});
        }
    }
    if (trim->next == bound) {
        qsort(trim->found, trim->count, sizeof trim->found[0], by_turn);
        trim->complete = true;
    }
}

/* ---- going ---- */

static void leave_disk(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    store->stats.tiers[KVIST_TIER_DISK].evicted_objects++;
    kv_why_make_room_on_disk(store, number);
    if (kv_object_on_device(store, object) || kv_object_on_host(object)) {
        object->disk_flags |= KV_DISK_GIVEN_UP;
        kv_object_leave_disk(store, number);
    } else {
        kv_object_drop(store, number, KV_GONE_FROM_DISK);
    }
}

/* The next one that was found leaves the disk, if it still may; and so does what it goes on from,
 * as far as that goes before the one that was found next. */
static void give_up(kvist_store_t *store, kv_tenant_t *tenant, uint32_t number)
{
    kv_trim_t *trim = tenant->trim;
    const found_t *found = &trim->found[trim->at++];
    const found_t *next = trim->at < trim->count ? &trim->found[trim->at] : NULL;
    found_t at = *found;
    while (at.object != KV_OBJECT_NONE && tenant->disk_bytes > tenant->disk_quota_bytes) {
        const kv_object_t *object = kv_table_at(store->table, at.object);
        bool changed = at.object == found->object && object->used_s != found->used_s;
        if (changed || !is_own(store, object, number) || !may_go(store, object) ||
            !is_leaf(store, object)) {
            return;
        }
        uint32_t parent = object->parent;
        leave_disk(store, at.object);
        trim->any_left = true;
        at.object = parent;
        if (parent != KV_OBJECT_NONE) {
            object = kv_table_at(store->table, parent);
            at = (found_t){parent, object->used_s, object->position};
        }
        if (next != NULL && !goes_before(&at, next)) {
            return;
        }
    }
}

/* One tenant. true: it is still over its quota, and something can be done at once. */
static bool trim_one(kvist_store_t *store, uint32_t number)
{
    kv_tenant_t *tenant = kv_tenants_at(store, number);
    if (tenant->trim == NULL || tenant->trim->at == tenant->trim->count) {
        bool ended = tenant->trim != NULL && tenant->trim->complete;
        if (ended && !tenant->trim->any_left) {
            tenant->stuck_until_s = kv_store_now_s(store) + STUCK_S;
            kv_trim_destroy(tenant->trim);
            tenant->trim = NULL;
            return false;
        }
        if (tenant->trim == NULL || ended) {
            begin(tenant);
        }
    }
    kv_trim_t *trim = tenant->trim;
    if (!trim->complete) {
        look(store, trim, number);
    }
    while (
        trim->complete && trim->at < trim->count && tenant->disk_bytes > tenant->disk_quota_bytes) {
        give_up(store, tenant, number);
    }
    return tenant->disk_bytes > tenant->disk_quota_bytes;
}

void kv_trim_advance(kvist_store_t *store)
{
    kv_tenants_t *tenants = store->accounts;
    bool over = false;
    if (kv_fill_busy(store)) {
        return; /* what goes on from a block is not all known */
    }
    for (uint32_t i = 0; i < tenants->count; i++) {
        const kv_tenant_t *tenant = &tenants->items[i];
        if (tenant->disk_quota_bytes == 0 || tenant->disk_bytes <= tenant->disk_quota_bytes) {
            continue;
        }
        over = true;
        if (tenant->stuck_until_s <= kv_store_now_s(store) && trim_one(store, i)) {
            kv_store_kick(store);
        }
    }
    tenants->disk_over = over;
}
