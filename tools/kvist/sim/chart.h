/* Hit rate against size, a line for each policy, as an SVG file. The sizes' scale is logarithmic,
 * that of hit rates begins at 0.
 *
 * Owns: nothing. Borrows: all that it is given, while it writes.
 * Threads: any. Errors: KV_IO and its kin when the file cannot be written. */
#ifndef KV_TOOLS_SIM_CHART_H
#define KV_TOOLS_SIM_CHART_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

enum { KV_CHART_LINES_MAX = 12 };

typedef struct {
    const char *name;
    const double *rates; /* [size_count] */
    bool reference;      /* dashed: no policy of the store's */
} kv_chart_line_t;

typedef struct {
    const char *title, *size_title;
    const double *sizes; /* ascending */
    size_t size_count;
    const kv_chart_line_t *lines;
    size_t line_count;
} kv_chart_t;

kv_status_t kv_chart_write(const kv_chart_t *chart, const char *path, kv_error_t *error);

#endif
