/* The data of a message's blocks between its buffer and this node's slots. */
#include "base/log.h"
#include "kernels/moves.h"
#include "transport/mover/mover_internal.h"

kv_status_t move_blocks(const kv_mover_t *mover, kv_move_direction_t direction,
    const kv_data_blocks_t *blocks, const uint32_t *slots, const kv_slot_part_t *parts,
    uint8_t *data)
{
    kv_status_t status = KV_OK;
    char *outside[KV_MOVE_SLOTS_MAX];
    for (uint32_t first = 0; first < blocks->block_count && status == KV_OK;
         first += KV_MOVE_SLOTS_MAX) {
        const uint32_t left = blocks->block_count - first,
                       count = left < KV_MOVE_SLOTS_MAX ? left : (uint32_t)KV_MOVE_SLOTS_MAX;
        for (uint32_t i = 0; i < count; i++) {
            outside[i] = (char *)data + (size_t)(first + i) * blocks->block_bytes;
        }
        const kv_move_params_t params = {
            .direction = direction,
            .arena = (char *)mover->arena,
            .slot_bytes = mover->slot_bytes,
            .slots = slots + first,
            .slot_count = count,
            .parts = parts,
            .part_count = blocks->range_count,
            .outside = outside,
        };
        kv_error_t error;
        status = kv_move(mover->device, &params, &error);
        if (status != KV_OK) {
            kv_log_warn("transport", "device slots cannot be %s cause %s",
                direction == KV_MOVE_OUT ? "read" : "written", error.text);
        }
    }
    return status;
}
