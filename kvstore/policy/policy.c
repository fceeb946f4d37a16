#include "kvstore/policy/policy.h"

const kv_policy_ops_t *kv_policy_at(kvist_policy_t policy)
{
    static const kv_policy_ops_t *const POLICIES[KVIST_POLICY_COUNT] = {
        [KVIST_POLICY_LRU] = &KV_POLICY_LRU,
    };
    return POLICIES[policy];
}
