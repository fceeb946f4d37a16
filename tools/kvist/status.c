/* `kvist status`: the hit rate first, then the nodes and their tiers. */
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/cluster_attach.h"
#include "tools/kvist/command.h"
#include "tools/kvist/text.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What each node answered; NULL where it did not. */
typedef struct {
    const kv_cluster_t *cluster;
    Kvist__Admin__Reply *replies[KV_CLUSTER_MEMBERS_MAX];
    kv_error_t errors[KV_CLUSTER_MEMBERS_MAX];
    uint64_t prompt_tokens, cached_tokens, gap_tokens; /* as the gateway counted them */
} view_t;

static void look(const kv_cluster_t *cluster, view_t *view)
{
    *view = (view_t){.cluster = cluster};
    for (size_t i = 0; i < cluster->member_count; i++) {
        if (kv_ask_status(cluster->members[i].admin, &view->replies[i], &view->errors[i]) !=
            KV_OK) {
            view->replies[i] = NULL;
        } else if (strcmp(view->replies[i]->status->role, "gateway") == 0) {
            /* Every request passes a gateway once: other nodes would count it again. */
            view->prompt_tokens += view->replies[i]->status->prompt_tokens;
            view->cached_tokens += view->replies[i]->status->cached_tokens;
            view->gap_tokens += view->replies[i]->status->gap_tokens;
        }
    }
}

static void print_tier(const Kvist__Admin__Tier *tier)
{
    char used[KV_TEXT_BYTES], capacity[KV_TEXT_BYTES], bar[KV_TEXT_BYTES], read[KV_TEXT_BYTES],
        written[KV_TEXT_BYTES], objects[KV_TEXT_BYTES], hits[KV_TEXT_BYTES];
    double fill =
        tier->capacity_bytes > 0 ? (double)tier->used_bytes / (double)tier->capacity_bytes : 0;
    printf("    %-7s %s %9s of %-9s %8s blocks  %8s hits  read %s, written %s\n", tier->name,
        kv_text_bar(fill, bar), kv_text_size(tier->used_bytes, used),
        kv_text_size(tier->capacity_bytes, capacity), kv_text_count(tier->object_count, objects),
        kv_text_count(tier->hit_blocks, hits), kv_text_size(tier->read_bytes, read),
        kv_text_size(tier->written_bytes, written));
}

static void print_tiers(Kvist__Admin__Tier *const *tiers, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (tiers[i]->capacity_bytes > 0 || tiers[i]->object_count > 0) {
            print_tier(tiers[i]);
        }
    }
}

/* Of a kvist-store: its domains' tiers, where there is more than one or none is open yet, and who
 * is attached. */
static void print_store(const Kvist__Admin__Status *status)
{
    for (size_t i = 0; i < status->n_domains; i++) {
        const Kvist__Admin__Domain *domain = status->domains[i];
        if (status->n_domains > 1 || !domain->open) {
            printf("    domain %s%s\n", domain->name,
                domain->open ? "" : ": not open, no client has attached yet");
        }
        if (status->n_domains > 1) {
            print_tiers(domain->tiers, domain->n_tiers);
        }
    }
    for (size_t i = 0; i < status->n_clients; i++) {
        char bytes[KV_TEXT_BYTES];
        const Kvist__Admin__Client *client = status->clients[i];
        printf(
            "    client %s, pid %llu, user %u, domain %s: %llu leases, %llu requests, lends %s\n",
            client->name, (unsigned long long)client->pid, client->user, client->domain,
            (unsigned long long)client->leases, (unsigned long long)client->requests,
            kv_text_size(client->staging_bytes, bytes));
    }
}

/* KV between nodes. */
static void print_moved(const Kvist__Admin__Status *status)
{
    char sent[KV_TEXT_BYTES], received[KV_TEXT_BYTES];
    if (status->links > 0 || status->sent_bytes + status->received_bytes > 0) {
        printf("    KV sent %s, received %s; %u pieces to send, %u transfers awaited\n",
            kv_text_size(status->sent_bytes, sent), kv_text_size(status->received_bytes, received),
            status->pieces, status->expectations);
    }
    if (status->direct_messages > 0) {
        printf("    from device to device, past the node's memory: %llu messages\n",
            (unsigned long long)status->direct_messages);
    }
}

