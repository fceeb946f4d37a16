#include "gateway/gemini/contents.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/checksum.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "gateway/gemini/contents_file.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define GONE "it is not there any more"

enum { TENANT_METRICS_MAX = 64, TENANT_PART = 4 };

static const double NS_PER_HOUR = 3600.0 * KV_NS_PER_S;

/* One tenant's sums; made with its first content, and kept. */
typedef struct {
    char name[KV_CONTENT_TENANT_BYTES_MAX + 1];
    kv_contents_account_t sums;
    uint64_t reserved_count; /* contents and drafts */
    uint64_t reserved_bytes;
    kv_metric_t *hours_metric, *tokens_metric, *count_metric; /* of "other" beyond a bound */
} tenant_t;

typedef struct {
    kv_content_record_t record;
    tenant_t *tenant;
    uint64_t accounted_unix_ns; /* up to here its token-hours were added */
} entry_t;

struct kv_content_draft {
    kv_contents_t *contents;
    entry_t *entry;
};

struct kv_contents {
    const kv_clock_t *clock;
    uint32_t count_max;
    uint64_t bytes_max;
    kv_contents_folder_t *folder; /* or NULL */
    pthread_mutex_t files_mutex;  /* around calls that change an ID.content; taken first */
    pthread_mutex_t mutex;        /* guards what follows; no file is touched under it */
    entry_t **entries;            /* by time of creation, then id */
    size_t count, capacity;
    tenant_t **tenants;
    size_t tenant_count;
    uint64_t reserved_count, reserved_bytes;
    char (*gone)[KV_CONTENT_ID_BYTES + 1]; /* whose files are to be removed */
    size_t gone_count;
};

uint64_t kv_contents_now_unix_ns(const kv_contents_t *contents)
{
    return contents->clock->unix_ns(contents->clock);
}

/* ---- tenants and their accounts; under the mutex ---- */

/* A tenant's name as a label; beyond the bound, and where it is no plain text, "other". */
static void name_metrics(kv_contents_t *contents, tenant_t *tenant)
{
    char labels[KV_CONTENT_TENANT_BYTES_MAX + 16];
    bool plain = tenant->name[0] == '\0' ||
                 (kv_text_is_plain(tenant->name, ' ', KV_CONTENT_TENANT_BYTES_MAX) &&
                     strpbrk(tenant->name, "\"\\") == NULL);
    snprintf(labels, sizeof labels, "tenant=\"%s\"",
        plain && contents->tenant_count < TENANT_METRICS_MAX ? tenant->name : "other");
    tenant->hours_metric = kv_metric_counter("kvist_gateway_content_token_hours_total", labels,
        "tokens of cachedContents times the hours that they were kept");
    tenant->tokens_metric =
        kv_metric_gauge("kvist_gateway_content_tokens", labels, "tokens of cachedContents now");
    tenant->count_metric = kv_metric_gauge("kvist_gateway_contents", labels, "cachedContents now");
}

static tenant_t *find_tenant(kv_contents_t *contents, const char *name)
{
    for (size_t i = 0; i < contents->tenant_count; i++) {
        if (strcmp(contents->tenants[i]->name, name) == 0) {
            return contents->tenants[i];
        }
    }
    return NULL;
}

static tenant_t *need_tenant(kv_contents_t *contents, const char *name)
{
    tenant_t *tenant = find_tenant(contents, name);
    if (tenant == NULL) {
        tenant = kv_allocate(sizeof *tenant);
        snprintf(tenant->name, sizeof tenant->name, "%s", name);
        name_metrics(contents, tenant);
        contents->tenants =
            kv_reallocate(contents->tenants, contents->tenant_count + 1, sizeof *contents->tenants);
        contents->tenants[contents->tenant_count++] = tenant;
    }
    return tenant;
}

