/* What the lanes of a warp do in one step: the last lane of the mask to arrive computes the results
 * of all.
 *
 * Stricter than a GPU, on purpose: every lane that a mask names must come, those that returned or
 * never were included, and a shuffle may read only lanes that take part. Hardware lets both pass
 * and gives a value that means nothing. */
#include "base/check.h"
#include "kernels/simt/block_internal.h"
#include "kernels/simt/tensor.h"
#include "kernels/simt/watch.h"

#include <string.h>

enum { LANES = KV_SIMT_WARP_LANES };

static const char *operation_name(kv_simt_collective_t operation)
{
    static const char *const names[] = {
        [KV_SIMT_SYNC] = "__syncwarp",
        [KV_SIMT_SHUFFLE] = "__shfl_sync",
        [KV_SIMT_SHUFFLE_UP] = "__shfl_up_sync",
        [KV_SIMT_SHUFFLE_DOWN] = "__shfl_down_sync",
        [KV_SIMT_SHUFFLE_XOR] = "__shfl_xor_sync",
        [KV_SIMT_BALLOT] = "a vote",
        [KV_SIMT_MATCH] = "__match_any_sync",
        [KV_SIMT_ADD] = "__reduce_add_sync",
        [KV_SIMT_MIN] = "__reduce_min_sync",
        [KV_SIMT_MAX] = "__reduce_max_sync",
        [KV_SIMT_MIN_SIGNED] = "__reduce_min_sync",
        [KV_SIMT_MAX_SIGNED] = "__reduce_max_sync",
        [KV_SIMT_BITS_AND] = "__reduce_and_sync",
        [KV_SIMT_BITS_OR] = "__reduce_or_sync",
        [KV_SIMT_BITS_XOR] = "__reduce_xor_sync",
        [KV_SIMT_TENSOR] = "kv_tensor_wait",
    };
    return names[operation];
}

/* The lane that a shuffle reads; its own where CUDA says so. */
static uint32_t shuffle_source(const kv_simt_lane_t *lane)
{
    uint32_t width = lane->width, first = lane->lane & ~(width - 1), own = lane->lane;
    uint32_t argument = lane->argument;
    switch (lane->operation) {
    case KV_SIMT_SHUFFLE:
        return first | (argument & (width - 1));
    case KV_SIMT_SHUFFLE_UP:
        return argument > own - first ? own : own - argument;
    case KV_SIMT_SHUFFLE_DOWN:
        return argument > first + width - 1 - own ? own : own + argument;
    default:
        return (own ^ (argument & (LANES - 1))) > first + width - 1
                   ? own
                   : own ^ (argument & (LANES - 1));
    }
}

static void shuffle(kv_simt_lane_t *lanes, uint32_t mask)
{
    bool found = false; /* one finding a step */
    for (uint32_t left = mask; left != 0; left &= left - 1) {
        kv_simt_lane_t *lane = &lanes[__builtin_ctz(left)];
        uint32_t source = shuffle_source(lane);
        bool present = (mask >> source & 1) != 0;
        if (!present && !found) {
            found = true;
            kv_simt_find(KV_SIMT_INACTIVE_LANE,
                "%s at line %d: lane %u reads lane %u, which the mask %08x leaves out",
                operation_name(lane->operation), lane->line, lane->lane, source, mask);
        }
        lane->result = present ? lanes[source].value : UINT64_MAX;
    }
}

static uint32_t reduce(kv_simt_collective_t operation, uint32_t a, uint32_t b)
{
    switch (operation) {
    case KV_SIMT_ADD:
        return a + b;
    case KV_SIMT_MIN:
        return a < b ? a : b;
    case KV_SIMT_MAX:
        return a > b ? a : b;
    case KV_SIMT_MIN_SIGNED:
        return (int32_t)a < (int32_t)b ? a : b;
    case KV_SIMT_MAX_SIGNED:
        return (int32_t)a > (int32_t)b ? a : b;
    case KV_SIMT_BITS_AND:
        return a & b;
    case KV_SIMT_BITS_OR:
        return a | b;
    default:
        return a ^ b;
    }
}

static void reduce_all(kv_simt_lane_t *lanes, uint32_t mask)
{
    kv_simt_lane_t *first = &lanes[__builtin_ctz(mask)];
    uint32_t sum = (uint32_t)first->value;
    for (uint32_t left = mask & (mask - 1); left != 0; left &= left - 1) {
        sum = reduce(first->operation, sum, (uint32_t)lanes[__builtin_ctz(left)].value);
    }
    for (uint32_t left = mask; left != 0; left &= left - 1) {
        lanes[__builtin_ctz(left)].result = sum;
    }
}

static void ballot(kv_simt_lane_t *lanes, uint32_t mask)
{
    uint32_t held = 0;
    for (uint32_t left = mask; left != 0; left &= left - 1) {
        uint32_t lane = (uint32_t)__builtin_ctz(left);
        held |= (uint32_t)(lanes[lane].value != 0) << lane;
    }
    for (uint32_t left = mask; left != 0; left &= left - 1) {
        lanes[__builtin_ctz(left)].result = held;
    }
}

