/* A plot of points over time as an SVG file: panels beside each other with one vertical scale,
 * which is logarithmic.
 *
 * Owns: nothing. Borrows: all that it is given, while it writes.
 * Threads: any.
 * Errors: KV_IO and its kin when the file cannot be written. */
#ifndef KV_TOOLS_PLOT_H
#define KV_TOOLS_PLOT_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    double x, y; /* y more than 0 */
} kv_plot_point_t;

/* A stretch of the horizontal axis that is shaded, from low to high. */
typedef struct {
    double low, high;
} kv_plot_band_t;

typedef struct {
    const char *title;
    const kv_plot_point_t *points;
    size_t point_count;
    kv_plot_band_t band;
} kv_plot_panel_t;

typedef struct {
    const char *title, *x_title, *y_title, *band_title;
    const kv_plot_panel_t *panels;
    size_t panel_count;
} kv_plot_t;

kv_status_t kv_plot_write(const kv_plot_t *plot, const char *path, kv_error_t *error);

#endif
