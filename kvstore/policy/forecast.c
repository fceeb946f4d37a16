/* Forecast: what goes is least likely to be used soon, judged by how blocks like it fared.
 *
 * Blocks are told apart by how often they were used before (0, 1, 2, 3, 4, or more times; that is
 * remembered for a while after they went), and those of which somebody said when they will be used
 * next by how far off that was. Of each kind a list is kept, what was used longest ago first. Of
 * the lists' first ones that one goes for whose kind and age a return is least to be expected for
 * the room that it takes (returns.h). While nothing is known yet that is the oldest: LRU.
 *
 * What is foretold is believed as far as it proved true: ages of such blocks are counted in parts
 * of the time that was said, and what came of all of them is what is expected of each. Where that
 * is less than what is expected of a block without it, it does not count. But those of one list go
 * in the order of their last use, however often they were used: where most hints are false, true
 * ones get lost among them. */
#include "kvstore/policy/policy.h"

#include "base/memory.h"
#include "kvstore/policy/ghosts.h"
#include "kvstore/policy/returns.h"

#include <math.h>
#include <stdlib.h>

enum {
    USES_MAX = 5, /* lists 0 .. USES_MAX: used so many times before, or more */
    FORETOLD_FIRST = 8,
    GHOSTS_TIMES = 4, /* of the pool's slots */
    USES_BITS = 8,
};
static const double PARTS = 64; /* of the time that was foretold */

_Static_assert((int)USES_MAX < (int)KV_RETURNS_FORETOLD, "uses are kinds");
_Static_assert((int)USES_MAX <= (int)KV_GHOST_NOTE_MAX, "uses are notes");

struct kv_policy {
    kv_ghosts_t ghosts;
    kv_returns_t returns;
};

static kv_policy_t *create(const kv_policy_params_t *params)
{
    kv_policy_t *policy = kv_allocate(sizeof *policy);
    uint64_t ghosts = (uint64_t)params->slot_count * GHOSTS_TIMES;
    kv_ghosts_init(&policy->ghosts, ghosts < UINT32_MAX / 2 ? (uint32_t)ghosts : UINT32_MAX / 2);
    kv_returns_init(&policy->returns, params->slot_count);
    return policy;
}

static void destroy(kv_policy_t *policy)
{
    kv_ghosts_destroy(&policy->ghosts);
    kv_returns_destroy(&policy->returns);
    free(policy);
}

/* A rank is when it was used last, and how often before that. */
static uint32_t uses_of(uint64_t rank)
{
    return (uint32_t)(rank & (((uint64_t)1 << USES_BITS) - 1));
}

static uint32_t time_of(uint64_t rank)
{
    return (uint32_t)(rank >> USES_BITS);
}

/* Lists FORETOLD_FIRST + n: said to be used after about 2^n seconds. */
static uint8_t list_of(const kv_policy_slot_t *slot, uint32_t uses)
{
    if (slot->about->expected_s <= slot->now_s) {
        return (uint8_t)uses;
    }
    uint32_t after_s = slot->about->expected_s - slot->now_s, list = FORETOLD_FIRST;
    while (after_s > 1 && list < KV_POLICY_LISTS - 1) {
        after_s /= 2;
        list++;
    }
    return (uint8_t)list;
}

static double unit_s_of(uint32_t list)
{
    return list < FORETOLD_FIRST ? 0 : exp2(list - FORETOLD_FIRST + 0.5) / PARTS;
}

static void place(
    kv_policy_t *policy, const kv_policy_slot_t *slot, uint32_t uses, kv_policy_place_t *place_out)
{
    uint8_t list = list_of(slot, uses);
    *place_out = (kv_policy_place_t){
        .rank = (uint64_t)slot->now_s << USES_BITS | uses,
        .list = list,
    };
    kv_returns_use(&policy->returns, slot->about->key_hash, uses, unit_s_of(list), slot->now_s);
}

static void enter(kv_policy_t *policy, const kv_policy_slot_t *slot, kv_policy_place_t *place_out)
{
    uint32_t uses = 0;
    kv_ghosts_take(&policy->ghosts, slot->about->key_hash, &uses);
    place(policy, slot, uses, place_out);
}

static void use(kv_policy_t *policy, const kv_policy_slot_t *slot, kv_policy_place_t *at)
{
    uint32_t before = uses_of(at->rank);
    place(policy, slot, before < USES_MAX ? before + 1 : USES_MAX, at);
}

static void leave(
    kv_policy_t *policy, const kv_policy_slot_t *slot, const kv_policy_place_t *at, bool evicted)
{
    uint32_t before = uses_of(at->rank);
    if (evicted) {
        kv_ghosts_add(
            &policy->ghosts, slot->about->key_hash, before < USES_MAX ? before + 1 : USES_MAX);
    }
}

/* What its room is worth: a hint adds to what is expected without it, and takes nothing away. */
static double value_of(const kv_policy_t *policy, uint32_t list, uint64_t rank, uint32_t now_s)
{
    uint32_t used_s = time_of(rank);
    double age_s = now_s > used_s ? now_s - used_s : 0;
    double usual = kv_returns_value(&policy->returns, uses_of(rank), age_s);
    if (list < FORETOLD_FIRST) {
        return usual;
    }
    double foretold = kv_returns_value_foretold(&policy->returns, unit_s_of(list), age_s);
    return foretold > usual ? foretold : usual;
}

static uint8_t choose(const kv_policy_t *policy, const kv_policy_heads_t *heads)
{
    uint8_t best = KV_POLICY_LISTS;
    double least = 0;
    for (uint8_t list = 0; list < KV_POLICY_LISTS; list++) {
        if ((heads->present >> list & 1) == 0) {
            continue;
        }
        double value = value_of(policy, list, heads->ranks[list], heads->now_s);
        bool older = best < KV_POLICY_LISTS && heads->ranks[list] < heads->ranks[best];
        if (best == KV_POLICY_LISTS || value < least || (value == least && older)) {
            best = list;
            least = value;
        }
    }
    return best;
}

static size_t memory_bytes(const kv_policy_t *policy)
{
    return sizeof *policy + kv_ghosts_bytes(&policy->ghosts) + kv_returns_bytes(&policy->returns);
}

const kv_policy_ops_t KV_POLICY_FORECAST = {
    .name = "forecast",
    .create = create,
    .destroy = destroy,
    .enter = enter,
    .use = use,
    .leave = leave,
    .choose = choose,
    .memory_bytes = memory_bytes,
};
