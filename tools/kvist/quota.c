/* `kvist quota`: how much the disk tiers may take, and how much they do. */
#include "base/bytes.h"
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/stores.h"
#include "tools/kvist/text.h"

#include <jansson.h>
#include <stdio.h>

static void print_quota(const kv_member_t *member, const Kvist__Admin__Quota *quota)
{
    char capacity[KV_TEXT_BYTES], used[KV_TEXT_BYTES], percent[KV_TEXT_BYTES],
        pinned[KV_TEXT_BYTES], blocks[KV_TEXT_BYTES], written[KV_TEXT_BYTES], a_day[KV_TEXT_BYTES],
        left[KV_TEXT_BYTES], refused[KV_TEXT_BYTES];
    bool bounded = quota->write_budget_bytes > 0;
    printf("%-10s %10s  %10s %7s  %10s  %9s  %10s  %10s  %10s  %9s\n", member->name,
        kv_text_size(quota->capacity_bytes, capacity), kv_text_size(quota->used_bytes, used),
        kv_text_percent(quota->used_bytes, quota->capacity_bytes, percent),
        kv_text_size(quota->pinned_bytes, pinned), kv_text_count(quota->object_count, blocks),
        kv_text_size(quota->segment_written_bytes, written),
        bounded ? kv_text_size(quota->write_budget_bytes, a_day) : "-",
        bounded ? kv_text_size(quota->write_left_bytes, left) : "-",
        kv_text_count(quota->not_admitted_objects, refused));
}

static json_t *pack_quota(const kv_member_t *member, const Kvist__Admin__Quota *quota)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "node", member->name,
        "capacity_bytes", (json_int_t)quota->capacity_bytes, "used_bytes",
        (json_int_t)quota->used_bytes, "pinned_bytes", (json_int_t)quota->pinned_bytes,
        "object_count", (json_int_t)quota->object_count, "written_bytes",
        (json_int_t)quota->written_bytes, "write_budget_bytes",
        (json_int_t)quota->write_budget_bytes, "write_left_bytes",
        (json_int_t)quota->write_left_bytes, "segment_written_bytes",
        (json_int_t)quota->segment_written_bytes, "not_admitted_objects",
        (json_int_t)quota->not_admitted_objects);
}

/* Asks every store, and sets its quota first where disk_bytes is not 0. */
static int visit(const kv_stores_t *stores, uint64_t disk_bytes, bool json)
{
    kv_stores_tally_t tally = {0};
    json_t *all = json_array();
    if (!json) {
        printf("%-10s %10s  %10s %7s  %10s  %9s  %10s  %10s  %10s  %9s\n", "NODE", "QUOTA", "USED",
            "", "PINNED", "BLOCKS", "WRITTEN", "A DAY", "LEFT", "REFUSED");
    }
    for (size_t i = 0; i < stores->count; i++) {
        Kvist__Admin__Reply *reply;
        kv_error_t error;
        kv_status_t status = kv_ask_quota(stores->members[i]->admin, disk_bytes, &reply, &error);
        kv_stores_tally(stores, stores->members[i], status, error.text, &tally);
        if (status == KV_OK) {
            if (!json) {
                print_quota(stores->members[i], reply->quota);
            }
            json_array_append_new(all, pack_quota(stores->members[i], reply->quota));
            kvist__admin__reply__free_unpacked(reply, NULL);
        }
    }
    if (json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(all);
    return tally.done_count == stores->count ? KV_EXIT_DONE : KV_EXIT_FAILED;
}

int kv_command_quota(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *node = NULL, *size = NULL;
    bool json = false;
    const kv_argument_t rows[] = {
        {"--node", KV_ARGUMENT_TEXT, "NAME", "this node only (default: all; SIZE is one node's)",
            &node, 0, 0},
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "as JSON", &json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist quota [SIZE] [OPTIONS]",
        .summary =
            "How much each node's disk tier may take, and how much it does. WRITTEN (to the disk) "
            "and REFUSED (blocks)\ncount from the node's start; A DAY is what may be written in "
            "one (option store.write_bytes_per_day), LEFT what\nof it is there now.\nSIZE (such as "
            "20GiB) is the quota from now on, until the node "
            "restarts: its option store.disk_bytes says\nwhat holds then. A smaller one drops what "
            "was stored longest ago.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &size,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    uint64_t disk_bytes = 0;
    if (size != NULL && (kv_size_parse(size, &disk_bytes) != KV_OK || disk_bytes == 0)) {
        return kv_command_misuse("quota", "SIZE is no size", "such as 512MiB, 20GiB or 1.5TiB");
    }
    kv_stores_t stores;
    code = kv_stores_open("quota", folder, node, &stores);
    if (code != KV_EXIT_DONE) {
        return code;
    }
    if (size != NULL && stores.count > 1) {
        code = kv_command_misuse(
            "quota", "whose quota?", "name the node: --node (kvist quota lists them)");
    } else {
        code = visit(&stores, disk_bytes, json);
    }
    kv_stores_close(&stores);
    return code;
}
