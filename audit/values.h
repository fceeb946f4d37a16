/* Values that change from prompt to prompt and are not meant: times, ids, counts. Each is known by
 * its form alone, in whichever text it stands.
 *
 * Threads: any; pure. Errors: none.
 * Limits: a value begins at most KV_AUDIT_VALUE_BACK bytes before the place that is asked about. */
#ifndef KV_AUDIT_VALUES_H
#define KV_AUDIT_VALUES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_AUDIT_VALUE_BACK = 64 };

typedef enum {
    KV_VALUE_NONE,
    KV_VALUE_TIME,  /* date, time of day, both, seconds since 1970, "5 minutes ago" */
    KV_VALUE_ID,    /* UUID, hash, random id with or without a prefix */
    KV_VALUE_COUNT, /* a number */
} kv_value_kind_t;

typedef struct {
    kv_value_kind_t kind;
    uint32_t was_from, was_end, is_from, is_end;
} kv_value_pair_t;

/* Two texts are equal up to was_at and is_at and part there. Whether both have a value of one kind
 * at that place; it begins at or after `back` bytes before it. */
kv_value_pair_t kv_values_at(const char *was, uint32_t was_bytes, uint32_t was_at, const char *is,
    uint32_t is_bytes, uint32_t is_at, uint32_t back);

#endif
