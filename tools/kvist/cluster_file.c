#include "tools/kvist/cluster_file.h"

#include "base/memory.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void kv_cluster_clear(kv_cluster_t *cluster)
{
    for (size_t i = 0; i < cluster->member_count; i++) {
        kv_member_t *member = &cluster->members[i];
        for (char **word = member->argv; word != NULL && *word != NULL; word++) {
            free(*word);
        }
        free(member->argv);
        free(member->name);
        free(member->admin);
        free(member->log);
    }
    free(cluster->folder);
    free(cluster->model);
    free(cluster->endpoint);
    *cluster = (kv_cluster_t){0};
}

static json_t *pack_member(const kv_member_t *member)
{
    json_t *command = json_array();
    for (char **word = member->argv; *word != NULL; word++) {
        json_array_append_new(command, json_string(*word));
    }
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:o}", "name", member->name, "admin", member->admin,
        "log", member->log, "pid", (json_int_t)member->child.pid, "start_ticks",
        (json_int_t)member->child.start_ticks, "command", command);
}

kv_status_t kv_cluster_save(const kv_cluster_t *cluster, kv_error_t *error)
{
    json_t *members = json_array();
    for (size_t i = 0; i < cluster->member_count; i++) {
        json_array_append_new(members, pack_member(&cluster->members[i]));
    }
    json_t *file = json_pack("{s:s, s:s, s:o}", "endpoint", cluster->endpoint, "model",
        cluster->model, "nodes", members);
    char path[KV_PATH_BYTES], scratch[KV_PATH_BYTES];
    snprintf(path, sizeof path, "%s/cluster.json", cluster->folder);
    snprintf(scratch, sizeof scratch, "%s/cluster.json.new", cluster->folder);
    int failed = file == NULL || json_dump_file(file, scratch, JSON_INDENT(2)) != 0 ||
                 rename(scratch, path) != 0;
    int cause = errno;
    json_decref(file);
    return failed ? kv_fail_errno(error, cause, "%s cannot be written", path) : KV_OK;
}

/* The member of a JSON object, or false: a command must have at least its program. */
static bool unpack_member(json_t *entry, kv_member_t *member)
{
    const char *name, *admin, *log;
    json_int_t pid, start_ticks;
    json_t *command;
    if (json_unpack(entry, "{s:s, s:s, s:s, s:I, s:I, s:o}", "name", &name, "admin", &admin, "log",
            &log, "pid", &pid, "start_ticks", &start_ticks, "command", &command) != 0 ||
        !json_is_array(command) || json_array_size(command) == 0) {
        return false;
    }
    size_t count = json_array_size(command);
    member->argv = kv_allocate_array(count + 1, sizeof(char *));
    for (size_t i = 0; i < count; i++) {
        const char *word = json_string_value(json_array_get(command, i));
        member->argv[i] = kv_duplicate_string(word != NULL ? word : "");
    }
    member->name = kv_duplicate_string(name);
    member->admin = kv_duplicate_string(admin);
    member->log = kv_duplicate_string(log);
    member->stores = strncmp(name, "gateway", strlen("gateway")) != 0;
    member->engine = member->stores && strncmp(name, "store", strlen("store")) != 0;
    for (size_t i = 0; i < count; i++) {
        member->stores = member->stores && strncmp(member->argv[i], "--store.attach=", 15) != 0;
    }
    member->child = (kv_child_t){.pid = (pid_t)pid, .start_ticks = (uint64_t)start_ticks};
    return true;
}

kv_status_t kv_cluster_load(const char *folder, kv_cluster_t *cluster_out, kv_error_t *error)
{
    char path[KV_PATH_BYTES];
    snprintf(path, sizeof path, "%s/cluster.json", folder);
    if (access(path, F_OK) != 0) {
        return kv_fail(error, KV_MISSING, "no cluster was started in %s", folder);
    }
    json_error_t cause;
    json_t *file = json_load_file(path, 0, &cause);
    if (file == NULL) {
        return kv_fail(error, KV_INVALID, "%s:%d: %s", path, cause.line, cause.text);
    }
    const char *endpoint, *model;
    json_t *nodes;
    kv_cluster_t cluster = {0};
    kv_status_t status = KV_OK;
    if (json_unpack_ex(file, &cause, 0, "{s:s, s:s, s:o}", "endpoint", &endpoint, "model", &model,
            "nodes", &nodes) != 0) {
        status = kv_fail(error, KV_INVALID, "%s: %s", path, cause.text);
    } else if (json_array_size(nodes) == 0 || json_array_size(nodes) > KV_CLUSTER_MEMBERS_MAX) {
        status =
            kv_fail(error, KV_INVALID, "%s: nodes must be 1 to %d", path, KV_CLUSTER_MEMBERS_MAX);
    }
    size_t count = status == KV_OK ? json_array_size(nodes) : 0;
    for (size_t i = 0; i < count; i++) {
        if (!unpack_member(json_array_get(nodes, i), &cluster.members[i])) {
            status = kv_fail(error, KV_INVALID, "%s: node %zu is not whole", path, i);
            break;
        }
        cluster.member_count++;
    }
    if (status == KV_OK) {
        cluster.folder = kv_duplicate_string(folder);
        cluster.endpoint = kv_duplicate_string(endpoint);
        cluster.model = kv_duplicate_string(model);
        *cluster_out = cluster;
    } else {
        kv_cluster_clear(&cluster);
    }
    json_decref(file);
    return status;
}
