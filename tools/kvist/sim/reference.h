/* What a cache of single blocks would hit that knows no chains and no store: textbook replays, to
 * be held against the real store's.
 *
 *   lru, fifo   each block on its own; a hit is what lies before the first hole
 *   belady      what is needed again last goes first, or is not taken at all: no cache of that many
 *               blocks hits more, whatever it knows
 *
 * A block's next use is where it stands among all blocks that are asked for, so that of one prompt
 * the last block goes first, and belady's chains have no hole either.
 *
 * Owns: nothing; borrows the trace during a call.
 * Threads: any. */
#ifndef KV_TOOLS_SIM_REFERENCE_H
#define KV_TOOLS_SIM_REFERENCE_H

#include "tools/kvist/sim/trace.h"

typedef enum {
    KV_REFERENCE_FIFO,
    KV_REFERENCE_LRU,
    KV_REFERENCE_BELADY,
    KV_REFERENCE_COUNT,
} kv_reference_t;

const char *kv_reference_name(kv_reference_t kind); /* "fifo (flat)", "lru (flat)", "belady" */

/* hits_out: [trace->request_count] contiguous first blocks of each request that were there. */
void kv_reference_replay(
    const kv_trace_t *trace, kv_reference_t kind, uint32_t capacity_blocks, uint32_t *hits_out);

#endif
