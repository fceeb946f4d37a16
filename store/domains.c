#include "store/domains.h"

#include "base/check.h"
#include "base/memory.h"
#include "holder/quotas.h"

#include <ctype.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert((int)KV_OPTION_DOMAINS_MAX == (int)KV_SERVICE_DOMAINS_MAX &&
                   (int)KV_OPTION_DOMAIN_NAME_BYTES_MAX == (int)KV_SERVICE_DOMAIN_NAME_BYTES_MAX,
    "what the options let pass, the service takes");

static char *path_of(const char *folder, const char *name)
{
    size_t bytes = strlen(folder) + strlen(name) + 2;
    char *path = kv_allocate(bytes);
    snprintf(path, bytes, "%s/%s", folder, name);
    return path;
}

/* A number, or a name that this machine knows. */
static bool find_user(const char *text, uid_t *user_out)
{
    char *end;
    unsigned long number = strtoul(text, &end, 10);
    if (isdigit((unsigned char)text[0]) && *end == '\0') {
        *user_out = (uid_t)number;
        return strlen(text) <= 10 && number < UINT32_MAX;
    }
    const struct passwd *entry = getpwnam(text);
    if (entry != NULL) {
        *user_out = entry->pw_uid;
    }
    return entry != NULL;
}

static kv_status_t add_users(
    const kv_option_domain_t *option, kv_service_domain_t *domain, kv_error_t *error)
{
    uid_t *users = kv_allocate_array(option->user_count + 1, sizeof *users);
    domain->users = users;
    for (uint32_t i = 0; i < option->user_count; i++) {
        if (!find_user(option->users[i], &users[i])) {
            return kv_fail(error, KV_INVALID, "store.domains: %s: there is no user %s",
                option->name, option->users[i]);
        }
        domain->user_count++;
    }
    return KV_OK;
}

/* Further disks: a folder for each domain on each. */
static void add_disks(const kv_options_t *options, kv_service_domain_t *domain)
{
    uint32_t count = domain->store.directory != NULL ? options->store.disks.count : 0;
    kvist_disk_params_t *disks = kv_allocate_array(count + 1, sizeof *disks);
    bool alone = options->store.domains.count == 0;
    char name[2 * KV_OPTION_DOMAIN_NAME_BYTES_MAX];
    snprintf(name, sizeof name, "%s%s%s", options->node.name, alone ? "" : "-",
        alone ? "" : domain->name);
    for (uint32_t i = 0; i < count; i++) { /* which the options have checked */
        char *folder = NULL;
        KV_CHECK(kv_options_disk(options->store.disks.items[i], &folder, &disks[i].bytes) == KV_OK);
        disks[i].folder = path_of(folder, name);
        free(folder);
    }
    domain->store.disks = disks;
    domain->store.disk_count = count;
}

/* What all domains have in common. */
static kvist_store_params_t common(const kv_options_t *options)
{
    return (kvist_store_params_t){
        .host_bytes = options->store.host_bytes,
        .disk_bytes = options->store.disk_bytes,
        .segment_bytes = options->store.segment_bytes,
        .write_bytes_per_day = options->store.write_bytes_per_day,
        .persist = (kvist_persist_t)options->store.persist,
        .codec = (kvist_codec_t)options->store.codec,
        .key_file = options->store.key_file[0] != '\0' ? options->store.key_file : NULL,
        .io = (kvist_io_t)options->store.io,
        .policy = (kvist_policy_t)options->store.policy,
        .origin = options->node.name,
        .history_bytes = options->store.history_bytes,
    };
}

static kv_status_t check_sizes(const kv_service_domain_t *domain, kv_error_t *error)
{
    const kvist_store_params_t *store = &domain->store;
    if (store->directory != NULL && store->disk_bytes < 2 * store->segment_bytes) {
        return kv_fail(error, KV_INVALID,
            "store.domains: %s: disk_bytes is %llu: must be at least two of store.segment_bytes "
            "(%llu)",
            domain->name, (unsigned long long)store->disk_bytes,
            (unsigned long long)store->segment_bytes);
    }
    return KV_OK;
}

static kv_status_t add_domain(const kv_options_t *options, const kv_option_domain_t *option,
    kv_domains_t *domains, kv_error_t *error)
{
    for (uint32_t i = 0; i < domains->count; i++) {
        if (strcmp(domains->items[i].name, option->name) == 0) {
            return kv_fail(
                error, KV_INVALID, "store.domains: there are two of the name %s", option->name);
        }
    }
    kv_service_domain_t *domain = &domains->items[domains->count++];
    domain->name = kv_duplicate_string(option->name);
    domain->store = common(options);
    if (option->host_bytes != UINT64_MAX) {
        domain->store.host_bytes = option->host_bytes;
    }
    if (option->disk_bytes != UINT64_MAX) {
        domain->store.disk_bytes = option->disk_bytes;
    }
    if (option->directory != NULL) {
        domain->store.directory = kv_duplicate_string(option->directory);
    } else if (options->store.directory[0] != '\0') {
        bool alone = options->store.domains.count == 0;
        domain->store.directory = alone ? kv_duplicate_string(options->store.directory)
                                        : path_of(options->store.directory, option->name);
    }
    domain->store.quotas = kv_quotas_read(options, &domain->store.quota_count);
    add_disks(options, domain);
    kv_status_t status = add_users(option, domain, error);
    return status == KV_OK ? check_sizes(domain, error) : status;
}

kv_status_t kv_domains_read(
    const kv_options_t *options, kv_domains_t *domains_out, kv_error_t *error)
{
    kv_domains_t domains = {.count = 0};
    kv_option_domain_t option = {
        .name = "default", .host_bytes = UINT64_MAX, .disk_bytes = UINT64_MAX};
    kv_status_t status = KV_OK;
    if (options->store.domains.count == 0) {
        status = add_domain(options, &option, &domains, error);
    }
    for (uint32_t i = 0; status == KV_OK && i < options->store.domains.count; i++) {
        KV_CHECK(kv_options_domain(options->store.domains.items[i], &option, NULL) == KV_OK);
        status = add_domain(options, &option, &domains, error);
        kv_options_domain_clear(&option);
    }
    if (status != KV_OK) {
        kv_domains_clear(&domains);
        return status;
    }
    *domains_out = domains;
    return KV_OK;
}

static void drop(const void *text)
{
    free((void *)(uintptr_t)text);
}

void kv_domains_clear(kv_domains_t *domains)
{
    for (uint32_t i = 0; i < domains->count; i++) {
        kv_service_domain_t *domain = &domains->items[i];
        for (uint32_t j = 0; j < domain->store.disk_count; j++) {
            drop(domain->store.disks[j].folder);
        }
        drop(domain->store.disks);
        kv_quotas_clear(domain->store.quotas, domain->store.quota_count);
        drop(domain->store.directory);
        drop(domain->users);
        drop(domain->name);
    }
    domains->count = 0;
}