/* direction: 1 where the entry comes into the table, -1 where it goes. */
static void count_entry(const entry_t *entry, int direction)
{
    kv_contents_account_t *sums = &entry->tenant->sums;
    uint64_t sign = (uint64_t)direction;
    sums->content_count += sign;
    sums->token_count += sign * entry->record.content.token_count;
    sums->document_bytes += sign * entry->record.document_bytes;
    kv_metric_add(
        entry->tenant->tokens_metric, direction * (double)entry->record.content.token_count);
    kv_metric_add(entry->tenant->count_metric, direction);
}

static void reserve(kv_contents_t *contents, tenant_t *tenant, uint64_t bytes)
{
    contents->reserved_count++;
    contents->reserved_bytes += bytes;
    tenant->reserved_count++;
    tenant->reserved_bytes += bytes;
}

static void unreserve(kv_contents_t *contents, const entry_t *entry)
{
    uint64_t bytes = entry->record.document_bytes;
    contents->reserved_count--;
    contents->reserved_bytes -= bytes;
    entry->tenant->reserved_count--;
    entry->tenant->reserved_bytes -= bytes;
}

/* Adds what it was kept since the last time; it costs nothing after its expiry. */
static void account(entry_t *entry, uint64_t now_unix_ns)
{
    const kv_content_t *content = &entry->record.content;
    uint64_t until =
        now_unix_ns < content->expires_unix_ns ? now_unix_ns : content->expires_unix_ns;
    if (until <= entry->accounted_unix_ns) {
        return;
    }
    double hours = (double)(until - entry->accounted_unix_ns) / NS_PER_HOUR;
    entry->accounted_unix_ns = until;
    entry->tenant->sums.token_hours += hours * content->token_count;
    kv_metric_add(entry->tenant->hours_metric, hours * content->token_count);
}

/* ---- the table; under the mutex ---- */

static void free_entry(entry_t *entry)
{
    free(entry->record.document);
    free(entry);
}

static int compare(const kv_content_t *left, uint64_t created_unix_ns, const char *id)
{
    if (left->created_unix_ns != created_unix_ns) {
        return left->created_unix_ns < created_unix_ns ? -1 : 1;
    }
    return strcmp(left->id, id);
}

static void insert(kv_contents_t *contents, entry_t *entry)
{
    const kv_content_t *content = &entry->record.content;
    if (contents->count == contents->capacity) {
        contents->capacity = 2 * contents->capacity + 16;
        contents->entries = kv_reallocate(contents->entries, contents->capacity, sizeof(entry_t *));
    }
    size_t at = contents->count++;
    for (; at > 0 && compare(&contents->entries[at - 1]->record.content, content->created_unix_ns,
                         content->id) > 0;
         at--) {
        contents->entries[at] = contents->entries[at - 1];
    }
    contents->entries[at] = entry;
    count_entry(entry, 1);
}

static void note_gone(kv_contents_t *contents, const char *id)
{
    if (contents->folder == NULL) {
        return;
    }
    contents->gone =
        kv_reallocate(contents->gone, contents->gone_count + 1, sizeof *contents->gone);
    snprintf(contents->gone[contents->gone_count++], sizeof *contents->gone, "%s", id);
}

static void remove_at(kv_contents_t *contents, size_t at)
{
    entry_t *entry = contents->entries[at];
    contents->count--;
    memmove(&contents->entries[at], &contents->entries[at + 1],
        (contents->count - at) * sizeof(entry_t *));
    count_entry(entry, -1);
    unreserve(contents, entry);
    note_gone(contents, entry->record.content.id);
    free_entry(entry);
}

/* Everything that ages does so here, at the beginning of each call: nobody meets what is expired.
 */
static void bring_up_to_now(kv_contents_t *contents)
{
    uint64_t now = kv_contents_now_unix_ns(contents);
    for (size_t i = contents->count; i-- > 0;) {
        account(contents->entries[i], now);
        if (contents->entries[i]->record.content.expires_unix_ns <= now) {
            remove_at(contents, i);
        }
    }
}

