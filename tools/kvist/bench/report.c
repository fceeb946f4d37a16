/* `kvist bench report`: runs of `kvist bench serve` beside each other. */
#include "tools/kvist/bench/serve/report.h"
#include "base/memory.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/bench/bench.h"
#include "tools/kvist/command.h"

#include <stdlib.h>
#include <string.h>

/* FILE,FILE,...: all of them, in this order. */
static kv_status_t read_runs(const char *files, json_t *runs, kv_error_t *error)
{
    char *text = kv_duplicate_string(files);
    kv_status_t status = KV_OK;
    for (char *at = text, *next; at != NULL && status == KV_OK; at = next) {
        json_t *run;
        next = strchr(at, ',');
        if (next != NULL) {
            *next++ = '\0';
        }
        status = kv_serve_read_run(at, &run, error);
        if (status == KV_OK) {
            json_array_append_new(runs, run);
        }
    }
    free(text);
    return status;
}

int kv_bench_report(int argc, char **argv)
{
    const char *files = NULL, *html = NULL, *figures = NULL;
    const kv_argument_t rows[] = {
        {"--runs", KV_ARGUMENT_TEXT, "FILE,...", "what kvist bench serve --json wrote", &files, 0,
            0},
        {"--html", KV_ARGUMENT_TEXT, "FILE", "writes a report with figures there", &html, 0, 0},
        {"--figures", KV_ARGUMENT_TEXT, "FOLDER", "writes each figure there (SVG)", &figures, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist bench report --runs FILE,... [OPTIONS]",
        .summary = "Runs of kvist bench serve beside each other: their tables and, where they are "
                   "over the same loads,\nfigures with a line for each (--name names them).",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if (files == NULL) {
        return kv_command_misuse("bench", "--runs is missing", "kvist bench report --help");
    }
    kv_error_t error;
    json_t *runs = json_array(), *run;
    size_t at;
    kv_status_t status = read_runs(files, runs, &error);
    if (status == KV_OK) {
        json_array_foreach(runs, at, run)
        {
            kv_serve_print_table(stdout, run);
        }
        status = kv_serve_write_report(runs, html, figures, &error);
    }
    json_decref(runs);
    return status == KV_OK ? KV_EXIT_DONE : kv_command_fail("bench", error.text, NULL);
}
