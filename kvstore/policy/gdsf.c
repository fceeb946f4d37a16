/* Greedy-dual by size and frequency: what is worth least goes first, and what stays ages.
 *
 *   worth = age + (uses + 1) x cost / bytes    set when it comes and when it is used
 *   age  := worth of what went last
 *
 * cost is what having the block again takes: the cheaper of loading it from the tier below and of
 * computing it at its position, where late blocks of a long context cost more than early ones. */
#include "kvstore/policy/policy.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

struct kv_policy {
    const kv_policy_costs_t *costs;
    double age;
};

_Static_assert(sizeof(double) == sizeof(uint64_t), "a worth is a rank");

/* Of numbers that are not negative the bits have the same order. */
static uint64_t rank_of(double worth)
{
    uint64_t rank;
    memcpy(&rank, &worth, sizeof rank);
    return rank;
}

static double worth_of(uint64_t rank)
{
    double worth;
    memcpy(&worth, &rank, sizeof worth);
    return worth;
}

static kv_policy_t *create(const kv_policy_params_t *params)
{
    kv_policy_t *policy = kv_allocate(sizeof *policy);
    policy->costs = params->costs;
    return policy;
}

static void destroy(kv_policy_t *policy)
{
    free(policy);
}

static void by_worth(
    kv_policy_t *policy, const kv_policy_slot_t *slot, kv_policy_place_t *place_out)
{
    double cost_ns = kv_policy_cost_ns(policy->costs, slot->about->position);
    double worth = policy->age + (slot->uses + 1.0) * cost_ns / (double)policy->costs->bytes;
    *place_out = (kv_policy_place_t){.rank = rank_of(worth)};
}

static void leave(
    kv_policy_t *policy, const kv_policy_slot_t *slot, const kv_policy_place_t *place, bool evicted)
{
    double worth = worth_of(place->rank);
    (void)slot;
    if (evicted && worth > policy->age) {
        policy->age = worth;
    }
}

static size_t memory_bytes(const kv_policy_t *policy)
{
    return sizeof *policy;
}

const kv_policy_ops_t KV_POLICY_GDSF = {
    .name = "gdsf",
    .create = create,
    .destroy = destroy,
    .enter = by_worth,
    .use = by_worth,
    .leave = leave,
    .memory_bytes = memory_bytes,
};
