/* The scheduler: lanes of one warp first, then the next warp; back to the loop of the launch only
 * when no lane is ready.
 *
 * A lane takes a stack when it begins and leaves it when it ends, to the next that begins: threads
 * that never wait run one after the other on one stack, without a switch. Where accesses are
 * watched each lane of a block has its own, so that another's is told from it. */
#include "kernels/simt/block.h"

#include "base/check.h"
#include "base/memory.h"
#include "kernels/simt/asan.h"
#include "kernels/simt/block_internal.h"
#include "kernels/simt/tensor.h"
#include "kernels/simt/watch.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Frames are larger with the red zones between their variables. */
#define STACK_BYTES ((size_t)(KV_SIMT_ASAN ? 256 : 64) << 10)

kv_simt_block_t kv_simt_block;
_Thread_local bool kv_simt_inside;

/* Who runs a grid, first come first served: of a mutex a busy stream would let go only to take it
 * again, and a copy's kernel would wait until nothing is computed any more. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t next;
    uint64_t taken, served;
} turns = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
static uint64_t order_seed; /* under a turn */

/* Turns of this block: the first of a mask's bits from a place on, in one direction. */
static uint32_t turn_start;
static bool turn_down;

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static void begin_turn(void)
{
    pthread_mutex_lock(&turns.lock);
    const uint64_t mine = turns.taken++;
    while (turns.served != mine) {
        pthread_cond_wait(&turns.next, &turns.lock);
    }
    pthread_mutex_unlock(&turns.lock);
}

static void end_turn(void)
{
    pthread_mutex_lock(&turns.lock);
    turns.served++;
    pthread_cond_broadcast(&turns.next);
    pthread_mutex_unlock(&turns.lock);
}

void kv_simt_set_order(uint64_t seed)
{
    begin_turn();
    order_seed = seed;
    end_turn();
}

/* The scheduler's own steps are taken for every thread of every block: they are inlined. */
#define INLINED static inline __attribute__((always_inline))

INLINED uint32_t pick(uint32_t mask)
{
    if (turn_start == 0 && !turn_down) {
        return (uint32_t)__builtin_ctz(mask);
    }
    uint32_t start = turn_start;
    uint32_t turned = start == 0 ? mask : (mask >> start) | (mask << (32 - start));
    uint32_t at =
        turn_down ? 31 - (uint32_t)__builtin_clz(turned) : (uint32_t)__builtin_ctz(turned);
    return (at + start) % 32;
}

INLINED kv_simt_lane_t *next_ready(uint32_t warp)
{
    kv_simt_block_t *block = &kv_simt_block;
    if (block->ready_warps == 0) {
        return NULL;
    }
    if (((block->ready_warps >> warp) & 1) == 0) {
        warp = pick(block->ready_warps);
    }
    return &block->lanes[warp * KV_SIMT_WARP_LANES + pick(block->warps[warp].ready)];
}

INLINED void take_from_ready(kv_simt_lane_t *self)
{
    kv_simt_warp_t *warp = &kv_simt_block.warps[self->warp];
    warp->ready &= ~(1u << self->lane);
    if (warp->ready == 0) {
        kv_simt_block.ready_warps &= ~(1u << self->warp);
    }
}

void kv_simt_wake(uint32_t warp, uint32_t lanes)
{
    kv_simt_block.warps[warp].ready |= lanes;
    kv_simt_block.ready_warps |= 1u << warp;
}

static void live(void *unused);

static __attribute__((noinline)) kv_fiber_t *take_fiber(void)
{
    kv_simt_block_t *block = &kv_simt_block;
    if (block->idle_count > 0) {
        return block->idle[--block->idle_count];
    }
    uint32_t number = block->used_count++;
    if (block->fibers[number] == NULL) {
        block->fibers[number] = kv_fiber_create(STACK_BYTES, number);
    }
    /* It may have been left anywhere, by an earlier launch and another thread. */
    kv_fiber_restart(block->fibers[number], live, NULL);
    return block->fibers[number];
}

/* Makes the lane the current one; the stack to go on with it on. */
INLINED kv_fiber_t *go_on_with(kv_simt_lane_t *lane)
{
    kv_simt_block_t *block = &kv_simt_block;
    block->current = lane;
    if (lane == NULL) {
        return block->scheduler;
    }
    if (lane->fiber == NULL) {
        lane->fiber = take_fiber();
    }
    return lane->fiber;
}

void kv_simt_wait(kv_simt_lane_t *self)
{
    take_from_ready(self);
    kv_fiber_switch(self->fiber, go_on_with(next_ready(self->warp)));
}

