/* The nodes' main functions, each under a name of its own (CMakeLists.txt): included before their
 * sources. */
#ifndef KV_TESTS_SIMULATION_ROLES_H
#define KV_TESTS_SIMULATION_ROLES_H

int simulated_prefill_main(int argc, char **argv);
int simulated_decode_main(int argc, char **argv);

#endif
