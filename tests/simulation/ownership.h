/* Who may touch a slot: a second account of every device slot of a process, kept from what the code
 * under test asks of store, mover and compute, and held against every byte that is written.
 *
 *   private   a lease prepared it and did not seal it: its mover expectation or its computation may
 *             write, at one time one of them
 *   sealed    nobody writes
 *   free      nobody writes, nobody reads
 *
 * A lease is released, and a slot gets a new owner, only when no expectation, piece or computation
 * has anything to do with it. New owners find noise in it, never what was there before. */
#ifndef KV_TESTS_SIMULATION_OWNERSHIP_H
#define KV_TESTS_SIMULATION_OWNERSHIP_H

#include "kernels/device.h"
#include "simulation/process.h"

void ownership_open(process_t *process, void *arena, uint32_t slot_count);
void ownership_close(process_t *process);

/* Turns of the mover begin and end: what is written meanwhile, the mover writes. */
void ownership_enter_mover(process_t *process, bool enter);

/* A computation begins or ends on a lease's block table; it writes blocks from first_block on. */
void ownership_compute(process_t *process, const uint32_t *slots, uint32_t first_block,
    uint32_t slot_count, bool begins);
void ownership_written(process_t *process, uint32_t slot, const char *who);

/* Nobody owns, expects, reads or computes anything. */
void ownership_check_quiet(const process_t *process);

/* Chances per mille that the mover refuses a piece, an expectation with KV_BUSY. */
void ownership_set_refusals(uint32_t per_mille);

/* The same, of the store's moves that fail or damage what they bring. */
void ownership_set_move_failures(uint32_t per_mille);

/* Memory of the process, whose writes are looked at; that of a device, and the host's own. */
extern const kv_device_ops_t OWNED_DEVICE, OWNED_HOST_DEVICE, OWNED_MOVING_DEVICE;

#endif
