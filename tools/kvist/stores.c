#include "tools/kvist/stores.h"

#include "tools/kvist/admin.h"
#include "tools/kvist/cluster_attach.h"
#include "tools/kvist/command.h"

#include <stdio.h>
#include <string.h>

enum { KEY_BYTES = 65 };

static int fail_node(const kv_stores_t *stores, const char *node, bool all)
{
    char text[256], names[160] = "";
    for (size_t i = 0; i < stores->cluster.member_count; i++) {
        size_t used = strlen(names);
        const kv_member_t *member = &stores->cluster.members[i];
        if (member->stores || (all && member->engine)) {
            snprintf(names + used, sizeof names - used, "%s%s", used > 0 ? ", " : "", member->name);
        }
    }
    snprintf(text, sizeof text, "no node that stores is named '%.60s'; there are %s", node, names);
    return kv_command_fail(stores->command, text, NULL);
}

/* Stores come first: what is dropped there, nobody loads again before it is dropped here. */
static void choose_members(kv_stores_t *stores, const char *node, bool attached)
{
    for (size_t i = 0; i < stores->cluster.member_count; i++) {
        const kv_member_t *member = &stores->cluster.members[i];
        bool kind = attached ? member->engine && !member->stores : member->stores;
        if (kind && (node == NULL || strcmp(member->name, node) == 0)) {
            stores->members[stores->count++] = member;
        }
    }
}

static int open_members(
    const char *command, const char *folder, const char *node, bool all, kv_stores_t *stores_out)
{
    kv_error_t error;
    *stores_out = (kv_stores_t){.command = command};
    if (kv_cluster_find(folder, &stores_out->cluster, &error) != KV_OK) {
        return kv_command_fail(command, error.text, "kvist up");
    }
    choose_members(stores_out, node, false);
    if (all) {
        choose_members(stores_out, node, true);
    }
    if (stores_out->count > 0) {
        return KV_EXIT_DONE;
    }
    int code = fail_node(stores_out, node != NULL ? node : "", all);
    kv_cluster_clear(&stores_out->cluster);
    return code;
}

int kv_stores_open(
    const char *command, const char *folder, const char *node, kv_stores_t *stores_out)
{
    return open_members(command, folder, node, false, stores_out);
}

void kv_stores_close(kv_stores_t *stores)
{
    kv_cluster_clear(&stores->cluster);
}

void kv_stores_tally(const kv_stores_t *stores, const kv_member_t *member, kv_status_t status,
    const char *text, kv_stores_tally_t *tally)
{
    bool alive = kv_child_alive(&member->child);
    if (status == KV_OK) {
        tally->done_count++;
    } else if (status == KV_MISSING && alive) {
        tally->missing_count++;
    } else {
        tally->failed_count++;
        fprintf(stderr, "kvist %s: %s: %s\n", stores->command, member->name,
            alive ? text : "the process has ended; 'kvist up' starts it again");
    }
}

/* The exit code; says so where no node has the key. */
static int answer(const kv_stores_t *stores, const char *key, const kv_stores_tally_t *tally)
{
    if (tally->failed_count > 0) {
        return KV_EXIT_FAILED;
    }
    if (tally->done_count == 0) {
        char text[160];
        snprintf(text, sizeof text, "no stored block's key begins with %.80s", key);
        return kv_command_fail(stores->command, text, "kvist ls shows the keys of what is stored");
    }
    return KV_EXIT_DONE;
}

/* The whole key, and of the stores those that have it. */
static int find(kv_stores_t *stores, const char *key, char key_out[KEY_BYTES])
{
    kv_stores_tally_t tally = {0};
    size_t kept = 0;
    key_out[0] = '\0';
    for (size_t i = 0; i < stores->count; i++) {
        Kvist__Admin__Reply *reply;
        kv_error_t error;
        kv_status_t status = kv_ask_show(stores->members[i]->admin, key, &reply, &error);
        kv_stores_tally(stores, stores->members[i], status, error.text, &tally);
        if (status != KV_OK) {
            continue;
        }
        bool other = key_out[0] != '\0' && strcmp(key_out, reply->object->key) != 0;
        snprintf(key_out, KEY_BYTES, "%s", reply->object->key);
        kvist__admin__reply__free_unpacked(reply, NULL);
        if (other) {
            return kv_command_fail(stores->command, "more than one key begins like this",
                "give more of its digits: kvist ls shows them");
        }
        stores->members[kept++] = stores->members[i];
    }
    stores->count = kept;
    return answer(stores, key, &tally);
}

static int visit_all(kv_stores_t *stores, const kv_stores_request_t *request,
    kv_stores_visit_t visit, const void *context)
{
    char key[KEY_BYTES];
    int code = find(stores, request->key, key);
    if (code != KV_EXIT_DONE) {
        return code;
    }
    kv_stores_tally_t tally = {0};
    json_t *rows = request->json ? json_array() : NULL;
    for (size_t i = 0; i < stores->count; i++) {
        kv_error_t error;
        kv_status_t status = visit(stores->members[i], key, rows, context, &error);
        kv_stores_tally(stores, stores->members[i], status, error.text, &tally);
    }
    if (request->json) {
        json_dumpf(rows, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(rows);
    }
    return answer(stores, request->key, &tally);
}

int kv_stores_visit_key(
    const kv_stores_request_t *request, kv_stores_visit_t visit, const void *context)
{
    if (request->key == NULL) {
        return kv_command_misuse(request->command, "KEY is missing", "kvist ls shows the keys");
    }
    kv_stores_t stores;
    int code =
        open_members(request->command, request->folder, request->node, request->attached, &stores);
    if (code == KV_EXIT_DONE) {
        code = visit_all(&stores, request, visit, context);
        kv_stores_close(&stores);
    }
    return code;
}
