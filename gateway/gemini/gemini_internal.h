/* What the parts of Gemini's dialect share. Every function that answers a bool fills in *error
 * where it answers false. */
#ifndef KV_GATEWAY_GEMINI_INTERNAL_H
#define KV_GATEWAY_GEMINI_INTERNAL_H

#include "gateway/gemini/gemini.h"
#include "gateway/json.h"

enum {
    KV_GEMINI_CHOICES_MAX = 8,
    KV_GEMINI_STOPS_MAX = 5,
    KV_GEMINI_DISPLAY_NAME_LETTERS_MAX = 128,
};

/* What a call asks for, by its path and method. */
typedef enum {
    KV_GEMINI_GENERATE,
    KV_GEMINI_STREAM, /* server-sent events */
    KV_GEMINI_ARRAY,  /* a JSON array that comes piece by piece */
    KV_GEMINI_COUNT,
    KV_GEMINI_CREATE,
    KV_GEMINI_PATCH,
    KV_GEMINI_DELETE,
} kv_gemini_kind_t;

/* kv_api_request_t.own */
typedef struct {
    kv_gemini_kind_t kind;
    kv_contents_t *contents;
    uint32_t tokens_min; /* of a cached content */
    char tenant[KV_CONTENT_TENANT_BYTES_MAX + 1];
    kv_content_draft_t *draft; /* of CREATE, until it is committed */
    kv_content_t content;      /* of CREATE and PATCH: as it is answered. Before that, of PATCH: id
                                  and its new expiry; of DELETE: the id */
} kv_gemini_own_t;

/* ---- fields.c ---- */

typedef enum {
    KV_GEMINI_TAKEN,
    KV_GEMINI_IGNORED, /* documented as without effect here */
    KV_GEMINI_REFUSED, /* unless it asks for nothing */
    KV_GEMINI_OUTPUT,  /* the server's to say: ignored where it comes in */
} kv_gemini_use_t;

typedef struct {
    const char *name;
    kv_gemini_use_t use;
} kv_gemini_field_t;

/* Renames the object's own names to lowerCamelCase, and refuses what the table does not allow.
 * where: the object's place, "" for the body. */
bool kv_gemini_check_fields(json_t *object, const kv_gemini_field_t *fields, size_t count,
    const char *where, kv_api_error_t *error);

#define KV_GEMINI_CHECK_FIELDS(object, fields, where, error)                                       \
    kv_gemini_check_fields(object, fields, sizeof(fields) / sizeof *(fields), where, error)

/* "models/NAME" or "NAME" is the model that is served. */
bool kv_gemini_check_model(const char *name, const kv_api_limits_t *limits, kv_api_error_t *error);

/* ---- messages.c, tools.c, config.c: what is common to requests and cachedContents ---- */

/* Adds the messages of systemInstruction and contents, which must be there if needed is; the
 * request's array has room for kv_gemini_messages_max of the document. */
size_t kv_gemini_messages_max(const json_t *document);
bool kv_gemini_take_messages(
    kv_api_request_t *request, json_t *document, bool needed, kv_api_error_t *error);

/* tools and toolConfig. */
bool kv_gemini_take_tools(kv_api_request_t *request, json_t *document, kv_api_error_t *error);

/* generationConfig. */
bool kv_gemini_take_config(kv_api_request_t *request, json_t *document,
    const kv_api_limits_t *limits, kv_api_error_t *error);

/* ---- parse.c ---- */

bool kv_gemini_parse(const kv_call_t *call, const kv_api_limits_t *limits,
    kv_api_request_t *request_out, kv_api_error_t *error);
void kv_gemini_release(void *own);

/* ---- cached.c: cachedContents ---- */

/* Whose contents the call may see: "" where nobody has a name. */
const char *kv_gemini_tenant(const kv_call_t *call);

/* "cachedContents/ID" or "ID" to ID; false: it is no such name. */
bool kv_gemini_content_id(const char *name, char id_out[KV_CONTENT_ID_BYTES + 1]);

/* 403, as there: nobody can tell a name that never was from another tenant's. */
bool kv_gemini_no_content(kv_api_error_t *error);

/* The content's document by the name that a request gave; NULL: *error says why. */
json_t *kv_gemini_load_content(const char *name, const char *tenant, kv_contents_t *contents,
    const kv_api_limits_t *limits, kv_content_t *content_out, kv_api_error_t *error);

bool kv_gemini_parse_create(json_t *document, kv_gemini_own_t *own, const kv_api_limits_t *limits,
    kv_api_request_t *request, kv_api_error_t *error);
bool kv_gemini_parse_patch(const kv_call_t *call, json_t *document, kv_gemini_own_t *own,
    const kv_api_limits_t *limits, kv_api_request_t *request, kv_api_error_t *error);

bool kv_gemini_parse_delete(const kv_call_t *call, kv_gemini_own_t *own,
    const kv_api_limits_t *limits, kv_api_request_t *request, kv_api_error_t *error);

/* The answer is complete, and stored as it should be: the content is there from now on, until
 * another time, or no longer (commit). */
bool kv_gemini_settle(const kv_answer_t *answer, kv_api_error_t *error);
bool kv_gemini_commit(kv_api_request_t *request, kv_api_error_t *error);

/* GET, on the reactor's thread. Answers the HTTP code; *body_out: to be freed. */
unsigned kv_gemini_serve_contents(
    const kv_call_t *call, kv_contents_t *contents, char **body_out, size_t *bytes_out);

/* ---- render.c ---- */

char *kv_gemini_whole(const kv_answer_t *answer, size_t *bytes_out);
char *kv_gemini_begin(const kv_answer_t *answer, size_t *bytes_out);
char *kv_gemini_event(const kv_answer_t *answer, const kv_choice_t *choice, size_t *bytes_out);
char *kv_gemini_end(const kv_answer_t *answer, size_t *bytes_out);
char *kv_gemini_error(
    const kv_api_error_t *error, const char *id, bool in_stream, size_t *bytes_out);
char *kv_gemini_array_error(
    const kv_api_error_t *error, const char *id, bool in_stream, size_t *bytes_out);
json_t *kv_gemini_content_object(const kv_content_t *content);
char *kv_gemini_models(const kv_api_limits_t *limits, size_t *bytes_out);
char *kv_gemini_model(const kv_api_limits_t *limits, size_t *bytes_out);

#endif
