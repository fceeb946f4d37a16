#include "kvstore/policy/policy.h"

#include <math.h>

const kv_policy_ops_t *kv_policy_at(kvist_policy_t policy)
{
    static const kv_policy_ops_t *const POLICIES[KVIST_POLICY_COUNT] = {
        [KVIST_POLICY_LRU] = &KV_POLICY_LRU,
        [KVIST_POLICY_S3_FIFO] = &KV_POLICY_S3_FIFO,
        [KVIST_POLICY_GDSF] = &KV_POLICY_GDSF,
        [KVIST_POLICY_FORECAST] = &KV_POLICY_FORECAST,
    };
    return POLICIES[policy];
}

const char *kvist_policy_name(kvist_policy_t policy)
{
    return (unsigned)policy < KVIST_POLICY_COUNT ? kv_policy_at(policy)->name : "unknown";
}

double kv_policy_cost_ns(const kv_policy_costs_t *costs, uint32_t position)
{
    double compute_ns = costs->block_ns + costs->distance_ns * position;
    if (costs->reload_ns_per_byte == NULL) {
        return compute_ns;
    }
    int exponent;
    frexp(*costs->reload_ns_per_byte, &exponent);
    double reload_ns = ldexp((double)costs->bytes, exponent - 1);
    return reload_ns < compute_ns ? reload_ns : compute_ns;
}
