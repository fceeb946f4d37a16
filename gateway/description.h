/* The description of the HTTP APIs: docs/openapi.json, put into the program as it is.
 *
 * Pure.
 * Threads: any. */
#ifndef KV_GATEWAY_DESCRIPTION_H
#define KV_GATEWAY_DESCRIPTION_H

#include <stddef.h>

/* JSON; of the program's own memory. */
const char *kv_description(size_t *bytes_out);

#endif
