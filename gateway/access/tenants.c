#include "gateway/access/tenants.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/api.h"
#include "node/records_file.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct kv_tenants {
    const char *path;
    kv_tenant_t **list; /* of the file, each held once; or the nameless one */
    uint32_t count;
};

/* In the order of FIELDS. */
enum {
    NAME,
    SALT,
    KEY_SHA256,
    PRIORITY,
    CACHE_MODES,
    REQUESTS_PER_MINUTE,
    TOKENS_PER_MINUTE,
    CONCURRENT,
    HOST_BYTES,
    DISK_BYTES,
    OPERATOR,
    FIELD_COUNT
};

static const kv_record_field_t FIELDS[FIELD_COUNT] = {{"name", false}, {"salt", false},
    {"key_sha256", true}, {"priority", false}, {"cache_modes", true},
    {"requests_per_minute", false}, {"tokens_per_minute", false}, {"concurrent", false},
    {"host_bytes", false}, {"disk_bytes", false}, {"operator", false}};

static const kv_record_shape_t SHAPE = {"tenants", FIELDS, FIELD_COUNT, KV_TENANTS_MAX};

enum { ALL_MODES = 15 };

/* ---- one record of the file ---- */

typedef struct {
    const char *path;
    const kv_string_list_t *values; /* [FIELD_COUNT] */
    uint32_t index;
    kv_error_t *error;
} record_t;

/* The text of a field, or NULL. */
static const char *text_of(const record_t *record, int field)
{
    const kv_string_list_t *list = &record->values[field];
    return list->count > 0 ? list->items[0] : NULL;
}

/* What is wrong, without the value: it may be a secret. */
static kv_status_t refuse(const record_t *record, int field, const char *what)
{
    const char *name = text_of(record, NAME);
    bool named = name != NULL && strlen(name) <= KV_OPTION_TENANT_NAME_BYTES_MAX &&
                 kv_utf8_valid(name, strlen(name));
    return kv_fail(record->error, KV_INVALID, "%s: tenants[%u]%s%s%s: %s: %s", record->path,
        record->index, named ? " (" : "", named ? name : "", named ? ")" : "", FIELDS[field].name,
        what);
}

static kv_status_t take_identity(const record_t *record, kv_tenant_t *tenant)
{
    const char *name = text_of(record, NAME), *salt = text_of(record, SALT);
    if (name == NULL || name[0] == '\0' || strlen(name) > KV_OPTION_TENANT_NAME_BYTES_MAX ||
        !kv_option_is_name(name)) {
        return refuse(record, NAME, "must be 1 to 31 letters, digits, '-', '_' and '.'");
    }
    memcpy(tenant->name, name, strlen(name));
    if (salt == NULL || kv_hex_decode(salt, tenant->salt, sizeof tenant->salt) != KV_OK) {
        return refuse(record, SALT, "must be 64 hexadecimal digits (kvist tenant new makes them)");
    }
    const kv_string_list_t *keys = &record->values[KEY_SHA256];
    if (keys->count > KV_TENANT_KEYS_MAX) {
        return refuse(record, KEY_SHA256, "at most 8 of them");
    }
    for (uint32_t i = 0; i < keys->count; i++) {
        if (kv_hex_decode(keys->items[i], tenant->hashes[i], KV_TENANT_HASH_BYTES) != KV_OK) {
            return refuse(record, KEY_SHA256,
                "must be a list of SHA-256 of keys, 64 hexadecimal digits each");
        }
    }
    tenant->hash_count = keys->count;
    return KV_OK;
}

static bool take_number(const char *text, uint64_t most, uint64_t *value_out)
{
    char *end;
    if (text == NULL) {
        return true;
    }
    if (text[0] < '0' || text[0] > '9' || strlen(text) > 10) {
        return false;
    }
    uint64_t value = strtoull(text, &end, 10);
    if (*end != '\0' || value < 1 || value > most) {
        return false;
    }
    *value_out = value;
    return true;
}

static kv_status_t take_bounds(const record_t *record, kv_tenant_t *tenant)
{
    static const char RATE[] = "must be a whole number, 1 to 100000000; leave it out for no bound";
    uint64_t requests = 0, tokens = 0, places = 0;
    if (!take_number(text_of(record, REQUESTS_PER_MINUTE), KV_LIMIT_MAX, &requests)) {
        return refuse(record, REQUESTS_PER_MINUTE, RATE);
    }
    if (!take_number(text_of(record, TOKENS_PER_MINUTE), KV_LIMIT_MAX, &tokens)) {
        return refuse(record, TOKENS_PER_MINUTE, RATE);
    }
    if (!take_number(text_of(record, CONCURRENT), 65536, &places)) {
        return refuse(record, CONCURRENT, "must be a whole number, 1 to 65536");
    }
    kv_bucket_set(&tenant->requests, requests);
    kv_bucket_set(&tenant->tokens, tokens);
    tenant->share.places_max = (uint32_t)places;
    for (int field = HOST_BYTES; field <= DISK_BYTES; field++) {
        const char *text = text_of(record, field);
        uint64_t *bytes = field == HOST_BYTES ? &tenant->host_bytes : &tenant->disk_bytes;
        if (text != NULL && (kv_size_parse(text, bytes) != KV_OK || *bytes == 0)) {
            return refuse(record, field, "must be a size such as 4GiB");
        }
    }
    tenant->has_quota = tenant->host_bytes > 0 || tenant->disk_bytes > 0;
    return KV_OK;
}

