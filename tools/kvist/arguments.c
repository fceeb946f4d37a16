#include "tools/kvist/arguments.h"

#include "tools/kvist/command.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORD_BYTES_MAX = 64 };

/* Levenshtein's distance, one row of the table at a time. */
static size_t distance(const char *left, const char *right)
{
    size_t row[WORD_BYTES_MAX + 1], right_bytes = strlen(right);
    for (size_t j = 0; j <= right_bytes; j++) {
        row[j] = j;
    }
    for (size_t i = 1; left[i - 1] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= right_bytes; j++) {
            size_t change = diagonal + (left[i - 1] != right[j - 1]);
            size_t least = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            diagonal = row[j];
            row[j] = least < change ? least : change;
        }
    }
    return row[right_bytes];
}

const char *kv_nearest(const char *word, const char *const *names, size_t count)
{
    const char *nearest = NULL;
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < count && strlen(word) < WORD_BYTES_MAX; i++) {
        if (strlen(names[i]) < WORD_BYTES_MAX && distance(word, names[i]) < least) {
            least = distance(word, names[i]);
            nearest = names[i];
        }
    }
    /* A third of the letters may be wrong; more is another word. */
    return nearest != NULL && least <= (strlen(nearest) + 2) / 3 ? nearest : NULL;
}

static void print_help(const kv_arguments_t *arguments)
{
    printf("usage: %s\n\n%s\n", arguments->usage, arguments->summary);
    for (size_t i = 0; i < arguments->row_count; i++) {
        const kv_argument_t *row = &arguments->rows[i];
        char left[WORD_BYTES_MAX];
        snprintf(left, sizeof left, "%s %s", row->name, row->value_name ? row->value_name : "");
        printf("%s  %-20s %s", i == 0 ? "\n" : "", left, row->help);
        if (row->kind == KV_ARGUMENT_NUMBER) {
            printf(" (%llu to %llu)", (unsigned long long)row->minimum,
                (unsigned long long)row->maximum);
        }
        putchar('\n');
    }
    if (arguments->extras != NULL) {
        puts("  --SECTION.NAME=VALUE any option of the nodes (kvist-prefill --help lists them)");
    }
}

static int fail(const kv_arguments_t *arguments, const char *text, const char *subject)
{
    fprintf(stderr, "kvist: %s '%s'\n  do: %.*s--help\n", text, subject,
        (int)strcspn(arguments->usage, "[<"), arguments->usage);
    return KV_EXIT_USAGE;
}

static int fail_unknown(const kv_arguments_t *arguments, const char *name)
{
    const char *names[WORD_BYTES_MAX];
    size_t count = 0;
    for (; count < arguments->row_count && count < WORD_BYTES_MAX; count++) {
        names[count] = arguments->rows[count].name;
    }
    const char *nearest = kv_nearest(name, names, count);
    int code = fail(arguments, "there is no option", name);
    if (nearest != NULL) {
        fprintf(stderr, "  did you mean %s?\n", nearest);
    }
    return code;
}

static bool set_number(const kv_argument_t *row, const char *text)
{
    char *end;
    if (!isdigit((unsigned char)text[0])) {
        return false;
    }
    unsigned long long value = strtoull(text, &end, 10);
    if (*end != '\0' || strlen(text) > 18 || value < row->minimum || value > row->maximum) {
        return false;
    }
    *(uint64_t *)row->target = value;
    return true;
}

/* Takes one option; *used_out says whether the next word was its value. */
static int take_option(
    const kv_arguments_t *arguments, const char *word, const char *next, bool *used_out)
{
    const char *equals = strchr(word, '=');
    size_t name_bytes = equals != NULL ? (size_t)(equals - word) : strlen(word);
    const char *value = equals != NULL ? equals + 1 : next;
    for (size_t i = 0; i < arguments->row_count; i++) {
        const kv_argument_t *row = &arguments->rows[i];
        if (strlen(row->name) != name_bytes || memcmp(row->name, word, name_bytes) != 0) {
            continue;
        }
        *used_out = equals == NULL && row->kind != KV_ARGUMENT_FLAG;
        if (row->kind == KV_ARGUMENT_FLAG) {
            if (equals != NULL) {
                return fail(arguments, "no value is taken by", row->name);
            }
            *(bool *)row->target = true;
        } else if (value == NULL || value[0] == '\0') {
            return fail(arguments, "a value is missing after", row->name);
        } else if (row->kind == KV_ARGUMENT_TEXT) {
            *(const char **)row->target = value;
        } else if (!set_number(row, value)) {
            fprintf(stderr, "kvist: %s must be a number from %llu to %llu, not '%s'\n", row->name,
                (unsigned long long)row->minimum, (unsigned long long)row->maximum, value);
            return KV_EXIT_USAGE;
        }
        return KV_EXIT_DONE;
    }
    bool dotted = memchr(word, '.', name_bytes) != NULL;
    if (arguments->extras != NULL && dotted && equals != NULL) {
        if (*arguments->extra_count == KV_EXTRA_ARGUMENTS_MAX) {
            return fail(arguments, "too many options at", word);
        }
        arguments->extras[(*arguments->extra_count)++] = word;
        return KV_EXIT_DONE;
    }
    if (arguments->extras != NULL && dotted) {
        return fail(arguments, "write it with its value in one word (NAME=VALUE):", word);
    }
    return fail_unknown(arguments, word);
}

bool kv_arguments_parse(const kv_arguments_t *arguments, int argc, char **argv, int *code_out)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help(arguments);
            *code_out = KV_EXIT_DONE;
            return false;
        }
        bool used = false;
        int code = KV_EXIT_DONE;
        if (argv[i][0] == '-') {
            code = take_option(arguments, argv[i], i + 1 < argc ? argv[i + 1] : NULL, &used);
        } else if (arguments->word != NULL && *arguments->word == NULL) {
            *arguments->word = argv[i];
        } else {
            code = fail(arguments, "nothing is to be done with", argv[i]);
        }
        if (code != KV_EXIT_DONE) {
            *code_out = code;
            return false;
        }
        i += used;
    }
    return true;
}
