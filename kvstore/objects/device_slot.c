/* A device slot's bytes on their way, with the checksums of their units. The device takes these
 * itself where all units have one size, so that bytes are sealed before they leave it and proved
 * where they have come to; else they are taken on this side.
 *
 * On their way between device and disk they may go packed, where the device has the codec: the
 * bytes are the ones that the host would make, so that either reads what the other one wrote. */
#include "kvstore/store_internal.h"

#include "base/log.h"
#include "base/memory.h"
#include "kernels/moves.h"

#include <stdlib.h>

size_t kv_device_unit_bytes(const kv_layout_t *layout)
{
    for (uint32_t part = 1; part < layout->group.part_count; part++) {
        if (layout->part_unit_bytes[part] != layout->part_unit_bytes[0]) {
            return 0;
        }
    }
    return layout->part_unit_bytes[0];
}

/* checksums_out: [unit_count], or NULL. */
static kv_status_t move(const kvist_store_t *store, kv_move_direction_t direction, uint32_t slot,
    char *outside, uint64_t *checksums_out)
{
    const kv_layout_t *layout = &store->groups[0].layout;
    const size_t sealed_bytes = checksums_out != NULL ? kv_device_unit_bytes(layout) : 0;
    const kv_move_one_t one = {
        .direction = direction,
        .arena = store->arena,
        .slot_bytes = layout->object_bytes,
        .slot = slot,
        .outside = outside,
        .unit_bytes = sealed_bytes,
        .checksums = sealed_bytes > 0 ? checksums_out : NULL,
    };
    kv_error_t error;
    kv_status_t status = kv_move_one(store->device, &one, &error);
    if (status != KV_OK) {
        kv_log_warn("store", "device slot cannot be %s slot %u cause %s",
            direction == KV_MOVE_OUT ? "read" : "written", slot, error.text);
        return KV_IO;
    }
    if (checksums_out != NULL && sealed_bytes == 0) {
        kv_layout_unit_checksums(layout, outside, checksums_out);
    }
    return KV_OK;
}

kv_status_t kv_device_slot_out(
    const kvist_store_t *store, uint32_t slot, void *to, uint64_t *checksums_out)
{
    return move(store, KV_MOVE_OUT, slot, to, checksums_out);
}

kv_status_t kv_device_slot_in(
    const kvist_store_t *store, uint32_t slot, const void *from, uint64_t *checksums_out)
{
    return move(store, KV_MOVE_IN, slot, (char *)(uintptr_t)from, checksums_out);
}

/* The CPU's memory is this process's: nothing can be damaged on its way. */
static bool crosses_a_bus(const kvist_store_t *store)
{
    return !store->device->ops->host;
}

kv_status_t kv_device_slot_out_proved(const kvist_store_t *store, uint32_t slot, void *to)
{
    if (!crosses_a_bus(store)) {
        return kv_device_slot_out(store, slot, to, NULL);
    }
    const kv_layout_t *layout = &store->groups[0].layout;
    uint64_t *checksums = kv_allocate_array(layout->unit_count, sizeof *checksums);
    kv_status_t status = kv_device_slot_out(store, slot, to, checksums);
    if (status == KV_OK && !kv_layout_units_agree(layout, to, checksums)) {
        kv_log_warn("store", "device slot was damaged on its way to the host slot %u", slot);
        status = KV_IO;
    }
    free(checksums);
    return status;
}

/* ---- packed ---- */

_Static_assert((int)KVIST_PARTS_MAX <= (int)KV_PACK_RUNS_MAX, "a run for each part");

bool kv_device_packs(const kvist_store_t *store, kvist_codec_t codec)
{
    const kv_layout_t *layout = &store->groups[0].layout;
    return codec == KVIST_CODEC_BF16 && store->device != NULL && store->device->ops->pack != NULL &&
           layout->layer_bytes <= KV_PACK_LAYER_BYTES_MAX &&
           layout->layer_units <= KV_PACK_LAYER_UNITS_MAX;
}

static void put_runs(const kv_layout_t *layout, kv_unit_run_t runs_out[KV_PACK_RUNS_MAX])
{
    for (uint32_t i = 0; i < layout->group.part_count; i++) {
        runs_out[i] = (kv_unit_run_t){
            .unit_count = layout->group.parts[i].heads,
            .unit_bytes = (uint32_t)layout->part_unit_bytes[i],
            .element_bytes = layout->group.parts[i].element_bytes,
        };
    }
}

static kv_pack_t pack_of(const kvist_store_t *store, uint32_t slot, const kv_unit_run_t *runs)
{
    const kv_layout_t *layout = &store->groups[0].layout;
    return (kv_pack_t){
        .arena = store->arena,
        .slot_bytes = layout->object_bytes,
        .slot = slot,
        .layer_count = layout->layer_count,
        .runs = runs,
        .run_count = layout->group.part_count,
    };
}

kv_status_t kv_device_slot_pack(const kvist_store_t *store, uint32_t slot, char *packed,
    uint32_t *lengths_out, uint64_t *checksums_out, size_t *packed_bytes_out)
{
    kv_unit_run_t runs[KV_PACK_RUNS_MAX];
    put_runs(&store->groups[0].layout, runs);
    kv_pack_t pack = pack_of(store, slot, runs);
    pack.packed = packed;
    pack.lengths = lengths_out;
    pack.checksums = checksums_out;
    kv_error_t error;
    if (store->device->ops->pack(store->device, &pack, packed_bytes_out, &error) != KV_OK) {
        kv_log_warn("store",
            "device slot cannot be packed there, the host does it slot %u cause %s", slot,
            error.text);
        return KV_IO;
    }
    return KV_OK;
}

kv_status_t kv_device_slot_unpack(const kvist_store_t *store, uint32_t slot, const char *packed,
    const uint32_t *lengths, uint64_t *checksums_out)
{
    kv_unit_run_t runs[KV_PACK_RUNS_MAX];
    put_runs(&store->groups[0].layout, runs);
    kv_pack_t pack = pack_of(store, slot, runs);
    pack.packed = (char *)(uintptr_t)packed; /* only read */
    pack.lengths = (uint32_t *)(uintptr_t)lengths;
    pack.checksums = checksums_out;
    kv_error_t error;
    kv_status_t status = store->device->ops->unpack(store->device, &pack, &error);
    if (status != KV_OK) {
        kv_log_warn("store",
            "device slot cannot be unpacked there, the host does it slot %u cause %s", slot,
            error.text);
    }
    return status;
}
