/* S3-FIFO: two queues, and a list of what went from the first one.
 *
 *   new ------> small (a tenth) --used twice--> main --used since--> main again
 *    |            | else                         | else
 *    |            v                              v
 *    |          goes, and is remembered        goes
 *    `-- remembered from before ---------------> main
 *
 * A use only counts; a queue is in the order in which blocks came to it. Of a chain only leaves are
 * candidates, so a parent is looked at when what goes on from it has gone, wherever it would have
 * stood. */
#include "kvstore/policy/policy.h"

#include "base/memory.h"
#include "kvstore/policy/ghosts.h"

#include <stdlib.h>

enum { SMALL, MAIN };
enum { SMALL_TENTHS = 1, USES_TO_MAIN = 2, USES_COUNTED_MAX = 3 };

struct kv_policy {
    uint32_t counts[KV_POLICY_LISTS];
    kv_ghosts_t ghosts;
};

static kv_policy_t *create(const kv_policy_params_t *params)
{
    kv_policy_t *policy = kv_allocate(sizeof *policy);
    kv_ghosts_init(&policy->ghosts, params->slot_count);
    return policy;
}

static void destroy(kv_policy_t *policy)
{
    kv_ghosts_destroy(&policy->ghosts);
    free(policy);
}

static void enter(kv_policy_t *policy, const kv_policy_slot_t *slot, kv_policy_place_t *place_out)
{
    uint32_t note;
    bool known = kv_ghosts_take(&policy->ghosts, slot->about->key_hash, &note);
    *place_out = (kv_policy_place_t){.rank = slot->now, .list = known ? MAIN : SMALL};
    policy->counts[place_out->list]++;
}

static void use(kv_policy_t *policy, const kv_policy_slot_t *slot, kv_policy_place_t *place)
{
    (void)policy;
    (void)slot;
    (void)place;
}

static bool spare(kv_policy_t *policy, kv_policy_slot_t *slot, kv_policy_place_t *place)
{
    if (place->list == SMALL) {
        if (slot->uses < USES_TO_MAIN) {
            return false;
        }
        policy->counts[SMALL]--;
        policy->counts[MAIN]++;
        slot->uses = 0;
    } else {
        if (slot->uses == 0) {
            return false;
        }
        slot->uses = (slot->uses < USES_COUNTED_MAX ? slot->uses : USES_COUNTED_MAX) - 1;
    }
    *place = (kv_policy_place_t){.rank = slot->now, .list = MAIN};
    return true;
}

static void leave(
    kv_policy_t *policy, const kv_policy_slot_t *slot, const kv_policy_place_t *place, bool evicted)
{
    policy->counts[place->list]--;
    if (evicted && place->list == SMALL) {
        kv_ghosts_add(&policy->ghosts, slot->about->key_hash, 0);
    }
}

static uint8_t first_list(const kv_policy_t *policy)
{
    uint64_t all = (uint64_t)policy->counts[SMALL] + policy->counts[MAIN];
    return policy->counts[SMALL] * UINT64_C(10) >= all * SMALL_TENTHS ? SMALL : MAIN;
}

static size_t memory_bytes(const kv_policy_t *policy)
{
    return sizeof *policy + kv_ghosts_bytes(&policy->ghosts);
}

const kv_policy_ops_t KV_POLICY_S3_FIFO = {
    .name = "s3-fifo",
    .create = create,
    .destroy = destroy,
    .enter = enter,
    .use = use,
    .spare = spare,
    .leave = leave,
    .first_list = first_list,
    .memory_bytes = memory_bytes,
};
