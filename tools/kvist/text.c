#include "tools/kvist/text.h"

#include "base/clock.h"

#include <ctype.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Times are kept in 32 bits of seconds. */
enum { DURATION_SECONDS_MAX = 50 * 366 * 86400 };

char *kv_text_size(uint64_t bytes, char *text_out)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    double value = (double)bytes;
    /* 1023.5 would be written as 1024 of the smaller unit. */
    while (value >= 1023.5 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1024;
        unit++;
    }
    snprintf(text_out, KV_TEXT_BYTES, unit == 0 || value >= 99.95 ? "%.0f %s" : "%.1f %s", value,
        units[unit]);
    return text_out;
}

char *kv_text_count(uint64_t count, char *text_out)
{
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%llu", (unsigned long long)count), at = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) {
            text_out[at++] = ',';
        }
        text_out[at++] = digits[i];
    }
    text_out[at] = '\0';
    return text_out;
}

char *kv_text_duration(uint64_t ns, char *text_out)
{
    double seconds = (double)ns / KV_NS_PER_S;
    if (seconds < 1) {
        snprintf(text_out, KV_TEXT_BYTES, seconds < 0.1 ? "%.1f ms" : "%.0f ms", seconds * 1000);
    } else if (seconds < 120) {
        snprintf(text_out, KV_TEXT_BYTES, seconds < 10 ? "%.2f s" : "%.1f s", seconds);
    } else if (seconds < 2 * 3600) {
        snprintf(text_out, KV_TEXT_BYTES, "%.0f min", seconds / 60);
    } else if (seconds < 48 * 3600) {
        snprintf(text_out, KV_TEXT_BYTES, "%.0f h", seconds / 3600);
    } else {
        snprintf(text_out, KV_TEXT_BYTES, "%.0f d", seconds / 86400);
    }
    return text_out;
}

char *kv_text_bar(double fraction, char *text_out)
{
    enum { CELLS = 20 };
    /* Whatever is not empty shows: half a cell rounds up. */
    int filled = fraction <= 0 ? 0 : fraction >= 1 ? CELLS : (int)(fraction * CELLS + 0.999);
    text_out[0] = '[';
    for (int i = 0; i < CELLS; i++) {
        text_out[1 + i] = i < filled ? '#' : '.';
    }
    text_out[1 + CELLS] = ']';
    text_out[2 + CELLS] = '\0';
    return text_out;
}

char *kv_text_percent(uint64_t part, uint64_t whole, char *text_out)
{
    if (whole == 0) {
        snprintf(text_out, KV_TEXT_BYTES, "-");
    } else {
        snprintf(text_out, KV_TEXT_BYTES, "%.1f %%", 100.0 * (double)part / (double)whole);
    }
    return text_out;
}

char *kv_text_time(uint64_t unix_ns, char *text_out)
{
    time_t seconds = (time_t)(unix_ns / KV_NS_PER_S);
    struct tm parts;
    localtime_r(&seconds, &parts);
    strftime(text_out, KV_TEXT_BYTES, "%Y-%m-%d %H:%M:%S", &parts);
    return text_out;
}

kv_status_t kv_duration_parse(const char *text, uint64_t *ns_out)
{
    static const struct {
        char name;
        uint32_t seconds;
    } UNITS[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 7 * 86400}};
    char *end;
    if (!isdigit((unsigned char)text[0])) {
        return KV_INVALID;
    }
    unsigned long long count = strtoull(text, &end, 10);
    for (size_t i = 0; i < sizeof UNITS / sizeof *UNITS; i++) {
        if (end[0] == UNITS[i].name && end[1] == '\0' && count > 0 &&
            count <= (unsigned)DURATION_SECONDS_MAX / UNITS[i].seconds) {
            *ns_out = count * UNITS[i].seconds * KV_NS_PER_S;
            return KV_OK;
        }
    }
    return KV_INVALID;
}

kv_status_t kv_time_parse(const char *text, uint64_t *unix_ns_out)
{
    static const char *const FORMS[] = {"%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"};
    for (size_t i = 0; i < sizeof FORMS / sizeof *FORMS; i++) {
        struct tm parts = {.tm_isdst = -1};
        const char *end = strptime(text, FORMS[i], &parts);
        if (end == NULL || (end[0] != '\0' && strcmp(end, "Z") != 0)) {
            continue;
        }
        struct tm day = parts; /* in UTC, which has no gaps: the 31st of February becomes another */
        if (timegm(&day) < 0 || day.tm_mday != parts.tm_mday) {
            return KV_INVALID;
        }
        time_t seconds = end[0] == 'Z' ? timegm(&parts) : mktime(&parts);
        if (seconds <= 0) {
            return KV_INVALID;
        }
        *unix_ns_out = (uint64_t)seconds * KV_NS_PER_S;
        return KV_OK;
    }
    return KV_INVALID;
}