_Noreturn void kv_simt_abandon(int error)
{
    kv_simt_block_t *block = &kv_simt_block;
    kv_fiber_t *self = block->current->fiber;
    block->error = error;
    block->current = NULL;
    kv_fiber_switch(self, block->scheduler);
    abort();
}

const kv_simt_thread_t *kv_simt_self(void)
{
    KV_CHECK(kv_simt_block.current != NULL);
    return &kv_simt_block.current->seen;
}

void *kv_simt_shared(void)
{
    return kv_simt_block.shared;
}

/* One thread of the kernel. */
static void run_lane(kv_simt_lane_t *self)
{
    kv_simt_block_t *block = &kv_simt_block;
    self->seen.block = block->index;
    self->copy_count = self->group = 0;
    block->launch->run(block->launch->body);
    kv_simt_tensor_check(self);
    if (self->copy_count > 0) {
        kv_simt_copy_async_commit();
        kv_simt_copy_async_wait(0);
    }
    block->warps[self->warp].exited |= 1u << self->lane;
    block->exited++;
    take_from_ready(self);
}

/* A stack's whole life: one lane after the other, whichever is current when it is gone on with. */
static void live(void *unused)
{
    kv_simt_block_t *block = &kv_simt_block;
    (void)unused;
    for (;;) {
        kv_simt_lane_t *self = block->current;
        kv_fiber_t *fiber = self->fiber;
        run_lane(self);
        kv_simt_lane_t *next = next_ready(self->warp);
        if (kv_simt_watching()) {
            kv_fiber_switch(fiber, go_on_with(next));
            abort(); /* its stack stays its own */
        }
        self->fiber = NULL;
        if (next != NULL && next->fiber == NULL) {
            next->fiber = fiber;
            block->current = next;
        } else {
            block->idle[block->idle_count++] = fiber;
            kv_fiber_switch(fiber, go_on_with(next));
        }
    }
}

static void open_barrier(void)
{
    kv_simt_block_t *block = &kv_simt_block;
    switch (block->barrier_vote) {
    case KV_SIMT_COUNT:
        block->barrier_result = (int)block->votes;
        break;
    case KV_SIMT_AND:
        block->barrier_result = block->votes == block->thread_count;
        break;
    case KV_SIMT_OR:
        block->barrier_result = block->votes > 0;
        break;
    }
    block->arrived = block->votes = 0;
    for (uint32_t warp = 0; warp < block->warp_count; warp++) {
        kv_simt_wake(warp, block->warps[warp].barrier);
        block->warps[warp].barrier = 0;
    }
    kv_simt_watch_barrier();
}

int kv_simt_barrier(kv_simt_vote_t vote, int predicate, const char *file, int line)
{
    kv_simt_block_t *block = &kv_simt_block;
    kv_simt_lane_t *self = block->current;
    kv_simt_tensor_check(self);
    if (block->arrived == 0) {
        block->barrier_file = file;
        block->barrier_line = line;
        block->barrier_vote = vote;
    } else if (block->barrier_line != line || strcmp(block->barrier_file, file) != 0) {
        kv_simt_find(KV_SIMT_DIVERGENT_BARRIER, "the barrier of line %d, others wait at line %d",
            line, block->barrier_line);
        kv_simt_abandon(KV_SIMT_LAUNCH_FAILURE);
    }
    block->arrived++;
    block->votes += predicate != 0;
    block->warps[self->warp].barrier |= 1u << self->lane;
    if (block->arrived < block->thread_count) {
        kv_simt_wait(self);
    } else {
        open_barrier();
    }
    return block->barrier_result;
}

/* No lane is ready: either all have exited, or none will ever go on. */
static void explain_stuck(void)
{
    kv_simt_block_t *block = &kv_simt_block;
    for (uint32_t warp = 0; warp < block->warp_count; warp++) {
        if (kv_simt_explain_stuck_warp(warp)) {
            return;
        }
    }
    kv_simt_find(KV_SIMT_DIVERGENT_BARRIER,
        "%u threads wait at the barrier of line %d, %u have returned", block->arrived,
        block->barrier_line, block->exited);
}

/* No lane has begun, and every stack begins anew. */
static void forget_stacks(void)
{
    kv_simt_block_t *block = &kv_simt_block;
    for (uint32_t i = 0; i < block->thread_count; i++) {
        block->lanes[i].fiber = NULL;
    }
    block->used_count = block->idle_count = 0;
}

