#include "tools/kvist/svg.h"

#include <errno.h>

void kv_svg_open(FILE *file, int width, int height)
{
    fprintf(file,
        "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' viewBox='0 0 %d %d' "
        "font-family='sans-serif' font-size='12'>\n<rect width='100%%' height='100%%' "
        "fill='white'/>\n",
        width, height, width, height);
}

void kv_svg_close(FILE *file)
{
    fputs("</svg>\n", file);
}

kv_status_t kv_svg_begin(
    const char *path, int width, int height, FILE **file_out, kv_error_t *error)
{
    FILE *file = fopen(path, "we");
    if (file == NULL) {
        return kv_fail_errno(error, errno, "%s cannot be written", path);
    }
    kv_svg_open(file, width, height);
    *file_out = file;
    return KV_OK;
}

kv_status_t kv_svg_end(FILE *file, const char *path, kv_error_t *error)
{
    kv_svg_close(file);
    int failed = ferror(file);
    if (fclose(file) != 0 || failed) {
        return kv_fail(error, KV_IO, "%s cannot be written", path);
    }
    return KV_OK;
}

void kv_svg_text(
    FILE *file, double x, double y, const char *anchor, const char *color, const char *text)
{
    fprintf(file, "<text x='%.1f' y='%.1f' text-anchor='%s' fill='%s'>", x, y, anchor, color);
    for (const char *at = text; *at != '\0'; at++) {
        switch (*at) {
        case '<':
            fputs("&lt;", file);
            break;
        case '&':
            fputs("&amp;", file);
            break;
        default:
            fputc(*at, file);
        }
    }
    fputs("</text>\n", file);
}

void kv_svg_text_upwards(FILE *file, double x, double y, const char *color, const char *text)
{
    fprintf(file, "<g transform='translate(%g %g) rotate(-90)'>", x, y);
    kv_svg_text(file, 0, 0, "middle", color, text);
    fputs("</g>\n", file);
}

void kv_svg_line(FILE *file, double x1, double y1, double x2, double y2, const char *color)
{
    fprintf(file, "<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='%s'/>\n", x1, y1, x2, y2,
        color);
}
