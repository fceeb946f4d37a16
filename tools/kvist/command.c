#include "tools/kvist/command.h"

#include <stdio.h>

int kv_command_fail(const char *name, const char *text, const char *remedy)
{
    fprintf(stderr, "kvist %s: %s\n", name, text);
    if (remedy != NULL) {
        fprintf(stderr, "  do: %s\n", remedy);
    }
    return KV_EXIT_FAILED;
}
