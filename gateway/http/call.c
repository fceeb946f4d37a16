#include "gateway/http/call.h"

#include <string.h>
#include <strings.h>

const char *kv_call_header(const kv_call_t *call, const char *name)
{
    for (size_t i = 0; i < call->headers.count; i++) {
        if (strcasecmp(call->headers.items[i].name, name) == 0) {
            return call->headers.items[i].value;
        }
    }
    return NULL;
}

const char *kv_call_query(const kv_call_t *call, const char *name)
{
    for (size_t i = 0; i < call->query.count; i++) {
        if (strcmp(call->query.items[i].name, name) == 0) {
            return call->query.items[i].value;
        }
    }
    return NULL;
}
