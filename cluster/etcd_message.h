/* What etcd's HTTP gateway is asked and answers, as JSON: version 3 of its API, where keys and
 * values are base64 and 64-bit numbers are text. Pure functions.
 *
 * Threads: any.
 * Errors: KV_INVALID for an answer that is not of that form, KV_REFUSED for an error that etcd
 * reports, in its words; KV_MISSING where the error is that a lease is not there. */
#ifndef KV_CLUSTER_ETCD_MESSAGE_H
#define KV_CLUSTER_ETCD_MESSAGE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_ETCD_KEY_BYTES_MAX = 512, KV_ETCD_VALUE_BYTES_MAX = 64 << 10, KV_ETCD_LIST_MAX = 1024 };

/* ---- bodies, allocated ---- */

char *kv_etcd_grant(uint64_t ttl_s);
char *kv_etcd_lease(int64_t lease); /* of keepalive and revoke */
char *kv_etcd_put(const char *key, const char *value, int64_t lease);
char *kv_etcd_range(const char *prefix);
char *kv_etcd_watch(const char *prefix, int64_t from_revision);

/* ---- answers ---- */

/* An error that etcd reports: its sentence, or NULL where the text is none; allocated. missing_out
 * (may be NULL): what was asked for is not there. */
char *kv_etcd_error(const char *text, size_t bytes, bool *missing_out);

/* Of grant and keepalive. ttl 0: the lease is gone. */
kv_status_t kv_etcd_read_lease(
    const char *text, size_t bytes, int64_t *lease_out, int64_t *ttl_s_out, kv_error_t *error);

typedef struct {
    char key[KV_ETCD_KEY_BYTES_MAX + 1];
    char value[KV_ETCD_VALUE_BYTES_MAX + 1]; /* terminated; may hold anything */
    size_t value_bytes;
    int64_t revision; /* of its last change */
    bool deleted;
} kv_etcd_entry_t;

/* The entry is valid during the call. An entry that is too long, or no base64, is told as one of no
 * value. */
typedef void (*kv_etcd_visit_t)(void *context, const kv_etcd_entry_t *entry);

/* The entries of a range; more_out: there are more than KV_ETCD_LIST_MAX. */
kv_status_t kv_etcd_read_range(const char *text, size_t bytes, kv_etcd_visit_t visit, void *context,
    int64_t *revision_out, bool *more_out, kv_error_t *error);

/* One line of a watch. KV_CANCELLED: the watch ended, and why (compaction, ...). */
kv_status_t kv_etcd_read_watch(const char *text, size_t bytes, kv_etcd_visit_t visit, void *context,
    bool *created_out, kv_error_t *error);

#endif
