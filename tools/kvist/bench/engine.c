/* `kvist bench engine`: what the engine computes in a second. */
#include "engine/bench.h"

#include "tools/kvist/arguments.h"
#include "tools/kvist/bench/bench.h"
#include "tools/kvist/bench/machine.h"
#include "tools/kvist/bench/measure.h"
#include "tools/kvist/command.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    kv_report_t report;
    FILE *notes; /* where lines that are no measures go */
    char arithmetic[64];
} run_t;

static void print(void *context, const kv_engine_bench_row_t *row)
{
    run_t *run = context;
    char name[64];
    kv_measure_t measure = {.name = name, .unit = row->unit, .target = NAN};
    if (row->tokens == 0) {
        snprintf(name, sizeof name, "engine_%s", row->what);
    } else {
        snprintf(
            name, sizeof name, "engine_%s/%u tokens/%u rows", row->what, row->tokens, row->rows);
    }
    if (strcmp(row->arithmetic, run->arithmetic) != 0) {
        snprintf(run->arithmetic, sizeof run->arithmetic, "%s", row->arithmetic);
        fprintf(run->notes, "# %s: %s\n", row->what, row->arithmetic);
    }
    kv_report_samples(&run->report, &measure, row->samples, NULL, row->sample_count);
}

int kv_bench_engine(int argc, char **argv)
{
    const char *model = NULL, *device = "auto";
    bool f32 = false, fp8 = false, json = false;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t threads = cores > 0 ? (uint64_t)cores : 1, repetitions = 3;
    const kv_argument_t rows[] = {
        {"--model", KV_ARGUMENT_TEXT, "FILE", "the GGUF file", &model, 0, 0},
        {"--device", KV_ARGUMENT_TEXT, "NAME", "auto (default), cpu, cuda:N or simt", &device, 0,
            0},
        {"--threads", KV_ARGUMENT_NUMBER, "N", "default: one for each core", &threads, 1, 1024},
        {"--repetitions", KV_ARGUMENT_NUMBER, "N", "of each measurement (default: 3)", &repetitions,
            1, KV_ENGINE_BENCH_REPETITIONS_MAX},
        {"--f32", KV_ARGUMENT_FLAG, NULL, "f32 products and f32 KV instead of bf16", &f32, 0, 0},
        {"--fp8", KV_ARGUMENT_FLAG, NULL, "fp8 products, where the GPU has them", &fp8, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "one JSON object a line", &json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist bench engine --model FILE [OPTIONS]",
        .summary = "Load, cold prefill and decode: the median of the repetitions, and their "
                   "spread.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if (model == NULL) {
        kv_command_fail("bench", "--model is missing", "kvist bench engine --help");
        return KV_EXIT_USAGE;
    }
    const kv_engine_bench_params_t params = {.model_path = model,
        .device = device,
        .thread_count = (uint32_t)threads,
        .f32 = f32,
        .fp8 = fp8,
        .repetitions = (uint32_t)repetitions};
    run_t run = {.report = {.out = stdout, .json = json}, .notes = json ? stderr : stdout};
    kv_machine_print(run.notes, NULL);
    fprintf(
        run.notes, "# %s, device %s, %llu threads\n", model, device, (unsigned long long)threads);
    kv_error_t error;
    return kv_engine_bench(&params, print, &run, &error) == KV_OK
               ? KV_EXIT_DONE
               : kv_command_fail("bench", error.text, NULL);
}
