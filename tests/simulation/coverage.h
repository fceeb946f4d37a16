/* Which pairs of (state, event) of the protocol's machines the runs went through; and that none of
 * them waits for a peer that is gone. */
#ifndef KV_TESTS_SIMULATION_COVERAGE_H
#define KV_TESTS_SIMULATION_COVERAGE_H

#include <stdint.h>

void coverage_print(void);

#endif
