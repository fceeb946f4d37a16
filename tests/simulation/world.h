/* The simulated world: one clock, one queue of what will happen, one source of chance.
 *
 * Nothing moves but by an event of the queue, and the clock jumps from one to the next. An event
 * belongs to a process (process.h) or, with NULL, to the world: a stopped process' events wait
 * until it goes on, those of one that is gone are dropped.
 *
 * Owns: the events; all memory of world_allocate, until world_end.
 * Threads: one. The world is a single one: the code under test has a single clock, too.
 * Errors: what must not happen ends in violation(), which prints the seed and how to replay it. */
#ifndef KV_TESTS_SIMULATION_WORLD_H
#define KV_TESTS_SIMULATION_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MS UINT64_C(1000000)
#define US UINT64_C(1000)
#define SECOND UINT64_C(1000000000)

typedef struct process process_t;

/* subject lives as long as the world, or the event is known to run before it ends. */
typedef void (*happening_t)(void *subject, uint64_t detail);

void world_begin(uint64_t seed);
void world_end(void);

uint64_t world_now_ns(void);
uint64_t world_event_count(void); /* since world_begin */

void world_after(
    uint64_t delay_ns, process_t *process, happening_t run, void *subject, uint64_t detail);

/* Runs the next event; false: there is none. */
bool world_turn(void);

/* Zeroed; never NULL. */
void *world_allocate(size_t bytes);

/* ---- chance: the same seed, the same world ---- */

uint64_t world_random(void);
uint32_t pick(uint32_t count); /* 0 to count - 1 */
bool chance(uint32_t per_mille);
uint64_t between(uint64_t least, uint64_t most);

/* ---- what is said of it ---- */

/* A line with the time and the process whose event runs, where KVIST_TRACE is set. */
bool world_traces(void);
void trace(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A promise was broken: says so, with the seed, and ends the program. */
_Noreturn void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
