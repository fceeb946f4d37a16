/* Command-line arguments of `kvist`'s commands: a table each, from which --help is printed.
 *
 * Owns: nothing; text values point into argv.
 * Threads: any.
 * Errors: an unknown option names the nearest known one, a number out of bounds its bounds. */
#ifndef KV_TOOLS_ARGUMENTS_H
#define KV_TOOLS_ARGUMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { KV_ARGUMENT_FLAG, KV_ARGUMENT_TEXT, KV_ARGUMENT_NUMBER } kv_argument_kind_t;

typedef struct {
    const char *name; /* "--model" */
    kv_argument_kind_t kind;
    const char *value_name; /* "FILE"; NULL for a flag */
    const char *help;
    void *target; /* bool *, const char ** or uint64_t *; keeps its value when not given */
    uint64_t minimum, maximum; /* of a number */
} kv_argument_t;

enum { KV_EXTRA_ARGUMENTS_MAX = 64 };

typedef struct {
    const char *usage;   /* "kvist up [OPTIONS]" */
    const char *summary; /* a sentence or two */
    const kv_argument_t *rows;
    size_t row_count;
    const char **word; /* where the one word beside the options goes; NULL: none is taken */
    /* Where "--section.name=value" options go that are passed on to the nodes; NULL: not taken. */
    const char **extras;
    size_t *extra_count;
} kv_arguments_t;

/* false: the command is done and returns *code_out (help was printed, or the error was said). */
bool kv_arguments_parse(const kv_arguments_t *arguments, int argc, char **argv, int *code_out);

/* Of names the one most like word, or NULL when none is near. */
const char *kv_nearest(const char *word, const char *const *names, size_t count);

#endif
