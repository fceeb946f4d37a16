#include "kvstore/crypt/cipher.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"

#include <limits.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdlib.h>

enum { NONCE_BYTES = 12 };

struct kv_cipher {
    EVP_CIPHER_CTX *context;
};

/* Looked up once: a look-up by name costs more than a block's encryption. Never released: threads
 * may outlive any place where that could be done. */
static EVP_CIPHER *gcm;
static EVP_KDF *hkdf;
static pthread_once_t fetched = PTHREAD_ONCE_INIT;

static void fetch(void)
{
    gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    hkdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
}

kv_status_t kv_cipher_check(kv_error_t *error)
{
    pthread_once(&fetched, fetch);
    uint8_t bytes[KV_SECRET_BYTES];
    if (gcm == NULL || hkdf == NULL || kv_random(bytes, sizeof bytes) != KV_OK) {
        return kv_fail(error, KV_FATAL,
            "OpenSSL here has no AES-256-GCM, no HKDF or no random bytes: nothing can be "
            "encrypted");
    }
    return KV_OK;
}

kv_status_t kv_random(void *bytes_out, size_t count)
{
    return RAND_bytes(bytes_out, (int)count) == 1 ? KV_OK : KV_IO;
}

kv_secret_t kv_secret_derive(
    const kv_secret_t *secret, const void *salt, size_t salt_bytes, const char *label)
{
    kv_secret_t derived;
    EVP_KDF_CTX *context = EVP_KDF_CTX_new(hkdf);
    KV_CHECK(context != NULL);
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)"SHA256", 0),
        OSSL_PARAM_construct_octet_string(
            OSSL_KDF_PARAM_KEY, (void *)secret->bytes, sizeof secret->bytes),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)salt, salt_bytes),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)label, strlen(label)),
        OSSL_PARAM_construct_end(),
    };
    KV_CHECK(EVP_KDF_derive(context, derived.bytes, sizeof derived.bytes, params) == 1);
    EVP_KDF_CTX_free(context);
    return derived;
}

bool kv_bytes_equal(const void *left, const void *right, size_t count)
{
    return CRYPTO_memcmp(left, right, count) == 0;
}

void kv_wipe(void *bytes, size_t count)
{
    OPENSSL_cleanse(bytes, count);
}

kv_cipher_t *kv_cipher_create(const kv_secret_t *key, bool encrypts)
{
    kv_cipher_t *cipher = kv_allocate(sizeof *cipher);
    cipher->context = EVP_CIPHER_CTX_new();
    KV_CHECK(cipher->context != NULL);
    KV_CHECK(EVP_CipherInit_ex2(cipher->context, gcm, key->bytes, NULL, encrypts, NULL) == 1);
    return cipher;
}

void kv_cipher_destroy(kv_cipher_t *cipher)
{
    if (cipher != NULL) {
        EVP_CIPHER_CTX_free(cipher->context); /* wipes */
        free(cipher);
    }
}

/* All of a piece but its tag. */
static void run(kv_cipher_t *cipher, uint32_t number, kv_associated_t associated, const void *from,
    size_t count, void *to)
{
    uint8_t nonce[NONCE_BYTES] = {0};
    int moved;
    KV_CHECK(count <= INT_MAX && associated.count <= INT_MAX);
    kv_put_u32(nonce, number);
    KV_CHECK(EVP_CipherInit_ex2(cipher->context, NULL, NULL, nonce, -1, NULL) == 1);
    KV_CHECK(EVP_CipherUpdate(
                 cipher->context, NULL, &moved, associated.bytes, (int)associated.count) == 1);
    KV_CHECK(EVP_CipherUpdate(cipher->context, to, &moved, from, (int)count) == 1);
}

void kv_cipher_seal(kv_cipher_t *cipher, uint32_t number, kv_associated_t associated,
    const void *plain, size_t count, void *sealed_out, void *tag_out)
{
    uint8_t rest[1]; /* a stream has none */
    int moved;
    run(cipher, number, associated, plain, count, sealed_out);
    KV_CHECK(EVP_CipherFinal_ex(cipher->context, rest, &moved) == 1);
    KV_CHECK(EVP_CIPHER_CTX_ctrl(cipher->context, EVP_CTRL_AEAD_GET_TAG, KV_TAG_BYTES, tag_out));
}

bool kv_cipher_open(kv_cipher_t *cipher, uint32_t number, kv_associated_t associated,
    const void *sealed, size_t count, const void *tag, void *plain_out)
{
    uint8_t rest[1];
    int moved;
    run(cipher, number, associated, sealed, count, plain_out);
    KV_CHECK(
        EVP_CIPHER_CTX_ctrl(cipher->context, EVP_CTRL_AEAD_SET_TAG, KV_TAG_BYTES, (void *)tag));
    return EVP_CipherFinal_ex(cipher->context, rest, &moved) == 1;
}
