/* Gemini's cachedContents: what clients stored under a name until a time, by tenant.
 *
 * A content is added in two steps, since its prompt is computed in between: a *draft* reserves room
 * and puts its document where a restart finds it; kv_contents_commit gives it its name's meaning.
 * Its expiry is a limit: from that moment on it is not there, whoever read it when. What it takes
 * is accounted in token-hours: tokens times the time that they were kept while this process ran.
 *
 * What ended leaves the table at once, and its files with the next kv_contents_clean.
 *
 * Owns: the table, the documents, the files.
 * Borrows: the clock, for its life.
 * Threads: any. One mutex guards the table, another one goes around files and is taken first; so
 * who only looks, or sweeps, never waits for a disk. Draft, commit, expire_at, remove and clean do:
 * they answer when what they did outlives a power cut.
 * Errors: KV_MISSING for a name that is not there, is expired, or is another tenant's: nobody can
 * tell which. KV_NO_SPACE names the bound. A file that does not read back as it was written is
 * dropped with a warning.
 * Limits: count_max contents and bytes_max of documents, a quarter of each for one tenant. */
#ifndef KV_GATEWAY_GEMINI_CONTENTS_H
#define KV_GATEWAY_GEMINI_CONTENTS_H

#include "base/clock.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_CONTENT_ID_BYTES = 16, /* letters and digits */
    KV_CONTENT_NAME_BYTES_MAX = 512,
    KV_CONTENT_MODEL_BYTES_MAX = 255,
    KV_CONTENT_TENANT_BYTES_MAX = 127,
};

typedef struct kv_contents kv_contents_t;
typedef struct kv_content_draft kv_content_draft_t;

typedef struct {
    const kv_clock_t *clock;
    const char *directory; /* NULL or "": nothing survives a restart. Made where it is missing */
    uint32_t count_max;
    uint64_t bytes_max;
} kv_contents_params_t;

/* A content as it was when it was asked for. */
typedef struct {
    char id[KV_CONTENT_ID_BYTES + 1];
    char model[KV_CONTENT_MODEL_BYTES_MAX + 1];
    char display_name[KV_CONTENT_NAME_BYTES_MAX + 1];
    uint64_t created_unix_ns, updated_unix_ns, expires_unix_ns;
    uint32_t token_count;
} kv_content_t;

/* Reads what the directory holds. */
kv_status_t kv_contents_open(
    const kv_contents_params_t *params, kv_contents_t **contents_out, kv_error_t *error);
void kv_contents_close(kv_contents_t *contents);

uint64_t kv_contents_now_unix_ns(const kv_contents_t *contents);

/* ---- a new one ---- */

/* content: model, display name and expiry; the rest is filled in. document: JSON, copied. */
kv_status_t kv_content_draft(kv_contents_t *contents, const char *tenant,
    const kv_content_t *content, const char *document, size_t bytes, kv_content_draft_t **draft_out,
    kv_error_t *error);

/* The draft's content is there from now on; the draft is used up. KV_MISSING: its time is over. */
kv_status_t kv_content_commit(
    kv_content_draft_t *draft, uint32_t token_count, kv_content_t *content_out, kv_error_t *error);

/* The draft never was; NULL: nothing. Waits for no disk. */
void kv_content_discard(kv_content_draft_t *draft);

/* ---- what is there ---- */

/* document_out (unless NULL): free() by the caller. */
kv_status_t kv_contents_get(kv_contents_t *contents, const char *tenant, const char *id,
    kv_content_t *content_out, char **document_out, size_t *bytes_out);

/* At most count_max of the tenant's, oldest first, after the one that the token of the page before
 * names ("": from the start). token_out: "" after the last page. KV_INVALID: no such token. */
enum { KV_CONTENTS_TOKEN_BYTES = 16 + KV_CONTENT_ID_BYTES + 1 };
kv_status_t kv_contents_list(kv_contents_t *contents, const char *tenant, const char *token,
    size_t count_max, kv_content_t *contents_out, size_t *count_out,
    char token_out[KV_CONTENTS_TOKEN_BYTES]);

/* Earlier or later. Where that cannot be kept, nothing is changed. */
kv_status_t kv_contents_expire_at(kv_contents_t *contents, const char *tenant, const char *id,
    uint64_t expires_unix_ns, kv_content_t *content_out, kv_error_t *error);

/* Whatever it answers but KV_MISSING, it is there no longer; it may come back with a restart where
 * that is another error. */
kv_status_t kv_contents_remove(
    kv_contents_t *contents, const char *tenant, const char *id, kv_error_t *error);

/* Now and then: lets go of what is expired, brings the account and its metrics up to now. Whether
 * kv_contents_clean has anything to do. */
bool kv_contents_sweep(kv_contents_t *contents);

/* Removes the files of what has ended. */
void kv_contents_clean(kv_contents_t *contents);

typedef struct {
    uint64_t content_count, token_count, document_bytes; /* now */
    double token_hours;                                  /* since the start */
} kv_contents_account_t;

/* Of one tenant, up to now. */
kv_contents_account_t kv_contents_account(kv_contents_t *contents, const char *tenant);

#endif
