/* Leases: device slots, first come first served; callbacks; release. */
#include "kvstore/lease/lease_internal.h"

#include "base/check.h"
#include "base/memory.h"
#include "kvstore/embedded.h"

#include <stdlib.h>
#include <string.h>

/* ---- what load.c sees ---- */

uint32_t kv_lease_found_count(const kvist_lease_t *lease)
{
    return lease->found_count;
}

uint32_t kv_lease_object(const kvist_lease_t *lease, uint32_t block)
{
    return lease->objects[block];
}

void kv_lease_load_started(kvist_lease_t *lease)
{
    lease->loads_out++;
}

bool kv_lease_wants_layers(const kvist_lease_t *lease)
{
    return lease->layers != NULL;
}

bool kv_lease_keeps_slots(const kvist_lease_t *lease)
{
    return lease->early;
}

void kv_lease_set_layered(kvist_lease_t *lease, uint32_t load_count)
{
    lease->layered_out = load_count;
}

/* ---- layers that come after the answer ---- */

static void tell_news(kvist_lease_t *lease)
{
    kvist_lease_t **link = &lease->store->first_news;
    if (lease->news) {
        return;
    }
    while (*link != NULL) {
        link = &(*link)->next_news;
    }
    lease->news = true;
    lease->next_news = NULL;
    *link = lease;
    kv_store_kick(lease->store);
}

void kv_lease_layers_came(kvist_lease_t *lease, uint32_t layer_count, kv_status_t status)
{
    status = lease->layers_status == KV_OK ? status : lease->layers_status; /* the first cause */
    const bool more = layer_count > lease->layers_there || status != lease->layers_status;
    lease->layers_there = layer_count;
    lease->layers_status = status;
    if (lease->early && more) {
        tell_news(lease);
    }
}

/* ---- prepare ---- */

static void answer(kvist_lease_t *lease, kv_status_t status)
{
    kvist_store_t *store = lease->store;
    lease->state = KV_LEASE_ANSWERED;
    lease->status = status;
    lease->next = NULL;
    if (store->last_ready != NULL) {
        store->last_ready->next = lease;
    } else {
        store->first_ready = lease;
    }
    store->last_ready = lease;
    kv_store_kick(store);
}

static void enqueue(kvist_lease_t *lease, bool first)
{
    kvist_store_t *store = lease->store;
    kvist_lease_t **link = &store->first_waiting;
    while (!first && *link != NULL) {
        link = &(*link)->next;
    }
    lease->state = KV_LEASE_WAITING;
    lease->next = *link;
    *link = lease;
}

static void dequeue(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    kvist_lease_t **link = &store->first_waiting;
    while (*link != lease) {
        KV_CHECK(*link != NULL);
        link = &(*link)->next;
    }
    *link = lease->next;
    lease->next = NULL;
}

/* Keeps the first `good` of the found blocks; the others are let go, and lose the device slots that
 * they would keep without their parents. */
static void shorten(kvist_lease_t *lease, uint32_t good, kvist_miss_t miss)
{
    kvist_store_t *store = lease->store;
    kvist_key_t ended = kv_table_at(store->table, lease->objects[good])->key;
    for (uint32_t block = lease->found_count; block-- > good;) {
        uint32_t number = lease->objects[block];
        kv_object_t *object = kv_table_at(store->table, number);
        lease->objects[block] = KV_OBJECT_NONE;
        lease->slots[block] = KV_SLOT_NONE;
        lease->match.tier_blocks[lease->tiers[block]]--;
        kv_object_release(store, number);
        bool elsewhere = kv_object_on_host(object) || kv_object_on_disk(object);
        if ((object->flags & KV_OBJECT_DEAD) == 0 && object->reference_count == 0 && elsewhere &&
            kv_object_on_device(store, object) && (object->flags & KV_OBJECT_BUSY) == 0) {
            kv_object_leave_device(store, number);
        }
    }
    lease->found_count = lease->sealed_count = lease->held_count = good;
    lease->match.block_count = good;
    kv_why_ended(store, &ended, good, &lease->match.detail);
    lease->match.miss = miss;
    store->stats.miss_count[miss]++;
}

