/* The key file: the master keys that a store's ring of keys is wrapped with.
 *
 *   kvist-key 1
 *   64 hexadecimal digits: the key in force
 *   64 hexadecimal digits: one that was, until every store has been opened with the new one
 *
 * Threads: any; free of state.
 * Errors: name the file, and the line at most. */
#ifndef KV_KVSTORE_CRYPT_KEY_FILE_H
#define KV_KVSTORE_CRYPT_KEY_FILE_H

#include "kvstore/crypt/cipher.h"
#include "kvstore/disk/files.h"

enum { KV_MASTERS_MAX = 4 };

typedef struct {
    kv_secret_t keys[KV_MASTERS_MAX]; /* the first is in force */
    uint32_t count;
} kv_masters_t;

/* KV_MISSING: there is no such file; KV_REFUSED: others may read it; KV_INVALID: it holds no key.
 * The caller wipes what it got. */
kv_status_t kv_key_file_read(
    kv_files_t *files, const char *path, kv_masters_t *masters_out, kv_error_t *error);

#endif
