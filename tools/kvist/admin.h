/* Questions to a node's admin socket, as the commands ask them.
 * Threads: any; each blocks for at most its limit. */
#ifndef KV_TOOLS_ADMIN_H
#define KV_TOOLS_ADMIN_H

#include "base/status.h"
#include "proto/admin.pb-c.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_ADMIN_LIMIT_MS = 3000, KV_ADMIN_DISK_LIMIT_MS = 60000 };

/* Of a kvist-store with several domains: whose store the questions of this command are about, from
 * now on. NULL, as at first: the first one's. */
void kv_ask_about(const char *domain);

/* The reply's body is of the kind that was asked for; release with
 * kvist__admin__reply__free_unpacked(reply, NULL). */
kv_status_t kv_ask_status(const char *admin, Kvist__Admin__Reply **reply_out, kv_error_t *error);
kv_status_t kv_ask_list(
    const char *admin, uint32_t count_max, Kvist__Admin__Reply **reply_out, kv_error_t *error);

/* key: the beginning of a block's key. KV_MISSING: not stored there. */
kv_status_t kv_ask_show(
    const char *admin, const char *key, Kvist__Admin__Reply **reply_out, kv_error_t *error);
kv_status_t kv_ask_drop(const char *admin, const char *key, bool erase,
    Kvist__Admin__Reply **reply_out, kv_error_t *error);
/* KV_MISSING: nothing is stored of the tenant there. */
kv_status_t kv_ask_drop_tenant(
    const char *admin, const char *tenant, Kvist__Admin__Reply **reply_out, kv_error_t *error);

kv_status_t kv_ask_pin(const char *admin, const char *key, uint64_t until_unix_ns,
    Kvist__Admin__Reply **reply_out, kv_error_t *error);
kv_status_t kv_ask_verify(
    const char *admin, bool start, Kvist__Admin__Reply **reply_out, kv_error_t *error);

/* What the question sets is set first. */
kv_status_t kv_ask_quota(const char *admin, const Kvist__Admin__QuotaRequest *question,
    Kvist__Admin__Reply **reply_out, kv_error_t *error);

/* The next batch of the node's KV events; the node keeps nothing of who asks. */
kv_status_t kv_ask_events(const char *admin, const Kvist__Admin__EventsRequest *question,
    Kvist__Admin__Reply **reply_out, kv_error_t *error);

/* KV_MISSING: the node does not know the request. */
kv_status_t kv_ask_why(const char *admin, const Kvist__Admin__WhyRequest *question,
    Kvist__Admin__Reply **reply_out, kv_error_t *error);

/* Of a gateway. KV_MISSING: it does not know the request. */
kv_status_t kv_ask_explain(
    const char *admin, const char *request_id, Kvist__Admin__Reply **reply_out, kv_error_t *error);

/* Everything stored before is durable when it returns KV_OK. */
kv_status_t kv_ask_flush(const char *admin, uint64_t limit_ms, kv_error_t *error);
kv_status_t kv_ask_metrics(const char *admin, Kvist__Admin__Reply **reply_out, kv_error_t *error);
kv_status_t kv_ask_stop(const char *admin, kv_error_t *error);
kv_status_t kv_ask_drain(const char *admin, kv_error_t *error);

#endif
