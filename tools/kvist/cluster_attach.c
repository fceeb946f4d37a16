#include "tools/kvist/cluster_attach.h"

#include "base/memory.h"
#include "tools/kvist/admin.h"
#include "tools/kvist/command.h"

#include <glob.h>
#include <stdlib.h>
#include <string.h>

static char *concatenate(const char *first, const char *second)
{
    size_t bytes = strlen(first) + strlen(second) + 1;
    char *text = kv_allocate(bytes);
    snprintf(text, bytes, "%s%s", first, second);
    return text;
}

/* A node that answers becomes a member; of another it is said that it does not. */
static void add_node(kv_cluster_t *cluster, const char *socket)
{
    Kvist__Admin__Reply *reply;
    kv_error_t error;
    if (kv_ask_status(socket, &reply, &error) != KV_OK) {
        fprintf(stderr, "kvist: %s: %s\n", socket, error.text);
        return;
    }
    const Kvist__Admin__Status *node = reply->status;
    kv_member_t *member = &cluster->members[cluster->member_count++];
    *member = (kv_member_t){.name = kv_duplicate_string(node->name),
        .admin = kv_duplicate_string(socket),
        .log = kv_duplicate_string("the service manager's"),
        .argv = kv_allocate_array(1, sizeof(char *)),
        .child = kv_child_of((pid_t)node->pid),
        .stores = strcmp(node->role, "gateway") != 0 && node->attach[0] == '\0',
        .engine = strcmp(node->role, "prefill") == 0 || strcmp(node->role, "decode") == 0};
    if (strcmp(node->role, "gateway") == 0 && cluster->endpoint == NULL) {
        cluster->endpoint = concatenate("http://", node->http_address);
    }
    if (cluster->model == NULL && node->model[0] != '\0') {
        cluster->model = kv_duplicate_string(node->model);
    }
    kvist__admin__reply__free_unpacked(reply, NULL);
}

/* A kvist-store's other socket, which lies beside it: nobody is asked there. */
static bool is_for_clients(const char *socket)
{
    static const char END[] = "clients.sock";
    size_t bytes = strlen(socket);
    return bytes >= sizeof END - 1 && strcmp(socket + bytes - (sizeof END - 1), END) == 0;
}

static kv_status_t add_nodes(kv_cluster_t *cluster, const char *folder, kv_error_t *error)
{
    static const char *const PATTERNS[] = {"/*.sock", "/*/admin.sock"};
    glob_t found = {0};
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < sizeof PATTERNS / sizeof *PATTERNS; i++) {
        char *pattern = concatenate(folder, PATTERNS[i]);
        glob(pattern, i > 0 ? GLOB_APPEND : 0, NULL, &found);
        free(pattern);
    }
    for (size_t i = 0; i < found.gl_pathc && status == KV_OK; i++) {
        if (is_for_clients(found.gl_pathv[i])) {
            continue;
        }
        if (cluster->member_count == KV_CLUSTER_MEMBERS_MAX) {
            status = kv_fail(
                error, KV_NO_SPACE, "%s: more than %d nodes", folder, KV_CLUSTER_MEMBERS_MAX);
        } else {
            add_node(cluster, found.gl_pathv[i]);
        }
    }
    globfree(&found);
    return status;
}

kv_status_t kv_cluster_find(const char *folder, kv_cluster_t *cluster_out, kv_error_t *error)
{
    kv_error_t why;
    kv_status_t status = kv_cluster_load(folder, cluster_out, error);
    if (status != KV_MISSING) {
        return status;
    }
    kv_cluster_t cluster = {.folder = kv_duplicate_string(folder)};
    status = add_nodes(&cluster, folder, &why);
    if (status == KV_OK && cluster.member_count > 0) {
        cluster.endpoint =
            cluster.endpoint != NULL ? cluster.endpoint : kv_duplicate_string("no gateway here");
        cluster.model = cluster.model != NULL ? cluster.model : kv_duplicate_string("none");
        *cluster_out = cluster;
        return KV_OK;
    }
    if (status != KV_OK) {
        *error = why;
    } else {
        status = KV_MISSING; /* and the error is that of kv_cluster_load */
    }
    kv_cluster_clear(&cluster);
    return status;
}

int kv_cluster_find_member(const char *command, const char *folder, const char *name,
    kv_cluster_t *cluster_out, const kv_member_t **member_out)
{
    kv_error_t error;
    if (name == NULL) {
        return kv_command_misuse(command, "name the node", "kvist status shows them");
    }
    if (kv_cluster_find(folder, cluster_out, &error) != KV_OK) {
        return kv_command_fail(command, error.text, "kvist up");
    }
    for (size_t i = 0; i < cluster_out->member_count; i++) {
        if (strcmp(cluster_out->members[i].name, name) == 0) {
            *member_out = &cluster_out->members[i];
            return KV_EXIT_DONE;
        }
    }
    kv_cluster_clear(cluster_out);
    return kv_command_misuse(command, "there is no node of that name", "kvist status shows them");
}
