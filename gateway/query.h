/* What a call's query says, checked: a field that is absent leaves *value_out as it is.
 *
 * Pure.
 * Threads: any.
 * Errors: false, and *error names the field and its bound. */
#ifndef KV_GATEWAY_QUERY_H
#define KV_GATEWAY_QUERY_H

#include "gateway/api.h"

#include <stdbool.h>
#include <stdint.h>

bool kv_query_number(const kv_call_t *call, const char *field, uint64_t least, uint64_t most,
    uint64_t *value_out, kv_api_error_t *error);

/* One of the names, which end with NULL; its place. */
bool kv_query_choice(const kv_call_t *call, const char *field, const char *const *names,
    int *place_out, kv_api_error_t *error);

#endif