static void print_node(const kv_member_t *member, const Kvist__Admin__Status *status)
{
    char uptime[KV_TEXT_BYTES];
    printf("\n%s  %s, pid %llu, up %s, %u running, %u waiting", member->name, status->role,
        (unsigned long long)status->pid, kv_text_duration(status->uptime_ns, uptime),
        status->running_requests, status->queued_requests);
    printf("%s%s%s\n", status->device[0] != '\0' ? ", " : "", status->device,
        status->draining ? "; DRAINING: takes nothing new" : "");
    if (status->device_title[0] != '\0') {
        printf("    computes on %s%s%s\n", status->device_title,
            status->no_gpu[0] != '\0' ? "; no gpu: " : "", status->no_gpu);
    }
    if (status->n_domains <= 1) {
        print_tiers(status->tiers, status->n_tiers);
    }
    print_store(status);
    if (status->attach[0] != '\0') {
        printf("    %s%s%s\n", status->attached_to[0] != '\0' ? "attached to " : "NOT attached to ",
            status->attached_to[0] != '\0' ? status->attached_to : status->attach,
            status->attached_to[0] != '\0' ? "" : ": it is away, the node goes on without");
    }
    if (status->n_tiers > 0) {
        printf("    leases %llu, slots free %llu, not yet durable %llu, disk by %s%s\n",
            (unsigned long long)status->leases, (unsigned long long)status->slots_free,
            (unsigned long long)status->unsaved_objects, status->io,
            status->disk_offline ? " (OFFLINE: repeated write errors; see the log)" : "");
    }
    if (status->encrypting) {
        printf("    encrypts what it writes; of the objects on disk %llu are encrypted\n",
            (unsigned long long)status->encrypted_objects);
    }
    print_moved(status);
    if (status->damaged_objects > 0) {
        printf("    damaged blocks found and dropped: %llu\n",
            (unsigned long long)status->damaged_objects);
    }
    for (size_t i = 0; i < status->n_peers; i++) {
        const Kvist__Admin__Peer *peer = status->peers[i];
        printf("    peer %s (%s) at %s: %s%s%s\n", peer->name, peer->role, peer->address,
            !peer->up        ? "DOWN"
            : peer->draining ? "up, draining"
                             : "up",
            peer->wire[0] != '\0' ? ", KV over " : "", peer->wire);
    }
}

static int print_text(const view_t *view)
{
    char rate[KV_TEXT_BYTES], cached[KV_TEXT_BYTES], prompt[KV_TEXT_BYTES], ideal[KV_TEXT_BYTES];
    int code = KV_EXIT_DONE;
    printf("hit rate  %s   (%s of %s prompt tokens were not recomputed; an ideal cache: %s)\n",
        kv_text_percent(view->cached_tokens, view->prompt_tokens, rate),
        kv_text_count(view->cached_tokens, cached), kv_text_count(view->prompt_tokens, prompt),
        kv_text_percent(view->cached_tokens + view->gap_tokens, view->prompt_tokens, ideal));
    printf("endpoint  %s\nmodel     %s\n", view->cluster->endpoint, view->cluster->model);
    if (view->cluster->members[0].argv[0] != NULL) { /* kvist up started them */
        printf("logs      %s/logs\n", view->cluster->folder);
    }
    for (size_t i = 0; i < view->cluster->member_count; i++) {
        const kv_member_t *member = &view->cluster->members[i];
        if (view->replies[i] != NULL) {
            print_node(member, view->replies[i]->status);
        } else {
            bool alive = kv_child_alive(&member->child);
            printf("\n%s  %s\n    its log: %s%s\n", member->name,
                alive ? view->errors[i].text : "DOWN: the process has ended", member->log,
                alive ? "" : "; 'kvist up' starts it again");
            code = KV_EXIT_FAILED;
        }
    }
    return code;
}

static json_t *pack_tier(const Kvist__Admin__Tier *tier)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "name", tier->name,
        "capacity_bytes", (json_int_t)tier->capacity_bytes, "used_bytes",
        (json_int_t)tier->used_bytes, "object_count", (json_int_t)tier->object_count, "hit_blocks",
        (json_int_t)tier->hit_blocks, "read_bytes", (json_int_t)tier->read_bytes, "written_bytes",
        (json_int_t)tier->written_bytes, "evicted_objects", (json_int_t)tier->evicted_objects);
}

static json_t *pack_domains(const Kvist__Admin__Status *status)
{
    json_t *domains = json_array();
    for (size_t i = 0; i < status->n_domains; i++) {
        const Kvist__Admin__Domain *domain = status->domains[i];
        json_t *tiers = json_array();
        for (size_t j = 0; j < domain->n_tiers; j++) {
            json_array_append_new(tiers, pack_tier(domain->tiers[j]));
        }
        json_array_append_new(
            domains, json_pack("{s:s, s:b, s:I, s:I, s:o}", "name", domain->name, "open",
                         domain->open, "unsaved_objects", (json_int_t)domain->unsaved_objects,
                         "leases", (json_int_t)domain->leases, "tiers", tiers));
    }
    return domains;
}

static json_t *pack_clients(const Kvist__Admin__Status *status)
{
    json_t *clients = json_array();
    for (size_t i = 0; i < status->n_clients; i++) {
        const Kvist__Admin__Client *client = status->clients[i];
        json_array_append_new(clients,
            json_pack("{s:s, s:s, s:I, s:i, s:I, s:I, s:I}", "name", client->name, "domain",
                client->domain, "pid", (json_int_t)client->pid, "user", (int)client->user, "leases",
                (json_int_t)client->leases, "requests", (json_int_t)client->requests,
                "staging_bytes", (json_int_t)client->staging_bytes));
    }
    return clients;
}

