/* What was used longest ago goes first. A lease gives a chain back leaf first, so that of one
 * chain, too, what goes first is what was given back first. */
#include "kvstore/policy/policy.h"

/* It remembers nothing: any address will do. */
struct kv_policy {
    char nothing;
};

static kv_policy_t *create(const kv_policy_params_t *params)
{
    static kv_policy_t lru;
    (void)params;
    return &lru;
}

static void destroy(kv_policy_t *policy)
{
    (void)policy;
}

static void by_last_use(
    kv_policy_t *policy, const kv_policy_slot_t *slot, kv_policy_place_t *place_out)
{
    (void)policy;
    *place_out = (kv_policy_place_t){.rank = slot->used};
}

static void leave(
    kv_policy_t *policy, const kv_policy_slot_t *slot, const kv_policy_place_t *place, bool evicted)
{
    (void)policy;
    (void)slot;
    (void)place;
    (void)evicted;
}

static size_t memory_bytes(const kv_policy_t *policy)
{
    (void)policy;
    return 0;
}

const kv_policy_ops_t KV_POLICY_LRU = {
    .name = "lru",
    .create = create,
    .destroy = destroy,
    .enter = by_last_use,
    .use = by_last_use,
    .leave = leave,
    .memory_bytes = memory_bytes,
};
