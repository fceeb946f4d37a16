/* functionDeclarations to the lines that the chat template shows the model: functions as JSON
 * Schema describes them. Gemini's own schemas are of OpenAPI's kind, with types in capitals. */
#include "gateway/gemini/gemini_internal.h"

#include "base/check.h"
#include "base/memory.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FUNCTIONS_MAX = 512, NAME_BYTES_MAX = 128, SCHEMA_DEPTH_MAX = 64 };

static const kv_gemini_field_t TOOL_FIELDS[] = {{"functionDeclarations", KV_GEMINI_TAKEN},
    {"googleSearch", KV_GEMINI_TAKEN}, {"googleSearchRetrieval", KV_GEMINI_TAKEN},
    {"codeExecution", KV_GEMINI_TAKEN}, {"urlContext", KV_GEMINI_TAKEN},
    {"fileSearch", KV_GEMINI_TAKEN}, {"googleMaps", KV_GEMINI_TAKEN},
    {"computerUse", KV_GEMINI_TAKEN}, {"mcpServers", KV_GEMINI_TAKEN}};

static const kv_gemini_field_t FUNCTION_FIELDS[] = {{"name", KV_GEMINI_TAKEN},
    {"description", KV_GEMINI_TAKEN}, {"parameters", KV_GEMINI_TAKEN},
    {"parametersJsonSchema", KV_GEMINI_TAKEN}, {"response", KV_GEMINI_IGNORED},
    {"responseJsonSchema", KV_GEMINI_IGNORED}, {"behavior", KV_GEMINI_IGNORED}};

static const kv_gemini_field_t CONFIG_FIELDS[] = {{"functionCallingConfig", KV_GEMINI_TAKEN},
    {"retrievalConfig", KV_GEMINI_IGNORED},
    {"includeServerSideToolInvocations", KV_GEMINI_IGNORED}};

static const kv_gemini_field_t CALLING_FIELDS[] = {
    {"mode", KV_GEMINI_TAKEN}, {"allowedFunctionNames", KV_GEMINI_TAKEN}};

/* ---- schemas ---- */

static json_t *convert_schema(json_t *schema, unsigned depth);

static json_t *convert_each(json_t *schemas, unsigned depth)
{
    json_t *converted = json_is_array(schemas) ? json_array() : json_object(), *value;
    const char *name;
    size_t index;
    if (json_is_array(schemas)) {
        json_array_foreach(schemas, index, value)
        {
            json_array_append_new(converted, convert_schema(value, depth));
        }
        return converted;
    }
    json_object_foreach(schemas, name, value)
    {
        json_object_set_new(converted, name, convert_schema(value, depth));
    }
    return converted;
}

static json_t *lower(const json_t *text)
{
    char *copy = kv_duplicate_string(json_string_value(text));
    for (char *at = copy; *at != '\0'; at++) {
        *at = (char)tolower((unsigned char)*at);
    }
    json_t *lowered = json_string(copy);
    free(copy);
    return lowered;
}

/* The same with the types' names in small letters. Below the depth it stays as it is. */
static json_t *convert_schema(json_t *schema, unsigned depth)
{
    static const char *const NESTED[] = {"properties", "anyOf", "items", "additionalProperties"};
    if (!json_is_object(schema) || depth == SCHEMA_DEPTH_MAX) {
        return json_incref(schema);
    }
    json_t *converted = json_object(), *value;
    const char *name;
    json_object_foreach(schema, name, value)
    {
        json_t *changed = NULL;
        if (strcmp(name, "type") == 0 && json_is_string(value)) {
            changed = lower(value);
        }
        for (int i = 0; i < 4 && changed == NULL; i++) {
            if (strcmp(name, NESTED[i]) == 0) {
                changed = i < 2 ? convert_each(value, depth + 1) : convert_schema(value, depth + 1);
            }
        }
        json_object_set_new(converted, name, changed != NULL ? changed : json_incref(value));
    }
    return converted;
}

/* ---- functions ---- */

static bool is_function_name(const json_t *value)
{
    const char *name = json_string_value(value);
    size_t bytes = name != NULL ? strlen(name) : 0;
    if (bytes == 0 || bytes > NAME_BYTES_MAX || !(isalpha((unsigned char)*name) || *name == '_')) {
        return false;
    }
    return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-") ==
           bytes;
}

/* The parameters' schema; absent: none are taken. false: *error. */
static bool take_parameters(
    const json_t *function, const char *where, json_t **schema_out, kv_api_error_t *error)
{
    json_t *own = kv_json_field(function, "parameters");
    json_t *standard = kv_json_field(function, "parametersJsonSchema");
    json_t *given = own != NULL ? own : standard;
    if (own != NULL && standard != NULL) {
        return KV_API_REFUSE(
            error, where, "%s: parameters and parametersJsonSchema exclude each other", where);
    }
    if (given != NULL && !json_is_object(given)) {
        return KV_API_REFUSE(error, where, "%s: the parameters must be an object, but got %s",
            where, kv_json_kind_name(given));
    }
    *schema_out = own != NULL        ? convert_schema(own, 0)
                  : standard != NULL ? json_incref(standard)
                                     : json_pack("{s:s,s:{}}", "type", "object", "properties");
    return true;
}