static void match(kv_simt_lane_t *lanes, uint32_t mask)
{
    for (uint32_t left = mask; left != 0; left &= left - 1) {
        kv_simt_lane_t *lane = &lanes[__builtin_ctz(left)];
        uint32_t same = 0;
        for (uint32_t other = mask; other != 0; other &= other - 1) {
            uint32_t at = (uint32_t)__builtin_ctz(other);
            same |= (uint32_t)(lanes[at].value == lane->value) << at;
        }
        lane->result = same;
    }
}

static void step(kv_simt_lane_t *lanes, uint32_t mask)
{
    kv_simt_collective_t operation = lanes[__builtin_ctz(mask)].operation;
    switch (operation) {
    case KV_SIMT_SYNC:
        kv_simt_watch_warp(lanes[0].warp, mask);
        break;
    case KV_SIMT_SHUFFLE:
    case KV_SIMT_SHUFFLE_UP:
    case KV_SIMT_SHUFFLE_DOWN:
    case KV_SIMT_SHUFFLE_XOR:
        shuffle(lanes, mask);
        break;
    case KV_SIMT_BALLOT:
        ballot(lanes, mask);
        break;
    case KV_SIMT_MATCH:
        match(lanes, mask);
        break;
    case KV_SIMT_TENSOR:
        kv_simt_tensor_step(lanes);
        break;
    default:
        reduce_all(lanes, mask);
        break;
    }
}

/* Lanes of the mask that came to something else than self; said as a finding. */
static void refuse_other_operations(const kv_simt_lane_t *self, const kv_simt_lane_t *lanes)
{
    for (uint32_t left = self->mask; left != 0; left &= left - 1) {
        const kv_simt_lane_t *lane = &lanes[__builtin_ctz(left)];
        if (lane->operation != self->operation || lane->mask != self->mask) {
            kv_simt_find(KV_SIMT_INACTIVE_LANE,
                "%s at line %d with mask %08x; lane %u is in %s at line %d with mask %08x",
                operation_name(self->operation), self->line, self->mask, lane->lane,
                operation_name(lane->operation), lane->line, lane->mask);
            kv_simt_abandon(KV_SIMT_LAUNCH_FAILURE);
        }
    }
}

/* self has said what it brings: goes on when all lanes of its mask have. */
static void meet(kv_simt_lane_t *self)
{
    kv_simt_block_t *block = &kv_simt_block;
    kv_simt_warp_t *warp = &block->warps[self->warp];
    kv_simt_lane_t *lanes = &block->lanes[self->warp * LANES];
    uint32_t mask = self->mask;
    if ((mask >> self->lane & 1) == 0) {
        kv_simt_find(KV_SIMT_INACTIVE_LANE, "%s at line %d: the mask %08x leaves out its caller",
            operation_name(self->operation), self->line, mask);
        kv_simt_abandon(KV_SIMT_LAUNCH_FAILURE);
    }
    warp->together |= 1u << self->lane;
    if ((warp->together & mask) != mask) {
        kv_simt_wait(self);
        return;
    }
    refuse_other_operations(self, lanes);
    step(lanes, mask);
    warp->together &= ~mask;
    kv_simt_wake(self->warp, mask);
}

uint64_t kv_simt_together(kv_simt_collective_t operation, uint32_t mask, uint64_t value,
    uint32_t argument, uint32_t width, const char *file, int line)
{
    (void)file;
    kv_simt_lane_t *self = kv_simt_block.current;
    self->operation = operation;
    self->mask = mask;
    self->value = value;
    self->argument = argument;
    self->width = width;
    self->line = line;
    if (operation != KV_SIMT_TENSOR) {
        kv_simt_tensor_check(self);
    }
    if (width == 0 || width > LANES || (width & (width - 1)) != 0) {
        kv_simt_find(KV_SIMT_MISUSE, "%s at line %d: width %u is not a power of two up to 32",
            operation_name(operation), line, width);
        self->width = LANES;
    }
    meet(self);
    return self->result;
}

void kv_simt_tensor_wait(const char *file, int line)
{
    (void)kv_simt_together(KV_SIMT_TENSOR, UINT32_MAX, 0, 0, LANES, file, line);
}

bool kv_simt_explain_stuck_warp(uint32_t number)
{
    kv_simt_block_t *block = &kv_simt_block;
    const kv_simt_warp_t *warp = &block->warps[number];
    if (warp->together == 0) {
        return false;
    }
    const kv_simt_lane_t *lane =
        &block->lanes[number * LANES + (uint32_t)__builtin_ctz(warp->together)];
    uint32_t missing = lane->mask & ~warp->together;
    kv_simt_find(KV_SIMT_INACTIVE_LANE,
        "%s at line %d of warp %u with mask %08x: lanes %08x never come (%08x wait at a barrier, "
        "%08x have returned)",
        operation_name(lane->operation), lane->line, number, lane->mask, missing,
        missing & warp->barrier, missing & warp->exited);
    return true;
}
