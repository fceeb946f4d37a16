/* The domains that the options name, as the service takes them.
 *
 * Owns: every string and array, until kv_domains_clear.
 * Borrows: the options.
 * Threads: set-up only.
 * Errors: KV_INVALID names the domain and what is wrong. */
#ifndef KV_STORE_DOMAINS_H
#define KV_STORE_DOMAINS_H

#include "kvstore/service/service.h"
#include "node/options.h"

typedef struct {
    kv_service_domain_t items[KV_SERVICE_DOMAINS_MAX];
    uint32_t count; /* at least 1 */
} kv_domains_t;

kv_status_t kv_domains_read(
    const kv_options_t *options, kv_domains_t *domains_out, kv_error_t *error);
void kv_domains_clear(kv_domains_t *domains);

#endif
