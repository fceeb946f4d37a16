#include "gateway/query.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool kv_query_number(const kv_call_t *call, const char *field, uint64_t least, uint64_t most,
    uint64_t *value_out, kv_api_error_t *error)
{
    const char *text = kv_call_query(call, field);
    if (text == NULL) {
        return true;
    }
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value < least ||
        value > most) {
        return KV_API_REFUSE(error, field, "%s: must be a whole number, %" PRIu64 " to %" PRIu64,
            field, least, most);
    }
    *value_out = value;
    return true;
}

bool kv_query_choice(const kv_call_t *call, const char *field, const char *const *names,
    int *place_out, kv_api_error_t *error)
{
    const char *text = kv_call_query(call, field);
    char listed[128] = "";
    if (text == NULL) {
        return true;
    }
    for (int i = 0; names[i] != NULL; i++) {
        size_t at = strlen(listed);
        snprintf(listed + at, sizeof listed - at, "%s%s", i > 0 ? ", " : "", names[i]);
        if (strcmp(names[i], text) == 0) {
            *place_out = i;
            return true;
        }
    }
    return KV_API_REFUSE(error, field, "%s: must be one of %s", field, listed);
}
