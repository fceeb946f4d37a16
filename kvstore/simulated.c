#include "kvstore/simulated.h"

#include "base/memory.h"
#include "kvstore/disk/files_memory.h"
#include "kvstore/store_internal.h"

#include <stdlib.h>
#include <string.h>

enum { OBJECT_BYTES = 8 };

struct kv_simulated_parts {
    kv_device_ops_t device_ops;
    kv_device_t device;
    char *arena;
    kv_files_t *files;
    kv_index_t index;
};

static kv_status_t copy_in(
    kv_device_t *device, void *device_to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(device_to, from, bytes);
    return KV_OK;
}

static kv_status_t copy_out(
    kv_device_t *device, void *to, const void *device_from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(to, device_from, bytes);
    return KV_OK;
}

/* ---- an index that keeps nothing: only an opening reads what it was given ---- */

static kv_status_t forget(
    kv_index_t *index, const kv_index_batch_t *batch, bool sync, kv_error_t *error)
{
    (void)index;
    (void)batch;
    (void)sync;
    (void)error;
    return KV_OK;
}

static kv_index_cursor_t *open_cursor(kv_index_t *index, uint8_t first)
{
    (void)first;
    return (kv_index_cursor_t *)index; /* any address will do */
}

static kv_status_t read_nothing(kv_index_t *index, kv_index_cursor_t *cursor, size_t count_max,
    kv_index_visit_t visit, void *context, bool *ended_out, kv_error_t *error)
{
    (void)index;
    (void)cursor;
    (void)count_max;
    (void)visit;
    (void)context;
    (void)error;
    *ended_out = true;
    return KV_OK;
}

static void close_cursor(kv_index_t *index, kv_index_cursor_t *cursor)
{
    (void)index;
    (void)cursor;
}

static kv_status_t get_nothing(kv_index_t *index, const uint8_t *keys, size_t key_bytes,
    size_t count, kv_index_visit_t visit, void *context, kv_error_t *error)
{
    (void)index;
    (void)keys;
    (void)key_bytes;
    (void)count;
    (void)visit;
    (void)context;
    (void)error;
    return KV_OK;
}

static uint64_t estimate_nothing(kv_index_t *index)
{
    (void)index;
    return 0;
}

static void close_index(kv_index_t *index)
{
    (void)index;
}

static const kv_index_ops_t FORGETFUL_OPS = {
    .write = forget,
    .open_cursor = open_cursor,
    .read = read_nothing,
    .close_cursor = close_cursor,
    .get = get_nothing,
    .estimate = estimate_nothing,
    .close = close_index,
};

/* ---- the store ---- */

static kvist_layout_t tiny_layout(void)
{
    kvist_layout_t layout = {.block_tokens = 1, .group_count = 1};
    layout.groups[0] = (kvist_group_t){
        .kind = KVIST_GROUP_FULL,
        .layers = {1},
        .part_count = 1,
        .parts = {{KVIST_PART_OPAQUE, 1, OBJECT_BYTES, 1}},
    };
    return layout;
}

static kv_status_t check(const kv_simulated_params_t *params, kv_error_t *error)
{
    if (params->device_blocks == 0 && params->host_blocks == 0) {
        return kv_fail(error, KV_INVALID, "device_blocks and host_blocks are 0: one is needed");
    }
    if (params->disk_blocks > 0 && (params->segment_blocks < KV_SIMULATED_SEGMENT_BLOCKS_MIN ||
                                       params->disk_blocks / 2 < params->segment_blocks)) {
        return kv_fail(error, KV_INVALID,
            "segment_blocks is %u: it must be %d to half of the disk tier's %u blocks",
            params->segment_blocks, KV_SIMULATED_SEGMENT_BLOCKS_MIN, params->disk_blocks);
    }
    return KV_OK;
}

static kv_status_t open_store(
    const kv_simulated_params_t *params, kv_simulated_t *simulated, kv_error_t *error)
{
    struct kv_simulated_parts *parts = simulated->parts;
    uint64_t segment_bytes =
        KV_SEGMENT_HEADER_BYTES + params->segment_blocks * simulated->record_bytes;
    kvist_store_params_t of_store = {
        .layout = &simulated->layout,
        .device = params->device_blocks > 0 ? &parts->device : NULL,
        .device_arena = parts->arena,
        .device_slot_count = params->device_blocks,
        .host_bytes = params->host_blocks * simulated->object_bytes,
        .directory = params->disk_blocks > 0 ? "/store" : NULL,
        .segment_bytes = segment_bytes,
        .persist = params->persist,
        .policy = params->policy,
        .clock = params->clock,
    };
    if (params->disk_blocks > 0) {
        of_store.disk_bytes = params->disk_blocks / params->segment_blocks * segment_bytes;
    }
    kv_store_seams_t seams = {.index = &parts->index, .files = parts->files, .threadless = true};
    kv_status_t status = kv_store_open_with(&of_store, &seams, &simulated->store, error);
    while (status == KV_OK && kv_fill_busy(simulated->store)) {
        kvist_store_poll(simulated->store);
    }
    return status;
}

static void release_parts(struct kv_simulated_parts *parts)
{
    kv_files_memory_destroy(parts->files);
    free(parts->arena);
    free(parts);
}

kv_status_t kv_simulated_open(
    const kv_simulated_params_t *params, kv_simulated_t *simulated_out, kv_error_t *error)
{
    kv_layout_t layout;
    kv_simulated_t simulated = {.layout = tiny_layout(), .object_bytes = OBJECT_BYTES};
    kv_status_t status = check(params, error);
    if (status == KV_OK) {
        status = kv_layout_init(&simulated.layout, 0, &layout, error);
    }
    if (status != KV_OK) {
        return status;
    }
    simulated.record_bytes = kv_record_bytes_max(&layout);
    simulated.parts = kv_allocate(sizeof *simulated.parts);
    *simulated.parts = (struct kv_simulated_parts){
        .device_ops = {.name = "simulated", .host = true, .copy_in = copy_in, .copy_out = copy_out},
        .arena = kv_allocate_array(params->device_blocks, OBJECT_BYTES),
        .files = kv_files_memory_create(),
        .index = {&FORGETFUL_OPS},
    };
    simulated.parts->device.ops = &simulated.parts->device_ops;
    status = open_store(params, &simulated, error);
    if (status != KV_OK) {
        release_parts(simulated.parts);
        return status;
    }
    *simulated_out = simulated;
    return KV_OK;
}

void kv_simulated_close(kv_simulated_t *simulated)
{
    kvist_store_close(simulated->store);
    release_parts(simulated->parts);
    *simulated = (kv_simulated_t){0};
}
