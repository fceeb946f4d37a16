/* Runs in which everybody keeps to version 1 of the wire: what is marked [2] goes to nobody, as to
 * nodes of the release before.
 *
 * Threads: one. */
#ifndef KV_TESTS_SIMULATION_VERSION_H
#define KV_TESTS_SIMULATION_VERSION_H

#include <stdbool.h>

void version_begin(bool old);

#endif