static kv_status_t take_rights(const record_t *record, kv_tenant_t *tenant)
{
    const char *text = text_of(record, PRIORITY);
    kv_api_priority_t priority = KV_API_INTERACTIVE;
    if (text != NULL && !kv_api_priority(text, &priority)) {
        return refuse(record, PRIORITY, "must be one of interactive, batch, background");
    }
    tenant->priority_best = (kvist_priority_t)priority;
    const kv_string_list_t *modes = &record->values[CACHE_MODES];
    tenant->cache_modes = modes->count == 0 ? ALL_MODES : 0;
    for (uint32_t i = 0; i < modes->count; i++) {
        uint32_t mode;
        if (!kv_api_cache_mode(modes->items[i], &mode)) {
            return refuse(
                record, CACHE_MODES, "must be a list of readwrite, read, write and bypass");
        }
        tenant->cache_modes |= 1u << mode;
    }
    text = text_of(record, OPERATOR);
    text = text != NULL ? text : "no";
    tenant->is_operator = strcmp(text, "yes") == 0 || strcmp(text, "true") == 0;
    return tenant->is_operator || strcmp(text, "no") == 0 || strcmp(text, "false") == 0
               ? KV_OK
               : refuse(record, OPERATOR, "must be yes or no");
}

static kv_status_t take_record(const record_t *record, kv_tenant_t *tenant)
{
    kv_status_t status = take_identity(record, tenant);
    if (status == KV_OK) {
        status = take_bounds(record, tenant);
    }
    return status == KV_OK ? take_rights(record, tenant) : status;
}

/* ---- the file ---- */

static void free_list(kv_tenant_t **list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        kv_tenant_release(list[i]);
    }
    free(list);
}

/* No two of one name, and no key of two: it could not be told whose it is. Salts of two are as
 * wrong: they would share what they cached. */
static kv_status_t check_unique(const record_t *record, kv_tenant_t *const *list, uint32_t index)
{
    const kv_tenant_t *tenant = list[index];
    for (uint32_t i = 0; i < index; i++) {
        const kv_tenant_t *other = list[i];
        if (strcmp(other->name, tenant->name) == 0) {
            return refuse(record, NAME, "another record has it");
        }
        if (CRYPTO_memcmp(other->salt, tenant->salt, sizeof tenant->salt) == 0) {
            return refuse(record, SALT, "another tenant has it: they would share what they cache");
        }
        for (uint32_t j = 0; j < tenant->hash_count * other->hash_count; j++) {
            if (CRYPTO_memcmp(tenant->hashes[j / other->hash_count],
                    other->hashes[j % other->hash_count], KV_TENANT_HASH_BYTES) == 0) {
                return refuse(record, KEY_SHA256, "another tenant has one of them");
            }
        }
    }
    return KV_OK;
}

static kv_status_t check_mode(const char *path, kv_error_t *error)
{
    struct stat info;
    if (stat(path, &info) != 0) {
        return kv_fail_errno(error, errno, "gateway.tenants_file: %s", path);
    }
    if ((info.st_mode & 077) != 0) {
        return kv_fail(error, KV_REFUSED,
            "gateway.tenants_file: %s: mode %03o lets others read it: chmod 600", path,
            (unsigned)info.st_mode & 0777);
    }
    return KV_OK;
}

static kv_status_t read_file(
    const char *path, kv_tenant_t ***list_out, uint32_t *count_out, kv_error_t *error)
{
    kv_records_t records = {0};
    kv_status_t status = check_mode(path, error);
    if (status == KV_OK) {
        status = kv_records_read(path, &SHAPE, &records, error);
    }
    if (status != KV_OK) {
        return status;
    }
    kv_tenant_t **list = kv_allocate_array(records.record_count + 1, sizeof *list);
    uint32_t count = 0;
    while (status == KV_OK && count < records.record_count) {
        const record_t record = {path, &records.values[count * FIELD_COUNT], count, error};
        list[count] = kv_allocate(sizeof **list);
        list[count]->holder_count = 1;
        status = take_record(&record, list[count]);
        if (status == KV_OK) {
            status = check_unique(&record, list, count);
        }
        count++;
    }
    kv_records_clear(&records);
    if (status != KV_OK) {
        free_list(list, count);
        return status;
    }
    *list_out = list;
    *count_out = count;
    return KV_OK;
}

