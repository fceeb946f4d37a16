/* The shared host tier's memory, made ready in chunks while the store serves.
 *
 * Opening makes one chunk of each group ready, so that the first put has room. The others follow
 * one after the other on a thread of their own; each becomes slots in the poll that hears of it.
 * Where memory ends, the tier stays as large as it got. A private tier's memory is there once it is
 * touched: nothing is under way. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>

enum {
    CHUNK_BYTES = 64 << 20,
    NICE = 5, /* behind those that serve */
    MIB_SHIFT = 20,
};

struct kv_populate {
    kv_task_t task;
    kv_workers_t *worker;
    const kv_arena_memory_t *memory;
    atomic_bool stop;
    uint32_t group, first_slot, slot_count; /* what is being made ready */
    bool out;                               /* at the worker */
    bool locked, told;                      /* it was permitted so far; it was said that not */
    kv_status_t status;
    kv_error_t error;
};

/* ---- one chunk ---- */

/* Of the group that has the least, since a block needs a slot of each; false: all are ready. */
static bool choose(const kvist_store_t *store, kv_populate_t *populate)
{
    uint32_t least = UINT32_MAX;
    for (uint32_t i = 0; i < store->group_count; i++) {
        const kv_pool_t *pool = &store->groups[i].host_pool;
        if (pool->ready_count < pool->slot_count && pool->ready_count < least) {
            const uint64_t at_once = CHUNK_BYTES / store->groups[i].layout.object_bytes;
            const uint32_t left = pool->slot_count - pool->ready_count;
            least = pool->ready_count;
            populate->group = i;
            populate->first_slot = least;
            populate->slot_count = at_once > left ? left : at_once > 0 ? (uint32_t)at_once : 1;
        }
    }
    return least < UINT32_MAX;
}

static void make_ready(kv_populate_t *populate)
{
    const kv_store_group_t *group = &populate->task.store->groups[populate->group];
    populate->status =
        kv_arena_make_ready(&group->host_arena, populate->memory, populate->first_slot,
            populate->slot_count, &populate->stop, &populate->locked, &populate->error);
}

static uint64_t host_bytes(const kvist_store_t *store)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < store->group_count; i++) {
        bytes += store->groups[i].host_pool.ready_count * store->groups[i].layout.object_bytes;
    }
    return bytes;
}

/* No more is to be had: these are all slots that there ever are. */
static void settle(kvist_store_t *store, const kv_error_t *error)
{
    kv_log_warn("store", "host tier smaller than configured size_mib %" PRIu64 " cause %s",
        host_bytes(store) >> MIB_SHIFT, error->text);
    for (uint32_t i = 0; i < store->group_count; i++) {
        store->groups[i].host_pool.slot_count = store->groups[i].host_pool.ready_count;
    }
}

/* What was made ready becomes slots. */
static void take_chunk(kvist_store_t *store, kv_populate_t *populate)
{
    kv_store_group_t *group = &store->groups[populate->group];
    kv_pool_extend(&group->host_pool, populate->first_slot + populate->slot_count);
    if (populate->locked) {
        store->stats.host_locked_bytes += populate->slot_count * group->layout.object_bytes;
    } else if (!populate->told) {
        populate->told = true;
        kv_log_info("store",
            "host tier is not locked in memory any further locked_mib %" PRIu64
            " remedy raise the memlock limit",
            store->stats.host_locked_bytes >> MIB_SHIFT);
    }
}

/* ---- in the background ---- */

static void work(void *argument)
{
    kv_populate_t *populate = argument;
    setpriority(PRIO_PROCESS, 0, NICE); /* of this thread; nothing is lost where it is refused */
    make_ready(populate);
    kv_store_finish(&populate->task);
}

static void start(kvist_store_t *store)
{
    kv_populate_t *populate = store->populate;
    populate->out = true;
    /* Without threads the work is done here; its end comes with the next poll. */
    KV_CHECK(kv_workers_submit(populate->worker, (kv_job_t){work, populate}) == KV_OK);
}

static void chunk_done(kv_task_t *task)
{
    kv_populate_t *populate = (kv_populate_t *)task;
    kvist_store_t *store = task->store;
    populate->out = false;
    if (populate->status == KV_OK) {
        take_chunk(store, populate);
    } else if (populate->status != KV_CANCELLED) {
        settle(store, &populate->error);
    }
    if (populate->status == KV_OK && !atomic_load(&populate->stop) && choose(store, populate)) {
        start(store);
    } else {
        kv_populate_close(store);
    }
}

/* ---- open, stop, close ---- */

/* A chunk of each group, here and now. */
static kv_status_t take_first(kvist_store_t *store, kv_populate_t *populate, kv_error_t *error)
{
    for (uint32_t i = 0; i < store->group_count && choose(store, populate); i++) {
        make_ready(populate);
        if (populate->status != KV_OK) {
            return kv_fail(
                error, populate->status, "no memory for the host tier: %s", populate->error.text);
        }
        take_chunk(store, populate);
    }
    return KV_OK;
}

kv_status_t kv_populate_open(
    kvist_store_t *store, const kv_arena_memory_t *memory, kv_error_t *error)
{
    kv_populate_t *populate = kv_allocate(sizeof *populate);
    *populate = (kv_populate_t){
        .task = {.done = chunk_done, .store = store},
        .memory = memory,
        .locked = true,
    };
    store->populate = populate;
    kv_status_t status = take_first(store, populate, error);
    if (status == KV_OK && choose(store, populate)) {
        populate->worker = kv_workers_create("kv-memory", store->threadless ? 0 : 1, 1);
        start(store);
    } else {
        kv_populate_close(store);
    }
    return status;
}

bool kv_populate_stop(kvist_store_t *store)
{
    if (store->populate == NULL) {
        return true;
    }
    atomic_store(&store->populate->stop, true);
    return false;
}

void kv_populate_close(kvist_store_t *store)
{
    if (store->populate != NULL) {
        kv_populate_stop(store);
        kv_workers_destroy(store->populate->worker);
        free(store->populate);
        store->populate = NULL;
    }
}

uint64_t kv_populate_coming_bytes(const kvist_store_t *store)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < store->group_count; i++) {
        const kv_pool_t *pool = &store->groups[i].host_pool;
        bytes += (pool->slot_count - pool->ready_count) * store->groups[i].layout.object_bytes;
    }
    return bytes;
}
