/* `kvist ls`: the contexts that are stored, newest use first. */
#include "base/clock.h"
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/cluster_attach.h"
#include "tools/kvist/command.h"
#include "tools/kvist/text.h"

#include <jansson.h>
#include <stdio.h>

/* "pinned 3 d", "expires 2 h": how long from now; "" where nothing is promised or limited. */
static const char *kept(const Kvist__Admin__Context *context, uint64_t now_ns, char *text_out)
{
    char left[KV_TEXT_BYTES];
    bool pinned = context->pin_until_unix_ns > now_ns;
    uint64_t until_ns = pinned ? context->pin_until_unix_ns : context->expires_unix_ns;
    text_out[0] = '\0';
    if (until_ns > now_ns) {
        snprintf(text_out, KV_TEXT_BYTES, "%s %s", pinned ? "pinned" : "expires",
            kv_text_duration(until_ns - now_ns, left));
    }
    return text_out;
}

static void print_context(const char *node, const Kvist__Admin__Context *context, uint64_t now_ns)
{
    char tokens[KV_TEXT_BYTES], size[KV_TEXT_BYTES], used[KV_TEXT_BYTES], until[KV_TEXT_BYTES];
    uint64_t used_ns = now_ns > context->used_unix_ns ? now_ns - context->used_unix_ns : 0;
    printf("%-10s %9s  %-7s %10s  %9s  %-15s %-10s %.16s\n", node,
        kv_text_count(context->token_count, tokens), context->tier,
        kv_text_size(context->bytes, size), kv_text_duration(used_ns, used),
        kept(context, now_ns, until), context->origin, context->key);
}

static json_t *pack_context(const char *node, const Kvist__Admin__Context *context)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:s, s:I, s:I, s:I, s:s, s:s, s:s}", "node", node, "key",
        context->key, "token_count", (json_int_t)context->token_count, "bytes",
        (json_int_t)context->bytes, "tier", context->tier, "used_unix_ns",
        (json_int_t)context->used_unix_ns, "expires_unix_ns", (json_int_t)context->expires_unix_ns,
        "pin_until_unix_ns", (json_int_t)context->pin_until_unix_ns, "priority", context->priority,
        "tenant", context->tenant, "origin", context->origin);
}

/* One node's contexts; a node without a store (the gateway) has none to list. */
static bool list_node(
    const kv_member_t *member, uint32_t count_max, json_t *rows, uint64_t *total_out)
{
    Kvist__Admin__Reply *reply;
    kv_error_t error;
    kv_status_t status = kv_ask_list(member->admin, count_max, &reply, &error);
    if (status != KV_OK) {
        fprintf(stderr, "%s: %s\n", member->name, error.text);
        return false;
    }
    const Kvist__Admin__List *list = reply->list;
    uint64_t now_ns = kv_clock_real()->unix_ns(kv_clock_real());
    for (size_t i = 0; i < list->n_contexts; i++) {
        if (rows != NULL) {
            json_array_append_new(rows, pack_context(member->name, list->contexts[i]));
        } else {
            print_context(member->name, list->contexts[i], now_ns);
        }
    }
    *total_out += list->total;
    kvist__admin__reply__free_unpacked(reply, NULL);
    return true;
}

int kv_command_list(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *domain = NULL;
    bool json = false;
    uint64_t count_max = 20;
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--domain", KV_ARGUMENT_TEXT, "NAME",
            "of a kvist-store: whose store is meant (default: its first domain's)", &domain, 0, 0},
        {"--count", KV_ARGUMENT_NUMBER, "N", "at most so many of each node (default: 20)",
            &count_max, 1, 10000},
        {"--json", KV_ARGUMENT_FLAG, NULL, "as JSON", &json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist ls [OPTIONS]",
        .summary =
            "The contexts that are stored, newest use first. TIER is the slowest tier that a "
            "context needs;\nSIZE counts blocks that it shares with others; KEPT: until when at "
            "least (pinned) or at most (expires).",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_ask_about(domain);
    kv_cluster_t cluster;
    kv_error_t error;
    if (kv_cluster_find(folder, &cluster, &error) != KV_OK) {
        return kv_command_fail("ls", error.text, "kvist up");
    }
    json_t *all = json ? json_array() : NULL;
    if (!json) {
        printf("%-10s %9s  %-7s %10s  %9s  %-15s %-10s %s\n", "NODE", "TOKENS", "TIER", "SIZE",
            "LAST USE", "KEPT", "MADE BY", "KEY");
    }
    uint64_t total = 0;
    bool whole = true;
    for (size_t i = 0; i < cluster.member_count; i++) {
        whole = (!cluster.members[i].stores ||
                    list_node(&cluster.members[i], (uint32_t)count_max, all, &total)) &&
                whole;
    }
    if (json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(all);
    } else {
        printf("%llu contexts in all\n", (unsigned long long)total);
    }
    kv_cluster_clear(&cluster);
    return whole ? KV_EXIT_DONE : kv_command_fail("ls", "a node did not answer", "kvist up");
}
