#include "tools/kvist/bench/serve/report.h"

#include "base/memory.h"
#include "tools/kvist/bench/serve/lines.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    LINES_MAX = 12, /* of a figure of distributions or times: more cannot be told apart */
    FORM_VERSION = 1,
    PATH_BYTES = 4096,
};

typedef struct {
    const json_t *runs;
    FILE *page;          /* NULL: none */
    const char *figures; /* NULL: none */
    kv_error_t *error;
} writer_t;

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

static double number_of(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

static const json_t *phases_of(const json_t *run)
{
    return json_object_get(run, "phases");
}

/* ---- figures ---- */

static kv_status_t write_figure(
    const writer_t *writer, const kv_lines_t *lines, const char *file_name)
{
    if (writer->page != NULL) {
        fputs("<figure>\n", writer->page);
        kv_lines_draw(lines, writer->page);
        fputs("</figure>\n", writer->page);
    }
    if (writer->figures == NULL) {
        return KV_OK;
    }
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s.svg", writer->figures, file_name);
    FILE *file = fopen(path, "we");
    if (file == NULL) {
        return kv_fail_errno(writer->error, errno, "%s cannot be written", path);
    }
    kv_lines_draw(lines, file);
    bool failed = ferror(file) != 0;
    failed |= fclose(file) != 0;
    return failed ? kv_fail(writer->error, KV_IO, "%s cannot be written", path) : KV_OK;
}

/* What a run's phases differ by, in figures. */
typedef struct {
    const char *x_name, *x_title;
} axis_t;

static axis_t axis_of(const json_t *run)
{
    const json_t *first = json_array_get(phases_of(run), 0);
    if (json_is_number(json_object_get(first, "shared_percent"))) {
        return (axis_t){"shared_percent", "shared prefix (% of the prompt)"};
    }
    if (json_is_number(json_object_get(first, "rate"))) {
        return (axis_t){"rate", "sessions that begin a second (Poisson)"};
    }
    return (axis_t){"concurrency", "clients at once"};
}

/* A figure of one value of phases. */
typedef struct {
    const char *file_name, *title, *y_title;
    const char *outer, *inner; /* the value's name; inner: NULL where it is not in an object */
    double factor;
    const char *ideal; /* drawn dashed beside it; NULL: nothing */
} measure_t;

static const measure_t MEASURES[] = {
    {"hit-rate", "Hit rate (dashed: ideal)", "% of prompt tokens", "hit_rate", NULL, 100,
        "ideal_hit_rate"},
    {"requests-per-s", "Requests answered", "requests/s", "requests_per_s", NULL, 1, NULL},
    {"goodput", "Goodput: requests within their targets", "requests/s", "goodput", "requests_per_s",
        1, NULL},
    {"ttft-p50", "Time to first token, median", "ms", "ttft_ms", "p50", 1, NULL},
    {"ttft-p99", "Time to first token, 99th percentile", "ms", "ttft_ms", "p99", 1, NULL},
    {"tpot-p50", "Time for each token after it, median of requests", "ms", "tpot_ms", "p50", 1,
        NULL},
    {"tpot-p99", "Time for each token after it, 99th percentile of requests", "ms", "tpot_ms",
        "p99", 1, NULL},
    {"e2e-mean", "Time of a whole answer, mean", "ms", "e2e_ms", "mean", 1, NULL},
    {"e2e-p99", "Time of a whole answer, 99th percentile", "ms", "e2e_ms", "p99", 1, NULL},
};

static const json_t *value_of(const json_t *phase, const char *outer, const char *inner)
{
    const json_t *value = json_object_get(phase, outer);
    return inner != NULL ? json_object_get(value, inner) : value;
}

/* "name, 4 at once": what a line of a sweep stands for. */
static void name_line(const json_t *run, const json_t *phase, bool sweep, char *name, size_t bytes)
{
    const json_t *rate = json_object_get(phase, "rate");
    if (!sweep) {
        snprintf(name, bytes, "%s", text_of(run, "name"));
    } else if (json_is_number(rate)) {
        snprintf(name, bytes, "%s, %g/s", text_of(run, "name"), json_number_value(rate));
    } else {
        snprintf(
            name, bytes, "%s, %g at once", text_of(run, "name"), number_of(phase, "concurrency"));
    }
}

/* A run's lines: of a sweep one for each load. Phases of one load follow each other. */
static void add_run_lines(const json_t *run, const measure_t *measure, const char *value_name,
    const char *inner, bool dashed, unsigned *color, kv_lines_t *lines)
{
    const axis_t axis = axis_of(run);
    bool sweep = strcmp(axis.x_name, "shared_percent") == 0;
    char last[128] = "", name[128];
    size_t at;
    json_t *phase;
    json_array_foreach(phases_of(run), at, phase)
    {
        name_line(run, phase, sweep, name, sizeof name);
        if (at == 0 || strcmp(name, last) != 0) {
            char shown[160];
            snprintf(shown, sizeof shown, "%s%s", name, dashed ? ", ideal" : "");
            kv_lines_add(lines, (*color)++, dashed, shown);
            memcpy(last, name, sizeof last);
        }
        const json_t *value = value_of(phase, value_name, inner);
        if (json_is_number(value)) {
            kv_lines_add_point(
                lines, number_of(phase, axis.x_name), json_number_value(value) * measure->factor);
        }
    }
}

static bool has_points(const kv_lines_t *lines)
{
    for (size_t i = 0; i < lines->line_count; i++) {
        if (lines->lines[i].count > 0) {
            return true;
        }
    }
    return false;
}

static kv_status_t write_measure(const writer_t *writer, const measure_t *measure)
{
    const axis_t axis = axis_of(json_array_get(writer->runs, 0));
    kv_lines_t lines = {.x_title = axis.x_title, .y_title = measure->y_title, .x_steps = true};
    kv_status_t status = KV_OK;
    unsigned color = 0, ideal_color = 0;
    size_t at;
    json_t *run;
    snprintf(lines.title, sizeof lines.title, "%s", measure->title);
    json_array_foreach(writer->runs, at, run)
    {
        add_run_lines(run, measure, measure->outer, measure->inner, false, &color, &lines);
        if (measure->ideal != NULL) {
            add_run_lines(run, measure, measure->ideal, NULL, true, &ideal_color, &lines);
        }
    }
    if (has_points(&lines)) {
        status = write_figure(writer, &lines, measure->file_name);
    }
    kv_lines_release(&lines);
    return status;
}

/* Whether some run has phases to draw over an axis; they must all have the same one. */
static bool has_axis(const json_t *runs)
{
    size_t at, most = 0;
    json_t *run;
    const char *x_name = axis_of(json_array_get(runs, 0)).x_name;
    json_array_foreach(runs, at, run)
    {
        size_t count = json_array_size(phases_of(run));
        most = count > most ? count : most;
        if (strcmp(axis_of(run).x_name, x_name) != 0) {
            return false;
        }
    }
    return most > 1;
}

/* ---- distributions, and over time ---- */

static size_t count_phases(const json_t *runs)
{
    size_t at, count = 0;
    json_t *run;
    json_array_foreach(runs, at, run)
    {
        count += json_array_size(phases_of(run));
    }
    return count;
}

static void name_phase(
    const json_t *runs, const json_t *run, const json_t *phase, char *name, size_t bytes)
{
    if (json_array_size(runs) == 1) {
        snprintf(name, bytes, "%s", text_of(phase, "label"));
    } else {
        snprintf(name, bytes, "%s: %s", text_of(run, "name"), text_of(phase, "label"));
    }
}

/* A phase's quantiles: x is the time, y the share of requests that took no longer. */
static void add_curve(const json_t *phase, const char *times, kv_lines_t *lines)
{
    const json_t *curve = json_object_get(json_object_get(phase, times), "curve");
    size_t at, count = json_array_size(curve);
    json_t *value;
    json_array_foreach(curve, at, value)
    {
        kv_lines_add_point(lines, json_number_value(value),
            100 * (double)at / (double)(count > 1 ? count - 1 : 1));
    }
}

/* Hit and ideal of all that ended up to then. */
static void add_course(const json_t *phase, const char *what, kv_lines_t *lines)
{
    double prompt = 0, tokens = 0;
    size_t at;
    json_t *row;
    json_array_foreach(json_object_get(phase, "over_time"), at, row)
    {
        prompt += number_of(row, "prompt");
        tokens += number_of(row, what);
        if (prompt > 0) {
            kv_lines_add_point(lines, number_of(row, "s"), 100 * tokens / prompt);
        }
    }
}

static kv_status_t write_curves(
    const writer_t *writer, const char *title, const char *times, const char *file_name)
{
    kv_lines_t lines = {.x_title = "ms", .y_title = "% that took no longer"};
    char name[128];
    unsigned color = 0;
    size_t run_at, phase_at;
    json_t *run, *phase;
    snprintf(lines.title, sizeof lines.title, "%s", title);
    json_array_foreach(writer->runs, run_at, run)
    {
        json_array_foreach(phases_of(run), phase_at, phase)
        {
            name_phase(writer->runs, run, phase, name, sizeof name);
            kv_lines_add(&lines, color++, false, name);
            add_curve(phase, times, &lines);
        }
    }
    kv_status_t status = has_points(&lines) ? write_figure(writer, &lines, file_name) : KV_OK;
    kv_lines_release(&lines);
    return status;
}

static kv_status_t write_course(const writer_t *writer)
{
    kv_lines_t lines = {
        .x_title = "s", .y_title = "% of prompt tokens so far", .title = "Hit rate over time"};
    char name[128], ideal[160];
    unsigned color = 0;
    size_t run_at, phase_at;
    json_t *run, *phase;
    json_array_foreach(writer->runs, run_at, run)
    {
        json_array_foreach(phases_of(run), phase_at, phase)
        {
            name_phase(writer->runs, run, phase, name, sizeof name);
            kv_lines_add(&lines, color, false, name);
            add_course(phase, "hit", &lines);
            snprintf(ideal, sizeof ideal, "%s, ideal", name);
            kv_lines_add(&lines, color++, true, ideal);
            add_course(phase, "ideal", &lines);
        }
    }
    kv_status_t status =
        has_points(&lines) ? write_figure(writer, &lines, "hit-rate-over-time") : KV_OK;
    kv_lines_release(&lines);
    return status;
}

static kv_status_t write_figures(const writer_t *writer)
{
    kv_status_t status = KV_OK;
    bool over_axis = has_axis(writer->runs);
    for (size_t i = 0; i < sizeof MEASURES / sizeof *MEASURES && status == KV_OK && over_axis;
         i++) {
        status = write_measure(writer, &MEASURES[i]);
    }
    if (count_phases(writer->runs) > LINES_MAX) {
        return status;
    }
    status = status == KV_OK ? write_course(writer) : status;
    if (status == KV_OK) {
        status = write_curves(writer, "Time to first token", "ttft_ms", "ttft");
    }
    if (status == KV_OK) {
        status = write_curves(writer, "Gap between pieces of an answer", "gap_ms", "gaps");
    }
    return status == KV_OK ? write_curves(writer, "Time of a whole answer", "e2e_ms", "e2e")
                           : status;
}

/* ---- the page ---- */

static void put_text(FILE *page, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '<':
            fputs("&lt;", page);
            break;
        case '&':
            fputs("&amp;", page);
            break;
        default:
            fputc(*text, page);
        }
    }
}

