#include "gateway/http/tls.h"

#include "base/log.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 1 << 20 };

static const char CERTIFICATE[] = "gateway.tls_certificate", KEY[] = "gateway.tls_key";

static kv_status_t read_text(
    const char *option, const char *path, bool secret, char **text_out, kv_error_t *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is not waited for */
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) {
        int code = errno;
        if (fd >= 0) {
            close(fd);
        }
        return kv_fail_errno(error, code, "%s: %s", option, path);
    }
    kv_status_t status = KV_OK;
    if (!S_ISREG(info.st_mode) || info.st_size > FILE_BYTES_MAX) {
        status =
            kv_fail(error, KV_INVALID, "%s: %s: not a regular file of at most 1 MiB", option, path);
    } else if (secret && (info.st_mode & 077) != 0) {
        status = kv_fail(error, KV_REFUSED, "%s: %s: mode %03o lets others read it: chmod 600",
            option, path, (unsigned)info.st_mode & 0777);
    }
    if (status == KV_OK) {
        char *text = kv_allocate((size_t)info.st_size + 1);
        ssize_t count = read(fd, text, (size_t)info.st_size);
        if (count != info.st_size) {
            int code = count < 0 ? errno : EIO;
            free(text);
            status = kv_fail_errno(error, code, "%s: %s", option, path);
        } else {
            *text_out = text;
        }
    }
    close(fd);
    return status;
}

/* A key that wants a passphrase is none for us: nobody is there to ask. */
static int no_passphrase(char *text, int bytes, int writing, void *context)
{
    (void)text;
    (void)bytes;
    (void)writing;
    (void)context;
    return -1;
}

static void check_time(const X509 *certificate, const char *path)
{
    if (X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0) {
        kv_log_warn("gateway", "%s: %s: has run out: clients will refuse it", CERTIFICATE, path);
    } else if (X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0) {
        kv_log_warn("gateway", "%s: %s: is not valid yet", CERTIFICATE, path);
    }
}

/* The certificates after the first one, of those that signed it: 0, or the place of the first that
 * cannot be read. */
static unsigned broken_in_chain(BIO *text)
{
    unsigned place = 1;
    X509 *certificate;
    do {
        place++;
        certificate = PEM_read_bio_X509(text, NULL, no_passphrase, NULL);
        X509_free(certificate);
    } while (certificate != NULL);
    bool is_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
    ERR_clear_error();
    return is_end ? 0 : place;
}

static kv_status_t check_pair(
    const kv_tls_t *tls, const char *certificate_path, const char *key_path, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    BIO *certificate_text = BIO_new_mem_buf(tls->certificate, -1);
    BIO *key_text = BIO_new_mem_buf(tls->key, -1);
    X509 *certificate = PEM_read_bio_X509(certificate_text, NULL, no_passphrase, NULL);
    EVP_PKEY *key = PEM_read_bio_PrivateKey(key_text, NULL, no_passphrase, NULL);
    unsigned broken;
    if (certificate == NULL) {
        status = kv_fail(error, KV_INVALID, "%s: %s: holds no certificate in PEM", CERTIFICATE,
            certificate_path);
    } else if (key == NULL) {
        status = kv_fail(error, KV_INVALID,
            "%s: %s: holds no private key in PEM without a passphrase", KEY, key_path);
    } else if (X509_check_private_key(certificate, key) != 1) {
        status = kv_fail(error, KV_INVALID, "%s: %s: is not the key of the certificate in %s", KEY,
            key_path, certificate_path);
    } else if ((broken = broken_in_chain(certificate_text)) > 0) {
        status = kv_fail(error, KV_INVALID, "%s: %s: certificate %u of it cannot be read",
            CERTIFICATE, certificate_path, broken);
    } else {
        check_time(certificate, certificate_path);
    }
    X509_free(certificate);
    EVP_PKEY_free(key);
    BIO_free(certificate_text);
    BIO_free(key_text);
    return status;
}

kv_status_t kv_tls_read(
    const char *certificate_path, const char *key_path, kv_tls_t *tls_out, kv_error_t *error)
{
    kv_tls_t tls = {0};
    bool has_certificate = certificate_path[0] != '\0', has_key = key_path[0] != '\0';
    if (!has_certificate && !has_key) {
        *tls_out = tls;
        return KV_OK;
    }
    if (has_certificate != has_key) {
        return kv_fail(error, KV_INVALID, "%s: is empty, but %s is set: both or neither",
            has_key ? CERTIFICATE : KEY, has_key ? KEY : CERTIFICATE);
    }
    kv_status_t status = read_text(CERTIFICATE, certificate_path, false, &tls.certificate, error);
    if (status == KV_OK) {
        status = read_text(KEY, key_path, true, &tls.key, error);
    }
    if (status == KV_OK) {
        status = check_pair(&tls, certificate_path, key_path, error);
    }
    if (status != KV_OK) {
        kv_tls_clear(&tls);
        return status;
    }
    *tls_out = tls;
    return KV_OK;
}

void kv_tls_clear(kv_tls_t *tls)
{
    free(tls->certificate);
    if (tls->key != NULL) {
        explicit_bzero(tls->key, strlen(tls->key));
    }
    free(tls->key);
    *tls = (kv_tls_t){0};
}
