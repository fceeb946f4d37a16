/* The keys of what a store encrypts: a master key from the key file, and one random secret for each
 * tenant, which nothing can make again once it is gone.
 *
 *   KEY_FILE              "kvist-key 1" and the master key; further ones only to be replaced
 *   KEY_FILE.RING         the store's ring: a sector for each tenant's secret, wrapped
 *   DIRECTORY/keys        which ring, and by what a wrong master key is known
 *
 *   secret of a tenant:   32 random bytes, on disk under AES-256-GCM with the key
 *                         HKDF(master, the secret's id): one key for each id, one use of it
 *
 * Rules:
 *  1. A secret is durable before it is given out: no record needs one that a crash could lose.
 *  2. The ring lies beside the key file, not in the store's directory: no copy of that, of whatever
 *     age, holds what a dropped tenant's records were encrypted with.
 *  3. A secret's sector is written over in place when its tenant is dropped. A torn write leaves
 *     the old sector or the new one.
 *  4. A ring that cannot be read in full is an error, never an empty one.
 *
 * The byte layouts are in docs/formats.md.
 * Owns: the ring's file, locked; secrets in memory that is left out of core dumps, and wiped.
 * Borrows: the table of files.
 * Threads: any. One lock guards the table of secrets, for as long as it takes to copy one; another
 * keeps those in order who change the file, and is held while they wait for the disk.
 * Errors: name the file and what to do. Secrets are never part of one.
 * Limits: KV_KEYS_MAX tenants. */
#ifndef KV_KVSTORE_CRYPT_KEYRING_H
#define KV_KVSTORE_CRYPT_KEYRING_H

#include "kvstore/crypt/cipher.h"
#include "kvstore/disk/files.h"

enum { KV_KEY_ID_BYTES = 16, KV_KEYS_MAX = 65535 };

typedef struct kv_keyring kv_keyring_t;

/* What a record says of its key. */
typedef struct {
    uint32_t slot; /* in the ring: where to look */
    uint8_t bytes[KV_KEY_ID_BYTES];
} kv_key_id_t;

/* The ring of the store in `folder`, made when it is the first time; *ring_out is NULL where
 * key_file is, and nothing there was ever encrypted. KV_REFUSED: another key than the one that the
 * folder's records were encrypted with, none, or a file that others may read; KV_MISSING,
 * KV_CORRUPT, KV_INVALID: of the key file or the ring. */
kv_status_t kv_keyring_open(kv_files_t *files, const char *key_file, const char *folder,
    kv_keyring_t **ring_out, kv_error_t *error);
void kv_keyring_close(kv_keyring_t *ring);

/* The tenant's key, for a record that is to be written. Made, and durable, where it is the first
 * time: that blocks. KV_NO_SPACE, KV_IO: it cannot be made. */
kv_status_t kv_keyring_take(kv_keyring_t *ring, const char *tenant, kv_key_id_t *id_out,
    kv_secret_t *secret_out, kv_error_t *error);

/* The key that a record names; false: its tenant was dropped, or this is not the whole ring. */
bool kv_keyring_find(kv_keyring_t *ring, const kv_key_id_t *id, kv_secret_t *secret_out);

/* Whether the tenant has a key. */
bool kv_keyring_has(kv_keyring_t *ring, const char *tenant);

/* From now on the tenant's keys are neither found nor taken: who takes one gets a new one. */
void kv_keyring_retire(kv_keyring_t *ring, const char *tenant);

/* Destroys all retired keys, durably; blocks. */
kv_status_t kv_keyring_destroy_retired(kv_keyring_t *ring, kv_error_t *error);

#endif
