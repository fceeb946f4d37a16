/* `kvist drain`: one node ends without a request lost. */
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/cluster_attach.h"
#include "tools/kvist/command.h"

#include <stdio.h>

static int drain_member(const kv_member_t *member, uint64_t wait_s)
{
    kv_error_t error;
    if (!kv_child_alive(&member->child)) {
        printf("%s is not running\n", member->name);
        return KV_EXIT_DONE;
    }
    if (kv_ask_drain(member->admin, &error) != KV_OK) {
        return kv_command_fail("drain", error.text, NULL);
    }
    if (!kv_child_wait(&member->child, wait_s * 1000)) {
        char text[160];
        snprintf(text, sizeof text, "%s has not finished what it has after %llu s; it goes on",
            member->name, (unsigned long long)wait_s);
        return kv_command_fail("drain", text, "kvist drain again waits on (--wait)");
    }
    printf("%s has finished what it had and ended%s\n", member->name,
        member->argv[0] != NULL ? "; kvist up starts it again" : "");
    return KV_EXIT_DONE;
}

int kv_command_drain(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *name = NULL;
    uint64_t wait_s = 60;
    const kv_argument_t rows[] = {
        {"--wait", KV_ARGUMENT_NUMBER, "SECONDS", "how long to wait for its end (default: 60)",
            &wait_s, 1, 86400},
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist drain NODE [OPTIONS]",
        .summary = "Ends a node without losing a request: it takes nothing new, others go on with "
                   "what they can,\nit finishes the rest (node.drain_limit), makes durable what it "
                   "computed, and ends.",
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
    code = kv_cluster_find_member("drain", folder, name, &cluster, &member);
    if (code == KV_EXIT_DONE) {
        code = drain_member(member, wait_s);
        kv_cluster_clear(&cluster);
    }
    return code;
}
