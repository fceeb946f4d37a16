/* A file of JSON values, one a line: the form of the commands that open the engine to checks.
 *
 * Threads: one.
 * Errors: KV_INVALID names the line, what stands there and the bound; what the handler answers is
 * passed on. */
#ifndef KV_ENGINE_JSON_LINES_H
#define KV_ENGINE_JSON_LINES_H

#include "base/status.h"

#include <jansson.h>
#include <stddef.h>
#include <stdio.h>

/* Takes one line's object, borrowed during the call; number: from 1. */
typedef kv_status_t (*kv_json_line_t)(
    void *context, json_t *object, size_t number, kv_error_t *error);

/* Hands each line that is not blank to handle until the end of in or the first error. */
kv_status_t kv_json_lines_read(
    FILE *in, size_t line_bytes_max, kv_json_line_t handle, void *context, kv_error_t *error);

/* Writes value as one line and flushes; value is given up in any case. NULL (no memory for it) is
 * KV_NO_SPACE. */
kv_status_t kv_json_lines_write(FILE *out, json_t *value, kv_error_t *error);

#endif