/* The new words of the file for a tenant that was there: what it took of its rates and whom it has
 * in the queue stay. */
static void amend(kv_tenant_t *tenant, const kv_tenant_t *fresh)
{
    memcpy(tenant->salt, fresh->salt, sizeof tenant->salt);
    memcpy(tenant->hashes, fresh->hashes, sizeof tenant->hashes);
    tenant->hash_count = fresh->hash_count;
    tenant->priority_best = fresh->priority_best;
    tenant->cache_modes = fresh->cache_modes;
    tenant->has_quota |= fresh->has_quota;
    tenant->is_operator = fresh->is_operator;
    tenant->host_bytes = fresh->host_bytes;
    tenant->disk_bytes = fresh->disk_bytes;
    tenant->share.places_max = fresh->share.places_max;
    kv_bucket_set(&tenant->requests, fresh->requests.per_minute);
    kv_bucket_set(&tenant->tokens, fresh->tokens.per_minute);
}

kv_status_t kv_tenants_reload(kv_tenants_t *tenants, kv_error_t *error)
{
    kv_tenant_t **list;
    uint32_t count;
    if (!kv_tenants_named(tenants)) {
        return KV_OK;
    }
    kv_status_t status = read_file(tenants->path, &list, &count, error);
    if (status != KV_OK) {
        return status;
    }
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t j = 0; j < tenants->count; j++) {
            kv_tenant_t *old = tenants->list[j];
            if (strcmp(list[i]->name, old->name) == 0) {
                amend(old, list[i]);
                kv_tenant_release(list[i]);
                list[i] = old;
                old->holder_count++;
            }
        }
    }
    free_list(tenants->list, tenants->count);
    tenants->list = list;
    tenants->count = count;
    kv_log_info("gateway", "tenants file %s count %u", tenants->path, count);
    return KV_OK;
}

kv_status_t kv_tenants_open(const char *path, kv_tenants_t **tenants_out, kv_error_t *error)
{
    kv_tenants_t *tenants = kv_allocate(sizeof *tenants);
    tenants->path = path;
    if (kv_tenants_named(tenants)) {
        kv_status_t status = kv_tenants_reload(tenants, error);
        if (status != KV_OK) {
            free(tenants);
            return status;
        }
    } else {
        tenants->list = kv_allocate_array(1, sizeof *tenants->list);
        tenants->list[0] = kv_allocate(sizeof **tenants->list);
        tenants->list[0]->holder_count = 1;
        tenants->list[0]->cache_modes = ALL_MODES;
        tenants->count = 1;
    }
    *tenants_out = tenants;
    return KV_OK;
}

void kv_tenants_close(kv_tenants_t *tenants)
{
    if (tenants != NULL) {
        free_list(tenants->list, tenants->count);
        free(tenants);
    }
}

bool kv_tenants_named(const kv_tenants_t *tenants)
{
    return tenants->path[0] != '\0';
}

/* ---- who it is ---- */

kv_tenant_t *kv_tenants_find(kv_tenants_t *tenants, const char *key)
{
    kv_tenant_t *found = NULL;
    if (!kv_tenants_named(tenants)) {
        found = tenants->list[0];
    } else if (key != NULL && strlen(key) <= KV_TENANT_KEY_BYTES_MAX) {
        uint8_t hash[KV_TENANT_HASH_BYTES];
        KV_CHECK(EVP_Digest(key, strlen(key), hash, NULL, EVP_sha256(), NULL) == 1);
        for (uint32_t i = 0; i < tenants->count; i++) {
            kv_tenant_t *tenant = tenants->list[i];
            for (uint32_t j = 0; j < tenant->hash_count; j++) {
                bool same = CRYPTO_memcmp(hash, tenant->hashes[j], sizeof hash) == 0;
                found = same ? tenant : found;
            }
        }
        OPENSSL_cleanse(hash, sizeof hash);
    }
    if (found != NULL) {
        found->holder_count++;
    }
    return found;
}

void kv_tenant_release(kv_tenant_t *tenant)
{
    if (tenant != NULL && --tenant->holder_count == 0) {
        OPENSSL_cleanse(tenant->salt, sizeof tenant->salt);
        free(tenant);
    }
}

void kv_tenants_visit(const kv_tenants_t *tenants,
    void (*visit)(void *context, const kv_tenant_t *tenant), void *context)
{
    for (uint32_t i = 0; kv_tenants_named(tenants) && i < tenants->count; i++) {
        visit(context, tenants->list[i]);
    }
}
