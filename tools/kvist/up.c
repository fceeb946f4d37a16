/* `kvist up`. */
#include "node/http_client.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/cluster.h"
#include "tools/kvist/command.h"

#include <stdio.h>
#include <string.h>

int kv_command_up(int argc, char **argv)
{
    const char *extras[KV_EXTRA_ARGUMENTS_MAX];
    kv_cluster_params_t params = {.folder = kv_cluster_default_folder(), .extras = extras};
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "where it keeps its state (default: ~/.local/state/kvist/default)", &params.folder, 0,
            0},
        {"--model", KV_ARGUMENT_TEXT, "FILE",
            "a GGUF file (default: the one that tools/fetch-model fetched)", &params.model, 0, 0},
        {"--config", KV_ARGUMENT_TEXT, "FILE", "a YAML file with options of the nodes",
            &params.config, 0, 0},
        {"--port", KV_ARGUMENT_NUMBER, "N",
            "HTTP port (default: the one before, 8080, or any free one)", &params.http_port, 1,
            65535},
        {"--prefill", KV_ARGUMENT_NUMBER, "N", "prefill nodes (default: 1)", &params.prefill_count,
            1, KV_CLUSTER_NODES_MAX},
        {"--decode", KV_ARGUMENT_NUMBER, "N", "decode nodes (default: 1)", &params.decode_count, 1,
            KV_CLUSTER_NODES_MAX},
        {"--prefill-threads", KV_ARGUMENT_NUMBER, "N",
            "of each prefill node (default: half of the cores for all of them)",
            &params.prefill_threads, 1, 1024},
        {"--decode-threads", KV_ARGUMENT_NUMBER, "N",
            "of each decode node (default: half of the cores for all of them)",
            &params.decode_threads, 1, 1024},
        {"--embedded", KV_ARGUMENT_FLAG, NULL,
            "no kvist-store: each node has a host and a disk tier of its own", &params.embedded, 0,
            0},
        {"--colocated", KV_ARGUMENT_FLAG, NULL,
            "no prefill node: decode nodes compute prompts themselves (to compare)",
            &params.colocated, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist up [OPTIONS]",
        .summary =
            "Starts kvist-store, prefill nodes and decode nodes that attach to it, and a gateway "
            "on "
            "this machine,\neach a process of its own, and waits until they are healthy. Run "
            "again: nodes that died are\nstarted again.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .extras = extras,
        .extra_count = &params.extra_count,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_http_setup();
    kv_cluster_t cluster;
    kv_error_t error;
    if (kv_cluster_start(&params, &cluster, &error) != KV_OK) {
        return kv_command_fail("up", error.text, NULL);
    }
    bool is_default = strcmp(params.folder, kv_cluster_default_folder()) == 0;
    printf("endpoint: %s\nstop it:  kvist down%s%s\n", cluster.endpoint,
        is_default ? "" : " --dir ", is_default ? "" : cluster.folder);
    kv_cluster_clear(&cluster);
    return KV_EXIT_DONE;
}
