#include "base/bytes.h"

#include <math.h>
#include <stdlib.h>
#include <strings.h>

void kv_hex_encode(const void *bytes, size_t count, char *text_out)
{
    static const char DIGITS[] = "0123456789abcdef";
    const uint8_t *from = bytes;
    for (size_t i = 0; i < count; i++) {
        text_out[2 * i] = DIGITS[from[i] >> 4];
        text_out[2 * i + 1] = DIGITS[from[i] & 15];
    }
    text_out[2 * count] = '\0';
}

static int digit_value(char digit)
{
    if (digit >= '0' && digit <= '9') {
        return digit - '0';
    }
    if (digit >= 'a' && digit <= 'f') {
        return digit - 'a' + 10;
    }
    return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

bool kv_text_is_plain(const char *text, char least, size_t bytes_max)
{
    size_t length = strlen(text);
    for (size_t i = 0; i < length; i++) {
        if (text[i] < least || text[i] > '~') {
            return false;
        }
    }
    return length > 0 && length <= bytes_max;
}

kv_status_t kv_hex_decode(const char *text, void *bytes_out, size_t count)
{
    if (strlen(text) != 2 * count) {
        return KV_INVALID;
    }
    uint8_t *to = bytes_out;
    for (size_t i = 0; i < count; i++) {
        int high = digit_value(text[2 * i]), low = digit_value(text[2 * i + 1]);
        if (high < 0 || low < 0) {
            return KV_INVALID;
        }
        to[i] = (uint8_t)(high << 4 | low);
    }
    return KV_OK;
}

kv_status_t kv_size_parse(const char *text, uint64_t *bytes_out)
{
    static const struct {
        const char *name;
        int shift;
    } UNITS[] = {{"", 0}, {"B", 0}, {"K", 10}, {"KB", 10}, {"KiB", 10}, {"M", 20}, {"MB", 20},
        {"MiB", 20}, {"G", 30}, {"GB", 30}, {"GiB", 30}, {"T", 40}, {"TB", 40}, {"TiB", 40}};
    char *end;
    if (text[0] < '0' || text[0] > '9') {
        return KV_INVALID;
    }
    double number = strtod(text, &end);
    while (*end == ' ') {
        end++;
    }
    for (size_t i = 0; i < sizeof UNITS / sizeof UNITS[0]; i++) {
        if (strcasecmp(end, UNITS[i].name) == 0) {
            double bytes = ldexp(number, UNITS[i].shift);
            if (!(bytes >= 0 && bytes < 0x1p63)) {
                return KV_INVALID;
            }
            *bytes_out = (uint64_t)bytes;
            return KV_OK;
        }
    }
    return KV_INVALID;
}

size_t kv_utf8_length(const char *text, size_t bytes)
{
    const uint8_t *at = (const uint8_t *)text;
    if (bytes == 0) {
        return 0;
    }
    if (at[0] < 0x80) {
        return 1;
    }
    size_t length = at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : 2;
    if (at[0] < 0xc2 || at[0] > 0xf4 || bytes < length) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if ((at[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    /* Overlong forms, surrogates, beyond U+10FFFF. */
    bool wrong = (at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) ||
                 (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f);
    return wrong ? 0 : length;
}

bool kv_utf8_valid(const char *text, size_t bytes)
{
    while (bytes > 0) {
        size_t length = kv_utf8_length(text, bytes);
        if (length == 0) {
            return false;
        }
        text += length;
        bytes -= length;
    }
    return true;
}