static void put_cell(FILE *page, const json_t *value, double factor, int decimals)
{
    if (json_is_number(value)) {
        fprintf(page, "<td>%.*f</td>", decimals, json_number_value(value) * factor);
    } else {
        fputs("<td>-</td>", page);
    }
}

static const struct {
    const char *title, *outer, *inner;
    double factor;
    int decimals;
} COLUMNS[] = {
    {"hit %", "hit_rate", NULL, 100, 1},
    {"ideal %", "ideal_hit_rate", NULL, 100, 1},
    {"done", "requests", "done", 1, 0},
    {"failed", "requests", "failed", 1, 0},
    {"requests/s", "requests_per_s", NULL, 1, 2},
    {"good/s", "goodput", "requests_per_s", 1, 2},
    {"TTFT p50 ms", "ttft_ms", "p50", 1, 0},
    {"p99", "ttft_ms", "p99", 1, 0},
    {"TPOT p50 ms", "tpot_ms", "p50", 1, 1},
    {"p99", "tpot_ms", "p99", 1, 1},
    {"e2e mean ms", "e2e_ms", "mean", 1, 0},
    {"p99", "e2e_ms", "p99", 1, 0},
};
enum { COLUMN_COUNT = sizeof COLUMNS / sizeof *COLUMNS };

