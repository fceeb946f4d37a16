/* A part of a benchmark in a process of its own: a copy of this one that runs one function, told
 * what to do over a socket.
 *
 * Owns: the process and this end of the socket, until kv_fork_end.
 * Threads: one, and the process must have no other when it is copied: no store is open.
 * Errors: KV_PEER_LOST: it ended, or did not answer in time. */
#ifndef KV_TOOLS_FORK_H
#define KV_TOOLS_FORK_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct {
    pid_t pid;   /* 0: none */
    int channel; /* -1: none */
} kv_fork_t;

/* body runs in the copy, which ends when it returns; its channel says end of file when it is to
 * end. */
kv_status_t kv_fork_start(void (*body)(const void *context, int channel), const void *context,
    kv_fork_t *fork_out, kv_error_t *error);

/* On either end: whole messages of one size. */
kv_status_t kv_fork_tell(int channel, const void *message, size_t bytes, kv_error_t *error);
kv_status_t kv_fork_hear(
    int channel, void *message_out, size_t bytes, uint64_t limit_ms, kv_error_t *error);

bool kv_fork_alive(const kv_fork_t *child);

/* Closes the channel and waits for its end; also of one that is all zero. */
void kv_fork_end(kv_fork_t *child);

#endif