/* Blocks that were dropped as damaged since the match end it there. */
static void shorten_at_dead(kvist_lease_t *lease)
{
    for (uint32_t block = 0; block < lease->found_count; block++) {
        if (kv_lease_gone(lease, block)) {
            shorten(lease, block, KVIST_MISS_DAMAGED);
            return;
        }
    }
}

/* Free slots that the lease takes when its turn comes: for blocks to load and for private ones. */
static uint32_t slots_needed(const kvist_lease_t *lease)
{
    const kvist_store_t *store = lease->store;
    uint32_t count = 0;
    for (uint32_t block = 0; block < lease->slot_count; block++) {
        if (block < lease->found_count) {
            count += kv_table_at(store->table, lease->objects[block])->device_slot == KV_SLOT_NONE;
        } else {
            count += lease->slots[block] == KV_SLOT_NONE;
        }
    }
    return count;
}

static void take_private_slots(kvist_lease_t *lease)
{
    for (uint32_t block = lease->found_count; block < lease->slot_count; block++) {
        if (lease->slots[block] == KV_SLOT_NONE) {
            lease->slots[block] = kv_pool_take(&lease->store->device_pool);
            KV_CHECK(lease->slots[block] != KV_SLOT_NONE);
        }
    }
}

static void give_private_slots(kvist_lease_t *lease)
{
    kv_pool_t *pool = &lease->store->device_pool;
    for (uint32_t block = 0; block < lease->slot_count; block++) {
        uint32_t slot = lease->slots[block];
        bool object_slot =
            lease->objects[block] != KV_OBJECT_NONE &&
            kv_table_at(lease->store->table, lease->objects[block])->device_slot == slot;
        if (slot != KV_SLOT_NONE && !object_slot) {
            KV_CHECK(pool->slots[slot].state == KV_SLOT_PRIVATE);
            kv_pool_give(pool, slot);
        }
        lease->slots[block] = KV_SLOT_NONE;
    }
}

/* The first found block that cannot be used, after all loads ended. */
static uint32_t good_prefix(kvist_lease_t *lease, kvist_miss_t *miss_out)
{
    kvist_store_t *store = lease->store;
    uint32_t block_words = store->block_words;
    for (uint32_t block = 0; block < lease->found_count; block++) {
        const kv_object_t *object = kv_table_at(store->table, lease->objects[block]);
        if (kv_lease_gone(lease, block)) {
            *miss_out = KVIST_MISS_DAMAGED;
            return block;
        }
        if (!kv_object_on_device(store, object)) {
            *miss_out = KVIST_MISS_FAILED;
            return block;
        }
        if (!kv_match_words(store, object, lease->words + (size_t)block * block_words)) {
            store->stats.damaged_objects++;
            kv_object_drop(store, lease->objects[block], KV_GONE_DAMAGED);
            *miss_out = KVIST_MISS_DAMAGED;
            return block;
        }
    }
    return lease->found_count;
}

/* Of a lease that was answered early, and lacks a block after all: its slots are used no more. What
 * follows the block may not stay on the device without it. */
static void let_tail_go(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    kvist_miss_t miss = KVIST_MISS_NONE;
    uint32_t good = good_prefix(lease, &miss);
    for (uint32_t block = good; block < lease->found_count; block++) {
        uint32_t slot = lease->slots[block];
        if (kv_table_at(store->table, lease->objects[block])->device_slot != slot) {
            kv_pool_give(&store->device_pool, slot); /* that it kept */
        }
    }
    if (good < lease->found_count) {
        shorten(lease, good, miss);
    }
    lease->broken = false;
}

static void count_hits(kvist_lease_t *lease)
{
    for (int tier = 0; tier < KVIST_TIER_COUNT; tier++) {
        lease->store->stats.tiers[tier].hit_blocks += lease->match.tier_blocks[tier];
    }
}

static void become_ready(kvist_lease_t *lease)
{
    take_private_slots(lease);
    lease->last_key = lease->like.name_space;
    for (uint32_t block = 0; block < lease->found_count; block++) {
        const kv_object_t *object = kv_table_at(lease->store->table, lease->objects[block]);
        lease->slots[block] = object->device_slot;
        lease->last_key = object->key;
    }
    kv_match_announce(lease);
    count_hits(lease);
    answer(lease, KV_OK);
}

