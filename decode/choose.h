/* Which prefill node computes a prompt.
 *
 * Threads: the reactor's.
 * Errors: none: there may be no node to ask. */
#ifndef KV_DECODE_CHOOSE_H
#define KV_DECODE_CHOOSE_H

#include "runtime/core.h"

#include <stddef.h>
#include <stdint.h>

/* The prefill node with the fewest requests that takes new ones and is not among those that were
 * tried (kv_peer_id); NULL: none. */
kv_peer_t *kv_decode_choose(kv_core_t *core, const uint64_t *tried, size_t tried_count);

#endif
