/* What `kvist bench serve` says: lines while it runs, a table at the end, a report as HTML.
 *
 * A run is JSON (outcome.h; docs/benchmarks.md has its fields). The report is made of one or more
 * runs: what they measured at equal places is drawn in one figure, a line for each.
 *
 * Owns: nothing. Threads: one.
 * Errors: KV_IO and its kin where a file cannot be written; KV_INVALID where a file is no run. */
#ifndef KV_TOOLS_SERVE_REPORT_H
#define KV_TOOLS_SERVE_REPORT_H

#include "base/status.h"
#include "tools/kvist/bench/serve/drive.h"

#include <jansson.h>
#include <stdio.h>

/* A line of how it stands; over the last one where the stream is a terminal. */
void kv_serve_say_progress(FILE *out, const char *label, const kv_drive_progress_t *progress);
void kv_serve_end_progress(FILE *out);

/* The table of a run. */
void kv_serve_print_table(FILE *out, const json_t *run);

/* A run that was written with --json. */
kv_status_t kv_serve_read_run(const char *path, json_t **run_out, kv_error_t *error);

/* runs: a JSON array of runs. figures: a folder where each figure goes as a file of its own, or
 * NULL; html: the report's file, or NULL. */
kv_status_t kv_serve_write_report(
    const json_t *runs, const char *html, const char *figures, kv_error_t *error);

#endif
