/* A certificate and its key, read from PEM files and checked before they are used.
 *
 * Owns: both texts, until kv_tls_clear.
 * Threads: any.
 * Errors: KV_INVALID, KV_MISSING or KV_REFUSED with the option's name, the file and what is wrong;
 * never a part of the key. A certificate that has run out or is not yet valid is only logged: a
 * client decides.
 * Limits: files of 1 MiB; keys without a passphrase. */
#ifndef KV_GATEWAY_TLS_H
#define KV_GATEWAY_TLS_H

#include "base/status.h"

typedef struct {
    char *certificate, *key; /* NULL: no TLS */
} kv_tls_t;

/* Both paths empty: no TLS, KV_OK. The certificate's file may hold its chain, the key must be the
 * first one's; its file must be readable by its owner alone. */
kv_status_t kv_tls_read(
    const char *certificate_path, const char *key_path, kv_tls_t *tls_out, kv_error_t *error);
void kv_tls_clear(kv_tls_t *tls);

#endif
