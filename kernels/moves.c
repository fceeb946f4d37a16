#include "kernels/moves.h"

#include "base/check.h"
#include "base/checksum.h"

size_t kv_move_slot_bytes(const kv_move_params_t *params)
{
    size_t bytes = 0;
    for (uint32_t part = 0; part < params->part_count; part++) {
        bytes += params->parts[part].bytes;
    }
    return bytes;
}

uint32_t kv_move_slot_units(const kv_move_params_t *params)
{
    return params->unit_bytes > 0 ? (uint32_t)(kv_move_slot_bytes(params) / params->unit_bytes) : 0;
}

/* ---- made of copies ---- */

/* Hashed outside, where this processor can read it. */
static void seal(const kv_move_params_t *params, uint32_t at)
{
    if (params->seeds != NULL) {
        params->checksums[at] =
            kv_checksum_seeded(params->outside[at], kv_move_slot_bytes(params), params->seeds[at]);
        return;
    }
    const uint32_t units = kv_move_slot_units(params);
    for (uint32_t unit = 0; unit < units; unit++) {
        params->checksums[(size_t)at * units + unit] =
            kv_checksum(params->outside[at] + unit * params->unit_bytes, params->unit_bytes);
    }
}

static kv_status_t copy_slot(
    kv_device_t *device, const kv_move_params_t *params, uint32_t at, kv_error_t *error)
{
    char *slot = params->arena + params->slots[at] * params->slot_bytes,
         *outside = params->outside[at];
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; i < params->part_count && status == KV_OK; i++) {
        const kv_slot_part_t *part = &params->parts[i];
        char *inside = slot + part->offset_bytes;
        status = params->direction == KV_MOVE_OUT
                     ? device->ops->copy_out(device, outside, inside, part->bytes, error)
                     : device->ops->copy_in(device, inside, outside, part->bytes, error);
        outside += part->bytes;
    }
    if (status == KV_OK) {
        seal(params, at);
    }
    return status;
}

/* ---- either way ---- */

kv_status_t kv_move_start(
    kv_device_t *device, const kv_move_params_t *params, kv_move_t **move_out, kv_error_t *error)
{
    KV_CHECK(params->slot_count >= 1 && params->slot_count <= KV_MOVE_SLOTS_MAX);
    KV_CHECK(params->part_count >= 1 && params->part_count <= KV_MOVE_PARTS_MAX);
    KV_CHECK((params->unit_bytes > 0 || params->seeds != NULL) == (params->checksums != NULL));
    KV_CHECK(params->unit_bytes == 0 || (params->part_count == 1 && params->seeds == NULL));
    KV_CHECK(params->seeds == NULL || params->part_count == 1 ||
             kv_move_slot_bytes(params) <= KV_MOVE_SEALED_PARTS_BYTES_MAX);
    KV_CHECK(!params->beside || device->ops->network != KV_NETWORK_NONE);
    if (device->ops->move_start != NULL) {
        return device->ops->move_start(device, params, move_out, error);
    }
    kv_status_t status = KV_OK;
    for (uint32_t at = 0; at < params->slot_count && status == KV_OK; at++) {
        status = copy_slot(device, params, at, error);
    }
    if (status == KV_OK) {
        *move_out = NULL;
    }
    return status;
}

kv_status_t kv_move_poll(kv_device_t *device, kv_move_t *move, kv_error_t *error)
{
    return move == NULL ? KV_OK : device->ops->move_poll(device, move, error);
}

kv_status_t kv_move_wait(kv_device_t *device, kv_move_t *move, kv_error_t *error)
{
    return move == NULL ? KV_OK : device->ops->move_wait(device, move, error);
}

kv_status_t kv_move(kv_device_t *device, const kv_move_params_t *params, kv_error_t *error)
{
    kv_move_t *move;
    kv_status_t status = kv_move_start(device, params, &move, error);
    return status == KV_OK ? kv_move_wait(device, move, error) : status;
}

kv_status_t kv_move_one(kv_device_t *device, const kv_move_one_t *one, kv_error_t *error)
{
    const kv_slot_part_t whole = {0, one->slot_bytes};
    const kv_move_params_t params = {
        .direction = one->direction,
        .arena = one->arena,
        .slot_bytes = one->slot_bytes,
        .slots = &one->slot,
        .slot_count = 1,
        .parts = &whole,
        .part_count = 1,
        .outside = &one->outside,
        .unit_bytes = one->unit_bytes,
        .checksums = one->checksums,
    };
    return kv_move(device, &params, error);
}

/* ---- pinning ---- */

kv_status_t kv_device_pin(kv_device_t *device, void *memory, size_t bytes, kv_error_t *error)
{
    return device->ops->pin != NULL ? device->ops->pin(device, memory, bytes, error) : KV_OK;
}

void kv_device_unpin(kv_device_t *device, void *memory, size_t bytes)
{
    if (device->ops->unpin != NULL) {
        device->ops->unpin(device, memory, bytes);
    }
}
