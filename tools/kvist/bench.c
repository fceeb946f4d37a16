/* `kvist bench`: how fast a part of Kvist is, on this machine. */
#include "engine/bench.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

int kv_command_bench(int argc, char **argv)
{
    const char *part = NULL, *model = NULL;
    bool f32 = false, json = false;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t threads = cores > 0 ? (uint64_t)cores : 1, repetitions = 3;
    const kv_argument_t rows[] = {
        {"--model", KV_ARGUMENT_TEXT, "FILE", "the GGUF file", &model, 0, 0},
        {"--threads", KV_ARGUMENT_NUMBER, "N", "default: one for each core", &threads, 1, 1024},
        {"--repetitions", KV_ARGUMENT_NUMBER, "N", "of each measurement (default: 3)", &repetitions,
            1, 100},
        {"--f32", KV_ARGUMENT_FLAG, NULL, "f32 products and f32 KV instead of bf16", &f32, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "one JSON object a line", &json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist bench engine --model FILE [OPTIONS]",
        .summary = "engine: load, cold prefill and decode, in tokens per second; median and "
                   "extremes.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &part,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if (part == NULL || strcmp(part, "engine") != 0 || model == NULL) {
        kv_command_fail("bench",
            model == NULL ? "--model is missing" : "what is measured must be: engine",
            "kvist bench --help");
        return KV_EXIT_USAGE;
    }
    const kv_engine_bench_params_t params = {.model_path = model,
        .thread_count = (uint32_t)threads,
        .f32 = f32,
        .json = json,
        .repetitions = (uint32_t)repetitions};
    kv_error_t error;
    return kv_engine_bench(stdout, &params, &error) == KV_OK
               ? KV_EXIT_DONE
               : kv_command_fail("bench", error.text, NULL);
}
