/* A YAML file that holds one list of records: mappings whose fields are texts or lists of texts.
 *
 *   tenants:
 *     - name: team-a
 *       keys: [..., ...]
 *
 * What the texts mean, and their bounds, are the caller's.
 * Owns: every text of a kv_records_t, until kv_records_clear.
 * Threads: any.
 * Errors: KV_INVALID with file and line and what is wrong; KV_MISSING or KV_REFUSED for a file that
 * cannot be read. A field's value is never part of the error: it may be a secret.
 * Limits: a file of 1 MiB; lists of KV_OPTION_LIST_MAX. */
#ifndef KV_NODE_RECORDS_FILE_H
#define KV_NODE_RECORDS_FILE_H

#include "node/options.h"

enum { KV_RECORD_FIELDS_MAX = 24 };

typedef struct {
    const char *name;
    bool is_list;
} kv_record_field_t;

typedef struct {
    const char *name; /* of the list, the file's one key */
    const kv_record_field_t *fields;
    uint32_t field_count, record_count_max;
} kv_record_shape_t;

/* values: [record_count x field_count]; NULL items where the file said nothing, a text is a list of
 * one. */
typedef struct {
    kv_string_list_t *values;
    uint32_t record_count, field_count;
} kv_records_t;

/* An empty list, or an empty file, is no record. */
kv_status_t kv_records_read(
    const char *path, const kv_record_shape_t *shape, kv_records_t *records_out, kv_error_t *error);

/* Overwrites the texts before they are freed. */
void kv_records_clear(kv_records_t *records);

#endif
