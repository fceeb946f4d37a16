/* The quotas of tenants that the options name, as a store takes them.
 *
 * Owns: the array and the names, until kv_quotas_clear.
 * Threads: set-up only. */
#ifndef KV_HOLDER_QUOTAS_H
#define KV_HOLDER_QUOTAS_H

#include "kvstore/kvist.h"
#include "node/options.h"

/* [count]; NULL where there are none. The options were checked as they were read. */
kvist_quota_t *kv_quotas_read(const kv_options_t *options, uint32_t *count_out);
void kv_quotas_clear(const kvist_quota_t *quotas, uint32_t count); /* NULL is fine */

#endif
