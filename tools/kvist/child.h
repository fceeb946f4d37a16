/* Processes that outlive the command that started them.
 *
 * A process is named by its id and its start time (in ticks since boot, from /proc): the pair is
 * never reused, so nothing that Kvist did not start is ever signalled.
 * Threads: any. */
#ifndef KV_TOOLS_CHILD_H
#define KV_TOOLS_CHILD_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

typedef struct {
    pid_t pid; /* 0: none */
    uint64_t start_ticks;
} kv_child_t;

/* Starts argv[0] in a session of its own, without input, its output appended to the log. KV_MISSING
 * or KV_REFUSED when it cannot be executed. */
kv_status_t kv_child_start(
    char *const *argv, const char *log_path, kv_child_t *child_out, kv_error_t *error);

/* A process that somebody else started; one that is not there has ended. */
kv_child_t kv_child_of(pid_t pid);

/* false once it has ended (a zombie has ended, and is reaped where it is our own child). */
bool kv_child_alive(const kv_child_t *child);

/* Waits at most limit_ms for its end; true when it has ended. */
bool kv_child_wait(const kv_child_t *child, uint64_t limit_ms);

/* Sends a signal; does nothing when it has ended. */
void kv_child_signal(const kv_child_t *child, int signal_number);

/* The last lines of a file, indented, for a person. */
void kv_print_tail(FILE *stream, const char *path, size_t line_count);

#endif
