/* Loading layer by layer: found blocks out of host memory into their device slots, the first layer
 * of all of them first, so that who computes with them can begin while later layers still come.
 *
 *   planned -> a step at a time (a worker: one move of some layers of all blocks, proved on the
 *   device), two of them under way -> the lease hears how many leading layers are there -> all
 *   reads end together
 *
 * Only a device that moves by itself gains: where moving is this process's own copying, a lease is
 * ready soonest when whole blocks are copied. What is on disk comes block by block, since a record
 * is read, decrypted and decoded as a whole; the lease is not told before all of that is in. */
#include "kvstore/lease/lease_internal.h"

#include "base/check.h"
#include "base/checksum.h"
#include "base/log.h"
#include "base/memory.h"
#include "kernels/moves.h"
#include "kvstore/disk/read.h"

#include <stdlib.h>
#include <string.h>

enum {
    STEPS_OUT_MAX = 2,      /* one is proved and told of while the next one moves */
    STEP_BYTES = 1 << 20,   /* of all blocks: less costs more to start than to move */
    STEP_BLOCKS_MAX = 1024, /* of one move */
};
_Static_assert(STEP_BLOCKS_MAX <= (int)KV_MOVE_SLOTS_MAX, "a move takes them");

typedef struct layers layers_t;

typedef struct {
    kv_task_t task; /* first */
    layers_t *layers;
    uint32_t first_layer, layer_count;
    bool out;
    kv_status_t status;    /* of the device */
    kv_status_t *statuses; /* [count]: of each block's bytes */
} step_t;

struct layers {
    kvist_lease_t *lease;
    kv_layered_t *blocks; /* [count] */
    uint32_t count;
    uint32_t step_layers, next_layer; /* layers before `next_layer` are there or under way */
    uint32_t steps_out;
    step_t steps[STEPS_OUT_MAX];
    kv_status_t status; /* the first that went wrong */
    bool stopped;       /* the device failed: nothing more is begun */
    uint64_t started_ns;
};

static const kv_layout_t *layout_of(const kvist_store_t *store)
{
    return &store->groups[0].layout;
}

/* How many layers of so many blocks make one step. */
static uint32_t layers_of_step(const kvist_store_t *store, uint32_t block_count)
{
    const size_t layer_bytes = block_count * layout_of(store)->layer_bytes;
    const size_t wanted = store->layer_step_bytes > 0 ? store->layer_step_bytes : STEP_BYTES;
    return (uint32_t)((wanted + layer_bytes - 1) / layer_bytes);
}

bool kv_load_layers_pay(const kvist_store_t *store, uint32_t block_count)
{
    return store->device->ops->move_start != NULL && !store->device->ops->host &&
           kv_device_unit_bytes(layout_of(store)) > 0 && block_count > 0 &&
           layers_of_step(store, block_count) < layout_of(store)->layer_count;
}

/* ---- a step, on a worker ---- */

/* Some blocks of a step: what the device is asked for. */
typedef struct {
    uint32_t slots[STEP_BLOCKS_MAX];
    char *outside[STEP_BLOCKS_MAX];
    uint64_t *sums; /* [count][units] */
    uint32_t first, count;
} part_t;

/* What has come to the device against what is known of the block. Wrong there and right where it
 * came from: it was damaged on its way, not for good. */
static kv_status_t prove(const step_t *step, const part_t *part, uint32_t at)
{
    const kvist_store_t *store = step->task.store;
    const kv_layout_t *layout = layout_of(store);
    const uint32_t units = step->layer_count * layout->layer_units;
    const uint32_t host_slot = step->layers->blocks[part->first + at].read->slot;
    const uint64_t *known = kv_pool_checksums(&store->groups[0].host_pool, host_slot) +
                            (size_t)step->first_layer * layout->layer_units;
    const size_t unit_bytes = kv_device_unit_bytes(layout);
    if (memcmp(part->sums + (size_t)at * units, known, units * sizeof *known) == 0) {
        return KV_OK;
    }
    for (uint32_t unit = 0; unit < units; unit++) {
        if (kv_checksum(part->outside[at] + unit * unit_bytes, unit_bytes) != known[unit]) {
            return KV_CORRUPT;
        }
    }
    return KV_IO;
}

static kv_status_t move_part(step_t *step, part_t *part)
{
    const kvist_store_t *store = step->task.store;
    const kv_layout_t *layout = layout_of(store);
    const kv_slot_part_t range = {
        step->first_layer * layout->layer_bytes, step->layer_count * layout->layer_bytes};
    for (uint32_t i = 0; i < part->count; i++) {
        const kv_layered_t *block = &step->layers->blocks[part->first + i];
        part->slots[i] = block->slot;
        part->outside[i] =
            kv_group_host_bytes(&store->groups[0], block->read->slot) + range.offset_bytes;
    }
    const kv_move_params_t params = {
        .direction = KV_MOVE_IN,
        .arena = store->arena,
        .slot_bytes = layout->object_bytes,
        .slots = part->slots,
        .slot_count = part->count,
        .parts = &range,
        .part_count = 1,
        .outside = part->outside,
        .unit_bytes = kv_device_unit_bytes(layout),
        .checksums = part->sums,
    };
    kv_error_t error;
    kv_status_t status = kv_move(store->device, &params, &error);
    if (status != KV_OK) {
        kv_log_warn("store", "layers cannot be written to the device first %u count %u cause %s",
            step->first_layer, step->layer_count, error.text);
        return KV_IO;
    }
    for (uint32_t i = 0; i < part->count; i++) {
        step->statuses[part->first + i] = prove(step, part, i);
    }
    return KV_OK;
}

