#include "gateway/gemini/gemini_internal.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { NAME_BYTES = 96 };

/* "system_instruction" as "systemInstruction"; false: it is no such name. */
static bool make_camel(const char *name, char camel_out[NAME_BYTES])
{
    size_t bytes = 0;
    bool upper = false;
    if (name[0] == '_' || strchr(name, '_') == NULL || strlen(name) >= NAME_BYTES) {
        return false;
    }
    for (; *name != '\0'; name++) {
        if (*name == '_') {
            upper = true;
            continue;
        }
        camel_out[bytes++] = upper ? (char)toupper((unsigned char)*name) : *name;
        upper = false;
    }
    camel_out[bytes] = '\0';
    return true;
}

/* Snake to camel, each name once. */
static bool rename_fields(json_t *object, const char *where, kv_api_error_t *error)
{
    const char *name;
    json_t *value;
    void *next;
    json_object_foreach_safe(object, next, name, value)
    {
        char camel[NAME_BYTES];
        if (!make_camel(name, camel)) {
            continue;
        }
        if (json_object_get(object, camel) != NULL) {
            return KV_API_REFUSE(error, where, "%s%s\"%s\" is said twice, as %.64s too", where,
                where[0] != '\0' ? ": " : "", camel, name);
        }
        json_object_set(object, camel, value);
        json_object_del(object, name);
    }
    return true;
}

static bool check_field(const char *name, const json_t *value, const kv_gemini_field_t *fields,
    size_t count, const char *where, kv_api_error_t *error)
{
    char param[2 * NAME_BYTES];
    snprintf(param, sizeof param, "%.95s%s%.64s", where, where[0] != '\0' ? "." : "", name);
    for (size_t i = 0; i < count; i++) {
        if (strcmp(fields[i].name, name) != 0) {
            continue;
        }
        return fields[i].use != KV_GEMINI_REFUSED || json_is_null(value) ||
               kv_json_is_nothing(value) ||
               KV_API_REFUSE(error, param, "%s: not supported by this server", param);
    }
    return KV_API_REFUSE(error, param, "unknown name \"%.64s\"%s%s: the API has no such field",
        name, where[0] != '\0' ? " at " : "", where);
}

bool kv_gemini_check_fields(json_t *object, const kv_gemini_field_t *fields, size_t count,
    const char *where, kv_api_error_t *error)
{
    const char *name;
    json_t *value;
    if (!json_is_object(object)) {
        return kv_json_wrong_type(
            where[0] != '\0' ? where : "the body", "an object", object, error);
    }
    if (!rename_fields(object, where, error)) {
        return false;
    }
    json_object_foreach(object, name, value)
    {
        if (!check_field(name, value, fields, count, where, error)) {
            return false;
        }
    }
    return true;
}

bool kv_gemini_check_model(const char *name, const kv_api_limits_t *limits, kv_api_error_t *error)
{
    const char *bare = strncmp(name, "models/", 7) == 0 ? name + 7 : name;
    return strcmp(bare, limits->model) == 0 ||
           kv_api_fail(error, 404, "model", "model_not_found",
               "models/%.100s is not served here; models/%.100s is", bare, limits->model);
}
