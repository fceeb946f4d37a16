#include "kvstore/objects/pool.h"

#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

static void clear_candidates(kv_candidates_t *candidates)
{
    for (int list = 0; list < KV_POLICY_LISTS; list++) {
        candidates->roots[list] = KV_RANKING_NONE;
    }
}

void kv_pool_init(kv_pool_t *pool, uint32_t slot_count, uint32_t block_words, uint32_t unit_count,
    uint32_t *words, uint64_t *checksums, const kv_policy_ops_t *policy)
{
    *pool = (kv_pool_t){
        .slots = kv_allocate_array(slot_count, sizeof(kv_slot_t)),
        .words = words,
        .checksums = checksums,
        .slot_count = slot_count,
        .block_words = block_words,
        .unit_count = unit_count,
        .free_head = KV_SLOT_NONE,
        .ops = policy,
        .costs = kv_allocate(sizeof *pool->costs),
        .about = kv_allocate_array(slot_count, sizeof *pool->about),
        .ranks = kv_allocate_array(slot_count, sizeof *pool->ranks),
        .of_all = kv_allocate_array(slot_count, sizeof *pool->of_all),
        .of_tenant = kv_allocate_array(slot_count, sizeof *pool->of_tenant),
        .promised = KV_RANKING_NONE,
    };
    const kv_policy_params_t params = {.slot_count = slot_count, .costs = pool->costs};
    for (int i = 0; i < KVIST_PRIORITY_COUNT; i++) {
        clear_candidates(&pool->candidates[i]);
        pool->policies[i] = policy->create(&params);
    }
}

void kv_pool_destroy(kv_pool_t *pool)
{
    for (int i = 0; pool->ops != NULL && i < KVIST_PRIORITY_COUNT; i++) {
        pool->ops->destroy(pool->policies[i]);
    }
    free(pool->slots);
    free(pool->costs);
    free(pool->about);
    free(pool->ranks);
    free(pool->of_all);
    free(pool->of_tenant);
    free(pool->tenants);
    *pool = (kv_pool_t){0};
}

void kv_pool_extend(kv_pool_t *pool, uint32_t ready_count)
{
    KV_CHECK(ready_count >= pool->ready_count && ready_count <= pool->slot_count);
    for (uint32_t slot = ready_count; slot-- > pool->ready_count;) {
        pool->slots[slot].object = pool->free_head;
        pool->free_head = slot;
    }
    pool->free_count += ready_count - pool->ready_count;
    pool->ready_count = ready_count;
}

size_t kv_pool_order_bytes(const kv_pool_t *pool)
{
    size_t slot_bytes = sizeof *pool->slots + sizeof *pool->about + sizeof *pool->ranks +
                        sizeof *pool->of_all + sizeof *pool->of_tenant;
    size_t bytes = pool->slot_count * slot_bytes + pool->tenant_count * sizeof *pool->tenants;
    for (int i = 0; i < KVIST_PRIORITY_COUNT; i++) {
        bytes += pool->ops->memory_bytes(pool->policies[i]);
    }
    return bytes;
}

/* ---- candidates ---- */

static kv_ranking_memory_t memory_of(const kv_pool_t *pool, bool of_tenant)
{
    return (kv_ranking_memory_t){of_tenant ? pool->of_tenant : pool->of_all, pool->ranks};
}

static void list(kv_pool_t *pool, uint32_t slot)
{
    kv_slot_t *entry = &pool->slots[slot];
    kv_ranking_memory_t of_all = memory_of(pool, false), of_tenant = memory_of(pool, true);
    kv_pool_tenant_t *tenant = &pool->tenants[entry->tenant];
    kv_ranking_add(&of_all, &pool->candidates[entry->priority].roots[entry->list], slot);
    kv_ranking_add(&of_tenant, &tenant->candidates[entry->priority].roots[entry->list], slot);
    entry->flags |= KV_SLOT_LISTED;
}