/* Whether all that is still to come for it comes layer by layer. */
static bool can_be_early(const kvist_lease_t *lease)
{
    const kvist_store_t *store = lease->store;
    bool early = !lease->released && lease->layered_out > 0 &&
                 lease->loads_out == lease->layered_out && lease->layers_status == KV_OK;
    for (uint32_t block = 0; block < lease->found_count && early; block++) {
        const kv_object_t *object = kv_table_at(store->table, lease->objects[block]);
        early = !kv_lease_gone(lease, block) &&
                (kv_object_on_device(store, object) ||
                    (object->device_slot != KV_SLOT_NONE &&
                        kv_load_is_layered(store, object->device_slot, lease)));
    }
    return early;
}

/* The last layer came, or will not. */
static void layers_ended(kvist_lease_t *lease)
{
    kvist_miss_t miss = KVIST_MISS_NONE;
    lease->broken = good_prefix(lease, &miss) < lease->found_count;
    kv_lease_layers_came(lease, lease->store->groups[0].layout.layer_count,
        !lease->broken               ? KV_OK
        : miss == KVIST_MISS_DAMAGED ? KV_CORRUPT
                                     : KV_IO);
}

static void loads_ended(kvist_lease_t *lease)
{
    kvist_miss_t miss = KVIST_MISS_NONE;
    uint32_t good = good_prefix(lease, &miss);
    if (good < lease->found_count && lease->try_again) {
        lease->try_again = false;
        enqueue(lease, true);
        return;
    }
    if (good < lease->found_count) {
        shorten(lease, good, miss);
    }
    if (slots_needed(lease) > lease->store->device_pool.free_count) {
        enqueue(lease, true); /* slots of blocks that are ours no longer are still held by others */
    } else {
        become_ready(lease);
    }
}

/* Its turn, and there are enough free slots. */
static void grant(kvist_lease_t *lease)
{
    take_private_slots(lease);
    lease->state = KV_LEASE_LOADING;
    lease->layers_there = 0; /* of loads that are to be done again */
    lease->layers_status = KV_OK;
    lease->loads_out++; /* none may end it before all are started */
    kv_load_start(lease->store, lease);
    kv_lease_load_ended(lease, false);
}

void kv_lease_free(kvist_lease_t *lease)
{
    kv_match_withdraw(lease);
    lease->store->lease_count--;
    lease->store->leases_ending -= lease->released;
    free(lease->words);
    free(lease->objects);
    free(lease->tiers);
    free(lease->slots);
    free(lease->others);
    free(lease->stored_keys);
    free(lease);
}

static void expect_blocks(kvist_lease_t *lease)
{
    for (uint32_t block = 0; lease->expected_s != 0 && block < lease->held_count; block++) {
        if (lease->objects[block] != KV_OBJECT_NONE) {
            kv_object_expect(lease->store, lease->objects[block], lease->expected_s);
        }
    }
}

/* Leaf first, so that a parent was never used before its child. */
static void give_back(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    if (lease->broken) {
        let_tail_go(lease);
    }
    if (lease->slots != NULL) {
        give_private_slots(lease);
    }
    expect_blocks(lease);
    while (lease->other_count > 0) {
        kv_object_release(store, lease->others[--lease->other_count]);
    }
    for (uint32_t block = lease->held_count; block-- > 0;) {
        if (lease->objects[block] != KV_OBJECT_NONE) {
            kv_object_release(store, lease->objects[block]);
        }
    }
    lease->found_count = lease->sealed_count = lease->held_count = 0;
    lease->slot_count = 0;
}

void kv_lease_load_ended(kvist_lease_t *lease, bool try_again)
{
    lease->try_again = lease->try_again || try_again;
    lease->loads_out--;
    if (lease->early && lease->loads_out == 0) {
        layers_ended(lease);
    } else if (!lease->early && can_be_early(lease)) {
        lease->early = true;
        become_ready(lease);
        if (lease->layers_there > 0) {
            tell_news(lease);
        }
    }
    if (lease->early || lease->loads_out > 0) {
        return;
    }
    if (lease->released) {
        kvist_miss_t miss = KVIST_MISS_NONE;
        uint32_t good = good_prefix(lease, &miss);
        if (good < lease->found_count) {
            shorten(lease, good, miss); /* nothing may stay on the device without its parent */
        }
        give_back(lease);
        answer(lease, KV_CANCELLED);
    } else {
        loads_ended(lease);
    }
}

