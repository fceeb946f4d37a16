/* kvist-store: the host and disk tiers of a machine, for the processes on it that attach and for
 * nodes elsewhere. */
#include "node/process.h"
#include "store/node.h"

int main(int argc, char **argv)
{
    static const kv_options_program_t PROGRAM = {
        .binary = "kvist-store",
        .default_name = "store",
        .summary = "Keeps KV in host memory and on disk: for the processes of this machine that "
                   "attach to it, whose ends it outlives, and for nodes elsewhere.",
        .sections = KV_SECTION_CLUSTER | KV_SECTION_NODE | KV_SECTION_STORE,
    };
    kv_options_t options;
    int code;
    if (!kv_process_begin(&PROGRAM, argc, argv, &options, &code)) {
        return code;
    }
    kv_error_t error;
    kv_status_t status = kv_store_node_run(&options, &error);
    return kv_process_end(&options, status, &error);
}