/* Under the files' mutex alone. */
static kv_status_t remove_files(kv_contents_t *contents, kv_error_t *error)
{
    pthread_mutex_lock(&contents->mutex);
    char(*gone)[KV_CONTENT_ID_BYTES + 1] = contents->gone;
    size_t count = contents->gone_count;
    contents->gone = NULL;
    contents->gone_count = 0;
    pthread_mutex_unlock(&contents->mutex);
    kv_status_t status = count > 0
                             ? kv_contents_folder_remove(contents->folder,
                                   (const char(*)[KV_CONTENT_ID_BYTES + 1]) gone, count, error)
                             : KV_OK;
    free(gone);
    return status;
}

void kv_contents_clean(kv_contents_t *contents)
{
    kv_error_t error;
    pthread_mutex_lock(&contents->files_mutex);
    if (remove_files(contents, &error) != KV_OK) {
        kv_log_warn("gateway", "%s", error.text);
    }
    pthread_mutex_unlock(&contents->files_mutex);
}

/* The place, or the count where the tenant has none of that id. */
static size_t place_of(const kv_contents_t *contents, const char *tenant, const char *id)
{
    size_t at = 0;
    while (at < contents->count && (strcmp(contents->entries[at]->record.content.id, id) != 0 ||
                                       strcmp(contents->entries[at]->tenant->name, tenant) != 0)) {
        at++;
    }
    return at;
}

/* ---- open and close ---- */

/* What a folder held. What expired meanwhile goes with the next call. */
static void on_found(void *context, kv_content_record_t *record)
{
    kv_contents_t *contents = context;
    entry_t *entry = kv_allocate(sizeof *entry);
    *entry = (entry_t){.record = *record,
        .tenant = need_tenant(contents, record->tenant),
        .accounted_unix_ns = kv_contents_now_unix_ns(contents)};
    reserve(contents, entry->tenant, record->document_bytes);
    insert(contents, entry);
}

kv_status_t kv_contents_open(
    const kv_contents_params_t *params, kv_contents_t **contents_out, kv_error_t *error)
{
    kv_contents_t *contents = kv_allocate(sizeof *contents);
    *contents = (kv_contents_t){
        .clock = params->clock, .count_max = params->count_max, .bytes_max = params->bytes_max};
    pthread_mutex_init(&contents->files_mutex, NULL);
    pthread_mutex_init(&contents->mutex, NULL);
    if (params->directory != NULL && params->directory[0] != '\0') {
        kv_status_t status = kv_contents_folder_open(
            params->directory, params->bytes_max, on_found, contents, &contents->folder, error);
        if (status != KV_OK) {
            kv_contents_close(contents);
            return status;
        }
    }
    bring_up_to_now(contents);
    kv_contents_clean(contents);
    if (contents->count > 0) {
        kv_log_info(
            "gateway", "cached contents %zu read from %s", contents->count, params->directory);
    }
    *contents_out = contents;
    return KV_OK;
}

void kv_contents_close(kv_contents_t *contents)
{
    if (contents == NULL) {
        return;
    }
    kv_contents_clean(contents);
    for (size_t i = 0; i < contents->count; i++) {
        count_entry(contents->entries[i], -1);
        free_entry(contents->entries[i]);
    }
    for (size_t i = 0; i < contents->tenant_count; i++) {
        free(contents->tenants[i]);
    }
    kv_contents_folder_close(contents->folder);
    pthread_mutex_destroy(&contents->mutex);
    pthread_mutex_destroy(&contents->files_mutex);
    free(contents->entries);
    free(contents->tenants);
    free(contents);
}

/* ---- a new one ---- */

