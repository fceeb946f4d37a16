#include "gateway/gemini/times.h"

#include "base/clock.h"

#include <stddef.h>
#include <stdio.h>
#include <time.h>

enum { DIGITS_MAX = 9, YEAR_MIN = 1970, YEAR_MAX = 2100 };

/* Exactly count digits. */
static bool take_digits(const char **text, int count, int *value_out)
{
    int value = 0;
    for (int i = 0; i < count; i++, (*text)++) {
        if (**text < '0' || **text > '9') {
            return false;
        }
        value = 10 * value + (**text - '0');
    }
    *value_out = value;
    return true;
}

static bool take(const char **text, char wanted)
{
    bool there = **text == wanted;
    *text += there;
    return there;
}

/* ".123": 1 to 9 digits; nothing is a fraction too. */
static bool take_fraction(const char **text, uint64_t *ns_out)
{
    uint64_t ns = 0, unit = KV_NS_PER_S;
    *ns_out = 0;
    if (!take(text, '.')) {
        return true;
    }
    int digits = 0;
    for (; **text >= '0' && **text <= '9'; (*text)++, digits++) {
        unit /= 10;
        ns += unit * (uint64_t)(**text - '0');
    }
    *ns_out = ns / KV_NS_PER_US * KV_NS_PER_US;
    return digits > 0 && digits <= DIGITS_MAX;
}

/* "Z" or "+05:30", and the end. */
static bool take_offset(const char **text, int *seconds_out)
{
    int hours, minutes;
    *seconds_out = 0;
    if (take(text, 'Z') || take(text, 'z')) {
        return **text == '\0';
    }
    int sign = take(text, '-') ? -1 : take(text, '+') ? 1 : 0;
    bool good = sign != 0 && take_digits(text, 2, &hours) && take(text, ':') &&
                take_digits(text, 2, &minutes) && **text == '\0' && hours < 24 && minutes < 60;
    *seconds_out = good ? sign * (3600 * hours + 60 * minutes) : 0;
    return good;
}

bool kv_gemini_time_parse(const char *text, uint64_t *unix_ns_out)
{
    struct tm parts = {0};
    int offset_s;
    uint64_t fraction_ns;
    bool good = take_digits(&text, 4, &parts.tm_year) && take(&text, '-') &&
                take_digits(&text, 2, &parts.tm_mon) && take(&text, '-') &&
                take_digits(&text, 2, &parts.tm_mday) &&
                (take(&text, 'T') || take(&text, 't') || take(&text, ' ')) &&
                take_digits(&text, 2, &parts.tm_hour) && take(&text, ':') &&
                take_digits(&text, 2, &parts.tm_min) && take(&text, ':') &&
                take_digits(&text, 2, &parts.tm_sec) && take_fraction(&text, &fraction_ns) &&
                take_offset(&text, &offset_s);
    if (!good || parts.tm_year < YEAR_MIN || parts.tm_year >= YEAR_MAX || parts.tm_hour > 23 ||
        parts.tm_min > 59 || parts.tm_sec > 59) {
        return false;
    }
    int month = --parts.tm_mon, day = parts.tm_mday;
    parts.tm_year -= 1900;
    time_t seconds = timegm(&parts);
    /* timegm makes the 31st of a month of 30 days the next one's first. */
    if (parts.tm_mon != month || parts.tm_mday != day || seconds - offset_s < 0) {
        return false;
    }
    *unix_ns_out = (uint64_t)(seconds - offset_s) * KV_NS_PER_S + fraction_ns;
    return true;
}

void kv_gemini_time_format(uint64_t unix_ns, char text_out[KV_GEMINI_TIME_BYTES])
{
    struct tm parts;
    time_t seconds = (time_t)(unix_ns / KV_NS_PER_S);
    unsigned us = (unsigned)(unix_ns % KV_NS_PER_S / KV_NS_PER_US);
    gmtime_r(&seconds, &parts);
    size_t length = strftime(text_out, KV_GEMINI_TIME_BYTES, "%Y-%m-%dT%H:%M:%S", &parts);
    char *end = text_out + length;
    size_t room = KV_GEMINI_TIME_BYTES - length;
    if (us == 0) {
        snprintf(end, room, "Z");
    } else if (us % 1000 == 0) {
        snprintf(end, room, ".%03uZ", us / 1000);
    } else {
        snprintf(end, room, ".%06uZ", us);
    }
}

bool kv_gemini_duration_parse(const char *text, uint64_t *duration_ns_out)
{
    uint64_t seconds = 0, fraction_ns;
    const char *first = text;
    for (; *text >= '0' && *text <= '9'; text++) {
        seconds = 10 * seconds + (uint64_t)(*text - '0');
        if (seconds > KV_GEMINI_DURATION_S_MAX) {
            return false;
        }
    }
    if (text == first || !take_fraction(&text, &fraction_ns) || !take(&text, 's') ||
        *text != '\0') {
        return false;
    }
    *duration_ns_out = seconds * KV_NS_PER_S + fraction_ns;
    return true;
}
