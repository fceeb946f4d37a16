#include "tools/kvist/command.h"

#include <stdio.h>

static void say(const char *name, const char *text, const char *remedy)
{
    fprintf(stderr, "kvist %s: %s\n", name, text);
    if (remedy != NULL) {
        fprintf(stderr, "  do: %s\n", remedy);
    }
}

int kv_command_fail(const char *name, const char *text, const char *remedy)
{
    say(name, text, remedy);
    return KV_EXIT_FAILED;
}

int kv_command_misuse(const char *name, const char *text, const char *remedy)
{
    say(name, text, remedy);
    return KV_EXIT_USAGE;
}
