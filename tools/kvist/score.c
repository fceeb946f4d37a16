/* `kvist score`: the engine's logits, opened to checks from outside. */
#include "engine/score.h"

#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"

#include <stdio.h>

int kv_command_score(int argc, char **argv)
{
    const char *model = NULL, *device = "cpu";
    bool f32 = false, fp8 = false;
    const kv_argument_t rows[] = {
        {"--model", KV_ARGUMENT_TEXT, "FILE", "the GGUF file", &model, 0, 0},
        {"--device", KV_ARGUMENT_TEXT, "NAME", "cpu (default), cuda:N or simt", &device, 0, 0},
        {"--f32", KV_ARGUMENT_FLAG, NULL, "f32 products and f32 KV instead of bf16", &f32, 0, 0},
        {"--fp8", KV_ARGUMENT_FLAG, NULL, "fp8 products, where the GPU has them", &fp8, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist score --model FILE [--device NAME] [--f32 | --fp8]",
        .summary = "Reads lines {\"id\", \"prompt_ids\", \"forced_ids\"}, writes lines {\"id\", "
                   "\"steps\": [{\"top5\", \"lse\"}]},\none step for each forced id.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_error_t error;
    if (model == NULL) {
        kv_command_fail("score", "--model is missing", "kvist score --help");
        return KV_EXIT_USAGE;
    }
    return kv_score_run_named(device, stdin, stdout, model, f32, fp8, &error) == KV_OK
               ? KV_EXIT_DONE
               : kv_command_fail("score", error.text, NULL);
}