void kv_pool_unlist(kv_pool_t *pool, uint32_t slot)
{
    kv_slot_t *entry = &pool->slots[slot];
    kv_ranking_memory_t of_all = memory_of(pool, false), of_tenant = memory_of(pool, true);
    kv_pool_tenant_t *tenant = &pool->tenants[entry->tenant];
    if ((entry->flags & KV_SLOT_LISTED) == 0) {
        return;
    }
    if ((entry->flags & KV_SLOT_PROMISED) != 0) {
        kv_ranking_remove(&of_all, &pool->promised, slot);
    } else {
        kv_ranking_remove(&of_all, &pool->candidates[entry->priority].roots[entry->list], slot);
        kv_ranking_remove(
            &of_tenant, &tenant->candidates[entry->priority].roots[entry->list], slot);
    }
    entry->flags &= (uint8_t) ~(KV_SLOT_LISTED | KV_SLOT_PROMISED);
}

static void list_if_candidate(kv_pool_t *pool, uint32_t slot)
{
    const kv_slot_t *entry = &pool->slots[slot];
    bool is_candidate = (entry->flags & KV_SLOT_IDLE) != 0 && entry->children == 0;
    if (is_candidate && (entry->flags & KV_SLOT_LISTED) == 0) {
        list(pool, slot);
    }
}

/* ---- the policy ---- */

static uint32_t now_s(const kv_pool_t *pool)
{
    return pool->clock != NULL ? (uint32_t)(pool->clock->unix_ns(pool->clock) / KV_NS_PER_S) : 0;
}

static kv_policy_slot_t describe(const kv_pool_t *pool, uint32_t slot)
{
    return (kv_policy_slot_t){
        .about = &pool->about[slot],
        .used = pool->ranks[slot].used,
        .now = pool->use_count,
        .uses = pool->slots[slot].uses,
        .now_s = now_s(pool),
    };
}

static kv_policy_place_t place_of(const kv_pool_t *pool, uint32_t slot)
{
    return (kv_policy_place_t){pool->ranks[slot].rank, pool->slots[slot].list};
}

/* It is no candidate: the order is by what this sets. */
static void set_place(kv_pool_t *pool, uint32_t slot, const kv_policy_place_t *place)
{
    pool->ranks[slot].rank = place->rank;
    pool->slots[slot].list = place->list;
}

static void enter_policy(kv_pool_t *pool, uint32_t slot)
{
    kv_policy_slot_t described = describe(pool, slot);
    kv_policy_place_t place = {0};
    pool->ops->enter(pool->policies[pool->slots[slot].priority], &described, &place);
    set_place(pool, slot, &place);
    pool->slots[slot].flags |= KV_SLOT_RANKED;
}

static void leave_policy(kv_pool_t *pool, uint32_t slot, bool evicted)
{
    kv_slot_t *entry = &pool->slots[slot];
    if ((entry->flags & KV_SLOT_RANKED) != 0) {
        kv_policy_slot_t described = describe(pool, slot);
        kv_policy_place_t place = place_of(pool, slot);
        pool->ops->leave(pool->policies[entry->priority], &described, &place, evicted);
        entry->flags &= (uint8_t)~KV_SLOT_RANKED;
    }
}

static void use_policy(kv_pool_t *pool, uint32_t slot)
{
    kv_slot_t *entry = &pool->slots[slot];
    entry->uses += entry->uses < KV_POLICY_USES_MAX;
    kv_policy_slot_t described = describe(pool, slot);
    kv_policy_place_t place = place_of(pool, slot);
    pool->ops->use(pool->policies[entry->priority], &described, &place);
    set_place(pool, slot, &place);
}

static void set_class(kv_pool_t *pool, uint32_t slot, kvist_priority_t priority)
{
    kv_slot_t *entry = &pool->slots[slot];
    if (entry->priority != priority) {
        leave_policy(pool, slot, false);
        kv_pool_tenant_t *tenant = &pool->tenants[entry->tenant];
        pool->class_counts[entry->priority]--;
        pool->class_counts[priority]++;
        tenant->class_counts[entry->priority]--;
        tenant->class_counts[priority]++;
        entry->priority = (uint8_t)priority;
    }
}

/* ---- states ---- */

uint32_t kv_pool_take(kv_pool_t *pool)
{
    if (pool->free_count == 0) { /* a tier that there is not has a pool of zeros */
        return KV_SLOT_NONE;
    }
    uint32_t slot = pool->free_head;
    KV_CHECK(pool->slots[slot].state == KV_SLOT_FREE);
    pool->free_head = pool->slots[slot].object;
    pool->free_count--;
    pool->slots[slot].state = KV_SLOT_PRIVATE;
    return slot;
}