static void work(kv_task_t *task)
{
    step_t *step = (step_t *)task;
    const uint32_t count = step->layers->count,
                   at_once = count < STEP_BLOCKS_MAX ? count : (uint32_t)STEP_BLOCKS_MAX;
    part_t *part = kv_allocate(sizeof *part);
    part->sums =
        kv_allocate_array((size_t)at_once * step->layer_count * layout_of(task->store)->layer_units,
            sizeof *part->sums);
    step->status = KV_OK;
    for (uint32_t first = 0; first < count && step->status == KV_OK; first += part->count) {
        part->first = first;
        part->count = count - first < at_once ? count - first : at_once;
        step->status = move_part(step, part);
    }
    free(part->sums);
    free(part);
    kv_store_finish(task);
}

/* ---- the steps together ---- */

static void start_steps(layers_t *layers);

/* The last layers are in the slots before the lease hears of them. */
static void end(layers_t *layers)
{
    kvist_lease_t *lease = layers->lease;
    kvist_store_t *store = lease->store;
    const kv_pool_t *host_pool = &store->groups[0].host_pool;
    kv_read_note_rate(
        store, KVIST_TIER_HOST, layers->started_ns, layers->count * layout_of(store)->object_bytes);
    kv_lease_set_layered(lease, 0);
    for (uint32_t i = 0; i < layers->count; i++) {
        kv_read_t *read = layers->blocks[i].read;
        memcpy(kv_pool_words(&store->device_pool, layers->blocks[i].slot),
            kv_pool_words(host_pool, read->slot), store->block_words * sizeof(uint32_t));
        kv_read_end(store, read);
    }
    for (uint32_t i = 0; i < STEPS_OUT_MAX; i++) {
        free(layers->steps[i].statuses);
    }
    free(layers->blocks);
    free(layers);
}

/* Leading layers of which nothing is under way any more. */
static uint32_t layers_there(const layers_t *layers)
{
    uint32_t there = layers->next_layer;
    for (uint32_t i = 0; i < STEPS_OUT_MAX; i++) {
        const step_t *step = &layers->steps[i];
        there = step->out && step->first_layer < there ? step->first_layer : there;
    }
    return there;
}

static void note(layers_t *layers, const step_t *step)
{
    for (uint32_t i = 0; i < layers->count; i++) {
        kv_read_t *read = layers->blocks[i].read;
        kv_status_t status = step->status != KV_OK ? step->status : step->statuses[i];
        if (status == KV_OK && !kv_read_is_current(layers->lease->store, read)) {
            status = KV_IO;
        }
        read->status = read->status == KV_OK ? status : read->status;
        layers->status = layers->status == KV_OK ? status : layers->status;
    }
    layers->stopped = layers->stopped || step->status != KV_OK;
}

static void done(kv_task_t *task)
{
    step_t *step = (step_t *)task;
    layers_t *layers = step->layers;
    note(layers, step);
    step->out = false;
    layers->steps_out--;
    start_steps(layers);
    if (layers->steps_out == 0) {
        end(layers);
    } else {
        kv_lease_layers_came(layers->lease, layers_there(layers), layers->status);
    }
}

static void start_step(layers_t *layers, step_t *step)
{
    kvist_store_t *store = layers->lease->store;
    const uint32_t left = layout_of(store)->layer_count - layers->next_layer;
    step->task = (kv_task_t){.work = work, .done = done, .store = store};
    step->layers = layers;
    step->first_layer = layers->next_layer;
    step->layer_count = left < layers->step_layers ? left : layers->step_layers;
    step->out = true;
    layers->next_layer += step->layer_count;
    layers->steps_out++;
    kv_store_submit(store, &step->task);
}

static void start_steps(layers_t *layers)
{
    const uint32_t layer_count = layout_of(layers->lease->store)->layer_count;
    for (uint32_t i = 0; i < STEPS_OUT_MAX; i++) {
        if (!layers->steps[i].out && !layers->stopped && layers->next_layer < layer_count) {
            start_step(layers, &layers->steps[i]);
        }
    }
}

void kv_load_layers(kvist_lease_t *lease, const kv_layered_t *blocks, uint32_t count)
{
    kvist_store_t *store = lease->store;
    layers_t *layers = kv_allocate(sizeof *layers);
    *layers = (layers_t){
        .lease = lease,
        .blocks = kv_allocate_array(count, sizeof *layers->blocks),
        .count = count,
        .step_layers = layers_of_step(store, count),
        .status = KV_OK,
        .started_ns = store->clock->monotonic_ns(store->clock),
    };
    memcpy(layers->blocks, blocks, count * sizeof *blocks);
    for (uint32_t i = 0; i < count; i++) {
        blocks[i].read->status = KV_OK;
    }
    for (uint32_t i = 0; i < STEPS_OUT_MAX; i++) {
        layers->steps[i].statuses = kv_allocate_array(count, sizeof(kv_status_t));
    }
    kv_lease_set_layered(lease, count);
    start_steps(layers);
}
