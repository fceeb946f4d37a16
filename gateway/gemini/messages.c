/* systemInstruction and contents to messages. A content becomes one message, but for the answers of
 * functions in it: each is a message of the role tool, in its place. */
#include "gateway/gemini/gemini_internal.h"

#include "base/check.h"
#include "base/memory.h"
#include "gateway/tool_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const kv_gemini_field_t CONTENT_FIELDS[] = {
    {"role", KV_GEMINI_TAKEN}, {"parts", KV_GEMINI_TAKEN}};

static const kv_gemini_field_t PART_FIELDS[] = {{"text", KV_GEMINI_TAKEN},
    {"functionCall", KV_GEMINI_TAKEN}, {"functionResponse", KV_GEMINI_TAKEN},
    {"thought", KV_GEMINI_TAKEN}, {"thoughtSignature", KV_GEMINI_IGNORED},
    {"partMetadata", KV_GEMINI_IGNORED}, {"inlineData", KV_GEMINI_REFUSED},
    {"fileData", KV_GEMINI_REFUSED}, {"executableCode", KV_GEMINI_REFUSED},
    {"codeExecutionResult", KV_GEMINI_REFUSED}, {"toolCall", KV_GEMINI_REFUSED},
    {"toolResponse", KV_GEMINI_REFUSED}, {"videoMetadata", KV_GEMINI_REFUSED},
    {"mediaResolution", KV_GEMINI_REFUSED}, {"mediaProcessing", KV_GEMINI_REFUSED},
    {"audioTranscription", KV_GEMINI_REFUSED}, {"speechMetadata", KV_GEMINI_REFUSED},
    {"documentMetadata", KV_GEMINI_REFUSED}, {"spreadsheetMetadata", KV_GEMINI_REFUSED},
    {"audioMetadata", KV_GEMINI_REFUSED}};

static const kv_gemini_field_t CALL_FIELDS[] = {
    {"id", KV_GEMINI_IGNORED}, {"name", KV_GEMINI_TAKEN}, {"args", KV_GEMINI_TAKEN}};

static const kv_gemini_field_t RESPONSE_FIELDS[] = {{"id", KV_GEMINI_IGNORED},
    {"name", KV_GEMINI_TAKEN}, {"response", KV_GEMINI_TAKEN}, {"parts", KV_GEMINI_REFUSED},
    {"willContinue", KV_GEMINI_REFUSED}, {"scheduling", KV_GEMINI_IGNORED}};

/* One message, while it is gathered. */
typedef struct {
    char *text;
    size_t bytes, capacity;
    kv_chat_call_t *calls; /* room for one of each part */
    size_t call_count;
    bool any;
} gathered_t;

static void gather(gathered_t *gathered, const char *text, size_t bytes)
{
    if (gathered->bytes + bytes > gathered->capacity) {
        gathered->capacity = 2 * (gathered->bytes + bytes) + 64;
        gathered->text = kv_reallocate(gathered->text, gathered->capacity, 1);
    }
    if (bytes > 0) {
        memcpy(gathered->text + gathered->bytes, text, bytes);
    }
    gathered->bytes += bytes;
    gathered->any = true;
}

static char *keep_text(kv_api_request_t *request, const char *text, size_t bytes)
{
    char *kept = kv_api_keep(request, bytes + 1);
    if (bytes > 0) {
        memcpy(kept, text, bytes);
    }
    return kept;
}

static kv_chat_message_t *add_message(
    kv_api_request_t *request, const char *role, const char *text, size_t bytes)
{
    kv_chat_message_t *message = &request->messages[request->message_count++];
    *message = (kv_chat_message_t){
        .role = role, .content = keep_text(request, text, bytes), .content_bytes = bytes};
    return message;
}

/* ---- parts ---- */

static bool gather_call(kv_api_request_t *request, gathered_t *gathered, json_t *call,
    const char *where, kv_api_error_t *error)
{
    if (!KV_GEMINI_CHECK_FIELDS(call, CALL_FIELDS, where, error)) {
        return false;
    }
    const char *name = json_string_value(json_object_get(call, "name"));
    const json_t *args = kv_json_field(call, "args");
    /* It stands in the prompt as it is. */
    if (name == NULL || !kv_tool_name_is_valid(name)) {
        return KV_API_REFUSE(error, where,
            "%s.name: must be the function's name: 1 to %d of a-z, A-Z, 0-9 and \"_.:-\"", where,
            KV_TOOL_NAME_BYTES_MAX);
    }
    if (args != NULL && !json_is_object(args)) {
        return KV_API_REFUSE(
            error, where, "%s.args: must be an object, but got %s", where, kv_json_kind_name(args));
    }
    char *text = args != NULL ? json_dumps(args, 0) : kv_duplicate_string("{}");
    KV_CHECK(text != NULL);
    gathered->calls[gathered->call_count++] =
        (kv_chat_call_t){.name = name, .arguments = keep_text(request, text, strlen(text))};
    gathered->any = true;
    free(text);
    return true;
}

static bool add_response(
    kv_api_request_t *request, json_t *response, const char *where, kv_api_error_t *error)
{
    if (!KV_GEMINI_CHECK_FIELDS(response, RESPONSE_FIELDS, where, error)) {
        return false;
    }
    const json_t *name = kv_json_field(response, "name");
    const json_t *value = kv_json_field(response, "response");
    if (!json_is_string(name)) {
        return KV_API_REFUSE(error, where, "%s.name: must be the function's name", where);
    }
    if (!json_is_object(value)) {
        return KV_API_REFUSE(error, where, "%s.response: must be an object, but %s%s", where,
            value != NULL ? "got " : "is missing", value != NULL ? kv_json_kind_name(value) : "");
    }
    char *text = json_dumps(value, 0);
    KV_CHECK(text != NULL);
    add_message(request, "tool", text, strlen(text));
    free(text);
    return true;
}