void kv_pool_give(kv_pool_t *pool, uint32_t slot)
{
    kv_slot_t *entry = &pool->slots[slot];
    KV_CHECK(entry->state != KV_SLOT_FREE);
    if (entry->state == KV_SLOT_OBJECT) {
        kv_pool_unlist(pool, slot);
        leave_policy(pool, slot, (entry->flags & KV_SLOT_VICTIM) != 0);
        pool->object_count--;
        pool->class_counts[entry->priority]--;
        pool->tenants[entry->tenant].class_counts[entry->priority]--;
        pool->tenants[entry->tenant].object_count--;
    } else if ((entry->flags & KV_SLOT_RESERVED) != 0) {
        pool->tenants[entry->tenant].object_count--;
    }
    *entry = (kv_slot_t){.state = KV_SLOT_FREE, .object = pool->free_head};
    pool->free_head = slot;
    pool->free_count++;
}

void kv_pool_set_loading(kv_pool_t *pool, uint32_t slot, uint32_t object)
{
    KV_CHECK(pool->slots[slot].state == KV_SLOT_PRIVATE);
    pool->slots[slot].state = KV_SLOT_LOADING;
    pool->slots[slot].object = object;
}

void kv_pool_keep_private(kv_pool_t *pool, uint32_t slot)
{
    KV_CHECK(pool->slots[slot].state == KV_SLOT_LOADING);
    pool->slots[slot].state = KV_SLOT_PRIVATE;
}

static void know_tenant(kv_pool_t *pool, uint32_t tenant)
{
    if (tenant < pool->tenant_count) {
        return;
    }
    uint32_t count = tenant + 1 > 2 * pool->tenant_count ? tenant + 1 : 2 * pool->tenant_count;
    pool->tenants = kv_reallocate(pool->tenants, count, sizeof *pool->tenants);
    for (; pool->tenant_count < count; pool->tenant_count++) {
        kv_pool_tenant_t *next = &pool->tenants[pool->tenant_count];
        *next = (kv_pool_tenant_t){0};
        for (int i = 0; i < KVIST_PRIORITY_COUNT; i++) {
            clear_candidates(&next->candidates[i]);
        }
    }
}

void kv_pool_reserve(kv_pool_t *pool, uint32_t slot, uint16_t tenant)
{
    kv_slot_t *entry = &pool->slots[slot];
    KV_CHECK(entry->state == KV_SLOT_PRIVATE && entry->flags == 0);
    know_tenant(pool, tenant);
    entry->tenant = tenant;
    entry->flags = KV_SLOT_RESERVED;
    pool->tenants[tenant].object_count++;
}

void kv_pool_set_object(kv_pool_t *pool, uint32_t slot, uint32_t object, const kv_slot_of_t *of)
{
    kv_slot_t *entry = &pool->slots[slot];
    KV_CHECK(entry->state == KV_SLOT_PRIVATE || entry->state == KV_SLOT_LOADING);
    know_tenant(pool, of->tenant);
    if ((entry->flags & KV_SLOT_RESERVED) != 0) {
        pool->tenants[entry->tenant].object_count--;
    }
    *entry = (kv_slot_t){
        .object = object,
        .tenant = of->tenant,
        .state = KV_SLOT_OBJECT,
        .priority = (uint8_t)of->priority,
    };
    pool->about[slot] = (kv_policy_about_t){.key_hash = of->key_hash, .position = of->position};
    pool->object_count++;
    pool->class_counts[of->priority]++;
    pool->tenants[of->tenant].class_counts[of->priority]++;
    pool->tenants[of->tenant].object_count++;
}

/* ---- use ---- */

void kv_pool_hold(kv_pool_t *pool, uint32_t slot)
{
    pool->slots[slot].flags &= (uint8_t)~KV_SLOT_IDLE;
    kv_pool_unlist(pool, slot);
}

