/* The files of cachedContents, in one folder that belongs to one process at a time (lock).
 *
 *   ID.document   the JSON as it was given; written whole, and durable, before ID.content is
 *   ID.content    "kvist-content 1 CHECKSUM\n", then JSON: tenant, model, name, times, tokens,
 *                 and the document's size and checksum; replaced as a whole (ID.new, renamed)
 *
 * 1. A content is there when its ID.content is; a document without one is of a draft whose process
 *    ended, and goes at the next start.
 * 2. Nothing is served that does not agree with its checksums.
 * 3. What a call did outlives a power cut once it has answered KV_OK: files and the folder are
 *    synced. So calls wait for the disk, and none runs on the reactor's thread.
 *
 * Owns: the lock, while open.
 * Threads: any; calls for one id one at a time.
 * Errors: name the file, and the option where the folder cannot be used. */
#ifndef KV_GATEWAY_GEMINI_CONTENTS_FILE_H
#define KV_GATEWAY_GEMINI_CONTENTS_FILE_H

#include "gateway/gemini/contents.h"

#include <stdbool.h>

typedef struct kv_contents_folder kv_contents_folder_t;

typedef struct {
    kv_content_t content;
    char tenant[KV_CONTENT_TENANT_BYTES_MAX + 1];
    char *document; /* owned by whoever has the record */
    size_t document_bytes;
    uint64_t document_checksum; /* kv_checksum */
} kv_content_record_t;

/* Takes what it is given (the document too). */
typedef void (*kv_content_found_t)(void *context, kv_content_record_t *record);

/* Calls found() for every content. A folder that is not there is made by the first write. */
kv_status_t kv_contents_folder_open(const char *path, uint64_t document_bytes_max,
    kv_content_found_t found, void *context, kv_contents_folder_t **folder_out, kv_error_t *error);
void kv_contents_folder_close(kv_contents_folder_t *folder);

kv_status_t kv_contents_folder_write_document(
    kv_contents_folder_t *folder, const kv_content_record_t *record, kv_error_t *error);

/* The document itself is not looked at: it may be gone. */
kv_status_t kv_contents_folder_write_content(
    kv_contents_folder_t *folder, const kv_content_record_t *record, kv_error_t *error);

/* Both files of each id, whichever is there. */
kv_status_t kv_contents_folder_remove(kv_contents_folder_t *folder,
    const char (*ids)[KV_CONTENT_ID_BYTES + 1], size_t count, kv_error_t *error);

#endif
