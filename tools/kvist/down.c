/* `kvist down`. */
#include "tools/kvist/arguments.h"
#include "tools/kvist/cluster.h"
#include "tools/kvist/command.h"

#include <stdio.h>

int kv_command_down(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder();
    bool now = false;
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--now", KV_ARGUMENT_FLAG, NULL,
            "requests in work end with 503, instead of being finished first", &now, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist down [OPTIONS]",
        .summary = "Stops the cluster in order: the gateway takes nothing new and finishes what it "
                   "has, then\nthe nodes make durable what was computed and end.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_cluster_t cluster;
    kv_error_t error;
    kv_status_t status = kv_cluster_load(folder, &cluster, &error);
    if (status == KV_MISSING) {
        printf("nothing to stop: %s\n", error.text);
        return KV_EXIT_DONE;
    }
    if (status != KV_OK) {
        return kv_command_fail("down", error.text, NULL);
    }
    if (kv_cluster_alive_count(&cluster) == 0) {
        puts("nothing to stop: no node is running");
    } else {
        status = kv_cluster_stop(&cluster, now, &error);
    }
    kv_cluster_clear(&cluster);
    return status == KV_OK ? KV_EXIT_DONE : kv_command_fail("down", error.text, NULL);
}