void kv_pool_release(kv_pool_t *pool, uint32_t slot, kvist_priority_t priority)
{
    kv_slot_t *entry = &pool->slots[slot];
    KV_CHECK(entry->state == KV_SLOT_OBJECT);
    kv_pool_unlist(pool, slot);
    set_class(pool, slot, priority);
    pool->ranks[slot].used = ++pool->use_count;
    if ((entry->flags & KV_SLOT_RANKED) != 0) {
        use_policy(pool, slot);
    } else {
        enter_policy(pool, slot);
    }
    entry->flags |= KV_SLOT_IDLE;
    list_if_candidate(pool, slot);
}

void kv_pool_add_child(kv_pool_t *pool, uint32_t slot)
{
    pool->slots[slot].children++;
    kv_pool_unlist(pool, slot);
}

void kv_pool_remove_child(kv_pool_t *pool, uint32_t slot)
{
    KV_CHECK(pool->slots[slot].children > 0);
    pool->slots[slot].children--;
    list_if_candidate(pool, slot);
}

void kv_pool_expect(kv_pool_t *pool, uint32_t slot, uint32_t expected_s, uint32_t now_s)
{
    kv_policy_about_t *about = &pool->about[slot];
    if (about->expected_s <= now_s || (expected_s > now_s && expected_s < about->expected_s)) {
        about->expected_s = expected_s > now_s ? expected_s : 0;
    }
}

/* ---- promises ---- */

void kv_pool_promise(kv_pool_t *pool, uint32_t slot, uint32_t until_s)
{
    kv_slot_t *entry = &pool->slots[slot];
    KV_CHECK((entry->flags & KV_SLOT_LISTED) != 0);
    kv_ranking_memory_t of_all = memory_of(pool, false);
    kv_pool_unlist(pool, slot);
    leave_policy(pool, slot, false);
    pool->ranks[slot].rank = until_s;
    kv_ranking_add(&of_all, &pool->promised, slot);
    entry->flags |= KV_SLOT_LISTED | KV_SLOT_PROMISED;
}

void kv_pool_end_promise(kv_pool_t *pool, uint32_t slot)
{
    if ((pool->slots[slot].flags & KV_SLOT_PROMISED) != 0) {
        kv_pool_unlist(pool, slot);
        enter_policy(pool, slot);
        list(pool, slot);
    }
}

void kv_pool_end_promises(kv_pool_t *pool, uint32_t now_s)
{
    kv_ranking_memory_t of_all = memory_of(pool, false);
    uint32_t slot;
    while ((slot = kv_ranking_first(&of_all, pool->promised)) != KV_SLOT_NONE &&
           pool->ranks[slot].rank <= now_s) {
        kv_pool_end_promise(pool, slot);
    }
}

/* ---- walks ---- */

static void enter_class(kv_pool_walk_t *walk)
{
    const kv_pool_t *pool = walk->pool;
    walk->lists_seen = 0;
    for (int list = 0; list < KV_POLICY_LISTS; list++) {
        walk->at[list].slot = KV_SLOT_NONE;
    }
    walk->list = walk->priority >= 0 && pool->ops->first_list != NULL
                     ? pool->ops->first_list(pool->policies[walk->priority])
                     : 0;
}

kv_pool_walk_t kv_pool_walk(kv_pool_t *pool, uint32_t tenant, kvist_priority_t last)
{
    kv_pool_walk_t walk = {
        .pool = pool,
        .tenant = tenant,
        .priority = KVIST_PRIORITY_COUNT - 1,
        .last = last,
        .also = KV_SLOT_NONE,
    };
    enter_class(&walk);
    return walk;
}

/* The next one of a list. */
static uint32_t next_in_list(const kv_pool_walk_t *walk, uint32_t list)
{
    const kv_pool_t *pool = walk->pool;
    bool any = walk->tenant == KV_TENANT_ANY;
    if (!any && walk->tenant >= pool->tenant_count) {
        return KV_SLOT_NONE;
    }
    const kv_candidates_t *candidates =
        any ? &pool->candidates[walk->priority]
            : &pool->tenants[walk->tenant].candidates[walk->priority];
    kv_ranking_memory_t memory = memory_of(pool, !any);
    uint32_t root = candidates->roots[list], at = walk->at[list].slot;
    return at == KV_SLOT_NONE ? kv_ranking_first(&memory, root)
                              : kv_ranking_after(&memory, root, walk->at[list].rank, at);
}

