/* What the lanes of a warp do in one step: the last lane of the mask to arrive computes the results
 * of all.
 *
 * Stricter than a GPU, on purpose: every lane that a mask names must come, those that returned or
 * never were included, and a shuffle may read only lanes that take part. Hardware lets both pass
 * and gives a value that means nothing. */
#include "base/check.h"
#include "kernels/simt/block_internal.h"
#include "kernels/simt/numbers.h"
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
        [KV_SIMT_MMA_BF16] = "mma.sync",
        [KV_SIMT_MMA_F16] = "mma.sync",
        [KV_SIMT_LOAD_MATRIX] = "ldmatrix",
        [KV_SIMT_LOAD_MATRIX_TRANSPOSED] = "ldmatrix",
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

/* Four floats that the compiler keeps in one register of the host. */
typedef float quad_t __attribute__((vector_size(16)));

static void unpack(kv_simt_collective_t operation, uint32_t pair, float *low, float *high)
{
    if (operation == KV_SIMT_MMA_BF16) {
        *low = kv_float_of_bits(pair << 16);
        *high = kv_float_of_bits(pair & 0xffff0000u);
    } else {
        *low = kv_half_to_float((uint16_t)pair);
        *high = kv_half_to_float((uint16_t)(pair >> 16));
    }
}

/* The fragments that the lanes hold as matrices; kernels/cuda/tensor.h draws them. */
static void gather_fragments(const kv_simt_lane_t *lanes, float a[16][16], float b[16][8])
{
    for (uint32_t i = 0; i < LANES; i++) {
        const kv_simt_lane_t *lane = &lanes[i];
        uint32_t group = i / 4, pair = i % 4 * 2;
        for (uint32_t part = 0; part < 4; part++) {
            float *at = &a[group + part % 2 * 8][pair + part / 2 * 8];
            unpack(lane->operation, lane->left[part], at, at + 1);
        }
        for (uint32_t part = 0; part < 2; part++) {
            uint32_t row = pair + part * 8;
            unpack(lane->operation, lane->right[part], &b[row][group], &b[row + 1][group]);
        }
    }
}

/* C (16 x 8) += A (16 x 16) x B (16 x 8). */
static void multiply(kv_simt_lane_t *lanes)
{
    float a[16][16];
    _Alignas(16) float b[16][8];
    gather_fragments(lanes, a, b);
    for (uint32_t row = 0; row < 16; row++) {
        quad_t sums[2] = {{0}, {0}};
        for (uint32_t k = 0; k < 16; k++) {
            const quad_t *right = (const quad_t *)(const void *)b[k];
            sums[0] += a[row][k] * right[0];
            sums[1] += a[row][k] * right[1];
        }
        for (uint32_t pair = 0; pair < 4; pair++) {
            float *out = &lanes[row % 8 * 4 + pair].sums[row / 8 * 2];
            out[0] += sums[pair / 2][pair % 2 * 2];
            out[1] += sums[pair / 2][pair % 2 * 2 + 1];
        }
    }
}

static void load_matrix(kv_simt_lane_t *lanes)
{
    uint32_t count = lanes[0].argument;
    bool transposed = lanes[0].operation == KV_SIMT_LOAD_MATRIX_TRANSPOSED;
    for (uint32_t m = 0; m < count; m++) {
        uint16_t rows[8][8];
        for (uint32_t row = 0; row < 8; row++) {
            memcpy(rows[row], lanes[m * 8 + row].row, sizeof rows[row]);
        }
        for (uint32_t i = 0; i < LANES; i++) {
            uint32_t group = i / 4, pair = i % 4 * 2;
            uint32_t low = transposed ? rows[pair][group] : rows[group][pair];
            uint32_t high = transposed ? rows[pair + 1][group] : rows[group][pair + 1];
            lanes[i].out[m] = low | high << 16;
        }
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
    case KV_SIMT_MMA_BF16:
    case KV_SIMT_MMA_F16:
        multiply(lanes);
        break;
    case KV_SIMT_LOAD_MATRIX:
    case KV_SIMT_LOAD_MATRIX_TRANSPOSED:
        load_matrix(lanes);
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
    if (width == 0 || width > LANES || (width & (width - 1)) != 0) {
        kv_simt_find(KV_SIMT_MISUSE, "%s at line %d: width %u is not a power of two up to 32",
            operation_name(operation), line, width);
        self->width = LANES;
    }
    meet(self);
    return self->result;
}

void kv_simt_mma(kv_simt_operand_t operand, float c[4], const uint32_t a[4], const uint32_t b[2])
{
    kv_simt_lane_t *self = kv_simt_block.current;
    self->operation = (kv_simt_collective_t)operand;
    self->mask = UINT32_MAX;
    self->sums = c;
    self->left = a;
    self->right = b;
    self->line = 0;
    meet(self);
}

void kv_simt_load_matrix(uint32_t count, bool transposed, uint32_t *out, const void *row)
{
    kv_simt_lane_t *self = kv_simt_block.current;
    self->operation = transposed ? KV_SIMT_LOAD_MATRIX_TRANSPOSED : KV_SIMT_LOAD_MATRIX;
    self->mask = UINT32_MAX;
    self->argument = count;
    self->out = out;
    self->row = row;
    self->line = 0;
    if (self->lane < 8 * count) {
        if ((uintptr_t)row % 16 != 0) {
            kv_simt_find(KV_SIMT_MISALIGNED, "ldmatrix of a row that is not aligned to 16 bytes");
            kv_simt_abandon(KV_SIMT_MISALIGNED_ADDRESS);
        }
        kv_simt_access(row, 16, KV_SIMT_READ, __builtin_return_address(0));
    }
    meet(self);
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
