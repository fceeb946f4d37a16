/* `kvist verify`: has the nodes read everything that they store. */
#include "base/clock.h"
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/stores.h"
#include "tools/kvist/text.h"

#include <jansson.h>
#include <stdio.h>
#include <unistd.h>

enum { ASK_AGAIN_MS = 200 };

static void print_line(
    const kv_member_t *member, const Kvist__Admin__Verification *state, const char *end)
{
    char done[KV_TEXT_BYTES], all[KV_TEXT_BYTES], rate[KV_TEXT_BYTES], bar[KV_TEXT_BYTES];
    double fraction =
        state->bytes_total > 0 ? (double)state->bytes / (double)state->bytes_total : 1;
    uint64_t per_second =
        state->elapsed_ns > 0
            ? (uint64_t)((double)state->bytes * KV_NS_PER_S / (double)state->elapsed_ns)
            : 0;
    printf("%-10s %s %s of %s, %s/s, damaged %llu, unreadable %llu%s", member->name,
        kv_text_bar(fraction, bar), kv_text_size(state->bytes, done),
        kv_text_size(state->bytes_total, all), kv_text_size(per_second, rate),
        (unsigned long long)state->damaged_objects, (unsigned long long)state->failed_objects, end);
    fflush(stdout);
}

static json_t *pack(const kv_member_t *member, const Kvist__Admin__Verification *state)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "node", member->name, "object_count",
        (json_int_t)state->object_count, "bytes", (json_int_t)state->bytes, "damaged_objects",
        (json_int_t)state->damaged_objects, "failed_objects", (json_int_t)state->failed_objects,
        "elapsed_ns", (json_int_t)state->elapsed_ns);
}

/* Begins at one node and waits for the end. */
static kv_status_t verify_at(
    const kv_member_t *member, bool quiet, Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    bool live = !quiet && isatty(STDOUT_FILENO) != 0;
    kv_status_t status = kv_ask_verify(member->admin, true, reply_out, error);
    while (status == KV_OK && (*reply_out)->verification->running) {
        if (live) {
            print_line(member, (*reply_out)->verification, "\r");
        }
        kvist__admin__reply__free_unpacked(*reply_out, NULL);
        usleep(ASK_AGAIN_MS * 1000);
        status = kv_ask_verify(member->admin, false, reply_out, error);
    }
    if (status == KV_OK && !quiet) {
        print_line(member, (*reply_out)->verification, live ? "   \n" : "\n");
    }
    return status;
}

int kv_command_verify(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *domain = NULL, *node = NULL;
    bool json = false;
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--domain", KV_ARGUMENT_TEXT, "NAME",
            "of a kvist-store: whose store is meant (default: its first domain's)", &domain, 0, 0},
        {"--node", KV_ARGUMENT_TEXT, "NAME", "this node only (default: all)", &node, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "as JSON", &json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist verify [OPTIONS]",
        .summary =
            "Reads everything that is stored in host memory and on disk, behind the requests, and "
            "drops what is damaged with\nall that goes on from it. Exit code 1 when there was "
            "damage, or when something could not be read. It goes on in\nthe nodes when this "
            "command is stopped; called again it shows how far they are.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_ask_about(domain);
    kv_stores_t stores;
    code = kv_stores_open("verify", folder, node, &stores);
    if (code != KV_EXIT_DONE) {
        return code;
    }
    kv_stores_tally_t tally = {0};
    json_t *all = json_array();
    uint64_t bad_count = 0;
    for (size_t i = 0; i < stores.count; i++) {
        Kvist__Admin__Reply *reply;
        kv_error_t error;
        kv_status_t status = verify_at(stores.members[i], json, &reply, &error);
        kv_stores_tally(&stores, stores.members[i], status, error.text, &tally);
        if (status == KV_OK) {
            const Kvist__Admin__Verification *state = reply->verification;
            bad_count += state->damaged_objects + state->failed_objects;
            json_array_append_new(all, pack(stores.members[i], state));
            kvist__admin__reply__free_unpacked(reply, NULL);
        }
    }
    if (json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(all);
    kv_stores_close(&stores);
    return tally.done_count == stores.count && bad_count == 0 ? KV_EXIT_DONE : KV_EXIT_FAILED;
}