/* The next one of the class: of the list that the policy chooses, or list after list. */
static uint32_t next_in_class(kv_pool_walk_t *walk)
{
    const kv_pool_t *pool = walk->pool;
    uint32_t slots[KV_POLICY_LISTS];
    kv_policy_heads_t heads = {.now_s = now_s(pool)};
    for (; pool->ops->choose == NULL && walk->lists_seen < KV_POLICY_LISTS; walk->lists_seen++) {
        uint32_t slot = next_in_list(walk, walk->list);
        if (slot != KV_SLOT_NONE) {
            return slot;
        }
        walk->list = (walk->list + 1) % KV_POLICY_LISTS;
    }
    for (uint32_t list = 0; pool->ops->choose != NULL && list < KV_POLICY_LISTS; list++) {
        slots[list] = next_in_list(walk, list);
        if (slots[list] != KV_SLOT_NONE) {
            heads.present |= (uint32_t)1 << list;
            heads.ranks[list] = pool->ranks[slots[list]].rank;
        }
    }
    if (heads.present == 0) {
        return KV_SLOT_NONE;
    }
    walk->list = pool->ops->choose(pool->policies[walk->priority], &heads);
    return slots[walk->list];
}

/* Whether the policy lets it stay for now, in another place. */
static bool is_spared(kv_pool_t *pool, uint32_t slot)
{
    if (pool->ops->spare == NULL) {
        return false;
    }
    kv_slot_t *entry = &pool->slots[slot];
    kv_policy_slot_t described = describe(pool, slot);
    kv_policy_place_t place = place_of(pool, slot);
    if (!pool->ops->spare(pool->policies[entry->priority], &described, &place)) {
        return false;
    }
    kv_pool_unlist(pool, slot);
    entry->uses = (uint8_t)described.uses;
    set_place(pool, slot, &place);
    list(pool, slot);
    return true;
}

/* What became a candidate at a place that the walk has passed; KV_SLOT_NONE: nothing did. Where the
 * policy chooses among lists it is no more than the next one of its list. */
static uint32_t take_passed(kv_pool_walk_t *walk)
{
    const kv_pool_t *pool = walk->pool;
    uint32_t slot = walk->also;
    walk->also = KV_SLOT_NONE;
    if (slot == KV_SLOT_NONE || pool->slots[slot].priority != walk->priority) {
        return KV_SLOT_NONE;
    }
    const kv_slot_t *entry = &pool->slots[slot];
    kv_rank_t rank = pool->ranks[slot], last = walk->at[entry->list].rank;
    bool begun = walk->at[entry->list].slot != KV_SLOT_NONE;
    bool is_before =
        begun && (rank.rank != last.rank ? rank.rank < last.rank : rank.used < last.used);
    bool is_candidate = (entry->flags & (KV_SLOT_LISTED | KV_SLOT_PROMISED)) == KV_SLOT_LISTED &&
                        (walk->tenant == KV_TENANT_ANY || walk->tenant == entry->tenant);
    if (pool->ops->choose != NULL && is_candidate && is_before) {
        walk->at[entry->list].rank = (kv_rank_t){rank.rank, rank.used - 1}; /* just before it */
        return KV_SLOT_NONE;
    }
    bool is_passed = entry->list == walk->list ? is_before : walk->lists_seen > 0;
    bool alone = pool->ops->choose == NULL;
    return alone && is_candidate && is_passed && !is_spared(walk->pool, slot) ? slot : KV_SLOT_NONE;
}

uint32_t kv_pool_step(kv_pool_walk_t *walk)
{
    uint32_t passed = take_passed(walk);
    if (passed != KV_SLOT_NONE) {
        return passed;
    }
    while (walk->priority >= (int)walk->last) {
        uint32_t slot = next_in_class(walk);
        if (slot == KV_SLOT_NONE) {
            walk->priority--;
            enter_class(walk);
            continue;
        }
        kv_rank_t rank = walk->pool->ranks[slot];
        if (!is_spared(walk->pool, slot)) {
            walk->at[walk->list].slot = slot;
            walk->at[walk->list].rank = rank;
            return slot;
        } /* else it is elsewhere now; what comes next is where it was */
    }
    return KV_SLOT_NONE;
}
