/* Lines over a numbered axis, as SVG: the vertical scale begins at 0, the horizontal one is linear,
 * or has its values at equal distances. Names stand below, in the lines' colours.
 *
 * Owns: nothing. Borrows: all that it is given, while it writes.
 * Threads: any. */
#ifndef KV_TOOLS_SERVE_LINES_H
#define KV_TOOLS_SERVE_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

typedef struct {
    double x, y;
} kv_line_point_t;

typedef struct {
    char name[128];
    kv_line_point_t *points;
    size_t count;
    unsigned color; /* lines that belong together have one */
    bool dashed;
} kv_line_t;

typedef struct {
    char title[160];
    const char *x_title, *y_title;
    bool x_steps; /* values of x are steps of one size */
    kv_line_t *lines;
    size_t line_count;
} kv_lines_t;

/* Adds a line without points; adds a point to the last one. kv_lines_release frees all of them. */
kv_line_t *kv_lines_add(kv_lines_t *lines, unsigned color, bool dashed, const char *name);
void kv_lines_add_point(kv_lines_t *lines, double x, double y);
void kv_lines_release(kv_lines_t *lines);

/* An <svg> element. */
void kv_lines_draw(const kv_lines_t *lines, FILE *file);

#endif