kv_status_t kv_embedded_lease_prepare(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, void *context)
{
    return kv_embedded_lease_prepare_layers(lease, slot_count, deadline_ns, done, NULL, context);
}

kv_status_t kv_embedded_lease_prepare_layers(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, kvist_layers_t layers, void *context)
{
    kvist_store_t *store = lease->store;
    KV_CHECK(lease->state == KV_LEASE_MATCHED && done != NULL);
    if (lease->transfers_out > 0 || lease->sealed_count > lease->found_count ||
        slot_count > store->device_pool.slot_count || slot_count < lease->found_count) {
        return KV_INVALID;
    }
    lease->slots = kv_allocate_array(slot_count, sizeof *lease->slots);
    memset(lease->slots, 0xff, slot_count * sizeof *lease->slots);
    if (slot_count > lease->block_max) {
        lease->objects = kv_reallocate(lease->objects, slot_count, sizeof *lease->objects);
        lease->block_max = slot_count;
    }
    for (uint32_t block = lease->found_count; block < lease->block_max; block++) {
        lease->objects[block] = KV_OBJECT_NONE;
    }
    lease->slot_count = slot_count;
    lease->deadline_ns = deadline_ns;
    lease->done = done;
    lease->layers = layers;
    lease->context = context;
    enqueue(lease, false);
    kv_store_advance(store);
    return KV_OK;
}

static void expire(kvist_store_t *store, uint64_t now_ns)
{
    for (kvist_lease_t *lease = store->first_waiting; lease != NULL;) {
        kvist_lease_t *next = lease->next;
        if (lease->deadline_ns <= now_ns) {
            dequeue(lease);
            give_private_slots(lease);
            answer(lease, KV_BUSY);
        }
        lease = next;
    }
}

/* Those who wait hold what they matched, and all of them together may hold what the first in the
 * queue lacks. The last one then lets its blocks go, to look for them again when its turn comes.
 * false: nobody behind the first holds anything. */
static bool yield_one(kvist_store_t *store)
{
    kvist_lease_t *last = NULL;
    for (kvist_lease_t *lease = store->first_waiting->next; lease != NULL; lease = lease->next) {
        last = lease->found_count > 0 ? lease : last;
    }
    if (last == NULL) {
        return false;
    }
    for (uint32_t block = last->found_count; block-- > 0;) {
        kv_object_release(store, last->objects[block]);
        last->objects[block] = KV_OBJECT_NONE;
    }
    last->yielded = true;
    last->found_before = last->found_count;
    last->found_count = last->sealed_count = last->held_count = 0;
    return true;
}

/* As much of what it had as is still there. */
static void match_again(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    kvist_match_t before = lease->match;
    lease->yielded = false;
    kv_match_prefix(lease, lease->found_before);
    kv_match_announce(lease);
    if (lease->found_count == lease->found_before) {
        lease->match.miss = before.miss;
        lease->match.detail = before.detail;
    } else {
        store->stats.miss_count[lease->match.miss]++;
    }
}

/* Grants in order of arrival; the first that does not fit makes room and holds up the rest. */
void kv_lease_pump(kvist_store_t *store)
{
    while (store->first_waiting != NULL) {
        kvist_lease_t *lease = store->first_waiting;
        if (lease->yielded) {
            match_again(lease);
        }
        shorten_at_dead(lease);
        uint32_t needed = slots_needed(lease), available = store->device_pool.free_count;
        kv_why_make_room(lease);
        bool coming = needed > available && kv_evict_device(store, needed - available);
        if (needed > store->device_pool.free_count) {
            if (!coming && yield_one(store)) {
                continue;
            }
            break;
        }
        dequeue(lease);
        grant(lease);
    }
    if (store->first_waiting != NULL) {
        expire(store, store->clock->monotonic_ns(store->clock));
    }
}

uint64_t kv_lease_next_deadline(const kvist_store_t *store)
{
    uint64_t next = kv_puts_next_deadline(store);
    for (const kvist_lease_t *lease = store->first_waiting; lease != NULL; lease = lease->next) {
        next = lease->deadline_ns < next ? lease->deadline_ns : next;
    }
    return next;
}

