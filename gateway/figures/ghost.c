/* The map of who holds what (cluster/holdings.h) is what this needs: a table of keys with a bound,
 * of which the oldest leave. The ghost is the one holder in a map of its own, and what was to be
 * kept is in a faster tier than what was only seen. */
#include "gateway/figures/ghost.h"

#include "base/memory.h"
#include "base/metrics.h"
#include "cluster/holdings.h"

#include <stdlib.h>

enum {
    ENTRY_BYTES = 22, /* kv_holdings_bytes */
    SELF = 1,
};

static const Kvist__Events__Tier KEPT = KVIST__EVENTS__TIER__TIER_DEVICE;
static const Kvist__Events__Tier SEEN = KVIST__EVENTS__TIER__TIER_HOST;

struct kv_ghost {
    kv_holdings_t *holdings;
    size_t capacity;
    kv_metric_t *blocks;
};

kv_ghost_t *kv_ghost_create(uint64_t bytes)
{
    kv_ghost_t *ghost = kv_allocate(sizeof *ghost);
    uint64_t capacity = bytes / ENTRY_BYTES;
    ghost->capacity =
        capacity < KV_HOLDINGS_CAPACITY_MAX ? (size_t)capacity : KV_HOLDINGS_CAPACITY_MAX;
    ghost->holdings = kv_holdings_create(ghost->capacity);
    ghost->blocks = kv_metric_gauge("kvist_gateway_ghost_blocks", "",
        "blocks that are known to have been seen, for the ideal hit rate");
    kv_metric_set(ghost->blocks, 0);
    kv_metric_set(kv_metric_gauge("kvist_gateway_ghost_blocks_max", "",
                      "blocks that gateway.ghost_bytes has room for"),
        (double)ghost->capacity);
    return ghost;
}

void kv_ghost_destroy(kv_ghost_t *ghost)
{
    if (ghost != NULL) {
        kv_holdings_destroy(ghost->holdings);
        free(ghost);
    }
}

/* From the end: a block is younger than those that go on from it, so that none is left behind its
 * context. */
void kv_ghost_note(kv_ghost_t *ghost, const kvist_key_t *keys, uint32_t count, bool kept)
{
    for (uint32_t i = count; i > 0; i--) {
        kv_holdings_stored(ghost->holdings, SELF, keys[i - 1].bytes, 1, kept ? KEPT : SEEN);
    }
    kv_metric_set(ghost->blocks, (double)kv_holdings_count(ghost->holdings));
}

kv_ghost_run_t kv_ghost_look(const kv_ghost_t *ghost, const kvist_key_t *keys, uint32_t count)
{
    const uint64_t self = SELF;
    if (count == 0) {
        return (kv_ghost_run_t){0};
    }
    /* What was kept was so from its context's beginning. */
    kv_holding_t run = kv_holdings_run(ghost->holdings, &self, 1, keys->bytes, count);
    return (kv_ghost_run_t){run.block_count, run.tier_blocks[KEPT]};
}

size_t kv_ghost_count(const kv_ghost_t *ghost)
{
    return kv_holdings_count(ghost->holdings);
}

size_t kv_ghost_capacity(const kv_ghost_t *ghost)
{
    return ghost->capacity;
}