static void put_table(FILE *page, const json_t *runs)
{
    size_t run_at, phase_at;
    json_t *run, *phase;
    fputs("<div class=wide><table><tr><th>run</th><th>load</th>", page);
    for (size_t i = 0; i < COLUMN_COUNT; i++) {
        fprintf(page, "<th>%s</th>", COLUMNS[i].title);
    }
    fputs("</tr>\n", page);
    json_array_foreach(runs, run_at, run)
    {
        json_array_foreach(phases_of(run), phase_at, phase)
        {
            fputs("<tr><td>", page);
            put_text(page, text_of(run, "name"));
            fputs("</td><td>", page);
            put_text(page, text_of(phase, "label"));
            fputs("</td>", page);
            for (size_t i = 0; i < COLUMN_COUNT; i++) {
                put_cell(page, value_of(phase, COLUMNS[i].outer, COLUMNS[i].inner),
                    COLUMNS[i].factor, COLUMNS[i].decimals);
            }
            fputs("</tr>\n", page);
        }
    }
    fputs("</table></div>\n", page);
}

/* A stretch of a bar, as long as its share. */
static void put_stretch(FILE *page, const char *kind, const char *name, double share)
{
    if (share > 0) {
        fprintf(page, "<span class='%s' style='flex:%.4f' title='", kind, share);
        put_text(page, name);
        fprintf(
            page, " %.1f %%'>%s %.0f</span>", 100 * share, share > 0.04 ? name : "", 100 * share);
    }
}