static void make_id(char id_out[KV_CONTENT_ID_BYTES + 1])
{
    static const char DIGITS[] = "abcdefghijklmnopqrstuvwxyz234567";
    uint8_t bytes[KV_CONTENT_ID_BYTES];
    KV_CHECK(getrandom(bytes, sizeof bytes, 0) == (ssize_t)sizeof bytes);
    for (int i = 0; i < KV_CONTENT_ID_BYTES; i++) {
        id_out[i] = DIGITS[bytes[i] % 32];
    }
    id_out[KV_CONTENT_ID_BYTES] = '\0';
}

/* A named tenant has a part of what there is: none keeps the others out. */
static kv_status_t check_room(
    kv_contents_t *contents, const tenant_t *tenant, uint64_t bytes, kv_error_t *error)
{
    unsigned part = tenant->name[0] != '\0' ? TENANT_PART : 1;
    uint64_t count_max = contents->count_max / part, bytes_max = contents->bytes_max / part;
    if (contents->reserved_count >= contents->count_max || tenant->reserved_count >= count_max) {
        return kv_fail(error, KV_NO_SPACE,
            "there are %" PRIu64 " cached contents, %" PRIu64 " of them of this caller, who may "
            "have %" PRIu64 ": delete some",
            contents->reserved_count, tenant->reserved_count, count_max);
    }
    if (contents->reserved_bytes + bytes > contents->bytes_max ||
        tenant->reserved_bytes + bytes > bytes_max) {
        return kv_fail(error, KV_NO_SPACE,
            "%" PRIu64 " bytes more than the %" PRIu64 " of all cached contents, %" PRIu64
            " of this caller, who may have %" PRIu64 ": delete some",
            bytes, contents->reserved_bytes, tenant->reserved_bytes, bytes_max);
    }
    return KV_OK;
}

static kv_status_t reserve_entry(
    kv_contents_t *contents, const char *tenant_name, entry_t *entry, kv_error_t *error)
{
    pthread_mutex_lock(&contents->mutex);
    bring_up_to_now(contents);
    tenant_t *tenant = need_tenant(contents, tenant_name);
    kv_status_t status = check_room(contents, tenant, entry->record.document_bytes, error);
    if (status == KV_OK) {
        entry->tenant = tenant;
        reserve(contents, tenant, entry->record.document_bytes);
    }
    pthread_mutex_unlock(&contents->mutex);
    return status;
}

kv_status_t kv_content_draft(kv_contents_t *contents, const char *tenant,
    const kv_content_t *content, const char *document, size_t bytes, kv_content_draft_t **draft_out,
    kv_error_t *error)
{
    if (strlen(tenant) > KV_CONTENT_TENANT_BYTES_MAX || !kv_utf8_valid(tenant, strlen(tenant))) {
        return kv_fail(error, KV_INVALID, "the tenant's name is no UTF-8 of at most %d bytes",
            KV_CONTENT_TENANT_BYTES_MAX);
    }
    entry_t *entry = kv_allocate(sizeof *entry);
    kv_content_record_t *record = &entry->record;
    record->content = *content;
    record->document = kv_allocate(bytes + 1);
    record->document_bytes = bytes;
    record->document_checksum = kv_checksum(document, bytes);
    memcpy(record->document, document, bytes);
    snprintf(record->tenant, sizeof record->tenant, "%s", tenant);
    make_id(record->content.id);
    kv_status_t status = reserve_entry(contents, tenant, entry, error);
    if (status != KV_OK) {
        free_entry(entry);
        return status;
    }
    kv_content_draft_t *draft = kv_allocate(sizeof *draft);
    *draft = (kv_content_draft_t){contents, entry};
    if (contents->folder != NULL) {
        status = kv_contents_folder_write_document(contents->folder, record, error);
        if (status != KV_OK) {
            kv_content_discard(draft);
            return status;
        }
    }
    *draft_out = draft;
    return KV_OK;
}

