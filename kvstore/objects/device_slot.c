/* A device slot's bytes on their way, with the checksums of their units. The device takes these
 * itself where all units have one size, so that bytes are sealed before they leave it and proved
 * where they have come to; else they are taken on this side. */
#include "kvstore/store_internal.h"

#include "base/log.h"
#include "kernels/moves.h"

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
