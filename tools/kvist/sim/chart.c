#include "tools/kvist/sim/chart.h"

#include "tools/kvist/svg.h"

#include <math.h>

enum {
    WIDTH = 560,
    HEIGHT = 320,
    LEFT = 64,
    TOP = 48,
    BOTTOM = 56,
    RIGHT = 170, /* for the lines' names */
    NAME_HEIGHT = 15,
};

typedef struct {
    double low, high; /* of the sizes */
    double top;       /* of the rates */
} bounds_t;

static const char *const COLORS[KV_CHART_LINES_MAX] = {"#1f4e79", "#b5482a", "#3d7a3a", "#7a4f9a",
    "#a8842c", "#2f8f8f", "#444444", "#c05a8e", "#6b6bc0", "#5c8a2f", "#8a5c3f", "#888888"};

static double x_of(const bounds_t *bounds, double size)
{
    return LEFT + log(size / bounds->low) / log(bounds->high / bounds->low) * WIDTH;
}

static double y_of(const bounds_t *bounds, double rate)
{
    return TOP + (1 - rate / bounds->top) * HEIGHT;
}

/* Up to the next tenth; one size alone stands in the middle. */
static bounds_t find_bounds(const kv_chart_t *chart)
{
    bounds_t bounds = {chart->sizes[0], chart->sizes[chart->size_count - 1], 0};
    for (size_t i = 0; i < chart->line_count; i++) {
        for (size_t j = 0; j < chart->size_count; j++) {
            bounds.top = fmax(bounds.top, chart->lines[i].rates[j]);
        }
    }
    bounds.top = fmax(ceil(bounds.top * 10) / 10, 0.1);
    if (!(bounds.low < bounds.high)) {
        bounds.low /= 2;
        bounds.high *= 2;
    }
    return bounds;
}

static void write_axes(FILE *file, const kv_chart_t *chart, const bounds_t *bounds)
{
    char text[32];
    int steps = (int)lround(bounds->top * 10);
    for (int i = 0; i <= steps; i++) {
        double y = y_of(bounds, i / 10.0);
        kv_svg_line(file, LEFT, y, LEFT + WIDTH, y, i == 0 ? "#444444" : "#d8d8d8");
        snprintf(text, sizeof text, "%.1f", i / 10.0);
        kv_svg_text(file, LEFT - 8, y + 4, "end", "#444444", text);
    }
    for (size_t i = 0; i < chart->size_count; i++) {
        double x = x_of(bounds, chart->sizes[i]);
        kv_svg_line(file, x, TOP + HEIGHT, x, TOP + HEIGHT + 5, "#444444");
        snprintf(text, sizeof text, "%g", chart->sizes[i]);
        kv_svg_text(file, x, TOP + HEIGHT + 20, "middle", "#444444", text);
    }
    kv_svg_text(file, LEFT + WIDTH / 2, TOP + HEIGHT + 42, "middle", "#444444", chart->size_title);
    kv_svg_text_upwards(file, 20, TOP + HEIGHT / 2, "#444444", "hit rate (blocks)");
}

static void write_curve(FILE *file, const kv_chart_t *chart, const bounds_t *bounds, size_t number)
{
    const kv_chart_line_t *line = &chart->lines[number];
    fprintf(file, "<path fill='none' stroke='%s' stroke-width='2'%s d='", COLORS[number],
        line->reference ? " stroke-dasharray='5 4'" : "");
    for (size_t i = 0; i < chart->size_count; i++) {
        fprintf(file, "%c%.1f %.1f", i == 0 ? 'M' : 'L', x_of(bounds, chart->sizes[i]),
            y_of(bounds, line->rates[i]));
    }
    fputs("'/>\n", file);
    for (size_t i = 0; i < chart->size_count; i++) {
        fprintf(file, "<circle cx='%.1f' cy='%.1f' r='3' fill='%s'/>\n",
            x_of(bounds, chart->sizes[i]), y_of(bounds, line->rates[i]), COLORS[number]);
    }
}

/* Beside their right ends, in the order of these, none above another. */
static void write_names(FILE *file, const kv_chart_t *chart, const bounds_t *bounds)
{
    bool written[KV_CHART_LINES_MAX] = {false};
    double y_least = TOP;
    for (size_t i = 0; i < chart->line_count; i++) {
        size_t best = chart->line_count;
        for (size_t j = 0; j < chart->line_count; j++) {
            bool higher =
                best == chart->line_count || chart->lines[j].rates[chart->size_count - 1] >
                                                 chart->lines[best].rates[chart->size_count - 1];
            best = !written[j] && higher ? j : best;
        }
        written[best] = true;
        double y = y_of(bounds, chart->lines[best].rates[chart->size_count - 1]) + 4;
        y = fmax(y, y_least);
        y_least = y + NAME_HEIGHT;
        kv_svg_text(file, LEFT + WIDTH + 12, y, "start", COLORS[best], chart->lines[best].name);
    }
}

kv_status_t kv_chart_write(const kv_chart_t *chart, const char *path, kv_error_t *error)
{
    FILE *file;
    bounds_t bounds = find_bounds(chart);
    kv_status_t status =
        kv_svg_begin(path, LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM, &file, error);
    if (status != KV_OK) {
        return status;
    }
    kv_svg_text(file, LEFT, 22, "start", "black", chart->title);
    write_axes(file, chart, &bounds);
    for (size_t i = 0; i < chart->line_count; i++) {
        write_curve(file, chart, &bounds, i);
    }
    write_names(file, chart, &bounds);
    return kv_svg_end(file, path, error);
}
