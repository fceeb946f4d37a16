#include "tools/kvist/bench/serve/lines.h"

#include "base/memory.h"
#include "tools/kvist/svg.h"

#include <math.h>
#include <stdlib.h>

enum {
    WIDTH = 560,
    HEIGHT = 280,
    LEFT = 72,
    TOP = 44,
    RIGHT = 24,
    BOTTOM = 60,
    NAME_HEIGHT = 17,
    STEPS_MAX = 64,
};

static const char *const COLORS[] = {"#1f4e79", "#b5482a", "#3d7a3a", "#7a4f9a", "#a8842c",
    "#2f8f8f", "#444444", "#c05a8e", "#6b6bc0", "#5c8a2f"};
enum { COLOR_COUNT = sizeof COLORS / sizeof *COLORS };

typedef struct {
    const kv_lines_t *lines;
    double low, high, top;   /* of x; of y */
    double steps[STEPS_MAX]; /* all values of x, ascending */
    size_t step_count;
} scale_t;

kv_line_t *kv_lines_add(kv_lines_t *lines, unsigned color, bool dashed, const char *name)
{
    lines->lines = kv_reallocate(lines->lines, lines->line_count + 1, sizeof *lines->lines);
    kv_line_t *line = &lines->lines[lines->line_count++];
    *line = (kv_line_t){.color = color, .dashed = dashed};
    snprintf(line->name, sizeof line->name, "%s", name);
    return line;
}

void kv_lines_add_point(kv_lines_t *lines, double x, double y)
{
    kv_line_t *line = &lines->lines[lines->line_count - 1];
    line->points = kv_reallocate(line->points, line->count + 1, sizeof *line->points);
    line->points[line->count++] = (kv_line_point_t){x, y};
}

void kv_lines_release(kv_lines_t *lines)
{
    for (size_t i = 0; i < lines->line_count; i++) {
        free(lines->lines[i].points);
    }
    free(lines->lines);
    *lines = (kv_lines_t){0};
}

/* ---- scales ---- */

/* 1, 2 or 5 times a power of ten, so that there are five to ten marks. */
static double mark_step(double length)
{
    double power = pow(10, floor(log10(length / 5)));
    double factor = length / 5 / power;
    return power * (factor >= 5 ? 5 : factor >= 2 ? 2 : 1);
}

static void add_step(scale_t *scale, double x)
{
    size_t at = 0;
    while (at < scale->step_count && scale->steps[at] < x) {
        at++;
    }
    if ((at < scale->step_count && scale->steps[at] == x) || scale->step_count == STEPS_MAX) {
        return;
    }
    for (size_t i = scale->step_count++; i > at; i--) {
        scale->steps[i] = scale->steps[i - 1];
    }
    scale->steps[at] = x;
}

static scale_t find_scale(const kv_lines_t *lines)
{
    scale_t scale = {.lines = lines, .low = INFINITY, .high = -INFINITY};
    for (size_t i = 0; i < lines->line_count; i++) {
        for (size_t j = 0; j < lines->lines[i].count; j++) {
            kv_line_point_t point = lines->lines[i].points[j];
            scale.low = fmin(scale.low, point.x);
            scale.high = fmax(scale.high, point.x);
            scale.top = fmax(scale.top, point.y);
            add_step(&scale, point.x);
        }
    }
    scale.low = isfinite(scale.low) ? scale.low : 0;
    scale.high = scale.high > scale.low ? scale.high : scale.low + 1;
    scale.top = scale.top > 0 ? scale.top : 1;
    double step = mark_step(scale.top);
    scale.top = ceil(scale.top / step - 1e-9) * step;
    return scale;
}

static double x_of(const scale_t *scale, double x)
{
    if (!scale->lines->x_steps) {
        return LEFT + (x - scale->low) / (scale->high - scale->low) * WIDTH;
    }
    size_t at = 0;
    while (at < scale->step_count && scale->steps[at] < x) {
        at++;
    }
    double most = scale->step_count > 1 ? (double)scale->step_count - 1 : 1;
    return LEFT + (double)at / most * WIDTH;
}

