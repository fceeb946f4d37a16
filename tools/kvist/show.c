/* `kvist show`: one stored block, wherever it is stored. */
#include "base/clock.h"
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/object_text.h"
#include "tools/kvist/stores.h"

#include <stdio.h>

int kv_command_show(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *node = NULL, *key = NULL;
    bool json = false;
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
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
    if (key == NULL) {
        return kv_command_misuse("show", "KEY is missing", "kvist ls shows the keys");
    }
    kv_stores_t stores;
    code = kv_stores_open("show", folder, node, &stores);
    if (code != KV_EXIT_DONE) {
        return code;
    }
    kv_stores_tally_t tally = {0};
    json_t *all = json ? json_array() : NULL;
    for (size_t i = 0; i < stores.count; i++) {
        Kvist__Admin__Reply *reply;
        kv_error_t error;
        kv_status_t status = kv_ask_show(stores.members[i]->admin, key, &reply, &error);
        kv_stores_tally(&stores, stores.members[i], status, error.text, &tally);
        if (status == KV_OK) {
            if (json) {
                json_array_append_new(all, kv_object_pack(stores.members[i]->name, reply->object));
            } else {
                kv_object_print(stores.members[i]->name, reply->object);
            }
            kvist__admin__reply__free_unpacked(reply, NULL);
        }
    }
    if (json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(all);
    }
    code = kv_stores_answer(&stores, key, &tally);
    kv_stores_close(&stores);
    return code;
}
