/* Numeric socket addresses. No name is ever looked up: a node's configuration says addresses, and
 * a look-up would block the reactor ("localhost" is read as 127.0.0.1).
 *
 * Threads: any.
 * Errors: KV_INVALID names the text. */
#ifndef KV_BASE_ADDRESS_H
#define KV_BASE_ADDRESS_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { KV_ADDRESS_TEXT_BYTES = 64 };

/* host: an IPv4 or IPv6 address. */
kv_status_t kv_address_from_parts(
    const char *host, uint16_t port, struct sockaddr_storage *address_out, kv_error_t *error);

/* "host:port" or "[host]:port". */
kv_status_t kv_address_parse(
    const char *text, struct sockaddr_storage *address_out, kv_error_t *error);

socklen_t kv_address_bytes(const struct sockaddr_storage *address);
uint16_t kv_address_port(const struct sockaddr_storage *address);

/* The host alone, numeric; text_out holds KV_ADDRESS_TEXT_BYTES. */
void kv_address_host(const struct sockaddr_storage *address, char *text_out);

/* As kv_address_parse reads it. */
void kv_address_text(const struct sockaddr_storage *address, char *text_out);

#endif