kv_status_t kv_content_commit(
    kv_content_draft_t *draft, uint32_t token_count, kv_content_t *content_out, kv_error_t *error)
{
    kv_contents_t *contents = draft->contents;
    entry_t *entry = draft->entry;
    kv_content_t *content = &entry->record.content;
    uint64_t now = kv_contents_now_unix_ns(contents);
    kv_status_t status = KV_OK;
    content->created_unix_ns = content->updated_unix_ns = entry->accounted_unix_ns =
        now / KV_NS_PER_US * KV_NS_PER_US;
    content->token_count = token_count;
    if (content->expires_unix_ns <= now) {
        status = kv_fail(error, KV_MISSING, "it expired while it was being computed");
    } else if (contents->folder != NULL) {
        status = kv_contents_folder_write_content(contents->folder, &entry->record, error);
    }
    if (status != KV_OK) {
        kv_content_discard(draft);
        return status;
    }
    *content_out = *content;
    pthread_mutex_lock(&contents->mutex);
    bring_up_to_now(contents);
    insert(contents, entry);
    pthread_mutex_unlock(&contents->mutex);
    free(draft);
    return KV_OK;
}

void kv_content_discard(kv_content_draft_t *draft)
{
    if (draft == NULL) {
        return;
    }
    kv_contents_t *contents = draft->contents;
    pthread_mutex_lock(&contents->mutex);
    unreserve(contents, draft->entry);
    note_gone(contents, draft->entry->record.content.id);
    pthread_mutex_unlock(&contents->mutex);
    free_entry(draft->entry);
    free(draft);
}

/* ---- what is there ---- */

kv_status_t kv_contents_get(kv_contents_t *contents, const char *tenant, const char *id,
    kv_content_t *content_out, char **document_out, size_t *bytes_out)
{
    pthread_mutex_lock(&contents->mutex);
    bring_up_to_now(contents);
    size_t at = place_of(contents, tenant, id);
    bool found = at < contents->count;
    if (found) {
        const kv_content_record_t *record = &contents->entries[at]->record;
        *content_out = record->content;
        if (document_out != NULL) {
            *document_out = kv_allocate(record->document_bytes + 1);
            memcpy(*document_out, record->document, record->document_bytes);
            *bytes_out = record->document_bytes;
        }
    }
    pthread_mutex_unlock(&contents->mutex);
    return found ? KV_OK : KV_MISSING;
}

/* A token names the last one of its page by creation and id, so that one that has gone since does
 * not matter. */
static bool parse_token(const char *token, uint64_t *created_out, const char **id_out)
{
    uint8_t bytes[8];
    char digits[17];
    if (strlen(token) != KV_CONTENTS_TOKEN_BYTES - 1) {
        return false;
    }
    snprintf(digits, sizeof digits, "%.16s", token);
    *id_out = token + 16;
    bool good = kv_hex_decode(digits, bytes, sizeof bytes) == KV_OK;
    *created_out = good ? kv_get_u64(bytes) : 0;
    return good;
}

static void make_token(const kv_content_t *content, char token_out[KV_CONTENTS_TOKEN_BYTES])
{
    uint8_t bytes[8];
    kv_put_u64(bytes, content->created_unix_ns);
    kv_hex_encode(bytes, sizeof bytes, token_out);
    snprintf(token_out + 16, KV_CONTENTS_TOKEN_BYTES - 16, "%s", content->id);
}

kv_status_t kv_contents_list(kv_contents_t *contents, const char *tenant, const char *token,
    size_t count_max, kv_content_t *contents_out, size_t *count_out,
    char token_out[KV_CONTENTS_TOKEN_BYTES])
{
    uint64_t created = 0;
    const char *id = "";
    if (token[0] != '\0' && !parse_token(token, &created, &id)) {
        return KV_INVALID;
    }
    size_t count = 0;
    token_out[0] = '\0';
    pthread_mutex_lock(&contents->mutex);
    bring_up_to_now(contents);
    for (size_t i = 0; i < contents->count; i++) {
        const entry_t *entry = contents->entries[i];
        if (strcmp(entry->tenant->name, tenant) != 0 ||
            compare(&entry->record.content, created, id) <= 0) {
            continue;
        }
        if (count == count_max) {
            make_token(&contents_out[count - 1], token_out);
            break;
        }
        contents_out[count++] = entry->record.content;
    }
    pthread_mutex_unlock(&contents->mutex);
    *count_out = count;
    return KV_OK;
}