/* Where a phase's prompt tokens went, by the gateway's own count. */
static void put_bar(FILE *page, const json_t *parts)
{
    static const char *const FAMILIES[] = {"hit", "gap", "unseen"};
    double prompt = number_of(parts, "prompt");
    const char *name;
    json_t *value;
    fputs("<div class=bar>", page);
    for (size_t i = 0; i < sizeof FAMILIES / sizeof *FAMILIES; i++) {
        json_object_foreach(json_object_get(parts, FAMILIES[i]), name, value)
        {
            put_stretch(page, FAMILIES[i], name, json_number_value(value) / prompt);
        }
    }
    fputs("</div>", page);
}

static void put_bars(FILE *page, const json_t *runs)
{
    size_t run_at, phase_at, count = 0;
    json_t *run, *phase;
    json_array_foreach(runs, run_at, run)
    {
        json_array_foreach(phases_of(run), phase_at, phase)
        {
            const json_t *parts = json_object_get(phase, "gateway");
            if (!json_is_object(parts) || number_of(parts, "prompt") <= 0) {
                continue;
            }
            fputs(count++ == 0 ? "<h2>Where prompt tokens went, in % of them, by the gateway's "
                                 "count</h2>\n<table class=bars>\n<tr><td>"
                               : "<tr><td>",
                page);
            put_text(page, text_of(run, "name"));
            fputs("</td><td>", page);
            put_text(page, text_of(phase, "label"));
            fputs("</td><td>", page);
            put_bar(page, parts);
            fputs("</td></tr>\n", page);
        }
    }
    fputs(count > 0 ? "</table>\n" : "", page);
}