static json_t *pack_node(const kv_member_t *member, const Kvist__Admin__Status *status)
{
    json_t *tiers = json_array(), *peers = json_array();
    for (size_t i = 0; i < status->n_tiers; i++) {
        json_array_append_new(tiers, pack_tier(status->tiers[i]));
    }
    for (size_t i = 0; i < status->n_peers; i++) {
        const Kvist__Admin__Peer *peer = status->peers[i];
        json_array_append_new(peers, json_pack("{s:s, s:s, s:s, s:b, s:b, s:s}", "name", peer->name,
                                         "role", peer->role, "address", peer->address, "up",
                                         peer->up, "draining", peer->draining, "wire", peer->wire));
    }
    json_t *node = json_pack("{s:s, s:b, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b}", "name",
        member->name, "up", 1, "role", status->role, "version", status->version, "device",
        status->device, "device_title", status->device_title, "no_gpu", status->no_gpu,
        "arithmetic", status->arithmetic, "io", status->io, "disk_offline", status->disk_offline,
        "draining", status->draining);
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"pid", status->pid},
        {"encrypted_objects", status->encrypted_objects},
        {"uptime_ns", status->uptime_ns},
        {"prompt_tokens", status->prompt_tokens},
        {"cached_tokens", status->cached_tokens},
        {"gap_tokens", status->gap_tokens},
        {"generated_tokens", status->generated_tokens},
        {"requests", status->requests},
        {"queued_requests", status->queued_requests},
        {"running_requests", status->running_requests},
        {"unsaved_objects", status->unsaved_objects},
        {"leases", status->leases},
        {"slots_free", status->slots_free},
        {"slots_private", status->slots_private},
        {"damaged_objects", status->damaged_objects},
        {"links", status->links},
        {"expectations", status->expectations},
        {"pieces", status->pieces},
        {"sent_bytes", status->sent_bytes},
        {"received_bytes", status->received_bytes},
        {"dropped_messages", status->dropped_messages},
        {"direct_messages", status->direct_messages},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        json_object_set_new(node, numbers[i].name, json_integer((json_int_t)numbers[i].value));
    }
    if (status->n_domains > 0) {
        json_object_set_new(node, "domains", pack_domains(status));
        json_object_set_new(node, "clients", pack_clients(status));
    }
    if (status->attach[0] != '\0') {
        json_object_set_new(node, "attach", json_string(status->attach));
        json_object_set_new(node, "attached_to", json_string(status->attached_to));
    }
    json_object_set_new(node, "tiers", tiers);
    json_object_set_new(node, "peers", peers);
    return node;
}

static int print_json(const view_t *view)
{
    int code = KV_EXIT_DONE;
    json_t *nodes = json_array();
    for (size_t i = 0; i < view->cluster->member_count; i++) {
        const kv_member_t *member = &view->cluster->members[i];
        if (view->replies[i] != NULL) {
            json_array_append_new(nodes, pack_node(member, view->replies[i]->status));
        } else {
            json_array_append_new(nodes, json_pack("{s:s, s:b, s:s}", "name", member->name, "up", 0,
                                             "error", view->errors[i].text));
            code = KV_EXIT_FAILED;
        }
    }
    json_t *page =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:o}", "endpoint", view->cluster->endpoint,
            "model", view->cluster->model, "folder", view->cluster->folder, "prompt_tokens",
            (json_int_t)view->prompt_tokens, "cached_tokens", (json_int_t)view->cached_tokens,
            "gap_tokens", (json_int_t)view->gap_tokens, "nodes", nodes);
    json_dumpf(page, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(page);
    return code;
}

int kv_command_status(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder();
    bool json = false, endpoint = false;
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "everything, as JSON", &json, 0, 0},
        {"--endpoint", KV_ARGUMENT_FLAG, NULL, "only the endpoint's URL", &endpoint, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist status [OPTIONS]",
        .summary = "The hit rate, the nodes, their tiers and how full they are. Exit code 1 when a "
                   "node is down.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_cluster_t cluster;
    kv_error_t error;
    if (kv_cluster_find(folder, &cluster, &error) != KV_OK) {
        return kv_command_fail("status", error.text, "kvist up");
    }
    if (endpoint) {
        puts(cluster.endpoint);
        kv_cluster_clear(&cluster);
        return KV_EXIT_DONE;
    }
    view_t view;
    look(&cluster, &view);
    code = json ? print_json(&view) : print_text(&view);
    for (size_t i = 0; i < cluster.member_count; i++) {
        if (view.replies[i] != NULL) {
            kvist__admin__reply__free_unpacked(view.replies[i], NULL);
        }
    }
    kv_cluster_clear(&cluster);
    return code;
}
