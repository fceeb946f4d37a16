/* Moves: bytes of many slots on their way from or to a device, beside its kernels, with a checksum
 * of each unit taken on the device: an object is sealed before it leaves, and proved where it has
 * come to.
 *
 * A device with streams moves by itself, and gathers scattered parts by a kernel: a copy engine
 * needs microseconds for each fragment. For one without, these functions copy at once: start does
 * the work, poll and wait only tell. Either way the same calls serve.
 *
 * Owns: nothing; a move that was started belongs to its device until poll or wait has ended it.
 * Threads: any; a thread has one move at a time.
 * Errors: the device's, KV_FATAL; the destination may then hold anything. */
#ifndef KV_KERNELS_MOVES_H
#define KV_KERNELS_MOVES_H

#include "kernels/device.h"

/* Bytes of one slot's parts, and units in them. */
size_t kv_move_slot_bytes(const kv_move_params_t *params);
uint32_t kv_move_slot_units(const kv_move_params_t *params);

/* *move_out is NULL where the move has ended already. */
kv_status_t kv_move_start(
    kv_device_t *device, const kv_move_params_t *params, kv_move_t **move_out, kv_error_t *error);

/* KV_BUSY: under way. Every other answer ends the move. NULL has ended well. */
kv_status_t kv_move_poll(kv_device_t *device, kv_move_t *move, kv_error_t *error);
kv_status_t kv_move_wait(kv_device_t *device, kv_move_t *move, kv_error_t *error);

/* Start and wait. */
kv_status_t kv_move(kv_device_t *device, const kv_move_params_t *params, kv_error_t *error);

/* One slot as a whole, from or to one place; checksums: [slot_bytes / unit_bytes], or NULL. */
typedef struct {
    kv_move_direction_t direction;
    char *arena;
    size_t slot_bytes;
    uint32_t slot;
    char *outside;
    size_t unit_bytes;
    uint64_t *checksums;
} kv_move_one_t;

kv_status_t kv_move_one(kv_device_t *device, const kv_move_one_t *one, kv_error_t *error);

/* Where the device pins memory (else KV_OK at once). Failing is no harm: moves work without. */
kv_status_t kv_device_pin(kv_device_t *device, void *memory, size_t bytes, kv_error_t *error);
void kv_device_unpin(kv_device_t *device, void *memory, size_t bytes);

#endif