/* Where the lane is in every block of the launch. */
static void place_lane(uint32_t index)
{
    kv_simt_block_t *block = &kv_simt_block;
    kv_simt_lane_t *lane = &block->lanes[index];
    const kv_simt_index_t *size = &block->launch->block;
    lane->seen = (kv_simt_thread_t){
        .thread = {index % size->x, index / size->x % size->y, index / size->x / size->y},
        .block_dim = *size,
        .grid_dim = block->launch->grid,
    };
    lane->index = index;
    lane->warp = index / KV_SIMT_WARP_LANES;
    lane->lane = index % KV_SIMT_WARP_LANES;
    kv_simt_tensor_forget(lane);
}

static void set_up_block(kv_simt_index_t index, uint64_t number)
{
    kv_simt_block_t *block = &kv_simt_block;
    uint64_t turn = order_seed == 0 ? 0 : mix(order_seed + number);
    turn_start = (uint32_t)(turn % 32);
    turn_down = (turn >> 32 & 1) != 0;
    block->index = index;
    block->arrived = block->exited = block->votes = 0;
    memset(block->warps, 0, sizeof block->warps);
    block->ready_warps = 0;
    memset(block->shared, 0xff, block->launch->shared_bytes);
    for (uint32_t warp = 0; warp < block->warp_count; warp++) {
        uint32_t rest = block->thread_count - warp * KV_SIMT_WARP_LANES;
        kv_simt_wake(warp, rest < KV_SIMT_WARP_LANES ? (1u << rest) - 1 : UINT32_MAX);
    }
    if (kv_simt_watching()) {
        forget_stacks();
    }
    kv_simt_watch_block();
}

static void run_block(void)
{
    kv_simt_block_t *block = &kv_simt_block;
    while (block->error == 0 && block->exited < block->thread_count) {
        kv_simt_lane_t *next = next_ready(0);
        if (next == NULL) {
            explain_stuck();
            block->error = KV_SIMT_LAUNCH_FAILURE;
            return;
        }
        kv_fiber_switch(block->scheduler, go_on_with(next));
        block->current = NULL;
    }
}

/* Block number i of the order: ascending for seed 0, else from a place on in one direction. */
static uint64_t block_in_turn(uint64_t i, uint64_t count)
{
    if (order_seed == 0) {
        return i;
    }
    uint64_t turn = mix(order_seed), from = turn % count;
    return (turn >> 32 & 1) != 0 ? (from + i) % count : (from + count - i) % count;
}

static void open_block(const kv_simt_launch_t *launch)
{
    kv_simt_block_t *block = &kv_simt_block;
    if (block->lanes == NULL) {
        void *lanes = NULL, *shared = NULL;
        KV_CHECK(posix_memalign(&lanes, _Alignof(kv_simt_lane_t),
                     KV_SIMT_THREADS_MAX * sizeof *block->lanes) == 0);
        block->lanes = memset(lanes, 0, KV_SIMT_THREADS_MAX * sizeof *block->lanes);
        KV_CHECK(posix_memalign(&shared, 1024, KV_SIMT_SHARED_BYTES_MAX) == 0);
        block->shared = shared;
    }
    block->launch = launch;
    KV_SIMT_UNPOISON(block->shared, KV_SIMT_SHARED_BYTES_MAX);
    KV_SIMT_POISON(
        block->shared + launch->shared_bytes, KV_SIMT_SHARED_BYTES_MAX - launch->shared_bytes);
    block->scheduler = kv_fiber_create_for_thread();
    block->thread_count = launch->block.x * launch->block.y * launch->block.z;
    block->warp_count = (block->thread_count + KV_SIMT_WARP_LANES - 1) / KV_SIMT_WARP_LANES;
    block->error = 0;
    block->current = NULL;
    for (uint32_t i = 0; i < block->thread_count; i++) {
        place_lane(i);
    }
    forget_stacks();
}

int kv_simt_grid_run(const kv_simt_launch_t *launch)
{
    KV_CHECK(!kv_simt_inside);
    kv_simt_block_t *block = &kv_simt_block;
    begin_turn();
    open_block(launch);
    kv_simt_inside = true;
    kv_simt_watch_launch();
    const kv_simt_index_t *grid = &launch->grid;
    uint64_t count = (uint64_t)grid->x * grid->y * grid->z;
    for (uint64_t i = 0; i < count && block->error == 0; i++) {
        uint64_t number = block_in_turn(i, count);
        kv_simt_index_t index = {(unsigned)(number % grid->x),
            (unsigned)(number / grid->x % grid->y), (unsigned)(number / grid->x / grid->y)};
        set_up_block(index, number);
        run_block();
    }
    int error = block->error;
    if (error == 0) {
        kv_simt_kernel_count(launch->known);
    }
    kv_simt_inside = false;
    kv_fiber_destroy(block->scheduler);
    block->scheduler = NULL;
    block->launch = NULL;
    end_turn();
    return error;
}
