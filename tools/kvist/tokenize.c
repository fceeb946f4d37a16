/* `kvist tokenize`: the tokenizer, opened to checks from outside. */
#include "engine/tokenize.h"

#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"

#include <stdio.h>

int kv_command_tokenize(int argc, char **argv)
{
    const char *model = NULL;
    const kv_argument_t rows[] = {
        {"--model", KV_ARGUMENT_TEXT, "FILE", "the GGUF file whose tokenizer is used", &model, 0,
            0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist tokenize --model FILE",
        .summary = "Reads lines {\"id\", \"text\", \"add_special\", \"parse_special\"}, writes "
                   "lines {\"id\", \"ids\"}.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_error_t error;
    if (model == NULL) {
        kv_command_fail("tokenize", "--model is missing", "kvist tokenize --help");
        return KV_EXIT_USAGE;
    }
    return kv_tokenize_run(stdin, stdout, model, &error) == KV_OK
               ? KV_EXIT_DONE
               : kv_command_fail("tokenize", error.text, NULL);
}
