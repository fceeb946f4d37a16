/* What `kvist sim` prints: one line, or one JSON object, for each policy and size.
 *
 * Owns: nothing. Threads: one. */
#ifndef KV_TOOLS_SIM_REPORT_H
#define KV_TOOLS_SIM_REPORT_H

#include "tools/kvist/sim/outcome.h"
#include "tools/kvist/sim/replay.h"

#include <jansson.h>
#include <stdio.h>

enum { KV_ROW_NAME_BYTES = 32 };

/* One policy at one size. */
typedef struct {
    char name[KV_ROW_NAME_BYTES];
    bool reference; /* no store: no tiers, no writes */
    uint32_t device_blocks, host_blocks, disk_blocks;
    kv_outcome_t outcome;
    kv_replay_totals_t totals;
    double over_lru; /* in hit rate */
    kv_spread_t spread;
    double gap_closed; /* from lru to belady: 0 to 1; NAN where there is none */
} kv_row_t;

typedef struct {
    const char *path;
    const kv_trace_t *trace;
    kv_window_t window;
    const char *part;     /* "all", "first half", "second half" */
    uint64_t block_bytes; /* of a real block, to say what is written in bytes */
} kv_report_head_t;

void kv_report_head(FILE *file, const kv_report_head_t *head);
void kv_report_row(FILE *file, const kv_report_head_t *head, const kv_row_t *row);

/* The whole as one object; rows: a list of what kv_report_row_json gave. */
json_t *kv_report_row_json(const kv_report_head_t *head, const kv_row_t *row);
json_t *kv_report_json(const kv_report_head_t *head, json_t *rows);

#endif
