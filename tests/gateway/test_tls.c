/* Certificates and keys that are taken, and those that are refused by name. */
#include "testing/testing.h"

#include "gateway/http/tls.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static char certificate_path[300], key_path[300], other_path[300], locked_path[300];

static void write_key(const char *path, EVP_PKEY *key, const char *passphrase)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(PEM_write_PrivateKey(file, key, passphrase != NULL ? EVP_aes_256_cbc() : NULL,
                         (unsigned char *)passphrase,
                         passphrase != NULL ? (int)strlen(passphrase) : 0, NULL, NULL),
        1);
    fclose(file);
    assert_int_equal(chmod(path, 0600), 0);
}

static void write_certificate(EVP_PKEY *key)
{
    X509 *certificate = X509_new();
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    assert_true(X509_sign(certificate, key, EVP_sha256()) > 0);
    FILE *file = fopen(certificate_path, "w");
    assert_non_null(file);
    assert_int_equal(PEM_write_X509(file, certificate), 1);
    fclose(file);
    X509_free(certificate);
}

static int make_files(void **state)
{
    (void)state;
    snprintf(certificate_path, sizeof certificate_path, "%s/certificate.pem", kv_test_folder());
    snprintf(key_path, sizeof key_path, "%s/key.pem", kv_test_folder());
    snprintf(other_path, sizeof other_path, "%s/other.pem", kv_test_folder());
    snprintf(locked_path, sizeof locked_path, "%s/locked.pem", kv_test_folder());
    EVP_PKEY *key = EVP_EC_gen("P-256"), *other = EVP_EC_gen("P-256");
    write_key(key_path, key, NULL);
    write_key(other_path, other, NULL);
    write_key(locked_path, key, "open sesame");
    write_certificate(key);
    EVP_PKEY_free(key);
    EVP_PKEY_free(other);
    return 0;
}

static void refuse(const char *certificate, const char *key, kv_status_t status,
    const char *expected, const char *place)
{
    kv_tls_t tls;
    kv_error_t error;
    assert_int_equal(kv_tls_read(certificate, key, &tls, &error), status);
    if (strstr(error.text, expected) == NULL || strstr(error.text, place) == NULL) {
        fail_msg("%s\n does not say %s and %s", error.text, expected, place);
    }
}

static void test_taken(void **state)
{
    (void)state;
    kv_tls_t tls;
    kv_error_t error;
    assert_int_equal(kv_tls_read(certificate_path, key_path, &tls, &error), KV_OK);
    assert_non_null(strstr(tls.certificate, "BEGIN CERTIFICATE"));
    assert_non_null(strstr(tls.key, "PRIVATE KEY"));
    kv_tls_clear(&tls);
    assert_null(tls.key);
    assert_int_equal(kv_tls_read("", "", &tls, &error), KV_OK);
    assert_null(tls.certificate);
}

static void test_refused(void **state)
{
    (void)state;
    refuse(certificate_path, "", KV_INVALID, "both or neither", "gateway.tls_key");
    refuse("", key_path, KV_INVALID, "both or neither", "gateway.tls_certificate");
    refuse("/nonexistent.pem", key_path, KV_MISSING, "/nonexistent.pem", "tls_certificate");
    refuse(certificate_path, "/nonexistent.pem", KV_MISSING, "/nonexistent.pem", "tls_key");
    refuse(kv_test_folder(), key_path, KV_INVALID, "regular file", "tls_certificate");
    refuse(key_path, key_path, KV_INVALID, "holds no certificate", key_path);
    refuse(certificate_path, other_path, KV_INVALID, "not the key", other_path);
    refuse(certificate_path, locked_path, KV_INVALID, "passphrase", locked_path);
    assert_int_equal(chmod(key_path, 0644), 0);
    refuse(certificate_path, key_path, KV_REFUSED, "chmod 600", key_path);
    assert_int_equal(chmod(key_path, 0600), 0);
}

static void append(const char *path, const char *text)
{
    FILE *file = fopen(path, "a");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* What comes after the first certificate is read too: clients are told all of it. */
static void test_chains(void **state)
{
    (void)state;
    kv_tls_t tls;
    kv_error_t error;
    char text[4096];
    FILE *file = fopen(certificate_path, "r");
    assert_non_null(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    append(certificate_path, "Words are passed over.\n");
    append(certificate_path, text);
    assert_int_equal(kv_tls_read(certificate_path, key_path, &tls, &error), KV_OK);
    kv_tls_clear(&tls);
    append(certificate_path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    refuse(certificate_path, key_path, KV_INVALID, "certificate 3 of it", certificate_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taken),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_chains),
    };
    return cmocka_run_group_tests(tests, make_files, NULL);
}
