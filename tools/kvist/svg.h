/* The few things that figures are drawn with, as SVG.
 *
 * Owns: the file, from begin to end.
 * Threads: any.
 * Errors: KV_IO and its kin where the file cannot be written. */
#ifndef KV_TOOLS_SVG_H
#define KV_TOOLS_SVG_H

#include "base/status.h"

#include <stdio.h>

/* A white page of so many pixels, with 12-pixel sans-serif text. */
kv_status_t kv_svg_begin(
    const char *path, int width, int height, FILE **file_out, kv_error_t *error);
kv_status_t kv_svg_end(FILE *file, const char *path, kv_error_t *error);

/* The same within a stream that is the caller's, as a page of HTML. */
void kv_svg_open(FILE *file, int width, int height);
void kv_svg_close(FILE *file);

/* anchor: "start", "middle" or "end" of the text is at x. */
void kv_svg_text(
    FILE *file, double x, double y, const char *anchor, const char *color, const char *text);

/* Reading from below to above, its middle at y. */
void kv_svg_text_upwards(FILE *file, double x, double y, const char *color, const char *text);

void kv_svg_line(FILE *file, double x1, double y1, double x2, double y2, const char *color);

#endif