static bool take_function(
    kv_api_request_t *request, json_t *function, const char *where, kv_api_error_t *error)
{
    json_t *schema = NULL;
    if (!KV_GEMINI_CHECK_FIELDS(function, FUNCTION_FIELDS, where, error)) {
        return false;
    }
    json_t *name = json_object_get(function, "name");
    json_t *description = kv_json_field(function, "description");
    if (!is_function_name(name)) {
        return KV_API_REFUSE(error, where,
            "%s.name: must be 1 to %d of a-z, A-Z, 0-9, \"_.:-\", and begin with a letter or \"_\"",
            where, NAME_BYTES_MAX);
    }
    if (description != NULL && !json_is_string(description)) {
        return kv_json_wrong_type(
            where, "a function whose description is a string", description, error);
    }
    if (request->tool_count == FUNCTIONS_MAX) {
        return KV_API_REFUSE(error, "tools", "tools: more than %d functions", FUNCTIONS_MAX);
    }
    if (!take_parameters(function, where, &schema, error)) {
        return false;
    }
    json_t *inner = json_pack("{s:O}", "name", name);
    if (description != NULL) {
        json_object_set(inner, "description", description);
    }
    json_object_set_new(inner, "parameters", schema);
    json_t *line = json_pack("{s:s,s:o}", "type", "function", "function", inner);
    char *text = json_dumps(line, 0);
    KV_CHECK(text != NULL);
    char *kept = kv_api_keep(request, strlen(text) + 1);
    memcpy(kept, text, strlen(text));
    request->tools[request->tool_count++] = kept;
    free(text);
    json_decref(line);
    return true;
}

static bool take_tool(
    kv_api_request_t *request, json_t *tool, const char *where, kv_api_error_t *error)
{
    const char *name;
    json_t *value;
    if (!KV_GEMINI_CHECK_FIELDS(tool, TOOL_FIELDS, where, error)) {
        return false;
    }
    /* {} asks for Google's search too: what matters is that the name is there. */
    json_object_foreach(tool, name, value)
    {
        if (strcmp(name, "functionDeclarations") != 0 && !json_is_null(value)) {
            return KV_API_REFUSE(error, where,
                "%s.%s: this server has functions only, no tools of its own", where, name);
        }
    }
    json_t *functions = kv_json_field(tool, "functionDeclarations");
    if (functions != NULL && !json_is_array(functions)) {
        return kv_json_wrong_type(
            where, "a tool whose functionDeclarations are an array", functions, error);
    }
    for (size_t i = 0; i < json_array_size(functions); i++) {
        char place[96];
        snprintf(place, sizeof place, "%.40s.functionDeclarations[%zu]", where, i);
        if (!take_function(request, json_array_get(functions, i), place, error)) {
            return false;
        }
    }
    return true;
}

/* ---- whether they are called ---- */

/* called_out: the model may; NONE: it is as if there were no tools. */
static bool take_mode(json_t *document, bool *called_out, kv_api_error_t *error)
{
    static const char WHERE[] = "toolConfig.functionCallingConfig";
    json_t *config = kv_json_field(document, "toolConfig");
    *called_out = true;
    if (config == NULL) {
        return true;
    }
    if (!KV_GEMINI_CHECK_FIELDS(config, CONFIG_FIELDS, "toolConfig", error)) {
        return false;
    }
    json_t *calling = kv_json_field(config, "functionCallingConfig");
    if (calling == NULL) {
        return true;
    }
    if (!KV_GEMINI_CHECK_FIELDS(calling, CALLING_FIELDS, WHERE, error)) {
        return false;
    }
    const json_t *names = kv_json_field(calling, "allowedFunctionNames");
    const json_t *value = kv_json_field(calling, "mode");
    const char *mode = value != NULL ? json_string_value(value) : "AUTO";
    if (mode == NULL || strcmp(mode, "ANY") == 0 || strcmp(mode, "VALIDATED") == 0) {
        return KV_API_REFUSE(error, WHERE,
            "%s.mode: must be AUTO or NONE: this server cannot make the model call a function",
            WHERE);
    }
    if (names != NULL && !kv_json_is_nothing(names)) {
        return KV_API_REFUSE(
            error, WHERE, "%s.allowedFunctionNames: only with the mode ANY", WHERE);
    }
    *called_out = strcmp(mode, "NONE") != 0;
    return !*called_out || strcmp(mode, "AUTO") == 0 || strcmp(mode, "MODE_UNSPECIFIED") == 0 ||
           KV_API_REFUSE(error, WHERE, "%s.mode: must be AUTO or NONE", WHERE);
}

bool kv_gemini_take_tools(kv_api_request_t *request, json_t *document, kv_api_error_t *error)
{
    bool called;
    json_t *tools = kv_json_field(document, "tools");
    if (!take_mode(document, &called, error)) {
        return false;
    }
    if (tools != NULL && !json_is_array(tools)) {
        return kv_json_wrong_type("tools", "an array", tools, error);
    }
    if (json_array_size(tools) > 0) {
        request->tools = kv_allocate_array(FUNCTIONS_MAX, sizeof *request->tools);
    }
    for (size_t i = 0; i < json_array_size(tools); i++) {
        char where[32];
        snprintf(where, sizeof where, "tools[%zu]", i);
        if (!take_tool(request, json_array_get(tools, i), where, error)) {
            return false;
        }
    }
    if (!called) {
        request->tool_count = 0;
    }
    request->has_tools = request->tool_count > 0;
    return true;
}
