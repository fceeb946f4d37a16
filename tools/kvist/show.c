/* `kvist show`: one stored block, wherever it is stored. */
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/object_text.h"
#include "tools/kvist/stores.h"

#include <stdio.h>

static kv_status_t show_at(const kv_member_t *member, const char *key, json_t *rows,
    const void *context, kv_error_t *error)
{
    (void)context;
    Kvist__Admin__Reply *reply;
    kv_status_t status = kv_ask_show(member->admin, key, &reply, error);
    if (status != KV_OK) {
        return status;
    }
    if (rows != NULL) {
        json_array_append_new(rows, kv_object_pack(member->name, reply->object));
    } else {
        kv_object_print(member->name, reply->object);
    }
    kvist__admin__reply__free_unpacked(reply, NULL);
    return KV_OK;
}

int kv_command_show(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *domain = NULL, *node = NULL, *key = NULL;
    bool json = false;
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--domain", KV_ARGUMENT_TEXT, "NAME",
            "of a kvist-store: whose store is meant (default: its first domain's)", &domain, 0, 0},
        {"--node", KV_ARGUMENT_TEXT, "NAME", "ask this node only", &node, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "as JSON", &json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist show KEY [OPTIONS]",
        .summary =
            "One stored block: where it is, who made it and when, until when it is kept, what it "
            "belongs to.\nKEY: the first 8 digits of its key or more, as kvist ls shows them.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &key,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_ask_about(domain);
    const kv_stores_request_t request = {"show", folder, node, key, json, false};
    return kv_stores_visit_key(&request, show_at, NULL);
}
