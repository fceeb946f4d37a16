/* `kvist explain`: why the gateway sent a request where it did. */
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/cluster_attach.h"
#include "tools/kvist/command.h"
#include "tools/kvist/text.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *folder, *id;
    bool json;
} asked_t;

/* ---- text ---- */

static const char *remark_of(
    const Kvist__Admin__Decision *decision, const Kvist__Admin__Candidate *candidate)
{
    if (strcmp(candidate->name, decision->node) == 0) {
        return "<- chosen";
    }
    return candidate->tried   ? "refused or lost it before"
           : candidate->unfit ? "takes nothing new"
           : candidate->full  ? "has its share"
                              : "";
}

static void print_decision(const char *gateway, const Kvist__Admin__Decision *decision)
{
    char when[KV_TEXT_BYTES], count[KV_TEXT_BYTES];
    printf("%s, %s, answer %u, attempt %u: %s tokens", gateway,
        kv_text_time(decision->unix_ns, when), decision->choice_index + 1, decision->attempt,
        kv_text_count(decision->prompt_tokens, count));
    if (decision->generated_tokens > 0) {
        printf(" and %u generated", decision->generated_tokens);
    }
    printf("\n  %s%s%s (%s): %s\n", decision->node[0] != '\0' ? "to " : "", decision->node,
        decision->node[0] != '\0' ? "" : "nowhere", decision->reason, decision->words);
    printf("  %-20s %8s %8s %8s %8s %9s %9s %9s %9s\n", "node (tokens)", "device", "host", "disk",
        "coming", "to bring", "waiting", "cost", "requests");
    for (size_t i = 0; i < decision->n_candidates; i++) {
        const Kvist__Admin__Candidate *at = decision->candidates[i];
        printf("  %-20s %8u %8u %8u %8u %9" PRIu64 " %9" PRIu64 " %9" PRIu64 " %6u/%-2u %s\n",
            at->name, at->device_tokens, at->host_tokens, at->disk_tokens, at->coming_tokens,
            at->bring_tokens, at->waiting_tokens, at->cost_tokens, at->requests, decision->bound,
            remark_of(decision, at));
    }
    if (decision->node_count > decision->n_candidates) {
        printf("  and %zu nodes more\n", decision->node_count - decision->n_candidates);
    }
}

/* ---- JSON ---- */

static json_t *pack_candidate(const Kvist__Admin__Candidate *candidate)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:b}",
        "name", candidate->name, "device_tokens", (json_int_t)candidate->device_tokens,
        "host_tokens", (json_int_t)candidate->host_tokens, "disk_tokens",
        (json_int_t)candidate->disk_tokens, "coming_tokens", (json_int_t)candidate->coming_tokens,
        "bring_tokens", (json_int_t)candidate->bring_tokens, "waiting_tokens",
        (json_int_t)candidate->waiting_tokens, "cost_tokens", (json_int_t)candidate->cost_tokens,
        "requests", (json_int_t)candidate->requests, "warm_requests",
        (json_int_t)candidate->warm_requests, "taken_tokens", (json_int_t)candidate->taken_tokens,
        "full", candidate->full, "unfit", candidate->unfit, "tried", candidate->tried);
}

static json_t *pack_decision(const char *gateway, const Kvist__Admin__Decision *decision)
{
    json_t *candidates = json_array();
    for (size_t i = 0; i < decision->n_candidates; i++) {
        json_array_append_new(candidates, pack_candidate(decision->candidates[i]));
    }
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:s, s:I, s:b, s:I, s:I, s:s, s:s, s:s, s:I, s:o}",
        "gateway", gateway, "unix_ns", (json_int_t)decision->unix_ns, "choice_index",
        (json_int_t)decision->choice_index, "attempt", (json_int_t)decision->attempt,
        "generated_tokens", (json_int_t)decision->generated_tokens, "routing", decision->routing,
        "prompt_tokens", (json_int_t)decision->prompt_tokens, "has_session", decision->has_session,
        "branched_tokens", (json_int_t)decision->branched_tokens, "bound",
        (json_int_t)decision->bound, "node", decision->node, "reason", decision->reason, "words",
        decision->words, "node_count", (json_int_t)decision->node_count, "candidates", candidates);
}

/* ---- asking ---- */

static bool is_gateway(const kv_member_t *member)
{
    return !member->engine && !member->stores;
}

/* What one gateway says; KV_MISSING is no failure, another one may know. */
static kv_status_t ask_one(
    const asked_t *asked, const kv_member_t *member, json_t *rows, kv_error_t *error)
{
    Kvist__Admin__Reply *reply;
    kv_status_t status = kv_ask_explain(member->admin, asked->id, &reply, error);
    if (status != KV_OK) {
        return status;
    }
    const Kvist__Admin__Explanation *explanation = reply->explanation;
    for (size_t i = 0; i < explanation->n_decisions; i++) {
        if (asked->json) {
            json_array_append_new(rows, pack_decision(member->name, explanation->decisions[i]));
        } else {
            print_decision(member->name, explanation->decisions[i]);
        }
    }
    kvist__admin__reply__free_unpacked(reply, NULL);
    return KV_OK;
}

static int ask_all(const asked_t *asked, const kv_cluster_t *cluster)
{
    json_t *rows = json_array();
    kv_error_t error, failure = {0};
    size_t known = 0, failed = 0;
    for (size_t i = 0; i < cluster->member_count; i++) {
        const kv_member_t *member = &cluster->members[i];
        kv_status_t status = is_gateway(member) ? ask_one(asked, member, rows, &error) : KV_MISSING;
        known += status == KV_OK;
        if (status != KV_OK && status != KV_MISSING) {
            failed++;
            failure = error;
        }
    }
    if (asked->json && known > 0) {
        json_dumpf(rows, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(rows);
    if (known > 0) {
        return KV_EXIT_DONE;
    }
    return failed > 0 ? kv_command_fail("explain", failure.text, NULL)
                      : kv_command_fail("explain", "no gateway knows a request of that id",
                            "a gateway keeps its latest 1024 decisions");
}

int kv_command_explain(int argc, char **argv)
{
    asked_t asked = {.folder = kv_cluster_default_folder()};
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state, or the folder of the nodes' admin sockets (default: "
            "~/.local/state/kvist/default)",
            &asked.folder, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "as JSON", &asked.json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist explain REQUEST [OPTIONS]",
        .summary =
            "Why the gateway sent a request (REQUEST: the id in its answer) to the node that "
            "it did: what each node\nheld of the prompt, what waited there, what it would "
            "have cost, in tokens to compute; and what decided.\nkvist why says what a node "
            "then found, and why not more.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &asked.id,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if (asked.id == NULL) {
        return kv_command_misuse("explain", "of which request?", "kvist explain REQUEST");
    }
    kv_cluster_t cluster;
    kv_error_t error;
    if (kv_cluster_find(asked.folder, &cluster, &error) != KV_OK) {
        return kv_command_fail("explain", error.text, "kvist up");
    }
    code = ask_all(&asked, &cluster);
    kv_cluster_clear(&cluster);
    return code;
}