/* A copy of what ID.content is to say of it, the document left out. */
static kv_status_t copy_with_expiry(kv_contents_t *contents, const char *tenant, const char *id,
    uint64_t expires_unix_ns, kv_content_record_t *record_out, kv_error_t *error)
{
    pthread_mutex_lock(&contents->mutex);
    bring_up_to_now(contents);
    size_t at = place_of(contents, tenant, id);
    bool found = at < contents->count;
    if (found) {
        *record_out = contents->entries[at]->record;
        record_out->document = NULL;
        record_out->content.expires_unix_ns = expires_unix_ns;
        record_out->content.updated_unix_ns =
            kv_contents_now_unix_ns(contents) / KV_NS_PER_US * KV_NS_PER_US;
    }
    pthread_mutex_unlock(&contents->mutex);
    return found ? KV_OK : kv_fail(error, KV_MISSING, GONE);
}

/* It may have ended since it was looked at: then it has, whatever its file says now. */
static kv_status_t put_content(
    kv_contents_t *contents, const char *tenant, const kv_content_t *content, kv_error_t *error)
{
    pthread_mutex_lock(&contents->mutex);
    bring_up_to_now(contents);
    size_t at = place_of(contents, tenant, content->id);
    bool found = at < contents->count;
    if (found) {
        contents->entries[at]->record.content = *content;
    }
    pthread_mutex_unlock(&contents->mutex);
    return found ? KV_OK : kv_fail(error, KV_MISSING, GONE);
}

kv_status_t kv_contents_expire_at(kv_contents_t *contents, const char *tenant, const char *id,
    uint64_t expires_unix_ns, kv_content_t *content_out, kv_error_t *error)
{
    kv_content_record_t record;
    pthread_mutex_lock(&contents->files_mutex);
    kv_status_t status = copy_with_expiry(contents, tenant, id, expires_unix_ns, &record, error);
    if (status == KV_OK && contents->folder != NULL) {
        status = kv_contents_folder_write_content(contents->folder, &record, error);
    }
    if (status == KV_OK) {
        status = put_content(contents, tenant, &record.content, error);
    }
    pthread_mutex_unlock(&contents->files_mutex);
    if (status == KV_OK) {
        *content_out = record.content;
    }
    return status;
}

kv_status_t kv_contents_remove(
    kv_contents_t *contents, const char *tenant, const char *id, kv_error_t *error)
{
    pthread_mutex_lock(&contents->files_mutex);
    pthread_mutex_lock(&contents->mutex);
    bring_up_to_now(contents);
    size_t at = place_of(contents, tenant, id);
    bool found = at < contents->count;
    if (found) {
        remove_at(contents, at);
    }
    pthread_mutex_unlock(&contents->mutex);
    kv_status_t status = found ? remove_files(contents, error) : kv_fail(error, KV_MISSING, GONE);
    pthread_mutex_unlock(&contents->files_mutex);
    return status;
}

bool kv_contents_sweep(kv_contents_t *contents)
{
    pthread_mutex_lock(&contents->mutex);
    bring_up_to_now(contents);
    bool any = contents->gone_count > 0;
    pthread_mutex_unlock(&contents->mutex);
    return any;
}

kv_contents_account_t kv_contents_account(kv_contents_t *contents, const char *tenant)
{
    pthread_mutex_lock(&contents->mutex);
    bring_up_to_now(contents);
    const tenant_t *found = find_tenant(contents, tenant);
    kv_contents_account_t sums = found != NULL ? found->sums : (kv_contents_account_t){0};
    pthread_mutex_unlock(&contents->mutex);
    return sums;
}
