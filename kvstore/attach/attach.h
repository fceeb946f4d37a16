/* The store that is attached to its host's kvist-store: KV_ATTACHED_OPS (kvstore/store_ops.h).
 *
 * Device tier: this process's, as embedded. Host and disk tier: the service's
 * (kvstore/service/service.h), for all its clients. What differs for callers: kvist.h,
 * kvist_store_params_t.attach. */
#ifndef KV_KVSTORE_ATTACH_ATTACH_H
#define KV_KVSTORE_ATTACH_ATTACH_H

#include "kvstore/kvist.h"

/* How long is waited for the service. */
typedef struct {
    uint32_t match_ms; /* a match, for its answer; then it goes without until the service speaks */
    uint32_t call_ms;  /* other calls that answer at once */
    uint32_t lost_ms;  /* silent so long while something is asked, the connection is given up */
    uint32_t retry_ms; /* between attempts to connect */
    uint32_t close_ms; /* closing, for blocks that are still to be written through */
} kv_attach_bounds_t;

extern const kv_attach_bounds_t KV_ATTACH_BOUNDS;

/* kvist_store_open where params->attach is given; tests say other bounds. */
kv_status_t kv_attached_open(const kvist_store_params_t *params, const kv_attach_bounds_t *bounds,
    kvist_store_t **store_out, kv_error_t *error);

#endif
