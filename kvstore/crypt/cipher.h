/* The cipher of what lies on disk: AES-256-GCM, HKDF-SHA256 and random bytes, by OpenSSL.
 *
 * A cipher encrypts or decrypts pieces under one key; a piece's number is its nonce. Rule: under
 * one key no number is used for two different pieces, ever. Who makes a cipher keeps it by making
 * its key from random bytes of its own (kvstore/disk/sealed.h).
 *
 * Owns: a cipher's key schedule, wiped with it.
 * Threads: any; a cipher belongs to one at a time.
 * Errors: kv_random alone can fail (KV_IO): no random bytes are to be had. What the library must be
 * able to do was tried by kv_cipher_check.
 * Limits: a piece has at most 2^31 - 1 bytes, far below what one nonce may encrypt (2^36 - 32). */
#ifndef KV_KVSTORE_CRYPT_CIPHER_H
#define KV_KVSTORE_CRYPT_CIPHER_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_SECRET_BYTES = 32, KV_TAG_BYTES = 16 };

typedef struct {
    uint8_t bytes[KV_SECRET_BYTES];
} kv_secret_t;

typedef struct kv_cipher kv_cipher_t;

/* Whether OpenSSL here has all of this; once, before anything else. */
kv_status_t kv_cipher_check(kv_error_t *error);

kv_status_t kv_random(void *bytes_out, size_t count);

/* HKDF-SHA256 (RFC 5869): another secret from this one; salt and label say which. */
kv_secret_t kv_secret_derive(
    const kv_secret_t *secret, const void *salt, size_t salt_bytes, const char *label);

/* In constant time. */
bool kv_bytes_equal(const void *left, const void *right, size_t count);
void kv_wipe(void *bytes, size_t count);

kv_cipher_t *kv_cipher_create(const kv_secret_t *key, bool encrypts);
void kv_cipher_destroy(kv_cipher_t *cipher);

/* What a piece's tag covers besides its bytes. */
typedef struct {
    const void *bytes;
    size_t count;
} kv_associated_t;

/* Encrypts a piece; sealed_out may be plain. tag_out: [KV_TAG_BYTES] */
void kv_cipher_seal(kv_cipher_t *cipher, uint32_t number, kv_associated_t associated,
    const void *plain, size_t count, void *sealed_out, void *tag_out);

/* The inverse. false: these are not the bytes that were encrypted under this key, number and
 * associated data; plain_out then holds nothing of use. */
bool kv_cipher_open(kv_cipher_t *cipher, uint32_t number, kv_associated_t associated,
    const void *sealed, size_t count, const void *tag, void *plain_out);

#endif
