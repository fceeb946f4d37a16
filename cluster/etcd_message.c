#include "cluster/etcd_message.h"

#include "base/memory.h"

#include <inttypes.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- base64 ---- */

static json_t *encode(const char *text, size_t bytes)
{
    unsigned char *digits = kv_allocate(bytes / 3 * 4 + 5);
    EVP_EncodeBlock(digits, (const unsigned char *)text, (int)bytes);
    json_t *encoded = json_string((const char *)digits);
    free(digits);
    return encoded;
}

/* The bytes, terminated; false where they are not base64 of at most capacity bytes. */
static bool decode(const json_t *encoded, char *bytes_out, size_t capacity, size_t *bytes_count_out)
{
    const char *digits = json_string_value(encoded);
    size_t count = json_string_length(encoded);
    if (digits == NULL || count == 0) { /* etcd leaves out what is empty */
        bytes_out[0] = '\0';
        *bytes_count_out = 0;
        return encoded == NULL || digits != NULL;
    }
    size_t padding = (digits[count - 1] == '=') + (count > 1 && digits[count - 2] == '=');
    if (count % 4 != 0 || count / 4 * 3 - padding > capacity ||
        strspn(digits, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") !=
            count - padding) {
        return false;
    }
    unsigned char *scratch = kv_allocate(count / 4 * 3 + 1);
    bool good = EVP_DecodeBlock(scratch, (const unsigned char *)digits, (int)count) >= 0;
    if (good) {
        *bytes_count_out = count / 4 * 3 - padding;
        memcpy(bytes_out, scratch, *bytes_count_out);
        bytes_out[*bytes_count_out] = '\0';
    }
    free(scratch);
    return good;
}

/* ---- bodies ---- */

static char *finish(json_t *object)
{
    char *text = json_dumps(object, JSON_COMPACT);
    json_decref(object);
    return text;
}

static json_t *number(int64_t value)
{
    char digits[32];
    snprintf(digits, sizeof digits, "%" PRId64, value);
    return json_string(digits);
}

char *kv_etcd_grant(uint64_t ttl_s)
{
    return finish(json_pack("{s:o}", "TTL", number((int64_t)ttl_s)));
}

char *kv_etcd_lease(int64_t lease)
{
    return finish(json_pack("{s:o}", "ID", number(lease)));
}

char *kv_etcd_put(const char *key, const char *value, int64_t lease)
{
    return finish(json_pack("{s:o, s:o, s:o}", "key", encode(key, strlen(key)), "value",
        encode(value, strlen(value)), "lease", number(lease)));
}

/* The first key after all that begin with the prefix. */
static json_t *encode_end(const char *prefix)
{
    char *end = kv_duplicate_string(prefix);
    end[strlen(end) - 1]++; /* '/': never the last byte value */
    json_t *encoded = encode(end, strlen(end));
    free(end);
    return encoded;
}

char *kv_etcd_range(const char *prefix)
{
    return finish(json_pack("{s:o, s:o, s:o}", "key", encode(prefix, strlen(prefix)), "range_end",
        encode_end(prefix), "limit", number(KV_ETCD_LIST_MAX)));
}

char *kv_etcd_watch(const char *prefix, int64_t from_revision)
{
    return finish(json_pack("{s:{s:o, s:o, s:o, s:b}}", "create_request", "key",
        encode(prefix, strlen(prefix)), "range_end", encode_end(prefix), "start_revision",
        number(from_revision), "progress_notify", 1));
}

/* ---- answers ---- */

/* etcd writes 64-bit numbers as text, leaves out zeros. */
static int64_t read_number(const json_t *object, const char *name)
{
    const json_t *field = json_object_get(object, name);
    if (json_is_integer(field)) {
        return json_integer_value(field);
    }
    return json_is_string(field) ? strtoll(json_string_value(field), NULL, 10) : 0;
}

/* The sentence of an error, in one of the forms that etcd's versions have. */
static const char *error_text(const json_t *object, bool *missing_out)
{
    const json_t *found = json_object_get(object, "error");
    if (json_is_object(found)) {
        *missing_out = read_number(found, "grpc_code") == 5 || read_number(found, "code") == 5;
        const char *message = json_string_value(json_object_get(found, "message"));
        return message != NULL ? message : "an error without a message";
    }
    *missing_out = read_number(object, "code") == 5; /* gRPC's NOT_FOUND */
    const char *message = json_string_value(found);
    return message != NULL ? message : json_string_value(json_object_get(object, "message"));
}

char *kv_etcd_error(const char *text, size_t bytes, bool *missing_out)
{
    json_t *object = json_loadb(text, bytes, 0, NULL);
    bool missing = false;
    const char *message = error_text(object, &missing);
    char *copy = message != NULL ? kv_duplicate_string(message) : NULL;
    json_decref(object);
    if (missing_out != NULL) {
        *missing_out = missing;
    }
    return copy;
}

/* The object of an answer or, in a stream, its "result"; to be released with json_decref. */
static kv_status_t load(const char *text, size_t bytes, json_t **object_out, kv_error_t *error)
{
    json_error_t cause;
    json_t *object = json_loadb(text, bytes, 0, &cause);
    if (!json_is_object(object)) {
        json_decref(object);
        return kv_fail(error, KV_INVALID, "its answer is no JSON object: %.100s",
            object == NULL ? cause.text : "another type");
    }
    bool missing;
    const char *message = error_text(object, &missing);
    if (message != NULL) {
        kv_fail(error, missing ? KV_MISSING : KV_REFUSED, "%.300s", message);
        json_decref(object);
        return missing ? KV_MISSING : KV_REFUSED;
    }
    json_t *result = json_object_get(object, "result");
    *object_out = json_incref(json_is_object(result) ? result : object);
    json_decref(object);
    return KV_OK;
}

kv_status_t kv_etcd_read_lease(
    const char *text, size_t bytes, int64_t *lease_out, int64_t *ttl_s_out, kv_error_t *error)
{
    json_t *object;
    kv_status_t status = load(text, bytes, &object, error);
    if (status != KV_OK) {
        return status;
    }
    int64_t lease = read_number(object, "ID"), ttl_s = read_number(object, "TTL");
    json_decref(object);
    if (lease == 0 || ttl_s < 0) {
        return kv_fail(error, KV_INVALID, "its answer names no lease");
    }
    *lease_out = lease;
    *ttl_s_out = ttl_s;
    return KV_OK;
}

/* false: no key to speak of. */
static bool read_entry(const json_t *kv, kv_etcd_entry_t *entry)
{
    size_t key_bytes;
    entry->revision = read_number(kv, "mod_revision");
    entry->value_bytes = 0;
    entry->value[0] = '\0';
    if (!decode(json_object_get(kv, "key"), entry->key, KV_ETCD_KEY_BYTES_MAX, &key_bytes) ||
        key_bytes == 0 || strlen(entry->key) != key_bytes) {
        return false;
    }
    if (!decode(json_object_get(kv, "value"), entry->value, KV_ETCD_VALUE_BYTES_MAX,
            &entry->value_bytes)) {
        entry->value[0] = '\0';
        entry->value_bytes = 0;
    }
    return true;
}

kv_status_t kv_etcd_read_range(const char *text, size_t bytes, kv_etcd_visit_t visit, void *context,
    int64_t *revision_out, bool *more_out, kv_error_t *error)
{
    json_t *object;
    kv_status_t status = load(text, bytes, &object, error);
    if (status != KV_OK) {
        return status;
    }
    int64_t revision = read_number(json_object_get(object, "header"), "revision");
    if (revision <= 0) {
        json_decref(object);
        return kv_fail(error, KV_INVALID, "its answer names no revision");
    }
    kv_etcd_entry_t *entry = kv_allocate(sizeof *entry);
    size_t index;
    json_t *kv;
    json_array_foreach(json_object_get(object, "kvs"), index, kv)
    {
        if (index < KV_ETCD_LIST_MAX && read_entry(kv, entry)) {
            visit(context, entry);
        }
    }
    free(entry);
    *revision_out = revision;
    *more_out = json_is_true(json_object_get(object, "more"));
    json_decref(object);
    return KV_OK;
}

kv_status_t kv_etcd_read_watch(const char *text, size_t bytes, kv_etcd_visit_t visit, void *context,
    bool *created_out, kv_error_t *error)
{
    json_t *object;
    kv_status_t status = load(text, bytes, &object, error);
    if (status != KV_OK) {
        return status;
    }
    int64_t compact_revision = read_number(object, "compact_revision");
    if (json_is_true(json_object_get(object, "canceled")) || compact_revision > 0) {
        const char *reason = json_string_value(json_object_get(object, "cancel_reason"));
        status = kv_fail(error, KV_CANCELLED, "the watch was ended: %.200s",
            reason != NULL         ? reason
            : compact_revision > 0 ? "its revision was compacted"
                                   : "no reason given");
        json_decref(object);
        return status;
    }
    kv_etcd_entry_t *entry = kv_allocate(sizeof *entry);
    size_t index;
    json_t *event;
    json_array_foreach(json_object_get(object, "events"), index, event)
    {
        const char *type = json_string_value(json_object_get(event, "type")); /* PUT: left out */
        entry->deleted = type != NULL && strcmp(type, "DELETE") == 0;
        if (read_entry(json_object_get(event, "kv"), entry)) {
            visit(context, entry);
        }
    }
    free(entry);
    *created_out = json_is_true(json_object_get(object, "created"));
    json_decref(object);
    return KV_OK;
}
