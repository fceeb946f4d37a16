/* The engine and its thread (runtime/compute.h), as a turn of an event each: a layer of a chunk, or
 * a decode step. Writes the model's KV where the block table says, reads it from there. */
#ifndef KV_TESTS_SIMULATION_FAKE_COMPUTE_H
#define KV_TESTS_SIMULATION_FAKE_COMPUTE_H

#include <stdint.h>

/* Chances per mille, of each submit that is refused and of each turn in which the engine fails. */
void compute_set_failures(uint32_t busy, uint32_t fails);

#endif
