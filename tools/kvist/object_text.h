/* A stored block as `kvist show` and `kvist pin` print it.
 * Threads: any. */
#ifndef KV_TOOLS_OBJECT_TEXT_H
#define KV_TOOLS_OBJECT_TEXT_H

#include "proto/admin.pb-c.h"

#include <jansson.h>

void kv_object_print(const char *node, const Kvist__Admin__Object *object);
json_t *kv_object_pack(const char *node, const Kvist__Admin__Object *object);

#endif
