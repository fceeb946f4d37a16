/* For `kvist bench` alone: a store that does not verify what it loads, to tell what that costs.
 *
 * Nothing that such a store hands out may be used for anything but its time. */
#ifndef KV_KVSTORE_UNVERIFIED_H
#define KV_KVSTORE_UNVERIFIED_H

#include "kvstore/kvist.h"

kv_status_t kv_store_open_unverified(
    const kvist_store_params_t *params, kvist_store_t **store_out, kv_error_t *error);

#endif
