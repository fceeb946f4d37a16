/* Which prefill node computes a prompt.
 *
 * Of those that take new requests: the one with the fewest; of those, the one that is thought to
 * hold most of the prompt (holder/remote.h), by itself or in the kvist-store that it is attached
 * to. A node's requests are what its last heartbeat said, or what this node has sent it since,
 * whichever is more.
 *
 * Threads: the reactor's.
 * Errors: none: there may be no node to ask. */
#ifndef KV_DECODE_CHOOSE_H
#define KV_DECODE_CHOOSE_H

#include "runtime/core.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint64_t *tried; /* [tried_count] kv_peer_id of those that will not do */
    size_t tried_count;
    const kvist_key_t *name_space; /* of the prompt, whose first held_blocks this node holds */
    const uint32_t *tokens;
    uint32_t token_count, held_blocks;
} kv_decode_choice_t;

/* NULL: none. ahead_out: requests that it has already. */
kv_peer_t *kv_decode_choose(kv_core_t *core, const kv_decode_choice_t *choice, uint32_t *ahead_out);

#endif
