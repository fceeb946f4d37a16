/* The compute team: a leader (the thread that calls run) and helpers, who go through a list of
 * commands together. A command is a number of items that may run in any order on any thread; the
 * next command starts when all items of the last have ended.
 *
 * One entry into the team serves a whole layer or a whole decode step, so that hundreds of small
 * commands cost no thread switches. Waiting spins for some microseconds, then sleeps: other
 * processes share the cores.
 *
 * Threads: run by one thread at a time. */
#ifndef KV_KERNELS_CPU_TEAM_H
#define KV_KERNELS_CPU_TEAM_H

#include "base/status.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cpu_team cpu_team_t;

typedef struct cpu_command cpu_command_t;
struct cpu_command {
    void (*run)(const cpu_command_t *command, uint32_t item, uint32_t thread);
    uint32_t item_count;
    _Atomic uint32_t item_next; /* 0 before the run */
};

kv_status_t cpu_team_create(uint32_t thread_count, cpu_team_t **team_out, kv_error_t *error);
void cpu_team_destroy(cpu_team_t *team);
uint32_t cpu_team_thread_count(const cpu_team_t *team);

/* The commands lie stride bytes apart (they are the head of larger structs). Returns when all items
 * have ended; what they wrote is visible to the caller. */
void cpu_team_run(cpu_team_t *team, void *commands, size_t stride, uint32_t command_count);

#endif
