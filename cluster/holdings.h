/* Holdings: which nodes are thought to hold which blocks; the map behind the remote tier.
 *
 * Kept from the nodes' KV events (proto/events.proto), so it is always a little late: what it says
 * is worth asking for, never true. Only the lease that the asked node takes makes it exact.
 *
 * Owns: its table.
 * Threads: as its caller.
 * Errors: none: a holder that says wrong things is asked in vain.
 * Limits: KV_HOLDERS_MAX holders; capacity entries (a key at one holder): the oldest leave
 * first. */
#ifndef KV_CLUSTER_HOLDINGS_H
#define KV_CLUSTER_HOLDINGS_H

#include "proto/events.pb-c.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_HOLDERS_MAX = 256, /* of further ones nothing is kept */
    KV_HOLDINGS_KEY_BYTES = 32,
    KV_HOLDINGS_CAPACITY_MAX = 1 << 26,
};

typedef struct kv_holdings kv_holdings_t;

kv_holdings_t *kv_holdings_create(size_t capacity); /* 1 to KV_HOLDINGS_CAPACITY_MAX */
void kv_holdings_destroy(kv_holdings_t *holdings);

/* Memory of a table of that capacity: 21.3 bytes an entry, and 16 KiB. */
size_t kv_holdings_bytes(size_t capacity);
size_t kv_holdings_count(const kv_holdings_t *holdings); /* entries */

/* holder: any number but 0 that the caller gives a node (kv_peer_id). keys: of layer group 0. A key
 * that is stored again, in whatever tier, is the youngest again. */
void kv_holdings_stored(kv_holdings_t *holdings, uint64_t holder, const uint8_t *keys, size_t count,
    Kvist__Events__Tier tier);
void kv_holdings_removed(kv_holdings_t *holdings, uint64_t holder, const uint8_t *keys,
    size_t count, Kvist__Events__Tier tier);
void kv_holdings_forget(kv_holdings_t *holdings, uint64_t holder);

/* One candidate to fetch from. */
typedef struct {
    uint64_t holder;
    uint32_t block_count;    /* leading blocks of those asked for, held in whatever tier */
    uint32_t tier_blocks[3]; /* of those, by their fastest tier (Kvist__Events__Tier) */
} kv_holding_t;

/* Who holds how much of a context's next blocks: keys[0] is the first block that is missing here.
 * Writes at most count_max holders that hold at least keys[0], the longest first (at equal length
 * the one with more in fast tiers); returns how many. */
size_t kv_holdings_find(const kv_holdings_t *holdings, const uint8_t *keys, uint32_t key_count,
    kv_holding_t *holders_out, size_t count_max);

/* How much of a context's blocks these holders have together, as a node and the store that it is
 * attached to: leading blocks that at least one of them has, by the fastest tier of any. holder is
 * the first one. holder_count: at most KV_HOLDINGS_TOGETHER_MAX. */
enum { KV_HOLDINGS_TOGETHER_MAX = 4 };
kv_holding_t kv_holdings_run(const kv_holdings_t *holdings, const uint64_t *holders,
    size_t holder_count, const uint8_t *keys, uint32_t key_count);

#endif
