/* The data of a message's blocks between where it is sent from or has come to and this node's
 * slots, with the checksum of each block: taken by the device, in the pass that moves it or
 * beside. */
#include "base/log.h"
#include "kernels/moves.h"
#include "transport/mover/mover_internal.h"

kv_status_t move_blocks(const kv_mover_t *mover, const moving_t *moving, uint64_t *checksums_out)
{
    const kv_data_blocks_t *blocks = moving->blocks;
    const uint64_t place = kv_data_place(blocks);
    kv_status_t status = KV_OK;
    char *outside[KV_MOVE_SLOTS_MAX];
    uint64_t seeds[KV_MOVE_SLOTS_MAX];
    for (uint32_t first = 0; first < blocks->block_count && status == KV_OK;
         first += KV_MOVE_SLOTS_MAX) {
        const uint32_t left = blocks->block_count - first,
                       count = left < KV_MOVE_SLOTS_MAX ? left : (uint32_t)KV_MOVE_SLOTS_MAX;
        for (uint32_t i = 0; i < count; i++) {
            outside[i] = (char *)moving->data + (size_t)(first + i) * blocks->block_bytes;
            seeds[i] = kv_data_seed(blocks, place, first + i);
        }
        const kv_move_params_t params = {
            .direction = moving->direction,
            .arena = (char *)mover->arena,
            .slot_bytes = mover->slot_bytes,
            .slots = moving->slots + first,
            .slot_count = count,
            .parts = moving->parts,
            .part_count = blocks->range_count,
            .outside = outside,
            .beside = moving->beside,
            .seeds = seeds,
            .checksums = checksums_out + first,
        };
        kv_error_t error;
        status = kv_move(mover->device, &params, &error);
        if (status != KV_OK) {
            kv_log_warn("transport", "device slots cannot be %s cause %s",
                moving->direction == KV_MOVE_OUT ? "read" : "written", error.text);
        }
    }
    return status;
}
