#include "base/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

kv_status_t kv_address_from_parts(
    const char *host, uint16_t port, struct sockaddr_storage *address_out, kv_error_t *error)
{
    struct sockaddr_storage address = {0};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address;
    const char *numeric = strcmp(host, "localhost") == 0 ? "127.0.0.1" : host;
    if (inet_pton(AF_INET, numeric, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
    } else if (inet_pton(AF_INET6, numeric, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
    } else {
        return kv_fail(error, KV_INVALID, "'%.48s' is no IPv4 or IPv6 address", host);
    }
    *address_out = address;
    return KV_OK;
}

kv_status_t kv_address_parse(
    const char *text, struct sockaddr_storage *address_out, kv_error_t *error)
{
    char host[KV_ADDRESS_TEXT_BYTES];
    const char *colon = strrchr(text, ':');
    size_t host_bytes = colon != NULL ? (size_t)(colon - text) : 0;
    const char *begin = text;
    if (host_bytes >= 2 && text[0] == '[' && text[host_bytes - 1] == ']') {
        begin++;
        host_bytes -= 2;
    }
    if (host_bytes == 0 || host_bytes >= sizeof host) {
        return kv_fail(error, KV_INVALID, "'%.64s' is not of the form host:port", text);
    }
    memcpy(host, begin, host_bytes);
    host[host_bytes] = '\0';
    const char *digits = colon + 1;
    size_t digit_count = strspn(digits, "0123456789");
    unsigned long port = strtoul(digits, NULL, 10);
    if (digit_count == 0 || digit_count > 5 || digits[digit_count] != '\0' || port == 0 ||
        port > 65535) {
        return kv_fail(error, KV_INVALID, "the port of '%.64s' is not in 1 to 65535", text);
    }
    return kv_address_from_parts(host, (uint16_t)port, address_out, error);
}

socklen_t kv_address_bytes(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                          : sizeof(struct sockaddr_in);
}

uint16_t kv_address_port(const struct sockaddr_storage *address)
{
    return ntohs(address->ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)address)->sin6_port
                                                : ((const struct sockaddr_in *)address)->sin_port);
}

void kv_address_host(const struct sockaddr_storage *address, char *text_out)
{
    const void *bytes = address->ss_family == AF_INET6
                            ? (const void *)&((const struct sockaddr_in6 *)address)->sin6_addr
                            : (const void *)&((const struct sockaddr_in *)address)->sin_addr;
    if (inet_ntop(address->ss_family, bytes, text_out, KV_ADDRESS_TEXT_BYTES) == NULL) {
        snprintf(text_out, KV_ADDRESS_TEXT_BYTES, "?");
    }
}

void kv_address_text(const struct sockaddr_storage *address, char *text_out)
{
    char host[KV_ADDRESS_TEXT_BYTES];
    kv_address_host(address, host);
    snprintf(text_out, KV_ADDRESS_TEXT_BYTES,
        address->ss_family == AF_INET6 ? "[%.46s]:%u" : "%.46s:%u", host, kv_address_port(address));
}
