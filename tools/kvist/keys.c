/* `kvist keys`: key files for what is encrypted on disk, and the end of a tenant's key. */
#include "kvstore/kvist.h"
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/stores.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const char USAGE[] =
    "kvist keys new FILE, kvist keys rotate FILE, or kvist keys drop TENANT";

/* The one word of a command without options of its own; NULL: it is done, *code_out. */
static const char *parse_file(
    const char *usage, const char *summary, int argc, char **argv, int *code_out)
{
    const char *file = NULL;
    const kv_arguments_t arguments = {.usage = usage, .summary = summary, .word = &file};
    if (!kv_arguments_parse(&arguments, argc, argv, code_out)) {
        return NULL;
    }
    if (file == NULL) {
        *code_out = kv_command_misuse("keys", "FILE is missing", usage);
    }
    return file;
}

static int make(int argc, char **argv)
{
    int code;
    kv_error_t error;
    const char *file = parse_file("kvist keys new FILE",
        "Makes a key file with a random key, mode 0600: for the option store.key_file. Beside it "
        "each store keeps\na file of its own. Keep copies of all of them, on another device than "
        "the stores: without them nothing that\nis encrypted can be read.",
        argc, argv, &code);
    if (file == NULL) {
        return code;
    }
    if (kvist_key_file_new(file, &error) != KV_OK) {
        return kv_command_fail("keys", error.text, NULL);
    }
    printf("%s: made\n", file);
    return KV_EXIT_DONE;
}

static int rotate(int argc, char **argv)
{
    int code;
    kv_error_t error;
    const char *file = parse_file("kvist keys rotate FILE",
        "Gives a key file a new key, before the one that it has. Each store wraps its tenants' "
        "keys with the new one\nwhen it is opened next; when all have been, delete the lines "
        "after the first key.",
        argc, argv, &code);
    if (file == NULL) {
        return code;
    }
    if (kvist_key_file_rotate(file, &error) != KV_OK) {
        return kv_command_fail("keys", error.text, NULL);
    }
    printf(
        "%s: has a new key; restart all nodes that use it, then delete the lines after it\n", file);
    return KV_EXIT_DONE;
}

/* ---- drop ---- */

static kv_status_t drop_at(
    const kv_member_t *member, const char *tenant, json_t *rows, kv_error_t *error)
{
    Kvist__Admin__Reply *reply;
    kv_status_t status = kv_ask_drop_tenant(member->admin, tenant, &reply, error);
    if (status != KV_OK) {
        return status;
    }
    unsigned long long count = reply->dropped->object_count;
    if (rows != NULL) {
        json_array_append_new(
            rows, json_pack("{s:s, s:I}", "node", member->name, "object_count", (json_int_t)count));
    } else {
        printf(
            "%s: %llu block%s dropped, and the key\n", member->name, count, count == 1 ? "" : "s");
    }
    kvist__admin__reply__free_unpacked(reply, NULL);
    return KV_OK;
}

/* Nodes that are attached to a kvist-store have device memory of their own: they come first, so
 * that nothing comes from there to the store behind it. */
static int drop_everywhere(
    const kv_stores_t *stores, const char *node, const char *tenant, bool json)
{
    kv_stores_tally_t tally = {0};
    json_t *rows = json ? json_array() : NULL;
    for (int engines = 1; engines >= 0; engines--) {
        for (size_t i = 0; i < stores->cluster.member_count; i++) {
            const kv_member_t *member = &stores->cluster.members[i];
            bool wanted = engines ? member->engine : member->stores && !member->engine;
            if (!wanted || (node != NULL && strcmp(member->name, node) != 0)) {
                continue;
            }
            kv_error_t error;
            kv_status_t status = drop_at(member, tenant, rows, &error);
            kv_stores_tally(stores, member, status, error.text, &tally);
        }
    }
    if (json) {
        json_dumpf(rows, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(rows);
    }
    if (tally.failed_count > 0) {
        return KV_EXIT_FAILED;
    }
    return tally.done_count > 0
               ? KV_EXIT_DONE
               : kv_command_fail("keys", "nothing is stored of this tenant, and it has no key",
                     "kvist ls shows whose contexts are stored");
}

static int drop(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *node = NULL, *tenant = NULL;
    bool json = false, nobody = false;
    const kv_argument_t rows[] = {
        {"--nobody", KV_ARGUMENT_FLAG, NULL, "of what was stored without a tenant", &nobody, 0, 0},
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--node", KV_ARGUMENT_TEXT, "NAME", "at this node only (default: at all)", &node, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "as JSON", &json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist keys drop TENANT [OPTIONS]",
        .summary =
            "Drops all blocks of a tenant, and what goes on from them, in all tiers, and destroys "
            "its key: what is\nencrypted with it can be read by nobody any more, in no copy of the "
            "disk. What is in clear is overwritten.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &tenant,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if ((tenant == NULL) == !nobody) {
        return kv_command_misuse("keys", "whose key?", "kvist keys drop TENANT, or --nobody");
    }
    kv_stores_t stores;
    code = kv_stores_open("keys", folder, node, &stores);
    if (code == KV_EXIT_DONE) {
        code = drop_everywhere(&stores, node, nobody ? "" : tenant, json);
        kv_stores_close(&stores);
    }
    return code;
}

int kv_command_keys(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } PARTS[] = {{"new", make}, {"rotate", rotate}, {"drop", drop}};
    const char *part = argc > 1 ? argv[1] : "";
    for (size_t i = 0; i < sizeof PARTS / sizeof *PARTS; i++) {
        if (strcmp(part, PARTS[i].name) == 0) {
            return PARTS[i].run(argc - 1, argv + 1);
        }
    }
    if (strcmp(part, "--help") == 0 || strcmp(part, "-h") == 0) {
        printf("usage: %s; with --help each says more\n", USAGE);
        return KV_EXIT_DONE;
    }
    return kv_command_misuse("keys", "what about them?", USAGE);
}
