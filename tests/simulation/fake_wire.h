/* The data network: a driver of transport/mover/wire.h whose messages take their time, overtake one
 * another, and meet with accidents.
 *
 * Some messages are with the wire as soon as send returns, others stay in the sender's memory for a
 * while: a stopped sender's leave when it goes on. Over shared memory the receiver reads them in
 * the buffers of the sender's pipe. */
#ifndef KV_TESTS_SIMULATION_FAKE_WIRE_H
#define KV_TESTS_SIMULATION_FAKE_WIRE_H

#include "simulation/process.h"
#include "transport/mover/wire.h"

extern const kv_wire_driver_t FAKE_WIRE;

/* What becomes of a message, per mille. */
typedef struct {
    uint32_t damaged, doubled, lost;
    uint64_t late_ns; /* at most, on top of the network's own time: how far they overtake */
} accidents_t;

void wire_begin(void);
void wire_set_accidents(const accidents_t *accidents);

/* Cuts a pipe that is up: both ends hear of it. false: there is none. */
bool wire_cut_any(void);

#endif