/* Each run's workload and targets as they were, and the machine. */
static void put_facts(FILE *page, const json_t *runs)
{
    size_t run_at, line_at;
    json_t *run, *line;
    json_array_foreach(runs, run_at, run)
    {
        char *workload = json_dumps(json_object_get(run, "workload"), 0);
        char *slo = json_dumps(json_object_get(run, "slo"), 0);
        fputs("<h2>", page);
        put_text(page, text_of(run, "name"));
        fputs("</h2>\n<ul>\n<li>", page);
        put_text(page, text_of(run, "model"));
        fputs(" at ", page);
        put_text(page, text_of(run, "endpoint"));
        fputs("; prompts as ", page);
        put_text(page, text_of(run, "prompts"));
        fputs("</li>\n<li>", page);
        put_text(page, workload != NULL ? workload : "");
        fputs("</li>\n<li>targets: ", page);
        put_text(page, slo != NULL ? slo : "");
        fputs("</li>\n", page);
        json_array_foreach(json_object_get(run, "machine"), line_at, line)
        {
            fputs("<li>", page);
            put_text(page, json_string_value(line));
            fputs("</li>\n", page);
        }
        fputs("</ul>\n", page);
        free(workload);
        free(slo);
    }
}

static const char HEAD[] =
    "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
    "<meta name=viewport content='width=device-width'>\n<title>kvist bench serve</title>\n"
    "<style>\n:root{color-scheme:light dark}\n"
    "body{font:15px sans-serif;max-width:90rem;margin:1rem auto;padding:0 1rem}\n"
    "table{border-collapse:collapse}\n"
    "td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #8886}\n"
    "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}\n.wide{overflow-x:auto}\n"
    "figure{display:inline-block;vertical-align:top;margin:.5rem .5rem .5rem 0;max-width:100%}\n"
    "svg{max-width:100%;height:auto}\n.bars{width:100%}.bars td:last-child{width:70%}\n"
    ".bar{display:flex;text-align:left;font-size:.8rem;white-space:nowrap}\n"
    ".bar span{overflow:hidden;padding:.2rem 0 .2rem .2rem;border-right:1px solid "
    "#fff;color:#fff}\n"
    ".hit{background:#2d6a36}.gap{background:#b5482a}.unseen{background:#5a6472}\n</"
    "style>\n<h1>kvist bench serve</h1>\n";

kv_status_t kv_serve_write_report(
    const json_t *runs, const char *html, const char *figures, kv_error_t *error)
{
    writer_t writer = {.runs = runs, .figures = figures, .error = error};
    if (html != NULL) {
        writer.page = fopen(html, "we");
        if (writer.page == NULL) {
            return kv_fail_errno(error, errno, "%s cannot be written", html);
        }
        fputs(HEAD, writer.page);
        put_table(writer.page, runs);
        put_bars(writer.page, runs);
    }
    kv_status_t status = write_figures(&writer);
    if (html != NULL) {
        put_facts(writer.page, runs);
        fputs("</html>\n", writer.page);
        bool failed = ferror(writer.page) != 0;
        failed |= fclose(writer.page) != 0;
        if (failed && status == KV_OK) {
            status = kv_fail(error, KV_IO, "%s cannot be written", html);
        }
    }
    return status;
}

/* ---- runs from files ---- */

kv_status_t kv_serve_read_run(const char *path, json_t **run_out, kv_error_t *error)
{
    json_error_t reason;
    json_t *run = json_load_file(path, 0, &reason);
    if (run == NULL) {
        return kv_fail(error, KV_INVALID, "%s: line %d: %s", path, reason.line, reason.text);
    }
    bool good = strcmp(text_of(run, "bench"), "serve") == 0 && json_array_size(phases_of(run)) > 0;
    if (!good || number_of(run, "version") != FORM_VERSION) {
        json_decref(run);
        return kv_fail(error, KV_INVALID,
            good ? "%s was written by another version of kvist bench serve"
                 : "%s was not written by kvist bench serve --json",
            path);
    }
    *run_out = run;
    return KV_OK;
}
