/* The CPU device's moves: done when start returns, in one pass where units are sealed. */
#include "kernels/moves.h"

#include "base/checksum.h"
#include "kernels/cpu/device_internal.h"

#include <string.h>

static void move_part(
    const kv_move_params_t *params, char *inside, char *outside, size_t bytes, uint64_t *checksums)
{
    const bool out = params->direction == KV_MOVE_OUT;
    char *to = out ? outside : inside;
    const char *from = out ? inside : outside;
    if (params->unit_bytes == 0) {
        memcpy(to, from, bytes);
        return;
    }
    for (size_t at = 0; at < bytes; at += params->unit_bytes) {
        *checksums++ = kv_checksum_copy(to + at, from + at, params->unit_bytes);
    }
}

kv_status_t cpu_move_start(
    kv_device_t *device, const kv_move_params_t *params, kv_move_t **move_out, kv_error_t *error)
{
    (void)device;
    (void)error;
    uint64_t *checksums = params->checksums;
    for (uint32_t at = 0; at < params->slot_count; at++) {
        char *slot = params->arena + params->slots[at] * params->slot_bytes,
             *outside = params->outside[at];
        for (uint32_t i = 0; i < params->part_count; i++) {
            const kv_slot_part_t *part = &params->parts[i];
            move_part(params, slot + part->offset_bytes, outside, part->bytes, checksums);
            outside += part->bytes;
            if (params->unit_bytes > 0) {
                checksums += part->bytes / params->unit_bytes;
            }
        }
        if (params->seeds != NULL) {
            *checksums++ = kv_checksum_seeded(
                params->outside[at], (size_t)(outside - params->outside[at]), params->seeds[at]);
        }
    }
    kv_checksum_copy_fence();
    *move_out = NULL;
    return KV_OK;
}
