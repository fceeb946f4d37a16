/* What goes wrong: kinds of faults, chosen for each run, that happen at any time until calm. */
#ifndef KV_TESTS_SIMULATION_FAULTS_H
#define KV_TESTS_SIMULATION_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    FAULT_CUT_CONTROL, /* of one connection, both ends hear of it */
    FAULT_HALF_OPEN,   /* one end, or none */
    FAULT_CUT_DATA,
    FAULT_STALL_ONE_WAY, /* control and data of two nodes */
    FAULT_STALL,
    FAULT_KILL,      /* SIGKILL; it comes back with empty memory */
    FAULT_KILL_HOST, /* no kernel that would say so */
    FAULT_TERMINATE, /* SIGTERM; it comes back */
    FAULT_STOP,      /* SIGSTOP, then SIGCONT: shorter or longer than the limit of silence */
    FAULT_SLOW,      /* everything of a process takes longer for a time */
    FAULT_SLOW_STORE,
    FAULT_ONCE, /* kinds from here on are there, or not, until calm */
    FAULT_DAMAGED_MESSAGES = FAULT_ONCE,
    FAULT_DOUBLED_MESSAGES,
    FAULT_LOST_MESSAGES,
    FAULT_LATE_MESSAGES,
    FAULT_FULL_QUEUES,
    FAULT_ENGINE, /* fails, or takes no more sequences */
    FAULT_CANCEL, /* clients go away: clients.c */
    FAULTS,
} fault_t;

const char *fault_name(fault_t fault);

/* kinds: bits; none: a run without faults. count of them happen until then, half of them wherever
 * the protocol takes a step. */
void faults_begin(uint32_t kinds, uint32_t count, uint64_t until_ns);

/* A machine of the protocol takes a step. */
void faults_at_step(void);

/* Everything is as it should be from now on. */
void faults_end(void);

extern uint64_t fault_counts[FAULTS]; /* of all runs: happened; of the standing kinds: runs */

#endif
