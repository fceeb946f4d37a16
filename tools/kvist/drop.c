/* `kvist drop`: forgets a block and all that goes on from it. */
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/stores.h"

#include <jansson.h>
#include <stdio.h>

static kv_status_t drop_at(const kv_member_t *member, const char *key, json_t *rows,
    const void *context, kv_error_t *error)
{
    bool erase = *(const bool *)context;
    Kvist__Admin__Reply *reply;
    kv_status_t status = kv_ask_drop(member->admin, key, erase, &reply, error);
    if (status != KV_OK) {
        return status;
    }
    unsigned long long count = reply->dropped->object_count;
    if (rows != NULL) {
        json_array_append_new(rows, json_pack("{s:s, s:I, s:b}", "node", member->name,
                                        "object_count", (json_int_t)count, "erased", erase));
    } else {
        printf("%s: %llu block%s %s for good\n", member->name, count, count == 1 ? "" : "s",
            erase ? "dropped and overwritten" : "dropped");
    }
    kvist__admin__reply__free_unpacked(reply, NULL);
    return KV_OK;
}

int kv_command_drop(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *domain = NULL, *node = NULL, *key = NULL;
    bool json = false, erase = false;
    const kv_argument_t rows[] = {
        {"--erase", KV_ARGUMENT_FLAG, NULL, "overwrite the bytes too, in memory and on disk",
            &erase, 0, 0},
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--domain", KV_ARGUMENT_TEXT, "NAME",
            "of a kvist-store: whose store is meant (default: its first domain's)", &domain, 0, 0},
        {"--node", KV_ARGUMENT_TEXT, "NAME", "at this node only (default: at all)", &node, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "as JSON", &json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist drop KEY [OPTIONS]",
        .summary =
            "Forgets a block and all that goes on from it, pinned or not, in all tiers; no restart "
            "brings it back.\nKEY: the first 8 digits of its key or more, as kvist ls shows them.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &key,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_ask_about(domain);
    const kv_stores_request_t request = {"drop", folder, node, key, json, true};
    return kv_stores_visit_key(&request, drop_at, &erase);
}
