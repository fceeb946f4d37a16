/* Another program that is asked and answers: its standard input and output are pipes to us, its
 * standard error is ours or a file.
 *
 * Owns: the process and the pipes, until kv_program_end.
 * Threads: one.
 * Errors: KV_MISSING: no such program; KV_PEER_LOST: it ended, or did not answer in time.
 * Limits: a line of KV_PROGRAM_LINE_BYTES. */
#ifndef KV_TOOLS_PROGRAM_H
#define KV_TOOLS_PROGRAM_H

#include "base/status.h"

#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

enum { KV_PROGRAM_LINE_BYTES = 4096 };

typedef struct {
    pid_t pid;
    int output; /* we write to its input, */
    int input;  /* and read its output */
    char kept[KV_PROGRAM_LINE_BYTES];
    size_t kept_bytes; /* read behind the last line */
} kv_program_t;

/* Starts argv[0], looked for in PATH. */
kv_status_t kv_program_start(char *const *argv, kv_program_t *program_out, kv_error_t *error);

kv_status_t kv_program_tell(kv_program_t *program, const char *line, kv_error_t *error);

/* Its next line, without the newline. */
kv_status_t kv_program_hear(
    kv_program_t *program, uint64_t limit_ms, char *line_out, kv_error_t *error);

/* All that it prints until it ends; release with free(). */
kv_status_t kv_program_hear_all(
    kv_program_t *program, uint64_t limit_ms, char **text_out, kv_error_t *error);

/* Closes its input and waits for its end; after limit_ms kills it. Its exit code, or -1 where a
 * signal ended it. */
int kv_program_end(kv_program_t *program, uint64_t limit_ms);

#endif