static void flush(kv_api_request_t *request, const char *role, gathered_t *gathered)
{
    if (gathered->any) {
        kv_chat_message_t *message = add_message(request, role, gathered->text, gathered->bytes);
        message->calls = gathered->calls;
        message->call_count = gathered->call_count;
    }
    gathered->bytes = gathered->call_count = 0;
    gathered->any = false;
}

/* What is in a part; nothing, or thoughts, which are the model's own: no message. */
static bool take_part(kv_api_request_t *request, json_t *part, const char *role,
    gathered_t *gathered, const char *where, kv_api_error_t *error)
{
    char place[96];
    bool thought = false;
    if (!KV_GEMINI_CHECK_FIELDS(part, PART_FIELDS, where, error) ||
        !kv_json_take_bool(part, "thought", where, &thought, error)) {
        return false;
    }
    json_t *text = kv_json_field(part, "text"), *call = kv_json_field(part, "functionCall");
    json_t *response = kv_json_field(part, "functionResponse");
    int kinds = (text != NULL) + (call != NULL) + (response != NULL);
    if (kinds != 1) {
        return KV_API_REFUSE(
            error, where, "%s: must have one of text, functionCall, functionResponse", where);
    }
    if (text != NULL && !json_is_string(text)) {
        return kv_json_wrong_type(where, "a part whose text is a string", text, error);
    }
    if (text != NULL && !thought) {
        gather(gathered, json_string_value(text), json_string_length(text));
    } else if (call != NULL) {
        snprintf(place, sizeof place, "%.70s.functionCall", where);
        return strcmp(role, "assistant") == 0
                   ? gather_call(request, gathered, call, place, error)
                   : KV_API_REFUSE(error, place, "%s: only in a content of the role model", place);
    } else if (response != NULL) {
        snprintf(place, sizeof place, "%.70s.functionResponse", where);
        flush(request, role, gathered);
        return strcmp(role, "user") == 0
                   ? add_response(request, response, place, error)
                   : KV_API_REFUSE(error, place, "%s: only in a content of the role user", place);
    }
    return true;
}

/* ---- contents ---- */

static bool take_role(
    const json_t *content, const char *where, const char **role_out, kv_api_error_t *error)
{
    const json_t *value = kv_json_field(content, "role");
    const char *name = json_string_value(value);
    *role_out = "user";
    if (value == NULL || (name != NULL && (strcmp(name, "user") == 0 || strcmp(name, "") == 0 ||
                                              strcmp(name, "function") == 0))) {
        return true;
    }
    if (name != NULL && strcmp(name, "model") == 0) {
        *role_out = "assistant";
        return true;
    }
    return KV_API_REFUSE(error, where, "%s.role: must be user or model", where);
}

/* role: NULL: as the content says. */
static bool take_content(kv_api_request_t *request, json_t *content, const char *role,
    const char *where, kv_api_error_t *error)
{
    if (!KV_GEMINI_CHECK_FIELDS(content, CONTENT_FIELDS, where, error) ||
        (role == NULL && !take_role(content, where, &role, error))) {
        return false;
    }
    json_t *parts = kv_json_field(content, "parts");
    if (parts != NULL && !json_is_array(parts)) {
        return kv_json_wrong_type(where, "a content whose parts are an array", parts, error);
    }
    if (json_array_size(parts) == 0) {
        return KV_API_REFUSE(error, where, "%s.parts: must not be empty", where);
    }
    gathered_t gathered = {
        .calls = kv_api_keep(request, json_array_size(parts) * sizeof(kv_chat_call_t))};
    bool good = true;
    for (size_t i = 0; good && i < json_array_size(parts); i++) {
        char place[96];
        snprintf(place, sizeof place, "%.64s.parts[%zu]", where, i);
        good = take_part(request, json_array_get(parts, i), role, &gathered, place, error);
    }
    if (good) {
        flush(request, role, &gathered);
    }
    free(gathered.text);
    return good;
}

/* Texts only, as documented; a string, and a list of them, as the clients of old send it, are not.
 */
static bool take_system(kv_api_request_t *request, json_t *document, kv_api_error_t *error)
{
    json_t *system = kv_json_field(document, "systemInstruction");
    if (system == NULL) {
        return true;
    }
    return take_content(request, system, "system", "systemInstruction", error);
}

size_t kv_gemini_messages_max(const json_t *document)
{
    size_t count = 2, index;
    const json_t *content;
    json_array_foreach(json_object_get(document, "contents"), index, content)
    {
        /* Text on either side of each answer of a function. */
        count += 2 * json_array_size(json_object_get(content, "parts")) + 1;
    }
    return count;
}

bool kv_gemini_take_messages(
    kv_api_request_t *request, json_t *document, bool needed, kv_api_error_t *error)
{
    json_t *contents = kv_json_field(document, "contents");
    if (contents != NULL && !json_is_array(contents)) {
        return kv_json_wrong_type("contents", "an array", contents, error);
    }
    if (needed && json_array_size(contents) == 0) {
        return KV_API_REFUSE(error, "contents", "contents: must not be empty");
    }
    if (!take_system(request, document, error)) {
        return false;
    }
    for (size_t i = 0; i < json_array_size(contents); i++) {
        char where[48];
        snprintf(where, sizeof where, "contents[%zu]", i);
        if (!take_content(request, json_array_get(contents, i), NULL, where, error)) {
            return false;
        }
    }
    if (request->message_count > KV_CHAT_MESSAGES_MAX) {
        return KV_API_REFUSE(error, "contents", "contents: %zu messages: at most %d",
            request->message_count, KV_CHAT_MESSAGES_MAX);
    }
    return true;
}
