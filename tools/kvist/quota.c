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

static void print_tenants(const kv_member_t *member, const Kvist__Admin__Quota *quota)
{
    for (size_t i = 0; i < quota->n_tenants; i++) {
        const Kvist__Admin__Tenant *tenant = quota->tenants[i];
        char host[KV_TEXT_BYTES], host_quota[KV_TEXT_BYTES], disk[KV_TEXT_BYTES],
            disk_quota[KV_TEXT_BYTES], pinned[KV_TEXT_BYTES];
        printf("%-10s %-20s %10s %10s  %10s %10s  %10s\n", member->name,
            tenant->name[0] != '\0' ? tenant->name : "-", kv_text_size(tenant->host_bytes, host),
            tenant->host_quota_bytes > 0 ? kv_text_size(tenant->host_quota_bytes, host_quota) : "-",
            kv_text_size(tenant->disk_bytes, disk),
            tenant->disk_quota_bytes > 0 ? kv_text_size(tenant->disk_quota_bytes, disk_quota) : "-",
            kv_text_size(tenant->pinned_bytes, pinned));
    }
}

static json_t *pack_tenants(const Kvist__Admin__Quota *quota)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < quota->n_tenants; i++) {
        const Kvist__Admin__Tenant *tenant = quota->tenants[i];
        json_array_append_new(rows,
            json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "tenant", tenant->name, "device_bytes",
                (json_int_t)tenant->device_bytes, "host_bytes", (json_int_t)tenant->host_bytes,
                "host_quota_bytes", (json_int_t)tenant->host_quota_bytes, "disk_bytes",
                (json_int_t)tenant->disk_bytes, "disk_quota_bytes",
                (json_int_t)tenant->disk_quota_bytes, "pinned_bytes",
                (json_int_t)tenant->pinned_bytes));
    }
    return rows;
}

static json_t *pack_quota(const kv_member_t *member, const Kvist__Admin__Quota *quota)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "node",
        member->name, "capacity_bytes", (json_int_t)quota->capacity_bytes, "used_bytes",
        (json_int_t)quota->used_bytes, "pinned_bytes", (json_int_t)quota->pinned_bytes,
        "object_count", (json_int_t)quota->object_count, "written_bytes",
        (json_int_t)quota->written_bytes, "write_budget_bytes",
        (json_int_t)quota->write_budget_bytes, "write_left_bytes",
        (json_int_t)quota->write_left_bytes, "segment_written_bytes",
        (json_int_t)quota->segment_written_bytes, "not_admitted_objects",
        (json_int_t)quota->not_admitted_objects, "tenants", pack_tenants(quota));
}

/* Asks every store; what the question sets is set first. */
static int visit(
    const kv_stores_t *stores, const Kvist__Admin__QuotaRequest *question, bool tenants, bool json)
{
    kv_stores_tally_t tally = {0};
    json_t *all = json_array();
    if (!json && tenants) {
        printf("%-10s %-20s %10s %10s  %10s %10s  %10s\n", "NODE", "TENANT", "HOST", "QUOTA",
            "DISK", "QUOTA", "PINNED");
    } else if (!json) {
        printf("%-10s %10s  %10s %7s  %10s  %9s  %10s  %10s  %10s  %9s\n", "NODE", "QUOTA", "USED",
            "", "PINNED", "BLOCKS", "WRITTEN", "A DAY", "LEFT", "REFUSED");
    }
    for (size_t i = 0; i < stores->count; i++) {
        Kvist__Admin__Reply *reply;
        kv_error_t error;
        kv_status_t status = kv_ask_quota(stores->members[i]->admin, question, &reply, &error);
        kv_stores_tally(stores, stores->members[i], status, error.text, &tally);
        if (status == KV_OK) {
            if (!json && tenants) {
                print_tenants(stores->members[i], reply->quota);
            } else if (!json) {
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

/* What the command line says of one tenant's quota; false: it says it wrongly. */
static bool take_tenant(
    const char *tenant, const char *host, const char *disk, Kvist__Admin__TenantQuota *body)
{
    kvist__admin__tenant_quota__init(body);
    body->name = (char *)(uintptr_t)(tenant != NULL ? tenant : "");
    body->set_host = host != NULL;
    body->set_disk = disk != NULL;
    bool sizes = (host == NULL || kv_size_parse(host, &body->host_bytes) == KV_OK) &&
                 (disk == NULL || kv_size_parse(disk, &body->disk_bytes) == KV_OK);
    return sizes && (tenant != NULL) == (host != NULL || disk != NULL);
}

int kv_command_quota(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *domain = NULL, *node = NULL, *size = NULL;
    const char *tenant = NULL, *host = NULL, *disk = NULL;
    bool json = false, tenants = false;
    const kv_argument_t rows[] = {
        {"--tenants", KV_ARGUMENT_FLAG, NULL, "what each tenant has and may have", &tenants, 0, 0},
        {"--tenant", KV_ARGUMENT_TEXT, "NAME", "set what this tenant may have, with", &tenant, 0,
            0},
        {"--host", KV_ARGUMENT_TEXT, "SIZE", "of host memory; 0: as much as there is", &host, 0, 0},
        {"--disk", KV_ARGUMENT_TEXT, "SIZE", "of the disk; 0: as much as there is", &disk, 0, 0},
        {"--node", KV_ARGUMENT_TEXT, "NAME", "this node only (default: all; SIZE is one node's)",
            &node, 0, 0},
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--domain", KV_ARGUMENT_TEXT, "NAME",
            "of a kvist-store: whose store is meant (default: its first domain's)", &domain, 0, 0},
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
            "was stored longest ago. A tenant's, until then too (option\nstore.tenants), makes it "
            "give up blocks of its own, and nobody else's.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &size,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_ask_about(domain);
    uint64_t disk_bytes = 0;
    if (size != NULL && (kv_size_parse(size, &disk_bytes) != KV_OK || disk_bytes == 0)) {
        return kv_command_misuse("quota", "SIZE is no size", "such as 512MiB, 20GiB or 1.5TiB");
    }
    Kvist__Admin__QuotaRequest question = KVIST__ADMIN__QUOTA_REQUEST__INIT;
    Kvist__Admin__TenantQuota of_tenant;
    if (!take_tenant(tenant, host, disk, &of_tenant)) {
        return kv_command_misuse("quota",
            "a tenant's quota is --tenant NAME with --host SIZE, "
            "--disk SIZE or both",
            "such as --tenant ann --disk 20GiB");
    }
    question.disk_bytes = disk_bytes;
    question.tenant = tenant != NULL ? &of_tenant : NULL;
    kv_stores_t stores;
    code = kv_stores_open("quota", folder, node, &stores);
    if (code != KV_EXIT_DONE) {
        return code;
    }
    if (size != NULL && stores.count > 1) {
        code = kv_command_misuse(
            "quota", "whose quota?", "name the node: --node (kvist quota lists them)");
    } else {
        code = visit(&stores, &question, tenants || tenant != NULL, json);
    }
    kv_stores_close(&stores);
    return code;
}
