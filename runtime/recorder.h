/* The recorder: a line for each request that looked for its prompt, so that `kvist sim` can replay
 * this node's own load (docs/formats.md, "Traces of requests").
 *
 * A request is copied and handed to a thread of the recorder's, which makes its ids and appends the
 * line with one write: the caller never waits for a disk. Recorders of several nodes of a machine
 * may share a file: each write has the file's lock. A line that a crash has cut is removed by the
 * next write.
 *
 * Owns: the file, the thread, copies of what waits.
 * Threads: one adds and closes.
 * Errors: of opening: named, with path. Later: the file at its bound, or one that cannot be
 * written, ends the recording with one warning. Lines that are not written for that reason, or
 * because too many wait, count in kvist_trace_lines_dropped_total.
 * Limits: KV_RECORDER_WAITING_MAX requests wait. */
#ifndef KV_RUNTIME_RECORDER_H
#define KV_RUNTIME_RECORDER_H

#include "base/status.h"
#include "kvstore/kvist.h"

#include <stdint.h>

enum { KV_RECORDER_WAITING_MAX = 64 };

typedef struct kv_recorder kv_recorder_t;

typedef struct {
    uint64_t arrived_unix_ms;
    kvist_key_t name_space;
    const uint32_t *tokens; /* [prompt_count], copied */
    uint32_t prompt_count, answer_count;
} kv_recorded_t;

/* Appends to what is there, which must be of blocks of as many tokens; makes the file (mode 0600)
 * where there is none. bytes_max: of the whole file. */
kv_status_t kv_recorder_open(const char *path, uint64_t bytes_max, uint32_t block_tokens,
    kv_recorder_t **recorder_out, kv_error_t *error);

/* NULL: nothing is recorded. */
void kv_recorder_add(kv_recorder_t *recorder, const kv_recorded_t *request);

/* Writes what waits. NULL: nothing to do. */
void kv_recorder_close(kv_recorder_t *recorder);

#endif