static double y_of(const scale_t *scale, double y)
{
    return TOP + (1 - y / scale->top) * HEIGHT;
}

/* ---- drawing ---- */

static void draw_x_mark(const scale_t *scale, FILE *file, double value)
{
    char text[32];
    double x = x_of(scale, value);
    snprintf(text, sizeof text, "%g", value);
    kv_svg_line(file, x, TOP + HEIGHT, x, TOP + HEIGHT + 5, "#444444");
    kv_svg_text(file, x, TOP + HEIGHT + 19, "middle", "#444444", text);
}

static void draw_axes(const scale_t *scale, FILE *file)
{
    char text[32];
    double step = mark_step(scale->top);
    for (int i = 0; i * step <= scale->top * 1.0001; i++) {
        double y = y_of(scale, i * step);
        kv_svg_line(file, LEFT, y, LEFT + WIDTH, y, i == 0 ? "#444444" : "#d8d8d8");
        snprintf(text, sizeof text, "%g", i * step);
        kv_svg_text(file, LEFT - 8, y + 4, "end", "#444444", text);
    }
    if (scale->lines->x_steps) {
        for (size_t i = 0; i < scale->step_count; i++) {
            draw_x_mark(scale, file, scale->steps[i]);
        }
    } else {
        step = mark_step(scale->high - scale->low);
        for (double x = ceil(scale->low / step - 1e-9) * step; x <= scale->high * 1.0001;
             x += step) {
            draw_x_mark(scale, file, x);
        }
    }
    kv_svg_text(
        file, LEFT + WIDTH / 2, TOP + HEIGHT + 40, "middle", "#444444", scale->lines->x_title);
    kv_svg_text_upwards(file, 18, TOP + HEIGHT / 2, "#444444", scale->lines->y_title);
}

static void draw_line(const scale_t *scale, FILE *file, const kv_line_t *line)
{
    const char *color = COLORS[line->color % COLOR_COUNT];
    fprintf(file, "<path fill='none' stroke='%s' stroke-width='2'%s d='", color,
        line->dashed ? " stroke-dasharray='6 4'" : "");
    for (size_t i = 0; i < line->count; i++) {
        fprintf(file, "%c%.1f %.1f", i == 0 ? 'M' : 'L', x_of(scale, line->points[i].x),
            y_of(scale, line->points[i].y));
    }
    fputs("'/>\n", file);
    for (size_t i = 0; i < line->count && scale->lines->x_steps; i++) {
        fprintf(file, "<circle cx='%.1f' cy='%.1f' r='3' fill='%s'/>\n",
            x_of(scale, line->points[i].x), y_of(scale, line->points[i].y), color);
    }
}

static void draw_name(FILE *file, const kv_line_t *line, double y)
{
    const char *color = COLORS[line->color % COLOR_COUNT];
    fprintf(file, "<path stroke='%s' stroke-width='2'%s d='M%d %.1fh32'/>\n", color,
        line->dashed ? " stroke-dasharray='6 4'" : "", LEFT, y - 4);
    kv_svg_text(file, LEFT + 40, y, "start", color, line->name);
}

void kv_lines_draw(const kv_lines_t *lines, FILE *file)
{
    const scale_t scale = find_scale(lines);
    int names_height = (int)lines->line_count * NAME_HEIGHT + 8;
    kv_svg_open(file, LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM + names_height);
    kv_svg_text(file, LEFT, 22, "start", "black", lines->title);
    draw_axes(&scale, file);
    for (size_t i = 0; i < lines->line_count; i++) {
        draw_line(&scale, file, &lines->lines[i]);
        draw_name(file, &lines->lines[i], TOP + HEIGHT + BOTTOM + ((double)i + 0.5) * NAME_HEIGHT);
    }
    kv_svg_close(file);
}
