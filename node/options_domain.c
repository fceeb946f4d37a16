/* An item of store.domains: "NAME:users=A+B:host_bytes=1GiB:disk_bytes=8GiB:directory=FOLDER". */
#include "base/bytes.h"
#include "base/memory.h"
#include "node/options_internal.h"

#include <stdlib.h>
#include <string.h>

void kv_options_domain_clear(kv_option_domain_t *domain)
{
    for (uint32_t i = 0; i < domain->user_count; i++) {
        free(domain->users[i]);
    }
    free(domain->directory);
    *domain = (kv_option_domain_t){0};
}

static kv_status_t take_users(kv_option_domain_t *domain, char *text, kv_error_t *error)
{
    for (char *user; (user = strsep(&text, "+")) != NULL;) {
        if (!kv_option_is_name(user) || user[0] == '\0') {
            return kv_fail(error, KV_INVALID, "users: \"%.60s\" is no user's name or number", user);
        }
        if (domain->user_count == KV_OPTION_DOMAIN_USERS_MAX) {
            return kv_fail(
                error, KV_INVALID, "users: at most %d of them", KV_OPTION_DOMAIN_USERS_MAX);
        }
        domain->users[domain->user_count++] = kv_duplicate_string(user);
    }
    return KV_OK;
}

static kv_status_t take_size(const char *name, const char *text, uint64_t *bytes, kv_error_t *error)
{
    if (*bytes != UINT64_MAX || kv_size_parse(text, bytes) != KV_OK || *bytes > 1ull << 50) {
        return kv_fail(
            error, KV_INVALID, "%s: \"%.60s\" is no size such as 2GiB, up to 1PiB", name, text);
    }
    return KV_OK;
}

static kv_status_t take_field(kv_option_domain_t *domain, char *field, kv_error_t *error)
{
    char *value = strchr(field, '=');
    if (value == NULL || value[1] == '\0') {
        return kv_fail(error, KV_INVALID, "\"%.60s\" is not NAME=VALUE", field);
    }
    *value++ = '\0';
    if (strcmp(field, "users") == 0) {
        return take_users(domain, value, error);
    }
    if (strcmp(field, "host_bytes") == 0) {
        return take_size(field, value, &domain->host_bytes, error);
    }
    if (strcmp(field, "disk_bytes") == 0) {
        return take_size(field, value, &domain->disk_bytes, error);
    }
    if (strcmp(field, "directory") == 0 && domain->directory == NULL) {
        domain->directory = kv_duplicate_string(value);
        return KV_OK;
    }
    return kv_fail(error, KV_INVALID,
        "\"%.60s\" is none of users, host_bytes, disk_bytes, directory, or said twice", field);
}

kv_status_t kv_options_domain(const char *item, kv_option_domain_t *domain_out, kv_error_t *error)
{
    kv_option_domain_t domain = {.host_bytes = UINT64_MAX, .disk_bytes = UINT64_MAX};
    char *copy = kv_duplicate_string(item), *rest = copy, *field;
    char *name = strsep(&rest, ":");
    kv_status_t status = KV_OK;
    if (strlen(name) == 0 || strlen(name) > KV_OPTION_DOMAIN_NAME_BYTES_MAX ||
        !kv_option_is_name(name) || !kv_utf8_valid(item, strlen(item))) {
        status =
            kv_fail(error, KV_INVALID, "the name is not 1 to %d letters, digits, '-', '_' and '.'",
                KV_OPTION_DOMAIN_NAME_BYTES_MAX);
    } else {
        memcpy(domain.name, name, strlen(name) + 1);
    }
    while (status == KV_OK && (field = strsep(&rest, ":")) != NULL) {
        status = take_field(&domain, field, error);
    }
    free(copy);
    if (status != KV_OK) {
        kv_options_domain_clear(&domain);
        return status;
    }
    *domain_out = domain;
    return KV_OK;
}