bool kv_embedded_lease_is_loading(const kvist_lease_t *lease)
{
    return lease->early && (lease->loads_out > 0 || lease->broken);
}

static void run_news(kvist_store_t *store)
{
    while (store->first_news != NULL) {
        kvist_lease_t *lease = store->first_news;
        store->first_news = lease->next_news;
        lease->news = false;
        if (lease->released) {
            kv_lease_settle(lease);
        } else {
            lease->layers(lease->context, lease, lease->layers_status, lease->layers_there);
        }
    }
}

static void run_prepared(kvist_store_t *store)
{
    while (store->first_ready != NULL) {
        kvist_lease_t *lease = store->first_ready;
        store->first_ready = lease->next;
        if (store->first_ready == NULL) {
            store->last_ready = NULL;
        }
        if (lease->released) {
            lease->state = KV_LEASE_FAILED;
            lease->done(lease->context, lease, KV_CANCELLED, &lease->match);
            kv_lease_settle(lease);
            continue;
        }
        lease->state = lease->status == KV_OK ? KV_LEASE_READY : KV_LEASE_FAILED;
        kvist_match_t match = lease->match;
        lease->done(lease->context, lease, lease->status, &match);
    }
}

void kv_transfer_end(kv_transfer_t *transfer)
{
    kvist_store_t *store = transfer->lease->store;
    transfer->next = NULL;
    if (store->last_transfer != NULL) {
        store->last_transfer->next = transfer;
    } else {
        store->first_transfer = transfer;
    }
    store->last_transfer = transfer;
    kv_store_kick(store);
}

static void run_transfers(kvist_store_t *store)
{
    while (store->first_transfer != NULL) {
        kv_transfer_t *transfer = store->first_transfer;
        kvist_lease_t *lease = transfer->lease;
        store->first_transfer = transfer->next;
        if (store->first_transfer == NULL) {
            store->last_transfer = NULL;
        }
        /* Its callback may release the lease, which then goes below. */
        transfer->tell(transfer);
        lease->transfers_out--;
        kv_lease_settle(lease);
    }
}

void kv_lease_run_callbacks(kvist_store_t *store)
{
    run_prepared(store);
    run_news(store);
    run_transfers(store);
}

/* ---- the block table ---- */

const uint32_t *kv_embedded_lease_slots(const kvist_lease_t *lease)
{
    return lease->slots;
}

uint32_t kv_embedded_lease_sealed_count(const kvist_lease_t *lease)
{
    return lease->sealed_count;
}

const char *kv_embedded_lease_arithmetic(const kvist_lease_t *lease, uint32_t block)
{
    const kvist_store_t *store = lease->store;
    KV_CHECK(block < lease->sealed_count);
    uint32_t number = lease->objects[block];
    if (number == KV_OBJECT_NONE || kv_lease_gone(lease, block)) {
        return "";
    }
    const kv_family_t *family = kv_object_family(store, kv_table_at(store->table, number));
    return kv_names_at(&store->arithmetics, family->arithmetic);
}

/* ---- release ---- */

void kv_lease_settle(kvist_lease_t *lease)
{
    bool under_way = lease->state == KV_LEASE_WAITING || lease->state == KV_LEASE_LOADING ||
                     lease->state == KV_LEASE_ANSWERED || lease->transfers_out > 0 ||
                     lease->loads_out > 0 || lease->news;
    if (lease->released && !under_way) {
        give_back(lease);
        kv_lease_free(lease);
    }
}

void kv_embedded_lease_release(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    KV_CHECK(!lease->released);
    lease->released = true;
    store->leases_ending++;
    kv_match_withdraw(lease);
    if (lease->state == KV_LEASE_WAITING) {
        dequeue(lease);
        give_back(lease);
        answer(lease, KV_CANCELLED);
    } else if (lease->state == KV_LEASE_ANSWERED && lease->loads_out == 0) {
        give_back(lease); /* its callback, still to run, says cancelled */
    }
    kv_put_cancel(lease);
    kv_lease_settle(lease); /* while it loads, the end of the loads gives everything back */
    kv_store_kick(store);
}
