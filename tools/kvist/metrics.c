/* `kvist metrics`: one node's metrics, as Prometheus reads them. */
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/cluster_attach.h"
#include "tools/kvist/command.h"

#include <stdio.h>
#include <string.h>

int kv_command_metrics(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *name = NULL;
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state, or the folder of the nodes' admin sockets (default: "
            "~/.local/state/kvist/default)",
            &folder, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist metrics NODE [OPTIONS]",
        .summary = "A node's metrics in Prometheus' text format, for a textfile collector. A "
                   "gateway's are at its /metrics too.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &name,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_cluster_t cluster;
    const kv_member_t *member;
    code = kv_cluster_find_member("metrics", folder, name, &cluster, &member);
    if (code != KV_EXIT_DONE) {
        return code;
    }
    Kvist__Admin__Reply *reply;
    kv_error_t error;
    if (kv_ask_metrics(member->admin, &reply, &error) == KV_OK) {
        fputs(reply->metrics, stdout);
        kvist__admin__reply__free_unpacked(reply, NULL);
    } else {
        code = kv_command_fail("metrics", error.text, NULL);
    }
    kv_cluster_clear(&cluster);
    return code;
}
