#include "tools/kvist/bench/plot.h"

#include "tools/kvist/svg.h"

#include <math.h>
#include <stdio.h>

enum {
    PANEL_WIDTH = 420,
    PANEL_HEIGHT = 260,
    LEFT = 64,
    TOP = 56,
    BOTTOM = 52,
    GAP = 28, /* between panels */
};

typedef struct {
    double x_low, x_high, y_low, y_high;
} bounds_t;

/* Whole powers of ten around all values, and the longest panel's time. */
static bounds_t find_bounds(const kv_plot_t *plot)
{
    bounds_t bounds = {INFINITY, -INFINITY, INFINITY, -INFINITY};
    for (size_t i = 0; i < plot->panel_count; i++) {
        for (size_t j = 0; j < plot->panels[i].point_count; j++) {
            kv_plot_point_t point = plot->panels[i].points[j];
            bounds.x_low = fmin(bounds.x_low, point.x);
            bounds.x_high = fmax(bounds.x_high, point.x);
            bounds.y_low = fmin(bounds.y_low, point.y);
            bounds.y_high = fmax(bounds.y_high, point.y);
        }
    }
    if (!(bounds.x_low < bounds.x_high)) { /* no points, or one */
        return (bounds_t){0, 1, 1, 10};
    }
    bounds.y_low = pow(10, floor(log10(bounds.y_low)));
    bounds.y_high = pow(10, ceil(log10(bounds.y_high * 1.0001)));
    return bounds;
}

static double x_of(const bounds_t *bounds, size_t panel, double x)
{
    double share = (x - bounds->x_low) / (bounds->x_high - bounds->x_low);
    share = fmin(fmax(share, 0), 1);
    return LEFT + (double)panel * (PANEL_WIDTH + GAP) + share * PANEL_WIDTH;
}

static double y_of(const bounds_t *bounds, double y)
{
    double share = log10(y / bounds->y_low) / log10(bounds->y_high / bounds->y_low);
    return TOP + (1 - share) * PANEL_HEIGHT;
}

/* A step of 1, 2 or 5 times a power of ten that gives five to ten marks. */
static double step_for(double length)
{
    double power = pow(10, floor(log10(length / 5)));
    double factor = length / 5 / power;
    return power * (factor >= 5 ? 5 : factor >= 2 ? 2 : 1);
}

static void write_axes(FILE *file, const kv_plot_t *plot, const bounds_t *bounds, size_t panel)
{
    char text[32];
    double left = x_of(bounds, panel, bounds->x_low), right = x_of(bounds, panel, bounds->x_high);
    for (double y = bounds->y_low; y <= bounds->y_high * 1.0001; y *= 10) {
        kv_svg_line(file, left, y_of(bounds, y), right, y_of(bounds, y), "#d8d8d8");
        if (panel == 0) {
            snprintf(text, sizeof text, "%g", y);
            kv_svg_text(file, left - 8, y_of(bounds, y) + 4, "end", "#444444", text);
        }
    }
    double step = step_for(bounds->x_high - bounds->x_low);
    for (double x = ceil(bounds->x_low / step) * step; x <= bounds->x_high; x += step) {
        snprintf(text, sizeof text, "%g", x);
        kv_svg_text(
            file, x_of(bounds, panel, x), TOP + PANEL_HEIGHT + 18, "middle", "#444444", text);
    }
    kv_svg_line(file, left, TOP + PANEL_HEIGHT, right, TOP + PANEL_HEIGHT, "#444444");
    kv_svg_text(
        file, (left + right) / 2, TOP + PANEL_HEIGHT + 38, "middle", "#444444", plot->x_title);
}

static void write_panel(FILE *file, const kv_plot_t *plot, const bounds_t *bounds, size_t panel)
{
    const kv_plot_panel_t *from = &plot->panels[panel];
    double low = x_of(bounds, panel, from->band.low), high = x_of(bounds, panel, from->band.high);
    if (low < high) {
        fprintf(file, "<rect x='%.1f' y='%d' width='%.1f' height='%d' fill='#f3e3c3'/>\n", low, TOP,
            high - low, PANEL_HEIGHT);
        kv_svg_text(file, (low + high) / 2, TOP + 14, "middle", "#8a6d2f", plot->band_title);
    }
    write_axes(file, plot, bounds, panel);
    kv_svg_text(file, x_of(bounds, panel, bounds->x_low), TOP - 8, "start", "#1f4e79", from->title);
    fputs("<path fill='none' stroke='#1f4e79' stroke-opacity='0.7' stroke-width='3.2' "
          "stroke-linecap='round' d='",
        file); /* a dot is a line without length that has round ends */
    for (size_t i = 0; i < from->point_count; i++) {
        fprintf(file, "M%.1f %.1fh0", x_of(bounds, panel, from->points[i].x),
            y_of(bounds, from->points[i].y));
    }
    fputs("'/>\n", file);
}

kv_status_t kv_plot_write(const kv_plot_t *plot, const char *path, kv_error_t *error)
{
    bounds_t bounds = find_bounds(plot);
    int width = LEFT + (int)plot->panel_count * (PANEL_WIDTH + GAP);
    FILE *file;
    kv_status_t status = kv_svg_begin(path, width, TOP + PANEL_HEIGHT + BOTTOM, &file, error);
    if (status != KV_OK) {
        return status;
    }
    kv_svg_text(file, LEFT, 22, "start", "black", plot->title);
    kv_svg_text_upwards(file, 16, TOP + PANEL_HEIGHT / 2, "#444444", plot->y_title);
    for (size_t i = 0; i < plot->panel_count; i++) {
        write_panel(file, plot, &bounds, i);
    }
    return kv_svg_end(file, path, error);
}
