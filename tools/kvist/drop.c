/* `kvist drop`: forgets a block and all that goes on from it. */
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/stores.h"

#include <jansson.h>
#include <stdio.h>

/* Drops it at one node. */
static void drop_at(const kv_stores_t *stores, const kv_member_t *member, const char *key,
    bool erase, json_t *rows, kv_stores_tally_t *tally)
{
    Kvist__Admin__Reply *reply;
    kv_error_t error;
    kv_status_t status = kv_ask_drop(member->admin, key, erase, &reply, &error);
    kv_stores_tally(stores, member, status, error.text, tally);
    if (status != KV_OK) {
        return;
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
}

int kv_command_drop(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *node = NULL, *key = NULL;
    bool json = false, erase = false;
    const kv_argument_t rows[] = {
        {"--erase", KV_ARGUMENT_FLAG, NULL, "overwrite the bytes too, in memory and on disk",
            &erase, 0, 0},
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
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
    if (key == NULL) {
        return kv_command_misuse("drop", "KEY is missing", "kvist ls shows the keys");
    }
    kv_stores_t stores;
    code = kv_stores_open("drop", folder, node, &stores);
    if (code != KV_EXIT_DONE) {
        return code;
    }
    char whole[KV_STORES_KEY_BYTES];
    code = kv_stores_find(&stores, key, whole);
    if (code != KV_EXIT_DONE) {
        kv_stores_close(&stores);
        return code;
    }
    kv_stores_tally_t tally = {0};
    json_t *all = json ? json_array() : NULL;
    for (size_t i = 0; i < stores.count; i++) {
        drop_at(&stores, stores.members[i], whole, erase, all, &tally);
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
